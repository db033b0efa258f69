"""Voyager, Spotify's HNSW."""

from __future__ import annotations

from typing import Any, ClassVar

from ...types import Float32s, Int64s
from .base import Options, Params, System, along

SPACES = {"l2": "Euclidean", "cosine": "Cosine", "ip": "InnerProduct"}


class Voyager(System):
    """`voyager.Index`. storage: Float32, Float8 or E4M3."""

    name = "voyager"
    module = "voyager"
    package = "voyager"
    options: ClassVar[Options] = {"M": 16, "ef_construction": 200, "storage": "Float32"}
    index: Any
    query_ef: int

    def build(self, base: Float32s, metric: str, threads: int) -> None:
        """One call of `add_items`, which refuses arrays that cannot be written to."""
        import voyager

        self.index = voyager.Index(
            getattr(voyager.Space, SPACES[metric]), base.shape[1], M=self.option["M"],
            ef_construction=self.option["ef_construction"], max_elements=len(base),
            storage_data_type=getattr(voyager.StorageDataType, self.option["storage"]),
        )  # fmt: skip
        self.index.add_items(base.copy(), num_threads=threads)

    def grid(self, k: int) -> list[Params]:
        """Values of query_ef."""
        return along("query_ef", k)

    def query(self, queries: Float32s, k: int) -> Int64s:
        """One call."""
        ids: Int64s = self.index.query(queries, k, num_threads=self.threads, query_ef=self.query_ef)[0].view("int64")
        return ids
