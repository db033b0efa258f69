"""The fields of payloads, one by one: what an index keeps of each, and what it can say of a condition.

An answer is two sets: the rows that surely meet a condition, and those of which the index does not know. What it does
not keep, such as long texts, is looked up in the payload by whoever asked.
"""

from __future__ import annotations

import json
from array import array
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pyroaring import BitMap

from ..types import UInt32s
from .columns import NUMBERS, TEXTS, Column
from .expression import Condition
from .ranges import UPWARD, Range
from .sets import RowSet, as_ids, of_sorted, words_of

LONG = 256  # characters of a text beyond which only its presence is kept
MOST_FIELDS = 1_000
EXACT = 1 << 53  # every integer up to here is a float64
_decode = json.JSONDecoder().raw_decode  # of text that nothing stands before or behind
SETS = ("present", "nulls", "true", "false", "lists", "several", "long", "odd")


class Answer(NamedTuple):
    """sure: rows that meet a condition. unsure: rows whose payloads have to be looked at; the two are disjoint."""

    sure: BitMap
    unsure: BitMap


class Entries:
    """What a batch of payloads has in one field."""

    __slots__ = (*SETS, "numbers", "texts")

    def __init__(self) -> None:
        for name in SETS:
            setattr(self, name, [])
        self.numbers: defaultdict[float, list[int]] = defaultdict(list)
        self.texts: defaultdict[str, list[int]] = defaultdict(list)
        self.present: list[int]
        self.nulls: list[int]
        self.true: list[int]
        self.false: list[int]
        self.lists: list[int]
        self.several: list[int]
        self.long: list[int]
        self.odd: list[int]

    def take(self, value: Any, row: int) -> None:
        """Note one value of a row: a scalar, or anything else, which equals nothing."""
        kind = type(value)
        if kind is str:
            if len(value) <= LONG:
                self.texts[value].append(row)
            else:
                self.long.append(row)
        elif kind is int:
            if -EXACT <= value <= EXACT or _is_exact(value):
                self.numbers[float(value)].append(row)
            else:
                self.odd.append(row)
        elif kind is float:
            self.numbers[value].append(row)
        elif kind is bool:
            (self.true if value else self.false).append(row)
        elif value is None:
            self.nulls.append(row)


def _is_exact(value: int | float) -> bool:
    try:
        return float(value) == value
    except OverflowError:
        return False


class Wanted:
    """Which paths are to be indexed, by the settings."""

    def __init__(self, only: Sequence[str], never: Sequence[str]) -> None:
        self._only, self._never = tuple(only), tuple(never)
        self._known: dict[str, tuple[bool, bool]] = {}

    def __call__(self, path: str) -> tuple[bool, bool]:
        """Whether a path is indexed, and whether one below it may be."""
        found = self._known.get(path)
        if found is None:
            never = any(_within(path, each) for each in self._never)
            chosen = not self._only or any(_within(path, each) for each in self._only)
            below = chosen or any(_within(each, path) for each in self._only)
            found = (chosen and not never, below and not never)
            if len(self._known) < 1 << 16:
                self._known[path] = found
        return found


def _within(path: str, above: str) -> bool:
    return above in ("*", path) or path.startswith(above + ".")


class _Place(NamedTuple):
    """Where what stands under a name goes. entries: None if it is not indexed. below: whether to look into it."""

    entries: Entries | None
    below: bool
    prefix: str


class Batch:
    """The entries of some rows, by path. full: whether fields were left out because there are too many."""

    def __init__(self, wanted: Wanted, known: Mapping[str, Field]) -> None:
        self.fields: dict[str, Entries] = {}
        self.full = False
        self.rows = 0
        self._wanted = wanted
        self._known, self._room = known, MOST_FIELDS - len(known)
        self._places: defaultdict[str, dict[str, _Place]] = defaultdict(dict)

    def read(self, row: int, text: bytes) -> None:
        """Take in the payload of a row."""
        self.rows += 1
        self._descend(_decode(text.decode())[0], "", row)

    def _descend(self, item: dict[str, Any], prefix: str, row: int) -> None:
        places = self._places[prefix]
        for name, value in item.items():
            place = places.get(name)
            if place is None:
                place = places[name] = self._place(prefix, name)
            entries, kind = place.entries, type(value)
            if entries is not None:
                present = entries.present
                if present and present[-1] == row:
                    entries.several.append(row)
                else:
                    present.append(row)
                if kind is str and len(value) <= LONG:
                    entries.texts[value].append(row)
                elif kind is float or (kind is int and -EXACT <= value <= EXACT):
                    entries.numbers[value].append(row)
                elif kind is list:
                    entries.lists.append(row)
                    for each in value:
                        entries.take(each, row)
                else:
                    entries.take(value, row)
            if place.below and kind is dict:
                self._descend(value, place.prefix, row)
            elif place.below and kind is list:
                for each in value:
                    if type(each) is dict:
                        self._descend(each, place.prefix, row)

    def _place(self, prefix: str, name: str) -> _Place:
        if not name or name[0] == "$" or "." in name:
            return _Place(None, False, "")  # no path of a filter leads there
        path = prefix + name
        here, below = self._wanted(path)
        entries = self._entries(path) if here else None
        return _Place(entries, below, path + ".")

    def _entries(self, path: str) -> Entries | None:
        if path not in self._known:
            if self._room <= 0:
                self.full = True
                return None
            self._room -= 1
        return self.fields.setdefault(path, Entries())


class Field:
    """Of one path: the rows that have it, those in which it is null, true, false or a list, and their values.

    several: rows in which the path leads to more than one thing. long, odd: rows with texts or integers that the
    columns do not hold.
    """

    __slots__ = (*SETS, "numbers", "texts")

    def __init__(self) -> None:
        for name in SETS:
            setattr(self, name, BitMap())
        self.numbers, self.texts = Column(NUMBERS), Column(TEXTS)
        self.present: BitMap
        self.nulls: BitMap
        self.true: BitMap
        self.false: BitMap
        self.lists: BitMap
        self.several: BitMap
        self.long: BitMap
        self.odd: BitMap

    def add(self, entries: Entries) -> None:
        """Take in what a batch has."""
        for name in SETS:
            ids = getattr(entries, name)
            if ids:
                getattr(self, name).update(array("I", ids))
        if entries.numbers:
            self.numbers.add(entries.numbers)
        if entries.texts:
            self.texts.add(entries.texts)

    def without(self, ids: UInt32s, words: Any) -> Field:
        """The same less some rows, given as ascending ids and as bits."""
        other, gone = Field(), of_sorted(ids)
        for name in SETS:
            setattr(other, name, getattr(self, name) - gone)
        other.numbers, other.texts = self.numbers.without(words), self.texts.without(words)
        return other

    def renumbered(self, numbers: UInt32s, gone: int) -> Field:
        """The same rows under other ids; numbers: the new id of each, ascending, `gone` for none."""
        other = Field()
        for name in SETS:
            ids = numbers[as_ids(getattr(self, name))]
            setattr(other, name, of_sorted(ids[ids != gone]))
        other.numbers = self.numbers.renumbered(numbers, gone)
        other.texts = self.texts.renumbered(numbers, gone)
        return other

    def memory_bytes(self) -> int:
        """About what it takes."""
        return self.numbers.memory_bytes() + self.texts.memory_bytes() + 2 * len(self.present)

    # --- asking ------------------------------------------------------------------------------------------------------

    def answer(self, asked: Condition, rows: int) -> Answer:
        """Which of the rows below `rows` meet a condition."""
        operator, operand = asked.operator, asked.operand
        if operator == "exists":
            return Answer(BitMap(self.present) if operand else _rest(self.present, rows), BitMap())
        if operator in ("eq", "ne"):
            found = self._equal(operand, rows)
        elif operator in ("in", "nin"):
            found = self._among(operand, rows)
        elif operator == "contains":
            return self._contains(operand, rows)
        else:
            return self._ordered(asked, rows)
        return negated(found, rows) if operator in ("ne", "nin") else found

    def _equal(self, value: Any, rows: int) -> Answer:
        if value is None:
            return Answer(self.nulls | _rest(self.present, rows), BitMap())
        if isinstance(value, bool):
            return Answer(BitMap(self.true if value else self.false), BitMap())
        if isinstance(value, str):
            if len(value) <= LONG:
                return Answer(self.texts.equal(value), BitMap())
            return Answer(BitMap(), BitMap(self.long))
        if isinstance(value, int) and not _is_exact(value):
            return Answer(BitMap(), BitMap(self.odd))
        return Answer(self.numbers.equal(float(value)), BitMap())

    def _among(self, values: tuple[Any, ...], rows: int) -> Answer:
        """One of several values: those that the columns hold all at once."""
        texts = [value for value in values if isinstance(value, str) and len(value) <= LONG]
        numbers = [float(value) for value in values if type(value) in (int, float) and _is_exact(value)]
        others = [
            value for value in values
            if value is None or isinstance(value, bool) or (isinstance(value, str) and len(value) > LONG)
            or (type(value) is int and not _is_exact(value))
        ]  # fmt: skip
        found = [self._equal(value, rows) for value in others]
        if texts:
            found.append(Answer(self.texts.among(texts), BitMap()))
        if numbers:
            found.append(Answer(self.numbers.among(numbers), BitMap()))
        return either(found)

    def _contains(self, values: tuple[Any, ...], rows: int) -> Answer:
        """Where the path leads to one list, each of its elements is a value of the row, and no other is."""
        sure, unsure = self.lists - self.several, BitMap()
        for value in values:
            found = self._equal(value, rows) if value is not None else Answer(BitMap(self.nulls), BitMap())
            unsure = (unsure & (found.sure | found.unsure)) | (sure & found.unsure)
            sure &= found.sure
        return Answer(sure, unsure | (self.lists & self.several))

    def _ordered(self, asked: Condition, rows: int) -> Answer:
        text, upward = isinstance(asked.operand, str), asked.operator in UPWARD
        hidden, column = (self.long, self.texts) if text else (self.odd, self.numbers)
        bound = _bound(asked)
        if bound is None:  # beyond all floats: above them or below
            sure = BitMap() if (asked.operand > 0) == upward else column.between(
                None, None, above=False, below=False, rows=rows
            )  # fmt: skip
            return Answer(sure - hidden, BitMap(hidden))
        low, high = (bound.value, None) if upward else (None, bound.value)
        sure = column.between(low, high, above=bound.strict, below=bound.strict, rows=rows, single=self.single)
        return Answer(sure, hidden - sure)

    @property
    def single(self) -> bool:
        """Whether no row has two values."""
        return not self.lists and not self.several

    def within(self, asked: Range, rows: int) -> Answer:
        """Which of the rows below `rows` meet both conditions of a range: one slice, where no row has two values."""
        found = self.sliced(asked.lower, asked.upper, rows)
        if found is not None:
            return Answer(found.members, BitMap())
        return both(self.answer(asked.lower, rows), self.answer(asked.upper, rows))

    def sliced(self, lower: Condition | None, upper: Condition | None, rows: int) -> RowSet | None:
        """The rows below `rows` within bounds of the same kind, one at least; None where a column does not hold all."""
        low, high = (OPEN if each is None else _bound(each) for each in (lower, upper))
        if low is None or high is None or not self.single:
            return None
        text = isinstance(low.value if high is OPEN else high.value, str)
        if self.long if text else self.odd:
            return None
        column = self.texts if text else self.numbers
        return column.sliced(low.value, high.value, above=low.strict, below=high.strict, rows=rows)

    def tally(self, members: BitMap, rows: int) -> tuple[dict[tuple[str, Any], int], BitMap]:
        """How many of some rows, all below `rows`, have each value, by its kind; and the rows that are not counted,
        since the columns do not hold all that they have.
        """
        unsure = (self.long | self.odd) & members
        sure = members - unsure
        counts: dict[tuple[str, Any], int] = {
            ("null", None): sure.intersection_cardinality(self.nulls),
            ("bool", True): sure.intersection_cardinality(self.true),
            ("bool", False): sure.intersection_cardinality(self.false),
        }
        words, repeated = words_of(sure, rows), bool(self.lists or self.several)
        for kind, column in (("number", self.numbers), ("text", self.texts)):
            values, found = column.tally(words, repeated=repeated)
            counts |= {(kind, value): count for value, count in zip(values, found, strict=True)}
        return counts, unsure


class Bound(NamedTuple):
    """Where values end, as a column has them; strict: without that value."""

    value: Any
    strict: bool


OPEN = Bound(None, strict=False)


def _bound(asked: Condition) -> Bound | None:
    """The bound that a condition sets; None if it is beyond all floats."""
    value, strict = asked.operand, asked.operator in ("gt", "lt")
    if isinstance(value, str):
        return Bound(value, strict)
    try:
        edge = float(value)
    except OverflowError:
        return None
    if edge != value:  # no float is there, and the nearest is on one side of it
        strict = (edge < value) == (asked.operator in UPWARD)
    return Bound(edge, strict)


def of_no_field(asked: Condition, rows: int) -> Answer:
    """What a condition has to say of rows that lack its field."""
    missing = asked.operator in ("ne", "nin") or (asked.operator == "exists" and not asked.operand)
    if asked.operator in ("eq", "ne"):
        missing = (asked.operand is None) == (asked.operator == "eq")
    elif asked.operator in ("in", "nin"):
        missing = (None in asked.operand) == (asked.operator == "in")
    return Answer(_rest(BitMap(), rows) if missing else BitMap(), BitMap())


def negated(found: Answer, rows: int) -> Answer:
    """What does not meet a condition, of the rows below `rows`."""
    return Answer(_rest(found.sure | found.unsure, rows), found.unsure)


def both(one: Answer, other: Answer) -> Answer:
    """What two answers say together."""
    sure = one.sure & other.sure
    if not one.unsure and not other.unsure:
        return Answer(sure, BitMap())
    return Answer(sure, ((one.sure | one.unsure) & (other.sure | other.unsure)) - sure)


def either(found: list[Answer]) -> Answer:
    """What one of several answers says."""
    if not found:
        return Answer(BitMap(), BitMap())
    sure = BitMap.union(*(each.sure for each in found))
    return Answer(sure, BitMap.union(*(each.unsure for each in found)) - sure)


def _rest(some: BitMap, rows: int) -> BitMap:
    return BitMap(range(rows)) - some


def difference(one: Field, other: Field) -> BitMap:
    """The rows of which two fields do not say the same, or one says two things."""
    wrong = BitMap()
    for name in SETS:
        wrong |= getattr(one, name) ^ getattr(other, name)
    for mine, theirs in ((one.numbers, other.numbers), (one.texts, other.texts)):
        wrong |= mine.difference(theirs)
        wrong |= mine.contradictions()
    return wrong
