"""Queries of the server: checked one by one, answered together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any, NamedTuple

import msgspec
import numpy as np

from ..database import CoreNN
from ..deadline import deadline
from ..errors import InvalidArgumentError
from ..inputs import as_queries
from ..types import AnyArray, Hits, Key
from ..wire import QueryRequest, encode
from .calls import Call
from .limits import Limits

_alone = count(1)


class Kind(NamedTuple):
    """What queries must have in common to be answered together.

    text: one that goes with all vectors, or those of each query. filter: as JSON, which can be compared. alone: 0 for
    single vectors, which may be; else a number of its own.
    """

    k: int
    text: str | tuple[str, ...] | None
    min_recall: float | None
    search_list: int | None
    exact: bool
    max_distance: float | None
    filter: bytes | None
    group_by: str | None
    per_group: int | None
    fusion: str
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
    """What is asked: vectors of shape (n, dim), float32 and finite, the key of a row, or neither where there is a text.

    single: one vector was given, not a list of one.
    """

    vectors: AnyArray | None
    single: bool
    key: Key | None


def as_question(call: Call, dim: int, limits: Limits) -> tuple[Kind, Question]:
    """A request as what the engine takes.

    Raises:
        LimitError, InvalidArgumentError, DimensionError, InvalidVectorError
    """
    asked: QueryRequest = call.arguments
    given = [each for each in (asked.vector, asked.vectors, asked.key, call.rows) if each is not None]
    if len(given) != 1 and (given or asked.text is None):
        raise InvalidArgumentError(
            "query takes vector, vectors or key, or rows in the binary form, one of them, or none of them with a text; "
            f"{len(given)} are given"
        )
    vector: Any = asked.vector
    vectors: Any = asked.vectors
    if call.rows is not None:
        vector, vectors = (call.rows, None) if call.rows.ndim == 1 else (None, call.rows)
    texts = _texts(asked.text, limits)
    each = texts if isinstance(texts, tuple) and not given else vectors
    _check(asked, 1 if each is None else len(each), limits)
    together = vector is not None and not isinstance(texts, tuple) and not isinstance(asked.filter, list)
    kind = Kind(
        asked.k, texts, asked.min_recall, asked.search_list, asked.exact, asked.max_distance,
        as_filter_text(asked.filter, limits), asked.group_by, asked.per_group, asked.fusion, asked.plan,
        asked.with_payloads, 0 if together else next(_alone),
    )  # fmt: skip
    rows = vector if vectors is None else vectors
    return kind, Question(None if rows is None else as_queries(rows, dim)[0], vector is not None, asked.key)


def _check(asked: QueryRequest, queries: int, limits: Limits) -> None:
    limits.within("k", asked.k, "k")
    if asked.search_list is not None:
        limits.within("search_list", asked.search_list, "search_list")
    limits.within("hits", asked.k * queries, "the number of hits of all vectors or texts")
    if asked.with_payloads:
        limits.within("rows", asked.k * queries, "the number of hits with payloads")
    limits.within("batch_queries", queries, "the number of vectors or texts")


def _texts(text: str | list[str] | None, limits: Limits) -> str | tuple[str, ...] | None:
    """A text, or one for each query, within the limits, and so that it can be compared."""
    for one in text if isinstance(text, list) else [text or ""]:
        limits.within("text_bytes", len(one.encode()), "the size of a text")
    return tuple(text) if isinstance(text, list) else text


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
    if b'"$text"' in text:
        for one in filter if isinstance(filter, list) else [filter]:
            limits.within("text_bytes", _text_bytes(one), "the size of all $text of a filter")
    return text


def _depth(value: Any) -> int:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, parts)) if parts else 0


def _text_bytes(filter: Any) -> int:
    """Bytes of what a filter looks for in texts."""
    if isinstance(filter, list):
        return sum(map(_text_bytes, filter))
    if not isinstance(filter, dict):
        return 0
    text = filter.get("$text")
    return sum(map(_text_bytes, filter.values())) + (len(text.encode()) if isinstance(text, str) else 0)


class Searcher:
    """Answers questions of one kind together. Called by any thread."""

    def __init__(self, database: CoreNN) -> None:
        self._database = database

    def answer(self, kind: Kind, questions: Sequence[Question], until: float) -> list[list[Hits]]:
        """The hits of each vector of each question, before a moment of `time.monotonic()`."""
        options = {**kind.options(), "explain": True}
        with deadline(until):
            if len(questions) == 1:
                return [self._one(questions[0], options)]
            vectors = np.concatenate([each.vectors for each in questions if each.vectors is not None])
            return [[hits] for hits in self._database.query(vectors, threads=1, **options)]

    def _one(self, question: Question, options: dict[str, Any]) -> list[Hits]:
        vectors = question.vectors
        if vectors is not None and question.single:
            vectors = vectors[0]
        hits = self._database.query(vectors, key=question.key, **options)
        return [hits] if isinstance(hits, Hits) else list(hits)
