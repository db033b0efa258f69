"""Systems on disk that are searched in a process which cannot have more memory than it was given.

Each is built without a limit, unless it knows one of its own, and then opened again and again, each time in a new
process held to what it needs for an index of a few rows, and the limit beyond that. The pages of its files are dropped
from the cache before each phase, and before each pass of all queries that is timed.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np

from . import memory
from .cage import Cage
from .curve import curves, explore
from .process import Fault, Process
from .spec import Spec
from .subject import Subject
from .systems.base import allocated

PAGE = 4096
WARM_QUERIES = 32
SETTLE_SECONDS = 600.0
BRIEF_SECONDS = 20.0
FEW = 2_000  # rows, of which an index is made to see what a process takes by itself
HALF = 0.5  # of the speed of the best curve seen: a slower one is left


@dataclass(frozen=True, slots=True)
class Plan:
    """How systems are held and asked.

    limit: bytes beyond what a process needs by itself. k, recall: neighbours, and how many of them are
    enough. cores: to be used. passes, pass_seconds: of each timing at least. build_timeout, timeout: seconds for a
    build and for any other request. pythons: other interpreters by name of system. groups: use control groups.
    """

    limit: int
    k: int
    recall: float
    cores: int
    pass_seconds: float
    passes: int
    build_timeout: float
    timeout: float
    pythons: dict[str, Path] = field(default_factory=dict)
    groups: bool = True


@dataclass(slots=True)
class Phase:
    """One process under the limit: what it answered, and what that took. Per query but for the last two.

    qps: the median of all passes; resident: the most beyond an idle process, since it began.
    """

    threads: int
    qps: float
    passes: int
    read_bytes: float
    major_faults: float
    resident: int
    kind: str


@dataclass(slots=True)
class Searched:
    """What was found out about one system. points: what was tried on the way, with its recall."""

    label: str
    version: str | None
    build_seconds: float
    disk_bytes: int
    idle: int
    params: dict[str, Any]
    recall: float
    settle_seconds: float
    points: list[dict[str, Any]]
    work: dict[str, float]
    phases: list[Phase]
    notes: list[str] = field(default_factory=list)

    @property
    def one(self) -> Phase:
        """On one thread."""
        return self.phases[0]

    @property
    def all(self) -> Phase:
        """On all, with as many threads as were fastest."""
        return max(self.phases[1:], key=lambda phase: phase.qps)

    @property
    def resident(self) -> int:
        """The most that any phase has held beyond an idle process."""
        return max(phase.resident for phase in self.phases)


class Held:
    """One system, from its build to its figures. Each method may raise Fault."""

    def __init__(self, spec: Spec, plan: Plan, subject: Subject, folder: Path) -> None:
        self.spec, self.plan, self.subject = spec, plan, subject
        self.folder = folder
        self.log = folder / "log"
        self._files = folder / "files"
        self._note = folder / "built.json"  # written when the build is through
        self._idle = self._held = 0

    def measure(self, threads: tuple[int, ...], tell: Callable[[str], None]) -> Searched:
        """Build, unless the folder holds what was built before, find the hastiest setting with the recall, and time it
        on so many threads each.
        """
        if self._note.exists():
            tell(f"{self.spec.label} was built before")
            version, built = json.loads(self._note.read_text())
        else:
            self._files.mkdir(parents=True)
            tell(f"building {self.spec.label}")
            version, built = self._build()
            self._note.write_text(json.dumps([version, built]))
        self._weigh()
        tell(f"searching {self.spec.label} within {self.plan.limit / 1e6:,.0f} MB")
        params, recall, settled, points, first = self._explore()
        phases: list[Phase] = []
        work: dict[str, float] = {}
        for count in threads:
            phase, told = self._time(params, count)
            phases.append(phase)
            work = work or told
        phases[0].resident = max(phases[0].resident, first)
        return Searched(
            self.spec.label, version, built, allocated(self._files), self._idle, params, recall, settled, points, work,
            phases, list(self.spec.system.notes),
        )  # fmt: skip

    def _build(self) -> tuple[str | None, float]:
        with self._process(None, self.plan.cores) as (process, version):
            built = process.ask("build", self.plan.build_timeout, metric=self.subject.metric, threads=self.plan.cores)
            process.ask("close", self.plan.timeout)
        return version, built["seconds"]

    def _weigh(self) -> None:
        """What a process needs that has built and searched a few rows: resident, and as the limit counts it."""
        rows, folder = self.folder / "few.npy", self.folder / "few"
        np.save(rows, self.subject.base[:FEW])
        rmtree(folder, ignore_errors=True)
        folder.mkdir()
        with (
            Cage(None, groups=self.plan.groups) as cage,
            self._process(cage, self.plan.cores, folder, rows) as (process, _),
        ):
            process.ask("build", self.plan.build_timeout, metric=self.subject.metric, threads=self.plan.cores)
            process.ask("close", self.plan.timeout)
            self._open(process)
            process.ask("close", self.plan.timeout)
            self._idle = process.ask("toll", self.plan.timeout)["resident"]
            self._held = cage.held(process.pid)

    def _open(self, process: Process) -> None:
        grid = process.ask("grid", self.plan.timeout, k=self.plan.k)
        process.ask(
            "open", self.plan.timeout, dim=self.subject.base.shape[1], metric=self.subject.metric,
            params=grid[len(grid) // 2], k=self.plan.k,
        )  # fmt: skip

    @contextmanager
    def _process(
        self, cage: Cage | None, threads: int, folder: Path | None = None, rows: Path | None = None
    ) -> Iterator[tuple[Process, str | None]]:
        python = self.plan.pythons.get(self.spec.label, self.plan.pythons.get(self.spec.name))
        # One value in all processes: kernels are cached by it, and one that compiled them would need far more memory.
        environment = {**self.spec.system.environment, "NUMBA_NUM_THREADS": str(self.plan.cores)}
        process = Process(self.log, threads, environment, python, self.folder, cage.prefix if cage else ())
        try:
            with process:
                started = process.ask(
                    "start", self.plan.timeout, system=self.spec.name, options=self.spec.options, threads=threads,
                    folder=str(folder or self._files), base=str(rows or self.subject.base_file),
                    queries=str(self.subject.queries_file),
                )  # fmt: skip
                yield process, started["version"]
        except Fault as fault:
            if cage is not None and cage.kills():
                raise Fault(fault.stage, "crashed", f"killed for want of memory: {fault.message}") from None
            raise

    @contextmanager
    def _opened(self, threads: int, settle: float) -> Iterator[tuple[Process, str, float]]:
        """A process under the limit that has opened what was built, and has nothing left to do by itself."""
        memory.forget(self._files)
        reserved = allocated(self._files)
        with (
            Cage(self._held + self.plan.limit, reserved=reserved, groups=self.plan.groups) as cage,
            self._process(cage, threads) as (process, _),
        ):
            process.ask("confine", self.plan.timeout, threads=min(threads, self.plan.cores))
            process.ask("toll", self.plan.timeout, again=True)
            self._open(process)
            took = process.ask("settle", self.plan.timeout, at_most=settle)["seconds"]
            yield process, cage.kind, took
            process.ask("close", self.plan.timeout)

    def _explore(self) -> tuple[dict[str, Any], float, float, list[dict[str, Any]], int]:
        """The fastest setting that has the recall, as far as one pass each tells; and the most that was resident.

        Raises:
            Fault: if none has it.
        """
        out, count = self.folder / "ids.npy", len(self.subject.queries)
        tried: list[dict[str, Any]] = []
        with self._opened(self.plan.cores, SETTLE_SECONDS) as (process, _, settled):
            grid = process.ask("grid", self.plan.timeout, k=self.plan.k)
            enough: list[dict[str, Any]] = []
            for line in curves(grid):

                def recall_at(step: int, line: list[int] = line) -> float:
                    params = grid[line[step]]
                    memory.forget(self._files)
                    took = process.ask(
                        "query", self.plan.timeout, params=params, k=self.plan.k, count=count, least=0, out=str(out)
                    )
                    recall = self.subject.recalls(np.load(out))[0]
                    tried.append({"params": params, "recall": recall, "qps": count / took["seconds"]})
                    return recall

                before = len(tried)
                explore(len(line), (self.plan.recall,), recall_at)
                own = [each for each in tried[before:] if each["recall"] >= self.plan.recall]
                best = max((each["qps"] for each in enough), default=0.0)
                enough += own
                if own and max(each["qps"] for each in own) < HALF * best:
                    break
            resident = process.ask("toll", self.plan.timeout)["peak"] - self._idle
        if not enough:
            most = max(each["recall"] for each in tried)
            raise Fault("query", "failed", f"no setting has recall {self.plan.recall:g}; the highest was {most:.4f}")
        chosen = max(enough, key=lambda each: each["qps"])
        line = next(line for line in curves(grid) if any(grid[at] == chosen["params"] for at in line))
        rivals = [each for each in enough if any(grid[at] == each["params"] for at in line)]
        chosen = min(rivals, key=lambda each: grid.index(each["params"]))  # the hastiest of its curve
        return chosen["params"], chosen["recall"], settled, tried, resident

    def _time(self, params: dict[str, Any], threads: int) -> tuple[Phase, dict[str, float]]:
        count = len(self.subject.queries)
        with self._opened(threads, BRIEF_SECONDS) as (process, kind, _):

            def ask(number: int) -> float:
                took = process.ask(
                    "query", self.plan.timeout, params=params, k=self.plan.k, count=number, least=0, out=None
                )
                return float(took["seconds"])

            ask(min(WARM_QUERIES, count))
            taken: list[float] = []
            read = faults = 0.0
            while len(taken) < self.plan.passes or sum(taken) < self.plan.pass_seconds:
                memory.forget(self._files)
                before = process.ask("toll", self.plan.timeout)
                taken.append(ask(count))
                after = process.ask("toll", self.plan.timeout)
                read += (after["read_bytes"] or math.nan) - (before["read_bytes"] or 0)
                faults += after["major_faults"] - before["major_faults"]
            asked = len(taken) * count
            resident = process.ask("toll", self.plan.timeout)["peak"] - self._idle
            work = process.ask("work", self.plan.timeout, params=params, k=self.plan.k, count=count)
        qps = count / statistics.median(taken)
        return Phase(threads, qps, len(taken), read / asked, faults / asked, resident, kind), work
