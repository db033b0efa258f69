"""Threads and processes that ask while everything changes: `python -m tests.crash.stress --seconds 60`.

Rules out, for every answer and not for a sample of them: a key that was not live, a key with the distance or vector of
another row (one whose id was given away, one half written), an answer of two states, fewer than min(k, rows) hits, a
scan that leaves a row out, and a snapshot that is not of one state. See tests/crash/tape.py for what is right.
"""

from __future__ import annotations

import argparse
import json
import secrets
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from corenn import CoreNN, writer
from corenn.types import Hits, Report
from tests.crash.harness import CrashError, start
from tests.crash.tape import ROUND, Key, Setup, Tape, Window, WrongAnswerError, name, perform, vectors

GRACE = 120.0  # seconds for a process to start or to end
BEGUN, ACKNOWLEDGED, INSERTED = 0, 1, 2
KEPT = 50  # answers that are read again much later
READERS = 2
ASKING = 2  # threads beside the writers
IDLE_SECONDS = 0.005  # without a write, after which the database does what it does in idle time: repair above all
CHORE_SECONDS = 0.4  # between two chores, in the mean: they take the place of writes
SWITCH_SECONDS = 1e-3  # after which the interpreter goes to another thread: five times as many interleavings


class Counts:
    """How many calls of each writer were begun and acknowledged, and how many rows these have inserted, in a file that
    every process maps.
    """

    def __init__(self, folder: Path, writers: int) -> None:
        path = folder / "counts"
        if not path.exists():
            path.write_bytes(bytes(24 * writers))
        self.numbers: NDArray[np.int64] = np.memmap(path, np.int64, "r+", shape=(writers, 3))

    def acknowledged(self) -> list[int]:
        return [int(number) for number in self.numbers[:, ACKNOWLEDGED]]

    def begun(self) -> list[int]:
        return [int(number) for number in self.numbers[:, BEGUN]]


class Observer:
    """Asks one database over and over and checks every answer. Used by one thread.

    Each answer has a window of its own, from the states that `since` gives before it is asked for, unless the caller
    gives one: between two refreshes of a reader all answers share one.
    """

    def __init__(
        self, db: CoreNN, setup: Setup, counts: Counts, seed: int, since: Callable[[], list[int]] | None = None
    ) -> None:
        self.db, self.setup, self.counts = db, setup, counts
        self._since = since or counts.acknowledged
        self.rng = np.random.default_rng(seed)
        self.tapes = [Tape(setup, writer) for writer in range(setup.writers)]
        self.seen: Counter[str] = Counter()
        self.kept: deque[tuple[Hits, list[Key], NDArray[np.float32]]] = deque()

    def window(self, low: Sequence[int]) -> Window:
        """The states from `low` to the newest that there may be."""
        high = self.counts.begun()
        for tape, first in zip(self.tapes, low, strict=True):
            tape.forget(first)
        return Window(self.tapes, low, high)

    def look(self, window: Window | None = None) -> None:
        """Ask something and check the answer, in a window of its own unless one is given."""
        asks = [self._query, self._query, self._query, self._get, self._keys]
        low = self._since()
        check = asks[int(self.rng.integers(len(asks)))]()
        check(window or self.window(low))
        self._again()

    def _query(self) -> Callable[[Window], None]:
        rng, count = self.rng, int(self.rng.integers(1, 4))
        queries = self._queries(count)
        k = int(rng.choice([1, 5, 10, 50, 10 * self.setup.keys], p=[0.2, 0.2, 0.3, 0.25, 0.05]))
        exact, told = bool(rng.random() < 0.4), bool(k <= 10 and rng.random() < 0.3)
        options: dict[str, Any] = {"exact": exact, "with_payloads": told, "threads": int(rng.integers(1, 3))}
        if not exact and rng.random() < 0.7 and k <= 50:
            options["search_list"] = int(rng.integers(k, 90))
        answers = self.db.query(queries, k=k, explain=True, **options)
        for hits in answers:
            self.seen[hits.explain.plan] += 1
        seen = [(hits, hits.keys, hits.distances.copy()) for hits in answers]
        self.kept.extend(seen)

        def check(window: Window) -> None:
            for query, (hits, names, found) in zip(queries, seen, strict=True):
                window.hits(query, k, names, found, exact=hits.explain.plan != "graph")
                if told:
                    window.payloads(names, hits.payloads)

        return check

    def _queries(self, count: int) -> NDArray[np.float32]:
        """Anywhere, or at a row of one of the last calls."""
        keys = self.rng.integers(0, self.setup.keys, count)
        number = int(self.rng.integers(self.setup.writers))
        newest = self.counts.begun()[number]
        versions = self.rng.integers(max(newest - 20, 0), newest + 1, count)
        return vectors(self.setup, number, keys, versions)

    def _get(self) -> Callable[[Window], None]:
        names = [
            name(number, int(key))
            for number in range(self.setup.writers)
            for key in self.rng.integers(0, self.setup.keys, 12)
        ]
        records = self.db.get(names)
        self.seen["get"] += 1
        return lambda window: window.records(names, records)

    def _keys(self) -> Callable[[Window], None]:
        names = list(self.db.keys())
        self.seen["keys"] += 1

        def check(window: Window) -> None:
            window.keys(names)

        return check

    def _again(self) -> None:
        """An answer is fixed when its query returns, whatever was written since."""
        while len(self.kept) > KEPT:
            hits, names, found = self.kept.popleft()
            if hits.keys != names or not np.array_equal(hits.distances, found):
                raise WrongAnswerError(f"hits changed after the query had returned: {names} became {hits.keys}")

    def everything(self, window: Window) -> None:
        """Check all that a database holds: keys, records, and what a scan finds."""
        names = [name(number, key) for number in range(self.setup.writers) for key in range(self.setup.keys)]
        window.keys(list(self.db.keys()))
        window.records(names, self.db.get(names))
        query = self._queries(1)[0]
        hits = self.db.query(query, k=len(names), exact=True, with_payloads=True)
        window.hits(query, len(names), hits.keys, hits.distances, exact=True)
        window.payloads(hits.keys, hits.payloads)
        window.count(len(self.db))


# --- who writes, keeps house and asks ---------------------------------------------------------------------------------


def write(db: CoreNN, setup: Setup, counts: Counts, number: int, stop: threading.Event) -> None:
    """Make one call of a writer after the other, with a pause now and then in which the database is idle."""
    tape, rng = Tape(setup, number), np.random.default_rng(number)
    while not stop.is_set():
        task = tape.next()
        counts.numbers[number, BEGUN] = task.number
        perform(db, setup, task)
        counts.numbers[number, ACKNOWLEDGED] = task.number
        counts.numbers[number, INSERTED] += len(task.keys) if task.kind in ("insert", "upsert") else 0
        tape.advance(task.number)
        tape.forget(task.number)
        if rng.random() < 0.02:
            time.sleep(float(rng.exponential(0.05)))


def keep_house(db: CoreNN, observer: Observer, folder: Path, stop: threading.Event) -> None:
    """Checkpoints, checks, repair, compaction and snapshots, in turn, as far as the database has them."""
    chores: dict[str, Callable[[], Any]] = {
        "checkpoint": db.checkpoint, "verify": lambda: sound(db.verify()), "repair": lambda: sound(db.repair())
    }  # fmt: skip
    on_disk = db.stats().path is not None
    if hasattr(db, "compact") and on_disk:
        chores["compact"] = db.compact
    if hasattr(db, "snapshot") and on_disk:
        chores["snapshot"] = lambda: check_snapshot(db, observer, folder / "snapshot")
    while not stop.is_set() or not observer.seen[next(reversed(chores))]:
        for done, chore in chores.items():
            chore()
            observer.seen[done] += 1
            stop.wait(float(observer.rng.exponential(CHORE_SECONDS)))


def sound(report: Report) -> None:
    """No fault was found, and nothing had to be mended."""
    if not report.ok or report.repaired:
        raise WrongAnswerError(f"not sound: {report}")


def check_snapshot(db: Any, observer: Observer, path: Path) -> None:
    """A snapshot is of one state between the moment it was asked for and the moment it was there."""
    low = observer.counts.acknowledged()
    db.snapshot(path)
    window = observer.window(low)
    with CoreNN.open(path, mode="r") as copy:
        taken = Observer(copy, observer.setup, observer.counts, 0)
        taken.tapes = observer.tapes
        taken.everything(window)
    shutil.rmtree(path)


def ask(observer: Observer, stop: threading.Event) -> None:
    """Look around until told to stop, a third of the time: the writers are to get on."""
    while not stop.is_set():
        began = time.monotonic()
        observer.look()
        stop.wait(2 * (time.monotonic() - began))


def together(
    works: Sequence[Callable[[threading.Event], None]], seconds: float, enough: Callable[[], bool] = lambda: True
) -> None:
    """Run each in a thread of its own for some seconds, or until it is enough if that takes longer; the first error of
    any is raised here.
    """
    stop, failures = threading.Event(), list[BaseException]()

    def guarded(work: Callable[[threading.Event], None]) -> None:
        try:
            work(stop)
        except BaseException as error:  # noqa: BLE001 - raised again below
            failures.append(error)
            stop.set()

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        for thread in threads:
            thread.start()
        stop.wait(seconds)
        until = time.monotonic() + GRACE
        while not (enough() or time.monotonic() > until):
            if stop.wait(0.1):
                break
        stop.set()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    if failures:
        raise failures[0]


# --- reading processes ------------------------------------------------------------------------------------------------


def read(folder: Path, seconds: float, seed: int) -> None:
    """A reading process, of one thread or, if its seed is odd, of several. Leaves behind what it has seen."""
    setup = Setup.load(folder)
    counts = Counts(folder, setup.writers)
    low = counts.acknowledged()
    with CoreNN.open(folder / "db", mode="r") as db:
        seen = read_in_threads(db, setup, counts, low, seed, seconds) if seed % 2 else read_alone(
            Observer(db, setup, counts, seed), seconds
        )  # fmt: skip
    (folder / f"seen-{seed}.json").write_text(json.dumps(seen))


def read_alone(observer: Observer, seconds: float) -> Counter[str]:
    """Everything between two refreshes is of one state."""
    until = time.monotonic() + seconds
    while time.monotonic() < until or not observer.seen["refresh"]:
        began, low = time.monotonic(), observer.counts.acknowledged()
        observer.db.refresh()
        window = observer.window(low)
        observer.seen["refresh"] += 1
        for _ in range(int(observer.rng.integers(1, 12))):
            observer.look(window)
        window.count(len(observer.db))
        time.sleep(time.monotonic() - began)
    return observer.seen


def read_in_threads(
    db: CoreNN, setup: Setup, counts: Counts, low: list[int], seed: int, seconds: float
) -> Counter[str]:  # fmt: skip
    """Every answer is of a state no older than the last refresh that had ended, while another thread refreshes."""
    since, seen = [low], Counter[str]()

    def refresh(stop: threading.Event) -> None:
        while not stop.is_set():
            low = counts.acknowledged()
            db.refresh()
            since[0] = low
            seen["refresh"] += 1
            stop.wait(0.01)

    observers = [Observer(db, setup, counts, seed + 100 * thread, lambda: since[0]) for thread in range(ASKING)]
    together([refresh, *(partial(ask, observer) for observer in observers)], seconds)
    return sum((observer.seen for observer in observers), seen)


# --- all of it --------------------------------------------------------------------------------------------------------


def in_threads(db: CoreNN, setup: Setup, folder: Path, seconds: float) -> Counter[str]:
    """Write, keep house and ask in threads of this process for some seconds; what was seen, all of it right."""
    counts = Counts(folder, setup.writers)
    house, *asking = (Observer(db, setup, counts, setup.seed + thread) for thread in range(1 + ASKING))
    works: list[Callable[[threading.Event], None]] = [
        partial(write, db, setup, counts, number) for number in range(setup.writers)
    ]
    works += [partial(keep_house, db, house, folder), *(partial(ask, each) for each in asking)]
    idle, writer.IDLE_SECONDS = writer.IDLE_SECONDS, IDLE_SECONDS
    try:
        together(works, seconds, lambda: _enough(db, counts, asking))
    finally:
        writer.IDLE_SECONDS = idle
    sound(db.verify())
    house.everything(house.window(counts.acknowledged()))
    house.seen.update({"call": sum(counts.acknowledged()), "id used again": reused(db, counts)})
    return sum((observer.seen for observer in asking), house.seen)


def _enough(db: CoreNN, counts: Counts, asking: Sequence[Observer]) -> bool:
    """Each writer has deleted most of its rows once, each plan has answered, and ids were used again."""
    plans = (observer.seen[plan] for observer in asking for plan in ("graph", "exact"))
    return min(counts.acknowledged()) >= ROUND and all(plans) and reused(db, counts) > 0


def reused(db: CoreNN, counts: Counts) -> int:
    """How many rows have taken the id of another one."""
    stats = db.stats()
    return int(counts.numbers[:, INSERTED].sum()) - stats.rows - stats.tombstones - stats.free


def stress(folder: Path, setup: Setup, seconds: float, readers: int = READERS) -> Counter[str]:
    """The same for a database on disk, beside reading processes, and once more when it was closed and opened again.

    Raises:
        CrashError: naming the setup, if any answer was wrong.
    """
    folder.mkdir(exist_ok=True)
    setup.save(folder)
    counts = Counts(folder, setup.writers)
    others: list[Any] = []
    try:
        with CoreNN.create(folder / "db", **setup.settings()) as db:
            others = [
                start("stress", "--folder", str(folder), "--seconds", str(seconds), "--seed", str(seed))
                for seed in range(readers)
            ]
            seen = in_threads(db, setup, folder, seconds)
            for process in others:
                _, errors = process.communicate(timeout=seconds + GRACE)
                if process.returncode:
                    raise CrashError(f"a reader failed with {process.returncode}:\n{errors}")
        with CoreNN.open(folder / "db") as db:
            observer = Observer(db, setup, counts, 0)
            sound(db.verify())
            observer.everything(observer.window(counts.acknowledged()))
    except Exception as error:
        raise CrashError(f"{setup}, left in {folder}: {error}") from error
    finally:
        for process in others:
            with suppress(ProcessLookupError):
                process.kill()
            process.communicate()
    for seed in range(readers):
        seen.update(json.loads((folder / f"seen-{seed}.json").read_text()))
    return seen


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="how long, for each of the setups")
    parser.add_argument("--seed", type=int, default=None, help="repeat the writes of an earlier run")
    parser.add_argument("--folder", type=Path, default=None, help=argparse.SUPPRESS)  # a reading process
    arguments = parser.parse_args()
    if arguments.folder is not None:
        read(arguments.folder, arguments.seconds, arguments.seed)
        return
    seed = secrets.randbits(31) if arguments.seed is None else arguments.seed
    folder = Path(tempfile.mkdtemp(prefix="corenn-stress-"))
    print(f"seed {seed}, in {folder}", flush=True)
    for number, settings in enumerate(SETUPS):
        setup = Setup(seed=seed + number, **settings)
        print(f"{setup}: {dict(stress(folder / str(number), setup, arguments.seconds))}", flush=True)
    shutil.rmtree(folder)


SETUPS: tuple[dict[str, Any], ...] = (
    {}, {"metric": "cosine"}, {"dtype": "u8"}, {"compression_mode": "sq8", "dim": 16}, {"writers": 1, "batch": 200},
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
