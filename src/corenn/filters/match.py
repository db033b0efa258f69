"""Whether a payload meets a filter: the meaning of every operator, for one row. docs/filters.md says it in words.

The index answers for most rows without looking at their payloads; whatever it cannot be sure of comes here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from .expression import And, Condition, Filter, Keys, Not, Or
from .predicate import Where
from .tested import holds


def matches(tree: Filter, payload: bytes | None, among: Callable[[Keys], bool]) -> bool:
    """Whether a row with this payload, as JSON text, meets a filter. among: whether its key is in a set of keys."""
    return _holds(tree, {} if payload is None else json.loads(payload), among)


def _holds(tree: Filter, payload: Any, among: Callable[[Keys], bool]) -> bool:
    match tree:
        case Condition():
            return meets(tree, payload)
        case And():
            return all(_holds(part, payload, among) for part in tree.parts)
        case Or():
            return any(_holds(part, payload, among) for part in tree.parts)
        case Not():
            return not _holds(tree.part, payload, among)
        case Keys():
            return among(tree)
        case Where():
            found = [number_at(payload, path) for path in tree.paths]
            numbers = [each for each in found if each is not None]
            return len(numbers) == len(found) and holds(tree, numbers)
    raise AssertionError(tree)


def number_at(payload: Any, path: str) -> float | None:
    """The number that a payload has at a path, the nearest float64; None if there is no single one."""
    found = list(reached(payload, path.split(".")))
    if len(found) != 1 or kind(found[0]) != "number":
        return None
    try:
        return float(found[0])
    except OverflowError:
        return None


def meets(asked: Condition, payload: Any) -> bool:
    """Whether a payload meets one condition."""
    found = list(reached(payload, asked.path.split(".")))
    operator, operand = asked.operator, asked.operand
    if operator == "exists":
        return bool(found) is operand
    if operator == "contains":
        return any(isinstance(each, list) and all(_among(value, each) for value in operand) for each in found)
    values = [value for each in found for value in (each if isinstance(each, list) else (each,))]
    if operator in ("eq", "ne"):
        return _equals_any(operand, values, found) == (operator == "eq")
    if operator in ("in", "nin"):
        return any(_equals_any(each, values, found) for each in operand) == (operator == "in")
    return any(_ordered(operator, value, operand) for value in values)


def reached(payload: Any, path: list[str]) -> Iterator[Any]:
    """What stands at the end of a path: more than one thing where it leads through lists of objects."""
    here = [payload]
    for name in path:
        objects = [each for item in here for each in (item if isinstance(item, list) else (item,))]
        here = [each[name] for each in objects if isinstance(each, dict) and name in each]
    yield from here


def _equals_any(operand: Any, values: list[Any], found: list[Any]) -> bool:
    return _among(operand, values) or (operand is None and not found)


def _among(operand: Any, values: list[Any]) -> bool:
    return any(same(operand, value) for value in values)


def same(one: Any, other: Any) -> bool:
    """Equality of scalars: of the same kind, numbers by their value; True is no 1."""
    equal: bool = kind(one) == kind(other) != "other" and one == other
    return equal


def _ordered(operator: str, value: Any, operand: Any) -> bool:
    if kind(value) != kind(operand):
        return False
    if operator in ("gt", "gte"):
        return bool(value > operand) or (operator == "gte" and bool(value == operand))
    return bool(value < operand) or (operator == "lte" and bool(value == operand))


def kind(value: Any) -> str:
    """What a value may be compared with."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, (int, float)):
        return "number"
    return "text" if isinstance(value, str) else "other"
