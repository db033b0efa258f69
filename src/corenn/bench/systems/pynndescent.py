"""PyNNDescent: a k-nearest-neighbour graph by descent, in Numba."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ...types import Float32s, Int64s
from .base import Options, Params, System

METRICS = {"l2": "euclidean", "cosine": "cosine", "ip": "dot"}
EPSILONS = (0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.12, 0.14, 0.16, 0.2, 0.24, 0.28, 0.32, 0.36, 0.4)
WARM_ROWS = 1_000


class PyNNDescent(System):
    """`pynndescent.NNDescent`."""

    name = "pynndescent"
    module = "pynndescent"
    package = "pynndescent"
    options: ClassVar[Options] = {"n_neighbors": 30, "pruning_degree_multiplier": 1.5, "diversify_prob": 1.0}
    index: Any
    epsilon: float

    def warm(self, base: Float32s, metric: str, threads: int) -> None:
        """Compile, by an index of few rows."""
        self.build(base[:WARM_ROWS], metric, threads)
        self.index.query(np.array(base[:10]), k=10)

    def build(self, base: Float32s, metric: str, threads: int) -> None:
        """Build and prepare, on rows of its own: it keeps what it is given."""
        from pynndescent import NNDescent

        self.index = NNDescent(
            np.array(base), METRICS[metric], n_jobs=threads, random_state=1,
            parallel_batch_queries=self.threads > 1, **self.option,
        )  # fmt: skip
        self.index.prepare()

    def grid(self, k: int) -> list[Params]:
        """Values of epsilon, by which the search goes beyond the radius of what it has found."""
        return [{"epsilon": epsilon} for epsilon in EPSILONS]

    def query(self, queries: Float32s, k: int) -> Int64s:
        """One call."""
        ids: Int64s = self.index.query(queries, k=k, epsilon=self.epsilon)[0].astype(np.int64)
        return ids
