"""Queries of the server: checked one by one, answered together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from time import perf_counter
from typing import Any, NamedTuple, TypeAlias

import msgspec
import numpy as np

from ..database import CoreNN
from ..deadline import deadline
from ..errors import InvalidArgumentError
from ..inputs import as_queries
from ..types import AnyArray, Explain, Hits, Key
from ..wire import QueryRequest, encode
from .calls import Call
from .limits import Limits

Searched: TypeAlias = Callable[[list[Explain], float], None]
_alone = count(1)


class Kind(NamedTuple):
    """What queries must have in common to be answered together.

    filter: as JSON, which can be compared. alone: 0 for single vectors, which may be; else a number of its own.
    """

    k: int
    min_recall: float | None
    search_list: int | None
    exact: bool
    max_distance: float | None
    filter: bytes | None
    group_by: str | None
    per_group: int | None
    plan: str | None
    with_payloads: bool
    alone: int

    def options(self) -> dict[str, Any]:
        """As arguments of `CoreNN.query`."""
        options = self._asdict()
        del options["alone"]
        if self.filter is not None:
            options["filter"] = msgspec.json.decode(self.filter)
        return options


class Question(NamedTuple):
    """What is asked: vectors of shape (n, dim), float32 and finite, or the key of a row."""

    vectors: AnyArray | None
    key: Key | None


def as_question(call: Call, dim: int, limits: Limits) -> tuple[Kind, Question]:
    """A request as what the engine takes.

    Raises:
        LimitError, InvalidArgumentError, DimensionError, InvalidVectorError
    """
    asked: QueryRequest = call.arguments
    given = [each for each in (asked.vector, asked.vectors, asked.key, call.rows) if each is not None]
    if len(given) != 1:
        raise InvalidArgumentError(
            f"query takes vector, vectors or key, or rows in the binary form, one of them; {len(given)} are given"
        )
    limits.within("k", asked.k, "k")
    if asked.search_list is not None:
        limits.within("search_list", asked.search_list, "search_list")
    several = asked.vectors if call.rows is None else call.rows
    single = asked.vector is not None or (call.rows is not None and call.rows.ndim == 1)
    hits = asked.k * (1 if several is None or single else len(several))
    limits.within("hits", hits, "the number of hits of all vectors")
    if asked.with_payloads:
        limits.within("rows", hits, "the number of hits with payloads")
    kind = Kind(
        asked.k, asked.min_recall, asked.search_list, asked.exact, asked.max_distance,
        as_filter_text(asked.filter, limits), asked.group_by, asked.per_group, asked.plan, asked.with_payloads,
        0 if single and not isinstance(asked.filter, list) else next(_alone),
    )  # fmt: skip
    if asked.key is not None:
        return kind, Question(None, asked.key)
    if single:
        return kind, Question(as_queries(asked.vector if call.rows is None else call.rows, dim)[0], None)
    assert several is not None
    limits.within("batch_queries", len(several), "the number of vectors")
    return kind, Question(as_queries(several, dim)[0], None)


def as_filter_text(filter: Any, limits: Limits) -> bytes | None:
    """A filter as JSON, within the limits.

    Raises:
        LimitError
    """
    if filter is None:
        return None
    text = encode(filter)
    limits.within("filter_bytes", len(text), "the size of the filter")
    limits.within("filter_depth", _depth(filter), "the depth of the filter")
    return text


def _depth(value: Any) -> int:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, parts)) if parts else 0


class Searcher:
    """Answers questions of one kind together. Called by any thread."""

    def __init__(self, database: CoreNN, searched: Searched) -> None:
        """searched: told how queries were answered, and the seconds that it took."""
        self._database, self._searched = database, searched

    def answer(self, kind: Kind, questions: Sequence[Question], until: float) -> list[list[Hits]]:
        """The hits of each vector of each question, before a moment of `time.monotonic()`."""
        options = {**kind.options(), "explain": True}
        began = perf_counter()
        with deadline(until):
            if len(questions) > 1:
                vectors = np.concatenate([each.vectors for each in questions if each.vectors is not None])
                found = [[hits] for hits in self._database.query(vectors, threads=1, **options)]
            elif questions[0].key is not None:
                found = [[self._database.query(key=questions[0].key, **options)]]
            else:
                assert questions[0].vectors is not None
                single = kind.alone == 0
                hits = self._database.query(questions[0].vectors[0] if single else questions[0].vectors, **options)
                found = [[hits] if single else list(hits)]
        self._searched([hits.explain for each in found for hits in each if hits.explain], perf_counter() - began)
        return found
