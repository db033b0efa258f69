"""Searching over the disk: when, from which files, and keeping disk.slab as the graph is.

disk.slab is made in the background, in steps of the writer thread, in idle time and beside writes. What the kernel does
while a row is behind, kernels/disk.py tells.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import CoreNNError
from ..kernels.candidates import VACANT
from ..kernels.codes import asked_of, form_in
from ..kernels.disk import PAGE, SEALS, Disk, cool_rows, index_rows, make_rows, read_rows, unit_of
from ..kernels.pack import Packer, pack_rows
from ..kernels.rows import Rows, one_row
from ..kernels.search import BORN, DEGREE, FIRST_NEIGHBOUR, INFO, Live
from ..storage.commit import NO_IDS
from ..storage.disk import Descriptors, words_of
from ..storage.platform import will_need
from ..storage.slab import FileSlab, Slab
from ..storage.store import NO_HOT, Hot, Store
from ..types import Bytes, UInt32s
from .codes import chosen_mode

if TYPE_CHECKING:
    from .view import View

log = logging.getLogger("corenn.disk")

FIRST_WIDTH, MOST_WIDTH = 1, 16  # rows asked for at once, where a walk begins and where it has converged
BESIDE = 4  # rows expanded of a page at most, beside the one for which it was read; half of those that it holds
STEP_ROWS = 1 << 11  # written per step: some milliseconds
NEAR = 64  # candidates for a page
WORTHWHILE = 16  # beside writes, steps are taken while a row in so many is behind
RETRY_SECONDS = 60.0  # after a failure, such as a full disk
HOT_SHARE = 16  # of the memory limit: a part in so many is for rows that are kept
COLD = 2  # kept rows are chosen anew when they have changed so many times each, for they follow their edges
_NO_BITS: Bytes = np.zeros(0, np.uint8)


@dataclass(frozen=True, slots=True)
class OnDisk:
    """disk: what the kernel takes. words: of a row of disk.slab. files: keeps descriptors open. vectors: the slab."""

    disk: Disk
    words: int
    files: Descriptors
    vectors: Slab

    def in_order(self, rows: Rows) -> Rows:
        """The same rows for a scan, with which `release` goes."""
        if not isinstance(self.vectors, FileSlab):
            return rows
        try:
            vectors = self.vectors.in_order()
        except (CoreNNError, OSError):  # without a descriptor left, or closed since
            return rows
        return rows._replace(vectors=vectors) if len(vectors) >= len(rows.vectors) else rows

    def release(self, first: int, stop: int) -> None:
        """Let a scan that has gone over some vectors through the mapping leave nothing of them resident."""
        if isinstance(self.vectors, FileSlab):
            self.vectors.release(first, stop)


def walks_disk(store: Store) -> bool:
    """Whether walks over vectors and edges would keep more in memory than is allowed, and codes can steer."""
    limit = store.settings.memory_limit
    row_bytes = store.vectors.spec.row_bytes + store.edges.spec.row_bytes
    outgrown = store.path is not None and 0 < limit < store.metadata.head.rows * row_bytes
    return outgrown and chosen_mode(store) != "none"


def hot_bytes(store: Store) -> int:
    """Bytes of the rows of disk.slab that are kept in memory."""
    return store.settings.memory_limit // HOT_SHARE


def source_of(store: Store) -> OnDisk:
    """The files as they are now; none for a store in memory, whose rows cannot be read then."""
    disk = store.disk
    if disk is not None and not (store.writable or disk.trusted):
        disk = None  # the machine has restarted, and no writer has looked at it since
    if store.source is None:
        slabs = [store.vectors, store.edges, *([] if disk is None else [disk.rows])]
        store.source = Descriptors(store.files, [slab for slab in slabs if isinstance(slab, FileSlab)])
    vectors, edges, rows = (*store.source.numbers, -1, -1, -1)[:3]
    edge_words, words = store.edges.spec.columns, words_of(store.settings, store.edges.spec.columns)
    unit_rows, unit_bytes = unit_of(words)
    kernel = Disk(
        rows, vectors, edges, store.seals.array.view(np.float32), *((_NO_BITS, NO_IDS) if disk is None else
        (disk.fresh, disk.slots)), unit_rows, unit_bytes, edge_words, store.vectors.spec.row_bytes // 4, FIRST_WIDTH,
        MOST_WIDTH, min(unit_rows // 2, BESIDE), *store.hot,
    )  # fmt: skip
    return OnDisk(kernel, words, store.source, store.vectors)


def disk_for(store: Store) -> OnDisk | None:
    """Where walks read rows, None while they go over what is mapped."""
    if not walks_disk(store):
        store.hot = NO_HOT
        return None
    try:
        return source_of(store)
    except CoreNNError:
        log.warning("the files could not be opened for searches over the disk", exc_info=True)
        return None


class Spiller:
    """Writes disk.slab, a step at a time. Used by the writer thread only."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.restart()

    def restart(self) -> None:
        """Begin anew, with other files."""
        self._cursor = 0
        self._later = 0.0
        self._heating: Iterator[None] | None = None
        self._hot: Hot | None = None  # what was chosen last
        self._kept, self._places = (
            NO_IDS,
            NO_IDS.astype(np.int64),
        )  # the ids of its rows, ascending, and where these are
        self._heated, self._changed = (0, 0), 0  # for what it was chosen, and how many of its rows have changed
        self._meanwhile: list[UInt32s] = []  # rows that were written while others are chosen
        self._left = -1  # rows behind after the last step, if there was one

    @property
    def backlog(self) -> int:
        """Rows that disk.slab does not have as they are, as far as it is wanted."""
        if not walks_disk(self._store):
            return 0
        disk = self._store.disk
        return self._store.metadata.head.rows - (0 if disk is None else disk.current)

    def due(self, *, calm: bool) -> bool:
        """Whether there is anything to do; beside writes, whether it is worth it."""
        if not walks_disk(self._store) or time.monotonic() < self._later:
            return False
        behind = self.backlog
        if not calm:
            return behind > self._store.metadata.head.rows // WORTHWHILE
        return behind > 0 or self._heating is not None or self._is_cold()

    def owed(self, least: int) -> int:
        """Rows to write beside writes, so that no more than one in WORTHWHILE stays behind: `least`, or twice as many
        as have changed since the last time. Those that change again and again wait for it, and are written once.
        """
        behind, rows = self.backlog, self._store.metadata.head.rows
        changed = behind - self._left if self._left >= 0 else 0
        return max(min(behind - rows // WORTHWHILE, max(least, 2 * changed)), 0)

    def failed_for(self) -> float:
        """Seconds until what has failed is tried again, 0 if nothing has."""
        return max(self._later - time.monotonic(), 0.0) if walks_disk(self._store) else 0.0

    def step(self, view: View, rows: int = STEP_ROWS) -> None:
        """Write so many rows, about, or choose rows to keep in memory. What fails is tried again later."""
        try:
            if self.backlog > 0:
                self._write(view, rows)
            else:
                self._heat(view)
        except CoreNNError as error:
            log.warning("disk.slab is not up to date (%s); searches read two files, and it is tried again", error)
            self._later = time.monotonic() + RETRY_SECONDS
        self._left = self.backlog

    # --- rows ------------------------------------------------------------------------------------------------------

    def _write(self, view: View, rows: int) -> None:
        store, head = self._store, view.head
        if store.disk is None:
            store.open_disk(create=True)
        disk = store.disk
        assert disk is not None
        disk.reserve(head.rows, head.rows)
        count = max(rows // disk.unit_rows, 1) * disk.unit_rows
        ids = disk.next_stale(self._cursor, head.rows, count)
        if len(ids) < count:
            ids = np.union1d(ids, again := disk.next_stale(0, min(self._cursor, head.rows), count - len(ids)))
            self._cursor = (int(again[-1]) + 1) // 8 * 8 if len(again) else 0
        else:
            self._cursor = (int(ids[-1]) + 1) // 8 * 8
        if not len(ids):
            disk.recount()
            return
        born = store.state.array[ids, BORN] != 0
        disk.skip(ids[~born])
        ids, homeless = disk.among_slots(ids[born])
        if len(homeless):
            if disk.vacant < len(homeless):  # some were lost by processes that were killed
                disk.reserve(head.rows, disk.placed + len(homeless))
            looked, placed = pack(store, view, homeless, max(count - len(ids), disk.unit_rows))
            if looked < len(homeless):
                self._cursor = min(int(homeless[looked]) // 8 * 8, self._cursor or head.rows)
            ids = np.concatenate((ids, placed))
        words, made = rows_made(store, head.rows, ids)
        self._renew_hot(ids[made != 0], words[made != 0])
        disk.write(ids[made != 0], words[made != 0])
        if not made.all():
            log.warning("%d rows cannot be read for disk.slab", np.count_nonzero(made == 0))
            self._later = time.monotonic() + RETRY_SECONDS

    def _renew_hot(self, ids: UInt32s, words: UInt32s) -> None:
        """Keep rows as they are now where they are kept. Who reads one meanwhile finds that it does not hold."""
        hot = self._store.hot
        if self._heating is not None:
            self._meanwhile.append(ids)
        if hot is not self._hot:  # chosen anew before long
            cool_rows(ids, hot.ids, hot.places)
            return
        at = np.searchsorted(self._kept, ids)
        kept = at < len(self._kept)
        kept[kept] = self._kept[at[kept]] == ids[kept]
        hot.rows[self._places[at[kept]]] = words[kept]
        self._changed += int(np.count_nonzero(kept))

    # --- rows that are kept in memory ------------------------------------------------------------------------------

    def _is_cold(self) -> bool:
        store = self._store
        changed = self._changed > COLD * len(store.hot.rows)
        return store.hot is not self._hot or self._heated != (store.drawn.commit, hot_bytes(store)) or changed

    def _heat(self, view: View) -> None:
        if self._heating is None:
            self._heating = self._chosen(view)
        if next(self._heating, self) is self:
            self._heating = None

    def _chosen(self, view: View) -> Iterator[None]:
        """Keep the rows nearest to where walks enter, by hops; of the last hop those that most edges lead to."""
        store = self._store
        self._meanwhile = []
        self._heated, self._changed = (store.drawn.commit, hot_bytes(store)), 0
        source = source_of(store)
        most = hot_bytes(store) // (4 * source.words)
        frontier = np.unique(np.concatenate((view.graph.entries, view.graph.navigation.ids)))[:most]
        kept = [np.zeros((0, source.words), np.uint32)]
        ids = NO_IDS
        while len(frontier) and len(ids) < most:
            found = []
            for start in range(0, len(frontier), STEP_ROWS):
                part = frontier[start : start + STEP_ROWS]
                words, there = rows_read(store, view.head.rows, part)
                found.append(words[there != 0])
                ids = np.concatenate((ids, part[there != 0]))
                yield
            kept += found
            edges = np.concatenate(found)[:, SEALS + source.disk.seals.shape[1] :]
            present = np.arange(source.disk.edge_words - FIRST_NEIGHBOUR) < edges[:, DEGREE : DEGREE + 1]
            led, times = np.unique(edges[:, FIRST_NEIGHBOUR : source.disk.edge_words][present], return_counts=True)
            new = (led < view.head.rows) & ~np.isin(led, ids)
            led, times = led[new], times[new]
            frontier = np.sort(led[np.argsort(-times, kind="stable")][: most - len(ids)])
        size = 1 << max(2 * len(ids) - 1, 1).bit_length()
        hot = Hot(np.concatenate(kept), np.full(size, VACANT), np.full(size, VACANT))
        index_rows(ids, hot.ids, hot.places)
        self._places = np.argsort(ids)
        self._kept = ids[self._places]
        for changed in self._meanwhile:
            cool_rows(changed, hot.ids, hot.places)
        self._meanwhile = []
        self._hot = store.hot = hot
        log.info("%d rows of disk.slab are kept in memory", len(ids))


def pack(store: Store, view: View, ids: UInt32s, most: int) -> tuple[int, UInt32s]:
    """Give slots to some rows that have none, and to what is near to them; so many in all, about.

    Returns how many of the ids were looked at, and the rows that have got slots, in the order of these.
    """
    disk = store.disk
    assert disk is not None
    if view.codes is None:  # nothing tells what is near, and no search goes over the disk
        ids = ids[:most]
        first = disk.take_slots(len(ids))
        disk.slots[ids] = np.arange(first + 1, first + 1 + len(ids), dtype=np.uint32)
        return len(ids), ids
    placed = np.empty(min(most + disk.unit_rows, disk.vacant), np.uint32)
    first = disk.take_slots(len(placed))
    looked, count = packed(store, view, ids, placed, first)
    disk.give_back_slots(first + count)
    return looked, placed[:count]


def packed(store: Store, view: View, ids: UInt32s, placed: UInt32s, first: int) -> tuple[int, int]:
    """Run the kernel that gives slots."""
    source = source_of(store)
    assert view.codes is not None
    packer = Packer(
        np.zeros((1, source.words), np.uint32), np.empty(store.settings.dim, np.float32),
        np.empty(source.disk.edge_words, np.uint64), np.empty(NEAR, np.uint64),
    )  # fmt: skip
    looked, count = pack_rows(
        one_row(view.rows), view.codes, asked_of(form_in(view.codes)), view.live, source.disk, packer, ids, first,
        placed, np.zeros(INFO, np.int64),
    )  # fmt: skip
    return looked, count


def rows_made(store: Store, rows: int, ids: UInt32s) -> tuple[UInt32s, Bytes]:
    """Rows as they are to be in disk.slab, uint32 (ids, words), and 0 for those that cannot be read."""
    source = source_of(store)
    disk = source.disk
    for number, size in ((disk.vectors, 4 * disk.vector_words), (disk.edges, 4 * disk.edge_words)):
        for first, last in _ranges(ids, size):
            will_need(number, PAGE + first * size, (last - first + 1) * size)
    out, made = np.empty((len(ids), source.words), np.uint32), np.zeros(len(ids), np.uint8)
    one, info = np.zeros((1, source.words), np.uint32), np.zeros(INFO, np.int64)
    make_rows(disk, Live(store.state.array, np.uint64(0), rows), ids, one, out, made, info)
    return out, made


def _ranges(ids: UInt32s, size: int) -> list[tuple[int, int]]:
    """Rows of so many bytes as ranges, first and last: those between which there is less than a page are together."""
    if not len(ids):
        return []
    ordered = np.sort(ids).astype(np.int64)
    ends = np.flatnonzero(np.diff(ordered) * size > PAGE)
    firsts, lasts = ordered[np.append(0, ends + 1)], ordered[np.append(ends, len(ordered) - 1)]
    return list(zip(firsts.tolist(), lasts.tolist(), strict=True))


def rows_read(store: Store, rows: int, ids: UInt32s) -> tuple[UInt32s, Bytes]:
    """Rows as they are in disk.slab, uint32 (ids, words), and 0 for those that are not current, or do not hold."""
    source = source_of(store)
    out, there = np.empty((len(ids), source.words), np.uint32), np.zeros(len(ids), np.uint8)
    one = np.zeros((1, source.words), np.uint32)
    read_rows(source.disk, Live(store.state.array, np.uint64(0), rows), ids, one, out, there)
    return out, there


def wrong_rows(store: Store, rows: int) -> UInt32s:
    """Ids of the rows below `rows` that disk.slab is said to have as they are, and has not."""
    if store.disk is None:
        return NO_IDS
    found = [NO_IDS]
    for start in range(0, rows, STEP_ROWS):
        ids = store.disk.fresh_among(np.arange(start, min(start + STEP_ROWS, rows), dtype=np.uint32))
        ids = ids[store.state.array[ids, BORN] != 0]
        words, there = rows_read(store, rows, ids)
        made, _ = rows_made(store, rows, ids)
        found.append(ids[(there == 0) | (words != made).any(axis=1)])
    return np.concatenate(found)
