"""Linking a large first load at once, without a single walk (Rubel et al., PiPNN, 2026).

Rows are carved into clusters around sampled leaders, each row into several, and clusters into leaves in the same way. A
leaf is one matrix of distances, in which each of its rows gets a few edges. What a row has got in all its leaves is
pruned once, reverse edges are added, and all rows are threaded onto the ring of lifelines. The graph is the ordinary
one, and depends on the rows alone, never on threads.

Memory, beside the rows and their edges, in bytes per row: 4 per candidate (384 at the values below, twice that under
`ip`), and 300 on the way. Where the candidates would take more than a quarter of the machine's memory, they are mapped
from a temporary file beside the collection.
"""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from ..kernels.candidates import VACANT
from ..kernels.carve import (
    MOST,
    Carving,
    Cluster,
    Leaders,
    assign,
    carve,
    choose_among,
    copy_edges,
    count_in_edges,
    gather_in_edges,
    hash_rows,
    leaders_of,
    place_rows,
    table,
)
from ..kernels.intrinsics import TILE_ROWS
from ..kernels.link import ANY, NO_CODES, Shape, link_back, thread_ring
from ..kernels.rows import NORM, decode_rows
from ..kernels.search import GEOMETRY, LIFELINE, Plan, Results, search_batch
from ..storage.commit import NO_IDS, Head
from ..storage.format import JOURNAL
from ..storage.platform import allocate, map_shared, memory_bytes
from ..storage.store import Store
from ..types import AnyArray, Float32s, Int64s, UInt32s
from .scratch import ScratchPool, workbench
from .threads import Helpers
from .view import View, note_growth, take_view

log = logging.getLogger("corenn.bulk")

BULK_ROWS = 10_000  # rows from which on this is quicker than inserting
ROW_BYTES = 300  # on the way, beside candidates
OUTER = 16  # clusters of a row
INNER = 2  # leaves of a row in each
KEPT = 3  # edges chosen for a row in each leaf
CLUSTER = 1000  # rows of a cluster, about, and at most
CLUSTER_MOST = 2048
LEAF, LEAF_MOST = 256, 512  # rows of a leaf
BLOCK = 64  # rows that are multiplied with leaders at once
SLICE = 1 << 11  # rows per kernel call: some milliseconds
RING_ROWS = 1 << 14
LARGE = 4096  # under `ip`, the longest rows, which are what most queries look for, are candidates of all
ASKED = 16  # of them, the best for a query in the direction of a row
SAMPLE = 256  # rows by which the growth of distances is measured
COUNTED = 1 << 20
TABLE = 1 << 10  # places for the ids of candidates that were seen


class StoppedError(Exception):
    """The build was told to stop. Nothing is linked."""


Progress = Callable[[str, int, int], None]


class Builder:
    """Links rows into a graph that is empty so far. Used by the one thread that writes."""

    def __init__(self, store: Store, scratches: ScratchPool, helpers: Helpers) -> None:
        self._store = store
        self._scratches = scratches
        self._helpers = helpers
        self._stop: Callable[[], bool] = lambda: False
        self._progress: Progress = lambda step, done, total: None

    def build(self, ids: UInt32s, head: Head, stop: Callable[[], bool], progress: Progress | None = None) -> bool:
        """Link `ids`, ascending, all rows that are to be in the graph; False if `stop` became true on the way.

        Entries are left to the caller. progress: called with a step, and how much of how much of it is done.
        """
        self.begin(stop, progress)
        edges = self._store.edges.array
        self._store.edges.note(slice(0, head.rows))
        try:
            self.clear(ids)
            view = take_view(self._store, head, NO_IDS)
            firsts, twins, models = self._find_twins(view, ids)
            with self._candidates(view, firsts) as slots:
                others = self._ask_large(view, firsts)
                self._carve(view, firsts, slots)
                self._choose(view, firsts, slots, others)
            self._link_back(view, firsts)
            copy_edges(edges, twins, models, view.settings.max_edges)
            self._thread(view, np.concatenate((firsts, twins)))
        except StoppedError:
            self.clear(ids)
            return False
        return True

    def begin(self, stop: Callable[[], bool], progress: Progress | None) -> None:
        """Whom to ask whether to stop, and whom to tell, from here on."""
        self._stop = stop
        self._progress = progress or (lambda step, done, total: None)

    def stopped(self) -> bool:
        """Whether whoever is asked says so."""
        return self._stop()

    # --- steps -----------------------------------------------------------------------------------------------------

    def clear(self, ids: UInt32s) -> None:
        """Take their edges away."""
        edges = self._store.edges.array
        for start in range(0, len(ids), SLICE * 4):
            edges[ids[start : start + SLICE * 4]] = 0
            self._helpers.between()

    def _find_twins(self, view: View, ids: UInt32s) -> tuple[UInt32s, UInt32s, UInt32s]:
        """The first row of each kind, the other ones, and for each of these the first that it equals."""
        words = self._store.vectors.array.view(np.uint64)
        seals = self._store.seals.array
        hashes = np.empty(len(ids), np.uint64)

        def part(start: int, stop: int) -> None:
            hash_rows(words, seals, ids[start:stop], hashes[start:stop])

        self._run("twins", part, len(ids), SLICE * 4)
        order = np.argsort(hashes, kind="stable")
        ordered = hashes[order]
        same = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1
        if not len(same):
            return ids, NO_IDS, NO_IDS
        fresh = np.ones(len(ids), np.bool_)
        fresh[same] = False
        leads = order[np.maximum.accumulate(np.where(fresh, np.arange(len(ids)), 0))]
        models, twins = leads[same], order[same]
        equal = np.zeros(len(same), np.bool_)
        for start in range(0, len(same), SLICE):  # rows of one hash may differ
            one, other = ids[models[start : start + SLICE]], ids[twins[start : start + SLICE]]
            equal[start : start + SLICE] = (words[one] == words[other]).all(axis=1)
            if seals.shape[1] == 4:
                equal[start : start + SLICE] &= (seals[one, 2:] == seals[other, 2:]).all(axis=1)
        alone = np.ones(len(ids), np.bool_)
        alone[twins[equal]] = False
        log.info("%d of %d rows equal others", int(equal.sum()), len(ids))
        return ids[alone], ids[twins[equal]], ids[models[equal]]

    @contextmanager
    def _candidates(self, view: View, ids: UInt32s) -> Iterator[UInt32s]:
        """Room for the candidates of all rows, VACANT."""
        width = OUTER * INNER * KEPT * (2 if view.rows.radius > 0 else 1)
        size, file = 4 * len(ids) * width, None
        if self._store.path is not None and mapped_bytes(self._store, len(ids)):
            file = self._temporary(self._store.path, size)
        if file is None:
            yield np.full((len(ids), width), VACANT, np.uint32)
            return
        with file:
            memory = map_shared(file.fileno(), size)
            self._store.borrowed.append(memory)
            try:
                slots = np.frombuffer(memory, np.uint32).reshape(-1, width)
                slots.fill(VACANT)
                yield slots
            finally:
                self._store.borrowed.remove(memory)

    @staticmethod
    def _temporary(folder: Path, size: int) -> IO[bytes] | None:
        """A file without a name and with room for `size` bytes, if the disk has it."""
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - the caller closes it
        try:
            allocate(file.fileno(), size)  # a store into a hole of a full disk would kill the process
        except OSError as error:
            log.warning("no room on the disk for %d bytes beside %s (%s); taking memory instead", size, folder, error)
            file.close()
            return None
        return file

    def _carve(self, view: View, ids: UInt32s, slots: UInt32s) -> None:
        clusters = self._clusters(view, ids)
        settings = view.settings
        carving = Carving(OUTER, INNER, KEPT, LEAF, LEAF_MOST, np.float32(settings.distance_threshold))
        benches: list[Cluster] = []

        def part(start: int, stop: int) -> None:
            bench = benches.pop() if benches else _bench(view.width)
            for members in clusters[start:stop]:
                carve(view.rows, ids, members, carving, bench, slots)
            benches.append(bench)

        self._run("leaves", part, len(clusters), 1)

    def _clusters(self, view: View, ids: UInt32s) -> list[Int64s]:
        """Which rows lie around which leader: places in `ids` * OUTER + how many leaders are nearer."""
        count = min(-(-len(ids) * OUTER // CLUSTER), MOST)
        random = np.random.default_rng(len(ids))
        chosen = np.sort(random.choice(len(ids), min(count, len(ids)), replace=False))
        labels = self.assign_leaders(view, ids, ids[chosen], OUTER, "clusters")
        found: list[Int64s] = []
        waiting = _grouped(labels)
        while waiting:
            members = waiting.pop()
            if len(members) <= CLUSTER_MOST:
                found.append(members)
                continue
            inside = ids[members // OUTER]
            count = min(-(-len(members) // CLUSTER), MOST)
            leaders = inside[np.arange(count) * len(members) // count]
            parts = [members[part] for part in _grouped(self.assign_leaders(view, inside, leaders, 1, ""))]
            if max(map(len, parts)) > 0.9 * len(members):
                parts = np.array_split(members, -(-len(members) // CLUSTER))
            waiting += parts
        found.sort(key=len, reverse=True)  # the last ones to be worked on are short
        return found

    def assign_leaders(
        self, view: View, ids: UInt32s, leaders: UInt32s, fanout: int, step: str, *, asking: bool = False
    ) -> AnyArray:
        """For each row the places of its nearest leaders, MOST at most, uint16 (ids, fanout), 65,535 for none."""
        assert len(leaders) <= MOST, "the kernel would take one for another"
        around: Leaders = leaders_of(self.places(view, leaders))
        labels = np.empty((len(ids), fanout), np.uint16)

        def part(start: int, stop: int) -> None:
            found = np.empty((stop - start, fanout), np.int32)
            work = table(BLOCK, len(leaders), view.width)
            assign(view.rows, ids[start:stop], around, asking, work, found)
            labels[start:stop] = found.astype(np.uint16)

        self._run(step, part, len(ids), SLICE)
        return labels

    @staticmethod
    def places(view: View, ids: UInt32s) -> Float32s:
        """Where rows are: float32 (ids, dim), and their lift where there is one."""
        places: Float32s = np.empty((len(ids), view.width), np.float32)
        place_rows(view.rows, ids, np.zeros(view.width, np.float32), places)
        return places

    def _ask_large(self, view: View, ids: UInt32s) -> UInt32s:
        """Under `ip`, rows that a query in the direction of each row would find among the longest rows."""
        if view.rows.radius <= 0:
            return np.empty((len(ids), 0), np.uint32)
        norms = view.rows.seals[ids, NORM]
        count = min(LARGE, len(ids))
        large = ids[np.sort(np.argpartition(norms, len(ids) - count)[len(ids) - count :])]
        found = []
        for start in range(0, count, MOST):
            some = large[start : start + MOST]
            labels = self.assign_leaders(view, ids, some, min(ASKED, len(some)), "longest", asking=True)
            found.append(np.append(some, VACANT)[np.minimum(labels, len(some))])
        return np.ascontiguousarray(np.concatenate(found, axis=1), np.uint32)

    def _choose(self, view: View, ids: UInt32s, slots: UInt32s, others: UInt32s) -> None:
        settings = view.settings
        shape = Shape(settings.max_edges, np.float32(settings.distance_threshold))

        def part(start: int, stop: int) -> None:
            bench = workbench(settings.dim, slots.shape[1] + others.shape[1])
            choose_among(
                view.rows, view.graph.edges, shape, ids[start:stop], slots[start:stop], others[start:stop],
                np.empty(TABLE, np.uint32), bench,
            )  # fmt: skip

        self._run("edges", part, len(ids), SLICE // 4)

    def _link_back(self, view: View, ids: UInt32s) -> None:
        edges, rows, settings = view.graph.edges, view.live.rows, view.settings
        shape = Shape(settings.max_edges, np.float32(settings.distance_threshold))
        starts = np.zeros(rows + 1, np.int64)
        for start in range(0, len(ids), RING_ROWS):
            count_in_edges(edges, ids[start : start + RING_ROWS], starts)
        np.cumsum(starts, out=starts)
        sources = np.empty(starts[-1], np.uint32)
        places = starts.copy()
        for start in range(0, len(ids), RING_ROWS):
            gather_in_edges(edges, ids[start : start + RING_ROWS], places, sources)
        targets = np.arange(rows, dtype=np.uint32)

        def part(start: int, stop: int) -> None:
            bench = workbench(settings.dim, 4 * edges.shape[1] + SLICE)
            link_back(
                view.rows, view.graph, view.live, shape, targets[start:stop], sources, starts[start : stop + 1], bench
            )

        self._run("reverse", part, rows, SLICE // 4)

    def _thread(self, view: View, ids: UInt32s) -> None:
        header = self._store.edges.header
        told, vector = np.full(1, ANY), np.empty(view.settings.dim, np.float32)

        def part(start: int, stop: int) -> None:
            thread_ring(
                view.rows, view.graph.edges, ids[start:stop], int(ids[0]), header[JOURNAL : JOURNAL + 2], told, vector,
                NO_CODES, 0,
            )  # fmt: skip

        self._run("ring", part, len(ids), RING_ROWS, threads=1)

    def measure_growth(self, view: View) -> None:
        """Note how distances grow with rank around some rows, as inserts do: see kernels.link.growth_of."""
        linked = np.flatnonzero(view.graph.edges[: view.live.rows, LIFELINE] != 0).astype(np.uint32)
        size = min(view.settings.update_search_list_cap, len(linked) - 1)
        if view.settings.metric == "ip" or size < 8:
            return
        sample = linked[np.linspace(0, len(linked) - 1, min(SAMPLE, len(linked))).astype(np.int64)]
        queries = np.empty((len(sample), view.settings.dim), np.float32)
        decode_rows(view.rows, sample, queries)
        plan = Plan(size + 1, 1, GEOMETRY, view.tombstones, size + 2, np.float32(1))
        found = np.zeros((len(sample), size + 1), np.float32)

        def part(start: int, stop: int) -> None:
            key, scratch = self._scratches.take(view, plan)
            results = Results(
                np.zeros((stop - start, size + 1), np.uint32), found[start:stop], np.zeros((stop - start, 4), np.int64)
            )
            search_batch(view.rows, view.graph, view.live, plan, queries[start:stop], scratch, results)
            self._scratches.give(key, scratch)

        self._helpers.run(part, len(sample), 16)
        near, last = found[:, size >> 3], found[:, size]  # a row finds itself first
        known = (near > 0) & (last > 0)
        note_growth(self._store, np.log(last[known] / near[known]) / np.float32(np.log(size / (size >> 3))))

    def _run(
        self, step: str, part: Callable[[int, int], None], count: int, size: int, threads: int | None = None
    ) -> None:
        done, telling = 0, threading.Lock()

        def work(start: int, stop: int) -> None:
            nonlocal done
            if self._stop():
                raise StoppedError
            part(start, stop)
            with telling:
                done += stop - start
                if step:
                    self._progress(step, done, count)

        self._helpers.run(work, count, size, threads)


def mapped_bytes(store: Store, count: int) -> int:
    """Bytes of the candidates of so many rows where they are mapped from a file; 0 where memory holds them."""
    width = OUTER * INNER * KEPT * (2 if store.settings.metric == "ip" else 1)
    size, limit = 4 * count * width, store.settings.memory_limit or memory_bytes()
    return size if store.path is not None and size > limit // 4 else 0


def _bench(width: int) -> Cluster:
    leaders = -(-CLUSTER_MOST * INNER // LEAF)
    return Cluster(
        points=np.zeros((-(-CLUSTER_MOST // TILE_ROWS) * TILE_ROWS, width), np.float32),
        names=np.zeros(CLUSTER_MOST, np.uint32),
        origin=np.zeros(width, np.float32),
        order=np.zeros(CLUSTER_MOST * INNER, np.int64),
        starts=np.zeros(leaders + 1, np.int64),
        labels=np.zeros((CLUSTER_MOST, INNER), np.int32),
        lifts=np.zeros(LEAF_MOST, np.float32),
        around=table(CLUSTER_MOST, leaders, width),
        leaf=table(LEAF_MOST, LEAF_MOST, width),
    )


def _grouped(labels: AnyArray) -> list[Int64s]:
    """The places of equal labels, in their flat order; those of 65,535 are left out."""
    flat = labels.reshape(-1)
    order = np.argsort(flat, kind="stable")
    counts = np.zeros(0x10000, np.int64)
    for start in range(0, len(flat), COUNTED):  # the count makes wider copies
        counts += np.bincount(flat[start : start + COUNTED], minlength=len(counts))
    counts = counts[:0xFFFF]
    ends = np.cumsum(counts)[counts > 0]
    return np.split(order[: counts.sum()], ends[:-1])
