"""Answering queries: which plan, in which ranges, on which threads."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..filters.sets import spread
from ..kernels.cells import CROWDED, Cells, scan_cells
from ..kernels.codes import search_codes
from ..kernels.disk import search_disk
from ..kernels.jit import entry_point
from ..kernels.listed import look_around, scan_codes
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
    search_listed,
    unpack_heap,
)
from ..types import AnyArray, Float32s, UInt32s
from . import planner
from .cells import Partition
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
LEAPS = 1  # rows of edges that a node brings at most where neighbours that do not match are leapt over
LEAST_CHOSEN = 64  # rows that a scan by codes chooses, at least, to be ranked by their vectors
SAMPLED_SHARE, LEAST_SAMPLED, MOST_SAMPLED = 128, 256, 2048  # rows by which it is told how far matches are
SOME_MATCH = 4  # of the nearest of them, where matches are near and far alike: if none does, all matches are far
MOSTLY = 0.5  # of them: the matches are near
SAMPLED_NEARER = 4  # of them that may be nearer than the last hit, and four times as many as are to be expected
SCANNED = 32  # matches that are scanned sooner than a walk is repeated with a pool that is longer by one
SCANNED_ALL = 2  # in the place of STARVED: a scan has completed the answer
SURELY = 2  # times as many matches as are wanted, by a sample, where a walk tests what it meets
MISSED, MISSED_PER_LIST = 0.16, 1.6  # of the hits, that may be expected in the cells which a scan leaves out, at most
EVERYWHERE = 2.0  # a share that no matches are
CELLED_AT_ONCE = 16  # queries that go over cells, in one call
ROUNDED = 16  # rows beyond the k nearest that rounding may have put behind them
EXACT_QUERIES = 16  # queries that share one pass over the rows


class Answers(NamedTuple):
    """ids: uint32 (queries, k), distances: float32 (queries, k), info: int64 (queries, INFO), of which the first
    info[i, FOUND] of each row count. plan: "graph", "exact" or "empty"; with a filter also "scan", "cells" or
    "two-hop".
    estimated: distances that the planner expected of each, 0 where it had no choice.
    """

    plan: str
    search_list: int
    ids: UInt32s
    distances: Float32s
    info: AnyArray
    fewest: int
    estimated: int = 0


class Searcher:
    """Runs queries against views. Safe for any number of threads."""

    def __init__(self, scratches: ScratchPool, helpers: Helpers) -> None:
        self._scratches = scratches
        self._helpers = helpers
        self._entry_points: dict[Callable[..., int], Callable[..., int]] = {}
        self.partition = Partition(helpers)

    def query(
        self, view: View, queries: Float32s, k: int, search_list: int, *, exact: bool, threads: int,
        way: str | None = None,
    ) -> Answers:  # fmt: skip
        """The k nearest rows that the view sees, for queries of shape (n, dim). Fewer only if there are fewer.

        way: one of planner.PLANS; the cheapest if None.
        """
        live, count = view.selected, len(queries)
        wanted = min(k, live)
        if wanted == 0 or count == 0:
            return _nothing(count)
        length = max(wanted, search_list)
        if view.within is not None and not view.within.open and live == view.head.live and way is None:
            view = view.filtered(None)  # every row matches
        if view.within is not None:
            return self._query_within(view, queries, wanted, length, exact=exact, threads=threads, way=way)
        if exact or way == "exact" or (way is None and scans(live, wanted, search_list)):
            return self._exact(view, queries, wanted, threads)
        plan = _plan(length, wanted, view.growth, view.beam_width, view.metric, view.tombstones)
        return self._walked(view, plan, queries, wanted, length, threads)

    def _query_within(
        self, view: View, queries: Float32s, wanted: int, length: int, *, exact: bool, threads: int, way: str | None
    ) -> Answers:
        """The same where a filter selects rows."""
        assert view.within is not None
        within, matches, live = view.within, view.expected, view.head.live
        if exact or way == "exact":
            return self._exact(view, queries, wanted, threads)
        coded, on_disk = view.codes is not None, view.disk is not None
        within.asked += len(queries)
        untested = within.count // within.asked if within.open else 0  # the more ask, the less each has to pay
        shape = self.partition.shape(view)
        likely = planner.estimates(
            matches, live, length, coded=coded, on_disk=on_disk, untested=untested, cells=shape
        )  # fmt: skip
        estimate = likely[0] if way is None else planner.estimate_of(way, matches, live, length, shape)
        if estimate.plan == planner.CELLS:
            cells = None if shape is None else self.partition.cells(view, wait=way is not None)
            if cells is not None and (matches >= SURELY * wanted or not within.open):
                crowd = MOSTLY if way is None else EVERYWHERE
                return self._celled(view, cells, queries, wanted, length, threads, estimate.distances, crowd)
            estimate = likely[1] if likely[0].plan == planner.CELLS else likely[0]
        if within.open and (estimate.plan == planner.SCAN or matches < SURELY * wanted):
            view = view.filtered(within.settled)
            return self.query(view, queries, wanted, length, exact=False, threads=threads, way=way)
        if estimate.plan == planner.SCAN:
            return self._listed(view, queries, wanted, length, threads, estimate.distances)
        # A walk in memory over all rows ends by itself where it has nothing to go by.
        looks = estimate.plan == planner.LEAP or on_disk
        around = self._around(view, queries, wanted) if looks else None
        if around is not None and way is None:
            held = within.holds(around.ids).mean(axis=1)
            if (around.full & (held == 0)).all():  # there is nothing to walk to
                return self._listed(view, queries, wanted, length, threads, matches)
            if (around.full & (held > MOSTLY)).all():  # nor anything to leap over
                estimate = planner.estimate_of(planner.WALK, matches, live, length)
        found = self._walked_within(view, queries, wanted, length, threads, estimate.plan)
        if around is not None:
            astray = np.flatnonzero(around.reach < found.distances[:, wanted - 1])
            astray = astray[found.info[astray, STARVED] != SCANNED_ALL]
            if len(astray):
                self._complete(view, queries, Results(found.ids, found.distances, found.info), astray, threads)
        ends = found.info[:, STARVED]
        scanned = way is None and ends[0] == SCANNED_ALL and (ends == SCANNED_ALL).all()
        return found._replace(plan=planner.SCAN if scanned else found.plan, estimated=estimate.distances)

    def _walked_within(
        self, view: View, queries: Float32s, wanted: int, length: int, threads: int, way: str
    ) -> Answers:  # fmt: skip
        """Answers by walks that return only what a filter selects."""
        leap = way == planner.LEAP and view.disk is None
        # Over two hops all that is met matches, but for a few rows where the walk begins.
        leaps, least = (LEAPS, 0) if leap else (0, wanted)
        plan = _plan(length, wanted, view.growth, view.beam_width, view.metric, not leap, leaps, least)
        # As many rows that do not match are in the pool as stand between those that do.
        rare = (view.head.live // max(view.expected, 1)).bit_length()
        room = TOMBSTONE_ROOM if leap else max(TOMBSTONE_ROOM, 2 << rare)
        found = self._walked(view.masked(), plan, queries, wanted, length, threads, room)
        return found._replace(plan=planner.LEAP if leap else planner.WALK)

    def _walked(
        self, view: View, plan: Plan, queries: Float32s, wanted: int, length: int, threads: int,
        room: int = TOMBSTONE_ROOM,
    ) -> Answers:  # fmt: skip
        """Answers by walks, completed where they end too early."""
        count = len(queries)
        results = _results(count, wanted)
        if count == 1:
            fewest = self._walk(view, plan, queries, results, room)
            self._helpers.between()
        else:
            fewest = self._walk_all(view, plan, queries, results, threads, room)
        if view.disk is not None and view.disk.disk.vectors >= 0 and (lost := int(results.info[:, LOST].sum())):
            log.warning("%d rows could not be read from the disk, and were passed over by %d queries", lost, count)
        if plan.tombstones and np.count_nonzero(results.info[:, STARVED]):
            self._widen(view, plan, queries, results, threads, room)
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

    def _walk_all(
        self, view: View, plan: Plan, queries: Float32s, results: Results, threads: int, room: int = TOMBSTONE_ROOM
    ) -> int:
        fewest: list[int] = []

        def walk(start: int, stop: int) -> None:
            part = Results(results.ids[start:stop], results.distances[start:stop], results.info[start:stop])
            fewest.append(self._walk(view, plan, queries[start:stop], part, room))

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

    def _widen(
        self, view: View, plan: Plan, queries: Float32s, results: Results, threads: int, room: int = TOMBSTONE_ROOM
    ) -> None:
        """Walk again with more room, and in the end scan, for queries among so many rows that are dead, or that a
        filter does not let through, that the others beyond were not reached.
        """
        while len(starved := np.flatnonzero(results.info[:, STARVED])):
            room *= WIDER
            if room * plan.search_list * (4 if view.within is None else SCANNED) >= (
                view.live.rows if view.within is None else view.expected
            ):
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
        some, k = np.ascontiguousarray(queries[short]), answers.ids.shape[1]
        if view.within is None:
            self._put(answers, short, self._exact(view, some, k, threads))
        else:
            self._put(answers, short, self._listed(view, some, k, k, threads))

    @staticmethod
    def _put(answers: Results, some: AnyArray, scanned: Answers) -> None:
        """Put what a scan has found in the place of what some queries have."""
        width = scanned.ids.shape[1]  # fewer than wanted, where it was not known how many match
        answers.ids[some, :width], answers.distances[some, :width] = scanned.ids, scanned.distances
        answers.info[some, FOUND] = scanned.info[:, FOUND]
        answers.info[some, DISTANCES] += scanned.info[:, DISTANCES]
        answers.info[some, STARVED] = SCANNED_ALL

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

    def _listed(
        self, view: View, queries: Float32s, k: int, search_list: int, threads: int, estimated: int = 0
    ) -> Answers:
        """The nearest of the rows that a filter selects, chosen by their codes where there are any."""
        assert view.within is not None
        ids, count = view.within.settled.ids, len(queries)
        seconds = len(ids) * view.settings.dim * SECONDS_PER_VALUE
        if seconds > SLICE_SECONDS or not len(ids):
            return self._exact(view, queries, k, threads)._replace(plan=planner.SCAN, estimated=estimated)
        results = _results(count, k)
        length = k + ROUNDED if view.codes is None else max(2 * k, search_list, LEAST_CHOSEN)

        def scan_part(start: int, stop: int) -> None:
            part = Results(results.ids[start:stop], results.distances[start:stop], results.info[start:stop])
            self._scan_listed(view, queries[start:stop], ids, length, part)

        if count == 1:
            fewest = self._scan_listed(view, queries, ids, length, results)
            self._helpers.between()
        else:
            self._helpers.run(scan_part, count, max(1, int(SLICE_SECONDS / 4 / seconds)), threads)
            fewest = int(results.info[:, FOUND].min())
        if fewest < k:
            short = np.flatnonzero(results.info[:, FOUND] < k)
            self._put(results, short, self._exact(view, np.ascontiguousarray(queries[short]), k, threads))
            fewest = int(results.info[:, FOUND].min())
        return Answers(planner.SCAN, 0, *results, fewest, estimated)

    def _celled(
        self, view: View, cells: Cells, queries: Float32s, k: int, search_list: int, threads: int, estimated: int,
        crowd: float,
    ) -> Answers:  # fmt: skip
        """The nearest of the rows that a filter selects, in the nearest cells. crowd: of the rows near a query, a share
        of matches from which on it is answered by a walk over all rows.
        """
        assert view.within is not None
        assert view.codes is not None
        results, masked, codes = _results(len(queries), k), view.masked(), view.codes
        length, matches = max(2 * k, search_list, LEAST_CHOSEN), view.expected
        plan = _listing(length, view.beam_width, view.metric, k)
        missing = k * min(MISSED, MISSED_PER_LIST / search_list)
        scored = min(view.selected, int(SLICE_SECONDS / SECONDS_PER_VALUE / view.settings.dim))
        room = scored + len(cells.late) + cells.widest + 1

        def scan_part(start: int, stop: int) -> int:
            part = Results(results.ids[start:stop], results.distances[start:stop], results.info[start:stop])
            size, scratch = self._scratches.take(view, plan)
            asked = self._scratches.take_asked(codes)
            keys = self._scratches.take_candidates(len(cells.spreads))
            candidates = self._scratches.take_candidates(room)
            fewest = self._call(
                scan_cells, view.rows, codes, masked.live, plan, queries[start:stop], cells, matches, missing, crowd,
                keys[: len(cells.spreads)], candidates, scratch, asked, part,
            )  # fmt: skip
            for each in (keys, candidates):
                self._scratches.give_candidates(each)
            self._scratches.give_asked(codes, asked)
            self._scratches.give(size, scratch)
            return fewest

        if len(queries) == 1:
            fewest = scan_part(0, 1)
            self._helpers.between()
        else:
            self._helpers.run(scan_part, len(queries), CELLED_AT_ONCE, threads)
            fewest = int(results.info[:, FOUND].min())
        if fewest == k:
            return Answers(planner.CELLS, 0, *results, fewest, estimated)
        crowded = np.flatnonzero(results.info[:, STARVED] == CROWDED)
        if len(crowded):
            some = np.ascontiguousarray(queries[crowded])
            walked = self._walked_within(view, some, k, search_list, threads, planner.WALK)
            if len(crowded) == len(queries):
                return walked._replace(estimated=estimated)
            for part, found in zip(results, (walked.ids, walked.distances, walked.info), strict=True):
                part[crowded] = found
        short = np.flatnonzero(results.info[:, FOUND] < k)
        if len(short):
            self._complete(view, queries, results, short, threads)
        return Answers(planner.CELLS, 0, *results, int(results.info[:, FOUND].min()), estimated)

    def _scan_listed(self, view: View, queries: Float32s, ids: UInt32s, length: int, results: Results) -> int:
        """The nearest of some rows for each query; returns the fewest hits that one has found. length: how many are
        measured by their vectors, at least.
        """
        plan = _listing(length, view.beam_width, view.metric, results.ids.shape[1])
        size, scratch = self._scratches.take(view, plan)
        if view.codes is None:
            fewest = self._call(search_listed, view.rows, view.live, plan, queries, ids, scratch, results)
        else:
            asked, candidates = self._scratches.take_asked(view.codes), self._scratches.take_candidates(len(ids))
            fewest = self._call(
                scan_codes, view.rows, view.codes, view.live, plan, queries, ids, candidates[: len(ids)], scratch,
                asked, results,
            )  # fmt: skip
            self._scratches.give_candidates(candidates)
            self._scratches.give_asked(view.codes, asked)
        self._scratches.give(size, scratch)
        return fewest

    def _around(self, view: View, queries: Float32s, k: int) -> _Around | None:
        """The nearest rows of an even sample, so many that one of them is farther than the k-th match ought to be; None
        if the sample is too small for that.

        Where a filter says nothing about distances, the k-th match is about the (k / share)-th row. If many more rows
        of the sample are nearer, then there are hardly any matches near the query, and a walk has nothing to go by.
        """
        live, matches = view.head.live, max(view.expected, 1)
        step = max(1, live // min(max(live // SAMPLED_SHARE, LEAST_SAMPLED), MOST_SAMPLED))
        sample = spread(view.live.rows // step, view.live.rows)
        nearer, looked = SAMPLED_NEARER + 4 * len(sample) * k // matches, SOME_MATCH * live // matches
        many = max(nearer, looked)
        if many >= len(sample):
            return None
        results = _results(len(queries), many)
        results.ids[:] = 0
        plan = Plan(many, view.beam_width, view.metric, False, many, np.float32(1))
        size, scratch = self._scratches.take(view, plan)
        if view.codes is None:
            self._call(search_listed, view.rows, view.live, plan, queries, sample, scratch, results)
        else:
            asked = self._scratches.take_asked(view.codes)
            self._call(look_around, view.rows, view.codes, view.live, plan, queries, sample, scratch, asked, results)
            self._scratches.give_asked(view.codes, asked)
        self._scratches.give(size, scratch)
        full = results.info[:, FOUND] == many
        return _Around(np.where(full, results.distances[:, nearer - 1], np.inf), full, results.ids[:, :looked])

    def _exact(self, view: View, queries: Float32s, k: int, threads: int) -> Answers:
        everything = np.arange(view.live.rows, dtype=np.uint32) if view.within is None else view.within.settled.ids
        if not len(everything):
            return _nothing(len(queries))
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


class _Around(NamedTuple):
    """Of each query: reach: the distance within which its matches ought to be; full: whether there are such rows at
    all; ids: the nearest of a sample, so many that some ought to match.
    """

    reach: AnyArray
    full: NDArray[np.bool_]
    ids: UInt32s


def scans(live: int, k: int, search_list: int) -> bool:
    """Whether a query is answered by a scan of all rows, which beats a walk with such a list."""
    return live < FEW_ROWS or 4 * max(k, search_list) >= live


def _results(count: int, k: int) -> Results:
    return Results(np.empty((count, k), np.uint32), np.empty((count, k), np.float32), np.zeros((count, INFO), np.int64))


@lru_cache(maxsize=256)
def _listing(length: int, beam_width: int, metric: int, k: int) -> Plan:
    """How to choose among rows that are listed: so many, of which the k nearest are wanted."""
    return Plan(length, beam_width, metric, False, k, np.float32(1))


@lru_cache(maxsize=256)
def _plan(
    search_list: int, k: int, growth: float, beam_width: int, metric: int, tombstones: bool, leap: int = 0,
    least: int = 0,
) -> Plan:  # fmt: skip
    """How to walk for the k nearest.

    A walk ends at the radius within which as many rows are to be expected as the list is long, by how distances grow
    with rank among the rows of this database; in its stead the list proper is half as long again. So easy queries end
    early, and hard ones go on. Under `ip` queries stand elsewhere than rows, whose distances say nothing about theirs,
    and edges lead to them less well: the list alone ends a walk, and is twice as long.
    """
    if growth == 0 or metric == IP:
        length = search_list * (2 if metric == IP else 1)
        nearest, stretch = length + 1, np.float32(1)
    else:
        length, nearest, stretch = search_list * 3 // 2, k, np.float32((search_list / k) ** growth)
    return Plan(length, beam_width, metric, tombstones, nearest, stretch, leap=leap, least=least)


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


def scattered(parts: list[tuple[AnyArray, Answers]], count: int) -> Answers:
    """The answers to `count` queries from those to some of each, with their places. There is no plan of all of them."""
    width = max((answers.ids.shape[1] for _, answers in parts), default=0)
    whole = _results(count, width)
    whole.ids[:], whole.distances[:] = 0, np.inf
    for places, answers in parts:
        whole.ids[places, : answers.ids.shape[1]] = answers.ids
        whole.distances[places, : answers.ids.shape[1]] = answers.distances
        whole.info[places] = answers.info
    return Answers("", 0, *whole, int(whole.info[:, FOUND].min()) if count else 0)


def _nothing(count: int) -> Answers:
    return Answers(
        "empty",
        0,
        np.empty((count, 0), np.uint32),
        np.empty((count, 0), np.float32),
        np.zeros((count, INFO), np.int64),
        0,
    )


__all__ = ["DISTANCES", "FOUND", "HOPS", "INFO", "PAGES", "SPENT", "Answers", "Searcher", "scattered"]
