"""Copying the live rows of a collection to another one, in which they follow each other without gaps.

Everything is copied by blocks, so that whoever drives the copy can stop or do something else in between. A row keeps
the commit of its birth; its checksum, of which the id is part, is tested before it is made anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..config import MAX_KEY_BYTES
from ..errors import CorruptionError
from ..kernels.keytable import KIND_INT, KIND_STR
from ..kernels.renumber import GONE, gather_bytes
from ..types import Bytes, Int64s, UInt32s, UInt64s
from .commit import NO_IDS, Head
from .format import HEAP_END
from .keys import unpack_key
from .state import broken_states, checksums_of, commit_of, salted, seen_up_to, state_words
from .store import Store, write_rows

BLOCK, BLOCK_BYTES = 1 << 12, 4 << 20  # rows copied at a time, and what they take at most
SCAN = 1 << 20  # rows of state looked at in one go
_KIND, _LENGTH = np.uint64(0xFF), np.uint64(8)


@dataclass(frozen=True, slots=True)
class Renumbering:
    """kept: ids of the rows that go along, ascending; kept[i] becomes i. numbers: the new id of each old one, GONE for
    none. head: the state of the database in which only these are left.
    """

    kept: UInt32s
    numbers: UInt32s
    head: Head

    @classmethod
    def of(cls, state: UInt64s, head: Head) -> Renumbering:
        """Of what is live at `head`."""
        return cls(NO_IDS, NO_IDS, Head()).extended(state, head)

    def extended(self, state: UInt64s, head: Head) -> Renumbering:
        """With what has come since, up to `head`, behind it. What has died since keeps its number."""
        snapshot, found, before = np.uint64(seen_up_to(head.commit)), [self.kept], len(self.numbers)
        for start in range(before, head.rows, SCAN):
            stop = min(start + SCAN, head.rows)
            if len(broken_states(state, np.arange(start, stop, dtype=np.uint32))):
                raise CorruptionError("births or deaths in state.slab are damaged; run repair(), then compact again")
            born, died = state[start:stop].T
            alive = (born - np.uint64(1) < snapshot) & (died - np.uint64(1) >= snapshot)
            found.append((start + np.flatnonzero(alive)).astype(np.uint32))
        kept = np.concatenate(found)
        numbers = np.full(head.rows, GONE, np.uint32)
        numbers[:before] = self.numbers
        numbers[kept[len(self.kept) :]] = np.arange(len(self.kept), len(kept), dtype=np.uint32)
        dead = len(self.dead(state))
        return Renumbering(kept, numbers, Head(head.commit, len(kept), len(kept) - dead, dead))

    def dead(self, state: UInt64s) -> UInt32s:
        """The old ids of kept rows that have died since they were chosen."""
        dead: UInt32s = self.kept[state[self.kept, 1] != 0]
        return dead

    def blocks(self, row_bytes: int = 1, first: int = 0) -> Iterator[tuple[int, UInt32s]]:
        """The new id of the first, and the old ids, of as many rows as take some megabytes. first: where to begin."""
        size = max(1, min(BLOCK, BLOCK_BYTES // row_bytes))
        for start in range(first, len(self.kept), size):
            yield start, self.kept[start : start + size]


def copy_rows(source: Store, target: Store, renumbering: Renumbering, first: int = 0) -> Iterator[int]:
    """Copy vectors, seals and births, from the new id `first` on; yields the rows copied so far.

    Raises:
        CorruptionError: at a row that fails its checksum: it must not be given one that holds.
    """
    for start, ids in renumbering.blocks(source.vectors.spec.row_bytes, first):
        vectors, seals = source.vectors.array[ids], source.seals.array[ids]
        born = commit_of(source.state.array[ids, 0])
        bad = ids[checksums_of(vectors, seals, salted(ids, born)) != seals[:, 0]]
        if len(bad):
            key = unpack_key(source.keys.array[bad[0]], source.heap.array.reshape(-1))
            raise CorruptionError(f"the vector of key {key!r} fails its checksum; run repair(), then compact again")
        fresh = np.arange(start, start + len(ids), dtype=np.uint32)
        seals[:, 0] = checksums_of(vectors, seals, salted(fresh, born))
        target.vectors.write(start, vectors)
        target.seals.write(start, seals)
        target.state.write(start, state_words(fresh, born, 0))
        yield start + len(ids)


def copy_keys(source: Store, target: Store, renumbering: Renumbering, first: int = 0) -> Iterator[int]:
    """Copy the look-aside from ids to keys, from the new id `first` on, into a heap that has room for it; yields the
    rows copied so far.

    Raises:
        CorruptionError: at a key that cannot be read.
    """
    end = int(target.heap.header[HEAP_END])
    for start, ids in renumbering.blocks(first=first):
        heap, room = source.heap.array.reshape(-1), target.heap.array.reshape(-1)
        words = source.keys.array[ids]
        text, lengths = _texts(words, heap)
        if len(text):
            starts = np.ascontiguousarray(words[text, 1]).astype(np.int64)
            ends = end + np.cumsum(lengths)
            gather_bytes(heap, starts, lengths, room[end : int(ends[-1])])
            words[text, 1] = (ends - lengths).astype(np.uint64)
            end = int(ends[-1])
        target.keys.write(start, words)
        target.heap.header[HEAP_END] = end
        yield start + len(ids)


def copy_deaths(source: Store, target: Store, renumbering: Renumbering) -> None:
    """Note in the copy which of its rows have died meanwhile."""
    dead = renumbering.dead(source.state.array)
    numbers, (born, died) = renumbering.numbers[dead], commit_of(source.state.array[dead]).T
    write_rows(target.state, numbers, state_words(numbers, born, died))


def key_bytes(source: Store, renumbering: Renumbering, first: int = 0) -> tuple[int, int]:
    """Bytes of the text keys of rows from the new id `first` on, and of the names of all of them."""
    heap, texts, integers = source.heap.array.reshape(-1), 0, 0
    for _, ids in renumbering.blocks(first=first):
        text, lengths = _texts(source.keys.array[ids], heap)
        texts += int(lengths.sum())
        integers += len(ids) - len(text)
    return texts, texts + len(renumbering.kept) - first + 8 * integers


def _texts(words: UInt64s, heap: Bytes) -> tuple[Int64s, Int64s]:
    """Which of the keys are text, and how many bytes each of these has."""
    kinds, lengths = words[:, 0] & _KIND, words[:, 0] >> _LENGTH
    text = kinds == KIND_STR
    bad = ~text & (kinds != KIND_INT)
    bad |= text & ((lengths > MAX_KEY_BYTES) | (words[:, 1] > np.uint64(len(heap))))
    bad |= text & (words[:, 1] + np.where(bad, np.uint64(0), lengths) > np.uint64(len(heap)))
    if bad.any():
        raise CorruptionError("a row has no readable key in keys.slab; run repair(), then compact again")
    return np.flatnonzero(text), lengths[text].astype(np.int64)
