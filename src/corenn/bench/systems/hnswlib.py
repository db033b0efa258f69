"""hnswlib: the reference implementation of HNSW."""

from __future__ import annotations

from typing import Any, ClassVar

from ...types import Float32s, Int64s
from .base import Options, Params, System, along


class Hnswlib(System):
    """`hnswlib.Index` with row numbers as labels."""

    name = "hnswlib"
    module = "hnswlib"
    package = "hnswlib"
    options: ClassVar[Options] = {"M": 16, "ef_construction": 200}
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

    def memory_bytes(self) -> int:
        """What `index_file_size` says: elements, links and labels."""
        return int(self.index.index_file_size())
