"""Systems that answer filtered queries, in turns: what each finds in a cell, and how fast.

Every system is built alone, in a process of its own. Then cell by cell, each raises its search parameter until its
recall is enough, and all that do are timed in turns. Queries are asked one by one, each with its filter, as they come
in use.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ..types import AnyArray, Int64s
from .conditions import matching
from .contestant import Contestant, Plan
from .curve import explore
from .filtered_data import Asked, Cell
from .process import Fault
from .recall import MISSING, once
from .spec import Spec

FEWEST = 5  # queries asked of even the slowest system, which tries fewer settings, too
COARSE = 5
LEAST_SECONDS = 0.1  # a repetition asks its queries again until it has lasted so long
TOO_LATE = "out of time"
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Limits:
    """target: recall that is enough. repetitions: of each timing. cell_seconds: about so long a slow system is asked.

    system_seconds: after which a system is asked no further cells; its build has a limit of its own in the plan.
    """

    target: float
    repetitions: int
    cell_seconds: float
    system_seconds: float


@dataclass(frozen=True, slots=True)
class Judgement:
    """What answers are worth. matches, returned, wanted: means per query; wanted is min(k, matches).

    short: share of queries with fewer than wanted. strangers: rows in answers that do not match.
    """

    recall: float
    matches: float
    returned: float
    wanted: float
    short: float
    strangers: int


@dataclass(slots=True)
class Answered:
    """What one system did with one cell.

    making: seconds to put the filter of a query into what the system takes, as `qps_runs` do not hold them. error: why
    there is no answer; the rest is as it was before.
    """

    system: str
    label: str
    cell: Cell
    queries: int = 0
    params: dict[str, Any] = field(default_factory=dict)
    judged: Judgement | None = None
    making: float = 0.0
    qps_runs: list[float] = field(default_factory=list)
    plans: list[str] = field(default_factory=list)
    error: str = ""

    @property
    def recall(self) -> float:
        """Recall; NaN without answers."""
        return self.judged.recall if self.judged else math.nan

    @property
    def matches(self) -> float:
        """Rows that match, per query; NaN without answers."""
        return self.judged.matches if self.judged else math.nan

    @property
    def qps(self) -> float:
        """The median of all repetitions; NaN without one."""
        return median(self.qps_runs) if self.qps_runs else math.nan

    @property
    def qps_making(self) -> float:
        """The same where every query has its set of rows made for it."""
        return 1 / (1 / self.qps + self.making)


def judge(ids: Int64s, cell: Cell, asked: Asked, k: int) -> Judgement:
    """Compare answers (queries, k), MISSING where there are fewer, with the exact ones, by distance.

    A row as near as the last one that is wanted counts; one that does not match, or stands there twice, does not.
    """
    found = once(ids)
    hits = wanted = returned = short = strangers = total = 0
    for at, row in enumerate(found):
        where, distances = cell.wheres[at], asked.distances[at]
        met = np.ones(len(distances), bool) if where is None else matching(asked.fields, where)
        there = row[row != MISSING]
        right = there[met[there]]
        want = min(k, int(met.sum()))
        hits += _as_near(distances, met, right, want)
        wanted, returned, total = wanted + want, returned + len(there), total + int(met.sum())
        short, strangers = short + (len(right) < want), strangers + len(there) - len(right)
    count = len(found)
    recall = hits / wanted if wanted else float(not strangers)
    return Judgement(recall, total / count, returned / count, wanted / count, short / count, strangers)


def _as_near(distances: AnyArray, met: AnyArray, right: AnyArray, want: int) -> int:
    """How many of the rows `right` are as near as the `want`-th of all that match."""
    if not want:
        return 0
    last = float(np.partition(distances[met], want - 1)[want - 1])
    near = int(np.count_nonzero(distances[right] <= last + abs(last) * 1e-6 + 1e-9))
    return min(near, want)


class Filtering(Contestant):
    """A system that is asked cell by cell. Each method may raise Fault."""

    def __init__(self, spec: Spec, plan: Plan, asked: Asked, folder: Path, logs: Path, limits: Limits) -> None:
        super().__init__(spec, plan, asked.subject, folder, logs)
        self.asked = asked
        self.limits = limits
        self.spent = 0.0

    def build(self) -> None:
        """Index rows and fields."""
        super().build()
        self._further = self._ask("grid_within", k=self.plan.k)

    def search(self, cell: Cell) -> Answered:
        """Raise the parameter until the recall is enough: the least that does, or else the best, is to be timed."""
        began = time.monotonic()
        found: dict[int, Answered] = {}
        count = self._count(cell)
        settings = self._further if count > FEWEST else [*self._further[:-1:COARSE], self._further[-1]]

        def recall_at(step: int) -> float:
            found[step] = self._try(cell, settings[step], count)
            return found[step].recall

        explore(len(settings), (self.limits.target,), recall_at)
        enough = [step for step, each in found.items() if each.recall >= self.limits.target]
        best = max(found, key=lambda step: (found[step].recall, -step))
        self.spent += time.monotonic() - began
        return found[min(enough, default=best)]

    def _count(self, cell: Cell) -> int:
        """As many queries as there is time for, told by a few."""
        few = min(FEWEST, len(cell.wheres))
        params = self._further[len(self._further) // 2]
        took = self._ask("query_within", params=params, k=self.plan.k, wheres=cell.wheres[:few], least=0, out=None)
        affordable: int = math.ceil(self.limits.cell_seconds * few / max(took["seconds"], 1e-9))
        return min(max(affordable, few), len(cell.wheres))

    def _try(self, cell: Cell, params: dict[str, Any], count: int) -> Answered:
        out = self._folder / "within.npy"
        wheres = cell.wheres[:count]
        took = self._ask("query_within", params=params, k=self.plan.k, wheres=wheres, least=0, out=str(out))
        answered = Answered(self.spec.name, self.spec.label, cell, count, params)
        answered.making = took["making"] if self.spec.system.ready_made else 0.0
        answered.judged = judge(np.load(out), cell, self.asked, self.plan.k)
        if took["seconds"] > self.limits.cell_seconds:  # too slow to be asked again: this has to do
            answered.qps_runs.append(count / took["seconds"])
        return answered

    def time_again(self, answered: Answered) -> None:
        """One repetition."""
        wheres = answered.cell.wheres[: answered.queries]
        took = self._ask(
            "query_within", params=answered.params, k=self.plan.k, wheres=wheres, least=LEAST_SECONDS, out=None
        )
        self.spent += took["seconds"]
        answered.qps_runs.append(answered.queries / took["seconds"])

    def tell_plans(self, answered: Answered) -> None:
        """Which ways were taken."""
        wheres = answered.cell.wheres[: min(answered.queries, 20)]
        told = self._ask("plans", params=answered.params, k=self.plan.k, wheres=wheres)
        answered.plans = sorted({each for each in told if each})


class Race:
    """All systems on one data set. Used once, from one thread."""

    def __init__(
        self, specs: Sequence[Spec], plan: Plan, asked: Asked, work: Path, logs: Path, limits: Limits, tell: Tell
    ) -> None:
        self.asked, self.limits, self.tell = asked, limits, tell
        self.systems = [
            Filtering(spec, plan, asked, work / f"{at}-{spec.file_name}", logs, limits) for at, spec in enumerate(specs)
        ]
        self.answers: list[Answered] = []
        self.running: list[Filtering] = []

    def go(self) -> list[Answered]:
        """Build all, then ask cell by cell; what fails is reported, and the others go on."""
        try:
            for each in self.systems:
                self.tell(f"{each.spec.label}: building")
                try:
                    each.build()
                    self.running.append(each)
                except Fault as fault:
                    self._gone(each, fault)
            for cell in self.asked.cells:
                self.tell(f"{cell.kind}, {cell.share}")
                self._ask_all(cell)
        finally:
            for each in self.systems:
                each.kill()
        return self.answers

    def _ask_all(self, cell: Cell) -> None:
        answers = {each: answered for each in list(self.running) if (answered := self._search(each, cell)) is not None}
        timed = {each: answered for each, answered in answers.items() if not answered.qps_runs}
        for _ in range(self.limits.repetitions):
            for each, answered in timed.items():
                if not answered.error:
                    self._guard(each, answered, each.time_again)
        for each, answered in answers.items():
            if not answered.error:
                self._guard(each, answered, each.tell_plans)
        self.answers += answers.values()

    def _search(self, each: Filtering, cell: Cell) -> Answered | None:
        if each.spent > self.limits.system_seconds:
            return Answered(each.spec.name, each.spec.label, cell, error=TOO_LATE)
        answered = Answered(each.spec.name, each.spec.label, cell)
        try:
            return each.search(cell)
        except Fault as fault:
            self._failed(each, answered, fault)
            return answered

    def _guard(self, each: Filtering, answered: Answered, do: Callable[[Answered], None]) -> None:
        try:
            do(answered)
        except Fault as fault:
            self._failed(each, answered, fault)

    def _failed(self, each: Filtering, answered: Answered, fault: Fault) -> None:
        """A system that has raised goes on with the next cell; one that is gone does not."""
        answered.error = f"{fault.reason}: {fault.message}"
        if fault.reason not in ("failed", "wrong"):
            self._gone(each, fault)

    def _gone(self, each: Filtering, fault: Fault) -> None:
        each.errors.append(f"{fault.stage}: {fault.reason}: {fault.message}")
        self.tell(f"{each.spec.label}: {fault.reason} ({fault.stage}): {fault.message}")
        each.kill()
        if each in self.running:
            self.running.remove(each)
