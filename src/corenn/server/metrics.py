"""What is measured, under the names that Prometheus asks for. Each server has a registry of its own."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.utils import floatToGoString

from ..durations import BOUNDS
from ..types import Recall, Stats, Timings
from .spread import Spreads
from .visit import Visit

TEXT = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = BOUNDS
MANY = tuple(4**n for n in range(12))


class Metrics:
    """The figures of one server. Updated by the event loop alone."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        info = Gauge("corenn_app_info", "The version that runs.", ["name", "version"], registry=registry)
        info.labels("corenn", version("corenn")).set(1)
        self._requests = Counter(
            "corenn_requests", "Requests, by what they were answered.", ["method", "endpoint", "status"],
            registry=registry,
        )  # fmt: skip
        self._took = Spreads(
            "corenn_request_duration_seconds", "From the headers of a request to its answer.", ["endpoint"],
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self._query = Spreads(
            "corenn_query_duration_seconds", "Time of a query in the engine, with the others of its batch.",
            buckets=SECONDS, registry=registry,
        ).labels()  # fmt: skip
        self._batch = Spreads(
            "corenn_query_batch_size", "Queries that were answered together.", buckets=MANY[:7], registry=registry
        ).labels()
        self._distances = Spreads(
            "corenn_query_distance_computations", "Distances of a query.", buckets=MANY, registry=registry
        ).labels()
        self._hops = Spreads(
            "corenn_query_hops", "Nodes that a query expands.", buckets=MANY[:8], registry=registry
        ).labels()
        self._pages = Spreads(
            "corenn_query_page_reads", "Pages of 4 KiB that a query reads.", buckets=(0, *MANY[:8]), registry=registry
        ).labels()
        self._write = Spreads(
            "corenn_write_duration_seconds", "From handing in a write until it is committed and linked.",
            ["operation"], buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self._series: dict[tuple[str, str, int], tuple[Any, Any]] = {}

    def served(self, visit: Visit) -> None:
        """A request has been answered."""
        name = (visit.method, visit.route or "none", visit.sent)
        series = self._series.get(name)
        if series is None:
            counter = self._requests.labels(name[0] if visit.route else "other", name[1], str(name[2]))
            series = counter, self._took.labels(name[1])
            if visit.route:
                self._series[name] = series
        series[0].inc()
        series[1].observe(time.monotonic() - visit.started)

    def searched(self, found: Sequence[Any], seconds: float) -> None:
        """Queries have been answered together. found: the hits of each, or why there are none."""
        every = [each.explain for hits in found if not isinstance(hits, Exception) for each in hits]
        explains = [each for each in every if each is not None]
        if not explains:
            return
        self._batch.observe(len(explains))
        self._query.observe(seconds, len(explains))
        for each in explains:
            self._distances.observe(each.distances)
            self._hops.observe(each.hops)
            self._pages.observe(each.pages)

    def wrote(self, operation: str, seconds: float) -> None:
        """A write has been committed."""
        self._write.labels(operation).observe(seconds)

    def text(self, now: Present) -> bytes:
        """Everything, with what is to be told just now."""
        registry = CollectorRegistry()
        registry.register(_Now(now))
        return generate_latest(self.registry) + generate_latest(registry)


@dataclass(frozen=True, slots=True)
class Present:
    """What there is just now. states: of the open collections, with the recall that was measured last. queues: what
    waits, by collection and queue. collections: open or not. jobs: that are under way.
    """

    states: Mapping[str, tuple[Stats, Recall | None]]
    queues: Mapping[str, Mapping[str, int]]
    collections: int
    jobs: int


class _Now:
    """Figures that are asked for when they are wanted."""

    GAUGES: Mapping[str, tuple[str, str]] = {
        "corenn_collection_rows": ("rows", "Live rows."),
        "corenn_unindexed_vectors": ("pending", "Committed rows that are not linked yet, and are scanned."),
        "corenn_tombstones": ("tombstones", "Deleted rows whose ids cannot be used again yet."),
        "corenn_repair_backlog": ("repair_backlog", "Deleted rows that edges may still lead to."),
        "corenn_disk_backlog": ("disk_backlog", "Rows that have yet to be written to disk.slab."),
        "corenn_codes_backlog": ("codes_backlog", "Rows that have yet to get codes."),
        "corenn_reclaimable_bytes": ("reclaimable_bytes", "What a compaction would give back."),
        "corenn_disk_bytes": ("disk_bytes", "Allocated on disk."),
        "corenn_mapped_bytes": ("mapped_bytes", "Pages of files that have become resident."),
        "corenn_memory_limit_bytes": ("memory_limit", "What the collection may take of memory, 0 for no limit."),
        "corenn_readers": ("readers", "Other processes that read the collection."),
        "corenn_commit": ("commit", "Number of the last commit."),
    }
    TIMINGS: Mapping[str, tuple[str, str]] = {
        "corenn_commit_duration_seconds": ("commits", "Of a commit, which several writes may share, to when it holds."),
        "corenn_fsync_duration_seconds": ("syncs", "Of bringing a file, or the log of the metadata, to the disk."),
        "corenn_compaction_duration_seconds": ("compactions", "Of a compaction, writes that it has let pass included."),
    }

    def __init__(self, now: Present) -> None:
        self._now = now

    def collect(self) -> Iterator[Metric]:
        """The figures, as the library asks for them."""
        now = self._now
        yield GaugeMetricFamily("corenn_collections", "Collections, open or not.", value=now.collections)
        yield GaugeMetricFamily("corenn_open_collections", "Collections that are open.", value=len(now.states))
        yield GaugeMetricFamily("corenn_jobs", "Snapshots, compactions and the like under way.", value=now.jobs)
        for name, (field, meaning) in self.GAUGES.items():
            family = GaugeMetricFamily(name, meaning, labels=["collection"])
            for collection, (stats, _) in now.states.items():
                family.add_metric([collection], getattr(stats, field))
            yield family
        for name, (field, meaning) in self.TIMINGS.items():
            timings = HistogramMetricFamily(name, meaning, labels=["collection"])
            for collection, (stats, _) in now.states.items():
                told: Timings = getattr(stats, field)
                timings.add_metric([collection], _cumulated(told), told.seconds)
            yield timings
        yield from self._others()
        yield from _of_process()

    def _others(self) -> Iterator[Metric]:
        compacted = CounterMetricFamily(
            "corenn_compaction_rows", "Ids of deleted rows that compactions have given back.", labels=["collection"]
        )
        memory = GaugeMetricFamily("corenn_memory_bytes", "Of the rows in use, by part.", labels=["collection", "part"])
        recall = GaugeMetricFamily(
            "corenn_recall_estimate", "recall@10 as it was measured last: by a call of recall, or --measure-recall.",
            labels=["collection"],
        )  # fmt: skip
        for collection, (stats, measured) in self._now.states.items():
            compacted.add_metric([collection], stats.compacted_rows)
            for part, size in stats.memory.items():
                memory.add_metric([collection, part], size)
            if measured is not None:
                recall.add_metric([collection], measured.recall)
        depth = GaugeMetricFamily("corenn_queue_depth", "What waits, by queue.", labels=["collection", "queue"])
        for collection, waiting in self._now.queues.items():
            for queue, count in waiting.items():
                depth.add_metric([collection, queue], count)
        yield from (compacted, memory, recall, depth)


def _cumulated(told: Timings) -> list[tuple[str, float]]:
    """Buckets as Prometheus has them: by upper bound, each with those below it."""
    bounds = [*map(floatToGoString, BOUNDS), "+Inf"]
    return list(zip(bounds, map(float, accumulate(told.counts)), strict=True))


def _of_process() -> Iterator[Metric]:
    """What the library does not tell of a process: which pages it had to wait for."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    major, minor = "process_major_page_faults", "process_minor_page_faults"
    yield CounterMetricFamily(major, "Page faults that had to read from the disk.", value=used.ru_majflt)
    yield CounterMetricFamily(minor, "Page faults that had not.", value=used.ru_minflt)
