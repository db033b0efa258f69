"""Rows of figures with their goals, as a table and as JSON."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from math import isnan
from typing import Any

from .machine import commit, cores, machine, version_of

PACKAGES = ("corenn", "numpy", "numba", "llvmlite", "rocksdict", "hnswlib")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure. `goal` is the least that is enough, or with `at_most` the most; `peer` is hnswlib's figure."""

    name: str
    figure: float
    goal: float
    unit: str = ""
    at_most: bool = False
    peer: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Figure over the peer's."""
        return self.figure / self.peer if self.peer else None

    @property
    def ok(self) -> bool:
        """True if the goal is reached; never for a figure that could not be measured (NaN)."""
        return self.figure <= self.goal if self.at_most else self.figure >= self.goal

    def as_dict(self) -> dict[str, Any]:
        """Plain dictionary, ready for JSON: what could not be measured is None."""
        values = {**asdict(self), "ratio": self.ratio, "ok": self.ok}
        return {name: None if isinstance(value, float) and isnan(value) else value for name, value in values.items()}


def print_rows(rows: Sequence[Row]) -> None:
    """The table of issue and documentation, on stdout."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    beside = ("hnswlib", "ratio") if any(row.peer is not None for row in rows) else ()
    for column in ("", "figure", "goal", *beside, "", "note"):
        table.add_column(column, justify="right" if column in ("figure", "goal", *beside) else "left")
    for row in rows:
        goal = f"{'≤' if row.at_most else '≥'} {shown(row.goal)}"
        peer = ("–", "–") if row.peer is None or row.ratio is None else (shown(row.peer), f"{row.ratio:.2f} ×")
        table.add_row(
            row.name,
            f"{shown(row.figure)} {row.unit}",
            goal,
            *peer[: len(beside)],
            "ok" if row.ok else "missed",
            row.note,
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def shown(figure: float) -> str:
    """A figure with at least three digits, and thousands apart."""
    return f"{figure:,.0f}" if abs(figure) >= 1_000 else f"{figure:.4g}"


def circumstances() -> dict[str, Any]:
    """When, where and with what the figures were taken."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": machine()["cpu"],
        "cores": cores(),
        "versions": {name: version_of(name) for name in PACKAGES},
    }
