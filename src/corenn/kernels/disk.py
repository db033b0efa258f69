"""Search over rows that lie on the disk (Jayaram Subramanya et al., DiskANN, 2019).

Codes in memory steer the walk. Each row that it expands is read from the disk by one call: its exact vector, by which
the answers are ranked, and its edges. A row of disk.slab is made of words of four bytes:

    check (2) | birth (2) | id | seals | edges | vector

Rows lie in *slots*, so that those of a page are near to each other, and a page is read as a whole: what else lies on it
is measured as well, and the nearest of it expanded (Wang et al., Starling, 2024). Pages of a walk stay at hand until
its end.

A row that is not as new as its edges, or does not hold, is put together from the files that it was made of. So a walk
needs nothing of disk.slab but its speed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..types import Bytes, Float32s, Int64s, UInt32s, UInt64s
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
    starved,
    unpack_entries,
    visible,
)

PAGE = 4096  # bytes that a disk reads at once; the header of each file takes as many
CHECK, BIRTH, ID, SEALS = 0, 2, 4, 5  # words of a row
RING = 64  # pages of a walk that stay at hand
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_HIGH = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)


class Disk(NamedTuple):
    """Where rows are read from.

    disk, vectors, edges: descriptors of the slabs, below 0 for none. seals: float32 (rows, columns).
    fresh: a bit for each row that disk.slab holds as it is now. slots: uint32, for each row the slot in which it lies,
    plus one; 0 for none. unit_rows, unit_bytes: so many slots begin at every so many bytes, a *unit*. edge_words,
    vector_words: of a row. first_width, most_width: rows that a walk asks for at once, at its beginning and when it has
    converged. beside: rows that are expanded of a page at most, beside the one for which it was read. hot: uint32
    (n, words), rows kept in memory. hot_ids, hot_places: where they are, a table of a power of two; VACANT for none.
    """

    disk: int
    vectors: int
    edges: int
    seals: Float32s
    fresh: Bytes
    slots: UInt32s
    unit_rows: int
    unit_bytes: int
    edge_words: int
    vector_words: int
    first_width: int
    most_width: int
    beside: int
    hot: UInt32s
    hot_ids: UInt32s
    hot_places: UInt32s


class Frame(NamedTuple):
    """Working memory of one thread.

    words: uint32 (1, row_words), the row at hand. pages: uint32 (RING, words of a unit), the units that were read last,
    in turns. units: int64 (1 + RING,), how many have been read, and which ones are in pages. queue: uint64, what was
    asked for and is not read yet. found: uint64 (k,), the nearest so far by their measured distances. mates: uint64
    (beside,), working memory.
    """

    words: UInt32s
    pages: UInt32s
    units: Int64s
    queue: UInt64s
    found: UInt64s
    mates: UInt64s


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
def slot_of(disk: Any, row: Any) -> Any:
    """The slot in which a row lies, below 0 for none. Soft: it may be damaged, and be that of another row."""
    return np.int64(disk.slots[row]) - 1 if row < disk.slots.shape[0] else np.int64(-1)


@inlined
def place_of_slot(disk: Any, words: Any, slot: Any) -> Any:
    """The byte of disk.slab at which a slot begins."""
    unit = slot // disk.unit_rows
    return PAGE + unit * disk.unit_bytes + (slot - unit * disk.unit_rows) * (4 * words)


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
def assemble(disk: Any, live: Any, row: Any, words: Any, info: Any) -> Any:
    """Put a row together from the files that it is made of, without its check; False if they cannot be read."""
    _put_pair(words, BIRTH, live.state[row, BORN])
    words[0, ID] = np.uint32(row)
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
def begin(frame: Any) -> None:
    """Forget the pages of the walk before, which may have changed since."""
    frame.units[0] = 0


@inlined
def page_at_hand(frame: Any, unit: Any) -> Any:
    """Where in frame.pages a unit is, below 0 if it is not."""
    for place in range(min(frame.units[0], frame.pages.shape[0])):
        if frame.units[1 + place] == unit:
            return np.int64(place)
    return np.int64(-1)


@inlined
def _read_unit(disk: Any, unit: Any, frame: Any, info: Any) -> Any:
    """Read a unit in the place of the oldest; returns where in frame.pages it is, below 0 if it cannot be read."""
    place = frame.units[0] % frame.pages.shape[0]
    offset = PAGE + unit * disk.unit_bytes
    # Of a unit for one row what is behind it is nothing.
    size = min(disk.unit_bytes, disk.unit_rows * 4 * frame.words.shape[1])
    info[PAGES] += _pages(offset, size)
    frame.units[1 + place] = -1
    if read_at(disk.disk, offset, size, frame.pages, place, 0) != size:
        return np.int64(-1)
    frame.units[1 + place] = unit
    frame.units[0] += 1
    return place


@inlined
def _take(disk: Any, frame: Any, page: Any, slot: Any) -> None:
    """Copy what is in a slot of a page at hand to frame.words."""
    size = 4 * frame.words.shape[1]
    copy_bytes(frame.pages, page, slot % disk.unit_rows * size, frame.words, 0, size)


@inlined
def fetch(disk: Any, live: Any, row: Any, frame: Any, info: Any) -> Any:
    """Bring a row to frame.words[0]; False if it cannot be read.

    frame.units[0] is higher by one if its page was read for it. The page is the last one then.
    """
    words = frame.words
    if is_fresh(disk, row):
        place = _hot_place(disk, row)
        if place >= 0:
            copy_bytes(disk.hot, place, 0, words, 0, 4 * words.shape[1])
            if _holds(words, live, row):
                return True
        slot = slot_of(disk, row)
        if slot >= 0 and disk.disk >= 0:
            unit = slot // disk.unit_rows
            page = page_at_hand(frame, unit)
            if page < 0:
                page = _read_unit(disk, unit, frame, info)
            if page >= 0:
                _take(disk, frame, page, slot)
                if _holds(words, live, row):
                    return True
    return assemble(disk, live, row, words, info)


@inlined
def at_hand(disk: Any, frame: Any, row: Any) -> Any:
    """Whether a row can be had without a read, if it holds."""
    if not is_fresh(disk, row):
        return False
    slot = slot_of(disk, row)
    return (slot >= 0 and page_at_hand(frame, slot // disk.unit_rows) >= 0) or _hot_place(disk, row) >= 0


@inlined
def ask(disk: Any, words: Any, row: Any) -> None:
    """Have a row read while others are at hand."""
    if is_fresh(disk, row) and disk.disk >= 0:
        slot = slot_of(disk, row)
        if slot >= 0:
            if _hot_place(disk, row) < 0:
                size = min(disk.unit_bytes, disk.unit_rows * 4 * words)
                ask_for(disk.disk, PAGE + slot // disk.unit_rows * disk.unit_bytes, size)
            return
    ask_for(disk.edges, PAGE + row * (4 * disk.edge_words), 4 * disk.edge_words)
    ask_for(disk.vectors, PAGE + row * (4 * disk.vector_words), 4 * disk.vector_words)


@inlined
def _walk(
    rows: Any, scorer: Any, graph: Any, live: Any, plan: Any, disk: Any, raw: Any, scratch: Any, frame: Any,
    waiting: Any, info: Any,
) -> Any:  # fmt: skip
    """Best-first search for scratch.query, as `search.beam_search`, by estimates; what it expands is measured.

    Rows are asked for before they are read, so that several are on their way at once, and read in the order in which
    they were asked for. A walk that still comes nearer with every row asks for few, since it would not want the others;
    one that has converged will want all that it sees (Guo & Lu, PipeANN, 2025). What lies on a page that was read is
    measured, too, and takes no place in the list; the nearest of it are expanded. Returns how many are in frame.found.
    """
    pool, best, frontier, queue, lift = scratch.pool, scratch.best, scratch.frontier, frame.queue, np.float32(0)
    capacity = pool.shape[0] if plan.tombstones else plan.search_list
    begin(frame)
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
        node = np.int64(-1)
        while flying < width:
            while cursor < count and pool[cursor] & EXPANDED:
                cursor += 1
            if cursor == count or pool[cursor] > bound:
                break
            pool[cursor] |= EXPANDED
            if at_hand(disk, frame, id_of(pool[cursor])):
                node = id_of(pool[cursor])
                break
            if flying > 0:  # the first is read at once
                ask(disk, frame.words.shape[1], id_of(pool[cursor]))
            queue[(head + flying) % queue.shape[0]] = pool[cursor]
            flying += 1
        if node < 0:
            if flying == 0:
                break
            node = id_of(queue[head])
            head, flying = (head + 1) % queue.shape[0], flying - 1
        hops += 1
        waiting = 0
        before = frame.units[0]
        if not fetch(disk, live, node, frame, info):
            info[LOST] += 1
            continue
        if visible(live, node):
            entry = _measured(rows, plan.metric, disk, frame, scratch.query, raw, node)
            measured = _keep_nearest(frame.found, measured, entry)
        waiting = expand(disk, live, frame, scratch, waiting)
        if frame.units[0] > before:
            measured = _measure_page(rows, live, plan, disk, scratch, raw, frame, node, measured)
            page = (frame.units[0] - 1) % frame.pages.shape[0]
            for at in range(frame.mates.shape[0]):
                if frame.mates[at] == NOTHING:
                    break
                _take(disk, frame, page, np.int64(frame.mates[at] & _LOW))
                waiting = expand(disk, live, frame, scratch, waiting)
                hops += 1
    info[HOPS] += hops
    info[DISTANCES] += scored
    info[STARVED] = plan.tombstones and count == capacity and starved(pool, count, best, found, plan)
    return measured


@inlined
def expand(disk: Any, live: Any, frame: Any, scratch: Any, waiting: Any) -> Any:
    """Add to the `waiting` ids of the frontier those that the row at hand leads to; returns how many there are."""
    words, seen, frontier = frame.words, scratch.seen, scratch.frontier
    edges_at = SEALS + disk.seals.shape[1]
    first, most = edges_at + FIRST_NEIGHBOUR, disk.edge_words - FIRST_NEIGHBOUR
    lifeline = np.int64(words[0, edges_at + LIFELINE]) - 1
    if 0 <= lifeline < live.rows:
        frontier[waiting] = np.uint64(lifeline)
        waiting += unseen(seen, lifeline)
    for at in range(first, first + min(np.int64(words[0, edges_at + DEGREE]), most)):
        neighbour = words[0, at]
        # Soft data may be damaged: an id out of range is skipped, never followed.
        if neighbour < live.rows:
            frontier[waiting] = np.uint64(neighbour)
            waiting += unseen(seen, neighbour)
    return waiting


@inlined
def _measured(rows: Any, metric: Any, disk: Any, frame: Any, query: Any, raw: Any, row: Any) -> Any:
    """The row at hand by its distance, as `unpack_entries` takes it."""
    vector_at = SEALS + disk.seals.shape[1] + disk.edge_words
    copy_bytes(frame.words, 0, 4 * vector_at, rows.vectors, 0, 4 * disk.vector_words)
    copy_bytes(frame.words, 0, 4 * SEALS, rows.seals, 0, 4 * disk.seals.shape[1])
    return (np.uint64(orderable(_measure(rows, metric, query, raw))) << _HIGH) | np.uint64(row)


@inlined
def _keep_nearest(found: Any, count: Any, entry: Any) -> Any:
    """Take an entry into `count` ascending ones, if it is among the nearest and not there yet; returns their count."""
    if count == found.shape[0] and entry >= found[count - 1]:
        return count
    place = place_of(found, count, entry)
    if place < count and found[place] == entry:
        return count
    insert_at(found, place, count, found.shape[0], entry)
    return min(count + 1, found.shape[0])


@inlined
def _measure_page(
    rows: Any, live: Any, plan: Any, disk: Any, scratch: Any, raw: Any, frame: Any, row: Any, measured: Any
) -> Any:
    """Measure what else lies on the page that was read last for a row. Leaves in frame.mates the slots of the nearest
    of it, behind their distances, and NOTHING behind them. Returns how many are in frame.found.
    """
    mates, page = frame.mates, (frame.units[0] - 1) % frame.pages.shape[0]
    mates[:] = NOTHING
    first = frame.units[1 + page] * disk.unit_rows
    for slot in range(first, first + disk.unit_rows):
        other = np.int64(frame.pages[page, (slot - first) * frame.words.shape[1] + ID])
        if other == row or other == plan.hidden or other >= live.rows:
            continue
        # What was left here by a row that has changed since, or lies elsewhere, is not what walks are to see.
        if not is_fresh(disk, other) or slot_of(disk, other) != slot:
            continue
        _take(disk, frame, page, slot)
        if not _holds(frame.words, live, other):
            continue
        unseen(scratch.seen, other)
        entry = _measured(rows, plan.metric, disk, frame, scratch.query, raw, other)
        if visible(live, other):
            measured = _keep_nearest(frame.found, measured, entry)
        entry = (entry >> _HIGH << _HIGH) | np.uint64(slot)
        if mates.shape[0] > 0 and entry < mates[mates.shape[0] - 1]:
            insert_sorted(mates, mates.shape[0], mates.shape[0], entry)
    return measured


@inlined
def _measure(rows: Any, metric: Any, query: Any, raw: Any) -> Any:
    """The distance of the row at hand under the metric."""
    if metric == IP:
        return np.float32(1) - inner(rows, raw, 0)
    squared = max(np.float32(0), distance(rows, query, np.float32(0), 0))
    return cosine_distance(rows, squared, np.float32(0), 0) if metric == COSINE else squared


@kernel
def search_disk(
    rows: Any, codes: Any, graph: Any, live: Any, plan: Any, disk: Any, queries: Any, scratch: Any, asked: Any,
    frame: Any, results: Any,
) -> Any:  # fmt: skip
    """Answer queries, float32 of shape (n, dim): walk over codes and over rows on the disk.

    rows: the stored rows, as kernels take them, but with room for a single one. Returns the fewest hits that one query
    has found.
    """
    fewest = results.ids.shape[1]
    scorer = scorer_of(codes, asked)
    for i in range(queries.shape[0]):
        lift = aim(rows, plan.metric, queries[i], scratch.query)
        info = results.info[i]
        for column in range(info.shape[0]):
            info[column] = 0
        if lift == 0:  # a query without direction is as near to every row: the caller answers it by a scan
            aim_at(scorer, scratch.query)
            waiting = navigate(scorer, graph, live, plan, lift, scratch, info)
            info[FOUND] = _walk(
                rows, scorer, graph, live, plan, disk, queries[i], scratch, frame, waiting, info
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
        made[i] = assemble(disk, live, row, words, info)
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
            and slot_of(disk, row) >= 0
            and read_at(disk.disk, place_of_slot(disk, out.shape[1], slot_of(disk, row)), size, words, 0, 0) == size
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
