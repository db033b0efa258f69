"""Measuring recall, and choosing search lists by it.

Rows of the graph stand for queries that are not in it: the walk takes no notice of the row that it asks for, and
neither does the exact scan that it is compared with. A stored row that may find itself would flatter the curve; one
that is hidden takes its own paths away with it, so that if anything the curve is too low.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..config import MAX_SEARCH_LIST
from ..kernels.rows import decode_rows
from ..kernels.search import DISTANCES, INFO, IP, LIFELINE, Results, aim_batch, scan
from ..types import Float32s, Float64s, Recall, UInt32s
from .curve import Curve, Point, pack, rung_of, unpack
from .query import SECONDS_PER_VALUE, Searcher, scans, unpacked
from .threads import Helpers
from .view import View

log = logging.getLogger("corenn.recall")

SAMPLES = 1_000  # queries that a curve rests on, as far as time allows
CURVE_SEED, RECALL_SEED = 0xCA11, 0xC0C0  # so that what is measured afterwards is not what was chosen by
QUICK_SECONDS, PATIENT_SECONDS = 1.5, 60.0  # for a query that waits, and in the background
BLOCK = 16  # queries that share one pass over the rows
BLOCK_SECONDS = 0.5  # of a pass: where there are many rows, fewer queries share one
SECONDS_PER_COMPONENT = 5e-11  # of a scan, about
SLICE_SECONDS = 0.005  # of the background at a time: a write that comes meanwhile waits so long
STEP = 2**0.5  # from one list to the next
LONGEST = 4_096
SURE, ENOUGH, LONG = 0.999, 0.99, 512  # recall at which a curve ends; with lists from LONG on, at ENOUGH
LEFT = 0.02  # share of the time in which no further list is begun
ALWAYS = (10, 20, 50, 100)  # k of which the background makes curves
TIE = 1e-6  # relative: a row as near as the true k-th neighbour is as good
DRAWS = 64
READ = 256  # values read off curves that are kept

Work = Callable[[int, int], Iterator[None]]


class Choice(NamedTuple):
    """A search list, and what it follows from; no list for a scan of all rows."""

    search_list: int
    exact: bool
    chosen_by: str


@dataclass(slots=True)
class _Sample:
    """Rows that stand for queries, float32 (n, dim), with the distance of the true k-th neighbour of each, NaN where it
    is not known yet.
    """

    ids: UInt32s
    queries: Float32s
    limits: Float64s

    def known(self) -> _Sample:
        """The part that was compared with all rows."""
        done = ~np.isnan(self.limits)
        return _Sample(self.ids[done], self.queries[done], self.limits[done])


class _Pace:
    """How a measurement goes on: on several threads until it is late, or slice by slice on one.

    spent: seconds so far.
    """

    def __init__(self, helpers: Helpers, threads: int, seconds: float) -> None:
        self._helpers, self._threads = helpers, threads
        self.seconds = seconds
        self.spent = 0.0
        self._began = time.monotonic()

    def used(self) -> float:
        """Seconds that the measurement has taken: by the clock, but only while it is at work in the background."""
        return self.spent if self._threads == 0 else time.monotonic() - self._began

    def run(self, work: Work, count: int, step: int, until: float, threads: int | None = None) -> Iterator[None]:
        """Run work(start, stop) on ranges that cover 0 … count; after `until` seconds none is begun but the first.

        threads: of those that there are, all if None.
        """
        if self._threads == 0:
            for start in range(0, count, step):
                if start and self.used() > until:
                    return
                yield from work(start, min(start + step, count))
            return

        def part(start: int, stop: int) -> None:
            if start == 0 or self.used() <= until:
                deque(work(start, stop), maxlen=0)

        self._helpers.run(part, count, step, threads or self._threads)
        yield


class Calibrator:
    """The curves of one database. Safe for any number of threads; `step` is for the writer thread alone."""

    def __init__(self, searcher: Searcher, helpers: Helpers, raw: bytes | None) -> None:
        self._searcher = searcher
        self._helpers = helpers
        self._curves: dict[int, Curve] = {}
        self._asked: set[int] = set()  # rungs that were asked for beside those that are always measured
        self._measuring = threading.Lock()  # one caller measures; the others wait for its curve
        self._keeping = threading.Lock()
        self._usual: tuple[View | None, dict[int, Choice]] = (None, {})
        self._job: tuple[View, _Pace, Iterator[None]] | None = None
        self._failed = False
        self.load(raw)

    # --- choosing --------------------------------------------------------------------------------------------------

    def usual(self, view: View, k: int) -> Choice:
        """The list of a query that names none. Never waits: while there is no curve, it is that of the settings."""
        seen, choices = self._usual
        if seen is not view:
            choices = {}
            self._usual = (view, choices)
        choice = choices.get(k)
        if choice is None:
            choice = choices[k] = self._choose(view, k)
        return choice

    def _choose(self, view: View, k: int) -> Choice:
        settings = view.settings
        fixed = Choice(
            min(max(settings.query_search_list_cap, 2 * k), max(MAX_SEARCH_LIST, settings.query_search_list_cap)),
            False, "query_search_list_cap",
        )  # fmt: skip
        curve = self._serving(k) if settings.recall_target > 0 else None
        if curve is None or curve.walk != _walk_of(view):
            return fixed
        length = curve.list_for(settings.recall_target)
        if length is None and not curve.complete:
            length = curve.points[-1].search_list
        if length is not None and not curve.fits(view.head, curve.walk):
            length = max(length, fixed.search_list)  # until it has been measured again
        return Choice(max(k, length or 0), length is None, "recall_target")

    def _serving(self, k: int) -> Curve | None:
        """The curve of the least k' ≥ k, if it is not far from k."""
        curves = self._curves
        rung = min((rung for rung in curves if rung >= k), default=None)
        return curves[rung] if rung is not None and (rung <= 10 or rung <= 3 * k) else None

    def reaching(self, view: View, k: int, recall: float, threads: int) -> Choice:
        """The list for a recall. Measures the curve first if there is none that fits, in less than two seconds."""
        wanted = min(k, view.head.live)
        if recall >= 1 or scans(view.head.live, wanted, wanted) or 2 * len(view.pending) > view.head.live:
            return Choice(0, True, "min_recall")
        rung = rung_of(k)
        if scans(view.head.live, rung, rung):
            rung = k
        curve = self._fitting(view, k) or self._fitting(view, rung)
        if curve is None:
            with self._measuring:
                curve = self._fitting(view, rung) or self.measure(view, rung, SAMPLES, QUICK_SECONDS, threads)
            self._asked.add(rung)
        length = self._list_for(curve.k, recall)
        return Choice(max(k, length or 0), length is None, "min_recall")

    def _fitting(self, view: View, rung: int) -> Curve | None:
        curve = self._curves.get(rung)
        return curve if curve is not None and curve.fits(view.head, _walk_of(view)) else None

    def expected(self, view: View, k: int, search_list: int) -> tuple[float, float] | None:
        """Recall of a list and its lower bound by the curve, None where none serves."""
        curve = self._serving(k)
        if curve is None or not curve.fits(view.head, _walk_of(view)):
            return None
        return self._expected(curve.k, search_list)

    @property
    def curves(self) -> dict[int, Curve]:
        """The curves by their k; another dictionary whenever one is measured."""
        return self._curves

    # --- keeping ---------------------------------------------------------------------------------------------------

    def load(self, raw: bytes | None) -> None:
        """Take over stored curves that are newer than those measured here."""
        with self._keeping:
            curves = dict(self._curves)
            for curve in unpack(raw):
                own = curves.get(curve.k)
                if own is None or own.rows <= curve.rows:
                    curves[curve.k] = curve
            self._replace(curves)

    def pack(self) -> bytes:
        """All curves as they are stored."""
        return pack(self._curves.values())

    def _replace(self, curves: dict[int, Curve]) -> None:
        self._curves = curves
        self._usual = (None, {})
        # What is read off them is asked again and again.
        self._list_for = lru_cache(READ)(lambda rung, recall: curves[rung].list_for(recall))
        self._expected = lru_cache(READ)(lambda rung, search_list: curves[rung].expected(search_list))

    # --- measuring -------------------------------------------------------------------------------------------------

    def measure(self, view: View, k: int, samples: int, seconds: float, threads: int) -> Curve:
        """Measure the curve of a k now, and keep it. The view must walk for k rows."""
        found: list[Curve] = []
        pace = _Pace(self._helpers, threads, seconds)
        deque(self._measure(view, (k,), samples, pace, found.append), maxlen=0)
        return found[0]

    def recall(self, view: View, k: int, search_list: int, samples: int, threads: int) -> Recall:
        """Measure the recall of one list, on other rows than those the curves rest on. The view must walk for it."""
        pace = _Pace(self._helpers, threads, float("inf"))
        sample = _draw(view, samples, RECALL_SEED)
        if not len(sample.ids):  # no row is linked yet, and all are scanned
            return Recall(1.0, 1.0, 1.0, k, 0, search_list)
        deque(self._compare(view, sample, (k,), [sample.limits], pace, pace.seconds), maxlen=0)
        points: list[Point] = []
        deque(self._try(view, sample, k, search_list, pace, pace.seconds, points), maxlen=0)
        return points[0].as_recall(k)

    def points(self, view: View, k: int, samples: int, threads: int) -> list[Recall]:
        """Measure the curve of a k without haste, keep it, and return its points."""
        return [point.as_recall(k) for point in self.measure(view, k, samples, float("inf"), threads).points]

    def due(self, view: View) -> tuple[int, ...]:
        """The k of which the background ought to make curves, together."""
        if self._failed or view.settings.recall_target == 0 or len(view.pending):
            return ()
        wanted = [k for k in sorted({*ALWAYS, *self._asked, *self._curves}) if not scans(view.head.live, k, k)]
        return tuple(k for k in wanted if (curve := self._fitting(view, k)) is None or not curve.thorough)

    def step(self, view: View) -> bool:
        """Go on measuring in the background for a few milliseconds; True when curves have been completed."""
        try:
            return self._step(view)
        except Exception:
            log.exception("recall could not be measured in the background; it will not be tried again")
            self._failed, self._job = True, None
            return False

    def _step(self, view: View) -> bool:
        if self._job is not None and (view.head.rows > 1.1 * self._job[0].head.rows or len(view.pending)):
            self._job = None  # so much has come meanwhile that it is better begun anew
        if self._job is None:
            ks = self.due(view)
            if not ks:
                return False
            pace = _Pace(self._helpers, 0, PATIENT_SECONDS)
            self._job = (view, pace, self._measure(view, ks, SAMPLES, pace, lambda curve: None))
        _, pace, job = self._job
        before, stop = time.monotonic(), time.monotonic() + SLICE_SECONDS
        for _ in job:
            now = time.monotonic()
            pace.spent += now - before
            before = now
            if now > stop:
                return False
        self._job = None
        return True

    def stop(self) -> None:
        """Let go of what is in work, and of the views that it has seen."""
        self._job = None
        self._usual = (None, {})

    def _measure(
        self, view: View, ks: tuple[int, ...], samples: int, pace: _Pace, keep: Callable[[Curve], None]
    ) -> Iterator[None]:
        """Measure the curves of several k with one pass over the rows; yields every few milliseconds."""
        sample = _draw(view, samples, CURVE_SEED)
        limits = [np.full(len(sample.ids), np.nan) for _ in ks]
        yield from self._compare(view, sample, ks, limits, pace, pace.seconds / 2)
        for number, (k, limit) in enumerate(zip(ks, limits, strict=True), 1):
            known = _Sample(sample.ids, sample.queries, limit).known()
            points: list[Point] = []
            until = pace.used() + (pace.seconds - pace.used()) / (len(ks) - number + 1)
            length, complete = k, False
            while not complete:
                half = (pace.used() + until) / 2  # so that there is always time for a longer one
                yield from self._try(view, known, k, length, pace, half, points)
                sure = points[-1].recall >= (SURE if length < LONG else ENOUGH)
                if sure or length >= LONGEST or until - pace.used() < LEFT * pace.seconds:
                    break
                length = min(max(length + 1, round(k * STEP ** len(points))), LONGEST)
                complete = scans(view.head.live, k, length)
            head = view.head
            curve = Curve(
                k, head.live, head.rows, head.dead, _walk_of(view), complete, pace.seconds > QUICK_SECONDS,
                tuple(points),
            )  # fmt: skip
            with self._keeping:
                self._replace({**self._curves, k: curve})
            log.info("measured recall@%d of %d lists with %d queries", k, len(points), len(known.ids))
            keep(curve)

    def _compare(
        self, view: View, sample: _Sample, ks: tuple[int, ...], limits: list[Float64s], pace: _Pace, until: float
    ) -> Iterator[None]:
        """Find the distance of the true k-th neighbour of each row of a sample, itself left out, for several k."""
        seconds = view.live.rows * view.settings.dim * SECONDS_PER_COMPONENT
        block = int(max(1, min(BLOCK, BLOCK_SECONDS / seconds)))

        def compare(start: int, stop: int) -> Iterator[None]:
            most = max(ks) + 1
            heaps = np.full((stop - start, most), np.uint64(0xFFFFFFFFFFFFFFFF))
            counts = np.zeros(stop - start, np.int64)
            aimed = sample.queries[start:stop]
            if view.metric != IP:
                aimed = np.empty((stop - start, view.settings.dim + 1), np.float32)
                aim_batch(view.rows, view.metric, sample.queries[start:stop], aimed)
            step = int(SLICE_SECONDS / ((stop - start) * view.settings.dim * SECONDS_PER_VALUE))
            step = max(64, step // self._helpers.grain())
            stored = view.rows if view.disk is None else view.disk.in_order(view.rows)
            for first in range(0, view.live.rows, step):
                rows = np.arange(first, min(first + step, view.live.rows), dtype=np.uint32)
                if len(view.pending):
                    rows = rows[~np.isin(rows, view.pending)]
                scan(stored, view.live, view.metric, aimed, rows, heaps, counts)
                if view.disk is not None:
                    view.disk.release(first, first + step)
                self._helpers.between()
                yield
            found = unpacked(np.sort(heaps, axis=1), view.live.rows)
            own = found.ids == sample.ids[start:stop, None]
            own[~own.any(axis=1), -1] = True  # so many equal rows come before it that it is not among the nearest
            others = found.distances[~own].reshape(stop - start, most - 1)
            for k, limit in zip(ks, limits, strict=True):
                limit[start:stop] = others[:, k - 1]

        return pace.run(compare, len(sample.ids), block, until)

    def _try(
        self, view: View, sample: _Sample, k: int, search_list: int, pace: _Pace, until: float, points: list[Point]
    ) -> Iterator[None]:
        """Walk with one list for every row of a sample."""
        count = len(sample.ids)
        shares, work, taken = np.full(count, np.nan), np.zeros(count), np.zeros(count)
        limits = sample.limits + TIE * np.abs(sample.limits)

        def walk(start: int, stop: int) -> Iterator[None]:
            results = Results(np.empty((1, k), np.uint32), np.empty((1, k), np.float32), np.zeros((1, INFO), np.int64))
            for at in range(start, stop):
                began = time.perf_counter()
                query = sample.queries[at : at + 1]
                walked = self._searcher.walk_without(view, query, search_list, int(sample.ids[at]), results)
                taken[at] = time.perf_counter() - began
                shares[at] = np.count_nonzero(results.distances[0] <= limits[at]) / k if walked else 1.0
                work[at] = results.info[0, DISTANCES]
                yield

        # On one thread: several that return to Python after every walk wait for each other, and where processors are
        # busy for the scheduler as well (63 s instead of 4 s).
        yield from pace.run(walk, count, BLOCK, until, threads=1)
        done = ~np.isnan(shares)
        points.append(Point.of(search_list, shares[done], float(work[done].mean()), float(np.median(taken[done]))))


def _walk_of(view: View) -> str:
    """What decides about the recall of a list beside the rows and their edges."""
    codes = "none" if view.codes is None else f"{view.codes.bits}/{len(view.codes.signs)}"
    if view.codes is not None and len(view.codes.starts) > 1:
        codes = f"{len(view.codes.starts) - 1} tables/{view.codes.slack:.6g}, book {view.book >> 32}"
    elif view.codes is not None and view.codes.signs.shape[1] < view.settings.dim:
        codes = f"first {view.codes.signs.shape[1]}/{view.codes.slack:.6g}"
    return f"{codes}, disk" if view.codes is not None and view.disk is not None else f"{codes}, beam {view.beam_width}"


def _draw(view: View, count: int, seed: int) -> _Sample:
    """Live linked rows at random, none twice; the same ones for the same rows."""
    random = np.random.default_rng((seed, view.head.rows, view.head.dead))
    found: UInt32s = np.empty(0, np.uint32)
    for _ in range(DRAWS if 4 * count < view.head.live else 0):
        drawn = random.integers(0, view.live.rows, 2 * count).astype(np.uint32)
        found = np.concatenate((found, drawn[_usable(view, drawn)]))
        found = found[np.sort(np.unique(found, return_index=True)[1])]
        if len(found) >= count:
            break
    else:  # few are live, or most of them are wanted
        every = np.arange(view.live.rows, dtype=np.uint32)
        found = random.permutation(every[_usable(view, every)])
    ids = found[:count].copy()
    queries = np.empty((len(ids), view.settings.dim), np.float32)
    decode_rows(view.rows, ids, queries)
    if view.disk is not None:
        view.disk.release(0, view.live.rows)
    return _Sample(ids, queries, np.full(len(ids), np.nan))


def _usable(view: View, ids: UInt32s) -> NDArray[np.bool_]:
    """Which ids are live and in the graph."""
    state = view.live.state[ids]
    snapshot = view.live.snapshot
    alive = (state[:, 0] - np.uint64(1) < snapshot) & (state[:, 1] - np.uint64(1) >= snapshot)
    linked = view.graph.edges[ids, LIFELINE] != 0
    usable: NDArray[np.bool_] = alive & linked & ~np.isin(ids, view.pending)
    return usable
