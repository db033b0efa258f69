"""Filters as trees, and `F`, which builds them. What a node means is in docs/filters.md.

A tree is frozen and has no cycles; every operand was checked when its node was made, so whoever walks a tree meets
nothing that it does not know. The other form of the same tree, for JSON, is in wire.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, TypeAlias

import numpy as np

from ..config import MAX_TEXT
from ..errors import InvalidFilterError
from ..types import Key

Scalar: TypeAlias = str | int | float | bool | None

MOST_NAMED = 256  # operands and letters of a filter whose answer is kept
MAX_DEPTH = 64
MAX_CONDITIONS = 4_096
MAX_OPERANDS = 1 << 20  # values in one list
ORDERED = ("gt", "gte", "lt", "lte")
OPERATORS = ("eq", "ne", *ORDERED, "in", "nin", "exists", "contains")
SIGNS = {"eq": "==", "ne": "!=", "gt": ">", "gte": ">=", "lt": "<", "lte": "<="}


def shown(value: Any, length: int = 60) -> str:
    """A value for a message, cut short."""
    text = repr(value)
    return text if len(text) <= length else text[: length - 1] + "…"


@dataclass(frozen=True, slots=True)
class Filter:
    """A condition on payloads, or several joined by `&`, `|` and `~`. Made by `F`; the same everywhere it is used."""

    def __and__(self, other: Filter) -> Filter:
        return And(_parts(And, self, other))

    def __or__(self, other: Filter) -> Filter:
        return Or(_parts(Or, self, other))

    def __invert__(self) -> Filter:
        return Not(self)

    def __bool__(self) -> NoReturn:
        raise InvalidFilterError(
            f"{shown(self)} has no truth of its own: join filters by &, | and ~, each in parentheses, not by and, or, "
            "not or a chain such as 1 < F('x') < 2"
        )

    @property
    def children(self) -> tuple[Filter, ...]:
        """The filters that it is made of."""
        return ()

    def to_dict(self) -> dict[str, Any]:
        """The same filter in its wire form, ready for JSON."""
        from .wire import printed

        return printed(self)


@dataclass(frozen=True, slots=True)
class Condition(Filter):
    """What a field has to be. operand: a scalar; a tuple of them for in, nin and contains; a bool for exists."""

    path: str
    operator: str
    operand: Any

    def __repr__(self) -> str:
        sign = SIGNS.get(self.operator)
        if sign is not None:
            return f"(F({self.path!r}) {sign} {self.operand!r})"
        field = f"F({self.path!r})"
        if self.operator == "exists":
            return f"{field}.exists({'' if self.operand else 'False'})"
        name = {"in": "isin", "nin": "notin"}.get(self.operator, self.operator)
        return f"{field}.{name}({list(self.operand)!r})"


@dataclass(frozen=True, slots=True)
class Keys(Filter):
    """The rows of some keys; others are ignored."""

    keys: tuple[Key, ...]

    def __repr__(self) -> str:
        return f"F.keys({list(self.keys)!r})"


@dataclass(frozen=True, slots=True)
class Text(Filter):
    """The rows that have a word of a text, or a phrase that stands in it in quotes, in one of the `text_fields`."""

    text: str

    def __repr__(self) -> str:
        return f"F.text({self.text!r})"


@dataclass(frozen=True, slots=True)
class And(Filter):
    """All of its parts hold; of none, every row."""

    parts: tuple[Filter, ...]

    @property
    def children(self) -> tuple[Filter, ...]:
        return self.parts

    def __repr__(self) -> str:
        return "(" + " & ".join(map(repr, self.parts)) + ")" if self.parts else "And(())"


@dataclass(frozen=True, slots=True)
class Or(Filter):
    """One of its parts holds; of none, no row."""

    parts: tuple[Filter, ...]

    @property
    def children(self) -> tuple[Filter, ...]:
        return self.parts

    def __repr__(self) -> str:
        return "(" + " | ".join(map(repr, self.parts)) + ")" if self.parts else "Or(())"


@dataclass(frozen=True, slots=True)
class Not(Filter):
    """Its part does not hold."""

    part: Filter

    @property
    def children(self) -> tuple[Filter, ...]:
        return (self.part,)

    def __repr__(self) -> str:
        return f"~{self.part!r}"


def _parts(kind: type[And] | type[Or], one: Any, other: Any) -> tuple[Filter, ...]:
    """Both sides of & or |, flat, so that a long chain is not deep."""
    for each in (one, other):
        if not isinstance(each, Filter):
            raise InvalidFilterError(
                f"{shown(each)} is no filter: join what F('field') == …, F.where(function) and their like have made"
            )
    flat: list[Filter] = []
    for each in (one, other):
        flat += each.parts if isinstance(each, kind) else [each]
    return tuple(flat)


class F:
    """A field of payloads, by its path: `F("year") >= 2020`, `F("author.name").isin(["Ada", "Bob"])`.

    A path leads through objects, and through lists of objects to each of them; where it ends at a list, that any of
    its elements meets a condition is enough. See docs/filters.md.

    Raises:
        InvalidFilterError: for a path or an operand that no payload could hold.
    """

    __slots__ = ("_path",)
    __hash__: ClassVar[None] = None  # type: ignore[assignment]  # == makes a filter

    def __init__(self, path: str) -> None:
        self._path = checked_path(path, "")

    def __eq__(self, value: object) -> Filter:  # type: ignore[override]
        return condition(self._path, "eq", value)

    def __ne__(self, value: object) -> Filter:  # type: ignore[override]
        return condition(self._path, "ne", value)

    def __gt__(self, value: str | float) -> Filter:
        return condition(self._path, "gt", value)

    def __ge__(self, value: str | float) -> Filter:
        return condition(self._path, "gte", value)

    def __lt__(self, value: str | float) -> Filter:
        return condition(self._path, "lt", value)

    def __le__(self, value: str | float) -> Filter:
        return condition(self._path, "lte", value)

    def isin(self, values: Iterable[Scalar]) -> Filter:
        """One of these values; of none, no row."""
        return condition(self._path, "in", values)

    def notin(self, values: Iterable[Scalar]) -> Filter:
        """None of these values: rows without the field as well."""
        return condition(self._path, "nin", values)

    def exists(self, there: bool = True) -> Filter:
        """The field is there, whatever it holds; null, too."""
        return condition(self._path, "exists", there)

    def contains(self, values: Scalar | Iterable[Scalar]) -> Filter:
        """The field is a list, and this value, or each of several, is among its elements."""
        return condition(self._path, "contains", values)

    @staticmethod
    def keys(keys: Iterable[Key]) -> Filter:
        """The rows of these keys, as far as there are any."""
        return key_set(keys)

    @staticmethod
    def where(function: Callable[..., Any], **paths: str) -> Filter:
        """A function of numeric fields holds, such as `lambda year, price: year > 2020 and price < 10`.

        Its parameters are the fields, unless `paths` names others: `F.where(lambda x: x > 1, x="a.b")`. It is compiled;
        it gets a float64 for each and has to give a bool. A row that has no single number in each of the fields is none
        that it holds for. See docs/filters.md.
        """
        from .predicate import where

        return where(function, paths, "F.where")

    @staticmethod
    def text(text: str) -> Filter:
        """The rows that have any of these words, or phrases in double quotes, in the texts of `text_fields`."""
        return text_node(text)

    def __bool__(self) -> NoReturn:
        raise InvalidFilterError(f"{self!r} is a field and no condition: compare it, or ask for .exists()")

    def __repr__(self) -> str:
        return f"F({self._path!r})"


# --- checks -----------------------------------------------------------------------------------------------------------


def checked_path(path: Any, at: str) -> str:
    """A path as conditions hold it. at: where it stands, for the message.

    Raises:
        InvalidFilterError
    """
    if not isinstance(path, str):
        raise InvalidFilterError(f"{_at(at)}field {shown(path)} is no text: name a field, such as 'author.name'")
    parts = path.split(".")
    if not all(parts):
        raise InvalidFilterError(f"{_at(at)}field {shown(path)} has an empty part: 'a.b' is field b of object a")
    if any(part.startswith("$") for part in parts):
        raise InvalidFilterError(f"{_at(at)}{shown(path)} is not known here: names of fields do not begin with $")
    if not _is_text(path):
        raise InvalidFilterError(f"{_at(at)}field {shown(path)} holds a lone surrogate, which is not text")
    return str.__str__(path)


def condition(path: str, operator: str, operand: Any, at: str = "") -> Condition:
    """A condition with its operand checked and brought to one form.

    Raises:
        InvalidFilterError: naming `at`.
    """
    if operator == "exists":
        if not isinstance(operand, (bool, np.bool_)):
            raise InvalidFilterError(f"{_at(at)}exists takes True or False, not {shown(operand)}")
        return Condition(path, operator, bool(operand))
    if operator in ("in", "nin"):
        return Condition(path, operator, _list(operand, at))
    if operator == "contains":
        scalar = isinstance(operand, str) or not isinstance(operand, Iterable)
        return Condition(path, operator, (checked_scalar(operand, at),) if scalar else _list(operand, at))
    value = checked_scalar(operand, at)
    if operator in ORDERED and (value is None or isinstance(value, bool)):
        raise InvalidFilterError(f"{_at(at)}{shown(operand)} has no order: compare with a number or a text")
    return Condition(path, operator, value)


def checked_scalar(value: Any, at: str) -> Scalar:
    """A value that a payload may hold, as plain Python has it.

    Raises:
        InvalidFilterError
    """
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        if not _is_text(value):
            raise InvalidFilterError(f"{_at(at)}{shown(value)} holds a lone surrogate, which is not text")
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidFilterError(f"{_at(at)}{value!r}: no payload holds it; compare with a finite number")
        return float(value)
    if hasattr(value, "isoformat"):
        raise InvalidFilterError(f"{_at(at)}{shown(value)}: payloads hold dates as text; pass .isoformat() of it")
    remedy = "pass a number, a text, True, False or None"
    if isinstance(value, (list, tuple, set, frozenset)):
        remedy += "; for one of several values ask $in, for a list with some elements $contains"
    raise InvalidFilterError(f"{_at(at)}{shown(value)} is a {type(value).__name__}: {remedy}")


def key_set(keys: Any, at: str = "") -> Keys:
    """The rows of some keys, each checked.

    Raises:
        InvalidFilterError
    """
    if isinstance(keys, (str, bytes, dict)) or not isinstance(keys, Iterable):
        raise InvalidFilterError(f"{_at(at)}keys must be a list, not {shown(keys)}")
    found: dict[Key, None] = {}
    for key in keys:
        found[_key(key, at)] = None
    return Keys(tuple(found))


def _key(key: Any, at: str) -> Key:
    if isinstance(key, str):
        if not _is_text(key):
            raise InvalidFilterError(f"{_at(at)}key {shown(key)} holds a lone surrogate, which is not text")
        return str.__str__(key)
    if isinstance(key, (bool, np.bool_, np.timedelta64)) or not isinstance(key, (int, np.integer)):
        raise InvalidFilterError(f"{_at(at)}key {shown(key)} is a {type(key).__name__}; keys are str or int")
    if not -(2**63) <= int(key) < 2**63:
        raise InvalidFilterError(f"{_at(at)}key {shown(key)} does not fit in 64 bits, and is none")
    return int(key)


def text_node(text: Any, at: str = "") -> Text:
    """The rows that have a word of a text.

    Raises:
        InvalidFilterError
    """
    if not isinstance(text, str):
        raise InvalidFilterError(f"{_at(at)}{shown(text)} is no text: pass the words to look for, such as 'red shoes'")
    if not _is_text(text):
        raise InvalidFilterError(f"{_at(at)}{shown(text)} holds a lone surrogate, which is not text")
    if len(text) > MAX_TEXT:
        raise InvalidFilterError(
            f"{_at(at)}a text of {len(text):,} characters is more than the {MAX_TEXT:,} of a filter"
        )
    return Text(str.__str__(text))


def name_of(tree: Filter) -> str | None:
    """A text that no other filter has, if it is short."""
    waiting, size = [tree], 0
    while waiting:
        each = waiting.pop()
        waiting += each.children
        size += len(each.operand) if isinstance(each, Condition) and isinstance(each.operand, (str, tuple)) else 1
        if size > MOST_NAMED or isinstance(each, (Keys, Text)):
            return None
    return repr(tree)


def measured(tree: Filter) -> Filter:
    """The tree itself, if it is neither too deep nor too large.

    Raises:
        InvalidFilterError
    """
    level: Sequence[Filter] = [tree]
    count = 0
    for _ in range(MAX_DEPTH):
        count += len(level)
        if count > MAX_CONDITIONS:
            raise InvalidFilterError(f"the filter has more than {MAX_CONDITIONS:,} conditions; use $in for many values")
        level = [child for each in level for child in each.children]
        if not level:
            return tree
    raise InvalidFilterError(f"the filter is nested more than {MAX_DEPTH} deep")


def _list(values: Any, at: str) -> tuple[Scalar, ...]:
    if isinstance(values, (str, bytes, dict)) or not isinstance(values, Iterable):
        raise InvalidFilterError(f"{_at(at)}{shown(values)} is no list: pass the values in one, such as [1, 2]")
    found = tuple(checked_scalar(value, at) for value in values)
    if len(found) > MAX_OPERANDS:
        raise InvalidFilterError(f"{_at(at)}{len(found):,} values are more than the {MAX_OPERANDS:,} of one list")
    return found


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _at(place: str) -> str:
    return f"filter{place if place.startswith('[') else '.' + place if place else ''}: "
