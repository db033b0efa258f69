"""Chroma: an embedded database over hnswlib."""

from __future__ import annotations

from typing import Any, ClassVar

from ...types import Float32s, Int64s
from ..conditions import Where, records
from ..recall import MISSING, table
from .base import Options, Params, System, along, batches, further

OPERATORS = {"==": "$eq", ">=": "$gte", "<": "$lt"}


class Chroma(System):
    """A collection of a persistent client; ids are row numbers as text."""

    name = "chroma"
    module = "chromadb"
    package = "chromadb"
    options: ClassVar[Options] = {"max_neighbors": 16, "ef_construction": 200}
    on_disk = True
    environment: ClassVar[dict[str, str]] = {"ANONYMIZED_TELEMETRY": "False"}
    notes = ("a database; ids are text",)
    client: Any
    collection: Any
    ef_search: int | None = None

    def connect(self) -> None:
        """A client that knows nothing of earlier ones."""
        import chromadb
        from chromadb.api.shared_system_client import SharedSystemClient

        SharedSystemClient.clear_system_cache()
        self.client = chromadb.PersistentClient(str(self.folder), chromadb.Settings(anonymized_telemetry=False))

    def build(self, base: Float32s, metric: str, threads: int) -> None:
        """Add all rows, in batches as large as the client allows."""
        self.connect()
        hnsw = {"space": metric, "num_threads": threads, **self.option}
        self.collection = self.client.create_collection("rows", configuration={"hnsw": hnsw}, embedding_function=None)

        def add(first: int, rows: Float32s) -> None:
            told = records(self.fields, first, len(rows)) if self.fields else None
            self.collection.add([str(row) for row in range(first, first + len(rows))], rows, told)

        batches(base, min(self.client.get_max_batch_size(), 5_000), add)

    def open(self, dim: int, metric: str) -> None:
        """Open the collection."""
        self.connect()
        self.collection = self.client.get_collection("rows", embedding_function=None)

    def grid(self, k: int) -> list[Params]:
        """Values of ef_search."""
        return along("ef_search", k)

    def configure(self, **params: Any) -> None:
        """Store ef_search and the threads of a search, and connect anew: a client ignores a change until then."""
        if params["ef_search"] == self.ef_search:
            return
        self.ef_search = params["ef_search"]
        self.collection.modify(configuration={"hnsw": {"ef_search": self.ef_search, "num_threads": self.threads}})
        self.open(0, "")

    def query(self, queries: Float32s, k: int) -> Int64s:
        """One call."""
        found = self.collection.query(query_embeddings=queries, n_results=k, include=[])["ids"]
        return table([[int(each) for each in ids] for ids in found], k, MISSING)

    def grid_within(self, k: int) -> list[Params]:
        """Further values of ef_search."""
        return further("ef_search", k)

    def restriction(self, where: Where) -> dict[str, Any]:
        """A `where` of Chroma's."""
        each = [{one.field: {OPERATORS[one.operator]: one.value}} for one in where]
        return {"$and": each} if len(each) > 1 else each[0]

    def query_within(self, query: Float32s, k: int, within: Any) -> list[int]:
        """One call."""
        found = self.collection.query(query_embeddings=query[None], n_results=k, where=within, include=[])["ids"]
        return [int(each) for each in found[0]]
