"""Sets of ids: roaring bitmaps, made of arrays without a Python object per id.

pyroaring takes arrays that are sorted as they are; what is not goes through bits, which is what sorting it would cost
a tenth of, and is handed over in the portable format of roaring bitmaps.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from functools import cached_property, lru_cache

import numpy as np
from pyroaring import BitMap

from ..kernels.bits import (
    CONTAINER_BYTES,
    CONTAINER_WORDS,
    MOST_LISTED,
    clear_ids,
    count_bits,
    keep_ids,
    list_ids,
    list_members,
    mark_ids,
)
from ..types import Int64s, UInt32s, UInt64s

SORTED_BELOW = 512  # ids that are sorted rather than marked
SPARSE = 32  # rows for each id from which on ids are looked at one by one, rather than as bits
FEW_IDS = 6_000  # that are sooner looked for one by one than sets are made and joined as bits
GOLDEN = (5**0.5 - 1) / 2
_COOKIE, _CONTAINER = 12346, 1 << 16
_HEAD = struct.Struct("<II")


def of_sorted(ids: UInt32s) -> BitMap:
    """The set of ascending ids."""
    held = array("I")
    held.frombytes(np.ascontiguousarray(ids, np.uint32).tobytes())
    return BitMap(held)


def of_list(ids: Sequence[int]) -> BitMap:
    """The set of ids in a list, in any order."""
    return BitMap(array("I", ids))


def of_any(parts: Sequence[UInt32s], rows: int | None = None) -> BitMap:
    """The set of the ids in several arrays, in any order, some of them perhaps more than once.

    rows: leave out those from there on.
    """
    count = sum(len(part) for part in parts)
    if count == 0:
        return BitMap()
    if count < SORTED_BELOW:
        ids = np.sort(np.concatenate(parts)) if len(parts) > 1 else np.sort(parts[0])
        return of_sorted(ids if rows is None else ids[: ids.searchsorted(rows)])
    if rows is None:
        rows = max(int(part.max()) for part in parts if len(part)) + 1
    words = np.zeros(words_for(rows), np.uint64)
    for part in parts:
        mark_ids(part, words)
    found = of_words(words)
    return found if rows % _CONTAINER == 0 else below(found, rows)


def below(some: BitMap, rows: int) -> BitMap:
    """Those of some ids that are below `rows`."""
    return some if not some or some.max() < rows else some & BitMap(range(rows))


def of_words(words: UInt64s) -> BitMap:
    """The set of bits in whole containers of words."""
    held = words.reshape(-1, CONTAINER_WORDS)
    counts = np.bitwise_count(held).sum(axis=1, dtype=np.int64)
    keys = np.flatnonzero(counts)
    if not len(keys):
        return BitMap()
    held, counts = held[keys] if len(keys) < len(held) else held, counts[keys]
    sizes = np.where(counts > MOST_LISTED, CONTAINER_BYTES, 2 * counts)
    first = _HEAD.size + 8 * len(keys)
    places = first + np.cumsum(sizes) - sizes
    head = np.stack((keys, counts - 1), axis=1).astype("<u2").tobytes() + places.astype("<u4").tobytes()
    return BitMap.deserialize(_HEAD.pack(_COOKIE, len(keys)) + head + _body(held, counts, places - first, sizes))


def _body(held: UInt64s, counts: Int64s, places: Int64s, sizes: Int64s) -> bytes:
    if (counts > MOST_LISTED).all():
        return held.tobytes()
    out = np.empty(int(sizes.sum()) // 2, np.uint16)
    list_members(held, counts, places // 2, out)
    for c in np.flatnonzero(counts > MOST_LISTED).tolist():
        at = int(places[c]) // 2
        out[at : at + CONTAINER_BYTES // 2] = held[c].view(np.uint16)
    return out.tobytes()


@lru_cache(maxsize=8)
def spread(count: int, rows: int) -> UInt32s:
    """About `count` of `rows` ids, ascending, as evenly spread as those of a fixed step, but in step with nothing that
    comes back every so many rows. Nobody may change them.
    """
    ids: UInt32s = np.unique((np.arange(count) * GOLDEN % 1 * rows).astype(np.uint32))
    return ids


def up_to(rows: int) -> BitMap:
    """All ids below `rows`."""
    return BitMap(range(rows))


def as_ids(members: BitMap) -> UInt32s:
    """The ids of a set, ascending."""
    return np.frombuffer(members.to_array(), np.uint32) if len(members) else np.empty(0, np.uint32)


def words_for(rows: int) -> int:
    """Words of a bit for each of `rows` rows, up to a whole container."""
    return -(-rows // _CONTAINER) * CONTAINER_WORDS


def as_words(ids: UInt32s, rows: int) -> UInt64s:
    """A bit for each of `rows` rows, set for these ids, and clear bits up to a whole container."""
    words = np.zeros(words_for(rows), np.uint64)
    mark_ids(ids, words)
    return words


def clear_from(words: UInt64s, rows: int) -> None:
    """Clear the bits from `rows` on."""
    if rows >> 6 < len(words):
        words[rows >> 6] &= np.uint64((1 << (rows & 63)) - 1)
        words[(rows >> 6) + 1 :] = 0


def words_of(members: BitMap, rows: int) -> UInt64s:
    """The same for a set of ids below `rows`: its containers are copied as they are, where they are bits."""
    raw = members.serialize()
    cookie, count = _HEAD.unpack_from(raw) if len(raw) >= _HEAD.size else (0, 0)
    if cookie != _COOKIE:  # one with runs
        return as_words(as_ids(members), rows)
    head = np.frombuffer(raw, "<u2", 2 * count, _HEAD.size).reshape(-1, 2)
    places = np.frombuffer(raw, "<u4", count, _HEAD.size + 4 * count)
    words = np.zeros(words_for(rows), np.uint64)
    for (key, last), place in zip(head.tolist(), places.tolist(), strict=True):
        container = words[key * CONTAINER_WORDS : (key + 1) * CONTAINER_WORDS]
        if last >= MOST_LISTED:
            container[:] = np.frombuffer(raw, "<u8", CONTAINER_WORDS, place)
        else:
            mark_ids(np.frombuffer(raw, "<u2", last + 1, place).astype(np.uint32), container)
    return words


class RowSet:
    """Some of `rows` rows: a roaring bitmap, ascending ids, or a bit for each row. It is made as one of these, and the
    others are made of that when they are first asked for. Nobody may change them.
    """

    def __init__(
        self, rows: int, *, members: BitMap | None = None, ids: UInt32s | None = None, words: UInt64s | None = None
    ) -> None:
        self.rows = rows
        if members is not None:
            self.members, self.count = members, len(members)
        elif ids is not None:
            self.ids, self.count = ids, len(ids)
        else:
            assert words is not None
            self.words, self.count = words, int(count_bits(words))  # not compiled, it gives one of NumPy's

    @cached_property
    def members(self) -> BitMap:
        """The set."""
        return of_words(self.words) if "words" in self.__dict__ else of_sorted(self.ids)

    @cached_property
    def ids(self) -> UInt32s:
        """uint32, ascending."""
        if "members" in self.__dict__:
            return as_ids(self.members)
        ids = np.empty(self.count, np.uint32)
        list_ids(self.words, ids)
        return ids

    @cached_property
    def words(self) -> UInt64s:
        """uint64, clear up to a whole container."""
        return words_of(self.members, self.rows) if "members" in self.__dict__ else as_words(self.ids, self.rows)

    def others(self) -> RowSet:
        """Those that are not among them."""
        words = ~self.words
        clear_from(words, self.rows)
        return RowSet(self.rows, words=words)

    def without(self, others: BitMap) -> RowSet:
        """Those of them that are not in another set."""
        if "members" in self.__dict__:
            return RowSet(self.rows, members=self.members - others)
        words = self.words.copy()
        clear_ids(as_ids(others), words)
        return RowSet(self.rows, words=words)

    def memory_bytes(self) -> int:
        """About what it takes, in all the forms that have been asked for."""
        held = self.__dict__
        words = self.words.nbytes if "words" in held else 0
        return words + 4 * self.count * ("ids" in held) + 2 * self.count * ("members" in held)


def common(sets: Sequence[RowSet]) -> RowSet:
    """The rows that are in all of some sets, one at least, of the same `rows`."""
    bitmaps = [each.members for each in sets if "members" in each.__dict__]
    parts = [each for each in sets if "members" not in each.__dict__]
    if bitmaps:
        parts.append(RowSet(sets[0].rows, members=BitMap.intersection(*bitmaps)))
    least, *others = sorted(parts, key=lambda each: each.count)
    if not others or not least.count:
        return least
    if least.count < FEW_IDS + least.rows // SPARSE:
        ids = least.ids.copy()
        for other in others:
            ids = ids[: keep_ids(ids, other.words)]
        return RowSet(least.rows, ids=ids)
    words = least.words & others[0].words
    for other in others[1:]:
        words &= other.words
    return RowSet(least.rows, words=words)
