"""CoreNN on disk, searched after it was opened again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from .base import Options
from .corenn import InMemory

if TYPE_CHECKING:
    from ...database import CoreNN


class OnDisk(InMemory):
    """A database made by `CoreNN.build`, or by inserts of so many rows with the option batch."""

    name = "corenn-disk"
    options: ClassVar[Options] = {**InMemory.options, "durability": "os"}
    on_disk = True

    @property
    def path(self) -> Path:
        """In the folder."""
        return self.folder / "database"

    def create(self, **settings: Any) -> CoreNN:
        """An empty one."""
        from ...database import CoreNN

        return CoreNN.create(self.path, **settings)

    def open(self, dim: int, metric: str) -> None:
        """Open for reading."""
        from ...database import CoreNN

        self.db = CoreNN.open(self.path, mode="r")
