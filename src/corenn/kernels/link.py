"""Kernels that build the graph: candidates, robust prune, reverse edges, the ring of lifelines.

Each works on a range of a batch, reads what no other thread writes, and writes rows that no other thread reads, so
that the graph does not depend on the number of threads (Manohar et al., ParlayANN, 2024).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..types import Bytes, Float32s, UInt64s
from .candidates import NOTHING, distance_of, id_of, insert_sorted, pack, sort
from .jit import inlined, kernel
from .rows import decode, distance, lift_of, prefetch_row
from .search import DEGREE, DIED, DISTANCES, DONE, FIRST_NEIGHBOUR, HOPS, LIFELINE, STATUS, beam_search


class Workbench(NamedTuple):
    """Working memory of one thread that prunes. candidates, alive: as long as the longest list. vector: (dim,)."""

    candidates: UInt64s
    alive: Bytes
    vector: Float32s


class Shape(NamedTuple):
    """max_edges: degree after a prune. alpha: slack of the prune, on squared distances."""

    max_edges: int
    alpha: np.float32


@inlined
def robust_prune(rows: Any, node: Any, shape: Any, bench: Any, count: Any, row: Any) -> None:
    """Choose out-edges among the first `count` sorted candidates and write them to `row`, the degree last.

    A candidate is dropped if a chosen one is nearer to it, by α, than it is to the node (DiskANN, Algorithm 2).
    """
    candidates, alive = bench.candidates, bench.alive
    alive[:count] = 1
    chosen = 0
    for i in range(count):
        neighbour = id_of(candidates[i])
        if not alive[i] or neighbour == node:
            continue
        row[FIRST_NEIGHBOUR + chosen] = neighbour
        chosen += 1
        if chosen == shape.max_edges:
            break
        decode(rows, neighbour, bench.vector)
        lift = lift_of(rows, neighbour)
        for j in range(i + 1, count):
            if alive[j]:
                other = id_of(candidates[j])
                near = other == neighbour
                if near or shape.alpha * distance(rows, bench.vector, lift, other) <= distance_of(candidates[j]):
                    alive[j] = 0
    row[DEGREE] = chosen


@kernel
def rank_batch(rows: Any, batch: Any, start: Any, stop: Any, nearest: Any, vector: Any) -> None:
    """For batch[start:stop], the nearest others of the batch: nearest is uint64 (batch, n), ascending.

    Rows of one batch do not find each other in the graph, which is frozen while they search.
    """
    width = nearest.shape[1]
    for i in range(start, stop):
        decode(rows, batch[i], vector)
        lift = lift_of(rows, batch[i])
        nearest[i, :] = NOTHING
        for j in range(batch.shape[0]):
            if j != i:
                candidate = pack(distance(rows, vector, lift, batch[j]), batch[j])
                if candidate < nearest[i, width - 1]:
                    insert_sorted(nearest[i], width, width, candidate)


@kernel
def choose_edges(
    rows: Any, graph: Any, live: Any, plan: Any, shape: Any, batch: Any, nearest: Any, scratch: Any, bench: Any,
    info: Any,
) -> Any:  # fmt: skip
    """Give each row of `batch` its out-edges; returns how many were done before a visited set was too small.

    nearest: what rank_batch found for them. info: int64 (4,), sums hops and distances.
    """
    for i in range(batch.shape[0]):
        node = np.int64(batch[i])
        decode(rows, node, scratch.query)
        count = beam_search(rows, graph, live, plan, lift_of(rows, node), scratch, info)
        if info[STATUS] != DONE:
            return i
        total = _gather(live, plan, node, count, nearest[i], scratch, bench, info)
        sort(bench.candidates, total)
        robust_prune(rows, node, shape, bench, total, graph.edges[node])
    return batch.shape[0]


@inlined
def _gather(live: Any, plan: Any, node: Any, count: Any, nearest: Any, scratch: Any, bench: Any, info: Any) -> Any:
    """Collect every expanded candidate and the batch's own; none that is dead, none twice."""
    total = 0
    trail, length = scratch.trail, info[HOPS]
    if length > scratch.trail.shape[0]:
        # More hops than the trail holds: what the search ended with is the better part of them.
        trail, length = (scratch.best if plan.tombstones else scratch.pool), count
    info[HOPS] = 0
    info[DISTANCES] = 0
    for t in range(length):
        row = id_of(trail[t])
        if row != node and live.state[row, DIED] == 0:
            bench.candidates[total] = pack(distance_of(trail[t]), row)
            total += 1
    for t in range(nearest.shape[0]):
        if nearest[t] == NOTHING:
            break
        if live.state[id_of(nearest[t]), DIED] == 0:
            bench.candidates[total] = nearest[t]
            total += 1
    return total


@kernel
def link_back(
    rows: Any, graph: Any, live: Any, shape: Any, targets: Any, sources: Any, starts: Any, bench: Any
) -> None:
    """Add to each target the edges to its sources: sources[starts[g]:starts[g + 1]] belong to targets[g].

    A row that overflows is pruned. Ids stay valid at every instant, so that a walk on the way sees old or new ones.
    """
    edges = graph.edges
    slots = edges.shape[1] - FIRST_NEIGHBOUR
    for g in range(targets.shape[0]):
        node = np.int64(targets[g])
        degree = min(np.int64(edges[node, DEGREE]), slots)
        start, stop = starts[g], starts[g + 1]
        if g + 1 < targets.shape[0]:
            prefetch_row(rows, targets[g + 1])
        fresh = 0
        for t in range(start, stop):
            if not _has(edges[node], degree, sources[t]):
                sources[start + fresh] = sources[t]
                fresh += 1
        if degree + fresh <= slots:
            for t in range(fresh):
                edges[node, FIRST_NEIGHBOUR + degree + t] = sources[start + t]
            edges[node, DEGREE] = degree + fresh
        else:
            _prune_row(rows, edges[node], node, degree, live, shape, sources[start : start + fresh], bench)


@inlined
def _has(row: Any, degree: Any, wanted: Any) -> Any:
    for slot in range(FIRST_NEIGHBOUR, FIRST_NEIGHBOUR + degree):
        if row[slot] == wanted:
            return True
    return False


@inlined
def _prune_row(rows: Any, row: Any, node: Any, degree: Any, live: Any, shape: Any, sources: Any, bench: Any) -> None:
    """Choose anew among the present edges and the sources of one node."""
    decode(rows, node, bench.vector)
    lift = lift_of(rows, node)
    # A hub of a large batch gets more reverse edges than the bench holds: the nearest of them are what a prune keeps.
    room = bench.candidates.shape[0]
    total = 0
    for t in range(degree + sources.shape[0]):
        other = np.int64(row[FIRST_NEIGHBOUR + t]) if t < degree else np.int64(sources[t - degree])
        if other >= live.rows or other == node or live.state[other, DIED] != 0:
            continue
        candidate = pack(distance(rows, bench.vector, lift, other), other)
        if total < room or candidate < bench.candidates[room - 1]:
            insert_sorted(bench.candidates, total, room, candidate)
            total = min(total + 1, room)
    robust_prune(rows, node, shape, bench, total, row)


@kernel
def thread_ring(edges: Any, batch: Any, root: Any, journal: Any) -> None:
    """Thread each row of `batch` onto the ring of lifelines, behind its nearest neighbour that is on it.

    Sequential. journal: uint64 (2,), mapped: the pair in work (plus one), so that a process killed between the two
    stores is mended by `mend_ring`.
    """
    for i in range(batch.shape[0]):
        node = np.int64(batch[i])
        if edges[node, LIFELINE] != 0:
            continue
        behind = np.int64(root)
        for slot in range(FIRST_NEIGHBOUR, FIRST_NEIGHBOUR + np.int64(edges[node, DEGREE])):
            if edges[np.int64(edges[node, slot]), LIFELINE] != 0:
                behind = np.int64(edges[node, slot])
                break
        if edges[behind, LIFELINE] == 0:
            edges[behind, LIFELINE] = behind + 1  # the first row of all: a ring of one
            if behind == node:
                continue
        journal[1] = np.uint64(behind + 1)
        journal[0] = np.uint64(node + 1)
        edges[node, LIFELINE] = edges[behind, LIFELINE]
        edges[behind, LIFELINE] = node + 1
        journal[0] = np.uint64(0)


@kernel
def mend_ring(edges: Any, journal: Any, rows: Any) -> None:
    """Finish the threading that a killed process had begun."""
    node, behind = np.int64(journal[0]) - 1, np.int64(journal[1]) - 1
    if 0 <= node < rows and 0 <= behind < rows and np.int64(edges[behind, LIFELINE]) != node + 1:
        edges[node, LIFELINE] = edges[behind, LIFELINE]
        edges[behind, LIFELINE] = node + 1
    journal[0] = np.uint64(0)


@kernel
def reach(graph: Any, rows: Any, reached: Any, queue: Any) -> Any:
    """Mark in `reached` (uint8) every row that a walk from the entries can come to; returns the edges walked."""
    edges = graph.edges
    slots = edges.shape[1] - FIRST_NEIGHBOUR
    head = tail = walked = 0
    for entry in range(graph.entries.shape[0]):
        row = np.int64(graph.entries[entry])
        if row < rows and not reached[row]:
            reached[row] = 1
            queue[tail] = row
            tail += 1
    while head < tail:
        node = np.int64(queue[head])
        head += 1
        degree = min(np.int64(edges[node, DEGREE]), slots)
        walked += degree
        for slot in range(LIFELINE, FIRST_NEIGHBOUR + degree):
            row = np.int64(edges[node, slot]) - (1 if slot == LIFELINE else 0)
            if 0 <= row < rows and not reached[row]:
                reached[row] = 1
                queue[tail] = row
                tail += 1
    return walked


@kernel
def ring_length(edges: Any, root: Any, rows: Any) -> Any:
    """Rows on the ring of lifelines that starts at `root`; -1 if it does not come back to it."""
    node, length = np.int64(root), 0
    while length <= rows:
        node = np.int64(edges[node, LIFELINE]) - 1
        length += 1
        if node == root:
            return length
        if node < 0 or node >= rows:
            return -1
    return -1


@kernel
def check_edges(edges: Any, ids: Any, rows: Any, bad: Any) -> None:
    """bad[i] = 1 for each row of `ids` that has no lifeline, or whose degree or a neighbour is out of bounds."""
    slots = edges.shape[1] - FIRST_NEIGHBOUR
    for i in range(ids.shape[0]):
        node = np.int64(ids[i])
        degree = np.int64(edges[node, DEGREE])
        lifeline = np.int64(edges[node, LIFELINE])
        wrong = degree > slots or lifeline < 1 or lifeline > rows
        for slot in range(FIRST_NEIGHBOUR, FIRST_NEIGHBOUR + min(degree, slots)):
            neighbour = np.int64(edges[node, slot])
            wrong = wrong or neighbour >= rows or neighbour == node
        bad[i] = wrong
