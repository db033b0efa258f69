"""LanceDB: HNSW over vectors of one byte per component inside inverted lists, or product codes in such lists; in either
case ranked again by full vectors.
"""

from __future__ import annotations

from math import isqrt
from typing import Any, ClassVar

import numpy as np

from ...types import AnyArray, Float32s, Int64s
from ..conditions import Where, is_text, spoken
from ..recall import MISSING, table
from .base import EFFORTS, Options, Params, System, further

METRICS = {"l2": "l2", "cosine": "cosine", "ip": "dot"}
HNSW, PRODUCT = "IVF_HNSW_SQ", "IVF_PQ"
PROBES = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
REFINED = (5, 10, 20, 40)


class LanceDb(System):
    """A table with an index of kind IVF_HNSW_SQ, or IVF_PQ.

    partitions: of its inverted file; 0 for the square root of the rows. refine: candidates that are ranked again, in
    multiples of k; with IVF_PQ they are tried. width: components to a subspace of IVF_PQ. cache: bytes for parts of the
    index in memory, 0 for the package's own choice. together: queries per call at most, 0 for all, which it holds in
    memory with all their candidates.
    """

    name = "lancedb"
    module = "lancedb"
    package = "lancedb"
    options: ClassVar[Options] = {
        "index": HNSW, "m": 20, "ef_construction": 300, "partitions": 1, "refine": 5, "width": 4, "cache": 0,
        "together": 0,
    }  # fmt: skip
    on_disk = True
    notes = ("a database",)
    table: Any
    ef: int = 0
    probes: int = 0
    refine: int = 0

    def build(self, base: Float32s, metric: str, threads: int) -> None:
        """Add all rows, then index them."""
        import pyarrow

        vectors = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(base.reshape(-1)), base.shape[1])
        rows = pyarrow.table({"id": np.arange(len(base), dtype=np.int64), "vector": vectors, **self.fields})
        self.table = self._connect().create_table("rows", rows)
        index = self.option["index"]
        if index == HNSW:
            asked = {"m": self.option["m"], "ef_construction": self.option["ef_construction"]}
        else:
            asked = {"num_sub_vectors": divisor(base.shape[1], base.shape[1] // self.option["width"])}
        self.table.create_index(
            metric=METRICS[metric], index_type=index, num_partitions=self.option["partitions"] or isqrt(len(base)),
            **asked,
        )  # fmt: skip
        self._index_fields()

    def _index_fields(self) -> None:
        """As the documentation recommends: bitmaps for few values, trees for ranges."""
        from lancedb.index import Bitmap, BTree

        for name, column in self.fields.items():
            self.table.create_index(name, config=Bitmap() if is_text(column) else BTree())

    def open(self, dim: int, metric: str) -> None:
        """Open the table."""
        self.table = self._connect().open_table("rows")

    def _connect(self) -> Any:
        import lancedb

        cache = self.option["cache"]
        session = lancedb.Session(index_cache_size_bytes=cache, metadata_cache_size_bytes=cache // 4) if cache else None
        return lancedb.connect(str(self.folder), session=session)

    def grid(self, k: int) -> list[Params]:
        """Values of ef, which must not be below the candidates; or of lists to look into, for each of some refine."""
        if self.option["index"] != HNSW:
            return [{"refine": refine, "probes": probes} for refine in REFINED for probes in PROBES]
        least = k * int(self.option["refine"])
        return [{"ef": ef} for ef in sorted({least, *(ef for ef in EFFORTS if ef > least)})]

    def query(self, queries: Float32s, k: int) -> Int64s:
        """So many queries per call; its rows name the query that each answers."""
        step = self.option["together"] or len(queries)
        return np.concatenate([self._some(queries[at : at + step], k) for at in range(0, len(queries), step)])

    def _some(self, queries: Float32s, k: int) -> Int64s:
        found = self._search(queries, k)
        asked = found["query_index"].to_numpy() if len(queries) > 1 else np.zeros(len(found), np.int64)
        ends = np.cumsum(np.bincount(asked, minlength=len(queries)))[:-1]
        return table(np.split(found["id"].to_numpy(), ends), k, MISSING)

    def query_one(self, query: Float32s, k: int) -> AnyArray:
        """One search."""
        found: AnyArray = self._search(query, k)["id"].to_numpy()
        return found

    def grid_within(self, k: int) -> list[Params]:
        """Further values of ef; or the same lists."""
        if self.option["index"] != HNSW:
            return self.grid(k)
        return further("ef", k * int(self.option["refine"]))

    def restriction(self, where: Where) -> str:
        """A condition of SQL."""
        return spoken(where, "=", "AND")

    def query_within(self, query: Float32s, k: int, within: Any) -> AnyArray:
        """One search, filtered before."""
        found: AnyArray = self._search(query, k, within)["id"].to_numpy()
        return found

    def _search(self, asked: Float32s, k: int, within: str | None = None) -> Any:
        search = self.table.search(asked).limit(k)
        if within is not None:
            search = search.where(within, prefilter=True)
        if self.option["index"] == HNSW:
            search = search.nprobes(self.option["partitions"]).ef(self.ef).refine_factor(self.option["refine"])
        else:
            search = search.nprobes(self.probes).refine_factor(self.refine)
        return search.select(["id", "_distance"]).to_arrow()


def divisor(dim: int, most: int) -> int:
    """The largest number of equal parts of `dim` components that is at most `most`."""
    return max(parts for parts in range(1, max(most, 1) + 1) if dim % parts == 0)
