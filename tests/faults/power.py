"""What a loss of power may leave of a database.

A slab is what its last sync left, with any of the 512-byte sectors written since, and as long as it was then or is now.
The log of RocksDB ends at any byte behind what was synced of it. Its other files are synced by RocksDB before they
count.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np

from corenn.storage.rocksdb import Rocks
from tests.faults.faulty import SECTOR, Faults, FaultyFiles, FaultyRocks
from tests.faults.operations import photographed

SHARES = (0.0, 1.0, 0.5, 0.1, 0.9)  # of the later sectors that reached the disk


def log_sizes(folder: Path) -> dict[str, int]:
    """The bytes of each log of RocksDB, whose threads delete one as soon as its rows are in a table."""
    sizes = {}
    for log in folder.glob("*.log"):
        with suppress(FileNotFoundError):
            sizes[log.name] = log.stat().st_size
    return sizes


class PoweredRocks(FaultyRocks):
    """Notes how much of the logs is synced."""

    def __init__(self, faults: Faults, path: Path, logs: dict[str, int]) -> None:
        self._folder, self._logs = path, logs
        super().__init__(faults, path, None)

    def flush_wal(self, sync: bool) -> None:
        super().flush_wal(sync)
        if sync:
            self._logs.update(log_sizes(self._folder))


class PoweredFiles(FaultyFiles):
    """Notes what of each slab is synced."""

    def __init__(self, faults: Faults) -> None:
        super().__init__(faults)
        self.synced: dict[str, bytes] = {}
        self.logs: dict[str, int] = {}

    def rocks(self, path: Path, log: Path | None = None, *, lenient: bool = False) -> Rocks:
        if log is not None or lenient:
            return super().rocks(path, log, lenient=lenient)
        return PoweredRocks(self._faults, path, self.logs)

    def sync(self, descriptor: int, path: Path) -> None:
        super().sync(descriptor, path)
        self.synced[path.name] = path.read_bytes()


class Outage:
    """The disk at one instant: what is synced, and what is not yet."""

    def __init__(self, path: Path, files: PoweredFiles, copy: Path) -> None:
        self.copy = photographed(path, copy)
        self._synced, self._logs = dict(files.synced), dict(files.logs)

    def image(self, target: Path, rng: np.random.Generator, share: float) -> Path:
        """What may be left. share: of the sectors and of the log's bytes that were written since the last sync."""
        shutil.copytree(self.copy, target)
        for slab in (*target.glob("*.slab"), *target.glob("*.heap")):
            # One that was created a moment ago is not synced at all.
            slab.write_bytes(mixed(self._synced.get(slab.name, b""), slab.read_bytes(), rng, share))
        for log in (target / "meta").glob("*.log"):
            least, length = self._logs.get(log.name, 0), log.stat().st_size
            kept = least + round((length - least) * share)
            if 0 < share < 1:
                kept = int(rng.integers(least, length + 1))
            with log.open("r+b") as file:
                file.truncate(kept)
        return target


def mixed(synced: bytes, current: bytes, rng: np.random.Generator, share: float) -> bytes:
    """Sectors of both. A file's length reaches the disk apart from its content."""
    assert len(synced) <= len(current), "slabs never shrink"
    length = len(current)
    if share < 1 and (share == 0 or rng.random() < 0.5):
        length = len(synced)
    old = np.zeros(length, np.uint8)
    old[: len(synced)] = np.frombuffer(synced, np.uint8)[:length]
    new = np.frombuffer(current[:length], np.uint8)
    there = np.repeat(rng.random(-(-length // SECTOR)) < share, SECTOR)[:length]
    return np.where(there, new, old).tobytes()
