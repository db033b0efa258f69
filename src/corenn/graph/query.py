"""Answering queries: which plan, in which ranges, on which threads."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..kernels.codes import search_codes
from ..kernels.disk import search_disk
from ..kernels.jit import entry_point
from ..kernels.search import (
    DISTANCES,
    FOUND,
    HOPS,
    INFO,
    IP,
    LOST,
    PAGES,
    STARVED,
    TOMBSTONE_ROOM,
    Plan,
    Results,
    Scratch,
    aim_batch,
    scan,
    search_batch,
    unpack_heap,
)
from ..types import AnyArray, Float32s, UInt32s
from .scratch import ScratchPool
from .threads import WAITERS, Helpers
from .view import View

log = logging.getLogger("corenn.query")

SPENT = [HOPS, DISTANCES, PAGES, LOST]
FEW_ROWS = 1000  # below this many live rows a scan beats a walk and misses nothing
SLICE_SECONDS = 0.02  # no kernel call lasts much longer, so that Ctrl-C and deadlines are seen
SECONDS_PER_VALUE = 2e-10  # one component of one distance, slowly
SECONDS_PER_READ = 1e-4  # from a disk, of which one is waited for at a time
HOP_VALUES = 24  # distances per hop, about
WIDER = 8  # times, the pool of a walk that met too many dead rows
EXACT_QUERIES = 16  # queries that share one pass over the rows


class Answers(NamedTuple):
    """ids: uint32 (queries, k), distances: float32 (queries, k), info: int64 (queries, INFO), of which the first
    info[i, FOUND] of each row count. plan: "graph", "exact" or "empty".
    """

    plan: str
    search_list: int
    ids: UInt32s
    distances: Float32s
    info: AnyArray
    fewest: int


class Searcher:
    """Runs queries against views. Safe for any number of threads."""

    def __init__(self, scratches: ScratchPool, helpers: Helpers) -> None:
        self._scratches = scratches
        self._helpers = helpers
        self._entry_points: dict[Callable[..., int], Callable[..., int]] = {}

    def query(self, view: View, queries: Float32s, k: int, search_list: int, *, exact: bool, threads: int) -> Answers:
        """The k nearest rows that the view sees, for queries of shape (n, dim). Fewer only if there are fewer."""
        live, count = view.head.live, len(queries)
        wanted = min(k, live)
        if wanted == 0 or count == 0:
            return _nothing(count)
        if exact or scans(live, wanted, search_list):
            return self._exact(view, queries, wanted, threads)
        length = max(wanted, search_list)
        plan = _plan(length, wanted, view.growth, view.beam_width, view.metric, view.tombstones)
        results = Results(
            np.empty((count, wanted), np.uint32),
            np.empty((count, wanted), np.float32),
            np.zeros((count, INFO), np.int64),
        )
        if count == 1:
            fewest = self._walk(view, plan, queries, results)
            self._helpers.between()
        else:
            fewest = self._walk_all(view, plan, queries, results, threads)
        if view.disk is not None and view.disk.disk.vectors >= 0 and (lost := int(results.info[:, LOST].sum())):
            log.warning("%d rows could not be read from the disk, and were passed over by %d queries", lost, count)
        if plan.tombstones and results.info[:, STARVED].any():
            self._widen(view, plan, queries, results, threads)
            fewest = 0
        if fewest == wanted and not len(view.pending):
            return Answers("graph", length, *results, fewest)
        if len(view.pending):
            self._add_pending(view, queries, results, wanted)
        short = np.flatnonzero(results.info[:, FOUND] < wanted)
        if len(short) and not plan.tombstones:
            # Ids of rows that were gone have been given to others since the view was taken.
            self._walk_again(view, plan._replace(tombstones=True), queries, results, short)
            short = np.flatnonzero(results.info[:, FOUND] < wanted)
        if len(short):
            self._complete(view, queries, results, short, threads)
        return Answers("graph", length, *results, int(results.info[:, FOUND].min()))

    def walk_without(self, view: View, query: Float32s, search_list: int, hidden: int, results: Results) -> bool:
        """Answer a query of shape (1, dim) by a walk that takes no notice of the row `hidden`.

        Returns False where `query` would have scanned all rows in the end, and missed nothing.
        """
        k = results.ids.shape[1]
        plan = _plan(search_list, k, view.growth, view.beam_width, view.metric, view.tombstones)
        plan = plan._replace(hidden=hidden)
        fewest, room = self._walk(view, plan, query, results), TOMBSTONE_ROOM
        while plan.tombstones and results.info[0, STARVED]:
            room *= WIDER
            if room * plan.search_list * 4 >= view.live.rows:
                return False
            fewest = self._walk(view, plan, query, results, room)
        return bool(fewest == k)

    # --- the graph -------------------------------------------------------------------------------------------------

    def _walk_all(self, view: View, plan: Plan, queries: Float32s, results: Results, threads: int) -> int:
        fewest: list[int] = []

        def walk(start: int, stop: int) -> None:
            part = Results(results.ids[start:stop], results.distances[start:stop], results.info[start:stop])
            fewest.append(self._walk(view, plan, queries[start:stop], part))

        # A slice lasts a few milliseconds; several per thread even out queries of unlike cost.
        seconds = plan.search_list * HOP_VALUES * view.settings.dim * SECONDS_PER_VALUE
        if view.disk is not None:
            if threads >= self._helpers.threads:
                threads *= WAITERS  # they wait for the disk, most of the time
            seconds += plan.search_list * SECONDS_PER_READ
        step = int(max(1, min(SLICE_SECONDS / 4 / seconds, -(-len(queries) // (4 * threads)))))
        self._helpers.run(walk, len(queries), step, threads)
        return min(fewest)

    def _walk(self, view: View, plan: Plan, queries: Float32s, results: Results, room: int = TOMBSTONE_ROOM) -> int:
        size, scratch = self._scratches.take(view, plan, room=room)
        if view.codes is not None:
            walk = self._walk_codes if view.disk is None else self._walk_disk
            fewest = walk(view, plan, queries, scratch, results)
        else:
            fewest = self._call(search_batch, view.rows, view.graph, view.live, plan, queries, scratch, results)
        self._scratches.give(size, scratch)
        return fewest

    def _walk_codes(self, view: View, plan: Plan, queries: Float32s, scratch: Scratch, results: Results) -> int:
        assert view.codes is not None
        asked = self._scratches.take_asked(view.codes)
        fewest = self._call(
            search_codes, view.rows, view.codes, view.graph, view.live, plan, queries, scratch, asked, results
        )
        self._scratches.give_asked(view.codes, asked)
        return fewest

    def _walk_disk(self, view: View, plan: Plan, queries: Float32s, scratch: Scratch, results: Results) -> int:
        assert view.codes is not None
        assert view.disk is not None
        asked = self._scratches.take_asked(view.codes)
        size, one, frame = self._scratches.take_frame(view, results.ids.shape[1])
        fewest = self._call(
            search_disk, one, view.codes, view.graph, view.live, plan, view.disk.disk, queries, scratch, asked, frame,
            results,
        )  # fmt: skip
        self._scratches.give_frame(size, one, frame)
        self._scratches.give_asked(view.codes, asked)
        return fewest

    def _call(self, kernel: Callable[..., int], *arguments: Any) -> int:
        """Call the machine code of a kernel: all views have the same types."""
        code = self._entry_points.get(kernel)
        if code is None:
            code = self._entry_points[kernel] = entry_point(kernel, *arguments)
        return code(*arguments)

    def _widen(self, view: View, plan: Plan, queries: Float32s, results: Results, threads: int) -> None:
        """Walk again with more room, and in the end scan, for queries among so many dead rows that the live ones
        beyond were not reached.
        """
        room = TOMBSTONE_ROOM
        while len(starved := np.flatnonzero(results.info[:, STARVED])):
            room *= WIDER
            if room * plan.search_list * 4 >= view.live.rows:
                results.info[starved, STARVED] = 0
                self._complete(view, queries, results, starved, threads)
                return
            self._walk_again(view, plan, queries, results, starved, room)

    def _walk_again(
        self, view: View, plan: Plan, queries: Float32s, results: Results, some: AnyArray, room: int = TOMBSTONE_ROOM
    ) -> None:
        for i in some.tolist():
            part = Results(results.ids[i : i + 1], results.distances[i : i + 1], results.info[i : i + 1])
            before = part.info.copy()
            self._walk(view, plan, queries[i : i + 1], part, room)
            part.info[:, SPENT] += before[:, SPENT]

    def _complete(self, view: View, queries: Float32s, answers: Results, short: AnyArray, threads: int) -> None:
        """Scan for queries whose walk ended with fewer rows than there are, or too early."""
        exact = self._exact(view, np.ascontiguousarray(queries[short]), answers.ids.shape[1], threads)
        answers.ids[short], answers.distances[short] = exact.ids, exact.distances
        answers.info[short, FOUND] = exact.info[:, FOUND]
        answers.info[short, DISTANCES] += exact.info[:, DISTANCES]

    def _add_pending(self, view: View, queries: Float32s, answers: Results, k: int) -> None:
        """Merge what is committed but not linked yet."""
        extra = self._scan(view, queries, k, view.pending)
        for i in range(len(queries)):
            found = int(answers.info[i, FOUND])
            ids = np.concatenate((answers.ids[i, :found], extra.ids[i, : extra.info[i, FOUND]]))
            distances = np.concatenate((answers.distances[i, :found], extra.distances[i, : extra.info[i, FOUND]]))
            ids, first = np.unique(ids, return_index=True)
            distances = distances[first]
            best = np.lexsort((ids, distances))[:k]
            answers.ids[i, : len(best)], answers.distances[i, : len(best)] = ids[best], distances[best]
            answers.info[i, FOUND] = len(best)
            answers.info[i, DISTANCES] += len(view.pending)

    # --- the scan --------------------------------------------------------------------------------------------------

    def _exact(self, view: View, queries: Float32s, k: int, threads: int) -> Answers:
        everything = np.arange(view.live.rows, dtype=np.uint32)
        if len(queries) <= EXACT_QUERIES:
            return self._scan_split(view, queries, k, everything, threads)
        parts: dict[int, Answers] = {}

        def answer(start: int, stop: int) -> None:
            parts[start] = self._scan(view, queries[start:stop], k, everything)

        self._helpers.run(answer, len(queries), EXACT_QUERIES, threads)
        return _joined([parts[start] for start in sorted(parts)])

    def _scan_split(self, view: View, queries: Float32s, k: int, ids: UInt32s, threads: int) -> Answers:
        """Few queries: the rows are divided among the threads, and their bests merged."""
        share = max(FEW_ROWS * 8, -(-len(ids) // threads))
        heaps: dict[int, AnyArray] = {}

        def part(start: int, stop: int) -> None:
            heaps[start] = self._scan_heaps(view, queries, k, ids[start:stop])

        self._helpers.run(part, len(ids), share, threads)
        merged = np.sort(np.concatenate(list(heaps.values()), axis=1), axis=1)[:, :k]
        return unpacked(merged, len(ids))

    def _scan(self, view: View, queries: Float32s, k: int, ids: UInt32s) -> Answers:
        return unpacked(np.sort(self._scan_heaps(view, queries, k, ids), axis=1), len(ids))

    def _scan_heaps(self, view: View, queries: Float32s, k: int, ids: UInt32s) -> AnyArray:
        """The k best of `ids` per query as heap entries, NOTHING where there are fewer, in no order."""
        k = min(k, len(ids))
        heaps = np.full((len(queries), k), np.uint64(0xFFFFFFFFFFFFFFFF))
        counts = np.zeros(len(queries), np.int64)
        aimed = queries
        if view.metric != IP:
            aimed = np.empty((len(queries), view.settings.dim + 1), np.float32)
            aim_batch(view.rows, view.metric, queries, aimed)
        seconds = len(queries) * view.settings.dim * SECONDS_PER_VALUE
        step = max(64, int(SLICE_SECONDS / 2 / seconds) // self._helpers.grain())
        rows = view.rows if view.disk is None else view.disk.in_order(view.rows)
        for start in range(0, len(ids), step):
            part = ids[start : start + step]
            scan(rows, view.live, view.metric, aimed, part, heaps, counts)
            if view.disk is not None:
                view.disk.release(int(part[0]), int(part[-1]) + 1)
            self._helpers.between()
        return heaps


def scans(live: int, k: int, search_list: int) -> bool:
    """Whether a query is answered by a scan of all rows, which beats a walk with such a list."""
    return live < FEW_ROWS or 4 * max(k, search_list) >= live


@lru_cache(maxsize=256)
def _plan(search_list: int, k: int, growth: float, beam_width: int, metric: int, tombstones: bool) -> Plan:
    """How to walk for the k nearest.

    A walk ends at the radius within which as many rows are to be expected as the list is long, by how distances grow
    with rank among the rows of this database; in its stead the list proper is half as long again. So easy queries end
    early, and hard ones go on. Under `ip` queries stand elsewhere than rows, whose distances say nothing about theirs,
    and edges lead to them less well: the list alone ends a walk, and is twice as long.
    """
    if growth == 0 or metric == IP:
        length = search_list * (2 if metric == IP else 1)
        return Plan(length, beam_width, metric, tombstones, length + 1, np.float32(1))
    return Plan(
        search_list * 3 // 2, beam_width, metric, tombstones, k, np.float32((search_list / k) ** growth)
    )  # fmt: skip


def unpacked(heaps: AnyArray, scanned: int) -> Answers:
    count, k = heaps.shape
    ids, distances = np.empty((count, k), np.uint32), np.empty((count, k), np.float32)
    info = np.zeros((count, INFO), np.int64)
    found = (heaps != np.uint64(0xFFFFFFFFFFFFFFFF)).sum(axis=1)
    info[:, FOUND] = found
    info[:, DISTANCES] = scanned
    for i in range(count):
        unpack_heap(heaps[i], ids[i], distances[i])
    return Answers("exact", 0, ids, distances, info, int(found.min()))


def _joined(parts: list[Answers]) -> Answers:
    ids, distances, info = (np.concatenate([getattr(p, name) for p in parts]) for name in ("ids", "distances", "info"))
    return Answers("exact", 0, ids, distances, info, min(part.fewest for part in parts))


def _nothing(count: int) -> Answers:
    return Answers(
        "empty",
        0,
        np.empty((count, 0), np.uint32),
        np.empty((count, 0), np.float32),
        np.zeros((count, INFO), np.int64),
        0,
    )


__all__ = ["DISTANCES", "FOUND", "HOPS", "PAGES", "Answers", "Searcher"]
