"""Index files of hnswlib, as `save_index` of its release 0.8 writes them: mapped, and checked before use.

    header      96 bytes, see Header
    elements    each: u16 neighbours in use, u8 deleted mark, u8 zero, 2 × M neighbours u32, vector f32, label u64
    upper       for each element: u32 bytes, then for each of its levels above 0: u32 in use, M neighbours u32

Numbers are little-endian; size_t is eight bytes. The file carries no magic, no checksum and no name of its metric, so
that every length, count, level and number of an element is held against the size of the file and against the others.
Nothing is allocated that is larger than what the file holds. It must not be written while it is read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np

from ..config import MAX_DIM, MAX_ROWS
from ..errors import DatasetError
from ..storage.files import translated
from ..types import AnyArray, Float32s, UInt32s, UInt64s

_HEADER = struct.Struct("<6QiI3QdQ")
NO_ENTRY = 0xFFFFFFFF
MOST_LINKS = 0xFFFF  # a list counts its neighbours in 16 bits
BLOCK_BYTES = 8 << 20


class Header(NamedTuple):
    """The fields in their order; hnswlib calls them offsetLevel0, max_elements, cur_element_count, …"""

    level0_offset: int
    max_elements: int
    elements: int
    element_bytes: int
    label_offset: int
    vector_offset: int
    max_level: int
    entry: int
    max_m: int
    max_m0: int
    m: int
    mult: float
    ef_construction: int


class Edges(NamedTuple):
    """degrees: int64 (rows,). neighbours: uint32 (rows, width), of which the first degrees[i] of each row count."""

    degrees: AnyArray
    neighbours: UInt32s


class _Lists(NamedTuple):
    """The lists above level 0: whose they are, ascending; their levels, descending; the word at which they begin."""

    owners: AnyArray
    levels: AnyArray
    starts: AnyArray


class HnswFile:
    """An index file, open for reading. A context manager; arrays that it returns are copies and outlive it.

    count: elements, deleted ones included. dim: components of a vector. m: the M of the index: an element has at most
    2 × M neighbours on level 0, and M on each level above.
    """

    def __init__(self, path: Path, dim: int) -> None:
        """Open and check everything but the elements themselves, which are checked as they are read.

        Raises:
            DatasetError: for a file that is no index, is torn, contradicts itself or holds vectors of another `dim`.
            StorageError: for one that the system does not let us read.
        """
        if not 1 <= dim <= MAX_DIM:
            raise DatasetError(f"dim={dim}: must be between 1 and {MAX_DIM:,}")
        self.path, self.dim = path, dim
        self._bytes = self._map()
        self.header = Header(*_HEADER.unpack(self._bytes[: _HEADER.size].tobytes()))
        self._check_geometry()
        self._check_size()
        self.count, self.m = self.header.elements, self.header.m
        stop = _HEADER.size + self.count * self.header.element_bytes
        self._elements = self._bytes[_HEADER.size : stop].view(self._element_type())
        self._upper: UInt32s = self._bytes[stop:].view("<u4")
        self._levels = self._scan_levels()
        self._lists = _lists_of(self._levels, 1 + self.m)

    def __enter__(self) -> HnswFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._bytes = self._elements = self._upper = np.empty(0, np.uint8)

    # --- header ---------------------------------------------------------------------------------------------------

    def _map(self) -> AnyArray:
        with translated("read", self.path):
            if not self.path.is_file():
                raise DatasetError(f"{self.path} is not a file; give the one that save_index of hnswlib has written")
            size = self.path.stat().st_size
            if size < _HEADER.size:
                raise self._damage(f"its header takes {_HEADER.size} bytes, it has {size}")
            return np.memmap(self.path, np.uint8, "r")

    def _check_geometry(self) -> None:
        """M, and where links, vector and label stand in an element."""
        header = self.header
        if not (header.m >= 1 and header.max_m0 <= MOST_LINKS and header.max_m == header.m):
            raise self._damage(f"M is {header.m:,}, and {header.max_m:,} above level 0")
        fitting = (0, 2 * header.m, 4 + 8 * header.m, header.label_offset + 8)
        if (header.level0_offset, header.max_m0, header.vector_offset, header.element_bytes) != fitting:
            raise self._damage("links, vector and label of an element do not fit together")
        size = header.label_offset - header.vector_offset
        if size != 4 * self.dim:
            right = f"its dim is {size // 4:,}" if size > 0 and size % 4 == 0 else "only indexes of float32 can be read"
            raise DatasetError(
                f"{self.path}: vectors take {size:,} bytes, {self.dim:,} dimensions {4 * self.dim:,}; {right}"
            )

    def _check_size(self) -> None:
        """The number of elements, and where searches begin."""
        header, size = self.header, len(self._bytes)
        count = header.elements
        if not count <= min(header.max_elements, MAX_ROWS):
            raise self._damage(f"it counts {count:,} elements where {header.max_elements:,} have room")
        needed = _HEADER.size + count * (header.element_bytes + 4)
        if size < needed or (size - needed) % 4:
            raise self._damage(f"{count:,} elements take {needed:,} bytes and whole lists of links, it has {size:,}")
        empty = (header.entry, header.max_level) == (NO_ENTRY, -1)
        if not (header.entry < count and header.max_level >= 0 if count else empty):
            raise self._damage(f"searches begin at element {header.entry:,} of {count:,}, level {header.max_level}")

    def _damage(self, what: str) -> DatasetError:
        return DatasetError(f"{self.path} is damaged or no index of hnswlib: {what}; write it again with save_index")

    def _element_type(self) -> np.dtype[np.void]:
        return np.dtype([
            ("degree", "<u2"), ("mark", "u1"), ("zero", "u1"), ("neighbours", "<u4", (self.header.max_m0,)),
            ("vector", "<f4", (self.dim,)), ("label", "<u8"),
        ])  # fmt: skip

    # --- levels ---------------------------------------------------------------------------------------------------

    def _scan_levels(self) -> AnyArray:
        """The level of each element, int32 (count,)."""
        levels = np.zeros(self.count, np.int32)
        words = memoryview(np.ascontiguousarray(self._upper))  # type: ignore[arg-type]
        length, most = 1 + self.m, self.header.max_level
        at = 0
        for element in range(self.count):
            if at >= len(words):
                raise self._damage(f"it ends before the links of element {element}")
            size = words[at]
            at += 1
            if size:
                level, rest = divmod(size, 4 * length)
                if rest or level > most or at + level * length > len(words):
                    raise self._damage(f"element {element} has {size} bytes of links above level 0")
                levels[element] = level
                at += level * length
        if at != len(words):
            raise self._damage(f"{4 * (len(words) - at):,} bytes follow its last element")
        if self.count and levels[self.header.entry] != most:
            raise self._damage(f"searches begin on level {most}, which element {self.header.entry:,} is not the top of")
        return levels

    def highest(self, count: int) -> UInt32s:
        """The `count` elements of the highest levels, or all if there are fewer; that where searches begin is first."""
        by_level = np.argsort(-self._levels, kind="stable")[: count + 1]
        others = by_level[by_level != self.header.entry]
        return np.concatenate(([self.header.entry], others))[: min(count, self.count)].astype(np.uint32)

    # --- elements -------------------------------------------------------------------------------------------------

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Ranges of elements of some megabytes each, which cover all."""
        step = max(1, BLOCK_BYTES // self.header.element_bytes)
        for start in range(0, self.count, step):
            yield start, min(start + step, self.count)

    def labels(self) -> tuple[UInt64s, AnyArray]:
        """The label of each element, uint64 (count,), and whether it is marked as deleted, bool (count,).

        Raises:
            DatasetError: for a mark that hnswlib does not set.
        """
        labels, deleted = np.empty(self.count, np.uint64), np.empty(self.count, np.bool_)
        for start, stop in self.blocks():
            part = self._elements[start:stop]
            labels[start:stop], deleted[start:stop] = part["label"], part["mark"]
            wrong = (part["mark"] > 1) | (part["zero"] != 0)
            if wrong.any():
                element = start + int(np.argmax(wrong))
                raise self._damage(f"element {element} has a deleted mark of {self._elements['mark'][element]}")
        return labels, deleted

    def vectors(self, start: int, stop: int) -> Float32s:
        """The vectors of elements start … stop - 1 as they are stored, float32 (rows, dim); NaN and all."""
        return np.array(self._elements["vector"][start:stop], np.float32)

    def edges(self, start: int, stop: int) -> Edges:
        """The neighbours of elements start … stop - 1 on level 0.

        Raises:
            DatasetError: for a list that is too long or names an element that does not exist.
        """
        part = self._elements[start:stop]
        edges = Edges(np.array(part["degree"], np.int64), np.array(part["neighbours"], np.uint32))
        self._check_edges(edges, np.arange(start, stop), 0)
        return edges

    def upper_edges(self, start: int, stop: int) -> Iterator[tuple[AnyArray, Edges]]:
        """The lists above level 0 of elements start … stop - 1, some at a time: whose they are, and the neighbours.

        Elements ascend; of one, the list of the highest level comes first.

        Raises:
            DatasetError: for a list that is too long or names an element that is not on its level.
        """
        step = max(1, BLOCK_BYTES // (4 + 4 * self.m))
        low, high = np.searchsorted(self._lists.owners, (start, stop)).tolist()
        for first in range(low, high, step):
            owners, levels, starts = (each[first : min(first + step, high)] for each in self._lists)
            words = self._upper[starts[:, None] + np.arange(1 + self.m)]
            edges = Edges(words[:, 0].astype(np.int64), words[:, 1:])
            self._check_edges(edges, owners, levels)
            yield owners, edges

    def _check_edges(self, edges: Edges, elements: AnyArray, levels: AnyArray | int) -> None:
        width = edges.neighbours.shape[1]
        long = edges.degrees > width
        if long.any():
            worst = int(np.argmax(long))
            raise self._damage(
                f"element {elements[worst]} has {edges.degrees[worst]} neighbours where {width} have room"
            )
        used = np.arange(width) < edges.degrees[:, None]
        wrong = used & (edges.neighbours >= self.count)
        if not wrong.any() and not isinstance(levels, int):
            # A search that comes to a neighbour on a level where it has no list reads what is not there.
            known = np.where(used, edges.neighbours, 0)
            wrong = used & (self._levels[known] < levels[:, None])
        if wrong.any():
            row, slot = np.argwhere(wrong)[0]
            level = levels if isinstance(levels, int) else levels[row]
            raise self._damage(
                f"element {elements[row]} has the neighbour {edges.neighbours[row, slot]} on level {level}, "
                "which is not there"
            )


def _lists_of(levels: AnyArray, length: int) -> _Lists:
    """The lists above level 0, of `length` words each."""
    upper = np.flatnonzero(levels)
    heights = levels[upper].astype(np.int64)
    owners = np.repeat(upper, heights)
    before = np.cumsum(heights) - heights  # lists of the elements before
    number = np.arange(len(owners)) - np.repeat(before, heights)
    highest = np.repeat(heights, heights)
    # Before a list stand the sizes of all elements up to its own, and the lists before it.
    starts = owners + 1 + (np.repeat(before, heights) + highest - 1 - number) * length
    return _Lists(owners, highest - number, starts)
