"""The nearest rows of which no more than so many have the same value in a field of their payloads.

Rows are taken in the order of their distances, each unless one of its groups is full already. A search brings more of
them than are wanted; where that is not enough, because of groups that have many rows nearby, the next one leaves out
the rows of groups that are full, which are known then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeAlias

import numpy as np

from ..filters.expression import Or, condition
from ..filters.facets import Value, values_at
from ..filters.select import Selected
from ..filters.sets import RowSet
from ..types import Float32s
from .query import FOUND, SPENT, Answers
from .selection import select_rows
from .view import View

FIRST = 4  # times k, the rows that are looked for at first
WIDER = 4  # times as many, where they did not suffice
NONE: Value = ("null", None)  # the group of rows that have no value

Search: TypeAlias = Callable[[View, Float32s, int], Answers]


class Grouping(NamedTuple):
    """No more than `most` hits that have the same value at a path."""

    path: str
    most: int


class Found(NamedTuple):
    """A row, and its groups; compared by distance, ties by id."""

    distance: float
    row: int
    groups: frozenset[Value]


def search_grouped(search: Search, view: View, queries: Float32s, k: int, by: Grouping) -> Answers:
    """The k nearest rows for queries of shape (n, dim), by a search for the nearest in a view, so grouped."""
    answers = search(view, queries, FIRST * k)
    ids, distances = np.zeros((len(queries), k), np.uint32), np.full((len(queries), k), np.inf, np.float32)
    info, widest = answers.info.copy(), 0
    for i in range(len(queries)):
        chosen = _choose(search, view, queries[i : i + 1], k, by, answers, i, info)
        widest = max(widest, len(chosen))
        info[i, FOUND] = len(chosen)
        ids[i, : len(chosen)] = [each.row for each in chosen]
        distances[i, : len(chosen)] = [each.distance for each in chosen]
    fewest = int(info[:, FOUND].min()) if len(info) else 0
    parts = np.ascontiguousarray(ids[:, :widest]), np.ascontiguousarray(distances[:, :widest])
    return Answers(answers.plan, answers.search_list, *parts, info, fewest, answers.estimated)


def all_of(view: View) -> Selected:
    """The rows that a view sees, as if a filter had selected them."""
    return Selected(RowSet(view.live.rows, ids=np.flatnonzero(view.alive()).astype(np.uint32)))


def _choose(
    search: Search, view: View, query: Float32s, k: int, by: Grouping, answers: Answers, place: int, info: np.ndarray
) -> list[Found]:
    """The hits of one query. answers, place: what has been found so far of it. info: what is spent on it is added."""
    wanted, sealed, full, spent = FIRST * k, list[Found](), set[Value](), info[place]
    left: Selected | None = None  # the rows in question, where they are not those of the view
    while True:
        found = _found(view, answers, place, by.path)
        taken = greedy([*sealed, *found], by.most)
        whole = len(found) < wanted or len(found) >= (view.selected if left is None else left.count)
        if whole or (len(taken) >= k and taken[k - 1].distance <= found[-1].distance):
            return taken[:k]
        counts = Counter(group for each in taken for group in each.groups)
        left = left or view.within or all_of(view)
        filled = {group for group, count in counts.items() if count >= by.most} - full
        if filled:
            full |= filled
            sealed = [each for each in taken if each.groups & full]
            left = left.without(select_rows(view, one_of(by.path, filled)).settled)
        else:
            wanted *= WIDER
        if not left.count:
            return greedy(sealed, by.most)[:k]
        answers, place = search(view.filtered(left), query, wanted), 0
        spent[SPENT] += answers.info[0, SPENT]


def _found(view: View, answers: Answers, place: int, path: str) -> list[Found]:
    count = int(answers.info[place, FOUND])
    ids = answers.ids[place, :count].tolist()
    texts = view.metadata.payloads(ids, view.head.commit)
    groups = (frozenset(values_at(text, path)) or frozenset((NONE,)) for text in texts)
    return [Found(*each) for each in zip(answers.distances[place, :count].tolist(), ids, groups, strict=True)]


def greedy(found: Iterable[Found], most: int) -> list[Found]:
    """Those that are taken, each row once and the nearest first, such that no group has more than `most`."""
    counts: Counter[Value] = Counter()
    taken = []
    once = {each.row: each for each in found}
    for each in sorted(once.values(), key=lambda one: (one.distance, one.row)):
        if all(counts[group] < most for group in each.groups):
            counts.update(each.groups)
            taken.append(each)
    return taken


def one_of(path: str, groups: Iterable[Value]) -> Or:
    """The rows of some groups, but for those of NONE that have an empty list or an object."""
    return Or((condition(path, "in", [value for _, value in groups]),))
