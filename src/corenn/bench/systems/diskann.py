"""DiskANN: a Vamana graph on disk, walked by product codes in memory; Microsoft's Python package of the C++ library."""

from __future__ import annotations

from typing import Any, ClassVar

from ...types import AnyArray, Float32s, Int64s
from ..recall import MISSING, table
from .base import Options, Params, System, along, normalised

GIGABYTE = 1 << 30
BUILD_BYTES = 16 << 30


class DiskAnn(System):
    """An index made by `build_disk_index`, searched by `StaticDiskIndex`.

    memory: bytes for the codes, from which their length follows. cached: rows kept in memory. beam: reads at once.
    """

    name = "diskann"
    module = "diskannpy"
    package = "diskannpy"
    options: ClassVar[Options] = {"degree": 64, "complexity": 100, "memory": 64 << 20, "cached": 0, "beam": 4}
    on_disk = True
    notes = ("vectors on disk",)
    index: Any
    complexity: int

    def build(self, base: Float32s, metric: str, threads: int) -> None:
        """Write the index; unit vectors and Euclidean distance stand for the cosine."""
        import diskannpy
        import numpy as np

        if metric == "ip":
            raise ValueError("no metric ip for an index on disk without a change of the vectors")
        self.folder.mkdir(exist_ok=True)
        diskannpy.build_disk_index(
            data=np.ascontiguousarray(normalised(base) if metric == "cosine" else base, np.float32),
            distance_metric="l2", index_directory=str(self.folder), complexity=self.option["complexity"],
            graph_degree=self.option["degree"], search_memory_maximum=self.option["memory"] / GIGABYTE,
            build_memory_maximum=BUILD_BYTES / GIGABYTE, num_threads=threads, vector_dtype=np.float32,
        )  # fmt: skip
        self.open(base.shape[1], metric)

    def open(self, dim: int, metric: str) -> None:
        """Load codes and cached rows."""
        import diskannpy

        self.unit = metric == "cosine"
        # 0.7.0 waits for ever for its only scratch where it is opened for one thread.
        self.index = diskannpy.StaticDiskIndex(
            index_directory=str(self.folder), num_threads=max(self.threads, 2), num_nodes_to_cache=self.option["cached"]
        )

    def grid(self, k: int) -> list[Params]:
        """Values of complexity, the length of the search list."""
        return along("complexity", k)

    def query(self, queries: Float32s, k: int) -> Int64s:
        """One call for all."""
        found = self.index.batch_search(
            normalised(queries) if self.unit else queries, k_neighbors=k, complexity=self.complexity,
            num_threads=self.threads, beam_width=self.option["beam"],
        )  # fmt: skip
        return table(list(found.identifiers), k, MISSING)

    def query_one(self, query: Float32s, k: int) -> AnyArray:
        """One search."""
        asked = normalised(query[None])[0] if self.unit else query
        found: AnyArray = self.index.search(
            asked, k_neighbors=k, complexity=self.complexity, beam_width=self.option["beam"]
        ).identifiers
        return found
