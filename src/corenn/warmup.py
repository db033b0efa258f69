"""Compiling every kernel that a database needs, by using them all on a small one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .config import Settings
from .filters.select import Selected
from .filters.sets import RowSet, as_words, common, of_any
from .filters.tested import tests_of
from .graph import codebook
from .graph.adopt import Adopter
from .graph.bulk import Builder
from .graph.check import check_graph
from .graph.disk import packed, rows_made, rows_read, source_of
from .graph.insert import Linker
from .graph.insert_disk import DiskLinker
from .graph.mend import Mender
from .graph.planner import PLANS
from .graph.query import Searcher
from .graph.scratch import ScratchPool
from .graph.threads import Helpers
from .graph.view import failing, take_view
from .kernels.candidates import NOTHING, VACANT
from .kernels.disk import cool_rows, index_rows
from .kernels.jit import JIT, cache_folder
from .kernels.link import Shape, mend_ring
from .kernels.renumber import gather_bytes, translate_edges
from .kernels.rows import Float32Rows, decode_rows
from .kernels.search import GEOMETRY, L2, Plan, aim_batch
from .storage.commit import NO_IDS, Commit
from .storage.encode import encode
from .storage.format import JOURNAL, NO_ID
from .storage.store import Store
from .types import UInt32s

log = logging.getLogger("corenn")

STEPS = ("rows", "edges", "search", "scan", "checks")
_warming = threading.Lock()


def compiled(settings: Settings) -> bool:
    """Whether the kernels for databases of this dtype are in the cache on disk."""
    return not JIT or _marker(settings).exists()


def _marker(settings: Settings) -> Path:
    return cache_folder() / f"{settings.dtype}.ready"


def warm(settings: Settings, progress: Callable[[str], None] | None = None) -> None:
    """Compile what is not in the cache yet; about a minute the first time on a machine, nothing afterwards.

    progress: called with each of STEPS before it begins.
    """
    if compiled(settings):
        return
    with _warming:
        if compiled(settings):
            return
        log.info("compiling the kernels for %s into %s, once per machine", settings.dtype, cache_folder())
        example = Settings(
            dim=8, metric="ip", dtype=settings.dtype, max_edges=8, compression_mode="sq4", compression_threshold=0
        )
        _exercise(example, progress or (lambda step: None))
        _marker(settings).touch()


def load(settings: Settings) -> None:
    """Start the compiler, which takes half a second and 60 MB, before the first row rather than with it."""
    if JIT:
        row = np.zeros((1, settings.dim), np.float32)
        decode_rows(Float32Rows(row, row[:, :1].copy(), settings.dim, np.float32(0)), np.zeros(1, np.uint32), row)


def _exercise(settings: Settings, progress: Callable[[str], None]) -> None:
    rows = 1200
    random = np.random.default_rng(0)
    store, scratches, helpers = Store.in_memory(settings), ScratchPool(), Helpers(1)
    progress("rows")
    encoded = encode(settings, random.integers(0, 100, (rows, 8)))
    keys = [f"{row}" for row in range(rows)]
    ids = np.arange(rows, dtype=np.uint32)
    store.commit(Commit(1, ids, keys, [NO_ID] * rows, [None] * rows, encoded.rows, encoded.seals))
    head = store.metadata.head
    progress("edges")
    Linker(store, scratches, helpers).link(ids, head, lambda: False)
    Builder(store, scratches, helpers).build(ids, head, lambda: False)
    Adopter(store, helpers).adopt(0, np.ones(1, np.int64), np.ones((1, 1), np.uint32))
    store.commit(Commit(2, died=ids[:1]))
    head = store.metadata.head
    _link_by_codes(store, scratches, helpers, ids[1:3])
    Mender(store, Linker(store, scratches, helpers), helpers).finish(take_view(store, head, NO_IDS))
    view = take_view(store, head, NO_IDS)
    queries = np.ones((2, 8), np.float32)
    searcher = Searcher(scratches, helpers)
    searcher.partition.fewest = 0
    progress("search")
    searcher.query(view._replace(codes=None), queries, 5, 16, exact=False, threads=1)
    searcher.query(view, queries, 5, 16, exact=False, threads=1)
    searcher.query(view._replace(disk=source_of(store)), queries, 5, 16, exact=False, threads=1)
    packed(store, view, ids[:0], ids[:1], 0)
    within = Selected(RowSet(rows, words=as_words(ids[:600], rows)).without(of_any([ids[:1]])))
    common([within.found, RowSet(rows, ids=ids[:9])])
    for way in PLANS:
        searcher.query(view._replace(codes=None, within=within), queries, 5, 16, exact=False, threads=1, way=way)
        searcher.query(view.filtered(within), queries, 5, 16, exact=False, threads=1, way=way)
    tests_of([]).passed(ids[:1])
    rows_made(store, rows, ids[:1])
    rows_read(store, rows, ids[:1])
    index_rows(ids[:1], *(np.full(2, VACANT) for _ in range(2)))
    cool_rows(ids[:1], store.hot.ids, store.hot.places)
    codebook.train(np.zeros((1, 8), np.float32), 2, 1, helpers, rotated=False)
    progress("scan")
    searcher.query(view, queries, 5, 16, exact=True, threads=1)
    aim_batch(view.rows, L2, queries, np.empty((2, 9), np.float32))
    progress("checks")
    check_graph(view)
    mend_ring(store.edges.array, store.edges.header[JOURNAL : JOURNAL + 2], rows)
    decode_rows(view.rows, np.zeros(1, np.uint32), queries)
    store.metadata.lookup(keys[:2], view.lookup_view)
    failing(view, np.zeros(1, np.uint32))
    translate_edges(store.edges.array, ids[:1], ids, np.empty((1, store.edges.spec.columns), np.uint32))
    one = np.ones(1, np.int64)
    gather_bytes(store.heap.array.reshape(-1), one, one, np.empty(1, np.uint8))
    helpers.close()
    store.close()


def _link_by_codes(store: Store, scratches: ScratchPool, helpers: Helpers, ids: UInt32s) -> None:
    """As where edges are read from a disk, of which there is none here: nothing is found."""
    view = take_view(store, store.metadata.head, NO_IDS)._replace(disk=source_of(store))
    linker, shape = DiskLinker(scratches, helpers), Shape(view.settings.max_edges, np.float32(1))
    plan = Plan(16, view.beam_width, GEOMETRY, view.tombstones, 1, np.float32(1))
    linker.choose(view, shape, ids, np.full((len(ids), 1), NOTHING), plan)
    linker.link_back(view, shape, ids, ids[::-1].copy(), np.arange(len(ids) + 1))
