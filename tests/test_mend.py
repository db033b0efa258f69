"""Repair after deletes, and ids that are used again.

Rules out space that grows with churn, an edge that leads to a row that is gone, recall that decays, a key that finds
the row of another one whose id it had, an answer that a running query or a reader in another process takes from a row
that came later, and a graph that hangs on threads.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corenn import CoreNN
from corenn.graph import bulk, mend, navigation, query
from corenn.graph.insert import Linker
from corenn.kernels.link import REMOVAL, mend_ring
from corenn.kernels.search import BORN, DEGREE, DIED, FIRST_NEIGHBOUR, LIFELINE
from corenn.storage import readers, rocks
from corenn.storage.commit import Record, as_runs, from_runs
from corenn.storage.files import Files
from corenn.storage.format import JOURNAL, NEVER, PAGE
from tests import oracle
from tests.kinds import diagonal

from .conftest import Create, Sample

ROWS, DIM = 2000, 8
Rows = Any
pytestmark = pytest.mark.compiled  # without the JIT: tests/kernels/test_mend.py


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Walks, whatever the number of rows, and repair as soon as there is anything to repair."""
    monkeypatch.setattr(query, "FEW_ROWS", 0)
    monkeypatch.setattr(mend, "LEAST", 1)
    monkeypatch.setattr(mend, "WORTHWHILE", 1 << 30)


def vectors_of(keys: Any, dim: int = DIM) -> Rows:
    """A vector that only this key has."""
    return np.stack([np.random.default_rng(int(key)).normal(size=dim) for key in keys]).astype(np.float32)


def churn(db: CoreNN, live: int, batches: int, share: int = 10, first: int = 0) -> int:
    """Replace a `share`-th of the rows, the oldest, so many times; returns the first key that is left."""
    size = live // share
    for batch in range(batches):
        start = first + batch * size
        assert db.delete(range(start, start + size)) == size
        db.insert(range(start + live, start + live + size), vectors_of(range(start + live, start + live + size)))
        if db.stats().path is not None:
            db.checkpoint()
    return first + batches * size


def filled(db: CoreNN, count: int = ROWS, **others: Any) -> CoreNN:
    db.insert(range(count), vectors_of(range(count), db.settings.dim), **others)
    return db


def mended(db: CoreNN) -> None:
    """Bury whatever is dead, as idle time would."""
    writer = db._writer
    assert writer is not None
    writer.submit(_task(lambda: (writer.mender.finish(writer.view), writer.republish())))


def _task(call: Any) -> Any:
    from corenn.writer import Task

    return Task(call)


def edges_of(db: CoreNN) -> Any:
    return db._store.edges.array[: db._store.metadata.head.rows].copy()


def leads_to(db: CoreNN) -> set[int]:
    """The ids that an edge or a lifeline of a row on the ring leads to."""
    edges = edges_of(db)
    edges = edges[edges[:, LIFELINE] != 0]
    there = np.arange(edges.shape[1] - FIRST_NEIGHBOUR) < edges[:, DEGREE, None]
    return {*edges[:, FIRST_NEIGHBOUR:][there].tolist(), *(edges[:, LIFELINE] - 1).tolist()}


def check(db: CoreNN, keys: range) -> None:
    """Exactly these rows are there, each with its own vector, and found by walks and scans."""
    assert len(db) == len(keys) and list(db.keys()) == list(keys)
    for key, record in zip(keys, db.get(list(keys)), strict=True):
        assert record is not None and record.key == key
        assert np.array_equal(record.vector, vectors_of([key])[0])
    rows, asked = vectors_of(keys), np.random.default_rng(3).normal(size=(20, DIM)).astype(np.float32)
    for one, hits in zip(asked, db.query(asked, 10, exact=True), strict=True):
        oracle.check_hits("l2", list(keys), rows, one, hits, min(10, len(keys)))
    found = [[key - keys.start for key in hits.keys] for hits in db.query(asked, 10)]
    assert oracle.recall("l2", rows, asked, found) >= 0.95
    assert db.verify().problems == ()


# --- space and recall -------------------------------------------------------------------------------------------------


@pytest.mark.few(1)
def test_churn_takes_no_more_ids(create: Create) -> None:
    db = filled(create(dim=DIM, metric="l2"))
    left = churn(db, ROWS, 30)
    assert db._store.metadata.head.rows <= 1.6 * ROWS
    check(db, range(left, left + ROWS))
    stats = db.stats()
    assert stats.free + stats.tombstones + stats.rows == db._store.metadata.head.rows


def test_without_repair_it_would(create: Create, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mend.Mender, "due", lambda self, calm: False)
    db = filled(create(dim=DIM, metric="l2"))
    churn(db, ROWS, 10)
    assert db._store.metadata.head.rows == 2 * ROWS


def test_nothing_leads_to_what_is_buried(create: Create) -> None:
    db = filled(create(dim=DIM, metric="l2"))
    db.delete(range(0, ROWS, 3))
    mended(db)
    assert db.stats().repair_backlog == 0
    state = db._store.state.array
    assert not any(state[row, DIED] for row in leads_to(db))
    assert not edges_of(db)[state[:ROWS, DIED] != 0].any()
    assert db.verify().ok
    assert not db._current().tombstones, "walks need not look out for the dead any more"


@pytest.mark.few(1)
@pytest.mark.parametrize(("metric", "dtype"), diagonal(["l2", "cosine", "ip"], ["f32", "i8"]))
def test_recall_does_not_decay(memory: Create, metric: str, dtype: str, rng: np.random.Generator) -> None:
    count = ROWS // 2
    rows = np.round(rng.normal(size=(6 * count, 12)) * 20)
    db = memory(dim=12, metric=metric, dtype=dtype, recall_target=0.0)
    db.insert(range(count), rows[:count])
    size = count // 5
    for start in range(0, 5 * count, size):
        db.delete(range(start, start + size))
        db.insert(range(start + count, start + count + size), rows[start + count : start + count + size])
    fresh = memory(dim=12, metric=metric, dtype=dtype, recall_target=0.0)
    fresh.insert(range(5 * count, 6 * count), rows[5 * count :])
    asked = rng.normal(size=(50, 12)).astype(np.float32) * 20

    def found(one: CoreNN) -> float:
        exact = one.query(asked, 10, exact=True)
        walked = one.query(asked, 10, search_list=16)
        return float(np.mean([(a.distances <= b.distances[-1]).mean() for a, b in zip(walked, exact, strict=True)]))

    assert found(db) >= found(fresh) - 0.03
    assert db.verify().ok


def test_real_rows_replaced_are_found_as_well(memory: Create, sift: Sample) -> None:
    rows, asked = sift
    db = memory(dim=128, metric="l2", compression_threshold=1000, recall_target=0.0)
    db.insert(range(3000), rows[:3000])
    for start in range(0, 3000, 100):
        db.upsert(range(start, start + 100), rows[3000 + start : 3100 + start])
    assert db._store.metadata.head.rows < 4000
    found = [hits.keys for hits in db.query(asked, 10, search_list=32)]
    assert oracle.recall("l2", rows[3000:6000], asked, found) >= 0.97
    assert db.verify().ok, "codes of ids that are used again are those of the new rows"


def test_everything_deleted_begins_anew(create: Create) -> None:
    db = filled(create(dim=DIM, metric="l2"))
    db.delete(range(ROWS))
    mended(db)
    assert db.query(np.zeros(DIM), 3).keys == []
    assert not len(db._current().graph.entries)
    if db.stats().path is not None:
        db.checkpoint()
    for _ in range(2):  # the first frees ids, the second takes them
        filled(db)
        check(db, range(ROWS))
        db.delete(range(ROWS))
        mended(db)
    assert db._store.metadata.head.rows <= 2 * ROWS


def test_codes_keep_the_row_that_they_are_relative_to(memory: Create) -> None:
    db = filled(memory(dim=DIM, metric="l2", compression_mode="rabitq", compression_threshold=50))
    codes = db._store.codes
    assert codes is not None
    churn(db, ROWS, 20)
    assert db.verify().ok


def test_rows_linked_in_bulk_have_their_own_codes(memory: Create, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their ids had others before, whose codes are still there."""
    monkeypatch.setattr(bulk, "BULK_ROWS", ROWS // 2)
    db = filled(memory(dim=DIM, metric="l2", compression_mode="sq8", compression_threshold=0))
    db.delete(range(ROWS))
    mended(db)
    db.delete([*db.keys()])
    db.insert([-1], vectors_of([1]))
    db.delete([-1])
    mended(db)
    with db.loading():
        db.insert(range(ROWS, 2 * ROWS - 10), vectors_of(range(ROWS, 2 * ROWS - 10)))
    assert db.stats().compression_mode == "sq8"
    assert db.verify().problems == ()


def test_the_sample_is_drawn_anew_when_half_of_it_has_gone(memory: Create, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(navigation, "SHARE", 8)
    monkeypatch.setattr(navigation, "LEAST", 50)
    db = filled(memory(dim=DIM, metric="l2"))
    before = db._store.drawn
    churn(db, ROWS, 10)
    state = db._store.state.array[db._store.navigation.ids]
    assert db._store.drawn.commit > before.commit
    assert (state[:, BORN] == db._store.drawn.births).mean() >= 0.3


# --- keys -------------------------------------------------------------------------------------------------------------


def test_a_key_never_names_the_row_that_has_its_id_now(create: Create) -> None:
    db = create(dim=DIM, metric="l2")
    db.insert(["kept", *range(100)], vectors_of(range(101)))
    for turn in range(6):
        db.upsert(["kept", "b"], vectors_of([turn, turn + 50]), [{"turn": turn}, None])
        db.delete(["b", *range(turn * 10, turn * 10 + 10)])
        if db.stats().path is not None:
            db.checkpoint()
        mended(db)
        db.insert(range(1000 + turn * 12, 1012 + turn * 12), vectors_of(range(12)), [{"of": turn}] * 12)
        assert db.get(["b", turn * 10]) == [None, None]
        kept = db.get(["kept"])[0]
        assert kept is not None and kept.payload == {"turn": turn}
        assert np.array_equal(kept.vector, vectors_of([turn])[0])
    assert db._store.metadata.head.rows < 101 + 6 * 12
    assert db.verify().problems == ()


def test_ids_are_used_again_after_a_reopen(tmp_path: Path) -> None:
    with filled(CoreNN.create(tmp_path / "db", dim=DIM, metric="l2")) as db:
        churn(db, ROWS, 10)
        used = db._store.metadata.head.rows
    for turn in range(1, 3):
        with CoreNN.open(tmp_path / "db") as db:
            mended(db)
            churn(db, ROWS, 10, first=turn * ROWS)
            assert db._store.metadata.head.rows <= used + ROWS // 5
            check(db, range((turn + 1) * ROWS, (turn + 2) * ROWS))


def test_a_death_that_is_not_durable_keeps_its_id(tmp_path: Path) -> None:
    with filled(CoreNN.create(tmp_path / "db", dim=DIM, metric="l2")) as db:
        db.checkpoint()
        db.delete(range(100))
        mended(db)
        assert db.stats().repair_backlog == 0
        db.insert(range(ROWS, ROWS + 100), vectors_of(range(ROWS, ROWS + 100)))
        db.insert(range(ROWS + 100, ROWS + 200), vectors_of(range(ROWS + 100, ROWS + 200)))
        assert db._store.metadata.head.rows == ROWS + 200
        db.checkpoint()
        db.insert([-1], vectors_of([1]))
        assert db.stats().free == 100
        db.insert(range(-300, -200), vectors_of(range(100)))
        assert db._store.metadata.head.rows == ROWS + 201


def test_ids_of_a_small_database_do_not_wait_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corenn.writer.CHECKPOINT_DEAD", 500)
    with filled(CoreNN.create(tmp_path / "db", dim=DIM, metric="l2")) as db:
        for start in range(0, 3 * ROWS, 100):
            db.upsert(range(100), vectors_of(range(start, start + 100)))
        assert db._store.metadata.head.rows < 2 * ROWS
        assert db._current().beam_width == 1


def test_ids_of_a_commit_that_was_cut_off_are_set_aside(tmp_path: Path, monkeypatch: Any) -> None:
    """Its keys say that they have these ids: whoever had them next would answer to those names."""
    with CoreNN.open(_cut_off(tmp_path, monkeypatch)) as db:
        mended(db)
        assert db.get(list(range(1000, 1150))) == [None] * 150
        db.insert(range(2000, 2300), vectors_of(range(300)))
        db.insert(range(3000, 3300), vectors_of(range(300)))
        assert db.get(list(range(1000, 1150))) == [None] * 150
        assert int((db._store.state.array[:, DIED] == NEVER).sum()) == 150
        assert db.verify().problems == ()


def test_ids_set_aside_stay_so_after_a_loss_of_power(tmp_path: Path, monkeypatch: Any) -> None:
    """A later commit passes the number of the one that was cut off; from then on the state of its ids alone tells."""
    path, lost = _cut_off(tmp_path, monkeypatch), tmp_path / "lost"
    synced = {"state.slab": (path / "state.slab").read_bytes()}
    sync = Files.sync

    def noted(files: Files, descriptor: int, file: Path) -> None:
        sync(files, descriptor, file)
        synced[file.name] = file.read_bytes()

    monkeypatch.setattr(Files, "sync", noted)
    with CoreNN.open(path) as db:
        db.insert([5000], vectors_of([5]))
        shutil.copytree(path, lost)
        reached = synced["state.slab"]
    monkeypatch.undo()
    (lost / "state.slab").write_bytes(reached)
    _restart(monkeypatch)
    with CoreNN.open(lost) as db:
        mended(db)
        db.insert(range(2000, 2300), vectors_of(range(300)))
        db.insert(range(3000, 3300), vectors_of(range(300)))
        assert db.get(list(range(1000, 1150))) == [None] * 150
        assert db.verify().problems == ()


def test_ids_beyond_the_file_are_set_aside(tmp_path: Path, monkeypatch: Any) -> None:
    """The length of a file reaches the disk with a sync: after a loss of power it may end before them."""
    path = _cut_off(tmp_path, monkeypatch, batch=3000)
    with (path / "state.slab").open("r+b") as file:
        file.truncate(PAGE + 301 * 16)
    _restart(monkeypatch)
    with CoreNN.open(path) as db:
        db.insert(range(2000, 2300), vectors_of(range(300)))
    with CoreNN.open(path) as db:  # looks for ids that are free
        mended(db)
        db.insert(range(3000, 3300), vectors_of(range(300)))
        db.insert(range(4000, 4300), vectors_of(range(300)))
        assert db.get(list(range(1000, 1150))) == [None] * 150
        assert db.verify().problems == ()


def _restart(monkeypatch: Any) -> None:
    for module in ("store", "rocks"):
        monkeypatch.setattr(f"corenn.storage.{module}.boot_id", lambda: "another boot")


def _cut_off(folder: Path, monkeypatch: Any, *, batch: int = 2000) -> Path:
    """A database in which a commit of 150 rows, 100 of them with ids of former rows, was cut off after its first part,
    of so many bytes.
    """
    monkeypatch.setattr(rocks, "BATCH_BYTES", batch)
    with filled(CoreNN.create(folder / "db", dim=DIM, metric="l2"), 300) as db:
        db.delete(range(100))
        db.checkpoint()
        mended(db)
        db.insert([-1], vectors_of([1]))
        db.checkpoint()
        metadata = db._store.metadata
        assert isinstance(metadata, rocks.RocksMetadata)
        written: list[Any] = []
        whole = metadata._rocks.write
        monkeypatch.setattr(metadata, "_rocks", _Cut(metadata._rocks, written, whole))
        with pytest.raises(Exception, match="cut off"):
            db.insert(range(1000, 1150), vectors_of(range(150)))
        monkeypatch.undo()
        return Path(shutil.copytree(folder / "db", folder / "copy"))


class _Cut:
    """RocksDB that stops after the first part of a commit."""

    def __init__(self, rocks: Any, written: list[Any], write: Any) -> None:
        self._rocks, self._written, self._write = rocks, written, write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rocks, name)

    def write(self, batch: Any) -> None:
        if len(self._written) == 1:
            raise RuntimeError("cut off")
        self._written.append(batch)
        self._write(batch)


# --- snapshots --------------------------------------------------------------------------------------------------------


def test_keys_that_are_being_listed_stay(memory: Create) -> None:
    db = filled(memory(dim=DIM, metric="l2"))
    listed = db.keys()
    churn(db, ROWS, 20)
    assert db._store.metadata.head.rows == 3 * ROWS, "no id of a row that is listed is used again"
    assert list(listed) == list(range(ROWS))
    del listed
    churn(db, ROWS, 10, first=2 * ROWS)
    assert db._store.metadata.head.rows == 3 * ROWS


def test_a_reader_keeps_what_it_sees_until_it_refreshes(tmp_path: Path) -> None:
    with filled(CoreNN.create(tmp_path / "db", dim=DIM, metric="l2")) as db:
        with CoreNN.open(tmp_path / "db", mode="r") as reader:
            assert db.stats().readers == 1 and db.stats().oldest_reader is not None
            churn(db, ROWS, 10)
            assert db._store.metadata.head.rows == 2 * ROWS
            assert list(reader.keys()) == list(range(ROWS))
            records = reader.get(list(range(ROWS)))
            assert all(r is not None and np.array_equal(r.vector, vectors_of([r.key])[0]) for r in records)
            reader.refresh()
            churn(db, ROWS, 10, first=ROWS)
            assert db._store.metadata.head.rows <= 2 * ROWS + ROWS // 5
            reader.refresh()
            check(reader, range(2 * ROWS, 3 * ROWS))
        assert db.stats().readers == 0


def test_a_reader_that_asks_nothing_keeps_no_more_than_it_sees(tmp_path: Path) -> None:
    with filled(CoreNN.create(tmp_path / "db", dim=DIM, metric="l2")) as db:
        churn(db, ROWS, 5)
        with CoreNN.open(tmp_path / "db", mode="r"):
            assert [each.snapshot for each in db._snapshots.others()] == [db.stats().commit]
            db.insert([-1], vectors_of([1]))
            assert db.stats().free > 0, "what had died before is freed"


def test_a_reader_that_cannot_register_takes_a_newer_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError("read-only")

    with filled(CoreNN.create(tmp_path / "db", dim=DIM, metric="l2")) as db:
        with monkeypatch.context() as patched:
            patched.setattr(readers.Files, "create_locked", refuse)
            reader = CoreNN.open(tmp_path / "db", mode="r")
        with reader:
            assert db.stats().readers == 0
            assert len(reader) == ROWS
            churn(db, ROWS, 20)
            assert db._store.metadata.head.rows < 2 * ROWS
            assert reader.get([1]) == [None], "the row is gone, and its place may be another's"
            check(reader, range(2 * ROWS, 3 * ROWS))


def test_a_dead_reader_keeps_nothing(tmp_path: Path) -> None:
    with filled(CoreNN.create(tmp_path / "db", dim=DIM, metric="l2"), 50) as db:
        left = tmp_path / "db" / readers.FOLDER
        left.mkdir(exist_ok=True)
        (left / "12345-abc").write_bytes((1).to_bytes(8, "little"))
        assert db.stats().readers == 0
        assert not list(left.iterdir())


# --- order and crashes ------------------------------------------------------------------------------------------------


def test_the_same_calls_make_the_same_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corenn.writer.IDLE_SECONDS", 1e6)  # what is done in idle time depends on the machine
    graphs = []
    for threads in (1, 3):
        monkeypatch.setattr("corenn.graph.threads.cpu_count", lambda threads=threads: threads)
        with CoreNN.in_memory(dim=DIM, metric="l2") as db:
            churn(filled(db), ROWS, 12)
            writer, alive = db._writer, np.flatnonzero(db._store.state.array[:ROWS, DIED] == 0).astype(np.uint32)
            assert writer is not None
            # Rows that others come by on their walks at the same time.
            writer.submit(_task(lambda: writer.linker.link_again(alive, db._store.metadata.head)))  # noqa: B023
            graphs.append(edges_of(db))
    assert np.array_equal(*graphs)


@pytest.mark.parametrize("done", [0, 1, 2])
def test_a_killed_parting_is_mended(memory: Create, done: int) -> None:
    """The journal names the pair: whichever of the two stores came to be, the ring is whole and the row off it."""
    db = filled(memory(dim=DIM, metric="l2"), 50)
    edges, header = db._store.edges.array, db._store.edges.header
    behind = 7
    node = int(edges[behind, LIFELINE]) - 1
    beyond = int(edges[node, LIFELINE])
    header[JOURNAL], header[JOURNAL + 1] = np.uint64(node + 1) | REMOVAL, behind + 1
    if done >= 1:
        edges[behind, LIFELINE] = beyond
    if done >= 2:
        edges[node, LIFELINE] = 0
    mend_ring(edges, header[JOURNAL : JOURNAL + 2], 50)
    assert (int(edges[behind, LIFELINE]), int(edges[node, LIFELINE]), int(header[JOURNAL])) == (beyond, 0, 0)


def test_a_pass_cut_off_is_begun_again(tmp_path: Path) -> None:
    with filled(CoreNN.create(tmp_path / "db", dim=DIM, metric="l2")) as db:
        db.delete(range(0, ROWS, 4))
        db.checkpoint()
        writer = db._writer
        assert writer is not None
        writer.submit(_task(lambda: [writer.mender.step(writer.view) for _ in range(3)]))
        assert db.verify().problems == ()
        shutil.copytree(tmp_path / "db", tmp_path / "copy")
    with CoreNN.open(tmp_path / "copy") as db:
        assert db.verify().problems == ()
        mended(db)
        assert db.stats().repair_backlog == 0 and db.verify().problems == ()


def test_repair_goes_on_after_the_graph_was_damaged(tmp_path: Path) -> None:
    with filled(CoreNN.create(tmp_path / "db", dim=DIM, metric="l2")) as db:
        db.delete(range(0, ROWS, 4))
        mended(db)
        db._store.edges.array[50:60] = 0xFFFFFFF
        assert not db.verify().ok
        assert db.repair().ok
        assert db.delete(range(1, ROWS, 4)) == len(range(1, ROWS, 4))
        mended(db)
        assert db.verify().problems == ()


def test_an_edge_to_a_free_id_is_found_and_mended(memory: Create) -> None:
    db = filled(memory(dim=DIM, metric="l2"))
    db.delete(range(10))
    mended(db)
    db.insert([-1], vectors_of([1]))
    assert db.stats().free == 10
    db._store.edges.array[50, FIRST_NEIGHBOUR] = 3
    assert [problem.part for problem in db.verify().problems] == ["edges"]
    assert db.repair().ok


# --- records ----------------------------------------------------------------------------------------------------------


def test_records_hold_any_ids(rng: np.random.Generator) -> None:
    for count in (0, 1, 2, 50, 3000):
        sets = [np.sort(rng.choice(10_000, count, replace=False)).astype(np.uint32) for _ in range(3)]
        assert np.array_equal(from_runs(as_runs(sets[0])), sets[0])
        parts = [Record.unpack(7, raw) for raw in Record(7, *sets).parts(500)]
        for name, ids in zip(("born", "died", "freed"), sets, strict=True):
            assert np.array_equal(np.concatenate([getattr(part, name) for part in parts]), ids)
        assert all(len(part.born) <= 100 * 10_000 for part in parts)


def test_linker_remembers_what_came_lately(memory: Create) -> None:
    db = filled(memory(dim=DIM, metric="l2"))
    linker = db._writer.linker if db._writer is not None else None
    assert isinstance(linker, Linker)
    assert linker._lately[-1] == ROWS - 1


def test_ids_freed_amid_a_sweep_are_not_buried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep that had seen rows as dead freed them once more, and with them the rows that had their ids by then."""
    with CoreNN.create(tmp_path / "db", dim=DIM, metric="l2") as db:
        filled(db)
        monkeypatch.setattr(mend, "LEAST", 1 << 30)  # no pass begins by itself
        assert db.delete(range(50)) == 50
        mended(db)
        writer = db._writer
        assert writer is not None
        assert db.delete(range(50, 100)) == 50
        writer.submit(_task(lambda: writer.mender.step(writer.view)))  # looks at states, of which 50 are buried
        db.checkpoint()
        fresh = range(ROWS, ROWS + 20)
        db.insert(fresh, vectors_of(fresh))  # frees the 50, and takes 20 of them
        for _ in range(100):
            writer.submit(_task(lambda: writer.mender.step(writer.view)))
        db.checkpoint()
        db.insert([ROWS + 20], vectors_of([ROWS + 20]))  # frees what is buried since
        check(db, range(100, ROWS + 21))
