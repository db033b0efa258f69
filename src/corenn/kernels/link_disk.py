"""Linking rows whose graph lies on the disk: walks that read edges, and prunes among what codes stand for.

Where data outgrows memory, a vector or a row of edges costs a read. So nothing is touched that is mapped but codes,
state and seals, which are in memory: a walk is steered by codes and reads of each row that it expands its edges alone,
and a prune decodes its candidates and measures them against each other (Singh et al., FreshDiskANN, 2021, prune by
product codes as well). The outcome depends on the codes and the edges, never on what is cached or on threads.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ..types import Bytes, Float32s, UInt32s, UInt64s
from .candidates import EXPANDED, NOTHING, distance_of, id_of, insert_at, insert_sorted, pack, place_of, sort, unseen
from .codes import place_among, rebuild, scorer_of
from .intrinsics import ask_for, read_at
from .jit import inlined, kernel
from .link import growth_of, has_edge
from .rows import NORM, aim_at, decode, lift_of
from .search import (
    DEGREE,
    DISTANCES,
    FIRST_NEIGHBOUR,
    HOPS,
    LIFELINE,
    LOST,
    PAGES,
    keep_below,
    navigate,
    score,
    usable,
    visible,
)

PAGE = 4096  # bytes that a disk reads at once; the header of the file takes as many


class EdgeFile(NamedTuple):
    """Where edges are read from. descriptor: of edges.slab. words: uint32 per row. first_width, most_width: rows that a
    walk asks for at once, at its beginning and when it has converged.
    """

    descriptor: int
    words: int
    first_width: int
    most_width: int


class CodeBench(NamedTuple):
    """Working memory of one thread that links by codes.

    candidates: uint64 (room,), distances to the node with places in the arrays beside. ids: uint32 (room,). alive:
    uint8 (room,). vectors: float32 (room, length), what the codes stand for. lifts: float32 (room,). anchor: float32
    (length,), the node as it is coded. origin: float32 (length,), the zero vector as it is coded. words: uint32
    (1, edge_words), the edges at hand. queue: uint64, what was asked for and is not read yet.
    """

    candidates: UInt64s
    ids: UInt32s
    alive: Bytes
    vectors: Float32s
    lifts: Float32s
    anchor: Float32s
    origin: Float32s
    words: UInt32s
    queue: UInt64s


# --- reading edges ----------------------------------------------------------------------------------------------------


@inlined
def _offset(file: Any, row: Any) -> Any:
    return PAGE + row * (4 * file.words)


@inlined
def _pages(file: Any, row: Any) -> Any:
    return (_offset(file, row + 1) - 1) // PAGE - _offset(file, row) // PAGE + 1


@inlined
def _walk(
    scorer: Any, graph: Any, live: Any, plan: Any, lift: Any, file: Any, scratch: Any, bench: Any, waiting: Any,
    info: Any,
) -> Any:  # fmt: skip
    """Best-first search for scratch.query by estimates, as `search.beam_search`, that reads the edges it follows.

    The list is longer than what is expanded of it: no row farther than the plan.nearest-th found so far is. The others
    cost no read, and are as good candidates for edges. Rows are asked for ahead as in disk.py. Returns how many
    candidates are in the list that counts; scratch.trail holds those that were expanded, info[HOPS] of them.
    """
    pool, best, seen, frontier, queue = scratch.pool, scratch.best, scratch.seen, scratch.frontier, bench.queue
    words, size = bench.words, 4 * file.words
    capacity = pool.shape[0] if plan.tombstones else plan.search_list
    most = file.words - FIRST_NEIGHBOUR
    bound = reach = NOTHING
    count = found = cursor = hops = scored = head = flying = 0
    width = file.first_width
    while True:
        score(scorer, scratch.query, lift, frontier, waiting)
        scored += waiting
        kept = keep_below(frontier, waiting, bound)
        nearer = False
        for t in range(kept):
            candidate = frontier[t]
            if candidate >= bound:
                continue
            place = place_of(pool, count, candidate)
            if place < count and pool[place] | EXPANDED == candidate | EXPANDED:
                continue  # seen before, and forgotten by the table
            insert_at(pool, place, count, capacity, candidate)
            nearer |= place < cursor
            cursor = min(cursor, place)
            count = min(count + 1, capacity)
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
            if found >= plan.nearest:
                reach = best[plan.nearest - 1] | EXPANDED
        elif count >= plan.nearest:
            reach = pool[plan.nearest - 1] | EXPANDED
        if not nearer:
            width = min(width + 1, file.most_width)
        while flying < width:
            while cursor < count and pool[cursor] & EXPANDED:
                cursor += 1
            if cursor == count or pool[cursor] > reach:
                break
            if hops + flying < scratch.trail.shape[0]:
                scratch.trail[hops + flying] = pool[cursor]
            row = id_of(pool[cursor])
            queue[(head + flying) % queue.shape[0]] = pool[cursor]
            pool[cursor] |= EXPANDED
            if flying > 0:  # the first is read at once
                ask_for(file.descriptor, _offset(file, row), size)
            flying += 1
        if flying == 0:
            break
        node = id_of(queue[head])
        head, flying = (head + 1) % queue.shape[0], flying - 1
        hops += 1
        waiting = 0
        info[PAGES] += _pages(file, node)
        if read_at(file.descriptor, _offset(file, node), size, words, 0, 0) != size:
            info[LOST] += 1
            continue
        lifeline = np.int64(words[0, LIFELINE]) - 1
        if 0 <= lifeline < live.rows:
            frontier[waiting] = np.uint64(lifeline)
            waiting += unseen(seen, lifeline)
        for slot in range(FIRST_NEIGHBOUR, FIRST_NEIGHBOUR + min(np.int64(words[0, DEGREE]), most)):
            neighbour = words[0, slot]
            # Soft data may be damaged: an id out of range is skipped, never followed.
            if neighbour < live.rows:
                frontier[waiting] = np.uint64(neighbour)
                waiting += unseen(seen, neighbour)
    info[HOPS] = min(hops, scratch.trail.shape[0])  # those of `navigate` were in memory
    info[DISTANCES] += scored
    return found if plan.tombstones else count


# --- choosing edges ---------------------------------------------------------------------------------------------------


@kernel
def choose_by_codes(
    rows: Any, codes: Any, graph: Any, live: Any, plan: Any, shape: Any, file: Any, batch: Any, nearest: Any,
    growth: Any, chosen: Any, scratch: Any, asked: Any, bench: Any, info: Any,
) -> None:  # fmt: skip
    """Choose the out-edges of each row of `batch`, as `link.choose_edges` does, by reads.

    rows: mapped; those of the batch alone are touched. info: int64 (INFO,), in which pages and rows lost are counted.
    """
    scorer = scorer_of(codes, asked)
    _put_origin(codes, asked, scratch.query, bench.origin)
    for i in range(batch.shape[0]):
        node = np.int64(batch[i])
        decode(rows, node, scratch.query)
        place_among(codes, scratch.query, asked.turned)
        for at in range(bench.anchor.shape[0]):
            bench.anchor[at] = asked.turned[0, at]
        lift = lift_of(rows, node)
        aim_at(scorer, scratch.query)
        waiting = navigate(scorer, graph, live, plan, lift, scratch, info)
        count = _walk(scorer, graph, live, plan, lift, file, scratch, bench, waiting, info)
        found = scratch.best if plan.tombstones else scratch.pool
        growth[i] = growth_of(found, min(count, plan.nearest), plan.nearest)
        total = _gather(node, found, count, scratch.trail, info[HOPS], bench, 0)
        for t in range(nearest.shape[1]):
            if nearest[i, t] == NOTHING:
                break
            total = _take(node, id_of(nearest[i, t]), bench, total)
        if rows.radius > 0:
            norm = rows.seals[node, NORM]
            scale = np.float32(math.sqrt(rows.radius)) / norm if norm > 0 else np.float32(1)
            for at in range(rows.dim):
                scratch.query[at] *= scale
            aim_at(scorer, scratch.query)
            waiting = navigate(scorer, graph, live, plan, np.float32(0), scratch, info)
            count = _walk(scorer, graph, live, plan, np.float32(0), file, scratch, bench, waiting, info)
            total = _gather(node, found, count, scratch.trail, 0, bench, total)
        _prune_decoded(codes, live, node, shape, bench, total, chosen[i])


@inlined
def _put_origin(codes: Any, asked: Any, vector: Any, origin: Any) -> None:
    for at in range(vector.shape[0]):
        vector[at] = np.float32(0)
    place_among(codes, vector, asked.turned)
    for at in range(origin.shape[0]):
        origin[at] = asked.turned[0, at]


@inlined
def _take(node: Any, row: Any, bench: Any, total: Any) -> Any:
    """Note a candidate for an edge, unless it is the node itself, or there is no room."""
    if row == node or total == bench.ids.shape[0]:
        return total
    bench.ids[total] = np.uint32(row)
    return total + 1


@inlined
def _gather(
    node: Any, found: Any, count: Any, trail: Any, hops: Any, bench: Any, total: Any
) -> Any:  # fmt: skip
    """Note what a walk has found, and what it has expanded on the way; returns how many there are."""
    for t in range(count):
        total = _take(node, id_of(found[t]), bench, total)
    for t in range(hops):
        candidate = trail[t] | EXPANDED
        place = place_of(found, count, trail[t])
        if place == count or found[place] | EXPANDED != candidate:
            total = _take(node, id_of(trail[t]), bench, total)
    return total


@inlined
def _apart(vectors: Any, lifts: Any, row: Any, point: Any, lift: Any) -> Any:
    """The squared distance between a decoded row and a point."""
    stored = vectors[row]
    total = np.float32(0)
    for at in range(point.shape[0]):
        difference = stored[at] - point[at]
        total += difference * difference
    rise = lifts[row] - lift
    return total + rise * rise


@inlined
def _prune_decoded(codes: Any, live: Any, node: Any, shape: Any, bench: Any, total: Any, row: Any) -> None:
    """Choose among bench.ids[:total], as `link.write_edges` does, and write the row of edges, its degree last."""
    for t in range(total):
        rebuild(codes, np.int64(bench.ids[t]), bench.vectors[t])
        bench.lifts[t] = lift_of(codes, np.int64(bench.ids[t]))
    _measure(bench, total, lift_of(codes, node))
    if codes.radius <= 0:
        row[DEGREE] = _prune(live, shape.alpha, bench, total, row, 0, shape.max_edges)
        return
    chosen = _prune(live, shape.alpha, bench, total, row, 0, shape.max_edges // 2)
    norm = codes.seals[node, NORM]
    scale = np.float32(math.sqrt(codes.radius)) / norm if norm > 0 else np.float32(1)
    for at in range(bench.anchor.shape[0]):
        bench.anchor[at] = bench.origin[at] + scale * (bench.anchor[at] - bench.origin[at])
    _measure(bench, total, np.float32(0))
    row[DEGREE] = _prune(live, shape.alpha, bench, total, row, chosen, shape.max_edges)


@inlined
def _measure(bench: Any, total: Any, lift: Any) -> None:
    """Sort the candidates by their distances to the anchor."""
    for t in range(total):
        bench.candidates[t] = pack(_apart(bench.vectors, bench.lifts, t, bench.anchor, lift), t)
    sort(bench.candidates, total)


@inlined
def _prune(live: Any, alpha: Any, bench: Any, count: Any, row: Any, chosen: Any, limit: Any) -> Any:
    """See `link.robust_prune`. Whether one is dead is asked of those that would be chosen alone: it costs a page."""
    candidates, alive, ids = bench.candidates, bench.alive, bench.ids
    for i in range(count):
        alive[i] = not has_edge(row, chosen, np.int64(ids[id_of(candidates[i])]))
    for i in range(count):
        if not alive[i]:
            continue
        if chosen == limit:
            break
        place = id_of(candidates[i])
        if not usable(live, np.int64(ids[place])):
            continue
        row[FIRST_NEIGHBOUR + chosen] = ids[place]
        chosen += 1
        point, lift = bench.vectors[place], bench.lifts[place]
        for j in range(i + 1, count):
            if alive[j]:
                other = id_of(candidates[j])
                near = ids[other] == ids[place]
                if near or alpha * _apart(bench.vectors, bench.lifts, other, point, lift) <= distance_of(candidates[j]):
                    alive[j] = 0
    return chosen


# --- reverse edges ----------------------------------------------------------------------------------------------------


@kernel
def ask_for_edges(file: Any, ids: Any) -> None:
    """Have the edges of rows, ascending, read into the system's cache, each page once."""
    size = 4 * file.words
    begun = asked = -1  # the pages begun..asked are wanted and not asked for yet
    for i in range(ids.shape[0]):
        first = _offset(file, np.int64(ids[i])) // PAGE
        last = (_offset(file, np.int64(ids[i])) + size - 1) // PAGE
        if begun >= 0 and first > asked + 1:
            ask_for(file.descriptor, begun * PAGE, (asked - begun + 1) * PAGE)
            begun = -1
        begun = first if begun < 0 else begun
        asked = max(asked, last)
    if begun >= 0:
        ask_for(file.descriptor, begun * PAGE, (asked - begun + 1) * PAGE)


@kernel
def link_back_by_codes(
    codes: Any, graph: Any, live: Any, shape: Any, targets: Any, sources: Any, starts: Any, vector: Any, asked: Any,
    bench: Any,
) -> None:  # fmt: skip
    """Add to each target the edges to its sources, as `link.link_back` does; a row that overflows is pruned by codes.

    vector: float32 (dim,), working memory.
    """
    edges = graph.edges
    slots = edges.shape[1] - FIRST_NEIGHBOUR
    _put_origin(codes, asked, vector, bench.origin)
    for g in range(targets.shape[0]):
        node = np.int64(targets[g])
        row = edges[node]
        degree = min(np.int64(row[DEGREE]), slots)
        start, stop = starts[g], starts[g + 1]
        fresh = 0
        for t in range(start, stop):
            if not has_edge(row, degree, sources[t]):
                sources[start + fresh] = sources[t]
                fresh += 1
        if degree + fresh <= slots:
            for t in range(fresh):
                row[FIRST_NEIGHBOUR + degree + t] = sources[start + t]
            row[DEGREE] = degree + fresh
            continue
        total = 0
        for t in range(degree):
            other = np.int64(row[FIRST_NEIGHBOUR + t])
            if other < live.rows:
                total = _take(node, other, bench, total)
        for t in range(fresh):
            total = _take(node, np.int64(sources[start + t]), bench, total)
        rebuild(codes, node, bench.anchor)
        _prune_decoded(codes, live, node, shape, bench, total, row)
