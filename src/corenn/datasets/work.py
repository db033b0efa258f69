"""How heavy work is cut into pieces that fit into memory, and how its threads are kept in order."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from ..errors import DatasetError

MEMORY = 1 << 30
MOST_ROWS = 1 << 16  # rows in work at a time: more gain nothing
LEAST_ROWS = 256
MOST_QUERIES = 1024  # with 512 columns, where the product of two matrices reaches its full speed
LEAST_COLUMNS = 512
PRODUCTS = MOST_QUERIES * LEAST_COLUMNS  # 2 MB per thread: they stay in the cache until they are compared


@dataclass(frozen=True, slots=True)
class Plan:
    """How the work is cut up: `rows` are in memory at a time, a product is one of `queries` by `columns`."""

    rows: int
    queries: int
    columns: int


def plan(rows: int, queries: int, dim: int, k: int, threads: int, wide: bool, memory: int = MEMORY) -> Plan:
    """The largest pieces that fit into `memory` bytes, beside the queries, their answers and the products.

    Args:
        rows, queries, dim, k: sizes of the task.
        threads: each has products of its own.
        wide: whether rows are kept in float64.
        memory: in bytes.

    Raises:
        DatasetError: if that is too little; the message says how much is needed.
    """
    cut, needed = _sized(rows, queries, dim, k, threads, wide, memory)
    if cut is not None:
        return cut
    while (larger := _sized(rows, queries, dim, k, threads, wide, needed * 1_000_000))[0] is None:
        needed = max(needed + 1, larger[1])  # with more memory the pieces would be larger
    raise DatasetError(
        f"{queries:,} queries with {k:,} neighbours in {dim:,} dimensions need {needed:,} MB of memory, "
        f"{memory // 1_000_000:,} MB are allowed: raise the limit, or take fewer queries at a time"
    )


def _sized(rows: int, queries: int, dim: int, k: int, threads: int, wide: bool, memory: int) -> tuple[Plan | None, int]:
    """The pieces, None if they do not fit; and the megabytes that they need at least."""
    room = max(memory // 4, 0) // (4 * threads)  # numbers in the products of one thread
    at_once = max(1, min(MOST_QUERIES, room // LEAST_ROWS))
    rounds = -(-queries // (threads * at_once))
    at_once = -(-queries // (threads * rounds))  # so that all threads end at about the same time
    columns = min(max(LEAST_COLUMNS, PRODUCTS // at_once), max(LEAST_ROWS, room // at_once), MOST_ROWS, rows)
    exact = 8 if wide else 4
    fixed = queries * (dim * (4 + exact) + 16 * k + 40) + threads * at_once * (4 * columns + 8 * candidates_of(k) + 12)
    # As read, as measured and as scored; then length, offset and factor.
    each = dim * (exact + exact + 4) + 16
    fitting = (memory - fixed) // each
    least = min(rows, LEAST_ROWS)
    needed = -(-(fixed + least * each) // 1_000_000)
    return (Plan(min(fitting, rows, MOST_ROWS), at_once, columns) if fitting >= least else None), needed


def candidates_of(k: int) -> int:
    """How long the list of candidates of a query is: with more room it is thinned out less often."""
    return k + 64


def is_wide(*dtypes: np.dtype[np.generic]) -> bool:
    """Whether any of these types has values that float32 cannot hold."""
    return not all(np.can_cast(dtype, np.float32) or dtype.name == "bfloat16" for dtype in dtypes)


@contextmanager
def single_threaded_products() -> Iterator[None]:
    """Hold matrix products to the thread that asks for them, as far as threadpoolctl is there to do it."""
    try:
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        yield
        return
    with threadpool_limits(1, user_api="blas"):
        yield


class Gate:
    """Counts who is inside; once it is closed and empty, nobody comes in any more."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._closed = False

    def __enter__(self) -> bool:
        with self._changed:
            self._inside += 1
            return not self._closed

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()

    def close(self) -> None:
        """Wait until it is empty, and let nobody in after that."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: self._inside == 0)
