"""The distance of every row of one file to every row of another, block by block."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..errors import DatasetError
from ..graph.threads import Helpers
from ..kernels.topk import distances_between
from ..types import AnyArray, Float64s
from .exact import check_task, lengths_squared, metric_number
from .vectors import Vectors
from .work import MEMORY, is_wide

AT_ONCE = 1024  # rows of the second file that are compared before the next ones: they stay in the cache
STEP = 16


def distance_blocks(
    left: Vectors, right: Vectors, metric: str, *, threads: int | None = None, memory_bytes: int = MEMORY
) -> Iterator[Float64s]:
    """Distances in float64, each from its definition: blocks of shape (rows of `left`, all rows of `right`), in order.

    Args:
        left, right: open files of the same dimension.
        metric: l2 (squared Euclidean), cosine (1 - cos, 1 where a vector is zero) or ip (1 - dot).
        threads: all cores unless given.
        memory_bytes: for a block and what it is computed from.

    Raises:
        DatasetError: for dimensions that do not fit, NaN or infinity, or too little memory for a single row.
        InvalidArgumentError: for an unknown metric.
    """
    check_task(right.shape, left.shape, 1)
    number = metric_number(metric)
    kind = np.dtype(np.float64 if is_wide(left.dtype, right.dtype) else np.float32)
    each = 8 * len(right) + 2 * kind.itemsize * left.dim
    size = (memory_bytes - AT_ONCE * left.dim * (8 + kind.itemsize)) // each
    if size < 1:
        raise DatasetError(
            f"one row of {len(right):,} distances does not fit into {memory_bytes // 1_000_000:,} MB of memory: raise "
            "the limit, or exchange the files"
        )
    helpers = Helpers(threads)
    try:
        for first in range(0, len(left), size):
            asked = np.array(left.rows(first, min(first + size, len(left))), kind, order="C")
            yield _block(asked, _lengths(asked, left, first), right, number, kind, helpers)
    finally:
        helpers.close()


def _lengths(rows: AnyArray, vectors: Vectors, first: int) -> Float64s:
    """Squared lengths. first: the number of the first row, for the message."""
    lengths = lengths_squared(rows)
    unknown = np.flatnonzero(~np.isfinite(lengths))
    if len(unknown):
        row = first + int(unknown[0])
        raise DatasetError(f"{vectors.path}: row {row:,} holds NaN, infinity or values too large to square")
    return lengths


def _block(
    asked: AnyArray, squares: Float64s, right: Vectors, metric: int, kind: np.dtype[np.generic], helpers: Helpers
) -> Float64s:
    out = np.empty((len(asked), len(right)))
    for first, rows in right.blocks(AT_ONCE):
        values = np.array(rows, kind, order="C")
        _fill(values, _lengths(values, right, first), asked, squares, metric, out, first, helpers)
    return out


def _fill(
    values: AnyArray, lengths: Float64s, asked: AnyArray, squares: Float64s, metric: int, out: Float64s, first: int,
    helpers: Helpers,
) -> None:  # fmt: skip
    def work(start: int, stop: int) -> None:
        part = np.empty((stop - start, len(values)))
        distances_between(values, lengths, asked[start:stop], squares[start:stop], metric, part)
        out[start:stop, first : first + len(values)] = part

    helpers.run(work, len(asked), STEP)
