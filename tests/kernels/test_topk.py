"""Rules out a row passed over by its bound although it is near enough, a heap that loses an entry or breaks a tie the
wrong way, a row offered twice, and bounds whose overflow hides a row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corenn.kernels.intrinsics import lowest_bit
from corenn.kernels.jit import kernel
from corenn.kernels.search import COSINE, IP, L2
from corenn.kernels.topk import (
    SPARE,
    Asked,
    Block,
    Candidates,
    Heaps,
    any_passes,
    conclude,
    cut_after,
    distances_to,
    offer,
    passing,
    sift_in,
)

INF = np.inf
PAIRS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1000)), max_size=60, unique=True)


@kernel
def offer_all(distances: Any, ids: Any, heap: Any, heap_ids: Any) -> None:
    for i in range(ids.shape[0]):
        if distances[i] < heap[0] or (distances[i] == heap[0] and ids[i] < heap_ids[0]):
            sift_in(heap, heap_ids, distances[i], ids[i])


@kernel
def any_of(offsets: Any, factors: Any, products: Any, limits: Any, out: Any) -> None:
    for i in range(limits.shape[0]):
        out[i] = any_passes(offsets, factors, products, limits[i])


@given(PAIRS, st.integers(1, 20))
def test_a_heap_keeps_the_nearest_and_of_equals_the_first(pairs: list[tuple[int, int]], size: int) -> None:
    distances, ids = np.array([pair[0] for pair in pairs], np.float64), np.array([pair[1] for pair in pairs], np.int64)
    heap, heap_ids = np.full(size, INF), np.full(size, 2**62, np.int64)
    offer_all(distances, ids, heap, heap_ids)
    kept = sorted(zip(heap.tolist(), heap_ids.tolist(), strict=True))[: len(pairs)]
    assert kept == [(float(far), row) for far, row in sorted(pairs)[:size]]


@pytest.mark.parametrize("place", [0, 63, 64, 99])
@pytest.mark.parametrize(("value", "passes"), [(1.0, True), (1.5, False), (np.nan, True), (-INF, True), (INF, False)])
def test_one_row_in_a_hundred_is_seen_wherever_it_stands(place: int, value: float, passes: bool) -> None:
    offsets, factors, products = np.full(100, 9, np.float32), np.ones(100, np.float32), np.zeros(100, np.float32)
    offsets[place] = value
    out = np.zeros(2, np.bool_)
    any_of(offsets, factors, products, np.array([1.0, 0.5], np.float32), out)
    assert out.tolist() == [passes, bool(np.isnan(value) or value == -INF)]


@kernel
def places_of(offsets: Any, factors: Any, products: Any, limit: Any, out: Any) -> Any:
    """The places of the bits of `passing`, lowest first; returns how many."""
    bits, count = passing(offsets, factors, products, limit), 0
    while bits != 0:
        out[count] = lowest_bit(bits)
        bits &= np.uint32(bits - np.uint32(1))
        count += 1
    return count


@given(st.lists(st.sampled_from([0.0, 1.0, 1.5, np.nan, -INF, INF]), max_size=32))
def test_each_row_that_passes_has_its_bit(offsets: list[float]) -> None:
    given, zeros, out = np.array(offsets, np.float32), np.zeros(len(offsets), np.float32), np.zeros(32, np.int64)
    count = places_of(given, zeros, zeros, np.float32(1), out)
    assert out[:count].tolist() == [at for at, offset in enumerate(offsets) if not offset > 1]


@kernel
def cut_of(values: Any, first: Any, k: Any) -> Any:
    return cut_after(values, first, k)


NUMBERS = st.one_of(st.integers(0, 30), st.integers(0, 2**64 - 1))


@given(st.lists(NUMBERS, min_size=1, max_size=80, unique=True), st.data())
def test_a_cut_keeps_k_and_little_more(values: list[int], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(values)))
    cut = int(cut_of(np.array(values, np.uint64), np.uint64(min(values)), k))
    assert k <= sum(value <= cut for value in values) <= k + SPARE


def task(rows: list[list[float]], first: int = 0) -> tuple[Block, Asked, Heaps]:
    """One query at the origin, k of 2, bounds that pass everything."""
    values = np.array(rows, np.float32)
    squares = (values.astype(np.float64) ** 2).sum(axis=1)
    block = Block(values, squares, np.full(len(values), -INF, np.float32), np.ones(len(values), np.float32), 0.0, first)
    asked = Asked(np.zeros((1, values.shape[1]), np.float32), np.zeros(1), np.ones(1), np.zeros(1), np.zeros(1), L2)
    return block, asked, Heaps(np.full((1, 2), INF), np.full((1, 2), 2**62, np.int64), np.zeros(1, np.int64))


def whole(block: Block, asked: Asked, heaps: Heaps) -> None:
    """Offer all rows of a block at once."""
    candidates = Candidates(np.zeros((1, 66), np.uint64), np.zeros(1, np.int64), np.full(1, INF, np.float32))
    offer(block, 0, np.zeros((1, len(block.values)), np.float32), asked, candidates, heaps)
    conclude(block, asked, candidates, heaps)


def test_rows_that_were_offered_are_not_offered_again() -> None:
    block, asked, heaps = task([[1], [2], [3], [4]], first=10)
    heaps.seen[0] = 12
    whole(block, asked, heaps)
    assert sorted(heaps.ids[0]) == [12, 13] and heaps.seen[0] == 14
    whole(block, asked, heaps)
    assert sorted(heaps.ids[0]) == [12, 13] and heaps.seen[0] == 14


def test_a_bound_above_the_limit_keeps_a_row_out_unmeasured() -> None:
    block, asked, heaps = task([[5], [6], [1], [2]])
    block.offsets[2] = 1e30
    whole(block, asked, heaps)
    assert sorted(heaps.ids[0]) == [0, 3]


def test_distances_to_rows_by_the_definition() -> None:
    rows = np.array([[3, 4], [0, 0], [1, 0]], np.float32)
    query, ids, out = np.array([[2, 0]], np.float32), np.array([[0, 1, 2, -1]]), np.empty((1, 4))
    squares = (rows.astype(np.float64) ** 2).sum(axis=1)
    for metric, expected in ((L2, [17, 4, 1, INF]), (COSINE, [0.4, 1, 0, INF]), (IP, [-5, 1, -1, INF])):
        distances_to(rows, squares, query, np.array([4.0]), ids, metric, out)
        assert out[0].tolist() == pytest.approx(expected)
