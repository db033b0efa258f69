"""A run: every system built alone, then timed in turns, and the lines of the log.

Nothing else runs while a system builds. Then each system in turn runs one of its operating points, until all have run,
and that again for each repetition: what the machine does meanwhile hits all alike. A system that falls over is reported
and left behind. Ctrl-C ends a run; what was timed until then is written.
"""

from __future__ import annotations

import math
import secrets
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any

from .contestant import Contestant, Plan, Point
from .curve import bracket, interpolate
from .log import SCHEMA, Log
from .machine import commit, machine, versions
from .process import Fault
from .spec import Spec
from .subject import Source, Subject, prepare

Tell = Callable[[str], None]
BUSY = 0.5  # load per core before a run from which on others are in the way


class Run:
    """The systems of one run, and its log. Used once, from one thread."""

    def __init__(
        self,
        specs: Sequence[Spec],
        plan: Plan,
        subject: Subject,
        work: Path,
        log: Log,
        about: dict[str, Any],
        tell: Tell,
    ) -> None:
        """
        Args:
            specs: the systems, in the order of their turns.
            plan: how it goes.
            subject: the data.
            work: an empty folder for the files of the systems.
            log: where the lines go; the systems' standard errors go into a folder beside it.
            about: members of every line: what was asked for (`config`), and the machine as it was before.
            tell: is told what is going on.
        """
        self.plan = plan
        self.lines: list[dict[str, Any]] = []
        self._tell = tell
        self._log = log
        self._common = {
            "schema": SCHEMA, "run": secrets.token_hex(6), "commit": commit(), "versions": versions(),
            "dataset": subject.about, **about,
            "n": len(subject.base), "dim": subject.base.shape[1], "k": plan.k, "threads": plan.threads,
            "build_threads": plan.build_threads,
        }  # fmt: skip
        logs = log.path.parent / "logs"
        logs.mkdir(exist_ok=True)
        self._contestants = [
            Contestant(spec, plan, subject, work / f"{at}-{spec.file_name}", logs) for at, spec in enumerate(specs)
        ]
        self._running: list[Contestant] = []

    def go(self) -> None:
        """All of it."""
        load, cores = self._common["machine"]["load"], self._common["machine"]["cores"]
        if load is not None and load > BUSY * cores:
            self._tell(f"the machine is busy (load {load:g} on {cores} cores): do not trust figures taken now")
        try:
            for each in self._contestants:
                self._tell(f"{each.spec.label}: building")
                self._running.append(each)
                self._try(each, each.build)
            for each in list(self._running):
                self._tell(f"{each.spec.label}: looking for the settings that reach the recalls")
                self._try(each, each.explore)
            for repetition in range(self.plan.repetitions):
                self._tell(f"timing in turns, {repetition + 1} of {self.plan.repetitions}")
                self._in_turns(Contestant.time)
            self._tell("one query per call")
            self._in_turns(Contestant.finish)
        finally:
            for each in self._running:
                each.kill()
            for each in self._contestants:
                self._record(each)

    def _in_turns(self, do: Callable[[Contestant, Point], None]) -> None:
        """Each system's first point, then each system's second, and so on."""
        running = list(self._running)
        for step in zip_longest(*(each.points for each in running)):
            for each, point in zip(running, step, strict=True):
                if point is not None and each in self._running:
                    self._try(each, do, each, point)

    def _try(self, each: Contestant, do: Callable[..., None], *arguments: Any) -> None:
        """Do something with a system; if it cannot, write that down and go on without it."""
        try:
            do(*arguments)
        except Fault as fault:
            self._running.remove(each)
            each.kill()
            each.errors.append(f"{fault.stage}: {fault.reason}: {fault.message}")
            self._tell(f"{each.spec.label}: {fault.reason} ({fault.stage}): {fault.message}")
            told = {"stage": fault.stage, "reason": fault.reason, "message": fault.message}
            self._append("failure", each, {}, told)

    # --- lines --------------------------------------------------------------------------------------------------------

    def _record(self, each: Contestant) -> None:
        """The lines of a system: its points that were timed, then its targets."""
        timed = [point for point in each.points if point.qps_runs]
        short = sum(len(point.qps_runs) < self.plan.repetitions for point in timed)
        if short:
            each.notes.append(f"ended early: {short} of {len(timed)} points have fewer repetitions than asked for")
        for point in timed:
            self._append("point", each, point.params, _measured(point, each.count))
        for target in self.plan.recalls if timed else ():
            figures, params = reach([[p for p in line if p.qps_runs] for line in each.curves], target)
            self._append("target", each, params, figures)

    def _append(self, kind: str, each: Contestant, params: dict[str, Any], figures: dict[str, Any]) -> None:
        facts = {
            "version": None, "build_seconds": None, "index_bytes": None, "memory_parts": None, "disk_bytes": None,
            "disk_parts": None, "rss": None, "import_seconds": None, "open_seconds": None, "first_query_seconds": None,
            **each.facts,
        }  # fmt: skip
        seconds = facts["build_seconds"]
        built = each.spec.build_params
        line = {
            "kind": kind, "system": each.spec.name, "label": each.spec.label, **self._common, **facts,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "params": {**built, **params}, "build_params": built, "query_params": params,
            "build_rows_per_second": self._common["n"] / seconds if seconds else None,
            "evaluation": None, "notes": list(each.notes), "errors": list(each.errors), **figures,
        }  # fmt: skip
        self._log.append(line)
        self.lines.append(line)


def _measured(point: Point, queries: int) -> dict[str, Any]:
    best = point.qps_runs.index(point.qps)
    return {
        "recall": point.recall, "recall_1": point.recall_1, "recall_1_at_k": point.recall_1_at_k, "queries": queries,
        "qps": point.qps, "qps_runs": list(point.qps_runs),
        "qps_spread": (point.qps - min(point.qps_runs)) / point.qps, "cores_used": point.cores_runs[best],
        "latency_ms": point.latency_ms,
        "distances": point.work.get("distances"), "hops": point.work.get("hops"),
    }  # fmt: skip


def reach(lines: Sequence[Sequence[Point]], target: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """Speed at exactly a recall, on the best of several curves: members of a target line, and the setting beyond it.

    Args:
        lines: curves of timed points, each from hasty to thorough.
        target: the recall.
    """
    found = [near for line in lines if (near := bracket(line, target))]
    if not found:
        recall = max(point.recall for line in lines for point in line)
        return {
            "target": target, "reached": False, "at_least": False, "recall": recall, "qps": None, "qps_low": None,
            "latency_ms": None, "between": [],
        }, {}  # fmt: skip
    near = max(found, key=lambda points: interpolate(points, [point.qps for point in points], target))
    at_least = len(near) == 1 and near[0].recall > target
    return {
        "target": target, "reached": True, "at_least": at_least, "recall": near[0].recall if at_least else target,
        "qps": interpolate(near, [point.qps for point in near], target),
        "qps_low": interpolate(near, [min(point.qps_runs) for point in near], target),
        "latency_ms": _latency(near, target), "between": [point.params for point in near],
    }, near[-1].params  # fmt: skip


def _latency(near: Sequence[Point], target: float) -> dict[str, float] | None:
    told = [point.latency_ms for point in near if point.latency_ms is not None]
    if len(told) < len(near):
        return None
    values = {name: interpolate(near, [each[name] for each in told], target) for name in ("p50", "p99")}
    return None if any(map(math.isnan, values.values())) else values


def run(
    specs: Sequence[Spec], plan: Plan, source: Source, out: Path, *, count: int | None, queries: int,
    config: dict[str, Any], scratch: Path | None, tell: Tell,
) -> list[dict[str, Any]]:  # fmt: skip
    """Measure, and append to the log in `out`: the lines that were appended.

    Args:
        specs, plan, config: as of Run.
        source: the data.
        out: folder of the log; made if it is missing.
        count: rows to index; None for all. queries: to ask at most.
        scratch: folder for data and the systems' files, which are removed at the end; None for that of temporary files.
        tell: is told what is going on.
    """
    about = {"machine": machine(), "config": config}
    with Log(out) as log, tempfile.TemporaryDirectory(prefix="corenn-bench-", dir=scratch) as folder:
        subject = prepare(source, Path(folder), count, queries, plan.k, tell)
        race = Run(specs, plan, subject, Path(folder), log, about, tell)
        race.go()
        return race.lines
