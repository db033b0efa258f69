"""Files of this machine, or of one whose folders are mounted here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit
from urllib.request import url2pathname

from . import CHUNK_BYTES, BrokenOffError, Known, Offer, UnavailableError


@contextmanager
def open_remote(url: str, start: int, stop: int | None, _known: Known | None, _timeout: float) -> Iterator[Offer]:
    """See transports.open_remote."""
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise UnavailableError(f"file://{parts.netloc}/ is not this machine")
    path = Path(url2pathname(parts.path))
    try:
        if not path.is_file():
            raise UnavailableError(f"{path} is not a file")
        file = path.open("rb")
    except OSError as error:
        raise UnavailableError(f"{path}: {error.strerror}") from error
    with file:
        status = path.stat()
        file.seek(start)
        left = max(0, (status.st_size if stop is None else stop) - start)
        yield Offer(Known(status.st_size, modified=int(status.st_mtime)), start, True, _chunks(file, left))


def _chunks(file: BinaryIO, left: int) -> Iterator[bytes]:
    while left > 0:
        try:
            chunk = file.read(min(left, CHUNK_BYTES))
        except OSError as error:
            raise BrokenOffError(str(error.strerror)) from error
        if not chunk:
            return
        yield chunk
        left -= len(chunk)
