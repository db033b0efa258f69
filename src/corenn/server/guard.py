"""The one way in: every request passes here before any route sees it, and every error leaves here as an answer.

Nothing but `/healthz` and `/readyz` is open to who has no key. There are no exceptions by header, address or method.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable

from ..errors import AccessError, InvalidArgumentError, OverloadedError, ServerError
from ..wire import BINARY, JSON, MSGPACK, ErrorBody, Fault, encode
from .faults import RefusedError, refused, told
from .keys import Keys
from .limits import Limits
from .log import Journal
from .metrics import Metrics
from .traces import Traces
from .transports import Transport
from .visit import Reply, Visit

OPEN = {"/healthz", "/readyz"}
FORMS = {JSON, MSGPACK, BINARY}
# Each in a header of its own: browsers look at the first alone of several in one, and ask for a password for Basic.
CHALLENGES = ('Bearer realm="corenn"', 'Basic realm="corenn", charset="UTF-8"')
_LOCAL = re.compile(r"(localhost|127\.\d+\.\d+\.\d+|\[::1\])(:\d+)?")
SAFE = {
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}


class Guard:
    """Who may come in, how many at a time, and what they are told when something goes wrong."""

    def __init__(
        self, inner: Callable[[Visit], Awaitable[None]], keys: Keys, limits: Limits, metrics: Metrics, journal: Journal,
        closing: Callable[[], bool], *, local: bool,
    ) -> None:  # fmt: skip
        """inner: serves a request that was let in. local: whether only who names this machine as localhost is served:
        without keys, a page that a browser has from elsewhere could ask in its name.
        """
        self._inner, self._keys, self._limits, self._metrics, self._journal = inner, keys, limits, metrics, journal
        self._closing, self._local = closing, local
        self.inside = 0
        self._traces = Traces()

    async def serve(self, transport: Transport) -> None:
        """Serve one request."""
        visit = Visit(transport, self._limits)
        self.inside += 1
        try:
            with self._traces.of(visit):
                await self._served(visit)
        finally:
            self.inside -= 1
            self._metrics.served(visit)
            self._journal.served(visit)

    async def _served(self, visit: Visit) -> None:
        try:
            self._admit(visit)
            await self._inner(visit)
        except Exception as error:  # noqa: BLE001 (whatever it is, it becomes an answer)
            await self._refuse(visit, error)
        except asyncio.CancelledError:
            visit.sent = visit.sent or 499  # whoever asked has gone
            raise

    def _admit(self, visit: Visit) -> None:
        if visit.path in OPEN:
            return
        if self._local and not _LOCAL.fullmatch(visit.headers.get("host", "")):
            raise AccessError(
                f"Host: {visit.headers.get('host', '')[:80]} is not this machine; a server without keys answers to "
                "localhost alone: start it with keys, or with --insecure"
            )
        try:
            visit.holder = self._keys.holder(visit.headers.get("authorization"))
        except AccessError as error:
            raise RefusedError(401, error, {"www-authenticate": CHALLENGES}) from None
        if self._closing():
            raise OverloadedError("the server is shutting down; try again")
        if self.inside > self._limits.requests:
            raise OverloadedError(f"{self.inside - 1:,} requests are being served, as many as this server takes")
        if visit.method not in ("GET", "HEAD", "OPTIONS", "DELETE"):
            self._check_form(visit)
        visit.announce()

    @staticmethod
    def _check_form(visit: Visit) -> None:
        """What changes something comes in a form that no page of another site can make a browser send unasked."""
        form = visit.headers.get("content-type", "").partition(";")[0].strip().lower()
        if form not in FORMS:
            error = InvalidArgumentError(
                f"Content-Type: {form[:80] or 'is missing'}; send one of {', '.join(sorted(FORMS))}"
            )
            raise RefusedError(415, error)
        visit.content = form

    async def _refuse(self, visit: Visit, error: Exception) -> None:
        answer = refused(error)
        if answer is None:
            self._journal.failed(visit, error)
            answer = RefusedError(500, ServerError(f"the server has failed; its log tells more of request {visit.id}"))
        if visit.sent:  # it has begun to answer: the connection is all that is left to break off
            raise error
        if not visit.ended:
            await visit.drain()
        visit.note["error"] = type(answer.error).__name__
        body = ErrorBody(Fault(type(answer.error).__name__, told(answer.error), visit.id))
        await visit.answer(Reply(encode(body), JSON, answer.status, {**SAFE, **answer.headers}))
