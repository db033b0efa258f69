"""One request on its way through the server, and the answer to it."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from contextlib import suppress
from itertools import count
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from starlette.types import Receive, Scope, Send

from ..errors import DeadlineError, InvalidArgumentError, LimitError
from ..wire import BINARY, JSON, MSGPACK
from .faults import HeaderLines, RefusedError
from .keys import ANYBODY, Holder
from .limits import Limits

Headers: TypeAlias = dict[str, str]
_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_START, _COUNT = secrets.token_hex(4), count(1)
DRAIN_SECONDS = 5.0
_LATE = "the body is late"


class Reply(NamedTuple):
    """An answer, ready to be sent."""

    body: bytes
    form: str = JSON
    status: int = 200
    headers: HeaderLines = MappingProxyType({})


class Visit:
    """One request: what its headers say, who sends it, and what becomes of it. Used by one task at a time."""

    __slots__ = (
        "collection", "content", "deadline", "ended", "headers", "holder", "id", "length", "limits", "method", "note",
        "path", "receive", "route", "send", "sent", "size", "started",
    )  # fmt: skip

    def __init__(self, scope: Scope, receive: Receive, send: Send, limits: Limits) -> None:
        self.started = time.monotonic()
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: Headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        given = self.headers.get("x-request-id", "")
        self.id = given if _ID.fullmatch(given) else f"{_START}-{next(_COUNT):x}"
        self.receive, self.send, self.limits = receive, send, limits
        self.holder: Holder = ANYBODY
        self.route = self.collection = ""
        self.note: dict[str, Any] = {}  # what the log is to say of it
        self.content = ""  # the form of the body, once it has been checked
        self.length = self.size = 0  # of the body, as it is announced and as it has come
        self.ended = False  # whether the whole body has been read
        self.sent = 0  # the status that was sent
        self.deadline = self.started + limits.deadline

    def allow(self, seconds: float) -> None:
        """Let it take so long, unless its sender has asked for less.

        Raises:
            InvalidArgumentError: for a time that is none.
        """
        asked = self.headers.get("corenn-timeout")
        if asked is not None:
            try:
                wanted = float(asked)
                if not 0 < wanted < 1e9:
                    raise ValueError
            except ValueError:
                raise InvalidArgumentError(f"Corenn-Timeout: {asked[:40]}; give seconds, above 0") from None
            seconds = min(seconds, wanted)
        self.deadline = self.started + seconds

    @property
    def left(self) -> float:
        """Seconds until the deadline, 0 after it."""
        return max(0.0, self.deadline - time.monotonic())

    @property
    def form(self) -> str:
        """The form in which an answer is wanted."""
        accepted = self.headers.get("accept", "")
        return next((form for form in (BINARY, MSGPACK) if form in accepted), JSON)

    def announce(self) -> None:
        """Look how long the body is to be: as much as may be, if that is not said.

        Raises:
            RefusedError: with 413 if it is too long.
        """
        text = self.headers.get("content-length", "")
        if text.isascii() and text.isdigit():
            self.length = int(text[:20])
            if self.length > self.limits.body:
                raise self._too_long(self.length)
        elif "transfer-encoding" in self.headers:
            self.length = self.limits.body

    async def body(self) -> bytes:
        """The body, whole.

        Raises:
            RefusedError: with 413 if it is too long.
            DeadlineError: if it does not come in time.
        """
        task, seconds = asyncio.current_task(), self.limits.body_seconds
        assert task is not None
        # A timer of its own costs a third of what asyncio.timeout does, which every request would pay.
        late = asyncio.get_running_loop().call_later(seconds, task.cancel, _LATE)
        try:
            return await self._read()
        except asyncio.CancelledError as error:
            if error.args != (_LATE,):
                raise
            task.uncancel()
            self.ended = True  # nothing more is waited for
            raise DeadlineError(f"the body did not arrive within {seconds:g} seconds") from None
        finally:
            late.cancel()

    async def _read(self) -> bytes:
        message = await self.receive()
        if message["type"] == "http.request" and not message.get("more_body"):
            self.ended, whole = True, bytes(message.get("body", b""))
            self.size = len(whole)
            if self.size > self.limits.body:
                raise self._too_long(self.size)
            return whole
        parts = []
        while True:
            if message["type"] != "http.request":
                raise InvalidArgumentError("the connection was closed before the body had come")
            parts.append(message.get("body", b""))
            self.size += len(parts[-1])
            if self.size > self.limits.body:
                raise self._too_long(self.size)
            if not message.get("more_body"):
                self.ended = True
                return b"".join(parts)
            message = await self.receive()

    def _too_long(self, length: int) -> RefusedError:
        return RefusedError(
            413,
            LimitError(
                f"the body has {length:,} bytes or more; this server takes {self.limits.body:,} (limit body): send "
                "fewer rows at a time"
            ),
        )

    async def drain(self) -> None:
        """Read what is left of the body, within bounds: a client that is still sending does not see an answer."""
        left = self.limits.body
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                while not self.ended and left > 0:
                    message = await self.receive()
                    left -= len(message.get("body", b""))
                    self.ended = message["type"] != "http.request" or not message.get("more_body")

    async def answer(self, reply: Reply) -> None:
        """Send the answer."""
        headers = [
            (b"content-type", reply.form.encode()),
            (b"content-length", str(len(reply.body)).encode()),
            (b"x-request-id", self.id.encode()),
            *(
                (name.encode(), value.encode("latin-1", "replace"))
                for name, values in reply.headers.items()
                for value in ((values,) if isinstance(values, str) else values)
            ),
        ]
        self.sent = reply.status
        await self.send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": b"" if self.method == "HEAD" else reply.body})
