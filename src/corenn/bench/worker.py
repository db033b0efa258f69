"""The process in which one system lives: `python -m corenn.bench.worker`, started by `corenn.bench.process`.

It reads one JSON object per line from standard input and answers each with one line. `do` names a method of `Worker`,
the other members are its arguments. The answer is `{"ok": …}`, or `{"error": reason, "message": one line}`. What a
library prints goes to standard error, whichever stream it chooses. Arrays are handed over as .npy files: the rows and
queries mapped, the answers written.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import json
import operator
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from ..types import AnyArray, Float32s
from . import conditions, memory
from .machine import allowed_cores, confine
from .recall import MISSING, table
from .systems import load
from .systems.base import Option, System

PR_SET_PDEATHSIG = 1


class WrongAnswerError(Exception):
    """A system has answered in a wrong shape, or with rows that do not exist."""


class Worker:
    """One system, built and searched as told."""

    def __init__(self) -> None:
        self.cores = allowed_cores()
        self.start_anonymous: int | None = None
        self.system: System
        self.base: Path
        self.queries: Float32s

    def start(
        self, system: str, options: dict[str, Option], folder: str, threads: int, base: str, queries: str,
        fields: str | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Import the package and read the queries."""
        began = time.perf_counter()
        chosen = load(system)
        import_module(chosen.module)
        taken = time.perf_counter() - began
        self.system = chosen(Path(folder), threads, **options)
        if fields is not None:
            self.system.fields = conditions.read(Path(fields))
        self.base = Path(base)
        self.queries = np.load(queries)  # not mapped: some libraries refuse what cannot be written to
        return {"version": _version(self.system), "import_seconds": taken}

    def build(self, metric: str, threads: int) -> dict[str, Any]:
        """Index all rows."""
        confine(self.cores, threads)
        rows = _mapped(self.base)
        self.system.warm(rows, metric, threads)
        self.start_anonymous = memory.anonymous()
        start = memory.resident()
        memory.reset_peak()
        seconds, processor = _timed(lambda: self.system.build(rows, metric, threads))
        return {"seconds": seconds, "cpu_seconds": processor, "start": start, "peak": memory.peak()}

    def open(self, dim: int, metric: str, params: dict[str, Any], k: int) -> dict[str, float]:
        """Open what another process has built, and answer a first query."""
        opened = _timed(lambda: self.system.open(dim, metric))[0]
        self.system.configure(**params)
        answered = _timed(lambda: self.system.query_one(self.queries[0], k))[0]
        return {"open_seconds": opened, "first_query_seconds": answered}

    def sizes(self) -> dict[str, Any]:
        """Bytes of the index and of the process, once the given rows are released."""
        gc.collect()
        now = memory.anonymous()
        growth = None if now is None or self.start_anonymous is None else max(now - self.start_anonymous, 0)
        system = self.system
        return {
            "memory_bytes": _bytes(system.memory_bytes()), "memory_parts": _parts(system.memory_parts()),
            "disk_bytes": _bytes(system.disk_bytes()), "disk_parts": _parts(system.disk_parts()),
            "resident": memory.resident(), "anonymous": now, "growth": growth,
        }  # fmt: skip

    def confine(self, threads: int) -> None:
        """From here on keep to so many cores."""
        confine(self.cores, threads)

    def grid(self, k: int) -> list[dict[str, Any]]:
        """Query-time parameters to try."""
        settings = list(self.system.grid(k))
        if not settings:
            raise WrongAnswerError("a grid without settings; one for a system that has no parameters is [{}]")
        return settings

    def query(self, params: dict[str, Any], k: int, count: int, least: float, out: str | None) -> dict[str, float]:
        """Answer the first `count` queries, again and again for `least` seconds; the ids go to the file `out`."""
        self.system.configure(**params)
        asked = self.queries[:count]
        found, took = _repeated(lambda: self.system.query(asked, k), least)
        if out is not None:
            np.save(out, self._checked(found, (count, k)))
        return took

    def grid_within(self, k: int) -> list[dict[str, Any]]:
        """Query-time parameters to try for restricted searches."""
        return list(self.system.grid_within(k))

    def query_within(
        self, params: dict[str, Any], k: int, wheres: list[Any], least: float, out: str | None
    ) -> dict[str, float]:
        """Answer as many queries as there are `wheres`, one call each, again and again for `least` seconds.

        wheres: the conditions that restrict each query; None for a query of all rows. `making`: seconds that it
        takes to put those of one query into what the system takes, which are not in the others.
        """
        self.system.configure(**params)
        pairs: list[tuple[Float32s, Any]] = []
        making, _ = _timed(lambda: pairs.extend(self._restricted(wheres)))
        found, took = _repeated(lambda: [self._one(query, k, within) for query, within in pairs], least)
        if out is not None:
            np.save(out, self._checked(table(found, k, MISSING), (len(pairs), k)))
        return {**took, "making": making / max(len(pairs), 1)}

    def plans(self, params: dict[str, Any], k: int, wheres: list[Any]) -> list[str]:
        """How such queries are answered."""
        self.system.configure(**params)
        pairs = self._restricted(wheres)
        return [self.system.plan_within(query, k, within) for query, within in pairs]

    def _restricted(self, wheres: list[Any]) -> list[tuple[Float32s, Any]]:
        """Queries, and what restricts each in the words of the system."""
        given = [None if each is None else [conditions.Condition(*one) for one in each] for each in wheres]
        within = [None if each is None else self.system.restriction(each) for each in given]
        return list(zip(self.queries[: len(within)], within, strict=True))

    def _one(self, query: Float32s, k: int, within: Any) -> Any:
        return self.system.query_one(query, k) if within is None else self.system.query_within(query, k, within)

    def latency(
        self, params: dict[str, Any], k: int, count: int, out: str, least: int, most: float
    ) -> dict[str, float]:
        """Answer the first queries one call each: `count`, or as many as fit into `most` seconds, but `least` of them.

        Their seconds go to the file `out`.
        """
        self.system.configure(**params)
        taken: list[float] = []
        gc.collect()
        stop = time.perf_counter() + most
        for query in self.queries[:count]:
            began = time.perf_counter()
            if began > stop and len(taken) >= least:
                break
            self.system.query_one(query, k)
            taken.append(time.perf_counter() - began)
        np.save(out, np.array(taken))
        return {"seconds": sum(taken)}

    def work(self, params: dict[str, Any], k: int, count: int) -> dict[str, float]:
        """Distances and hops per query, where they are counted."""
        self.system.configure(**params)
        return {name: float(value) for name, value in self.system.work(self.queries[:count], k).items()}

    def settle(self, at_most: float) -> dict[str, float]:
        """Wait until the system has nothing left to do by itself, for so long at most."""
        return {"seconds": _timed(lambda: self.system.settle(at_most))[0]}

    def toll(self, *, again: bool = False) -> dict[str, Any]:
        """What the process has taken so far; `again` lets the highest resident set count from now."""
        told = {
            "read_bytes": memory.read_bytes(), "major_faults": memory.major_faults(), "resident": memory.resident(),
            "peak": memory.peak(),
        }  # fmt: skip
        if again:
            memory.reset_peak()
        return told

    def close(self) -> None:
        """Release everything."""
        self.system.close()

    def _checked(self, ids: Any, shape: tuple[int, int]) -> AnyArray:
        rows = np.asarray(ids)
        if rows.shape != shape or rows.dtype.kind not in "iu":
            raise WrongAnswerError(f"ids of shape {rows.shape} and type {rows.dtype}; needs {shape} of integers")
        count = len(_mapped(self.base))
        if rows.size and (rows.min() < MISSING or rows.max() >= count):
            raise WrongAnswerError(f"ids from {rows.min()} to {rows.max()}; there are {count:,} rows")
        return rows.astype(np.int64)


def _version(system: System) -> str | None:
    try:
        return str(system.version())
    except PackageNotFoundError:
        return None


def _bytes(size: Any) -> int | None:
    try:
        return None if size is None else operator.index(size)
    except TypeError:
        raise WrongAnswerError(f"{size!r} is no number of bytes") from None


def _parts(sizes: Any) -> dict[str, int | None] | None:
    return None if sizes is None else {str(name): _bytes(size) for name, size in sizes.items()}


def _mapped(path: Path) -> Float32s:
    return np.asarray(np.load(path, mmap_mode="r"))


def _timed(run: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor seconds of a call."""
    began, used = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - began, time.process_time() - used


def _repeated(run: Callable[[], Any], least: float) -> tuple[Any, dict[str, float]]:
    """What a call gives, and its mean seconds when it is made again and again for `least` seconds."""
    found: list[Any] = []
    rounds, seconds, processor = 0, 0.0, 0.0
    gc.collect()
    while not rounds or seconds < least:
        found.clear()
        wall, used = _timed(lambda: found.append(run()))
        rounds, seconds, processor = rounds + 1, seconds + wall, processor + used
    return found[0], {"seconds": seconds / rounds, "cpu_seconds": processor / rounds}


def answer(worker: Worker, request: dict[str, Any]) -> dict[str, Any]:
    """What one request gives. An error of a system is an answer too."""
    try:
        return {"ok": getattr(worker, request.pop("do"))(**request)}
    except Exception as error:  # noqa: BLE001
        traceback.print_exc()
        return {"error": _reason(worker, error), "message": f"{type(error).__name__}: {error}"}


def reply(worker: Worker, request: dict[str, Any]) -> str:
    """The line that answers a request; what JSON has no words for, such as NaN, is a wrong answer."""
    try:
        return json.dumps(answer(worker, request), allow_nan=False, default=_plain)
    except (TypeError, ValueError) as error:
        return json.dumps({"error": "wrong", "message": f"{type(error).__name__}: {error}"})


def _plain(value: Any) -> Any:
    """A number of NumPy as one of Python."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} is neither a number nor a text")


def _reason(worker: Worker, error: Exception) -> str:
    if isinstance(error, WrongAnswerError):
        return "wrong"
    started = hasattr(worker, "system")
    return "not installed" if isinstance(error, ModuleNotFoundError) and not started else "failed"


def _claim_output() -> TextIO:
    """The stream of answers; whatever else is printed goes to standard error."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return channel


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """Serve until the input ends."""
    channel = _claim_output()
    _die_with_parent()
    faulthandler.enable()
    worker = Worker()
    for line in sys.stdin:
        channel.write(reply(worker, json.loads(line)) + "\n")
        channel.flush()


if __name__ == "__main__":
    main()
