"""The navigation graph: a sample of the rows in which queries find where to enter.

Rules out one that makes answers worse or is never made, one that is lost or read damaged when a database is opened,
one that reads beyond an array, and one that hangs on threads.
"""

from __future__ import annotations

import io
import itertools
import logging
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corenn import CoreNN, DiskFullError
from corenn.graph import bulk, navigation, query, threads
from corenn.graph.insert import link_apart
from corenn.graph.scratch import ScratchPool
from corenn.graph.view import entries_of
from corenn.storage.commit import NAVIGATION
from corenn.storage.rocks import RocksMetadata
from corenn.storage.store import NO_NAVIGATION, Store
from tests import oracle

from .conftest import COMPILED, Create, Sample

ROWS = 4000 if COMPILED else 200
DIM = 8


@pytest.fixture(autouse=True)
def early(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows are enough for a sample, and for walks and builds where kernels are slow."""
    monkeypatch.setattr(navigation, "SHARE", 8)
    monkeypatch.setattr(navigation, "LEAST", ROWS // 20)
    monkeypatch.setattr(query, "FEW_ROWS", 0)
    monkeypatch.setattr(bulk, "BULK_ROWS", ROWS // 2)


@pytest.fixture
def rows(rng: np.random.Generator) -> Any:
    return rng.normal(size=(ROWS, DIM)).astype(np.float32)


@pytest.fixture
def asked(rng: np.random.Generator) -> Any:
    return rng.normal(size=(40 if COMPILED else 5, DIM)).astype(np.float32)


def filled(db: CoreNN, rows: Any) -> CoreNN:
    db.insert(range(len(rows)), rows)
    return db


def sample(db: CoreNN) -> Any:
    return db._current().graph.navigation


def alike(one: Any, other: Any) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def recall(db: CoreNN, rows: Any, queries: Any, k: int = 10, **options: Any) -> float:
    """Recall@k, ties counted by distance; keys are row numbers."""
    table = oracle.distances(db.settings.metric, rows, queries)
    bounds = np.sort(table, axis=1)[:, k - 1] + oracle.tolerance(db.settings.metric, rows, queries)
    found = db.query(queries, k, **options)
    return float(np.mean([(table[at, [*hits.keys]] <= bounds[at]).mean() for at, hits in enumerate(found)]))


def explained(db: CoreNN, queries: Any) -> list[tuple[Any, ...]]:
    found = db.query(queries, search_list=12, explain=True)
    return [(hits.keys, hits.explain.distances, hits.explain.hops) for hits in found]


# --- what it finds ----------------------------------------------------------------------------------------------------


@pytest.mark.compiled
@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
@pytest.mark.parametrize("codes", ["none", "sq8"])
def test_queries_find_as_much_through_it(memory: Create, rows: Any, asked: Any, metric: str, codes: str) -> None:
    db = filled(memory(dim=DIM, metric=metric, compression_mode=codes, compression_threshold=0), rows)
    made = sample(db)
    assert len(made.ids) >= ROWS // 8
    with_it = recall(db, rows, asked, search_list=32)
    db._store.navigation = NO_NAVIGATION
    db._writer.republish()
    assert not len(sample(db).ids)
    assert with_it >= recall(db, rows, asked, search_list=32) - 0.01 and with_it >= 0.95


@pytest.mark.compiled
def test_the_way_is_shorter_through_it(memory: Create, rng: np.random.Generator, monkeypatch: Any) -> None:
    monkeypatch.setattr(navigation, "SHARE", 64)
    db = filled(memory(dim=2, metric="l2"), rng.normal(size=(40_000, 2)))
    asked = rng.normal(size=(50, 2))
    short = explained(db, asked)
    db._store.navigation = NO_NAVIGATION
    db._writer.republish()
    assert sum(each[1] for each in short) < sum(each[1] for each in explained(db, asked))


@pytest.mark.compiled
def test_rows_of_the_file_are_found_through_it(memory: Create, sift: Sample) -> None:
    rows, asked = sift
    db = filled(memory(dim=128, metric="l2"), rows)
    assert len(sample(db).ids)
    assert recall(db, rows, asked, search_list=48) >= 0.98


@pytest.mark.compiled
def test_clusters_that_the_sample_does_not_know_are_found(memory: Create, rng: np.random.Generator) -> None:
    """Rows that have come since the sample was drawn, far from all of it."""
    old = rng.normal(size=(3000, DIM))
    new = np.concatenate([rng.normal(size=DIM) * 50 + rng.normal(size=(100, DIM)) for _ in range(10)])
    db = filled(memory(dim=DIM, metric="l2"), old)
    drawn = sample(db)
    db.insert(range(3000, 4000), new)
    assert alike(sample(db), drawn)
    assert recall(db, np.concatenate((old, new)), new[::20] + 0.1, search_list=48) >= 0.95


def test_a_list_of_one(memory: Create, rows: Any, asked: Any) -> None:
    db = filled(memory(dim=DIM, metric="l2", max_edges=4), rows)
    assert len(sample(db).ids)
    found = db.query(asked, 1, search_list=1)
    assert [len(hits) for hits in found] == [1] * len(asked)


def test_a_hidden_row_is_not_entered_at(memory: Create, rows: Any) -> None:
    db = filled(memory(dim=DIM, metric="l2"), rows)
    for row in sample(db).ids[:: 50 if COMPILED else 10].tolist():
        view, found = db._current(), _results(1)
        db._searcher.walk_without(view, rows[row : row + 1], 12, row, found)
        assert row not in found.ids[0]


def _results(count: int) -> query.Results:
    return query.Results(
        np.zeros((count, 5), np.uint32), np.zeros((count, 5), np.float32), np.zeros((count, 4), np.int64)
    )  # fmt: skip


# --- when it is made --------------------------------------------------------------------------------------------------


def test_few_rows_have_none(memory: Create, rows: Any) -> None:
    db = filled(memory(dim=DIM, metric="l2"), rows[: ROWS // 4])
    assert not len(sample(db).ids)


@pytest.mark.compiled
def test_inserts_make_it_and_draw_it_anew_when_the_rows_are_half_as_many_again(memory: Create, rows: Any) -> None:
    db = memory(dim=DIM, metric="l2")
    seen: list[int] = []
    for start in range(0, ROWS, ROWS // 40):
        db.insert(range(start, start + ROWS // 40), rows[start : start + ROWS // 40])
        if sample(db).rows and sample(db).rows not in seen:
            seen.append(sample(db).rows)
    assert len(seen) >= 2
    assert all(later >= 1.5 * sooner for sooner, later in itertools.pairwise(seen))
    assert len(sample(db).ids) <= ROWS // 8 + 16


def test_it_hangs_on_the_rows_alone(memory: Create, rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for workers in (1, 4):
        monkeypatch.setattr(threads, "cpu_count", lambda workers=workers: workers)
        made.append(sample(filled(memory(dim=DIM, metric="l2"), rows)))
    assert len(made[0].ids) and alike(*made)


def test_the_entries_come_first_and_no_row_twice(memory: Create, rows: Any) -> None:
    db = filled(memory(dim=DIM, metric="l2"), rows)
    made = sample(db)
    entries = entries_of(db._store)
    assert made.ids[: made.starts].tolist() == entries.tolist()
    assert db._current().graph.entries.tolist() == entries[:1].tolist()
    assert len(set(made.ids.tolist())) == len(made.ids) and made.rows == made.ids.max() + 1


def test_an_interrupted_draw_leaves_what_was_there(memory: Create, rows: Any) -> None:
    db = filled(memory(dim=DIM, metric="l2"), rows)
    before = sample(db)
    link = partial(link_apart, ScratchPool(), db._helpers, lambda: True)
    navigation.make(db._store, db._current(), link)
    db._writer.republish()
    assert alike(sample(db), before)


def test_one_that_cannot_be_kept_fails_no_write(
    tmp_path: Path, rows: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(self: RocksMetadata, name: str, raw: bytes) -> None:
        raise DiskFullError("no space left on the device")

    monkeypatch.setattr(RocksMetadata, "store_soft", full)
    with filled(CoreNN.create(tmp_path / "db", dim=DIM, metric="l2"), rows) as db:
        assert len(sample(db).ids)
        assert "could not be made or kept" in caplog.text
        db.insert([ROWS], rows[:1])
        assert db.verify().ok
    with CoreNN.open(tmp_path / "db") as db:
        assert not len(sample(db).ids)
        assert len(db) == ROWS + 1


def test_want_of_memory_for_one_fails_no_write(
    memory: Create, rows: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    db = memory(dim=DIM, metric="l2")

    def none(settings: Any) -> Store:
        raise MemoryError

    monkeypatch.setattr(Store, "in_memory", none)
    filled(db, rows)
    assert not len(sample(db).ids)
    assert "could not be made or kept" in caplog.text
    db.insert([ROWS], rows[:1])
    assert db.verify().ok


@pytest.mark.compiled
def test_a_sample_of_dead_rows_still_leads_there(memory: Create, rows: Any, asked: Any) -> None:
    db = filled(memory(dim=DIM, metric="l2"), rows)
    dead = sample(db).ids
    db.delete(dead.tolist())
    kept = np.ones(ROWS, bool)
    kept[dead] = False
    table = oracle.distances("l2", rows, asked)
    table[:, ~kept] = np.inf
    found = db.query(asked, 10, search_list=48)
    best = np.sort(table, axis=1)[:, 9] + 1e-4
    assert np.mean([(table[at, [*hits.keys]] <= best[at]).mean() for at, hits in enumerate(found)]) >= 0.97


def test_repair_keeps_queries_right(memory: Create, rows: Any, asked: Any) -> None:
    db = filled(memory(dim=DIM, metric="l2"), rows)
    db._store.edges.array[: ROWS // 2] = 0
    db.repair()
    assert db.verify().ok
    assert recall(db, rows, asked, search_list=32) >= 0.95


# --- how it is kept ---------------------------------------------------------------------------------------------------


def test_it_is_kept_with_the_database(tmp_path: Path, rows: Any, asked: Any) -> None:
    with filled(CoreNN.create(tmp_path / "db", dim=DIM, metric="l2"), rows) as db:
        made, before = sample(db), explained(db, asked)
    for mode in ("r", "rw"):
        with CoreNN.open(tmp_path / "db", mode=mode) as db:
            assert alike(sample(db), made)
            assert explained(db, asked) == before
            assert db.stats().memory["navigation"] == made.ids.nbytes + made.edges.nbytes


def test_a_reader_takes_over_the_next_one(tmp_path: Path, rows: Any) -> None:
    half = ROWS // 2
    with (
        filled(CoreNN.create(tmp_path / "db", dim=DIM, metric="l2"), rows[:half]) as db,
        CoreNN.open(tmp_path / "db", mode="r") as reader,
    ):
        assert alike(sample(reader), sample(db))
        old = sample(reader)
        db.insert(range(half, ROWS), rows[half:])
        assert alike(sample(reader), old)
        reader.refresh()
        assert not alike(sample(db), old) and alike(sample(reader), sample(db))


def test_a_reader_of_an_older_commit_goes_without(tmp_path: Path, rows: Any) -> None:
    """Its arrays may end before the rows that the newer sample names."""
    with filled(CoreNN.create(tmp_path / "db", dim=DIM, metric="l2"), rows) as db:
        store = db._store
        store.navigation = store.navigation._replace(rows=ROWS + 1)
        db._writer.republish()
        assert not len(sample(db).ids)


def packed(**parts: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **{"births": np.ones(20, np.uint64), "drawn": [1, 20], **parts})
    return file.getvalue()


IDS, EDGES = np.arange(20, dtype=np.uint32), np.zeros((20, 10), np.uint32)
DAMAGED = {
    "empty": b"",
    "not a file of arrays": b"PK\3\4 but nothing more",
    "cut off": packed(ids=IDS, edges=EDGES, starts=1)[:-200],
    "an array is missing": packed(ids=IDS, starts=1),
    "a place beyond the sample": packed(ids=IDS, edges=EDGES + np.uint32(20), starts=1),
    "fewer edges than ids": packed(ids=IDS, edges=EDGES[:-1], starts=1),
    "wider than the edges of rows": packed(ids=IDS, edges=np.zeros((20, 2000), np.uint32), starts=1),
    "begins beyond the sample": packed(ids=IDS, edges=EDGES, starts=21),
    "begins nowhere": packed(ids=IDS, edges=EDGES, starts=0),
    "fewer births than ids": packed(ids=IDS, edges=EDGES, starts=1, births=np.ones(19, np.uint64)),
    "drawn at no commit": packed(ids=IDS, edges=EDGES, starts=1, drawn=[-1, 20]),
    "ids in two dimensions": packed(ids=EDGES, edges=EDGES, starts=1),
    "objects": packed(ids=np.array([None], object), edges=EDGES, starts=1),
    "an id beyond the rows": packed(ids=IDS + np.uint32(2**31 - 30), edges=EDGES, starts=1),
}


@pytest.mark.few(4)
@pytest.mark.compiled
@pytest.mark.parametrize("raw", DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize("mode", ["r", "rw"])
def test_a_damaged_one_is_left_out(
    tmp_path: Path, rows: Any, asked: Any, raw: bytes, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    few = rows[: ROWS // 2]
    with filled(CoreNN.create(tmp_path / "db", dim=DIM, metric="l2"), few) as db:
        assert len(sample(db).ids)
        db._store.metadata.store_soft(NAVIGATION, raw)
    with caplog.at_level(logging.WARNING), CoreNN.open(tmp_path / "db", mode=mode) as db:
        assert not len(sample(db).ids)
        assert recall(db, few, asked, search_list=24) >= 0.9
        if mode == "rw":
            assert db.verify().ok
    told = [record for record in caplog.records if record.name == "corenn.navigation"]
    assert len(told) == (raw != DAMAGED["an id beyond the rows"])
