"""Searches over the disk, through the public interface.

Rules out answers that are not those of the vectors, before disk.slab is there, while it is behind and when it is made;
rows of former owners in the place of new ones; a damaged, torn, foreign or missing file that is believed, or that stops
a query; a full disk that stops a write; and files that become resident as they are searched.
"""

from __future__ import annotations

import gc
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from corenn import CoreNN, writer
from corenn.errors import DiskFullError, StorageError
from corenn.graph import disk as over_disk
from corenn.graph import insert
from corenn.kernels.search import FIRST_NEIGHBOUR, LIFELINE
from corenn.storage import changes
from corenn.storage.changes import changed_since
from corenn.storage.disk import BITS, ROWS
from corenn.storage.files import Files
from corenn.storage.format import PAGE, PUBLISHED
from corenn.storage.residence import Residence
from corenn.storage.store import Store
from tests.conftest import COMPILED, Sample
from tests.kinds import LARGE_KERNEL_DTYPES
from tests.oracle import METRICS, distances, recall, rounded, rounding, tolerance

Rows = NDArray[np.float32]
MANY = 1_500 if COMPILED else 1_100
pytestmark = pytest.mark.compiled


@pytest.fixture(autouse=True)
def _any_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small a limit that everything outgrows it."""
    monkeypatch.setattr(Residence, "check", lambda self, fixed, limit=None: None)


@pytest.fixture(autouse=True)
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done in idle time is done at once."""
    monkeypatch.setattr(writer, "IDLE_SECONDS", 0.001)


def created(path: Path, dim: int = 128, **given: Any) -> CoreNN:
    """A database that searches over the disk from 1,000 rows on."""
    options = {"metric": "l2", "compression_mode": "sq8", "compression_threshold": 0, "memory_limit": 1, **given}
    return CoreNN.create(path, dim=dim, recall_target=0, **options)


def settle(db: CoreNN) -> CoreNN:
    """Wait until disk.slab is as the graph is, and rows are chosen to be kept in memory."""
    assert db._writer is not None
    until = time.monotonic() + 240
    while db.stats().disk_backlog or db._writer.spiller.due(calm=True):
        assert time.monotonic() < until
        time.sleep(0.002)
    db.checkpoint()
    return db


def pages(db: CoreNN, queries: Rows, **options: Any) -> float:
    found = db.query(queries, explain=True, **options)
    return float(np.mean([hits.explain.pages for hits in found if hits.explain is not None]))


def check_answers(db: CoreNN, rows: Rows, queries: Rows, least: float = 0.95, keys: Any = None) -> None:
    """Distances are those of the vectors, and nearly all of the nearest are there. keys: of the rows, in order."""
    numbers = {key: at for at, key in enumerate(range(len(rows)) if keys is None else keys)}
    found = db.query(queries, k=10, search_list=40)
    ids = [[numbers[key] for key in hits.keys] for hits in found]
    metric = db.settings.metric
    table = distances(metric, rows, queries)
    allowed = tolerance(metric, rows, queries)
    for at, hits in enumerate(found):
        assert len(hits) == len(set(hits.keys)) == 10
        assert np.abs(hits.distances - table[at, ids[at]]).max() <= allowed
        assert (np.diff(hits.distances) >= 0).all()
    assert recall(metric, rows, queries, ids, 10) >= least


@pytest.mark.few(2)
@pytest.mark.parametrize("dtype", LARGE_KERNEL_DTYPES)
@pytest.mark.parametrize("metric", METRICS)
def test_answers_are_those_of_walks_in_memory(tmp_path: Path, sift: Sample, metric: str, dtype: str) -> None:
    rows, queries = sift[0][:MANY], sift[1][:40]
    with created(tmp_path / "db", metric=metric, dtype=dtype) as db:
        db.insert(range(MANY), rows)
        until = time.monotonic() + 240  # a kernel that is compiled meanwhile is time that codes are owed for
        while not pages(db, queries):
            assert time.monotonic() < until
        before = db.query(queries, k=10, search_list=80)
        settle(db)
        after = db.query(queries, k=10, search_list=80)
        nearer = [one.distances <= other.distances for one, other in zip(after, before, strict=True)]
        assert np.mean(nearer) >= 0.999  # what shares their pages is measured as well
        db.configure(memory_limit=None)
        assert pages(db, queries) == 0
        mapped = db.query(queries, k=10, search_list=80)
        exact = db.query(queries, k=10, exact=True)
    there = {
        (at, key): distance
        for at, hits in enumerate(exact)
        for key, distance in zip(hits.keys, hits.distances, strict=True)
    }
    shared = [
        (there[at, hit.key], hit.distance) for at, hits in enumerate(after) for hit in hits if (at, hit.key) in there
    ]
    assert len(shared) >= 0.95 * len(there)
    assert len(shared) >= 0.99 * sum((at, key) in there for at, hits in enumerate(mapped) for key in hits.keys)
    for one, other in shared:
        assert one == pytest.approx(other, rel=1e-5, abs=1e-5)


@pytest.mark.few(1)
@pytest.mark.parametrize("metric", METRICS)
def test_distances_and_recall_against_numpy(tmp_path: Path, embeddings: Sample, metric: str) -> None:
    rows, queries = embeddings[0][:MANY], embeddings[1]
    with created(tmp_path / "db", dim=384, metric=metric, compression_mode="sq4") as db:
        db.insert(range(MANY), rows)
        check_answers(db, rows, queries)
        check_answers(settle(db), rows, queries)


@pytest.mark.few(2)
@pytest.mark.parametrize(("dim", "dtype"), [(2, "u8"), (70, "f32"), (1_100, "f32"), (2_100, "f32")])
def test_rows_of_any_size(tmp_path: Path, rng: np.random.Generator, dim: int, dtype: str) -> None:
    """Many to a page, and several pages to a row."""
    count = 1_050
    rows = np.tile(rng.integers(0, 200, (count, 8)), dim // 8 + 1)[:, :dim].astype(np.float32)
    queries = rows[:20] + rng.integers(0, 3, (20, dim)).astype(np.float32)
    with created(tmp_path / "db", dim=dim, dtype=dtype) as db:
        db.insert(range(count), rows)
        settle(db)
        kept = rounded(dtype, rows)
        if dtype != "u8":
            check_answers(db, kept, queries)
        found = db.query(kept[:50], k=1, search_list=20)
        assert all(hits.distances[0] <= rounding(dtype, rows).max() ** 2 * dim + 1e-3 for hits in found)
        assert db.verify().ok


def test_a_page_per_row_at_most(tmp_path: Path, sift: Sample) -> None:
    rows, queries = sift[0][:2_000], sift[1]
    with created(tmp_path / "db") as db:
        db.insert(range(len(rows)), rows)
        settle(db)
        found = db.query(queries, k=10, search_list=24, explain=True)
        works = [hits.explain for hits in found]
        assert all(work is not None and 0 < work.pages <= work.hops for work in works)


def test_rows_kept_in_memory_save_pages(tmp_path: Path, sift: Sample) -> None:
    rows, queries = sift
    with created(tmp_path / "db") as db:
        db.insert(range(len(rows)), rows)
        before = pages(settle(db), queries, search_list=24)
        db.configure(memory_limit=len(rows) * 500)
        settle(db)
        assert 0 < db.stats().memory["disk_rows"] <= len(rows) * 500 // 16 * 1.1
        assert pages(db, queries, search_list=24) <= before - 1
        check_answers(db, rows, queries)
        db.delete(range(0, 6_000, 2))  # what is kept in memory is of before
        db.insert(range(6_000, 9_000), rows[::2] + 1)
        kept = np.concatenate((rows[1::2], rows[::2] + 1))
        keys = [*range(1, 6_000, 2), *range(6_000, 9_000)]
        check_answers(db, kept, queries, keys=keys)
        check_answers(settle(db), kept, queries, keys=keys)


def test_what_is_inserted_is_found_at_once(tmp_path: Path, sift: Sample) -> None:
    rows = sift[0]
    with created(tmp_path / "db") as db:
        db.insert(range(2_000), rows[:2_000])
        settle(db)
        for start in range(2_000, 3_000, 50):
            ids = range(start, start + 50)
            db.insert(ids, rows[start : start + 50])
            assert [hits.keys[0] for hits in db.query(rows[start : start + 50], k=1, search_list=16)] == [
                int(np.flatnonzero((rows[: start + 50] == rows[at]).all(axis=1))[0]) for at in ids
            ]
        check_answers(db, rows[:3_000], sift[1])
        check_answers(settle(db), rows[:3_000], sift[1])


def test_deleted_rows_are_not_found_and_their_ids_serve_others(tmp_path: Path, sift: Sample) -> None:
    rows, queries = sift[0][:4_000], sift[1]
    with created(tmp_path / "db") as db:
        db.insert(range(2_000), rows[:2_000])
        settle(db)
        for first in range(0, 2_000, 500):  # every row makes room for another
            db.delete(range(first, first + 500))
            live = [*range(first + 500, 2_000), *range(2_000, 2_000 + first)]
            check_answers(db, rows[live], queries, keys=live)
            db.checkpoint()
            db.insert(range(2_000 + first, 2_500 + first), rows[2_000 + first : 2_500 + first])
            live = [*range(first + 500, 2_500 + first)]
            check_answers(db, rows[live], queries, keys=live)
            settle(db)
            check_answers(db, rows[live], queries, keys=live)
        assert db.stats().free + db.stats().tombstones < 2_000  # ids were used again
        assert db.verify().ok


def test_rows_of_former_owners_are_not_taken_for_the_present_ones(tmp_path: Path, sift: Sample) -> None:
    """The files of before, all of which claims to be current: only the births tell."""
    rows, queries, path = sift[0], sift[1], tmp_path / "db"
    with created(path) as db:
        db.insert(range(2_000), rows[:2_000])
        settle(db)
    for name in (ROWS, BITS):
        shutil.copy(path / name, tmp_path / name)
    with CoreNN.open(path) as db:
        db.delete(range(2_000))
        settle(db)
        db.insert(["first"], rows[:1])  # frees the ids
        db.insert(range(2_000, 4_000), rows[2_000:4_000])
        settle(db)
        assert db.stats().free < 1_000
    for name in (ROWS, BITS):
        shutil.copy(tmp_path / name, path / name)
    with CoreNN.open(path) as db:
        db.delete(["first"])
        check_answers(db, rows[2_000:4_000], queries, keys=range(2_000, 4_000))


@pytest.mark.few(2)
@pytest.mark.parametrize("damage", ["bytes", "truncated", "header", "empty", "missing", "foreign", "zeros", "bits"])
def test_damage(tmp_path: Path, sift: Sample, rng: np.random.Generator, damage: str) -> None:
    rows, queries, path = sift[0][:1_200], sift[1], tmp_path / "db"
    with created(path) as db:
        db.insert(range(1_200), rows)
        settle(db)
    raw = bytearray((path / ROWS).read_bytes())
    if damage == "bytes":
        for at in rng.integers(PAGE, len(raw), 3_000):
            raw[at] ^= 0xFF
    elif damage == "zeros":
        raw[PAGE : len(raw) // 2] = bytes(len(raw) // 2 - PAGE)
    elif damage == "truncated":
        del raw[len(raw) // 3 :]
    elif damage == "header":
        raw[20] ^= 1
    elif damage == "empty":
        raw.clear()
    (path / ROWS).write_bytes(raw)
    if damage == "missing":
        (path / ROWS).unlink()
    if damage == "foreign":
        with created(tmp_path / "other") as other:
            other.insert(range(1_200), rows[::-1])
            settle(other)
        shutil.copy(tmp_path / "other" / ROWS, path / ROWS)
    if damage == "bits":
        (path / BITS).unlink()
    with CoreNN.open(path, mode="r") as db:
        check_answers(db, rows, queries)
    with CoreNN.open(path) as db:
        check_answers(db, rows, queries)
        settle(db)
        check_answers(db, rows, queries)
        report = db.verify()
        assert report.ok == (damage not in ("bytes", "zeros"))
        assert {problem.part for problem in report.problems} <= {"disk"}
        db.repair()
        settle(db)
        assert db.verify().ok
        check_answers(db, rows, queries)


def test_files_cut_off_while_they_are_searched(tmp_path: Path, sift: Sample) -> None:
    rows, queries, path = sift[0][:2_000], sift[1], tmp_path / "db"
    with created(path) as db:
        db.insert(range(2_000), rows)
        settle(db)
        os.truncate(path / ROWS, 10_000)
        check_answers(db, rows, queries)


def test_rows_that_cannot_be_read_are_passed_over(
    tmp_path: Path, sift: Sample, caplog: pytest.LogCaptureFixture
) -> None:
    rows, queries, path = sift[0][:2_000], sift[1], tmp_path / "db"
    with created(path) as db:
        db.insert(range(2_000), rows)
        settle(db)
        source = db._store.source
        assert source is not None
        nothing = os.open(os.devnull, os.O_RDONLY)
        for number in source.numbers:
            os.dup2(nothing, number)
        os.close(nothing)
        with caplog.at_level(logging.WARNING, "corenn"):
            check_answers(db, rows, queries)  # by a scan, where too few rows are left
        assert "could not be read" in caplog.text


def test_a_full_disk_stops_nothing(tmp_path: Path, sift: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, queries = sift[0][:2_500], sift[1]
    monkeypatch.setattr(over_disk, "RETRY_SECONDS", 0.05)
    allocate, full = Files.allocate, True

    def limited(files: Files, descriptor: int, size: int, path: Path) -> None:
        if full and path.name == ROWS and size > PAGE:
            raise DiskFullError("no room")
        allocate(files, descriptor, size, path)

    monkeypatch.setattr(Files, "allocate", limited)
    with created(tmp_path / "db") as db:
        db.insert(range(2_000), rows[:2_000])
        time.sleep(0.2)
        assert db.stats().disk_backlog == 2_000
        check_answers(db, rows[:2_000], queries)
        db.insert(range(2_000, 2_500), rows[2_000:])
        check_answers(db, rows, queries)
        full = False
        until = time.monotonic() + 240
        while db.stats().disk_backlog and time.monotonic() < until:
            time.sleep(0.01)
        assert db.stats().disk_backlog == 0
        check_answers(db, rows, queries)
        assert db.verify().ok


def test_a_disk_that_fails_to_sync_it_stops_nothing(
    tmp_path: Path, sift: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, queries, path = sift[0][:2_000], sift[1], tmp_path / "db"
    monkeypatch.setattr(over_disk, "RETRY_SECONDS", 0.05)
    sync, broken = Files.sync, False

    def failing(files: Files, descriptor: int, path: Path) -> None:
        if broken and path.name in (ROWS, BITS):
            raise StorageError("no sync")
        sync(files, descriptor, path)

    monkeypatch.setattr(Files, "sync", failing)
    with created(path) as db:
        db.insert(range(1_900), rows[:1_900])
        settle(db)
        broken = True
        db.insert(range(1_900, 2_000), rows[1_900:])
        db.checkpoint()
        check_answers(db, rows, queries)
        broken = False
        settle(db)
        assert db.stats().disk_backlog == 0
        assert db.verify().ok
        check_answers(db, rows, queries)


CHILD = """
import os, signal, sys
from corenn import CoreNN, writer
from corenn.graph import disk
writer.IDLE_SECONDS, disk.STEP_ROWS = 0.001, 64
writer.STEP_ROWS = 64
left = int(sys.argv[2])
from corenn.storage.disk import DiskRows
write = DiskRows.write
def counted(self, ids, words):
    global left
    left -= 1
    if left == 0:
        write(self, ids[:10], words[:10])
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, ids, words)
DiskRows.write = counted
from corenn.storage.residence import Residence
from corenn.storage.store import Store
Residence.check = lambda self, fixed, limit=None: None
with CoreNN.open(sys.argv[1], memory_limit=1) as db:
    import time
    for turn in range(200):
        db.upsert([turn], db.get([turn + 1])[0].vector[None])
        time.sleep(0.02)
"""


@pytest.mark.few(1)
@pytest.mark.parametrize("writes", [1, 7, 40])
def test_a_process_that_is_killed_while_it_writes(tmp_path: Path, sift: Sample, writes: int) -> None:
    rows, queries, path = sift[0][:2_000], sift[1], tmp_path / "db"
    with created(path, memory_limit=None) as db:
        db.insert(range(2_000), rows)
    done = subprocess.run([sys.executable, "-c", CHILD, str(path), str(writes)], check=False)
    assert done.returncode == -signal.SIGKILL
    with CoreNN.open(path, memory_limit=1) as db:
        vectors = np.stack([record.vector for record in db.get(range(2_000)) if record is not None])
        check_answers(db, vectors, queries)
        settle(db)
        assert db.verify().ok
        check_answers(db, vectors, queries)


@pytest.mark.parametrize("settled", [True, False])
def test_a_machine_that_restarted(tmp_path: Path, sift: Sample, monkeypatch: pytest.MonkeyPatch, settled: bool) -> None:
    """What was brought to the disk counts, else nothing does."""
    rows, queries, path = sift[0][:2_000], sift[1], tmp_path / "db"
    with created(path) as db:
        db.insert(range(2_000), rows)
        settle(db)
        if not settled:
            db.upsert(range(8), rows[:8])
            shutil.copytree(path, tmp_path / "copy", ignore=shutil.ignore_patterns("LOCK"))
    monkeypatch.setattr(changes, "boot_word", lambda: 7)
    monkeypatch.setattr("corenn.storage.disk.boot_word", lambda: 7)
    monkeypatch.setattr(writer, "IDLE_SECONDS", 3600.0)
    with CoreNN.open(path if settled else tmp_path / "copy") as db:
        assert (db.stats().disk_backlog < 100) == settled
        check_answers(db, rows, queries)


def test_nothing_changes_of_which_nobody_was_told_before(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is killed anywhere leaves no row of disk.slab that is taken for current, and no MiB of edges.slab
    for unchanged, while a row is threaded behind one to which it has no edge.
    """
    rows = np.repeat(rng.normal(size=(40, 4)), 50, axis=0).astype(np.float32)  # of which most neighbours have equals
    thread, behind = insert.thread_ring, []

    def watched(given: Any, edges: Any, batch: Any, *others: Any) -> Any:
        before = edges[:, LIFELINE].copy()
        done = thread(given, edges, batch, *others)
        changed = np.flatnonzero(edges[:, LIFELINE] != before).astype(np.uint32)
        store = db._store
        assert store.disk is not None and store.changes is not None
        assert not len(store.disk.fresh_among(changed))
        noted = changed_since(store.changes._slab.array, "edges.slab", store.changes.clock - 1)
        assert set(((PAGE + changed.astype(np.int64) * store.edges.spec.row_bytes) >> 20).tolist()) <= set(
            noted.tolist()
        )
        known = {int(others[0]), *batch.tolist(), *edges[batch, FIRST_NEIGHBOUR:].ravel().tolist()}
        behind.extend(set(changed.tolist()) - known)
        return done

    with created(tmp_path / "db", dim=4, max_edges=4, update_search_list_cap=8) as db:
        db.insert(range(len(rows)), rows)
        settle(db)
        db.snapshot(tmp_path / "snapshot")
        monkeypatch.setattr(writer, "IDLE_SECONDS", 1e9)
        monkeypatch.setattr(insert, "thread_ring", watched)
        db.insert(range(5_000, 5_200), rng.normal(size=(200, 4)))
        assert behind, "else nothing is tested"
        db.snapshot(tmp_path / "snapshot")
    with CoreNN.open(tmp_path / "snapshot", mode="r") as copy:
        assert copy.verify().ok


def test_a_row_that_dies_is_no_fault_of_disk_slab(
    tmp_path: Path, sift: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    with created(tmp_path / "db") as db:
        db.insert(range(1_100), sift[0][:1_100])
        settle(db)
        monkeypatch.setattr(writer, "IDLE_SECONDS", 1e9)
        db.delete(range(20))
        assert db.verify().ok and not db.verify().repaired
        assert db.stats().disk_backlog >= 20, "they are written anew"


def failing(*_: object) -> None:
    raise StorageError("it cannot be done")


@pytest.mark.few(2)
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux tells which files are open")
@pytest.mark.parametrize("mode", ["rw", "r"])
@pytest.mark.parametrize("step", ["_recover", "open_disk"])
def test_an_opening_that_fails_leaves_nothing_open(
    tmp_path: Path, sift: Sample, monkeypatch: pytest.MonkeyPatch, mode: Any, step: str
) -> None:
    path = tmp_path / "db"
    with created(path) as db:
        db.insert(range(1_100), sift[0][:1_100])
        settle(db)
    del db
    gc.collect()
    monkeypatch.setattr(Store, step, failing)
    with pytest.raises(StorageError, match="cannot be done"):
        CoreNN.open(path, mode=mode)
    gc.collect()  # what is mapped stays open with its arrays, which the error holds
    left = [each.readlink() for each in Path("/proc/self/fd").iterdir() if each.exists()]
    assert not [each for each in left if each.is_relative_to(path)]


def test_a_reader_that_fails_to_look_again_is_no_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with CoreNN.create(tmp_path / "db", dim=2) as db:
        state = db._store.state
        published = int(state.header[PUBLISHED])
        state.write_header(PUBLISHED, published + 1)  # as if the writer had gone on while it is opened
        monkeypatch.setattr(Store, "refresh", failing)
        with pytest.raises(StorageError, match="cannot be done"):
            CoreNN.open(tmp_path / "db", mode="r")
        state.write_header(PUBLISHED, published)
        assert not db.stats().readers


def test_readers_in_their_own_handles(tmp_path: Path, sift: Sample) -> None:
    rows, queries, path = sift[0][:3_000], sift[1], tmp_path / "db"
    with created(path, memory_limit=None) as db:
        db.insert(range(2_000), rows[:2_000])
        with CoreNN.open(path, mode="r", memory_limit=1) as early:
            check_answers(early, rows[:2_000], queries)
            before = pages(early, queries)
            db.configure(memory_limit=1)
            settle(db)
            early.refresh()
            assert 0 < pages(early, queries) < before
            check_answers(early, rows[:2_000], queries)
            db.delete(range(500))
            db.insert(range(2_000, 3_000), rows[2_000:])
            check_answers(
                early, rows[:2_000], queries, least=0.7
            )  # of its snapshot, to the dead ones of which nothing leads
            early.refresh()
            check_answers(early, rows[500:], queries, keys=range(500, 3_000))
            settle(db)
            check_answers(early, rows[500:], queries, keys=range(500, 3_000))
            db.compact()
            check_answers(early, rows[500:], queries, keys=range(500, 3_000))
            early.refresh()
            check_answers(early, rows[500:], queries, keys=range(500, 3_000))


def test_copies_are_made_without_it(tmp_path: Path, sift: Sample) -> None:
    rows, queries, path = sift[0][:2_000], sift[1], tmp_path / "db"
    with created(path) as db:
        db.insert(range(2_000), rows)
        settle(db)
        assert (path / ROWS).exists()
        db.snapshot(tmp_path / "snapshot")
        db.backup(tmp_path / "backup.tar.gz")
        db.delete(range(0, 2_000, 4))
        db.compact()
        settle(db)
        assert (path / "generation-2" / ROWS).exists()
        assert not (path / ROWS).exists()
        live = [at for at in range(2_000) if at % 4]
        check_answers(db, rows[live], queries, keys=live)
        assert db.verify().ok
    CoreNN.restore(tmp_path / "backup.tar.gz", tmp_path / "restored")
    for copy in ("snapshot", "restored"):
        assert not (tmp_path / copy / ROWS).exists()
        with CoreNN.open(tmp_path / copy) as db:
            check_answers(db, rows, queries)
            settle(db)
            check_answers(db, rows, queries)
            assert (tmp_path / copy / ROWS).exists()


@pytest.mark.parametrize("given", [{"memory_limit": None}, {"memory_limit": "1GB"}, {"compression_mode": "none"}])
def test_where_it_is_not_wanted_there_is_none(tmp_path: Path, sift: Sample, given: dict[str, Any]) -> None:
    with created(tmp_path / "db", **given) as db:
        db.insert(range(2_000), sift[0][:2_000])
        settle(db)
        assert pages(db, sift[1]) == 0
        assert not (tmp_path / "db" / ROWS).exists()


def test_edges_that_change_while_it_is_not_wanted(tmp_path: Path, sift: Sample) -> None:
    rows, queries, path = sift[0][:3_000], sift[1], tmp_path / "db"
    with created(path) as db:
        db.insert(range(2_000), rows[:2_000])
        settle(db)
    with CoreNN.open(path, memory_limit=None) as db:
        db.insert(range(2_000, 3_000), rows[2_000:])
        assert db.verify().ok
    with CoreNN.open(path) as db:
        check_answers(db, rows, queries)
        settle(db)
        assert db.verify().ok


def test_equal_rows(tmp_path: Path, rng: np.random.Generator) -> None:
    """The ring of lifelines leads along them, in the rows on the disk as well."""
    rows = np.repeat(rng.normal(size=(40, 32)).astype(np.float32), 50, axis=0)
    with created(tmp_path / "db", dim=32) as db:
        for start in range(0, len(rows), 100):
            db.insert(range(start, start + 100), rows[start : start + 100])
            if start % 500 == 0:
                settle(db)
        settle(db)
        for hits in db.query(rows[::50], k=50, search_list=60):
            assert len(hits) == 50
            assert hits.distances.max() == pytest.approx(0, abs=1e-5)


def test_recall_on_request(tmp_path: Path, sift: Sample) -> None:
    rows, queries = sift[0][:3_000], sift[1]
    with created(tmp_path / "db") as db:
        db.insert(range(len(rows)), rows)
        settle(db)
        found = db.query(queries, k=10, min_recall=0.95, explain=True)
        assert recall("l2", rows, queries, [hits.keys for hits in found], 10) >= 0.94
        assert all(hits.explain is not None and (hits.explain.expected_recall or 0) >= 0.95 for hits in found)
        assert db.recall(k=10, samples=100, search_list=60).recall >= 0.97


def resident(path: Path) -> dict[str, int]:
    """Bytes of the files of a database that are resident in this process through its mappings."""
    found: dict[str, int] = {}
    name = ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            name = words[5] if len(words) > 5 else ""
        elif words[0] == "Rss:" and name.startswith(str(path)):
            found[Path(name).name] = found.get(Path(name).name, 0) + int(words[1]) * 1024
    return found


@pytest.mark.few(1)
@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system does not tell what is resident")
@pytest.mark.parametrize("mode", ["rw", "r"])
def test_nothing_of_the_files_becomes_resident(tmp_path: Path, sift: Sample, mode: Any) -> None:
    rows, queries, path = sift[0], sift[1], tmp_path / "db"
    with created(path) as db:
        db.insert(range(len(rows)), rows)
        settle(db)
    with CoreNN.open(path, mode=mode) as db:
        before = resident(path)  # what the former handle has touched may be there still
        db.query(queries, k=10, search_list=40)
        db.query(queries, k=10, exact=True)
        db.recall(k=10, samples=50)
        db.query(queries[0], k=10)  # after which somebody looks
        taken = resident(path)
    assert taken.keys() >= {"vectors.slab", "edges.slab", "codes.slab"}
    for name in ("vectors.slab", "edges.slab", ROWS):
        assert taken.get(name, 0) - before.get(name, 0) <= rows.nbytes // 4, name  # a touch brings in what lies around
    with CoreNN.open(path, mode=mode, memory_limit=None) as db:
        db.query(queries, k=10, search_list=40)
        assert resident(path)["vectors.slab"] > rows.nbytes // 2  # as walks in memory do
