"""The same queries served by us and by others, in turns: how many per second, how late, how well and at what cost.

One server runs at a time, with its generator beside it on the same cores.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

from .http_load import Measured
from .process import Fault
from .served_peers import Peer, processor_seconds

Serving: TypeAlias = Callable[[], AbstractContextManager[tuple[int, int]]]
WARM_SECONDS = 2.0


@dataclass(slots=True)
class Entrant:
    """One server, or one way of asking it.

    serving: serves it meanwhile, giving port and process. recall: of what it serves, asked at a port. load: the command
    line of the generator for a port and so many seconds. about: what else is to be told of it.
    """

    name: str
    generator: str
    serving: Serving
    recall: Callable[[int], float]
    load: Callable[[int, float], list[str]]
    about: dict[str, Any] = field(default_factory=dict)
    turns: list[Measured] = field(default_factory=list)
    spent: list[float] = field(default_factory=list)  # processor seconds of the server for each answer
    reached: float = 0.0

    def turn(self, seconds: float) -> None:
        """Start the server, let it get warm, and measure one load."""
        with self.serving() as (port, pid):
            if not self.turns:
                self.reached = self.recall(port)
            generated(self.load(port, min(WARM_SECONDS, seconds)))
            before = processor_seconds(pid)
            found = generated(self.load(port, seconds))
            spent = processor_seconds(pid) - before
        if found.refused:
            raise Fault("query", "wrong", f"{found.refused:,} of {found.answers:,} requests were refused")
        self.turns.append(found)
        self.spent.append(spent / found.answers)

    @property
    def per_second(self) -> float:
        """Of the turn in the middle."""
        return median(each.per_second for each in self.turns)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "name": self.name, "generator": self.generator, "per_second": self.per_second,
            "p50": median(each.p50 for each in self.turns), "p99": median(each.p99 for each in self.turns),
            "recall": self.reached, "processor_ms": 1e3 * median(self.spent),
            "generator_busy": median(each.busy for each in self.turns), **self.about,
            "turns": [asdict(each) for each in self.turns],
        }  # fmt: skip


def generated(command: Sequence[str]) -> Measured:
    """What a generator in a process of its own has measured: a module and its arguments."""
    done = subprocess.run([sys.executable, "-m", *command], check=True, capture_output=True)
    return Measured(**json.loads(done.stdout))


def entrant(peer: Peer, queries: Path, connections: int, recall: float) -> Entrant:
    """A server of others, built and tuned.

    Raises:
        Fault: if it is not installed, or fails.
    """
    about = peer.prepare(recall)
    return Entrant(
        peer.name, peer.generator, peer.serving, lambda port: peer.recall(peer.ask(port, peer.sample.queries)),
        lambda port, seconds: peer.load(port, queries, connections, seconds), about,
    )  # fmt: skip


def race(entrants: Sequence[Entrant], turns: int, seconds: float, failed: dict[str, str]) -> list[Entrant]:
    """Let all take turns; those that have got through, the fastest first. failed: is told of the others."""
    for _ in range(turns):
        for each in entrants:
            if each.name not in failed:
                try:
                    each.turn(seconds)
                except (Fault, OSError, RuntimeError, subprocess.SubprocessError) as error:
                    failed[each.name] = str(error)
    through = [each for each in entrants if each.name not in failed]
    return sorted(through, key=lambda each: each.per_second, reverse=True)


def print_race(entrants: Sequence[Entrant], failed: dict[str, str]) -> None:
    """The table, and below it who is not in it."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for column in ("", "queries/s", "p50 ms", "p99 ms", "recall", "CPU ms", "version", "effort", "generator"):
        table.add_column(column, justify="left" if column in ("", "version", "generator") else "right")
    for each in entrants:
        told = each.as_dict()
        table.add_row(
            each.name, f"{each.per_second:,.0f}", f"{told['p50']:.2f}", f"{told['p99']:.2f}", f"{each.reached:.4f}",
            f"{told['processor_ms']:.3f}", told.get("version", ""), str(told.get("effort", "")), each.generator,
        )  # fmt: skip
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    for name, why in failed.items():
        console.print(f"{name}: {why}", highlight=False, markup=False)
