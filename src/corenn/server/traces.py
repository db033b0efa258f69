"""A span for each request, where OpenTelemetry is installed and set up: `opentelemetry-instrument corenn serve …`.

Only its interface is used; where spans go is for whoever sets it up. Without that nothing is done for a request.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

from .visit import Visit

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

_NONE: AbstractContextManager[None] = nullcontext()


class Traces:
    """The spans of one server."""

    def __init__(self) -> None:
        self._tracer = _tracer()

    def of(self, visit: Visit) -> AbstractContextManager[None]:
        """The span of a request, a part of the trace that its headers name."""
        return _NONE if self._tracer is None else _span(self._tracer, visit)


def _tracer() -> Tracer | None:
    with suppress(ImportError):
        from opentelemetry import trace

        if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            return trace.get_tracer("corenn.server")
    return None


@contextmanager
def _span(tracer: Tracer, visit: Visit) -> Iterator[None]:
    from opentelemetry import propagate
    from opentelemetry.trace import SpanKind, StatusCode

    parent = propagate.extract(visit.headers)
    with tracer.start_as_current_span(visit.method, parent, SpanKind.SERVER, end_on_exit=True) as span:
        try:
            yield
        finally:
            span.update_name(f"{visit.method} {visit.route}" if visit.route else visit.method)
            span.set_attributes(_attributes(visit))
            if visit.sent >= 500:
                span.set_status(StatusCode.ERROR)


def _attributes(visit: Visit) -> dict[str, Any]:
    """By the names that OpenTelemetry has for servers and for databases."""
    found: dict[str, Any] = {
        "http.request.method": visit.method, "http.route": visit.route, "http.response.status_code": visit.sent,
        "db.system.name": "corenn", "corenn.request": visit.id,
    }  # fmt: skip
    if visit.collection:
        found["db.collection.name"] = visit.collection
        found["db.operation.name"] = visit.route.rpartition("/")[2].strip("{}")
    if error := visit.note.get("error"):
        found["error.type"] = error
    found.update((f"corenn.query.{name}", value) for name, value in visit.note.items() if name != "error")
    return found
