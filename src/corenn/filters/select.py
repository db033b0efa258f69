"""The rows that a filter selects in one view: by the index, and by their payloads where that is not sure."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
from pyroaring import BitMap

from ..storage.commit import LiveView, Metadata
from ..types import UInt32s, UInt64s
from .expression import Condition, Filter, Keys, Text
from .index import PayloadIndex, RowSets
from .match import matches
from .sets import as_ids, of_list, of_sorted, words_of

LOOKED_ROWS = 1024  # payloads fetched at once
MOST_NAMED = 256  # operands and letters of a filter whose answer is kept


class Selected:
    """The rows that meet a filter in one view. looked: how many payloads had to be looked at for that."""

    def __init__(self, members: BitMap, rows: int, looked: int = 0) -> None:
        self.members, self._rows = members, rows
        self.count, self.looked = len(members), looked

    def without(self, others: Selected) -> Selected:
        """Those of them that another filter does not select in the same view."""
        return Selected(self.members - others.members, self._rows)

    def memory_bytes(self) -> int:
        """About what it takes, with what is made of it as it is used."""
        return 2 * self.count + (4 * self.count if "ids" in self.__dict__ else 0) + self._rows // 8

    @cached_property
    def ids(self) -> UInt32s:
        """Their ids, ascending."""
        return as_ids(self.members)

    @cached_property
    def words(self) -> UInt64s:
        """A bit for each row that the view knows."""
        return words_of(self.members, self._rows)


def select(index: PayloadIndex, tree: Filter, live: LiveView, commit: int, metadata: Metadata) -> Selected:
    """The rows that a view sees and that meet a filter.

    live, commit: the snapshot of the view. metadata: where its keys and payloads are.
    """
    name = _name(tree)
    kept = index.recall(name, commit, live.rows)
    if isinstance(kept, Selected):
        return kept
    version = index.version
    told = _row_sets(index, tree, live, commit, metadata)
    sure, unsure = index.select(tree, commit, live.rows, told)
    if not unsure:
        found = Selected(sure, live.rows)
        if not told:
            index.remember(name, version, commit, live.rows, found)
        return found
    met, looked = list[int](), as_ids(unsure)
    looked = looked[live.seen(looked)]
    for start in range(0, len(looked), LOOKED_ROWS):
        ids = looked[start : start + LOOKED_ROWS].tolist()
        for row, text in zip(ids, metadata.payloads(ids, commit), strict=True):
            if matches(tree, text, lambda asked, row=row, text=text: _among(index, told, asked, row, text)):  # type: ignore[misc]
                met.append(row)
    return Selected(sure | of_list(met), live.rows, len(looked))


def _row_sets(index: PayloadIndex, tree: Filter, live: LiveView, commit: int, metadata: Metadata) -> RowSets:
    """The rows of each set of keys in a filter, and of each text."""
    found: RowSets = {}
    for asked in _told_elsewhere(tree):
        if isinstance(asked, Text):
            found[id(asked)] = index.texts.matching(asked.text, live, commit, metadata)
        else:
            ids = np.array(metadata.lookup(list(asked.keys), live), np.int64)
            found[id(asked)] = of_sorted(np.sort(ids[ids >= 0]).astype(np.uint32))
    return found


def _among(index: PayloadIndex, told: RowSets, asked: Keys | Text, row: int, payload: bytes | None) -> bool:
    """Whether a row is among those of a set of keys or of a text."""
    if isinstance(asked, Text):
        return index.texts.meets(asked.text, payload)
    rows = told[id(asked)]
    return rows is not None and row in rows


def _name(tree: Filter) -> str | None:
    """A text that no other filter has, if it is short."""
    waiting, size = [tree], 0
    while waiting:
        each = waiting.pop()
        waiting += each.children
        size += len(each.operand) if isinstance(each, Condition) and isinstance(each.operand, (str, tuple)) else 1
        if size > MOST_NAMED or isinstance(each, (Keys, Text)):
            return None
    return repr(tree)


def _told_elsewhere(tree: Filter) -> Iterator[Keys | Text]:
    """The parts of a filter that the index of payloads knows nothing of."""
    waiting = [tree]
    while waiting:
        each = waiting.pop()
        if isinstance(each, (Keys, Text)):
            yield each
        waiting += each.children
