"""Recall against speed: ours and hnswlib behind one small interface, swept over the length of the search list."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from ..types import Float32s, Int64s
from .recall import MISSING, distances_of, recall_by_distance, table
from .sample import Sample

if TYPE_CHECKING:
    from ..database import CoreNN

K = 10
GRID = (*range(10, 32, 2), *range(32, 64, 4), *range(64, 128, 8), *range(128, 257, 16), 320, 384, 512)
ENOUGH = 0.995


@dataclass(frozen=True, slots=True)
class Point:
    """Recall@10 at one length of the search list; distances and hops per query where they are counted."""

    search_list: int
    recall: float
    distances: float | None = None
    hops: float | None = None


class Searcher(Protocol):
    """Answers all queries of a sample in one call, on one thread."""

    def run(self, search_list: int) -> object:
        """Answer every query; what is timed."""

    def point(self, search_list: int) -> Point:
        """Measure recall, not time."""


@dataclass(frozen=True, slots=True)
class Ours:
    """A CoreNN database whose keys are row numbers as text."""

    db: CoreNN
    sample: Sample

    def run(self, search_list: int) -> object:
        """One 2-D query."""
        return self.db.query(self.sample.queries, k=K, search_list=search_list, threads=1)

    def point(self, search_list: int | None) -> Point:
        """Recall and work; None is the default search list."""
        options: dict[str, Any] = {} if search_list is None else {"search_list": search_list}
        answers = self.db.query(self.sample.queries, k=K, explain=True, **options)
        works = [hits.explain for hits in answers if hits.explain is not None]
        found = table([[int(key) for key in hits.keys] for hits in answers], K, MISSING)
        distances, hops = (float(np.mean([getattr(work, name) for work in works])) for name in ("distances", "hops"))
        return Point(works[0].search_list, recall_of(found, self.sample), distances, hops)


@dataclass(frozen=True, slots=True)
class Peer:
    """An hnswlib index whose labels are row numbers."""

    index: Any
    sample: Sample

    @classmethod
    def empty(cls, sample: Sample) -> Peer:
        """An index to be filled with the rows of `sample`; M and ef_construction are those of the goal table."""
        import hnswlib

        index = hnswlib.Index(space=sample.metric, dim=sample.base.shape[1])
        index.init_index(max_elements=len(sample.base), M=32, ef_construction=200, random_seed=100)
        return cls(index, sample)

    def run(self, search_list: int, queries: Float32s | None = None) -> Any:
        """One call with all queries, or with those given: (ids, distances)."""
        self.index.set_ef(search_list)
        return self.index.knn_query(self.sample.queries if queries is None else queries, k=K, num_threads=1)

    def point(self, search_list: int) -> Point:
        """Recall."""
        return Point(search_list, recall_of(self.run(search_list)[0].astype(np.int64), self.sample))


def recall_of(found: Int64s, sample: Sample) -> float:
    """Recall@10 of row numbers, by distances computed here: the same rule for everyone."""
    distances = distances_of(found, sample.base, sample.queries, sample.metric)
    return recall_by_distance(distances, sample.truth, K)


def sweep(searcher: Searcher, grid: Sequence[int] = GRID, enough: float = ENOUGH) -> list[Point]:
    """Points of growing search list, until one has recall `enough`: by default, until more gives next to nothing."""
    points: list[Point] = []
    for search_list in grid:
        points.append(searcher.point(search_list))
        if points[-1].recall >= enough:
            break
    return points


class HasRecall(Protocol):
    """Anything measured at one setting."""

    @property
    def recall(self) -> float:
        """Recall@k, 0 to 1."""


Measured = TypeVar("Measured", bound=HasRecall)


def bracket(points: Sequence[Measured], target: float) -> list[Measured]:
    """The neighbouring points around a recall; the first alone if it is above, none if all are below."""
    above = next((at for at, point in enumerate(points) if point.recall >= target), None)
    return [] if above is None else list(points[max(above - 1, 0) : above + 1])


def interpolate(points: Sequence[HasRecall], values: Sequence[float], target: float) -> float:
    """The value at exactly `target`, log-linear in recall between two points; NaN without points."""
    if not points:
        return math.nan
    if len(points) == 1 or points[0].recall == points[1].recall:
        return values[-1]
    share = (target - points[0].recall) / (points[1].recall - points[0].recall)
    return math.exp((1 - share) * math.log(values[0]) + share * math.log(values[1]))


def curves(grid: Sequence[dict[str, Any]]) -> list[list[int]]:
    """Positions in `grid` by curve: entries that differ in the value of their last parameter only, in their order."""
    found: dict[str, list[int]] = {}
    for at, params in enumerate(grid):
        found.setdefault(repr(list(params.items())[:-1]), []).append(at)
    return list(found.values())


def explore(count: int, targets: Sequence[float], recall_at: Callable[[int], float], steps: int = 8) -> list[int]:
    """Which of the settings 0 to count - 1, from hasty to thorough, to measure: those visited by the search below.

    Strides through them until the highest target (or next to everything) is reached, then halves the gap around each
    target until two neighbouring settings bracket it. `recall_at` is called once for each.
    """
    seen: dict[int, float] = {}

    def visit(at: int) -> float:
        if at not in seen:
            seen[at] = recall_at(at)
        return seen[at]

    enough = max(targets, default=1.0)
    for at in (*range(0, count - 1, max(1, math.ceil(count / steps))), count - 1):
        if visit(at) >= enough:
            break
    for target in targets:
        above = min((at for at in seen if seen[at] >= target), default=0)
        below = max((at for at in seen if at < above), default=above)
        while above - below > 1:
            middle = (above + below) // 2
            if visit(middle) >= target:
                above = middle
            else:
                below = middle
    return sorted(seen)
