"""JSON and MessagePack, read strictly: no member twice, no NaN, nothing that the type does not name."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

JSON = "application/json"
MSGPACK = "application/msgpack"
BINARY = "application/vnd.corenn.rows"

T = TypeVar("T")
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.S)
_READ_JSON = msgspec.json.Decoder()
_READ_MSGPACK = msgspec.msgpack.Decoder()
_WRITE_JSON = msgspec.json.Encoder()
_WRITE_MSGPACK = msgspec.msgpack.Encoder()


class WireError(ValueError):
    """A body that is not what it is said to be."""


def encode(value: Any, form: str = JSON) -> bytes:
    """A message as JSON, or as MessagePack."""
    return (_WRITE_MSGPACK if form == MSGPACK else _WRITE_JSON).encode(value)


def decode(body: bytes, kind: type[T], form: str = JSON) -> T:
    """A message of a type.

    Raises:
        WireError: with the path to the fault.
    """
    try:
        if form == MSGPACK:
            return msgspec.convert(_READ_MSGPACK.decode(body), kind)
        value = _READ_JSON.decode(body)
        if _members(body) != _entries(value):
            raise WireError("a member is named twice in one JSON object")
        return msgspec.convert(value, kind)
    except RecursionError:
        raise WireError("the body is nested too deep") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WireError(str(error)) from None


def _members(body: bytes) -> int:
    """The members of all objects of a valid JSON text: outside of strings, only they have a colon."""
    return (_STRING.sub(b"", body) if b'"' in body else body).count(b":")


def _entries(value: Any) -> int:
    """The members that are left of them."""
    if type(value) is dict:
        return len(value) + sum(map(_entries, value.values()))
    if type(value) is list and not {dict, list}.isdisjoint(map(type, value)):
        return sum(map(_entries, value))
    return 0
