"""Linking rows into the graph, a batch at a time (Manohar et al., ParlayANN, 2024).

Each row of a batch searches the graph as it was before the batch, in parallel, and its edges are pruned; then the
reverse edges are grouped by target and every target is visited by one thread. The outcome depends on the sequence of
batches, never on the threads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from ..config import Settings
from ..kernels.codes import form_in, scorer_of
from ..kernels.link import ANY, NO_CODES, Shape, choose_edges, link_back, rank_batch, thread_ring
from ..kernels.search import DEGREE, DIED, FIRST_NEIGHBOUR, GEOMETRY, INFO, LIFELINE, Plan
from ..storage.commit import NO_IDS, Head
from ..storage.format import ELECTED, JOURNAL
from ..storage.slab import FileSlab
from ..storage.store import Store
from ..types import AnyArray, Float32s, UInt32s
from . import bulk, insert_disk, meter, navigation, parts
from .bulk import Builder
from .codes import Coder
from .entries import elect
from .insert_disk import DiskLinker, by_codes
from .parts import Parts
from .recode import Recoder
from .scratch import ScratchPool, workbench
from .threads import Helpers
from .view import View, entries_of, note_growth, set_entries, take_view

BATCH_ROWS = 1024
FIRST_ROWS = 32  # a batch is at least this long, and else at most a sixteenth of what is linked
SHARE = 16
PEERS = 32  # nearest rows of its own batch that a row considers
LATELY = 10  # rows linked shortly before, at 1, 2, 4, 8, … rows back, at which an insert starts as well
LATELY_ROWS = 1 << LATELY - 1
TRAIL = 4  # expanded candidates kept, in search lists
ELECTION = 1.1  # growth after which the entries are chosen anew
SLICE = 16  # rows per kernel call: some milliseconds
TO_THE_END = 1 << 31  # no distance ends a search: rows far away make the long edges


class Linker:
    """Links rows. Used by the writer thread only."""

    def __init__(self, store: Store, scratches: ScratchPool, helpers: Helpers) -> None:
        self._store = store
        self._scratches = scratches
        self._helpers = helpers
        self.coder = Coder(store, helpers)
        self.recoder = Recoder(store, self.coder, scratches, helpers)
        self._builder = Builder(store, scratches, helpers)
        self.parts = Parts(store, scratches, helpers, self._builder)
        self._by_codes = DiskLinker(scratches, helpers)
        self.restart()

    def restart(self) -> None:
        """Begin with the rows of the store as it is now."""
        rows = self._store.metadata.head.rows
        self._scattered = False  # whether edges are touched here and there, without what is around
        # The rows linked last, the newest at the end.
        self._lately: UInt32s = np.arange(max(0, rows - LATELY_ROWS), rows).astype(np.uint32)

    def in_bulk(self, count: int) -> bool:
        """Whether so many rows are linked at once: all that the graph holds, whole or in parts."""
        enough = self._fits(count) or parts.worthwhile(self._store, count)
        return count >= bulk.BULK_ROWS and self.empty and enough

    def _fits(self, count: int) -> bool:
        """Whether there is memory to link so many rows as a whole."""
        limit = self._store.settings.memory_limit if self._store.path is not None else 0
        return not limit or count * bulk.ROW_BYTES <= limit // 2

    @property
    def empty(self) -> bool:
        """Whether nothing is linked yet."""
        return not len(entries_of(self._store))

    def kind(self, count: int) -> dict[str, int]:
        """How so many rows, the first ones, would be linked: see meter.py."""
        if count < bulk.BULK_ROWS or not (self._fits(count) or parts.worthwhile(self._store, count)):
            return meter.WALKS
        return meter.WHOLE if self._fits(count) else meter.PARTS

    def beside_bytes(self, count: int) -> int:
        """Bytes that linking so many rows at once takes on the disk at most, while it lasts."""
        if count < bulk.BULK_ROWS or not self.empty or self._store.path is None:
            return 0
        if self._fits(count):
            return bulk.mapped_bytes(self._store, count)
        return parts.most_bytes(self._store, count) if parts.worthwhile(self._store, count) else 0

    def link(
        self, ids: UInt32s, head: Head, stop: Callable[[], bool], progress: bulk.Progress | None = None, *,
        pause: Callable[[], bool] = lambda: False, linked: Callable[[UInt32s], None] = lambda left: None,
    ) -> UInt32s:  # fmt: skip
        """Link ids that are committed at `head`; returns those left over if `stop` became true on the way.

        pause: see `Parts.build`. linked: called with those left over whenever others are in the graph; where they are
        linked all at once, before what can be made up for at any time, such as codes: a process that is killed there
        need not link them again.

        Raises:
            DiskFullError, StorageError: see `Parts.build`.
        """
        if self.in_bulk(len(ids)):
            return self._link_bulk(ids, head, stop, progress, pause, linked)
        whole = len(ids)
        elected = int(self._store.edges.header[ELECTED])
        self._encode(ids, head)
        while len(ids) and not stop():
            before = max(0, head.live - len(ids))
            size = min(self._most(head), max(FIRST_ROWS, before // SHARE))
            batch, ids = ids[:size], ids[size:]
            self._link_batch(batch, head)
            if before + len(batch) >= elected * ELECTION + FIRST_ROWS:
                elected = before + len(batch)
                self.elect_entries(head, elected, stop)
            self._lately = np.concatenate((self._lately, batch))[-LATELY_ROWS:]
            self.recoder.first(self._view(head), before, before + len(batch))
            linked(ids)
            if progress is not None:
                progress("inserting", whole - len(ids), whole)
        return ids

    def _link_bulk(
        self, ids: UInt32s, head: Head, stop: Callable[[], bool], progress: bulk.Progress | None,
        pause: Callable[[], bool], linked: Callable[[UInt32s], None],
    ) -> UInt32s:  # fmt: skip
        """See `link`."""
        alive = ids[self._store.state.array[ids, DIED] == 0]
        if not len(alive):
            self.parts.discard()
            return NO_IDS
        whole = self._fits(len(alive))
        if whole:
            self.parts.discard()
            done = alive if self._builder.build(alive, head, stop, progress) else None
        else:
            done = self.parts.build(ids, head, stop, progress, pause)
        if done is None:
            return ids
        self._set_entries(head, len(done))
        if whole:
            self._builder.measure_growth(self._view(head))
        there = np.zeros(head.rows, np.bool_)
        there[done] = True
        left: UInt32s = alive[~there[alive]]
        linked(left)
        self.parts.discard()
        self.complete(done, head, stop, progress)
        return left

    def complete(
        self, ids: UInt32s, head: Head, stop: Callable[[], bool], progress: bulk.Progress | None = None
    ) -> None:
        """Make what goes with rows that were linked all at once: the navigation graph, and codes."""
        count = len(ids)
        tell = progress or (lambda step, done, total: None)
        tell("codes", 0, count)
        self._navigate(head, count, stop)
        self._encode(ids, head)
        self.recoder.first(self._view(head), 0, count)
        tell("codes", count, count)

    def _encode(self, ids: UInt32s, head: Head) -> None:
        """Give new rows their codes, over which they are linked."""
        view = self._view(head)
        self.coder.extend(view, ids)
        self.recoder.again(view, ids)

    def link_again(self, ids: UInt32s, head: Head) -> None:
        """Search new edges for rows that are in the graph, and have lost many of those that they had.

        What they have still is kept beside, as far as it fits: others count on it to be found.
        """
        edges = self._store.edges.array
        alive = ids[self._store.state.array[ids, DIED] == 0]
        for start in range(0, len(alive), most := self._most(head)):
            batch = alive[start : start + most]
            former, degrees = self._targets(edges, batch), edges[batch, DEGREE]
            self._link_batch(batch, head)
            self._link_back(self._view(head), former, np.repeat(batch, degrees))

    def elect_entries(self, head: Head, linked: int, stop: Callable[[], bool] = lambda: False) -> None:
        """Choose the entries anew among the rows that are linked, about `linked` in number, and draw the sample anew
        where that is due, unless `stop` becomes true.
        """
        self._set_entries(head, linked)
        self._navigate(head, linked, stop)

    def _set_entries(self, head: Head, linked: int) -> None:
        set_entries(self._store, elect(self._view(head), self._helpers.between))
        self._store.edges.header[ELECTED] = linked

    def _navigate(self, head: Head, linked: int, stop: Callable[[], bool]) -> None:
        if navigation.due(self._store, linked):
            navigation.make(self._store, self._view(head), partial(link_apart, self._scratches, self._helpers, stop))

    def _most(self, head: Head) -> int:
        """Rows of a batch at most."""
        return insert_disk.BATCH_ROWS if by_codes(self._view(head)) else BATCH_ROWS

    def _view(self, head: Head) -> View:
        return take_view(self._store, head, NO_IDS)

    def _link_batch(self, batch: UInt32s, head: Head) -> None:
        view = self._starting_lately(self._view(head))
        settings = view.settings
        shape = _shape(settings)
        if by_codes(view) != self._scattered and isinstance(self._store.edges, FileSlab):
            self._scattered = by_codes(view)
            self._store.edges.read_no_more_than_touched(self._scattered)
            for slab in (self._store.codes, self._store.state):
                if isinstance(slab, FileSlab):
                    if self._scattered:
                        slab.read_ahead()  # else they come page by page, each waited for
                    slab.read_no_more_than_touched(self._scattered)  # what is lost of them later comes by itself
        nearest = np.empty((len(batch), min(PEERS, max(1, len(batch) - 1))), np.uint64)
        if len(batch) > 1:
            self._rank(view, batch, nearest)
        else:
            nearest.fill(np.uint64(0xFFFFFFFFFFFFFFFF))
        self._store.edges.note(batch)
        self._choose(view, shape, batch, nearest)
        targets = self._targets(view.graph.edges, batch)
        if not len(entries_of(self._store)):
            set_entries(self._store, batch[:1])
        if by_codes(view):
            self._by_codes.ask_for(view, np.unique(targets))
        root = int(entries_of(self._store)[0])
        self._store.edges.note(np.append(targets, np.uint32(root)))
        self._thread(view, batch, root)
        self._link_back(view, np.repeat(batch, view.graph.edges[batch, DEGREE]), targets)

    def _starting_lately(self, view: View) -> View:
        """The view, in which walks start at all entries, and at rows linked shortly before as well.

        Rows that come cluster by cluster find their own that way, long before the cluster has an entry.
        """
        back = 1 << np.arange(LATELY)
        lately = self._lately[-back[back <= len(self._lately)]]
        linked = view.graph.edges[lately, LIFELINE] != 0
        alive = view.live.state[lately, DIED] == 0
        entries = np.concatenate((entries_of(self._store), lately[linked & alive]))
        return view._replace(graph=view.graph._replace(entries=entries))

    def _rank(self, view: View, batch: UInt32s, nearest: AnyArray) -> None:
        def rank(start: int, stop: int) -> None:
            vector = np.empty(view.settings.dim, np.float32)
            rank_batch(view.rows, batch, start, stop, nearest, vector)

        self._helpers.run(rank, len(batch), 4 * SLICE)

    def _choose(self, view: View, shape: Shape, batch: UInt32s, nearest: AnyArray) -> None:
        settings = view.settings
        size = settings.update_search_list_cap
        plan = Plan(size, view.beam_width, GEOMETRY, view.tombstones, TO_THE_END, np.float32(1))
        if by_codes(view):
            self._put(view, batch, *self._by_codes.choose(view, shape, batch, nearest, plan))
            return
        room = (TRAIL + 9) * plan.search_list + nearest.shape[1]
        growth = np.zeros(len(batch), np.float32)
        chosen = np.zeros((len(batch), view.graph.edges.shape[1]), np.uint32)

        def choose(start: int, stop: int) -> None:
            key, scratch = self._scratches.take(view, plan, TRAIL * plan.search_list)
            scorer, asked = view.rows, None
            if view.codes is not None:
                asked = self._scratches.take_asked(view.codes)
                scorer = scorer_of(view.codes, asked)
            choose_edges(
                view.rows, scorer, view.graph, view.live, plan, shape, batch[start:stop], nearest[start:stop],
                growth[start:stop], chosen[start:stop], scratch, workbench(settings.dim, room),
                np.zeros(INFO, np.int64),
            )  # fmt: skip
            self._scratches.give(key, scratch)
            if view.codes is not None and asked is not None:
                self._scratches.give_asked(view.codes, asked)

        self._helpers.run(choose, len(batch), SLICE)
        self._put(view, batch, chosen, growth)

    def _put(self, view: View, batch: UInt32s, chosen: UInt32s, growth: Float32s) -> None:
        """Write the edges that were chosen for a batch."""
        # The degree last, since walks go on. Whatever they meet in between are ids of rows.
        view.graph.edges[batch, FIRST_NEIGHBOUR:] = chosen[:, FIRST_NEIGHBOUR:]
        view.graph.edges[batch, DEGREE] = chosen[:, DEGREE]
        note_growth(self._store, growth[growth > 0])

    def _thread(self, view: View, batch: UInt32s, root: int) -> None:
        """Thread a batch onto the ring. Behind which row one comes, beyond the last of a run of equal rows, only the
        kernel finds: it says so before, so that nothing changes of which nobody is told.
        """
        edges, settings = self._store.edges, view.settings
        journal = edges.header[JOURNAL : JOURNAL + 2]
        asked = self._store.changes is not None or self._store.disk is not None
        told = np.full(1, -1 if asked else ANY, np.int64)
        codes, body = NO_CODES, 0
        if view.codes is not None and by_codes(view):
            codes, body = view.codes.vectors, form_in(view.codes).used
        vector, step = np.empty(settings.dim, np.float32), max(1, BATCH_ROWS // self._helpers.grain())
        for start in range(0, len(batch), step):
            left = batch[start : start + step]
            while len(left):
                done = thread_ring(view.rows, view.graph.edges, left, root, journal, told, vector, codes, body)
                if len(left := left[done:]):
                    edges.note(told.astype(np.uint32))
            self._helpers.between()

    @staticmethod
    def _targets(edges: AnyArray, batch: UInt32s) -> UInt32s:
        """The ids that the edges of a batch lead to, in its order."""
        rows = edges[batch]
        present = np.arange(rows.shape[1] - FIRST_NEIGHBOUR) < rows[:, DEGREE : DEGREE + 1]
        targets: UInt32s = rows[:, FIRST_NEIGHBOUR:][present]
        return targets

    def _link_back(self, view: View, sources: UInt32s, targets: UInt32s) -> None:
        """Add to each target an edge to its source."""
        shape = _shape(view.settings)
        order = np.argsort(targets, kind="stable")
        targets, sources = targets[order], sources[order]
        fresh = np.ones(len(targets) + 1, np.bool_)
        np.not_equal(targets[1:], targets[:-1], out=fresh[1:-1])
        starts = np.flatnonzero(fresh) if len(targets) else np.zeros(1, np.int64)
        targets = targets[starts[:-1]]
        if by_codes(view):
            self._by_codes.link_back(view, shape, targets, sources, starts)
            return

        def back(start: int, stop: int) -> None:
            bench = workbench(view.settings.dim, 4 * view.graph.edges.shape[1] + BATCH_ROWS)
            link_back(
                view.rows, view.graph, view.live, shape, targets[start:stop], sources, starts[start : stop + 1], bench
            )

        self._helpers.run(back, len(targets), 16 * SLICE)


def _shape(settings: Settings) -> Shape:
    return Shape(settings.max_edges, np.float32(settings.distance_threshold))


def link_apart(
    scratches: ScratchPool, helpers: Helpers, stop: Callable[[], bool], store: Store, ids: UInt32s, head: Head
) -> UInt32s:
    """Link the rows of another store; returns those left over if `stop` became true on the way."""
    return Linker(store, scratches, helpers).link(ids, head, stop)
