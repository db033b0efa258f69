"""One run: a database, those who write to it and read it, and everything that happens to them.

Lives of a writing process follow each other. Each ends by close(), by its death, or by that of the machine; then the
database is opened again, and must be what was acknowledged. Readers have processes of their own and go on.
"""

from __future__ import annotations

import gc
import random
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from corenn import CoreNN
from corenn.errors import CoreNNError, DiskFullError, LockedError, ReadOnlyError, StorageError
from tests.crash.stress import Counts, Observer
from tests.crash.tape import Setup, Tape, WrongAnswerError, perform
from tests.faults.power import SHARES, Outage
from tests.simulation.scheduler import KilledError, Process, Scheduler
from tests.simulation.world import HOME, Disk, SimulatedFiles, Weather, simulated

IN_MEMORY = Path("/dev/shm")
WRITERS = 3
LIVES = 4
MODES = ("auto", "none", "sq8", "sq4", "rabitq", "pq", "opq", "trunc")
LIMITS = (None, 1, 10_000, 40_000)  # bytes
BROKEN = (DiskFullError, StorageError, ReadOnlyError)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Finalizers would run at any step. What those of dead processes do is of no effect, and no error."""
    told = sys.unraisablehook

    def tell(unraisable: sys.UnraisableHookArgs) -> None:
        if not isinstance(unraisable.exc_value, KilledError):
            told(unraisable)

    gc.collect()
    gc.disable()
    sys.unraisablehook = tell
    try:
        yield
    finally:
        gc.collect()
        gc.enable()
        sys.unraisablehook = told


class Progress(Counts):
    """The calls of each writer: acknowledged, visible in the process that writes at most, and ever handed in."""

    def __init__(self, writers: int) -> None:
        self.done, self.seen, self.tried = ([0] * writers for _ in range(3))

    def acknowledged(self) -> list[int]:
        return list(self.done)

    def begun(self) -> list[int]:
        return list(self.seen)


class Outside(Progress):
    """The same as other processes see it: a call that failed late may hold until the writer goes on."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def acknowledged(self) -> list[int]:
        return list(self._progress.done)

    def begun(self) -> list[int]:
        return list(self._progress.tried)


class Simulation:
    """A run. `seen` counts what has happened in it."""

    def __init__(self, seed: int, *, traced: bool = False, lives: int = LIVES) -> None:
        plan = random.Random(f"{seed}/plan")
        self.seed = seed
        self.chance = plan
        self.lives = lives
        self.durability = plan.choice(["os", "os", "sync"])
        self.often = plan.choice([0.0, 0.0, 0.002, 0.01])
        self.setup = Setup(
            seed, dim=4, metric=plan.choice(["l2", "l2", "cosine", "ip"]), writers=WRITERS, batch=plan.choice([4, 10]),
            keys=plan.choice([20, 50]), compression_mode=plan.choice(["none", "none", "sq8"]),
        )  # fmt: skip
        self.scheduler = Scheduler(seed, preempt=plan.choice([0.0, 0.002, 0.01]), traced=traced)
        self.seen: Counter[str] = Counter()
        self.progress = Progress(WRITERS)
        self.disk = Disk()
        self.over = False
        self._files: dict[Process, SimulatedFiles] = {}
        self._handles: dict[Process, list[CoreNN]] = {}
        self._dies_at: int | None = None
        self._outage: Outage | None = None
        self._lost = False  # what the outage has left is there, and no writer has opened it yet
        self._power = False
        self._writing: Process | None = None

    # --- the run ---------------------------------------------------------------------------------------------------

    def run(self) -> str:
        """Returns the hash of its steps.

        Raises: whatever was wrong.
        """
        self.folder = Path(tempfile.mkdtemp(prefix="corenn-simulation-", dir=IN_MEMORY if IN_MEMORY.is_dir() else None))
        self.home = self.folder / HOME
        try:
            with _no_collection(), simulated(self.scheduler, self._files_here, self.disk):
                self.scheduler.watched(self._look)
                try:
                    self.scheduler.run(self._direct)
                except BaseException as error:
                    traceback.clear_frames(error.__traceback__)
                    raise
                finally:
                    self._let_go()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.seen["steps"] = self.scheduler.steps
        return self.scheduler.trace

    def _files_here(self) -> SimulatedFiles:
        return self._files[self._own()]

    def _process(self, name: str, often: float = 0.0) -> Process:
        process = Process(name)
        self._files[process] = SimulatedFiles(Weather(self.scheduler, process, often), self.disk)
        self._handles[process] = []
        return process

    def _let_go(self) -> None:
        """Nothing of the run outlives it, for finalizers to meet."""
        for process in list(self._handles):
            self._abandon(process)
        for process in self._files:
            process.actors.clear()
        self._files.clear()
        self._writing = self._outage = None

    def _own(self) -> Process:
        """The process of the actor that calls."""
        actor = self.scheduler.current
        assert actor is not None
        return actor.process

    def _opened(self, db: CoreNN) -> CoreNN:
        self._handles[self._own()].append(db)
        return db

    def _direct(self) -> None:
        first = self._process("maker")
        self._within(first, lambda: CoreNN.create(self.home, durability=self.durability, **self._settings()).close())
        for number in range(2):
            self.scheduler.spawn("readers", self._own(), lambda number=number: self._readers(number))
        for life in range(self.lives):
            self._live(life, last=life == self.lives - 1)
        self.over = True

    def _settings(self) -> dict[str, Any]:
        return {**self.setup.settings(), "compression_threshold": 20, "max_edges": 8}

    def _within(self, process: Process, work: Callable[[], object]) -> None:
        """Run something in a process, and wait until all of it has ended."""
        self.scheduler.spawn(process.name, process, work)
        self.scheduler.wait("process", lambda: process.ended)
        if process.dead:
            self._abandon(process)
        self._handles.pop(process, None)

    def _abandon(self, process: Process) -> None:
        """After a death: what the system does."""
        for db in self._handles.pop(process, []):
            db._finalizer.detach()
            if db._writer is not None and db._writer._job is not None:
                with suppress(KilledError):  # what a generator does on its way out is of no effect either
                    db._writer._job[1].close()
        self._files[process].abandon()

    # --- lives of the writer ---------------------------------------------------------------------------------------

    def _live(self, life: int, *, last: bool) -> None:
        process = self._writing = self._process("writer", self.often)
        self._power = self.durability == "sync" and self.chance.random() < 0.5
        self._dies_at = None if last else self.scheduler.steps + int(self.chance.expovariate(1 / 4000))
        self._within(process, lambda: self._serve(process, last=last))
        if process.dead:
            self.seen["crashes"] += 1
            if self._outage is not None and not self._lost:
                self._lose_power()
        self.seen["lives"] += 1
        self._writing = None

    def _look(self, process: Process) -> None:
        """Called at every step: the writer's process may die here."""
        if process is not self._writing or self._dies_at is None or self.scheduler.steps < self._dies_at:
            return
        self._dies_at = None
        if self._power:
            self._outage = Outage(self.home, self._files[process], self.folder / "outage")
            self._lost = False  # it may be the second one before a writer has opened what the first has left
            for other in self._handles:
                other.dead = True
        process.dead = True

    def _lose_power(self) -> None:
        """What is left is what was synced, and some of the rest."""
        assert self._outage is not None
        self.scheduler.wait("everybody", lambda: all(process.ended for process in self._handles))
        shutil.rmtree(self.home)
        rng = np.random.default_rng(self.chance.getrandbits(32))
        self._outage.image(self.home, rng, self.chance.choice(SHARES))
        shutil.rmtree(self._outage.copy)
        self._lost = True
        shutil.rmtree(self.folder / "snapshot", ignore_errors=True)
        self.disk.synced.update(
            {slab.name: slab.read_bytes() for slab in (*self.home.glob("*.slab"), *self.home.glob("*.heap"))}
        )
        self.disk.boot += "+"
        self.seen["outages"] += 1

    def _serve(self, process: Process, *, last: bool) -> None:
        """The life of a writing process."""
        weather = self._files[process].weather
        db = self._open_patiently()
        self._recovered(db)
        self._outage, self._lost = None, False
        ended: list[str] = []
        works: list[tuple[str, Callable[[], None]]] = [
            *(
                (f"client {number}", lambda number=number: self._write(db, weather, number))
                for number in range(WRITERS)
            ),
            *(("observer", lambda number=number: self._observe(db, ended, number)) for number in range(2)),
            ("house", lambda: self._keep_house(db, weather, ended)),
        ]
        actors = [self.scheduler.spawn(name, process, work) for name, work in works]
        self.scheduler.wait("clients", lambda: all(actor.ended for actor in actors[:WRITERS]))
        ended.append("clients")
        self.scheduler.wait("others", lambda: all(actor.ended for actor in actors))
        weather.heal()
        if last:
            self._everything(db)
        self.seen["faults"] += weather.failures
        db.close()
        if last:
            with self._opened(CoreNN.open(self.home)) as again:
                self._everything(again)

    def _open_patiently(self) -> CoreNN:
        """Open for writing, on a disk that may fail."""
        while True:
            try:
                return self._opened(CoreNN.open(self.home))
            except BROKEN as error:
                self._expected(error)
                self.seen["failed opens"] += 1

    def _expected(self, error: CoreNNError) -> None:
        if not any(said in str(error) for said in ("injected", "No space", "Input/output")):
            raise error

    def _recovered(self, db: CoreNN) -> None:
        """What was acknowledged is there, and of what was not, each call whole or not at all."""
        progress = self.progress
        observer = Observer(db, self.setup, Outside(progress), self.scheduler.random.getrandbits(32))
        window = observer.window(progress.acknowledged())
        try:
            observer.everything(window)
        except BROKEN as error:
            self._expected(error)
        # A call that shows nothing of itself, such as one that sets no payload where none is, may be made again.
        progress.done = [int(states[-1]) for states in window.states]
        progress.seen, progress.tried = list(progress.done), list(progress.done)

    def _everything(self, db: CoreNN) -> None:
        observer = Observer(db, self.setup, self.progress, 0)
        observer.everything(observer.window(self.progress.acknowledged()))
        report = db.verify()
        if not report.ok:
            raise WrongAnswerError(f"not sound at the end: {report}")

    # --- who lives in it -------------------------------------------------------------------------------------------

    def _write(self, db: CoreNN, weather: Weather, number: int) -> None:
        progress, tape = self.progress, Tape(self.setup, number)
        tape.forget(progress.done[number])
        for _ in range(self.scheduler.random.randrange(10, 50)):
            task = tape.next()
            progress.seen[number] = progress.tried[number] = task.number
            try:
                perform(db, self.setup, task)
            except BROKEN as error:
                self._expected(error)
                progress.seen[number] = task.number - 1
                self.seen["failed calls"] += 1
                continue
            progress.done[number] = task.number
            tape.forget(task.number)
            self.seen["calls"] += 1

    def _observe(self, db: CoreNN, ended: list[str], number: int) -> None:
        observer = Observer(db, self.setup, self.progress, self.scheduler.random.getrandbits(32))
        while not ended:
            observer.look()
            self._rest(0, 3, 30)
        self.seen.update(observer.seen)

    def _keep_house(self, db: CoreNN, weather: Weather, ended: list[str]) -> None:
        chance = self.scheduler.random
        chores: list[Callable[[], None]] = [
            db.checkpoint,
            lambda: self._verify(db, weather),
            lambda: self._snapshot(db),
            lambda: self._compact(db),
            lambda: self._configure(db),
            lambda: self._other_codes(db),
        ]
        while not ended:
            chore = chance.choice(chores)
            self._rest(0, 10, 30)
            try:
                chore()
            except BROKEN as error:
                self._expected(error)
            self.seen["chores"] += 1

    def _verify(self, db: CoreNN, weather: Weather) -> None:
        before = weather.failures
        report = db.verify()
        if not report.ok and before == weather.failures and db._store.fault is None:
            raise WrongAnswerError(f"not sound: {report}")

    def _snapshot(self, db: CoreNN) -> None:
        path = self.folder / "snapshot"
        low = self.progress.acknowledged()
        with suppress(LockedError):
            db.snapshot(path)
            self._check_copy(path, low)
            self.seen["snapshots"] += 1

    def _configure(self, db: CoreNN) -> None:
        """Other codes, or another limit, or both."""
        chance, changes = self.scheduler.random, dict[str, Any]()
        if chance.random() < 0.7:
            changes["compression_mode"] = chance.choice(MODES)
        if chance.random() < 0.7:
            changes["memory_limit"] = chance.choice(LIMITS)
        db.configure(**changes)
        self.seen["settings"] += 1

    def _other_codes(self, db: CoreNN) -> None:
        """Snapshots, of which all but the first are of what has changed, while other codes are made."""
        db.configure(compression_mode=self.scheduler.random.choice(MODES))
        for _ in range(3):
            self.seen["snapshots amid codes"] += db._store.draft is not None
            self._snapshot(db)
            self._rest(0, 3, 30)

    def _compact(self, db: CoreNN) -> None:
        db.compact()
        self.seen["compactions"] += 1

    def _check_copy(self, path: Path, low: list[int]) -> None:
        outside = Outside(self.progress)
        with CoreNN.open(path, mode="r") as copy:
            observer = Observer(copy, self.setup, outside, 0)
            window = observer.window(low)
            observer.everything(window)
            if not copy.verify().ok:
                raise WrongAnswerError(f"a snapshot is not sound: {copy.verify()}")

    def _rest(self, *steps: int) -> None:
        """Let others go on for a while."""
        for _ in range(self.scheduler.random.choice(steps)):
            self.scheduler.point("rests")

    # --- readers ---------------------------------------------------------------------------------------------------

    def _readers(self, number: int) -> None:
        """Readers one after the other, each a process of its own."""
        while not self.over:
            process = self._process(f"reader {number}")
            self._within(process, lambda: self._read())
            self.scheduler.wait("power", lambda: self._outage is None)  # they open it after a writer has

    def _read(self) -> None:
        chance, outside = self.scheduler.random, Outside(self.progress)
        low = self.progress.acknowledged()
        db = self._opened(CoreNN.open(self.home, mode="r"))
        observer = Observer(db, self.setup, outside, chance.getrandbits(32))
        for _ in range(chance.randrange(1, 8)):
            window = observer.window(low)
            for _ in range(chance.randrange(4)):
                observer.look(window)
                self._rest(0, 0, 10, 200)  # meanwhile ids may be used again, but none that is seen here
            if self.over:
                break
            low = self.progress.acknowledged()
            db.refresh()
            self.seen["refreshes"] += 1
        if chance.random() < 0.3:
            self._own().dead = True
        db.close()
