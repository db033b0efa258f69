"""Living within a memory limit: which pages of the mapped files stay in this process.

The files of a database are mapped, and the pages that were touched count as memory of the process until somebody lets
go of them. With `memory_limit` this does: between two ranges of rows it looks how much has become resident since the
database was opened, and where that is more than what the rest leaves of the limit, gives mapped pages back: first the
vectors and edges, of which there are most and any one is needed seldom; then the others. The system keeps the pages as
long as it has room for them, so that the next touch need not read the disk.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from typing import TYPE_CHECKING

from ..errors import InvalidSettingError
from .platform import let_go, mapped_bytes
from .rocks import RocksMetadata
from .slab import FileSlab

if TYPE_CHECKING:
    from .store import Store

log = logging.getLogger("corenn.memory")

GRAIN = 8
LOOK_SECONDS = 0.0001  # between two looks, each of which takes some microseconds
RESERVE = 0.25  # of the limit, for what is touched between two looks and what nobody counts
LEAST = 48 << 20  # what RocksDB, working memory and a few pages of every file need
SHARE = 16  # the part of the limit that changes of the metadata take before they become a table
LARGE = ("vectors.slab", "edges.slab", "disk.slab", "seals.slab")


class Residence:
    """The mapped pages of one database. Safe for any number of threads: whoever looks first gives back."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._base = mapped_bytes()  # code and data of libraries, and what others have mapped
        self._next = math.inf
        self._lock = threading.Lock()
        self.given_back = 0
        self.renew()

    def renew(self) -> None:
        """Go by the limit as it is now."""
        self._next = 0.0 if self.limit else math.inf
        if self.limit and self._store.writable and isinstance(self._store.metadata, RocksMetadata):
            self._store.metadata.live_within(self.limit // SHARE)

    @property
    def limit(self) -> int:
        """Bytes, 0 for none. A database in memory has no pages to give back."""
        return self._store.settings.memory_limit if self._store.path is not None else 0

    def check(self, fixed: int) -> None:
        """Refuse a limit that is too small for what cannot be given back.

        fixed: bytes of that, of which codes are the larger part.

        Raises:
            InvalidSettingError
        """
        least = LEAST + fixed
        if 0 < self.limit < least:
            raise InvalidSettingError(
                f"memory_limit={self.limit:,}: this database needs {least:,} bytes at least, {fixed:,} of them for its "
                "codes and states; raise the limit, or leave it out"
            )

    def mapped(self) -> int:
        """Bytes of files that have become resident since the database was opened."""
        now = mapped_bytes()
        self._base = min(self._base, now)  # others have let go of what was theirs
        return now - self._base

    def grain(self) -> int:
        """How much more often than usual somebody has to look: a touch takes a microsecond, and may bring 64 KiB."""
        return GRAIN if self.limit else 1

    def look(self) -> None:
        """Give pages back if there are too many. Called often, between steps of whatever is in work."""
        if time.perf_counter() < self._next or not self._lock.acquire(blocking=False):
            return
        try:
            allowed = int(self.limit * (1 - RESERVE)) - self.anonymous()
            for large in (True, False):
                if self.mapped() <= max(allowed, 0):
                    break
                self._give_back(large=large)
            self._next = time.perf_counter() + LOOK_SECONDS
        finally:
            self._lock.release()

    def anonymous(self) -> int:
        """Bytes that stay: RocksDB's, what walks begin with, hot rows, and what a first load works on."""
        kept = (*self._store.hot, self._store.navigation.ids, self._store.navigation.edges)
        return self._store.metadata.memory_bytes() + self._store.working + sum(array.nbytes for array in kept)

    def _give_back(self, *, large: bool) -> None:
        for name, slab in self._store.slabs.items():
            if (name in LARGE) == large and isinstance(slab, FileSlab):
                slab.let_go()
        if large:
            for memory in self._store.borrowed:
                let_go(memory)
        self.given_back += 1
