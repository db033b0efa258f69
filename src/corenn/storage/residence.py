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
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

from ..errors import CoreNNError, InvalidSettingError
from ..kernels.jit import Loading
from .platform import give_back_heap, let_go, mapped_bytes, mapped_of, private_bytes
from .rocks import RocksMetadata
from .slab import FileSlab

if TYPE_CHECKING:
    from .store import Store

log = logging.getLogger("corenn.memory")
Loading.measure = staticmethod(private_bytes)

GRAIN = 64
LOOK_SECONDS = 0.0001  # between two looks, each of which takes some microseconds
WATCH_SECONDS = 0.0005  # the same for who does nothing else
COUNT_SECONDS = 1.0  # between two counts, each of which takes milliseconds
PRIVATE_SHARE = 2  # private memory that nobody counts is taken for ours up to a part in so many of the limit
ALIKE = 1 << 20  # bytes that may come or go during a count
RESERVE = 0.125  # of the limit, for what is touched between two looks
LEAST = 48 << 20  # what RocksDB, working memory and a few pages of every file need
FLOOR_SHARE = 16  # of that least: pages that may stay whatever else takes, since walks would meet nothing but faults
SHARE = 16  # the part of the limit that changes of the metadata take before they become a table
HELD = ("codes.slab", "state.slab")  # what every walk touches, all over
LARGE = ("vectors.slab", "edges.slab", "disk.slab", "seals.slab")


class Residence:
    """The mapped pages of one database. Safe for any number of threads: whoever looks first gives back, others wait.

    The system tells cheaply how many pages of files the whole process has, and at some cost whose they are. So what
    others have, such as libraries and other databases, is kept as one number, counted anew now and then. It is not to
    be more than it is in between: whoever gives back lowers it for all others.
    """

    _open: ClassVar[weakref.WeakSet[Residence]] = weakref.WeakSet()

    def __init__(self, store: Store) -> None:
        self._store = store
        if self.limit:
            give_back_heap()
        self._others, self._private = mapped_bytes(), _private_bytes()
        self._next = self._count_next = math.inf
        self._counted = -math.inf
        self._lock = threading.RLock()  # a signal handler may query in the middle of a look
        self.given_back = 0
        self.renew()
        if store.path is not None:
            Residence._open.add(self)

    def renew(self) -> None:
        """Go by the limit as it is now."""
        self._next = self._count_next = 0.0 if self.limit else math.inf
        if self.limit and self._store.writable and isinstance(self._store.metadata, RocksMetadata):
            self._store.metadata.live_within(self.limit // SHARE)
        for _, slab in () if self.limit else list(self._slabs()):
            slab.leave_hold()

    @property
    def limit(self) -> int:
        """Bytes, 0 for none. A database in memory has no pages to give back."""
        return self._store.settings.memory_limit if self._store.path is not None else 0

    def check(self, fixed: int, limit: int | None = None) -> None:
        """Refuse a limit that is too small for what cannot be given back.

        fixed: bytes of that, of which codes are the larger part. limit: another one than that in force.

        Raises:
            InvalidSettingError
        """
        least, limit = LEAST + fixed, self.limit if limit is None or self._store.path is None else limit
        if 0 < limit < least:
            raise InvalidSettingError(
                f"memory_limit={limit:,}: this database needs {least:,} bytes at least, {fixed:,} of them for its "
                "codes and states; raise the limit, or leave it out"
            )

    def mapped(self) -> int:
        """Bytes of the files of this database that are resident, as far as that can be told without counting."""
        now = mapped_bytes()
        self._others = min(self._others, now)  # they have let go of some
        return now - self._others

    def count(self) -> int:
        """The same, counted: some milliseconds. 0 for a database in memory, and where it cannot be told."""
        if self.limit:
            give_back_heap()
        before = mapped_bytes()
        own = 0 if self._store.path is None else mapped_of(self._store.path)
        after = mapped_bytes()
        if abs(after - before) <= ALIKE:  # else nobody knows whose it was that has come or gone meanwhile
            self._others = max(min(before, after) - own, 0)
            self._count_next = time.perf_counter() + COUNT_SECONDS
        else:
            self._count_next = time.perf_counter() + COUNT_SECONDS / 16
        self._counted = time.perf_counter()
        return own

    def told(self) -> int:
        """The same, counted once a second at most: the system has nobody touch memory meanwhile, queries neither."""
        if self._store.path is None:
            return 0
        return self.mapped() if time.perf_counter() < self._counted + COUNT_SECONDS else self.count()

    def grain(self) -> int:
        """How much more often than usual somebody has to look: a touch takes a microsecond, and may bring 64 KiB."""
        return GRAIN if self.limit else 1

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look all the time, beside work that does not."""
        if not self.limit:
            yield
            return
        done = threading.Event()

        def watch() -> None:
            while not done.wait(WATCH_SECONDS):
                self.look()

        watcher = threading.Thread(target=watch, name="corenn-memory", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()
            self.look()

    def look(self) -> None:
        """Give pages back if there are too many. Called often, between steps of whatever is in work.

        None of that fails for it: where the system does not tell, as without a descriptor left, it is tried later.
        """
        if time.perf_counter() < self._next:
            return
        with self._lock:  # who went on while another one looks would bring in more than that one gives back
            if time.perf_counter() >= self._next:
                self._look()

    def _look(self) -> None:
        try:
            for name, slab in list(self._slabs()):
                if not slab.alone:
                    slab.map_what_is_touched()
                if name in HELD and slab.held is None:
                    self._hold(name, slab)
            if time.perf_counter() >= self._count_next:
                self.count()
            # Codes and states are given back for want of nothing but themselves: they would come again at once.
            for large, part in ((True, 1 - RESERVE), (False, 1.0)):
                if self.mapped() <= max(int(self.limit * part) - self.anonymous(), LEAST // FLOOR_SHARE):
                    break
                self._give_back(large=large)
            self._next = time.perf_counter() + LOOK_SECONDS
        except (OSError, CoreNNError):
            log.debug("it cannot be told what is resident", exc_info=True)
            self._next = time.perf_counter() + COUNT_SECONDS

    def _hold(self, name: str, slab: FileSlab) -> None:
        """Have the system keep what every walk touches: inserts read so much else that it would drop half of that."""
        if not slab.hold():
            log.info(
                "%s cannot be held in memory, so that inserts may read it again and again: raise `ulimit -l`", name
            )

    def leave(self) -> None:
        """Give everything back: what a closed database has mapped stays as long as anybody holds an array of it."""
        Residence._open.discard(self)
        if self.limit:
            self._next = math.inf
            for large in (True, False):
                self._give_back(large=large)

    def anonymous(self) -> int:
        """Bytes that stay: RocksDB's, what walks begin with, hot rows, the index of payloads, and what a first load
        works on; or what has come to the private memory of the process since the database was opened, if that is more.
        Some of it may be the user's: so it is taken for ours up to a share of the limit.
        """
        kept = (*self._store.hot, self._store.navigation.ids, self._store.navigation.edges)
        known = self._store.metadata.memory_bytes() + self._store.working + sum(array.nbytes for array in kept)
        known += 0 if self._store.payload_index is None else self._store.payload_index.size
        return max(known, min(_private_bytes() - self._private, self.limit // PRIVATE_SHARE))

    def _slabs(self) -> Iterator[tuple[str, FileSlab]]:
        """The mapped files, by the name of what they hold."""
        for store in (self._store, *self._store.beside):
            for name, slab in (*store.slabs.items(), ("draft", store.draft)):
                if isinstance(slab, FileSlab):
                    yield name, slab

    def _give_back(self, *, large: bool) -> None:
        before = mapped_bytes()
        for name, slab in list(self._slabs()):
            if (name in LARGE) == large:
                slab.let_go()
        if large:
            for memory in self._store.borrowed:
                let_go(memory)
        self.given_back += 1
        freed = max(before - mapped_bytes(), 0)
        for other in _all(Residence._open):
            if other is not self:
                other._others = max(other._others - freed, 0)


def _private_bytes() -> int:
    """Private memory but for machine code: of that an open empty database has as much, once it was used."""
    return private_bytes() - Loading.bytes


def _all(some: weakref.WeakSet[Residence]) -> list[Residence]:
    """What a set holds, to which other threads may add meanwhile."""
    while True:
        try:
            return list(some)
        except RuntimeError:  # it has changed in the middle
            continue
