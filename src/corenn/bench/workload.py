"""The process that `corenn profile` looks into: it prepares, says that it is ready, and works until it is told to stop.

    python -m corenn.bench.workload SPEC.json

It prints one line when it is ready and one of JSON at the end, and stops when its standard input is closed. Kernels are
timed from outside: their names in the modules that call them are replaced by timed ones.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..database import CoreNN
from ..graph import insert
from ..graph.query import Searcher
from ..types import AnyArray

PR_SET_PTRACER, ANY = 0x59616D61, -1  # Linux, Yama: let a sampler that is not our parent look at us
LINKING = {"rank_batch": "rank the batch", "choose_edges": "search and prune", "link_back": "reverse edges",
           "thread_ring": "ring of lifelines"}  # fmt: skip


class Clock:
    """Seconds and calls by stage, summed over threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, its time counted to a stage."""

        def run(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                taken = time.perf_counter() - began
                with self._lock:
                    self.seconds[stage] = self.seconds.get(stage, 0.0) + taken
                    self.calls[stage] = self.calls.get(stage, 0) + 1

        return run

    def reset(self) -> None:
        """Forget what was counted while warming up."""
        with self._lock:
            self.seconds.clear()
            self.calls.clear()


def queries(spec: dict[str, Any], clock: Clock, stopped: threading.Event) -> dict[str, Any]:
    """Ask the queries of the specification over and over."""
    asked: AnyArray = np.load(spec["queries"])
    batch, options = spec["batch"], {"k": spec["k"], "threads": spec["threads"], "search_list": spec["search_list"]}
    with CoreNN.open(spec["path"], mode="r") as db:
        explained = [hits.explain for hits in db.query(asked, explain=True, **options)]
        _time_searches(db._searcher, clock)
        groups = [asked[at] if batch == 1 else asked[at : at + batch] for at in range(0, len(asked), batch)]
        for group in groups[:200]:
            db.query(group, **options)
        done, seconds = _repeat(itertools.cycle(groups), lambda group: db.query(group, **options), clock, stopped)
    return {
        "operations": done * batch,
        "unit": "query",
        "seconds": seconds,
        "distances": float(np.mean([work.distances for work in explained if work])),
        "hops": float(np.mean([work.hops for work in explained if work])),
    }


def _time_searches(searcher: Searcher, clock: Clock) -> None:
    """The kernel's entry point is found by the first walk; from then on it is timed."""
    for kernel, code in searcher._entry_points.items():
        searcher._entry_points[kernel] = clock.timed("search", code)


def inserts(spec: dict[str, Any], clock: Clock, stopped: threading.Event) -> dict[str, Any]:
    """Insert the rows of the specification, batch by batch, until they are used up."""
    rows: AnyArray = np.load(spec["rows"], mmap_mode="r")
    for name, stage in LINKING.items():
        setattr(insert, name, clock.timed(stage, getattr(insert, name)))
    settings = spec["settings"]
    with CoreNN.create(spec["path"], **settings) if spec["path"] else CoreNN.in_memory(**settings) as db:
        db._store.commit = clock.timed("commit", db._store.commit)  # type: ignore[method-assign]
        first = min(spec["start"], len(rows))
        for at in range(0, first, 1000):
            db.insert(range(at, min(at + 1000, first)), np.array(rows[at : min(at + 1000, first)]))

        def batches() -> Iterator[tuple[range, AnyArray]]:
            for at in range(first, len(rows), spec["batch"]):
                part = np.array(rows[at : at + spec["batch"]])
                yield range(at, at + len(part)), part

        before = len(db)
        _, seconds = _repeat(batches(), lambda part: db.insert(*part), clock, stopped)
        return {"operations": len(db) - before, "unit": "row", "seconds": seconds, "rows": len(db)}


def _repeat(
    work: Iterator[Any], run: Callable[[Any], object], clock: Clock, stopped: threading.Event
) -> tuple[int, float]:
    """Say that the measured part begins, and run until stopped or until nothing is left."""
    clock.reset()
    print("ready", flush=True)
    began, done = time.perf_counter(), 0
    for item in work:
        run(item)
        done += 1
        if stopped.is_set():
            break
    return done, time.perf_counter() - began


def _wait_for_the_end(stopped: threading.Event) -> None:
    sys.stdin.read()
    stopped.set()


def main(path: str) -> None:
    """Run the workload that a file describes."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PTRACER, ctypes.c_long(ANY), 0, 0, 0)
    spec, clock, stopped = json.loads(Path(path).read_text()), Clock(), threading.Event()
    threading.Thread(target=_wait_for_the_end, args=(stopped,), daemon=True).start()
    figures = {"query": queries, "insert": inserts}[spec["kind"]](spec, clock, stopped)
    print(json.dumps({**figures, "stages": clock.seconds, "calls": clock.calls}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
