"""usearch: HNSW with vectors of several types."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ...types import AnyArray, Float32s, Int64s
from ..conditions import Where
from ..recall import MISSING, table
from .base import Options, Params, System, along

METRICS = {"l2": "l2sq", "cosine": "cos", "ip": "ip"}


class Usearch(System):
    """`usearch.index.Index`. dtype: f32, f16, bf16 or i8; for i8, vectors are brought to −127…127 by one scale."""

    name = "usearch"
    module = "usearch.index"
    package = "usearch"
    options: ClassVar[Options] = {"connectivity": 16, "expansion_add": 128, "dtype": "f32"}
    index: Any
    shift: float
    scale: float

    def build(self, base: Float32s, metric: str, threads: int) -> None:
        """One call of `add`."""
        from usearch.index import Index

        self.index = Index(ndim=base.shape[1], metric=METRICS[metric], **self.option)
        low, high = (float(base.min()), float(base.max())) if self.option["dtype"] == "i8" else (0.0, 0.0)
        self.shift = (low + high) / 2 if metric == "l2" else 0.0
        self.scale = 127 / (max(high - self.shift, self.shift - low) or 1)
        self.index.add(np.arange(len(base), dtype=np.uint64), self.stored(base), threads=threads)

    def stored(self, rows: Float32s) -> AnyArray:
        """Rows as they are handed to usearch."""
        if self.option["dtype"] != "i8":
            return rows
        codes: AnyArray = np.clip(np.rint((rows - self.shift) * self.scale), -127, 127).astype(np.int8)
        return codes

    def grid(self, k: int) -> list[Params]:
        """Values of expansion_search."""
        return along("expansion_search", k)

    def configure(self, **params: Any) -> None:
        """Set expansion_search."""
        self.index.expansion_search = params["expansion_search"]

    def query(self, queries: Float32s, k: int) -> Int64s:
        """One call."""
        if len(queries) == 1:  # which usearch answers as one vector
            return table([self.query_one(queries[0], k)], k, MISSING)
        found = self.index.search(self.stored(queries), k, threads=self.threads)
        there = np.arange(k) < np.asarray(found.counts)[:, None]
        ids: Int64s = np.where(there, found.keys.astype(np.int64), MISSING)
        return ids

    def query_one(self, query: Float32s, k: int) -> AnyArray:
        """One call with a vector."""
        keys: AnyArray = self.index.search(self.stored(query), k, threads=1).keys
        return keys

    def restriction(self, where: Where) -> Any:
        """There is a predicate in C++, Rust and others."""
        raise NotImplementedError(f"usearch {self.version()} takes no predicate in Python")

    def memory_bytes(self) -> int:
        """Length of the index if it were written, as of faiss and hnswlib: `memory_usage` has what is reserved, too."""
        return int(self.index.serialized_length)
