"""The goal table of live data, in one run: `python -m corenn.bench.live --data FILE.hdf5`.

What becomes of recall, speed, space and latency in a database whose rows come and go for years. Every figure is taken
through the public interface, on disk. Half of the rows of the file are live at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..config import Settings
from ..warmup import warm
from .core import CORES
from .curve import K
from .live_rows import Bench, latency, reopening, replacing, space, sustained
from .report import Row, circumstances, print_rows
from .sample import load
from .turnover import clustered, shuffled

PARTS = ("replacing", "latency", "updates", "space", "reopening")


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything. rows: live at a time, out of twice as many. clusters: by which rows leave and come.

    times: that everything is replaced. turns: of each timing. load_seconds: of each load of queries. update_seconds:
    of updates at least. kills: of a process that updates, up to kill_seconds after its first call.
    """

    rows: int
    queries: int
    clusters: int
    times: int
    turns: int
    load_seconds: float
    update_seconds: float
    kills: int
    kill_seconds: float

    @classmethod
    def of(cls, rows: int, quick: bool) -> Plan:
        """The full measurement, or one small enough for a test."""
        if quick:
            return cls(min(rows, 1_500), 100, 10, 2, 2, 0.3, 1.0, 2, 0.3)
        return cls(rows, 1_000, 100, 10, 5, 60.0, 60.0, 5, 5.0)


def measure(plan: Plan, bench: Bench, parts: Sequence[str]) -> tuple[list[Row], dict[str, Any]]:
    """The rows of the parts asked for, and what was seen of the backlog while updates went on."""
    rows: list[Row] = []
    told: dict[str, Any] = {}
    random = shuffled(bench.pool, bench.live)
    if "replacing" in parts:
        for kind in ("clustered", "random"):
            _say(f"replacing everything {plan.times} times, {kind}")
            ring = random if kind == "random" else clustered(bench.pool, bench.live, bench.folder, plan.clusters)
            rows += replacing(bench, ring, kind, plan.times, plan.turns)
    if "latency" in parts:
        _say("asking beside updates")
        rows += latency(bench, random, plan.load_seconds)
    if "updates" in parts:
        _say("updating without end")
        made, moments = sustained(bench, random, plan.update_seconds, 2 * bench.live)
        rows += made
        told["updates"] = [asdict(moment) for moment in moments]
    if "space" in parts:
        _say("deleting and compacting")
        rows += space(bench)
    if "reopening" in parts:
        _say("killing and opening again")
        rows += reopening(bench, plan.kills, plan.kill_seconds)
    return rows, told


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m corenn.bench.live", description="The goal table of live data.")
    parser.add_argument("--data", type=Path, required=True, help="HDF5 file in the layout of ann-benchmarks")
    parser.add_argument(
        "--rows", type=int, default=100_000, help="rows live at a time, half of the file at most (default: %(default)s)"
    )
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (default: everything)"
    )
    parser.add_argument("--json", type=Path, help="write figures, goals, moments and circumstances to this file")
    parser.add_argument(
        "--quick", action="store_true", help="1,500 rows and seconds of load: tries the program, not the speed"
    )
    parser.add_argument("--dir", type=Path, help="folder for the databases (default: that of temporary files)")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    """Measure, print the table, and write it."""
    asked = _arguments(given)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    with tempfile.TemporaryDirectory(prefix="corenn-bench-", dir=asked.dir) as folder:
        bench = prepared(asked.data, Plan.of(asked.rows, asked.quick), Path(folder))
        rows, told = measure(Plan.of(bench.live, asked.quick), bench, asked.parts)
    print_rows(rows)
    if asked.json:
        about = {"data": asked.data.name, "rows": bench.live, "pool": len(bench.pool), "dim": bench.pool.shape[1]}
        about |= {"queries": len(bench.queries), "metric": bench.metric, "quick": asked.quick}
        written = {**circumstances(), **about, "results": [row.as_dict() for row in rows], **told}
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(json.dumps(written, indent=2, allow_nan=False) + "\n")


def prepared(file: Path, plan: Plan, folder: Path) -> Bench:
    """The rows and queries of a file; half of the rows live at a time if it has fewer than twice those asked for.

    Raises:
        ValueError: for a file of another layout.
    """
    import h5py

    with h5py.File(file) as opened:
        there = len(opened["train"]) if "train" in opened else plan.rows
    live = min(plan.rows, there // 2)
    sample = load(file, live, plan.queries, live, K)
    warm(Settings(dim=sample.base.shape[1], metric=sample.metric))
    return Bench(np.concatenate((sample.base, sample.spare)), live, sample.queries, sample.metric, folder)


if __name__ == "__main__":
    main()
