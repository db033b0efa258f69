"""PostgreSQL over its own protocol, as far as a load needs it: `python -m corenn.bench.postgres` is the generator of
`corenn.bench.http_load` with prepared statements in the place of requests.

A driver would take more time than the server's answer is long: statements are bound beforehand, parameters and results
in the binary form. https://www.postgresql.org/docs/current/protocol-message-formats.html
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ..types import Float32s
from .http_load import Connection, generate

USER = "postgres"
READY = b"Z\x00\x00\x00\x05I"  # ends every answer; ids below 2**24 cannot hold it
_ROW = struct.Struct(">xiHii")  # of one column: tag, length, columns, bytes, id
STATEMENT = "SELECT id FROM rows ORDER BY vector <-> $1 LIMIT {k}"


class PostgresError(RuntimeError):
    """PostgreSQL has refused a statement."""


class PostgresConnection(Connection):
    """A connection that has prepared the search for k neighbours, if k is given."""

    __slots__ = ()

    def __init__(self, host: str, port: int, k: int = 0) -> None:
        super().__init__(host, port)
        named = b"user\0%b\0database\0%b\0\0" % (USER.encode(), USER.encode())
        self._ask(struct.pack(">ii", 8 + len(named), 196608) + named)
        if k:
            self._ask(_message(b"P", b"search\0" + STATEMENT.format(k=k).encode() + b"\0\0\0") + _message(b"S"))

    def whole(self) -> bool:
        return self.got.endswith(READY)

    @property
    def ok(self) -> bool:
        return self.got.startswith(b"2")

    @property
    def fault(self) -> bool:
        return not self.ok

    def run(self, statement: str) -> None:
        """Run a statement.

        Raises:
            PostgresError
        """
        self._ask(_message(b"Q", statement.encode() + b"\0"))

    def copy(self, table: str, rows: Iterable[bytes]) -> None:
        """Fill a table with rows in the binary form of COPY, the header left out."""
        self._send_and_wait(_message(b"Q", f"COPY {table} FROM STDIN (FORMAT binary)\0".encode()), b"G")
        self.socket.sendall(_message(b"d", b"PGCOPY\n\xff\r\n\0" + bytes(8)))
        for block in rows:
            self.socket.sendall(_message(b"d", block))
        self._ask(_message(b"d", b"\xff\xff") + _message(b"c"))

    def search(self, request: bytes) -> list[int]:
        """The ids that a bound search finds."""
        self._ask(request)
        at, found = 5, []  # behind BindComplete
        while self.got[at : at + 1] == b"D":
            found.append(_ROW.unpack_from(self.got, at)[3])
            at += _ROW.size
        return found

    def _ask(self, request: bytes) -> None:
        self._send_and_wait(request, READY)

    def _send_and_wait(self, request: bytes, end: bytes) -> None:
        """Send something and read until the answer has a part."""
        self.send(request, 0.0)
        self.receive()
        while end not in self.got and not self.got.endswith(READY):
            self.receive()
        if (at := _error(self.got)) is not None:
            raise PostgresError(self.got[at : at + 300].replace(b"\0", b" ").decode(errors="replace"))


def _error(got: bytes) -> int | None:
    """Where an ErrorResponse stands among the messages of an answer."""
    at = 0
    while at + 5 <= len(got):
        if got[at : at + 1] == b"E":
            return at + 5
        at += 1 + int.from_bytes(got[at + 1 : at + 5], "big")
    return None


def _message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack(">i", 4 + len(body)) + body


def _vector(row: Float32s) -> bytes:
    """pgvector's binary form."""
    return struct.pack(">HH", len(row), 0) + row.astype(">f4").tobytes()


def copied(base: Float32s, first: int) -> bytes:
    """Rows in the binary form of COPY: their numbers from `first` on, and their vectors."""
    size = 4 + 4 * base.shape[1]
    return b"".join(
        struct.pack(">hiii", 2, 4, number, size) + _vector(row) for number, row in enumerate(base, first)
    )  # fmt: skip


def searches(vectors: Float32s) -> list[bytes]:
    """A bound search for each vector."""
    found = []
    for row in vectors:
        sent = _vector(row)
        bound = b"\0search\0" + struct.pack(">HHHi", 1, 1, 1, len(sent)) + sent + struct.pack(">HH", 1, 1)
        found.append(_message(b"B", bound) + _message(b"E", bytes(5)) + _message(b"S"))
    return found


def main(given: Sequence[str] | None = None) -> None:
    """Generate load, and print what was measured as JSON."""
    parser = argparse.ArgumentParser(prog="python -m corenn.bench.postgres", description="Load on a PostgreSQL server.")
    parser.add_argument("--port", type=int, required=True, help="port of the server, on this machine")
    parser.add_argument("--vectors", type=Path, required=True, help="vectors to ask for, .npy")
    parser.add_argument("--k", type=int, default=10, help="neighbours (default: %(default)s)")
    parser.add_argument("--connections", type=int, default=32, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="(default: %(default)s)")
    asked = parser.parse_args(given)

    def connect(host: str, port: int) -> Connection:
        return PostgresConnection(host, port, asked.k)

    requests = searches(np.load(asked.vectors, allow_pickle=False))
    measured = generate("127.0.0.1", asked.port, requests, asked.connections, asked.seconds, connect=connect)
    json.dump(asdict(measured), sys.stdout)


if __name__ == "__main__":
    main()
