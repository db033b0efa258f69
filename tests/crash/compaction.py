"""A compaction that is killed at its steps in turn: `python -m tests.crash.compaction FOLDER [FIRST EVERY]`.

FOLDER/db is a database of `ROWS` rows, of which every third is dead. A step is an operation on files or a report of
progress. Each compaction runs in a fork of a process that has compiled the kernels and never used RocksDB, on a copy of
FOLDER/db; another fork looks at what is left. FIRST, EVERY: kill at some of the steps only. Prints how many kills there
were, and how many before the switch.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from corenn import CoreNN
from corenn.storage.files import Files
from corenn.storage.generation import FILE, read_generation

ROWS, DIM = 400, 8
AGAIN = 8  # steps after which another compaction is tried
OPERATIONS = (
    "open", "write", "allocate", "sync", "sync_folder", "map", "rename", "make_folder", "remove", "remove_tree",
)  # fmt: skip


def vectors() -> Any:
    return np.random.default_rng(1).integers(0, 99, (ROWS, DIM)).astype(np.float32)


def make(path: Path) -> None:
    """The database that is compacted."""
    with CoreNN.create(path, dim=DIM, metric="l2") as db:
        db.insert([f"row {n}" for n in range(ROWS)], vectors(), [{"n": n} for n in range(ROWS)])
        db.delete([f"row {n}" for n in range(0, ROWS, 3)])


class Killing(Files):
    """Kills its own process at an operation, before it is done."""

    def __init__(self, at: int) -> None:
        self.left = at

    def step(self, *_: object) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def _killing(name: str) -> Callable[..., Any]:
    def operation(self: Killing, *given: Any, **named: Any) -> Any:
        self.step()
        return getattr(Files, name)(self, *given, **named)

    return operation


for _name in OPERATIONS:
    setattr(Killing, _name, _killing(_name))


def write(db: CoreNN, log: Path, done: threading.Event) -> None:
    """Insert and delete rows, and note what was acknowledged."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in itertools.count():
        if done.is_set():
            return
        db.insert([number], vectors()[:1], [{"n": number}])
        if number % 3 == 0:
            db.delete([number])
        os.write(descriptor, b"%d\n" % number)


def compact(path: Path, at: int) -> None:
    """Compact, with writes on the way, and die at step `at` unless it ends before."""
    done = threading.Event()
    with CoreNN.open(path) as db:
        files = Killing(at)
        db._store.files = files
        writer = threading.Thread(target=write, args=(db, path.with_name("log"), done))
        writer.start()
        db.compact(files.step)
        files.left = 0
        done.set()
        writer.join()


def look(path: Path) -> None:
    """What a kill has left is one valid generation with all rows: to a reader, and to the writer that comes next."""
    keys = [f"row {n}" for n in range(ROWS) if n % 3]
    log = path.with_name("log")
    acknowledged = len(log.read_text().splitlines()) if log.exists() else 0
    before = read_generation(path)
    for mode in ("r", "rw"):
        with CoreNN.open(path, mode=mode) as db:  # type: ignore[arg-type]
            assert db.stats().generation == before
            assert {each for each in db if isinstance(each, str)} == set(keys)
            numbers = {each for each in db if isinstance(each, int)}
            assert {n for n in range(acknowledged) if n % 3} <= numbers <= set(range(acknowledged + 1))
            assert numbers - {acknowledged} == {n for n in range(acknowledged) if n % 3}
            assert all(record and record.payload == {"n": record.key} for record in db.get(sorted(numbers)))
            for record, vector in zip(db.get(keys), vectors()[[n for n in range(ROWS) if n % 3]], strict=True):
                assert record is not None
                assert np.array_equal(record.vector, vector)
                assert record.payload == {"n": int(record.key[4:])}
            report = db.verify()
            assert report.ok, report
            assert len(db.query(vectors()[0], k=10)) == 10
    slabs = {"vectors.slab", "seals.slab", "state.slab", "edges.slab", "codes.slab", "keys.slab", "keys.heap", "meta"}
    slabs |= {"changes.slab", "fields.index"}
    expected = slabs | {"settings.json"} if before == 1 else {FILE, f"generation-{before}"}
    assert {each.name for each in path.iterdir()} - {"LOCK", "readers"} == expected


def again(path: Path) -> None:
    """It takes rows, and is compacted after all."""
    with CoreNN.open(path) as db:
        db.insert(["new"], vectors()[:1])
        db.compact()
        assert db.verify().ok
        assert "new" in db


def in_a_fork(work: Callable[..., None], *arguments: Any) -> int:
    """Call in a child of this process; the status that it ended with, as waitpid gives it."""
    child = os.fork()
    if child == 0:
        try:
            work(*arguments)
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def main(folder: Path, first: int = 1, every: int = 1) -> None:
    """Kill at step `first` and each `every` steps later, until one compaction comes to its end."""
    with CoreNN.in_memory(dim=DIM, metric="l2") as db:
        db.insert(range(2 * ROWS), np.concatenate((vectors(), vectors())))
        db.delete(range(9))
        db.compact()
        db.verify()
        db.query(vectors()[0])
    assert in_a_fork(make, folder / "db") == 0
    generations = []
    for at in itertools.count(first, every):
        path = shutil.copytree(folder / "db", folder / "copy")
        (folder / "log").unlink(missing_ok=True)
        status = in_a_fork(compact, path, at)
        if status not in (0, signal.SIGKILL):
            sys.exit(f"step {at}: the compaction ended with {status}")
        generations.append(read_generation(path))
        if in_a_fork(look, path) or (at // every % AGAIN == 0 and in_a_fork(again, path)):
            sys.exit(f"step {at}: what was left is not as it should be")
        shutil.rmtree(path)
        if status == 0:
            break
    print(len(generations) - 1, generations.count(1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
