"""Answers of a server as what the embedded database returns, and its errors as the same errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import numpy as np

from .. import errors, wire
from ..config import META, Settings
from ..errors import CoreNNError, ServerError
from ..types import AnyArray, Copied, Explain, Facet, HitBlock, Hits, HitsList, Key, Recall, Record, Stats
from ..wire import BINARY, WireError, unpack_rows

T = TypeVar("T")
_NULL = b"null"


class _Found(msgspec.Struct):
    """A result of which payloads stay text until they are asked for."""

    keys: list[str | int]
    distances: list[float | None]
    payloads: list[msgspec.Raw] = []
    explain: wire.Plan | None = None


class _AllFound(msgspec.Struct):
    results: list[_Found]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def message(self, kind: type[T]) -> T:
        """Raises: the error that the server tells of; ServerError: if it is no answer of one."""
        self.check()
        return _decoded(self.body, kind)

    def check(self) -> None:
        """Raises: the error that the server tells of."""
        if self.status == 200:
            return
        try:
            fault = msgspec.json.decode(self.body, type=wire.ErrorBody).error
        except msgspec.DecodeError:
            shown = self.body[:80].decode(errors="replace")
            raise ServerError(f"status {self.status} and {shown!r}, which no CoreNN server answers") from None
        kind = getattr(errors, fault.code, None)
        if not (isinstance(kind, type) and issubclass(kind, CoreNNError)):
            kind = ServerError
        error = kind(fault.message)
        error.add_note(f"request {fault.request} of the server")
        raise error


def encoded(value: Any) -> bytes:
    """A body as JSON; NumPy's numbers are numbers.

    Raises:
        InvalidArgumentError: for what JSON does not have.
    """
    try:
        return msgspec.json.encode(value, enc_hook=_plain)
    except (TypeError, ValueError, OverflowError) as error:
        raise errors.InvalidArgumentError(f"an argument cannot be sent: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} is a {type(value).__name__}")


def raw(text: bytes | None) -> msgspec.Raw:
    """JSON that is sent as it is."""
    return msgspec.Raw(_NULL if text is None else text)


def nothing(answer: Answer) -> None:
    """That it was done."""
    answer.check()


def state(answer: Answer) -> tuple[Settings, Stats]:
    """Settings and stats. What a newer server tells beyond them is left out."""
    found = answer.message(wire.State)
    settings = Settings.from_dict({name: value for name, value in found.settings.items() if name in META})
    return settings, msgspec.convert({**found.stats, "path": None}, Stats)


def records(answer: Answer) -> tuple[list[Record | None], str | None]:
    """Rows in the binary form, and a cursor."""
    answer.check()
    headers = answer.headers
    if headers.get("content-type") != BINARY:
        raise ServerError(f"rows came as {headers.get('content-type')}, not as {BINARY}")
    try:
        head, rows = unpack_rows(
            answer.body, headers.get("corenn-dtype"), headers.get("corenn-shape"), headers.get("corenn-head")
        )  # fmt: skip
    except WireError as error:
        raise ServerError(f"the answer is malformed: {error}") from error
    found, vectors = _decoded(head, wire.Records), iter(rows.astype(np.float32))
    return [
        None if each is None else Record(each.key, next(vectors), each.payload) for each in found.records
    ], found.cursor  # fmt: skip


def facets(answer: Answer) -> list[Facet]:
    """Values and counts."""
    return [Facet(each.value, each.count) for each in answer.message(wire.Facets).facets]


def copied(answer: Answer) -> Copied:
    """What a snapshot holds. path: its name."""
    found = answer.message(wire.Copy)
    return Copied(found.path, found.commit, found.rows, found.bytes, found.copied)


def recall(found: wire.RecallResult) -> Recall:
    """Recall as it was measured."""
    plain: dict[str, Any] = msgspec.structs.asdict(found)
    plain.update((name, np.nan) for name, value in msgspec.structs.asdict(found).items() if value is None)
    return Recall(**plain)


def hits(answer: Answer, *, single: bool) -> Hits | HitsList:
    """Hits of one query, or of several, in the same objects as those of the embedded database."""
    answer.check()
    found = _decoded(answer.body, _AllFound).results
    counts = [len(each.distances) for each in found]
    distances = np.full((len(found), max(counts, default=0)), np.inf, np.float32)
    for row, each in enumerate(found):
        distances[row, : counts[row]] = [np.inf if distance is None else distance for distance in each.distances]
    block = HitBlock([each.keys for each in found], distances, counts)
    if any(each.payloads for each in found):
        block.payloads = [[_text(each) for each in result.payloads] for result in found]
    explains = [Explain(**msgspec.structs.asdict(each.explain)) for each in found if each.explain is not None]
    if explains:
        block.explains = explains
    if single:
        return Hits(block, 0)
    every = [Hits(block, row) for row in range(len(found))]
    return HitsList(every, distances, lambda: _all_keys([each.keys for each in found], distances.shape))


def _text(payload: msgspec.Raw) -> bytes | None:
    text = bytes(payload)
    return None if text == _NULL else text


def _all_keys(keys: list[list[Key]], shape: tuple[int, ...]) -> AnyArray:
    numbers = all(type(key) is int for row in keys for key in row) and all(len(row) == shape[1] for row in keys)
    found = np.full(shape, None, object)
    for place, row in enumerate(keys):
        found[place, : len(row)] = row
    return found.astype(np.int64) if numbers else found


def _decoded(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise ServerError(f"the answer is malformed: {error}") from error
