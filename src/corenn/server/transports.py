"""How a request comes in and its answer goes out: by ASGI, or by RSGI, which takes less.

Nothing else here knows of either. A server that speaks RSGI, as granian does, uses that; any other one uses ASGI.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Protocol, TypeAlias

from ..errors import InvalidArgumentError

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Headers(Protocol):
    """The headers of a request, by their names in small letters."""

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a header, as text."""

    def keys(self) -> Iterable[str]:
        """The names of all headers."""

    def __contains__(self, key: str) -> bool: ...


class Transport(Protocol):
    """One request. path: without the query, and decoded."""

    method: str
    path: str
    headers: Headers

    async def whole(self) -> bytes:
        """The body, of which it is known how long it is.

        Raises:
            InvalidArgumentError: if the connection is closed before it has come.
        """

    def parts(self) -> AsyncIterator[bytes]:
        """The body, or what is left of it, as it comes."""

    async def send(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        """Send the answer."""


class Asgi:
    """A request by ASGI."""

    __slots__ = ("_receive", "_send", "headers", "method", "path")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: Headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}

    async def whole(self) -> bytes:
        """See `Transport`."""
        return b"".join([part async for part in self.parts()])

    async def parts(self) -> AsyncIterator[bytes]:
        """See `Transport`."""
        more = True
        while more:
            message = await self._receive()
            if message["type"] != "http.request":
                raise _closed()
            yield message.get("body", b"")
            more = message.get("more_body", False)

    async def send(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        """See `Transport`."""
        headers.append(("content-length", str(len(body))))
        told = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers]
        await self._send({"type": "http.response.start", "status": status, "headers": told})
        await self._send({"type": "http.response.body", "body": b"" if self.method == "HEAD" else body})


class Rsgi:
    """A request by RSGI."""

    __slots__ = ("_protocol", "_stream", "headers", "method", "path")

    def __init__(self, scope: Any, protocol: Any) -> None:
        self._protocol = protocol
        self._stream: Any = None
        self.method: str = scope.method
        self.path: str = scope.path
        self.headers: Headers = scope.headers

    async def whole(self) -> bytes:
        """See `Transport`."""
        try:
            body: bytes = await self._protocol()
        except RuntimeError:  # granian's RSGIProtocolClosed, whatever runs this
            raise _closed() from None
        return body

    async def parts(self) -> AsyncIterator[bytes]:
        """See `Transport`. A body that is cut off ends here as if it were whole: each form tells by itself."""
        if self._stream is None:  # there is one, which goes on where it was left
            self._stream = aiter(self._protocol)
        try:
            while True:
                yield await anext(self._stream)
        except StopAsyncIteration:
            return
        except RuntimeError:
            raise _closed() from None

    async def send(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        """See `Transport`."""
        self._protocol.response_bytes(status, headers, body)


def _closed() -> InvalidArgumentError:
    return InvalidArgumentError("the connection was closed before the body had come")
