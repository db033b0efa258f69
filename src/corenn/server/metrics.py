"""What is measured, under the names that Prometheus asks for. Each server has a registry of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.process_collector import ProcessCollector

from ..types import Recall, Stats
from .spread import Spreads
from .visit import Visit

TEXT = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1, 2, 4, 8, 16, 32)
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
            "corenn_commit_duration_seconds", "From handing in a write to its commit, which it may share.",
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

    def text(self, states: Mapping[str, tuple[Stats, Recall | None]], queues: Mapping[str, Mapping[str, int]]) -> bytes:
        """Everything, with what open collections and queues tell just now."""
        now = CollectorRegistry()
        now.register(_Now(states, queues))
        return generate_latest(self.registry) + generate_latest(now)


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
        "corenn_commit": ("commit", "Number of the last commit."),
    }

    def __init__(
        self, states: Mapping[str, tuple[Stats, Recall | None]], queues: Mapping[str, Mapping[str, int]]
    ) -> None:
        self._states, self._queues = states, queues

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The figures, as the library asks for them."""
        yield GaugeMetricFamily("corenn_open_collections", "Collections that are open.", value=len(self._states))
        for name, (field, meaning) in self.GAUGES.items():
            family = GaugeMetricFamily(name, meaning, labels=["collection"])
            for collection, (stats, _) in self._states.items():
                family.add_metric([collection], getattr(stats, field))
            yield family
        memory = GaugeMetricFamily("corenn_memory_bytes", "Of the rows in use, by part.", labels=["collection", "part"])
        recall = GaugeMetricFamily(
            "corenn_recall_estimate", "recall@10 as it was measured last, by a call of recall.", labels=["collection"]
        )
        for collection, (stats, measured) in self._states.items():
            for part, size in stats.memory.items():
                memory.add_metric([collection, part], size)
            if measured is not None:
                recall.add_metric([collection], measured.recall)
        depth = GaugeMetricFamily("corenn_queue_depth", "What waits, by queue.", labels=["collection", "queue"])
        for collection, waiting in self._queues.items():
            for queue, count in waiting.items():
                depth.add_metric([collection, queue], count)
        yield from (memory, recall, depth)
