"""The application: the way from a request to an operation and back."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import DeadlineError, InvalidArgumentError
from ..wire import BINARY
from .calls import Call, as_call, reply
from .guard import Guard
from .log import Journal
from .patience import Patience
from .router import Router
from .routes import ROUTES, Entrance
from .service import Options, Service
from .transports import Asgi, Receive, Rsgi, Scope, Send
from .visit import Reply, Visit

_NOTHING = Call(None)


class Application:
    """One root over HTTP, for servers that speak RSGI or ASGI: opened by `start`, closed by `drain` and `stop`."""

    def __init__(self, path: Path, options: Options | None = None) -> None:
        options = options or Options()
        self.service = Service(path, options)
        self._router = Router(each for each in ROUTES if options.collection is not None or not each.default)
        self._patience = Patience(options.limits.body_seconds)
        journal = Journal(options.slow_query, every=options.log_requests)
        self._guard = Guard(
            self._served, options.keys, options.limits, self.service.metrics, journal, lambda: self.service.closing,
            local=options.local and not options.keys,
        )  # fmt: skip

    async def start(self) -> None:
        """Open the root.

        Raises: what `Root` raises
        """
        await self.service.start()

    async def drain(self) -> None:
        """Take in nothing more, and finish what is under way."""
        await self.service.drain(lambda: self._guard.inside)

    async def stop(self) -> None:
        """Bring everything to the disk, and close the root."""
        await self.service.stop()

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        """Serve a request by RSGI. Whoever runs the server sees to its life."""
        await self._guard.serve(Rsgi(scope, protocol))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request by ASGI, or the life of the server."""
        if scope["type"] == "http":
            await self._guard.serve(Asgi(scope, receive, send))
        elif scope["type"] == "lifespan":
            await self._live(receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self.start()
        except Exception as error:  # noqa: BLE001 (whatever it is, the server has to be told)
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.drain()
        await self.stop()
        await send({"type": "lifespan.shutdown.complete"})

    # --- a request that was let in ---------------------------------------------------------------------------------

    async def _served(self, visit: Visit) -> None:
        service = self.service
        entrance, name = self._router.find(visit.method, visit.path)
        visit.route, visit.collection = entrance.path, name or service.options.collection or ""
        entrance.admit(visit)
        visit.allow(service.limits.job_deadline if entrance.long else service.limits.deadline)
        if entrance.takes is None:
            await visit.answer(await self._done(visit, entrance, _NOTHING))
            return
        service.hold(visit.length)
        try:
            await visit.answer(await self._answered(visit, entrance))
        finally:
            service.let_go(visit.length)

    async def _answered(self, visit: Visit, entrance: Entrance) -> Reply:
        body = await visit.body(self._patience)
        if not entrance.writes:
            return await self._called(visit, entrance, body)
        work = partial(self._called, visit, entrance, body)
        if (key := visit.headers.get("idempotency-key")) is not None:
            work = partial(self.service.replays.once, visit, entrance.path, key, body, work)
        try:
            async with asyncio.timeout(visit.left):
                return await work()
        except TimeoutError as error:
            if isinstance(error, DeadlineError):
                raise
            raise DeadlineError(
                "the write is not done before the deadline, and may yet be: ask again with the same Idempotency-Key"
            ) from None

    async def _called(self, visit: Visit, entrance: Entrance, body: bytes) -> Reply:
        assert entrance.takes is not None
        if entrance.binary != "takes" and visit.content == BINARY:
            raise InvalidArgumentError(f"{entrance.name} takes no vectors; send application/json")
        call = await as_call(visit, body, entrance.takes, self.service.readers)
        return await self._done(visit, entrance, call)

    async def _done(self, visit: Visit, entrance: Entrance, call: Call) -> Reply:
        if entrance.opens:
            entry = await self.service.shelf.enter(visit.collection)
            try:
                answer = await entrance.does(self.service, visit, entry, call)
            finally:
                entry.leave()
        else:
            answer = await entrance.does(self.service, visit, call)
        return answer if isinstance(answer, Reply) else reply(visit, answer)
