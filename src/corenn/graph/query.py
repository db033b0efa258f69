"""Answering queries: which plan, in which ranges, on which threads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..kernels.search import (
    DISTANCES,
    DONE,
    FOUND,
    HOPS,
    IP,
    STATUS,
    Plan,
    Results,
    aim_batch,
    scan,
    search_batch,
    unpack_heap,
)
from ..types import AnyArray, Float32s, UInt32s
from .scratch import ScratchPool
from .threads import Helpers
from .view import View

FEW_ROWS = 1000  # below this many live rows a scan beats a walk and misses nothing
SLICE_SECONDS = 0.02  # no kernel call lasts much longer, so that Ctrl-C and deadlines are seen
SECONDS_PER_VALUE = 2e-10  # one component of one distance, slowly
HOP_VALUES = 24  # distances per hop, about
EXACT_QUERIES = 16  # queries that share one pass over the rows


@dataclass(frozen=True, slots=True)
class Answers:
    """ids: uint32 (queries, k), distances: float32 (queries, k), info: int64 (queries, 4), of which the first
    info[i, FOUND] of each row count. plan: "graph", "exact" or "empty".
    """

    plan: str
    search_list: int
    ids: UInt32s
    distances: Float32s
    info: AnyArray


class Searcher:
    """Runs queries against views. Safe for any number of threads."""

    def __init__(self, scratches: ScratchPool, helpers: Helpers) -> None:
        self._scratches = scratches
        self._helpers = helpers

    def query(self, view: View, queries: Float32s, k: int, search_list: int, *, exact: bool, threads: int) -> Answers:
        """The k nearest rows that the view sees, for queries of shape (n, dim). Fewer only if there are fewer."""
        wanted = min(k, view.head.live)
        if wanted == 0 or len(queries) == 0:
            return _nothing(len(queries))
        few = view.head.live < FEW_ROWS or 4 * max(wanted, min(search_list, view.head.live)) >= view.head.live
        if exact or few or wanted > search_list:
            return self._exact(view, queries, wanted, threads)
        answers = self._walk(view, queries, wanted, search_list, threads)
        short = np.flatnonzero(answers.info[:, FOUND] < wanted)
        if len(short):
            self._complete(view, queries, answers, short, threads)
        return answers

    # --- the graph -------------------------------------------------------------------------------------------------

    def _walk(self, view: View, queries: Float32s, k: int, search_list: int, threads: int) -> Answers:
        count = len(queries)
        results = Results(np.empty((count, k), np.uint32), np.empty((count, k), np.float32), np.empty((count, 4), np.int64))
        plan = Plan(search_list, view.settings.beam_width, view.metric, view.tombstones)
        if count == 1:
            self._walk_range(view, plan, queries, results, 0, 1)
        else:
            # A slice lasts a few milliseconds; several per thread even out queries of unlike cost.
            seconds = search_list * HOP_VALUES * view.settings.dim * SECONDS_PER_VALUE
            step = int(max(1, min(SLICE_SECONDS / 4 / seconds, -(-count // (4 * threads)))))
            self._helpers.run(lambda i, j: self._walk_range(view, plan, queries, results, i, j), count, step, threads)
        answers = Answers("graph", search_list, *results)
        if len(view.pending):
            self._add_pending(view, queries, answers, k)
        return answers

    def _walk_range(
        self, view: View, plan: Plan, queries: Float32s, results: Results, start: int, stop: int
    ) -> None:
        grown = 0
        while start < stop:
            part = Results(*(array[start:stop] for array in results))
            part.info[:, STATUS] = -1
            with self._scratches.take(
                view.settings.dim, view.graph, plan.search_list, plan.beam_width, tombstones=plan.tombstones, grown=grown
            ) as scratch:
                search_batch(view.rows, view.graph, view.live, plan, queries[start:stop], scratch, part)
            # A visited set that was too small ends the call at its query, which a larger one goes on from.
            done = part.info[:, STATUS] == DONE
            start += len(done) if done.all() else int(np.argmin(done))
            grown += 1

    def _complete(self, view: View, queries: Float32s, answers: Answers, short: AnyArray, threads: int) -> None:
        """Scan for the queries whose walk ended with fewer rows than there are."""
        exact = self._exact(view, np.ascontiguousarray(queries[short]), answers.ids.shape[1], threads)
        answers.ids[short], answers.distances[short] = exact.ids, exact.distances
        answers.info[short, FOUND] = exact.info[:, FOUND]
        answers.info[short, DISTANCES] += exact.info[:, DISTANCES]

    def _add_pending(self, view: View, queries: Float32s, answers: Answers, k: int) -> None:
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
        return _unpacked(merged, len(ids))

    def _scan(self, view: View, queries: Float32s, k: int, ids: UInt32s) -> Answers:
        return _unpacked(np.sort(self._scan_heaps(view, queries, k, ids), axis=1), len(ids))

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
        step = max(64, int(SLICE_SECONDS / 2 / seconds))
        for start in range(0, len(ids), step):
            scan(view.rows, view.live, view.metric, aimed, ids[start : start + step], heaps, counts)
        return heaps


def _unpacked(heaps: AnyArray, scanned: int) -> Answers:
    count, k = heaps.shape
    ids, distances = np.empty((count, k), np.uint32), np.empty((count, k), np.float32)
    info = np.zeros((count, 4), np.int64)
    info[:, FOUND] = (heaps != np.uint64(0xFFFFFFFFFFFFFFFF)).sum(axis=1)
    info[:, DISTANCES] = scanned
    for i in range(count):
        unpack_heap(heaps[i], ids[i], distances[i])
    return Answers("exact", 0, ids, distances, info)


def _joined(parts: list[Answers]) -> Answers:
    ids, distances, info = (np.concatenate([getattr(p, name) for p in parts]) for name in ("ids", "distances", "info"))
    return Answers("exact", 0, ids, distances, info)


def _nothing(count: int) -> Answers:
    return Answers(
        "empty", 0, np.empty((count, 0), np.uint32), np.empty((count, 0), np.float32), np.zeros((count, 4), np.int64)
    )


__all__ = ["DISTANCES", "FOUND", "HOPS", "Answers", "Searcher"]
