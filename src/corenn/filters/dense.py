"""The numbers of a field by row: what a function of the user is called with.

Made of the sorted column of the field when a function first asks for it, and brought up to date when the next one does:
with the runs that have come, where rows were added, or anew where entries were taken away. So an array only ever gets
the numbers of rows that had none before, and whoever holds it sees no number change of a row that it may look at.
"""

from __future__ import annotations

import threading

import numpy as np

from ..types import Float64s, UInt64s
from .columns import Run
from .fields import Field
from .sets import as_ids, as_words

MOST_KEPT = 16  # columns, those asked for last
SCATTERED = 1 << 17  # numbers put in their places before Ctrl-C is seen: a few milliseconds
ROOM = 9, 8  # an array is made longer by an eighth
NUMBERLESS: Float64s = np.empty(0)


class DenseColumns:
    """Columns by path. Any number of threads ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[str, _Dense] = {}

    def of(self, path: str, field: Field, rows: int) -> Float64s:
        """float64, for `rows` rows or more: the number of each, NaN if it has none, or if it has a list there."""
        with self._lock:
            held = self._held.pop(path, None)
            if held is None or held.field is not field:
                held = _Dense(field)
            held.follow(rows)
            self._held[path] = held
            if len(self._held) > MOST_KEPT:
                del self._held[next(iter(self._held))]
            return held.values

    @property
    def size(self) -> int:
        """Bytes of memory."""
        return sum(held.values.nbytes for held in list(self._held.values()))


class _Dense:
    """One column. runs: those whose entries it holds."""

    def __init__(self, field: Field) -> None:
        self.field, self.runs, self.values = field, tuple[Run, ...](), NUMBERLESS

    def follow(self, rows: int) -> None:
        """Take in what has come, for so many rows at least."""
        runs = self.field.numbers.runs  # before the sets, which are added to before them
        several = self.field.lists | self.field.several
        words = as_words(as_ids(several), int(several.max()) + 1) if several else None
        known = {id(run) for run in self.runs}
        fresh = [run for run in runs if id(run) not in known]
        self._reach(max([rows, *(int(run.ids.max()) + 1 for run in fresh if len(run.ids))]))
        for run in fresh:
            for start in range(0, len(run.ids), SCATTERED):
                self._put(run, slice(start, start + SCATTERED), words)
        self.runs = runs

    def _reach(self, rows: int) -> None:
        if rows > len(self.values):
            longer = np.full(rows * ROOM[0] // ROOM[1], np.nan)
            longer[: len(self.values)] = self.values
            self.values = longer

    def _put(self, run: Run, part: slice, several: UInt64s | None) -> None:
        ids, values = run.ids[part], run.values[part]
        if several is not None:
            inside = ids < np.uint32(len(several) << 6)
            held = several[np.where(inside, ids, 0) >> 6] >> (ids & np.uint32(63)).astype(np.uint64)
            single = ~inside | (held & np.uint64(1) == 0)
            ids, values = ids[single], values[single]
        self.values[ids] = values
