"""HTTP and HTTPS by httpx: ranges, validators, redirects."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.utils import formatdate, parsedate_to_datetime
from functools import cache
from typing import TYPE_CHECKING, NoReturn

from . import BrokenOffError, Known, Offer, UnavailableError

if TYPE_CHECKING:
    import httpx

MAX_REDIRECTS = 8
MAX_WAIT = 60.0
TRANSIENT = frozenset((408, 425, 429, 500, 502, 503, 504))


@contextmanager
def open_remote(url: str, start: int, stop: int | None, known: Known | None, timeout: float) -> Iterator[Offer]:
    """See transports.open_remote."""
    import httpx

    try:
        with (
            httpx.Client(
                verify=_certificates(), follow_redirects=True, max_redirects=MAX_REDIRECTS, timeout=timeout
            ) as client,
            client.stream("GET", url, headers=_asked(start, stop, known)) as response,
        ):
            yield _offer(response, start)
    except (httpx.TooManyRedirects, httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
        raise UnavailableError(_told(error)) from error
    except httpx.TimeoutException as error:
        raise BrokenOffError(f"no answer within {timeout:g} s") from error
    except httpx.TransportError as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise UnavailableError(_told(error)) from error
        raise BrokenOffError(_told(error)) from error


@cache
def _certificates() -> ssl.SSLContext:
    """Reading the certificates of all authorities takes longer than a small file does."""
    import httpx

    return httpx.create_ssl_context()


def _told(error: Exception) -> str:
    return str(error) or type(error).__name__


def _asked(start: int, stop: int | None, known: Known | None) -> Mapping[str, str]:
    headers = {"Accept-Encoding": "identity", "User-Agent": "corenn"}
    if start or stop is not None:
        headers["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
    if start and known is not None:
        if known.etag:
            headers["If-Range"] = known.etag
        elif known.modified is not None:
            headers["If-Range"] = formatdate(known.modified, usegmt=True)
    return headers


def _offer(response: httpx.Response, start: int) -> Offer:
    _refuse(response)
    headers = response.headers
    length = _number(headers.get("content-length", ""))
    if response.status_code == 416:
        return _past_the_end(headers, start)
    framed = length is not None or "chunked" in headers.get("transfer-encoding", "").lower()
    at, size = (0, length) if response.status_code == 200 else _range(headers.get("content-range", ""), start)
    # As they come: chunks of a fixed size would withhold the last bytes before a drop.
    return Offer(_known(headers, size), at, framed, response.iter_raw())


def _refuse(response: httpx.Response) -> None:
    status = response.status_code
    if status in TRANSIENT:
        raise BrokenOffError(_status(response), _wait(response.headers.get("retry-after", "")))
    if status not in (200, 206, 416):
        raise UnavailableError(_status(response))
    kind = response.headers.get("content-type", "")
    if status != 416 and kind.lower().startswith("text/html"):
        raise UnavailableError("answers with a web page, not with the file")
    encoding = response.headers.get("content-encoding", "identity").lower()
    if encoding not in ("", "identity") and not response.url.path.endswith(".gz"):
        raise UnavailableError(f"sends the file encoded as {encoding}, although asked not to")


def _status(response: httpx.Response) -> str:
    return f"HTTP {response.status_code} {response.reason_phrase}".strip()


def _wait(value: str) -> float:
    """Seconds of a Retry-After that gives them; one that gives a date is left to the usual pauses."""
    seconds = _number(value)
    return 0.0 if seconds is None else min(float(seconds), MAX_WAIT)


def _number(value: str) -> int | None:
    return int(value) if value.isascii() and value.isdecimal() else None


def _range(value: str, start: int) -> tuple[int, int | None]:
    """First byte and size of the whole file, as a partial answer states them."""
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", value.strip())
    if found is None:
        _nonsense(value)
    first, last = int(found[1]), int(found[2])
    size = _number(found[3])
    if first != start or last < first or (size is not None and last >= size):
        _nonsense(value)
    return first, size


def _nonsense(value: str) -> NoReturn:
    raise UnavailableError(f"answers another range than the one asked for: {value or 'none stated'}")


def _past_the_end(headers: Mapping[str, str], start: int) -> Offer:
    """Nothing is left to send, if the file ends just there; else it is not the file that was begun."""
    found = re.fullmatch(r"bytes \*/(\d+)", headers.get("content-range", "").strip())
    size = int(found[1]) if found else None
    if start == 0:
        raise UnavailableError("HTTP 416: the file is shorter than the part of it that is wanted")
    return Offer(_known(headers, size), start, True, iter(()))


def _known(headers: Mapping[str, str], size: int | None) -> Known:
    etag = headers.get("etag", "").strip()
    return Known(size, "" if etag.startswith("W/") else etag, _seconds(headers.get("last-modified", "")))


def _seconds(date: str) -> int | None:
    try:
        return int(parsedate_to_datetime(date).timestamp())
    except (ValueError, TypeError, OverflowError):
        return None
