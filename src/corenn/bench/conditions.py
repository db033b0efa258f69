"""Filters as a comparison states them, for every system to say in its own words: conditions that hold together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from ..types import AnyArray

Operator = Literal["==", ">=", "<"]
Value: TypeAlias = int | str
Fields: TypeAlias = Mapping[str, AnyArray]  # by name, a column with the value of each row: int64, or texts
COMPARE: dict[str, Callable[[AnyArray, Any], Any]] = {"==": np.equal, ">=": np.greater_equal, "<": np.less}


class Condition(NamedTuple):
    """The value of a field, compared."""

    field: str
    operator: Operator
    value: Value


Where: TypeAlias = Sequence[Condition]


def matching(fields: Fields, where: Where) -> AnyArray:
    """Which rows meet all conditions: bool, shape (rows,)."""
    held = [COMPARE[each.operator](fields[each.field], each.value) for each in where]
    met: AnyArray = np.logical_and.reduce(held)
    return met


def bits(fields: Fields, where: Where) -> AnyArray:
    """The same in eight rows to a byte, the first in its lowest bit."""
    return np.packbits(matching(fields, where), bitorder="little")


def spoken(where: Where, equals: str, both: str) -> str:
    """In a language in which a condition is `field operator value`, and texts stand in single quotes."""
    words = {"==": equals}
    parts = [
        f"{each.field} {words.get(each.operator, each.operator)} "
        + (f"'{each.value}'" if isinstance(each.value, str) else f"{each.value}")
        for each in where
    ]
    return f" {both} ".join(parts)


def records(fields: Fields, first: int, count: int) -> list[dict[str, Value]]:
    """A dict of values for each of some rows."""
    columns = [column[first : first + count].tolist() for column in fields.values()]
    return [dict(zip(fields, values, strict=True)) for values in zip(*columns, strict=True)]


def is_text(column: AnyArray) -> bool:
    """Whether a column holds texts."""
    return column.dtype.kind == "U"


def save(fields: Fields, path: Path) -> Path:
    """Write columns to an .npz file, for `read`."""
    np.savez(path, **fields)  # type: ignore[arg-type]
    return path


def read(path: Path) -> Fields:
    """The columns that `save` has written."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
