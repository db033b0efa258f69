"""The application: its routes, and the way from a request to an operation and back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import DeadlineError, InvalidArgumentError
from ..wire import BINARY
from .calls import Call, as_call, reply
from .guard import Guard
from .log import Journal
from .routes import ROUTES, Entrance
from .service import Options, Service
from .visit import Reply, Visit

_NOTHING = Call(None)


class Application:
    """One root over HTTP, as an ASGI application. It opens the root when it is started, and closes it at the end."""

    def __init__(self, path: Path, options: Options | None = None) -> None:
        options = options or Options()
        self.failure: Exception | None = None  # for which it has not started
        self.service = Service(path, options)
        served = [each for each in ROUTES if options.collection is not None or not each.default]
        routes = [
            Route(path, _Endpoint(self.service, here), methods=[each.method for each in here])
            for path in dict.fromkeys(each.path for each in served)
            if (here := [each for each in served if each.path == path])
        ]
        journal = Journal(options.slow_query, every=options.log_requests)
        router = Router(routes, redirect_slashes=False, lifespan=self._life)
        self._guard = Guard(
            router, options.keys, options.limits, self.service.metrics, journal, lambda: self.service.closing,
            local=options.local and not options.keys,
        )  # fmt: skip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or the life of the server."""
        await self._guard(scope, receive, send)

    @asynccontextmanager
    async def _life(self, _: ASGIApp) -> AsyncIterator[None]:
        try:
            await self.service.start()
        except Exception as error:
            self.failure = error
            raise
        try:
            yield
        finally:
            await self.service.stop(lambda: self._guard.inside)


class _Endpoint:
    """One path, from a request that was let in to its answer."""

    def __init__(self, service: Service, entrances: Sequence[Entrance]) -> None:
        self._service = service
        self._entrances = {each.method: each for each in entrances}
        if "GET" in self._entrances:
            self._entrances["HEAD"] = self._entrances["GET"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service, visit, entrance = self._service, scope["visit"], self._entrances[scope["method"]]
        visit.route = entrance.path
        visit.collection = scope["path_params"].get("name") or service.options.collection or ""
        entrance.admit(visit)
        visit.allow(service.limits.job_deadline if entrance.long else service.limits.deadline)
        if entrance.takes is None:
            await visit.answer(await self._done(visit, entrance, _NOTHING))
            return
        with service.holding(visit.length):
            await visit.answer(await self._served(visit, entrance))

    async def _served(self, visit: Visit, entrance: Entrance) -> Reply:
        body = await visit.body()
        work = partial(self._called, visit, entrance, body)
        if not entrance.writes:
            return await work()
        if (key := visit.headers.get("idempotency-key")) is not None:
            work = partial(self._service.replays.once, visit, entrance.path, key, body, work)
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
        call = await as_call(visit, body, entrance.takes, self._service.readers)
        return await self._done(visit, entrance, call)

    async def _done(self, visit: Visit, entrance: Entrance, call: Call) -> Reply:
        if entrance.opens:
            async with self._service.shelf.using(visit.collection) as entry:
                answer = await entrance.does(self._service, visit, entry, call)
        else:
            answer = await entrance.does(self._service, visit, call)
        return answer if isinstance(answer, Reply) else reply(visit, answer)
