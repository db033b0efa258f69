"""How many rows have which values in a field: by the index, and by their payloads where that is not sure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any, TypeAlias

from pyroaring import BitMap

from ..storage.commit import Metadata
from ..types import Facet
from .expression import Scalar
from .index import PayloadIndex
from .match import kind, reached
from .select import LOOKED_ROWS
from .sets import as_ids

KINDS = ("null", "bool", "number", "text")  # the order in which values of equal counts come
LARGEST = 1 << 63  # whole numbers below it are given as int
Value: TypeAlias = tuple[str, Scalar]  # with its kind, since True equals 1


def count_values(
    index: PayloadIndex, path: str, members: BitMap, commit: int, rows: int, metadata: Metadata
) -> list[Facet]:
    """The values of a field and how many of some rows have each: the most frequent first, then by kind and value.

    members: rows that a view sees; commit, rows: its snapshot. metadata: where its payloads are.
    """
    counts, unsure = index.tally(path, members, commit, rows)
    counted = Counter({_whole(value): count for value, count in counts.items()})
    looked = as_ids(unsure)
    for start in range(0, len(looked), LOOKED_ROWS):
        ids = looked[start : start + LOOKED_ROWS].tolist()
        for text in metadata.payloads(ids, commit):
            counted.update(values_at(text, path))
    return [Facet(value, count) for (_, value), count in sorted(counted.items(), key=_order) if count]


def values_at(text: bytes | None, path: str) -> set[Value]:
    """The values that a payload has in a field, each once; null among them where it is null, and none if it is not
    there.
    """
    if text is None:
        return set()
    found = reached(json.loads(text), path.split("."))
    values = (value for each in found for value in (each if isinstance(each, list) else (each,)))
    return set(_with_kinds(values))


def _with_kinds(values: Iterable[Any]) -> Iterable[Value]:
    for value in values:
        named = kind(value)
        if named != "other":
            yield _whole((named, value))


def _whole(value: Value) -> Value:
    """The same, a whole number as an int: 1 and 1.0 are one value."""
    named, held = value
    if isinstance(held, float) and held.is_integer() and abs(held) < LARGEST:
        return named, int(held)
    return value


def _order(counted: tuple[Value, int]) -> tuple[Any, ...]:
    (named, value), count = counted
    return -count, KINDS.index(named), 0 if value is None else value
