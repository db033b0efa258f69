"""Rules out a generator that counts answers that did not come, or leaves out those that were slow."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from corenn.bench.http_load import generate, json_requests, malformed_requests, rows_requests
from corenn.wire import unpack_rows
from tests.crash.harness import environment

VECTORS = np.arange(12, dtype=np.float32).reshape(3, 4)


class Seen(list[tuple[dict[str, str], bytes]]):
    """What a server was asked, and where it listens."""

    port = 0


@contextmanager
def answering(status: Callable[[int], int] = lambda _: 200, pause: float = 0.0) -> Iterator[Seen]:
    """A server that answers each request, with a status by its number, in two pieces."""
    seen = Seen()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            seen.append(({name.lower(): value for name, value in self.headers.items()}, body))
            time.sleep(pause)
            self.send_response(status(len(seen)))
            self.send_header("Content-Length", "10")
            self.end_headers()
            self.wfile.flush()
            self.wfile.write(b"0123456789")

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        seen.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield seen
        finally:
            server.shutdown()
            thread.join()


def test_every_answer_is_counted_once_and_refusals_apart() -> None:
    with answering(lambda number: 200 if number % 2 else 429) as seen:
        found = generate("127.0.0.1", seen.port, rows_requests("/q", VECTORS, b'{"k": 3}'), 1, 0.3)
    assert 0 < found.answers <= len(seen) <= found.answers + 1
    assert found.refused == found.answers // 2
    assert 0 < found.p50 <= found.p99


def test_requests_hold_the_vectors() -> None:
    with answering() as seen:
        generate("127.0.0.1", seen.port, rows_requests("/q", VECTORS, b'{"k": 3}'), 1, 0.1)
        headers, body = seen[1]
        head, row = unpack_rows(body, headers["corenn-dtype"], headers["corenn-shape"], headers["corenn-head"])
        assert (json.loads(head), row.tolist()) == ({"k": 3}, VECTORS[1].tolist())
        seen.clear()
        generate("127.0.0.1", seen.port, json_requests("/q", VECTORS, '{"v": VECTOR}'), 1, 0.1)
        assert json.loads(seen[0][1]) == {"v": VECTORS[0].tolist()}


def test_malformed_requests_are_whole_ones() -> None:
    requests = malformed_requests("/q", np.repeat(VECTORS, 50, axis=0), b'{"k": 3}')
    assert len(set(requests)) > 100
    for request in requests:
        head, _, body = request.partition(b"\r\n\r\n")
        assert head.endswith(b"Content-Length: %d" % len(body))
        assert all(b":" in line for line in head.split(b"\r\n")[1:])
    with answering(lambda number: 500 if number % 2 else 400) as seen:
        found = generate("127.0.0.1", seen.port, requests, 1, 0.3)
    assert found.refused == found.answers > 0
    assert found.faults == (found.answers + 1) // 2


def test_what_is_due_counts_from_then_on_however_slow_the_answers_are() -> None:
    with answering(pause=0.05) as seen:
        found = generate("127.0.0.1", seen.port, rows_requests("/q", VECTORS, b"{}"), 1, 0.5, rate=100)
    assert found.p99 > 100  # they queue up, and the queue is counted


def test_it_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", VECTORS)
    with answering() as seen:
        command = [
            sys.executable, "-m", "corenn.bench.http_load", "--port", str(seen.port), "--path", "/q", "--vectors",
            str(tmp_path / "v.npy"), "--seconds", "0.1", "--connections", "2",
        ]  # fmt: skip
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["answers"] > 0


def test_a_server_that_gives_up_is_an_error() -> None:
    with answering() as seen:
        pass
    with pytest.raises(OSError):
        generate("127.0.0.1", seen.port, rows_requests("/q", VECTORS, b"{}"), 1, 0.1)
