"""The OpenAPI 3.1 document: made of the table of routes and the types of their bodies, and of nothing else.

`python -m corenn.server.openapi FILE` writes it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from ..wire import BINARY, JSON, MSGPACK, ErrorBody
from ..wire.rows import DTYPES
from .assets import FILES
from .routes import ROUTES, Entrance, Reach

_REFERENCE = "#/components/schemas/{name}"
_FAULT = "#/components/responses/Fault{}"
_FAULTS = {
    "400": "An argument is wrong, or beyond a limit.",
    "401": "There is no key, or an unknown one.",
    "403": "The key is not for this, or the request came by another name of this machine.",
    "404": "There is no such collection, key or route.",
    "405": "The route has no such method.",
    "409": "It exists already.",
    "413": "The body is too long.",
    "415": "The body has a form that is not known here.",
    "429": "Too much of this waits already; see Retry-After.",
    "500": "The server, or its disk, has failed.",
    "501": "The server lacks a package that this needs.",
    "503": "The server has too much to do, is closing, or cannot write; see Retry-After.",
    "504": "It was not done in time.",
    "507": "There is no room for it.",
}
_BINARY_HEADERS = {
    "Corenn-Dtype": ({"type": "string", "enum": list(DTYPES)}, "Type of the numbers behind the JSON."),
    "Corenn-Shape": ({"type": "string"}, "Shape of the rows behind the JSON, such as 1000,128."),
    "Corenn-Head": ({"type": "string"}, "Bytes of JSON before the rows; none if it is missing."),
}


def document() -> dict[str, Any]:
    """The document, as plain values."""
    types = {each for route in ROUTES for each in (route.takes, route.gives) if isinstance(each, type)} | {ErrorBody}
    _, schemas = msgspec.json.schema_components(sorted(types, key=lambda each: each.__name__), ref_template=_REFERENCE)
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "CoreNN",
            "version": version("corenn"),
            "description": "Collections of vectors over HTTP. The guide is docs/server.md.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "responses": {f"Fault{status}": _fault(text) for status, text in _FAULTS.items()},
            "schemas": dict(sorted(schemas.items())),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "basic": {"type": "http", "scheme": "basic", "description": "The key as the password."},
            },
        },
        "security": [{}, {"bearer": []}, {"basic": []}],
    }


def document_text() -> str:
    """The document, as it is served and checked in."""
    return json.dumps(document(), indent=1, ensure_ascii=False) + "\n"


def _operation(route: Entrance) -> dict[str, Any]:
    described = (route.does.__doc__ or "").strip()
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": " ".join(described.split()),
        "parameters": _parameters(route),
        "responses": {"200": _answer(route), **{status: {"$ref": _FAULT.format(status)} for status in _FAULTS}},
    }
    if route.reach is Reach.OPEN:
        operation["security"] = []
    if isinstance(route.takes, type):
        schema = _schema(route.takes)
        content = {JSON: schema, MSGPACK: schema}
        if route.binary == "takes":
            content[BINARY] = _bytes()
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _parameters(route: Entrance) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    if "{name}" in route.path:
        schema = {"type": "string", "minLength": 1, "maxLength": 128}
        found.append({"name": "name", "in": "path", "required": True, "schema": schema})
    if "{file}" in route.path:
        found.append({"name": "file", "in": "path", "required": True, "schema": {"type": "string", "enum": FILES}})
    if route.writes and route.takes is not None:
        schema = {"type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[!-~]+$"}
        found.append({"name": "Idempotency-Key", "in": "header", "schema": schema})
    return found


def _answer(route: Entrance) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "description": "It was done.",
        "headers": {"X-Request-Id": {"schema": {"type": "string"}}},
    }
    if isinstance(route.gives, str):
        kind = "object" if route.gives == JSON else "string"
        return {**answer, "content": {form: {"schema": {"type": kind}} for form in route.gives.split(", ")}}
    schema = _schema(route.gives)
    answer["content"] = {JSON: schema, MSGPACK: schema}
    if route.binary == "gives":
        answer["content"][BINARY] = _bytes()
        answer["headers"].update(
            {name: {"schema": kind, "description": text} for name, (kind, text) in _BINARY_HEADERS.items()}
        )
    return answer


def _fault(text: str) -> dict[str, Any]:
    return {"description": text, "content": {JSON: _schema(ErrorBody)}}


def _schema(kind: type[Any]) -> dict[str, Any]:
    return {"schema": {"$ref": _REFERENCE.format(name=kind.__name__)}}


def _bytes() -> dict[str, Any]:
    described = "JSON, then rows of numbers, little-endian: see docs/server.md for the headers that go with it."
    return {"schema": {"type": "string", "format": "binary", "description": described}}


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(document_text())
