"""Recall, and the exact answers to measure it against, in plain NumPy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..types import AnyArray, Float32s

Float64s = NDArray[np.float64]
Int64s = NDArray[np.int64]

MISSING = -1
MARGIN = 32  # candidates beyond k that are measured again in float64: covers what float32 sums may swap


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
    farthest = truth[:, k - 1].astype(np.float64) * (1 + relative) + absolute
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


def distances_of(ids: AnyArray, base: Float32s, queries: Float32s, metric: str) -> Float64s:
    """Exact distances, in float64, of rows of `base` by id.

    Args:
        ids: shape (queries, n); MISSING gives inf.
        base: shape (rows, dim).
        queries: shape (queries, dim).
        metric: l2 (squared Euclidean), cosine (1 - cos) or ip (1 - dot).
    """
    result = np.full(ids.shape, np.inf)
    for at, query in enumerate(queries.astype(np.float64)):
        there = ids[at] != MISSING
        result[at, there] = _distances(base[ids[at, there]].astype(np.float64), query, metric)
    return result


def exact_neighbours(
    base: Float32s, queries: Float32s, k: int, metric: str, *, block: int = 256
) -> tuple[Int64s, Float64s]:
    """The k nearest rows of `base` by brute force: ids and distances of shape (queries, k), ascending.

    Each block of queries is one matrix product in float32; the best k + MARGIN are measured again in float64. Which of
    several rows tied at the k-th distance is named is left open.
    """
    k = min(k, len(base))
    ids = np.empty((len(queries), k), np.int64)
    distances = np.empty((len(queries), k))
    norms = np.einsum("ij,ij->i", base, base)
    for first in range(0, len(queries), block):
        cut = slice(first, first + block)
        near = _candidates(base, norms, queries[cut], k + MARGIN, metric)
        exact = distances_of(near, base, queries[cut], metric)
        order = np.argsort(exact, axis=1, kind="stable")[:, :k]
        ids[cut] = np.take_along_axis(near, order, axis=1)
        distances[cut] = np.take_along_axis(exact, order, axis=1)
    return ids, distances


def _candidates(base: Float32s, norms: Float32s, queries: Float32s, count: int, metric: str) -> Int64s:
    """Ids, ascending, of the `count` rows nearest to each query as float32 sees it."""
    scores = queries @ base.T
    if metric == "l2":
        scores *= -2
        scores += norms
    else:
        if metric == "cosine":
            scores /= np.sqrt(np.maximum(norms, np.finfo(np.float32).tiny))
        np.negative(scores, out=scores)
    if count >= len(base):
        return np.broadcast_to(np.arange(len(base)), scores.shape)
    return np.sort(np.argpartition(scores, count - 1, axis=1)[:, :count], axis=1)


def _distances(rows: Float64s, query: Float64s, metric: str) -> Float64s:
    """From `query` to each row."""
    if metric == "l2":
        apart = rows - query
        squares: Float64s = np.einsum("ij,ij->i", apart, apart)
        return squares
    dots: Float64s = rows @ query
    if metric == "ip":
        return 1 - dots
    norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(query)
    cosines: Float64s = np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0)
    return 1 - cosines
