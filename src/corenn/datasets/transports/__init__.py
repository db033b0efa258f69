"""How files come from their addresses: one module per protocol, found by the scheme of the URL.

A transport is a module with one function, a context manager:

    open_remote(url, start, stop, known, timeout) -> Offer

It asks for bytes start to stop - 1 of the file (to its end if stop is None) and raises UnavailableError or
BrokenOffError. The offer may begin elsewhere than asked: at 0, if the server does not serve ranges or the file is no
longer the known one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from urllib.parse import urlsplit, urlunsplit

__all__ = ["CHUNK_BYTES", "BrokenOffError", "Known", "Offer", "UnavailableError", "open_remote", "shown"]

CHUNK_BYTES = 1 << 18
_MODULES = {"https": "http", "http": "http", "ftp": "ftp", "file": "file"}


class UnavailableError(Exception):
    """This address does not have the file, and asking again will not change that."""


class BrokenOffError(Exception):
    """The transfer broke off or could not begin; asking again may help.

    wait: seconds that the server asks to be left alone, 0 if it does not say.
    """

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True, slots=True)
class Known:
    """What tells one version of a file from another.

    size: bytes of the whole file, None if unknown. etag: a strong one, empty if there is none. modified: seconds since
    1970, None if unknown.
    """

    size: int | None = None
    etag: str = ""
    modified: int | None = None

    def continues(self, other: Known, same_address: bool) -> bool:
        """True if bytes of a file known like this may be joined with bytes of one known as `other`.

        Sizes must agree, and whatever validators both have; at another address there must be at least one.
        """
        if self.size is None or self.size != other.size:
            return False
        etags = bool(self.etag and other.etag)
        times = self.modified is not None and other.modified is not None
        if etags and self.etag != other.etag:
            return False
        if times and self.modified != other.modified:
            return False
        return same_address or etags or times


@dataclass(frozen=True, slots=True)
class Offer:
    """The body that a server has begun to send.

    known: of the whole file. start: position of the first byte in the file. framed: False if the end of the body cannot
    be told from a connection that was lost. chunks: the bytes; raises BrokenOffError where they break off.
    """

    known: Known
    start: int
    framed: bool
    chunks: Iterator[bytes]


def open_remote(
    url: str, start: int, stop: int | None, known: Known | None, timeout: float
) -> AbstractContextManager[Offer]:
    """Ask `url` for bytes from `start` to before `stop`.

    Args:
        url: http, https, ftp or file.
        start: position in the file; more than 0 to go on with a file that is `known`.
        stop: position behind the last byte wanted, None for the end of the file.
        known: of the file that the earlier bytes belong to.
        timeout: seconds without a byte after which the connection counts as lost.

    Raises:
        UnavailableError: if the address has no such file or is not one.
        BrokenOffError: if it cannot be reached, or broke off.
    """
    module = _MODULES.get(urlsplit(url).scheme.lower())
    if module is None:
        raise UnavailableError(f"knows no way to fetch {urlsplit(url).scheme or 'an address without a scheme'}")
    opened: AbstractContextManager[Offer] = import_module(f".{module}", __package__).open_remote(
        url, start, stop, known, timeout
    )
    return opened


def shown(url: str) -> str:
    """`url` as it may be printed and kept: without user, password, query or fragment, where secrets stand.

    Of what is no address at all, nothing is shown that stands before an "@".
    """
    try:
        parts = urlsplit(url)
        _ = parts.port  # of a password with a slash in it, the beginning would pass for the host
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    except ValueError:
        return url.partition("?")[0].rpartition("@")[2]
