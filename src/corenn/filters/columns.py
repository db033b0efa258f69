"""The values of one kind that one field has, sorted: numbers, or texts.

A column is a few *runs*, each a pair of arrays (value, id) in the order of values. What comes is a run of its own, and
runs are merged when they have become alike in size (O'Neil et al., the LSM-tree, 1996): so an insert costs little, and
a lookup is a binary search in a handful of arrays. A value that FREQUENT rows have gets a bitmap beside its entries.

Runs are never changed, only replaced. Bitmaps are, each by one call of pyroaring, during which no other thread runs.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pyroaring import BitMap

from ..kernels.bits import clear_ids, mark_ids
from ..storage.commit import NO_IDS
from ..types import AnyArray, UInt32s, UInt64s
from .sets import SPARSE, RowSet, as_words, clear_from, of_any, of_list, words_for

FREQUENT = 64  # rows of a value from which on it has a bitmap
STEPS = 16  # parts of a run before each of which the set of all rows is kept
LEAST_STEPPED = 4096  # entries of a run for which that is done
GROWTH = 4  # a run is merged with the one before it unless that is so many times as large
NUMBERS: Any = np.dtype(np.float64)
TEXTS: Any = np.dtypes.StringDType()


class Packed(NamedTuple):
    """Ascending texts, each once, as they stand on the disk: one behind the other, with their lengths in characters,
    and how many rows have each.
    """

    text: str
    lengths: AnyArray
    counts: AnyArray

    def unpacked(self) -> AnyArray:
        """The texts, each as often as rows have it."""
        ends = np.cumsum(self.lengths, dtype=np.int64).tolist()
        starts = [0, *ends[:-1]] if ends else []
        texts = np.array([self.text[start:end] for start, end in zip(starts, ends, strict=True)], TEXTS)
        return np.repeat(texts, self.counts)

    def frequent(self, ids: UInt32s) -> Iterator[tuple[str, BitMap]]:
        """The texts that FREQUENT rows or more have, and these, of the ids of all entries."""
        ends, lasts = np.cumsum(self.lengths, dtype=np.int64), np.cumsum(self.counts, dtype=np.int64)
        for at in np.flatnonzero(self.counts >= FREQUENT).tolist():
            text = self.text[int(ends[at]) - int(self.lengths[at]) : int(ends[at])]
            yield text, of_any([ids[int(lasts[at]) - int(self.counts[at]) : int(lasts[at])]])


class Run:
    """values: ascending, float64 or text. ids: uint32, of the rows that have them.

    packed: the values as they were read, from which they are made when first asked for: most of what it takes to read a
    column of texts, and many are never asked for anything but what has a bitmap.
    """

    __slots__ = ("_packed", "_steps", "_values", "ids")

    def __init__(self, values: AnyArray | None, ids: UInt32s, packed: Packed | None = None) -> None:
        self._values, self._packed, self.ids = values, packed, ids
        self._steps: list[UInt64s] | None = None

    @property
    def values(self) -> AnyArray:
        packed, values = self._packed, self._values
        if values is None:
            assert packed is not None
            values = self._values = packed.unpacked()  # by two threads at once, twice the same
            self._packed = None
        return values

    @property
    def value_bytes(self) -> int:
        """Bytes of the values, about."""
        packed, values = self._packed, self._values
        if values is not None:
            return values.nbytes
        return 0 if packed is None else len(packed.text) + 6 * len(packed.counts)

    def frequent(self) -> Iterator[tuple[Any, BitMap | None]]:
        """The values that FREQUENT rows or more have by this run alone, and these rows where they are at hand."""
        packed = self._packed
        if packed is not None:
            return packed.frequent(self.ids)
        return ((value, None) for value in _repeated(self.values))

    def between(self, start: int, stop: int, rows: int) -> UInt64s:
        """The rows of the entries from one place up to another, as bits; no row has two. Sets of all entries before
        each STEPS-th part are kept.
        """
        steps, size = self._steps, -(-len(self.ids) // STEPS)
        if steps is None or len(steps[0]) != words_for(rows):
            steps = [as_words(self.ids[:0], rows)]
            for first in range(0, len(self.ids) - size, size):
                words = steps[-1].copy()
                mark_ids(self.ids[first : first + size], words)
                steps.append(words)
            self._steps = steps
        low, high = (min(place // size, len(steps) - 1) for place in (start, stop))
        words = steps[low] ^ steps[high]
        mark_ids(self.ids[high * size : stop], words)
        clear_ids(self.ids[low * size : start], words)
        return words

    def within(self, words: UInt64s) -> Run:
        """The entries of the rows of which `words` has the bit; rows beyond it are left out."""
        known = self.ids < np.uint64(len(words) << 6)
        ids = self.ids if known.all() else self.ids[known]
        mask = (words[ids >> 6] >> (ids & np.uint32(63)).astype(np.uint64)) & np.uint64(1) != 0
        values = self.values if ids is self.ids else self.values[known]
        return Run(values[mask], ids[mask])

    @property
    def step_bytes(self) -> int:
        """What the sets take that are kept."""
        return 0 if self._steps is None else len(self._steps) * self._steps[0].nbytes


class Column:
    """Values and the rows that have them. kind: NUMBERS or TEXTS."""

    def __init__(self, kind: Any, runs: Sequence[Run] = ()) -> None:
        self.kind = kind
        self.runs: tuple[Run, ...] = tuple(runs)
        self.frequent: dict[Any, BitMap] = {}
        for run in self.runs:
            self._note_frequent(run)

    def __len__(self) -> int:
        return sum(len(run.ids) for run in self.runs)

    # --- changing ----------------------------------------------------------------------------------------------------

    def add(self, groups: Mapping[Any, list[int]]) -> None:
        """Add rows, by the value that they have."""
        values = sorted(groups)
        counts = [len(groups[value]) for value in values]
        ids = array("I")
        for value in values:
            ids.extend(groups[value])
        for value, count in zip(values, counts, strict=True):
            held = self.frequent.get(value)
            if held is not None:
                held.update(array("I", groups[value]))
            elif count >= FREQUENT:
                self.frequent[value] = self._entries(value) | of_list(groups[value])
        repeated = np.repeat(np.array(values, self.kind), counts)
        self._push(Run(repeated, np.array(ids, np.uint32)))

    def _push(self, run: Run) -> None:
        runs = [*self.runs, run]
        while len(runs) > 1 and len(runs[-2].ids) < GROWTH * len(runs[-1].ids):
            newer, older = runs.pop(), runs.pop()
            runs.append(_merged(older, newer))
            self.runs = tuple(runs)
            self._note_frequent(runs[-1])
        self.runs = tuple(runs)

    def _note_frequent(self, run: Run) -> None:
        """Give a bitmap to each value of a run that has become frequent."""
        for value, held in run.frequent():
            if value not in self.frequent:
                alone = held is not None and len(self.runs) == 1
                self.frequent[value] = held if alone and held is not None else self._entries(value)

    def without(self, words: AnyArray) -> Column:
        """The same column less the rows of which `words`, a bit for each, has the bit."""
        kept = []
        for run in self.runs:
            ids = run.ids
            mask = (words[ids >> 6] >> (ids & np.uint32(63)).astype(np.uint64)) & np.uint64(1) == 0
            if mask.all():
                kept.append(run)
            elif mask.any():
                kept.append(Run(run.values[mask], ids[mask]))
        return Column(self.kind, kept)

    def renumbered(self, numbers: UInt32s, gone: int) -> Column:
        """The same column of the same rows under other ids; numbers: the new id of each, `gone` for none."""
        kept = []
        for run in self.runs:
            ids = numbers[run.ids]
            mask = ids != gone
            if mask.any():
                kept.append(Run(run.values[mask], ids[mask]))
        return Column(self.kind, kept)

    def whole(self) -> Run:
        """All entries in one run."""
        run = self.runs[0] if self.runs else Run(np.empty(0, self.kind), np.empty(0, np.uint32))
        for other in self.runs[1:]:
            run = _merged(run, other)
        return run

    # --- asking ------------------------------------------------------------------------------------------------------

    def equal(self, value: Any) -> BitMap:
        """The rows that have a value; a set of its own."""
        held = self.frequent.get(value)
        return BitMap(held) if held is not None else self._entries(value)

    def among(self, values: Iterable[Any]) -> BitMap:
        """The rows that have one of several values."""
        held, parts = list[BitMap](), list[UInt32s]()
        for value in values:
            found = self.frequent.get(value)
            if found is None:
                parts += self._slices(value)
            else:
                held.append(found)
        return BitMap.union(of_any(parts), *held)

    def _entries(self, value: Any) -> BitMap:
        return of_any(self._slices(value))

    def _slices(self, value: Any) -> list[UInt32s]:
        parts = []
        for run in self.runs:
            start = _left(run.values, value)
            if start < len(run.values) and run.values[start] == value:
                parts.append(run.ids[start : _right(run.values, value)])
        return parts

    def between(self, low: Any, high: Any, *, above: bool, below: bool, rows: int, single: bool = False) -> BitMap:
        """The rows, of those with ids below `rows`, that have a value from `low` to `high`, None for no end.

        above, below: leave out the ends themselves. single: no row has two values.
        """
        if single:
            return self.sliced(low, high, above=above, below=below, rows=rows).members
        return of_any([run.ids[part] for run, part in self._parts(low, high, above=above, below=below)], rows)

    def sliced(self, low: Any, high: Any, *, above: bool, below: bool, rows: int) -> RowSet:
        """The same where no row has two values."""
        parts, words = list[UInt32s](), None
        for run, part in self._parts(low, high, above=above, below=below):
            wide = STEPS * (part.stop - part.start) > len(run.ids)
            if wide and len(run.ids) >= max(LEAST_STEPPED, rows // STEPS):
                found = run.between(part.start, part.stop, rows)
                words = found if words is None else words | found
            elif part.start < part.stop:
                parts.append(run.ids[part])
        if words is None and SPARSE * sum(map(len, parts)) < rows:
            return RowSet(rows, ids=_sorted(parts, rows))
        if words is None:
            words = as_words(NO_IDS, rows)
        for ids in parts:
            mark_ids(ids, words)
        clear_from(words, rows)
        return RowSet(rows, words=words)

    def _parts(self, low: Any, high: Any, *, above: bool, below: bool) -> Iterator[tuple[Run, slice]]:
        """The entries of each run that have such a value."""
        for run in self.runs:
            start = 0 if low is None else (_right if above else _left)(run.values, low)
            stop = len(run.values) if high is None else (_left if below else _right)(run.values, high)
            yield run, slice(start, max(start, stop))

    def tally(self, words: UInt64s, *, repeated: bool) -> tuple[list[Any], list[int]]:
        """The values of the rows of which `words`, a bit for each, has the bit, ascending, and how many have each.

        repeated: a row may have a value more than once.
        """
        parts = [run.within(words) for run in self.runs]
        run = parts[0] if parts else Run(np.empty(0, self.kind), np.empty(0, np.uint32))
        for other in parts[1:]:
            run = _merged(run, other)
        if not len(run.ids):
            return [], []
        if repeated:
            run = _by_row(run)
            first = np.ones(len(run.ids), np.bool_)
            first[1:] = (run.ids[1:] != run.ids[:-1]) | (run.values[1:] != run.values[:-1])
            run = Run(run.values[first], run.ids[first])
        starts = np.flatnonzero(np.concatenate(([True], run.values[1:] != run.values[:-1])))
        return run.values[starts].tolist(), np.diff(np.append(starts, len(run.ids))).tolist()

    def memory_bytes(self) -> int:
        """About what it takes."""
        size = sum(run.value_bytes + run.ids.nbytes + run.step_bytes for run in self.runs)
        if self.kind is TEXTS:
            size += 16 * len(self)  # what lies beyond the sixteen bytes that a short text takes
        return size + 2 * len(self)

    # --- checking ----------------------------------------------------------------------------------------------------

    def difference(self, other: Column) -> BitMap:
        """The rows that do not have the same values in both."""
        one, two = self.whole(), other.whole()
        one, two = _by_row(one), _by_row(two)
        if len(one.ids) == len(two.ids) and (one.ids == two.ids).all() and (one.values == two.values).all():
            return BitMap()
        first, second = ({*zip(run.values.tolist(), run.ids.tolist(), strict=True)} for run in (one, two))
        return of_list([row for _, row in first ^ second])

    def contradictions(self) -> BitMap:
        """The rows of which bitmaps and runs do not say the same."""
        wrong = BitMap()
        for value, held in self.frequent.items():
            wrong |= held ^ self._entries(value)
        return wrong


def _repeated(values: AnyArray) -> list[Any]:
    """The values that stand FREQUENT times or more in a sorted array, as plain Python has them."""
    if len(values) < FREQUENT:
        return []
    ends = np.flatnonzero(values[FREQUENT - 1 :] == values[: len(values) - FREQUENT + 1])
    if not len(ends):
        return []
    # Of each value the first place alone: the others follow it without a gap, or stand beyond another value.
    found = values[ends]
    first = np.ones(len(found), np.bool_)
    first[1:] = found[1:] != found[:-1]
    return list(found[first].tolist())


def _merged(older: Run, newer: Run) -> Run:
    values = np.concatenate((older.values, newer.values))
    order = np.argsort(values, kind="stable")
    return Run(values[order], np.concatenate((older.ids, newer.ids))[order])


def _by_row(run: Run) -> Run:
    """The same entries, ties by id."""
    order = np.argsort(run.ids, kind="stable")
    order = order[np.argsort(run.values[order], kind="stable")]
    return Run(run.values[order], run.ids[order])


def _sorted(parts: Sequence[UInt32s], rows: int) -> UInt32s:
    """The ids of all parts that are below `rows`, ascending."""
    ids = np.sort(np.concatenate(parts) if len(parts) > 1 else parts[0]) if parts else NO_IDS
    return ids[: ids.searchsorted(np.uint32(rows))] if len(ids) and ids[-1] >= rows else ids


def _left(values: AnyArray, value: Any) -> int:
    return int(values.searchsorted(value)) if values.dtype is NUMBERS else bisect_left(values, value)


def _right(values: AnyArray, value: Any) -> int:
    return int(values.searchsorted(value, "right")) if values.dtype is NUMBERS else bisect_right(values, value)
