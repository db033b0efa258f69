"""CoreNN on disk: every batch is acknowledged by the database, and searched after it was opened again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from .base import Options
from .corenn import InMemory

if TYPE_CHECKING:
    from ...database import CoreNN


class OnDisk(InMemory):
    """A database made by `CoreNN.create`."""

    name = "corenn-disk"
    options: ClassVar[Options] = {**InMemory.options, "durability": "os"}
    on_disk = True

    def create(self, **settings: Any) -> CoreNN:
        """An empty database in the folder."""
        from ...database import CoreNN

        return CoreNN.create(self.folder / "database", **settings)

    def open(self, dim: int, metric: str) -> None:
        """Open for reading."""
        from ...database import CoreNN

        self.db = CoreNN.open(self.folder / "database", mode="r")
