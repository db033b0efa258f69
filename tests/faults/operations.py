"""Small databases, operations on them, and what must be there afterwards, by a dictionary."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from corenn import CoreNN
from corenn.errors import CoreNNError, CorruptionError

DIM = 8
Vector = NDArray[np.float32]
State = dict[Any, tuple[Vector, Any]]


def key(number: int) -> str | int:
    return number if number % 2 else f"key {number}"


def vector(number: int, version: int = 0) -> Vector:
    return np.random.default_rng([number, version]).normal(size=DIM).astype(np.float32)


def some(numbers: Iterable[int], version: int = 0, padding: int = 0) -> tuple[list[Any], Vector, list[Any]]:
    """Keys, vectors and payloads."""
    payloads = [None if n % 3 == 0 else {"n": n, "version": version, "x": "x" * padding} for n in numbers]
    return [key(n) for n in numbers], np.array([vector(n, version) for n in numbers]), payloads


def put(state: State, keys: list[Any], vectors: Vector, payloads: list[Any]) -> None:
    """What insert and upsert do, to a dictionary."""
    for name, row, payload in zip(keys, vectors, payloads, strict=True):
        state[name] = (row, payload)


@dataclass(frozen=True, slots=True)
class Operation:
    """run: on an open database. apply: the same to a dictionary. base: which database it is run on."""

    run: Callable[[CoreNN], object]
    apply: Callable[[State], object]
    base: str = "some"


def _delete(state: State) -> None:
    for n in range(0, 30, 2):
        state.pop(key(n), None)


def _set(state: State) -> None:
    for n in range(6, 25):
        state[key(n)] = (state[key(n)][0], {"set": n})


def _nothing(state: State) -> None:
    """What leaves the rows alone."""


OPERATIONS = {
    "insert": Operation(lambda db: db.insert(*some(range(40, 70))), lambda s: put(s, *some(range(40, 70)))),
    "first insert": Operation(lambda db: db.insert(*some(range(40))), lambda s: put(s, *some(range(40))), base="empty"),
    "upsert": Operation(lambda db: db.upsert(*some(range(20, 60), 1)), lambda s: put(s, *some(range(20, 60), 1))),
    "delete": Operation(lambda db: db.delete([key(n) for n in range(0, 30, 2)]), _delete),
    "set_payload": Operation(
        lambda db: db.set_payload([key(n) for n in range(6, 25)], [{"set": n} for n in range(6, 25)]), _set
    ),
    "large insert": Operation(
        lambda db: db.insert(*some(range(40, 90), 0, 100_000)), lambda s: put(s, *some(range(40, 90), 0, 100_000))
    ),
    "configure": Operation(lambda db: db.configure(query_search_list_cap=200), _nothing),
    "checkpoint": Operation(lambda db: db.checkpoint(), _nothing, base="dirty"),
    "close": Operation(lambda db: db.close(), _nothing, base="dirty"),
    "verify": Operation(lambda db: db.verify(), _nothing),
    "repair": Operation(lambda db: db.repair(), _nothing, base="damaged"),
}


def make_bases(folder: Path, durability: str) -> dict[str, State]:
    """Write the databases `folder`/empty, some, dirty and damaged; returns what is in them.

    dirty: rows since the last checkpoint, and killed. damaged: edges lost.
    """
    CoreNN.create(folder / "empty", dim=DIM, metric="l2", durability=durability).close()
    rows: State = {}
    with CoreNN.create(folder / "some", dim=DIM, metric="l2", durability=durability) as db:
        db.insert(*some(range(40)))
        put(rows, *some(range(40)))
        db.delete([key(n) for n in range(0, 10, 5)])
        for n in range(0, 10, 5):
            del rows[key(n)]
    shutil.copytree(folder / "some", folder / "damaged")
    with (folder / "damaged" / "edges.slab").open("r+b") as slab:
        slab.seek(4096 + 800)
        slab.write(b"\xff" * 800)
    more = dict(rows)
    shutil.copytree(folder / "some", folder / "work")
    with CoreNN.open(folder / "work") as db:
        db.upsert(*some(range(30, 50), 2))
        put(more, *some(range(30, 50), 2))
        db.delete([key(11), key(12)])
        del more[key(11)], more[key(12)]
        shutil.copytree(folder / "work", folder / "dirty")
    shutil.rmtree(folder / "work")
    return {"empty": {}, "some": rows, "damaged": dict(rows), "dirty": more}


def photographed(path: Path, target: Path) -> Path:
    """A copy of an open database as it is at this instant, between two of its own calls.

    RocksDB's threads go on: its tables, which never change, are linked before and after what names them is copied.
    Where a log was deleted meanwhile, what names the table that has its rows may be an older one: all is copied again.
    """
    ignored = shutil.ignore_patterns("*.sst", "*.dbtmp", "LOG*")
    for last in (False, False, True):
        target.mkdir(parents=True)
        _link_tables(path, target)
        try:
            shutil.copytree(path, target, ignore=ignored, dirs_exist_ok=True)
        except shutil.Error:
            if last:
                raise
            shutil.rmtree(target)
            continue
        _link_tables(path, target)
        break
    return target


def _link_tables(path: Path, target: Path) -> None:
    for table in path.rglob("*.sst"):
        there = target / table.relative_to(path)
        there.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError, FileExistsError):  # nobody names it any more, or it is there
            os.link(table, there)


def differs(db: CoreNN, state: State) -> str | None:
    """How a database differs from a dictionary, by all that reads it."""
    if set(db.keys()) != set(state) or len(db) != len(state):
        return f"{len(db)} rows, keys {sorted(map(str, set(db.keys()) ^ set(state)))[:6]}"
    for name, record in zip(state, db.get(list(state)), strict=True):
        row, payload = state[name]
        if record is None or not np.array_equal(record.vector, row):
            return f"{name!r} has another vector: {record}"
        if record.payload != payload:
            return f"{name!r} has the payload {str(record.payload)[:60]}, not {str(payload)[:60]}"
    for name in list(state)[:3]:
        hits = db.query(state[name][0], k=3, with_payloads=True)
        if hits[0].key != name or hits[0].payload != state[name][1] or len(hits) != min(3, len(state)):
            return f"{name!r} is not found by its vector: {hits.keys}"
    return None


def served_rightly(db: CoreNN, state: State) -> list[Any]:
    """That no read gives a wrong answer. Returns the keys that are refused as damaged."""
    refused = []
    for name, (row, payload) in state.items():
        try:
            (record,) = db.get([name])
        except CorruptionError:
            refused.append(name)
            continue
        except CoreNNError as error:
            raise AssertionError(f"{name!r}: {error!r}") from error
        assert record is not None, f"{name!r} is gone without a word"
        assert np.array_equal(record.vector, row), f"{name!r} has another vector"
        assert record.payload == payload, f"{name!r} has another payload"
    return refused


def reopened(path: Path, before: State, after: State) -> State:
    """Open what is on the disk: it must be one of the two states, sound, and take writes. Returns which."""
    with CoreNN.open(path) as db:
        found = after if differs(db, after) is None else before
        assert (wrong := differs(db, found)) is None, wrong
        report = db.verify()
        assert report.ok or report.problems[0].part == "edges", report
        db.upsert(*some(range(100, 103)))
        grown = dict(found)
        put(grown, *some(range(100, 103)))
        assert (wrong := differs(db, grown)) is None, wrong
    with suppress(CoreNNError):
        shutil.rmtree(path)
    return found
