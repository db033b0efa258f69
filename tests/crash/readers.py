"""Reading processes beside a live writer: `python -m tests.crash.readers --seconds 60`.

Rules out a reader that misses what was acknowledged before its refresh(), sees a batch half done, changes its answers
between two refreshes, or fails because the writer grows, deletes and checkpoints under it.
"""

from __future__ import annotations

import argparse
import json
import secrets
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from corenn import CoreNN
from tests.crash.harness import CrashError, start
from tests.crash.workload import Plan, State, apply, differences, operation, read_log
from tests.oracle import check_hits

GRACE = 120.0  # seconds for a process to start or to end


class Follower:
    """The states that a reader may see: from the last acknowledged operation to the last one begun."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        self.number = 0
        self.state: State = {}

    def last(self, letter: str) -> int:
        """Number of the last operation that was begun (I) or acknowledged (A)."""
        return max((number for found, number, _ in read_log(self.folder, 0) if found == letter), default=0)

    def advance(self, number: int) -> None:
        """Bring the state to just after an operation."""
        while self.number < number:
            self.number += 1
            apply(self.state, operation(self.plan, 0, self.number, self.state))

    def candidates(self, acknowledged: int, begun: int) -> Iterator[int]:
        """Bring the state to each operation in turn that the reader may have seen last."""
        for number in range(acknowledged, begun + 1):
            self.advance(number)
            yield number


def look(db: CoreNN, follower: Follower, rng: np.random.Generator) -> int:
    """One refresh and everything that must hold after it. Returns the number of rows seen."""
    acknowledged = follower.last("A")
    db.refresh()
    begun = follower.last("I")
    keys = list(db.keys())
    wrong = ["nothing"]
    for number in follower.candidates(acknowledged, begun):
        if keys == list(follower.state) and not (wrong := differences(db, follower.plan, 0, keys, follower.state)):
            break
        wrong.append(f"other keys than after operation {number}")
    else:
        seen, last = set(keys), follower.state
        missing, alien = [key for key in last if key not in seen], [key for key in keys if key not in last]
        raise CrashError(
            f"a reader saw none of the states {acknowledged} to {begun}: {wrong}; of the last, {len(missing)} keys are "
            f"missing, such as {missing[:3]}, and {len(alien)} should be gone, such as {alien[:3]}"
        )
    _check_queries(db, keys, follower.plan, rng)
    return len(keys)


def _check_queries(db: CoreNN, keys: list[Any], plan: Plan, rng: np.random.Generator) -> None:
    if not keys:
        return
    rows = np.array([record.vector for record in db.get(keys)])
    query = rows[rng.integers(len(rows))]
    hits = db.query(query, k=10, exact=True, with_payloads=True)
    check_hits(plan.metric, keys, rows, query, hits, 10)
    assert hits.payloads == [record.payload for record in db.get(hits.keys)]
    walk = db.query(query, k=10)
    assert len(set(walk.keys)) == min(10, len(keys))
    time.sleep(float(rng.uniform(0, 0.05)))  # the writer goes on, this snapshot does not
    assert db.query(query, k=10, exact=True) == hits, "the answer changed without refresh()"
    assert len(db) == len(keys)
    assert list(db.keys()) == keys


def read(folder: Path, seconds: float, seed: int) -> None:
    """The reading process: prints how many refreshes it made."""
    plan, rng = Plan.load(folder), np.random.default_rng(seed)
    follower, looks, rows = Follower(folder, plan), 0, deque([0], maxlen=1)
    with CoreNN.open(folder / "db", mode="r") as db:
        until = time.monotonic() + seconds
        while time.monotonic() < until or looks < 3:
            rows.append(look(db, follower, rng))
            looks += 1
    (folder / f"reader-{seed}.json").write_text(json.dumps({"refreshes": looks, "rows": rows[0]}))


def soak(folder: Path, seconds: float, readers: int = 2, seed: int = 1, **settings: Any) -> list[dict[str, int]]:
    """Run a writer and some readers in processes of their own; what each reader saw.

    Raises:
        CrashError: if any of them failed.
    """
    folder.mkdir(exist_ok=True)
    plan = Plan(**{"seed": seed, "batch": 30, "cap": 2_000, **settings})
    plan.save(folder)
    writer = start("child", str(folder))
    others = []
    try:
        _wait_for(folder / "log-0", writer)
        others = [
            start("readers", "--folder", str(folder), "--seconds", str(seconds), "--seed", str(number))
            for number in range(readers)
        ]
        for process in others:
            _finish(process, "reader", seconds + GRACE)
        if writer.poll() is not None:
            raise CrashError(f"the writer ended by itself:\n{writer.communicate()[1]}")
        (folder / "stop").touch()
        _finish(writer, "writer", GRACE)
    finally:
        for process in (writer, *others):
            process.kill()
            process.communicate()
    return [json.loads((folder / f"reader-{number}.json").read_text()) for number in range(readers)]


def _wait_for(path: Path, writer: Any) -> None:
    deadline = time.monotonic() + GRACE
    while not path.exists():
        if writer.poll() is not None or time.monotonic() > deadline:
            raise CrashError(f"the writer does not start: {writer.poll()}\n{writer.stderr.read()}")
        time.sleep(0.01)


def _finish(process: Any, name: str, seconds: float) -> None:
    _, errors = process.communicate(timeout=seconds)
    if process.returncode:
        raise CrashError(f"a {name} failed with {process.returncode}:\n{errors}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to read")
    parser.add_argument("--seed", type=int, default=None, help="repeat the writes of an earlier run")
    parser.add_argument("--folder", type=Path, default=None, help=argparse.SUPPRESS)  # a reading process
    arguments = parser.parse_args()
    if arguments.folder is not None:
        read(arguments.folder, arguments.seconds, arguments.seed)
        return
    seed = secrets.randbits(31) if arguments.seed is None else arguments.seed
    folder = Path(tempfile.mkdtemp(prefix="corenn-readers-"))
    print(f"seed {seed}, in {folder}", flush=True)
    print(soak(folder, arguments.seconds, seed=seed))
    shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
