"""Queries by text: rows ranked by BM25, and one list made of these and of the nearest by vector.

Both lists are joined by what a row is worth in each, nothing where it is not in it:

    rrf         1 / (60 + its place), counted from 1 (reciprocal rank fusion: Cormack, Clarke and Büttcher, SIGIR 2009)
    weighted    half of where it stands between the last of the list, 0, and the first, 1; 1 where all are alike
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from .. import deadline
from ..filters.bm25 import Searches
from ..filters.terms import Sought
from ..types import AnyArray, Explain, Float64s, UInt32s
from .query import FOUND, INFO, Answers
from .view import View

SMOOTHING = 60  # the constant of reciprocal ranks
LISTED, LISTED_TIMES = 100, 4  # rows of each list that are joined: so many, or so many times k
WIDER = 4  # times as many rows are looked at, where a filter leaves too few


class Words(NamedTuple):
    """What to rank by: a text for each query, in an index as of the view. fusion: how to join it with vectors, None if
    there are none. k: hits that are wanted.
    """

    searches: Searches
    sought: tuple[Sought, ...]
    fusion: str | None
    k: int

    @property
    def depth(self) -> int:
        """Rows of each list that are needed."""
        return self.k if self.fusion is None else max(LISTED, LISTED_TIMES * self.k)

    def of(self, places: Sequence[int]) -> Words:
        """The same for some of the queries."""
        return self._replace(sought=tuple(self.sought[place] for place in places))

    def explained(self, told: Explain, sought: Sought) -> Explain:
        """What is told of a query, with what its text did."""
        matches = self.searches.count(sought)
        return replace(told, terms=sought.shown, text_matches=matches, fusion=self.fusion or "")


def rank(view: View, words: Words) -> Answers:
    """The best rows of a view by their texts. distances: minus the score, as in all that ranks by text."""
    found = []
    for sought in words.sought:
        deadline.check()
        found.append(_best(view, words.searches, sought, words.depth))
    return _answers("text", 0, found, np.zeros((len(found), INFO), np.int64))


def fuse(near: Answers, told: Answers, words: Words) -> Answers:
    """The best rows of two lists for each query: the nearest, and the best by their texts."""
    assert words.fusion is not None
    worth = _by_rank if words.fusion == "rrf" else _by_distance
    joined = []
    for i in range(len(near.ids)):
        lists = [_filled(answers, i) for answers in (near, told)]
        rows = np.union1d(lists[0][0], lists[1][0])
        scores = np.zeros(len(rows))
        for ids, distances in lists:
            scores[rows.searchsorted(ids)] += worth(distances)
        order = np.lexsort((rows, -scores))[: words.k]
        joined.append((rows[order], -scores[order]))
    return _answers(near.plan, near.search_list, joined, near.info.copy(), near.estimated)


def _by_rank(distances: Float64s) -> Float64s:
    return 1 / (SMOOTHING + np.arange(1, len(distances) + 1))


def _by_distance(distances: Float64s) -> Float64s:
    if not len(distances) or distances[0] == distances[-1]:
        return np.full(len(distances), 0.5)
    worth: Float64s = (distances[-1] - distances) / (distances[-1] - distances[0]) / 2
    return worth


def _filled(answers: Answers, place: int) -> tuple[UInt32s, Float64s]:
    count = int(answers.info[place, FOUND])
    return answers.ids[place, :count], answers.distances[place, :count].astype(np.float64)


def _best(view: View, searches: Searches, sought: Sought, k: int) -> tuple[UInt32s, Float64s]:
    """The best k rows that a view sees, or that a filter selects in it."""
    k = min(k, max(view.selected, 1))
    wanted = k if view.within is None else WIDER * k
    while True:
        found = searches.rank(sought, wanted)
        there = np.flatnonzero(_seen(view, found.rows))[:k]
        if len(there) == k or len(found.rows) < wanted:
            return found.rows[there], -found.scores[there].astype(np.float64)
        wanted *= WIDER


def _seen(view: View, rows: UInt32s) -> AnyArray:
    """Which of some rows a view sees and a filter selects: all of them, where there is no filter."""
    if view.within is None:
        return view.lookup_view.seen(rows)
    words = view.within.words[rows >> np.uint32(6)] >> (rows & np.uint32(63)).astype(np.uint64)
    selected: AnyArray = words & np.uint64(1) != 0
    return selected


def _answers(
    plan: str, search_list: int, found: Sequence[tuple[UInt32s, Float64s]], info: AnyArray, estimated: int = 0
) -> Answers:
    width = max((len(rows) for rows, _ in found), default=0)
    ids, distances = np.zeros((len(found), width), np.uint32), np.full((len(found), width), np.inf, np.float32)
    for i, (rows, values) in enumerate(found):
        ids[i, : len(rows)], distances[i, : len(rows)], info[i, FOUND] = rows, values, len(rows)
    return Answers(plan, search_list, ids, distances, info, min((len(rows) for rows, _ in found), default=0), estimated)
