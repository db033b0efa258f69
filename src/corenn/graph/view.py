"""One consistent view of the database: the arrays as they were mapped, and the commit up to which they are read.

A query takes the view once. Whatever the writer does afterwards, the view's arrays stay valid and its snapshot fixed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..config import Settings
from ..filters.index import PayloadIndex
from ..filters.select import Selected
from ..kernels import search
from ..kernels.codes import Codes
from ..kernels.predicate import NO_TESTS
from ..kernels.rows import NORM, BFloat16Rows, CodeRows, Float16Rows, Float32Rows, Rows
from ..kernels.search import BORN, DIED, Graph, Live, Navigation
from ..storage.commit import NO_IDS, Head, LiveView, Metadata
from ..storage.format import BOOK, ENTRIES, ENTRY_COUNT, GROWN, GROWTH, MAX_ENTRIES, RADIUS
from ..storage.state import checksums_of, commit_of, salted, seen_up_to
from ..storage.store import NO_NAVIGATION, Store
from ..types import AnyArray, Bytes, Float32s, UInt32s, UInt64s
from .codes import codes_for
from .disk import OnDisk, disk_for

CACHE_BYTES = 1 << 24  # up to here one row per step was quicker, beyond four: docs/performance.md
MEMORY_ROWS = 1 << 17  # rows after which the mean of growth follows new ones
METRICS = {"l2": search.L2, "cosine": search.COSINE, "ip": search.IP}
ROWS: dict[str, Any] = {"f32": Float32Rows, "f16": Float16Rows, "bf16": BFloat16Rows, "i8": CodeRows, "u8": CodeRows}


class View(NamedTuple):
    """rows, graph, live: what kernels take. keys, heap: keys by id. pending: ids committed but not linked.

    metadata: where the keys and payloads of these ids are looked up; after a compaction those of the store have others.

    tombstones: whether walks may meet rows that the snapshot does not see. growth: see growth_of. codes: over which
    walks go, None while there are none. book: the word of their codebook, 0 if they have none. disk: where walks over
    codes read the rows, None while these are mapped. payload_index: of the rows with these ids, None if there is none.
    reused: whether ids of dead rows may have been given to others. within: the rows that a filter selects; None for
    all.
    """

    head: Head
    settings: Settings
    rows: Rows
    graph: Graph
    live: Live
    keys: UInt64s
    heap: Bytes
    pending: UInt32s
    tombstones: bool
    growth: float
    codes: Codes | None
    book: int
    disk: OnDisk | None
    metadata: Metadata
    payload_index: PayloadIndex | None = None
    reused: bool = False
    within: Selected | None = None

    def filtered(self, within: Selected | None) -> View:
        """The same view, of which queries see only what a filter selects; all of it if that is None."""
        return View._make((*self[:WITHIN], within))

    def masked(self) -> View:
        """The same view, in which walks let through only what a filter selects."""
        assert self.within is not None
        within = self.within
        tests = NO_TESTS if within.tests is None else within.tests.words
        live = Live(self.live.state, self.live.snapshot, self.live.rows, within.words, tests, within.proven)
        return View._make((*self[:LIVE], live, *self[LIVE + 1 :]))

    @property
    def selected(self) -> int:
        """Rows that queries see, at most."""
        return self.head.live if self.within is None else self.within.count

    @property
    def expected(self) -> int:
        """Rows that queries see, about."""
        return self.head.live if self.within is None else self.within.expected

    @property
    def lookup_view(self) -> LiveView:
        """The same snapshot for the metadata."""
        return LiveView(self.live.state, int(self.live.snapshot), self.live.rows)

    @property
    def snapshot(self) -> tuple[LiveView, int, Metadata]:
        """The same, its commit, and the metadata: what one needs to look at payloads."""
        return self.lookup_view, self.head.commit, self.metadata

    def born(self) -> NDArray[np.bool_]:
        """Which of the ids in use the snapshot knows, dead or alive; shape (rows,)."""
        born: NDArray[np.bool_] = self.live.state[: self.live.rows, BORN] - np.uint64(1) < self.live.snapshot
        return born

    def alive(self) -> NDArray[np.bool_]:
        """Which of the ids in use the snapshot sees; shape (rows,)."""
        # The deaths first: see kernels.search.visible.
        alive: NDArray[np.bool_] = self.live.state[: self.live.rows, DIED] - np.uint64(1) >= self.live.snapshot
        alive &= self.born()
        return alive

    @property
    def width(self) -> int:
        """Coordinates of a place in the graph's geometry: those of the vector, and the lift."""
        return self.settings.dim + int(self.rows.radius != 0)

    @property
    def beam_width(self) -> int:
        """Rows expanded per step: one while codes and edges fit into a cache, where there is little to wait for."""
        scored = self.rows.vectors if self.codes is None else self.codes.vectors
        touched = self.head.live * (scored.strides[0] + self.graph.edges.strides[0])
        return self.settings.beam_width if touched > CACHE_BYTES else 1

    @property
    def metric(self) -> int:
        return METRICS[self.settings.metric]


LIVE, WITHIN = map(View._fields.index, ("live", "within"))  # _replace takes as long as half of a small scan


def failing(view: View, ids: UInt32s) -> UInt32s:
    """Those of some rows whose checksums do not hold."""
    vectors, seals = view.rows.vectors[ids], view.rows.seals[ids].view(np.uint32)
    salts = salted(ids, commit_of(view.live.state[ids, BORN]))
    bad: UInt32s = ids[checksums_of(vectors, seals, salts) != seals[:, 0]]
    return bad


def rows_of(settings: Settings, vectors: AnyArray, seals: AnyArray, radius: float) -> Rows:
    """Stored rows as the kernels of this dtype take them."""
    rows: Rows = ROWS[settings.dtype](vectors, seals.view(np.float32), settings.dim, np.float32(radius))
    return rows


def radius_of(store: Store) -> float:
    """The squared norm to which rows are lifted; see kernels.rows. What the word cannot be, it is not taken for."""
    word = float(store.edges.header[RADIUS : RADIUS + 1].view(np.float64)[0])
    if store.settings.metric == "ip":
        return word if 0 < word < np.inf else 0.0
    return -1.0 if store.settings.metric == "cosine" and word != 0 else 0.0


def radius_fits(view: View, *, exact: bool) -> bool:
    """Whether the rows are lifted as their norms demand. Not exact: newer or gone ones may have raised it."""
    needed, found = radius_needed(view), float(view.rows.radius)
    if view.settings.metric == "cosine":
        return found <= needed  # to lift although no row needs it is harmless
    return found == needed if exact else found >= needed


def radius_needed(view: View) -> float:
    """The radius that the norms of the rows demand, as float32."""
    norms = view.rows.seals[: view.live.rows]
    if norms.shape[1] <= NORM or view.settings.metric == "l2":
        return 0.0
    if view.settings.metric == "cosine":
        return -1.0 if (norms[view.alive(), NORM] == 0).any() else 0.0
    return float(np.float32(float(norms[view.born(), NORM].max(initial=0)) ** 2))


def set_radius(store: Store, radius: float) -> None:
    store.edges.header[RADIUS : RADIUS + 1].view(np.float64)[0] = radius


def raise_radius(store: Store, norms: Float32s) -> None:
    """Take new rows into account before they are linked."""
    radius = _raised(store, norms)
    if radius != radius_of(store):
        set_radius(store, radius)


def norms_of(store: Store, ids: UInt32s) -> Float32s:
    """The norms of rows, none where the metric needs none."""
    if store.seals.spec.columns <= NORM:
        return np.empty(0, np.float32)
    norms: Float32s = store.seals.array[ids].view(np.float32)[:, NORM]
    return norms


def _raised(store: Store, norms: Float32s) -> float:
    """The radius with new rows of these norms."""
    metric, radius = store.settings.metric, radius_of(store)
    if metric == "cosine" and len(norms) and norms.min() == 0:
        return -1.0
    return max(radius, float(norms.max()) ** 2) if metric == "ip" and len(norms) else radius


def entries_of(store: Store) -> UInt32s:
    """The ids where walks start."""
    count = min(int(store.edges.header[ENTRY_COUNT]), MAX_ENTRIES)
    entries: UInt32s = store.edges.header[ENTRIES : ENTRIES + count].astype(np.uint32)
    return entries


def set_entries(store: Store, entries: UInt32s) -> None:
    count = min(len(entries), MAX_ENTRIES)
    store.edges.header[ENTRIES : ENTRIES + count] = entries[:count]
    store.edges.header[ENTRY_COUNT] = count


def growth_of(store: Store) -> float:
    """The exponent with which squared distances grow with rank among the rows, 0 if it is not known."""
    growth = float(store.edges.header[GROWTH : GROWTH + 1].view(np.float64)[0])
    return growth if 0 < growth < 4 else 0.0  # beyond is damage: rows on a line have 2


def note_growth(store: Store, found: Float32s) -> None:
    """Take what rows have found when they were linked into the mean, in which old rows fade."""
    if len(found):
        header = store.edges.header
        before = growth_of(store)
        grown = (min(int(header[GROWN]), MEMORY_ROWS) if before else 0) + len(found)
        after = before + (float(found.mean(dtype=np.float64)) - before) * len(found) / grown
        header[GROWTH : GROWTH + 1].view(np.float64)[0] = after
        header[GROWN] = grown


def _beside(navigation: Navigation, entries: UInt32s) -> UInt32s:
    """The first entry, from which the ring leads to every row, and those that the sample does not begin with."""
    begun = navigation.ids[: navigation.starts]
    if not len(begun):
        return entries
    if np.array_equal(begun, entries):  # as a rule
        return entries[:1]
    kept = (entries[:, None] != begun).all(axis=1)  # np.isin takes as long as a query
    kept[:1] = True
    others: UInt32s = entries[kept]
    return others


def take_view(store: Store, head: Head, pending: UInt32s, uncounted: UInt32s = NO_IDS) -> View:
    """The store as it is mapped now, seen at `head`. uncounted: rows whose norms the radius may not be raised to yet.

    Rows of later commits have higher ids, which walks leave out; so only deleted rows can stand in their way.
    """
    radius = _raised(store, norms_of(store, uncounted)) if len(uncounted) else radius_of(store)
    rows = rows_of(store.settings, store.vectors.array, store.seals.array, radius)
    navigation = store.navigation if store.navigation.rows <= head.rows else NO_NAVIGATION
    return View(
        head=head,
        settings=store.settings,
        rows=rows,
        graph=Graph(store.edges.array, _beside(navigation, entries_of(store)), navigation),
        live=Live(store.state.array, np.uint64(seen_up_to(head.commit)), head.rows),
        keys=store.keys.array,
        heap=store.heap.array.reshape(-1),
        pending=pending,
        tombstones=head.dead > store.buried,
        growth=growth_of(store),
        codes=codes_for(store, rows, head.rows),
        book=0 if store.codes is None else int(store.codes.header[BOOK]),
        disk=disk_for(store),
        metadata=store.metadata,
        payload_index=store.payload_index if isinstance(store.payload_index, PayloadIndex) else None,
        reused=store.horizon > 0,
    )
