"""Bodies as arguments, results as answers, in each of the three forms."""

from __future__ import annotations

from asyncio import get_running_loop
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import asdict
from functools import lru_cache
from math import inf
from typing import Any, NamedTuple

import msgspec
import numpy as np

from ..inputs import as_array
from ..types import AnyArray, Explain, Hits, Record
from ..wire import BINARY, JSON, MSGPACK, Plan, RecordEntry, Records, Result, decode, encode, pack_rows, unpack_rows
from .transports import Headers
from .visit import Reply, Visit

SHORT = 256  # bytes of arguments that are worth keeping
AT_ONCE = 1 << 16  # bytes of a body that the event loop reads itself


class Call(NamedTuple):
    """Arguments of an operation. rows: the vectors of a body in the binary form."""

    arguments: Any
    rows: AnyArray | None = None


async def as_call(visit: Visit, body: bytes, kind: type[Any], pool: Executor) -> Call:
    """The arguments that a body brings.

    Raises:
        WireError: if it is malformed.
    """
    if len(body) <= AT_ONCE:
        return _parsed(visit.content, visit.headers, body, kind)
    return await get_running_loop().run_in_executor(pool, _parsed, visit.content, visit.headers, body, kind)


def _parsed(form: str, headers: Headers, body: bytes, kind: type[Any]) -> Call:
    if form != BINARY:
        return Call(decode(body or b"{}", kind, form if body else JSON))
    head, rows = unpack_rows(
        body, headers.get("corenn-dtype"), headers.get("corenn-shape"), headers.get("corenn-head")
    )  # fmt: skip
    return Call(_read_again(kind)(head) if len(head) <= SHORT else decode(head, kind), rows)


def _read_again(kind: type[Any]) -> Callable[[bytes], Any]:
    """Reads arguments that are the same from one query to the next once. Nobody changes them."""
    if kind not in _readers:
        _readers[kind] = lru_cache(maxsize=1024)(lambda head: decode(head or b"{}", kind))
    return _readers[kind]


_readers: dict[type[Any], Callable[[bytes], Any]] = {}


def as_rows(vectors: Sequence[Any], dim: int) -> AnyArray:
    """Vectors of a text form as an array, (0, dim) if there are none.

    Raises:
        DimensionError, UnsupportedDtypeError
    """
    return as_array(vectors) if len(vectors) else np.empty((0, dim), np.float32)


def reply(visit: Visit, answer: Any) -> Reply:
    """A message in the form that was asked for."""
    form = MSGPACK if visit.form == MSGPACK else JSON
    return Reply(encode(answer, form), form)


def reply_records(visit: Visit, records: Sequence[Record | None], cursor: str | None = None) -> Reply:
    """Rows in the form that was asked for; binary, the vectors stand behind the rest."""
    binary = visit.form == BINARY
    entries = [
        None if each is None else RecordEntry(each.key, [] if binary else each.vector.tolist(), each.payload)
        for each in records
    ]
    answer = Records(entries, cursor)
    if not binary:
        return reply(visit, answer)
    vectors = [each.vector for each in records if each is not None]
    rows = np.stack(vectors) if vectors else np.empty((0, 0), np.float32)
    headers, body = pack_rows(encode(answer), rows)
    return Reply(body, BINARY, headers=headers)


def result(hits: Hits, *, payloads: bool, explain: bool) -> Result:
    """What one query has found."""
    distances = hits.distances.tolist()
    if distances and distances[-1] == inf:  # they ascend
        distances = [None if each == inf else each for each in distances]
    answer = Result(hits.keys, distances)
    if payloads:
        answer.payloads = hits.payloads
    if explain and hits.explain is not None:
        answer.explain = as_plan(hits.explain)
    return answer


def as_plan(explain: Explain) -> Plan:
    """How a query was answered, as a message."""
    return Plan(**asdict(explain))


def fields_of(value: Any) -> dict[str, Any]:
    """A record of ours as plain values."""
    plain: dict[str, Any] = msgspec.to_builtins(asdict(value))
    return plain
