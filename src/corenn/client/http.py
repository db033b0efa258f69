"""What both clients ask of httpx."""

from __future__ import annotations

from typing import Any

import httpx

from ..errors import InvalidArgumentError
from .answers import Answer
from .calls import Call

CONNECT_SECONDS = 5.0


def options(url: str, api_key: str | None, timeout: float, verify: Any) -> dict[str, Any]:
    """Arguments of an httpx client.

    Raises:
        InvalidArgumentError: for a URL that is none of a server.
    """
    if not isinstance(url, str) or not url.startswith(("http://", "https://")):
        raise InvalidArgumentError(f"url={url!r}: give that of the server, such as 'http://127.0.0.1:4224'")
    headers = {"user-agent": "corenn"}
    if api_key is not None:
        headers["authorization"] = f"Bearer {api_key}"
    return {
        "base_url": url, "headers": headers, "verify": verify, "trust_env": False,
        "timeout": httpx.Timeout(timeout + CONNECT_SECONDS, connect=CONNECT_SECONDS),
    }  # fmt: skip


def request(call: Call[Any], timeout: float) -> dict[str, Any]:
    """Arguments of a request. The server is told how long its client waits."""
    asked = {"method": call.method, "url": call.path, "content": call.body}
    if call.long:
        return {**asked, "headers": call.headers, "timeout": httpx.Timeout(None, connect=CONNECT_SECONDS)}
    return {**asked, "headers": {**call.headers, "corenn-timeout": f"{timeout:g}"}}


def as_answer(response: httpx.Response) -> Answer:
    """What came back."""
    return Answer(response.status_code, response.headers, response.content)
