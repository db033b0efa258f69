"""The log of `corenn bench run`, read back: its lines by what was measured, and the newest run of each system.

A log may have been cut off, be older than a field, or hold several runs; what a line lacks is told as unknown.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from ..errors import InvalidArgumentError
from .curve import bracket, curves, interpolate
from .log import FILE, KINDS

Line: TypeAlias = dict[str, Any]
TARGETS = (0.9, 0.95, 0.99)  # where a log names none


@dataclass(frozen=True, slots=True, order=True)
class Setting:
    """What must be the same for figures to stand beside each other. 0 and "" where a line does not say."""

    dataset: str
    n: int
    dim: int
    metric: str
    k: int
    threads: int
    build_threads: int

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> Setting:
        """That of a line."""
        told = line.get("dataset")
        data = told if isinstance(told, dict) else {"name": told}
        n, dim, k, threads, build_threads = (
            int(number(line.get(name)) or 0) for name in ("n", "dim", "k", "threads", "build_threads")
        )
        return cls(str(data.get("name") or ""), n, dim, str(data.get("metric") or ""), k, threads, build_threads)

    @property
    def slug(self) -> str:
        """Short, for names of files."""
        stem = self.dataset.rpartition("/")[2].rpartition(".")[0] or self.dataset or "data"
        name = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in stem)
        return f"{name}-n{self.n}-k{self.k}-t{self.threads}"

    def __str__(self) -> str:
        rows = f"{self.n:,} × {self.dim}" if self.n else "unknown size"
        return f"{self.dataset or 'unknown data'}, {rows}, k = {self.k}, {_threads(self.threads)}"


def _threads(count: int) -> str:
    return f"{count} thread{'' if count == 1 else 's'}"


@dataclass(frozen=True, slots=True)
class Entry:
    """A system, as it was asked for, in one run.

    points: operating points with a recall and a speed, in the order of the log. targets: by recall. failures: what went
    wrong. facts: what does not depend on the point, such as the build.
    """

    label: str
    system: str
    run: str
    points: tuple[Line, ...] = ()
    targets: Mapping[float, Line] = field(default_factory=dict)
    failures: tuple[Line, ...] = ()
    facts: Line = field(default_factory=dict)

    @property
    def commit(self) -> str | None:
        """Commit of CoreNN that ran it."""
        told = self.facts.get("commit")
        return None if told is None else str(told)

    @property
    def version(self) -> str | None:
        """Version of the system."""
        told = self.facts.get("version")
        return None if told is None else str(told)

    def number(self, name: str) -> float | None:
        """A figure of the system as a whole, such as build_seconds; None if it was not measured."""
        return number(self.facts.get(name))

    @property
    def frontier(self) -> list[Line]:
        """The points that no other beats in both recall and speed, by rising recall."""
        best: list[Line] = []
        for point in sorted(self.points, key=lambda point: (-point["recall"], -point["qps"])):
            if not best or point["qps"] > best[-1]["qps"]:
                best.append(point)
        return best[::-1]


def number(value: Any) -> float | None:
    """`value` if it is a finite number, else None."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None


def read(paths: Iterable[Path]) -> tuple[list[Line], int]:
    """The lines of several logs, and how many could not be read (a line cut off, or of an unknown kind).

    Args:
        paths: files of JSON lines, or folders that hold a runs.jsonl.

    Raises:
        InvalidArgumentError: for a path that is neither, and if there is no line in any.
    """
    lines: list[Line] = []
    unread = 0
    files = [log_file(path) for path in paths]
    for file in files:
        for text in file.read_text("utf-8", errors="replace").splitlines():
            line = _parsed(text)
            if line is not None:
                lines.append(line)
            elif text.strip():
                unread += 1
    if not lines:
        raise InvalidArgumentError(f"{', '.join(map(str, files))}: no run in the log; make one with corenn bench run")
    return lines, unread


def log_file(path: Path) -> Path:
    """The log at `path`.

    Raises:
        InvalidArgumentError: if there is none.
    """
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise InvalidArgumentError(f"{path}: no log here; give a folder with a {FILE}, or such a file")
    return file


def _parsed(text: str) -> Line | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    if not isinstance(line, dict) or not line.get("system") or line.setdefault("kind", "point") not in KINDS:
        return None
    return line


def settings(lines: Sequence[Line]) -> dict[Setting, list[Line]]:
    """The lines by setting, ordered by it."""
    found: dict[Setting, list[Line]] = {}
    for line in lines:
        found.setdefault(Setting.of(line), []).append(line)
    return dict(sorted(found.items()))


def file_names(every: Iterable[Setting]) -> dict[Setting, str]:
    """The slug of each, with a number where another setting has the same: they may differ in what it does not say."""
    found: dict[Setting, str] = {}
    for setting in every:
        same = sum(other.slug == setting.slug for other in found)
        found[setting] = f"{setting.slug}-{same + 1}" if same else setting.slug
    return found


def entries(lines: Sequence[Line]) -> list[Entry]:
    """Every system in every run, oldest first."""
    found: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        found.setdefault((str(line.get("label") or line["system"]), str(line.get("run") or "")), []).append(line)
    newest = {key: max(str(line.get("time") or "") for line in group) for key, group in found.items()}
    return [_entry(*key, found[key]) for key in sorted(found, key=lambda key: newest[key])]


def latest(lines: Sequence[Line]) -> tuple[list[Entry], int]:
    """Every system in its newest run, in the order of their labels, and how many older ones were left out."""
    every = entries(lines)
    newest = {entry.label: entry for entry in every}
    return [newest[label] for label in sorted(newest)], len(every) - len(newest)


def _entry(label: str, run: str, lines: Sequence[Line]) -> Entry:
    points = [line for line in lines if line["kind"] == "point" and _measured(line)]
    told = [line for line in lines if line["kind"] == "target" and number(line.get("target")) is not None]
    targets = {float(line["target"]): line for line in told}
    if points and not targets:
        targets = {target: reached(points, target) for target in TARGETS}
    failed = tuple(line for line in lines if line["kind"] == "failure")
    facts = {name: value for line in lines for name, value in line.items() if value is not None}
    return Entry(label, str(lines[-1]["system"]), run, tuple(points), targets, failed, facts)


def _measured(line: Line) -> bool:
    recall, qps = number(line.get("recall")), number(line.get("qps"))
    return recall is not None and qps is not None and 0 <= recall <= 1 and qps > 0


# --- speed between points ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spot:
    """A point of a curve."""

    recall: float
    line: Line


def by_curve(points: Sequence[Line]) -> list[list[Spot]]:
    """The points by all their query-time parameters but the last; each such curve by rising recall."""
    params = [point.get("query_params") or point.get("params") or {} for point in points]
    found = [[Spot(float(points[at]["recall"]), points[at]) for at in places] for places in curves(params)]
    return [sorted(line, key=lambda spot: spot.recall) for line in found]


def repetitions_of(point: Line) -> list[float]:
    """Queries per second of each repetition of a point."""
    runs = [rate for each in point.get("qps_runs") or [] if (rate := number(each)) and rate > 0]
    return runs or [float(point["qps"])]


def reached(points: Sequence[Line], target: float) -> Line:
    """What a line of kind target would say, for logs that have none."""
    near = [spots for line in by_curve(points) if (spots := bracket(line, target))]
    if not near:
        best = max(float(point["recall"]) for point in points)
        return {"target": target, "reached": False, "at_least": False, "recall": best, "qps": None}

    def speed(spots: Sequence[Spot], pick: Callable[[list[float]], float]) -> float:
        return interpolate(spots, [pick(repetitions_of(spot.line)) for spot in spots], target)

    spots = max(near, key=lambda spots: speed(spots, max))
    at_least = len(spots) == 1 and spots[0].recall > target
    return {
        "target": target, "reached": True, "at_least": at_least, "recall": spots[0].recall if at_least else target,
        "qps": speed(spots, max), "qps_low": speed(spots, min),
        "between": [spot.line.get("query_params") or spot.line.get("params") or {} for spot in spots],
    }  # fmt: skip
