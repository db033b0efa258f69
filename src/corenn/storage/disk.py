"""disk.slab: rows as a search over the disk wants them, vector and edges together; and fresh.slab: which are current.

Both are soft, beside the slabs of the database and no part of them: they come into being when they are wanted, are
left out of snapshots and compactions, and everything works without. The bit of a row is taken back before its edges
change, and set when the row has been written anew. A bit that is lost costs time; one that is wrong costs recall, since
the row then has edges of before; its vector is known by its birth.

Used by the writer thread, but for what kernels read, and for `Descriptors`.
"""

from __future__ import annotations

import logging
import weakref
from contextlib import suppress
from pathlib import Path

import numpy as np

from ..config import Settings
from ..errors import CoreNNError, DiskFullError, FormatError, NewerFormatError, OlderFormatError, StorageError
from ..kernels.disk import row_words, unit_of
from ..types import AnyArray, Bytes, UInt32s
from . import platform
from .changes import boot_word
from .commit import as_runs
from .encode import STORED, seal_columns, stored_columns
from .files import Files
from .format import BOOT, SETTLED
from .slab import FileSlab, SlabSpec

log = logging.getLogger("corenn.storage")

ROWS, BITS = "disk.slab", "fresh.slab"
LINE_BYTES = 64
ROOM = 1.125  # times what it grows by, as files do, has to be free


def words_of(settings: Settings, edge_columns: int) -> int:
    """Words of four bytes in a row of disk.slab."""
    vector = STORED[settings.dtype].itemsize * stored_columns(settings) // 4
    return row_words(seal_columns(settings), edge_columns, vector)


def disk_specs(settings: Settings, edges: SlabSpec) -> tuple[SlabSpec, SlabSpec]:
    """disk.slab, whose rows are units of pages, and fresh.slab, of one bit per row. edges: of the same database."""
    shared = {"hard": False, "database": edges.database, "generation": edges.generation}
    _, unit_bytes = unit_of(words_of(settings, edges.columns))
    byte = np.dtype(np.uint8)
    return (
        SlabSpec(ROWS, byte, unit_bytes, dim=settings.dim, **shared),  # type: ignore[arg-type]
        SlabSpec(BITS, byte, LINE_BYTES, **shared),  # type: ignore[arg-type]
    )


class Descriptors:
    """Open files, closed when nobody holds this object any more: a query reads what its view was taken of."""

    def __init__(self, files: Files, slabs: list[FileSlab]) -> None:
        """Open the files of some slabs once more.

        Raises:
            StorageError: also if another file has taken the place of one.
        """
        self.numbers: list[int] = []
        self._finalizer = weakref.finalize(self, _close_all, files, self.numbers)
        # At the end of the process threads may still read by these numbers, which must not become those of other files.
        self._finalizer.atexit = False
        for slab in slabs:
            self.numbers.append(files.open(slab.path, writable=False))
            if not slab.is_file(self.numbers[-1]):
                raise StorageError(f"{slab.path} is not the file that was opened: the database was removed or replaced")
            platform.read_at_random(self.numbers[-1])


def _close_all(files: Files, numbers: list[int]) -> None:
    for number in numbers:
        files.close(number)


class DiskRows:
    """disk.slab and fresh.slab of one database. Guarded by the writer thread."""

    def __init__(self, files: Files, folder: Path, settings: Settings, edges: SlabSpec, *, writable: bool) -> None:
        """Open both, as they are there.

        Raises:
            FormatError: if one is missing or does not fit.
        """
        self.words = words_of(settings, edges.columns)
        self.unit_rows, self.unit_bytes = unit_of(self.words)
        self._writable, self._files = writable, files
        rows, bits = disk_specs(settings, edges)
        for spec in (rows, bits):
            if not (folder / spec.name).exists():
                raise FormatError(f"{folder / spec.name} is missing")
        self.rows = FileSlab(files, folder / rows.name, rows, writable=writable, mapped=False)
        try:
            self.bits = FileSlab(files, folder / bits.name, bits, writable=writable)
        except BaseException:
            self.rows.close()
            raise
        self.current = 0  # rows whose bits are set, of a writer
        if writable:
            self._begin_anew_unless_whole()

    @classmethod
    def open(
        cls, files: Files, folder: Path, settings: Settings, edges: SlabSpec, *, writable: bool
    ) -> DiskRows | None:
        """What is there; None where nothing is, or nothing that can be used, which a writer then removes."""
        if not ((folder / ROWS).exists() or (folder / BITS).exists()):
            return None
        try:
            return cls(files, folder, settings, edges, writable=writable)
        except (NewerFormatError, OlderFormatError):
            raise
        except (FormatError, OSError) as error:
            log.warning("%s; searches do without, and it is made anew", error)
            if writable:
                with suppress(CoreNNError):
                    remove(files, folder)
            return None

    @classmethod
    def create(cls, files: Files, folder: Path, settings: Settings, edges: SlabSpec) -> DiskRows:
        """Both anew, with nothing in them.

        Raises:
            DiskFullError, StorageError
        """
        remove(files, folder)
        for spec in disk_specs(settings, edges):
            FileSlab.create(files, folder, spec)
        return cls(files, folder, settings, edges, writable=True)

    # --- which rows are current ------------------------------------------------------------------------------------

    @property
    def fresh(self) -> Bytes:
        """The bits, eight rows in a byte."""
        bits: Bytes = self.bits.array.reshape(-1)
        return bits

    @property
    def trusted(self) -> bool:
        """Whether the bits are of this boot of the machine, or all of it was on the disk before."""
        header = self.bits.header
        return int(header[BOOT]) == boot_word() or bool(header[SETTLED])

    def _begin_anew_unless_whole(self) -> None:
        if not self.trusted:
            self.fresh[:] = 0
        self.bits.header[BOOT] = boot_word()
        # A file that was cut off holds no row beyond its end.
        held = self.rows.capacity * self.unit_rows
        if held < 8 * len(self.fresh):
            self.fresh[held // 8 :] = 0
        self.recount()

    def stale(self, ids: UInt32s | slice) -> None:
        """Rows are about to change."""
        self._unsettle()
        fresh = self.fresh
        if isinstance(ids, slice):
            first, stop = ids.start, min(ids.stop, 8 * len(fresh))
            whole, end = -(-first // 8), stop // 8
            if whole < end:
                self.current -= _ones(fresh[whole:end])
                fresh[whole:end] = 0
            ragged = (range(first, min(8 * whole, stop)), range(max(8 * end, first), stop))
            ids = np.concatenate([np.array(part, np.uint32) for part in ragged])
        ids = np.unique(ids[ids < 8 * len(fresh)])
        bits = _bits(ids)
        self.current -= int(np.count_nonzero(fresh[ids >> 3] & bits))
        np.bitwise_and.at(fresh, ids >> 3, ~bits)

    def _set(self, ids: UInt32s) -> None:
        """Rows are current. ids: ascending, none twice."""
        self._unsettle()
        fresh, bits = self.fresh, _bits(ids)
        self.current += int(np.count_nonzero(fresh[ids >> 3] & bits == 0))
        np.bitwise_or.at(fresh, ids >> 3, bits)

    def fresh_among(self, ids: UInt32s) -> UInt32s:
        """Those of `ids` that are current."""
        within = ids[ids < 8 * len(self.fresh)]
        found: UInt32s = within[self.fresh[within >> 3] & _bits(within) != 0]
        return found

    def next_stale(self, first: int, rows: int, count: int) -> UInt32s:
        """Up to `count` ids that are not current, from `first`, a multiple of eight, on and below `rows`, ascending."""
        found: list[UInt32s] = []
        start, fresh = first, self.fresh
        while start < rows and count > 0:
            stop = min(start + (1 << 16), rows)
            bits = fresh[start // 8 : -(-stop // 8)]
            gone = np.flatnonzero(np.unpackbits(~bits, bitorder="little")[: stop - start])[:count]
            found.append((start + gone).astype(np.uint32))
            count -= len(gone)
            start = stop
        return np.concatenate([np.empty(0, np.uint32), *found])

    # --- writing ---------------------------------------------------------------------------------------------------

    def reserve(self, rows: int) -> None:
        """Make room for so many rows.

        Raises:
            DiskFullError, StorageError
        """
        self.bits.reserve(-(-rows // (8 * LINE_BYTES)))
        units = -(-rows // self.unit_rows)
        if units > self.rows.capacity:
            # Some systems allocate what there is before they say that it is not enough, and nothing could be written.
            free, more = self._files.free_bytes(self.rows.path.parent), (units - self.rows.capacity) * self.unit_bytes
            if ROOM * more > free:
                raise DiskFullError(f"{self.rows.path} needs {more:,} bytes more, and the disk has {free:,} free")
        self.rows.reserve(units)

    def write(self, ids: UInt32s, words: AnyArray) -> None:
        """Write rows at ascending ids, uint32 (ids, words), and set their bits.

        Raises:
            DiskFullError, StorageError: no bit is set then.
        """
        data = words.view(np.uint8)
        size = data.shape[1]
        at = 0
        for first, count in as_runs(ids).tolist():
            lead = min(-first % self.unit_rows, count)
            whole = (count - lead) // self.unit_rows * self.unit_rows
            for row in (*range(lead), *range(lead + whole, count)):
                self.rows.write_bytes(self._place(first + row, size), data[at + row].data)
            if whole:
                units = np.zeros((whole // self.unit_rows, self.unit_bytes), np.uint8)
                part = data[at + lead : at + lead + whole]
                units[:, : self.unit_rows * size] = part.reshape(len(units), self.unit_rows * size)
                self.rows.write_bytes(self._place(first + lead, size), units.reshape(-1).data)
            at += count
        self._set(ids)

    def skip(self, ids: UInt32s) -> None:
        """There is nothing to write of these: no row has the id."""
        self._set(ids)

    def _place(self, row: int, size: int) -> int:
        unit, within = divmod(row, self.unit_rows)
        return unit * self.unit_bytes + within * size

    # --- the disk --------------------------------------------------------------------------------------------------

    def _unsettle(self) -> None:
        if self.bits.header[SETTLED]:
            # On the disk before the change is: after a restart of the machine nobody must trust what is written here.
            self.bits.header[SETTLED] = 0
            self.bits.sync()

    def recount(self) -> None:
        """Count the rows that are current."""
        self.current = _ones(self.fresh)

    def settle(self) -> None:
        """Bring everything to the disk, and say there that it is.

        Raises:
            StorageError
        """
        if not self.bits.header[SETTLED]:
            self.rows.sync()
            self.bits.sync()
            self.bits.header[SETTLED] = 1
            self.bits.sync()

    def follow(self) -> bool:
        """For a reader: see both as they are now; False if others have taken their place."""
        if self.rows.replaced or self.bits.replaced:
            return False
        self.rows.follow()
        self.bits.follow()
        return True

    def give_up(self) -> None:
        """Whoever has them mapped is to read nothing of it any more."""
        self.fresh[:] = 0
        self._writable = False
        with suppress(CoreNNError):
            self.close()

    def disk_bytes(self) -> int:
        """Bytes taken on disk."""
        return self.rows.disk_bytes() + self.bits.disk_bytes()

    def close(self, *, settle: bool = True) -> None:
        """Release both; arrays handed out stay valid. settle: say on the disk that all of it is there."""
        try:
            if self._writable and settle:
                with suppress(CoreNNError):
                    self.settle()
            self.rows.close()
        finally:
            self.bits.close()


def _bits(ids: UInt32s) -> Bytes:
    """The bit of each row in its byte."""
    bits: Bytes = np.uint8(1) << (ids & np.uint32(7)).astype(np.uint8)
    return bits


def _ones(bits: Bytes) -> int:
    return int(np.bitwise_count(bits).sum(dtype=np.int64))


def remove(files: Files, folder: Path) -> None:
    """Remove both files, if they are there.

    Raises:
        StorageError
    """
    for name in (BITS, ROWS):
        files.remove(folder / name)
