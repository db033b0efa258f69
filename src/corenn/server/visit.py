"""One request on its way through the server, and the answer to it."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from contextlib import suppress
from itertools import count
from types import MappingProxyType
from typing import Any, NamedTuple

from ..errors import DeadlineError, InvalidArgumentError, LimitError
from ..once import Token
from ..wire import BINARY, JSON, MSGPACK
from .faults import HeaderLines, RefusedError
from .keys import ANYBODY, Holder
from .limits import Limits
from .patience import Patience
from .transports import Transport

_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_START, _COUNT = secrets.token_hex(4), count(1)
DRAIN_SECONDS = 5.0


class Reply(NamedTuple):
    """An answer, ready to be sent."""

    body: bytes
    form: str = JSON
    status: int = 200
    headers: HeaderLines = MappingProxyType({})


class Visit:
    """One request: what its headers say, who sends it, and what becomes of it. Used by one task at a time."""

    __slots__ = (
        "_transport", "chunked", "collection", "content", "deadline", "ended", "headers", "holder", "id", "length",
        "limits", "method", "note", "path", "route", "sent", "size", "started", "token",
    )  # fmt: skip

    def __init__(self, transport: Transport, limits: Limits) -> None:
        self.started = time.monotonic()
        self._transport, self.limits = transport, limits
        self.method, self.path, self.headers = transport.method, transport.path, transport.headers
        given = self.headers.get("x-request-id")
        self.id = given if given and _ID.fullmatch(given) else f"{_START}-{next(_COUNT):x}"
        self.holder: Holder = ANYBODY
        self.route = self.collection = ""
        self.note: dict[str, Any] = {}  # what the log is to say of it
        self.content = ""  # the form of the body, once it has been checked
        self.length = self.size = 0  # of the body, as it is announced and as it has come
        self.chunked = False  # whether the body does not say how long it is
        self.ended = False  # whether the whole body has been read
        self.token: Token | None = None  # of a write that is to be done once
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
        text = self.headers.get("content-length")
        if text is not None and text.isascii() and text.isdigit():
            self.length = int(text[:20])
            if self.length > self.limits.body:
                raise self._too_long(self.length)
        elif "transfer-encoding" in self.headers:
            self.length, self.chunked = self.limits.body, True

    async def body(self, patience: Patience) -> bytes:
        """The body, whole.

        Raises:
            RefusedError: with 413 if it is too long.
            DeadlineError: if it does not come in time.
        """
        try:
            whole = await patience.wait(self._in_parts() if self.chunked else self._transport.whole())
        except DeadlineError:
            self.ended = True  # nothing more is waited for
            raise
        self.ended, self.size = True, len(whole)
        return whole

    async def _in_parts(self) -> bytes:
        parts = []
        async for part in self._transport.parts():
            parts.append(part)
            self.size += len(part)
            if self.size > self.limits.body:
                raise self._too_long(self.size)
        return b"".join(parts)

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
        with suppress(TimeoutError, InvalidArgumentError):
            async with asyncio.timeout(DRAIN_SECONDS):
                async for part in self._transport.parts():
                    left -= len(part)
                    if left <= 0:
                        return
                self.ended = True

    async def answer(self, reply: Reply) -> None:
        """Send the answer."""
        headers = [
            ("content-type", reply.form),
            ("x-request-id", self.id),
            *(
                (name, value)
                for name, values in reply.headers.items()
                for value in ((values,) if isinstance(values, str) else values)
            ),
        ]
        self.sent = reply.status
        await self._transport.send(reply.status, headers, reply.body)
