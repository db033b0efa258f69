"""sqlite-vec: exact search in SQLite."""

from __future__ import annotations

from typing import Any, ClassVar

from ...types import Float32s
from .base import Params, System, batches

BATCH = 10_000
METRICS = {"l2": "l2", "cosine": "cosine"}


class SqliteVec(System):
    """A `vec0` table; ids are rowids."""

    name = "sqlite-vec"
    module = "sqlite_vec"
    package = "sqlite-vec"
    on_disk = True
    notes: ClassVar[tuple[str, ...]] = ("a database; exact search, no index",)
    connection: Any

    def connect(self) -> None:
        """A connection with the extension."""
        import sqlite_vec

        self.connection = _sqlite().connect(self.folder / "rows.db", check_same_thread=False)
        self.connection.enable_load_extension(True)
        sqlite_vec.load(self.connection)
        self.connection.enable_load_extension(False)

    def build(self, base: Float32s, metric: str, threads: int) -> None:
        """Insert all rows."""
        if metric not in METRICS:
            raise ValueError(f"no metric {metric!r}; it has {', '.join(METRICS)}")
        self.connect()
        shape = f"vector float[{base.shape[1]}] distance_metric={METRICS[metric]}"
        self.connection.execute(f"create virtual table rows using vec0({shape})")

        def add(first: int, rows: Float32s) -> None:
            values = ((first + at, row.tobytes()) for at, row in enumerate(rows))
            self.connection.executemany("insert into rows(rowid, vector) values (?, ?)", values)
            self.connection.commit()

        batches(base, BATCH, add)

    def open(self, dim: int, metric: str) -> None:
        """Open the file."""
        self.connect()

    def grid(self, k: int) -> list[Params]:
        """Nothing to choose."""
        return [{}]

    def query_one(self, query: Float32s, k: int) -> list[int]:
        """One statement."""
        asked = "select rowid from rows where vector match ? and k = ? order by distance"
        return [row for (row,) in self.connection.execute(asked, (query.tobytes(), k))]

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()


def _sqlite() -> Any:
    """The module of the standard library, or one like it where that was built without extensions."""
    import sqlite3

    if hasattr(sqlite3.Connection, "enable_load_extension"):
        return sqlite3
    import pysqlite3

    return pysqlite3
