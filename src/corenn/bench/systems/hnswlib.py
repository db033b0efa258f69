"""hnswlib: the reference implementation of HNSW."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ...types import AnyArray, Float32s, Int64s
from ..conditions import Where, matching
from .base import Options, Params, System, along, further


class Hnswlib(System):
    """`hnswlib.Index` with row numbers as labels."""

    name = "hnswlib"
    module = "hnswlib"
    package = "hnswlib"
    options: ClassVar[Options] = {"M": 16, "ef_construction": 200}
    ready_made = True
    index: Any

    def build(self, base: Float32s, metric: str, threads: int) -> None:
        """One call of `add_items`."""
        import hnswlib

        self.index = hnswlib.Index(space=metric, dim=base.shape[1])
        self.index.init_index(max_elements=len(base), random_seed=100, **self.option)
        self.index.add_items(base, num_threads=threads)

    def grid(self, k: int) -> list[Params]:
        """Values of ef."""
        return along("ef", k)

    def configure(self, **params: Any) -> None:
        """Set ef."""
        self.index.set_ef(params["ef"])

    def query(self, queries: Float32s, k: int) -> Int64s:
        """One call; too few elements within reach are an error of hnswlib's."""
        labels: Int64s = self.index.knn_query(queries, k=k, num_threads=self.threads)[0].view("int64")
        return labels

    def grid_within(self, k: int) -> list[Params]:
        """Further values of ef."""
        return further("ef", k)

    def restriction(self, where: Where) -> Any:
        """A function of a label, no more than a look at a byte, and how many rows it takes."""
        met = matching(self.fields, where)
        return met.tobytes().__getitem__, int(met.sum())

    def query_within(self, query: Float32s, k: int, within: Any) -> AnyArray:
        """One call for as many as there are: fewer within reach are an error of hnswlib's, and no answer here."""
        takes, count = within
        if not count:
            return np.empty(0, np.int64)
        try:
            found: AnyArray = self.index.knn_query(query, k=min(k, count), num_threads=1, filter=takes)[0][0]
        except RuntimeError as error:
            if "contiguous 2D array" not in str(error):
                raise
            return np.empty(0, np.int64)
        return found

    def memory_bytes(self) -> int:
        """What `index_file_size` says: elements, links and labels."""
        return int(self.index.index_file_size())
