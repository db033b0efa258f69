"""The disk, the clock and the chance of a simulated run, in the place of those that the engine uses.

Each process has a file layer of its own. Every call of it is a point at which others go on, the process may die, or the
disk may fail. Once a process is dead no call of it has any effect.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from corenn.graph.query import _plan
from corenn.graph.threads import Helpers
from corenn.storage import rocksdb
from corenn.storage.files import Files
from corenn.storage.residence import Residence
from corenn.storage.rocksdb import Rocks
from corenn.writer import Job, Request, Task, Write
from tests.faults.faulty import ERRORS, Call, Faults, FaultyFiles, FaultyRocks
from tests.faults.power import PoweredFiles, log_sizes
from tests.simulation.scheduler import KilledError, Process, Scheduler, stand_in

HOME = "database"  # the name of its folder
BROKEN_STEPS = (1, 1, 1, 5, 40)  # for how many calls the disk fails


class Weather(Faults):
    """When calls fail, and that they are points. often: the share of calls at which the disk begins to fail."""

    def __init__(self, scheduler: Scheduler, process: Process, often: float) -> None:
        super().__init__()
        self._scheduler, self._process, self._often = scheduler, process, often
        self._broken = 0
        self.failures = 0

    @property
    def dead(self) -> bool:
        return self._process.dead

    def heal(self) -> None:
        self._broken, self._often = 0, 0.0

    def point(self, name: str) -> None:
        """Others may go on; what is dead has no effect."""
        self._scheduler.point(name)
        if self._process.dead:  # called on the way out, or by a finalizer
            raise KilledError

    def step(self, name: str, call: Call, fail: Callable[[int], Exception]) -> Any:
        self.point(name)
        chance = self._scheduler.random
        if not self._broken and self._often and chance.random() < self._often:
            self._broken = chance.choice(BROKEN_STEPS)
            self.error, self.late = chance.choice([errno.ENOSPC, errno.EIO]), chance.random() < 0.5
        if not self._broken:
            return call()
        self._broken -= 1
        self.failures += 1
        if self.late or name == "rocks close":  # a store that fails to close is closed all the same
            call()
        raise fail(self.error)


class SimulatedRocks(FaultyRocks):
    """RocksDB whose every call is a point. logs: in which it is noted how much of each log is synced."""

    def __init__(
        self, weather: Weather, path: Path, log: Path | None, logs: dict[str, int] | None, *, lenient: bool = False
    ) -> None:
        self._weather, self._at, self._logs = weather, path, logs
        super().__init__(weather, path, log, lenient=lenient)

    def get(self, names: Any) -> Any:
        self._weather.point("rocks get")
        return super().get(names)

    def items(self, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        self._weather.point("rocks items")
        return super().items(start)

    def flush_wal(self, sync: bool) -> None:
        super().flush_wal(sync)
        if sync and self._logs is not None:
            self._logs.update(log_sizes(self._at))

    def try_catch_up_with_primary(self) -> None:
        self._weather.point("rocks catch up")
        super().try_catch_up_with_primary()

    def link(self, folder: Path) -> None:
        base = super()
        self._weather.step("rocks link", lambda: base.link(folder), lambda error: Exception(ERRORS[error]))

    def abandon(self) -> None:
        """Close, from outside, what a dead process has left open."""
        with suppress(Exception):
            self._rocks.close()


class SimulatedFiles(PoweredFiles):
    """The file layer of one process. disk: what all of them share."""

    def __init__(self, weather: Weather, disk: Disk) -> None:
        super().__init__(weather)
        self.weather = weather
        self.synced, self.logs = disk.synced, disk.logs
        self._open: dict[int, tuple[int, int]] = {}
        self._stores: list[SimulatedRocks] = []

    def rocks(self, path: Path, log: Path | None = None, *, lenient: bool = False) -> Rocks:
        noted = self.logs if log is None and not lenient and _at_home(path) else None
        made = SimulatedRocks(self.weather, path, log, noted, lenient=lenient)
        self._stores.append(made)
        return made

    def _opened(self, descriptor: int) -> int:
        status = os.fstat(descriptor)
        self._open[descriptor] = (status.st_dev, status.st_ino)
        return descriptor

    def open(self, path: Path, *, writable: bool, create: bool = False) -> int:
        self.weather.point(f"open {_label(path)}")
        return self._opened(super().open(path, writable=writable, create=create))

    def lock(self, path: Path) -> int | None:
        self.weather.point("lock")
        descriptor = Files.lock(self, path)  # never late: who has been told that it failed would hold it for ever
        return None if descriptor is None else self._opened(descriptor)

    def close(self, descriptor: int) -> None:
        known = self._open.pop(descriptor, None)
        if known is not None or not self.weather.dead:  # else the system has closed it, and it may be another's
            super().close(descriptor)

    def _step(self, name: str, path: Path, call: Call) -> Any:
        return super()._step(name, path.with_name(_label(path)), call)

    def sync(self, descriptor: int, path: Path) -> None:
        if _at_home(path):
            super().sync(descriptor, path)
        else:
            FaultyFiles.sync(self, descriptor, path)

    def read(self, descriptor: int, size: int, offset: int, path: Path) -> bytes:
        self.weather.point(f"read {_label(path)}")
        return super().read(descriptor, size, offset, path)

    def copy(self, source: int, target: int, size: int, offset: int, path: Path) -> None:
        base = super()
        self._step("copy", path, lambda: base.copy(source, target, size, offset, path))

    def truncate(self, descriptor: int, size: int, path: Path) -> None:
        base = super()
        self._step("truncate", path, lambda: base.truncate(descriptor, size, path))

    def remove(self, path: Path) -> None:
        base = super()
        self._step("remove", path, lambda: base.remove(path))

    def rename(self, source: Path, target: Path) -> None:
        def rename() -> None:
            Files.rename(self, source, target)
            if _at_home(source) and source.name in self.synced:  # at once: the process may be dead at the end of a step
                self.synced[target.name] = self.synced.pop(source.name)

        self._step("rename", source, rename)

    def remove_tree(self, path: Path) -> None:
        base = super()
        self._step("remove", path, lambda: base.remove_tree(path))

    def remove_unlocked(self, path: Path) -> bool:
        self.weather.point(f"look at {_label(path)}")
        return super().remove_unlocked(path)

    def move_folder(self, source: Path, target: Path) -> None:
        base = super()
        self._step("move", source, lambda: base.move_folder(source, target))

    def abandon(self) -> None:
        """What the system does when a process is gone: close its files, and with them its locks."""
        for store in self._stores:
            store.abandon()
        for descriptor, known in self._open.items():
            with suppress(OSError):
                status = os.fstat(descriptor)
                if (status.st_dev, status.st_ino) == known:  # else the engine has closed it, and it is another's
                    os.close(descriptor)
        self._open.clear()


class Disk:
    """What is synced, and which boot of the machine it is."""

    def __init__(self) -> None:
        self.synced: dict[str, bytes] = {}
        self.logs: dict[str, int] = {}
        self.boot = "boot 1"


def _at_home(path: Path) -> bool:
    """Whether a file is one of the database, and neither of a snapshot nor of a later generation."""
    return path.parent.name == HOME or path.parent.name.startswith(f".{HOME}.creating")


def _label(path: Path) -> str:
    """A name without what differs from run to run."""
    if path.parent.name == "readers":
        return "reader"
    return path.name.split("-")[0].split(".making")[0]


# --- everything else that is not the same each time -----------------------------------------------------------------


def _options(make: Callable[[], Any]) -> Callable[[], Any]:
    def quiet() -> Any:
        options = make()
        options.set_disable_auto_compactions(True)  # its threads rewrite tables when they like
        return options

    return quiet


def _with_events(init: Callable[..., None], event: Callable[[], Any]) -> Callable[..., None]:
    def begin(self: Any, *given: Any, **named: Any) -> None:
        init(self, *given, **named)
        self.done = event()

    return begin


def _helping(scheduler: Scheduler) -> Callable[..., None]:
    run = Helpers.run

    def one_by_one(
        self: Helpers, work: Callable[[int, int], None], count: int, step: int, threads: int | None = None
    ) -> None:
        def part(start: int, stop: int) -> None:
            scheduler.point("range")
            work(start, stop)

        run(self, part, count, step, 1)

    return one_by_one


@contextmanager
def _looked_at_once(self: Residence) -> Iterator[None]:
    self.look()
    yield
    self.look()


THREADED = (
    "writer", "database", "storage.readers", "storage.residence", "storage.slab", "storage.store", "graph.calibrate",
    "graph.bulk",
)  # fmt: skip
SMALL: dict[str, Any] = {  # so that everything happens among a few hundred rows
    "corenn.graph.query.FEW_ROWS": 8,
    "corenn.graph.mend.LEAST": 4,
    "corenn.graph.mend.MEND_ROWS": 32,
    "corenn.graph.mend.SWEEP_ROWS": 64,
    "corenn.graph.insert.FIRST_ROWS": 8,
    "corenn.writer.CHECKPOINT_DEAD": 16,
    "corenn.writer.CHECKPOINT_ROWS": 200,
    "corenn.writer.CHECKPOINT_COMMITS": 40,
    "corenn.writer.IDLE_ROWS": 8,
    "corenn.writer.MENDED_PER_CHANGE": 4,
    "corenn.storage.rocks.BATCH_BYTES": 1500,
    "corenn.storage.rocks.RECORD_WORDS": 24,
    "corenn.storage.slab.FileSlab.LEAST_BYTES": 2048,
    "corenn.graph.codes.LEAST_TRAINED": 16,
    "corenn.graph.recode.LEAST_TRAINED": 16,
    "corenn.graph.recode.LEAST_ROWS": 8,
    "corenn.graph.codebook.ROUNDS": 2,
    "corenn.graph.disk.STEP_ROWS": 16,
    "corenn.storage.residence.GRAIN": 2,
    "corenn.graph.calibrate.SAMPLES": 24,
    "corenn.graph.calibrate.ALWAYS": (1,),
    "corenn.graph.calibrate.LONGEST": 64,
}


@contextmanager
def simulated(scheduler: Scheduler, files: Callable[[], SimulatedFiles], disk: Disk) -> Iterator[None]:
    """Let the engine live in this world. files: the file layer of the process that asks."""
    chance = random.Random(scheduler.random.random())
    threads = stand_in(scheduler)
    clock = SimpleNamespace(
        monotonic=scheduler.now,
        perf_counter=scheduler.now,
        time=scheduler.now,
        sleep=lambda seconds: scheduler.point("sleep"),
    )
    secrets = SimpleNamespace(token_hex=lambda n: chance.randbytes(n).hex(), randbits=chance.getrandbits)
    replaced: dict[str, Any] = {
        **{f"corenn.{name}.threading": threads for name in THREADED},
        **{
            f"corenn.{name}.time": clock
            for name in (
                "writer",
                "graph.calibrate",
                "graph.disk",
                "graph.recode",
                "storage.residence",
                "storage.rocks",
                "storage.rocks_copy",
                "storage.readers",
            )
        },
        **{f"corenn.storage.{name}.secrets": secrets for name in ("readers", "changes", "draft", "store")},
        **{
            f"corenn.storage.{name}.boot_id": (lambda: disk.boot)
            for name in ("rocks", "rocks_copy", "store", "changes")
        },
        "corenn.database.Files": files,
        "corenn.graph.threads.cpu_count": lambda: 1,
        # What is resident is not the same each time: there is always too much, and nothing that others have.
        "corenn.storage.residence.mapped_bytes": lambda: 1 << 40,
        "corenn.storage.residence.mapped_of": lambda path: 1 << 40,
        "corenn.storage.residence.private_bytes": lambda: 0,
        "corenn.storage.residence.give_back_heap": lambda: None,
        "corenn.storage.residence.Residence.watched": _looked_at_once,
        "corenn.storage.residence.Residence.check": lambda self, fixed, limit=None: None,
        "corenn.storage.rocks.RocksMetadata.live_within": lambda self, size: None,  # its threads write when they like
        "corenn.graph.threads.Helpers.run": _helping(scheduler),
        "corenn.storage.rocksdb._options": _options(rocksdb._options),
        **SMALL,
    }
    _plan.cache_clear()  # what is remembered of an earlier run would leave steps out
    with ExitStack() as stack:
        for kind in (Request, Write, Task, Job):
            stack.enter_context(patch.object(kind, "__init__", _with_events(kind.__init__, threads.Event)))
        for name, value in replaced.items():
            stack.enter_context(patch(name, value))
        yield
