"""Where rows lie in disk.slab, through the public interface.

Rules out two rows in one slot, pages of strangers, walks that read a page for each row or find less for having read
fewer, hits twice or of rows that are not to be seen, rows that move or get lost as others come and go, and a damaged,
missing, foreign or half written slots.slab that changes answers, or that nothing mends.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from corenn import CoreNN, writer
from corenn.graph import disk as over_disk
from corenn.storage.disk import BITS, ROWS, SLOTS
from corenn.storage.format import PAGE
from corenn.storage.residence import Residence
from corenn.types import UInt32s
from tests.conftest import Sample
from tests.oracle import recall
from tests.test_disk import check_answers, created, pages, settle

pytestmark = pytest.mark.compiled


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small a limit that everything outgrows it, and no rest before what is done in idle time."""
    monkeypatch.setattr(Residence, "check", lambda self, fixed, limit=None: None)
    monkeypatch.setattr(writer, "IDLE_SECONDS", 0.001)


def slots_of(db: CoreNN) -> UInt32s:
    """The slots of all rows."""
    disk = db._store.disk
    assert disk is not None
    return disk.slots[: db._store.metadata.head.rows].copy()


def check_slots(db: CoreNN) -> UInt32s:
    """Every row has one, no two the same, none beyond those that were given; returns them."""
    slots, disk = slots_of(db), db._store.disk
    assert disk is not None
    assert slots.min() > 0
    assert len(np.unique(slots)) == len(slots)
    assert slots.max() <= disk.placed
    return slots


def test_a_page_holds_neighbours(tmp_path: Path, sift: Sample) -> None:
    rows = sift[0]
    with created(tmp_path / "db") as db:
        db.insert(range(len(rows)), rows)
        slots = check_slots(settle(db))
        disk = db._store.disk
        assert disk is not None and disk.placed == len(rows), "no slot is wasted"
        most = -(-len(rows) // disk.unit_rows) * PAGE
        assert (tmp_path / "db" / ROWS).stat().st_size <= PAGE + 1.125 * most + PAGE
        ordered = rows[np.argsort(slots)]
        whole = len(rows) // disk.unit_rows * disk.unit_rows
        on_pages = ordered[:whole].reshape(-1, disk.unit_rows, rows.shape[1])
        near = np.square(on_pages[:, :1] - on_pages[:, 1:]).sum(axis=2)
        far = np.square(ordered[:-100] - ordered[100:]).sum(axis=1)
        assert np.median(near) < np.median(far) / 2
        assert db.stats().memory["disk_slots"] == 4 * len(rows)


def test_fewer_pages_find_more(tmp_path: Path, sift: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against walks that expand no row but those that they ask for."""
    rows, queries = sift
    with created(tmp_path / "db") as db:
        db.insert(range(len(rows)), rows)
        settle(db)
        found, read, expanded = {}, {}, {}
        for way, beside in (("apart", 0), ("together", over_disk.BESIDE)):
            monkeypatch.setattr(over_disk, "BESIDE", beside)
            db.upsert(["renewed"], rows[:1])  # a new view
            db.delete(["renewed"])
            settle(db)
            hits = db.query(queries, k=10, search_list=16, explain=True)
            assert all(len(set(each.keys)) == len(each) == 10 for each in hits)
            found[way] = recall("l2", rows, queries, [each.keys for each in hits], 10)
            read[way] = np.mean([each.explain.pages for each in hits if each.explain is not None])
            expanded[way] = np.mean([each.explain.hops for each in hits if each.explain is not None])
        assert found["together"] >= found["apart"]
        assert read["apart"] < 0.9 * expanded["apart"], "no page had two of the rows that a walk expands"
        assert read["together"] < 0.8 * expanded["apart"] and expanded["together"] > 1.5 * expanded["apart"]


def test_rows_keep_their_slots_while_others_come_and_go(tmp_path: Path, sift: Sample) -> None:
    rows, queries = sift[0][:4_000], sift[1]
    with created(tmp_path / "db") as db:
        db.insert(range(2_000), rows[:2_000])
        before = check_slots(settle(db))
        db.insert(range(2_000, 3_000), rows[2_000:3_000])
        check_answers(db, rows[:3_000], queries)
        between = check_slots(settle(db))
        assert (between[:2_000] == before).all()
        check_answers(db, rows[:3_000], queries)
        db.delete(range(1_000))
        settle(db)
        db.insert(["first"], rows[:1])  # frees the ids
        db.insert(range(3_000, 4_000), rows[3_000:])
        db.delete(["first"])
        after = check_slots(settle(db))
        assert (after[:3_000] == between).all()
        assert len(after) < 4_000, "no id was used again, and nothing is tested"
        check_answers(db, rows[1_000:], queries, keys=range(1_000, 4_000))
        assert db.verify().ok
        db.compact()
        check_slots(settle(db))
        check_answers(db, rows[1_000:], queries, keys=range(1_000, 4_000))


def test_dead_rows_of_a_page_are_not_found(tmp_path: Path, sift: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, queries = sift[0][:3_000], sift[1]
    with created(tmp_path / "db") as db:
        db.insert(range(3_000), rows)
        settle(db)
        monkeypatch.setattr(writer, "IDLE_SECONDS", 3600.0)
        dead = {key for hits in db.query(queries, k=5) for key in hits.keys}
        db.delete(list(dead))
        live = [key for key in range(3_000) if key not in dead]
        check_answers(db, rows[live], queries, keys=live)


@pytest.mark.few(2)
@pytest.mark.parametrize("damage", ["bytes", "equal", "swapped", "high", "truncated", "missing", "header", "placed"])
def test_damaged_slots_cost_time_only(tmp_path: Path, sift: Sample, rng: np.random.Generator, damage: str) -> None:
    rows, queries, path = sift[0][:2_000], sift[1], tmp_path / "db"
    with created(path) as db:
        db.insert(range(2_000), rows)
        settle(db)
    raw = np.frombuffer((path / SLOTS).read_bytes(), np.uint32).copy()
    slots = raw[PAGE // 4 : PAGE // 4 + 2_000]
    some = rng.choice(2_000, 200, replace=False)
    if damage == "bytes":
        slots[some] ^= rng.integers(1, 1 << 32, 200, dtype=np.uint32)
    elif damage == "equal":
        slots[some] = slots[0]
    elif damage == "swapped":
        slots[some] = slots[np.roll(some, 1)]
    elif damage == "high":
        slots[some] = 0xFFFFFFFF
    elif damage == "header":
        raw[5] ^= 1
    elif damage == "placed":
        raw[64] = 17
    (path / SLOTS).write_bytes(raw.tobytes()[: PAGE + 4_000 if damage == "truncated" else None])
    if damage == "missing":
        (path / SLOTS).unlink()
    with CoreNN.open(path, mode="r") as db:
        check_answers(db, rows, queries)
    with CoreNN.open(path) as db:
        check_answers(db, rows, queries)
        db.upsert(range(2), rows[:2])  # writes to the slots that there are
        check_answers(settle(db), rows, queries)
        report = db.verify()
        assert {problem.part for problem in report.problems} <= {"disk"}
        assert report.ok == (damage not in ("bytes", "equal", "swapped", "high", "placed"))
        db.repair()
        check_answers(settle(db), rows, queries)
        assert db.verify().ok
        check_slots(db)


def test_slots_of_another_layout(tmp_path: Path, sift: Sample) -> None:
    """As of a copy of the files that was made between two writes: every row is somewhere else."""
    rows, queries, path = sift[0][:2_000], sift[1], tmp_path / "db"
    with created(path) as db:
        db.insert(range(2_000), rows)
        settle(db)
    shutil.copytree(path, tmp_path / "other")
    for name in (ROWS, BITS, SLOTS):
        (tmp_path / "other" / name).unlink()
    with CoreNN.open(tmp_path / "other") as other:
        other.delete(range(7))
        settle(other)
    shutil.copy(tmp_path / "other" / SLOTS, path / SLOTS)
    for mode in ("r", "rw"):
        with CoreNN.open(path, mode=mode) as db:  # type: ignore[arg-type]
            check_answers(db, rows, queries)


CHILD = """
import os, signal, sys
from corenn import CoreNN, writer
from corenn.graph import disk
from corenn.storage.disk import DiskRows
from corenn.storage.residence import Residence
writer.IDLE_SECONDS, writer.STEP_ROWS = 0.001, 64
Residence.check = lambda self, fixed, limit=None: None
left, where = int(sys.argv[2]), sys.argv[3]
done = getattr(DiskRows, where)
def counted(self, *given):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return done(self, *given)
setattr(DiskRows, where, counted)
with CoreNN.open(sys.argv[1], memory_limit=1) as db:
    import time
    time.sleep(60)
"""


@pytest.mark.few(1)
@pytest.mark.parametrize(("where", "calls"), [("give_back_slots", 3), ("write", 4)])
def test_a_process_that_is_killed_between_slots_and_rows(tmp_path: Path, sift: Sample, where: str, calls: int) -> None:
    """Slots were given, and lie in no header yet; or in the header, and nothing lies in them."""
    rows, queries, path = sift[0][:2_000], sift[1], tmp_path / "db"
    with created(path, memory_limit=None) as db:
        db.insert(range(2_000), rows)
    done = subprocess.run([sys.executable, "-c", CHILD, str(path), str(calls), where], check=False)
    assert done.returncode == -signal.SIGKILL
    with CoreNN.open(path, mode="r", memory_limit=1) as db:
        check_answers(db, rows, queries)
    with CoreNN.open(path, memory_limit=1) as db:
        check_answers(db, rows, queries)
        settle(db)
        check_slots(db)
        assert db.verify().ok
        check_answers(db, rows, queries)


def test_a_reader_sees_rows_of_slots_given_since(tmp_path: Path, sift: Sample) -> None:
    rows, queries, path = sift[0][:3_000], sift[1], tmp_path / "db"
    with created(path) as db:
        db.insert(range(1_000), rows[:1_000])
        settle(db)
        with CoreNN.open(path, mode="r", memory_limit=1) as reader:
            check_answers(reader, rows[:1_000], queries)
            db.insert(range(1_000, 3_000), rows[1_000:])
            settle(db)
            reader.refresh()
            check_answers(reader, rows, queries)
            assert pages(reader, queries, k=10, search_list=16) == pages(db, queries, k=10, search_list=16)
