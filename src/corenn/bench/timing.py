"""Timing that is fair between two programs on a machine whose speed wanders."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..types import Float32s

if TYPE_CHECKING:
    from ..database import CoreNN

QUIET_SECONDS = 3.0


def seconds(run: Callable[[], object], least: float = 0.0) -> float:
    """Wall-clock seconds of one call: the mean of as many as it takes to last `least` seconds."""
    calls, taken, began = 0, 0.0, time.perf_counter()
    while not calls or taken < least:
        run()
        calls += 1
        taken = time.perf_counter() - began
    return taken / calls


def turns(repetitions: int, *runs: Callable[[], object], least: float = 0.0) -> list[list[float]]:
    """The seconds of every repetition of each of `runs`, taken in turn: a slow moment of the machine hits all alike.

    least: a repetition calls again until it has lasted so many seconds, and counts their mean.
    """
    taken = [[seconds(run, least) for run in runs] for _ in range(repetitions)]
    return [list(each) for each in zip(*taken, strict=True)]


def alternate(repetitions: int, *runs: Callable[[], object]) -> list[float]:
    """The best seconds of each of `runs`, taken in turn."""
    return [min(taken) for taken in turns(repetitions, *runs)]


def one_by_one(db: CoreNN, queries: Float32s, k: int, **options: Any) -> NDArray[np.float64]:
    """Seconds of each query of `queries`, one call each."""
    taken = np.empty(len(queries))
    for at, query in enumerate(queries):
        began = time.perf_counter()
        db.query(query, k=k, **options)
        taken[at] = time.perf_counter() - began
    return taken


def settled(db: CoreNN, at_most: float) -> float:
    """Wait until the background has made codes, edges and disk.slab as they are to be; the seconds that took.

    Done is what does not change for a while: the background begins when nobody has come for a moment.
    """
    began = since = time.monotonic()
    before: tuple[Any, ...] = ()
    while time.monotonic() < began + at_most:
        stats = db.stats()
        now = (stats.compression_mode, stats.disk_backlog, stats.repair_backlog, stats.pending, stats.codes_backlog)
        if now != before:
            since, before = time.monotonic(), now
        elif not any(now[1:]) and time.monotonic() > since + QUIET_SECONDS:
            break
        time.sleep(0.05)
    return time.monotonic() - began


def percentiles_ms(taken: NDArray[np.float64], *shares: int) -> dict[str, float]:
    """Percentiles of seconds, in milliseconds: {"p50_ms": ..., ...}."""
    return {f"p{share}_ms": round(float(np.percentile(taken, share)) * 1e3, 4) for share in shares}
