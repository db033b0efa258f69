"""Kernels that build the graph: candidates, robust prune, reverse edges, the ring of lifelines.

Each works on a range of a batch, reads what no other thread writes, and writes rows that no other thread reads, so
that the graph does not depend on the number of threads (Manohar et al., ParlayANN, 2024).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ..types import Bytes, Float32s, UInt64s
from .candidates import NOTHING, distance_of, id_of, insert_at, insert_sorted, pack, place_of, sort
from .jit import inlined, kernel
from .rows import NORM, aim_at, decode, distance, estimates, lift_of, prefetch_row
from .search import AHEAD, DEGREE, DISTANCES, FIRST_NEIGHBOUR, HOPS, LIFELINE, beam_search, enter, usable

NO_CODES: Bytes = np.zeros((0, 0), np.uint8)
BEYOND = -2
ANY = -2  # in `told` of thread_ring: any row may change
LOSS = 8
SEARCHES = 2  # for new edges, that a row gets on average while it loses as many edges as it has
HEIRS = 3  # of a dead row, by which an edge to it is replaced
REMOVAL = np.uint64(1 << 63)  # in the journal: the pair is not to be threaded but to be parted


class Workbench(NamedTuple):
    """Working memory of one thread that prunes. candidates, alive: as long as the longest list.

    vector, anchor: float32 (dim,).
    """

    candidates: UInt64s
    alive: Bytes
    vector: Float32s
    anchor: Float32s


class Shape(NamedTuple):
    """max_edges: degree after a prune. alpha: slack of the prune, on squared distances."""

    max_edges: int
    alpha: np.float32


@inlined
def robust_prune(rows: Any, node: Any, alpha: Any, bench: Any, count: Any, row: Any, chosen: Any, limit: Any) -> Any:
    """Choose among the first `count` sorted candidates until `limit` edges stand in `row`; returns how many do.

    A candidate is dropped if a chosen one is nearer to it, by α, than it is to the anchor whose distances the
    candidates carry (DiskANN, Algorithm 2). Edges chosen before, `chosen` of them, are not chosen twice.
    """
    candidates, alive = bench.candidates, bench.alive
    for i in range(count):
        alive[i] = not has_edge(row, chosen, id_of(candidates[i]))
    for i in range(count):
        neighbour = id_of(candidates[i])
        if not alive[i] or neighbour == node:
            continue
        if chosen == limit:
            break
        row[FIRST_NEIGHBOUR + chosen] = neighbour
        chosen += 1
        decode(rows, neighbour, bench.vector)
        lift = lift_of(rows, neighbour)
        for j in range(i + 1, count):
            if alive[j]:
                other = id_of(candidates[j])
                near = other == neighbour
                if near or alpha * distance(rows, bench.vector, lift, other) <= distance_of(candidates[j]):
                    alive[j] = 0
    return chosen


@inlined
def write_edges(rows: Any, node: Any, shape: Any, bench: Any, count: Any, row: Any) -> None:
    """Prune sorted candidates, which carry their distances to the node, and write the row of edges, its degree last.

    Under `ip` a node has two places: its own, and the one where a query in its direction would stand. Queries lie far
    from all rows, so edges chosen for the first alone do not lead there; half of them are chosen for the second.
    """
    if rows.radius <= 0:
        row[DEGREE] = robust_prune(rows, node, shape.alpha, bench, count, row, 0, shape.max_edges)
        return
    chosen = robust_prune(rows, node, shape.alpha, bench, count, row, 0, shape.max_edges // 2)
    aim_as_query(rows, node, bench.anchor)
    for i in range(count):
        other = id_of(bench.candidates[i])
        bench.candidates[i] = pack(distance(rows, bench.anchor, np.float32(0), other), other)
    sort(bench.candidates, count)
    row[DEGREE] = robust_prune(rows, node, shape.alpha, bench, count, row, chosen, shape.max_edges)


@inlined
def aim_as_query(rows: Any, node: Any, out: Any) -> None:
    """Where a query in the direction of a row stands under `ip`."""
    decode(rows, node, out)
    norm = rows.seals[node, NORM]
    if norm > 0:
        scale = np.float32(math.sqrt(rows.radius)) / norm
        for i in range(rows.dim):
            out[i] *= scale


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
    rows: Any, scorer: Any, graph: Any, live: Any, plan: Any, shape: Any, batch: Any, nearest: Any, growth: Any,
    chosen: Any, scratch: Any, bench: Any, info: Any,
) -> None:  # fmt: skip
    """Choose the out-edges of each row of `batch`: chosen, uint32 (batch, columns), of which the lifeline is left out.

    They are not written to the graph, which others walk: rows that are linked again are in it.
    scorer: by which walks go, the rows or their codes; edges are chosen by distances. nearest: what rank_batch found
    for them. growth: float32 (batch,), receives growth_of what each has found.
    info: int64 (4,), working memory.
    """
    for i in range(batch.shape[0]):
        node = np.int64(batch[i])
        decode(rows, node, scratch.query)
        lift = lift_of(rows, node)
        aim_at(scorer, scratch.query)
        count = beam_search(scorer, graph, live, plan, lift, scratch, enter(graph, live, scratch), info)
        growth[i] = growth_of(scratch.best if plan.tombstones else scratch.pool, count, plan.search_list)
        total = _gather(live, plan, node, count, nearest[i], scratch, bench, info)
        if estimates(scorer):
            _measure(rows, scratch.query, lift, bench.candidates, total)
        if rows.radius > 0:
            aim_as_query(rows, node, scratch.query)
            aim_at(scorer, scratch.query)
            count = beam_search(
                scorer, graph, live, plan, np.float32(0), scratch, enter(graph, live, scratch), info
            )  # fmt: skip
            total = _add_answers(rows, live, plan, node, count, total, scratch, bench)
            info[HOPS] = 0
        sort(bench.candidates, total)
        write_edges(rows, node, shape, bench, total, chosen[i])


@inlined
def _measure(rows: Any, query: Any, lift: Any, candidates: Any, count: Any) -> None:
    """Give candidates their distances where they had estimates."""
    for t in range(min(AHEAD, count)):
        prefetch_row(rows, id_of(candidates[t]))
    for t in range(count):
        if t + AHEAD < count:
            prefetch_row(rows, id_of(candidates[t + AHEAD]))
        row = id_of(candidates[t])
        candidates[t] = pack(distance(rows, query, lift, row), row)


@inlined
def growth_of(candidates: Any, count: Any, search_list: Any) -> Any:
    """The exponent with which squared distances grow with rank, between an eighth of a full list and its end.

    It is 2 / dimension where rows fill a space evenly, and what it is where they do not (Levina & Bickel 2004). 0: not
    known.
    """
    near = search_list >> 3
    if near < 1 or count < search_list:
        return np.float32(0)
    first, last = distance_of(candidates[near - 1]), distance_of(candidates[count - 1])
    if first <= 0:
        return np.float32(0)
    return np.float32(math.log(last / first) / math.log(count / near))


@inlined
def _add_answers(rows: Any, live: Any, plan: Any, node: Any, count: Any, total: Any, scratch: Any, bench: Any) -> Any:
    """Add what a query in the node's direction finds, with the distances to the node itself."""
    found = scratch.best if plan.tombstones else scratch.pool
    decode(rows, node, bench.anchor)
    lift = lift_of(rows, node)
    for t in range(count):
        row = id_of(found[t])
        if row != node and usable(live, row):
            bench.candidates[total] = pack(distance(rows, bench.anchor, lift, row), row)
            total += 1
    return total


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
        if row != node and usable(live, row):
            bench.candidates[total] = pack(distance_of(trail[t]), row)
            total += 1
    for t in range(nearest.shape[0]):
        if nearest[t] == NOTHING:
            break
        if usable(live, id_of(nearest[t])):
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
            if not has_edge(edges[node], degree, sources[t]):
                sources[start + fresh] = sources[t]
                fresh += 1
        if degree + fresh <= slots:
            for t in range(fresh):
                edges[node, FIRST_NEIGHBOUR + degree + t] = sources[start + t]
            edges[node, DEGREE] = degree + fresh
        else:
            _prune_row(rows, edges[node], node, degree, live, shape, sources[start : start + fresh], bench)


@inlined
def has_edge(row: Any, degree: Any, wanted: Any) -> Any:
    """Whether a row of edges has an id among its first `degree`."""
    for slot in range(FIRST_NEIGHBOUR, FIRST_NEIGHBOUR + degree):
        if row[slot] == wanted:
            return True
    return False


@inlined
def _prune_row(rows: Any, row: Any, node: Any, degree: Any, live: Any, shape: Any, sources: Any, bench: Any) -> None:
    """Choose anew among the present edges and the sources of one node."""
    decode(rows, node, bench.anchor)
    lift = lift_of(rows, node)
    # A hub of a large batch gets more reverse edges than the bench holds: the nearest of them are what a prune keeps.
    room = bench.candidates.shape[0]
    total = 0
    for t in range(degree + sources.shape[0]):
        other = np.int64(row[FIRST_NEIGHBOUR + t]) if t < degree else np.int64(sources[t - degree])
        if other >= live.rows or other == node or not usable(live, other):
            continue
        candidate = pack(distance(rows, bench.anchor, lift, other), other)
        if total < room or candidate < bench.candidates[room - 1]:
            insert_sorted(bench.candidates, total, room, candidate)
            total = min(total + 1, room)
    write_edges(rows, node, shape, bench, total, row)


@kernel
def thread_ring(
    rows: Any, edges: Any, batch: Any, root: Any, journal: Any, told: Any, vector: Any, codes: Any, body: Any
) -> Any:  # fmt: skip
    """Thread each row of `batch` onto the ring of lifelines, behind its nearest neighbour that is on it.

    Sequential. Rows that are equal stand together on the ring: prunes leave one edge among them, and a walk that comes
    to one finds the others along it. journal: uint64 (2,), mapped: the pair in work (plus one), so that a process
    killed between the two stores is mended by `mend_ring`. told: int64 (1,), one row more, beside those of the batch,
    their neighbours and the root, of which the caller knows that it may change, or ANY. Where another one has to, it is
    put there, and nothing is changed from there on. vector: float32 (dim,). codes: uint8 (rows, width), no rows for
    none; rows whose first `body` bytes are equal count as equal then, and no vector is read. Returns how many rows are
    done.
    """
    for i in range(batch.shape[0]):
        node = np.int64(batch[i])
        if edges[node, LIFELINE] != 0:
            continue
        behind = _place_on_ring(rows, edges, node, np.int64(root), vector, codes, body)
        if behind < 0:
            behind = -1 - behind
            if told[0] != ANY and told[0] != behind:
                told[0] = behind
                return i
        if edges[behind, LIFELINE] == 0:
            edges[behind, LIFELINE] = behind + 1  # the first row of all: a ring of one
            if behind == node:
                continue
        journal[1] = np.uint64(behind + 1)
        journal[0] = np.uint64(node + 1)
        edges[node, LIFELINE] = edges[behind, LIFELINE]
        edges[behind, LIFELINE] = node + 1
        journal[0] = np.uint64(0)
    return batch.shape[0]


@inlined
def _place_on_ring(rows: Any, edges: Any, node: Any, root: Any, vector: Any, codes: Any, body: Any) -> Any:
    """Behind an equal row, else behind the nearest one that does not stand within a run of equal rows; where all do,
    -1 - the last row of a run, which may be no neighbour.
    """
    first = np.int64(-1)
    for slot in range(FIRST_NEIGHBOUR, FIRST_NEIGHBOUR + np.int64(edges[node, DEGREE])):
        neighbour = np.int64(edges[node, slot])
        if edges[neighbour, LIFELINE] == 0:
            continue
        if first < 0:
            first = neighbour
            if _equal(rows, node, neighbour, vector, codes, body):
                return neighbour
        after = np.int64(edges[neighbour, LIFELINE]) - 1
        if after == neighbour or not _equal(rows, neighbour, after, vector, codes, body):
            return neighbour
    first = root if first < 0 else first
    start, after = first, np.int64(edges[first, LIFELINE]) - 1
    if after < 0:
        return first
    while after != start and _equal(rows, start, after, vector, codes, body):
        first, after = after, np.int64(edges[after, LIFELINE]) - 1
    return -1 - first


@inlined
def _equal(rows: Any, one: Any, other: Any, vector: Any, codes: Any, body: Any) -> Any:
    if codes.shape[0] > 0:  # prunes by codes do not tell apart what codes do not
        for byte in range(body):
            if codes[one, byte] != codes[other, byte]:
                return False
        return True
    decode(rows, one, vector)
    return distance(rows, vector, lift_of(rows, one), other) == 0


@kernel
def mend_ring(edges: Any, journal: Any, rows: Any) -> None:
    """Finish the threading or parting that a killed process had begun."""
    removal = journal[0] & REMOVAL
    node, behind = np.int64(journal[0] & ~REMOVAL) - 1, np.int64(journal[1]) - 1
    within = 0 <= node < rows and 0 <= behind < rows
    if within and removal:
        if np.int64(edges[behind, LIFELINE]) == node + 1 and edges[node, LIFELINE] != 0:
            edges[behind, LIFELINE] = edges[node, LIFELINE]
        edges[node, LIFELINE] = 0
    elif within and np.int64(edges[behind, LIFELINE]) != node + 1:
        edges[node, LIFELINE] = edges[behind, LIFELINE]
        edges[behind, LIFELINE] = node + 1
    journal[0] = np.uint64(0)


@inlined
def is_doomed(doomed: Any, row: Any) -> Any:
    """Whether the bit of a row is set in uint8 (rows / 8,)."""
    return row >> 3 < doomed.shape[0] and (doomed[row >> 3] >> np.uint8(row & 7)) & np.uint8(1) != 0


@kernel
def mend_edges(rows: Any, graph: Any, live: Any, shape: Any, doomed: Any, start: Any, weak: Any, bench: Any) -> None:
    """Take the edges to doomed rows from the rows start, start + 1, …, as many as `weak` (uint8) is long. In it those
    are marked that are to search new ones: who has lost more than one edge in LOSS, since a region around it is gone;
    of the others some by lot, since in a large database a pass takes an edge or two from any row, and many passes all.

    In place of each such edge come up to HEIRS of the doomed row's own neighbours, those nearest to the row that is
    mended; then a prune, if they are more than fit (Xu et al., IP-DiskANN, 2025). Doomed rows keep theirs until nothing
    leads to them: no row that this writes is read by another thread that mends. Ids stay valid at every instant.
    """
    edges = graph.edges
    slots = edges.shape[1] - FIRST_NEIGHBOUR
    for at in range(weak.shape[0]):
        node = start + at
        weak[at] = 0
        if edges[node, LIFELINE] == 0 or is_doomed(doomed, node):
            continue
        degree = min(np.int64(edges[node, DEGREE]), slots)
        lost = 0
        for slot in range(FIRST_NEIGHBOUR, FIRST_NEIGHBOUR + degree):
            lost += is_doomed(doomed, np.int64(edges[node, slot]))
        if lost == 0:
            continue
        total = _gather_heirs(rows, edges, live, doomed, node, degree, bench)
        if total > slots:
            write_edges(rows, node, shape, bench, total, edges[node])
        else:
            for t in range(total):
                edges[node, FIRST_NEIGHBOUR + t] = id_of(bench.candidates[t])
            edges[node, DEGREE] = total
        weak[at] = LOSS * lost > degree or SEARCHES * lost > lot(node, live.snapshot, degree)


@inlined
def lot(row: Any, snapshot: Any, size: Any) -> Any:
    """A number below `size`, another one for each row and pass, the same on every machine."""
    low = np.uint64(0xFFFFFFFF)  # products of two words of 32 bits, which never overflow
    commit = (snapshot >> np.uint64(16)) & low
    mixed = (np.uint64(row) ^ commit * np.uint64(0x9E3779B1)) & low
    for _ in range(2):
        mixed = ((mixed ^ (mixed >> np.uint64(16))) * np.uint64(0x045D9F3B)) & low
    return np.int64(mixed ^ (mixed >> np.uint64(16))) % size


@inlined
def _gather_heirs(rows: Any, edges: Any, live: Any, doomed: Any, node: Any, degree: Any, bench: Any) -> Any:
    """Collect the neighbours that stay and the heirs of those that go, sorted, none twice; returns how many."""
    slots = edges.shape[1] - FIRST_NEIGHBOUR
    candidates = bench.candidates
    decode(rows, node, bench.anchor)
    lift = lift_of(rows, node)
    total = 0
    for slot in range(FIRST_NEIGHBOUR, FIRST_NEIGHBOUR + degree):
        other = np.int64(edges[node, slot])
        if other < live.rows and not is_doomed(doomed, other):
            total = _add_once(candidates, total, pack(distance(rows, bench.anchor, lift, other), other))
    for slot in range(FIRST_NEIGHBOUR, FIRST_NEIGHBOUR + degree):
        gone = np.int64(edges[node, slot])
        if not is_doomed(doomed, gone):
            continue
        best = candidates[candidates.shape[0] - HEIRS :]
        found = _add_heirs(rows, edges, live, bench.anchor, lift, gone, node, best, 0)
        if found == 0:  # its neighbours have died as well: theirs, then
            for way in range(FIRST_NEIGHBOUR, FIRST_NEIGHBOUR + min(np.int64(edges[gone, DEGREE]), slots)):
                between = np.int64(edges[gone, way])
                if is_doomed(doomed, between):  # no other row is safe from being written meanwhile
                    found = _add_heirs(rows, edges, live, bench.anchor, lift, between, node, best, found)
        for t in range(found):
            total = _add_once(candidates, total, best[t])
    return total


@inlined
def _add_heirs(
    rows: Any, edges: Any, live: Any, vector: Any, lift: Any, row: Any, node: Any, best: Any, found: Any
) -> Any:
    """Add the live neighbours of a row to the nearest to `vector` that were found; returns how many these are."""
    for way in range(
        FIRST_NEIGHBOUR, FIRST_NEIGHBOUR + min(np.int64(edges[row, DEGREE]), edges.shape[1] - FIRST_NEIGHBOUR)
    ):
        heir = np.int64(edges[row, way])
        if heir < live.rows and heir != node and usable(live, heir):
            candidate = pack(distance(rows, vector, lift, heir), heir)
            place = place_of(best, found, candidate)
            if place < HEIRS and (place == found or best[place] != candidate):
                insert_at(best, place, found, HEIRS, candidate)
                found = min(found + 1, HEIRS)
    return found


@inlined
def _add_once(candidates: Any, count: Any, candidate: Any) -> Any:
    """Insert into sorted candidates what is not there yet; returns their number."""
    place = place_of(candidates, count, candidate)
    if place < count and candidates[place] == candidate:
        return count
    insert_at(candidates, place, count, candidates.shape[0], candidate)
    return min(count + 1, candidates.shape[0])


@kernel
def unthread(edges: Any, doomed: Any, journal: Any, start: Any, stop: Any) -> None:
    """Take the doomed rows that stand behind the rows start … stop off the ring of lifelines. Sequential.

    journal: see thread_ring.
    """
    for node in range(start, stop):
        after = np.int64(edges[node, LIFELINE]) - 1
        while after >= 0 and after != node and after < edges.shape[0] and is_doomed(doomed, after):
            beyond = edges[after, LIFELINE]
            if beyond == 0:
                break  # damage, which verify() reports
            journal[1] = np.uint64(node + 1)
            journal[0] = np.uint64(after + 1) | REMOVAL
            edges[node, LIFELINE] = beyond
            edges[after, LIFELINE] = 0
            journal[0] = np.uint64(0)
            after = np.int64(beyond) - 1


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
    """Rows on the ring of lifelines that starts at `root`; -1 if it does not come back to it, BEYOND if it leads to a
    row that is not among the first `rows`.
    """
    node, length = np.int64(root), 0
    while length <= rows:
        node = np.int64(edges[node, LIFELINE]) - 1
        length += 1
        if node == root:
            return length
        if node < 0:
            return -1
        if node >= rows:
            return BEYOND
    return -1


@kernel
def check_edges(edges: Any, ids: Any, rows: Any, known: Any, alive: Any, bad: Any) -> None:
    """bad[i] = 1 for each row of `ids` that has no lifeline, or whose degree or a neighbour is out of bounds.

    known: bool, by id, the rows that an edge of one that is `alive` (the same) may lead to; those beyond its end are
    taken for such.
    """
    slots = edges.shape[1] - FIRST_NEIGHBOUR
    for i in range(ids.shape[0]):
        node = np.int64(ids[i])
        degree = np.int64(edges[node, DEGREE])
        lifeline = np.int64(edges[node, LIFELINE])
        wrong = degree > slots or lifeline < 1 or lifeline > rows
        for slot in range(FIRST_NEIGHBOUR, FIRST_NEIGHBOUR + min(degree, slots)):
            neighbour = np.int64(edges[node, slot])
            wrong = wrong or neighbour >= rows or neighbour == node
            if neighbour < known.shape[0] and not known[neighbour] and alive[node]:
                wrong = True
        bad[i] = wrong
