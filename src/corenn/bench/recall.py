"""Recall, and the exact answers to measure it against."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..types import AnyArray, Float32s, Float64s, Int64s

MISSING = -1


def recall_by_distance(
    found: AnyArray, truth: AnyArray, k: int, *, relative: float = 1e-6, absolute: float = 1e-9
) -> float:
    """Share of the k nearest that were found, by the rule of ann-benchmarks: what is as near as the true k-th counts.

    A row tied with the k-th neighbour is as good as it; by ids it would be a miss.

    Args:
        found: distances of shape (queries, n), one row per query; inf or NaN where fewer came back.
        truth: exact distances of shape (queries, at least k), ascending.
        k: neighbours asked for.
        relative: tolerance as a share of the k-th distance.
        absolute: tolerance in units of distance.

    Raises:
        ValueError: if the shapes do not fit.
    """
    if k < 1 or found.ndim != 2 or truth.ndim != 2 or truth.shape[1] < k or len(found) != len(truth):
        raise ValueError(f"recall@{k}: found {found.shape} does not fit truth {truth.shape}")
    farthest = truth[:, k - 1].astype(np.float64)
    farthest += np.abs(farthest) * relative + absolute  # under ip a distance may be negative
    return float(np.count_nonzero(found[:, :k] <= farthest[:, None]) / (k * len(truth)))


def recall_by_id(found: AnyArray, truth: AnyArray) -> float:
    """Share of the ids in `truth` (queries, k) that are in the same row of `found` (queries, n); each counts once.

    Raises:
        ValueError: if the number of queries differs or is 0.
    """
    if len(found) != len(truth) or truth.size == 0:
        raise ValueError(f"found {found.shape} does not fit truth {truth.shape}")
    return float((truth[:, :, None] == found[:, None, :]).any(axis=2).mean())


def table(rows: Sequence[Sequence[float] | AnyArray], width: int, fill: float) -> AnyArray:
    """Rows of unequal length as one array (len(rows), width), cut or filled up at the end."""
    kind = np.int64 if isinstance(fill, int) else np.float64
    full = np.full((len(rows), width), fill, kind)
    for at, row in enumerate(rows):
        full[at, : min(width, len(row))] = row[:width]
    return full


def once(ids: Int64s) -> Int64s:
    """`ids` with every id that stands earlier in its row made MISSING: the same row found twice counts once."""
    again = (ids[:, :, None] == ids[:, None, :]) & np.tri(ids.shape[1], k=-1, dtype=bool)
    return np.where(again.any(axis=2), MISSING, ids)


def distances_of(ids: AnyArray, base: Float32s, queries: Float32s, metric: str) -> Float64s:
    """Exact distances, in float64, of rows of `base` by id.

    Args:
        ids: shape (queries, n); MISSING gives inf.
        base: shape (rows, dim).
        queries: shape (queries, dim).
        metric: l2 (squared Euclidean), cosine (1 - cos) or ip (1 - dot).

    Raises:
        ValueError: for an id beyond the rows of `base`.
    """
    from ..datasets.exact import measured  # brings the compiler, which a measured system must not find loaded

    return measured(base, queries, ids, metric)


def exact_neighbours(base: Float32s, queries: Float32s, k: int, metric: str) -> tuple[Int64s, Float64s]:
    """The k nearest rows of `base` by brute force: ids and distances of shape (queries, k), by distance, then by id."""
    from ..datasets.exact import nearest

    return nearest(base, queries, k, metric)
