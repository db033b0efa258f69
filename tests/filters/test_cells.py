"""Filtered scans that go from cell to cell.

Rules out a recall that falls where matches are few or lie in tight groups, rows that are missed or given twice because
they came, went or were replaced after the cells were made, and cells that outlive the rows that they are of. What is
right is what `plan="exact"` finds, which test_query.py holds against NumPy.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corenn import CoreNN, F
from corenn.graph import planner
from corenn.graph import query as query_module
from tests.conftest import Create, Sample

K = 10
ROWS = 6_000
pytestmark = pytest.mark.compiled  # to find centres takes minutes in plain Python
CODED = {"compression_mode": "sq8", "compression_threshold": 0}


def filled(db: CoreNN, rows: Any, first: int = 0) -> CoreNN:
    """Rows whose keys are numbers, and marks from 0 to 999 that say nothing; few rows are enough for cells."""
    marks = np.random.default_rng(first).integers(0, 1000, len(rows))
    db.insert(range(first, first + len(rows)), rows, [{"mark": int(mark)} for mark in marks])
    db._searcher.partition.fewest = 0
    return db


def truth(db: CoreNN, queries: Any, tree: Any, k: int = K) -> list[list[Any]]:
    return [db.query(query, k=k, filter=tree, plan="exact").keys for query in queries]


def share_of(found: Any, wanted: list[list[Any]]) -> float:
    """Recall; no hit may be there twice."""
    for hits, keys in zip(found, wanted, strict=True):
        assert len(hits) == len(keys) == len(set(hits.keys))
    shares = [len(set(hits.keys) & set(keys)) / len(keys) for hits, keys in zip(found, wanted, strict=True)]
    return float(np.mean(shares))


@pytest.fixture
def photos(memory: Create, sift: Sample) -> CoreNN:
    return filled(memory(dim=128, metric="l2", dtype="u8", **CODED), sift[0][:ROWS])


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
@pytest.mark.parametrize("dim", [3, 40])
def test_the_nearest_are_found_under_every_metric(memory: Create, metric: str, dim: int) -> None:
    """Norms differ tenfold, which under `ip` lifts most rows far off."""
    rng = np.random.default_rng(dim)
    rows = rng.normal(size=(ROWS // 2, dim)).astype(np.float32) * np.exp(rng.uniform(0, 2.3, (ROWS // 2, 1)))
    db = filled(memory(dim=dim, metric=metric, **CODED), rows)
    queries = rng.normal(size=(20, dim)).astype(np.float32)
    for tree in (F("mark") < 700, F("mark") < 100, F("mark") < 20):
        found = db.query(queries, k=K, filter=tree, plan="cells", explain=True)
        assert {hits.explain.plan for hits in found} == {"cells"}
        assert share_of(found, truth(db, queries, tree)) >= 0.95


def test_matches_around_the_query_are_walked_to(photos: CoreNN, sift: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless cells were asked for: those of some queries of a batch, and of one alone."""
    rows, query = sift[0][:ROWS], sift[0][7]
    near = np.argsort(((rows - query) ** 2).sum(axis=1))
    photos.set_payload(near[: ROWS // 10].tolist(), [{"mark": 2000}] * (ROWS // 10))
    tree, queries = F("mark") == 2000, np.stack([query, rows[near[-1]]])
    photos.query(query, filter=tree, plan="cells")
    monkeypatch.setattr(planner, "COSTS", planner.Costs(scanned=1e6, walk=1e9, leap=1e9, cell=0.0, looked=0.0))
    division = photos._searcher.partition._division
    assert division is not None
    photos._searcher.partition._division = division._replace(shape=division.shape._replace(reach=1.0))
    for asked, plans in ((queries[:1], {"graph"}), (queries[1:], {"cells"}), (queries, {"cells"})):
        found = photos.query(asked, k=K, filter=tree, explain=True)
        assert {hits.explain.plan for hits in found} == plans
        assert share_of(found, truth(photos, asked, tree)) >= 0.95
    assert photos.query(query, filter=tree, plan="cells", explain=True).explain.plan == "cells"


def test_more_matches_than_one_call_may_score(photos: CoreNN, sift: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are scanned in parts."""
    queries, tree = sift[1][:5], F("mark") >= 0
    photos.query(queries[0], filter=tree, plan="cells")
    monkeypatch.setattr(query_module, "SLICE_SECONDS", 1e-9)
    found = photos.query(queries, k=K, filter=tree & (F("mark") < 999), plan="cells")
    assert share_of(found, truth(photos, queries, tree & (F("mark") < 999))) == 1


@pytest.mark.few(1)
@pytest.mark.parametrize("k", [1, 10, 100])
def test_every_number_of_hits(photos: CoreNN, sift: Sample, k: int) -> None:
    queries, tree = sift[1][:30], F("mark") < 400
    found = photos.query(queries, k=k, filter=tree, plan="cells")
    assert share_of(found, truth(photos, queries, tree, k)) >= 0.95
    for one, query in zip(found[:5], queries, strict=False):
        assert one == photos.query(query, k=k, filter=tree, plan="cells")
        assert (np.diff(one.distances) >= 0).all()


def test_groups_as_tight_as_can_be(memory: Create) -> None:
    """Thirty rows around each of many places, which cells divide: those of the query's own group, and no others."""
    rng = np.random.default_rng(3)
    places = rng.normal(size=(ROWS // 30, 16))
    rows = np.repeat(places, 30, axis=0) + rng.normal(scale=1e-3, size=(ROWS // 30 * 30, 16))
    db = filled(memory(dim=16, metric="l2", **CODED), rows.astype(np.float32))
    found = db.query(rows[::307].astype(np.float32), k=K, filter=F("mark") < 800, plan="cells")
    assert share_of(found, truth(db, rows[::307], F("mark") < 800)) >= 0.95


def test_equal_rows_and_a_query_without_direction(memory: Create) -> None:
    db = filled(memory(dim=4, metric="cosine", **CODED), np.ones((ROWS // 4, 4), np.float32))
    for query in (np.ones(4), np.zeros(4)):
        hits = db.query(query, k=K, filter=F("mark") < 500, plan="cells")
        assert hits.keys == db.query(query, k=K, filter=F("mark") < 500, plan="exact").keys


def test_what_came_and_went_since(memory: Create, sift: Sample) -> None:
    """Rows that came, were replaced, deleted, and whose ids others have: each is found where it is, once."""
    rows, queries = sift[0][:ROWS], sift[1][:20]
    db = filled(memory(dim=128, metric="l2", **CODED), rows[: ROWS // 2])
    db.query(queries[0], filter=F("mark") < 500, plan="cells")
    made = db._searcher.partition._division
    few = ROWS // 100
    filled(db, rows[ROWS // 2 : ROWS // 2 + few], ROWS // 2)
    db.upsert(range(few), rows[-few:], [{"mark": 1}] * few)
    db.delete(range(few, 2 * few))
    tree = F("mark") < 500
    found = db.query(queries, k=K, filter=tree, plan="cells")
    assert share_of(found, truth(db, queries, tree)) >= 0.95
    near = db.query(rows[-few:], k=1, filter=F("mark") == 1, plan="cells")
    assert [hits.distances[0] for hits in near] == [0] * few
    filled(db, rows[ROWS // 2 + few : -few], ROWS)
    found = db.query(queries, k=K, filter=tree, plan="cells")
    assert db._searcher.partition._division is not made
    assert share_of(found, truth(db, queries, tree)) >= 0.95
    assert db.stats().memory["cells"] > 4 * ROWS // 2


def test_ids_that_others_have_now(tmp_path: Path, sift: Sample) -> None:
    """After a compaction, and where ids of deleted rows are given out again."""
    rows, queries, tree = sift[0][:ROWS], sift[1][:20], F("mark") < 500
    with CoreNN.create(tmp_path / "db", dim=128, metric="l2", **CODED) as db:
        filled(db, rows)
        db.query(queries[0], filter=tree, plan="cells")
        db.delete(range(0, ROWS, 2))
        db.checkpoint()
        filled(db, rows[: ROWS // 2], ROWS)
        found = db.query(queries, k=K, filter=tree, plan="cells")
        assert share_of(found, truth(db, queries, tree)) >= 0.95
        db.compact()
        found = db.query(queries, k=K, filter=tree, plan="cells")
        assert share_of(found, truth(db, queries, tree)) >= 0.95


def test_readers_have_cells_of_their_own(tmp_path: Path, sift: Sample) -> None:
    rows, queries, tree = sift[0][:ROWS], sift[1][:20], F("mark") < 500
    with CoreNN.create(tmp_path / "db", dim=128, metric="l2", **CODED) as db:
        filled(db, rows[: ROWS // 2])
        db.checkpoint()
        with CoreNN.open(tmp_path / "db", mode="r") as reader:
            reader._searcher.partition.fewest = 0
            for count in (ROWS // 2, ROWS):
                if count > len(db):
                    filled(db, rows[ROWS // 2 :], ROWS // 2)
                    db.checkpoint()
                    reader.refresh()
                found = reader.query(queries, k=K, filter=tree, plan="cells", explain=True)
                assert {hits.explain.plan for hits in found} == {"cells"}
                assert share_of(found, truth(db, queries, tree)) >= 0.95


def test_functions_are_put_to_what_is_met(memory: Create, sift: Sample) -> None:
    db = filled(memory(dim=128, metric="l2", **CODED), sift[0][:ROWS])
    queries = sift[1][:20]
    found = db.query(queries, k=K, filter=lambda mark: mark < 500, plan="cells", explain=True)
    assert {hits.explain.plan for hits in found} == {"cells"}
    assert share_of(found, truth(db, queries, F("mark") < 500)) >= 0.95


def test_they_are_made_beside_queries(photos: CoreNN, sift: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then queries go other ways; afterwards the model takes cells where they are cheap."""
    dear = planner.Costs(scanned=1.0, walk=1e6, leap=1e6, cell=0.0, looked=0.0)
    monkeypatch.setattr(planner, "COSTS", dear)
    partition = photos._searcher.partition

    def asked() -> Any:
        return photos.query(sift[1][0], k=K, search_list=K, filter=F("mark") < 300, explain=True)

    assert asked().explain.plan in ("scan", "cells")
    until = time.monotonic() + 200  # the kernels may have to be compiled
    while partition._making.locked():
        assert time.monotonic() < until
        time.sleep(0.01)
    division = partition._division
    assert division is not None
    partition._division = division._replace(shape=division.shape._replace(reach=5.0))
    assert asked().explain.plan == "cells"
    assert asked().explain.estimated > 0
    monkeypatch.setattr(planner, "COSTS", dear._replace(cell=1e6))
    assert asked().explain.plan == "scan"


def test_none_are_made_where_there_is_nothing_to_gain(memory: Create, sift: Sample) -> None:
    """For few rows, and without codes to scan."""
    db = filled(memory(dim=128, metric="l2", **CODED), sift[0][:400])
    db._searcher.partition.fewest = 401
    assert db.query(sift[1][0], filter=F("mark") < 900, plan="cells", explain=True).explain.plan != "cells"
    plain = filled(memory(dim=128, metric="l2", compression_mode="none"), sift[0][:400])
    assert plain.query(sift[1][0], filter=F("mark") < 900, plan="cells", explain=True).explain.plan != "cells"
    assert db.stats().memory["cells"] == plain.stats().memory["cells"] == 0


def test_a_close_ends_the_making(memory: Create, sift: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    db = filled(memory(dim=128, metric="l2", **CODED), sift[0][:400])
    partition, begun = db._searcher.partition, list[Any]()
    centres = partition._centres
    monkeypatch.setattr(partition, "_centres", lambda view: (db.close(), begun.append(view), centres(view))[2])
    view = db._current()
    assert partition.cells(view) is None
    until = time.monotonic() + 200
    while partition._making.locked():
        assert time.monotonic() < until
        time.sleep(0.01)
    assert begun
    assert partition.memory_bytes() == 0
    assert partition.cells(view) is None
