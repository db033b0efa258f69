"""Two conditions that are one question to a sorted column: a value above one bound and below another.

Each by itself takes all that lies on its side of the bound, often half of the rows or more, to leave little in the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .expression import Condition, Filter

UPWARD, DOWNWARD = ("gt", "gte"), ("lt", "lte")


@dataclass(frozen=True, slots=True)
class Range(Filter):
    """Both conditions are of the same field, and of texts or of numbers; never part of a filter that is told."""

    lower: Condition
    upper: Condition


def joined(parts: Sequence[Filter]) -> list[Filter]:
    """The same parts of an `And`, with ranges in the place of bounds that belong together."""
    found: list[Filter] = []
    waiting: dict[tuple[str, bool, bool], int] = {}  # a bound's field, kind and direction: where it stands
    for part in parts:
        if not isinstance(part, Condition) or part.operator not in (*UPWARD, *DOWNWARD):
            found.append(part)
            continue
        text, upward = isinstance(part.operand, str), part.operator in UPWARD
        at = waiting.pop((part.path, text, not upward), None)
        if at is None:
            waiting[part.path, text, upward] = len(found)
            found.append(part)
        else:
            other = found[at]
            assert isinstance(other, Condition)
            found[at] = Range(part, other) if upward else Range(other, part)
    return found


def bounds_of(part: Filter) -> tuple[Condition | None, Condition | None] | None:
    """The lower bound and the upper one, if a part of a filter says nothing but that a field lies within them."""
    match part:
        case Range(lower, upper):
            return lower, upper
        case Condition(operator=operator) if operator in UPWARD:
            return part, None
        case Condition(operator=operator) if operator in DOWNWARD:
            return None, part
    return None
