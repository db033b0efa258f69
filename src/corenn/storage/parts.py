"""parts.slab: a first load that is linked in parts, as far as it has come.

It says which rows are in which part, and holds the edges of the parts that are linked. It is soft, beside the slabs of
the database and no part of them: it comes into being when rows are dealt to parts, and goes when their edges stand in
edges.slab. Nothing of it is synced: a part counts if its checksum holds, after a restart of the machine as well, and
else is linked anew. So a process that is killed loses the part that it was at.

Used by the one thread that writes.
"""

from __future__ import annotations

import hashlib
import logging
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from ..errors import CoreNNError, FormatError
from ..types import AnyArray, UInt32s
from .files import Files
from .format import PAGE, Header
from .slab import SlabSpec

log = logging.getLogger("corenn.storage")

NAME = "parts.slab"
PARTS_OF_A_ROW = 3
PLAN_BYTE = 256  # in the header page
_PLAN = struct.Struct("<16sQQI")  # what the parts follow from, rows, parts, CRC-32 of these and of the plan
_PART = struct.Struct("<QdII")  # rows, growth of distances, CRC-32 of their edges, CRC-32 of all before it
COPIED = 1 << 12  # rows read at a time


def digest_of(*what: bytes | str) -> bytes:
    """16 bytes that tell what a plan is of."""
    made = hashlib.blake2b(digest_size=16)
    for each in what:
        raw = each.encode() if isinstance(each, str) else each
        made.update(len(raw).to_bytes(8, "little") + raw)
    return made.digest()


class PartsFile:
    """The plan of a load in parts, and the edges of those that are linked.

    ids: of all its rows, uint32 (rows,). dealt: the parts of each, uint16 (rows, PARTS_OF_A_ROW). sizes: rows of each
    part.
    """

    def __init__(self, files: Files, path: Path, edges: SlabSpec, ids: UInt32s, dealt: AnyArray, nowhere: int) -> None:
        """nowhere: what stands in `dealt` for no part."""
        self.path, self.ids, self.dealt = path, ids, dealt
        self.sizes = np.bincount(dealt[dealt != nowhere])
        self._files, self._width = files, edges.columns
        table = -(-(PAGE + plan_bytes(len(ids))) // 8) * 8
        self._entries = table + _PART.size * np.arange(len(self.sizes), dtype=np.int64)
        first = -(-(table + _PART.size * len(self.sizes)) // PAGE) * PAGE
        self._starts = first + np.concatenate(([0], np.cumsum(self.sizes))) * self.row_bytes
        self._descriptor = -1
        self._sum, self._written = 0, 0

    @property
    def row_bytes(self) -> int:
        """Bytes of the edges of a row."""
        return 4 * self._width

    @property
    def size(self) -> int:
        """Bytes that the file has when all parts are linked."""
        return int(self._starts[-1])

    @classmethod
    def create(
        cls, files: Files, folder: Path, edges: SlabSpec, what: bytes, ids: UInt32s, dealt: AnyArray, nowhere: int
    ) -> PartsFile:
        """Begin with nothing linked. edges: of the same database. what: by which `open` tells whether it is of use.

        Raises:
            DiskFullError, StorageError: nothing is left behind.
        """
        made = cls(files, folder / NAME, edges, ids, dealt, nowhere)
        files.remove(made.path)
        try:
            made._descriptor = files.open(made.path, writable=True, create=True)
            plan = ids.tobytes() + dealt.tobytes()
            head = _PLAN.pack(what, len(ids), len(made.sizes), 0)[:-4]
            page = bytearray(PAGE)
            fixed = _header(edges).pack()
            page[: len(fixed)] = fixed
            page[PLAN_BYTE : PLAN_BYTE + _PLAN.size] = head + struct.pack("<I", zlib.crc32(plan, zlib.crc32(head)))
            made._write(PAGE, memoryview(plan))
            made._write(int(made._entries[0]), memoryview(bytes(int(made._starts[0] - made._entries[0]))))
            made._write(0, memoryview(bytes(page)))
        except BaseException:
            made.close()
            with suppress(CoreNNError):
                files.remove(made.path)
            raise
        return made

    @classmethod
    def open(cls, files: Files, folder: Path, edges: SlabSpec, nowhere: int) -> tuple[PartsFile, bytes] | None:
        """What an earlier process has left, and what it is of; None where nothing is, or nothing that can be read."""
        path = folder / NAME
        if not path.exists():
            return None
        descriptor = -1
        try:
            descriptor = files.open(path, writable=True)
            page = files.read(descriptor, PAGE, 0, path)
            _header(edges).check(page, path)
            what, rows, parts, kept = _PLAN.unpack_from(page, PLAN_BYTE)
            if not 0 < rows <= files.size(descriptor) // plan_bytes(1):
                raise FormatError(f"{path} is cut off: it says that it holds {rows:,} rows")
            plan = files.read(descriptor, plan_bytes(rows), PAGE, path)
            head = page[PLAN_BYTE : PLAN_BYTE + _PLAN.size - 4]
            if zlib.crc32(plan, zlib.crc32(head)) != kept:
                raise FormatError(f"{path} is damaged: the checksum of its plan does not hold")
            ids = np.frombuffer(plan, np.uint32, rows)
            dealt = np.frombuffer(plan, np.uint16, rows * PARTS_OF_A_ROW, 4 * rows).reshape(rows, PARTS_OF_A_ROW)
            found = cls(files, path, edges, ids, dealt, nowhere)
            if len(found.sizes) != parts:
                raise FormatError(f"{path} is damaged: it has {len(found.sizes)} parts, and says {parts}")
        except (CoreNNError, OSError, struct.error) as error:
            log.warning("%s; its rows are linked anew", error)
            if descriptor >= 0:
                files.close(descriptor)
            return None
        found._descriptor = descriptor
        return found, what

    # --- parts -----------------------------------------------------------------------------------------------------

    def add(self, part: int, rows: UInt32s) -> None:
        """Write the edges of the next rows of a part, uint32 (n, columns of edges.slab).

        Raises:
            DiskFullError, StorageError
        """
        data = memoryview(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)
        self._write(int(self._starts[part]) + self._written * self.row_bytes, data)
        self._sum, self._written = zlib.crc32(data, self._sum), self._written + len(rows)

    def finish(self, part: int, growth: float) -> None:
        """All rows of a part are written: from here on it counts. growth: of distances, as it was measured there."""
        assert self._written == self.sizes[part]
        body = _PART.pack(self._written, growth, self._sum, 0)[:-4]
        self._write(int(self._entries[part]), memoryview(body + struct.pack("<I", zlib.crc32(body))))
        self.begin()

    def begin(self) -> None:
        """Nothing of the next part is written so far."""
        self._sum, self._written = 0, 0

    def rows(self, part: int, first: int, count: int) -> UInt32s:
        """The edges of some rows of a part, in the order in which they were added.

        Raises:
            StorageError
        """
        start = int(self._starts[part]) + first * self.row_bytes
        raw = self._files.read(self._descriptor, count * self.row_bytes, start, self.path)
        return np.frombuffer(raw, np.uint32).reshape(-1, self._width)

    def taken(self, part: int, column: int, between: Callable[[], None]) -> tuple[UInt32s, float] | None:
        """One column of the edges of a part, and its growth, if all of it is there and its checksum holds.

        between: called now and then, as the whole part is read.
        """
        try:
            entry = self._files.read(self._descriptor, _PART.size, int(self._entries[part]), self.path)
            rows, growth, kept, sealed = _PART.unpack(entry)
            if rows != self.sizes[part] or sealed != zlib.crc32(entry[:-4]):
                return None
            found, got = np.empty(rows, np.uint32), 0
            for start in range(0, rows, COPIED):
                some = self.rows(part, start, min(COPIED, rows - start))
                found[start : start + len(some)] = some[:, column]
                got = zlib.crc32(memoryview(some.reshape(-1).view(np.uint8).data), got)
                between()
        except (CoreNNError, ValueError, struct.error):
            return None
        return (found, growth) if got == kept else None

    # --- the file --------------------------------------------------------------------------------------------------

    def _write(self, byte: int, data: memoryview) -> None:
        self._files.write(self._descriptor, data, byte, self.path)

    def disk_bytes(self) -> int:
        """Bytes taken on disk."""
        return 0 if self._descriptor < 0 else self._files.allocated(self._descriptor, self.path)

    def close(self) -> None:
        """Leave what is there for whoever comes next."""
        if self._descriptor >= 0:
            self._files.close(self._descriptor)
            self._descriptor = -1


def plan_bytes(rows: int) -> int:
    """Bytes of the plan for so many rows."""
    return rows * (4 + 2 * PARTS_OF_A_ROW)


def _header(edges: SlabSpec) -> Header:
    return SlabSpec(
        NAME, edges.dtype, edges.columns, hard=False, database=edges.database, generation=edges.generation
    ).header


def remove(files: Files, folder: Path) -> None:
    """Remove what is there, as far as that goes: what stays is of no use to anybody, and tried again."""
    with suppress(CoreNNError):
        files.remove(folder / NAME)
