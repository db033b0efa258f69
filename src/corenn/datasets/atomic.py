"""Files that appear under their name only when they are whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

_numbers = count()


def temporary(path: Path) -> Path:
    """A hidden name beside `path`, of the same ending, that no other writer uses."""
    return path.with_name(f".{path.stem}.{os.getpid()}-{next(_numbers)}.part{path.suffix}")


def publish(part: Path, path: Path) -> None:
    """Bring `part` to the disk, then give it the name `path`."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name to write to; it becomes `path` when the block ends, and is removed if the block fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = temporary(path)
    try:
        yield part
        publish(part, path)
    finally:
        part.unlink(missing_ok=True)
