"""Linking rows whose edges are known: those of an index built elsewhere.

Nothing is searched. It is for a collection that nobody else has open yet: between the first edge and `finish`, walks
would find only a part of the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from ..kernels.adopt import adopt_edges
from ..kernels.link import ANY, NO_CODES, Shape, thread_ring
from ..storage.commit import NO_IDS
from ..storage.format import ELECTED, JOURNAL
from ..storage.store import Store
from ..types import AnyArray, UInt32s
from . import navigation
from .entries import elect
from .insert import link_apart
from .scratch import ScratchPool, workbench
from .threads import Helpers
from .view import View, set_entries, take_view

SLICE = 256  # rows per kernel call: some milliseconds
RING_ROWS = 1 << 14  # rows threaded per kernel call, which does not see Ctrl-C


class Adopter:
    """Gives rows the edges that they have. Used by the one thread that writes; all rows are committed before."""

    def __init__(self, store: Store, helpers: Helpers) -> None:
        self._store = store
        self._helpers = helpers

    def adopt(self, first: int, degrees: AnyArray, given: UInt32s) -> None:
        """Give the rows `first`, `first` + 1, … their edges: the first degrees[i] of given[i], ids in use.

        degrees: int64 (n,). given: uint32 (n, any). A row keeps all of them if they fit into it, else what a prune
        leaves.
        """
        view = self._view()
        self._store.edges.note(slice(first, first + len(given)))
        settings = view.settings
        shape = Shape(settings.max_edges, np.float32(settings.distance_threshold))

        def part(start: int, stop: int) -> None:
            bench = workbench(settings.dim, given.shape[1])
            adopt_edges(
                view.rows, view.graph.edges, shape, first + start, degrees[start:stop], given[start:stop], bench
            )

        self._helpers.run(part, len(given), SLICE)

    def finish(self, entries: UInt32s, progress: Callable[[int], None]) -> None:
        """Thread all rows onto one ring, and begin walks at `entries` and at rows that are spread over all.

        entries: ids, at least one. progress: called with each number of rows that have been threaded.
        """
        view = self._view()
        header, rows = self._store.edges.header, view.head.rows
        self._store.edges.note(slice(0, rows))
        told, vector = np.full(1, ANY), np.empty(view.settings.dim, np.float32)
        for start in range(0, rows, RING_ROWS):
            batch = np.arange(start, min(start + RING_ROWS, rows), dtype=np.uint32)
            thread_ring(
                view.rows, view.graph.edges, batch, int(entries[0]), header[JOURNAL : JOURNAL + 2], told, vector,
                NO_CODES, 0,
            )  # fmt: skip
            progress(len(batch))
        spread = elect(view)
        set_entries(self._store, np.concatenate((entries, spread[~np.isin(spread, entries)])))
        header[ELECTED] = rows
        if navigation.due(self._store, rows):
            link = partial(link_apart, ScratchPool(), self._helpers, lambda: False)
            navigation.make(self._store, self._view(), link)
        self._store.mark_linked(view.head.commit)

    def _view(self) -> View:
        return take_view(self._store, self._store.metadata.head, NO_IDS)
