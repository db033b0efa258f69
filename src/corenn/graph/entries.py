"""Entry points: where walks start."""

from __future__ import annotations

import numpy as np

from ..kernels.rows import decode_rows
from ..kernels.search import LIFELINE
from ..types import UInt32s
from .view import View

ENTRIES = 16
SAMPLE = 1024


def elect(view: View) -> UInt32s:
    """A sampled medoid first, then rows far from each other, so that a far cluster has an entry of its own.

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
    random = np.random.default_rng(len(alive))
    chosen = [int(np.argmin(((wide - wide.mean(axis=0)) ** 2).sum(axis=1)))]
    nearest = ((wide - wide[chosen[0]]) ** 2).sum(axis=1)
    while len(chosen) < min(ENTRIES, len(sample)) and nearest.sum() > 0:
        chosen.append(int(random.choice(len(sample), p=nearest / nearest.sum())))
        nearest = np.minimum(nearest, ((wide - wide[chosen[-1]]) ** 2).sum(axis=1))
    return sample[chosen]
