"""One system in a run: its process, what is known of it, and its operating points."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from .curve import curves, explore
from .process import Fault, Process
from .spec import Spec
from .subject import Subject

FEWEST = 50  # queries per repetition of even the slowest system
PROBES = 3
LATENCIES = 1_000  # queries asked one by one at each operating point, at most
LEAST_SECONDS = 0.2  # a repetition asks its queries again until it has lasted so long
START_SECONDS = 120.0
BEHIND = 2.0

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """How a run goes.

    k: neighbours. threads: of a search; build_threads: of a build. recalls: the targets. repetitions: of each operating
    point. build_timeout, query_timeout: seconds for a build and for any other request. point_seconds: a slow system is
    asked only as many queries as it answers in about this time. pythons: interpreters by system, where not our own.
    """

    k: int
    threads: int
    build_threads: int
    recalls: tuple[float, ...]
    repetitions: int
    build_timeout: float
    query_timeout: float
    point_seconds: float
    pythons: dict[str, Path] = field(default_factory=dict)


@dataclass(slots=True)
class Point:
    """What was measured at one setting of the query-time parameters. first_qps: of the warm-up, as a hint only."""

    params: dict[str, Any]
    recall: float
    recall_1: float
    recall_1_at_k: float
    first_qps: float = math.nan
    qps_runs: list[float] = field(default_factory=list)
    cores_runs: list[float] = field(default_factory=list)
    latency_ms: dict[str, float] | None = None
    work: dict[str, float] = field(default_factory=dict)

    @property
    def qps(self) -> float:
        """The best repetition."""
        return max(self.qps_runs)


class Contestant:
    """A system that is built, swept and timed, one request at a time. Each method may raise Fault."""

    def __init__(self, spec: Spec, plan: Plan, subject: Subject, folder: Path, logs: Path) -> None:
        self.spec = spec
        self.plan = plan
        self.subject = subject
        self.facts: dict[str, Any] = {}
        self.notes = list(spec.system.notes)
        self.errors: list[str] = []
        self.count = len(subject.queries)
        self.points: list[Point] = []
        self.curves: list[list[Point]] = []
        self._grid: list[dict[str, Any]] = []
        self._folder = folder
        self._log = logs / f"{spec.file_name}.log"
        self._process: Process | None = None

    # --- building -----------------------------------------------------------------------------------------------------

    def build(self) -> None:
        """Start, index all rows; a system on disk is then opened again in a process of its own."""
        (self._folder / "files").mkdir(parents=True)
        started = self._start(self.plan.threads if self.spec.system.pools == "search" else self.plan.build_threads)
        self.facts["version"] = started["version"]
        built = self._ask("build", self.plan.build_timeout, metric=self.subject.metric, threads=self.plan.build_threads)
        self.facts["build_seconds"] = built["seconds"]
        self.facts["rss"] = {"start": built["start"], "peak": built["peak"], "steady": None, "anonymous": None}
        if self.spec.system.on_disk:
            self._reopen()
        self._weigh(self._ask("sizes"))
        self._grid = self._ask("grid", k=self.plan.k)
        self._ask("confine", threads=self.plan.threads)

    def _start(self, pools: int) -> dict[str, Any]:
        system, plan = self.spec.system, self.plan
        python = plan.pythons.get(self.spec.label, plan.pythons.get(self.spec.name))
        self._process = Process(self._log, pools, dict(system.environment), python, self._folder)
        started: dict[str, Any] = self._ask(
            "start", START_SECONDS, system=self.spec.name, options=self.spec.options, threads=plan.threads,
            folder=str(self._folder / "files"), base=str(self.subject.base_file),
            queries=str(self.subject.queries_file),
            fields=None if self.subject.fields_file is None else str(self.subject.fields_file),
        )  # fmt: skip
        return started

    def _reopen(self) -> None:
        grid = self._ask("grid", k=self.plan.k)
        self._ask("close", self.plan.build_timeout)
        self.close()
        started = self._start(self.plan.threads)
        self._ask("confine", threads=self.plan.threads)
        opened = self._ask(
            "open", self.plan.build_timeout, dim=self.subject.base.shape[1], metric=self.subject.metric,
            params=grid[len(grid) // 2], k=self.plan.k,
        )  # fmt: skip
        self.facts |= {"import_seconds": started["import_seconds"], **opened}

    def _weigh(self, sizes: dict[str, Any]) -> None:
        """Bytes, as the system tells them or as its process has grown."""
        told = sizes["memory_bytes"]
        if told is None and sizes["growth"] is not None and not self.spec.system.on_disk:
            self.notes.append("index_bytes: anonymous memory by which the process has grown in the build")
            told = sizes["growth"]
        self.facts |= {
            "index_bytes": told,
            **{name: sizes[name] for name in ("memory_parts", "disk_bytes", "disk_parts")},
        }
        self.facts["rss"] |= {"steady": sizes["resident"], "anonymous": sizes["anonymous"]}

    # --- searching ----------------------------------------------------------------------------------------------------

    def explore(self) -> None:
        """Find the settings that bracket the targets; every point visited has its recall then."""
        self._decide_count()
        found: dict[int, Point] = {}
        for line in curves(self._grid):

            def recall_at(step: int, line: list[int] = line) -> float:
                found[line[step]] = self._first(self._grid[line[step]])
                return found[line[step]].recall

            visited = explore(len(line), self.plan.recalls, recall_at)
            self.curves.append([found[line[step]] for step in visited])
        if len(self.curves) > 1:
            self.curves = worth_timing(self.curves)
        self.points = [point for line in self.curves for point in line]

    def _decide_count(self) -> None:
        """A system that needs longer than `point_seconds` for all queries is asked fewer.

        A few single calls tell how many it can certainly be asked, and a call with those how many it can: one query of
        many in a call may take a tenth of one alone.
        """
        params = self._grid[len(self._grid) // 2]
        out = str(self._folder / "probe.npy")
        self._alone(params, min(PROBES, self.count), out)
        alone = self._affordable(float(np.load(out).min()))
        if alone < self.count:
            took = self._ask("query", params=params, k=self.plan.k, count=alone, least=0, out=None)
            self.count = self._affordable(took["seconds"] / alone)
        if self.count < len(self.subject.queries):
            self.notes.append(f"slow: asked the first {self.count:,} of {len(self.subject.queries):,} queries")

    def _affordable(self, seconds: float) -> int:
        """How many queries it can be asked if one takes so long."""
        affordable = math.ceil(self.plan.point_seconds / seconds) if seconds else self.count
        return min(self.count, max(affordable, FEWEST))

    def _first(self, params: dict[str, Any]) -> Point:
        """Recall at one setting, and a warm-up of it."""
        out = self._folder / "ids.npy"
        took = self._ask("query", params=params, k=self.plan.k, count=self.count, least=0, out=str(out))
        return Point(params, *self.subject.recalls(np.load(out)), first_qps=self.count / took["seconds"])

    def time(self, point: Point) -> None:
        """One repetition at one point."""
        took = self._ask(
            "query", params=point.params, k=self.plan.k, count=self.count, least=LEAST_SECONDS, out=None
        )  # fmt: skip
        point.qps_runs.append(self.count / took["seconds"])
        point.cores_runs.append(took["cpu_seconds"] / took["seconds"])

    def finish(self, point: Point) -> None:
        """Latency of single calls at one point, and the work that a query takes."""
        out, count = self._folder / "latency.npy", min(LATENCIES, self.count)
        self._alone(point.params, count, str(out))
        point.latency_ms = summary(np.load(out))
        try:
            point.work = self._ask("work", params=point.params, k=self.plan.k, count=count)
        except Fault as fault:
            if fault.reason not in ("failed", "wrong"):
                raise
            self.errors.append(f"work: {fault.message}")

    def _alone(self, params: dict[str, Any], count: int, out: str) -> None:
        """Ask queries one call each, as many as time allows."""
        self._ask(
            "latency", params=params, k=self.plan.k, count=count, out=out, least=FEWEST, most=self.plan.point_seconds
        )  # fmt: skip

    # --- the process --------------------------------------------------------------------------------------------------

    def _ask(self, do: str, seconds: float | None = None, **arguments: Any) -> Any:
        assert self._process is not None
        return self._process.ask(do, self.plan.query_timeout if seconds is None else seconds, **arguments)

    def close(self) -> None:
        """Let the process end."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def kill(self) -> None:
        """End the process at once."""
        if self._process is not None:
            self._process.kill()
            self._process = None


def worth_timing(lines: Sequence[Sequence[Point]]) -> list[list[Point]]:
    """Of several curves of one system, the points that are not far behind: a warm-up tells hopeless ones for certain.

    A point is hopeless if another has at least its recall at more than BEHIND times its speed. It goes, unless the next
    point of its curve stays: without the hastier neighbour there is nothing to interpolate from.
    """
    everything = [point for line in lines for point in line]

    def hopeless(point: Point) -> bool:
        return any(each.recall >= point.recall and each.first_qps > BEHIND * point.first_qps for each in everything)

    found = []
    for line in lines:
        stays = [*(not hopeless(point) for point in line), False]
        kept = [point for point, pair in zip(line, pairwise(stays), strict=True) if any(pair)]
        found += [kept] if kept else []
    return found


def summary(seconds: Any) -> dict[str, float]:
    """Mean, percentiles and maximum of durations, in milliseconds."""
    shares = {"p50": 50, "p90": 90, "p95": 95, "p99": 99, "p999": 99.9, "max": 100}
    found = {name: float(np.percentile(seconds, share)) for name, share in shares.items()}
    rounded = {name: round(value * 1e3, 5) for name, value in {"mean": float(seconds.mean()), **found}.items()}
    return {**rounded, "count": len(seconds)}
