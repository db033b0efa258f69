"""Requests as bytes, whatever they are, and answers as they come."""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from typing import Any, NamedTuple


class Raw(NamedTuple):
    """An answer. body: parsed if it is JSON."""

    status: int
    headers: dict[str, str]
    body: Any


def send(port: int, data: bytes, *, seconds: float = 120.0) -> Raw | None:
    """What is answered; None if the connection is closed without an answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        with suppress(ConnectionError):  # it may have answered all the same
            connection.sendall(data)
        return _read(connection)


def request(
    port: int, method: str, path: str, body: Any = None, *, form: str = "application/json", key: str | None = None,
    **headers: str,
) -> Raw:  # fmt: skip
    """Send a well-formed request. body: bytes as they are, anything else as JSON."""
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    named = {"Host": "localhost", "Content-Length": str(len(data)), "Connection": "close"}
    if body is not None:
        named["Content-Type"] = form
    if key is not None:
        named["Authorization"] = f"Bearer {key}"
    named.update({name.replace("_", "-"): value for name, value in headers.items()})
    lines = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    answer = send(port, f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + data)
    assert answer is not None, "the connection was closed without an answer"
    return answer


def _read(connection: socket.socket) -> Raw | None:
    data = b""
    while b"\r\n\r\n" not in data:
        try:
            part = connection.recv(1 << 16)
        except ConnectionError:
            return None
        if not part:
            return None
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = int(headers.get("content-length", "0"))
    while len(body) < length and (part := connection.recv(1 << 16)):
        body += part
    parsed = json.loads(body) if headers.get("content-type") == "application/json" and body else body
    return Raw(int(first.split()[1]), headers, parsed)
