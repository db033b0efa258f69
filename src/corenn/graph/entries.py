"""Entry points: where walks start."""

from __future__ import annotations

import numpy as np

from ..kernels.rows import decode_rows
from ..kernels.search import LIFELINE
from ..storage.format import MAX_ENTRIES
from ..types import Float64s, UInt32s
from .view import View

ENTRIES = 16
SAMPLE = 1024
EQUAL = 1e-12  # share of the squares that a difference loses to rounding
CLUSTERED = 0.25  # share of the spread that must be gone for more than ENTRIES to be worth their distances
COVERED = 1.25  # times the spread that all candidates together leave


def elect(view: View) -> UInt32s:
    """A sampled medoid first, then rows far from each other, so that each far cluster has an entry of its own.

    The spread is k-means++ seeding (Arthur & Vassilvitskii 2007) on an even sample of the live rows; the same rows give
    the same entries.
    """
    state = view.live.state[: view.live.rows]
    linked = view.graph.edges[: view.live.rows, LIFELINE] != 0
    alive = np.flatnonzero(linked & (state[:, 0] != 0) & (state[:, 1] == 0)).astype(np.uint32)
    if not len(alive):
        return view.graph.entries
    sample = alive[np.linspace(0, len(alive) - 1, min(SAMPLE, len(alive))).astype(np.int64)]
    vectors = np.empty((len(sample), view.settings.dim), np.float32)
    decode_rows(view.rows, sample, vectors)
    wide = vectors.astype(np.float64)
    wide -= wide.mean(axis=0)
    squares = np.einsum("ij,ij->i", wide, wide)
    random = np.random.default_rng(len(alive))
    chosen = [int(np.argmin(squares))]
    nearest = _distances(wide, squares, chosen[0])
    spread = [float(nearest.sum())]
    while len(chosen) < min(MAX_ENTRIES, len(sample)) and spread[-1] > 0:
        chosen.append(int(random.choice(len(sample), p=nearest / spread[-1])))
        np.minimum(nearest, _distances(wide, squares, chosen[-1]), out=nearest)
        spread.append(float(nearest.sum()))
    return sample[chosen[: _enough(spread)]]


def _distances(rows: Float64s, squares: Float64s, one: int) -> Float64s:
    """Squared distances of all rows to one of them; 0 where they are as good as equal."""
    found: Float64s = (
        squares + squares[one] - 2 * np.einsum("ij,j->i", rows, rows[one])
    )  # not BLAS, whose sums hang on threads
    found[found <= EQUAL * (squares + squares[one])] = 0
    return found


def _enough(spread: list[float]) -> int:
    """How many of the candidates to keep. spread[i]: sum of squared distances to the nearest of the first i + 1.

    Where rows form clusters it falls until each has an entry, and hardly from there on; elsewhere it falls little by
    little, and a few entries are as good as many.
    """
    if len(spread) <= ENTRIES or spread[-1] > CLUSTERED * spread[ENTRIES - 1]:
        return min(ENTRIES, len(spread))
    return next(at for at, left in enumerate(spread, 1) if at >= ENTRIES and left <= COVERED * spread[-1])
