"""Rows of state.slab: two words, the commits at which a row was born and died, and a check of both.

A commit number stands in the upper 48 bits of its word, so that words compare as numbers do and a snapshot is told by
one comparison with `seen_up_to`; no walk looks at the check, which fills the lower 16 bits of the first word. It is the
folded CRC-32C of both numbers and the id: every flipped bit breaks it, and so does a row at a wrong place. Both words
are in one sector, hence never torn. A row that is not born has no check, for its first word must be 0: a page of zeros
is told by the keys that point at its rows.
"""

from __future__ import annotations

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


def _checks(ids: UInt32s, words: UInt64s) -> UInt64s:
    sums = np.empty(len(ids), np.uint32)
    seals = np.zeros((len(ids), 1), np.uint32)
    checksum_rows(TABLES, np.ascontiguousarray(words), seals, ids.astype(np.uint32, copy=False), sums)
    return ((sums >> np.uint32(SHIFT)) ^ (sums & np.uint32(_CHECK))).astype(np.uint64)
