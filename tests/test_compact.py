"""compact(): the space of what is dead is given back, and nothing else changes.

Rules out a row, payload or commit that is lost on the way, a damaged row that gets a checksum which holds, an error or
Ctrl-C that leaves anything but the database as it was, files of another generation that are taken for valid, and a copy
that takes more room than it was said to.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corenn import CoreNN
from corenn.errors import (
    ClosedError,
    CorruptionError,
    DiskFullError,
    FormatError,
    NotADatabaseError,
    ReadOnlyError,
    StorageError,
)
from corenn.storage.files import Files
from corenn.storage.generation import FILE
from tests.compaction import COUNT, DIM, Rows, alive, bytes_in, check, files_in, filled, key, made_rows
from tests.conftest import Create, Sample
from tests.kinds import STORED, diagonal
from tests.oracle import DTYPES, METRICS, recall

pytestmark = pytest.mark.compiled


@pytest.fixture(scope="module")
def rows() -> Rows:
    return made_rows()


# --- nothing is lost --------------------------------------------------------------------------------------------------


@pytest.mark.few(4)
@pytest.mark.parametrize(
    ("create", "metric", "dtype"), diagonal(STORED, METRICS, DTYPES, rounds=2), indirect=["create"]
)
def test_every_row_answers_as_before(create: Create, rows: Rows, metric: str, dtype: str) -> None:
    db = filled(create(dim=DIM, metric=metric, dtype=dtype, compression_mode="sq8", compression_threshold=400), rows)
    keys = [key(n) for n in alive(rows)]
    records, stats = db.get(keys), db.stats()
    hits = db.query(rows[:40], k=10, exact=True, with_payloads=True)
    db.compact()
    after = db.stats()
    assert (after.rows, after.commit, after.tombstones) == (stats.rows, stats.commit, 0)
    assert (after.generation, after.compression_mode) == (2, "sq8")
    for record, before in zip(db.get(keys), records, strict=True):
        assert record is not None
        assert before is not None
        assert (record.key, record.payload) == (before.key, before.payload)
        assert np.array_equal(record.vector, before.vector)
    for found, before in zip(db.query(rows[:40], k=10, exact=True, with_payloads=True), hits, strict=True):
        assert found.distances.tolist() == before.distances.tolist()
        at = {each.key: each.payload for each in before}
        assert all(at[each.key] == each.payload for each in found if each.key in at)
    report = db.verify()
    assert report.ok, report
    assert report.unreachable == 0


def test_reopened_it_is_what_it_was(tmp_path: Path, rows: Rows) -> None:
    with filled(CoreNN.create(tmp_path / "db", dim=DIM, metric="l2"), rows) as db:
        for generation in (2, 3):
            db.compact()
            assert files_in(tmp_path / "db") == {FILE, f"generation-{generation}"}
            check(db, rows)
        commit = db.stats().commit
    for mode in ("r", "rw"):
        with CoreNN.open(tmp_path / "db", mode=mode) as db:
            assert (db.stats().generation, db.stats().commit) == (3, commit)
            report = db.verify()
            assert report.ok and not report.repaired, report
            check(db, rows)
    with CoreNN.open(tmp_path / "db") as db:
        db.insert(["new"], rows[:1] + 7)
        db.delete([key(0)])
        assert db.stats().commit == commit + 2
        assert db.query(rows[0] + 7, k=1).keys == ["new"]
    with CoreNN.open(tmp_path / "db") as db:
        assert db.verify().ok
        assert db.get(["new", key(0)])[1] is None


def test_what_was_handed_out_stays_what_it_was(create: Create, rows: Rows) -> None:
    db = filled(create(dim=DIM, metric="l2"), rows)
    keys, hits = db.keys(), db.query(rows[:5], k=20, with_payloads=True)
    seen = [(each.key, each.distance, each.payload) for line in hits for each in line]
    named = list(keys)
    db.compact()
    db.delete(named[:100])
    db.insert([f"other {n}" for n in range(300)], rows[:300])
    db.compact()
    assert list(keys) == named
    assert [(each.key, each.distance, each.payload) for line in hits for each in line] == seen


@pytest.mark.parametrize("left", [0, 1, 2])
def test_few_rows_or_none_are_left(create: Create, rows: Rows, left: int) -> None:
    db = create(dim=DIM, metric="ip")
    db.compact()
    db.insert(range(500), rows[:500], [{"n": n} for n in range(500)])
    db.delete(range(left, 500))
    db.compact()
    assert list(db.keys()) == list(range(left))
    assert db.verify().ok
    assert db.query(rows[0], k=5, with_payloads=True).payloads == [{"n": n} for n in db.query(rows[0], k=5).keys]
    db.insert(range(500, 900), rows[500:900])
    assert db.verify().ok
    assert len(db.query(rows[500], k=10)) == 10


def test_rows_that_wait_are_linked_first(create: Create, rows: Rows) -> None:
    db = create(dim=DIM, metric="l2")
    with db.loading():
        db.insert(range(COUNT), rows)
        db.delete(range(0, COUNT, 2))
        db.compact()
        assert db.stats().pending == 0
        db.insert(range(0, COUNT, 2), rows[::2])
    report = db.verify()
    assert report.ok, report
    assert sorted(db.keys()) == list(range(COUNT))


@pytest.mark.few(2)
@pytest.mark.parametrize("share", [0.5, 0.9])
@pytest.mark.parametrize("metric", METRICS)
def test_recall_is_as_before(memory: Create, sift: Sample, metric: str, share: float) -> None:
    stored, queries = sift
    db = memory(dim=128, metric=metric)
    db.insert(range(len(stored)), stored)
    dead = np.random.default_rng(2).permutation(len(stored))[: int(share * len(stored))]
    db.delete(dead.tolist())
    live = np.setdiff1d(np.arange(len(stored)), dead)
    number = {int(row): at for at, row in enumerate(live)}

    def measured() -> float:
        found = [[number[each] for each in hits.keys] for hits in db.query(queries, k=10, search_list=30)]
        return recall(metric, stored[live], queries, found)

    before = measured()
    db.compact()
    assert measured() >= min(before, 0.99) - 0.01


def test_snapshots_go_on_from_the_commit_that_they_were_at(tmp_path: Path, rows: Rows) -> None:
    """A payload keeps the number of its commit: a reader of the commit before the next one must not see that one's."""
    with CoreNN.create(tmp_path / "db", dim=DIM) as db:
        db.insert(range(10), rows[:10], [{"version": 1}] * 10)
        db.set_payload([3], [{"version": 2}])
        db.delete([0])
        db.compact()
        with CoreNN.open(tmp_path / "db", mode="r") as reader:
            db.set_payload([3, 4], [{"version": 3}, None])
            db.upsert([5], rows[:1])
            records = reader.get([3, 4, 5])
            assert [record.payload for record in records if record] == [{"version": 2}, {"version": 1}, {"version": 1}]
            reader.refresh()
            assert [record.payload for record in reader.get([3, 4, 5]) if record] == [{"version": 3}, None, None]


# --- bytes ------------------------------------------------------------------------------------------------------------


def padded(numbers: Any) -> list[dict[str, Any]]:
    return [{"n": int(n), "text": f"{n} " * 20} for n in numbers]


def test_the_files_are_about_as_large_as_those_of_a_fresh_build(tmp_path: Path, sift: Sample) -> None:
    stored = sift[0]
    count = len(stored)
    names = [f"a name of some length {n}" for n in range(count)]
    with CoreNN.create(tmp_path / "db", dim=128, metric="l2") as db:
        db.insert(names, stored, padded(range(count)))
        db.delete([name for n, name in enumerate(names) if n % 10])
        before, told = db.stats().disk_bytes, db.stats().reclaimable_bytes
        db.compact()
        after = db.stats().disk_bytes
        assert before - after > 0.9 * told
    left = range(0, count, 10)
    with CoreNN.create(tmp_path / "fresh", dim=128, metric="l2") as db:
        db.insert([names[n] for n in left], stored[::10], padded(left))
    assert bytes_in(tmp_path / "db") <= 1.3 * bytes_in(tmp_path / "fresh")
    assert bytes_in(tmp_path / "db") < before / 5


def test_no_bytes_of_the_old_files_stay_in_use(tmp_path: Path, rows: Rows) -> None:
    """A file that is removed takes its room on the disk until nobody has it open or mapped."""
    if not Path("/proc/self/maps").exists():
        pytest.skip("needs /proc")
    with filled(CoreNN.create(tmp_path / "db", dim=DIM, metric="l2"), rows) as db:
        db.query(rows[0], k=5)
        db.compact()
        mapped = Path("/proc/self/maps").read_text().splitlines()
        assert [line for line in mapped if str(tmp_path) in line and "(deleted)" in line] == []
        opened = [str(each.readlink()) for each in Path("/proc/self/fd").iterdir() if each.is_symlink()]
        assert [name for name in opened if str(tmp_path) in name and "(deleted)" in name] == []


def test_the_folder_never_holds_more_than_was_said(tmp_path: Path, sift: Sample) -> None:
    path, stored = tmp_path / "db", sift[0][:3_000]
    asked: list[int] = []

    class Watched(Files):
        def free_bytes(self, folder: Path) -> int:
            asked.append(super().free_bytes(folder))
            return asked[-1]

    with CoreNN.create(path, dim=128, metric="l2") as db:
        db.insert(range(len(stored)), stored, padded(range(len(stored))))
        db.delete(range(0, len(stored), 2))
        db.checkpoint()
        db._store.files = Watched()
        old, peak, done = bytes_in(path), [0], threading.Event()

        def watch() -> None:
            while not done.is_set():
                peak[0] = max(peak[0], bytes_in(path))

        watcher = threading.Thread(target=watch)
        watcher.start()
        db.compact(lambda *step: peak.__setitem__(0, max(peak[0], bytes_in(path))))
        done.set()
        watcher.join()
        result = bytes_in(path)
    assert len(asked) == 1
    assert old < peak[0] <= old + 1.1 * result


def test_a_disk_too_small_is_told_before_anything_is_written(tmp_path: Path, rows: Rows) -> None:
    class Small(Files):
        def free_bytes(self, path: Path) -> int:
            return 12_345

        def open(self, path: Path, *, writable: bool, create: bool = False) -> int:
            raise AssertionError(f"{path} was opened")

        make_folder: Any = None

    with filled(CoreNN.create(tmp_path / "db", dim=DIM, metric="l2"), rows) as db:
        before = files_in(tmp_path / "db")
        db._store.files = Small()
        with pytest.raises(DiskFullError, match=r"takes up to ([\d,]+) bytes .* 12,345 are free; make room") as error:
            db.compact()
        needed = int(str(error.value).split("up to ")[1].split(" ")[0].replace(",", ""))
        assert files_in(tmp_path / "db") == before
        check(db, rows)
        db._store.files = Files()
        db.compact()
        assert needed / 1.1 >= bytes_in(tmp_path / "db" / "generation-2") * 0.99


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MB in memory; skips where that cannot be mounted."""
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "none", str(place)], check=False)
    if done.returncode:
        pytest.skip("cannot mount a tmpfs")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_fills_up_on_the_way_changes_nothing(small_disk: Path, sift: Sample) -> None:
    class Liar(Files):
        def free_bytes(self, path: Path) -> int:
            return 1 << 40

    stored = sift[0][:4000]
    with CoreNN.create(small_disk / "db", dim=128, metric="l2") as db:
        db.insert(range(4000), stored, padded(range(4000)))
        db.delete(range(0, 4000, 10))
        db._store.files = Liar()
        ballast, taken = small_disk / "ballast", 0
        db.checkpoint()
        for left in range(0, 7 << 20, 1 << 20):  # room for more and more of the copy
            free = os.statvfs(small_disk).f_bavail * 4096 + taken
            taken = max(0, free - left)
            ballast.write_bytes(bytes(taken))
            try:
                db.compact()
                break
            except (DiskFullError, StorageError):
                assert db.stats().generation == 1
                assert "generation-2" not in files_in(small_disk / "db")
                assert db.query(stored[7], k=1, with_payloads=True).payloads == padded([7])
        assert left >= 2 << 20
        assert db.stats().generation == 2
        ballast.unlink()
        db.insert(["more"], stored[:1])
    with CoreNN.open(small_disk / "db") as db:
        assert db.verify().ok
        assert len(db) == 3601


# --- what ends it -----------------------------------------------------------------------------------------------------


class Failing(Files):
    """Fails at one operation, counted from 1; `named` tells which it was."""

    def __init__(self, at: int) -> None:
        self.left = at
        self.named = ""

    def _count(self, name: str, path: Path) -> None:
        self.left -= 1
        if self.left == 0:
            self.named = f"{name} {path.name}"
            raise StorageError(f"cannot {name} {path}: injected")


def _failing(name: str, place: int) -> Callable[..., Any]:
    def operation(self: Failing, *given: Any, **named: Any) -> Any:
        self._count(name, given[place])
        return getattr(Files, name)(self, *given, **named)

    return operation


for _name, _place in {
    "open": 0, "write": 3, "allocate": 2, "sync": 1, "sync_folder": 0, "map": 2, "rename": 1, "make_folder": 0,
    "remove": 0, "remove_tree": 0, "free_bytes": 0,
}.items():  # fmt: skip
    setattr(Failing, _name, _failing(_name, _place))


def test_an_error_at_any_operation_leaves_the_old_files_in_use(tmp_path: Path, rows: Rows) -> None:
    path = tmp_path / "db"
    db = filled(CoreNN.create(path, dim=DIM, metric="l2", compression_mode="none"), rows)
    at, failed = 0, []
    while True:
        at += 1
        before, files = db.stats(), Failing(at)
        db._store.files = files
        try:
            db.compact()
        except StorageError:
            failed.append(files.named)
            assert db.stats().generation == before.generation
            check(db, rows)
            db._store.files = Files()
            db.upsert([key(1)], rows[1:2])
            db.delete([key(1)])
            continue
        else:
            assert db.stats().generation == before.generation + 1
        check(db, rows)
        assert db.verify().ok
        if files.left > 0:  # there are not so many operations
            break
    assert len(failed) > 30, failed
    assert any(name.startswith("rename") for name in failed)
    db._store.files.left = 0  # type: ignore[attr-defined]
    db.close()
    with CoreNN.open(path) as db:
        assert files_in(path) == {FILE, f"generation-{db.stats().generation}"}
        check(db, rows)


def test_generations_never_part(tmp_path: Path, rows: Rows) -> None:
    """The name is in its place and cannot be synced, nor taken back: what is written now might be lost."""

    class Dying(Files):
        renamed = False

        def rename(self, source: Path, target: Path) -> None:
            if self.renamed:
                raise StorageError("cannot rename: injected")
            super().rename(source, target)
            self.renamed = True

        def sync_folder(self, path: Path) -> None:
            if self.renamed:
                raise StorageError("cannot sync: injected")
            super().sync_folder(path)

    db = filled(CoreNN.create(tmp_path / "db", dim=DIM, metric="l2"), rows)
    db._store.files = Dying()
    with pytest.raises(StorageError, match="cannot sync"):
        db.compact()
    db._store.files = Files()
    for _ in range(2):
        with pytest.raises(ReadOnlyError, match="open it again"):
            db.insert(["refused"], rows[:1])
    check(db, rows)
    db.close()
    with CoreNN.open(tmp_path / "db") as db:
        assert db.stats().generation == 2
        check(db, rows)
        assert files_in(tmp_path / "db") == {FILE, "generation-2"}


@pytest.mark.parametrize("on_disk", [False, True])
def test_ctrl_c_leaves_everything_as_it_was(tmp_path: Path, rows: Rows, on_disk: bool) -> None:
    db = CoreNN.create(tmp_path / "db", dim=DIM, metric="l2") if on_disk else CoreNN.in_memory(dim=DIM, metric="l2")
    with filled(db, rows):
        before = files_in(tmp_path / "db") if on_disk else set()
        for name in ("rows", "edges", "metadata" if on_disk else "payloads", "disk"):
            pressed = threading.Event()

            def press(step: str, done: int, total: int, name: str = name, pressed: threading.Event = pressed) -> None:
                if step == name and not pressed.is_set():
                    pressed.set()
                    os.kill(os.getpid(), signal.SIGINT)
                    until = time.monotonic() + 30
                    while not db._writer._job[0].interrupted and time.monotonic() < until:  # type: ignore[union-attr, index]
                        time.sleep(0.01)  # the other thread is told in its own time

            if name == "disk" and not on_disk:
                continue
            with pytest.raises(KeyboardInterrupt):
                db.compact(press)
            assert pressed.is_set()
            assert db.stats().generation == 1
            assert not on_disk or files_in(tmp_path / "db") == before
            check(db, rows)
            db.upsert([key(1)], rows[1:2])
            db.delete([key(1)])
        db.compact()
        check(db, rows)


def test_an_error_of_the_progress_callback_reaches_the_caller(create: Create, rows: Rows) -> None:
    def fail(step: str, done: int, total: int) -> None:
        raise ZeroDivisionError(step)

    db = filled(create(dim=DIM, metric="l2"), rows)
    with pytest.raises(ZeroDivisionError):
        db.compact(fail)
    assert db.stats().generation == 1
    check(db, rows)


def test_progress_is_told_step_by_step(create: Create, rows: Rows) -> None:
    told: list[tuple[str, int, int]] = []
    db = filled(create(dim=DIM, metric="l2"), rows)
    db.compact(lambda *step: told.append(step))
    names = list(dict.fromkeys(name for name, _, _ in told))
    assert names[names.index("rows") :][:3] == ["rows", "keys", "edges"]
    for name in names:
        done = [(done, total) for each, done, total in told if each == name]
        assert sorted(done) == done
        assert all(0 <= part <= total for part, total in done)


def test_close_gives_it_up(tmp_path: Path, rows: Rows) -> None:
    db = filled(CoreNN.create(tmp_path / "db", dim=DIM, metric="l2"), rows)
    closer = threading.Thread(target=db.close)

    def close(step: str, done: int, total: int) -> None:
        if not closer.ident:
            closer.start()
            time.sleep(0.3)

    with pytest.raises(ClosedError, match="compact"):
        db.compact(close)
    closer.join()
    with CoreNN.open(tmp_path / "db") as db:
        assert db.stats().generation == 1
        check(db, rows)


def test_readers_and_the_closed_are_refused(tmp_path: Path, rows: Rows) -> None:
    db = CoreNN.create(tmp_path / "db", dim=DIM)
    with CoreNN.open(tmp_path / "db", mode="r") as reader, pytest.raises(ReadOnlyError):
        reader.compact()
    db.close()
    with pytest.raises(ClosedError):
        db.compact()


# --- damage -----------------------------------------------------------------------------------------------------------


def flip(db: CoreNN, slab: str, row: int, column: int) -> None:
    """Change one item of a row behind the back of the database."""
    each: Any = db._store.slabs[slab]
    items = each.array[row : row + 1].copy()
    items[0, column] += 1
    each.write(row, items)


@pytest.mark.parametrize("slab", ["vectors.slab", "seals.slab"])
def test_a_damaged_row_gets_no_checksum_that_holds(tmp_path: Path, rows: Rows, slab: str) -> None:
    with filled(CoreNN.create(tmp_path / "db", dim=DIM, metric="l2"), rows) as db:
        flip(db, slab, 3, 0)
        with pytest.raises(CorruptionError, match=r"3 .*repair\(\)"):
            db.compact()
        assert db.stats().generation == 1
        assert [problem.lost for problem in db.verify().problems if problem.lost] == [(3,)]
        db.repair()
        db.compact()
        assert db.verify().ok
        assert db.get([3, 9])[0] is None
        assert db.get([3, 9])[1] is not None


@pytest.mark.parametrize(("slab", "column", "name"), [("keys.slab", 0, "key"), ("edges.slab", 1, "lifeline")])
def test_damaged_soft_files_are_for_repair(tmp_path: Path, rows: Rows, slab: str, column: int, name: str) -> None:
    with filled(CoreNN.create(tmp_path / "db", dim=DIM, metric="l2"), rows) as db:
        db._store.slabs[slab].array[6, column] = 0
        with pytest.raises(CorruptionError, match=rf"{name}.*repair\(\)"):
            db.compact()
        db.repair()
        db.compact()
        assert db.verify().ok
        check(db, rows)


def test_a_key_that_the_metadata_has_lost_is_for_repair(tmp_path: Path, rows: Rows) -> None:
    with filled(CoreNN.create(tmp_path / "db", dim=DIM, metric="l2"), rows) as db:
        db._store.metadata.write_rows([(b"kskey 6", None)])  # type: ignore[attr-defined]
        with pytest.raises(CorruptionError, match=r"1 of 500 live rows have no key .*repair\(\)"):
            db.compact()
        assert files_in(tmp_path / "db") & {FILE, "generation-2"} == set()
        db.repair()
        db.compact()
        check(db, rows)


@pytest.fixture
def compacted(tmp_path: Path, rows: Rows) -> Path:
    with filled(CoreNN.create(tmp_path / "db", dim=DIM, metric="l2"), rows) as db:
        db.compact()
    return tmp_path / "db"


@pytest.mark.parametrize("content", [b"", b"generation 1 crc 00000000\n", b"\0" * 27, None])
def test_a_damaged_name_of_the_generation_is_never_guessed(compacted: Path, rows: Rows, content: bytes | None) -> None:
    if content is None:
        (compacted / FILE).unlink()
    else:
        (compacted / FILE).write_bytes(content)
    for mode in ("r", "rw"):
        with pytest.raises(FormatError, match=r"GENERATION .*corenn repair"):
            CoreNN.open(compacted, mode=mode)
    with CoreNN.open(compacted, mode="rescue") as db:
        assert db.repair().ok
    with CoreNN.open(compacted) as db:
        check(db, rows)


def test_of_two_generations_rescue_takes_neither_by_guess(compacted: Path) -> None:
    subprocess.run(["cp", "-r", compacted / "generation-2", compacted / "generation-3"], check=True)
    (compacted / FILE).write_bytes(b"?")
    with pytest.raises(FormatError, match=r"\[2, 3\]"):
        CoreNN.open(compacted, mode="rescue")
    assert (compacted / "generation-3" / "vectors.slab").exists()


def test_files_of_another_generation_are_refused(compacted: Path, rows: Rows) -> None:
    with CoreNN.open(compacted) as db:
        subprocess.run(["cp", compacted / "generation-2" / "vectors.slab", compacted / "kept"], check=True)
        subprocess.run(["cp", "-r", compacted / "generation-2" / "meta", compacted / "kept meta"], check=True)
        db.compact()
    place = compacted / "generation-3"
    (place / "vectors.slab").rename(place / "right")
    (compacted / "kept").rename(place / "vectors.slab")
    with pytest.raises(FormatError, match=r"vectors\.slab"):
        CoreNN.open(compacted)
    (place / "right").rename(place / "vectors.slab")
    (place / "meta").rename(compacted / "right meta")
    (compacted / "kept meta").rename(place / "meta")
    with pytest.raises(FormatError, match="generation 2, not 3"):
        CoreNN.open(compacted)


def test_a_folder_with_nothing_in_it_is_no_database(tmp_path: Path) -> None:
    for mode in ("r", "rw", "rescue"):
        with pytest.raises(NotADatabaseError):
            CoreNN.open(tmp_path, mode=mode)
    assert files_in(tmp_path) == set()
