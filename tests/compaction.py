"""A database to compact, and what must be there afterwards."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from corenn import CoreNN

COUNT, DIM = 1500, 12
Rows: TypeAlias = NDArray[np.float32]


def made_rows() -> Rows:
    """Whole numbers, which all stored types but i8 keep exactly."""
    return np.random.default_rng(11).integers(0, 99, (COUNT, DIM)).astype(np.float32)


def key(number: int) -> str | int:
    return number if number % 2 else f"key {number}"


def payload(number: int) -> dict[str, int] | None:
    return None if number % 7 else {"n": number}


def filled(db: CoreNN, rows: Rows) -> CoreNN:
    """1,500 rows came; two in three are gone, and every fifth of the rest has come again."""
    numbers = range(len(rows))
    for start in range(0, len(rows), 500):
        some = numbers[start : start + 500]
        db.insert([key(n) for n in some], rows[some.start : some.stop], [payload(n) for n in some])
    db.delete([key(n) for n in numbers if n % 3])
    again = [n for n in alive(rows) if n % 5 == 0]
    db.upsert([key(n) for n in again], rows[again], [payload(n) for n in again])
    return db


def alive(rows: Rows) -> list[int]:
    """The numbers of the rows that `filled` leaves, in the order of insertion."""
    left = range(0, len(rows), 3)
    return [n for n in left if n % 5] + [n for n in left if n % 5 == 0]


def check(db: CoreNN, rows: Rows) -> None:
    """What `filled` leaves is there, nothing else, and it is found."""
    numbers = alive(rows)
    keys = [key(n) for n in numbers]
    assert sorted(map(str, db.keys())) == sorted(map(str, keys))
    assert len(db) == len(keys)
    for n, record in zip(numbers, db.get(keys), strict=True):
        assert record is not None
        assert (record.key, record.payload) == (key(n), payload(n))
        assert np.allclose(record.vector, rows[n])
    assert db.get([key(n) for n in range(len(rows)) if n % 3]) == [None] * (len(rows) - len(keys))
    assert np.isclose(db.query(rows[numbers[5]], k=1).distances[0], 0, atol=1e-5)


def files_in(path: Path) -> set[str]:
    """Names in the folder of a database, but for its locks."""
    return {each.name for each in path.iterdir()} - {"LOCK", "readers"}


def bytes_in(path: Path) -> int:
    """Bytes that a folder takes on disk."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with suppress(FileNotFoundError):  # it went just now
                total += (Path(folder) / name).stat().st_blocks * 512
    return total
