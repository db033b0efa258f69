"""Sets of ids as bits, one for each row: what filters hand to walks, and what roaring bitmaps are made of."""

from __future__ import annotations

from typing import Any

import numpy as np

from .intrinsics import lowest_bit
from .jit import inlined, kernel

CONTAINER_WORDS = 1024  # of 64 bits: the rows of one container of a roaring bitmap
MOST_LISTED = 4096  # members of a container up to which it is a list
CONTAINER_BYTES = 8192  # of one that is bits


@inlined
def has_bit(words: Any, row: Any) -> Any:
    """Whether a row is in a set."""
    return (words[row >> 6] >> np.uint64(row & 63)) & np.uint64(1) != 0


@kernel
def mark_ids(ids: Any, words: Any) -> None:
    """Put ids, uint32, into a set: uint64 words. Those beyond its end are left out."""
    last = words.shape[0] << 6
    for at in range(ids.shape[0]):
        row = np.int64(ids[at])
        if row < last:
            words[row >> 6] |= np.uint64(1) << np.uint64(row & 63)


@kernel
def clear_ids(ids: Any, words: Any) -> None:
    """Take ids, uint32, out of a set: uint64 words. Those beyond its end are passed over."""
    last = words.shape[0] << 6
    for at in range(ids.shape[0]):
        row = np.int64(ids[at])
        if row < last:
            words[row >> 6] &= ~(np.uint64(1) << np.uint64(row & 63))


@kernel
def keep_ids(ids: Any, words: Any) -> int:
    """Move the ids, uint32, that are in a set, uint64 words, to the front, in their order; returns how many there are.
    All are within its end.
    """
    kept = 0
    for at in range(ids.shape[0]):
        ids[kept] = ids[at]
        kept += has_bit(words, np.int64(ids[at]))
    return kept


@kernel
def count_bits(words: Any) -> Any:
    """How many ids a set has: uint64 words."""
    count = np.int64(0)
    for at in range(words.shape[0]):
        word = words[at]  # by sums of ever wider fields
        if word == 0:
            continue
        word -= (word >> np.uint64(1)) & np.uint64(0x5555555555555555)
        word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
        word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
        word += word >> np.uint64(8)
        word += word >> np.uint64(16)
        word += word >> np.uint64(32)
        count += np.int64(word & np.uint64(0x7F))
    return count


@kernel
def list_ids(words: Any, out: Any) -> None:
    """Write the ids of a set, ascending, as uint32: as many as out has room for."""
    place = 0
    for at in range(words.shape[0]):
        for half in range(2):
            word = np.uint32((words[at] >> np.uint64(32 * half)) & np.uint64(0xFFFFFFFF))
            while word != 0 and place < out.shape[0]:
                out[place] = np.uint32(64 * at + 32 * half + lowest_bit(word))
                place += 1
                word &= word - np.uint32(1)


@kernel
def list_members(words: Any, counts: Any, places: Any, out: Any) -> None:
    """Write the members of containers as lists of uint16, as the portable format of roaring bitmaps has them.

    words: uint64 (containers, CONTAINER_WORDS). counts: int64, their members; those with more than MOST_LISTED are left
    out. places: int64, where each list begins in out, uint16.
    """
    for c in range(words.shape[0]):
        if counts[c] > MOST_LISTED:
            continue
        place = places[c]
        for at in range(CONTAINER_WORDS):
            word = words[c, at]
            bit = 64 * at
            while word != 0:
                if word & np.uint64(1):
                    out[place] = np.uint16(bit)
                    place += 1
                word >>= np.uint64(1)
                bit += 1
