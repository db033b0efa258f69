"""Product quantization: each piece of a vector in one byte (Jégou, Douze & Schmid 2011).

The components are cut into *subspaces* of a few each, their widths as alike as they can be. In each, 256 *centroids*
stand for what the rows hold there. A query measures its own piece to each of them once, and the distance to a row is
the sum of one such number per subspace: the row is known by its centroids, the query exactly.

Estimates are of the distance to what the codes stand for. The square of what they miss is neither added nor taken off:
for a query at the row it would have to be taken off, for one anywhere else added, and to keep it costs four bytes, in
which four subspaces more say more: docs/performance.md.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..types import Float32s, Int64s
from .intrinsics import bits_float, float_bits
from .jit import inlined, kernel

CENTROIDS = 256
MOST_ENTRY = 65_535  # of a table
_PLACE = np.uint32(CENTROIDS - 1)
_UNPLACED = np.uint32(0xFFFFFFFF ^ (CENTROIDS - 1))
_FINITE = np.uint32(0x7F800000)  # the bits of infinity: those of all smaller numbers are below


class Codebook(NamedTuple):
    """version: 1 for the first of a database. centre: float32 (dim,), which is taken off first. turn: float32 (dim,
    dim), the rotation, a row per component of what is coded; no rows for none. starts: int64 (subspaces + 1), the first
    component of each subspace. books: float32 (dim, CENTROIDS), the centroids, a row per component.
    """

    version: int
    centre: Float32s
    turn: Float32s
    starts: Int64s
    books: Float32s


def subspaces_of(dim: int, count: int) -> Int64s:
    """Where each subspace begins, and where the last one ends: int64 (count + 1,). Wide ones come first."""
    narrow, wide = divmod(dim, count)
    widths = np.full(count, narrow, np.int64)
    widths[:wide] += 1
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(widths)))


@inlined
def _measure(books: Any, first: Any, stop: Any, values: Any, sums: Any) -> None:
    """Write the squared distances of values[first:stop] to all centroids of their subspace: sums is float32 (256,).

    Four components at once where there are as many: a pass over the sums costs more than the sums.
    """
    i = first
    if stop - first >= 4:
        one, two, three, four = books[i], books[i + 1], books[i + 2], books[i + 3]
        a, b, c, d = values[i], values[i + 1], values[i + 2], values[i + 3]
        for k in range(CENTROIDS):
            p, q, r, s = a - one[k], b - two[k], c - three[k], d - four[k]
            sums[k] = p * p + q * q + r * r + s * s
        i += 4
    else:
        one, a = books[i], values[i]
        for k in range(CENTROIDS):
            p = a - one[k]
            sums[k] = p * p
        i += 1
    while i + 2 <= stop:
        one, two, a, b = books[i], books[i + 1], values[i], values[i + 1]
        for k in range(CENTROIDS):
            p, q = a - one[k], b - two[k]
            sums[k] += p * p + q * q
        i += 2
    if i < stop:
        one, a = books[i], values[i]
        for k in range(CENTROIDS):
            p = a - one[k]
            sums[k] += p * p


@inlined
def _nearest(sums: Any) -> Any:
    """The place of the least of 256 non-negative numbers, up to a 32,768th; the first of equal ones.

    As integers that end with their places, of which the least is found without a branch.
    """
    best = np.uint32(0xFFFFFFFF)
    for c in range(CENTROIDS):
        best = min(best, (float_bits(sums[c]) & _UNPLACED) | np.uint32(c))
    return best & _PLACE


@inlined
def fill_table(codes: Any, values: Any, asked: Any) -> Any:
    """Write the table of a query, rotated already; returns what one step of its entries is worth, infinity where they
    would be too large for a float.
    """
    starts, sums, table = codes.starts, asked.sums, asked.table
    most = np.uint32(0)
    for m in range(table.shape[0]):
        line = sums[m]
        _measure(codes.books, starts[m], starts[m + 1], values, line)
        for c in range(CENTROIDS):
            most = max(most, float_bits(line[c]))
    if most >= _FINITE:
        return np.float32(np.inf)
    top = bits_float(most)
    scale = np.float32(MOST_ENTRY) / top if top > 0 else np.float32(0)
    if not scale < np.float32(np.inf):
        scale = np.float32(0)
    for m in range(table.shape[0]):
        line, entries = sums[m], table[m]
        for c in range(CENTROIDS):
            entries[c] = np.uint16(np.int32(line[c] * scale + np.float32(0.5)))
    return top / np.float32(MOST_ENTRY)


@inlined
def look_up(table: Any, vectors: Any, row: Any) -> Any:
    """The sum of the entries that the bytes of a row name, one per subspace."""
    stored = vectors[row]
    total = np.uint32(0)
    for m in range(table.shape[0]):
        total += np.uint32(table[m, stored[m]])
    return total


@inlined
def choose_centroids(codes: Any, values: Any, stored: Any, sums: Any) -> None:
    """Write the nearest centroid of each piece of a rotated vector."""
    starts = codes.starts
    for m in range(starts.shape[0] - 1):
        _measure(codes.books, starts[m], starts[m + 1], values, sums)
        stored[m] = np.uint8(_nearest(sums))


@kernel
def gather_clusters(points: Any, book: Any, sums: Any, totals: Any, counts: Any, missed: Any, labels: Any) -> None:
    """Add each point to its nearest centroid: one pass of k-means over a subspace (Lloyd 1982).

    points: float32 (n, width). book: float32 (width, CENTROIDS). totals: float64 (CENTROIDS, width). counts: int64
    (CENTROIDS,). missed: float32 (n,), receives squared distances. labels: uint8 (n,). sums: float32 (CENTROIDS,),
    working memory.
    """
    for i in range(points.shape[0]):
        values = points[i]
        _measure(book, 0, book.shape[0], values, sums)
        best = _nearest(sums)
        labels[i] = np.uint8(best)
        missed[i] = sums[best]
        counts[best] += 1
        total = totals[best]
        for j in range(values.shape[0]):
            total[j] += np.float64(values[j])
