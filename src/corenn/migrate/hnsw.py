"""An index of hnswlib as a database: its rows, its labels as keys, its deleted marks, and its graph.

Level 0 of the graph is taken over edge by edge; nothing is searched. The levels above it are what leads from one
cluster to another: rows keep as many of those edges as they have room for, and walks begin at the highest elements.
Measured on 20,000 rows in 100 narrow clusters, recall@10 at ef 20: 0.94 by hnswlib, 0.95 so, 0.82 by level 0 alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..config import META, Settings
from ..errors import DatasetError, InvalidArgumentError
from ..graph.adopt import Adopter
from ..graph.entries import ENTRIES
from ..graph.threads import Helpers
from ..graph.view import note_growth, raise_radius
from ..kernels.rows import NORM
from ..kernels.search import FIRST_NEIGHBOUR
from ..storage.commit import Commit
from ..storage.draft import folder_draft
from ..storage.encode import MOST_NORM, encode
from ..storage.files import Files
from ..storage.format import NO_ID
from ..storage.platform import require_supported
from ..storage.store import Store
from ..types import AnyArray, Float32s, Key, UInt64s
from ..warmup import warm
from .hnswlib_file import Edges, HnswFile

DUPLICATES = ("error", "last")
MOST_LABEL = 2**63 - 1
# Searches of hnswlib go to the end of their list. How distances grow with rank would end them before, so the most is
# noted that it can be, as of rows on a line; what inserts find takes its place as their rows come to outnumber these.
LINE_GROWTH = 2.0
UNIT_SLACK = 0.01  # how far from 1 the length of a vector may lie that was divided by it in float32


@dataclass(frozen=True, slots=True)
class Migrated:
    """What a migration has made. rows: live; deleted: marked in the index; superseded: live rows of a label that a
    later element bears, too. m, max_edges: of the index, and of the database.
    """

    rows: int
    deleted: int
    superseded: int
    dim: int
    metric: str
    m: int
    max_edges: int


def migrate_hnsw(
    source: HnswFile, out: Path, *, metric: str, max_edges: int | None = None, duplicates: str = "error",
    progress: Callable[[int], None] | None = None,
) -> Migrated:  # fmt: skip
    """Make a database at `out` of an index file of hnswlib. It appears there whole or not at all.

    Args:
        source: the index, which holds float32 and does not tell its metric.
        out: where nothing is yet.
        metric: "l2", "cosine" or "ip", as the index was made with.
        max_edges: of the database; 2 × M unless given, which keeps every edge of level 0 if M is at most 256.
        duplicates: what to do with a label that several live elements bear: "error", or "last" to keep the element that
            hnswlib finds by the label after loading.
        progress: called with numbers of elements as they are stored, and once more as they are linked.

    Raises:
        DatasetError: for a file that is damaged, or that a database cannot hold.
        DatabaseExistsError: if something is at `out`.
        InvalidSettingError, InvalidArgumentError: for an unknown metric or a value out of bounds.
    """
    require_supported()
    if duplicates not in DUPLICATES:
        raise InvalidArgumentError(f"duplicates={duplicates!r}: choose one of {', '.join(DUPLICATES)}")
    meta = META["max_edges"]
    fitting = min(max(2 * source.m, meta["low"]), meta["high"])
    settings = Settings(dim=source.dim, metric=metric, max_edges=fitting if max_edges is None else max_edges)
    labels, deleted = source.labels()
    superseded = _check_labels(source, labels, deleted, duplicates)
    warm(settings)
    files = Files()
    with folder_draft(out, files) as draft:
        Store.create(draft, settings, files)
        store = Store.open(draft, "rw", files)
        helpers = Helpers()
        try:
            _Migration(source, store, helpers, progress or (lambda rows: None)).run(labels, deleted | superseded)
        finally:
            helpers.close()
            store.close()
    marked = int(deleted.sum())
    return Migrated(
        rows=source.count - marked - int(superseded.sum()), deleted=marked, superseded=int(superseded.sum()),
        dim=source.dim, metric=metric, m=source.m, max_edges=settings.max_edges,
    )  # fmt: skip


def _check_labels(source: HnswFile, labels: UInt64s, deleted: AnyArray, duplicates: str) -> AnyArray:
    """Which elements are live although a later live one bears their label, bool (count,)."""
    live = np.flatnonzero(~deleted)
    far = live[labels[live] > MOST_LABEL]
    if len(far):
        raise DatasetError(
            f"{source.path}: label {labels[far[0]]} is more than a key holds, 2^63 - 1 ({len(far):,} such labels); "
            "build the index with smaller ones"
        )
    order = live[np.argsort(labels[live], kind="stable")]
    again = order[:-1][labels[order[:-1]] == labels[order[1:]]]
    if len(again) and duplicates == "error":
        raise DatasetError(
            f"{source.path}: label {labels[again[0]]} belongs to more than one element ({len(again):,} such elements); "
            "with duplicates 'last', the one that hnswlib itself finds by the label is kept"
        )
    superseded = np.zeros(source.count, np.bool_)
    superseded[again] = True
    return superseded


class _Migration:
    """One migration into a store that nobody else has open. The id of a row is the number of its element."""

    def __init__(self, source: HnswFile, store: Store, helpers: Helpers, progress: Callable[[int], None]) -> None:
        self._source = source
        self._store = store
        self._adopter = Adopter(store, helpers)
        self._progress = progress
        self._slots = store.edges.spec.columns - FIRST_NEIGHBOUR

    def run(self, labels: UInt64s, dead: AnyArray) -> None:
        """Store all rows, link them, and bring everything to the disk."""
        source, store = self._source, self._store
        if not source.count:
            return
        for start, stop in source.blocks():
            self._store_rows(start, labels[start:stop], dead[start:stop])
            self._progress(stop - start)
        for start, stop in source.blocks():
            edges = self._edges(start, stop)
            self._adopter.adopt(start, edges.degrees, edges.neighbours)
            note_growth(store, np.full(stop - start, LINE_GROWTH, np.float32))
        self._adopter.finish(source.highest(ENTRIES), self._progress)
        commit = store.metadata.head.commit
        store.checkpoint(commit, commit)

    # --- rows -----------------------------------------------------------------------------------------------------

    def _store_rows(self, start: int, labels: UInt64s, dead: AnyArray) -> None:
        store, settings = self._store, self._store.settings
        encoded = encode(settings, self._vectors(start, dead))
        if settings.metric != "l2":
            raise_radius(store, encoded.seals.view(np.float32)[:, NORM])
        # A dead row needs no key: its own, which no label can be, goes with the checkpoint.
        keys: list[Key] = labels.tolist()
        gone = np.flatnonzero(dead)
        for row in gone.tolist():
            keys[row] = f"deleted element {start + row}"
        count = len(keys)
        store.commit(Commit(
            store.next_commit(), np.arange(start, start + count, dtype=np.uint32), keys, [NO_ID] * count,
            [None] * count, encoded.rows, encoded.seals, died=(start + gone).astype(np.uint32),
        ))  # fmt: skip

    def _vectors(self, start: int, dead: AnyArray) -> Float32s:
        """The vectors of a block, checked. Dead ones that are no vectors become zeros: they are only walked through."""
        vectors = self._source.vectors(start, start + len(dead))
        norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
        strange = ~(norms < MOST_NORM)
        self._refuse(start, strange & ~dead, "has NaN, infinity or a length of 2^60 or more; delete it first")
        vectors[strange] = 0
        if self._store.settings.metric == "cosine":
            longer = (np.abs(norms - 1) > UNIT_SLACK) & (norms > 0) & ~dead
            self._refuse(start, longer, "does not have length 1, as in an index for cosine; choose metric l2 or ip")
        return vectors

    def _refuse(self, start: int, wrong: AnyArray, why: str) -> None:
        if wrong.any():
            element = start + int(np.argmax(wrong))
            raise DatasetError(f"{self._source.path}: the vector of element {element} {why}")

    # --- edges ----------------------------------------------------------------------------------------------------

    def _edges(self, start: int, stop: int) -> Edges:
        """The edges of level 0, and of the higher levels what a row has room for beside them, the highest first."""
        base = self._source.edges(start, stop)
        width = base.neighbours.shape[1]
        degrees = base.degrees.copy()
        given = np.zeros((stop - start, max(width, self._slots)), np.uint32)
        given[:, :width] = base.neighbours
        for owners, edges in self._source.upper_edges(start, stop):
            used = np.arange(edges.neighbours.shape[1]) < edges.degrees[:, None]
            rows = np.repeat(owners - start, edges.degrees)
            firsts = np.flatnonzero(np.diff(rows, prepend=-1))
            places = degrees[rows] + np.arange(len(rows)) - np.repeat(firsts, np.diff(firsts, append=len(rows)))
            fits = places < self._slots
            given[rows[fits], places[fits]] = edges.neighbours[used][fits]
            np.add.at(degrees, rows[fits], 1)
        return Edges(degrees, given)
