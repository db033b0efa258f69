"""Actors of which one runs at a time, in an order that a seed decides.

An actor is a thread. It runs until it comes to a *point*: a call of the file layer or of RocksDB, a wait, a line of the
engine now and then. There it draws who goes on. Waiting is a condition that is looked at before each draw; a time-out
is drawn as well. So the same seed makes the same steps, and the clock is counted in them.

Actors belong to processes. When one dies, each of its actors ends at its next step, by an exception that nothing
catches, and nothing that it does on the way out has an effect: see world.py.
"""

from __future__ import annotations

import _thread
import hashlib
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType, SimpleNamespace, TracebackType
from typing import Any

TIMEOUTS = 0.15  # how often a time-out is over while others could go on
TICK = 0.001  # seconds that a step takes
MOST_STEPS = 400_000


class KilledError(BaseException):
    """The process of this actor is dead."""


class StuckError(AssertionError):
    """Nobody can go on, or it never ends."""


@dataclass(eq=False)
class Process:
    """What dies together. clean: called with the exception that ends an actor, if it was not meant to."""

    name: str
    dead: bool = False
    actors: list[Actor] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        return all(actor.ended for actor in self.actors)


@dataclass(eq=False)
class Actor:
    """One thread. waits: what it waits for, None if it can go on; timed: whether it also goes on without that."""

    name: str
    process: Process
    work: Callable[[], object]
    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    waits: Callable[[], bool] | None = None
    timed: bool = False
    ended: bool = False
    at: str = ""


class Scheduler:
    """Runs actors until all have ended.

    preempt: share of the lines of the engine at which another may go on. watch: called at every point, before the draw.
    """

    def __init__(self, seed: int, *, preempt: float = 0.0, traced: bool = False) -> None:
        self.random = random.Random(seed)
        self.steps = 0
        self.failure: BaseException | None = None
        self.preempt, self.traced = preempt, traced
        self._watch: Callable[[Process], None] | None = None
        self._actors: list[Actor] = []
        self._done = threading.Semaphore(0)
        self._hash = hashlib.blake2b(digest_size=16)
        self._threads: dict[int, Actor] = {}
        self._serials: dict[str, int] = {}
        self._countdown = 0

    # --- who runs --------------------------------------------------------------------------------------------------

    @property
    def current(self) -> Actor | None:
        """The actor that calls, None in any other thread."""
        return self._threads.get(_thread.get_ident())

    @property
    def trace(self) -> str:
        """A hash of all steps so far."""
        return self._hash.hexdigest()

    def now(self) -> float:
        """Seconds, by the steps: two looks at the clock never give the same."""
        self.steps += 1
        return self.steps * TICK

    def run(self, work: Callable[[], object]) -> None:
        """Run an actor, and all that it spawns, to the end.

        Raises: what any of them has raised first.
        """
        self.spawn("director", Process("director"), work)
        self._draw().turn.release()
        self._done.acquire()
        if self.failure is not None:
            raise self.failure

    def spawn(self, name: str, process: Process, work: Callable[[], object]) -> Actor:
        """A new actor, which can go on from now on."""
        serial = self._serials[name] = self._serials.get(name, 0) + 1
        actor = Actor(f"{name}-{serial}", process, work)
        self._actors.append(actor)
        process.actors.append(actor)
        _thread.start_new_thread(self._begin, (actor,))
        return actor

    def _begin(self, actor: Actor) -> None:
        actor.turn.acquire()
        self._threads[_thread.get_ident()] = actor
        if self.preempt:
            sys.settrace(self._on_call)
        try:
            self._check(actor)
            actor.work()
        except KilledError:
            pass
        except BaseException as error:  # noqa: BLE001 - raised by run()
            self._fail(actor, error)
        finally:
            sys.settrace(None)
        del self._threads[_thread.get_ident()]
        actor.ended = True
        self._actors.remove(actor)
        if self._actors:
            self._draw().turn.release()
        else:
            self._done.release()

    def _fail(self, actor: Actor, error: BaseException) -> None:
        """The first error ends the run: everything dies."""
        if self.failure is None and not actor.process.dead:
            error.add_note(f"in {actor.name} of {actor.process.name}, step {self.steps}")
            self.failure = error
            self.stop()

    def stop(self) -> None:
        """Let all processes die."""
        for actor in self._actors:
            actor.process.dead = True

    def _draw(self) -> Actor:
        ready, timed = [], []
        for actor in self._actors:
            if actor.waits is None or actor.process.dead or actor.waits():
                ready.append(actor)
            elif actor.timed:
                timed.append(actor)
        if timed and (not ready or self.random.random() < TIMEOUTS):
            return self.random.choice(timed)
        if not ready:
            waiting = ", ".join(f"{actor.name} {actor.at}" for actor in self._actors)
            self.failure = self.failure or StuckError(f"nobody can go on: {waiting}")
            self.stop()
            return self._actors[0]
        return self.random.choice(ready)

    # --- points ----------------------------------------------------------------------------------------------------

    def watched(self, watch: Callable[[Process], None]) -> None:
        """Be told of every step of a process that lives."""
        self._watch = watch

    def point(self, name: str) -> None:
        """Another may go on here. Does nothing outside the simulation.

        Raises:
            KilledError: if the process is dead.
        """
        self._switch(name, None, timed=False)

    def wait(self, name: str, until: Callable[[], bool], *, timed: bool = False) -> bool:
        """Wait for a condition; returns whether it holds. timed: until then or any time earlier.

        Raises:
            KilledError: if the process is dead.
        """
        if self.current is None:  # outside there is nobody to wait for
            if not until() and not timed:
                raise StuckError(f"{name}: nobody is there who could let it go on")
            return until()
        self._switch(name, until, timed=timed)
        return until()

    def _switch(self, name: str, until: Callable[[], bool] | None, *, timed: bool) -> None:
        actor = self.current
        if actor is None:
            return
        self._check(actor)
        self.steps += 1
        actor.at, actor.waits, actor.timed = name, until, timed
        self._note(actor, name)
        if self._watch is not None:
            self._watch(actor.process)
        if self.steps > MOST_STEPS and self.failure is None:
            self.failure = StuckError(f"{MOST_STEPS} steps and no end, {actor.name} at {name}")
            self.stop()
        following = self._draw()
        if following is not actor:
            following.turn.release()
            actor.turn.acquire()
        actor.waits, actor.timed = None, False
        self._check(actor)

    def _check(self, actor: Actor) -> None:
        if actor.process.dead:
            raise KilledError

    def _note(self, actor: Actor, name: str) -> None:
        line = f"{actor.name} {name}\n"
        self._hash.update(line.encode())
        if self.traced:
            sys.stdout.write(f"{self.steps:7} {line}")

    # --- lines of the engine ---------------------------------------------------------------------------------------

    def _on_call(self, frame: FrameType, event: str, argument: object) -> Any:
        return self._on_line if "/corenn/" in frame.f_code.co_filename and _may_stop(frame) else None

    def _on_line(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "line":
            self._countdown -= 1
            if self._countdown < 0:
                self._countdown = int(self.random.expovariate(self.preempt))
                self.point(f"{frame.f_code.co_name}:{frame.f_lineno}")
        return self._on_line


_LINES = (
    "database.py",
    "writer.py",
    "readers.py",
    "query.py",
    "mend.py",
    "insert.py",
    "view.py",
    "commit.py",
    "store.py",
)


def _may_stop(frame: FrameType) -> bool:
    return frame.f_code.co_filename.endswith(_LINES)


# --- what stands in for the module `threading` ----------------------------------------------------------------------


class Lock:
    """Held by one actor; with `again`, as often as it likes."""

    def __init__(self, scheduler: Scheduler, *, again: bool = False) -> None:
        self._scheduler, self._again = scheduler, again
        self._owner: object = None
        self._depth = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        me = self._scheduler.current or "outside"
        if self._again and self._owner is me:
            self._depth += 1
            return True
        if blocking:
            self._scheduler.wait("lock", lambda: self._owner is None, timed=timeout >= 0)
        if self._owner is not None:
            return False
        self._owner, self._depth = me, 1
        return True

    def release(self) -> None:
        if self._owner is not (self._scheduler.current or "outside"):
            return  # of one who was killed while he waited for it
        self._depth -= 1
        if not self._depth:
            self._owner = None

    def locked(self) -> bool:
        return self._owner is not None

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Event:
    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler, self._set = scheduler, False

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True

    def clear(self) -> None:
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        return self._scheduler.wait("event", self.is_set, timed=timeout is not None)


class Condition(Lock):
    """A condition and its lock."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__(scheduler, again=True)
        self._notified = 0

    def notify_all(self) -> None:
        self._notified += 1

    def notify(self, n: int = 1) -> None:
        self._notified += 1  # to wake too many is allowed

    def wait(self, timeout: float | None = None) -> bool:
        before, depth = self._notified, self._depth
        self._owner, self._depth = None, 0
        told = self._scheduler.wait("condition", lambda: self._notified != before, timed=timeout is not None)
        self._scheduler.wait("lock", lambda: self._owner is None)
        self._owner, self._depth = self._scheduler.current, depth
        return told

    def wait_for(self, predicate: Callable[[], bool], timeout: float | None = None) -> bool:
        while not predicate():
            if not self.wait(timeout) and timeout is not None:
                return predicate()
        return True


class Thread:
    def __init__(self, scheduler: Scheduler, target: Callable[..., object], name: str, args: tuple[Any, ...]) -> None:
        self._scheduler, self._target, self.name, self._args = scheduler, target, name, args
        self._actor: Actor | None = None

    def start(self) -> None:
        starting = self._scheduler.current
        assert starting is not None, "threads of a simulation are started by its actors"
        self._actor = self._scheduler.spawn(self.name, starting.process, lambda: self._target(*self._args))

    def join(self, timeout: float | None = None) -> None:
        actor = self._actor
        assert actor is not None
        self._scheduler.wait("join", lambda: actor.ended, timed=timeout is not None)

    def is_alive(self) -> bool:
        return self._actor is not None and not self._actor.ended


def stand_in(scheduler: Scheduler) -> SimpleNamespace:
    """What stands in for `threading`, as far as the engine uses it."""

    def thread(
        target: Callable[..., object], name: str = "thread", args: tuple[Any, ...] = (), daemon: bool = False
    ) -> Thread:
        return Thread(scheduler, target, name, args)

    return SimpleNamespace(
        Lock=lambda: Lock(scheduler),
        RLock=lambda: Lock(scheduler, again=True),
        Event=lambda: Event(scheduler),
        Condition=lambda: Condition(scheduler),
        Thread=thread,
        current_thread=lambda: scheduler.current,
    )


@contextmanager
def undisturbed(scheduler: Scheduler) -> Iterator[None]:
    """No line of the engine is a point here."""
    before, scheduler._countdown = scheduler._countdown, sys.maxsize
    try:
        yield
    finally:
        scheduler._countdown = before
