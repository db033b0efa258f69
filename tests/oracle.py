"""Plain NumPy reference: what the database has to answer, computed without any of its code.

Rules out agreement by shared mistake: distances are taken in float64 from the definition, and the database is a dict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

Key = str | int
Payload = dict[str, Any]
Rows = NDArray[Any]

METRICS = ("l2", "cosine", "ip")
DTYPES = ("f32", "f16", "bf16", "i8", "u8")

# --- distances --------------------------------------------------------------------------------------------------------


def l2(rows: Rows, queries: Rows) -> Rows:
    """Squared Euclidean distances of shape (queries, rows)."""
    return ((queries[:, None, :] - rows[None, :, :]) ** 2).sum(axis=2)


def ip(rows: Rows, queries: Rows) -> Rows:
    """1 - dot product, of shape (queries, rows)."""
    return 1.0 - queries @ rows.T


def cosine(rows: Rows, queries: Rows) -> Rows:
    """1 - cosine, of shape (queries, rows); exactly 1 where either vector is zero."""
    norms = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(rows, axis=1)[None, :]
    dots = queries @ rows.T
    return 1.0 - np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0)


_METRICS: dict[str, Callable[[Rows, Rows], Rows]] = {"l2": l2, "ip": ip, "cosine": cosine}


def distances(metric: str, rows: ArrayLike, queries: ArrayLike) -> Rows:
    """Distances in float64 of shape (queries, rows), a few queries at a time so that l2 needs little memory."""
    stored, asked = np.asarray(rows, np.float64), np.atleast_2d(np.asarray(queries, np.float64))
    step = max(1, 2_000_000 // max(1, stored.size))
    parts = [_METRICS[metric](stored, asked[at : at + step]) for at in range(0, len(asked), step)]
    return np.concatenate(parts) if parts else np.empty((0, len(stored)))


def nearest(table: Rows, k: int) -> NDArray[np.intp]:
    """Row numbers of the k smallest of each line, ascending, ties by row number."""
    return np.argsort(table, axis=1, kind="stable")[:, :k]


def tolerance(metric: str, rows: ArrayLike, queries: ArrayLike) -> float:
    """Rounding allowed to a float32 engine: a few units in the last place of the largest term of the sum."""
    if metric == "cosine":
        return 2e-6
    sizes = [float((np.asarray(part, np.float64) ** 2).sum(axis=-1).max(initial=0.0)) for part in (rows, queries)]
    return 4e-6 * max(1.0, *sizes)


# --- what a stored dtype keeps ----------------------------------------------------------------------------------------


def rounded(dtype: str, vectors: ArrayLike) -> NDArray[np.float32]:
    """The vectors after storage in `dtype`; for i8 an approximation within one code (see `rounding`)."""
    exact = np.asarray(vectors, np.float32)
    if dtype == "f16":
        return exact.astype(np.float16).astype(np.float32)
    if dtype == "bf16":
        return exact.astype(ml_dtypes.bfloat16).astype(np.float32)
    if dtype == "u8":
        return np.rint(exact)
    return exact


def rounding(dtype: str, vectors: ArrayLike) -> NDArray[np.float64]:
    """Largest difference per component between a vector and what `get` returns, of the shape of `vectors`."""
    exact = np.abs(np.asarray(vectors, np.float64))
    if dtype == "i8":
        span = np.ptp(np.asarray(vectors, np.float64), axis=-1, keepdims=True)
        largest = exact.max(axis=-1, keepdims=True, initial=0.0)
        return np.broadcast_to(span / 255 * 1.01 + 1e-6 * largest, exact.shape)
    if dtype == "u8":
        return np.full(exact.shape, 0.5)
    relative = {"f32": 2.0**-22, "f16": 2.0**-11, "bf16": 2.0**-8}[dtype]
    if dtype != "f16":
        return exact * relative + 1e-37
    # Its smallest step is 2⁻²⁴, and under cosine it is the unit vector that is rounded.
    return exact * relative + 2.0**-24 * np.maximum(1.0, np.linalg.norm(exact, axis=-1, keepdims=True))


# --- recall -----------------------------------------------------------------------------------------------------------


def recall(metric: str, rows: Rows, queries: Rows, found: Sequence[Sequence[int]], k: int = 10) -> float:
    """Mean share of the k answers that are no farther than the true k-th neighbour, by distance and not by name.

    found: row numbers that the engine returned for each query. A row returned twice counts once.
    """
    table = distances(metric, rows, queries)
    wanted = min(k, len(rows))
    limits = np.partition(table, wanted - 1, axis=1)[:, wanted - 1] + tolerance(metric, rows, queries) / 10
    good = sum(
        int((line[np.unique(np.asarray(ids[:wanted], np.intp))] <= limit).sum())
        for line, ids, limit in zip(table, found, limits, strict=True)
    )
    return good / (wanted * len(table))


# --- filters ----------------------------------------------------------------------------------------------------------


def meets(wanted: Mapping[str, Any], payload: Payload | None, key: Key) -> bool:
    """Whether a row meets a filter in wire form, from the definition: docs/filters.md."""
    for name, item in wanted.items():
        if name == "$and":
            held = all(meets(each, payload, key) for each in item)
        elif name == "$or":
            held = any(meets(each, payload, key) for each in item)
        elif name == "$not":
            held = not meets(item, payload, key)
        elif name == "$keys":
            held = any(type(each) is type(key) and each == key for each in item)
        else:
            asked = item if isinstance(item, Mapping) else {"$eq": item}
            held = all(_field_meets(operator, operand, name, payload) for operator, operand in asked.items())
        if not held:
            return False
    return True


def _field_meets(operator: str, operand: Any, path: str, payload: Payload | None) -> bool:
    ends = _ends(payload or {}, path.split("."))
    if operator == "$not":
        return not all(_field_meets(each, value, path, payload) for each, value in operand.items())
    if operator in ("$ne", "$nin"):
        return not _field_meets({"$ne": "$eq", "$nin": "$in"}[operator], operand, path, payload)
    if operator == "$in":
        return any(_field_meets("$eq", each, path, payload) for each in operand)
    if operator == "$exists":
        return (len(ends) > 0) == operand
    if operator == "$contains":
        wanted = operand if isinstance(operand, list) else [operand]
        lists = [end for end in ends if isinstance(end, list)]
        return any(all(any(_rank(each) == _rank(value) for each in end) for value in wanted) for end in lists)
    if operator == "$eq" and operand is None and not ends:
        return True
    values = [value for end in ends for value in (end if isinstance(end, list) else [end])]
    return any(_compared(operator, _rank(value), _rank(operand)) for value in values)


def field_values(payload: Payload | None, path: str) -> set[tuple[str, Any]]:
    """The values that a payload has in a field, with their kinds, which Python does not tell apart."""
    ends = _ends(payload or {}, path.split("."))
    values = [value for end in ends for value in (end if isinstance(end, list) else [end])]
    return {_rank(value) for value in values if not isinstance(value, dict | list)}


def number_at(payload: Payload | None, path: str) -> float | None:
    """What a function of a filter gets for a field: its number, if it has a single one and no list."""
    ends = _ends(payload or {}, path.split("."))
    if len(ends) != 1 or type(ends[0]) not in (int, float):
        return None
    try:
        return float(ends[0])
    except OverflowError:
        return None


def _ends(item: Any, path: Sequence[str]) -> list[Any]:
    """All that stands at the end of a path: each object of a list on the way is followed."""
    if not path:
        return [item]
    objects = item if isinstance(item, list) else [item]
    there = [each[path[0]] for each in objects if isinstance(each, dict) and path[0] in each]
    return [end for each in there for end in _ends(each, path[1:])]


def _rank(value: Any) -> tuple[str, Any]:
    """The kind of a value, and what it is compared by; what has no kind equals nothing."""
    if isinstance(value, dict | list):
        return "", object()
    kind = {bool: "bool", int: "number", float: "number", str: "text", type(None): "null"}[type(value)]
    return kind, value


def _compared(operator: str, value: tuple[str, Any], operand: tuple[str, Any]) -> bool:
    if value[0] != operand[0]:
        return False
    one, other = value[1], operand[1]
    match operator:
        case "$eq":
            return bool(one == other)
        case "$gt":
            return bool(one > other)
        case "$gte":
            return bool(one >= other)
        case "$lt":
            return bool(one < other)
        case "$lte":
            return bool(one <= other)
    raise AssertionError(operator)


# --- the database as a dict -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """What the model knows of one key."""

    vector: NDArray[np.float32]
    payload: Payload | None


class RefusedError(Exception):
    """The model refuses an operation; `error` names the class that the database has to raise."""

    def __init__(self, error: str) -> None:
        super().__init__(error)
        self.error = error


class Model:
    """A database as an ordered dict: the order is that of insertion, and an upsert inserts anew."""

    def __init__(self, dim: int, metric: str) -> None:
        self.dim = dim
        self.metric = metric
        self.rows: dict[Key, Row] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, key: object) -> bool:
        return key in self.rows

    def __iter__(self) -> Iterator[Key]:
        return iter(self.rows)

    def matrix(self) -> NDArray[np.float32]:
        """Live vectors in order of insertion."""
        return np.array([row.vector for row in self.rows.values()], np.float32).reshape(-1, self.dim)

    def _once(self, keys: Sequence[Key]) -> None:
        if len(set(keys)) != len(keys):
            raise RefusedError("DuplicateKeyError")

    def insert(self, keys: Sequence[Key], vectors: Rows, payloads: Sequence[Payload | None] | None = None) -> None:
        """All rows or none; refused if a key exists or comes twice."""
        self._once(keys)
        if any(key in self.rows for key in keys):
            raise RefusedError("DuplicateKeyError")
        self._put(keys, vectors, payloads)

    def upsert(self, keys: Sequence[Key], vectors: Rows, payloads: Sequence[Payload | None] | None = None) -> None:
        """Insert or replace; a row without payload loses the old one."""
        self._once(keys)
        for key in keys:
            self.rows.pop(key, None)
        self._put(keys, vectors, payloads)

    def _put(self, keys: Sequence[Key], vectors: Rows, payloads: Sequence[Payload | None] | None) -> None:
        given = payloads if payloads is not None else [None] * len(keys)
        for key, vector, payload in zip(keys, vectors, given, strict=True):
            self.rows[key] = Row(np.asarray(vector, np.float32), payload)

    def set_payload(self, keys: Sequence[Key], payloads: Sequence[Payload | None]) -> None:
        """All payloads or none; refused if a key is missing."""
        self._once(keys)
        if any(key not in self.rows for key in keys):
            raise RefusedError("KeyNotFoundError")
        for key, payload in zip(keys, payloads, strict=True):
            self.rows[key] = Row(self.rows[key].vector, payload)

    def delete(self, keys: Iterable[Key]) -> int:
        """How many of the keys were there."""
        return sum(self.rows.pop(key, None) is not None for key in set(keys))

    def get(self, keys: Iterable[Key]) -> list[Row | None]:
        """Rows in the order of the keys, None for a missing one."""
        return [self.rows.get(key) for key in keys]

    def query(self, vector: ArrayLike, k: int, max_distance: float = np.inf) -> list[tuple[Key, float]]:
        """The k nearest keys with their distances, ascending, ties by insertion."""
        if not self.rows:
            return []
        line = distances(self.metric, self.matrix(), vector)[0]
        keys = list(self.rows)
        return [(keys[row], float(line[row])) for row in nearest(line[None], k)[0] if line[row] <= max_distance]


# --- comparing answers ------------------------------------------------------------------------------------------------


def check_hits(
    metric: str, keys: Sequence[Key], rows: Rows, query: Rows, hits: Any, k: int, max_distance: float = np.inf,
    *, reused: bool = False,
) -> None:  # fmt: skip
    """Assert that `hits` are the k nearest rows to `query`, up to float32 rounding and the order within it.

    keys, rows: what is live, in order of insertion. hits: a `Hits`. reused: whether rows may have the ids of others
    that are gone, so that ties, which go by id, come in any order.
    """
    line = distances(metric, rows, query)[0] if len(keys) else np.empty(0)
    slack = tolerance(metric, rows, query)
    number: Mapping[Key, int] = {key: row for row, key in enumerate(keys)}
    found = [number[key] for key in hits.keys]
    assert len(set(found)) == len(found), "a key comes twice"
    assert np.allclose(hits.distances, line[found], rtol=1e-5, atol=slack), "a distance is not that of its key"
    assert (np.diff(hits.distances) >= 0).all(), "distances are not ascending"
    best = np.sort(line)[:k]
    sure, possible = (best <= max_distance - slack).sum(), (best <= max_distance + slack).sum()
    assert sure <= len(found) <= possible, f"{len(found)} hits, expected {sure} to {possible}"
    assert np.allclose(hits.distances, best[: len(found)], rtol=1e-5, atol=slack), "nearer rows were left out"
    if not reused:
        _check_ties(found, hits.distances)


def _check_ties(found: Sequence[int], values: Rows) -> None:
    """Rows at one and the same distance come in the order of insertion."""
    for before, after, near, far in zip(found, found[1:], values, values[1:], strict=False):
        assert near != far or before < after, f"tie at {near}: row {before} before row {after}"
