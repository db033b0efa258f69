"""Exact nearest rows: products in float32 pass over what is surely too far, and the rest is measured in float64.

A matrix product gives one number per query and row. With it, `offset - factor * product` is a lower bound of a row's
score, which grows with its distance; the offsets are lowered by what float32 can be wrong. A row whose bound lies above
the query's limit is farther than the k-th nearest. The others are candidates: of a full list of them, those stay that
may still be among the k nearest. What is left at the end of a block is measured from the definition, in float64, and
kept in a heap ordered by distance, then by id. So the outcome is exact, and does not depend on how the product was
summed, in what blocks, or by how many threads.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..types import AnyArray, Float32s, UInt64s
from .intrinsics import bits_float, float_bits, lowest_bit, prefetch
from .jit import inlined, kernel
from .search import COSINE, L2

# Bounds compared at a time, and once more where one of them passes: the comparison is branchless and vectorises.
CHUNK, PIECE = 256, 32
ROUNDING = np.float32(2.0**-22)  # relative: what turning a limit into float32 may take from it
SPARE = 8  # candidates kept beyond k, to find the cut in fewer rounds
AHEAD = 2  # rows requested before the one that is measured
LOWEST = np.float32(-np.inf)
_HIGH = np.uint64(32)
_SIGN = np.uint32(0x80000000)
_ONES = np.uint32(0xFFFFFFFF)


class Block(NamedTuple):
    """Rows in the order of their ids.

    values: float32 or float64 (rows, dim), as they were given. squares: float64 (rows,), squared lengths of `values`.
    offsets, factors: float32 (rows,), which turn products into bounds. error: how far a bound may lie below the score,
    as far as that is due to the row. first: id of the first row.
    """

    values: AnyArray
    squares: NDArray[np.float64]
    offsets: Float32s
    factors: Float32s
    error: float
    first: int


class Asked(NamedTuple):
    """Queries. A query's limit is slope * (distance of the k-th nearest so far) + rise.

    values: float32 or float64 (queries, dim), as they were given. squares, slopes, rises: float64 (queries,).
    errors: float64 (queries,), how far a bound may lie below the score, as far as that is due to the query.
    metric: L2, COSINE or IP.
    """

    values: AnyArray
    squares: NDArray[np.float64]
    slopes: NDArray[np.float64]
    rises: NDArray[np.float64]
    errors: NDArray[np.float64]
    metric: int


class Heaps(NamedTuple):
    """The nearest so far: a max-heap per query, by distance, then by id; infinitely far where there is none yet.

    distances: float64 (queries, k). ids: int64 (queries, k). seen: int64 (queries,), the id below which all rows were
    offered: it moves with the heap, so that an interrupted pass can go on without offering a row twice.
    """

    distances: NDArray[np.float64]
    ids: NDArray[np.int64]
    seen: NDArray[np.int64]


class Candidates(NamedTuple):
    """Rows of the block in work that may be among the nearest, in the order in which they were found.

    packed: uint64 (queries, more than k), the bound in the upper half, turned so that it sorts, and the place in the
    block in the lower. counts: int64 (queries,). limits: float32 (queries,).
    """

    packed: UInt64s
    counts: NDArray[np.int64]
    limits: Float32s


@inlined
def square_of(values: Any, row: Any) -> Any:
    """Squared length of a row, summed in float64."""
    stored = values[row]
    total = 0.0
    for i in range(stored.shape[0]):
        value = np.float64(stored[i])
        total += value * value
    return total


@inlined
def measure(values: Any, square: Any, row: Any, queries: Any, query_square: Any, query: Any, metric: Any) -> Any:
    """Distance under the metric in float64, by its definition: always the same bits for the same two vectors."""
    stored, asked = values[row], queries[query]
    total = 0.0
    if metric == L2:
        for i in range(stored.shape[0]):
            apart = np.float64(asked[i]) - np.float64(stored[i])
            total += apart * apart
        return total
    for i in range(stored.shape[0]):
        total += np.float64(asked[i]) * np.float64(stored[i])
    if metric == COSINE:
        length = math.sqrt(square) * math.sqrt(query_square)
        return 1.0 - total / length if length > 0 else 1.0
    return 1.0 - total


@inlined
def any_passes(offsets: Any, factors: Any, products: Any, limit: Any) -> Any:
    """Whether one of several rows may be near enough."""
    # Views that begin at 0: where an index may be negative, the loads become gathers, at three times the cost.
    hits = np.int32(0)
    for at in range(products.shape[0]):
        hits = np.int32(hits + np.int32(not (offsets[at] - factors[at] * products[at] > limit)))
    return hits > 0


@inlined
def passing(offsets: Any, factors: Any, products: Any, limit: Any) -> Any:
    """A bit for each of at most 32 rows: whether it may be near enough."""
    bits = np.uint32(0)
    for at in range(products.shape[0]):
        bits |= np.uint32(not (offsets[at] - factors[at] * products[at] > limit)) << np.uint32(at)
    return bits


@inlined
def limit_of(asked: Any, query: Any, farthest: Any) -> Any:
    """The largest bound of a row that could be nearer than `farthest`, rounded up to float32."""
    limit = np.float32(asked.slopes[query] * farthest + asked.rises[query])
    return limit + ROUNDING * abs(limit)


@inlined
def sift_in(distances: Any, ids: Any, distance: Any, row: Any) -> None:
    """Take the farthest entry out of a max-heap and put a nearer one in."""
    size = distances.shape[0]
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        right = child + 1
        if right < size and (
            distances[right] > distances[child] or (distances[right] == distances[child] and ids[right] > ids[child])
        ):
            child = right
        if distances[child] < distance or (distances[child] == distance and ids[child] < row):
            break
        distances[at], ids[at] = distances[child], ids[child]
        at = child
    distances[at], ids[at] = distance, row


@inlined
def pack_bound(bound: Any, place: Any) -> Any:
    """One number that sorts by the bound, then by the place; NaN, left by an overflow, sorts first."""
    bits = float_bits(bound if bound == bound else LOWEST)
    bits = (bits ^ _ONES) if bits & _SIGN else (bits | _SIGN)
    return (np.uint64(bits) << _HIGH) | np.uint64(place)


@inlined
def bound_of(packed: Any) -> Any:
    """The bound of a candidate."""
    bits = np.uint32(packed >> _HIGH)
    return bits_float((bits ^ _SIGN) if bits & _SIGN else (bits ^ _ONES))


@inlined
def place_in_block(packed: Any) -> Any:
    """The place in the block of a candidate."""
    return np.int64(np.uint32(packed))


@inlined
def at_most(values: Any, limit: Any) -> Any:
    """How many values are no larger than a limit."""
    count = 0
    for at in range(values.shape[0]):
        count += values[at] <= limit
    return count


@inlined
def cut_after(values: Any, first: Any, k: Any) -> Any:
    """A value that k values, or little more, do not exceed. first: the smallest of them.

    Bisection: every round is a vectorised count, where quickselect stalls at each of its unforeseeable comparisons.
    """
    low, high = first, values[0]
    for at in range(values.shape[0]):
        high = max(high, values[at])
    while low < high:
        middle = low + ((high - low) >> np.uint64(1))
        count = at_most(values, middle)
        if count < k:
            low = middle + np.uint64(1)
        else:
            high = middle
            if count <= k + SPARE:
                break
    return high


@inlined
def thin_out(block: Any, asked: Any, query: Any, candidates: Any, k: Any) -> None:
    """Drop the candidates that k others are surely nearer than, and lower the limit accordingly.

    A score is at most its bound and both errors, twice. Bounds that overflowed say nothing, so nothing is dropped.
    """
    packed, count = candidates.packed[query], candidates.counts[query]
    first = packed[0]
    for at in range(count):
        first = min(first, packed[at])
    kth = bound_of(cut_after(packed[:count], first, k))
    if bound_of(first) == LOWEST:
        return
    limit = np.float32(np.float64(kth) + 2 * (block.error + asked.errors[query]))
    limit = min(candidates.limits[query], limit + ROUNDING * abs(limit))
    last, kept = pack_bound(limit, _ONES), 0
    for at in range(count):
        candidate = packed[at]
        packed[kept] = candidate
        kept += candidate <= last
    candidates.counts[query] = kept
    candidates.limits[query] = limit


@inlined
def take_in(block: Any, asked: Any, query: Any, candidates: Any, heaps: Any) -> None:
    """Measure all candidates of a query, put those that are near enough into its heap, and lower the limit."""
    distances, ids = heaps.distances[query], heaps.ids[query]
    limit, count = limit_of(asked, query, distances[0]), candidates.counts[query]
    for at in range(count):
        if at + AHEAD < count:
            prefetch(block.values, place_in_block(candidates.packed[query, at + AHEAD]))
        if bound_of(candidates.packed[query, at]) > limit:
            continue
        place = place_in_block(candidates.packed[query, at])
        far = measure(
            block.values, block.squares[place], place, asked.values, asked.squares[query], query, asked.metric
        )  # fmt: skip
        row = block.first + place
        if far < distances[0] or (far == distances[0] and row < ids[0]):
            sift_in(distances, ids, far, row)
            limit = limit_of(asked, query, distances[0])
    candidates.counts[query] = 0
    candidates.limits[query] = min(candidates.limits[query], limit)


@inlined
def collect(
    block: Any, first: Any, offsets: Any, factors: Any, line: Any, bits: Any,
    asked: Any, query: Any, candidates: Any, heaps: Any,
) -> None:  # fmt: skip
    """Make candidates of those of at most 32 rows that have their bit; a full list is thinned out."""
    packed, room, k = candidates.packed[query], candidates.packed.shape[1], heaps.ids.shape[1]
    count = candidates.counts[query]
    while bits != 0:
        at = lowest_bit(bits)
        bits &= np.uint32(bits - np.uint32(1))
        packed[count] = pack_bound(offsets[at] - factors[at] * line[at], first + at)
        count += 1
        if count == room:
            candidates.counts[query] = count
            thin_out(block, asked, query, candidates, k)
            if 2 * candidates.counts[query] > room + k:
                take_in(block, asked, query, candidates, heaps)
                heaps.seen[query] = block.first + first + at + 1
            count = candidates.counts[query]
            bits &= passing(offsets, factors, line, candidates.limits[query])
    candidates.counts[query] = count


@kernel
def offer(block: Any, first: Any, products: Any, asked: Any, candidates: Any, heaps: Any) -> None:
    """Find the candidates among some rows of a block, those from the place `first` on, for each query.

    products: float32 (queries, some rows). Rows that a query has seen are left out.
    """
    count = products.shape[1]
    offsets, factors = block.offsets[first : first + count], block.factors[first : first + count]
    for i in range(products.shape[0]):
        line = products[i]
        start = max(0, heaps.seen[i] - block.first - first)
        while start < count:
            stop = min(start + CHUNK, count)
            if any_passes(offsets[start:stop], factors[start:stop], line[start:stop], candidates.limits[i]):
                for at in range(start, stop, PIECE):
                    to = min(at + PIECE, stop)
                    bits = passing(offsets[at:to], factors[at:to], line[at:to], candidates.limits[i])
                    if bits != 0:
                        collect(
                            block, first + at, offsets[at:to], factors[at:to], line[at:to], bits,
                            asked, i, candidates, heaps,
                        )  # fmt: skip
            start = stop


@kernel
def conclude(block: Any, asked: Any, candidates: Any, heaps: Any) -> None:
    """Measure what is left of the candidates once all rows of a block were offered."""
    for i in range(asked.values.shape[0]):
        if candidates.counts[i] > heaps.ids.shape[1]:
            thin_out(block, asked, i, candidates, heaps.ids.shape[1])
        take_in(block, asked, i, candidates, heaps)
        heaps.seen[i] = max(heaps.seen[i], block.first + block.values.shape[0])


@kernel
def squares_of(values: Any, out: Any) -> None:
    """Squared lengths of rows, float64."""
    for row in range(values.shape[0]):
        out[row] = square_of(values, row)


@kernel
def distances_between(values: Any, squares: Any, queries: Any, query_squares: Any, metric: Any, out: Any) -> None:
    """The distance of every query (queries, dim) to every row (n, dim): out is float64 (queries, n)."""
    for query in range(queries.shape[0]):
        for row in range(values.shape[0]):
            out[query, row] = measure(values, squares[row], row, queries, query_squares[query], query, metric)


@kernel
def distances_to(values: Any, squares: Any, queries: Any, query_squares: Any, ids: Any, metric: Any, out: Any) -> None:
    """The distance of each query to the rows `ids` (queries, n), inf where an id is negative: out is float64."""
    for query in range(queries.shape[0]):
        for at in range(ids.shape[1]):
            row = ids[query, at]
            if row < 0:
                out[query, at] = math.inf
            else:
                out[query, at] = measure(values, squares[row], row, queries, query_squares[query], query, metric)
