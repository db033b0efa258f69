"""A load generator for HTTP servers that takes little itself, so that it is the server that is measured.

One thread, plain sockets, requests made beforehand. Run in a process of its own: `python -m corenn.bench.http_load`,
which prints what it has measured as JSON.
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import sys
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..types import Float32s
from .load import arrivals

OK = b"HTTP/1.1 200"
FAULT = b"HTTP/1.1 5"
LENGTH = b"content-length:"
PLACE = "VECTOR"  # in a template, where the numbers of a vector go
MOST = 1_000_000  # latencies that are kept, the last ones


@dataclass(frozen=True, slots=True)
class Measured:
    """What a load has measured.

    per_second: answers. p50, p99: milliseconds from when a request was sent, or in the open loop was due, until its
    answer was whole. refused: answers other than 200; faults: those of them that are the server's own, 500 and up.
    busy: share of a processor that the generator took itself.
    """

    answers: int
    per_second: float
    p50: float
    p99: float
    refused: int
    faults: int
    busy: float


class Connection(ABC):
    """A connection, and the request under way on it."""

    __slots__ = ("due", "got", "socket")

    def __init__(self, host: str, port: int) -> None:
        self.socket = socket.create_connection((host, port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.got, self.due = b"", 0.0

    def send(self, request: bytes, due: float) -> None:
        """Ask for something that was due at a moment of the performance counter."""
        self.got, self.due = b"", due
        self.socket.sendall(request)

    def receive(self) -> bool:
        """Read what has come; whether the answer is whole."""
        part = self.socket.recv(1 << 16)
        if not part:
            raise ConnectionError("the server has closed a connection")
        self.got = self.got + part if self.got else part
        return self.whole()

    @abstractmethod
    def whole(self) -> bool:
        """Whether an answer is whole."""

    @property
    @abstractmethod
    def ok(self) -> bool:
        """Whether a whole answer is what was asked for."""

    @property
    @abstractmethod
    def fault(self) -> bool:
        """Whether one that is not is a fault of the server."""


class HTTPConnection(Connection):
    """One of HTTP/1.1, whose answers say how long they are."""

    __slots__ = ("wanted",)

    def send(self, request: bytes, due: float) -> None:
        self.wanted = 0
        super().send(request, due)

    def whole(self) -> bool:
        if not self.wanted:
            end = self.got.find(b"\r\n\r\n")
            if end < 0:
                return False
            head = self.got[:end].lower()
            at = head.index(LENGTH) + len(LENGTH)
            self.wanted = end + 4 + int(head[at : at + 20].split(b"\r")[0])
        return len(self.got) >= self.wanted

    @property
    def ok(self) -> bool:
        return self.got.startswith(OK)

    @property
    def fault(self) -> bool:
        return self.got.startswith(FAULT)


def generate(
    host: str, port: int, requests: Sequence[bytes], connections: int, seconds: float, rate: float | None = None,
    connect: Callable[[str, int], Connection] = HTTPConnection,
) -> Measured:  # fmt: skip
    """Send requests in turn for so long: each connection the next when it has its answer, or at `rate` per second in
    all, as they would come from independent clients, whatever the answers do. connect: by which protocol.

    Raises:
        ConnectionError: if the server gives up.
    """
    all_of_them = [connect(host, port) for _ in range(connections)]
    by_number = {each.socket.fileno(): each for each in all_of_them}

    def ready(wait: float) -> list[int]:
        """Connections on which something has come. To a microsecond, where epoll knows milliseconds: whoever spins for
        the rest takes a processor from the server.
        """
        return select.select(list(by_number), (), (), wait)[0]

    start, began = time.perf_counter(), time.process_time()
    due = None if rate is None else deque((start + arrivals(rate, max(int(rate * seconds), 1))).tolist())
    idle, latencies, turn = deque(all_of_them), deque[float](maxlen=MOST), 0
    answers = refused = faults = 0
    end = start + seconds
    while (now := time.perf_counter()) < end or (due is not None and len(idle) < connections):
        while idle and (due is None or (due and due[0] <= now)) and now < end:
            idle.popleft().send(requests[turn % len(requests)], now if due is None else due.popleft())
            turn += 1
            now = time.perf_counter()
        wait = 1.0 if due is None or not due or not idle else max(due[0] - now, 0.0)
        for number in ready(wait):
            connection = by_number[number]
            if connection.receive():
                latencies.append(time.perf_counter() - connection.due)
                answers += 1
                if not connection.ok:
                    refused += 1
                    faults += connection.fault
                idle.append(connection)
    took = time.perf_counter() - start
    for each in all_of_them:
        each.socket.close()
    low, high = np.percentile(np.array(latencies) * 1e3, (50, 99)).tolist() if latencies else (np.nan, np.nan)
    return Measured(answers, answers / took, low, high, refused, faults, (time.process_time() - began) / took)


def rows_requests(path: str, vectors: Float32s, head: bytes) -> list[bytes]:
    """A request for each vector, in the binary form of CoreNN. head: JSON of the other arguments."""
    named = (
        f"Content-Type: application/vnd.corenn.rows\r\nCorenn-Dtype: f32\r\nCorenn-Shape: {vectors.shape[1]}\r\n"
        f"Corenn-Head: {len(head)}\r\n"
    )
    return [_request(path, named, head + vector.astype("<f4").tobytes()) for vector in vectors]


def json_requests(path: str, vectors: Float32s, template: str) -> list[bytes]:
    """A request for each vector as JSON: the template, with its numbers in the place of VECTOR."""
    named = "Content-Type: application/json\r\n"
    bodies = (template.replace(PLACE, json.dumps(vector.tolist())) for vector in vectors)
    return [_request(path, named, body.encode()) for body in bodies]


def malformed_requests(path: str, vectors: Float32s, head: bytes, seed: int = 0) -> list[bytes]:
    """Requests like those of `rows_requests`, whole as such, with headers and bytes of the body changed at random."""
    rng, found = np.random.default_rng(seed), []
    for vector in vectors:
        body = bytearray(head + vector.astype("<f4").tobytes())
        for at in rng.integers(0, len(body), rng.integers(1, 6)).tolist():
            body[at] = int(rng.integers(256))
        values = [b"f32", str(len(vector)).encode(), str(len(head)).encode()]
        if rng.integers(2):
            values[rng.integers(3)] = rng.integers(33, 127, rng.integers(1, 12), np.uint8).tobytes()
        named = b"Corenn-Dtype: %b\r\nCorenn-Shape: %b\r\nCorenn-Head: %b\r\n" % tuple(values)
        found.append(_request(path, f"Content-Type: application/vnd.corenn.rows\r\n{named.decode()}", bytes(body)))
    return found


def _request(path: str, named: str, body: bytes) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{named}Content-Length: {len(body)}\r\n\r\n".encode() + body


def main(given: Sequence[str] | None = None) -> None:
    """Generate load, and print what was measured as JSON."""
    parser = argparse.ArgumentParser(prog="python -m corenn.bench.http_load", description="Load on an HTTP server.")
    parser.add_argument("--port", type=int, required=True, help="port of the server, on this machine")
    parser.add_argument("--path", required=True, help="path of the requests, such as /v1/collections/x/query")
    parser.add_argument("--vectors", type=Path, required=True, help="vectors to ask for, .npy")
    parser.add_argument("--head", default="{}", help="other arguments, JSON (default: %(default)s)")
    parser.add_argument("--template", help=f"send JSON instead: the body, with {PLACE} where the numbers go")
    parser.add_argument("--connections", type=int, default=32, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="(default: %(default)s)")
    parser.add_argument("--rate", type=float, help="requests per second, whatever the answers do")
    asked = parser.parse_args(given)
    vectors = np.load(asked.vectors, allow_pickle=False)
    if asked.template is None:
        requests = rows_requests(asked.path, vectors, asked.head.encode())
    else:
        requests = json_requests(asked.path, vectors, asked.template)
    measured = generate("127.0.0.1", asked.port, requests, asked.connections, asked.seconds, asked.rate)
    json.dump(asdict(measured), sys.stdout)


if __name__ == "__main__":
    main()
