"""The hash table of keys of a database in memory: open addressing over ids, keys compared in their heap.

A key is two uint64 words: kind | length << 8, and the number itself or the offset of its bytes in a heap.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .intrinsics import load_first
from .jit import inlined, kernel

KIND_NONE, KIND_INT, KIND_STR = 0, 1, 2

_KIND = np.uint64(0xFF)
_LENGTH = np.uint64(8)
_PRIME = np.uint64(0x100000001B3)
_BASIS = np.uint64(0xCBF29CE484222325)
_MIX = np.uint64(0xFF51AFD7ED558CCD)
_HALF = np.uint64(33)


@inlined
def hash_key(word: Any, value: Any, heap: Any) -> Any:
    """FNV-1a over a string, or the number; mixed, so that its low bits may be used."""
    code = _BASIS ^ (word & _KIND)
    if (word & _KIND) == np.uint64(KIND_INT):
        code = (code ^ value) * _PRIME
    else:
        start = np.int64(value)
        for at in range(start, start + np.int64(word >> _LENGTH)):
            code = (code ^ np.uint64(heap[at])) * _PRIME
    code = (code ^ (code >> _HALF)) * _MIX
    return code ^ (code >> _HALF)


@inlined
def _same(word: Any, value: Any, heap: Any, other_word: Any, other_value: Any, other_heap: Any) -> Any:
    if word != other_word:
        return False
    if (word & _KIND) == np.uint64(KIND_INT):
        return value == other_value
    start, other_start = np.int64(value), np.int64(other_value)
    for at in range(np.int64(word >> _LENGTH)):
        if heap[start + at] != other_heap[other_start + at]:
            return False
    return True


@kernel
def find_keys(table: Any, words: Any, heap: Any, state: Any, snapshot: Any, wanted: Any, bytes_: Any, out: Any) -> None:
    """For each key of wanted (uint64 (n, 2), strings in bytes_) the id that the snapshot sees, or -1, to out (int64).

    table: uint32, ids plus one, its size a power of two. words, heap: the stored keys by id.
    """
    mask = np.uint64(table.shape[0] - 1)
    for i in range(wanted.shape[0]):
        out[i] = -1
        place = hash_key(wanted[i, 0], wanted[i, 1], bytes_) & mask
        while table[place] != 0:
            row = np.int64(table[place]) - 1
            died = load_first(state, row, 1)  # as search.visible does
            if (
                state[row, 0] - np.uint64(1) < snapshot
                and died - np.uint64(1) >= snapshot
                and _same(wanted[i, 0], wanted[i, 1], bytes_, words[row, 0], words[row, 1], heap)
            ):
                out[i] = row
                break
            place = (place + np.uint64(1)) & mask


@kernel
def add_keys(table: Any, words: Any, heap: Any, ids: Any) -> None:
    """Add the keys of `ids`. The table keeps the ids of deleted rows until it is built again."""
    mask = np.uint64(table.shape[0] - 1)
    for i in range(ids.shape[0]):
        row = np.int64(ids[i])
        place = hash_key(words[row, 0], words[row, 1], heap) & mask
        while table[place] != 0:
            place = (place + np.uint64(1)) & mask
        table[place] = np.uint32(row + 1)
