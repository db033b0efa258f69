"""Servers in a race.

Rules out a server that is measured without being asked, one that refuses and is counted all the same, a comparison that
says nothing of who is missing, and answers of PostgreSQL that are misread.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from corenn.bench.http_load import generate
from corenn.bench.postgres import PostgresConnection, PostgresError, copied, searches
from corenn.bench.served import main
from corenn.bench.served_peers import PEERS, free_port
from corenn.bench.served_race import Entrant, race
from tests.bench.test_http_load import answering

VECTORS = np.arange(12, dtype=np.float32).reshape(3, 4)
READY = b"Z\0\0\0\5I"


def message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack(">i", 4 + len(body)) + body


class Postgres:
    """Answers searches with the numbers of the vector, in two pieces, and refuses statements that say so."""

    def __init__(self) -> None:
        self.port, self.seen = free_port(), list[tuple[bytes, bytes]]()

    def serve(self, listening: socket.socket) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,)).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            stream.read(struct.unpack(">i", stream.read(4))[0] - 4)
            connection.sendall(message(b"R", bytes(4)) + message(b"S", b"name\0E value\0") + READY)
            answer = b""
            while kind := stream.read(1):
                body = stream.read(struct.unpack(">i", stream.read(4))[0] - 4)
                self.seen.append((kind, body))
                if kind == b"B":
                    row = np.frombuffer(body[-20:-4], ">f4").astype(int).tolist()
                    cells = [message(b"D", struct.pack(">Hii", 1, 4, each)) for each in row]
                    answer = message(b"2") + b"".join(cells) + message(b"C", b"SELECT 4\0")
                elif kind == b"P":
                    answer = message(b"1")
                elif kind == b"Q" and b"COPY" in body:
                    connection.sendall(message(b"G", b"\1\0\0"))
                elif kind == b"Q":
                    bad = b"bad" in body
                    connection.sendall((message(b"E", b"MIt is bad\0\0") if bad else message(b"C", b"\0")) + READY)
                elif kind in b"Sc":
                    connection.sendall(answer[:7])
                    connection.sendall(answer[7:] + READY)


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    server = Postgres()
    with socket.create_server(("127.0.0.1", server.port)) as listening:
        thread = threading.Thread(target=server.serve, args=(listening,))
        thread.start()
        yield server
        listening.shutdown(socket.SHUT_RDWR)
    thread.join()


def test_postgres_is_asked_and_read_as_it_speaks(postgres: Postgres) -> None:
    connection = PostgresConnection("127.0.0.1", postgres.port, 4)
    assert [connection.search(each) for each in searches(VECTORS)] == VECTORS.astype(int).tolist()
    with pytest.raises(PostgresError, match="It is bad"):
        connection.run("bad")
    connection.run("good")
    connection.copy("rows", [copied(VECTORS[:2], 0), copied(VECTORS[2:], 2)])
    connection.socket.close()
    sent = b"".join(body for kind, body in postgres.seen if kind == b"d")
    assert sent.startswith(b"PGCOPY\n\xff\r\n\0") and sent.endswith(b"\xff\xff")
    size = 2 + 4 + 4 + 4 + 4 + 16  # fields, then length and id, then length, dimensions and the vector
    rows = [sent[19:][at : at + size] for at in range(0, 3 * size, size)]
    assert [struct.unpack_from(">hii", row)[2] for row in rows] == [0, 1, 2]
    assert [np.frombuffer(row[-16:], ">f4").tolist() for row in rows] == VECTORS.tolist()


def test_the_generator_speaks_it_too(postgres: Postgres) -> None:
    def connect(host: str, port: int) -> PostgresConnection:
        return PostgresConnection(host, port, 4)

    found = generate("127.0.0.1", postgres.port, searches(VECTORS), 2, 0.2, connect=connect)
    assert found.answers > 0 == found.refused
    asked = sum(kind == b"B" for kind, _ in postgres.seen)
    assert found.answers <= asked <= found.answers + 2


def test_who_refuses_or_does_not_start_is_told_of_and_the_others_go_on(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", VECTORS)

    def entrant(name: str, status: int, pause: float) -> Entrant:
        @contextmanager
        def serving() -> Iterator[tuple[int, int]]:
            if not status:
                raise OSError("no such program")
            with answering(lambda _: status, pause) as seen:
                yield seen.port, 1

        def load(port: int, seconds: float) -> list[str]:
            return [
                "corenn.bench.http_load", "--port", str(port), "--path", "/q", "--vectors", str(tmp_path / "v.npy"),
                "--seconds", str(seconds), "--connections", "1",
            ]  # fmt: skip

        return Entrant(name, "", serving, lambda _: 0.5, load)

    failed: dict[str, str] = {}
    entrants = [
        entrant("slow", 200, 0.05),
        entrant("fast", 200, 0.0),
        entrant("refuses", 503, 0.0),
        entrant("gone", 0, 0),
    ]
    through = race(entrants, 1, 0.3, failed)
    assert [each.name for each in through] == ["fast", "slow"]
    assert 0 < through[1].per_second <= 20 and through[1].reached == 0.5
    assert re.fullmatch(r"([\d,]+) of \1 requests were refused", failed["refuses"])
    assert failed["gone"] == "no such program"


@pytest.mark.compiled
@pytest.mark.slow
def test_we_are_measured_and_who_is_not_installed_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = tmp_path / "python"  # an interpreter with nothing but its own modules
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    bare.chmod(0o755)
    main([
        "--rows", "2000", "--dim", "8", "--seconds", "0.2", "--turns", "1", "--only-beside", "--beside", "chroma",
        "--python", f"chroma={bare}", "--json", str(tmp_path / "out.json"),
    ])  # fmt: skip
    told = json.loads((tmp_path / "out.json").read_text())
    assert {each["name"] for each in told["beside"]} == {"CoreNN", "CoreNN, JSON"}
    for each in told["beside"]:
        assert each["recall"] >= 0.9
        assert each["per_second"] > 0 < each["processor_ms"]
        assert each["turns"][0]["refused"] == 0
    assert told["failed"].keys() == {"Chroma"}
    assert "not installed" in told["failed"]["Chroma"] and "pip install chromadb" in capsys.readouterr().out
    assert {kind.name for kind in PEERS} == {"Chroma", "pgvector"}
