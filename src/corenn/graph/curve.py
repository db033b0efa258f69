"""Calibration curves: which share of the true neighbours a search list finds, as it was measured.

A curve is of one k. It serves smaller k as well: under the same list the nearest are found before those behind them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ..storage.commit import Head
from ..types import Float64s, Recall

VERSION = 1
ONE_SIDED, TWO_SIDED = 1.6449, 1.96  # standard errors of a bound and of an interval that hold in 95 of 100 cases
DOUBT = 0.0  # recall of the query that is added to those measured
OUTDATED = 0.5  # share of the rows that may have been born or have died since
# The k of which curves are made. None below 10: to hide a row from a walk for the very nearest takes away most of the
# paths there, and the curve lies far too low (40,000 embeddings, list 16: .91 where unseen queries have .97).
RUNGS = tuple(digit * 10**power for power in range(1, 9) for digit in (1, 2, 5))


def rung_of(k: int) -> int:
    """The k whose curve serves k: the next of 10, 20, 50, 100, …"""
    return next((rung for rung in RUNGS if rung >= k), k)


def interval(shares: Float64s, z: float) -> tuple[float, float, float]:
    """Mean recall of queries, and its lower and upper bound by `z` standard errors.

    Neighbours of one query are missed together: k hits say less than k independent ones, by how much the spread among
    the queries tells, and Wilson's interval is taken for that many. One query that finds nothing is added, so that a
    few queries without a miss do not pass for proof.
    """
    if not len(shares):
        return math.nan, 0.0, 1.0
    measured = float(shares.mean())
    low, high = _wilson(np.append(shares, DOUBT), -z), _wilson(shares, z)
    return measured, max(0.0, min(low, measured)), min(1.0, max(high, measured))


def _wilson(shares: Float64s, z: float) -> float:
    """The bound of their mean that lies `z` standard errors above it."""
    mean, spread = float(shares.mean()), float(shares.var())
    trials = len(shares) * (mean * (1 - mean) / spread if spread > 0 else 1.0)
    half = z * math.sqrt(mean * (1 - mean) / trials + (z / (2 * trials)) ** 2)
    return (mean + z * z / (2 * trials) + half) / (1 + z * z / trials)


@dataclass(frozen=True, slots=True)
class Point:
    """One search list: recall, its lower bound for choosing, its 95 % interval, and work per query on one thread."""

    search_list: int
    recall: float
    bound: float
    low: float
    high: float
    samples: int
    distances: float
    seconds: float

    @classmethod
    def of(cls, search_list: int, shares: Float64s, distances: float, seconds: float) -> Point:
        """What queries with these shares of their neighbours found say about a list."""
        recall, low, high = interval(shares, TWO_SIDED)
        bound = interval(shares, ONE_SIDED)[1]
        return cls(search_list, recall, bound, low, high, len(shares), distances, seconds)

    def as_recall(self, k: int) -> Recall:
        return Recall(
            self.recall, self.low, self.high, k, self.samples, self.search_list, self.distances, self.seconds
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Curve:
    """The points of one k, by search list, at least one.

    live, rows, dead: of the head at which it was measured. walk: what else decides about recall, and may change.
    complete: whether longer lists would not be walked. thorough: measured without haste.
    """

    k: int
    live: int
    rows: int
    dead: int
    walk: str
    complete: bool
    thorough: bool
    points: tuple[Point, ...]

    def list_for(self, recall: float) -> int | None:
        """The shortest list that finds this share with confidence; None for a scan of all rows.

        Between two points it is read off the straight line over the logarithm of the list, below which the curve does
        not lie. Beyond the surest bound: the longest list if what was measured there is enough, else a scan.
        """
        bounds = np.maximum.accumulate([point.bound for point in self.points])
        at = int(np.searchsorted(bounds, recall))
        if at == len(self.points):
            last = self.points[-1]
            return last.search_list if last.recall >= recall and not self.complete else None
        if at == 0:
            return self.points[0].search_list
        low, high = math.log(self.points[at - 1].search_list), math.log(self.points[at].search_list)
        share = (recall - bounds[at - 1]) / (bounds[at] - bounds[at - 1])
        return min(self.points[at].search_list, math.ceil(math.exp(low + share * (high - low)) - 1e-9))

    def expected(self, search_list: int) -> tuple[float, float]:
        """Recall of a list and its lower bound; beyond the ends, those of the ends."""
        lists = np.log([point.search_list for point in self.points])
        at = math.log(search_list)
        found = [
            float(np.interp(at, lists, np.maximum.accumulate([getattr(point, name) for point in self.points])))
            for name in ("recall", "bound")
        ]
        return found[0], min(found)

    def fits(self, head: Head, walk: str) -> bool:
        """Whether the database is still about what it was."""
        changed = max(abs(head.rows - self.rows), abs(head.dead - self.dead))
        return self.walk == walk and changed < OUTDATED * self.live


def pack(curves: Iterable[Curve]) -> bytes:
    """Curves as they are stored."""
    return json.dumps({"version": VERSION, "curves": [asdict(curve) for curve in curves]}).encode()


def unpack(raw: bytes | None) -> list[Curve]:
    """Stored curves. They are soft: what cannot be read is measured again."""
    try:
        stored = json.loads(raw or b"{}")
        if stored.get("version") != VERSION:
            return []
        return [_checked(each) for each in stored["curves"]]
    except (ValueError, TypeError, KeyError, AttributeError):
        return []


def _checked(stored: dict[str, Any]) -> Curve:
    points = tuple(Point(**each) for each in stored["points"])
    curve = replace(Curve(**{**stored, "points": ()}), points=points)
    lists = [point.search_list for point in points]
    if not lists or lists[0] < curve.k or sorted(set(lists)) != lists:
        raise ValueError("the lists of a curve do not ascend")
    if not all(0 <= point.bound <= point.recall <= 1 for point in points):
        raise ValueError("a recall that is none")
    return curve
