"""Beam search over the graph, and the exact scan: the two ways in which a query is answered.

The graph is a matrix of uint32, one row per id: degree, lifeline, neighbours. A lifeline is the id of one more
neighbour plus one: together they thread all linked rows on a single ring, so that each is reachable by construction.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ..types import Float32s, UInt32s, UInt64s
from .candidates import (
    EXPANDED,
    NOTHING,
    VACANT,
    distance_of,
    id_of,
    insert_at,
    insert_sorted,
    pack,
    place_of,
    push_heap,
    unseen,
)
from .intrinsics import bits_float, float_bits, load_first, prefetch
from .jit import inlined, kernel
from .predicate import NO_TESTS, let_through
from .rows import LENGTH, distance, inner, lift_of, prefetch_row

DEGREE, LIFELINE, FIRST_NEIGHBOUR = 0, 1, 2  # columns of a row of edges
BORN, DIED = 0, 1  # columns of a row of state
FOUND, HOPS, DISTANCES, STARVED, PAGES, LOST = 0, 1, 2, 3, 4, 5  # columns of `info`
INFO = 6
L2, COSINE, IP, GEOMETRY = 0, 1, 2, 3  # GEOMETRY: the query is a stored row, already in the graph's own space
TOMBSTONE_ROOM = 8  # how many times its search list a pool holds at first while deleted rows are among them
FAR_AHEAD = 4  # rows of edges requested before the one whose neighbours are looked at
AHEAD = 24  # rows requested before the one that is scored: as many lines as a core can wait for
ENTERED = 2  # sampled rows, the nearest that were found, at which a query enters
PLACE = np.uint32(1 << 31)  # tells a place in a sample from an id in the table of seen ones


EVERY_ROW: UInt64s = np.empty(0, np.uint64)  # no filter


class Navigation(NamedTuple):
    """A graph over a sample of the rows, in which a query finds where to enter that of all. Empty while there is none.

    ids: uint32 (n,), the sampled rows. edges: uint32 (n, 2 + neighbours), as those of the rows, but between places in
    `ids`. starts: walks begin at the first so many places. rows: all `ids` are below this.
    """

    ids: UInt32s
    edges: UInt32s
    starts: int
    rows: int


class Graph(NamedTuple):
    """edges: uint32 (rows, 2 + neighbours). entries: uint32 ids where every walk starts. navigation: finds more."""

    edges: UInt32s
    entries: UInt32s
    navigation: Navigation


class Live(NamedTuple):
    """state: uint64 (rows, 2), the commits at which each row was born and died, 0 for never.

    snapshot: words of state up to this one are of commits that the query sees. rows: ids below this exist.
    allowed: a bit for each of them, of those that a filter lets through; empty where there is no filter. tests: what
    these have to pass as well, see predicate.passes, but for those that have a bit in `proven`, if that has any.
    """

    state: UInt64s
    snapshot: np.uint64
    rows: int
    allowed: UInt64s = EVERY_ROW
    tests: UInt64s = NO_TESTS
    proven: UInt64s = EVERY_ROW


class Plan(NamedTuple):
    """How to walk.

    tombstones: whether rows on the way may be invisible, so that the list must count visible ones.
    nearest, stretch: no row is expanded that is farther than the `nearest`-th found so far by this factor, on squared
    distances. A stretch of infinity leaves the end to the list alone.
    hidden: a row that the walk takes no notice of, as if it were not in the graph; -1 for none.
    leap: in the place of neighbours that a filter does not let through, look at theirs; how many rows of edges one
    node may bring so. 0 for a walk over all neighbours.
    least: a walk ends if its pool is full before it has met so many visible rows: it is among others, and has nothing
    to go by.
    """

    search_list: int
    beam_width: int
    metric: int
    tombstones: bool
    nearest: int
    stretch: np.float32
    hidden: int = -1
    leap: int = 0
    least: int = 0


class Scratch(NamedTuple):
    """Working memory of one thread.

    pool, best: uint64 candidates. seen: uint32, a power of two. frontier: uint64, ids that become candidates. trail:
    uint64, receives every expanded candidate, may be empty. query: float32 (dim,).
    """

    pool: UInt64s
    best: UInt64s
    seen: UInt32s
    frontier: UInt64s
    trail: UInt64s
    query: Float32s


class Results(NamedTuple):
    """ids: uint32 (queries, k). distances: float32 (queries, k). info: int64 (queries, INFO).

    Of info, walks in memory leave PAGES, read from the disk, and LOST, rows that could not be read, as they are.
    """

    ids: UInt32s
    distances: Float32s
    info: Any


@inlined
def visible(live: Any, row: Any) -> Any:
    """Whether a row is part of the snapshot, and is let through. The subtraction sends 0, never, to the largest number.

    The death first: where an id is given to a new row, the birth is written before the death is taken back.
    """
    if live.allowed.shape[0] > 0 and not let_through(live, row):
        return False
    died = load_first(live.state, row, DIED) - np.uint64(1)
    born = live.state[row, BORN] - np.uint64(1)
    return born < live.snapshot and died >= live.snapshot


@inlined
def usable(live: Any, row: Any) -> Any:
    """Whether an edge may lead to a row: it is there, and has not died in any commit."""
    return live.state[row, BORN] != 0 and live.state[row, DIED] == 0


@inlined
def aim(rows: Any, metric: Any, raw: Any, query: Any) -> Any:
    """Write the query in the graph's geometry; returns its lift."""
    scale = 1.0
    lift = np.float32(0)
    if metric == COSINE or metric == IP:
        total = 0.0
        for i in range(rows.dim):
            total += np.float64(raw[i]) * np.float64(raw[i])
        if total > 0:
            # Scaling a query does not change its order under ip; at the rows' own norm float32 resolves it best.
            reach = max(1e-30, float(rows.radius)) if metric == IP else 1.0
            scale = math.sqrt(reach / total)
        elif metric == COSINE:
            lift = np.float32(1)
    for i in range(rows.dim):
        query[i] = np.float32(np.float64(raw[i]) * scale)
    return lift


@inlined
def enter(graph: Any, live: Any, scratch: Any) -> Any:
    """Begin a walk at the entries: writes their ids to the frontier, and returns how many."""
    scratch.seen[:] = VACANT
    return _add_entries(graph, live, scratch, 0)


@inlined
def _add_entries(graph: Any, live: Any, scratch: Any, waiting: Any) -> Any:
    for entry in range(graph.entries.shape[0]):
        if graph.entries[entry] < live.rows:
            scratch.frontier[waiting] = np.uint64(graph.entries[entry])
            waiting += unseen(scratch.seen, graph.entries[entry])
    return waiting


@inlined
def navigate(rows: Any, graph: Any, live: Any, plan: Any, lift: Any, scratch: Any, info: Any) -> Any:
    """Begin a query at the sampled rows nearest to it, and at the entries; as `enter` where there is no sample.

    A best-first search like that of all rows, with a list as short as what is made of it (Malkov & Yashunin, HNSW,
    2018; Wang et al., Starling, 2024). Dead rows show the way as well as others.
    """
    scratch.seen[:] = VACANT
    if graph.navigation.ids.shape[0] == 0:
        return _add_entries(graph, live, scratch, 0)
    ids, edges, pool, seen, frontier = (
        graph.navigation.ids, graph.navigation.edges, scratch.pool, scratch.seen, scratch.frontier,
    )  # fmt: skip
    capacity, most = min(ENTERED, pool.shape[0]), edges.shape[1] - FIRST_NEIGHBOUR
    bound = NOTHING
    count = cursor = waiting = 0
    for start in range(graph.navigation.starts):
        frontier[waiting] = np.uint64(start)
        waiting += unseen(seen, PLACE | np.uint32(start))
    while True:
        for t in range(min(AHEAD, waiting)):
            prefetch_row(rows, np.int64(ids[np.int64(frontier[t])]))
        for t in range(waiting):
            if t + AHEAD < waiting:
                prefetch_row(rows, np.int64(ids[np.int64(frontier[t + AHEAD])]))
            place = np.int64(frontier[t])
            frontier[t] = pack(distance(rows, scratch.query, lift, np.int64(ids[place])), place)
        info[DISTANCES] += waiting
        kept = keep_below(frontier, waiting, bound)
        for t in range(kept):
            candidate = frontier[t]
            if candidate >= bound or np.int64(ids[id_of(candidate)]) == plan.hidden:
                continue
            at = place_of(pool, count, candidate)
            if at < count and pool[at] | EXPANDED == candidate | EXPANDED:
                continue
            insert_at(pool, at, count, capacity, candidate)
            cursor = min(cursor, at)
            count = min(count + 1, capacity)
            if count == capacity:
                bound = pool[count - 1]
        while cursor < count and pool[cursor] & EXPANDED:
            cursor += 1
        if cursor == count:
            break
        place = id_of(pool[cursor])
        pool[cursor] |= EXPANDED
        info[HOPS] += 1
        waiting = 0
        for slot in range(FIRST_NEIGHBOUR, FIRST_NEIGHBOUR + min(np.int64(edges[place, DEGREE]), most)):
            other = edges[place, slot]
            frontier[waiting] = np.uint64(other)
            waiting += unseen(seen, PLACE | other)
    waiting = 0
    for t in range(count):
        row = ids[id_of(pool[t])]
        frontier[waiting] = np.uint64(row)
        waiting += unseen(seen, row)
    return _add_entries(graph, live, scratch, waiting)


@inlined
def beam_search(rows: Any, graph: Any, live: Any, plan: Any, lift: Any, scratch: Any, waiting: Any, info: Any) -> Any:
    """Best-first search for scratch.query, from the first `waiting` ids of the frontier.

    Fills scratch.pool, and scratch.best if there may be tombstones. Returns the number of candidates in the list that
    counts. Jayaram Subramanya et al., DiskANN, 2019, Algorithm 1;
    the end by distance: Al-Jazzazi et al., Distance Adaptive Beam Search, 2025.
    """
    edges, pool, best, seen, frontier = graph.edges, scratch.pool, scratch.best, scratch.seen, scratch.frontier
    capacity = pool.shape[0] if plan.tombstones else plan.search_list
    most = edges.shape[1] - FIRST_NEIGHBOUR
    bound = NOTHING
    count = found = cursor = hops = scored = 0
    while True:
        score(rows, scratch.query, lift, frontier, waiting)
        scored += waiting
        kept = keep_below(frontier, waiting, bound)
        for t in range(kept):
            candidate = frontier[t]
            if candidate >= bound or id_of(candidate) == plan.hidden:
                continue
            place = place_of(pool, count, candidate)
            if place < count and pool[place] | EXPANDED == candidate | EXPANDED:
                continue  # seen before, and forgotten by the table
            insert_at(pool, place, count, capacity, candidate)
            cursor = min(cursor, place)
            count = min(count + 1, capacity)
            prefetch(edges, id_of(candidate))  # which the walk will want if nothing nearer turns up
            if plan.tombstones:
                if visible(live, id_of(candidate)):
                    insert_sorted(best, found, plan.search_list, candidate)
                    found = min(found + 1, plan.search_list)
                if count == capacity:
                    bound = min(bound, pool[count - 1])
                if found == plan.search_list:
                    bound = min(bound, best[found - 1])
            elif count == capacity:
                bound = min(bound, pool[count - 1])
        if plan.tombstones:
            if count == capacity and found < plan.least:
                break
            if found >= plan.nearest:
                bound = min(bound, reach_of(best[plan.nearest - 1], plan.stretch))
                # What lies beyond is not expanded any more: a short pool is quicker to insert into.
                count = place_of(pool, count, reach_of(best[plan.nearest - 1], plan.stretch))
                cursor = min(cursor, count)
        elif count >= plan.nearest:
            bound = min(bound, reach_of(pool[plan.nearest - 1], plan.stretch))
        waiting = taken = 0
        while cursor < count and taken < plan.beam_width:
            candidate = pool[cursor]
            if candidate & EXPANDED:
                cursor += 1
                continue
            if candidate > bound:
                break
            pool[cursor] = candidate | EXPANDED
            if hops < scratch.trail.shape[0]:
                scratch.trail[hops] = candidate
            hops += 1
            taken += 1
            cursor += 1
            node = id_of(candidate)
            if plan.leap > 0:
                waiting = leap(edges, live, plan, node, seen, frontier, waiting)
                continue
            degree = min(np.int64(edges[node, DEGREE]), most)
            lifeline = np.int64(edges[node, LIFELINE]) - 1
            if 0 <= lifeline < live.rows:
                frontier[waiting] = np.uint64(lifeline)
                waiting += unseen(seen, lifeline)
            for slot in range(FIRST_NEIGHBOUR, FIRST_NEIGHBOUR + degree):
                neighbour = edges[node, slot]
                # Soft data may be damaged: an id out of range is skipped, never followed.
                if neighbour < live.rows:
                    frontier[waiting] = np.uint64(neighbour)
                    waiting += unseen(seen, neighbour)
        if taken == 0:
            break
    info[FOUND] = 0
    info[HOPS] += hops
    info[DISTANCES] += scored
    info[STARVED] = plan.tombstones and count == capacity and starved(pool, count, best, found, plan)
    return found if plan.tombstones else count


@inlined
def leap(edges: Any, live: Any, plan: Any, node: Any, seen: Any, frontier: Any, waiting: Any) -> Any:
    """Collect the neighbours of a node that a filter lets through, and in the place of each other one its neighbours.

    As ACORN-1 (Patel et al., 2024), but in the order of the edges, and no more than plan.leap rows' worth for a
    node, so that it costs about the same however few there are. Returns how many are waiting.
    """
    most = edges.shape[1] - FIRST_NEIGHBOUR
    stop = FIRST_NEIGHBOUR + min(np.int64(edges[node, DEGREE]), most)
    room = min(waiting + plan.leap * most, frontier.shape[0])
    lifeline = np.int64(edges[node, LIFELINE]) - 1
    if 0 <= lifeline < live.rows and waiting < room:
        frontier[waiting] = np.uint64(lifeline)
        waiting += unseen(seen, lifeline)
    for slot in range(FIRST_NEIGHBOUR, stop):
        neighbour = np.int64(edges[node, slot])
        if neighbour < live.rows and waiting < room and let_through(live, neighbour):
            frontier[waiting] = np.uint64(neighbour)
            waiting += unseen(seen, neighbour)
    for slot in range(FIRST_NEIGHBOUR, min(FIRST_NEIGHBOUR + FAR_AHEAD, stop)):
        if edges[node, slot] < live.rows:
            prefetch(edges, edges[node, slot])
    for slot in range(FIRST_NEIGHBOUR, stop):
        if waiting >= room:
            break
        if slot + FAR_AHEAD < stop and edges[node, slot + FAR_AHEAD] < live.rows:
            prefetch(edges, edges[node, slot + FAR_AHEAD])
        between = np.int64(edges[node, slot])
        if between >= live.rows or let_through(live, between) or not unseen(seen, between):
            continue
        for far in range(FIRST_NEIGHBOUR, FIRST_NEIGHBOUR + min(np.int64(edges[between, DEGREE]), most)):
            other = np.int64(edges[between, far])
            if other < live.rows and waiting < room and let_through(live, other):
                frontier[waiting] = np.uint64(other)
                waiting += unseen(seen, other)
    return waiting


@inlined
def starved(pool: Any, count: Any, best: Any, found: Any, plan: Any) -> Any:
    """Whether rows that are not visible have filled the pool, so that a walk has ended nearer than the list or the
    stretch would have it end.
    """
    if found < plan.nearest:
        return True
    end = reach_of(best[plan.nearest - 1], plan.stretch)
    if found == plan.search_list:
        end = min(end, best[found - 1])
    return pool[count - 1] < end


@inlined
def score(rows: Any, query: Any, lift: Any, frontier: Any, waiting: Any) -> None:
    """Turn the first `waiting` ids of the frontier into candidates. No branch here hangs on a distance."""
    for t in range(min(AHEAD, waiting)):
        prefetch_row(rows, np.int64(frontier[t]))
    for t in range(waiting):
        if t + AHEAD < waiting:
            prefetch_row(rows, np.int64(frontier[t + AHEAD]))
        row = np.int64(frontier[t])
        frontier[t] = pack(distance(rows, query, lift, row), row)


@inlined
def keep_below(frontier: Any, waiting: Any, bound: Any) -> Any:
    """Move the candidates below a bound to the front of the frontier; returns how many they are."""
    kept = 0
    for t in range(waiting):
        candidate = frontier[t]
        frontier[kept] = candidate
        kept += candidate < bound
    return kept


@inlined
def reach_of(candidate: Any, stretch: Any) -> Any:
    """The first candidate that is farther than this one by more than a factor on squared distances."""
    return (np.uint64(float_bits(stretch * distance_of(candidate))) + np.uint64(1)) << np.uint64(32)


@inlined
def cosine_distance(rows: Any, squared: Any, lift: Any, row: Any) -> Any:
    """1 - cos from the squared distance between what is stored for two unit vectors."""
    if lift > 0 or (rows.radius < 0 and lift_of(rows, row) > 0):
        return np.float32(1)  # the query or the row has no direction
    if rows.seals.shape[1] == 3:
        length = rows.seals[row, LENGTH]
        if length > 0:
            return np.float32(1) - (np.float32(1) + length * length - squared) / (np.float32(2) * length)
    return squared * np.float32(0.5)


@inlined
def emit(rows: Any, live: Any, plan: Any, raw: Any, lift: Any, candidates: Any, count: Any, ids: Any, out: Any) -> Any:
    """Write the nearest visible candidates under the metric, ascending, ties by id. Returns how many."""
    found, k = 0, ids.shape[0]
    reordered = plan.metric == IP or (plan.metric == COSINE and rows.seals.shape[1] == 3)
    for at in range(count):
        row = id_of(candidates[at])
        if not visible(live, row):
            continue
        if plan.metric == IP:
            value = np.float32(1) - inner(rows, raw, row)
        elif plan.metric == COSINE:
            value = cosine_distance(rows, distance_of(candidates[at]), lift, row)
        else:
            value = distance_of(candidates[at])
        place = found
        while place > 0 and (out[place - 1] > value or (out[place - 1] == value and ids[place - 1] > row)):
            place -= 1
        if place == k:
            if not reordered:
                break
            continue
        found = min(found + 1, k)
        for move in range(found - 1, place, -1):
            out[move], ids[move] = out[move - 1], ids[move - 1]
        out[place], ids[place] = value, row
    return found


@kernel
def search_batch(rows: Any, graph: Any, live: Any, plan: Any, queries: Any, scratch: Any, results: Any) -> Any:
    """Answer queries, float32 of shape (n, dim), one after the other; returns the fewest hits that one has found."""
    fewest = results.ids.shape[1]
    for i in range(queries.shape[0]):
        lift = aim(rows, plan.metric, queries[i], scratch.query)
        info = results.info[i]
        info[HOPS] = 0
        info[DISTANCES] = 0
        waiting = navigate(rows, graph, live, plan, lift, scratch, info)
        count = beam_search(rows, graph, live, plan, lift, scratch, waiting, info)
        candidates = scratch.best if plan.tombstones else scratch.pool
        info[FOUND] = 0  # a query without direction is as near to every row: the caller answers it by a scan
        if lift == 0:
            info[FOUND] = emit(
                rows, live, plan, queries[i], lift, candidates, count, results.ids[i], results.distances[i]
            )  # fmt: skip
        fewest = min(fewest, info[FOUND])
    return fewest


@inlined
def choose(rows: Any, ids: Any, plan: Any, lift: Any, scratch: Any, info: Any) -> Any:
    """Fill scratch.pool with the nearest of `ids`, each of which is to be there. Returns how many they are."""
    pool, frontier = scratch.pool, scratch.frontier
    capacity, bound, count = plan.search_list, NOTHING, 0
    for start in range(0, ids.shape[0], frontier.shape[0]):
        waiting = min(frontier.shape[0], ids.shape[0] - start)
        for t in range(waiting):
            frontier[t] = np.uint64(ids[start + t])
        score(rows, scratch.query, lift, frontier, waiting)
        kept = keep_below(frontier, waiting, bound)
        for t in range(kept):
            if frontier[t] < bound:
                insert_sorted(pool, count, capacity, frontier[t])
                count = min(count + 1, capacity)
                if count == capacity:
                    bound = pool[count - 1]
    info[DISTANCES] += ids.shape[0]
    return count


@kernel
def search_listed(rows: Any, live: Any, plan: Any, queries: Any, ids: Any, scratch: Any, results: Any) -> Any:
    """Answer queries, float32 of shape (n, dim), by the rows `ids`, uint32; returns the fewest hits that one has found.

    All of them must be below live.rows.
    """
    fewest = results.ids.shape[1]
    for i in range(queries.shape[0]):
        lift = aim(rows, plan.metric, queries[i], scratch.query)
        info = results.info[i]
        info[HOPS] = 0
        info[DISTANCES] = 0
        info[FOUND] = 0  # a query without direction is as near to every row: the caller answers it by a scan
        if lift == 0:
            count = choose(rows, ids, plan, lift, scratch, info)
            info[FOUND] = emit(
                rows, live, plan, queries[i], lift, scratch.pool, count, results.ids[i], results.distances[i]
            )  # fmt: skip
        fewest = min(fewest, info[FOUND])
    return fewest


@inlined
def orderable(value: Any) -> Any:
    """The bits of any float32, turned so that they sort as the floats do."""
    bits = float_bits(value)
    return (bits ^ np.uint32(0xFFFFFFFF)) if bits & np.uint32(0x80000000) else (bits | np.uint32(0x80000000))


@kernel
def scan(rows: Any, live: Any, metric: Any, queries: Any, ids: Any, heaps: Any, counts: Any) -> None:
    """Offer the visible ones of `ids` to the max-heap of each query: uint64 (queries, k), filled up to counts[i].

    queries: already aimed, float32 (n, dim + 1), the lift in the last column; raw ones under ip.
    A heap holds orderable distance << 32 | id.
    """
    for t in range(ids.shape[0]):
        if t + AHEAD < ids.shape[0]:
            prefetch_row(rows, ids[t + AHEAD])
        row = np.int64(ids[t])
        if row >= live.rows or not visible(live, row):
            continue
        for i in range(queries.shape[0]):
            if metric == IP:
                value = np.float32(1) - inner(rows, queries[i], row)
            else:
                lift = queries[i, rows.dim]
                value = max(np.float32(0), distance(rows, queries[i], lift, row))
                if metric == COSINE:
                    value = cosine_distance(rows, value, lift, row)
            counts[i] = push_heap(heaps[i], counts[i], (np.uint64(orderable(value)) << np.uint64(32)) | np.uint64(row))


@kernel
def aim_batch(rows: Any, metric: Any, queries: Any, out: Any) -> None:
    """Aim queries for `scan`: out is float32 (n, dim + 1)."""
    for i in range(queries.shape[0]):
        out[i, rows.dim] = aim(rows, metric, queries[i], out[i])


@inlined
def unpack_entries(heap: Any, ids: Any, distances: Any) -> None:
    """Split entries, orderable distance << 32 | id, into ids and distances."""
    for i in range(heap.shape[0]):
        bits = np.uint32(heap[i] >> np.uint64(32))
        bits = (bits ^ np.uint32(0x80000000)) if bits & np.uint32(0x80000000) else (bits ^ np.uint32(0xFFFFFFFF))
        ids[i] = np.uint32(heap[i])
        distances[i] = bits_float(bits)


@kernel
def unpack_heap(heap: Any, ids: Any, distances: Any) -> None:
    """Split the sorted entries of a heap of `scan` into ids and distances."""
    unpack_entries(heap, ids, distances)
