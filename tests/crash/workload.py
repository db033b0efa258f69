"""What a child process writes, as a function of a seed, so that another process can tell what must be there.

Operation n of a thread follows from the plan, n and the keys that are live before it. A log says which operations were
begun and which were acknowledged; replaying it gives the expected state.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from corenn import CoreNN, Record
from tests.oracle import DTYPES, METRICS, distances, recall, rounding, tolerance

Key: TypeAlias = str | int
Rows: TypeAlias = NDArray[np.float32]
CLUSTERS = 24


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that decides what is written.

    batch: most rows of an operation. parts: some operations are too large for one batch of the metadata store.
    cap: live rows per thread above which more is deleted than inserted.
    """

    seed: int
    dim: int = 16
    metric: str = "l2"
    dtype: str = "f32"
    durability: str = "os"
    max_edges: int = 32
    threads: int = 1
    batch: int = 100
    parts: bool = False
    cap: int = 20_000

    @classmethod
    def random(cls, rng: np.random.Generator, dtypes: Sequence[str] = DTYPES) -> Plan:
        """Settings of one database, small enough to verify in a moment."""
        return cls(
            seed=int(rng.integers(2**31)),
            dim=int(rng.choice([2, 8, 31, 64])),
            metric=str(rng.choice(METRICS)),
            dtype=str(rng.choice(dtypes)),
            durability=str(rng.choice(["os", "os", "sync"])),
            max_edges=int(rng.choice([16, 32])),
            threads=int(rng.choice([1, 1, 3])),
            batch=int(rng.choice([4, 40, 300, 1000])),
            parts=bool(rng.random() < 0.3),
        )

    def save(self, folder: Path) -> None:
        (folder / "plan.json").write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, folder: Path) -> Plan:
        return cls(**json.loads((folder / "plan.json").read_text()))

    def create(self, path: Path) -> CoreNN:
        """A new database with these settings."""
        return CoreNN.create(
            path,
            dim=self.dim,
            metric=self.metric,
            dtype=self.dtype,
            durability=self.durability,
            max_edges=self.max_edges,
        )


@dataclass(frozen=True, slots=True)
class Operation:
    """One call. Each row is known by the number of the operation and its place in it."""

    thread: int
    number: int
    kind: str
    keys: tuple[Key, ...]
    padding: int = 0


@dataclass(frozen=True, slots=True)
class Cell:
    """Which operation and row gave a key its vector (with the rows of the operation) and its payload (with padding)."""

    vector: tuple[int, int, int]
    payload: tuple[int, int, int] | None


State: TypeAlias = dict[Key, Cell]


def operation(plan: Plan, thread: int, number: int, state: State) -> Operation:
    """The operation that comes next, given the state of the keys of its thread."""
    rng = np.random.default_rng([plan.seed, thread, number])
    kinds = ["insert", "upsert", "delete", "set_payload", "checkpoint", "compact"]
    weights = [0.51, 0.24, 0.13, 0.09, 0.02, 0.01]
    if len(state) > plan.cap:
        weights = [0.1, 0.2, 0.59, 0.08, 0.02, 0.01]
    kind = str(rng.choice(kinds, p=weights))
    size = int(rng.integers(1, plan.batch + 1))
    padding = 0
    if plan.parts and kind in ("insert", "upsert", "set_payload") and rng.random() < 0.2:
        size, padding = 600, 20_000  # 12 MB of payloads: most kills fall into one of these
    old = list(state)
    some = [old[at] for at in rng.choice(len(old), min(len(old), size), replace=False)] if old else []
    new = [_key(thread, number, row) for row in range(size)]
    keys = {
        "insert": new,
        "upsert": some[: size // 2] + new[: size - size // 2],
        "delete": some + some[:1] + new[:2],  # repeated keys and keys that were never there are ignored
        "set_payload": some,
        "checkpoint": [],
        "compact": [],
    }[kind]
    return Operation(thread, number, kind, tuple(keys), padding)


def _key(thread: int, number: int, row: int) -> Key:
    whole = (thread << 40) + number * 10_000 + row
    return whole if row % 3 == 0 else f"t{thread}-{number}-{row}"


def thread_of(key: Key) -> int:
    """The thread that writes a key."""
    return key >> 40 if isinstance(key, int) else int(key[1 : key.index("-")])


@lru_cache(maxsize=4_096)
def vectors(plan: Plan, thread: int, number: int, count: int) -> Rows:
    """The vectors of an operation: clustered, and whole numbers for u8."""
    centres = np.random.default_rng(plan.seed).normal(size=(CLUSTERS, plan.dim))
    rng = np.random.default_rng([plan.seed, thread, number, 1])
    rows = centres[rng.integers(CLUSTERS, size=count)] + 0.5 * rng.normal(size=(count, plan.dim))
    if plan.dtype == "u8":
        rows = np.clip(np.rint(rows * 30 + 128), 0, 255)
    rows = rows.astype(np.float32)
    rows.setflags(write=False)
    return rows


def payload(thread: int, source: tuple[int, int, int] | None) -> dict[str, Any] | None:
    """The payload that a row of an operation gave."""
    if source is None:
        return None
    number, row, padding = source
    return {"from": [thread, number, row], "padding": "x" * padding}


def _sources(task: Operation) -> list[tuple[int, int, int] | None]:
    return [None if row % 4 == 3 else (task.number, row, task.padding) for row in range(len(task.keys))]


def perform(db: CoreNN, plan: Plan, task: Operation) -> None:
    """Make the call."""
    keys, given = list(task.keys), [payload(task.thread, source) for source in _sources(task)]
    if task.kind in ("insert", "upsert"):
        getattr(db, task.kind)(keys, vectors(plan, task.thread, task.number, len(keys)), given)
    elif task.kind == "set_payload":
        db.set_payload(keys, given)
    elif task.kind == "delete":
        db.delete(keys)
    else:
        getattr(db, task.kind)()


def apply(state: State, task: Operation) -> None:
    """Do to the model what the call does to the database."""
    for row, (key, source) in enumerate(zip(task.keys, _sources(task), strict=True)):
        if task.kind == "set_payload":
            state[key] = replace(state[key], payload=source)
            continue
        state.pop(key, None)
        if task.kind in ("insert", "upsert"):
            state[key] = Cell((task.number, row, len(task.keys)), source)


# --- the log ----------------------------------------------------------------------------------------------------------


class Log:
    """Lines that survive the death of the process: `I n` begun, `A n keys` acknowledged, `R n 0|1` found out later."""

    def __init__(self, folder: Path, thread: int) -> None:
        self.path = folder / f"log-{thread}"
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(self, *fields: object) -> None:
        os.write(self._descriptor, (" ".join(map(str, fields)) + "\n").encode())

    def close(self) -> None:
        os.close(self._descriptor)


def read_log(folder: Path, thread: int) -> Iterator[tuple[str, int, int]]:
    """Complete lines of a log, as (letter, operation, last field or 0)."""
    path = folder / f"log-{thread}"
    text = path.read_text() if path.exists() else ""
    for line in text[: text.rfind("\n") + 1].splitlines():
        letter, number, *rest = line.split()
        yield letter, int(number), int(rest[0]) if rest else 0


def acknowledged(folder: Path, plan: Plan) -> int:
    """Keys acknowledged so far, by all threads."""
    return sum(keys for thread in range(plan.threads) for letter, _, keys in read_log(folder, thread) if letter == "A")


def replay(folder: Path, plan: Plan, thread: int) -> tuple[State, int, Operation | None]:
    """The state after all that is known to have happened, the next number, and the operation whose fate is unknown."""
    state: State = {}
    begun: Operation | None = None
    number = 0
    for letter, number, field in read_log(folder, thread):
        if letter == "I":
            begun = operation(plan, thread, number, state)
            continue
        if begun is not None and (letter == "A" or field):
            apply(state, begun)
        begun = None
    return state, number + 1, begun


# --- checking ---------------------------------------------------------------------------------------------------------


def differences(db: CoreNN, plan: Plan, thread: int, keys: Sequence[Key], state: State) -> list[str]:
    """How the rows of `keys` in the database differ from the state; the first few."""
    wrong = []
    for key, record in zip(keys, _records(db, keys), strict=True):
        cell = state.get(key)
        if record is None or cell is None:
            if record is not cell:
                wrong.append(f"{key!r} is {'absent' if record is None else 'present'}")
            continue
        meant = _vector(plan, thread, cell)
        if (np.abs(record.vector - meant) > rounding(plan.dtype, meant)).any():
            wrong.append(f"{key!r} has another vector")
        if record.payload != payload(thread, cell.payload):
            wrong.append(f"{key!r} has another payload: {str(record.payload)[:80]}")
    return wrong[:5]


def _records(db: CoreNN, keys: Sequence[Key]) -> Iterator[Record | None]:
    for start in range(0, len(keys), 500):  # payloads may be large
        yield from db.get(list(keys[start : start + 500]))


def _vector(plan: Plan, thread: int, cell: Cell) -> Rows:
    number, row, count = cell.vector
    return vectors(plan, thread, number, count)[row]


def check_recall(db: CoreNN, plan: Plan, at_least: float = 0.95) -> float:
    """recall@10 at default settings on what the database holds."""
    keys = list(db.keys())
    if not keys:
        return 1.0
    rows = np.array([record.vector for record in db.get(keys)])
    rng = np.random.default_rng(plan.seed)
    queries = rows[rng.integers(len(rows), size=40)] * rng.uniform(0.95, 1.05, (40, plan.dim))
    if plan.dtype == "u8":
        queries = np.clip(np.rint(queries), 0, 255)
    number = {key: row for row, key in enumerate(keys)}
    found = [[number[key] for key in hits.keys] for hits in db.query(queries, k=10)]
    reached = recall(plan.metric, rows, queries.astype(np.float32), found)
    assert reached >= at_least, f"recall@10 is {reached:.3f}"
    exact = db.query(queries, k=10, exact=True)
    table = np.sort(distances(plan.metric, rows, queries.astype(np.float32)), axis=1)[:, :10]
    slack = tolerance(plan.metric, rows, queries)
    assert all(
        np.allclose(hits.distances, line, rtol=1e-5, atol=slack) for hits, line in zip(exact, table, strict=True)
    )
    return reached
