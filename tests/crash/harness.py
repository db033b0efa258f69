"""Kill a writing process at random instants and look at what is left: `python -m tests.crash.harness --rounds 1000`.

Rules out an acknowledged write that is lost, a batch that is half there, a database that does not reopen or verify,
and a graph that a crash has cut in two. A round counts if the child acknowledged at least 500 keys before the kill.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rocksdict import Options, Rdict

from corenn import CoreNN
from corenn.storage.generation import folder_of, read_generation
from tests.crash.workload import (
    Log,
    Operation,
    Plan,
    State,
    acknowledged,
    apply,
    check_recall,
    differences,
    replay,
    thread_of,
)
from tests.oracle import DTYPES

ROOT = Path(__file__).parents[2]
KEYS_PER_ROUND = 500
PATIENCE = 240.0  # seconds without a kill after which a child counts as hung


class CrashError(AssertionError):
    """The database broke its contract."""


@dataclass(slots=True)
class Tally:
    """What happened, over all rounds."""

    rounds: int = 0
    early_kills: int = 0
    acknowledged: int = 0
    applied: int = 0
    absent: int = 0
    most_rows: int = 0
    lowest_recall: float = 1.0

    def __str__(self) -> str:
        return (
            f"{self.rounds} rounds and {self.early_kills} early kills: {self.acknowledged:,} keys acknowledged,"
            f" none lost; unacknowledged operations: {self.applied} there, {self.absent} absent, none half;"
            f" lowest recall@10 {self.lowest_recall:.3f}; at most {self.most_rows:,} rows"
        )


def environment() -> dict[str, str]:
    """The environment of a child, which imports what this process imports."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *(entry for entry in sys.path if entry)])}


def start(module: str, *arguments: str) -> subprocess.Popen[str]:
    """Run a module of the tests in a new process."""
    return subprocess.Popen(
        [sys.executable, "-m", f"tests.crash.{module}", *arguments],
        cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def live_and_die(folder: Path, plan: Plan, keys: int, delay: float) -> int:
    """Let a child acknowledge `keys` keys and kill it `delay` seconds later. Returns how many it acknowledged."""
    before = acknowledged(folder, plan)
    child = start("child", str(folder))
    deadline = time.monotonic() + PATIENCE
    try:
        while acknowledged(folder, plan) - before < keys:
            _still_running(child)
            if time.monotonic() > deadline:
                raise CrashError("the child hangs")
            time.sleep(0.01)
        time.sleep(delay)
        _still_running(child)
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    return acknowledged(folder, plan) - before


def _still_running(child: subprocess.Popen[str]) -> None:
    if child.poll() is not None:
        raise CrashError(f"the child ended by itself with {child.returncode}:\n{child.communicate()[1]}")


def resolve(db: CoreNN, plan: Plan, thread: int, state: State, task: Operation) -> bool:
    """Whether an unacknowledged operation happened; it must be wholly there or wholly absent."""
    after = dict(state)
    apply(after, task)
    keys = list(dict.fromkeys(task.keys))
    if not (missing := differences(db, plan, thread, keys, after)):
        return True
    if present := differences(db, plan, thread, keys, state):
        raise CrashError(f"{task.kind} {task.number} of {len(keys)} keys is half there: {missing} and {present}")
    return False


def check(db: CoreNN, folder: Path, plan: Plan, tally: Tally) -> None:
    """Everything acknowledged is there, nothing else is, and the database is sound."""
    found = list(db.keys())
    total = 0
    for thread in range(plan.threads):
        state, _, unknown = replay(folder, plan, thread)
        if unknown is not None:
            applied = resolve(db, plan, thread, state, unknown)
            tally.applied, tally.absent = tally.applied + applied, tally.absent + (not applied)
            log = Log(folder, thread)
            log.write("R", unknown.number, int(applied))
            log.close()
            state, _, _ = replay(folder, plan, thread)
        _check_thread(db, plan, thread, [key for key in found if thread_of(key) == thread], state)
        total += len(state)
    if not len(db) == len(found) == total == db.stats().rows:
        raise CrashError(f"{len(db)} rows, {len(found)} keys, {db.stats().rows} in stats(); expected {total}")
    report = db.verify()
    if not report.ok or report.unreachable or report.rows != total:
        raise CrashError(f"verify: {report}")
    tally.most_rows = max(tally.most_rows, total)
    tally.lowest_recall = min(tally.lowest_recall, check_recall(db, plan))


def _check_thread(db: CoreNN, plan: Plan, thread: int, found: list[str | int], state: State) -> None:
    if found != list(state):
        lost, alien = [key for key in state if key not in set(found)], [key for key in found if key not in state]
        raise CrashError(f"acknowledged keys are lost: {lost[:5]}, or came back: {alien[:5]}, or changed their order")
    if wrong := differences(db, plan, thread, found, state):
        raise CrashError(f"acknowledged writes are lost: {wrong}")


def pretend_restart(folder: Path) -> None:
    """Make the database believe that the machine was restarted, so that it trusts its last checkpoint only."""
    path = folder / "db"
    meta = Rdict(str(folder_of(path, read_generation(path)) / "meta"), Options(raw_mode=True))
    meta.put(b"mboot", b"another boot")
    meta.close()


def reopen_and_check(folder: Path, plan: Plan, tally: Tally, reader: bool) -> None:
    """Open what the kill left behind; a reader must be able to do so before any writer has recovered it."""
    with CoreNN.open(folder / "db", mode="r" if reader else "rw") as db:
        check(db, folder, plan, tally)


def one_database(
    folder: Path, rng: np.random.Generator, rounds: int, tally: Tally, dtypes: Sequence[str]
) -> None:  # fmt: skip
    """Kill and reopen the same database up to `rounds` times."""
    plan = Plan.random(rng, dtypes)
    folder.mkdir()
    plan.save(folder)
    for life in range(rounds):
        if life and rng.random() < 0.25:  # killed while it recovers, or a little later
            tally.early_kills += 1
            live_and_die(folder, plan, 0, float(rng.uniform(0.2, 2.5)))
            reopen_and_check(folder, plan, tally, reader=True)
        count = live_and_die(folder, plan, KEYS_PER_ROUND, float(rng.exponential(0.3)))
        tally.acknowledged += count
        if rng.random() < 0.2:
            pretend_restart(folder)
        reopen_and_check(folder, plan, tally, reader=bool(rng.random() < 0.3))
        tally.rounds += 1
        print(f"round {tally.rounds}: {count:,} keys acknowledged and found; {plan}", flush=True)


@contextmanager
def scratch(where: Path | None) -> Iterator[Path]:
    """A folder that is removed unless something goes wrong in it."""
    folder = Path(tempfile.mkdtemp(prefix="corenn-crash-", dir=where))
    yield folder
    shutil.rmtree(folder)


def run(rounds: int, seed: int, where: Path | None = None, dtypes: Sequence[str] = DTYPES) -> Tally:
    """Do that many rounds, on databases of some stored types.

    Raises:
        CrashError: naming the seed and the folder in which everything was left as it was.
    """
    tally, rng = Tally(), np.random.default_rng(seed)
    with scratch(where) as folder:
        while tally.rounds < rounds:
            lives = min(int(rng.integers(2, 7)), rounds - tally.rounds)
            place = folder / f"database-{tally.rounds}"
            try:
                one_database(place, rng, lives, tally, dtypes)
            except Exception as error:
                raise CrashError(f"seed {seed}, round {tally.rounds + 1}, left in {place}: {error}") from error
            shutil.rmtree(place)
    return tally


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1000, help="kills after at least 500 acknowledged keys")
    parser.add_argument("--seed", type=int, default=None, help="repeat the settings of an earlier run")
    arguments = parser.parse_args()
    seed = secrets.randbits(32) if arguments.seed is None else arguments.seed
    print(f"seed {seed}", flush=True)
    print(run(arguments.rounds, seed))


if __name__ == "__main__":
    main()
