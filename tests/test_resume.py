"""First loads that are cut off, and go on: through the public interface.

Rules out a part that is linked twice, one that is taken for linked and is not, a graph that is another one for having
been cut off, rows that are lost or not found meanwhile, what is left for ever, and a load that begins where there is no
room for it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corenn import CoreNN, errors
from corenn.graph import bulk, parts
from corenn.graph.bulk import Builder
from corenn.graph.insert import Linker
from corenn.storage import residence
from corenn.storage.files import Files
from corenn.storage.parts import NAME
from corenn.types import AnyArray, Float32s, Step
from corenn.writer import Task
from tests.crash.harness import environment
from tests.faults.operations import photographed

DIM = 12
ROWS, LIMIT = 90, 40_000
PATIENCE = 120.0


@pytest.fixture(autouse=True)
def scarce(monkeypatch: pytest.MonkeyPatch) -> None:
    make_scarce(monkeypatch)


def make_scarce(patch: pytest.MonkeyPatch) -> None:
    """Little memory is enough to open, and few rows are enough for parts."""
    patch.setattr(residence, "LEAST", 0)
    patch.setattr(parts, "LEAST_ROWS", 8)
    patch.setattr(bulk, "BULK_ROWS", 40)


class Parts:
    """The numbers of the parts that were linked. after: called with how many, after each."""

    def __init__(self) -> None:
        self.linked: list[int] = []
        self.total = 0
        self.after: Callable[[int], None] = lambda count: None


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Parts:
    noted, plain = Parts(), parts.Parts._link

    def link(self: parts.Parts, view: Any, file: Any, number: int, stop: Any) -> None:
        plain(self, view, file, number, stop)
        noted.linked.append(number)
        noted.total = len(file.sizes)
        noted.after(len(noted.linked))

    monkeypatch.setattr(parts.Parts, "_link", link)
    return noted


@pytest.fixture
def rows() -> Float32s:
    return made()


def made() -> Float32s:
    """Rows in clusters."""
    rng = np.random.default_rng(3)
    return (rng.normal(size=(9, DIM))[rng.integers(0, 9, ROWS)] * 3 + rng.normal(size=(ROWS, DIM))).astype(np.float32)


def interrupting(at: int) -> Callable[[int], None]:
    """Ctrl-C after so many parts."""

    def after(count: int) -> None:
        if count == at:
            raise KeyboardInterrupt

    return after


def build(path: Path, rows: Float32s, **more: Any) -> CoreNN:
    return CoreNN.build(path, range(ROWS), rows, dim=DIM, metric="l2", memory_limit=LIMIT, **more)


def edges(db: CoreNN) -> AnyArray:
    return db._store.edges.array[:ROWS].copy()


def settled(db: CoreNN) -> CoreNN:
    """The database once nothing waits to be linked."""
    until = time.monotonic() + PATIENCE
    while db.stats().pending:
        assert time.monotonic() < until
        time.sleep(0.01)
    return db


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> AnyArray:
    """The edges of a build that nothing has cut off."""
    path = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        make_scarce(patch)
        with build(path / "db", made()) as db:
            assert not (path / "db" / NAME).exists()
            return edges(db)


# --- build ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [1, 3])
def test_a_build_goes_on_with_the_part_at_which_it_was_interrupted(
    at: int, whole: AnyArray, seen: Parts, rows: Float32s, tmp_path: Path
) -> None:
    seen.after = interrupting(at)
    with pytest.raises(KeyboardInterrupt) as stopped:
        build(tmp_path / "db", rows)
    assert re.search("kept in .*the same call", stopped.value.__notes__[0])
    assert not (tmp_path / "db").exists()
    seen.after = lambda count: None
    with build(tmp_path / "db", rows) as db:
        assert seen.linked == list(range(seen.total))
        np.testing.assert_array_equal(edges(db), whole)
        assert not db.verify().problems
        assert seen.total > 3
    assert [each.name for each in tmp_path.iterdir()] == ["db"]


DYING = """
import os, sys
from pathlib import Path
from corenn import CoreNN
from corenn.graph import bulk, parts
from corenn.storage import residence
from tests.test_resume import DIM, LIMIT, ROWS, build, made
residence.LEAST, parts.LEAST_ROWS, bulk.BULK_ROWS = 0, 8, 40
path, step, share = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
plain = parts.Parts._link
def link(self, *more):
    plain(self, *more)
    print("part", more[2], flush=True)
    if step == "open":
        os._exit(7)
parts.Parts._link = link
def tell(now, done, total):
    if now == step and done >= share * total:
        os._exit(7)
if step == "open":
    CoreNN.open(path).checkpoint()
elif sys.argv[4] == "build":
    build(path, made(), progress=tell)
else:
    with CoreNN.create(path, dim=DIM, metric="l2", memory_limit=LIMIT) as db, db.loading(tell):
        db.insert(range(ROWS), made())
"""


def killed(path: Path, step: str, share: float, call: str = "build") -> str:
    """What a process has printed that was killed at a step, after such a share of it."""
    done = subprocess.run(
        [sys.executable, "-c", DYING, str(path), step, str(share), call], env=environment(),
        stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 7
    return done.stdout


def test_a_build_that_is_killed_again_and_again_links_each_part_once(
    whole: AnyArray, seen: Parts, rows: Float32s, tmp_path: Path
) -> None:
    said = ""
    for step, share in (("rows", 1), ("parts", 0.3), ("merging", 1)):
        said += killed(tmp_path / "db", step, share)
        assert not (tmp_path / "db").exists()
    linked = [int(number) for number in re.findall(r"part (\d+)", said)]
    assert linked == list(range(len(linked))) and len(linked) > 3
    with build(tmp_path / "db", rows) as db:
        assert not seen.linked
        np.testing.assert_array_equal(edges(db), whole)
        assert not db.verify().problems
    assert [each.name for each in tmp_path.iterdir()] == ["db"]


def test_a_build_by_inserts_goes_on_too(rows: Float32s, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corenn.build.LEAST_ROWS", 20)
    monkeypatch.setattr("corenn.build.COPIES", 1 << 20)
    plain, linked = Linker._link_batch, np.zeros(ROWS, np.int64)

    def link(self: Linker, batch: Any, head: Any) -> None:
        if stops and linked.sum() >= 50:
            raise KeyboardInterrupt
        plain(self, batch, head)
        linked[batch] += 1

    monkeypatch.setattr(Linker, "_link_batch", link)
    stops = True
    arguments: dict[str, Any] = {"dim": DIM, "metric": "ip", "memory_limit": LIMIT}
    with pytest.raises(KeyboardInterrupt):
        CoreNN.build(tmp_path / "db", range(ROWS), rows, **arguments)
    stops = False
    with CoreNN.build(tmp_path / "db", range(ROWS), rows, **arguments) as db:
        assert (linked > 0).all() and linked[:40].max() == 1 and linked.sum() < ROWS + 40
        report = db.verify()
        assert not report.problems and not report.unreachable
    assert [each.name for each in tmp_path.iterdir()] == ["db"]


@pytest.mark.parametrize("other", ["vectors", "keys", "payloads", "settings", "fewer", "more"])
def test_what_is_left_of_another_build_is_not_taken(other: str, seen: Parts, rows: Float32s, tmp_path: Path) -> None:
    seen.after = interrupting(2)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "db", rows)
    seen.after = lambda count: None
    seen.linked.clear()
    keys, payloads, settings = [*range(ROWS)], [None] * ROWS, {}
    if other == "vectors":
        rows[70, 3] += 1
    elif other == "keys":
        keys[70] = 1_000
    elif other == "payloads":
        payloads[70] = {"a": 1}  # type: ignore[call-overload]
    elif other == "settings":
        settings = {"max_edges": 24}
    else:
        keys, rows = (keys[:80], rows[:80]) if other == "fewer" else ([*keys, 90], np.vstack((rows, rows[:1])))
        payloads = [None] * len(keys)
    with CoreNN.build(
        tmp_path / "db", keys, rows, payloads, dim=DIM, metric="l2", memory_limit=LIMIT, **settings
    ) as db:  # fmt: skip
        assert seen.linked == list(range(seen.total))
        assert [*db.keys()] == keys
        for record, row, payload in zip(db.get(keys), rows, payloads, strict=True):
            assert record is not None and record.payload == payload
            np.testing.assert_array_equal(record.vector, row)
        assert not db.verify().problems
    assert [each.name for each in tmp_path.iterdir()] == ["db"]


def test_an_error_before_a_part_is_linked_leaves_nothing(
    seen: Parts, rows: Float32s, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full(monkeypatch, parts_written=0)
    with pytest.raises(errors.DiskFullError, match="free some space"):
        build(tmp_path / "db", rows)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_on_the_way_costs_no_part(
    whole: AnyArray, seen: Parts, rows: Float32s, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        full(patch, parts_written=2)
        with pytest.raises(errors.DiskFullError, match="free some space"):
            build(tmp_path / "db", rows)
    assert seen.linked == [0, 1]
    with build(tmp_path / "db", rows) as db:
        assert seen.linked == list(range(seen.total))
        np.testing.assert_array_equal(edges(db), whole)


def full(patch: pytest.MonkeyPatch, parts_written: int) -> None:
    """A disk that has room for so many parts, and no more."""
    plain, finish, done = Files.write, parts.PartsFile.finish, [0]

    def write(self: Files, descriptor: int, data: memoryview, offset: int, path: Path) -> None:
        if path.name == NAME and offset > 0 and done[0] >= parts_written:
            raise errors.DiskFullError(f"cannot write to {path}: No space left on device; free some space")
        plain(self, descriptor, data, offset, path)

    def finished(self: parts.PartsFile, part: int, growth: float) -> None:
        finish(self, part, growth)
        done[0] += 1

    patch.setattr(Files, "write", write)
    patch.setattr(parts.PartsFile, "finish", finished)


def test_a_build_for_which_there_is_no_room_does_not_begin(
    seen: Parts, rows: Float32s, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Files, "free_bytes", lambda self, path: 50_000)
    with pytest.raises(errors.DiskFullError, match=r"90 rows takes up to [\d,]+ bytes .* 50,000 are free; make room"):
        build(tmp_path / "db", rows)
    assert not list(tmp_path.iterdir())
    with CoreNN.create(tmp_path / "db", dim=DIM, metric="l2", memory_limit=LIMIT) as db:
        with pytest.raises(errors.DiskFullError, match="load 90 rows takes up to"), db.loading(rows=ROWS):
            pytest.fail("it has begun")
        db.insert([1], rows[:1])
        assert db.stats().pending == 0


# --- inserts ----------------------------------------------------------------------------------------------------------


def left(path: Path, rows: Float32s, seen: Parts, at: int) -> None:
    """A database that was closed when so many parts of its first rows were linked."""
    db = CoreNN.create(path, dim=DIM, metric="l2", memory_limit=LIMIT)
    stop = parts.Parts.build

    def until(self: Any, ids: Any, head: Any, stop_: Any, progress: Any = None, pause: Any = None) -> Any:
        return stop(self, ids, head, lambda: len(seen.linked) >= at, progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts.Parts, "build", until)
        patch.setattr(type(db._writer), "_may_link", lambda self: False)
        db.insert(range(ROWS), rows)
        assert db.stats().pending == ROWS
        db.close()
    assert len(seen.linked) == at
    assert (path / NAME).exists()


def test_opening_goes_on_in_the_background(whole: AnyArray, seen: Parts, rows: Float32s, tmp_path: Path) -> None:
    left(tmp_path / "db", rows, seen, 2)
    with CoreNN.open(tmp_path / "db", mode="r") as reader:
        assert reader.query(rows[5], k=1)[0].key == 5
    with CoreNN.open(tmp_path / "db") as db:
        assert len(db.query(rows[7], k=ROWS)) == ROWS
        settled(db)
        assert seen.linked == list(range(seen.total))
        np.testing.assert_array_equal(edges(db), whole)
        db.checkpoint()
        assert not (tmp_path / "db" / NAME).exists()
        assert not db.verify().problems


def test_a_load_that_is_killed_goes_on_at_each_opening(
    whole: AnyArray, seen: Parts, rows: Float32s, tmp_path: Path
) -> None:
    said = killed(tmp_path / "db", "parts", 0.2, "loading") + killed(tmp_path / "db", "open", 0)
    linked = [int(number) for number in re.findall(r"part (\d+)", said)]
    assert len(linked) > 1
    with CoreNN.open(tmp_path / "db") as db:
        assert len(db) == len(db.query(rows[7], k=ROWS)) == ROWS
        settled(db)
        assert linked + seen.linked == list(range(seen.total))
        np.testing.assert_array_equal(edges(db), whole)
        assert not db.verify().problems


def damage(path: Path, how: str, before: Callable[[int], int]) -> set[int]:
    """Damage a file of which parts 0 to 2 are linked; returns those that count no more. before: where a part begins."""
    raw = bytearray(path.read_bytes())
    if how == "a byte of a part":
        raw[before(1) + 40] ^= 1
    elif how == "cut off in a part":
        del raw[before(2) + 10 :]
    elif how == "cut off in the plan":
        del raw[4096 + 300 :]
    elif how == "empty":
        raw.clear()
    else:
        raw[{"a byte of the plan": 4096 + 50, "a byte of the header": 20, "what it is of": 260}[how]] ^= 1
    path.write_bytes(raw)
    return {"a byte of a part": {1}, "cut off in a part": {2}}.get(how, {0, 1, 2})


@pytest.mark.parametrize(
    "how",
    [
        "a byte of a part", "cut off in a part", "cut off in the plan", "a byte of the plan", "a byte of the header",
        "what it is of", "empty",
    ],
)  # fmt: skip
def test_what_is_damaged_is_linked_again_and_nothing_else(
    how: str, whole: AnyArray, seen: Parts, rows: Float32s, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[Any] = []
    plain = parts.PartsFile.finish

    def finish(self: parts.PartsFile, part: int, growth: float) -> None:
        starts.append(self._starts)
        plain(self, part, growth)

    monkeypatch.setattr(parts.PartsFile, "finish", finish)
    left(tmp_path / "db", rows, seen, 3)
    gone = damage(tmp_path / "db" / NAME, how, lambda part: int(starts[0][part]))
    seen.linked.clear()
    with CoreNN.open(tmp_path / "db") as db:
        settled(db)
        assert set(seen.linked) == gone | set(range(3, seen.total))
        np.testing.assert_array_equal(edges(db), whole)
        assert not db.verify().problems


@pytest.mark.parametrize(
    ("override", "again"),
    [({"distance_threshold": 1.4}, True), ({"memory_limit": 2 * LIMIT // 3}, True), ({"memory_limit": 41_000}, False)],
)
def test_other_settings_begin_anew_where_they_matter(
    override: dict[str, Any], again: bool, seen: Parts, rows: Float32s, tmp_path: Path
) -> None:
    left(tmp_path / "db", rows, seen, 2)
    seen.linked.clear()
    with CoreNN.open(tmp_path / "db", **override) as db:
        settled(db)
        assert seen.linked == list(range(0 if again else 2, seen.total))
        assert not db.verify().problems


def test_a_limit_that_holds_all_needs_no_parts(seen: Parts, rows: Float32s, tmp_path: Path) -> None:
    left(tmp_path / "db", rows, seen, 2)
    with CoreNN.open(tmp_path / "db", memory_limit=0) as db:
        settled(db)
        assert len(seen.linked) == 2
        assert not (tmp_path / "db" / NAME).exists()
        assert not db.verify().problems


def test_writes_between_two_parts_are_served_and_cost_none(
    seen: Parts, rows: Float32s, tmp_path: Path, rng: np.random.Generator
) -> None:
    left(tmp_path / "db", rows, seen, 1)
    more = rng.normal(size=(10, DIM)).astype(np.float32)
    with CoreNN.open(tmp_path / "db") as db:
        for at in range(10):
            db.insert([1_000 + at], more[at : at + 1])
            db.delete([at])
            db.upsert([50 + at], more[at : at + 1] + 1)
        settled(db)
        assert seen.linked == list(range(seen.total))
        assert len(db) == ROWS
        for at in range(10):
            assert db.query(more[at], k=1)[0].key == 1_000 + at
            assert db.query(more[at] + 1, k=1)[0].key == 50 + at
            assert at not in db.query(rows[at], k=ROWS).keys
        report = db.verify()
        assert not report.problems and not report.unreachable


def test_settings_that_change_between_two_parts_begin_anew(seen: Parts, rows: Float32s, tmp_path: Path) -> None:
    left(tmp_path / "db", rows, seen, 1)
    opened: list[CoreNN] = []
    there = threading.Event()

    def after(count: int) -> None:
        if count == 2:
            assert there.wait(PATIENCE)
            writer = opened[0]._writer
            assert writer is not None
            writer.schedule(Task(lambda: writer.configure({"distance_threshold": 1.5})))

    seen.after = after
    with CoreNN.open(tmp_path / "db") as db:
        opened.append(db)
        there.set()
        settled(db)
        assert seen.linked == [0, 1, *range(seen.total)]
        assert not db.verify().problems


def test_rows_are_served_while_the_disk_has_no_room_to_link_them(
    seen: Parts, rows: Float32s, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with CoreNN.create(tmp_path / "db", dim=DIM, metric="l2", memory_limit=LIMIT) as db:
        with monkeypatch.context() as patch:
            patch.setattr(Files, "free_bytes", lambda self, path: 10_000)
            with (
                pytest.raises(errors.DiskFullError, match=r"beside the database .* 10,000 free; make room"),
                db.loading(),
            ):
                db.insert(range(ROWS), rows)
            assert db.stats().pending == ROWS == len(db)
            assert db.query(rows[3], k=1)[0].key == 3
            db.insert([1_000], rows[:1] + 1)
            db.delete([2])
            with pytest.raises(errors.DiskFullError):
                db.checkpoint()
        db.checkpoint()
        assert db.stats().pending == 0
        assert db.query(rows[:1] + 1, k=1)[0][0].key == 1_000
        assert not db.verify().problems


def test_ctrl_c_at_the_end_of_a_load_leaves_the_rest_to_the_background(
    whole: AnyArray, seen: Parts, rows: Float32s, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with CoreNN.create(tmp_path / "db", dim=DIM, metric="l2", memory_limit=LIMIT) as db:
        writer = db._writer
        assert writer is not None
        told: list[Any] = []
        plain = writer.submit

        def submit(request: Any) -> Any:
            told.append(request)
            return plain(request)

        def after(count: int) -> None:
            told[-1].interrupted = count < 3  # as the thread that waits does it

        seen.after = after
        monkeypatch.setattr(writer, "submit", submit)
        with db.loading():
            db.insert(range(ROWS), rows)
        settled(db)
        assert seen.linked == list(range(seen.total))
        np.testing.assert_array_equal(edges(db), whole)


def test_rows_that_are_linked_need_not_be_again_where_their_codes_were_cut_off(
    seen: Parts, rows: Float32s, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(*_: Any) -> None:
        raise MemoryError

    db = CoreNN.create(tmp_path / "db", dim=DIM, metric="l2", memory_limit=LIMIT)
    with monkeypatch.context() as patch:
        patch.setattr(Linker, "complete", cut_off)
        with pytest.raises(MemoryError), db.loading():
            db.insert(range(ROWS), rows)
        photographed(tmp_path / "db", tmp_path / "killed")
        db.close()
    with CoreNN.open(tmp_path / "killed") as again:
        assert again.stats().pending == 0
        assert seen.linked == list(range(seen.total))
        assert not again.verify().problems


# --- the file ---------------------------------------------------------------------------------------------------------


def test_a_file_of_no_use_goes_when_the_database_is_opened(seen: Parts, rows: Float32s, tmp_path: Path) -> None:
    left(tmp_path / "other", rows, seen, 2)
    with build(tmp_path / "db", rows) as db:
        pass
    shutil.copy(tmp_path / "other" / NAME, tmp_path / "db" / NAME)
    with CoreNN.open(tmp_path / "db") as db:
        assert not (tmp_path / "db" / NAME).exists()
        assert not db.verify().problems


def test_the_file_of_another_database_is_not_taken(seen: Parts, rows: Float32s, tmp_path: Path) -> None:
    left(tmp_path / "one", rows, seen, 2)
    seen.linked.clear()
    left(tmp_path / "two", rows, seen, 2)
    shutil.copy(tmp_path / "one" / NAME, tmp_path / "two" / NAME)
    seen.linked.clear()
    with CoreNN.open(tmp_path / "two") as db:
        settled(db)
        assert seen.linked == list(range(seen.total))
        assert not db.verify().problems


def test_copies_have_none_of_it_and_it_counts_while_it_lasts(seen: Parts, rows: Float32s, tmp_path: Path) -> None:
    left(tmp_path / "db", rows, seen, 2)
    sizes: list[int] = []
    plain = parts.PartsFile.disk_bytes
    with CoreNN.open(tmp_path / "db") as db, pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts.PartsFile, "disk_bytes", lambda self: sizes.append(plain(self)) or sizes[-1])
        seen.after = lambda count: sizes.append(db._store.disk_bytes())
        db.snapshot(tmp_path / "snapshot")
        db.backup(tmp_path / "backup")
        db.compact()
        assert max(sizes) > 0
    assert not list(tmp_path.rglob(NAME))
    with CoreNN.open(tmp_path / "snapshot", mode="r") as copy:
        assert copy.query(rows[4], k=1)[0].key == 4


# --- what is said -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, LIMIT])
def test_progress_says_what_the_load_takes(
    limit: int, rows: Float32s, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("corenn.graph.meter.SAMPLE_SECONDS", 0.0)
    said: list[tuple[Step, int, int]] = []
    with CoreNN.build(
        tmp_path / "db", range(ROWS), rows, dim=DIM, metric="l2", memory_limit=limit,
        progress=lambda *each: said.append(each),  # type: ignore[arg-type]
    ) as db:  # fmt: skip
        taken = db.stats().disk_bytes
    check_said(said)
    assert ("parts" in {step for step, _, _ in said}) == bool(limit)
    assert abs(said[-1][0].disk_bytes - taken) < 1 << 20
    said.clear()
    with (
        CoreNN.create(tmp_path / "other", dim=DIM, metric="l2", memory_limit=limit) as db,
        db.loading(lambda *each: said.append(each), rows=ROWS),  # type: ignore[arg-type]
    ):
        for start in range(0, ROWS, 30):
            db.insert(range(start, start + 30), rows[start : start + 30])
    assert [(done, total) for step, done, total in said if step == "rows"] == [(30, 90), (60, 90), (90, 90)]
    check_said(said)


def check_said(said: list[tuple[Step, int, int]]) -> None:
    for step, done, total in said:
        assert 0 <= done <= total
        assert 0 < step.disk_bytes <= step.peak_disk_bytes <= step.most_disk_bytes
        assert step.seconds_left is None or step.seconds_left >= 0
    assert any(step.seconds_left for step, _, _ in said)
    end, rows, total = said[-1]
    assert end == "done" and rows == total == ROWS and end.seconds_left == 0
    assert end.peak_disk_bytes == max(step.peak_disk_bytes for step, _, _ in said)


# --- who is in which part ---------------------------------------------------------------------------------------------


@pytest.fixture
def dealt(monkeypatch: pytest.MonkeyPatch) -> list[tuple[AnyArray, int]]:
    """The parts of each row, and the room, of each build."""
    noted: list[tuple[AnyArray, int]] = []
    plain = parts.Parts._deal

    def deal(self: parts.Parts, view: Any, ids: Any, room: int) -> AnyArray:
        found = plain(self, view, ids, room)
        noted.append((found, room))
        return found

    monkeypatch.setattr(parts.Parts, "_deal", deal)
    return noted


def uneven(kind: str) -> Float32s:
    rng = np.random.default_rng(8)
    if kind == "one dimension":
        return rng.normal(size=(ROWS, 1)).astype(np.float32)
    if kind == "few kinds":
        return rng.normal(size=(4, DIM)).astype(np.float32)[rng.integers(0, 4, ROWS)]
    if kind == "most alike":
        found = np.zeros((ROWS, DIM), np.float32)
        found[::6] = rng.normal(size=(15, DIM)) * 5
        return found
    found = rng.normal(size=(ROWS, DIM)).astype(np.float32)
    found[:50] = found[:50] * 1e-3 + 20  # dense, far from the others: more than a part has room for
    return found


@pytest.mark.parametrize("kind", ["one dimension", "few kinds", "most alike", "dense"])
def test_no_part_is_empty_or_too_large(
    kind: str, dealt: list[tuple[AnyArray, int]], seen: Parts, tmp_path: Path
) -> None:
    rows = uneven(kind)
    with CoreNN.build(
        tmp_path / "db", range(ROWS), rows, dim=rows.shape[1], metric="l2", memory_limit=30_000
    ) as db:  # fmt: skip
        found, room = dealt[0]
        sizes = np.bincount(found[found != parts.NOWHERE])
        assert sizes.min() > 0 and sizes.max() <= room and len(sizes) > 2
        assert (found[:, 0] != parts.NOWHERE).all() and (found[:, 0] != found[:, 1]).all()
        report = db.verify()
        assert not report.problems and not report.unreachable
        hits = db.query(rows[0], k=min(20, int((rows == rows[0]).all(axis=1).sum())), search_list=22)
        assert all((rows[key] == rows[0]).all() for key in hits.keys)


def test_a_part_that_is_cut_up_leaves_the_others_their_guests(
    dealt: list[tuple[AnyArray, int]], seen: Parts, tmp_path: Path
) -> None:
    rows = uneven("dense")
    with CoreNN.build(tmp_path / "db", range(ROWS), rows, dim=DIM, metric="l2", memory_limit=30_000):
        found, _ = dealt[0]
        assert (found[50:, 1] != parts.NOWHERE).sum() > 10


def test_a_part_with_guests_alone_has_no_more_than_there_is_room_for() -> None:
    alone = np.array([[0, 2]] * 5 + [[1, 2]] * 5, np.uint16)
    parts._fit(alone, 6)
    assert (alone[:, 1] == 2).sum() == 6


def test_more_parts_than_can_be_told_apart_are_none(tmp_path: Path) -> None:
    with CoreNN.create(tmp_path / "db", dim=DIM, metric="l2", memory_limit=LIMIT) as db:
        own = int(parts.OWN * parts.room_of(db._store))
        assert parts.worthwhile(db._store, parts.MOST_PARTS * own)
        assert not parts.worthwhile(db._store, parts.MOST_PARTS * own + 1)


def test_what_is_left_of_a_whole_build_is_built_anew(
    rows: Float32s, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(self: Any, *_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Builder, "_link_back", dying)
        with pytest.raises(KeyboardInterrupt):
            CoreNN.build(tmp_path / "db", range(ROWS), rows, dim=DIM, metric="l2")
    assert not list(tmp_path.iterdir())
