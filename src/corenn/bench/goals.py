"""The goal table of speed in memory: `python -m corenn.bench.goals --data FILE.hdf5`.

Every figure is taken through the public interface, on two threads to build and one to search. Speed beside every other
system is the business of `corenn bench run`; here hnswlib stands for them where two builds are compared in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ..config import Settings
from ..database import CoreNN
from ..warmup import warm
from .core import CORES, TARGETS, fill
from .curve import GRID, K, Ours, Peer, Point, bracket, interpolate, sweep
from .report import Row, circumstances, print_rows, shown
from .sample import Sample, load
from .timing import alternate, seconds

SIZES = (10_000, 100_000, 1_000_000)
BUILDS = 3
SPEED_TURNS = 5


def in_bulk(sample: Sample) -> CoreNN:
    """A database in memory, built in one call."""
    keys = [str(row) for row in range(len(sample.base))]
    return CoreNN.build(None, keys, sample.base, dim=sample.base.shape[1], metric=sample.metric, recall_target=0.0)


def inserted(sample: Sample) -> tuple[CoreNN, float]:
    """A database filled by inserts of 1,000 rows, and the seconds that took."""
    db = CoreNN.in_memory(dim=sample.base.shape[1], metric=sample.metric, recall_target=0.0)
    return db, seconds(partial(fill, db, sample, np.arange(len(sample.base))))


def with_hnswlib(sample: Sample) -> Peer:
    """An index of hnswlib with all rows."""
    peer = Peer.empty(sample)
    peer.index.add_items(sample.base, np.arange(len(sample.base)), num_threads=CORES)
    return peer


def builds(sample: Sample, repetitions: int) -> list[Row]:
    """Rows per second of a build in one call, and of inserts."""
    rows = len(sample.base)
    ours, peer = alternate(repetitions, lambda: in_bulk(sample), lambda: with_hnswlib(sample))
    live = min(inserted(sample)[1] for _ in range(repetitions))
    return [
        Row(name="build in one call", figure=rows / ours, unit="rows/s", goal=4 * rows / peer, peer=rows / peer,
            note=f"{ours:.2f} s against {peer:.2f}"),
        Row(name="inserts of 1,000 rows", figure=rows / live, unit="rows/s", goal=12_000, peer=rows / peer),
    ]  # fmt: skip


def searches(sample: Sample, repetitions: int) -> list[Row]:
    """Speed of what was built in one call over that of inserts and of hnswlib, and of two threads over one."""
    bulk, live, peer = Ours(in_bulk(sample), sample), Ours(inserted(sample)[0], sample), with_hnswlib(sample)
    points = [sweep(bulk), sweep(live), sweep(peer)]
    rows = []
    for target in TARGETS:
        near = [bracket(each, target) for each in points]
        runs: list[Callable[[], object]] = [
            partial(run, point.search_list)
            for run, some in zip((bulk.run, live.run, peer.run), near, strict=True)
            for point in some
        ]
        taken = iter(alternate(repetitions, *runs))
        rates = [[len(sample.queries) / next(taken) for _ in some] for some in near]
        fast, slow, other = (interpolate(some, rate, target) for some, rate in zip(near, rates, strict=True))
        rows.append(Row(
            name=f"QPS at recall@10 {target}, built in one call", figure=fast, unit="QPS", goal=slow, peer=other,
            note=f"goal: that of inserts; {_work(near[0], target)}, inserts {_work(near[1], target)}",
        ))  # fmt: skip
    length = next(point.search_list for point in points[0] if point.recall >= TARGETS[0] or point is points[0][-1])
    one, two = alternate(
        repetitions, *(partial(bulk.db.query, sample.queries, k=K, search_list=length, threads=n) for n in (1, 2))
    )
    both = f"{shown(len(sample.queries) / two)} / {shown(len(sample.queries) / one)} QPS"
    rows.append(Row(name="two threads over one", figure=one / two, unit="×", goal=1.8, note=f"{both} at {length}"))
    return [*rows, memory(bulk.db)]


def _work(points: Sequence[Point], target: float) -> str:
    return f"{interpolate(points, [point.distances or 0 for point in points], target):,.0f} distances"


def memory(db: CoreNN) -> Row:
    """Bytes per row in memory beside the vector, its code and its key."""
    stats = db.stats()
    parts = {name: size / stats.rows for name, size in stats.memory.items()}
    others = {name: size for name, size in parts.items() if name not in ("vectors", "codes", "keys", "key_bytes")}
    return Row(
        name="bytes per row beside vector, code and key", figure=sum(others.values()), unit="B",
        goal=6 * db.settings.max_edges + 64, at_most=True,
        note=", ".join(f"{name} {size:.0f}" for name, size in others.items() if round(size)),
    )  # fmt: skip


def growth(file: Path, sizes: Sequence[int], queries: int) -> list[Row]:
    """How distances per query at recall .95 grow with the number of rows."""
    counts: dict[int, float] = {}
    for size in sizes:
        sample = load(file, size, queries, 1, K)
        with in_bulk(sample) as db:
            points = sweep(Ours(db, sample), GRID, TARGETS[0])
        near = bracket(points, TARGETS[0])
        counts[len(sample.base)] = interpolate(near, [point.distances or 0 for point in near], TARGETS[0])
    told = list(counts)
    return [Row(
        name=f"distances at recall@10 .95, {told[-1]:,} rows over {told[0]:,}", unit="×", goal=2.2, at_most=True,
        figure=counts[told[-1]] / counts[told[0]],
        note=", ".join(f"{size:,}: {count:,.0f}" for size, count in counts.items()),
    )]  # fmt: skip


def main(given: Sequence[str] | None = None) -> None:
    """Measure, print the table, and write it."""
    parser = argparse.ArgumentParser(prog="python -m corenn.bench.goals", description="The goals of speed in memory.")
    parser.add_argument("--data", type=Path, required=True, help="HDF5 file in the layout of ann-benchmarks")
    parser.add_argument("--rows", type=int, default=100_000, help="rows to use (default: %(default)s)")
    parser.add_argument("--growing", type=Path, help="a larger file, for how distances grow from 10,000 rows on")
    parser.add_argument("--json", type=Path, help="write figures, goals and circumstances to this file")
    parser.add_argument("--quick", action="store_true", help="2,000 rows: tries the program, not the speed")
    asked = parser.parse_args(given)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    sample = load(asked.data, 2_000 if asked.quick else asked.rows, 200 if asked.quick else 5_000, 1, K)
    warm(Settings(dim=sample.base.shape[1], metric=sample.metric))
    print("building and searching", file=sys.stderr, flush=True)
    rows = builds(sample, 1 if asked.quick else BUILDS) + searches(sample, 2 if asked.quick else SPEED_TURNS)
    if asked.growing is not None:
        sizes = (1_500, 2_000) if asked.quick else SIZES
        rows += growth(asked.growing, sizes, 200 if asked.quick else 1_000)
    print_rows(rows)
    if asked.json:
        about = {"data": asked.data.name, "rows": len(sample.base), "queries": len(sample.queries)}
        written = {**circumstances(), **about, "quick": asked.quick, "results": [row.as_dict() for row in rows]}
        asked.json.write_text(json.dumps(written, indent=2, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
