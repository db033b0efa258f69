"""Filtered scans that go from cell to cell: the rows are divided among centres, and those of the nearest are looked at.

An inverted file (Jégou et al. 2011) whose lists hold ids alone: what a filter lets through is scored by its code where
that lies. How many cells are enough is not asked of the caller. A row of a cell is at about the squared distance d² + v
from a query, d being that of the centre and v the mean over the cell's rows, and nearer than that by 2 d √v times its
*stray*, about the cosine between its way and the query's from the centre. How many rows stray by how much, among cells
that are so far for their size, has been counted where rows of the database stand for queries. So it is known how many
matches nearer than the k-th are to be expected of the cells that are left; a scan ends when that is few enough,
wherever the matches are.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ..types import Float32s, Int64s, UInt32s
from .candidates import NOTHING, distance_of, id_of, insert_at, pack, place_of, sort
from .codes import scorer_of
from .jit import inlined, kernel
from .listed import finish
from .predicate import let_through
from .rows import aim_at
from .search import DISTANCES, FOUND, HOPS, STARVED, aim, score

FARS, STRAYS = 16, 64  # classes of the distance of a cell for its size, up to 4, and of strays, from -1 to 1
LEAST_CELLS = 8  # a tight group of rows may lie on the border of several, whatever is common
NEAREST = 4  # cells by which it is told what share of the rows near the query matches, wherever they are
AT_ONCE = 128  # matches that are gathered before they are scored: so many lines are on their way at once
FADING = np.float32(0.9)  # of the share of matches in the cells before the last one
SHORT, CROWDED = 1, 2  # as STARVED: what is asked for does not fit, or the matches lie around the query


class Cells(NamedTuple):
    """centres: float32 (cells, width), in the graph's geometry, the lift last where rows have one. spreads: float32
    (cells,), the mean of the squared distances of their rows. chances: float32 (FARS, STRAYS), of the rows of a cell so
    far for its size, the share that strays by so much or more. order: uint32, ids by cell; starts: int64 (cells + 1,),
    where those of each begin; widest: rows of the largest. late: uint32, ids that are in no cell, or that were given to
    another row since.
    """

    centres: Float32s
    spreads: Float32s
    chances: Float32s
    order: UInt32s
    starts: Int64s
    widest: int
    late: UInt32s


@kernel
def scan_cells(
    rows: Any, codes: Any, live: Any, plan: Any, queries: Any, cells: Any, matches: Any, missing: Any, crowd: Any,
    keys: Any, candidates: Any, scratch: Any, asked: Any, results: Any,
) -> Any:  # fmt: skip
    """Answer queries, float32 (n, dim), by the rows that a filter lets through; returns the fewest hits found.

    matches: how many there are, about. missing: of the k nearest that the cells left out may hold, as is to be
    expected. crowd: of the rows in the nearest cells, a share of matches from which on a query is CROWDED, and left to
    others. keys: uint64 (cells,), working memory. candidates: uint64, room for late rows and one more; a query whose
    matches may not fit into the rest is SHORT. Both have no hits.
    """
    fewest, k = results.ids.shape[1], results.ids.shape[1]
    scorer, pool, capacity = scorer_of(codes, asked), scratch.pool, plan.search_list
    for i in range(queries.shape[0]):
        lift = aim(rows, plan.metric, queries[i], scratch.query)
        info = results.info[i]
        info[HOPS], info[DISTANCES], info[FOUND], info[STARVED] = 0, 0, 0, 0
        if lift == 0:  # a query without direction is as near to every row: the caller answers it by a scan
            aim_at(scorer, scratch.query)
            _rank(cells, scratch.query, rows.dim, keys)
            waiting = _gather(live, cells.late, 0, cells.late.shape[0], candidates, 0)
            score(scorer, scratch.query, lift, candidates, waiting)
            count = _keep(candidates, 0, waiting, pool, 0, capacity)
            looked, rate, here, at = 0, np.float32(0), np.float32(-1), 0
            while at < keys.shape[0]:
                before = waiting
                while at < keys.shape[0] and (waiting < before + AT_ONCE or at < NEAREST):
                    if waiting + cells.widest >= candidates.shape[0]:
                        info[STARVED] = SHORT
                        break
                    cell, gathered = id_of(keys[at]), waiting
                    first, last = cells.starts[cell], cells.starts[cell + 1]
                    waiting = _gather(live, cells.order, first, last, candidates, waiting)
                    if last > first:
                        rate = FADING * rate + (1 - FADING) * np.float32(waiting - gathered) / np.float32(last - first)
                    looked += last - first
                    at += 1
                if here < 0:
                    here = np.float32(waiting - before) / np.float32(max(looked, 1))
                    if here > crowd:
                        info[STARVED] = CROWDED
                if info[STARVED] != 0:
                    break
                score(scorer, scratch.query, lift, candidates[before:], waiting - before)
                count = _keep(candidates, before, waiting, pool, count, capacity)
                if at < LEAST_CELLS:
                    continue
                if count == capacity or (count >= k and waiting >= matches):
                    left = np.float32(matches - waiting) / np.float32(max(cells.order.shape[0] - looked, 1))
                    if _few_left(cells, keys, at, distance_of(pool[k - 1]), max(here, rate, left), missing):
                        break
            info[HOPS], info[DISTANCES] = at, waiting + keys.shape[0]
            if info[STARVED] == 0:
                info[FOUND] = finish(
                    rows, live, plan, queries[i], lift, candidates, waiting, pool, count, scratch.query,
                    results.ids[i], results.distances[i],
                )  # fmt: skip
        fewest = min(fewest, info[FOUND])
    return fewest


@inlined
def _rank(cells: Any, query: Any, dim: Any, keys: Any) -> None:
    """Put the cells in the order of what the distances of their rows are, on the whole."""
    centres = cells.centres
    for cell in range(keys.shape[0]):
        centre = centres[cell]
        total = np.float32(0)
        for i in range(dim):
            difference = query[i] - centre[i]
            total += difference * difference
        if centres.shape[1] > dim:
            total += centre[dim] * centre[dim]
        keys[cell] = pack(total + cells.spreads[cell], cell)
    sort(keys, keys.shape[0])


@inlined
def _gather(live: Any, ids: Any, first: Any, last: Any, candidates: Any, waiting: Any) -> Any:
    """Collect those of some ids that a filter lets through; returns how many are collected."""
    for t in range(first, last):
        row = np.int64(ids[t])
        if row < live.rows:
            candidates[waiting] = np.uint64(row)
            waiting += let_through(live, row)
    return waiting


@inlined
def _keep(candidates: Any, first: Any, last: Any, pool: Any, count: Any, capacity: Any) -> Any:
    """Put candidates into the pool where they are among the nearest, each once; returns how many it holds."""
    bound = pool[count - 1] if count == capacity else NOTHING
    for t in range(first, last):
        if candidates[t] < bound:
            place = place_of(pool, count, candidates[t])
            if place < count and pool[place] == candidates[t]:
                continue  # a row that is late, and still in the cell of the one before it
            insert_at(pool, place, count, capacity, candidates[t])
            count = min(count + 1, capacity)
            if count == capacity:
                bound = pool[count - 1]
    return count


@inlined
def _few_left(cells: Any, keys: Any, first: Any, last: Any, rate: Any, missing: Any) -> Any:
    """Whether fewer than `missing` matches nearer than the squared distance `last` are to be expected of the cells from
    the place `first` on. rate: of rows that match.
    """
    expected = np.float32(0)
    for at in range(first, keys.shape[0]):
        cell = id_of(keys[at])
        mean, spread = distance_of(keys[at]), cells.spreads[cell]
        far, stray = _classes(mean, spread, last)
        expected += rate * cells.chances[far, stray] * np.float32(cells.starts[cell + 1] - cells.starts[cell])
        if expected > missing:
            return False
    return True


@inlined
def _classes(mean: Any, spread: Any, found: Any) -> Any:
    """The classes of a cell, whose rows are at a mean squared distance, and of a row found at another one."""
    scale = np.float32(math.sqrt(max(mean - spread, np.float32(0)) * spread))
    if not 0 < scale < np.inf:
        return 0, (0 if found >= mean else STRAYS - 1)
    far = min(scale / spread * np.float32(FARS / 4), np.float32(FARS - 1))
    stray = (mean - found) / scale * np.float32(STRAYS / 4) + np.float32(STRAYS / 2)
    return np.int64(far), np.int64(min(max(stray, np.float32(0)), np.float32(STRAYS - 1)))


@kernel
def count_strays(places: Any, labels: Any, centres: Any, spreads: Any, asked: Any, out: Any) -> None:
    """Count by how much rows stray from their cells, seen from some of them: out is int64 (FARS, STRAYS).

    places: float32 (rows, width). labels: int64, the cell of each. asked: int64, the rows that stand for queries.
    """
    width = places.shape[1]
    for a in range(asked.shape[0]):
        query = places[asked[a]]
        for row in range(places.shape[0]):
            if row == asked[a]:
                continue
            place, centre, spread = places[row], centres[labels[row]], spreads[labels[row]]
            found = mean = np.float32(0)
            for i in range(width):
                difference = query[i] - place[i]
                found += difference * difference
            for i in range(width):
                difference = query[i] - centre[i]
                mean += difference * difference
            far, stray = _classes(mean + spread, spread, found)
            out[far, stray] += 1


@kernel
def look_up_chances(cells: Any, means: Any, found: Any, out: Any) -> None:
    """The share of the rows of each cell that is nearer than what was found: out is float32 (queries, cells).

    means: float32 (queries, cells), mean squared distances of their rows. found: float32 (queries,).
    """
    for i in range(means.shape[0]):
        for cell in range(means.shape[1]):
            far, stray = _classes(means[i, cell], cells.spreads[cell], found[i])
            out[i, cell] = cells.chances[far, stray]
