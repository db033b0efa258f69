"""The navigation graph: one over a sample of the rows, in which a query finds where to enter the graph of all.

It is built as any other, on a copy of the sampled rows, and kept beside the metadata. It is soft: without it, or with
one of years ago, queries find the same by a longer way. Inserts do not use it, since what they meet on the long way
makes their long edges.
"""

from __future__ import annotations

import io
import logging
import zipfile
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..errors import CoreNNError
from ..kernels.search import BORN, DIED, FIRST_NEIGHBOUR, Navigation
from ..storage.commit import NAVIGATION, Head
from ..storage.format import NAVIGATED
from ..storage.state import SHIFT
from ..storage.store import NO_NAVIGATION, NOT_DRAWN, Drawn, Store
from ..types import UInt32s
from .entries import linked_rows
from .view import View, entries_of, radius_of, set_radius

Link = Callable[[Store, UInt32s, Head], UInt32s]
log = logging.getLogger("corenn.navigation")

SHARE = 64  # rows for each sampled one
LEAST, MOST = 1 << 10, 1 << 13  # sampled rows; more gain less: docs/performance.md
EDGES = 16
GROWTH = 1.5  # of the linked rows, after which the sample is drawn anew


def due(store: Store, linked: int) -> bool:
    """Whether there are enough linked rows for a sample, and many more than when the last one was drawn, or half of
    that are there no more.
    """
    if linked < SHARE * LEAST:
        return False
    if linked >= GROWTH * store.drawn.linked:
        return True
    state = store.state.array[store.navigation.ids]
    there = (state[:, BORN] == store.drawn.births) & (state[:, DIED] == 0)
    return 2 * int(there.sum()) < len(there)


def make(store: Store, view: View, link: Link) -> None:
    """Draw a sample of the linked rows, the entries first, build the graph over it, and keep it.

    link: links all rows of a store, and returns those that it was told to leave: nothing changes then. Nor does a write
    fail for the want of this graph: what goes wrong is told in the log.
    """
    try:
        made = _built(store, view, link)
        if made is None:
            return
        drawn = Drawn(view.head.commit, len(linked_rows(view)), store.state.array[made.ids, BORN])
        store.navigation, store.drawn = made, drawn
        store.metadata.store_soft(NAVIGATION, _pack(made, drawn))
        store.edges.header[NAVIGATED] = drawn.commit
    except (CoreNNError, OSError, MemoryError):
        log.warning("the navigation graph could not be made or kept", exc_info=True)


def _built(store: Store, view: View, link: Link) -> Navigation | None:
    entries = entries_of(store)
    ids = _sample(linked_rows(view), entries)
    if not len(ids):
        return None
    settings = view.settings
    copy = Store.in_memory(
        replace(settings, max_edges=min(EDGES, settings.max_edges), compression_mode="none", durability="os")
    )
    try:
        for slab, rows in ((copy.vectors, store.vectors), (copy.seals, store.seals)):
            slab.reserve(len(ids))
            slab.write(0, rows.array[ids])
        copy.state.reserve(len(ids))
        copy.state.array[: len(ids), 0] = 1 << SHIFT
        copy.edges.reserve(len(ids))
        set_radius(copy, radius_of(store))
        everything = np.arange(len(ids), dtype=np.uint32)
        head = Head(commit=1, rows=len(ids), live=len(ids), dead=0)
        if len(link(copy, everything, head)):
            return None
        return Navigation(ids, copy.edges.array[: len(ids)].copy(), len(entries), int(ids.max()) + 1)
    finally:
        copy.close()


def load(store: Store) -> None:
    """Take over what is kept, if it is another one than that in use."""
    if int(store.edges.header[NAVIGATED]) == store.drawn.commit:
        return
    raw = store.metadata.soft(NAVIGATION)
    found = None if raw is None else _unpack(raw, store.edges.spec.columns)
    store.navigation, store.drawn = found or (NO_NAVIGATION, NOT_DRAWN)
    if store.writable:
        store.edges.header[NAVIGATED] = store.drawn.commit


def _sample(linked: UInt32s, entries: UInt32s) -> UInt32s:
    """The entries, and linked rows at even distances."""
    count = min(len(linked) // SHARE, MOST)
    even = linked[np.linspace(0, len(linked) - 1, count).astype(np.int64)]
    return np.concatenate((entries, even[~np.isin(even, entries)]))


def _pack(navigation: Navigation, drawn: Drawn) -> bytes:
    file = io.BytesIO()
    np.savez(file, ids=navigation.ids, edges=navigation.edges, starts=navigation.starts, births=drawn.births,
             drawn=[drawn.commit, drawn.linked])  # fmt: skip
    return file.getvalue()


def _unpack(raw: bytes, columns: int) -> tuple[Navigation, Drawn] | None:
    """What was kept, or none if it would have a kernel read or write beyond an array. columns: of the edges of rows."""
    try:
        with np.load(io.BytesIO(raw), allow_pickle=False) as kept:
            ids, edges = (np.ascontiguousarray(kept[name], np.uint32) for name in ("ids", "edges"))
            births = np.ascontiguousarray(kept["births"], np.uint64)
            starts, commit, linked = int(kept["starts"]), *(int(number) for number in kept["drawn"])
        count = len(ids)
        if births.shape != (count,) or commit < 0 or linked < 0:
            raise ValueError(f"{births.shape} births of {count} rows")
        if not (ids.ndim == 1 and edges.ndim == 2 and len(edges) == count and 0 < starts <= count):
            raise ValueError(f"{starts} of {ids.shape} ids, {edges.shape} edges")
        if not FIRST_NEIGHBOUR < edges.shape[1] <= columns or edges[:, FIRST_NEIGHBOUR:].max() >= count:
            raise ValueError("edges out of range")
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        log.warning("the navigation graph that was kept cannot be read (%s); queries go without", error)
        return None
    return Navigation(ids, edges, starts, int(ids.max()) + 1), Drawn(commit, linked, births)
