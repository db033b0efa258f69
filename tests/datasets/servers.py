"""Servers on this machine that serve a few files, honestly or with one fault per request."""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # asyncore, on Python 3.11
    from pyftpdlib.authorizers import DummyAuthorizer
    from pyftpdlib.handlers import DTPHandler, FTPHandler
    from pyftpdlib.servers import ThreadedFTPServer


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request; nothing, unless said.

    status: answer with this and no file. drop: close the connection after so many bytes of the body. stall: send
    nothing more after so many. longer: state so many bytes more than are sent (fewer if negative). ignore_range: send
    the whole file with 200. refuse_range: 416. shift: begin a range so many bytes late, and say so. corrupt: change the
    byte at this position of the file. to: redirect. unframed: state no length. chunked: in chunks. headers: more of
    them, or others. body, etag: from this request on, the file is another one. careless: overlook If-Range.
    """

    status: int = 200
    drop: int | None = None
    stall: int | None = None
    longer: int = 0
    ignore_range: bool = False
    refuse_range: bool = False
    shift: int = 0
    corrupt: int | None = None
    to: str = ""
    unframed: bool = False
    chunked: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    etag: str = ""
    careless: bool = False


@dataclass
class Served:
    """A file: its bytes, its validators, and the faults of the next requests; `always` is that of all others."""

    body: bytes
    etag: str = '"one"'
    modified: int | None = 1_700_000_000
    faults: list[Fault] = field(default_factory=list)
    always: Fault = field(default_factory=Fault)


class Web(ThreadingHTTPServer):
    """An HTTP server. files: by path. requests: path and Range of each request, in order."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, Served] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.released = threading.Event()

    def url(self, name: str) -> str:
        """The address of a file."""
        return f"http://127.0.0.1:{self.server_port}/{name}"

    def serve(self, name: str, body: bytes, *faults: Fault, **more: Any) -> str:
        """Serve `body`, the first requests with these faults, and return the address."""
        self.files[f"/{name}"] = Served(body, faults=list(faults), **more)
        return self.url(name)

    def handle_error(self, *_: object) -> None:
        """Clients that hang up are no concern of this server."""


class _Handler(BaseHTTPRequestHandler):
    server: Web
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.requests.append((self.path, wanted))
        self.close_connection = True
        served = self.server.files.get(self.path)
        if served is None:
            self._plain(404)
            return
        fault = served.faults.pop(0) if served.faults else served.always
        served.body, served.etag = fault.body or served.body, fault.etag or served.etag
        if fault.to:
            self._plain(302, {"Location": fault.to})
        elif fault.status != 200:
            self._plain(fault.status, fault.headers)
        else:
            self._file(served, fault, wanted)

    def _plain(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": "0", "Connection": "close", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()

    def _file(self, served: Served, fault: Fault, wanted: str | None) -> None:
        body = served.body
        if fault.corrupt is not None:
            body = body[: fault.corrupt] + bytes([body[fault.corrupt] ^ 1]) + body[fault.corrupt + 1 :]
        known = (served.etag, served.modified and formatdate(served.modified, usegmt=True))
        fresh = fault.careless or self.headers.get("If-Range") in (None, *filter(None, known))
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted or "")
        if found and fresh and not fault.ignore_range:
            first, end = int(found[1]) + fault.shift, min(int(found[2] or len(body)) + 1, len(body))
            if fault.refuse_range or first >= len(body):
                self._plain(416, {"Content-Range": f"bytes */{len(body)}"})
                return
            headers = {"Content-Range": f"bytes {first}-{end - 1}/{len(body)}"}
            self._send(206, served, fault, body[first:end], headers)
        else:
            self._send(200, served, fault, body, {})

    def _send(self, status: int, served: Served, fault: Fault, part: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        headers["Connection"] = "close"
        if served.etag:
            headers["ETag"] = served.etag
        if served.modified is not None:
            headers["Last-Modified"] = formatdate(served.modified, usegmt=True)
        if fault.chunked:
            headers["Transfer-Encoding"] = "chunked"
        elif not fault.unframed:
            headers["Content-Length"] = str(len(part) + fault.longer)
        for name, value in {**headers, **fault.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        sent = part[: fault.drop] if fault.drop is not None else part[: fault.stall]
        if fault.longer < 0:
            sent = sent[: fault.longer]
        self.wfile.write(f"{len(sent):x}\r\n".encode() + sent + b"\r\n" if fault.chunked else sent)
        if fault.chunked and fault.drop is None:
            self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()
        if fault.stall is not None:
            self.server.released.wait(20)

    def log_message(self, *_: object) -> None: ...


@contextmanager
def web() -> Iterator[Web]:
    """An HTTP server while the block lasts."""
    with Web() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
            thread.join()


# --- FTP --------------------------------------------------------------------------------------------------------------


@dataclass
class Ftp:
    """An FTP server. folder: what it serves. commands: what clients sent. drops: the data connections that are cut
    after so many bytes, one for each number. refused: commands that it does not understand.
    """

    folder: Path
    port: int = 0
    commands: list[str] = field(default_factory=list)
    drops: list[int] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)

    def url(self, name: str, user: str = "") -> str:
        """The address of a file."""
        return f"ftp://{user}127.0.0.1:{self.port}/{name}"


def _handlers(state: Ftp) -> type[FTPHandler]:
    class Data(DTPHandler):  # type: ignore[misc]
        def send(self, data: bytes) -> int:
            if state.drops and self.get_transmitted_bytes() + len(data) > state.drops[0]:
                super().send(data[: state.drops.pop(0) - self.get_transmitted_bytes()])
                self.cmd_channel.close()  # both connections, as when the line is cut
                self.close()
                return len(data)
            sent: int = super().send(data)
            return sent

    class Control(FTPHandler):  # type: ignore[misc]
        dtp_handler = Data
        use_sendfile = False
        timeout = 10
        auth_failed_timeout = 0

        def pre_process_command(self, line: str, cmd: str, arg: str) -> None:
            state.commands.append(line)
            if cmd in state.refused:
                self.respond(f"502 {cmd} not implemented.")
            else:
                super().pre_process_command(line, cmd, arg)

        def log(self, *_: object, **__: object) -> None: ...

    return Control


@contextmanager
def ftp(folder: Path) -> Iterator[Ftp]:
    """An FTP server while the block lasts; anonymous, and user "reader" with the password "s3cret:@"."""
    state = Ftp(folder)
    handler = _handlers(state)
    handler.authorizer = DummyAuthorizer()
    handler.authorizer.add_anonymous(str(folder))
    handler.authorizer.add_user("reader", "s3cret:@", str(folder))
    server = ThreadedFTPServer(("127.0.0.1", 0), handler)
    state.port = server.address[1]
    closing = threading.Event()

    def serve() -> None:
        # The thread that polls is the one that closes: descriptors that close under a poll are an error in its thread.
        while not closing.is_set():
            server.serve_forever(timeout=0.01, blocking=False, handle_exit=False)
        server.close_all()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        closing.set()
        thread.join()
