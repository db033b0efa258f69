"""Loops of k-means: seeding by distance, and sums of the rows of each cluster."""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import kernel


@kernel
def draw_near(values: Any, centre: Any, nearest: Any) -> None:
    """Lower each row's squared distance to its nearest centre, float64 (rows,), by that to one more."""
    for row in range(values.shape[0]):
        stored = values[row]
        total = 0.0
        for i in range(stored.shape[0]):
            apart = np.float64(stored[i]) - np.float64(centre[i])
            total += apart * apart
        nearest[row] = min(nearest[row], total)


@kernel
def add_up(values: Any, labels: Any, low: Any, high: Any, sums: Any, counts: Any) -> None:
    """Add each row to the sum of its cluster, for the clusters low … high, in the order of the rows.

    values: (rows, dim). labels: int64 (rows,). sums: float64 (clusters, dim). counts: int64 (clusters,).
    """
    for row in range(values.shape[0]):
        cluster = labels[row]
        if cluster < low or cluster >= high:
            continue
        counts[cluster] += 1
        stored, total = values[row], sums[cluster]
        for i in range(stored.shape[0]):
            total[i] += np.float64(stored[i])
