"""Rows of state.slab: two words, the commits at which a row was born and died, and a check of both.

A commit number stands in the upper 48 bits of its word, so that words compare as numbers do and a snapshot is told by
one comparison with `seen_up_to`; no walk looks at the check, which fills the lower 16 bits of the first word. It is the
folded CRC-32C of both numbers and the id: every flipped bit breaks it, and so does a row at a wrong place. Both words
are in one sector, hence never torn. A row that is not born has no check, for its first word must be 0: a page of zeros
is told by the keys that point at its rows.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from ..kernels.checksum import TABLES, checksum_rows
from ..types import AnyArray, UInt32s, UInt64s

SHIFT = 16
LOOKS = 3
_SHIFT = np.uint64(SHIFT)
_CHECK = np.uint64((1 << SHIFT) - 1)


def seen_up_to(commit: int) -> int:
    """What the words of a row are compared with: those of commits up to this one are not above it."""
    return commit << SHIFT | (1 << SHIFT) - 1


def commit_of(words: Any) -> Any:
    """The commits that words name, 0 for never."""
    return words >> _SHIFT


def state_words(ids: UInt32s, born: Any, died: Any) -> UInt64s:
    """The rows of state.slab, shape (n, 2), for commits of birth and death; 0 for never."""
    words = np.empty((len(ids), 2), np.uint64)
    words[:, 0], words[:, 1] = born, died
    words <<= _SHIFT
    words[:, 0] |= np.where(words[:, 0] == 0, np.uint64(0), _checks(ids, words))
    return words


def broken_states(state: AnyArray, ids: UInt32s) -> UInt32s:
    """Those of the rows of state.slab that are not what was written, however often one looks: a writer may go on."""
    for _ in range(LOOKS):
        words = state[ids]
        numbers = np.stack((words[:, 0] & ~_CHECK, words[:, 1]), axis=1)
        ids = ids[(words[:, 0] != 0) & ((words[:, 0] & _CHECK) != _checks(ids, numbers))]
        if not len(ids):
            break
    return ids


def salted(ids: UInt32s, born: Any) -> UInt64s:
    """What the checksum of a vector covers beside it: id and birth.

    An id may be used again, and after a loss of power the vector of the row before may still be there, whole.
    """
    salts: UInt64s = ids.astype(np.uint64) | (np.asarray(born, np.uint64) << np.uint64(32))
    return salts


def checksums_of(vectors: AnyArray, seals: UInt32s, salts: UInt64s) -> UInt32s:
    """The checksums that stored rows must have, whatever stands in the first column of their seals."""
    sums = np.empty(len(salts), np.uint32)
    checksum_rows(TABLES, np.ascontiguousarray(vectors).view(np.uint64), np.ascontiguousarray(seals), salts, sums)
    return sums


@cache
def _basis() -> dict[int, tuple[int, int]]:
    """What single bits of a birth do to a checksum, eliminated: leading bit → (change of the checksum, birth)."""
    births = np.concatenate(([0], 1 << np.arange(32))).astype(np.uint64)
    sums = np.empty(len(births), np.uint32)
    nothing = np.zeros((len(births), 1), np.uint64)
    zeros = np.zeros(len(births), np.uint32)
    checksum_rows(TABLES, nothing, np.zeros((len(births), 1), np.uint32), salted(zeros, births), sums)
    basis: dict[int, tuple[int, int]] = {}
    for change, birth in zip((sums[1:] ^ sums[0]).tolist(), births[1:].tolist(), strict=True):
        change, birth = _reduced(change, birth, basis)
        basis[change.bit_length()] = (change, birth)
    return basis


def _reduced(change: int, birth: int, basis: dict[int, tuple[int, int]]) -> tuple[int, int]:
    while change and change.bit_length() in basis:
        other = basis[change.bit_length()]
        change, birth = change ^ other[0], birth ^ other[1]
    return change, birth


def salt_between(one: int, other: int) -> int:
    """The birth by which a checksum changes from one, taken with birth 0, to another: CRCs are linear."""
    return _reduced(one ^ other, 0, _basis())[1]


def _checks(ids: UInt32s, words: UInt64s) -> UInt64s:
    sums = np.empty(len(ids), np.uint32)
    seals = np.zeros((len(ids), 1), np.uint32)
    checksum_rows(TABLES, np.ascontiguousarray(words), seals, ids.astype(np.uint32, copy=False), sums)
    return ((sums >> np.uint32(SHIFT)) ^ (sums & np.uint32(_CHECK))).astype(np.uint64)
