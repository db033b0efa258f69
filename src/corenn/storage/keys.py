"""Keys as bytes and as words.

A key's *name* is the byte string under which the metadata knows it: `s` + UTF-8, or `i` + the number, big-endian with
its sign bit turned, so that names sort as keys do. Its *words* are what keys.slab stores by id: kind | length << 8, and
the number itself or the offset of its bytes in keys.heap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..errors import CorruptionError
from ..kernels.keytable import KIND_INT, KIND_NONE, KIND_STR
from ..types import AnyArray, Bytes, Key, UInt64s

UNREADABLE = "a row has no readable key in keys.slab; run `corenn repair`"
_SIGN = 1 << 63
_WORD = (1 << 64) - 1


def key_name(key: Key) -> bytes:
    """The name of a valid key."""
    if isinstance(key, str):
        return b"s" + key.encode()
    return b"i" + (key + _SIGN).to_bytes(8, "big")


def name_key(name: bytes) -> Key:
    """The key of a name."""
    if name[:1] == b"s":
        return name[1:].decode()
    return int.from_bytes(name[1:], "big") - _SIGN


def pack_keys(keys: Sequence[Key], heap_start: int) -> tuple[UInt64s, Bytes]:
    """Words of shape (n, 2) and the bytes of all strings, which go to the heap from `heap_start` on."""
    pieces: list[bytes] = []
    words = np.empty((len(keys), 2), np.uint64)
    if all(type(key) is int for key in keys):
        words[:, 0] = KIND_INT
        words[:, 1] = np.array(keys, np.int64).view(np.uint64)
        return words, np.empty(0, np.uint8)
    at = heap_start
    for row, key in enumerate(keys):
        if isinstance(key, str):
            raw = key.encode()
            words[row] = (KIND_STR | len(raw) << 8, at)
            pieces.append(raw)
            at += len(raw)
        else:
            words[row] = (KIND_INT, key & _WORD)
    return words, np.frombuffer(b"".join(pieces), np.uint8)


def unpack_key(words: UInt64s, heap: Bytes) -> Key | None:
    """The key of one row of words; None where there is none or its bytes lie outside the heap."""
    kind, value = int(words[0]), int(words[1])
    if kind & 0xFF == KIND_INT:
        return value - (1 << 64) if value & _SIGN else value
    stop = value + (kind >> 8)
    if kind & 0xFF == KIND_NONE or kind & 0xFF != KIND_STR or stop > len(heap):
        return None
    try:
        return heap[value:stop].tobytes().decode()
    except UnicodeDecodeError:
        return None


def unpack_keys(words: UInt64s, heap: Bytes) -> AnyArray:
    """Keys of words of shape (n, m, 2): int64 of shape (n, m) if all are numbers, else objects, None where KIND_NONE.

    Raises:
        CorruptionError: for a key that cannot be read.
    """
    kinds = words[..., 0]
    if (kinds == KIND_INT).all():
        return np.ascontiguousarray(words[..., 1]).view(np.int64)
    keys = np.full(kinds.shape, None, object)
    for at in np.argwhere(kinds != KIND_NONE).tolist():
        key = unpack_key(words[*at], heap)
        if key is None:
            raise CorruptionError(UNREADABLE)
        keys[*at] = key
    return keys


class KeyTable(Sequence["KeyColumn"]):
    """Keys of several rows each: words of shape (n, m, 2), of which the first counts[i] are keys, all if None."""

    __slots__ = ("_counts", "_heap", "_words")

    def __init__(self, words: UInt64s, heap: Bytes, counts: Sequence[int] | None = None) -> None:
        self._words = words
        self._heap = heap
        self._counts = counts

    def __len__(self) -> int:
        return len(self._words)

    def __getitem__(self, row: int) -> KeyColumn:  # type: ignore[override]
        words = self._words[row]
        return KeyColumn(words if self._counts is None else words[: self._counts[row]], self._heap)


class KeyColumn(Sequence[Key]):
    """Keys of some rows, made into Python objects when asked for.

    Holds its own copy of the words; the heap is append-only, so the bytes behind them never change.
    """

    __slots__ = ("_heap", "_words")

    def __init__(self, words: UInt64s, heap: Bytes) -> None:
        self._words = words
        self._heap = heap

    def __len__(self) -> int:
        return len(self._words)

    def __getitem__(self, row: int) -> Key:  # type: ignore[override]
        key = unpack_key(self._words[row], self._heap)
        if key is None:
            raise CorruptionError(UNREADABLE)
        return key

    def __iter__(self) -> Iterator[Key]:
        return iter(self.tolist())

    def tolist(self) -> list[Key]:
        """All of them: numbers without a NumPy scalar each."""
        return [
            (value - (1 << 64) if value & _SIGN else value) if kind == KIND_INT else self[row]
            for row, (kind, value) in enumerate(self._words.tolist())
        ]
