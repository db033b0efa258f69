"""Deadlines: a search that takes too long gives up by itself.

Kernels cannot be stopped, but none runs longer than some milliseconds: between two of them the threads that work for a
call look whether its deadline has passed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from .errors import DeadlineError

_until: ContextVar[float] = ContextVar("corenn_deadline")


@contextmanager
def deadline(until: float) -> Iterator[None]:
    """Let what is read within this context give up at a moment of `time.monotonic()`."""
    token = _until.set(until)
    try:
        yield
    finally:
        _until.reset(token)


def check() -> None:
    """Raises: DeadlineError: if the deadline of this context has passed."""
    until = _until.get(None)
    if until is not None and (late := time.monotonic() - until) > 0:
        raise DeadlineError(f"given up {late * 1000:.0f} ms after the deadline; ask for less, or allow more time")
