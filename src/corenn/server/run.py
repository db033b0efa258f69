"""A server as a process: the address that it may have, its signals, and its end."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import resource
import signal
import socket
from dataclasses import dataclass
from pathlib import Path

import uvloop
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.server.embed import Server

from ..errors import InvalidArgumentError
from .app import Application
from .service import Options

log = logging.getLogger("corenn.server")
BACKLOG = 1024  # connections that wait to be accepted
HEADER_SECONDS = 10  # in which the headers of a request, or of the next one, have to come
ENDING = (signal.SIGTERM, signal.SIGINT)
FILES = 256  # that the process keeps open beside its connections, for each collection that may be


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a server listens. certificate, key: files in PEM form, for TLS."""

    host: str = "127.0.0.1"
    port: int = 4224
    certificate: Path | None = None
    key: Path | None = None

    @property
    def local(self) -> bool:
        """Whether only this machine reaches it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def check(address: Address, options: Options, *, insecure: bool) -> None:
    """Refuse to show a root to a network without keys.

    Raises:
        InvalidArgumentError
    """
    if not address.local and not options.keys and not insecure:
        raise InvalidArgumentError(
            f"--host {address.host} lets other machines in, and there are no keys: give --api-key-file, or --insecure "
            "if whoever reaches this address may do everything"
        )
    if (address.certificate is None) != (address.key is None):
        raise InvalidArgumentError("--tls-cert and --tls-key go together: give both")


def run(path: Path, address: Address, options: Options) -> None:
    """Serve a root until SIGTERM or Ctrl-C; then finish what is under way, and bring everything to the disk.

    Raises:
        InvalidArgumentError: if the address cannot be listened at.
        NotADatabaseError, DatabaseExistsError, StorageError: as `Root`.
    """
    _try(address)
    _raise_files(options.limits.connections + FILES * options.limits.open_collections)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(path, address, options))


def _try(address: Address) -> None:
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(place)
    except OSError as error:
        raise InvalidArgumentError(
            f"cannot listen at {address.host}, port {address.port}: {error.strerror or error}; choose another with "
            "--host or --port"
        ) from None


def _raise_files(wanted: int) -> None:
    """Let the process open so many files, or as many as it may: shells often allow 1,024 alone."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard > soft:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


async def _serve(path: Path, address: Address, options: Options) -> None:
    ended, loop = asyncio.Event(), asyncio.get_running_loop()
    scheme = "http" if address.certificate is None else "https"
    log.info("serving %s at %s://%s:%d", path, scheme, address.host, address.port)
    try:
        for number in ENDING:
            loop.add_signal_handler(number, ended.set)
        await serve(Application(path, options), address, ended)
    finally:
        for number in ENDING:  # uvloop leaves them to a loop that is closed: Ctrl-C would do nothing from then on
            loop.remove_signal_handler(number)


async def serve(application: Application, address: Address, ended: asyncio.Event) -> None:
    """Serve until `ended` is set; then finish what is under way, and bring everything to the disk."""
    limits = application.service.limits
    # HTTP/2 would multiply what one connection may ask for, and waits without end for its first bytes.
    server = Server(
        application, address.host, address.port, interface=Interfaces.RSGI, http=HTTPModes.http1, backlog=BACKLOG,
        backpressure=limits.connections, http1_settings=HTTP1Settings(header_read_timeout=HEADER_SECONDS * 1000),
        websockets=False, log_enabled=False, ssl_cert=address.certificate, ssl_key=address.key,
    )  # fmt: skip
    await application.start()
    ending = asyncio.create_task(_end(application, server, ended))
    try:
        await server.serve()
    finally:
        ended.set()
        await ending
        # Not before: the thread of granian must not be met by the end of the interpreter while it still lets go.
        await application.stop()


async def _end(application: Application, server: Server, ended: asyncio.Event) -> None:
    """Once that is asked for, finish what is under way, then close connections: whoever comes meanwhile is told."""
    await ended.wait()
    await application.drain()
    server.stop()  # type: ignore[no-untyped-call]
