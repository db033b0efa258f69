"""Exact ground truth of a file of any size: streamed once, in bounded memory, and resumable."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DatasetError
from ..graph.threads import Helpers
from ..storage.platform import cpu_count
from ..types import AnyArray
from .exact import CENTRED, Search, centre_of, check_task
from .neighbours import Truth
from .truth_state import identity, restore, save
from .vectors import Vectors
from .work import MEMORY, is_wide, plan, single_threaded_products

SAVED_EVERY = 30.0


def exact_truth(
    base: Vectors,
    queries: AnyArray,
    k: int,
    metric: str,
    *,
    threads: int | None = None,
    memory_bytes: int = MEMORY,
    progress: Callable[[int], None] | None = None,
    state: Path | None = None,
    rows: int | None = None,
    saved_every: float = SAVED_EVERY,
) -> Truth:
    """The k nearest rows of `base` to each query, nearest first, equal distances by id.

    Candidates are found by products in float32 and measured in float64, so the answer depends neither on threads nor on
    memory, and rounding swaps no neighbours.

    Args:
        base: an open file.
        queries: any real type, shape (queries, dim).
        k: neighbours per query; all rows if there are fewer.
        metric: l2 (squared Euclidean), cosine (1 - cos, 1 where a vector is zero) or ip (1 - dot).
        threads: all cores unless given.
        memory_bytes: for all that is in work, the copies of the queries and the answers included.
        progress: called with each number of rows done, those of an earlier call at once.
        state: file that keeps what is done, every so often and when the call ends or is interrupted; a later call with
            the same inputs goes on from it. The caller removes it once the answer is safe.
        rows: only the first so many rows.
        saved_every: seconds between two writes of the state.

    Raises:
        DatasetError: for shapes that do not fit, NaN or infinity, or too little memory.
        InvalidArgumentError: for k < 1 or an unknown metric.
    """
    count = len(base) if rows is None else min(rows, len(base))
    check_task((count, base.shape[1]), queries.shape, k)
    k = min(k, count)
    helpers = Helpers(threads)
    try:
        wide = is_wide(base.dtype, queries.dtype)
        cut = plan(count, len(queries), base.shape[1], k, helpers.threads, wide, memory_bytes)
        centre = centre_of(base.rows(0, min(CENTRED, count)), metric)
        search = Search(queries, k, metric, cut, helpers, wide=wide, centre=centre)
        keeper = _Keeper(state, base, count, queries, k, metric, search, saved_every)
        with keeper, single_threaded_products():
            done = keeper.done()
            _tell(progress, done)
            for first, block in base.blocks(cut.rows, done, count):
                _offer(search, base, block, first)
                keeper.keep_sometimes()
                _tell(progress, len(block))
    finally:
        helpers.close()
    ids, distances = search.results()
    with np.errstate(over="ignore"):
        return Truth(ids, distances.astype(np.float32))


def check_memory(
    base: Vectors, queries: Vectors, k: int, *, rows: int | None = None, threads: int | None = None,
    memory_bytes: int = MEMORY,
) -> None:  # fmt: skip
    """Refuse a search whose queries and answers would not fit into the memory, before the queries are read.

    Args: as of exact_truth.

    Raises:
        DatasetError: for shapes that do not fit, or too little memory; the message says how much is needed.
        InvalidArgumentError: for k < 1.
    """
    count = len(base) if rows is None else min(rows, len(base))
    check_task((count, base.dim), queries.shape, k)
    wide = is_wide(base.dtype, queries.dtype)
    plan(count, len(queries), base.dim, min(k, count), threads or cpu_count(), wide, memory_bytes)


def _offer(search: Search, base: Vectors, block: AnyArray, first: int) -> None:
    try:
        search.offer(block, first)
    except DatasetError as error:
        raise DatasetError(f"{base.path}: {error}") from None


def _tell(progress: Callable[[int], None] | None, rows: int) -> None:
    if progress is not None and rows:
        progress(rows)


class _Keeper:
    """Keeps the state of a search in a file, if there is one: a context manager around the work."""

    def __init__(
        self,
        path: Path | None,
        base: Vectors,
        rows: int,
        queries: AnyArray,
        k: int,
        metric: str,
        search: Search,
        every: float,
    ) -> None:
        self._path, self._search, self._every = path, search, every
        self._label: dict[str, Any] = {} if path is None else identity(base, rows, queries, k, metric)
        self._saved = time.monotonic()

    def done(self) -> int:
        """How many rows an earlier call has offered to every query."""
        if self._path is not None and restore(self._path, self._label, self._search.heaps):
            return int(self._search.heaps.seen.min())
        return 0

    def keep_sometimes(self) -> None:
        """Write the state if the last time is long ago."""
        if self._path is not None and time.monotonic() - self._saved >= self._every:
            save(self._path, self._label, self._search.heaps)
            self._saved = time.monotonic()

    def __enter__(self) -> None:
        return

    def __exit__(self, *_: object) -> None:
        if self._path is None:
            return
        self._search.settle()
        if self._search.heaps.seen.any():
            save(self._path, self._label, self._search.heaps)
