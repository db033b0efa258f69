"""One database against known neighbours: recall, speed, latency, sizes and memory. What `corenn eval` measures."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import MAX_SEARCH_LIST
from ..types import AnyArray, Explain, Float32s, Hits
from . import memory, probe
from .curve import Point, bracket, interpolate, sweep
from .judge import Judge, Recalls
from .load import Arrivals, Load, arrivals, closed_loop, highest_rate, open_loop
from .timing import turns

if TYPE_CHECKING:
    from ..database import CoreNN

BATCH = 1_000
LEAST_SECONDS = 0.1  # a repetition asks its queries again until it has lasted so long
SINGLES = 2_000  # calls of a closed loop at most
FEWEST_ARRIVALS = 100
STEPS = (1, 1.2, 1.4, 1.7, 2, 2.4, 2.8, 3.4, 4, 4.8, 5.6, 6.8, 8, 9.6, 11.2, 13.6, 16, 19.2, 22.4, 27.2, 32, 40, 51.2,
         64, 80, 102.4, 128, 160, 204.8)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A database, and the questions to it.

    queries: float32 of shape (queries, dim). judge: knows their true neighbours. search_list, threads: of every query;
    None is the default of the database, and all cores.
    """

    db: CoreNN
    queries: Float32s
    judge: Judge
    k: int
    search_list: int | None = None
    threads: int | None = None

    def run(self, search_list: int | None = None, threads: int | None = None) -> Any:
        """All queries in one call."""
        return self.db.query(
            self.queries, k=self.k, search_list=search_list or self.search_list, threads=threads or self.threads
        )

    def ask(self, number: int) -> Hits:
        """One query, the `number`-th as often as they are gone through."""
        query = self.queries[number % len(self.queries)]
        hits: Hits = self.db.query(query, k=self.k, search_list=self.search_list, threads=self.threads)
        return hits

    def point(self, search_list: int | None = None) -> Point:
        """Recall and work at a search list; not timed."""
        recalls, works = self.answers(search_list)
        return Point(works[0].search_list, recalls.recall, _mean(works, "distances"), _mean(works, "hops"))

    def answers(self, search_list: int | None = None) -> tuple[Recalls, list[Explain]]:
        """What the answers to all queries are worth, and the work behind each."""
        hits = self.db.query(
            self.queries, k=self.k, search_list=search_list or self.search_list, threads=self.threads, explain=True
        )
        return self.judge.recalls(hits), [each.explain for each in hits if each.explain is not None]


def insert(
    db: CoreNN, blocks: Iterable[tuple[int, AnyArray]], progress: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """Insert blocks (number of the first row, vectors) under their row numbers; rates, and the peak of memory.

    Rows are on disk and searchable when their insert returns; the build ends when all are linked into the graph.
    """
    memory.reset_peak()
    rows = 0
    began = time.perf_counter()
    for start, block in blocks:
        for first in range(0, len(block), BATCH):
            batch = np.ascontiguousarray(block[first : first + BATCH], np.float32)
            db.insert(list(range(start + first, start + first + len(batch))), batch)
            rows += len(batch)
            if progress is not None:
                progress(len(batch))
    inserted = time.perf_counter() - began
    while db.stats().pending:
        time.sleep(0.001)
    built = time.perf_counter() - began
    return {
        "inserted": rows, "insert_s": round(inserted, 3), "insert_rows_per_s": round(rows / inserted),
        "build_s": round(built, 3), "build_rows_per_s": round(rows / built), "build_peak_rss": memory.peak(),
    }  # fmt: skip


def calls(subject: Evaluation) -> int:
    """How many single queries a closed loop makes: all, or 2,000."""
    return min(len(subject.queries), SINGLES)


def figures(subject: Evaluation, repeat: int) -> dict[str, Any]:
    """Recall and work of all queries, speed of one call with all of them, latency of calls with one each."""
    recalls, works = subject.answers()
    (taken,) = turns(repeat, subject.run, least=LEAST_SECONDS)
    rates = [round(len(subject.queries) / seconds, 1) for seconds in taken]
    alone = closed_loop(subject.ask, calls(subject))
    stats = subject.db.stats()
    return {
        "rows": stats.rows, "queries": len(subject.queries), "k": subject.k,
        "search_list": works[0].search_list, "threads": subject.threads,
        **recalls.as_dict(), "recall_by": subject.judge.by,
        "qps": max(rates), "qps_slowest": min(rates), "qps_runs": rates, "repeat": repeat,
        **alone.latency.percentiles_ms(50, 90, 95, 99, 99.9), "max_ms": round(alone.latency.greatest * 1e3, 4),
        "mean_ms": round(alone.latency.mean * 1e3, 4), "calls": len(alone.latency),
        "distances_per_query": round(_mean(works, "distances"), 1), "hops_per_query": round(_mean(works, "hops"), 1),
        "memory": stats.memory, "disk_bytes": stats.disk_bytes,
    }  # fmt: skip


def targets(
    subject: Evaluation, recalls: Sequence[float], repeat: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Queries per second at exactly each of `recalls`, and the operating points that each lies between.

    qps_low, qps_high: from the slowest and the fastest of the repetitions. at_least: the shortest list allowed, k, has
    more recall than asked for already.
    """
    grid = sorted({min(int(step * subject.k), MAX_SEARCH_LIST) for step in STEPS})
    points = sweep(subject, grid, max(recalls))
    near = {point.search_list: point for target in recalls for point in bracket(points, target)}
    runs = [partial(subject.run, search_list) for search_list in near]
    rates = {at: [len(subject.queries) / one for one in taken]
             for at, taken in zip(near, turns(repeat, *runs, least=LEAST_SECONDS), strict=True)}  # fmt: skip
    told = [_target(target, bracket(points, target), rates, points[-1].recall) for target in recalls]
    return told, [_operating(subject, search_list, rates[search_list]) for search_list in sorted(near)]


def _operating(subject: Evaluation, search_list: int, rates: Sequence[float]) -> dict[str, Any]:
    """What there is to say about a search list that was timed."""
    recalls, works = subject.answers(search_list)
    return {
        "search_list": search_list, **recalls.as_dict(), "qps": round(max(rates), 1),
        "qps_runs": [round(rate, 1) for rate in rates],
        "distances_per_query": round(_mean(works, "distances"), 1), "hops_per_query": round(_mean(works, "hops"), 1),
    }  # fmt: skip


def _target(target: float, points: list[Point], rates: dict[int, list[float]], best: float) -> dict[str, Any]:
    if not points:
        return {"target": target, "reached": False, "recall": round(best, 6), "qps": None}

    def at_target(values: Sequence[float]) -> float:
        return round(interpolate(points, values, target), 1)

    at_least = len(points) == 1 and points[0].recall > target
    return {
        "target": target, "reached": True, "at_least": at_least,
        "recall": round(points[0].recall, 6) if at_least else target,
        "search_lists": [point.search_list for point in points],
        "qps": at_target([max(rates[point.search_list]) for point in points]),
        "qps_low": at_target([min(rates[point.search_list]) for point in points]),
        "qps_high": at_target([max(rates[point.search_list]) for point in points]),
        "distances_per_query": at_target([point.distances or 0 for point in points]),
        "hops_per_query": at_target([point.hops or 0 for point in points]),
    }  # fmt: skip


def scaling(subject: Evaluation, most: int, repeat: int) -> list[dict[str, Any]]:
    """Queries per second with 1, 2, 4 … `most` threads: of one call with all queries, and of as many clients."""
    counts = [2**power for power in range(most.bit_length()) if 2**power < most] + [most]
    batches = turns(repeat, *(partial(subject.run, threads=count) for count in counts), least=LEAST_SECONDS)
    clients = turns(repeat, *(partial(closed_loop, subject.ask, calls(subject), count) for count in counts))
    return [
        {"threads": count, "qps": round(len(subject.queries) / min(batch), 1),
         "clients_qps": round(calls(subject) / min(client), 1)}
        for count, batch, client in zip(counts, batches, clients, strict=True)
    ]  # fmt: skip


def offered(subject: Evaluation, rate: float, seconds: float, clients: int, kind: Arrivals) -> Load:
    """An open loop of single queries: `rate` arrivals per second for so many seconds, and at least 100 in all."""
    return open_loop(subject.ask, arrivals(rate, max(round(rate * seconds), FEWEST_ARRIVALS), kind), clients)


def held_rate(
    subject: Evaluation, bound_ms: float, start: float, seconds: float, clients: int, kind: Arrivals
) -> dict[str, Any]:
    """The highest rate of single queries whose p99, counted from the arrival, stays within `bound_ms`."""
    offer = partial(offered, subject, seconds=seconds, clients=clients, kind=kind)
    best, tried = highest_rate(offer, 99, bound_ms / 1e3, start)
    return {
        "p99_ms": bound_ms,
        "rate": None if best is None else round(best.rate or 0, 1),
        "load": None if best is None else best.as_dict(),
        "tried": [{"rate": round(load.rate or 0, 1), **load.latency.percentiles_ms(99)} for load in tried],
    }


def fresh(path: Path, queries: Float32s, k: int, search_list: int | None) -> dict[str, Any]:
    """What only a new process can tell: opening, the first answer, and memory once all queries are answered.

    rss: resident bytes afterwards; rss_peak: the most there were. pages_per_query: of opening it and asking
    all queries once, beginning with nothing of it in memory: faults, pages mapped; read, pages that came from the disk.
    """
    with tempfile.TemporaryDirectory(prefix="corenn-eval-") as folder:
        file = Path(folder) / "queries.npy"
        np.save(file, queries)
        told, taken = probe.child("serve", path, file, k, search_list or 0)
        pages, _ = probe.child("pages", path, file, k, search_list or 0)
    return {**told, "first_answer_s": round(taken, 4), "pages_per_query": pages}


def _mean(works: Sequence[Explain], name: str) -> float:
    return float(np.mean([getattr(work, name) for work in works]))
