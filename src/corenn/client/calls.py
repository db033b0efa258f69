"""Every call of a client as a request to be sent and a way to read its answer. Nothing here waits for anything, so that
the blocking client and the other one share it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import numpy as np

from .. import inputs, wire
from ..config import Settings
from ..errors import DimensionError
from ..filters.wire import as_filter, as_filters
from ..types import AnyArray, Copied, Facet, Hits, HitsList, Payload, Recall, Record, Stats
from ..wire import BINARY, JSON, pack_rows, rows_of
from . import answers
from .answers import Answer

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A request, and how its answer is read. Sent again, it does what it did the first time: a write has a key.

    long: it is waited for however long it takes.
    """

    method: str
    path: str
    read: Callable[[Answer], T]
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    long: bool = False


# --- the root ---------------------------------------------------------------------------------------------------------


def list_collections() -> Call[list[str]]:
    """The names of all collections."""
    return Call("GET", "/v1/collections", lambda answer: answer.message(wire.Collections).collections)


def create(name: str, settings: Mapping[str, Any]) -> Call[None]:
    """Make a collection. settings: as `CoreNN.create` takes them."""
    known = {key: settings[key] for key in ("dim", "metric", "dtype", "durability") if key in settings}
    others = {key: value for key, value in settings.items() if key not in known}
    body = answers.encoded({"name": name, **known, "settings": others})
    return Call("POST", "/v1/collections", answers.nothing, body, _writing(JSON))


def drop(name: str) -> Call[None]:
    """Remove a collection."""
    return Call("DELETE", _path(name), answers.nothing)


def state(name: str) -> Call[tuple[Settings, Stats]]:
    """What a collection is."""
    return Call("GET", _path(name), answers.state)


# --- writing ----------------------------------------------------------------------------------------------------------


def write_rows(
    name: str, operation: str, keys: Any, vectors: Any, payloads: Any, scales: Any, zero_points: Any
) -> Call[None]:
    """Insert or upsert rows."""
    checked = inputs.as_unique_keys(keys)
    rows = rows_of(inputs.as_array(vectors))
    head = {"keys": checked, "payloads": _payloads(payloads, len(checked))}
    for parameter, values in (("scales", scales), ("zero_points", zero_points)):
        if values is not None:
            head[parameter] = inputs.as_parameters(values, len(checked), parameter).tolist()
    _check_rank(rows, "(n, dim)")
    headers, body = pack_rows(answers.encoded(head), rows)
    return Call("POST", _path(name, operation), answers.nothing, body, {**_writing(BINARY), **headers})


def set_payload(name: str, keys: Any, payloads: Any) -> Call[None]:
    """Replace payloads."""
    checked = inputs.as_unique_keys(keys)
    body = {"keys": checked, "payloads": None if payloads is None else _payloads(payloads, len(checked))}
    return _json(name, "set_payload", body, answers.nothing, writes=True)


def delete(name: str, keys: Any, filter: Any) -> Call[int]:
    """Delete rows."""
    checked = None if keys is None else list(dict.fromkeys(inputs.as_keys(keys)))
    body = {"keys": checked, "filter": _filter(filter)}
    return _json(name, "delete", body, lambda answer: answer.message(wire.Deleted).deleted, writes=True)


# --- reading ----------------------------------------------------------------------------------------------------------


def get(name: str, keys: Any) -> Call[list[Record | None]]:
    """Rows by key."""
    return _json(name, "get", {"keys": inputs.as_keys(keys)}, lambda answer: answers.records(answer)[0], accept=BINARY)


def contains(name: str, key: Any) -> Call[bool]:
    """Whether there is a row of a key."""
    body = {"filter": {"$keys": [inputs.check_key(key)]}}
    return _json(name, "count", body, lambda answer: answer.message(wire.Count).count == 1)


def count(name: str, filter: Any) -> Call[int]:
    """How many rows there are."""
    return _json(name, "count", {"filter": _filter(filter)}, lambda answer: answer.message(wire.Count).count)


def facets(name: str, field: Any, filter: Any) -> Call[list[Facet]]:
    """The values of a field."""
    return _json(name, "facets", {"field": field, "filter": _filter(filter)}, answers.facets)


def scroll(name: str, filter: Any, limit: int, cursor: str | None) -> Call[tuple[list[Record], str | None]]:
    """A page of rows."""

    def read(answer: Answer) -> tuple[list[Record], str | None]:
        found, following = answers.records(answer)
        return [each for each in found if each is not None], following

    return _json(name, "scroll", {"filter": _filter(filter), "limit": limit, "cursor": cursor}, read, accept=BINARY)


def sample(name: str, size: int, filter: Any) -> Call[list[Record]]:
    """Rows at random."""

    def read(answer: Answer) -> list[Record]:
        return [each for each in answers.records(answer)[0] if each is not None]

    return _json(name, "sample", {"size": size, "filter": _filter(filter)}, read, accept=BINARY)


def query(name: str, vectors: Any, options: dict[str, Any]) -> Call[Hits | HitsList]:
    """The nearest rows. options: what `CoreNN.query` takes beside vectors, but for None."""
    asked = {**options}
    if "max_distance" in asked:
        bound = inputs.as_bound(asked["max_distance"])
        asked["max_distance"] = None if bound == np.inf else bound
    if "filter" in asked:
        asked["filter"] = _filters(asked["filter"])
    if "key" in asked:
        asked["key"] = inputs.check_key(asked["key"])
    if "text" in asked:
        asked["text"] = inputs.as_texts(asked["text"])
    if vectors is None:
        alone = not isinstance(asked.get("text"), list)
        return _json(name, "query", asked, lambda answer: answers.hits(answer, single=alone))
    rows = rows_of(inputs.as_array(vectors, "query vectors"))
    _check_rank(rows, "(dim,) or (n, dim)")
    headers, body = pack_rows(answers.encoded(asked), rows)
    single = rows.ndim == 1

    def read(answer: Answer) -> Hits | HitsList:
        return answers.hits(answer, single=single)

    return Call("POST", _path(name, "query"), read, body, {"content-type": BINARY, **headers})


# --- upkeep -----------------------------------------------------------------------------------------------------------


def recall(name: str, options: dict[str, Any]) -> Call[Recall]:
    """Measure recall."""
    return _json(name, "recall", options, lambda answer: answers.recall(answer.message(wire.RecallResult)), long=True)


def recall_curve(name: str, options: dict[str, Any]) -> Call[list[Recall]]:
    """Measure how recall grows."""

    def read(answer: Answer) -> list[Recall]:
        return [answers.recall(each) for each in answer.message(wire.Curve).curve]

    return _json(name, "recall_curve", options, read, long=True)


def upkeep(name: str, operation: str) -> Call[None]:
    """Checkpoint or compact."""
    return _json(name, operation, {}, answers.nothing, writes=True, long=True)


def snapshot(name: str, called: str) -> Call[Copied]:
    """Copy a collection, on the server."""
    return _json(name, "snapshot", {"name": called}, answers.copied, writes=True, long=True)


# --- parts of requests ------------------------------------------------------------------------------------------------


def _json(
    name: str, operation: str, body: Any, read: Callable[[Answer], T], *, writes: bool = False, accept: str = "",
    long: bool = False,
) -> Call[T]:  # fmt: skip
    headers = _writing(JSON) if writes else {"content-type": JSON}
    if accept:
        headers["accept"] = accept
    return Call("POST", _path(name, operation), read, answers.encoded(body), headers, long)


def _check_rank(rows: AnyArray, wanted: str) -> None:
    if rows.ndim not in (1, 2):
        raise DimensionError(f"vectors have shape {rows.shape}; pass {wanted}")


def _writing(form: str) -> dict[str, str]:
    return {"content-type": form, "idempotency-key": uuid.uuid4().hex}


def _path(name: str, operation: str = "") -> str:
    path = f"/v1/collections/{quote(name, safe='')}"
    return f"{path}/{operation}" if operation else path


def _filter(filter: Any) -> Any:
    return None if filter is None else as_filter(filter).to_dict()


def _filters(filter: Any) -> Any:
    found = as_filters(filter)
    if isinstance(found, list):
        return [None if each is None else each.to_dict() for each in found]
    return None if found is None else found.to_dict()


def _payloads(payloads: Sequence[Payload | None] | None, count: int) -> Any:
    """Payloads as the texts that would be stored: nothing is changed on the way."""
    return None if payloads is None else [answers.raw(text) for text in inputs.as_payloads(payloads, count)]
