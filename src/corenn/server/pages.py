"""What can be asked of the server itself."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from typing import Any

from .. import wire
from ..config import Settings
from ..errors import InvalidArgumentError, OverloadedError
from .assets import FILES, PAGE, asset
from .calls import Call, fields_of
from .faults import RefusedError
from .metrics import TEXT
from .service import Service
from .visit import Reply, Visit


async def list_collections(service: Service, visit: Visit, call: Call) -> Any:
    """The names of all collections that the key may see."""
    return wire.Collections([name for name in await service.shelf.names() if visit.holder.sees(name)])


async def rights(service: Service, visit: Visit, call: Call) -> Any:
    """What the key that was sent may do; on a server without keys, everything."""
    holder = visit.holder
    return wire.Rights(holder.writes, None if holder.collections is None else sorted(holder.collections))


async def create(service: Service, visit: Visit, call: Call) -> Any:
    """Make a collection."""
    asked: wire.CreateRequest = call.arguments
    visit.collection = asked.name
    visit.holder.require(asked.name, write=True)
    chosen = {"dim": asked.dim, "metric": asked.metric, "dtype": asked.dtype, "durability": asked.durability}
    settings = Settings.from_dict({**chosen, **asked.settings})
    service.limits.within("dim", settings.dim, "dim")
    made = await service.shelf.create(asked.name, lambda: service.shelf.root.create(asked.name, **settings.as_dict()))
    return wire.Created(asked.name, fields_of(made.settings))


async def drop(service: Service, visit: Visit, call: Call) -> Any:
    """Remove a collection with all that is in it, for good."""
    await service.shelf.drop(visit.collection)
    return wire.Done()


async def healthz(service: Service, visit: Visit, call: Call) -> Any:
    """Whether the server is alive."""
    return wire.Health("alive", version("corenn"))


async def readyz(service: Service, visit: Visit, call: Call) -> Any:
    """Whether the server takes requests."""
    if service.closing or not service.started:
        raise OverloadedError("the server is not ready")
    return wire.Health("ready", version("corenn"))


async def metrics(service: Service, visit: Visit, call: Call) -> Any:
    """Figures for Prometheus."""
    return Reply(await service.figures(), TEXT)


async def console(service: Service, visit: Visit, call: Call) -> Any:
    """A page to look at collections with, for a browser."""
    return asset(PAGE)


async def console_file(service: Service, visit: Visit, call: Call) -> Any:
    """A part of that page."""
    name = visit.path.rpartition("/")[2]
    if name not in FILES:
        raise RefusedError(404, InvalidArgumentError(f"the console has no file {name[:80]!r}"))
    return asset(name)


async def openapi(service: Service, visit: Visit, call: Call) -> Any:
    """This document."""
    return Reply(_document())


@cache
def _document() -> bytes:
    from .openapi import document_text

    return document_text().encode()
