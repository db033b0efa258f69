"""Hundreds of small databases are made here: in memory where there is a file system for that, since no test of these
depends on the speed or the virtues of a disk.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.operations import State, make_bases

IN_MEMORY = Path("/dev/shm")
Bases = dict[str, tuple[Path, dict[str, State]]]


def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="corenn-faults-", dir=IN_MEMORY if IN_MEMORY.is_dir() else None))


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder to work in."""
    folder = _folder()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def bases() -> Iterator[Bases]:
    """Databases to work on, by durability: a folder of them, and what is in each."""
    made = {}
    for durability in ("os", "sync"):
        folder = _folder()
        made[durability] = (folder, make_bases(folder, durability))
    yield made
    for folder, _ in made.values():
        shutil.rmtree(folder, ignore_errors=True)
