"""Where the time of queries and inserts goes: kernel stages, processor counters, and a flame graph of the Python side.

The work runs in a process of its own (`workload`). While it does, py-spy samples its stacks from outside, without
slowing it, and `perf`, where it is there and the machine lets it count, counts cache misses.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ..errors import CoreNNError
from . import workload

EVENTS = ("cycles", "instructions", "branch-misses", "cache-misses", "L1-dcache-load-misses", "dTLB-load-misses")
SVG = "{http://www.w3.org/2000/svg}"
# Threads that wait look busy to a sampler; so do our own clocks, in which the kernels run.
WAITING = ("Condition.wait ", "_worker (concurrent/futures/thread.py", "_wait_for_the_end ", "Event.wait ")
TIMED = "Clock.timed."
KERNELS = "kernels and other timed stages"
FRAME = re.compile(r"(?P<name>.*) \((?P<samples>[\d,]+) samples, [\d.]+%\)")
SPIN_UP_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Frame:
    """A line of code, and the samples that were taken in it itself and in it or what it called."""

    name: str
    own: int
    total: int


@dataclass(frozen=True, slots=True)
class Profile:
    """What was found.

    figures: operations, unit, seconds, distances and hops of a query. stages: seconds by stage, summed over threads.
    counters: events of the processor; None where they cannot be counted, with the reason in `notes`. frames: lines by
    their own samples. flame: the graph, None if py-spy could not sample.
    """

    figures: dict[str, Any]
    stages: dict[str, float]
    counters: dict[str, int] | None
    frames: tuple[Frame, ...]
    flame: Path | None
    notes: tuple[str, ...]


def profile(spec: dict[str, Any], seconds: float, rate: int, out: Path) -> Profile:
    """Run a workload for some seconds and look at it from outside; the flame graph goes to `out`.

    Raises:
        CoreNNError: if the workload fails, with what it said.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="corenn-profile-") as folder:
        described = Path(folder) / "spec.json"
        described.write_text(json.dumps(spec))
        command = [sys.executable, "-m", workload.__name__, str(described)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            try:
                if process.stdout.readline().strip() != "ready":
                    raise CoreNNError(f"the workload failed: {_last_line(process)}")
                flame, counters, notes = _look(process.pid, seconds, rate, out)
                printed, said = process.communicate()
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            raise CoreNNError(f"the workload failed: {said.strip().splitlines()[-1] if said.strip() else 'no message'}")
    figures = json.loads(printed)
    stages = figures.pop("stages")
    frames = () if flame is None else tuple(frames_of(flame))
    return Profile(figures, stages, counters, frames, flame, tuple(notes))


def _last_line(process: subprocess.Popen[str]) -> str:
    _, said = process.communicate()
    return said.strip().splitlines()[-1] if said.strip() else "it ended without a word"


def _look(pid: int, seconds: float, rate: int, out: Path) -> tuple[Path | None, dict[str, int] | None, list[str]]:
    """Sample and count a process for some seconds."""
    notes: list[str] = []
    flame = out / "flame.svg"
    flame.unlink(missing_ok=True)
    counting = _start(["perf", "stat", "-x", ";", "-e", ",".join(EVENTS), "-p", str(pid)], notes, "perf")
    sampler = shutil.which("py-spy") or str(Path(sys.executable).with_name("py-spy"))
    sampling = _start(
        [sampler, "record", "--pid", str(pid), "--duration", str(max(1, round(seconds))), "--rate", str(rate),
         "--format", "flamegraph", "--output", str(flame)], notes, "py-spy (pip install 'corenn[bench]')",
    )  # fmt: skip
    time.sleep(seconds)
    counters = None
    if sampling is not None:
        try:
            _, said = sampling.communicate(timeout=SPIN_UP_SECONDS)
        except subprocess.TimeoutExpired:
            sampling.kill()
            sampling.communicate()
            said = b"nothing and does not end"
        if sampling.returncode or not flame.exists():
            words = said.decode(errors="replace").strip().splitlines()
            notes.append(f"no flame graph: py-spy says {words[-1] if words else 'nothing'}")
    if counting is not None:
        counting.send_signal(2)
        _, said = counting.communicate()
        counters = read_counters(said.decode(errors="replace"))
        if counters is None:
            notes.append("no counters: this machine does not let perf count (a virtual machine often does not)")
    return flame if flame.exists() else None, counters, notes


def _start(command: list[str], notes: list[str], name: str) -> subprocess.Popen[bytes] | None:
    try:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except FileNotFoundError:
        notes.append(f"{name} is not installed")
        return None


def read_counters(said: str) -> dict[str, int] | None:
    """Events by name from what `perf stat -x ';'` writes; None if none could be counted."""
    counters = {}
    for line in said.splitlines():
        fields = line.split(";")
        if len(fields) > 2 and fields[2] in EVENTS:
            with suppress(ValueError):
                counters[fields[2]] = int(fields[0])
    return counters or None


def frames_of(flame: Path) -> list[Frame]:
    """Lines of a flame graph of py-spy, the most costly themselves first, without those that wait.

    A frame's own samples are those of its box that no box of what it called covers.
    """
    boxes: list[tuple[str, int, int, float]] = []
    for group in ElementTree.parse(flame).getroot().iter(f"{SVG}g"):
        title, box = group.find(f"{SVG}title"), group.find(f"{SVG}rect")
        found = FRAME.fullmatch(title.text or "") if title is not None else None
        if found and box is not None:
            where = next((int(value) for name, value in box.attrib.items() if name.endswith("}x")), None)
            if where is not None:
                samples = int(found["samples"].replace(",", ""))
                name = KERNELS if found["name"].startswith(TIMED) else found["name"]
                boxes.append((name, where, samples, float(box.attrib["y"])))
    own = _own(boxes)
    total: dict[str, int] = {}
    for name, _, samples, _ in boxes:
        total[name] = total.get(name, 0) + samples
    working = (Frame(name, own[name], total[name]) for name in total if not name.startswith(WAITING))
    return sorted(working, key=lambda frame: -frame.own)


def _own(boxes: list[tuple[str, int, int, float]]) -> dict[str, int]:
    levels = sorted({y for *_, y in boxes})
    above = dict(itertools.pairwise(levels))
    by_level: dict[float, list[tuple[int, int]]] = {}
    for _, x, samples, y in boxes:
        by_level.setdefault(y, []).append((x, samples))
    # py-spy draws the root at the top: what a frame called stands one level further down.
    own: dict[str, int] = {}
    for name, x, samples, y in boxes:
        inside = by_level.get(above.get(y, -1.0), [])
        covered = sum(width for at, width in inside if x <= at < x + samples)
        own[name] = own.get(name, 0) + samples - covered
    return own
