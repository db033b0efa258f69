"""What one commit changes, and the state of the database that follows from it."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptionError
from ..types import AnyArray, Key, UInt32s
from .format import NO_ID
from .ledger import Done, Place
from .state import broken_states

# Calibration curves, the navigation graph, and two codebooks: of the product codes, and of those that are being made.
CURVES, NAVIGATION, *BOOKS = SOFT = "curves", "navigation", "codebook", "codebook2"
NO_IDS: UInt32s = np.empty(0, np.uint32)
_COUNTS = struct.Struct("<III")


def as_runs(ids: UInt32s) -> UInt32s:
    """Ids as runs of consecutive ones: uint32 (n, 2), the first id and how many."""
    if len(ids) < 2:  # a single row is written in 0.6 ms, of which five times the rest of this took a fifth
        return np.array([(row, 1) for row in ids.tolist()], np.uint32).reshape(-1, 2)
    starts = np.concatenate(([0], np.flatnonzero(np.diff(ids) != 1) + 1))
    lengths = np.diff(np.concatenate((starts, [len(ids)])))
    return np.stack((ids[starts], lengths), axis=1).astype(np.uint32)


def from_runs(runs: UInt32s) -> UInt32s:
    """The ids of runs, in their order."""
    if not len(runs):
        return NO_IDS
    lengths = runs[:, 1].astype(np.int64)
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    ids: UInt32s = (np.repeat(runs[:, 0].astype(np.int64), lengths) + within).astype(np.uint32)
    return ids


class Head(NamedTuple):
    """commit: number of the last one. rows: ids in use, 0 ≤ id < rows. live, dead: rows by liveness."""

    commit: int = 0
    rows: int = 0
    live: int = 0
    dead: int = 0


@dataclass(slots=True)
class Commit:
    """New rows; the deaths of others; changes of payloads of others still; ids that may be used again from now on.

    done: the writes in it that have tokens. lapsed: places of those that are forgotten for them, see `Ledger`.

    keys[i], previous[i] (the id that the key had before, NO_ID for none) and payloads[i] belong to the row ids[i].
    ids: ascending. vectors: the stored form, (n, columns) in the dtype of the slab. seals: uint32 (n, 1 … 4) without
    checksums. freed: ids of dead rows to which nothing leads any more, ascending; some may be among `ids`.
    """

    number: int
    ids: UInt32s = field(default_factory=lambda: NO_IDS)
    keys: Sequence[Key] = ()
    previous: Sequence[int] = ()
    payloads: Sequence[bytes | None] = ()
    vectors: AnyArray | None = None
    seals: UInt32s | None = None
    died: UInt32s = field(default_factory=lambda: NO_IDS)
    changed: Sequence[tuple[int, bytes | None]] = ()
    freed: UInt32s = field(default_factory=lambda: NO_IDS)
    done: Sequence[Done] = ()
    lapsed: Sequence[Place] = ()

    @property
    def count(self) -> int:
        return len(self.keys)

    @property
    def record(self) -> Record:
        changed = np.array(sorted(row for row, _ in self.changed), np.uint32) if self.changed else NO_IDS
        return Record(self.number, self.ids, self.died, self.freed, changed)

    def head_after(self, before: Head) -> Head:
        """The state of the database once this commit holds."""
        return Head(
            self.number,
            max(before.rows, int(self.ids[-1]) + 1 if len(self.ids) else 0),
            before.live + self.count - len(self.died),
            before.dead + len(self.died) - len(self.freed),
        )


@dataclass(frozen=True, slots=True)
class Record:
    """What recovery needs of a past commit: the rows it bore, those it killed, and the ids it gave back.

    changed: other rows that it gave new payloads, for what follows payloads; None in records that do not tell.
    """

    number: int
    born: UInt32s
    died: UInt32s
    freed: UInt32s
    changed: UInt32s | None = None

    @property
    def touched(self) -> UInt32s:
        """The ids of all rows whose state it changes, ascending."""
        ids: UInt32s = np.unique(np.concatenate((self.born, self.died, self.freed)))
        return ids

    def parts(self, most_words: int) -> Iterator[bytes]:
        """The record in pieces of at most `most_words` words of ids; at least one piece."""
        runs, freed = as_runs(self.born), as_runs(self.freed)
        changed = NO_IDS if self.changed is None else self.changed
        for start in range(0, max(1, len(runs), len(freed), len(self.died), len(changed)), most_words // 5):
            part = slice(start, start + most_words // 5)
            counts = (len(runs[part]), len(freed[part]), len(self.died[part]))
            words = (runs[part], freed[part], self.died[part], np.uint32(len(changed[part])), changed[part])
            yield _COUNTS.pack(*counts) + b"".join(each.tobytes() for each in words)

    @classmethod
    def unpack(cls, number: int, data: bytes) -> Record:
        runs, freed, died = _COUNTS.unpack_from(data)
        words = np.frombuffer(data, np.uint32, -1, _COUNTS.size)
        born, given = words[: 2 * runs].reshape(-1, 2), words[2 * runs : 2 * (runs + freed)].reshape(-1, 2)
        end = 2 * (runs + freed) + died
        changed = words[end + 1 : end + 1 + int(words[end])] if len(words) > end else None
        return cls(number, from_runs(born), words[2 * (runs + freed) : end], from_runs(given), changed)

    @classmethod
    def joined(cls, parts: Sequence[Record]) -> Record:
        """One record of all its parts. Applied one by one they would not do the same: an id that is freed, born and
        dead in one commit may be in three of them, in any order.
        """
        if len(parts) == 1:
            return parts[0]
        born, died, freed = (
            np.concatenate(each) for each in zip(*((part.born, part.died, part.freed) for part in parts), strict=True)
        )
        told = [part.changed for part in parts if part.changed is not None]
        return cls(parts[0].number, born, died, freed, np.concatenate(told) if len(told) == len(parts) else None)


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

    def done(self) -> Iterator[tuple[Place, Done]]:
        """The writes that have tokens which are kept, in the order of their commits."""

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


class Follower(Protocol):
    """What follows the commits of a store: soft state that is made of them."""

    @property
    def size(self) -> int:
        """Bytes of memory that it takes, about."""

    def committed(self, commit: Commit) -> None:
        """A commit holds. Called before queries see it; raises nothing."""

    def disk_bytes(self) -> int:
        """Bytes taken on disk."""

    def close(self) -> None:
        """Release everything."""


class LiveView(NamedTuple):
    """state: uint64 (rows, 2). A snapshot sees the ids below `rows` that were born by then and had not died.

    snapshot: in words of state, see `seen_up_to`. wary: refuse to say that a key is gone because its row is damaged.
    """

    state: AnyArray
    snapshot: int
    rows: int
    wary: bool = False

    def sees(self, row: int) -> bool:
        """Whether the snapshot sees an id."""
        if row >= self.rows:
            return False
        died = int(self.state[row, 1])  # first: see kernels.search.visible
        born = int(self.state[row, 0])
        return bool(0 < born <= self.snapshot and (died == 0 or died > self.snapshot))

    def seen(self, ids: UInt32s) -> NDArray[np.bool_]:
        """Which of some ids below `rows` the snapshot sees."""
        snapshot, none = np.uint64(self.snapshot), np.uint64(1)
        died = self.state[ids, 1]  # first: see kernels.search.visible
        born = self.state[ids, 0]
        seen: NDArray[np.bool_] = (died - none >= snapshot) & (born - none < snapshot)
        return seen

    def choose(self, now: int, before: int) -> int:
        """Of the two ids that a key has had last, the one that the snapshot sees, or -1.

        Raises:
            CorruptionError: if it sees none, is wary, and one of the rows is damaged.
        """
        if now != NO_ID and self.sees(now):
            return now
        if before != NO_ID and self.sees(before):
            return before
        if self.wary and any(self.lost(row) for row in (now, before)):
            raise CorruptionError("state.slab is damaged where it says whether a key is there; run repair()")
        return -1

    def lost(self, row: int) -> bool:
        """Whether it cannot be told if the snapshot sees a row. Zeros alone are lost, too: an id to which a key leads
        has a birth, or the death of the row before, or that of a commit that was cut off.
        """
        if row >= self.rows:
            return False
        return not self.state[row].any() or len(broken_states(self.state, np.array([row], np.uint32))) > 0
