"""Constants of the files on disk; docs/format.md draws the bytes."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import ForeignFileError, FormatError, NewerFormatError, OlderFormatError

VERSION = 1
MAGIC = b"CoreNN\r\n"
PAGE = 4096

# magic, version, flags, generation, bytes per row, dimensions, database, name, checksum of all before it
_HEADER = struct.Struct("<8sIIQQIQ16sI")

# Words of 8 bytes in a header page that change while the database lives. All of them are soft but PUBLISHED, which
# repeats what the metadata says for readers in other processes.
PUBLISHED = 32  # state.slab: the last commit whose born and died numbers are in place
FREED = 33  # state.slab: ids of rows that died up to this commit may have been given to others
LINKED = 32  # edges.slab: every commit up to this one is linked
JOURNAL = 33  # edges.slab: two words, the lifeline being threaded
RADIUS = 35  # edges.slab: float64, squared norm to which rows are lifted
ELECTED = 36  # edges.slab: rows linked when the entries were last chosen
ENTRY_COUNT = 37  # edges.slab: number of entries
GROWTH = 38  # edges.slab: float64, exponent with which squared distances grow with rank; 0 for unknown
GROWN = 39  # edges.slab: rows of which GROWTH is the mean
NAVIGATED = 40  # edges.slab: the commit at which the navigation graph's sample was drawn, 0 while there is none
ENTRIES = 64  # edges.slab: the entries, one word each
MAX_ENTRIES = 256
HEAP_END = 32  # keys.heap: bytes in use
CODED = 32  # codes.slab: every row below this one has its code
CHOSEN = 33  # codes.slab: the codes that were chosen, an index into CODINGS; 0 while there are none
CENTRE = 34  # codes.slab: the row that RaBitQ's residuals are taken from
TRIED = 35  # codes.slab: rows when that choice was last tried
BOOK = 36  # codes.slab: the codebook of the codes: its version, 32 bits, above the CRC-32 of what is kept of it
SLACK = 37  # codes.slab: float64, by which factor estimates were found to err; 0 for what codes of such bits err by
MISSED = 38  # codes.slab: float64, the part of the variance that the codebook missed when the codes were made
AGREED = 39  # codes.slab: float64, the part of what walks over vectors find that walks over the codes found then
SINCE = 40  # codes.slab: the last commit when the codes were made, or it was last looked
LOOKED = 41  # codes.slab: rows when it was last looked whether they have drifted away from the codebook
CLOCK = 32  # changes.slab: the time, counted in snapshots of the files
BOOT = 33  # changes.slab, fresh.slab: the boot of the machine under which it was written last
SETTLED = 34  # changes.slab, fresh.slab: 1 while what is on the disk is all
PLACED = 32  # slots.slab: slots that were given to rows
TICKS = 64  # changes.slab: a number drawn at each of the last MAX_TICKS times, one word each
MAX_TICKS = 256
CODINGS = ("", "none", "sq8", "sq4", "rabitq", "pq", "opq", "trunc")

KEY_ROW = struct.Struct("<II")  # metadata, key → id, id before it (NO_ID for none)
HEAD_ROW = struct.Struct("<QIQQ")  # metadata: commit, ids in use, live rows, dead rows
INTENT_ROW = struct.Struct("<Q")  # metadata, before runs of ids: number of a commit that comes in parts
PAYLOAD_ROW = struct.Struct("<Qii")  # metadata, before two texts: commit of the first, lengths or -1 for none
NO_ID = 0xFFFFFFFF
NEVER = (1 << 64) - 1  # died, beside a birth of 0: the id of a commit that was cut off, which is not used again


@dataclass(frozen=True, slots=True)
class Header:
    """What a slab says about itself in its first page. database: the number that its database drew at creation."""

    name: str
    generation: int
    row_bytes: int
    dim: int
    database: int

    def pack(self) -> bytes:
        """The fixed part, to be padded to PAGE."""
        body = _HEADER.pack(
            MAGIC, VERSION, 0, self.generation, self.row_bytes, self.dim, self.database, self.name.encode(), 0
        )[:-4]  # fmt: skip
        return body + struct.pack("<I", zlib.crc32(body))

    def check(self, page: bytes, path: Path) -> None:
        """Compare with the first page of a file.

        Raises:
            FormatError, ForeignFileError, NewerFormatError, OlderFormatError: naming the file and what does not fit.
        """
        if len(page) < _HEADER.size:
            raise FormatError(f"{path} is truncated: {len(page)} bytes are less than its header; run `corenn repair`")
        magic, version, flags, generation, row_bytes, dim, database, name, checksum = _HEADER.unpack(
            page[: _HEADER.size]
        )
        if magic != MAGIC:
            raise FormatError(f"{path} is no CoreNN file, it begins with {magic!r}; run `corenn repair`")
        if checksum != zlib.crc32(page[: _HEADER.size - 4]):
            raise FormatError(f"{path} has a damaged header, its checksum does not hold; run `corenn repair`")
        require_version(version, flags, path, path.parent)
        found = Header(name.rstrip(b"\0").decode(), generation, row_bytes, dim, database)
        if replace(found, database=self.database) == self and found != self:
            raise ForeignFileError(
                f"{path} belongs to another database; put back the file that was written with this one"
            )
        if found != self:
            raise FormatError(
                f"{path} does not fit this database: expected {self}, found {found}; put back the one that does"
            )


def require_version(version: int, flags: int, path: Path, database: Path) -> None:
    """Refuse a file of another version than the present one.

    Raises:
        NewerFormatError, OlderFormatError
    """
    if version > VERSION or flags:
        raise NewerFormatError(
            f"{path} has format version {version}, flags {flags:#x}; this CoreNN reads up to {VERSION}: upgrade it"
        )
    if version < VERSION:
        raise OlderFormatError(
            f"{path} has format version {version}, and this CoreNN writes {VERSION}; run `corenn upgrade {database}`, "
            "after which earlier ones cannot open it any more"
        )


def version_in(page: bytes) -> tuple[int, int] | None:
    """Version and flags in the first page of a file; None if it is no file of ours, or its header is damaged."""
    if len(page) < _HEADER.size:
        return None
    magic, version, flags, *_, checksum = _HEADER.unpack(page[: _HEADER.size])
    sound = magic == MAGIC and checksum == zlib.crc32(page[: _HEADER.size - 4])
    return (version, flags) if sound else None


def row_bytes_in(page: bytes) -> int | None:
    """Bytes per row of a file, by its first page; None as above."""
    return None if version_in(page) is None else int(_HEADER.unpack(page[: _HEADER.size])[4])


def restamped(page: bytes, version: int, generation: int) -> bytes:
    """The header of a page, for a file of another version and generation."""
    magic, _, flags, _, *rest, _ = _HEADER.unpack(page[: _HEADER.size])
    body = _HEADER.pack(magic, version, flags, generation, *rest, 0)[:-4]
    return body + struct.pack("<I", zlib.crc32(body))
