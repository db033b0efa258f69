"""NGT, Yahoo Japan's Neighborhood Graph and Tree: ONNG, which is ANNG with its edges chosen anew."""

from __future__ import annotations

from typing import Any, ClassVar

from ...types import AnyArray, Float32s
from .base import Options, Params, System

DISTANCES = {"l2": "L2", "cosine": "Normalized Cosine", "ip": "Inner Product"}
EPSILONS = (
    -0.2,
    -0.1,
    -0.05,
    0.0,
    0.01,
    0.02,
    0.03,
    0.04,
    0.05,
    0.06,
    0.08,
    0.1,
    0.12,
    0.15,
    0.18,
    0.2,
    0.25,
    0.3,
    0.4,
)


class Ngt(System):
    """`ngtpy.Index`. edges: of the ANNG; outgoing, incoming: of the ONNG made from it, 0 to keep the ANNG."""

    name = "ngt"
    module = "ngtpy"
    package = "ngt"
    options: ClassVar[Options] = {"edges": 100, "outgoing": 10, "incoming": 120}
    notes = ("no call for several queries that takes numbers of threads",)
    index: Any
    epsilon: float

    def build(self, base: Float32s, metric: str, threads: int) -> None:
        """Insert all rows, and choose edges."""
        import ngtpy

        path = str(self.folder / "anng")
        ngtpy.create(
            path, base.shape[1], edge_size_for_creation=self.option["edges"], distance_type=DISTANCES[metric]
        )  # fmt: skip
        index = ngtpy.Index(path, log_disabled=True)
        index.batch_insert(base, num_threads=threads)
        index.save()
        index.close()
        if self.option["outgoing"]:
            optimizer = ngtpy.Optimizer(
                num_of_outgoings=self.option["outgoing"], num_of_incomings=self.option["incoming"], log_disabled=True
            )
            # What it would find out is the best epsilon for a recall: the sweep does that, with less than minutes.
            optimizer.set_processing_modes(
                search_parameter_optimization=False, prefetch_parameter_optimization=False,
                accuracy_table_generation=False,
            )  # fmt: skip
            optimizer.execute(path, str(self.folder / "onng"))
            path = str(self.folder / "onng")
        self.index = ngtpy.Index(path, read_only=True, log_disabled=True)

    def grid(self, k: int) -> list[Params]:
        """Values of epsilon, by which the search goes beyond the radius of what it has found."""
        return [{"epsilon": epsilon} for epsilon in EPSILONS]

    def query_one(self, query: Float32s, k: int) -> AnyArray:
        """One call."""
        ids: AnyArray = self.index.search(query, k, self.epsilon, with_distance=False)
        return ids

    def close(self) -> None:
        """Close the index."""
        self.index.close()
