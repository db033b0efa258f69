"""disk.slab: rows as a search over the disk wants them, vector and edges together; fresh.slab: which are current; and
slots.slab: where they lie.

All are soft, beside the slabs of the database and no part of them: they come into being when they are wanted, are
left out of snapshots and compactions, and everything works without. The bit of a row is taken back before its edges
change, and set when the row has been written anew. A bit that is lost costs time; one that is wrong costs recall, since
the row then has edges of before; its vector is known by its birth. A row keeps the slot that it was given, as long as
the files live: a slot that is wrong costs time, for what lies there says whose it is.

Used by the writer thread, but for what kernels read, and for `Descriptors`.
"""

from __future__ import annotations

import logging
import os
import weakref
from contextlib import ExitStack, suppress
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
from .format import BOOT, PLACED, SETTLED
from .slab import FileSlab, SlabSpec

log = logging.getLogger("corenn.storage")

ROWS, BITS, SLOTS = "disk.slab", "fresh.slab", "slots.slab"
SLOT_BYTES = 4
LINE_BYTES = 64
ROOM = 1.125  # times what it grows by, as files do, has to be free
WASTED = 2  # slots for each row, beyond which nobody believes that so many were given


def words_of(settings: Settings, edge_columns: int) -> int:
    """Words of four bytes in a row of disk.slab."""
    vector = STORED[settings.dtype].itemsize * stored_columns(settings) // 4
    return row_words(seal_columns(settings), edge_columns, vector)


def disk_specs(settings: Settings, edges: SlabSpec) -> tuple[SlabSpec, SlabSpec, SlabSpec]:
    """disk.slab, whose rows are units of pages, fresh.slab, of one bit per row, and slots.slab, of a word.

    edges: of the same database.
    """
    shared = {"hard": False, "database": edges.database, "generation": edges.generation}
    _, unit_bytes = unit_of(words_of(settings, edges.columns))
    byte = np.dtype(np.uint8)
    return (
        SlabSpec(ROWS, byte, unit_bytes, dim=settings.dim, **shared),  # type: ignore[arg-type]
        SlabSpec(BITS, byte, LINE_BYTES, **shared),  # type: ignore[arg-type]
        SlabSpec(SLOTS, np.dtype(np.uint32), 1, **shared),  # type: ignore[arg-type]
    )


class Descriptors:
    """Open files, closed when nobody holds this object any more: a query reads what its view was taken of."""

    def __init__(self, files: Files, slabs: list[FileSlab]) -> None:
        """Open the files of some slabs once more.

        Raises:
            StorageError: also if another file has taken the place of one.
        """
        self.numbers: list[int] = []
        self._finalizer = weakref.finalize(self, _close_all, self.numbers)
        # At the end of the process threads may still read by these numbers, which must not become those of other files.
        self._finalizer.atexit = False
        for slab in slabs:
            self.numbers.append(files.open(slab.path, writable=False))
            if not slab.is_file(self.numbers[-1]):
                raise StorageError(f"{slab.path} is not the file that was opened: the database was removed or replaced")
            platform.read_at_random(self.numbers[-1])


def _close_all(numbers: list[int]) -> None:
    for number in numbers:
        os.close(number)


class DiskRows:
    """disk.slab, fresh.slab and slots.slab of one database. Guarded by the writer thread."""

    def __init__(self, files: Files, folder: Path, settings: Settings, edges: SlabSpec, *, writable: bool) -> None:
        """Open them, as they are there.

        Raises:
            FormatError: if one is missing or does not fit.
        """
        self.words = words_of(settings, edges.columns)
        self.unit_rows, self.unit_bytes = unit_of(self.words)
        self._writable, self._files = writable, files
        rows, bits, slots = disk_specs(settings, edges)
        for spec in (rows, bits, slots):
            if not (folder / spec.name).exists():
                raise FormatError(f"{folder / spec.name} is missing")
        with ExitStack() as opened:
            self.rows = FileSlab(files, folder / rows.name, rows, writable=writable, mapped=False)
            opened.callback(self.rows.close)
            self.bits = FileSlab(files, folder / bits.name, bits, writable=writable)
            opened.callback(self.bits.close)
            self.slot_slab = FileSlab(files, folder / slots.name, slots, writable=writable)
            opened.pop_all()
        self.current = 0  # rows whose bits are set, of a writer
        if writable:
            self._begin_anew_unless_whole()

    @classmethod
    def open(
        cls, files: Files, folder: Path, settings: Settings, edges: SlabSpec, *, writable: bool
    ) -> DiskRows | None:
        """What is there; None where nothing is, or nothing that can be used, which a writer then removes."""
        if not any((folder / name).exists() for name in (ROWS, BITS, SLOTS)):
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
        """All anew, with nothing in them.

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

    @property
    def slots(self) -> UInt32s:
        """The slot of each row, plus one, 0 for none: what is new in a file is zeros."""
        slots: UInt32s = self.slot_slab.array.reshape(-1)
        return slots

    @property
    def placed(self) -> int:
        """Slots that were given to rows, or lost by a process that was killed: those from here on are free."""
        return int(self.slot_slab.header[PLACED])

    @property
    def vacant(self) -> int:
        """Slots that there is room for and nobody has."""
        return self.rows.capacity * self.unit_rows - self.placed

    def _begin_anew_unless_whole(self) -> None:
        # A file that was cut off holds no row beyond its end.
        held, rows = self.rows.capacity * self.unit_rows, len(self.slots)
        if not self.trusted or self.placed > min(held, WASTED * rows):
            self.fresh[:] = 0
            self.slots[:] = 0
            self.slot_slab.header[PLACED] = 0
        self.bits.header[BOOT] = boot_word()
        if rows < 8 * len(self.fresh):
            self.fresh[rows // 8 :] = 0
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

    # --- where rows lie --------------------------------------------------------------------------------------------

    def among_slots(self, ids: UInt32s) -> tuple[UInt32s, UInt32s]:
        """Those of `ids` that have a slot, and those that have none, or one that was never given to any."""
        slots = self.slots[ids]
        has = (slots > 0) & (slots <= self.placed)
        if not has.all():
            self.slots[ids[~has]] = 0
        return ids[has], ids[~has]

    def take_slots(self, count: int) -> int:
        """The first of so many slots that nobody has. What is not used of them is to be given back."""
        first = self.placed
        self._unsettle()
        # Before any row has one of them: no other is to be given it if the process dies in between.
        self.slot_slab.header[PLACED] = first + count
        return first

    def give_back_slots(self, first: int) -> None:
        """Nobody has the slots from `first` on."""
        self.slot_slab.header[PLACED] = first

    def displace(self, ids: UInt32s) -> None:
        """Rows are to be written again, somewhere else: not where any row lies, whatever the header says of that."""
        self.stale(ids)
        slots = self.slots
        slots[ids] = 0
        there = slots[slots <= self.rows.capacity * self.unit_rows]
        self.slot_slab.header[PLACED] = max(self.placed, int(there.max(initial=0)))

    # --- writing ---------------------------------------------------------------------------------------------------

    def reserve(self, rows: int, slots: int) -> None:
        """Make room for so many rows, and as many of them as there will be slots.

        Raises:
            DiskFullError, StorageError
        """
        self.bits.reserve(-(-rows // (8 * LINE_BYTES)))
        self.slot_slab.reserve(rows)
        units = -(-slots // self.unit_rows)
        if units > self.rows.capacity:
            # Some systems allocate what there is before they say that it is not enough, and nothing could be written.
            free, more = self._files.free_bytes(self.rows.path.parent), (units - self.rows.capacity) * self.unit_bytes
            if ROOM * more > free:
                raise DiskFullError(f"{self.rows.path} needs {more:,} bytes more, and the disk has {free:,} free")
        self.rows.reserve(units)

    def write(self, ids: UInt32s, words: AnyArray) -> None:
        """Write rows, uint32 (ids, words), to their slots, which all of them have, and set their bits.

        Raises:
            DiskFullError, StorageError: no bit is set then.
        """
        slots = self.slots[ids] - np.uint32(1)
        order = np.argsort(slots)
        data = words[order].view(np.uint8)
        size = data.shape[1]
        at = 0
        for first, count in as_runs(slots[order]).tolist():
            lead = min(-first % self.unit_rows, count)
            whole = (count - lead) // self.unit_rows * self.unit_rows
            for one in (*range(lead), *range(lead + whole, count)):
                self.rows.write_bytes(self._place(first + one, size), data[at + one].data)
            if whole:
                units = np.zeros((whole // self.unit_rows, self.unit_bytes), np.uint8)
                part = data[at + lead : at + lead + whole]
                units[:, : self.unit_rows * size] = part.reshape(len(units), self.unit_rows * size)
                self.rows.write_bytes(self._place(first + lead, size), units.reshape(-1).data)
            at += count
        self._set(np.sort(ids))

    def skip(self, ids: UInt32s) -> None:
        """There is nothing to write of these: no row has the id."""
        self._set(ids)

    def _place(self, slot: int, size: int) -> int:
        unit, within = divmod(slot, self.unit_rows)
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
            self.slot_slab.sync()
            self.bits.sync()
            self.bits.header[SETTLED] = 1
            self.bits.sync()

    def follow(self) -> bool:
        """For a reader: see them as they are now; False if others have taken their place."""
        slabs = (self.rows, self.slot_slab, self.bits)
        if any(slab.replaced for slab in slabs):
            return False
        for slab in slabs:
            slab.follow()
        return True

    def give_up(self) -> None:
        """Whoever has them mapped is to read nothing of it any more."""
        self.fresh[:] = 0
        self._writable = False
        with suppress(CoreNNError):
            self.close()

    def disk_bytes(self) -> int:
        """Bytes taken on disk."""
        return sum(slab.disk_bytes() for slab in (self.rows, self.slot_slab, self.bits))

    def close(self, *, settle: bool = True) -> None:
        """Release all; arrays handed out stay valid. settle: say on the disk that all of it is there."""
        with ExitStack() as stack:
            for slab in (self.rows, self.slot_slab, self.bits):
                stack.callback(slab.close)
            if self._writable and settle:
                with suppress(CoreNNError):
                    self.settle()


def _bits(ids: UInt32s) -> Bytes:
    """The bit of each row in its byte."""
    bits: Bytes = np.uint8(1) << (ids & np.uint32(7)).astype(np.uint8)
    return bits


def _ones(bits: Bytes) -> int:
    return int(np.bitwise_count(bits).sum(dtype=np.int64))


def remove(files: Files, folder: Path) -> None:
    """Remove the files, if they are there.

    Raises:
        StorageError
    """
    for name in (BITS, SLOTS, ROWS):
        files.remove(folder / name)
