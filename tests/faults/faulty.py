"""A file layer in which any call that changes the disk can fail, and that shows what is on the disk at any of them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from corenn.storage.files import Files, translated
from corenn.storage.rocksdb import Rocks

SECTOR = 512  # what a disk writes whole or not at all
Call = Callable[[], Any]
ERRORS = {
    errno.ENOSPC: "IO error: No space left on device: While appending to file: injected",
    errno.EIO: "IO error: While fsync: injected: Input/output error",
}


class Faults:
    """Counts the calls that change the disk: steps 1, 2, … `at`: the step that fails, 0 for none.

    late: the failing call has its effect before it fails. lasting: every later one fails as well, until `heal`.
    watch: called before and after each step with its name, to look at the disk.
    """

    def __init__(
        self, at: int = 0, error: int = errno.EIO, *, late: bool = False, lasting: bool = False,
        watch: Callable[[str], None] | None = None,
    ) -> None:  # fmt: skip
        self.at, self.error, self.late, self.lasting, self.watch = at, error, late, lasting, watch
        self.names: list[str] = []
        self.hit = False

    @property
    def steps(self) -> int:
        return len(self.names)

    @property
    def soft(self) -> bool:
        """Whether what has failed are the notes of changes, for which no call fails."""
        return self.hit and not self.lasting and self.names[self.at - 1].endswith("changes.slab")

    def heal(self) -> None:
        """From here on nothing fails."""
        self.at = 0

    def step(self, name: str, call: Call, fail: Callable[[int], Exception]) -> Any:
        """Make a call that changes the disk, or fail."""
        self.names.append(name)
        if self.watch is not None:
            self.watch(f"before {name}")
        broken = self.at and (self.steps == self.at or (self.lasting and self.steps > self.at))
        if broken and not (self.late or name == "rocks close"):
            self.hit = True
            raise fail(self.error)
        done = call()
        if broken:  # a store that fails to close is closed all the same
            self.hit = True
            raise fail(self.error)
        if self.watch is not None:
            self.watch(f"after {name}")
        return done


class FaultyRocks(Rocks):
    """See Faults."""

    def __init__(self, faults: Faults, path: Path, log: Path | None, *, lenient: bool = False) -> None:
        self._faults = faults
        super().__init__(path, log, lenient=lenient)

    def _change(self, name: str, call: Call) -> Any:
        step = lambda: self._faults.step(f"rocks {name}", call, lambda error: Exception(ERRORS[error]))  # noqa: E731
        return super()._change(name, step)


class FaultyFiles(Files):
    """See Faults."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults

    def _step(self, name: str, path: Path, call: Call) -> Any:
        with translated(name, path):
            return self._faults.step(f"{name} {path.name}", call, lambda error: OSError(error, os.strerror(error)))

    def rocks(self, path: Path, log: Path | None = None, *, lenient: bool = False) -> Rocks:
        return FaultyRocks(self._faults, path, log, lenient=lenient)

    def make_folder(self, path: Path) -> None:
        base = super()
        self._step("make", path, lambda: base.make_folder(path))

    def open(self, path: Path, *, writable: bool, create: bool = False) -> int:
        base = super()
        if not create:
            return base.open(path, writable=writable)
        descriptor: int = self._step("create", path, lambda: base.open(path, writable=writable, create=True))
        return descriptor

    def write(self, descriptor: int, data: memoryview, offset: int, path: Path) -> None:
        base = super()
        half = (offset + data.nbytes // 2) // SECTOR * SECTOR - offset
        if half > 0:  # torn: a process may be killed, or a disk be full, in the middle
            self._step("half write", path, lambda: base.write(descriptor, data[:half], offset, path))
        self._step("write", path, lambda: base.write(descriptor, data, offset, path))

    def allocate(self, descriptor: int, size: int, path: Path) -> None:
        base = super()
        self._step("allocate", path, lambda: base.allocate(descriptor, size, path))

    def sync(self, descriptor: int, path: Path) -> None:
        base = super()
        self._step("sync", path, lambda: base.sync(descriptor, path))

    def sync_folder(self, path: Path) -> None:
        base = super()
        self._step("sync folder", path, lambda: base.sync_folder(path))

    def map(self, descriptor: int, size: int, path: Path, *, shared: bool) -> Any:
        base = super()
        return self._step("map", path, lambda: base.map(descriptor, size, path, shared=shared))

    def rename(self, source: Path, target: Path) -> None:
        base = super()
        self._step("rename", source, lambda: base.rename(source, target))

    def lock(self, path: Path) -> int | None:
        base = super()
        taken: list[int | None] = []
        try:
            self._step("lock", path, lambda: taken.append(base.lock(path)))
        except BaseException:
            for descriptor in taken:  # as the lock of a call that fails
                if descriptor is not None:
                    os.close(descriptor)
            raise
        return taken[0]


@contextmanager
def injected(files: Files) -> Iterator[None]:
    """Databases are made and opened with this file layer."""
    with patch("corenn.database.Files", lambda: files):
        yield
