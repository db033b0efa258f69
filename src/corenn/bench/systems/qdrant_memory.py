"""Qdrant, local mode, in memory: on disk it commits point by point, which takes longer than all that is measured."""

from __future__ import annotations

from .qdrant import Qdrant


class QdrantMemory(Qdrant):
    """A collection of a client without a path."""

    name = "qdrant-memory"
    on_disk = False

    def connect(self) -> None:
        """A client of its own."""
        from qdrant_client import QdrantClient

        self.client = QdrantClient(":memory:")
