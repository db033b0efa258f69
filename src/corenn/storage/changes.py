"""Which parts of the slabs have changed since a snapshot of the files was taken.

`changes.slab` holds a number for each MiB of each slab: the time at which it changed last. Time is counted in
snapshots: each one reads the clock and moves it on, so what has a later number than the snapshot was changed after it
began. A commit number would not do, since rows of one commit are linked at several times.

The file is soft, and written through its mapping by the writer thread alone. Where it is lost, or may not have reached
the disk before the machine restarted, it begins anew, and everything counts as changed.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import CoreNNError, FormatError, NewerFormatError, OlderFormatError
from ..types import AnyArray, UInt64s
from .files import Files
from .format import BOOT, CLOCK, MAX_TICKS, SETTLED, TICKS
from .platform import boot_id
from .slab import FileSlab, SlabSpec

log = logging.getLogger("corenn.storage")

NAME = "changes.slab"
# The column of each slab; one is spare, so that a row is a cache line.
COLUMNS = ("vectors.slab", "seals.slab", "state.slab", "edges.slab", "keys.slab", "keys.heap", "codes.slab")


class Stamp(NamedTuple):
    """A time, and the number that was drawn at it: two copies of a database count on alike, but draw others."""

    clock: int
    drawn: int


class Changes:
    """The numbers of one database. Used by the writer thread only, but for `since` of what `tick` has given."""

    def __init__(self, files: Files, folder: Path, database: int) -> None:
        spec, path = _spec(database), folder / NAME
        try:
            self._slab = self._open(files, path, spec)
        except (NewerFormatError, OlderFormatError):
            raise
        except FormatError as error:
            log.warning("%s; everything counts as changed since the last snapshot", error)
            files.remove(path)
            self._slab = self._open(files, path, spec)
        self._files, self._lost = files, False
        self._begin_anew_unless_whole()
        self.clock, self.settled = int(self._slab.header[CLOCK]), bool(self._slab.header[SETTLED])

    @staticmethod
    def _open(files: Files, path: Path, spec: SlabSpec) -> FileSlab:
        if not path.exists():
            FileSlab.create(files, path.parent, spec)
        return FileSlab(files, path, spec, writable=True)

    def _begin_anew_unless_whole(self) -> None:
        header, boot = self._slab.header, boot_word()
        if int(header[CLOCK]) and (int(header[BOOT]) == boot or int(header[SETTLED])):
            header[BOOT] = boot
            return
        header[TICKS : TICKS + MAX_TICKS] = 0  # no snapshot is known from now on
        header[SETTLED], header[BOOT] = 0, boot
        header[CLOCK] = int(header[CLOCK]) + 1

    def watch(self, slab: FileSlab) -> None:
        """Be told by a slab before it changes."""
        slab.watch = _Column(self, COLUMNS.index(slab.spec.name))

    def mark(self, column: int, blocks: slice | AnyArray, last: int) -> None:
        """Note that MiB change, none beyond `last`."""
        if self.settled:
            # On the disk before the change is: after a restart of the machine nobody must trust what is written here.
            self._slab.header[SETTLED] = 0
            self._slab.sync()
            self.settled = False
        if last >= len(self._slab.array):
            self._slab.reserve(last + 1)
        self._slab.array[blocks, column] = self.clock

    def tick(self) -> tuple[Stamp, UInt64s]:
        """The time of a snapshot that begins now, and a copy of all numbers."""
        header = self._slab.header
        stamp = Stamp(self.clock, secrets.randbits(63) | 1)
        header[TICKS + stamp.clock % MAX_TICKS] = stamp.drawn
        self.clock += 1
        header[CLOCK] = self.clock
        return stamp, self._slab.array.copy()

    def knows(self, stamp: Stamp) -> bool:
        """Whether the numbers tell what has changed since: not after a loss, nor many snapshots later."""
        header = self._slab.header
        if self._lost:
            return False
        recent = 0 < int(header[CLOCK]) - stamp.clock < MAX_TICKS
        return recent and int(header[TICKS + stamp.clock % MAX_TICKS]) == stamp.drawn

    def settle(self) -> None:
        """Say, on the disk, that all numbers are there. Called when all slabs have been synced."""
        if self.settled or self._lost:
            return
        try:
            self._slab.sync()
            self._slab.header[SETTLED] = 1
            self._slab.sync()
            self.settled = True
        except CoreNNError:
            # What the system says it has failed to write it may forget as well: nobody must find it here again.
            log.warning("the notes of changes are lost; everything counts as changed", exc_info=True)
            self._lost = True
            with suppress(CoreNNError):
                self._files.remove(self._slab.path)

    def close(self) -> None:
        """Release the file."""
        self._slab.close()


class _Column:
    """The numbers of one slab. Rows mostly come one behind the other: what was marked just now is not marked again."""

    def __init__(self, changes: Changes, column: int) -> None:
        self._changes = changes
        self._column = column
        self._marked = (0, 0, 0)  # clock, first, stop

    def blocks(self, first: int, stop: int) -> None:
        clock, before, behind = self._marked
        if before <= first and stop <= behind and clock == self._changes.clock and not self._changes.settled:
            return
        self._changes.mark(self._column, slice(first, stop), stop - 1)
        self._marked = (self._changes.clock, first, stop)

    def scattered(self, blocks: AnyArray) -> None:
        self._changes.mark(self._column, blocks, int(blocks.max()))


def _spec(database: int) -> SlabSpec:
    return SlabSpec(NAME, np.dtype(np.uint64), len(COLUMNS) + 1, hard=False, database=database)


def settled_in(files: Files, folder: Path, database: int) -> bool:
    """Whether all slabs are on the disk as they are, for who keeps no notes."""
    try:
        slab = FileSlab(files, folder / NAME, _spec(database), writable=False)
    except (CoreNNError, OSError):
        return False
    settled = bool(slab.header[SETTLED])
    slab.close()
    return settled


def changed_since(numbers: UInt64s, name: str, clock: int) -> AnyArray:
    """The numbers of the MiB of a slab that have changed after a time, ascending. numbers: as `tick` gives them."""
    changed: AnyArray = np.flatnonzero(numbers[:, COLUMNS.index(name)] > np.uint64(clock))
    return changed


def boot_word() -> int:
    """The boot of the machine as one word, which is never 0."""
    return int.from_bytes(hashlib.blake2b(boot_id().encode(), digest_size=8).digest(), "little") | 1
