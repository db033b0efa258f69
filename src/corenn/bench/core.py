"""The goal table of the engine beside hnswlib, in one run: `python -m corenn.bench.core --data FILE.hdf5`.

Every figure is taken through the public interface. Where both programs do the same, they take turns, and the best of
several turns counts. Two threads build, one searches.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import Settings
from ..database import CoreNN
from ..warmup import warm
from .curve import K, Ours, Peer, Point, bracket, interpolate, sweep
from .probe import child
from .report import Row, circumstances, print_rows, shown
from .sample import Sample, load
from .timing import alternate, seconds

BATCH = 1_000
TURNS_TO_BUILD = 10
CORES = 2
CLIENTS = 32
TARGETS = (0.95, 0.99)
MB = 1e6


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything: queries, turns of each timing, and single-row inserts per turn and kind."""

    rows: int
    queries: int
    turns: int
    singles: int

    @classmethod
    def of(cls, rows: int, quick: bool) -> Plan:
        """The full measurement, or one small enough for a test."""
        return cls(min(rows, 5_000), 200, 2, 32) if quick else cls(rows, 5_000, 5, 1_000)


@dataclass(frozen=True, slots=True)
class Bench:
    """What the rows share: the data, the three contestants, and the points swept before."""

    plan: Plan
    sample: Sample
    folder: Path
    disk: Ours
    memory: Ours
    peer: Peer
    ours_points: list[Point]
    peer_points: list[Point]

    @property
    def path(self) -> Path:
        """Directory of the database on disk."""
        return database_path(self.folder)

    @property
    def search_list(self) -> int:
        """The shortest search list whose recall is at least 0.95."""
        return _reaching(self.ours_points, TARGETS[0])


def database_path(folder: Path) -> Path:
    """Where the database on disk lies."""
    return folder / "disk.corenn"


def _reaching(points: Sequence[Point], recall: float) -> int:
    return next((point for point in points if point.recall >= recall), points[-1]).search_list


# --- building ---------------------------------------------------------------------------------------------------------


def build(plan: Plan, sample: Sample, folder: Path) -> tuple[Bench, list[Row]]:
    """Fill all three; rows per second of ours on disk and of hnswlib, a tenth at a time in turn."""
    dim = sample.base.shape[1]
    disk = CoreNN.create(database_path(folder), dim=dim, metric=sample.metric)
    peer = Peer.empty(sample)
    ours_s = peer_s = 0.0
    for part in np.array_split(np.arange(len(sample.base)), TURNS_TO_BUILD):
        ours_s += seconds(partial(fill, disk, sample, part))
        peer_s += seconds(partial(peer.index.add_items, sample.base[part], part, num_threads=CORES))
    memory = CoreNN.in_memory(dim=dim, metric=sample.metric)
    fill(memory, sample, np.arange(len(sample.base)))
    ours, inside = Ours(disk, sample), Ours(memory, sample)
    bench = Bench(plan, sample, folder, ours, inside, peer, sweep(inside), sweep(peer))
    rate, peer_rate = len(sample.base) / ours_s, len(sample.base) / peer_s
    return bench, [
        Row(name="insert on disk, batches of 1,000", figure=rate, unit="rows/s", goal=8_000, peer=peer_rate),
        Row(name="… against hnswlib's build", figure=rate, unit="rows/s", goal=0.8 * peer_rate, peer=peer_rate),
    ]


def fill(db: CoreNN, sample: Sample, part: NDArray[np.int64]) -> None:
    """Insert rows under their numbers as text, and wait until all are linked: no work may be left for later."""
    for first in range(0, len(part), BATCH):
        rows = part[first : first + BATCH]
        db.insert([str(row) for row in rows], sample.base[rows])
    while db.stats().pending:
        time.sleep(0.001)


# --- searching --------------------------------------------------------------------------------------------------------


def default_recall(bench: Bench) -> list[Row]:
    """Recall@10 of a query that names no search list."""
    found = bench.memory.point(None)
    return [
        Row(
            name="recall@10 at default settings",
            figure=found.recall,
            goal=0.97,
            note=f"search list {found.search_list}; {_work([found], 0)}",
        )
    ]


def speed(bench: Bench, target: float) -> list[Row]:
    """Queries per second at a recall, one 2-D call on one thread, interpolated between neighbouring search lists."""
    ours, peers = bracket(bench.ours_points, target), bracket(bench.peer_points, target)
    runs: list[Callable[[], object]] = [partial(bench.memory.run, point.search_list) for point in ours]
    runs += [partial(bench.peer.run, point.search_list) for point in peers]
    rates = [len(bench.sample.queries) / taken for taken in alternate(bench.plan.turns, *runs)]
    figure, peer = interpolate(ours, rates[: len(ours)], target), interpolate(peers, rates[len(ours) :], target)
    return [Row(
        name=f"QPS at recall@10 {target}", figure=figure, unit="QPS", goal=1.4 * peer, peer=peer,
        note=f"search list {_lists(ours, target)}, ef {_lists(peers, target)}; {_work(ours, target)}",
    )]  # fmt: skip


def _lists(points: Sequence[Point], target: float) -> str:
    if not points:
        return f"never reaches {target}"
    at_least = "≥ " if len(points) == 1 and points[0].recall > target else ""
    return f"{at_least}{'–'.join(str(point.search_list) for point in points)}"


def _work(points: Sequence[Point], target: float) -> str:
    distances = interpolate(points, [point.distances or 0 for point in points], target)
    hops = interpolate(points, [point.hops or 0 for point in points], target)
    return f"{distances:,.0f} distances, {hops:,.1f} hops per query"


def one_query(bench: Bench) -> list[Row]:
    """One query per call on disk: calls per second, and what a call costs above its share of a batch."""
    length, queries = bench.search_list, bench.sample.queries
    peer_length = _reaching(bench.peer_points, TARGETS[0])

    def ours_alone() -> None:
        for query in queries:
            bench.disk.db.query(query, k=K, search_list=length)

    def peer_alone() -> None:
        for query in queries:
            bench.peer.run(peer_length, query)

    alone, batch, peer = alternate(bench.plan.turns, ours_alone, lambda: bench.disk.run(length), peer_alone)
    count = len(queries)
    recall = bench.disk.point(length).recall
    return [
        Row(name="one query per call, on disk", figure=count / alone, unit="QPS", goal=10_000, peer=count / peer,
            note=f"search list {length}, recall {recall:.4f}"),
        Row(name="… above the same in a batch", figure=(alone - batch) / count * 1e6, unit="µs", goal=30, at_most=True,
            note=f"batch {batch / count * 1e6:.1f} µs per query"),
    ]  # fmt: skip


def disk_against_memory(bench: Bench) -> list[Row]:
    """The same queries on the database on disk and on the one in memory."""
    length = bench.search_list
    disk, memory = alternate(bench.plan.turns, lambda: bench.disk.run(length), lambda: bench.memory.run(length))
    rates = f"{shown(len(bench.sample.queries) / disk)} / {shown(len(bench.sample.queries) / memory)} QPS"
    return [Row(name="on disk over in memory", figure=memory / disk, unit="×", goal=0.7, note=f"{rates} at {length}")]


# --- fresh processes --------------------------------------------------------------------------------------------------


def resident(bench: Bench) -> list[Row]:
    """Resident memory of a filled database over that of an empty one, less its vectors and edges."""
    base = bench.sample.base
    file = bench.folder / "base.f32"
    base.tofile(file)
    empty, full = (child("resident", file, rows, base.shape[1], bench.sample.metric)[0] for rows in (0, len(base)))
    beyond = full["resident"] - empty["resident"] - base.nbytes - full["edges"]
    return [Row(
        name="resident beyond vectors and edges", figure=beyond / MB, unit="MB", goal=(64 * len(base)) / MB + 40,
        at_most=True, note=f"{beyond / len(base):.0f} bytes per row; empty {empty['resident'] / MB:.0f} MB, "
        f"filled {full['resident'] / MB:.0f} MB, edges {full['edges'] / MB:.0f} MB",
    )]  # fmt: skip


def opening(bench: Bench) -> list[Row]:
    """Seconds to open, and to a first answer in a new process, import included; the database is closed here."""
    query = bench.folder / "query.f32"
    bench.sample.queries[0].tofile(query)
    child("answer", bench.path, query)
    tries = [child("answer", bench.path, query) for _ in range(bench.plan.turns)]
    opened, answered = min(figures["open"] for figures, _ in tries), min(taken for _, taken in tries)
    return [
        Row(name="open", figure=opened, unit="s", goal=0.2, at_most=True),
        Row(
            name="first answer in a new process",
            figure=answered,
            unit="s",
            goal=2,
            at_most=True,
            note="import included",
        ),
    ]


# --- one row per call -------------------------------------------------------------------------------------------------


def single_rows(bench: Bench) -> list[Row]:
    """Rows per second, one row per call, into the database on disk: os, sync, and 32 threads with sync."""
    spare, count = bench.sample.spare, bench.plan.singles
    numbers = itertools.count()

    def insert(db: CoreNN, clients: int) -> float:
        share = count // clients
        with ThreadPoolExecutor(clients) as pool:
            return share * clients / seconds(lambda: list(pool.map(lambda _: one_client(db, share), range(clients))))

    def one_client(db: CoreNN, share: int) -> None:
        for row in itertools.islice(numbers, share):
            db.insert([f"one-{row}"], spare[row % len(spare)][None])

    with CoreNN.open(bench.path, durability="os") as db:
        relaxed = max(insert(db, 1) for _ in range(bench.plan.turns))
    with CoreNN.open(bench.path, durability="sync") as db:
        pairs = [(insert(db, 1), insert(db, CLIENTS)) for _ in range(bench.plan.turns)]
    synced, shared = (max(rates) for rates in zip(*pairs, strict=True))
    return [
        Row(name="one row per call, os", figure=relaxed, unit="rows/s", goal=1_000),
        Row(name="one row per call, sync", figure=synced, unit="rows/s", goal=300),
        Row(name=f"… from {CLIENTS} threads", figure=shared, unit="rows/s", goal=5 * synced, note="5 × one thread"),
    ]


# --- all of it --------------------------------------------------------------------------------------------------------


def measure(plan: Plan, sample: Sample, folder: Path) -> tuple[list[Row], dict[str, Any]]:
    """Every row of the table, and the swept points of both programs."""
    _say("building")
    bench, rows = build(plan, sample, folder)
    _say("searching")
    rows = [
        *default_recall(bench),
        *(row for target in TARGETS for row in speed(bench, target)),
        *one_query(bench),
        *rows,
    ]
    ratio = disk_against_memory(bench)
    bench.disk.db.close()
    bench.memory.db.close()
    _say("opening in new processes")
    rows += [*resident(bench), *opening(bench), *ratio]
    _say("inserting row by row")
    rows += single_rows(bench)
    return rows, {"corenn": list(map(asdict, bench.ours_points)), "hnswlib": list(map(asdict, bench.peer_points))}


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m corenn.bench.core", description="The goal table beside hnswlib.")
    parser.add_argument("--data", type=Path, required=True, help="HDF5 file in the layout of ann-benchmarks")
    parser.add_argument("--rows", type=int, default=100_000, help="rows to use (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write figures, goals, curves and circumstances to this file")
    parser.add_argument(
        "--quick", action="store_true", help="5,000 rows and few turns: tries the program, not the speed"
    )
    parser.add_argument("--dir", type=Path, help="folder for the database (default: that of temporary files)")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    """Measure, print the table, and write it."""
    asked = _arguments(given)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    plan = Plan.of(asked.rows, asked.quick)
    _say("reading the data and its exact answers")
    sample = load(asked.data, plan.rows, plan.queries, 3 * plan.turns * plan.singles, K)
    warm(Settings(dim=sample.base.shape[1], metric=sample.metric))
    with tempfile.TemporaryDirectory(prefix="corenn-bench-", dir=asked.dir) as folder:
        rows, curves = measure(plan, sample, Path(folder))
    print_rows(rows)
    if asked.json:
        about = {"rows": len(sample.base), "queries": len(sample.queries), "dim": sample.base.shape[1]}
        about |= {"data": asked.data.name, "metric": sample.metric, "quick": asked.quick}
        written = {**circumstances(), **about, "results": [row.as_dict() for row in rows], "curves": curves}
        asked.json.write_text(json.dumps(written, indent=2, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
