"""Slabs: fixed-width rows seen as one C-contiguous array, in a file or in anonymous memory.

Two backings behind one interface. `array` and `header` are replaced when a slab grows; whoever holds the old ones keeps
them valid and unmoved.
"""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ..errors import CapacityError, FormatError
from ..types import AnyArray, UInt32s, UInt64s
from . import platform
from .files import Files
from .format import PAGE, Header

BLOCK_BITS = 20
BLOCK_BYTES = 1 << BLOCK_BITS  # of which it is known when they changed: storage/changes.py


@dataclass(frozen=True, slots=True)
class SlabSpec:
    """Shape of a slab: `columns` items of `dtype` per row. Hard slabs are written with write() only."""

    name: str
    dtype: np.dtype[np.generic]
    columns: int
    hard: bool
    dim: int = 0
    database: int = 0
    generation: int = 1

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * self.columns

    @property
    def header(self) -> Header:
        return Header(self.name, self.generation, self.row_bytes, self.dim, self.database)


class Slab(Protocol):
    """What the store needs of a slab.

    array: (capacity, columns). header: the first page as 512 words, of which those named in format.py may change.
    """

    spec: SlabSpec
    array: AnyArray
    header: UInt64s

    def reserve(self, rows: int) -> None:
        """Make room for `rows` rows in all, zeroed. Nothing changes if it fails."""

    def write(self, first: int, rows: AnyArray) -> None:
        """Write rows from `first` on, in a call that can fail but never faults."""

    def note(self, ids: UInt32s | slice, *, vague: bool = False) -> None:
        """Say that rows are about to change through the mapping: those of some ids, or all of a range.

        vague: any of the range, nobody knows which, and few.
        """

    def write_header(self, word: int, value: int) -> None:
        """Set one word of the header."""

    def sync(self) -> None:
        """Bring the rows to the disk."""

    def disk_bytes(self) -> int:
        """Bytes taken on disk."""

    def close(self) -> None:
        """Release what the slab holds; arrays handed out stay valid."""


class Watch(Protocol):
    """Who is told which MiB of a file are about to change."""

    def blocks(self, first: int, stop: int) -> None:
        """A range of them."""

    def scattered(self, blocks: AnyArray) -> None:
        """At least one, in any order, also several times."""


DENSE = 4  # pages that are read at once for each that is needed


def _view(memory: mmap.mmap, spec: SlabSpec, offset: int) -> AnyArray:
    rows = (len(memory) - offset) // spec.row_bytes
    flat = np.frombuffer(memory, spec.dtype, count=rows * spec.columns, offset=offset)
    return flat.reshape(rows, spec.columns)


class MemorySlab:
    """A slab in anonymous memory, reserved at once so that growth moves nothing. Not safe for concurrent writes."""

    def __init__(self, spec: SlabSpec, most_rows: int) -> None:
        self.spec = spec
        self.header: UInt64s = np.zeros(PAGE // 8, np.uint64)
        # A machine cannot hold more than this; where address space is limited, take what there is.
        size = min(most_rows * spec.row_bytes, max(1 << 30, 2 * platform.memory_bytes()))
        while True:
            try:
                self._memory = platform.map_anonymous(size)
                break
            except OSError:
                size //= 2
                if size < 1 << 20:
                    raise
        self.array = _view(self._memory, spec, 0)

    def reserve(self, rows: int) -> None:
        if rows > len(self.array):
            raise CapacityError(
                f"{self.spec.name}: {rows:,} rows do not fit in the {len(self.array):,} that the memory "
                "of this machine allows; use a database on disk"
            )

    def write(self, first: int, rows: AnyArray) -> None:
        self.array[first : first + len(rows)] = rows

    def note(self, ids: UInt32s | slice, *, vague: bool = False) -> None:
        """Nobody asks."""

    def write_header(self, word: int, value: int) -> None:
        self.header[word] = value

    def sync(self) -> None:
        """Nothing to bring anywhere."""

    def disk_bytes(self) -> int:
        return 0

    def close(self) -> None:
        """The memory goes with its last array."""


class FileSlab:
    """A slab in a file: one header page, then the rows. Not safe for concurrent writes.

    Hard slabs, and all slabs of a reader, are mapped privately: a stray store can never reach the file.
    """

    GROWTH = 8  # a file grows by an eighth: few remappings, little unused space
    LEAST_BYTES = 64 << 10

    def __init__(self, files: Files, path: Path, spec: SlabSpec, *, writable: bool, mapped: bool = True) -> None:
        """mapped: whether the rows are; else `array` has none, and they are written with `write_bytes`."""
        self.spec = spec
        self._all = mapped
        self.path = path
        self._files = files
        self._writable = writable
        self.watch: Watch | None = None
        self._memory: mmap.mmap | None = None
        self._former: list[weakref.ref[mmap.mmap]] = []
        self._stored = self._scarce = self.alone = False
        self.held: bool | None = None  # None until somebody asks for it: see `hold`
        self._giving = threading.Lock()  # what `store` changes is gone if its pages are given back in between
        self._ordered: mmap.mmap | None = None  # see `in_order`
        self.copied: Callable[[UInt32s | slice], None] | None = None  # told of the same by ids
        self._descriptor = files.open(path, writable=writable)
        try:
            self.remap()
            spec.header.check(self.header.tobytes(), path)
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(cls, files: Files, folder: Path, spec: SlabSpec, name: str | None = None) -> None:
        """Write an empty slab. name: of the file, if that is not yet its own."""
        path = folder / (name or spec.name)
        descriptor = files.open(path, writable=True, create=True)
        try:
            files.allocate(descriptor, PAGE, path)
            files.write(descriptor, memoryview(spec.header.pack()), 0, path)
            files.sync(descriptor, path)
        finally:
            files.close(descriptor)

    @classmethod
    def recreate(cls, files: Files, path: Path, spec: SlabSpec) -> None:
        """Replace a file that does not open. Hard rows are kept under a new header: checksums tell their worth."""
        if spec.hard and path.exists() and path.stat().st_size >= PAGE:
            descriptor = files.open(path, writable=True)
            try:
                files.write(descriptor, memoryview(spec.header.pack()), 0, path)
                files.sync(descriptor, path)
            finally:
                files.close(descriptor)
            return
        if path.exists():
            files.rename(path, path.with_name(path.name + ".damaged"))
        cls.create(files, path.parent, spec)

    def remap(self) -> None:
        """See the file at its present length. A torn row at the end is left out."""
        memory, size = self._map()
        with self._giving:
            if self._memory is not None and not self._stored:  # views may go on with it
                self._former = [each for each in self._former if each() is not None] + [weakref.ref(self._memory)]
            self._memory, self._ordered = memory, None
            self.header = np.frombuffer(memory, np.uint64, count=PAGE // 8)
            self.array = _view(memory, self.spec, PAGE)
            self.capacity = (size - PAGE) // self.spec.row_bytes
            self._mapped, self._stored = size, False

    def newest(self) -> AnyArray:
        """The rows as they are in the file now, apart from `array` and from what `store` has changed there."""
        memory, _ = self._map()
        with self._giving:
            self._former.append(weakref.ref(memory))
        return _view(memory, self.spec, PAGE)

    def _map(self) -> tuple[mmap.mmap, int]:
        size = self._files.size(self._descriptor)
        if size < PAGE:
            raise FormatError(f"{self.path} is truncated: {size} bytes are less than its header; run `corenn repair`")
        shared = self._writable and not self.spec.hard
        memory = self._files.map(self._descriptor, size if self._all else PAGE, self.path, shared=shared)
        if self._scarce:
            platform.touch_at_random(memory)
        if self.alone:
            platform.touch_alone(memory)
        if self.held and not platform.hold(memory):
            self.held = None  # it is asked for once more, and told of
        return memory, size

    def will_need(self, ids: UInt32s) -> None:
        """Have the system begin to read rows, ascending: what lies between them as well, unless it is far more."""
        size = self.spec.row_bytes
        first, last = PAGE + int(ids[0]) * size, PAGE + (int(ids[-1]) + 1) * size
        if last - first <= DENSE * len(ids) * max(size, platform.PAGE_BYTES):
            platform.will_need(self._descriptor, first, last - first)
            return
        for row in ids.tolist():
            platform.will_need(self._descriptor, PAGE + row * size, size)

    def read_ahead(self) -> None:
        """Have the system begin to read all of it."""
        platform.will_need(self._descriptor, 0, self._mapped)

    def read_no_more_than_touched(self, scarce: bool = True) -> None:
        """From here on a touch brings in one page: where memory is scarce, what is read around it displaces others.

        scarce: False to have the system read around it again.
        """
        if scarce != self._scarce and self._memory is not None:
            (platform.touch_at_random if scarce else platform.touch_as_usual)(self._memory)
        self._scarce = scarce

    def map_what_is_touched(self) -> None:
        """From here on no page comes into this process but by a touch of its own."""
        self.alone = True
        if self._memory is not None:
            platform.touch_alone(self._memory)

    def hold(self) -> bool:
        """From here on what is touched stays in memory, until it is given back; False where that is not allowed."""
        self.held = self._memory is not None and platform.hold(self._memory)
        return self.held

    def leave_hold(self) -> None:
        """Let the system take out of memory what it likes."""
        with self._giving:
            for memory in (self._memory, *(each() for each in self._former)):
                if memory is not None and self.held:
                    platform.leave_hold(memory)
            self.held = None

    def release(self, first: int, stop: int) -> None:
        """Leave nothing of some rows resident in this process. Not for slabs with rows that `store` has changed."""
        assert self._memory is not None
        start = -(-(PAGE + first * self.spec.row_bytes) // platform.PAGE_BYTES) * platform.PAGE_BYTES
        stop_byte = min(PAGE + stop * self.spec.row_bytes, len(self._memory))
        end = stop_byte // platform.PAGE_BYTES * platform.PAGE_BYTES
        with self._giving:
            if start < end and not self._stored:
                for memory in (self._memory, self._ordered):
                    if memory is not None and end <= len(memory):
                        memory.madvise(mmap.MADV_DONTNEED, start, end - start)

    def in_order(self) -> AnyArray:
        """The rows for who goes over many of them: in a mapping in which a touch brings in what is around it as well,
        which takes a tenth of the time. Not for slabs with rows that `store` has changed.
        """
        if not self.alone:
            return self.array
        with self._giving:
            if self._ordered is None:
                size = self._files.size(self._descriptor)
                self._ordered = self._files.map(self._descriptor, size, self.path, shared=False)
                self._former = [each for each in self._former if each() is not None] + [weakref.ref(self._ordered)]
            return _view(self._ordered, self.spec, PAGE)

    def follow(self) -> None:
        """For a reader: see the file as it is now, but for the pages that `store` has changed since it was mapped.

        What is mapped follows the file, so it is kept if that is all of it: new pages would be met one by one again.
        """
        if self._stored or self._files.size(self._descriptor) != self._mapped:
            self.remap()

    def let_go(self) -> None:
        """Give the memory of its pages back. What `store` has changed is nowhere else, and is kept."""
        with self._giving:
            if self._stored or self._memory is None:
                return
            for memory in (self._memory, *(each() for each in self._former)):
                if memory is not None:
                    if self.held:
                        platform.leave_hold(memory)
                    platform.let_go(memory)
            if self.held:
                platform.hold(self._memory)

    def store(self, ids: UInt32s, rows: AnyArray) -> None:
        """Change rows in this process only, until `follow` is called."""
        with self._giving:
            self._stored = True
            self.array[ids] = rows

    def reserve(self, rows: int) -> None:
        if rows <= self.capacity:
            return
        grown = max(rows, self.capacity + self.capacity // self.GROWTH, self.LEAST_BYTES // self.spec.row_bytes)
        self._files.allocate(self._descriptor, PAGE + grown * self.spec.row_bytes, self.path)
        self.remap()

    def allocate(self, rows: int) -> None:
        """Make room for exactly `rows` rows in a slab that is new."""
        if rows:
            self._files.allocate(self._descriptor, PAGE + rows * self.spec.row_bytes, self.path)
            self.remap()

    def write(self, first: int, rows: AnyArray) -> None:
        self.note(slice(first, first + len(rows)))
        data = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data
        self._files.write(self._descriptor, data, PAGE + first * self.spec.row_bytes, self.path)

    def note(self, ids: UInt32s | slice, *, vague: bool = False) -> None:
        if self.copied is not None and not vague:
            self.copied(ids)
        if self.watch is None:
            return
        if not isinstance(ids, slice) and len(ids) == 1:
            ids = slice(int(ids[0]), int(ids[0]) + 1)
        if isinstance(ids, slice):
            if ids.start < ids.stop:
                first, last = PAGE + ids.start * self.spec.row_bytes, PAGE + ids.stop * self.spec.row_bytes - 1
                self.watch.blocks(first // BLOCK_BYTES, last // BLOCK_BYTES + 1)
        elif len(ids):
            first_bytes = ids.astype(np.int64) * self.spec.row_bytes + PAGE
            for byte in (first_bytes, first_bytes + (self.spec.row_bytes - 1)):  # a row may lie in two
                self.watch.scattered(byte >> BLOCK_BITS)

    def write_bytes(self, byte: int, data: memoryview) -> None:
        """Write from a byte behind the header on."""
        self._files.write(self._descriptor, data, PAGE + byte, self.path)

    @property
    def replaced(self) -> bool:
        """Whether another file has taken the place of this one, or none."""
        try:
            return not os.path.samestat(os.fstat(self._descriptor), self.path.stat())
        except OSError:
            return True

    def is_file(self, descriptor: int) -> bool:
        """Whether a descriptor is one of this file."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.fstat(descriptor))
        except OSError:  # it is closed
            return False

    def write_header(self, word: int, value: int) -> None:
        data = memoryview(int(value).to_bytes(8, "little"))
        self._files.write(self._descriptor, data, word * 8, self.path)

    def sync(self) -> None:
        self._files.sync(self._descriptor, self.path)

    def rename(self, path: Path) -> None:
        """Give the file another name. Whoever has mapped what was there goes on with that."""
        self._files.rename(self.path, path)
        self.path = path

    def rewrite(self, ids: UInt32s) -> None:
        """Write rows, and the header, once more as they are, so that the next sync brings them to the disk."""
        for run in np.split(ids, np.flatnonzero(np.diff(ids) != 1) + 1):
            if len(run):
                self.write(int(run[0]), self.array[run[0] : run[-1] + 1])
        self._files.write(self._descriptor, self.header.copy().view(np.uint8).data, 0, self.path)

    def touch(self) -> None:
        """Store into every page what is there, so that the next sync brings all of it to the disk. For soft slabs."""
        self.header[::] = self.header.copy()
        words = self.array.reshape(-1).view(np.uint8)[:: platform.PAGE_BYTES]
        words[::] = words.copy()

    def disk_bytes(self) -> int:
        return self._files.allocated(self._descriptor, self.path)

    def close(self) -> None:
        if self._descriptor >= 0:
            self._files.close(self._descriptor)
            self._descriptor = -1
