"""How long something takes, counted in fixed buckets: cheap enough for every commit."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager

from .types import Timings

# Seconds, the upper bounds of all buckets but the last, which has none.
BOUNDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1, 2, 4, 8, 16, 32)


class Durations:
    """Of one kind of work, since a handle was opened. One thread adds; any may ask."""

    __slots__ = ("_counts", "_seconds")

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS) + 1)
        self._seconds = 0.0

    def add(self, seconds: float) -> None:
        """It has been done once more."""
        self._counts[bisect_left(BOUNDS, seconds)] += 1
        self._seconds += seconds

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count what is done meanwhile, unless it fails."""
        began = time.perf_counter()
        yield
        self.add(time.perf_counter() - began)

    def told(self) -> Timings:
        """What has been counted so far."""
        return Timings(tuple(self._counts), self._seconds)
