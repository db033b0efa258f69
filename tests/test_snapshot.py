"""Snapshots of the files.

Rules out a snapshot that is no state the database was ever in, one that does not open or verify, one that loses recall,
an incremental one that is not what a full one would be, one that destroys the earlier one when it is cut off at any
step, and a folder of somebody else that is overwritten.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import struct
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from corenn import Copied, CoreNN
from corenn.errors import (
    ClosedError,
    CorruptionError,
    DatabaseExistsError,
    DiskFullError,
    FormatError,
    InvalidArgumentError,
    LockedError,
    ReadOnlyError,
    StorageError,
)
from corenn.graph import bulk, mend
from corenn.storage import changes, platform, slab, snapshot
from corenn.storage.files import Files
from corenn.storage.snapshot import Copier
from corenn.storage.update import MARKER, META_COPY, META_NEW, META_OLD, PART, UPDATE, Update
from corenn.types import Key
from tests.oracle import DTYPES, METRICS, recall
from tests.test_retraining import settled

Rows = NDArray[np.float32]
DIM = 12
pytestmark = pytest.mark.compiled
SLABS = ("vectors.slab", "seals.slab", "state.slab", "edges.slab", "keys.slab", "keys.heap", "codes.slab")


def rows(count: int, seed: int = 0, dim: int = DIM) -> Rows:
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)


def content(db: CoreNN) -> dict[Key, Any]:
    """Everything that a database says about its rows."""
    keys = list(db.keys())
    found = db.get(keys)
    assert len(db) == len(keys) == len(found)
    return {key: (record.vector.tobytes(), record.payload) for key, record in zip(keys, found, strict=True) if record}


def looked_at(path: Path) -> dict[Key, Any]:
    """What a sound snapshot holds."""
    with CoreNN.open(path, mode="r") as db:
        report = db.verify()
        assert report.ok, report
        assert report.unreachable == 0
        return content(db)


def left_of(path: Path) -> list[str]:
    """What is beside a path, drafts included."""
    return sorted(each.name for each in path.parent.iterdir() if path.name in each.name)


@pytest.fixture
def db(tmp_path: Path) -> Iterator[CoreNN]:
    """300 rows, every third with a payload, every tenth deleted."""
    with CoreNN.create(tmp_path / "db", dim=DIM, metric="l2", max_edges=16) as made:
        made.insert([key(n) for n in range(300)], rows(300), [None if n % 3 else {"n": n} for n in range(300)])
        made.delete([key(n) for n in range(0, 300, 10)])
        yield made


def key(number: int) -> Key:
    return number if number % 2 else f"key {number}"


# --- what a snapshot holds --------------------------------------------------------------------------------------------


@pytest.mark.few(4)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_snapshot_of_any_kind_answers_as_the_database_does(tmp_path: Path, metric: str, dtype: str) -> None:
    vectors = np.abs(rows(400)) * 40
    vectors[7] = 0
    with CoreNN.create(tmp_path / "db", dim=DIM, metric=metric, dtype=dtype, max_edges=16) as db:
        db.insert([key(n) for n in range(400)], vectors, [{"n": n} for n in range(400)])
        db.upsert([key(n) for n in range(50)], vectors[50:100])
        db.delete([key(n) for n in range(100, 150)])
        made = db.snapshot(tmp_path / "snapshot")
        assert (made.rows, made.commit) == (len(db), db.stats().commit)
        before, answers = content(db), db.query(vectors[:30], k=5, exact=True)
    assert looked_at(tmp_path / "snapshot") == before
    with CoreNN.open(tmp_path / "snapshot") as copy:
        assert copy.query(vectors[:30], k=5, exact=True) == answers
        assert copy.verify().repaired == ()
        copy.insert(["new"], vectors[:1])
        copy.delete([key(1)])
        assert copy.verify().ok
        assert len(copy) == made.rows
    with CoreNN.open(tmp_path / "db") as db:
        assert content(db) == before, "what is written to the snapshot stays there"


def test_an_empty_database_has_a_snapshot(tmp_path: Path) -> None:
    with CoreNN.create(tmp_path / "db", dim=3) as db:
        db.snapshot(tmp_path / "snapshot")
        assert looked_at(tmp_path / "snapshot") == {}
        db.insert(["a"], [[1, 2, 3]])
        db.snapshot(tmp_path / "snapshot")
        assert list(looked_at(tmp_path / "snapshot")) == ["a"]
        db.delete(["a"])
        db.snapshot(tmp_path / "snapshot")
    assert looked_at(tmp_path / "snapshot") == {}


class Worker(threading.Thread):
    """Writes by itself: keys of its own, each state kept. `begun` and `done` count its operations."""

    def __init__(self, db: CoreNN, number: int, seen: Callable[[], int]) -> None:
        super().__init__()
        self.db, self.number, self.seen = db, number, seen
        self.states: list[dict[Key, tuple[int, Any]]] = [{}]
        self.marks = [0]  # how much of another worker was done before each state
        self.begun = self.done = 0
        self.stop = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            rng = np.random.default_rng(self.number)
            while not self.stop.is_set():
                self.step(rng)
        except BaseException as error:  # noqa: BLE001
            self.error = error

    def step(self, rng: np.random.Generator) -> None:
        state = dict(self.states[-1])
        kind = rng.choice(["insert", "upsert", "delete", "payload"], p=[0.45, 0.2, 0.2, 0.15])
        count, turn = int(rng.integers(1, 40)), len(self.states)
        old = [str(each) for each in rng.permutation(list(state))[:count]]
        mark = self.seen()
        if kind in ("delete", "payload") and not old:
            return
        if kind == "delete":
            call: Callable[[], Any] = lambda: self.db.delete(old)  # noqa: E731
            for each in old:
                del state[each]
        elif kind == "payload":
            payload = {"turn": turn}
            call = lambda: self.db.set_payload(old, [payload] * len(old))  # noqa: E731
            state.update({each: (state[each][0], payload) for each in old})
        else:
            keys = [f"{self.number}/{turn}/{n}" for n in range(count)] if kind == "insert" else old
            if not keys:
                return
            seed = turn * 10 + self.number
            vectors = rows(len(keys), seed)
            for each in keys:
                state.pop(each, None)
            state.update({each: (vectors[n].tobytes(), None) for n, each in enumerate(keys)})
            write = self.db.insert if kind == "insert" else self.db.upsert
            call = lambda: write(keys, vectors)  # noqa: E731
        self.states.append(state)
        self.marks.append(mark)
        self.begun += 1
        call()
        self.done += 1


def test_a_snapshot_among_writers_is_the_state_of_one_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each thread's rows are those after one of its calls, none acknowledged before the snapshot is missing, none begun
    after it is there, and what one thread had done before another one wrote is there with it. Ids of dead rows are used
    again as soon as that may be.
    """
    monkeypatch.setattr(mend, "LEAST", 1)
    monkeypatch.setattr(mend, "WORTHWHILE", 1 << 20)
    db = CoreNN.create(tmp_path / "db", dim=DIM, metric="l2", max_edges=16)
    workers: list[Worker] = []
    for number in range(4):
        before = workers[-1] if workers else None
        workers.append(Worker(db, number, lambda other=before: 0 if other is None else other.done))
    for worker in workers:
        worker.start()
    try:
        for turn in range(14):
            path = tmp_path / f"snapshot-{turn % 2}"
            if turn in (6, 7):
                shutil.rmtree(path)
            acknowledged = [worker.done for worker in workers]
            made = db.snapshot(path)
            begun = [worker.begun for worker in workers]
            held = looked_at(path)
            with CoreNN.open(path, mode="r") as copy:
                assert copy.stats().commit == made.commit
                assert list(copy.keys()) == list(held)
            times = []
            for worker in workers:
                mine = {each: value for each, value in held.items() if str(each).startswith(f"{worker.number}/")}
                low, high = acknowledged[worker.number], begun[worker.number]
                at = [n for n in range(low, high + 1) if worker.states[n] == mine]
                assert at, f"no state of thread {worker.number} from its call {low} to {high}"
                times.append(at[-1])
            for one, other in zip(workers[1:], workers, strict=False):
                first = next(n for n in range(times[one.number] + 1) if one.states[n] == one.states[times[one.number]])
                assert times[other.number] >= one.marks[first]
    finally:
        for worker in workers:
            worker.stop.set()
        for worker in workers:
            worker.join()
    assert [worker.error for worker in workers] == [None] * 4
    assert db._store.horizon > 0, "no id was used again"
    assert min(worker.done for worker in workers) > 20, "the writers had to wait for the snapshots"
    assert db.verify().ok
    db.close()


def test_a_snapshot_beside_inserts_finds_as_much_as_the_database(tmp_path: Path) -> None:
    """Edges to rows that came later are gone from it: others have to take their place."""
    vectors, queries = rows(8000, 1, 24), rows(100, 2, 24)
    with CoreNN.create(tmp_path / "db", dim=24, metric="l2") as db:
        db.insert(range(3000), vectors[:3000])
        copied = Copier._as_of_cut
        seen = threading.Event()

        def late(self: Copier, first: int, of: Any) -> None:
            """Twice as many rows as there are come between the cut and the copy."""
            if not seen.is_set():
                seen.set()
                for start in range(3000, 8000, 250):
                    db.insert(range(start, start + 250), vectors[start : start + 250])
                of[:] = db._store.edges.array[first : first + len(of)]
            copied(self, first, of)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Copier, "_as_of_cut", late)
            assert db.snapshot(tmp_path / "snapshot").rows == 3000
    assert len(looked_at(tmp_path / "snapshot")) == 3000
    with CoreNN.open(tmp_path / "snapshot", mode="r") as copy:
        found = [list(hits.keys) for hits in copy.query(queries, k=10, search_list=96)]
    assert recall("l2", vectors[:3000], queries, found) >= 0.95  # type: ignore[arg-type]


def test_codes_that_were_chosen_anew_meanwhile_are_made_again(tmp_path: Path) -> None:
    with CoreNN.create(tmp_path / "db", dim=64, metric="l2", compression_mode="sq8", compression_threshold=0) as db:
        db.insert(range(2000), rows(2000, 3, 64))
        db.snapshot(tmp_path / "sound")
        header = Copier._header

        def other(self: Copier, name: str) -> bytes:
            if name == "codes.slab":
                self._store.slabs[name].header[33] = 3  # CHOSEN
            return header(self, name)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Copier, "_header", other)
            db.snapshot(tmp_path / "snapshot")
    with CoreNN.open(tmp_path / "sound", mode="r") as copy:
        assert copy.verify().ok
        assert copy.stats().compression_mode == "sq8"
    with CoreNN.open(tmp_path / "snapshot") as copy:
        assert settled(copy) == "sq8"
        assert copy.verify().ok


def test_a_snapshot_goes_to_another_file_system(db: CoreNN, tmp_path: Path) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no other file system")
    place = other / f"corenn-{os.getpid()}"
    try:
        for _ in range(2):
            db.snapshot(place / "snapshot")
            assert looked_at(place / "snapshot") == content(db)
            db.upsert(["later"], rows(1))
        assert sorted(each.name for each in place.iterdir()) == ["snapshot"]
    finally:
        shutil.rmtree(place, ignore_errors=True)
    assert not (tmp_path / "db" / "meta.copy").exists()


def test_rows_are_copied_plainly_where_the_system_has_no_call_for_it(
    db: CoreNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "copy_range", lambda *_: 0)
    db.snapshot(tmp_path / "snapshot")
    assert looked_at(tmp_path / "snapshot") == content(db)


def test_rows_are_shared_where_the_file_system_does_that(tmp_path: Path) -> None:
    """On XFS a snapshot takes no room for vectors; and what is written to one of the two stays there."""
    if shutil.which("mkfs.xfs") is None:
        pytest.skip("no mkfs.xfs")
    image, place = tmp_path / "image", tmp_path / "mounted"
    place.mkdir()
    image.touch()
    os.truncate(image, 320 << 20)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", str(image)], check=True)
    if subprocess.run(["mount", "-o", "loop", str(image), str(place)], capture_output=True, check=False).returncode:
        pytest.skip("cannot mount an image")
    try:
        with CoreNN.create(place / "db", dim=1024, metric="l2", max_edges=16, compression_mode="none") as db:
            db.insert(range(5000), rows(5000, 0, 1024))
            db.checkpoint()
            before = shutil.disk_usage(place).used
            db.snapshot(place / "snapshot")
            subprocess.run(["sync"], check=True)
            assert shutil.disk_usage(place).used - before < 5000 * 1024
            assert looked_at(place / "snapshot") == (held := content(db))
            db.upsert(range(100), rows(100, 1, 1024))
            assert looked_at(place / "snapshot") == held
            with CoreNN.open(place / "snapshot") as copy:
                copy.upsert(range(200), rows(200, 2, 1024))
                assert copy.verify().ok
            assert db.verify().ok
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


# --- where it goes ----------------------------------------------------------------------------------------------------


def test_a_snapshot_is_refused_where_something_else_is(db: CoreNN, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    db.snapshot(tmp_path / "snapshot")
    (tmp_path / "link").symlink_to(tmp_path / "snapshot")
    with CoreNN.create(tmp_path / "other", dim=DIM, metric="l2", max_edges=16) as other:
        other.snapshot(tmp_path / "others")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for name in ("file", "folder", "link", "other", "others", "."):
        with pytest.raises(DatabaseExistsError, match="choose another path"):
            db.snapshot(tmp_path / name)
    for name in ("db", "db/snapshot", "db/meta", "snapshot/../db/x"):
        with pytest.raises(InvalidArgumentError, match="lies within the database"):
            db.snapshot(tmp_path / name)
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {path: raw for path, raw in after.items() if "db" not in path.parts} == {
        path: raw for path, raw in before.items() if "db" not in path.parts
    }
    db.snapshot(tmp_path / "empty")
    assert looked_at(tmp_path / "empty") == content(db)
    with CoreNN.in_memory(dim=2) as memory, pytest.raises(InvalidArgumentError, match="in memory"):
        memory.snapshot(tmp_path / "x")
    with CoreNN.open(tmp_path / "db", mode="r") as reader, pytest.raises(ReadOnlyError, match="mode='rw'"):
        reader.snapshot(tmp_path / "x")


def test_a_snapshot_that_was_opened_for_writing_is_not_overwritten(db: CoreNN, tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    db.snapshot(path)
    with CoreNN.open(path, mode="r") as copy:
        assert len(copy) == len(db)
    db.snapshot(path)
    with CoreNN.open(path) as copy:
        with pytest.raises(DatabaseExistsError, match="opened for writing"):
            db.snapshot(path)
        copy.insert(["mine"], rows(1))
    with pytest.raises(DatabaseExistsError, match="opened for writing"):
        db.snapshot(path)
    assert "mine" in looked_at(path)


def test_a_snapshot_that_is_brought_up_to_date_is_locked(db: CoreNN, tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    db.snapshot(path)
    seen: list[BaseException] = []

    def look(step: str, done: int, total: int) -> None:
        assert step == "copying"
        assert 0 < done <= total
        with pytest.raises(LockedError) as caught:
            CoreNN.open(path)
        seen.append(caught.value)

    db.upsert([key(1)], rows(1))
    db.snapshot(path, look)
    assert seen
    assert looked_at(path) == content(db)


def test_a_snapshot_that_is_read_stays_as_it_is(db: CoreNN, tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    db.snapshot(path)
    before = content(db)
    with CoreNN.open(path, mode="r") as reader:
        db.upsert([key(1)], rows(1))
        with pytest.raises(LockedError, match=f"read by process {os.getpid()}"):
            db.snapshot(path)
        assert content(reader) == before
        assert reader.verify().ok
    db.snapshot(path)
    assert looked_at(path) == content(db)


def test_a_reader_that_comes_at_the_last_moment_does_not_see_it_change(
    db: CoreNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has registered when the update is about to be written: that waits until it has gone."""
    path = tmp_path / "snapshot"
    db.snapshot(path)
    before = content(db)
    db.upsert([key(1)], rows(1))
    decide, readers = Update.decide, []

    def late(self: Update, *given: Any) -> None:
        readers.append(CoreNN.open(path, mode="r"))
        decide(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Update, "decide", late)
        with pytest.raises(LockedError, match="read by process"):
            db.snapshot(path)
    assert content(readers[0]) == before
    for mode in ("r", "rw"):
        with pytest.raises(LockedError, match="read by process"):
            CoreNN.open(path, mode=mode)  # type: ignore[arg-type]
    assert readers[0].verify().ok
    readers[0].close()
    assert looked_at(path) == content(db)


def test_snapshots_wait_for_each_other_and_for_repair(db: CoreNN, tmp_path: Path) -> None:
    calls = [lambda n=n: db.snapshot(tmp_path / f"snapshot-{n}") for n in range(3)] + [db.repair]
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in range(3):
        assert looked_at(tmp_path / f"snapshot-{n}") == content(db)


# --- only what has changed --------------------------------------------------------------------------------------------


def same_files(one: Path, other: Path) -> None:
    """The slabs of two snapshots are equal but for the words of the headers that tell times."""
    for name in SLABS:
        if (one / name).exists() or (other / name).exists():
            assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_an_incremental_snapshot_is_what_a_full_one_is(tmp_path: Path) -> None:
    """Whatever was done in between; and it takes fewer bytes where little was done."""
    dim, rng = 256, np.random.default_rng(5)
    vectors = rows(12_000, 4, dim)
    settings: dict[str, Any] = {"dim": dim, "metric": "l2", "compression_mode": "sq8", "compression_threshold": 5000}
    db = CoreNN.create(tmp_path / "db", **settings)
    kept = tmp_path / "kept"
    names = [f"key {n}" for n in range(12_000)]

    def again(most: float = 1.01) -> Copied:
        made = db.snapshot(kept)
        full = db.snapshot(tmp_path / "full")
        same_files(kept, tmp_path / "full")
        assert looked_at(kept) == content(db)
        shutil.rmtree(tmp_path / "full")
        assert full.bytes == full.copied == made.bytes
        assert made.copied <= most * made.bytes, f"{made.copied} of {made.bytes} bytes"
        return made

    db.insert(names[:10], vectors[:10])
    again()
    db.insert(names[10:4000], vectors[10:4000], [{"n": n} for n in range(10, 4000)])
    again()
    again(0.01)
    db.set_payload(names[:100], [{"changed": True}] * 100)
    again(0.01)
    db.delete(names[50:60])
    again(0.25)
    db.upsert(names[60:70], vectors[4000:4010])
    again(0.6)
    same = np.repeat(vectors[4000:4001], 300, 0)
    db.insert(names[11_000:11_300], same)  # equal rows stand in a run on the ring
    again()
    db.insert(names[11_300:11_330], same[:30])
    again()
    db.insert(names[4000:9000], vectors[4000:9000])  # from here on there are codes
    again()
    for _ in range(3):
        chosen = rng.permutation(9000)[:30].tolist()
        db.upsert([names[n] for n in chosen], vectors[chosen] + 1)
        again(0.8)
    db.repair()
    again()
    db.close()
    db = CoreNN.open(tmp_path / "db")
    again(0.01)
    db.delete(names[:8000])
    again()
    db.insert(names[9000:11_000], vectors[9000:11_000])
    again()
    db.close()


SHARES = {
    "insert": 0.18, "equal": 0.12, "upsert": 0.16, "delete": 0.14, "payload": 0.08, "repair": 0.05, "reopen": 0.06,
    "several": 0.13, "all": 0.04, "load": 0.04,
}  # fmt: skip


@pytest.mark.few(2)
@pytest.mark.parametrize("seed", range(4))
def test_no_change_escapes_notice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """With blocks of 1 KiB, in which little is copied by chance, after any mix of calls."""
    for module, name, value in (
        (slab, "BLOCK_BITS", 10), (slab, "BLOCK_BYTES", 1024), (snapshot, "BLOCK_BYTES", 1024),
        (mend, "LEAST", 1), (mend, "WORTHWHILE", 1 << 20), (mend, "MEND_ROWS", 64), (bulk, "BULK_ROWS", 300),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    rng = np.random.default_rng(seed)
    settings: dict[str, Any] = {"dim": 8, "metric": METRICS[seed % 3], "dtype": DTYPES[seed], "max_edges": 8}
    settings |= {"compression_mode": "sq4" if seed % 2 else "none", "compression_threshold": 200}
    db = CoreNN.create(tmp_path / "db", **settings)
    kept, full = tmp_path / "kept", tmp_path / "full"
    fresh = 0
    for turn in range(60):
        here = list(db.keys())
        some = [here[n] for n in rng.permutation(len(here))[: int(rng.integers(1, 20))]]
        kind = rng.choice(list(SHARES), p=list(SHARES.values()))
        count = int(rng.integers(1, 60))
        names = [f"key {fresh + n}" if n % 2 else fresh + n for n in range(count)]
        if kind in ("insert", "equal", "several"):
            vectors = np.abs(rows(count, turn, 8)) * 20
            db.insert(names, vectors[:1].repeat(count, 0) if kind == "equal" else vectors)
            fresh += count
        if kind == "upsert":
            db.upsert(some, np.abs(rows(len(some), turn, 8)) * 20)
        if kind in ("delete", "several"):
            db.delete(some)
        if kind == "payload" and some:
            db.set_payload(some, [{"turn": turn}] * len(some))
        if kind == "repair":
            db.repair()
        if kind == "reopen":
            db.close()
            db = CoreNN.open(tmp_path / "db")
        if kind == "all":
            db.delete(here)
        if kind == "load":
            with db.loading():
                for _ in range(2):
                    db.insert(range(fresh, fresh + 200), np.abs(rows(200, fresh, 8)) * 20)
                    fresh += 200
        if turn % 3 == 0:
            db.snapshot(kept)
            db.snapshot(full)
            same_files(kept, full)
            shutil.rmtree(full)
    assert looked_at(kept) == content(db) or turn % 3
    db.close()


def test_a_snapshot_after_a_compaction_is_one_folder_as_before(tmp_path: Path) -> None:
    """Ids have changed, and the files have moved: the earlier snapshot becomes what a new one is."""
    kept, full = tmp_path / "kept", tmp_path / "full"
    with CoreNN.create(tmp_path / "db", dim=DIM, metric="l2", compression_mode="sq8", compression_threshold=0) as db:
        db.insert([key(n) for n in range(3000)], rows(3000), [{"n": n} for n in range(3000)])
        db.snapshot(kept)
        size = sum(each.stat().st_size for each in kept.glob("*.slab"))
        for turn in range(2):
            db.delete([key(n) for n in range(turn, 3000, 2 + turn)])
            db.compact()
            db.upsert([key(1)], rows(1, turn))
            db.snapshot(kept)
            db.snapshot(full)
            same_files(kept, full)
            assert looked_at(kept) == looked_at(full) == content(db)
            shutil.rmtree(full)
            db.upsert([key(2)], rows(1, turn))
            db.snapshot(kept)
            assert looked_at(kept) == content(db)
        assert sum(each.stat().st_size for each in kept.glob("*.slab")) < size / 1.5
        made = db.backup(tmp_path / "backup.tar.gz")
        before = content(db)
    with CoreNN.open(tmp_path / "db") as db:
        db.upsert([key(3)], rows(1, 3))
        assert db.snapshot(kept).copied < made.bytes
        assert looked_at(kept) == content(db)
    assert CoreNN.restore(tmp_path / "backup.tar.gz", tmp_path / "back").rows == made.rows
    assert looked_at(tmp_path / "back") == before
    with CoreNN.open(kept) as copy:
        copy.compact()
        copy.insert(["more"], rows(1))
        assert copy.verify().ok
        copy.snapshot(full)
        assert looked_at(full) == content(copy)


def test_an_incremental_snapshot_after_a_bulk_load(tmp_path: Path) -> None:
    vectors = rows(11_000, 6, 8)
    with CoreNN.create(tmp_path / "db", dim=8, metric="l2") as db:
        db.snapshot(tmp_path / "kept")
        with db.loading():
            for start in range(0, 11_000, 1000):
                db.insert(range(start, start + 1000), vectors[start : start + 1000])
            db.snapshot(tmp_path / "kept")
        db.snapshot(tmp_path / "full")
        db.snapshot(tmp_path / "kept")
        same_files(tmp_path / "kept", tmp_path / "full")
        assert looked_at(tmp_path / "kept") == content(db)


def many_rows(path: Path) -> CoreNN:
    """A database of some MiB."""
    made = CoreNN.create(path, dim=512, metric="l2", max_edges=16, compression_mode="none")
    made.insert(range(2500), rows(2500, 7, 512))
    return made


def copied_after(db: CoreNN, path: Path) -> float:
    """The share of the bytes that are written for a snapshot; the changes are few."""
    made = db.snapshot(path)
    assert looked_at(path) == content(db)
    return made.copied / made.bytes


def test_changes_that_may_not_have_reached_the_disk_are_not_relied_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a restart of the machine everything is looked at, unless nothing was written since the last checkpoint."""
    looked: list[int] = []
    runs = Copier._runs

    def counted(self: Copier, name: str, clock: int | None) -> Any:
        looked.append(clock is None)
        return runs(self, name, clock)

    monkeypatch.setattr(Copier, "_runs", counted)
    path, copy = tmp_path / "db", tmp_path / "snapshot"
    many_rows(path).close()
    with CoreNN.open(path) as db:
        copied_after(db, copy)
    for boot, unsettled, everything in (("one", False, False), ("two", True, True), ("three", False, False)):
        if unsettled:
            with CoreNN.open(path) as db:
                db.upsert([3], rows(1, 8, 512))
                shutil.copytree(path, tmp_path / "cut off")
            shutil.rmtree(path)
            (tmp_path / "cut off").rename(path)
        with monkeypatch.context() as patch:
            patch.setattr(changes, "boot_id", lambda boot=boot: boot)
            looked.clear()
            with CoreNN.open(path) as db:
                assert copied_after(db, copy) < 0.5
            assert any(looked) == everything, boot


def test_lost_or_damaged_changes_are_survived(tmp_path: Path) -> None:
    path, copy = tmp_path / "db", tmp_path / "snapshot"
    many_rows(path).close()
    for damage in (None, b"", b"\xff" * 9000, (path / "state.slab").read_bytes()):
        with CoreNN.open(path) as db:
            copied_after(db, copy)
        (path / changes.NAME).unlink()
        if damage is not None:
            (path / changes.NAME).write_bytes(damage)
        with CoreNN.open(path) as db:
            db.upsert([3], rows(1, 9, 512))
            assert copied_after(db, copy) < 0.5, "what is equal is not written again"
            assert db.verify().ok


def test_a_copy_of_the_database_is_not_taken_for_its_twin(tmp_path: Path) -> None:
    """Two copies count on from the same time: what changed in one is not what changed in the other."""
    many_rows(tmp_path / "db").close()
    shutil.copytree(tmp_path / "db", tmp_path / "twin")
    with CoreNN.open(tmp_path / "db") as db, CoreNN.open(tmp_path / "twin") as twin:
        db.upsert([3], rows(1, 10, 512))
        copied_after(db, tmp_path / "snapshot")
        twin.upsert([2400], rows(1, 11, 512))
        twin.snapshot(tmp_path / "another")
        copied_after(twin, tmp_path / "snapshot")
        copied_after(db, tmp_path / "snapshot")


def test_a_snapshot_of_long_ago_is_brought_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with many_rows(tmp_path / "db") as db:
        db.snapshot(tmp_path / "old")
        for turn in range(300):
            db._store.changes.tick()  # type: ignore[union-attr]
            if turn % 100 == 0:
                db.upsert([turn], rows(1, turn, 512))
        assert copied_after(db, tmp_path / "old") < 0.7


# --- cut off ----------------------------------------------------------------------------------------------------------

STEPS = (
    "open",
    "write",
    "read",
    "copy",
    "allocate",
    "truncate",
    "sync",
    "sync_folder",
    "rename",
    "move_folder",
    "remove",
)


class Fault:
    """Has the nth of all calls of Files fail, and those after it as well if the process is taken to be dead."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int, error: BaseException, *, dead: bool) -> None:
        self.calls, self.at, self.error, self.dead = 0, at, error, dead
        for name in STEPS:
            patch.setattr(Files, name, self.faulty(getattr(Files, name)))

    def faulty(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if threading.current_thread() is threading.main_thread():
                self.calls += 1
                if self.calls == self.at or (self.dead and self.calls > self.at):
                    raise self.error
            return real(*arguments, **named)

        return call

    def unless_dead(self, real: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments, **named: real(*arguments, **named) if self.calls < self.at else None


class Killed(BaseException):
    """Stands for the end of the process: nothing is tidied up after it."""


@pytest.mark.parametrize("error", [StorageError("injected"), DiskFullError("injected"), KeyboardInterrupt()], ids=repr)
def test_an_error_at_any_step_of_the_first_leaves_nothing(
    db: CoreNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path, step = tmp_path / "snapshot", 0
    while not path.exists():
        step += 1
        with monkeypatch.context() as patch:
            fault = Fault(patch, step, error, dead=False)
            try:
                db.snapshot(path)
            except type(error) as caught:
                assert caught is error
        if fault.calls < step:
            break
        if path.exists():  # the name was there when the folder around it could not be synced
            assert looked_at(path) == content(db)
            shutil.rmtree(path)
        assert left_of(path) == []
        assert not (tmp_path / "db" / "meta.copy").exists()
    assert step > 30
    assert looked_at(path) == content(db)


@pytest.mark.few(1)
@pytest.mark.parametrize("dead", [False, True])
def test_an_error_at_any_step_of_another_leaves_the_old_one_or_the_new(
    db: CoreNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dead: bool
) -> None:
    """Dead: nothing is tidied up, as after a kill."""
    path, step = tmp_path / "snapshot", 0
    db.snapshot(path)
    old = content(db)
    shutil.copytree(path, tmp_path / "old")
    db.upsert([key(n) for n in range(40, 90)], rows(50, 12), [{"new": n} for n in range(50)])
    db.insert(["more", "and more"], rows(2, 13))
    db.delete([key(n) for n in range(150, 160)])
    new, seen = content(db), set()
    while True:
        step += 1
        with monkeypatch.context() as patch:
            fault = Fault(patch, step, Killed() if dead else StorageError("injected"), dead=dead)
            if dead:
                patch.setattr(shutil, "rmtree", fault.unless_dead(shutil.rmtree))
            with suppress(StorageError, Killed):
                db.snapshot(path)
        found = looked_at(path)
        assert found in (old, new), f"neither one nor the other after step {step}"
        seen.add(found == new)
        if fault.calls < step:
            break
        assert not (path / UPDATE).exists(), "whoever opened it has finished it"
        if step % 3 == 0:
            db.snapshot(path)  # on what is left of it
            assert looked_at(path) == new
            assert {PART, META_NEW, META_OLD, UPDATE} & {each.name for each in path.iterdir()} == set()
        shutil.rmtree(path)
        shutil.copytree(tmp_path / "old", path)
    assert step > 60
    assert seen == {False, True}


def half_updated(db: CoreNN, path: Path) -> None:
    """Leave a snapshot as a kill does in the middle of the slabs."""
    db.snapshot(path)
    db.upsert([key(n) for n in range(90)], rows(90, 14))
    with pytest.MonkeyPatch.context() as patch:
        write = Files.write

        def stop(self: Files, descriptor: int, data: Any, offset: int, where: Path) -> None:
            if where.name == "state.slab" and (path / UPDATE).exists():
                raise Killed
            write(self, descriptor, data, offset, where)

        patch.setattr(Files, "write", stop)
        with pytest.raises(Killed):
            db.snapshot(path)
    assert (path / UPDATE).exists()


def test_a_reader_that_cannot_finish_an_update_is_told_what_to_do(
    db: CoreNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "snapshot"
    half_updated(db, path)
    with monkeypatch.context() as patch:

        def refuse(*_: object, **__: object) -> int:
            raise StorageError("cannot lock: Read-only file system")

        patch.setattr(Files, "lock", refuse)
        with pytest.raises(StorageError, match="open it once where it can be written, or take the snapshot again"):
            CoreNN.open(path, mode="r")
    with monkeypatch.context() as patch:
        patch.setattr(Files, "lock", lambda *_: None)
        with pytest.raises(LockedError, match="brought up to date"):
            CoreNN.open(path, mode="r")
    assert looked_at(path) == content(db)


def test_an_update_that_is_damaged_is_not_applied(db: CoreNN, tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    half_updated(db, path)
    whole = (path / UPDATE).read_bytes()
    slabs = {name: (path / name).read_bytes() for name in SLABS if (path / name).exists()}
    for at in (0, len(whole) // 2, len(whole) - 400, len(whole) - 3):
        (path / UPDATE).write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        for mode in ("r", "rw"):
            with pytest.raises(CorruptionError, match="damaged; remove the snapshot"):
                CoreNN.open(path, mode=mode)  # type: ignore[arg-type]
        with pytest.raises(CorruptionError, match="damaged"):
            db.snapshot(path)
    for size in (0, 10, len(whole) - 1):
        (path / UPDATE).write_bytes(whole[:size])
        with pytest.raises(CorruptionError, match="damaged"):
            CoreNN.open(path)
    assert slabs == {name: (path / name).read_bytes() for name in slabs}
    (path / UPDATE).write_bytes(whole)
    assert looked_at(path) == content(db)


def test_an_update_that_names_other_files_is_not_applied(db: CoreNN, tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    half_updated(db, path)
    (tmp_path / "mine").write_text("mine")
    whole = (path / UPDATE).read_bytes()
    for wrong in (b"../mine", b"/etc/xyzzy", b"LOCK", b"meta/CURRENT"):
        old = b'"vectors.slab"'
        footer = struct.Struct("<QQII8s")
        at, length, _, version, magic = footer.unpack(whole[-footer.size :])
        index = whole[at : at + length].replace(old, b'"' + wrong + b'"')
        made = whole[:at] + index + footer.pack(at, len(index), zlib.crc32(index), version, magic)
        (path / UPDATE).write_bytes(made)
        with pytest.raises(CorruptionError, match="damaged"):
            CoreNN.open(path)
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_damaged_marker_or_a_truncated_slab_is_refused(db: CoreNN, tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    db.snapshot(path)
    whole = (path / MARKER).read_bytes()
    wrong = json.loads(whole)
    wrong["head"]["commit"] += 1
    for raw in (b"", b"[]", b"{}", whole[:-20], whole.replace(b"1", b"2", 1), json.dumps(wrong).encode(), b"\xff"):
        (path / MARKER).write_bytes(raw)
        with pytest.raises(CorruptionError, match="SNAPSHOT"):
            db.snapshot(path)
    (path / MARKER).write_bytes(whole)
    os.truncate(path / "vectors.slab", 5000)
    with pytest.raises(FormatError, match=r"vectors\.slab"):
        db.snapshot(path)


def test_closing_meanwhile_leaves_nothing_behind(db: CoreNN, tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    with pytest.raises(ClosedError):
        db.snapshot(path, lambda *_: db.close())
    assert left_of(path) == []
    with CoreNN.open(tmp_path / "db") as again:
        again.snapshot(path)
        before = content(again)
        again.upsert([key(1)], rows(1))
        with pytest.raises(ClosedError):
            again.snapshot(path, lambda *_: again.close())
    assert looked_at(path) == before
    with pytest.raises(ClosedError):
        again.snapshot(path)


@pytest.mark.parametrize("before", [False, True])
def test_a_full_disk_leaves_the_old_one_or_nothing(mount: Callable[..., Path], tmp_path: Path, before: bool) -> None:
    place = mount("size=6m")
    path = place / "snapshot"
    with CoreNN.create(tmp_path / "db", dim=256, metric="l2", max_edges=16, compression_mode="none") as db:
        db.insert(range(2000), rows(2000, 15, 256))
        old = content(db)
        if before:
            db.snapshot(path)
        db.insert(range(2000, 8000), rows(6000, 16, 256))
        with pytest.raises((DiskFullError, StorageError)):
            db.snapshot(path)
        assert looked_at(path) == old if before else left_of(path) == []
        assert db.verify().ok
        db.insert(["still written"], rows(1, 0, 256))


# --- killed -----------------------------------------------------------------------------------------------------------


def copy_until_killed(folder: Path) -> None:
    """Insert 20 rows at a time, and bring a snapshot up to date all the while; say how many rows each one must have."""
    db = CoreNN.open(folder / "db")
    written = len(db)

    def write() -> None:
        nonlocal written
        while True:
            db.insert(range(written, written + 20), rows(20, written), [{"n": written + n} for n in range(20)])
            written += 20

    threading.Thread(target=write, daemon=True).start()
    with (folder / "log").open("a") as log:
        while True:
            before = written
            db.snapshot(folder / "snapshot")
            log.write(f"{before}\n")
            log.flush()


def test_a_kill_at_any_instant_leaves_one_snapshot_or_the_other(tmp_path: Path) -> None:
    CoreNN.create(tmp_path / "db", dim=DIM, metric="l2", max_edges=16).close()
    log, rng = tmp_path / "log", np.random.default_rng()
    log.touch()
    context = multiprocessing.get_context("spawn")
    for turn in range(4):
        done = len(log.read_text().split())
        child = context.Process(target=copy_until_killed, args=(tmp_path,))
        child.start()
        deadline = time.monotonic() + 120
        while len(log.read_text().split()) < done + 2:
            assert child.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        child.kill()
        child.join()
        held = looked_at(tmp_path / "snapshot")
        assert list(held) == list(range(len(held)))
        assert len(held) % 20 == 0
        assert len(held) >= int(log.read_text().split()[-1])
        assert all(payload == {"n": n} for n, (_, payload) in held.items())
        if turn == 1:
            shutil.rmtree(tmp_path / "snapshot")
    CoreNN.open(tmp_path / "db").close()
    assert not (tmp_path / "db" / META_COPY).exists()
    assert left_of(tmp_path / "snapshot") == ["snapshot"]
