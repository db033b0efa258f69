"""Kernels of the bulk build: rows are carved into overlapping leaves of a few hundred that lie together, and each leaf
is one matrix of distances, in which the edges of its rows are chosen (Rubel et al., PiPNN, 2026).

Nothing here walks the graph. Each call writes what no other one does, so the outcome does not depend on threads.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ..types import Float32s, Int32s, Int64s, UInt32s
from .candidates import VACANT, pack, sort_distinct, unseen
from .intrinsics import TILE_COLUMNS, TILE_ROWS, float_bits, multiply_tile
from .jit import inlined, kernel
from .link import aim_as_query, write_edges
from .rows import NORM, OFFSET, SCALE, decode, distance, lift_of, prefetch_row
from .search import DEGREE, FIRST_NEIGHBOUR

INDEX_BITS = 10  # of a key: the rest are the upper bits of a distance, so that one minimum finds both
MOST = 1 << INDEX_BITS  # leaders, and rows of a leaf

ODD = 16  # columns more, so that the lines of a column do not fall into a few sets of the cache
_INDEX = np.int32(MOST - 1)
_VALUE = np.uint32(0xFFFFFFFF - (MOST - 1))
_INFINITE = np.int32(0x7F800000)  # keys from here on stand for nothing
_INFINITY = np.float32(np.inf)
_MIX = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(29)


class Leaders(NamedTuple):
    """Rows that others gather around.

    panels: see multiply_tile. squares: float32, their squared lengths, infinite in the columns that pad the last panel.
    origin: float32 (width,), what has been taken from each.
    """

    panels: Float32s
    squares: Float32s
    origin: Float32s


class Table(NamedTuple):
    """Working memory for the products of some rows with others, padded to whole tiles.

    points: float32 (rows, width). squares: float32 (columns,). panels: see multiply_tile. products: float32 (rows,
    columns). keys: int32 (columns,).
    """

    points: Float32s
    squares: Float32s
    panels: Float32s
    products: Float32s
    keys: Int32s


class Cluster(NamedTuple):
    """Working memory for one cluster, of one thread.

    points: float32 (rows, width), all of it. names: uint32 (rows,), their ids. order: int64 (rows * inner,), places in
    the cluster * inner + which of its leaves, by leaf. starts: int64 (leaves + 1,). labels: int32 (rows, inner). lifts:
    float32 (columns,). around: leaders. leaf: one leaf.
    """

    points: Float32s
    names: UInt32s
    origin: Float32s
    order: Int64s
    starts: Int64s
    labels: Int32s
    lifts: Float32s
    around: Table
    leaf: Table


class Carving(NamedTuple):
    """outer: leaders of the first level per row. inner: leaves per row and cluster. kept: edges chosen per leaf.

    leaf: rows per leaf that are aimed at, most: rows that it has at most. alpha: slack of the choice.
    """

    outer: int
    inner: int
    kept: int
    leaf: int
    most: int
    alpha: np.float32


def table(rows: int, columns: int, width: int) -> Table:
    """Room for `rows` rows against `columns` others."""
    rows, panels = -(-rows // TILE_ROWS) * TILE_ROWS, -(-columns // TILE_COLUMNS)
    columns = panels * TILE_COLUMNS
    return Table(
        np.zeros((rows, width), np.float32), np.zeros(columns, np.float32),
        np.zeros((panels, width * TILE_COLUMNS), np.float32), np.zeros((rows, columns + ODD), np.float32),
        np.zeros(columns, np.int32),
    )  # fmt: skip


def leaders_of(vectors: Float32s) -> Leaders:
    """Leaders from their places, float32 (n, width)."""
    origin = vectors.mean(axis=0)
    made = table(1, len(vectors), vectors.shape[1])
    centred = np.ascontiguousarray(vectors - origin)
    fill_panels(centred, len(vectors), made.squares, made.panels)
    return Leaders(made.panels, made.squares, origin)


@inlined
def _place(rows: Any, node: Any, origin: Any, out: Any) -> None:
    """Where a row stands: its vector and its lift, seen from `origin`."""
    decode(rows, node, out)
    if origin.shape[0] > rows.dim:
        out[rows.dim] = lift_of(rows, node)
    for i in range(origin.shape[0]):
        out[i] -= origin[i]


@kernel
def place_rows(rows: Any, ids: Any, origin: Any, out: Any) -> None:
    """Write where the rows `ids` stand to out, float32 (ids, width)."""
    for i in range(ids.shape[0]):
        _place(rows, ids[i], origin, out[i])


@inlined
def _fill_panels(points: Any, count: Any, squares: Any, panels: Any) -> None:
    width, columns = points.shape[1], -(-count // TILE_COLUMNS) * TILE_COLUMNS
    for j in range(columns):
        panel, lane = panels[j // TILE_COLUMNS], j % TILE_COLUMNS
        if j < count:
            point = points[j]
            total = np.float32(0)
            for i in range(width):
                total += point[i] * point[i]
            squares[j] = total
            for i in range(width):
                panel[i * TILE_COLUMNS + lane] = point[i]
        else:
            squares[j] = _INFINITY
            for i in range(width):
                panel[i * TILE_COLUMNS + lane] = 0


@kernel
def fill_panels(points: Any, count: Any, squares: Any, panels: Any) -> None:
    """Turn the first `count` points into the columns of panels, and note their squared lengths."""
    _fill_panels(points, count, squares, panels)


@inlined
def _multiply(points: Any, count: Any, panels: Any, columns: Any, products: Any) -> None:
    for panel in range(-(-columns // TILE_COLUMNS)):
        for row in range(0, count, TILE_ROWS):
            multiply_tile(points, row, panels, panel, products)


@inlined
def _key(value: Any, index: Any) -> Any:
    """A number that sorts by a distance, which is not negative, and tells the index."""
    return np.int32(float_bits(value) & _VALUE) | np.int32(index)


@inlined
def _nearest_leaders(point: Any, products: Any, squares: Any, columns: Any, keys: Any, fanout: Any, out: Any) -> None:
    """Write the `fanout` nearest leaders of a point to out, -1 behind them where there are fewer."""
    square = np.float32(0)
    for i in range(point.shape[0]):
        square += point[i] * point[i]
    for j in range(columns):
        keys[j] = _key(max(np.float32(0), square + squares[j] - np.float32(2) * products[j]), j)
    for t in range(fanout):
        best = _INFINITE
        for j in range(columns):
            best = min(best, keys[j])
        if best >= _INFINITE:
            out[t] = -1
            continue
        out[t] = best & _INDEX
        keys[best & _INDEX] = _INFINITE


@kernel
def assign(rows: Any, ids: Any, leaders: Any, asking: Any, work: Any, out: Any) -> None:
    """Find the nearest leaders of the rows `ids`: out is int32 (ids, fanout), nearest first.

    asking: as the places of queries in the direction of the rows, under `ip`. work: a Table.
    """
    block, columns, fanout = work.points.shape[0], leaders.squares.shape[0], out.shape[1]
    for start in range(0, ids.shape[0], block):
        count = min(block, ids.shape[0] - start)
        for i in range(count):
            if i + 1 < count:
                prefetch_row(rows, ids[start + i + 1])
            if asking:
                aim_as_query(rows, ids[start + i], work.points[i])
                work.points[i, rows.dim] = 0
                for t in range(leaders.origin.shape[0]):
                    work.points[i, t] -= leaders.origin[t]
            else:
                _place(rows, ids[start + i], leaders.origin, work.points[i])
        _multiply(work.points, count, leaders.panels, columns, work.products)
        for i in range(count):
            _nearest_leaders(
                work.points[i], work.products[i], leaders.squares, columns, work.keys, fanout, out[start + i]
            )


@kernel
def carve(rows: Any, ids: Any, members: Any, carving: Any, work: Any, slots: Any) -> None:
    """Carve one cluster into leaves, and choose edges in each.

    members: int64, place in `ids` * outer + which of the row's clusters this is. work: a Cluster. slots: uint32 (ids,
    outer * inner * kept, twice that under `ip`), filled with VACANT; receives ids.
    """
    count, inner, points = members.shape[0], carving.inner, work.points
    middle = ids[members[count // 2] // carving.outer]
    decode(rows, middle, work.origin)
    if work.origin.shape[0] > rows.dim:
        work.origin[rows.dim] = lift_of(rows, middle)
    for i in range(count):
        if i + 1 < count:
            prefetch_row(rows, ids[members[i + 1] // carving.outer])
        work.names[i] = ids[members[i] // carving.outer]
        _place(rows, work.names[i], work.origin, points[i])
    if count <= carving.most:
        for i in range(count):
            work.order[i] = i * inner
        _link_leaf(rows, members, carving, work, 0, count, slots)
        return
    around = work.around
    leaders = min(-(-count * inner // carving.leaf), work.starts.shape[0] - 1, count)
    for t in range(leaders):
        point, leader = points[t * count // leaders], around.points[t]
        for i in range(point.shape[0]):
            leader[i] = point[i]
    _fill_panels(around.points, leaders, around.squares, around.panels)
    _multiply(points, count, around.panels, leaders, around.products)
    columns = -(-leaders // TILE_COLUMNS) * TILE_COLUMNS
    for i in range(count):
        _nearest_leaders(
            points[i], around.products[i], around.squares, columns, around.keys, inner, work.labels[i]
        )  # fmt: skip
    _group(work, count, inner, leaders)
    for t in range(leaders):
        start, size = work.starts[t], work.starts[t + 1] - work.starts[t]
        pieces = -(-size // carving.most)
        for piece in range(pieces):
            _link_leaf(
                rows, members, carving, work, start + piece * size // pieces, start + (piece + 1) * size // pieces,
                slots,
            )  # fmt: skip


@inlined
def _group(work: Any, count: Any, inner: Any, leaders: Any) -> None:
    """Bring the rows of a cluster into the order of their leaves."""
    for t in range(leaders + 1):
        work.starts[t] = 0
    for i in range(count):
        for s in range(inner):
            if work.labels[i, s] >= 0:
                work.starts[work.labels[i, s] + 1] += 1
    for t in range(leaders):
        work.starts[t + 1] += work.starts[t]
    for i in range(count):
        for s in range(inner):
            label = work.labels[i, s]
            if label >= 0:
                work.order[work.starts[label]] = i * inner + s
                work.starts[label] += 1
    for t in range(leaders, 0, -1):
        work.starts[t] = work.starts[t - 1]
    work.starts[0] = 0


@inlined
def _link_leaf(rows: Any, members: Any, carving: Any, work: Any, first: Any, last: Any, slots: Any) -> None:
    """Choose edges among the rows order[first:last]."""
    leaf, count, inner = work.leaf, last - first, carving.inner
    columns = -(-count // TILE_COLUMNS) * TILE_COLUMNS
    for a in range(count):
        point, own = work.points[work.order[first + a] // inner], leaf.points[a]
        for i in range(point.shape[0]):
            own[i] = point[i]
    _fill_panels(leaf.points, count, leaf.squares, leaf.panels)
    for panel in range(columns // TILE_COLUMNS):
        for row in range(0, min(count, (panel + 1) * TILE_COLUMNS), TILE_ROWS):
            multiply_tile(leaf.points, row, leaf.panels, panel, leaf.products)
    for a in range(count):
        line, square = leaf.products[a], leaf.squares[a]
        left = a // TILE_ROWS * TILE_ROWS // TILE_COLUMNS * TILE_COLUMNS  # what stands mirrored in the rows above
        for j in range(left):
            line[j] = leaf.products[j, a]
        for j in range(left, columns):
            line[j] = max(np.float32(0), square + leaf.squares[j] - np.float32(2) * line[j])
        line[a] = _INFINITY
    lifted = rows.radius > 0
    if lifted:
        for a in range(count):
            work.lifts[a] = leaf.points[a, rows.dim] + work.origin[rows.dim]
    kinds = 2 if lifted else 1
    for a in range(count):
        entry = work.order[first + a]
        member = members[entry // inner]
        row = slots[member // carving.outer]
        slot = ((member % carving.outer) * inner + entry % inner) * carving.kept * kinds
        _choose_in_leaf(work, carving, first, columns, a, np.float32(0), np.float32(1), np.float32(0), row, slot)
        if lifted:
            norm = rows.seals[work.names[entry // inner], NORM]
            if norm > 0:
                # The squared distance to where a query in the direction of the row stands, from that between the rows.
                slope = np.float32(2) * np.float32(math.sqrt(rows.radius)) / norm
                _choose_in_leaf(
                    work, carving, first, columns, a, (np.float32(2) - slope) * rows.radius, slope / np.float32(2),
                    slope * work.lifts[a], row, slot + carving.kept,
                )  # fmt: skip


@inlined
def _choose_in_leaf(
    work: Any, carving: Any, first: Any, columns: Any, a: Any, base: Any, slope: Any, rise: Any, row: Any, slot: Any
) -> None:
    """Prune all of a leaf for one of its rows, as robust_prune does, until `kept` are chosen.

    A place's distance is base + slope * (that between the rows) + rise * (the lift of the other).
    """
    leaf, keys, inner = work.leaf, work.leaf.keys, carving.inner
    line, lifts = leaf.products[a], work.lifts
    best = _INFINITE
    for j in range(columns):
        key = _key(max(np.float32(0), base + slope * line[j] + rise * lifts[j]), j)
        keys[j] = key
        best = min(best, key)
    for t in range(carving.kept):
        if best >= _INFINITE:
            break
        at = best & _INDEX
        row[slot + t] = work.names[work.order[first + at] // inner]
        keys[at] = _INFINITE
        other = leaf.products[at]
        best = _INFINITE
        for j in range(columns):
            apart = base + slope * line[j] + rise * lifts[j]
            key = keys[j] if carving.alpha * other[j] > apart else _INFINITE
            keys[j] = key
            best = min(best, key)


@kernel
def choose_among(rows: Any, edges: Any, shape: Any, ids: Any, slots: Any, others: Any, seen: Any, bench: Any) -> None:
    """Give each row of `ids` edges chosen among its candidates: slots[i] and others[i], uint32, VACANT for none.

    seen: uint32, working memory, a power of two in length. bench: room for all candidates of a row.
    """
    for i in range(ids.shape[0]):
        node, total = np.int64(ids[i]), 0
        seen[:] = VACANT
        for t in range(slots.shape[1] + others.shape[1]):
            candidate = slots[i, t] if t < slots.shape[1] else others[i, t - slots.shape[1]]
            if candidate != VACANT and candidate != node and unseen(seen, candidate):
                prefetch_row(rows, candidate)
                bench.candidates[total] = np.uint64(candidate)
                total += 1
        decode(rows, node, bench.anchor)
        lift = lift_of(rows, node)
        for t in range(total):
            candidate = np.int64(bench.candidates[t])
            bench.candidates[t] = pack(distance(rows, bench.anchor, lift, candidate), candidate)
        count = sort_distinct(bench.candidates, total)
        write_edges(rows, node, shape, bench, count, edges[node])


@kernel
def count_in_edges(edges: Any, ids: Any, counts: Any) -> None:
    """Count the edges that lead to each id: counts is int64, one longer than there are ids, shifted by one."""
    for i in range(ids.shape[0]):
        row = edges[ids[i]]
        for slot in range(FIRST_NEIGHBOUR, FIRST_NEIGHBOUR + np.int64(row[DEGREE])):
            counts[np.int64(row[slot]) + 1] += 1


@kernel
def gather_in_edges(edges: Any, ids: Any, places: Any, sources: Any) -> None:
    """Write the source of each edge to the place of its target, and move that on."""
    for i in range(ids.shape[0]):
        row = edges[ids[i]]
        for slot in range(FIRST_NEIGHBOUR, FIRST_NEIGHBOUR + np.int64(row[DEGREE])):
            target = np.int64(row[slot])
            sources[places[target]] = ids[i]
            places[target] += 1


@kernel
def hash_rows(words: Any, seals: Any, ids: Any, out: Any) -> None:
    """Hash what rows store, so that equal ones are found.

    words: uint64 (rows, n), the stored vectors. seals: uint32 (rows, 1 … 4). out: uint64 (ids,).
    """
    for i in range(ids.shape[0]):
        stored = words[ids[i]]
        total = _MIX
        for t in range(stored.shape[0]):
            total = (total ^ stored[t]) * _MIX
            total ^= total >> _SHIFT
        if seals.shape[1] == 4:
            total = (total ^ np.uint64(seals[ids[i], SCALE])) * _MIX
            total = (total ^ (total >> _SHIFT) ^ np.uint64(seals[ids[i], OFFSET])) * _MIX
        out[i] = total


@kernel
def copy_edges(edges: Any, twins: Any, firsts: Any, most: Any) -> None:
    """Give each row of `twins` an edge to the row of `firsts` that it equals, and that row's first edges."""
    for i in range(twins.shape[0]):
        row, model = edges[twins[i]], edges[firsts[i]]
        row[FIRST_NEIGHBOUR] = firsts[i]
        count = 1
        for slot in range(FIRST_NEIGHBOUR, FIRST_NEIGHBOUR + np.int64(model[DEGREE])):
            if count == most:
                break
            row[FIRST_NEIGHBOUR + count] = model[slot]
            count += 1
        row[DEGREE] = count
