"""Repair after deletes, and ids that are used again (Xu et al., IP-DiskANN, 2025).

A pass goes over all rows in small steps. Rows with edges to dead ones get neighbours of these instead; dead rows leave
the ring; and once the pass has ended, nothing leads to the rows that had died before it began: they are *buried*. A
later commit frees their ids, and one later still gives them to new rows:

    buried   no edge, lifeline or entry leads to the row
    freed    its death is durable, its key and payload are gone from the metadata, and no query that sees it is running,
             here or in a reader's process. Its birth is taken back: state (0, died)
    reused   state (0, died) becomes (born, died), and then (born, 0). Who reads the death before the birth finds at any
             moment that no row is there for its snapshot

So a query reads the state of a row without a lock, whatever the writer does meanwhile. Edges are soft: one that led to
a freed id all the same would be walked like any other.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

import numpy as np

from ..kernels.link import HEIRS, Shape, mend_edges, unthread
from ..kernels.search import BORN, DEGREE, DIED, LIFELINE
from ..storage.commit import NO_IDS
from ..storage.format import ELECTED, JOURNAL, NEVER
from ..storage.state import seen_up_to
from ..storage.store import NO_NAVIGATION, NOT_DRAWN, Store
from ..types import AnyArray, Bytes, UInt32s
from .codes import centres_of
from .insert import Linker
from .scratch import workbench
from .threads import Helpers
from .view import View, entries_of, set_entries

SWEEP_ROWS = 1 << 16  # rows per step whose state is read
MEND_ROWS = 1 << 11  # rows per step whose edges are read
SLICE = 1 << 7  # rows per kernel call: some milliseconds if all are mended
WORTHWHILE = 64  # a pass begins by itself once a row in so many is dead
LEAST = 256

MOST_BEHIND = 64  # doomed rows behind each other that are noted one by one when they change


class Mender:
    """Repairs, a step at a time. Used by the writer thread only; `paused` is held by snapshots of the files."""

    def __init__(self, store: Store, linker: Linker, helpers: Helpers) -> None:
        self._store = store
        self._linker = linker
        self._helpers = helpers
        self._pass: Iterator[int] | None = None
        self._view: View | None = None
        self._buried: UInt32s = NO_IDS  # ascending
        self._free: UInt32s = NO_IDS  # ascending
        head = store.metadata.head
        self._searched = head.rows <= head.live + head.dead  # whether all free ids are known
        self.paused = 0

    # --- the pass --------------------------------------------------------------------------------------------------

    @property
    def backlog(self) -> int:
        """Dead rows that something may still lead to."""
        return self._store.metadata.head.dead - len(self._buried)

    @property
    def under_way(self) -> bool:
        """Whether a pass has begun and not ended."""
        return self._pass is not None

    @property
    def holds_ids(self) -> bool:
        """Whether there are ids that a commit may free or use again."""
        return bool(len(self._buried) or len(self._free))

    def due(self, *, calm: bool) -> bool:
        """Whether there is anything to do: when nobody writes for all that is dead, else where it is worth a pass."""
        if self.paused:
            return False
        if self._pass is not None or not self._searched:
            return True
        least = 1 if calm else max(LEAST, self._store.metadata.head.live // WORTHWHILE)
        return self.backlog >= least

    def step(self, view: View) -> int:
        """Go on with the pass, or begin one; returns the number of rows whose edges were looked at.

        view: the present one, in which nothing waits to be linked.
        """
        if self._pass is None:
            self._pass = self._run()
        self._view = view
        looked = next(self._pass, None)
        if looked is None:
            self._pass = None
        return looked or 0

    def finish(self, view: View) -> None:
        """A whole pass at once: whatever is dead now is buried when it returns, if nothing is paused."""
        self._pass = None
        while self.due(calm=True):
            self.step(view)

    def forget(self) -> None:
        """Begin anew: the graph was changed by others."""
        self._pass, self._buried = None, NO_IDS
        self._store.buried = 0

    def restart(self) -> None:
        """Begin anew where no id is free, and nothing is known of the dead."""
        self.forget()
        self._free, self._searched = NO_IDS, True
        self._view = None

    def _run(self) -> Iterator[int]:
        store, head = self._store, self._store.metadata.head
        condemned = yield from self._sweep(head.commit, head.rows)
        if not len(condemned):
            return
        self._renew_entries()
        doomed = np.zeros(-(-head.rows // 8) * 8, np.bool_)
        doomed[condemned] = True
        bits = np.packbits(doomed, bitorder="little")
        del doomed
        if len(entries_of(store)):
            for start in range(0, head.rows, MEND_ROWS):
                self._mend(bits, start, min(start + MEND_ROWS, head.rows))
                yield MEND_ROWS
        self._bury(condemned)

    def _sweep(self, began: int, rows: int) -> Generator[int, None, UInt32s]:
        """The rows that have died and are not buried yet; on the way, the free ids that an earlier handle has left."""
        condemned: list[UInt32s] = []
        free: list[AnyArray] = []
        for start in range(0, rows, SWEEP_ROWS):
            state = self._store.state.array[start : min(start + SWEEP_ROWS, rows)]
            born, died = state[:, BORN], state[:, DIED]
            dead = (born != 0) & (died != 0) & (died <= np.uint64(seen_up_to(began)))
            # At once: what is buried may be freed, and used again, before the sweep goes on.
            condemned.append(
                np.setdiff1d((start + np.flatnonzero(dead)).astype(np.uint32), self._buried, assume_unique=True)
            )
            if not self._searched:
                free.append(start + np.flatnonzero((born == 0) & (died != np.uint64(NEVER))))
            yield 0
        if not self._searched:
            self._searched = True
            self._free = np.union1d(self._free, np.concatenate(free).astype(np.uint32))
        return np.concatenate(condemned or [NO_IDS])

    def _renew_entries(self) -> None:
        """No walk may start at a row that is about to go, and the ring is entered at the first entry."""
        store, head = self._store, self._store.metadata.head
        entries = entries_of(store)
        if head.live and (store.state.array[entries, DIED] != 0).any():
            self._linker.elect_entries(head, head.live)
        elif not head.live and self._view is not None and not len(self._view.pending):
            set_entries(store, NO_IDS)  # nothing is left: the next rows begin a new graph
            store.edges.header[ELECTED] = 0
            store.navigation, store.drawn = NO_NAVIGATION, NOT_DRAWN
            store.edges.note(slice(0, head.rows))
            for start in range(0, head.rows, SWEEP_ROWS):
                store.edges.array[start : min(start + SWEEP_ROWS, head.rows)] = 0

    def _mend(self, doomed: Bytes, first: int, stop: int) -> None:
        view = self._view
        assert view is not None
        edges, settings = self._store.edges.array, view.settings
        shape = Shape(settings.max_edges, np.float32(settings.distance_threshold))
        graph = view.graph._replace(edges=edges)

        weak = np.zeros(stop - first, np.uint8)
        self._store.edges.note(slice(first, stop), vague=True)
        if self._store.disk is not None:
            self._store.disk.stale(leading_to(doomed, edges, first, stop))

        def part(start: int, end: int) -> None:
            bench = workbench(settings.dim, (1 + HEIRS) * edges.shape[1])
            mend_edges(view.rows, graph, view.live, shape, doomed, first + start, weak[start:end], bench)

        self._helpers.run(part, stop - first, SLICE)
        self._linker.link_again((first + np.flatnonzero(weak)).astype(np.uint32), view.head)
        if self._store.changes is not None:
            self._touch_doomed(doomed, first, stop)
        unthread(edges, doomed, self._store.edges.header[JOURNAL : JOURNAL + 2], first, stop)

    def _touch_doomed(self, doomed: Bytes, first: int, stop: int) -> None:
        """Say that the doomed rows that stand behind some rows leave the ring."""
        edges = self._store.edges.array
        at = edges[first:stop, LIFELINE].astype(np.int64) - 1
        for _ in range(MOST_BEHIND):
            at = at[(at >= 0) & (at < 8 * len(doomed))]
            at = at[doomed[at >> 3] >> (at & 7).astype(np.uint8) & 1 == 1]
            if not len(at):
                return
            self._store.edges.note(at.astype(np.uint32))
            at = edges[at, LIFELINE].astype(np.int64) - 1
        self._store.edges.note(slice(0, self._store.metadata.head.rows), vague=True)
        if self._store.disk is not None:
            self._store.disk.stale(np.flatnonzero(np.unpackbits(doomed, bitorder="little")).astype(np.uint32))

    def _bury(self, condemned: UInt32s) -> None:
        """What has left the ring has no edge that leads to it. A row that was threaded behind one meanwhile may have
        kept that on the ring: it waits for the next pass.
        """
        edges = self._store.edges.array
        gone = condemned[edges[condemned, LIFELINE] == 0]
        self._store.edges.note(gone)
        edges[gone] = 0
        self._buried = np.union1d(self._buried, gone)
        self._store.buried = len(self._buried)

    # --- ids -------------------------------------------------------------------------------------------------------

    def freeable(self, oldest: int) -> UInt32s:
        """The ids that the next commit may free. oldest: the oldest snapshot that a query reads."""
        if self.paused or not len(self._buried):
            return NO_IDS
        died = self._store.state.array[self._buried, DIED]
        kept = np.isin(self._buried, centres_of(self._store))
        freed: UInt32s = self._buried[(died <= np.uint64(seen_up_to(min(oldest, self._store.forgotten)))) & ~kept]
        return freed

    def dead_since(self, commit: int) -> int:
        """How many buried rows have died after a commit."""
        return int(np.count_nonzero(self._store.state.array[self._buried, DIED] > np.uint64(seen_up_to(commit))))

    def take(self, count: int) -> UInt32s:
        """`count` ids for new rows, ascending: the lowest of those that are free, then such as no row has had yet.

        Not those that the same commit frees: if it were cut off, dead rows would be left with vectors of others.
        """
        free = self._free[: 0 if self.paused else count]
        first = self._store.next_row()
        return np.concatenate((free, np.arange(first, first + count - len(free), dtype=np.uint32)))

    def spare(self, ids: UInt32s) -> None:
        """Leave out ids that a commit has taken that was cut off."""
        self._free, self._buried = np.setdiff1d(self._free, ids), np.setdiff1d(self._buried, ids)
        self._store.buried = len(self._buried)

    def committed(self, ids: UInt32s, freed: UInt32s) -> None:
        """Note what a commit has done: it has freed these ids, and taken those."""
        most = min(len(ids), len(self._free))
        self._free = self._free[np.count_nonzero(ids[:most] == self._free[:most]) :]
        if len(freed):
            self._buried = np.setdiff1d(self._buried, freed, assume_unique=True)
            self._store.buried = len(self._buried)
            self._free = np.union1d(self._free, freed)


def leading_to(doomed: Bytes, edges: UInt32s, first: int, stop: int) -> UInt32s:
    """The rows from `first` to `stop` that have an edge or a lifeline to a doomed one, and maybe some others."""
    ids = edges[first:stop].copy()
    ids[:, LIFELINE] -= np.uint32(1)  # 0, of a row that is not on the ring, is beyond all ids then
    ids[ids >= 8 * len(doomed)] = 0
    led = (doomed[ids >> np.uint32(3)] >> (ids & np.uint32(7)).astype(np.uint8)) & np.uint8(1)
    led[:, DEGREE] = 0
    found: UInt32s = (first + np.flatnonzero(led.any(axis=1))).astype(np.uint32)
    return found
