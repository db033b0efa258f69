"""LanceDB: HNSW over vectors of one byte per component, inside inverted lists, ranked again by full vectors."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ...types import AnyArray, Float32s, Int64s
from ..recall import MISSING, table
from .base import EFFORTS, Options, Params, System

METRICS = {"l2": "l2", "cosine": "cosine", "ip": "dot"}


class LanceDb(System):
    """A table with an index of kind IVF_HNSW_SQ.

    partitions: of its inverted file. refine: candidates that are ranked again, in multiples of k.
    """

    name = "lancedb"
    module = "lancedb"
    package = "lancedb"
    options: ClassVar[Options] = {"m": 20, "ef_construction": 300, "partitions": 1, "refine": 5}
    on_disk = True
    notes = ("a database",)
    table: Any
    ef: int

    def build(self, base: Float32s, metric: str, threads: int) -> None:
        """Add all rows, then index them."""
        import lancedb
        import pyarrow

        vectors = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(base.reshape(-1)), base.shape[1])
        rows = pyarrow.table({"id": np.arange(len(base), dtype=np.int64), "vector": vectors})
        self.table = lancedb.connect(str(self.folder)).create_table("rows", rows)
        self.table.create_index(
            metric=METRICS[metric], index_type="IVF_HNSW_SQ", num_partitions=self.option["partitions"],
            m=self.option["m"], ef_construction=self.option["ef_construction"],
        )  # fmt: skip

    def open(self, dim: int, metric: str) -> None:
        """Open the table."""
        import lancedb

        self.table = lancedb.connect(str(self.folder)).open_table("rows")

    def grid(self, k: int) -> list[Params]:
        """Values of ef, which must not be below the candidates."""
        least = k * int(self.option["refine"])
        return [{"ef": ef} for ef in sorted({least, *(ef for ef in EFFORTS if ef > least)})]

    def query(self, queries: Float32s, k: int) -> Int64s:
        """One call; its rows name the query that each answers."""
        found = self._search(queries, k)
        asked = found["query_index"].to_numpy() if len(queries) > 1 else np.zeros(len(found), np.int64)
        ends = np.cumsum(np.bincount(asked, minlength=len(queries)))[:-1]
        return table(np.split(found["id"].to_numpy(), ends), k, MISSING)

    def query_one(self, query: Float32s, k: int) -> AnyArray:
        """One search."""
        found: AnyArray = self._search(query, k)["id"].to_numpy()
        return found

    def _search(self, asked: Float32s, k: int) -> Any:
        search = self.table.search(asked).limit(k).nprobes(self.option["partitions"]).ef(self.ef)
        return search.refine_factor(self.option["refine"]).select(["id", "_distance"]).to_arrow()
