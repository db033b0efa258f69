"""From another index into a database, and from a database into files."""

from .export import Exported, export_vectors
from .hnsw import Migrated, migrate_hnsw
from .hnswlib_file import HnswFile
from .snapshot import Rows, Snapshot

__all__ = ["Exported", "HnswFile", "Migrated", "Rows", "Snapshot", "export_vectors", "migrate_hnsw"]
