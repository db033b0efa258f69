"""All file I/O, in one small object that tests replace to inject faults.

Foreign errors are translated here, once: whatever the operating system says becomes DiskFullError or StorageError.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import DiskFullError, StorageError
from . import platform
from .rocksdb import Rocks

COPY_BYTES = 1 << 20


@contextmanager
def translated(action: str, path: Path | str) -> Iterator[None]:
    """Turn an OSError into ours, saying what was attempted on which file."""
    try:
        yield
    except OSError as error:
        message = f"cannot {action} {path}: {error.strerror or error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(f"{message}; free some space and try again") from error
        raise StorageError(message) from error


class Files:
    """The file system as the database uses it. Stateless; safe for concurrent use."""

    def rocks(self, path: Path, log: Path | None = None, *, lenient: bool = False) -> Rocks:
        """RocksDB in a folder; with `log`, a secondary instance. Raises what RocksDB raises."""
        return Rocks(path, log, lenient=lenient)

    def make_folder(self, path: Path) -> None:
        """A new folder, where none is."""
        with translated("create", path):
            path.mkdir()

    def open(self, path: Path, *, writable: bool, create: bool = False) -> int:
        """A descriptor that children of this process do not inherit."""
        flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC
        with translated("open", path):
            return os.open(path, flags | (os.O_CREAT | os.O_EXCL if create else 0), 0o644)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def size(self, descriptor: int) -> int:
        return os.fstat(descriptor).st_size

    def allocated(self, descriptor: int, path: Path) -> int:
        """Bytes that a file takes on disk."""
        with translated("measure", path):
            return os.fstat(descriptor).st_blocks * 512

    def write(self, descriptor: int, data: memoryview, offset: int, path: Path) -> None:
        """Write all of `data`, however many calls the system needs for it."""
        with translated("write to", path):
            while data.nbytes:
                done = os.pwrite(descriptor, data, offset)
                data, offset = data[done:], offset + done

    def allocate(self, descriptor: int, size: int, path: Path) -> None:
        with translated("grow", path):
            platform.allocate(descriptor, size)

    def sync(self, descriptor: int, path: Path) -> None:
        with translated("sync", path):
            platform.data_sync(descriptor)

    def sync_folder(self, path: Path) -> None:
        """Make the names in a folder survive a loss of power."""
        with translated("sync", path):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def map(self, descriptor: int, size: int, path: Path, *, shared: bool) -> mmap.mmap:
        with translated("map", path):
            return platform.map_shared(descriptor, size) if shared else platform.map_private(descriptor, size)

    def read(self, descriptor: int, size: int, offset: int, path: Path) -> bytes:
        """Read `size` bytes, fewer only at the end of the file."""
        pieces = []
        with translated("read", path):
            while size and (piece := os.pread(descriptor, size, offset)):
                pieces.append(piece)
                size, offset = size - len(piece), offset + len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def copy(self, source: int, target: int, size: int, offset: int, path: Path) -> None:
        """Copy bytes to the same place in another file, sharing blocks where the file system does that."""
        with translated("copy to", path):
            while size:
                done = platform.copy_range(source, target, size, offset)
                if not done:
                    piece = os.pread(source, min(size, COPY_BYTES), offset)
                    if not piece:
                        raise StorageError(f"cannot copy to {path}: its source ends at {offset:,} bytes")
                    done = os.pwrite(target, piece, offset)
                size, offset = size - done, offset + done

    def copy_file(self, source: Path, target: Path) -> None:
        """Copy a file to where none is, and bring it to the disk."""
        taken = self.open(source, writable=False)
        try:
            given = self.open(target, writable=True, create=True)
            try:
                self.copy(taken, given, self.size(taken), 0, target)
                self.sync(given, target)
            finally:
                self.close(given)
        finally:
            self.close(taken)

    def truncate(self, descriptor: int, size: int, path: Path) -> None:
        with translated("cut", path):
            os.ftruncate(descriptor, size)

    def remove(self, path: Path) -> None:
        """Remove a file if it is there."""
        with translated("remove", path):
            path.unlink(missing_ok=True)

    def rename(self, source: Path, target: Path) -> None:
        with translated("rename", source):
            source.rename(target)

    def create_locked(self, path: Path, data: bytes) -> int:
        """A new file with these bytes, locked until the descriptor is closed. It is never seen without its lock."""
        draft = path.with_name(f".{path.name}")
        descriptor = self.open(draft, writable=True, create=True)
        try:
            with translated("lock", draft):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.write(descriptor, memoryview(data), 0, draft)
            self.rename(draft, path)
        except BaseException:
            os.close(descriptor)
            draft.unlink(missing_ok=True)
            raise
        return descriptor

    def remove_unlocked(self, path: Path) -> bool:
        """Remove a file that nobody has locked, or that is gone; False if its holder lives."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return not path.exists()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        else:
            with suppress(OSError):  # a folder that cannot be written
                path.unlink()
            return True
        finally:
            os.close(descriptor)

    def move_folder(self, source: Path, target: Path) -> None:
        """Give a folder another name, in another file system if need be, and bring what is in it to the disk."""
        with translated("move", source):
            try:
                source.rename(target)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                shutil.copytree(source, target)
                shutil.rmtree(source, ignore_errors=True)
        for path in target.iterdir():
            descriptor = self.open(path, writable=False)
            try:
                self.sync(descriptor, path)
            finally:
                self.close(descriptor)
        self.sync_folder(target)

    def remove_tree(self, path: Path) -> None:
        """Remove a folder with all that is in it, if it is there."""
        with translated("remove", path):
            if path.exists():
                shutil.rmtree(path)

    def free_bytes(self, path: Path) -> int:
        """Bytes that this user may still write where a folder is."""
        with translated("measure", path):
            return platform.free_bytes(path)

    def lock(self, path: Path) -> int | None:
        """An advisory lock that dies with its holder: the descriptor that holds it, or None if another one does."""
        with translated("lock", path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            except BlockingIOError:
                os.close(descriptor)
                return None
            except BaseException:
                os.close(descriptor)
                raise
            return descriptor
