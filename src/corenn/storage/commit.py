"""What one commit changes, and the state of the database that follows from it."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from ..types import AnyArray, Key, UInt32s
from .format import NO_ID

CURVES, NAVIGATION = SOFT = "curves", "navigation"  # calibration curves, and the navigation graph
NO_IDS: UInt32s = np.empty(0, np.uint32)
_BORN = struct.Struct("<II")


class Head(NamedTuple):
    """commit: number of the last one. rows: ids in use, 0 ≤ id < rows. live, dead: rows by liveness."""

    commit: int = 0
    rows: int = 0
    live: int = 0
    dead: int = 0


@dataclass(slots=True)
class Commit:
    """New rows `first`, `first` + 1, …; the deaths of others; changes of payloads of others still.

    keys[i], previous[i] (the id that the key had before, NO_ID for none) and payloads[i] belong to row first + i.
    vectors: the stored form, (n, columns) in the dtype of the slab. seals: uint32 (n, 1 … 4) without checksums.
    """

    number: int
    first: int
    keys: Sequence[Key] = ()
    previous: Sequence[int] = ()
    payloads: Sequence[bytes | None] = ()
    vectors: AnyArray | None = None
    seals: UInt32s | None = None
    died: UInt32s = field(default_factory=lambda: NO_IDS)
    changed: Sequence[tuple[int, bytes | None]] = ()

    @property
    def count(self) -> int:
        return len(self.keys)

    @property
    def ids(self) -> UInt32s:
        return np.arange(self.first, self.first + self.count, dtype=np.uint32)

    def head_after(self, before: Head) -> Head:
        """The state of the database once this commit holds."""
        return Head(
            self.number,
            max(before.rows, self.first + self.count),
            before.live + self.count - len(self.died),
            before.dead + len(self.died),
        )


@dataclass(frozen=True, slots=True)
class Record:
    """What recovery needs of a past commit: the rows it bore, as a range, and the rows it killed."""

    number: int
    first: int
    count: int
    died: UInt32s

    @classmethod
    def parts(cls, commit: Commit, most_ids: int) -> Iterator[bytes]:
        """The record of a commit in pieces of at most `most_ids` deaths; at least one piece."""
        for start in range(0, max(1, len(commit.died)), most_ids):
            born = (commit.first, commit.count) if start == 0 else (0, 0)
            yield _BORN.pack(*born) + commit.died[start : start + most_ids].tobytes()

    @classmethod
    def unpack(cls, number: int, data: bytes) -> Record:
        first, count = _BORN.unpack_from(data)
        return cls(number, first, count, np.frombuffer(data, np.uint32, offset=_BORN.size))


class Metadata(Protocol):
    """Keys, payloads and commits. One writer at a time; reads from any thread.

    Reads are told the snapshot that they serve, by a function that says of ids whether it sees them.
    """

    head: Head

    def lookup(self, keys: Sequence[Key], live: LiveView) -> list[int]:
        """The id that the snapshot sees for each key, -1 for none."""

    def payloads(self, ids: Sequence[int], snapshot: int) -> list[bytes | None]:
        """The payload of each id as of the snapshot."""

    def commit(self, commit: Commit, *, sync: bool) -> None:
        """Make a commit hold, all or nothing; with `sync`, survive a loss of power."""

    def records(self, after: int) -> list[Record]:
        """The records of the commits after a number, as far as they are kept, in order."""

    def names(self) -> Iterator[tuple[Key, int, int]]:
        """Every key with its present and its previous id (NO_ID for none), in any order."""

    def soft(self, name: str) -> bytes | None:
        """What was stored last under a name of SOFT, or None."""

    def store_soft(self, name: str, raw: bytes) -> None:
        """Store something that can be made again, in the place of what was there under its name."""

    def disk_bytes(self) -> int:
        """Bytes taken on disk."""

    def memory_bytes(self) -> int:
        """Bytes taken in memory."""

    def close(self) -> None:
        """Release everything."""


class LiveView(NamedTuple):
    """state: uint64 (rows, 2). A snapshot sees the ids below `rows` that were born by then and had not died."""

    state: AnyArray
    snapshot: int
    rows: int

    def sees(self, row: int) -> bool:
        """Whether the snapshot sees an id."""
        if row >= self.rows:
            return False
        born, died = self.state[row].tolist()
        return bool(0 < born <= self.snapshot and (died == 0 or died > self.snapshot))

    def choose(self, now: int, before: int) -> int:
        """Of the two ids that a key has had last, the one that the snapshot sees, or -1."""
        if now != NO_ID and self.sees(now):
            return now
        return before if before != NO_ID and self.sees(before) else -1
