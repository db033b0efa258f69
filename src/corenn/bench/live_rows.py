"""The rows of the goal table of live data; `live.py` puts them together."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..database import CoreNN
from ..types import Float32s
from .curve import GRID, K, Ours, Point, sweep
from .live_child import ACKNOWLEDGED, BEGUN, command, counted, figures, idle_figures, mapped_counts, offered
from .recall import exact_neighbours
from .report import Row, shown
from .sample import Sample
from .timing import alternate
from .turnover import UPDATE, Ring, Turnover, delete, insert, settle, shuffled, wait

RECALL = 0.95
RATE = 200.0  # queries per second
SETTLE_SECONDS = 60.0
SAMPLE_SECONDS = 0.5
LEVEL = 1.1
MB = 1e6


@dataclass(frozen=True, slots=True)
class Bench:
    """What all rows share. pool: float32 (n, dim), of which `live` rows are live; queries: float32 (queries, dim)."""

    pool: Float32s
    live: int
    queries: Float32s
    metric: str
    folder: Path

    def create(self, name: str) -> CoreNN:
        """A new database on disk. What is measured about recall in idle time would be work beside that to be timed."""
        return CoreNN.create(self.folder / name, dim=self.pool.shape[1], metric=self.metric, recall_target=0.0)

    def sample(self, ring: Ring, step: int) -> Sample:
        """The pool, whose row numbers are the keys, with true neighbours among the rows that are live."""
        truth = exact_neighbours(self.pool[ring.alive(step)], self.queries, K, self.metric)[1]
        return Sample(self.metric, self.pool, self.queries, self.pool[:0], truth)

    def reaching(self, db: CoreNN, ring: Ring, step: int = 0) -> Point:
        """Where the shortest search list reaches recall .95."""
        return sweep(Ours(db, self.sample(ring, step)), GRID, RECALL)[-1]


# --- replacing everything ---------------------------------------------------------------------------------------------


def replacing(bench: Bench, ring: Ring, kind: str, times: int, turns: int) -> list[Row]:
    """Recall, speed, space and work after all rows were replaced so often, against a new database of the same rows."""
    with bench.create(f"replaced-{kind}") as old, bench.create(f"fresh-{kind}") as new:
        turnover = Turnover(old, ring)
        turnover.fill()
        turnover.replace_all(times * ring.live)
        stats = old.stats()
        sample = bench.sample(ring, turnover.step)
        insert(new, ring, ring.alive(turnover.step))
        fresh = sweep(Ours(new, sample), GRID, RECALL)[-1]
        found = Ours(old, sample).point(fresh.search_list)
        waited = settle(old, SETTLE_SECONDS)
        runs = [partial(Ours(db, sample).run, fresh.search_list) for db in (old, new)]
        taken = alternate(turns, *runs)
        sizes = [db.stats().disk_bytes / MB for db in (old, new)]
    rates = [len(bench.queries) / each for each in taken]
    return [
        Row(
            name=f"recall@10, all replaced {times} times, {kind}", figure=found.recall, goal=fresh.recall - 0.005,
            note=f"fresh {fresh.recall:.4f} at list {fresh.search_list}; {stats.tombstones:,} tombstones among "
            f"{stats.rows:,} rows, backlog {stats.repair_backlog:,}",
        ),
        Row(
            name="… QPS over fresh", figure=rates[0] / rates[1], unit="×", goal=0.9,
            note=f"{shown(rates[0])} / {shown(rates[1])} QPS, {found.distances:,.0f} / {fresh.distances:,.0f} "
            f"distances, {sizes[0]:,.0f} / {sizes[1]:,.0f} MB; waited {waited:.1f} s for repair",
        ),
    ]  # fmt: skip


# --- queries beside updates -------------------------------------------------------------------------------------------


def latency(bench: Bench, ring: Ring, lasting: float) -> list[Row]:
    """The 99th percentile of queries while rows are replaced as fast as it goes, and while nothing happens."""
    with bench.create("latency") as db:
        turnover = Turnover(db, ring)
        turnover.fill()
        length = bench.reaching(db, ring).search_list
        idle = idle_figures(db, bench.queries, length, RATE, lasting)
        before, began = turnover.step, time.perf_counter()
        with turnover.running():
            busy = figures(offered(db, bench.queries, length, RATE, lasting))
        pace = 2 * (turnover.step - before) / (time.perf_counter() - began)
        reader_idle, reader_busy, reader_pace = _beside_a_reader(bench, turnover, length, lasting)
    refreshed = f", {reader_busy['refreshes']} refreshes of {reader_busy['refresh_s'] * 1e3:.1f} ms"
    return [
        _slower("p99 beside updates, in the writer's process", 5, idle, busy, pace, ""),
        _slower("… in a reader process", 2, reader_idle, reader_busy, reader_pace, refreshed),
    ]


def _slower(name: str, more: float, idle: dict[str, Any], busy: dict[str, Any], pace: float, note: str) -> Row:
    return Row(
        name=name, figure=busy["p99"] * 1e3, unit="ms", goal=idle["p99"] * 1e3 + more, at_most=True,
        note=f"idle {idle['p99'] * 1e3:.2f} ms; median {idle['p50'] * 1e3:.2f} / {busy['p50'] * 1e3:.2f}, longest "
        f"{idle['max'] * 1e3:.1f} / {busy['max'] * 1e3:.1f} ms; {pace:,.0f} rows/s updated{note}",
    )  # fmt: skip


def _beside_a_reader(
    bench: Bench, turnover: Turnover, length: int, lasting: float
) -> tuple[dict[str, Any], dict[str, Any], float]:
    """The figures of a reading process, idle and beside updates, and rows per second updated meanwhile."""
    queries = bench.folder / "queries.npy"
    np.save(queries, bench.queries)
    asking = command("ask", turnover.db.stats().path, queries, length, RATE, lasting)
    with subprocess.Popen(asking, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            idle = json.loads(process.stdout.readline())
            before, began = turnover.step, time.perf_counter()
            with turnover.running():
                process.stdin.write("\n")
                process.stdin.flush()
                busy = json.loads(process.stdout.readline())
            return idle, busy, 2 * (turnover.step - before) / (time.perf_counter() - began)
        finally:
            process.kill()


# --- updates without end ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Moment:
    """What the database said about itself, so many seconds and updated rows after the start."""

    seconds: float
    updated: int
    backlog: int
    tombstones: int
    disk_bytes: int


def sustained(bench: Bench, ring: Ring, lasting: float, least: int) -> tuple[list[Row], list[Moment]]:
    """Rows updated per second over so many seconds, or rows if they take longer; and whether what waits levels off."""
    with bench.create("sustained") as db:
        turnover = Turnover(db, ring)
        turnover.fill()
        moments, began = [_moment(db, 0.0, 0)], time.perf_counter()
        while (passed := time.perf_counter() - began) < lasting or 2 * turnover.step < least:
            turnover.replace(UPDATE)
            if passed - moments[-1].seconds >= SAMPLE_SECONDS:
                moments.append(_moment(db, passed, 2 * turnover.step))
        wait(db)
        moments.append(_moment(db, time.perf_counter() - began, 2 * turnover.step))
    last = moments[-1]
    rate = last.updated / last.seconds
    return [
        Row(name="updates, batches of 100, half deletes", figure=rate, unit="rows/s", goal=2_000,
            note=f"{last.updated:,} rows in {last.seconds:.0f} s; {last.disk_bytes / MB:,.0f} MB on disk after "
            f"{moments[0].disk_bytes / MB:,.0f}"),
        _level("… backlog of the last third over the middle", [moment.backlog for moment in moments]),
        _level("… tombstones of the last third over the middle", [moment.tombstones for moment in moments]),
    ], moments  # fmt: skip


def _moment(db: CoreNN, passed: float, updated: int) -> Moment:
    stats = db.stats()
    return Moment(passed, updated, stats.repair_backlog, stats.tombstones, stats.disk_bytes)


def _level(name: str, values: Sequence[int]) -> Row:
    """Most in the last third over most in the middle third; below a batch of updates, nothing has piled up."""
    third = max(len(values) // 3, 1)
    middle, end = max(values[third : 2 * third], default=0), max(values[2 * third :], default=0)
    return Row(
        name=name,
        figure=max(end, 2 * UPDATE) / max(middle, 2 * UPDATE),
        unit="×",
        goal=LEVEL,
        at_most=True,
        note=f"highest {max(values):,}; {middle:,} in the middle third, {end:,} in the last, {values[-1]:,} at the end",
    )


# --- space ------------------------------------------------------------------------------------------------------------


def space(bench: Bench) -> list[Row]:
    """Bytes of the files after nine tenths of the rows were deleted at random and the rest compacted, over a new
    database of what is left.
    """
    ring = shuffled(bench.pool, bench.live, seed=1)
    gone, left = np.split(ring.alive(0), [bench.live * 9 // 10])
    note = ""
    with bench.create("deleted") as db:
        insert(db, ring, ring.alive(0))
        for part in np.array_split(gone, max(len(gone) // 1_000, 1)):
            delete(db, part)
        compact = getattr(db, "compact", None)
        if compact is None:
            note = "no compact(); "
        else:
            compact()
    with bench.create("left") as db:
        insert(db, ring, left)
    used, fresh = (_allocated(bench.folder / name) for name in ("deleted", "left"))
    return [Row(
        name="files after deleting 90 % and compacting, over fresh", figure=used / fresh, unit="×", goal=1.3,
        at_most=True, note=f"{note}{used / MB:,.1f} / {fresh / MB:,.1f} MB for {len(left):,} rows",
    )]  # fmt: skip


def _allocated(folder: Path) -> int:
    """Bytes that the files of a folder take on the disk."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


# --- reopening --------------------------------------------------------------------------------------------------------


def reopening(bench: Bench, rounds: int, lasting: float) -> list[Row]:
    """Seconds to open what a process killed amid updates has left, up to a first answer; the slowest of some rounds.

    All rows of the pool but a few are live. Each time the database must hold what was acknowledged, and nothing else
    but what the call in work may have done.
    """
    ring = shuffled(bench.pool, len(bench.pool) - max(len(bench.pool) // 100, 4 * UPDATE))
    pool, order, path = (bench.folder / name for name in ("killed-pool.npy", "killed-order.npy", "killed"))
    np.save(pool, ring.vectors)
    np.save(order, ring.order)
    with bench.create("killed") as db:
        insert(db, ring, ring.alive(0))
    counts = mapped_counts(bench.folder / "killed-counts")
    taken: list[float] = []
    for number in range(rounds):
        before = int(counts[ACKNOWLEDGED])
        child = command("update", path, pool, order, ring.live, bench.folder / "killed-counts")
        with subprocess.Popen(child) as process:
            try:
                counted(counts, before + 1, lambda process=process: process.poll() is None)  # type: ignore[misc]
                time.sleep(lasting * (number + 1) / rounds)
            finally:
                process.send_signal(signal.SIGKILL)
        began = time.perf_counter()
        with CoreNN.open(path) as db:
            db.query(bench.queries[0], k=K)
            taken.append(time.perf_counter() - began)
            counts[:] = _found(db, ring, counts.tolist())
    return [Row(
        name=f"reopen after SIGKILL amid updates, {ring.live:,} rows", figure=max(taken), unit="s", goal=2,
        at_most=True, note=f"first answer included; {', '.join(f'{each:.2f}' for each in taken)} s; "
        f"{counts[ACKNOWLEDGED]:,} calls acknowledged, none lost",
    )]  # fmt: skip


def _found(db: CoreNN, ring: Ring, counts: list[int]) -> int:
    """After which call the database is.

    Raises:
        RuntimeError: if it holds neither what was acknowledged nor what the call in work would leave.
    """
    there = np.sort([int(key) for key in db])
    for calls in range(counts[ACKNOWLEDGED], counts[BEGUN] + 1):
        if np.array_equal(there, np.sort(ring.after(calls))):
            return calls
    missing = np.setdiff1d(ring.after(counts[ACKNOWLEDGED]), there)
    raise RuntimeError(
        f"after a kill {len(there):,} rows are there, of no state from {counts[ACKNOWLEDGED]} calls acknowledged to "
        f"{counts[BEGUN]} begun; {len(missing):,} are missing, such as {missing[:5].tolist()}"
    )
