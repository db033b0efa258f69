"""Metadata of a database in memory: a hash table of ids and a heap of bytes, no Python object per key or payload."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..errors import CapacityError
from ..kernels.keytable import add_keys, find_keys
from ..kernels.renumber import gather_bytes
from ..types import Key, UInt32s
from .commit import Commit, Head, LiveView, Record
from .format import NO_ID
from .keys import pack_keys, unpack_key
from .ledger import Done, Place
from .slab import MemorySlab, Slab, SlabSpec

_LENGTH_BITS = 21  # a payload is at most 1 MiB long; a reference is offset << 21 | length + 1, 0 for none
_LENGTH_MASK = (1 << _LENGTH_BITS) - 1
_PAYLOAD_HEAP_BYTES = 1 << 36
INDEXED_ROWS = 1 << 16  # per kernel call: some milliseconds


class MemoryMetadata:
    """See Metadata. `keys` and `heap` are the slabs that hold the keys by id."""

    def __init__(self, keys: Slab, heap: Slab, state: Slab, most_rows: int) -> None:
        self.head = Head()
        self._keys, self._heap, self._state = keys, heap, state
        self._table: UInt32s = np.zeros(1024, np.uint32)
        self._entries = 0
        self._references = MemorySlab(SlabSpec("payload refs", np.dtype(np.uint64), 3, hard=True), most_rows)
        self._texts = MemorySlab(SlabSpec("payloads", np.dtype(np.uint8), 1, hard=True), _PAYLOAD_HEAP_BYTES)
        self._text_end = 0
        self._soft: dict[str, bytes] = {}

    def lookup(self, keys: Sequence[Key], live: LiveView) -> list[int]:
        words, raw = pack_keys(keys, 0)
        out = np.empty(len(keys), np.int64)
        find_keys(
            self._table, self._keys.array, self._heap.array.reshape(-1), live.state, np.uint64(live.snapshot),
            words, raw.copy(), out,
        )  # fmt: skip
        return out.tolist()

    def payloads(self, ids: Sequence[int], snapshot: int) -> list[bytes | None]:
        texts = self._texts.array.reshape(-1)
        found: list[bytes | None] = []
        for commit, now, before in self._references.array[list(ids)].tolist():
            reference = now if commit <= snapshot else before
            start, length = reference >> _LENGTH_BITS, (reference & _LENGTH_MASK) - 1
            found.append(None if length < 0 else texts[start : start + length].tobytes())
        return found

    def commit(self, commit: Commit, *, sync: bool) -> None:
        self._make_room(commit)
        self._references.array[commit.ids] = (commit.number, 0, 0)
        for row, payload in zip(commit.ids.tolist(), commit.payloads, strict=True):
            if payload is not None:
                self._references.array[row, 1] = self._store(payload)
        for row, payload in commit.changed:
            old = int(self._references.array[row, 1])
            self._references.array[row] = (commit.number, self._store(payload), old)
        self._add(commit)
        self.head = commit.head_after(self.head)

    def _make_room(self, commit: Commit) -> None:
        size = sum(len(payload) for payload in commit.payloads if payload is not None)
        size += sum(len(payload) for _, payload in commit.changed if payload is not None)
        if self._text_end + size > len(self._texts.array):
            raise CapacityError(f"{size:,} more bytes of payloads do not fit in memory; use a database on disk")

    def _store(self, payload: bytes | None) -> int:
        if payload is None:
            return 0
        start, self._text_end = self._text_end, self._text_end + len(payload)
        self._texts.array.reshape(-1)[start : self._text_end] = np.frombuffer(payload, np.uint8)
        return start << _LENGTH_BITS | len(payload) + 1

    def _add(self, commit: Commit) -> None:
        ids = commit.ids
        if (self._entries + len(ids)) * 3 > len(self._table) * 2:
            # Built anew without the rows that were dead before this commit; the old one stays whole for its readers.
            state = self._state.array[: self.head.rows]
            kept = np.flatnonzero((state[:, 0] != 0) & (state[:, 1] == 0)).astype(np.uint32)
            ids = np.concatenate((kept, ids))
            size = 1024
            while size * 3 < len(ids) * 4:
                size *= 2
            table: UInt32s = np.zeros(size, np.uint32)
            self._entries = 0
        else:
            table = self._table
        add_keys(table, self._keys.array, self._heap.array.reshape(-1), ids)
        self._table = table
        self._entries += len(ids)

    def copy_payloads(self, source: MemoryMetadata, ids: UInt32s, numbers: UInt32s) -> None:
        """Take over the payloads of the rows `ids` of another collection as those of the rows `numbers` of this one."""
        references = source._references.array[ids]
        lengths = (references[:, 1] & np.uint64(_LENGTH_MASK)).astype(np.int64)
        present = lengths > 0
        lengths = np.maximum(lengths - 1, 0)
        ends = self._text_end + np.cumsum(lengths)
        if len(ids) and ends[-1] > len(self._texts.array):
            raise CapacityError("the payloads do not fit in memory a second time; close what else takes memory")
        starts = (references[:, 1] >> np.uint64(_LENGTH_BITS)).astype(np.int64)
        gather_bytes(source._texts.array.reshape(-1), starts, lengths, self._texts.array.reshape(-1)[self._text_end :])
        moved = (ends - lengths).astype(np.uint64) << np.uint64(_LENGTH_BITS)
        references[:, 1] = np.where(present, moved | (lengths + 1).astype(np.uint64), np.uint64(0))
        references[:, 2] = 0
        self._references.array[numbers] = references
        self._text_end += int(lengths.sum())

    def index_keys(self, first: int, stop: int) -> None:
        """Find rows `first` to `stop`, which come behind all others, by the keys that are in their slabs already."""
        if stop * 3 > len(self._table) * 2:
            self._table = np.zeros(max(1024, 1 << (stop * 2 - 1).bit_length()), np.uint32)
            first = 0
        for start in range(first, stop, INDEXED_ROWS):
            ids = np.arange(start, min(start + INDEXED_ROWS, stop), dtype=np.uint32)
            add_keys(self._table, self._keys.array, self._heap.array.reshape(-1), ids)
        self._entries = stop

    def records(self, after: int) -> list[Record]:
        return []

    def done(self) -> Iterator[tuple[Place, Done]]:
        return iter(())  # nothing outlives the handle, which knows its own

    def names(self) -> Iterator[tuple[Key, int, int]]:
        heap = self._heap.array.reshape(-1)
        for entry in self._table[self._table != 0].tolist():
            key = unpack_key(self._keys.array[entry - 1], heap)
            if key is not None:
                yield key, entry - 1, NO_ID

    def soft(self, name: str) -> bytes | None:
        return self._soft.get(name)

    def store_soft(self, name: str, raw: bytes) -> None:
        self._soft[name] = raw

    def disk_bytes(self) -> int:
        return 0

    def memory_bytes(self) -> int:
        return int(self._table.nbytes) + self._text_end

    def close(self) -> None:
        """The memory goes with its last array."""
