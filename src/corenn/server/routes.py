"""Every route, in one table: what it takes and gives, and who may use it. The router, the check of rights and the
OpenAPI document are made of it.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple

from .. import wire
from . import operations, pages
from .visit import Visit


class Reach(Enum):
    """What a route is about, and so whose key opens it."""

    OPEN = "nothing that needs a key"
    ANY = "nothing of any collection, or what the key may see of all"
    COLLECTION = "one collection"
    SERVER = "the server as a whole"


class Entrance(NamedTuple):
    """One route.

    does: an operation (service, visit, entry, call) if it opens a collection, else a page (service, visit, call).
    takes: the type of the body, None for no body. gives: the type of the answer, or its media types. writes: whether it
    changes anything. binary: whether bodies, or answers, may have the binary form. long: whether it takes as long as a
    job may. default: whether it goes to the default collection.
    """

    method: str
    path: str
    does: Callable[..., Any]
    takes: type[Any] | None
    gives: type[Any] | str
    reach: Reach = Reach.COLLECTION
    opens: bool = False
    writes: bool = False
    binary: str = ""
    long: bool = False
    default: bool = False

    @property
    def name(self) -> str:
        """The name of its operation."""
        return self.does.__name__

    def admit(self, visit: Visit) -> None:
        """Raises: AccessError: if the key that was sent is not for this."""
        if self.reach is Reach.COLLECTION:
            visit.holder.require(visit.collection, write=self.writes)
        elif self.reach is Reach.SERVER:
            visit.holder.require(None, write=self.writes)
        elif self.writes:
            visit.holder.require_writing()


def _operation(
    does: Callable[..., Any], takes: type[Any], gives: type[Any], *, writes: bool = False, binary: str = "",
    long: bool = False,
) -> Entrance:  # fmt: skip
    path = f"/v1/collections/{{name}}/{does.__name__}"
    return Entrance("POST", path, does, takes, gives, opens=True, writes=writes, binary=binary, long=long)


ROUTES: tuple[Entrance, ...] = (
    _operation(operations.query, wire.QueryRequest, wire.Results, binary="takes"),
    _operation(operations.insert, wire.InsertRequest, wire.Done, writes=True, binary="takes"),
    _operation(operations.upsert, wire.InsertRequest, wire.Done, writes=True, binary="takes"),
    _operation(operations.set_payload, wire.PayloadRequest, wire.Done, writes=True),
    _operation(operations.delete, wire.DeleteRequest, wire.Deleted, writes=True),
    _operation(operations.get, wire.GetRequest, wire.Records, binary="gives"),
    _operation(operations.scroll, wire.ScrollRequest, wire.Records, binary="gives"),
    _operation(operations.sample, wire.SampleRequest, wire.Records, binary="gives"),
    _operation(operations.map, wire.SampleRequest, wire.Map),
    _operation(operations.count, wire.CountRequest, wire.Count),
    _operation(operations.facets, wire.FacetsRequest, wire.Facets),
    _operation(operations.recall, wire.RecallRequest, wire.RecallResult, long=True),
    _operation(operations.recall_curve, wire.RecallRequest, wire.Curve, long=True),
    _operation(operations.snapshot, wire.SnapshotRequest, wire.Copy, writes=True, long=True),
    _operation(operations.compact, wire.Nothing, wire.Done, writes=True, long=True),
    _operation(operations.checkpoint, wire.Nothing, wire.Done, writes=True, long=True),
    Entrance("GET", "/v1/rights", pages.rights, None, wire.Rights, Reach.ANY),
    Entrance("GET", "/v1/collections", pages.list_collections, None, wire.Collections, Reach.ANY),
    Entrance("POST", "/v1/collections", pages.create, wire.CreateRequest, wire.Created, Reach.ANY, writes=True),
    Entrance("GET", "/v1/collections/{name}", operations.describe, None, wire.State, opens=True),
    Entrance("DELETE", "/v1/collections/{name}", pages.drop, None, wire.Done, writes=True),
    Entrance("GET", "/healthz", pages.healthz, None, wire.Health, Reach.OPEN),
    Entrance("GET", "/readyz", pages.readyz, None, wire.Health, Reach.OPEN),
    Entrance("GET", "/metrics", pages.metrics, None, "text/plain", Reach.SERVER),
    Entrance("GET", "/console", pages.console, None, "text/html", Reach.ANY),
    Entrance("GET", "/console/{file}", pages.console_file, None, "text/javascript, text/css, image/svg+xml", Reach.ANY),
    Entrance("GET", "/openapi.json", pages.openapi, None, "application/json", Reach.ANY),
    Entrance(
        "POST", "/insert", operations.legacy_insert, wire.LegacyInsert, wire.Done, opens=True, writes=True, default=True
    ),
    Entrance("POST", "/query", operations.legacy_query, wire.LegacyQuery, wire.LegacyResults, opens=True, default=True),
)
