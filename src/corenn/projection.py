"""The plane on which rows are spread the most: their first two principal components.

By subspace iteration on a random sketch, which takes a few products with the rows rather than a decomposition of a
matrix of `dim` or of all rows; between two of them a deadline is looked at. Halko, Martinsson, Tropp: Finding structure
with randomness, SIAM Review 53(2), 2011, algorithm 4.4.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .deadline import check
from .types import AnyArray, Float64s

SEED = 0x9CA
SKETCH = 8  # directions that are followed beside the two that are wanted
ROUNDS = 8  # products with the rows, and back: the third component is then left out even if it is nearly as long


class Plane(NamedTuple):
    """places: float64 (n, 2). shares: of the variance, along each axis. origin: (dim,). axes: (2, dim), orthonormal.

    places = (rows - origin) @ axes.T.
    """

    places: Float64s
    shares: Float64s
    origin: Float64s
    axes: Float64s


def project(rows: AnyArray) -> Plane:
    """The plane of rows, (n, dim); the same for the same rows. Axes of no extent are zero.

    Raises:
        DeadlineError
    """
    count, dim = rows.shape
    origin = rows.mean(axis=0, dtype=np.float64) if count else np.zeros(dim)
    centred = rows - origin
    total = float(np.square(centred).sum())
    if not total > 0:
        return Plane(np.zeros((count, 2)), np.zeros(2), origin, np.zeros((2, dim)))
    basis = np.random.default_rng(SEED).normal(size=(dim, min(dim, count, 2 + SKETCH)))
    for _ in range(ROUNDS):
        check()
        basis = np.linalg.qr(centred.T @ (centred @ basis))[0]
    check()
    spread, turned = np.linalg.svd(centred @ basis, full_matrices=False)[1:]
    axes, lengths = np.zeros((2, dim)), np.zeros(2)
    found = turned[:2] @ basis.T
    axes[: len(found)], lengths[: len(found)] = found, spread[:2]
    nothing = lengths <= lengths[0] * np.finfo(np.float32).eps  # beside the first, no more than the rows are rounded
    axes[nothing], lengths[nothing] = 0, 0
    heaviest = np.abs(axes).argmax(axis=1)
    axes *= np.where(axes[(0, 1), heaviest] < 0, -1, 1)[:, None]
    return Plane(centred @ axes.T, np.square(lengths) / total, origin, axes)
