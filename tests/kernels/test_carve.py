"""Kernels of the bulk build against plain NumPy.

Rules out a product that is wrong at the edge of a tile, a row that is sent to a far leader, a leaf in which an edge is
chosen that a nearer one makes superfluous, rows that get lost between clusters and leaves, and lost reverse edges.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from corenn.config import Settings
from corenn.graph import bulk
from corenn.graph.bulk import Builder, _bench, _grouped
from corenn.graph.scratch import ScratchPool, workbench
from corenn.graph.threads import Helpers
from corenn.graph.view import take_view
from corenn.kernels.candidates import VACANT
from corenn.kernels.carve import (
    Carving,
    assign,
    carve,
    choose_among,
    copy_edges,
    count_in_edges,
    gather_in_edges,
    hash_rows,
    leaders_of,
    table,
)
from corenn.kernels.intrinsics import LANES, TILE_COLUMNS, TILE_ROWS
from corenn.kernels.link import Shape
from corenn.kernels.search import DEGREE, FIRST_NEIGHBOUR
from corenn.storage.commit import NO_IDS

from .test_adopt import neighbours, stored

ALPHA = 1.2


def rows_of(vectors: Any, **others: Any) -> Any:
    store = stored(vectors, **others)
    return take_view(store, store.metadata.head, NO_IDS).rows


def apart(vectors: Any) -> Any:
    """Squared distances of all to all."""
    wide = vectors.astype(np.float64)
    return ((wide[:, None] - wide[None]) ** 2).sum(axis=2)


def pruned(distances: Any, row: int, candidates: Any, most: int) -> list[int]:
    """Algorithm 2 of DiskANN."""
    chosen: list[int] = []
    for one in sorted(candidates, key=lambda one: (distances[row, one], one)):
        if len(chosen) < most and all(ALPHA * distances[other, one] > distances[row, one] for other in chosen):
            chosen.append(one)
    return chosen


def test_a_tile_is_what_registers_hold() -> None:
    assert TILE_COLUMNS % LANES == 0
    assert TILE_ROWS * TILE_COLUMNS // LANES <= 16


@pytest.mark.parametrize("width", [1, 3, 24])
@pytest.mark.parametrize("count", [1, 31, 32, 33, 70])
def test_nearest_leaders(width: int, count: int, rng: np.random.Generator) -> None:
    vectors = rng.integers(-40, 40, (150, width)).astype(np.float32)
    chosen = np.sort(rng.choice(150, count, replace=False))
    found = np.empty((150, 5), np.int32)
    work = table(bulk.BLOCK, count, width)
    assign(
        rows_of(vectors, metric="l2"), np.arange(150, dtype=np.uint32), leaders_of(vectors[chosen]), False, work, found
    )  # fmt: skip
    distances = apart(vectors)[:, chosen]
    for row in range(150):
        kept = found[row][found[row] >= 0]
        assert len({*kept.tolist()}) == len(kept) == min(5, count)
        expected = np.sort(distances[row])[: len(kept)]
        # The lowest bits of a distance give way to the index.
        np.testing.assert_allclose(distances[row, kept], expected, rtol=3e-4, atol=0.05)


def carved(vectors: Any, members: Any, most: int, kept: int = 4, inner: int = 2, **others: Any) -> Any:
    """The slots of all rows after one cluster of `members` was carved: int64 (rows, inner, kept), -1 for none."""
    rows = rows_of(vectors, **others)
    carving = Carving(1, inner, kept, max(2, most // 2), most, np.float32(ALPHA))
    slots = np.full((len(vectors), inner * kept * (2 if rows.radius > 0 else 1)), VACANT, np.uint32)
    bench = _bench(vectors.shape[1] + (rows.radius != 0))
    carve(rows, np.arange(len(vectors), dtype=np.uint32), np.array(members, np.int64), carving, bench, slots)
    found = slots.astype(np.int64)
    found[slots == VACANT] = -1
    return found.reshape(len(vectors), inner, -1)


def test_a_leaf_is_pruned(rng: np.random.Generator) -> None:
    vectors = rng.normal(size=(60, 5)).astype(np.float32)
    members = [*range(0, 60, 2)]
    found = carved(vectors, members, 64, metric="l2")
    assert (found[1::2] == -1).all()
    assert (found[:, 1] == -1).all()  # a small cluster is one leaf
    distances = apart(vectors)
    for row in members:
        expected = pruned(distances, row, [other for other in members if other != row], 4)
        assert [one for one in found[row, 0] if one >= 0] == expected


def test_leaves_hold_every_row_of_a_cluster(rng: np.random.Generator) -> None:
    vectors = rng.normal(size=(150, 3)).astype(np.float32)
    found = carved(vectors, range(150), 32, metric="l2")
    assert (found[:, 0, 0] >= 0).all()
    assert (found[:, 1, 0] >= 0).mean() > 0.9
    assert (found != np.arange(150)[:, None, None]).all()
    near = np.sort(apart(vectors) + np.diag([np.inf] * 150), axis=1)[:, 10]
    first = apart(vectors)[np.arange(150), found[:, 0, 0]]
    assert (first <= near).mean() > 0.9


def test_equal_rows_are_cut_into_leaves() -> None:
    vectors = np.ones((150, 3), np.float32)
    found = carved(vectors, range(150), 32, metric="l2")
    assert (found[:, 0, 0] >= 0).all()


def test_rows_that_queries_in_the_same_direction_find(rng: np.random.Generator) -> None:
    vectors = (rng.normal(size=(40, 4)) * rng.uniform(0.1, 1, (40, 1))).astype(np.float32)
    vectors[5] = 0
    found = carved(vectors, range(40), 64, metric="ip")[:, 0]
    products = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    np.fill_diagonal(products, -np.inf)
    for row in range(40):
        if row != 5:
            assert products[row, found[row, 4]] >= products[row].max() - 1e-3


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
def test_choosing_among_candidates(metric: str, rng: np.random.Generator) -> None:
    vectors = rng.normal(size=(40, 4)).astype(np.float32)
    store = stored(vectors, metric=metric, max_edges=4)
    view = take_view(store, store.metadata.head, NO_IDS)
    slots = rng.integers(0, 40, (40, 12)).astype(np.uint32)
    others = rng.integers(0, 40, (40, 3)).astype(np.uint32)
    slots[rng.random((40, 12)) < 0.2] = VACANT
    shape = Shape(4, np.float32(ALPHA))
    ids = np.arange(40, dtype=np.uint32)
    seen = np.empty(4, np.uint32)  # forgets most of what it has seen
    choose_among(view.rows, view.graph.edges, shape, ids, slots, others, seen, workbench(4, 15))
    for row in range(40):
        kept = neighbours(view.graph.edges, row)
        given = {*slots[row].tolist(), *others[row].tolist()} - {row, int(VACANT)}
        assert {*kept} <= given
        if metric == "l2":
            assert kept == pruned(apart(vectors), row, given, 4)


def test_reverse_edges_are_gathered(rng: np.random.Generator) -> None:
    edges = np.zeros((20, 8), np.uint32)
    edges[:, DEGREE] = rng.integers(0, 6, 20)
    edges[:, FIRST_NEIGHBOUR:] = rng.integers(0, 20, (20, 6))
    ids = np.arange(0, 20, 2, dtype=np.uint32)
    starts = np.zeros(21, np.int64)
    count_in_edges(edges, ids, starts)
    starts = np.cumsum(starts)
    sources = np.empty(starts[-1], np.uint32)
    gather_in_edges(edges, ids, starts.copy(), sources)
    for target in range(20):
        expected = [row for row in ids.tolist() for other in neighbours(edges, row) if other == target]
        assert sources[starts[target] : starts[target + 1]].tolist() == expected


def test_equal_rows_have_equal_hashes(rng: np.random.Generator) -> None:
    words = rng.integers(0, 2**63, (50, 4)).astype(np.uint64)
    words[30] = words[2]
    seals = rng.integers(0, 2**31, (50, 4)).astype(np.uint32)
    ids = np.arange(50, dtype=np.uint32)
    out = np.empty(50, np.uint64)
    hash_rows(words, seals[:, :1].copy(), ids, out)
    assert len({*out.tolist()}) == 49
    assert out[30] == out[2]
    hash_rows(words, seals, ids, out)
    assert len({*out.tolist()}) == 50
    seals[30, 2:] = seals[2, 2:]
    hash_rows(words, seals, ids, out)
    assert out[30] == out[2]


def test_twins_get_the_edges_of_the_first() -> None:
    edges = np.zeros((4, 8), np.uint32)
    edges[1] = [4, 0, 9, 8, 7, 6, 0, 0]
    copy_edges(edges, np.array([2, 3], np.uint32), np.array([1, 0], np.uint32), 3)
    assert neighbours(edges, 2) == [1, 9, 8]
    assert neighbours(edges, 3) == [0]


def test_grouping_leaves_out_what_has_no_leader() -> None:
    labels = np.array([[1, 0xFFFF], [0, 1], [1, 0]], np.uint16)
    assert [part.tolist() for part in _grouped(labels)] == [[2, 5], [0, 3, 4]]


def test_clusters_hold_every_row(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "CLUSTER", 20)
    monkeypatch.setattr(bulk, "CLUSTER_MOST", 30)
    vectors = rng.normal(size=(300, 3)).astype(np.float32)
    vectors[100:200] = 1
    store = stored(vectors, metric="l2")
    helpers = Helpers(2)
    clusters = Builder(store, ScratchPool(), helpers)._clusters(
        take_view(store, store.metadata.head, NO_IDS), np.arange(300, dtype=np.uint32)
    )
    helpers.close()
    assert max(map(len, clusters)) <= 30
    everything = np.concatenate(clusters)
    assert len(np.unique(everything)) == len(everything) == 300 * bulk.OUTER
    for members in clusters:
        assert len(np.unique(members // bulk.OUTER)) == len(members)


def test_settings_are_those_of_small_leaves() -> None:
    """What the kernels take for granted."""
    assert bulk.LEAF < bulk.LEAF_MOST <= 1 << 10
    assert bulk.CLUSTER < bulk.CLUSTER_MOST
    assert Settings(dim=1).max_edges <= bulk.OUTER * bulk.INNER * bulk.KEPT
