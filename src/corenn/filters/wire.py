"""The form of a filter that goes over wires: Mongo's, as JSON has it.

    {"year": {"$gte": 2020}, "$or": [{"tag": "new"}, {"tag": {"$exists": false}}]}

Parsing says where a fault is, by the path to it. Printing gives back what parsing makes the same tree of.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import InvalidFilterError
from .expression import (
    MAX_DEPTH,
    OPERATORS,
    And,
    Condition,
    F,
    Filter,
    Keys,
    Not,
    Or,
    checked_path,
    condition,
    key_set,
    measured,
    shown,
)
from .predicate import Where, where

_LOGIC = {"$and": And, "$or": Or}
_ALL = And(())


def as_filter(value: Any) -> Filter:
    """A filter as a user passes it: made by F, a dict in wire form, or a function of numeric fields.

    Raises:
        InvalidFilterError: with the path to the fault.
    """
    if isinstance(value, Filter):
        return measured(value)
    if isinstance(value, Mapping):
        return measured(_document(value, "", 1))
    if callable(value) and not isinstance(value, F):
        return where(value, {})
    raise InvalidFilterError(
        f"filter={shown(value)} is a {type(value).__name__}: pass F('field') == …, a dict such as "
        "{'field': {'$gt': 1}}, or a function such as lambda field: field > 1"
    )


def as_filters(value: Any) -> Filter | list[Filter | None] | None:
    """A filter for all queries of a batch, or one for each in a list or tuple, None for those that take every row.

    Raises:
        InvalidFilterError: with the number of the filter, and the path to the fault.
    """
    if not isinstance(value, (list, tuple)):
        return None if value is None else as_filter(value)
    found: list[Filter | None] = []
    for number, each in enumerate(value):
        try:
            found.append(None if each is None else as_filter(each))
        except InvalidFilterError as error:
            raise InvalidFilterError(f"of {len(value):,} filters number {number}: {error}") from None
    return found


def _document(value: Any, at: str, depth: int) -> Filter:
    """A dict of fields and of operators that join filters: all of them hold."""
    if depth > MAX_DEPTH:
        raise InvalidFilterError(f"filter is nested more than {MAX_DEPTH} deep")
    if not isinstance(value, Mapping):
        raise InvalidFilterError(f"filter.{at}: {shown(value)} is no filter: a dict of fields and operators")
    return _joined([_entry(name, item, f"{at}.{name}" if at else f"{name}", depth) for name, item in value.items()])


def _entry(name: Any, item: Any, at: str, depth: int) -> Filter:
    if name in _LOGIC:
        if not isinstance(item, (list, tuple)):
            raise InvalidFilterError(f"filter.{at}: {shown(item)} is no list of filters")
        return _LOGIC[name](tuple(_document(each, f"{at}[{i}]", depth + 1) for i, each in enumerate(item)))
    if name == "$not":
        return Not(_document(item, at, depth + 1))
    if name == "$keys":
        return key_set(item, at)
    if isinstance(name, str) and name.startswith("$"):
        raise InvalidFilterError(
            f"filter.{at}: {shown(name)} does not stand here; before fields there are $and, $or, $not and $keys"
        )
    path = checked_path(name, at)
    if isinstance(item, Mapping):
        return _conditions(path, item, at, depth)
    return condition(path, "eq", item, at)


def _conditions(path: str, item: Mapping[Any, Any], at: str, depth: int) -> Filter:
    """What one field has to meet: a dict of operators."""
    if depth > MAX_DEPTH:
        raise InvalidFilterError(f"filter is nested more than {MAX_DEPTH} deep")
    if not item:
        raise InvalidFilterError(f"filter.{at}: an empty dict says nothing; name an operator, such as $exists")
    parts: list[Filter] = []
    for name, operand in item.items():
        here = f"{at}.{name}"
        if name == "$not":
            if not isinstance(operand, Mapping):
                raise InvalidFilterError(f"filter.{here}: {shown(operand)} is no dict of operators")
            parts.append(Not(_conditions(path, operand, here, depth + 1)))
        elif isinstance(name, str) and name[:1] == "$" and name[1:] in OPERATORS:
            parts.append(condition(path, name[1:], operand, here))
        else:
            known = ", ".join(f"${each}" for each in (*OPERATORS, "not"))
            raise InvalidFilterError(
                f"filter.{here}: {shown(name)} is no operator; there are {known}. A field of an object is named by its "
                f"path, such as {path + '.' + str(name)!r}"
            )
    return _joined(parts)


def _joined(parts: list[Filter]) -> Filter:
    if len(parts) == 1:
        return parts[0]
    return And(tuple(parts)) if parts else _ALL


def printed(tree: Filter) -> dict[str, Any]:
    """The wire form of a tree."""
    match tree:
        case Condition():
            operand = list(tree.operand) if isinstance(tree.operand, tuple) else tree.operand
            return {tree.path: {f"${tree.operator}": operand}}
        case Keys():
            return {"$keys": list(tree.keys)}
        case Not():
            return {"$not": printed(tree.part)}
        case And():
            return {"$and": [printed(part) for part in tree.parts]}
        case Or():
            return {"$or": [printed(part) for part in tree.parts]}
        case Where():
            raise InvalidFilterError(f"{shown(tree)} is a Python function, which no dict or JSON can hold")
    raise AssertionError(tree)
