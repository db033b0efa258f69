"""A server in this process, on a port of its own, for as long as a test wants it."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import uvicorn
import uvloop

from corenn import Client
from corenn.server import Application, Keys, Limits, Options
from corenn.server.keys import Holder
from corenn.server.run import Address, serve

WRITE, READ, SCOPED = "write-key-0123456789", "read-key-0123456789", "scoped-key-0123456789"
SECONDS = 120.0  # for a call that no test wants to be short: the first of a kind may compile kernels
KEYS = ((WRITE, Holder(True)), (READ, Holder(False)), (SCOPED, Holder(True, frozenset({"mine"}))))


class Served:
    """Where a server listens, and the application behind it."""

    def __init__(self, application: Application, port: int) -> None:
        self.application, self.port = application, port
        self.url = f"http://127.0.0.1:{port}"

    def client(self, key: str | None = None, **more: Any) -> Client:
        """A client that does not repeat calls, and waits for kernels that are not compiled yet."""
        return Client(self.url, key, **{"retries": 0, "timeout": SECONDS, **more})


@contextmanager
def serving(
    path: Path, *, keys: bool = False, limits: dict[str, Any] | None = None, **options: Any
) -> Iterator[Served]:
    """Serve a root within this context, as `corenn serve` does."""
    application, address = _application(path, keys, limits, options), Address(port=free_port())
    loop, ended = uvloop.new_event_loop(), asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(serve(application, address, ended)), name="server")
    thread.start()
    try:
        while not listens(address.port):
            thread.join(0.01)
            assert thread.is_alive(), "the server did not start"
        yield Served(application, address.port)
    finally:
        if thread.is_alive():
            loop.call_soon_threadsafe(ended.set)
        thread.join()
        loop.close()


@contextmanager
def serving_asgi(path: Path) -> Iterator[Served]:
    """Serve a root within this context by another server, which speaks ASGI."""
    application = _application(path, False, None, {})
    # What uvicorn always has: it would take other parsers and loops where something else has installed them.
    config = uvicorn.Config(
        application, log_level="error", access_log=False, http="h11", loop="asyncio", ws="none", lifespan="on"
    )
    server = uvicorn.Server(config)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="server")
        thread.start()
        try:
            while not server.started:
                thread.join(0.01)
                assert thread.is_alive(), "the server did not start"
            yield Served(application, listening.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join()


def _application(path: Path, keys: bool, limits: dict[str, Any] | None, options: dict[str, Any]) -> Application:
    known = Keys(KEYS if keys else ())
    return Application(path, Options(keys=known, limits=Limits(**{"deadline": SECONDS, **(limits or {})}), **options))


def free_port() -> int:
    """A port that nobody listens at, below those that a system gives to whoever names none, such as other tests."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as one, suppress(OSError):
            one.bind(("127.0.0.1", port))
            return port


def listens(port: int) -> bool:
    """Whether somebody listens at a port."""
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0
