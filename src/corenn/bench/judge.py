"""Recall of a database against known neighbours, ties counted by distance where the stored vectors allow it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InvalidArgumentError
from ..types import AnyArray, Float32s, Float64s, Hits, Int64s, Key
from .recall import MISSING, distances_of, recall_by_distance, recall_by_id, table

if TYPE_CHECKING:
    from ..database import CoreNN

BLOCK_BYTES = 64 << 20  # vectors fetched from the database at a time


@dataclass(frozen=True, slots=True)
class Recalls:
    """Shares of what was to be found.

    recall: of the k nearest (recall@k). recall_1: of queries whose nearest row is the first of the answer (1@1).
    recall_1_at_k: of queries whose nearest row is among the k (1@k).
    """

    recall: float
    recall_1: float
    recall_1_at_k: float

    def as_dict(self) -> dict[str, float]:
        """Plain values, rounded."""
        return {name: round(value, 6) for name, value in asdict(self).items()}


class Judge:
    """Compares answers with the true neighbours of the same queries.

    By distance, a row that is as near as the true k-th counts, as in `recall_by_distance`; the distances are computed
    here in float64 from the stored vectors. By id, only the rows named in the truth count.

    by: "distance", or "id" where stored vectors were rounded, or where the truth names rows that are not there.
    """

    def __init__(self, db: CoreNN, queries: Float32s, truth: Int64s, *, exact_vectors: bool) -> None:
        """
        Args:
            db: a database whose keys are row numbers, as int or as text.
            queries: shape (queries, dim).
            truth: row numbers of the k nearest of each query, nearest first, shape (queries, k).
            exact_vectors: whether the database holds the vectors to which the truth applies, and not rounded ones.

        Raises:
            InvalidArgumentError: if the truth of a query is cut off by ids below 0.
        """
        if truth.min(initial=0) < 0:
            query = int((truth < 0).any(axis=1).argmax())
            raise InvalidArgumentError(
                f"query {query} has fewer than {truth.shape[1]} true neighbours; use a smaller k"
            )
        self._db = db
        self._queries = queries
        self._truth = truth
        self._metric = db.stats().metric
        self._make = str if isinstance(next(iter(db.keys()), 0), str) else int
        self._near = self._distances(truth) if exact_vectors else None
        self.by = "id" if self._near is None else "distance"

    def recalls(self, answers: Sequence[Hits]) -> Recalls:
        """What the answers to all queries, in their order, are worth.

        Raises:
            InvalidArgumentError: if a key is not a row number.
        """
        k = self._truth.shape[1]
        found = row_numbers(answers, k)
        if self._near is None:
            nearest = self._truth[:, :1]
            return Recalls(
                recall_by_id(found, self._truth), recall_by_id(found[:, :1], nearest), recall_by_id(found, nearest)
            )
        apart = self._distances_of_found(found, self._near)
        near = np.sort(self._near, axis=1)
        best = apart.min(axis=1, keepdims=True)
        return Recalls(
            recall_by_distance(apart, near, k), recall_by_distance(apart, near, 1), recall_by_distance(best, near, 1)
        )

    def _distances_of_found(self, found: Int64s, near: Float64s) -> Float64s:
        """Distances of `found` (queries, k): those of true neighbours are known, the others are fetched."""
        at = (found[:, :, None] == self._truth[:, None, :]).argmax(axis=2)
        known = np.take_along_axis(self._truth, at, axis=1) == found
        others = self._distances(np.where(known, MISSING, found))
        if others is None:
            raise InvalidArgumentError("the database has changed while it was measured; keep writers away")
        return np.where(known, np.take_along_axis(near, at, axis=1), others)

    def _distances(self, ids: Int64s) -> Float64s | None:
        """Distances of rows by number, MISSING giving inf; None if one of the rows is not there."""
        step = max(1, BLOCK_BYTES // (4 * self._queries.shape[1] * ids.shape[1]))
        result = np.full(ids.shape, np.inf)
        for first in range(0, len(ids), step):
            part = ids[first : first + step]
            rows, places = np.unique(part, return_inverse=True)
            wanted = rows[rows != MISSING]
            if not len(wanted):
                continue
            records = self._db.get([self._make(row) for row in wanted.tolist()])
            if None in records:
                return None
            base = np.stack([record.vector for record in records if record is not None])
            places = np.where(part == MISSING, MISSING, places.reshape(part.shape) - (len(rows) - len(wanted)))
            result[first : first + step] = distances_of(places, base, self._queries[first : first + step], self._metric)
        return result


def row_numbers(answers: Sequence[Hits], k: int) -> AnyArray:
    """Keys as row numbers, shape (queries, k); MISSING where fewer came back.

    Raises:
        InvalidArgumentError: if a key is not a row number.
    """
    return table([_numbers(hits.keys) for hits in answers], k, MISSING)


def _numbers(keys: Sequence[Key]) -> list[int]:
    try:
        return [int(key) for key in keys]
    except ValueError:
        raise InvalidArgumentError(
            f"the keys of this database are not row numbers, such as {keys[0]!r}; true neighbours cannot name them"
        ) from None
