"""The rows of the goal table of data larger than memory, part by part."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..config import Settings
from ..database import CoreNN
from ..graph import codebook
from ..graph.threads import Helpers
from ..kernels.codes import asked_of, codes_of, encode_rows, form_of
from ..kernels.rows import Float32Rows
from . import limit_child
from .cage import Cage, Watch
from .codes import least, wait_for
from .curve import GRID, Ours
from .limit_search import PAGE, Searched
from .memory import forget
from .process import Fault, last_words
from .report import Row
from .sample import Sample
from .systems.base import allocated

RECALL = 0.95
LOST = 0.02
PAGES, PAGES_OF_MANY, MANY = 45.0, 60.0, 3_000_000
FASTER = 1.5
INSERTS, ENCODED, TRAINING_SECONDS = 2_000.0, 200_000.0, 10.0
TRAINED = 100_000
ENCODE_STEP = 2_048
SPACE = 2.0
MODES = ("sq8", "sq4", "rabitq", "pq", "opq")


@dataclass(frozen=True, slots=True)
class Bench:
    """What is measured on. limit: bytes beyond an open empty database. spare: rows that are not among the base's."""

    sample: Sample
    base_file: Path
    spare_file: Path
    folder: Path
    limit: int
    cores: int
    groups: bool

    @property
    def dim(self) -> int:
        """Dimensions."""
        return int(self.sample.base.shape[1])


def bytes_per_row(dim: int) -> int:
    """Bytes of a vector and its edges, as a database stores them."""
    with CoreNN.in_memory(dim=dim, metric="l2", recall_target=0.0) as db:
        db.insert([0], np.ones((1, dim), np.float32))
        parts = db.stats().memory
    return parts["vectors"] + parts["edges"]


# --- codes ------------------------------------------------------------------------------------------------------------


def lost_by_codes(bench: Bench, modes: Sequence[str] = MODES) -> list[Row]:
    """Recall lost at equal search list, all in memory: the list that finds .95 without codes, and twice that list."""
    sample, keys = bench.sample, [str(row) for row in range(len(bench.sample.base))]
    rows = []
    with CoreNN.build(
        None, keys, sample.base, dim=bench.dim, metric=sample.metric, compression_mode="none",
        compression_threshold=0, recall_target=0.0,
    ) as db:  # fmt: skip
        ours = Ours(db, sample)
        lengths = [length for length in GRID if 4 * length < len(keys)]
        first = next((length for length in lengths if ours.point(length).recall >= RECALL), lengths[-1])
        asked = [length for length in (first, 2 * first) if 4 * length < len(keys)]
        whole = [ours.point(length).recall for length in asked]
        for mode in modes:
            wait_for(db, mode)
            found = [ours.point(length).recall for length in asked]
            told = ", ".join(
                f"list {length}: {one:.4f} → {other:.4f}"
                for length, one, other in zip(asked, whole, found, strict=True)
            )
            rows.append(Row(
                name=f"recall lost by {mode}", figure=max(np.subtract(whole, found).max(), 0.0), goal=LOST,
                at_most=True, note=told,
            ))  # fmt: skip
    return rows


def product_rates(bench: Bench) -> list[Row]:
    """Seconds for a codebook of 100,000 rows, and rows per second that all cores encode."""
    sample = bench.sample
    trained = sample.base[:TRAINED].copy()
    form = form_of(Settings(dim=bench.dim, compression_mode="pq"), "pq")
    helpers = Helpers(bench.cores)
    try:
        began = time.perf_counter()
        book = codebook.train(trained.copy(), form.subspaces, 1, helpers, rotated=False)
        training = time.perf_counter() - began
        stored = Float32Rows(trained, np.zeros((len(trained), 1), np.float32), bench.dim, np.float32(0))
        codes = codes_of(np.zeros((len(trained), form.row_bytes), np.uint8), stored, form, book=book)

        def encode(start: int, stop: int) -> None:
            vector = np.empty(bench.dim, np.float32)
            encode_rows(stored, codes, start, codes.vectors[start:stop], vector, asked_of(form))

        encode(0, min(16, len(trained)))
        taken = least(lambda: helpers.run(encode, len(trained), ENCODE_STEP), time.perf_counter)
    finally:
        helpers.close()
    about = f"{len(trained):,} rows × {bench.dim}, {form.subspaces} subspaces, {bench.cores} threads"
    return [
        Row(name="training of product codes", figure=training, unit="s", goal=TRAINING_SECONDS, at_most=True,
            note=about),
        Row(name="encoding by product codes", figure=len(trained) / taken, unit="rows/s", goal=ENCODED, note=about),
    ]  # fmt: skip


# --- search -----------------------------------------------------------------------------------------------------------


def searches(bench: Bench, ours: Searched | None, peers: Sequence[Searched], without: Sequence[str] = ()) -> list[Row]:
    """What a search within the limit finds and takes, and its speed beside others held to the same.

    without: peers that were asked for and gave no figures.
    """
    many = len(bench.sample.base) > MANY
    nothing = math.nan
    one, everything = (ours.one, ours.all) if ours else (None, None)
    pages = nothing if ours is None or everything is None else ours.work.get("pages", everything.read_bytes / PAGE)
    missing = f"; no figures of {', '.join(without)}" if without else ""
    rows = [
        Row(name="recall@10 within the limit", figure=ours.recall if ours else nothing, goal=RECALL,
            note=_setting(ours) if ours else "failed"),
        Row(name="pages read per query", figure=pages, goal=PAGES_OF_MANY if many else PAGES, at_most=True,
            note="" if everything is None else
            f"{everything.read_bytes / 1e3:.1f} KB read, {everything.major_faults:.2f} major faults, caches dropped"),
    ]  # fmt: skip
    for name, own, others in (
        ("all threads", everything, [each.all for each in peers]), ("one thread", one, [each.one for each in peers])
    ):  # fmt: skip
        best = max((each.qps for each in others), default=nothing)
        told = ", ".join(
            f"{each.label.partition(':')[0]} {phase.qps:,.0f}" for each, phase in zip(peers, others, strict=True)
        )
        rows.append(Row(
            name=f"QPS within the limit, {name}", figure=own.qps if own else nothing, unit="QPS", goal=FASTER * best,
            note=f"goal: 1.5 × the better of {told or 'none'}{missing}",
        ))  # fmt: skip
    rows.append(beyond("resident beyond the limit, searching", ours.resident if ours else None, bench.limit))
    return rows


def _setting(searched: Searched) -> str:
    given = ", ".join(f"{name} {value}" for name, value in searched.params.items())
    return f"{given}; held by {searched.one.kind or 'nothing'}, settled in {searched.settle_seconds:.0f} s"


def beyond(name: str, resident: int | None, limit: int) -> Row:
    """By how much a process has gone beyond its limit, idle memory not counted."""
    figure = math.nan if resident is None else max(resident - limit, 0) / 1e6
    note = "" if resident is None else f"{resident / 1e6:,.1f} of {limit / 1e6:,.1f} MB at the highest"
    return Row(name=name, figure=figure, unit="MB", goal=0.0, at_most=True, note=note)


# --- building and inserting -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ran:
    """What a child told, and what was seen of it. resident: beyond an idle database. space: the most bytes on disk."""

    told: dict[str, Any]
    resident: int
    space: int
    kind: str


def building(bench: Bench, path: Path) -> tuple[list[Row], dict[str, Any]]:
    """A database of all rows, built within the limit."""
    count = len(bench.sample.base)
    times = count * bytes_per_row(bench.dim) / bench.limit
    try:
        ran = _held(bench, "build", path, bench.base_file, bench.sample.metric, bench.limit, watched=path.parent)
    except Fault as fault:
        return [
            Row(name="build within the limit", figure=math.nan, unit="rows/s", goal=INSERTS, note=fault.message)
        ], {}
    told = ran.told
    return [
        Row(name="build within the limit", figure=count / told["seconds"], unit="rows/s", goal=INSERTS,
            note=f"{told['seconds']:.1f} s for {times:.1f} × the limit; {told['compression_mode']}, {ran.kind}"),
        beyond("… resident beyond the limit", ran.resident, bench.limit),
        Row(name="… disk space at its highest, over the end", figure=ran.space / told["disk_bytes"], unit="×",
            goal=SPACE, at_most=True, note=f"{ran.space / 1e6:,.0f} and {told['disk_bytes'] / 1e6:,.0f} MB"),
    ], {**told, "resident": ran.resident, "space": ran.space}  # fmt: skip


def built(bench: Bench, path: Path) -> None:
    """The same without a limit; in another process, for the system keeps cached what this one has mapped.

    Raises:
        Fault: if that fails.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with Cage(None, groups=bench.groups) as cage:
        _child(cage, bench.folder, None, "build", path, bench.base_file, bench.sample.metric, 0)


def inserting(bench: Bench, path: Path, lasting: float) -> tuple[list[Row], dict[str, Any]]:
    """Batches of 1,000 rows that come to a database with codes, within the limit."""
    name = "inserts of 1,000 rows within the limit"
    forget(path)  # what another process has cached would not count
    try:
        ran = _held(bench, "insert", path, bench.spare_file, len(bench.sample.base), bench.limit, lasting)
    except Fault as fault:
        return [Row(name=name, figure=math.nan, unit="rows/s", goal=INSERTS, note=fault.message)], {}
    told = ran.told
    rate = told["rows"] / sum(told["batches"]) if told["rows"] else math.nan
    middle = limit_child.BATCH / statistics.median(told["batches"]) if told["rows"] else math.nan
    rows = max(told["rows"], 1)
    each = (
        f"each {told['read'] / rows / PAGE:.1f} pages read, {told['faults'] / rows:.2f} major faults, "
        f"{told['processor_seconds'] / rows * 1e6:,.0f} µs of the processors"
    )
    return [
        Row(name=name, figure=rate, unit="rows/s", goal=INSERTS,
            note=f"{told['compression_mode']}, {told['rows']:,} rows, median batch {middle:,.0f} rows/s; {each}; "
            f"disk.slab has caught up {told['caught_up_seconds']:.0f} s later; {ran.kind}"),
        beyond("… resident beyond the limit", ran.resident, bench.limit),
    ], {**told, "resident": ran.resident}  # fmt: skip


def _held(bench: Bench, name: str, *arguments: object, watched: Path | None = None) -> Ran:
    """Run a child within the limit; memory counts from what an open empty database takes.

    Raises:
        Fault: if it fails or is killed.
    """
    idle = bench.folder / f"idle-{time.monotonic_ns()}"
    idle.mkdir()
    with Cage(None, groups=bench.groups) as cage:
        empty, _ = _child(cage, bench.folder, None, "idle", idle, bench.dim, bench.sample.metric, bench.limit)
        held = empty["held"]
    reserved = 4 * len(bench.sample.base) * bytes_per_row(bench.dim)
    with Cage(held + bench.limit, reserved=reserved, groups=bench.groups) as cage:
        told, space = _child(cage, bench.folder, watched, name, *arguments)
        return Ran(told, told["peak"] - empty["resident"], space, cage.kind)


def _child(cage: Cage, folder: Path, watched: Path | None, name: str, *arguments: object) -> tuple[dict[str, Any], int]:
    """What a child says, with `held`, what it holds then as a limit counts it; and the most bytes on disk meanwhile."""
    log = folder / f"{name}.log"
    command = [*cage.prefix, sys.executable, "-m", limit_child.__name__, name, *map(str, arguments)]
    with log.open("wb") as errors:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
    try:
        with Watch(process.pid, None if watched is None else lambda: space_of(watched, process.pid)) as watch:
            assert process.stdout is not None
            line = process.stdout.readline()
        if not line:
            code = process.wait()
            died = "killed for want of memory" if cage.kills() else f"ended with {code}: {last_words(log)}"
            raise Fault(name, "crashed", died)
        return {**json.loads(line), "held": cage.held(process.pid)}, watch.told
    finally:
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            process.stdin.close()
        process.wait()


def space_of(folder: Path, pid: int) -> int:
    """Bytes that the files below a folder take on the disk, with those that have lost their name but are still open."""
    nameless = 0
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            target = str(each.readlink())
            if target.startswith(str(folder)) and target.endswith(" (deleted)"):
                nameless += each.stat().st_blocks * 512
    return allocated(folder) + nameless
