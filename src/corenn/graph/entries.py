"""Entry points: where walks start."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..kernels.rows import decode_rows
from ..kernels.search import LIFELINE
from ..storage.commit import NO_IDS
from ..storage.format import MAX_ENTRIES
from ..types import Float64s, UInt32s
from .view import View

ENTRIES = 16
SAMPLE = 1024
BLOCK_ROWS = 1 << 13  # whose edges are looked at at once: a few megabytes
EQUAL = 1e-12  # share of the squares that a difference loses to rounding
COLLAPSE = 0.15  # of the spread that twice as many candidates leave where each cluster has got one
COVERED = 1.25  # times that, at which all clusters are taken to have one


def elect(view: View, between: Callable[[], None] = lambda: None) -> UInt32s:
    """A sampled medoid first, then rows far from each other, so that each far cluster has an entry of its own.

    The spread is k-means++ seeding (Arthur & Vassilvitskii 2007) on an even sample of the live rows; the same rows give
    the same entries. between: called while all rows are gone over, for what that makes resident.
    """
    alive = linked_rows(view, between)
    if not len(alive):
        return view.graph.entries
    sample = alive[np.linspace(0, len(alive) - 1, min(SAMPLE, len(alive))).astype(np.int64)]
    vectors = np.empty((len(sample), view.settings.dim), np.float32)
    decode_rows(view.rows, sample, vectors)
    wide = vectors.astype(np.float64)
    wide[~np.isfinite(wide)] = 0  # a damaged row may hold anything
    wide -= wide.mean(axis=0)
    squares = np.einsum("ij,ij->i", wide, wide)
    random = np.random.default_rng(len(alive))
    chosen = [int(np.argmin(squares))]
    nearest = _distances(wide, squares, chosen[0])
    spread = [float(nearest.sum())]
    while len(chosen) < min(MAX_ENTRIES, max(ENTRIES, len(sample) // 2)) and spread[-1] > 0:
        chosen.append(int(random.choice(len(sample), p=nearest / spread[-1])))
        np.minimum(nearest, _distances(wide, squares, chosen[-1]), out=nearest)
        spread.append(float(nearest.sum()))
    return sample[chosen[: _enough(spread)]]


def linked_rows(view: View, between: Callable[[], None] = lambda: None) -> UInt32s:
    """The ids of the live rows that are in the graph, ascending. between: see `elect`."""
    found = [NO_IDS]
    for start in range(0, view.live.rows, BLOCK_ROWS):
        state = view.live.state[start : min(start + BLOCK_ROWS, view.live.rows)]
        linked = view.graph.edges[start : start + len(state), LIFELINE] != 0
        found.append((start + np.flatnonzero(linked & (state[:, 0] != 0) & (state[:, 1] == 0))).astype(np.uint32))
        between()
    return np.concatenate(found)


def _distances(rows: Float64s, squares: Float64s, one: int) -> Float64s:
    """Squared distances of all rows to one of them; 0 where they are as good as equal."""
    products = np.einsum("ij,j->i", rows, rows[one])  # not BLAS, whose sums may hang on the number of threads
    found: Float64s = squares + squares[one] - 2 * products
    found[found <= EQUAL * (squares + squares[one])] = 0
    return found


def _enough(spread: list[float]) -> int:
    """How many of the candidates to keep. spread[i]: sum of squared distances to the nearest of the first i + 1.

    Where rows form clusters it collapses once each has an entry, and hardly falls from there on; elsewhere it falls by
    a power of their number, and a few entries are as good as many.
    """
    if spread[-1] == 0:
        return len(spread)  # every row of the sample equals one of them
    few = ENTRIES
    while 2 * few <= len(spread):
        left = spread[2 * few - 1]
        if left < COLLAPSE * spread[few - 1]:
            return next(at for at, value in enumerate(spread, 1) if at >= few and value <= COVERED * left)
        few *= 2
    return min(ENTRIES, len(spread))
