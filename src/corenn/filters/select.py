"""The rows that a filter selects in one view: by the index, and by their payloads where that is not sure."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap

from ..kernels.search import EVERY_ROW
from ..storage.commit import NO_IDS, LiveView, Metadata
from ..types import UInt32s, UInt64s
from .expression import Filter, Keys, Text
from .fields import Answer
from .index import Known, Numbers, PayloadIndex
from .match import matches
from .predicate import Where, stands_once, where_nodes
from .sets import RowSet, as_ids, of_list, of_sorted, spread, words_of
from .tested import Tests, tests_of

LOOKED_ROWS = 1024  # payloads fetched at once
SETTLED = 4096  # rows that are put to a test at once rather than left for walks to test: some microseconds
SAMPLED = 2048  # rows by which it is told how many pass


class Selected:
    """The rows that meet a filter in one view. looked: those whose payloads had to be looked at for that.

    While it is *open*, functions have not been put to all of its members, of which only those are hits that pass the
    tests or are `proven`: it is then that walks test what they meet. asked: how many queries have been asked within it.
    """

    def __init__(
        self, found: RowSet, looked: UInt32s = NO_IDS, tests: Tests | None = None, proven: BitMap | None = None
    ) -> None:
        self.found, self.count, self.looked = found, found.count, looked
        self.asked = 0
        self.tests, self._proven = tests, BitMap() if proven is None else proven

    @property
    def open(self) -> bool:
        """Whether not all members need meet the filter."""
        return self.tests is not None

    def without(self, others: Selected) -> Selected:
        """Those of them that another filter does not select in the same view; neither is open."""
        return Selected(self.found.without(others.members))

    def memory_bytes(self) -> int:
        """About what it takes, with what is made of it as it is used."""
        settled = self.settled.memory_bytes() if self.open and "settled" in self.__dict__ else 0
        return self.found.memory_bytes() + settled

    @property
    def members(self) -> BitMap:
        """The rows, as a set."""
        return self.found.members

    @property
    def ids(self) -> UInt32s:
        """Their ids, ascending."""
        return self.found.ids

    @property
    def words(self) -> UInt64s:
        """A bit for each row that the view knows."""
        return self.found.words

    @cached_property
    def proven(self) -> UInt64s:
        """The same of those that need no test; none where none is there."""
        return words_of(self._proven, self.found.rows) if self._proven else EVERY_ROW

    @cached_property
    def settled(self) -> Selected:
        """The rows that do meet the filter: itself, unless it is open."""
        if self.tests is None:
            return self
        ids = as_ids(self.members - self._proven)
        met = self._proven | of_sorted(ids.compress(self.tests.passed(ids)))
        return Selected(RowSet(self.found.rows, members=met), self.looked)

    def holds(self, ids: UInt32s) -> NDArray[np.bool_]:
        """Which of some rows that the view knows meet the filter; of any shape."""
        found = _has(self.words, ids)
        if self.tests is not None:
            open_ = found & ~_has(self.proven, ids) if len(self.proven) else found.copy()
            found[open_] = self.tests.passed(ids[open_])
        return found

    @property
    def expected(self) -> int:
        """How many rows meet the filter, about: see `sampled`, where it is not known."""
        return self.sampled if self.open and "settled" not in self.__dict__ else self.settled.count

    @cached_property
    def sampled(self) -> int:
        """How many rows meet the filter, by a sample of all rows."""
        ids = spread(SAMPLED, self.found.rows)
        return int(self.holds(ids).mean() * self.found.rows)


def _has(words: UInt64s, ids: UInt32s) -> NDArray[np.bool_]:
    """Which of some rows have a bit."""
    bits = words[ids >> np.uint32(6)] >> (ids & np.uint32(63)).astype(np.uint64) & np.uint64(1)
    found: NDArray[np.bool_] = bits != 0
    return found


class _Known(NamedTuple):
    """What the index is told of the keys and functions in a filter. least, most: as if no function held that has not
    been tested, and as if all did. tests: those that are left to do, None if all are done.
    """

    least: Known
    most: Known
    tests: Tests | None


def select(index: PayloadIndex, tree: Filter, live: LiveView, commit: int, metadata: Metadata) -> Selected:
    """The rows that a view sees and that meet a filter; open, if that hangs on functions of many of them.

    live, commit: the snapshot of the view. metadata: where its keys and payloads are.
    """
    name, kept = index.recall(tree, commit, live.rows)
    if isinstance(kept, Selected):
        return kept
    version = index.version
    certain = index.certain(tree, commit, live.rows)
    if certain is not None:
        found = Selected(certain)
        if name is not None:
            index.remember(name, version, commit, live.rows, found)
        return found
    before = index.unknown(commit, live.rows)
    told = _row_sets(index, tree, live, commit, metadata)
    known = _known(index, tree, live.rows, told)
    proven, unsure = index.select(tree, commit, live.rows, known.least, before)
    members = proven
    if known.tests is not None:
        members, also = index.select(tree, commit, live.rows, known.most, before)
        unsure |= also
    if not unsure:
        found = _selected(members, proven, live.rows, known.tests)
        if name is not None:
            index.remember(name, version, commit, live.rows, found)
        return found
    met, looked = list[int](), as_ids(unsure)
    looked = looked[live.seen(looked)]
    for start in range(0, len(looked), LOOKED_ROWS):
        ids = looked[start : start + LOOKED_ROWS].tolist()
        for row, text in zip(ids, metadata.payloads(ids, commit), strict=True):
            if matches(tree, text, lambda asked, row=row, text=text: _among(index, told, asked, row, text)):  # type: ignore[misc]
                met.append(row)
    shown = of_list(met)
    return _selected((members - unsure) | shown, (proven - unsure) | shown, live.rows, known.tests, looked)


def _selected(
    members: BitMap, proven: BitMap, rows: int, tests: Tests | None, looked: UInt32s = NO_IDS
) -> Selected:  # fmt: skip
    """The members that meet a filter, all of them tested where that is soon done."""
    if len(members) == len(proven):
        return Selected(RowSet(rows, members=members), looked)
    found = Selected(RowSet(rows, members=members), looked, tests, proven)
    return found if len(members) - len(proven) > SETTLED else found.settled


def _known(index: PayloadIndex, tree: Filter, rows: int, told: Known) -> _Known:
    nodes = list(where_nodes(tree))
    if not nodes:
        return _Known(told, told, None)
    numbers = [index.numbers(node.paths, rows) for node in nodes]
    if not stands_once(tree):
        tested = told | {id(node): _tested(node, each) for node, each in zip(nodes, numbers, strict=True)}
        return _Known(tested, tested, None)
    least = {id(node): Answer(BitMap(), each.rows.unsure) for node, each in zip(nodes, numbers, strict=True)}
    most = {id(node): each.rows for node, each in zip(nodes, numbers, strict=True)}
    tests = tests_of([(node, each.columns) for node, each in zip(nodes, numbers, strict=True)])
    return _Known(told | least, told | most, tests)


def _tested(node: Where, numbers: Numbers) -> Answer:
    """The rows for which a function holds."""
    ids = as_ids(numbers.rows.sure)
    return Answer(of_sorted(ids.compress(tests_of([(node, numbers.columns)]).passed(ids))), numbers.rows.unsure)


def _row_sets(index: PayloadIndex, tree: Filter, live: LiveView, commit: int, metadata: Metadata) -> Known:
    """The rows of each set of keys in a filter, and of each text."""
    found: Known = {}
    for asked in _told_elsewhere(tree):
        if isinstance(asked, Text):
            rows = index.texts.matching(asked.text, live, commit, metadata)
            unknown = Answer(BitMap(), BitMap(range(live.rows)))
            found[id(asked)] = unknown if rows is None else Answer(rows, BitMap())
        else:
            ids = np.array(metadata.lookup(list(asked.keys), live), np.int64)
            found[id(asked)] = Answer(of_sorted(np.sort(ids[ids >= 0]).astype(np.uint32)), BitMap())
    return found


def _among(index: PayloadIndex, told: Known, asked: Keys | Text, row: int, payload: bytes | None) -> bool:
    """Whether a row is among those of a set of keys or of a text."""
    if isinstance(asked, Text):
        return index.texts.meets(asked.text, payload)
    return row in told[id(asked)].sure


def _told_elsewhere(tree: Filter) -> Iterator[Keys | Text]:
    """The parts of a filter that the index of payloads knows nothing of."""
    waiting = [tree]
    while waiting:
        each = waiting.pop()
        if isinstance(each, (Keys, Text)):
            yield each
        waiting += each.children
