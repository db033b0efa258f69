"""Search over rows that lie on the disk (Jayaram Subramanya et al., DiskANN, 2019).

Codes in memory steer the walk. Each row that it expands is read from the disk by one call: its exact vector, by which
the answers are ranked, and its edges. A row of disk.slab is made of words of four bytes:

    check (2) | birth (2) | seals | edges | vector

A row that is not as new as its edges, or does not hold, is put together from the files that it was made of. So a walk
needs nothing of disk.slab but its speed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..types import Bytes, Float32s, UInt32s, UInt64s
from .candidates import EXPANDED, NOTHING, VACANT, id_of, insert_at, insert_sorted, place_of, unseen
from .codes import scorer_of
from .intrinsics import ask_for, copy_bytes, float_bits, read_at
from .jit import inlined, kernel
from .rows import aim_at, distance, inner
from .search import (
    BORN,
    COSINE,
    DEGREE,
    DISTANCES,
    FIRST_NEIGHBOUR,
    FOUND,
    HOPS,
    IP,
    LIFELINE,
    LOST,
    PAGES,
    STARVED,
    aim,
    cosine_distance,
    keep_below,
    navigate,
    orderable,
    reach_of,
    score,
    unpack_entries,
    visible,
)

PAGE = 4096  # bytes that a disk reads at once; the header of each file takes as many
CHECK, BIRTH, SEALS = 0, 2, 4  # words of a row
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_HIGH = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)


class Disk(NamedTuple):
    """Where rows are read from.

    disk, vectors, edges: descriptors of the slabs, below 0 for none. seals: float32 (rows, columns).
    fresh: a bit for each row that disk.slab holds as it is now. unit_rows, unit_bytes: so many rows begin at every so
    many bytes. edge_words, vector_words: of a row. first_width, most_width: rows that a walk asks for at once, at its
    beginning and when it has converged. hot: uint32 (n, words), rows kept in memory. hot_ids, hot_places: where they
    are, a table of a power of two; VACANT for none.
    """

    disk: int
    vectors: int
    edges: int
    seals: Float32s
    fresh: Bytes
    unit_rows: int
    unit_bytes: int
    edge_words: int
    vector_words: int
    first_width: int
    most_width: int
    hot: UInt32s
    hot_ids: UInt32s
    hot_places: UInt32s


class Frame(NamedTuple):
    """Working memory of one thread.

    words: uint32 (1, row_words), the row at hand. queue: uint64, what was asked for and is not read yet. found: uint64
    (k,), the nearest so far by their measured distances.
    """

    words: UInt32s
    queue: UInt64s
    found: UInt64s


def row_words(seals: int, edges: int, vector: int) -> int:
    """Words of a row of disk.slab, an even number. All arguments in words of four bytes."""
    return (SEALS + seals + edges + vector + 1) // 2 * 2


def unit_of(words: int) -> tuple[int, int]:
    """How many rows begin at every so many bytes: whole pages, and no row lies in more of them than it must."""
    row_bytes = 4 * words
    return (PAGE // row_bytes, PAGE) if row_bytes <= PAGE else (1, -(-row_bytes // PAGE) * PAGE)


@inlined
def is_fresh(disk: Any, row: Any) -> Any:
    """Whether disk.slab has the present edges of a row."""
    return row >> 3 < disk.fresh.shape[0] and (disk.fresh[row >> 3] >> np.uint8(row & 7)) & np.uint8(1) != 0


@inlined
def place_on_disk(disk: Any, words: Any, row: Any) -> Any:
    """The byte of disk.slab at which a row begins."""
    unit = row // disk.unit_rows
    return PAGE + unit * disk.unit_bytes + (row - unit * disk.unit_rows) * (4 * words)


@inlined
def _hot_place(disk: Any, row: Any) -> Any:
    """Where a row is in memory, below 0 if it is not."""
    last = np.uint64(disk.hot_ids.shape[0] - 1)
    at = (np.uint64(row) * _GOLDEN >> _HIGH) & last
    while disk.hot_ids[at] != VACANT:
        if np.int64(disk.hot_ids[at]) == row:
            place = disk.hot_places[at]
            return np.int64(place) if place != VACANT else np.int64(-1)
        at = (at + np.uint64(1)) & last
    return np.int64(-1)


@inlined
def _pages(offset: Any, size: Any) -> Any:
    return (offset + size - 1) // PAGE - offset // PAGE + 1


@inlined
def check_of(words: Any, row: Any) -> Any:
    """The check of a row whose words stand in words[0]: a sum that a loop makes as fast as memory brings it.

    Against rows that are torn, misplaced or never written; against those whose bits have turned as far as a sum can.
    """
    line = words[0]
    total = np.uint64(0)
    for at in range(BIRTH, line.shape[0]):
        total += np.uint64(line[at]) * np.uint64(2 * at + 1)
    return total + (np.uint64(row) + np.uint64(1)) * _GOLDEN


@inlined
def _pair(words: Any, at: Any) -> Any:
    return np.uint64(words[0, at]) | np.uint64(words[0, at + 1]) << _HIGH


@inlined
def _put_pair(words: Any, at: Any, value: Any) -> None:
    words[0, at] = np.uint32(value & _LOW)
    words[0, at + 1] = np.uint32(value >> _HIGH)


@inlined
def _holds(words: Any, live: Any, row: Any) -> Any:
    """Whether what was read is the row that has the id now. Its vector is, then, whatever comes."""
    return _pair(words, CHECK) == check_of(words, row) and _pair(words, BIRTH) == live.state[row, BORN]


@inlined
def _assemble(disk: Any, live: Any, row: Any, words: Any, info: Any) -> Any:
    """Put a row together from the files that it is made of, without its check; False if they cannot be read."""
    _put_pair(words, BIRTH, live.state[row, BORN])
    for column in range(disk.seals.shape[1]):
        words[0, SEALS + column] = float_bits(disk.seals[row, column])
    edges_at = 4 * (SEALS + disk.seals.shape[1])
    size = 4 * disk.edge_words
    offset = PAGE + row * size
    info[PAGES] += _pages(offset, size)
    if read_at(disk.edges, offset, size, words, 0, edges_at) != size:
        return False
    vector_at, size = edges_at + size, 4 * disk.vector_words
    offset = PAGE + row * size
    info[PAGES] += _pages(offset, size)
    return read_at(disk.vectors, offset, size, words, 0, vector_at) == size


@inlined
def fetch(disk: Any, live: Any, row: Any, words: Any, info: Any) -> Any:
    """Bring a row to words[0]; False if it cannot be read."""
    if is_fresh(disk, row):
        place = _hot_place(disk, row)
        if place >= 0:
            copy_bytes(disk.hot, place, 0, words, 0, 4 * words.shape[1])
            if _holds(words, live, row):
                return True
        if disk.disk >= 0:
            offset, size = place_on_disk(disk, words.shape[1], row), 4 * words.shape[1]
            info[PAGES] += _pages(offset, size)
            if read_at(disk.disk, offset, size, words, 0, 0) == size and _holds(words, live, row):
                return True
    return _assemble(disk, live, row, words, info)


@inlined
def _ask(disk: Any, words: Any, row: Any) -> None:
    """Have a row read while others are at hand."""
    if is_fresh(disk, row) and disk.disk >= 0:
        if _hot_place(disk, row) < 0:
            ask_for(disk.disk, place_on_disk(disk, words, row), 4 * words)
        return
    ask_for(disk.edges, PAGE + row * (4 * disk.edge_words), 4 * disk.edge_words)
    ask_for(disk.vectors, PAGE + row * (4 * disk.vector_words), 4 * disk.vector_words)


@inlined
def _walk(
    one: Any, scorer: Any, graph: Any, live: Any, plan: Any, disk: Any, raw: Any, scratch: Any, frame: Any,
    waiting: Any, info: Any,
) -> Any:  # fmt: skip
    """Best-first search for scratch.query, as `search.beam_search`, by estimates; what it expands is measured.

    Rows are asked for before they are read, so that several are on their way at once, and read in the order in which
    they were asked for. A walk that still comes nearer with every row asks for few, since it would not want the others;
    one that has converged will want all that it sees (Guo & Lu, PipeANN, 2025). Returns how many are in frame.found.
    """
    pool, best, seen, frontier, queue = scratch.pool, scratch.best, scratch.seen, scratch.frontier, frame.queue
    words, lift = frame.words, np.float32(0)
    edges_at = SEALS + disk.seals.shape[1]
    vector_at = edges_at + disk.edge_words
    capacity = pool.shape[0] if plan.tombstones else plan.search_list
    most, k = disk.edge_words - FIRST_NEIGHBOUR, frame.found.shape[0]
    bound = NOTHING
    count = found = cursor = hops = scored = measured = head = flying = 0
    width = disk.first_width
    while True:
        score(scorer, scratch.query, lift, frontier, waiting)
        scored += waiting
        kept = keep_below(frontier, waiting, bound)
        nearer = False
        for t in range(kept):
            candidate = frontier[t]
            if candidate >= bound or id_of(candidate) == plan.hidden:
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
                bound = min(bound, reach_of(best[plan.nearest - 1], plan.stretch))
        elif count >= plan.nearest:
            bound = min(bound, reach_of(pool[plan.nearest - 1], plan.stretch))
        if not nearer:
            width = min(width + 1, disk.most_width)
        while flying < width:
            while cursor < count and pool[cursor] & EXPANDED:
                cursor += 1
            if cursor == count or pool[cursor] > bound:
                break
            pool[cursor] |= EXPANDED
            if flying > 0:  # the first is read at once
                _ask(disk, words.shape[1], id_of(pool[cursor]))
            queue[(head + flying) % queue.shape[0]] = pool[cursor]
            flying += 1
        if flying == 0:
            break
        node = id_of(queue[head])
        head, flying = (head + 1) % queue.shape[0], flying - 1
        hops += 1
        waiting = 0
        if not fetch(disk, live, node, words, info):
            info[LOST] += 1
            continue
        copy_bytes(words, 0, 4 * vector_at, one.vectors, 0, 4 * disk.vector_words)
        copy_bytes(words, 0, 4 * SEALS, one.seals, 0, 4 * disk.seals.shape[1])
        if visible(live, node):
            value = _measure(one, plan.metric, scratch.query, raw)
            entry = (np.uint64(orderable(value)) << _HIGH) | np.uint64(node)
            if measured < k or entry < frame.found[k - 1]:
                insert_sorted(frame.found, measured, k, entry)
                measured = min(measured + 1, k)
        lifeline = np.int64(words[0, edges_at + LIFELINE]) - 1
        if 0 <= lifeline < live.rows:
            frontier[waiting] = np.uint64(lifeline)
            waiting += unseen(seen, lifeline)
        first = edges_at + FIRST_NEIGHBOUR
        for slot in range(first, first + min(np.int64(words[0, edges_at + DEGREE]), most)):
            neighbour = words[0, slot]
            # Soft data may be damaged: an id out of range is skipped, never followed.
            if neighbour < live.rows:
                frontier[waiting] = np.uint64(neighbour)
                waiting += unseen(seen, neighbour)
    info[HOPS] += hops
    info[DISTANCES] += scored
    info[STARVED] = plan.tombstones and count == capacity and found < plan.search_list and (
        found < plan.nearest or pool[count - 1] < reach_of(best[plan.nearest - 1], plan.stretch)
    )  # fmt: skip
    return measured


@inlined
def _measure(one: Any, metric: Any, query: Any, raw: Any) -> Any:
    """The distance of the row at hand under the metric."""
    if metric == IP:
        return np.float32(1) - inner(one, raw, 0)
    squared = max(np.float32(0), distance(one, query, np.float32(0), 0))
    return cosine_distance(one, squared, np.float32(0), 0) if metric == COSINE else squared


@kernel
def search_disk(
    one: Any, codes: Any, graph: Any, live: Any, plan: Any, disk: Any, queries: Any, scratch: Any, asked: Any,
    frame: Any, results: Any,
) -> Any:  # fmt: skip
    """Answer queries, float32 of shape (n, dim): walk over codes and over rows on the disk.

    one: the stored rows, as kernels take them, but with room for a single one. Returns the fewest hits that one query
    has found.
    """
    fewest = results.ids.shape[1]
    scorer = scorer_of(codes, asked)
    for i in range(queries.shape[0]):
        lift = aim(one, plan.metric, queries[i], scratch.query)
        info = results.info[i]
        for column in range(info.shape[0]):
            info[column] = 0
        if lift == 0:  # a query without direction is as near to every row: the caller answers it by a scan
            aim_at(scorer, scratch.query)
            waiting = navigate(scorer, graph, live, plan, lift, scratch, info)
            info[FOUND] = _walk(
                one, scorer, graph, live, plan, disk, queries[i], scratch, frame, waiting, info
            )  # fmt: skip
            unpack_entries(frame.found[: info[FOUND]], results.ids[i], results.distances[i])
        fewest = min(fewest, info[FOUND])
    return fewest


@kernel
def make_rows(disk: Any, live: Any, ids: Any, words: Any, out: Any, made: Any, info: Any) -> None:
    """Make rows of disk.slab from the files: out is uint32 (ids, words), made uint8 (ids,), 0 for what cannot be read.

    words: uint32 (1, words), working memory. info: int64 (INFO,), in which pages are counted.
    """
    width = out.shape[1]
    for i in range(ids.shape[0]):
        row = np.int64(ids[i])
        for at in range(width):
            words[0, at] = np.uint32(0)
        made[i] = _assemble(disk, live, row, words, info)
        _put_pair(words, CHECK, check_of(words, row))
        copy_bytes(words, 0, 0, out, i, 4 * width)


@kernel
def read_rows(disk: Any, live: Any, ids: Any, words: Any, out: Any, there: Any) -> None:
    """Read rows of disk.slab. out: as in `make_rows`. there: 0 for rows that are behind their edges, or do not hold."""
    size = 4 * out.shape[1]
    for i in range(ids.shape[0]):
        row = np.int64(ids[i])
        there[i] = (
            is_fresh(disk, row)
            and disk.disk >= 0
            and read_at(disk.disk, place_on_disk(disk, out.shape[1], row), size, words, 0, 0) == size
            and _holds(words, live, row)
        )
        copy_bytes(words, 0, 0, out, i, size)


@kernel
def index_rows(ids: Any, hot_ids: Any, hot_places: Any) -> None:
    """Note where rows are that are kept in memory: ids[i] at place i. The tables are empty, and larger than ids."""
    last = np.uint64(hot_ids.shape[0] - 1)
    for i in range(ids.shape[0]):
        at = (np.uint64(ids[i]) * _GOLDEN >> _HIGH) & last
        while hot_ids[at] != VACANT:
            at = (at + np.uint64(1)) & last
        hot_places[at] = np.uint32(i)
        hot_ids[at] = ids[i]


@kernel
def cool_rows(ids: Any, hot_ids: Any, hot_places: Any) -> Any:
    """Keep rows in memory no longer, since they have changed; returns how many of them were."""
    last = np.uint64(hot_ids.shape[0] - 1)
    cooled = 0
    for i in range(ids.shape[0]):
        at = (np.uint64(ids[i]) * _GOLDEN >> _HIGH) & last
        while hot_ids[at] != VACANT:
            if hot_ids[at] == ids[i]:
                cooled += hot_places[at] != VACANT
                hot_places[at] = VACANT
                break
            at = (at + np.uint64(1)) & last
    return cooled
