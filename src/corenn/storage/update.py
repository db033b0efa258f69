"""Bringing a snapshot of the files up to date, without a second copy of it and without a moment at which it is neither.

All that changes is gathered in one file beside the slabs, `UPDATE.part`, and the new metadata in `meta.new`. When both
are on the disk the file is named `UPDATE`: from then on the new snapshot counts, and whoever opens the folder first
writes what is left into the slabs. To do so twice is as good as once. Before, the old snapshot is untouched.

    | data … | index, JSON | offset of index u64 | length u64 | crc-32 u32 | version u32 | magic |
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import CoreNNError, CorruptionError, LockedError, NewerFormatError, StorageError
from .changes import COLUMNS
from .files import Files, translated
from .readers import Snapshots

MARKER = "SNAPSHOT"
UPDATE, PART = "UPDATE", "UPDATE.part"
META, META_NEW, META_OLD = "meta", "meta.new", "meta.old"
META_COPY = "meta.copy"  # in the database itself: what is to become the metadata of a snapshot
MARKER_NEW = "SNAPSHOT.new"
VERSION = 1
MAGIC = b"CoreNNup"
_FOOTER = struct.Struct("<QQII8s")


class Update:
    """An update in the making. `abandon` leaves the old snapshot as it was."""

    def __init__(self, folder: Path, files: Files) -> None:
        self._folder = folder
        self._files = files
        self._pieces: list[tuple[str, int, int, int]] = []  # file, offset there, bytes, crc-32; one after the other
        self.size = 0
        self._descriptor = files.open(folder / PART, writable=True, create=True)

    def add(self, name: str, offset: int, data: memoryview) -> None:
        """Bytes that belong at a place in a file."""
        self._files.write(self._descriptor, data, self.size, self._folder / PART)
        self._pieces.append((name, offset, data.nbytes, zlib.crc32(data)))
        self.size += data.nbytes

    def decide(self, sizes: Mapping[str, int], marker: bytes) -> None:
        """Make the new snapshot count; its metadata is in META_NEW. sizes: of the files when all is written."""
        index = json.dumps({"pieces": self._pieces, "sizes": dict(sizes), "marker": marker.decode()}).encode()
        footer = _FOOTER.pack(self.size, len(index), zlib.crc32(index), VERSION, MAGIC)
        path = self._folder / PART
        self._files.write(self._descriptor, memoryview(index + footer), self.size, path)
        self._files.sync(self._descriptor, path)
        self._files.sync_folder(self._folder)
        self._files.rename(path, self._folder / UPDATE)
        self._files.sync_folder(self._folder)

    def close(self) -> None:
        """Release the file."""
        self._files.close(self._descriptor)


def clear(folder: Path, files: Files) -> None:
    """Remove what an update has left that was cut off before it counted, or after it was written."""
    if (folder / UPDATE).exists():
        return  # it counts
    for name in (PART, MARKER_NEW):
        files.remove(folder / name)
    for name in (META_NEW, META_OLD):
        shutil.rmtree(folder / name, ignore_errors=True)


def take_over(folder: Path, files: Files) -> None:
    """Before a folder is opened for writing, its lock held: a snapshot is a database like any other from now on."""
    shutil.rmtree(folder / META_COPY, ignore_errors=True)  # of a process that was killed
    if (folder / MARKER).exists():
        clear(folder, files)
        files.remove(folder / MARKER)
        files.sync_folder(folder)


@contextmanager
def locked(folder: Path, files: Files) -> Iterator[None]:
    """Hold the lock of a folder's writer.

    Raises:
        LockedError: if another one has it.
    """
    lock = files.lock(folder / "LOCK")
    if lock is None:
        raise LockedError(f"{folder} is open for writing, or brought up to date, elsewhere; wait, or close it there")
    try:
        yield
    finally:
        os.close(lock)


def refuse_readers(folder: Path, files: Files) -> None:
    """Raises LockedError if a process reads what is in a folder: it has mapped it, and must not see it change."""
    for reader in Snapshots(folder, files).others():
        raise LockedError(f"{folder} is read by process {reader.pid}; close it there, or choose another path")


def finish_if_due(folder: Path, files: Files) -> None:
    """Write what an update that counts has left to write.

    Raises:
        LockedError: if another process does that now, or reads what was there before.
        StorageError: if this process may not write there.
        CorruptionError: if the update is damaged.
    """
    with translated("look for", folder):
        if not (folder / UPDATE).exists():
            return
    try:
        with locked(folder, files):
            finish(folder, files)
    except (LockedError, CorruptionError, NewerFormatError):
        raise
    except CoreNNError as error:
        raise StorageError(
            f"{folder} is a snapshot that was cut off while it was brought up to date ({error}); open it once where it "
            "can be written, or take the snapshot again"
        ) from error


def finish(folder: Path, files: Files) -> None:
    """The same, with the lock held; nothing if there is no update."""
    path = folder / UPDATE
    if not path.exists():
        return
    refuse_readers(folder, files)
    descriptor = files.open(path, writable=False)
    try:
        index = _read_index(descriptor, path, files)
        _check(descriptor, index, path, files)
        _write_pieces(descriptor, index, folder, files)
    finally:
        files.close(descriptor)
    if (folder / META_NEW).exists():
        if (folder / META).exists():
            shutil.rmtree(folder / META_OLD, ignore_errors=True)
            files.rename(folder / META, folder / META_OLD)
        files.rename(folder / META_NEW, folder / META)
    files.remove(folder / MARKER_NEW)
    replace_file(folder / MARKER, folder / MARKER_NEW, index["marker"].encode(), files)
    files.sync_folder(folder)
    files.remove(path)
    files.sync_folder(folder)
    clear(folder, files)


def replace_file(path: Path, draft: Path, content: bytes, files: Files) -> None:
    """Put a file with new content in the place of one, by way of a draft that is not there yet."""
    descriptor = files.open(draft, writable=True, create=True)
    try:
        files.write(descriptor, memoryview(content), 0, draft)
        files.sync(descriptor, draft)
    finally:
        files.close(descriptor)
    files.rename(draft, path)


def _read_index(descriptor: int, path: Path, files: Files) -> dict[str, Any]:
    end = files.size(descriptor) - _FOOTER.size
    with suppress(struct.error, ValueError):
        offset, length, crc, version, magic = _FOOTER.unpack(files.read(descriptor, _FOOTER.size, max(0, end), path))
        if magic == MAGIC and version > VERSION:
            raise NewerFormatError(
                f"{path} has format version {version}; this CoreNN reads up to {VERSION}: upgrade it"
            )
        raw = files.read(descriptor, length, offset, path) if offset + length == end else b""
        if magic == MAGIC and zlib.crc32(raw) == crc:
            index: dict[str, Any] = json.loads(raw)
            if {*index["sizes"], *(piece[0] for piece in index["pieces"])} <= set(COLUMNS):
                return index  # it names no other file
    raise _damaged(path)


def _check(descriptor: int, index: dict[str, Any], path: Path, files: Files) -> None:
    """All of it, before any of it is written."""
    at = 0
    for _, _, size, crc in index["pieces"]:
        if zlib.crc32(files.read(descriptor, size, at, path)) != crc:
            raise _damaged(path)
        at += size


def _damaged(path: Path) -> CorruptionError:
    return CorruptionError(f"{path} is damaged; remove the snapshot {path.parent}, and take another one")


def _write_pieces(descriptor: int, index: dict[str, Any], folder: Path, files: Files) -> None:
    targets: dict[str, int] = {}
    try:
        for name in index["sizes"]:
            targets[name] = files.open(folder / name, writable=True)
        at = 0
        for name, offset, size, _ in index["pieces"]:
            data = memoryview(files.read(descriptor, size, at, folder / UPDATE))
            files.write(targets[name], data, offset, folder / name)
            at += size
        for name, target in targets.items():
            if files.size(target) > index["sizes"][name]:
                files.truncate(target, index["sizes"][name], folder / name)
            files.sync(target, folder / name)
    finally:
        for target in targets.values():
            files.close(target)
