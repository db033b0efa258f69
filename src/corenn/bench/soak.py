"""Resident memory over a long life: `python -m corenn.bench.soak --data FILE.hdf5`.

A database on disk of constant size, whose rows are deleted and inserted while queries go on; a row deleted, a row
inserted and a query are one operation each.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from . import memory
from .curve import K
from .live import Plan, prepared
from .live_rows import MB, Bench
from .report import Row, circumstances, print_rows
from .turnover import UPDATE, Turnover, shuffled, wait

QUERIES = 10  # per batch of a hundred updates
SAMPLES = 200
FLAT = 1.02  # as much may the end be above the middle


@dataclass(frozen=True, slots=True)
class Reading:
    """After so many operations. resident, anonymous: bytes of this process, NaN where the system does not tell."""

    operations: int
    resident: float
    anonymous: float
    tombstones: int
    disk_bytes: int


def soak(bench: Bench, operations: int) -> list[Reading]:
    """Do so many operations; what was read on the way, at regular distances, and at the start."""
    ring = shuffled(bench.pool, bench.live)
    with bench.create("soak") as db:
        turnover = Turnover(db, ring)
        turnover.fill()
        readings, done, asked = [_reading(turnover, 0)], 0, 0
        while done < operations:
            turnover.replace(UPDATE)
            for _ in range(QUERIES):
                db.query(bench.queries[asked % len(bench.queries)], k=K)
                asked += 1
            done += 2 * UPDATE + QUERIES
            if done >= operations * len(readings) / SAMPLES:
                readings.append(_reading(turnover, done))
        wait(db)
    return readings


def _reading(turnover: Turnover, done: int) -> Reading:
    stats = turnover.db.stats()
    resident, anonymous = (math.nan if each is None else each for each in (memory.resident(), memory.anonymous()))
    return Reading(done, resident, anonymous, stats.tombstones, stats.disk_bytes)


def rows_of(readings: Sequence[Reading]) -> list[Row]:
    """Resident and anonymous memory at the end over that half way, and what is on disk."""
    last = readings[-1].operations
    points = [next(each for each in readings if each.operations >= share * last) for share in (0.1, 0.5, 1.0)]
    return [
        _flat(f"resident memory after {last:,} operations over half", "resident", readings, points),
        _flat("… anonymous", "anonymous", readings, points),
        _flat("… files", "disk_bytes", readings, points),
    ]


def _flat(name: str, part: str, readings: Sequence[Reading], points: Sequence[Reading]) -> Row:
    tenth, half, end = (getattr(point, part) / MB for point in points)
    later = [reading for reading in readings if reading.operations >= points[1].operations]
    slope = np.polyfit([each.operations / 1e6 for each in later], [getattr(each, part) / MB for each in later], 1)[0]
    return Row(
        name=name, figure=end / half, unit="×", goal=FLAT, at_most=True,
        note=f"{tenth:,.1f} MB at 10 %, {half:,.1f} at 50 %, {end:,.1f} at 100 %; {slope:+,.1f} MB per million from "
        f"half on; {points[-1].tombstones:,} tombstones",
    )  # fmt: skip


def main(given: Sequence[str] | None = None) -> None:
    """Measure, print the table, and write it."""
    parser = argparse.ArgumentParser(
        prog="python -m corenn.bench.soak", description="Resident memory over a long life."
    )
    parser.add_argument("--data", type=Path, required=True, help="HDF5 file in the layout of ann-benchmarks")
    parser.add_argument("--rows", type=int, default=20_000, help="rows live at a time (default: %(default)s)")
    parser.add_argument(
        "--operations", type=int, default=1_000_000, help="rows deleted, inserted and asked for (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, help="write figures, readings and circumstances to this file")
    parser.add_argument("--dir", type=Path, help="folder for the database (default: that of temporary files)")
    asked = parser.parse_args(given)
    if asked.operations < 1:
        parser.error(f"--operations {asked.operations}: must be at least 1")
    with tempfile.TemporaryDirectory(prefix="corenn-bench-", dir=asked.dir) as folder:
        bench = prepared(asked.data, Plan.of(asked.rows, quick=False), Path(folder))
        print(f"{asked.operations:,} operations on {bench.live:,} rows", file=sys.stderr, flush=True)
        readings = soak(bench, asked.operations)
    rows = rows_of(readings)
    print_rows(rows)
    if asked.json:
        about = {"data": asked.data.name, "rows": bench.live, "dim": bench.pool.shape[1], "metric": bench.metric}
        results = {"results": [row.as_dict() for row in rows], "readings": list(map(asdict, readings))}
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(json.dumps({**circumstances(), **about, **results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
