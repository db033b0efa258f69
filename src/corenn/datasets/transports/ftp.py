"""FTP by the standard library: passive, binary, with REST."""

from __future__ import annotations

import calendar
import ftplib
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from urllib.parse import unquote, urlsplit

from . import CHUNK_BYTES, BrokenOffError, Known, Offer, UnavailableError

NOT_UNDERSTOOD = ("500", "501", "502", "503", "504")


@contextmanager
def open_remote(url: str, start: int, stop: int | None, _known: Known | None, timeout: float) -> Iterator[Offer]:
    """See transports.open_remote. FTP has no way to ask for the end of a range: the connection is closed there."""
    ftp = ftplib.FTP(timeout=timeout)
    try:
        with _translated():
            path = _connected(ftp, url)
            known = Known(_size(ftp, path), modified=_modified(ftp, path))
            connection, at = _retrieve(ftp, path, start)
        with closing(connection):
            left = None if stop is None else stop - at
            yield Offer(known, at, True, _chunks(ftp, connection, left))
    finally:
        ftp.close()


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except ftplib.error_perm as error:
        raise UnavailableError(f"FTP {error}") from error
    except ftplib.Error as error:
        raise BrokenOffError(f"FTP {error}") from error
    except TimeoutError as error:
        raise BrokenOffError("no answer in time") from error
    except (OSError, EOFError) as error:
        raise BrokenOffError(str(error) or "the FTP connection was lost") from error
    except ValueError as error:
        raise UnavailableError(str(error)) from error


def _connected(ftp: ftplib.FTP, url: str) -> str:
    """Log in, and return the path of the file."""
    parts = urlsplit(url)
    ftp.connect(parts.hostname or "", parts.port or ftplib.FTP_PORT)
    ftp.login(unquote(parts.username or ""), unquote(parts.password or ""))
    ftp.voidcmd("TYPE I")
    return unquote(parts.path.removeprefix("/"))


def _size(ftp: ftplib.FTP, path: str) -> int | None:
    try:
        return ftp.size(path)
    except ftplib.error_perm as error:
        if str(error)[:3] in NOT_UNDERSTOOD:
            return None
        raise


def _modified(ftp: ftplib.FTP, path: str) -> int | None:
    """The time that MDTM tells, in seconds since 1970; None where the server does not tell it."""
    try:
        answer = ftp.voidcmd(f"MDTM {path}")
        return calendar.timegm(time.strptime(answer[4:18], "%Y%m%d%H%M%S"))
    except (ftplib.error_perm, ValueError):
        return None


def _retrieve(ftp: ftplib.FTP, path: str, start: int) -> tuple[socket.socket, int]:
    """The connection that the bytes come from, and the position of the first one."""
    try:
        connection, _ = ftp.ntransfercmd(f"RETR {path}", start or None)
    except ftplib.error_perm as error:
        if not start or str(error)[:3] not in NOT_UNDERSTOOD:
            raise
        connection, _ = ftp.ntransfercmd(f"RETR {path}")
        return connection, 0
    return connection, start


def _chunks(ftp: ftplib.FTP, connection: socket.socket, left: int | None) -> Iterator[bytes]:
    """The bytes; at the end of the file, the server must say that this is the end."""
    while left is None or left > 0:
        with _translated():
            chunk = connection.recv(CHUNK_BYTES if left is None else min(left, CHUNK_BYTES))
            if not chunk:
                connection.close()
                ftp.voidresp()
                return
        yield chunk
        left = None if left is None else left - len(chunk)
