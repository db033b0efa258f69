"""CoreNN on disk, searched after it was opened again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ...types import Float32s
from ..timing import settled
from .base import Options, Params
from .corenn import InMemory

if TYPE_CHECKING:
    from ...database import CoreNN


class OnDisk(InMemory):
    """A database made by `CoreNN.build`, or by inserts of so many rows with the option batch.

    limit: its `memory_limit` once it is opened again, in bytes; 0 for none. With one it is opened for writing, since
    the writer makes the codes and the file that searches go over. building: its `memory_limit` while it is built.
    """

    name = "corenn-disk"
    options: ClassVar[Options] = {**InMemory.options, "durability": "os", "limit": 0, "building": 0}
    on_disk = True

    @property
    def path(self) -> Path:
        """In the folder."""
        return self.folder / "database"

    def create(self, **settings: Any) -> CoreNN:
        """An empty one."""
        from ...database import CoreNN

        return CoreNN.create(self.path, **settings)

    def settings(self) -> Params:
        """Without the limits, which change."""
        given = {name: value for name, value in super().settings().items() if name not in ("limit", "building")}
        return {**given, "memory_limit": self.option["building"]} if self.option["building"] else given

    def open(self, dim: int, metric: str) -> None:
        """Open for reading, or within the limit."""
        from ...database import CoreNN

        limit = self.option["limit"]
        self.db = CoreNN.open(self.path, memory_limit=limit) if limit else CoreNN.open(self.path, mode="r")

    def settle(self, seconds: float) -> None:
        """Wait until codes and disk.slab are as they are to be, for a while without a change."""
        settled(self.db, seconds)

    def work(self, queries: Float32s, k: int) -> dict[str, float]:
        """As `explain` tells, pages too."""
        hits = self.db.query(queries, k=k, search_list=self.search_list, threads=self.threads, explain=True)
        told = [each.explain for each in hits if each.explain is not None]
        return {name: sum(getattr(each, name) for each in told) / len(told) for name in ("distances", "hops", "pages")}
