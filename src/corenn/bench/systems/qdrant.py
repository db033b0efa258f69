"""Qdrant, local mode: the Qdrant interface in this process, by exact search in NumPy."""

from __future__ import annotations

from typing import Any

from ...types import Float32s
from ..conditions import Where, records
from .base import Params, System, batches

BOUNDS = {">=": "gte", "<": "lt"}

DISTANCES = {"l2": "EUCLID", "cosine": "COSINE", "ip": "DOT"}
BATCH = 1_000


class Qdrant(System):
    """A collection of a client with a path; ids are integers."""

    name = "qdrant"
    module = "qdrant_client"
    package = "qdrant-client"
    on_disk = True
    pools = "search"
    notes = ("a database; exact search, no index",)
    client: Any

    def build(self, base: Float32s, metric: str, threads: int) -> None:
        """Upsert all rows."""
        from qdrant_client import models

        self.connect()
        shape = models.VectorParams(size=base.shape[1], distance=getattr(models.Distance, DISTANCES[metric]))
        self.client.create_collection("rows", vectors_config=shape)

        def add(first: int, rows: Float32s) -> None:
            ids = list(range(first, first + len(rows)))
            told: Any = records(self.fields, first, len(rows)) if self.fields else None
            self.client.upsert("rows", models.Batch(ids=ids, vectors=rows.tolist(), payloads=told))

        batches(base, BATCH, add)

    def connect(self) -> None:
        """A client of the folder."""
        from qdrant_client import QdrantClient

        self.client = QdrantClient(path=str(self.folder), force_disable_check_same_thread=True)

    def open(self, dim: int, metric: str) -> None:
        """Open the folder."""
        self.connect()

    def grid(self, k: int) -> list[Params]:
        """Nothing to choose."""
        return [{}]

    def query_one(self, query: Float32s, k: int) -> list[int]:
        """One call."""
        found = self.client.query_points("rows", query=query, limit=k, with_payload=False)
        return [point.id for point in found.points]

    def restriction(self, where: Where) -> Any:
        """A filter of Qdrant's; in local mode there are no indexes of payloads."""
        from qdrant_client import models

        def condition(field: str, operator: str, value: Any) -> Any:
            if operator == "==":
                return models.FieldCondition(key=field, match=models.MatchValue(value=value))
            return models.FieldCondition(key=field, range=models.Range(**{BOUNDS[operator]: value}))

        return models.Filter(must=[condition(*each) for each in where])

    def query_within(self, query: Float32s, k: int, within: Any) -> list[int]:
        """One call."""
        found = self.client.query_points("rows", query=query, query_filter=within, limit=k, with_payload=False)
        return [point.id for point in found.points]

    def close(self) -> None:
        """Close the client."""
        self.client.close()
