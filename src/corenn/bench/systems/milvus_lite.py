"""Milvus Lite: the Milvus interface on files of this process."""

from __future__ import annotations

from typing import Any, ClassVar

from ...types import Float32s, Int64s
from ..conditions import Where, is_text, records, spoken
from ..recall import MISSING, table
from .base import Options, Params, System, along, batches, further

METRICS = {"l2": "L2", "cosine": "COSINE", "ip": "IP"}
BATCH = 2_000


class MilvusLite(System):
    """A collection with an HNSW index; ids are integers."""

    name = "milvus-lite"
    module = "pymilvus"
    package = "milvus-lite"
    options: ClassVar[Options] = {"M": 16, "efConstruction": 200}
    on_disk = True
    notes = ("a database",)
    client: Any
    ef: int

    def connect(self) -> None:
        """A client of the file."""
        import milvus_lite  # noqa: F401  (without it, pymilvus fails with a message of many lines)
        from pymilvus import MilvusClient

        self.client = MilvusClient(str(self.folder / "rows.db"))

    def build(self, base: Float32s, metric: str, threads: int) -> None:
        """Insert all rows, then flush and load."""
        from pymilvus import DataType

        self.connect()
        schema = self.client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=base.shape[1])
        index = self.client.prepare_index_params()
        index.add_index("vector", index_type="HNSW", metric_type=METRICS[metric], params=dict(self.option))
        for name, column in self.fields.items():
            if is_text(column):
                schema.add_field(name, DataType.VARCHAR, max_length=column.itemsize)  # bytes, 4 for each code point
            else:
                schema.add_field(name, DataType.INT64)
            index.add_index(name, index_type="INVERTED")
        self.client.create_collection("rows", schema=schema, index_params=index)

        def insert(first: int, rows: Float32s) -> None:
            told = records(self.fields, first, len(rows)) if self.fields else [{}] * len(rows)
            self.client.insert(
                "rows",
                [
                    {"id": first + at, "vector": row, **each}
                    for at, (row, each) in enumerate(zip(rows, told, strict=True))
                ],
            )

        batches(base, BATCH, insert)
        self.client.flush("rows")
        self.client.load_collection("rows")

    def open(self, dim: int, metric: str) -> None:
        """Open the file and load the collection."""
        self.connect()
        self.client.load_collection("rows")

    def grid(self, k: int) -> list[Params]:
        """Values of ef."""
        return along("ef", k)

    def query(self, queries: Float32s, k: int) -> Int64s:
        """One call."""
        return table(self._search(queries, k, ""), k, MISSING)

    def grid_within(self, k: int) -> list[Params]:
        """Further values of ef."""
        return further("ef", k)

    def restriction(self, where: Where) -> str:
        """A boolean expression of Milvus."""
        return spoken(where, "==", "and")

    def query_within(self, query: Float32s, k: int, within: Any) -> list[int]:
        """One call."""
        return self._search(query[None], k, within)[0]

    def _search(self, queries: Float32s, k: int, within: str) -> list[list[int]]:
        params = {"params": {"ef": self.ef}}
        found = self.client.search("rows", data=list(queries), limit=k, filter=within, search_params=params)
        return [[hit["id"] for hit in hits] for hits in found]

    def close(self) -> None:
        """Close the client."""
        self.client.close()
