"""What both clients ask of httpx: its transports alone. Requests are put together here; cookies, redirects and whatever
else its clients look after for each request takes its time.
"""

from __future__ import annotations

import os
import ssl
from functools import cached_property, lru_cache
from typing import Any

import httpx

from ..errors import InvalidArgumentError
from .answers import Answer
from .calls import Call

CONNECT_SECONDS = 5.0


class Server:
    """Where calls go, and what goes with each of them."""

    def __init__(self, url: str, api_key: str | None, timeout: float) -> None:
        """
        Raises:
            InvalidArgumentError: for a URL that is none of a server, or a timeout that is none.
        """
        if not isinstance(url, str) or not url.startswith(("http://", "https://")):
            raise InvalidArgumentError(f"url={url!r}: give that of the server, such as 'http://127.0.0.1:4224'")
        if not isinstance(timeout, (int, float)) or not 0 < timeout < 1e9:
            raise InvalidArgumentError(f"timeout={timeout!r}: give seconds, above 0")
        self.url, self._timeout = url, timeout
        self._headers = {"user-agent": "corenn", "connection": "keep-alive"}
        if api_key is not None:
            self._headers["authorization"] = f"Bearer {api_key}"
        self._at = lru_cache(maxsize=1024)(lambda path: httpx.URL(url.rstrip("/") + path))

    @cached_property
    def _waits(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """How long is waited for usual calls, and for long ones."""
        usual = httpx.Timeout(self._timeout + CONNECT_SECONDS, connect=CONNECT_SECONDS)
        return {"timeout": usual.as_dict()}, {"timeout": httpx.Timeout(None, connect=CONNECT_SECONDS).as_dict()}

    def request(self, call: Call[Any]) -> httpx.Request:
        """A call as httpx sends it. The server is told how long its client waits."""
        headers = {**self._headers, **call.headers}
        if not call.long:
            headers["corenn-timeout"] = f"{self._timeout:g}"
        return httpx.Request(
            call.method, self._at(call.path), headers=headers, content=call.body, extensions=self._waits[call.long]
        )


def as_trust(verify: Any) -> Any:
    """Which certificates are trusted, as httpx takes it: those of a file in PEM form, where a path is given.

    Raises:
        InvalidArgumentError: for a file that holds none.
    """
    if not isinstance(verify, (str, os.PathLike)):
        return verify
    try:
        return ssl.create_default_context(cafile=verify)
    except OSError as error:
        raise InvalidArgumentError(f"verify={os.fspath(verify)!r} holds no certificate in PEM form: {error}") from error


def as_answer(response: httpx.Response) -> Answer:
    """What came back."""
    return Answer(response.status_code, response.headers, response.content)
