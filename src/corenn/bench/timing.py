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


def seconds(run: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def alternate(repetitions: int, *runs: Callable[[], object]) -> list[float]:
    """The best seconds of each of `runs`, taken in turn, so that a slow moment of the machine hits all alike."""
    turns = [[seconds(run) for run in runs] for _ in range(repetitions)]
    return [min(taken) for taken in zip(*turns, strict=True)]


def one_by_one(db: CoreNN, queries: Float32s, k: int, **options: Any) -> NDArray[np.float64]:
    """Seconds of each query of `queries`, one call each."""
    taken = np.empty(len(queries))
    for at, query in enumerate(queries):
        began = time.perf_counter()
        db.query(query, k=k, **options)
        taken[at] = time.perf_counter() - began
    return taken


def percentiles_ms(taken: NDArray[np.float64], *shares: int) -> dict[str, float]:
    """Percentiles of seconds, in milliseconds: {"p50_ms": ..., ...}."""
    return {f"p{share}_ms": round(float(np.percentile(taken, share)) * 1e3, 4) for share in shares}
