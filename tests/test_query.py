"""Queries against exact answers.

Rules out wrong distances for any metric and dtype, recall lost to unequal norms, duplicates, the order of insertion or
deletes, results that depend on the batch, the threads or later writes, and hits that are missing although rows match.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from corenn import CoreNN
from corenn.errors import KeyNotFoundError
from corenn.graph import view
from tests.conftest import COMPILED, Create, Sample
from tests.kinds import STORED, diagonal
from tests.oracle import DTYPES, METRICS, check_hits, distances, nearest, recall, rounding

Rows = NDArray[np.float32]
BATCH = 1000
FEW = 320 if COMPILED else 64  # rows of which all answers are exact


def fill(db: CoreNN, rows: Rows) -> CoreNN:
    """Insert the rows under their numbers, in batches."""
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        db.insert(range(start, start + len(part)), part)
    return db


def default_recall(db: CoreNN, rows: Rows, queries: Rows, k: int = 10) -> float:
    """recall@k at default settings of a database whose keys are the numbers of the rows."""
    return recall(db.settings.metric, rows, queries, [hits.keys for hits in db.query(queries, k=k)], k)


def clusters(rng: np.random.Generator, count: int, size: int, dim: int, spread: float = 0.3) -> Rows:
    """Gaussian clusters, one after the other."""
    centres = rng.normal(size=(count, 1, dim))
    return (centres + spread * rng.normal(size=(count, size, dim))).reshape(-1, dim).astype(np.float32)


# --- exact=True -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("create", "metric", "dtype"), diagonal(STORED, METRICS, DTYPES, rounds=2), indirect=["create"]
)
def test_exact_is_exact(create: Create, rng: np.random.Generator, metric: str, dtype: str) -> None:
    db = create(dim=19, metric=metric, dtype=dtype)
    given = rng.integers(0, 256, (FEW, 19)) if dtype == "u8" else rng.normal(size=(FEW, 19))
    queries = (rng.integers(0, 256, (12, 19)) if dtype == "u8" else rng.normal(size=(12, 19))).astype(np.float32)
    given[30:40] = given[5]  # ties
    given[20], queries[3] = 0, 0
    db.insert(range(FEW), given)
    db.delete(range(0, FEW, 7))
    keys = list(db.keys())
    rows = np.array([record.vector for record in db.get(keys)])
    assert (np.abs(rows - given[keys]) <= rounding(dtype, given[keys])).all()
    for k in (1, 10, 500):
        for query, hits in zip(queries, db.query(queries, k=k, exact=True), strict=True):
            check_hits(metric, keys, rows, query, hits, k)


def test_whole_numbers_have_exact_distances_and_order(create: Create, rng: np.random.Generator) -> None:
    rows = rng.integers(0, 4 if COMPILED else 2, (FEW, 3)).astype(np.float32)  # 64 or 8 distinct rows: ties everywhere
    for dtype in (*DTYPES[:3], "u8"):
        db = create(dim=3, metric="l2", dtype=dtype)
        db.insert(range(FEW), rows)
        table = distances("l2", rows, rows[:20])
        for line, best, hits in zip(table, nearest(table, 50), db.query(rows[:20], k=50, exact=True), strict=True):
            assert hits.keys == best.tolist()
            assert hits.distances.tolist() == line[best].tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_cosine_of_a_zero_vector_is_one(create: Create, dtype: str) -> None:
    db = create(dim=3, metric="cosine", dtype=dtype)
    db.insert(["zero", "a", "b"], [[0, 0, 0], [1, 2, 3], [3, 2, 1]])
    for exact in (True, False):
        found = db.query([1, 2, 3], k=3, exact=exact)
        assert dict(zip(found.keys, found.distances, strict=True))["zero"] == 1
        nothing = db.query([0, 0, 0], k=3, exact=exact)
        assert nothing.distances.tolist() == [1, 1, 1]
        assert nothing.keys == ["zero", "a", "b"]
    assert db.get(["zero"])[0].vector.tolist() == [0, 0, 0]


def test_cosine_of_a_zero_vector_is_one_for_every_query(memory: Create, rng: np.random.Generator) -> None:
    db = memory(dim=8, metric="cosine")
    db.insert(["zero", "a"], [[0] * 8, range(8)])
    for hits in db.query(rng.normal(size=(500, 8)), k=2):
        assert hits.distances[hits.keys.index("zero")] == 1


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dim", [1, 2, 3, 15, 16, 17, 100, pytest.param(1000, marks=pytest.mark.compiled)])
def test_any_dimension(memory: Create, rng: np.random.Generator, metric: str, dim: int) -> None:
    rows, query = rng.normal(size=(60, dim)).astype(np.float32), rng.normal(size=dim).astype(np.float32)
    db = memory(dim=dim, metric=metric)
    db.insert(range(60), rows)
    check_hits(metric, range(60), rows, query, db.query(query, k=20, exact=True), 20)
    check_hits(metric, range(60), rows, query, db.query(query, k=20), 20)  # few rows: always complete


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("scale", [1e-15, 1e-4, 1e4, 1e15])
def test_large_and_small_values(memory: Create, rng: np.random.Generator, metric: str, scale: float) -> None:
    rows, query = rng.normal(size=(50, 8)) * scale, rng.normal(size=8) * scale
    db = memory(dim=8, metric=metric)
    db.insert(range(50), rows)
    hits = db.query(query, k=50, exact=True)
    line = distances(metric, rows.astype(np.float32), query.astype(np.float32))[0]
    assert sorted(hits.keys) == list(range(50))
    assert np.isfinite(hits.distances).all()
    assert np.allclose(hits.distances, line[hits.keys], rtol=1e-4, atol=1e-5 * (scale**2 if metric == "l2" else 1))


# --- recall at default settings ---------------------------------------------------------------------------------------


def tenfold(rows: Rows, seed: int = 5) -> Rows:
    """The rows with norms that vary tenfold."""
    return rows * 10 ** np.random.default_rng(seed).uniform(0, 1, (len(rows), 1)).astype(np.float32)


@pytest.fixture(scope="module")
def photos(sift: Sample) -> Iterator[CoreNN]:
    """All image descriptors under l2, in float32. Not to be written to."""
    with CoreNN.in_memory(dim=128, metric="l2") as db:
        yield fill(db, sift[0])


@pytest.mark.compiled
def test_recall_on_image_descriptors(photos: CoreNN, sift: Sample) -> None:
    assert photos.query(sift[1][0], explain=True).explain.plan == "graph"
    assert default_recall(photos, *sift) >= 0.97
    assert photos.verify().ok


@pytest.mark.few(2)
@pytest.mark.compiled
@pytest.mark.parametrize(("metric", "dtype"), [("l2", "u8"), ("ip", "u8"), ("cosine", "f32"), ("ip", "f32")])
def test_recall_on_half_of_the_image_descriptors(memory: Create, sift: Sample, metric: str, dtype: str) -> None:
    rows, queries = sift[0][::2], sift[1]
    db = fill(memory(dim=128, metric=metric, dtype=dtype), rows)
    assert db.query(queries[0], explain=True).explain.plan == "graph"
    assert default_recall(db, rows, queries) >= 0.95


@pytest.mark.few(2)
@pytest.mark.compiled
@pytest.mark.parametrize("dtype", DTYPES[:4])
def test_recall_on_embeddings(memory: Create, embeddings: Sample, dtype: str) -> None:
    rows, queries = embeddings
    db = fill(memory(dim=384, metric="cosine", dtype=dtype), rows)
    assert db.query(queries[0], explain=True).explain.plan == "graph"
    assert default_recall(db, rows, queries) >= (0.9 if dtype in ("i8", "bf16") else 0.95)  # of the unrounded rows
    kept = np.array([record.vector for record in db.get(range(len(rows)))])
    assert default_recall(db, kept, queries) >= 0.95


@pytest.mark.compiled
@pytest.mark.parametrize("metric", METRICS)
def test_recall_on_gaussian_rows_with_unequal_norms(memory: Create, rng: np.random.Generator, metric: str) -> None:
    rows, queries = tenfold(rng.normal(size=(5000, 64)).astype(np.float32)), rng.normal(size=(100, 64))
    db = fill(memory(dim=64, metric=metric), rows)
    assert db.query(queries[0], explain=True).explain.plan == "graph"
    assert default_recall(db, rows, queries) >= 0.95


@pytest.mark.compiled
@pytest.mark.parametrize("growing", [True, False])
@pytest.mark.parametrize("name", ["sift", "embeddings"])
def test_recall_of_ip_on_real_rows_with_unequal_norms(
    memory: Create, request: pytest.FixtureRequest, name: str, growing: bool
) -> None:
    given, queries = request.getfixturevalue(name)
    rows = tenfold(given[-3000:])
    if growing:  # each insert raises the largest norm seen so far
        rows = rows[np.argsort(np.linalg.norm(rows, axis=1))]
    db = fill(memory(dim=rows.shape[1], metric="ip"), rows)
    assert default_recall(db, rows, queries) >= 0.95


@pytest.mark.compiled
def test_recall_of_single_inserts(memory: Create, rng: np.random.Generator) -> None:
    rows, queries = rng.normal(size=(2500, 12)).astype(np.float32), rng.normal(size=(100, 12))
    db = memory(dim=12, metric="l2")
    for number, row in enumerate(rows):
        db.insert([number], row[None])
    assert default_recall(db, rows, queries) >= 0.95


@pytest.mark.compiled
@pytest.mark.parametrize("order", ["cluster by cluster", "sorted", "by distance from the centre"])
def test_recall_of_ordered_inserts(memory: Create, rng: np.random.Generator, order: str) -> None:
    rows = clusters(rng, 30, 200, 16)
    if order == "sorted":
        rows = rows[np.argsort(rows[:, 0])]
    elif order == "by distance from the centre":
        rows = rows[np.argsort(np.linalg.norm(rows, axis=1))[::-1]]
    queries = rows[rng.choice(len(rows), 150)] + 0.2 * rng.normal(size=(150, 16))
    db = memory(dim=16, metric="l2")
    for start in range(0, len(rows), 200):
        db.insert(range(start, start + 200), rows[start : start + 200])
    assert default_recall(db, rows, queries) >= 0.95
    assert db.verify().unreachable == 0


@pytest.mark.compiled
def test_recall_of_far_apart_clusters(memory: Create, rng: np.random.Generator) -> None:
    rows = clusters(rng, 20, 200, 8, spread=0.001)
    queries = rows[rng.choice(len(rows), 150)] + 0.001 * rng.normal(size=(150, 8))
    db = fill(memory(dim=8, metric="l2"), rows)
    assert default_recall(db, rows, queries) >= 0.95


@pytest.mark.compiled
def test_a_larger_search_list_finds_more(photos: CoreNN, sift: Sample) -> None:
    rows, queries = sift
    found = {size: photos.query(queries, k=10, search_list=size, explain=True) for size in (10, 300)}
    recalls = {size: recall("l2", rows, queries, [hits.keys for hits in batch]) for size, batch in found.items()}
    assert recalls[10] < recalls[300]
    assert recalls[300] >= 0.99
    assert found[10][0].explain.search_list < found[300][0].explain.search_list
    assert found[10][0].explain.distances < found[300][0].explain.distances < len(rows)


@pytest.mark.compiled
def test_beams_are_wide_once_rows_outgrow_a_cache(
    photos: CoreNN, sift: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """6,000 rows fit; where none do, four are expanded per step, which finds no less for more distances."""
    found, work = [], []
    for fits in (1 << 24, 0):
        monkeypatch.setattr(view, "CACHE_BYTES", fits)
        hits = photos.query(sift[1], 10, search_list=12, explain=True)
        found.append(recall("l2", *sift, [each.keys for each in hits], 10))
        work.append(sum(each.explain.distances for each in hits))
    assert work[0] < work[1]
    assert found[0] <= found[1]


@pytest.mark.compiled
def test_easy_queries_end_early_and_hard_ones_use_the_list(photos: CoreNN, sift: Sample) -> None:
    hits = photos.query(sift[1], k=10, search_list=100, explain=True)
    hops = [one.explain.hops for one in hits]
    assert min(hops) < 70 < 95 < max(hops)  # the list alone would have each expand 100 or more
    assert recall("l2", *sift, [one.keys for one in hits], 10) >= 0.98


@pytest.mark.compiled
@pytest.mark.parametrize("deleted", [False, True])
def test_a_forgetful_table_of_seen_ids_changes_no_answer(
    memory: Create, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, deleted: bool
) -> None:
    rows = rng.normal(size=(4000, 12)).astype(np.float32)
    db = fill(memory(dim=12, metric="l2"), rows)
    if deleted:
        db.delete(range(0, 4000, 3))
    before = db.query(rows[:200], k=10, explain=True)
    monkeypatch.setattr("corenn.graph.scratch.LEAST_SEEN", 64)
    monkeypatch.setattr("corenn.graph.scratch.MOST_SEEN", 64)
    db._searcher._scratches._free.clear()
    after = db.query(rows[:200], k=10, explain=True)
    assert before == after
    assert sum(one.explain.distances for one in after) > sum(one.explain.distances for one in before)
    assert all(len(set(one.keys)) == 10 for one in after)


@pytest.mark.compiled
def test_graph_distances_are_those_of_the_keys(memory: Create, embeddings: Sample) -> None:
    rows, queries = embeddings[0][:1200], embeddings[1]
    for metric in METRICS:
        db = fill(memory(dim=384, metric=metric), rows)
        table = distances(metric, rows, queries)
        for line, hits in zip(table, db.query(queries, k=20), strict=True):
            assert np.allclose(hits.distances, line[hits.keys], atol=1e-5)
            assert (np.diff(hits.distances) >= 0).all()
            assert len(set(hits.keys)) == 20


# --- duplicates -------------------------------------------------------------------------------------------------------


@pytest.mark.compiled
@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("where", ["first", "last", "spread"])
def test_identical_rows_are_all_found(memory: Create, rng: np.random.Generator, metric: str, where: str) -> None:
    others = rng.normal(size=(2000, 10)).astype(np.float32)
    same = np.repeat(rng.normal(size=(1, 10)).astype(np.float32), 1000, axis=0)
    rows = np.concatenate([same, others] if where == "first" else [others, same])
    if where == "spread":
        rows = rows[rng.permutation(3000)]
    db = fill(memory(dim=10, metric=metric), rows)
    hits = db.query(same[0], k=50)
    assert len(set(hits.keys)) == 50
    assert np.allclose(hits.distances, 0, atol=1e-6)
    queries = others[:100] + 0.1 * rng.normal(size=(100, 10))
    assert default_recall(db, rows, queries) >= 0.95
    assert db.verify().ok


@pytest.mark.compiled
def test_nothing_but_identical_rows(memory: Create) -> None:
    db = fill(memory(dim=6, metric="l2"), np.ones((3000, 6), np.float32))
    hits = db.query(np.ones(6), k=200)
    assert len(set(hits.keys)) == 200
    assert not hits.distances.any()
    assert db.verify().ok


# --- deletes ----------------------------------------------------------------------------------------------------------


@pytest.mark.compiled
def test_recall_after_ninety_percent_are_deleted(memory: Create, rng: np.random.Generator) -> None:
    rows, queries = clusters(rng, 60, 200, 16), rng.normal(size=(100, 16)).astype(np.float32)
    db = fill(memory(dim=16, metric="l2"), rows)
    order = rng.permutation(len(rows))
    gone, kept = order[:10_800], np.sort(order[10_800:])
    for part in np.array_split(gone, 9):
        assert db.delete(part) == len(part)
    found = [hits.keys for hits in db.query(queries, k=10)]
    assert all(len(keys) == 10 for keys in found)
    assert not set(gone.tolist()) & {key for keys in found for key in keys}
    number = {key: row for row, key in enumerate(kept.tolist())}
    assert recall("l2", rows[kept], queries, [[number[key] for key in keys] for keys in found]) >= 0.95
    assert len(db) == db.stats().rows == 1200
    stats = db.stats()
    assert stats.repair_backlog <= stats.tombstones <= 10_800
    assert db.verify().ok


@pytest.mark.compiled
def test_a_deleted_region_answers_from_its_surroundings(memory: Create, rng: np.random.Generator) -> None:
    rows = clusters(rng, 20, 300, 12)
    db = fill(memory(dim=12, metric="l2"), rows)
    db.delete(range(1500, 1800))
    queries = rows[1500:1800:3]
    kept = np.r_[0:1500, 1800 : len(rows)]
    found = [hits.keys for hits in db.query(queries, k=10)]
    assert all(len(keys) == 10 and not {*range(1500, 1800)} & {*keys} for keys in found)
    number = {key: row for row, key in enumerate(kept.tolist())}
    assert recall("l2", rows[kept], queries, [[number[key] for key in keys] for keys in found]) >= 0.95


@pytest.mark.compiled
@pytest.mark.parametrize(("count", "dim", "spread"), [(50, 64, 0.1), (50, 32, 0.1), (20, 128, 0.05)])
def test_recall_of_clusters_that_come_one_after_the_other(
    memory: Create, rng: np.random.Generator, count: int, dim: int, spread: float
) -> None:
    rows = clusters(rng, count, 6000 // count, dim, spread)
    db = fill(memory(dim=dim, metric="l2"), rows)
    queries = rows[:: 6000 // 150] + spread / 3 * rng.normal(size=(150, dim)).astype(np.float32)
    assert default_recall(db, rows, queries) >= 0.98


@pytest.mark.few(1)
@pytest.mark.compiled
@pytest.mark.parametrize("metric", METRICS)
def test_recall_where_distances_hardly_grow(memory: Create, rng: np.random.Generator, metric: str) -> None:
    """The end by distance must not come before that by the list: the rows of a sphere in many dimensions are alike."""
    rows = rng.normal(size=(6000, 48)).astype(np.float32)
    db = fill(memory(dim=48, metric=metric), rows)
    assert default_recall(db, rows, rng.normal(size=(150, 48)).astype(np.float32)) >= 0.95


@pytest.mark.compiled
def test_recall_among_the_dead(memory: Create, rng: np.random.Generator) -> None:
    """More rows around the queries are dead than a pool holds, and none of the live ones is near."""
    gone, kept = clusters(rng, 10, 400, 24), clusters(rng, 10, 400, 24)
    db = memory(dim=24, metric="l2")
    db.insert(range(8000), np.concatenate((gone, kept)))
    db.delete(range(4000))
    found = db.query(gone[::40], k=10)
    # A graph of the live rows alone finds .976 here, and this one at least .97 while dead rows are walked through.
    assert recall("l2", kept, gone[::40], [[key - 4000 for key in hits.keys] for hits in found], 10) >= 0.94
    db.upsert(range(4000, 8000), gone)  # and all that lived has moved
    found = db.query(kept[::40], k=10)
    assert recall("l2", gone, kept[::40], [[key - 4000 for key in hits.keys] for hits in found], 10) >= 0.95


@pytest.mark.compiled
def test_recall_under_churn(memory: Create, rng: np.random.Generator) -> None:
    rows = clusters(rng, 40, 150, 12)[rng.permutation(6000)]
    db = fill(memory(dim=12, metric="l2"), rows[:2000])
    for start in range(0, 4000, 500):
        db.upsert(range(start + 2000, start + 2500), rows[start + 2000 : start + 2500])
        db.delete(range(start, start + 500))
    queries = rows[rng.choice(6000, 100)] + 0.1 * rng.normal(size=(100, 12))
    found = [[key - 4000 for key in hits.keys] for hits in db.query(queries, k=10)]
    assert recall("l2", rows[4000:], queries, found) >= 0.95


@pytest.mark.compiled
def test_upserted_keys_are_found_where_they_are_now(memory: Create, rng: np.random.Generator) -> None:
    rows = rng.normal(size=(3000, 8)).astype(np.float32)
    db = fill(memory(dim=8, metric="l2"), rows)
    moved = rows + 100
    for start in range(0, 3000, 500):
        db.upsert(range(start, start + 500), moved[start : start + 500])
    for number in range(0, 3000, 50):
        assert db.query(moved[number], k=1).keys == [number]
    old = db.query(rows[:50], k=10)
    assert min(hits.distances.min() for hits in old) > 1000, "an upserted key returned its old vector"


# --- the shape of an answer -------------------------------------------------------------------------------------------


@pytest.fixture
def some(create: Create, rng: np.random.Generator) -> tuple[CoreNN, Rows]:
    """1,500 rows of 8 dimensions: enough for the graph."""
    if not COMPILED:
        pytest.skip("needs compiled kernels (NUMBA_DISABLE_JIT is set)")
    rows = rng.normal(size=(1500, 8)).astype(np.float32)
    return fill(create(dim=8, metric="l2"), rows), rows


@pytest.mark.parametrize("exact", [False, True])
def test_a_batch_answers_as_its_queries_do_one_by_one(some: tuple[CoreNN, Rows], exact: bool) -> None:
    db, rows = some
    queries = rows[::40] + 0.05
    batch = db.query(queries, k=7, exact=exact)
    for query, hits in zip(queries, batch, strict=True):
        alone = db.query(query, k=7, exact=exact)
        assert hits.keys == alone.keys
        assert np.allclose(hits.distances, alone.distances, rtol=1e-5, atol=1e-5)
    assert db.query(queries[:1], k=7, exact=exact) == [db.query(queries[0], k=7, exact=exact)]
    assert db.query(queries[:0], k=7, exact=exact) == []


@pytest.mark.parametrize("exact", [False, True])
def test_threads_change_no_answer(some: tuple[CoreNN, Rows], exact: bool) -> None:
    db, rows = some
    queries = rows[::5] + 0.05
    answers = [db.query(queries, k=9, exact=exact, threads=threads) for threads in (1, 2, 4, None)]
    assert answers[0] == answers[1] == answers[2] == answers[3]


def test_a_query_by_key_is_a_query_by_its_vector(some: tuple[CoreNN, Rows]) -> None:
    db, rows = some
    hits = db.query(key=77, k=5)
    assert hits == db.query(rows[77], k=5)
    assert (hits.keys[0], hits.distances[0]) == (77, 0)
    with pytest.raises(KeyNotFoundError, match="7777"):
        db.query(key=7777)
    db.delete([77])
    with pytest.raises(KeyNotFoundError, match="77"):
        db.query(key=77)


def test_max_distance_keeps_what_is_not_farther(some: tuple[CoreNN, Rows]) -> None:
    db, rows = some
    for exact in (False, True):
        full = db.query(rows[3] + 0.1, k=20, exact=exact)
        limit = float(full.distances[11])
        near = db.query(rows[3] + 0.1, k=20, exact=exact, max_distance=limit)
        assert near.keys == full.keys[:12]
        assert near.distances.tolist() == full.distances[:12].tolist()
        assert db.query(rows[3] + 0.1, k=20, exact=exact, max_distance=0.0).keys == []
        assert db.query(rows[3], k=20, exact=exact, max_distance=0).keys == [3]
        assert db.query(rows[3], k=20, exact=exact, max_distance=np.inf) == db.query(rows[3], k=20, exact=exact)
        assert db.query(rows[3], k=20, exact=exact, max_distance=-1.0).keys == []


@pytest.mark.parametrize("exact", [False, True])
def test_k_larger_than_the_database_returns_all(some: tuple[CoreNN, Rows], exact: bool) -> None:
    db, rows = some
    db.delete(range(0, 1500, 2))
    for k in (750, 751, 100_000):
        hits = db.query(rows[0], k=k, exact=exact)
        assert sorted(hits.keys) == list(range(1, 1500, 2))
    check_hits("l2", range(1, 1500, 2), rows[1::2], rows[0], db.query(rows[0], k=10**6), 10**6)


@pytest.mark.parametrize("k", [200, 400, 1400])
def test_large_k_is_answered_in_full(some: tuple[CoreNN, Rows], k: int) -> None:
    db, rows = some
    for hits in db.query(rows[:5], k=k):
        assert len(set(hits.keys)) == k


@pytest.mark.parametrize("metric", METRICS)
def test_an_empty_database_answers_nothing(create: Create, metric: str) -> None:
    db = create(dim=8, metric=metric)
    assert db.query(np.ones(8)).keys == []
    assert [len(hits) for hits in db.query(np.ones((3, 8)), k=5)] == [0, 0, 0]
    hits = db.query(np.ones(8), exact=True, explain=True, with_payloads=True, max_distance=1.0)
    assert (hits.keys, hits.payloads, hits.explain.plan) == ([], [], "empty")


def test_explain_says_what_was_done(some: tuple[CoreNN, Rows]) -> None:
    db, rows = some
    walk = db.query(rows[0], k=10, explain=True).explain
    assert (walk.plan, walk.search_list) == ("graph", db.settings.query_search_list_cap)
    assert 0 < walk.hops <= walk.distances < 1500
    scan = db.query(rows[0], k=10, exact=True, explain=True).explain
    assert (scan.plan, scan.search_list, scan.distances, scan.matches) == ("exact", 0, 1500, 1500)
    assert db.query(rows[:2], explain=True)[1].explain is not None


def test_payloads_come_when_asked_for(create: Create) -> None:
    db = create(dim=2, metric="l2")
    db.insert(["a", "b"], [[0, 0], [1, 1]], [{"n": 1}, None])
    for hits in (db.query([0, 0], with_payloads=True), *db.query([[0, 0]], with_payloads=True)):
        assert hits.payloads == [{"n": 1}, None]
        assert hits[0].payload == {"n": 1}
    assert db.query([0, 0]).payloads == [None, None]


@pytest.mark.compiled
def test_hits_stay_as_they_were(create: Create, rng: np.random.Generator) -> None:
    rows = rng.normal(size=(1500, 8)).astype(np.float32)
    db = create(dim=8, metric="l2")
    db.insert([f"key {row}" for row in range(1500)], rows, [{"row": row} for row in range(1500)])
    hits = db.query(rows[0], k=30, with_payloads=True)
    untouched = db.query(rows[0], k=30, with_payloads=True)  # its objects are made only after the writes
    before = [(hit.key, hit.distance, hit.payload) for hit in hits]
    db.upsert([f"key {row}" for row in range(700)], rows[:700] + 9, [{"row": -1}] * 700)
    db.delete([f"key {row}" for row in range(700, 1500)])
    db.insert([f"other {row}" for row in range(1500)], rows)
    assert [(hit.key, hit.distance, hit.payload) for hit in untouched] == before
    db.close()
    for kept in (hits, untouched):
        assert [(hit.key, hit.distance, hit.payload) for hit in kept] == before
        assert kept.keys == [key for key, _, _ in before]


def test_queries_do_not_change_their_input(some: tuple[CoreNN, Rows]) -> None:
    db, rows = some
    queries = (rows[:4] * 3).copy()
    before = queries.copy()
    db.query(queries, k=3)
    db.query(queries[0], k=3)
    assert np.array_equal(queries, before)


# --- determinism ------------------------------------------------------------------------------------------------------


def history(db: CoreNN, rows: Rows) -> CoreNN:
    """A fixed sequence of writes."""
    db.insert(range(1200), rows[:1200])
    for start in range(1200, 1500, 50):
        db.insert(range(start, start + 50), rows[start : start + 50])
    db.delete(range(0, 1500, 9))
    db.upsert(range(100, 300), rows[:200] + 0.5)
    return db


@pytest.mark.few(1)
@pytest.mark.compiled
@pytest.mark.parametrize("metric", METRICS)
def test_the_same_calls_make_the_same_graph(
    memory: Create, tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, metric: str
) -> None:
    rows, queries = rng.normal(size=(1500, 8)).astype(np.float32), rng.normal(size=(60, 8))
    answers: list[Any] = []
    for cores in (1, 2, 5):
        for name in ("cpu_count", "process_cpu_count"):
            monkeypatch.setattr(f"os.{name}", lambda cores=cores: cores, raising=False)
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cores=cores: set(range(cores)), raising=False)
        answers.append(history(memory(dim=8, metric=metric), rows).query(queries, k=10, search_list=10))
    with CoreNN.create(tmp_path / "db", dim=8, metric=metric) as db:
        answers.append(history(db, rows).query(queries, k=10, search_list=10))
    with CoreNN.open(tmp_path / "db") as db:
        answers.append(db.query(queries, k=10, search_list=10))
    assert all(answer == answers[0] for answer in answers)


@pytest.mark.compiled
def test_a_reopened_database_answers_as_before(tmp_path: Path, rng: np.random.Generator) -> None:
    rows, queries = rng.normal(size=(1500, 8)).astype(np.float32), rng.normal(size=(40, 8))
    for metric in METRICS:
        with CoreNN.create(tmp_path / metric, dim=8, metric=metric) as db:
            before = history(db, rows).query(queries, k=10)
        for mode in ("r", "rw"):
            with CoreNN.open(tmp_path / metric, mode=mode) as db:
                assert db.query(queries, k=10) == before
                assert db.query(queries[0], k=10, explain=True).explain.plan == "graph"
