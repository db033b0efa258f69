"""What all requests share: the root, the threads, the limits and the figures."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ..database import CoreNN
from ..deadline import deadline
from ..errors import CoreNNError, InvalidArgumentError, OverloadedError
from ..names import check_name
from ..root import Root
from ..storage.files import translated
from ..storage.platform import cpu_count
from .batches import Batches
from .faults import RefusedError, busy
from .keys import Keys
from .limits import Limits
from .metrics import Metrics, Present
from .replays import Replays
from .search import Searcher
from .shelf import Entry, Shelf

T = TypeVar("T")
log = logging.getLogger("corenn.server")
WRITERS = 16  # threads that wait for commits: so many writes share one, at most
SNAPSHOTS = ".snapshots"
DRAIN_SECONDS = 30.0  # that requests under way have at the end
SAMPLED, SAMPLED_K, SAMPLED_SECONDS = 100, 10, 10.0  # rows by which recall is measured in the background, in how long


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a server is to be run. collection: that `/insert` and `/query` go to. slow_query: seconds, from which on one
    is logged. log_requests: log every request. local: answer only who names this machine as localhost. measure_recall:
    seconds between two measurements of recall, 0 for none.
    """

    limits: Limits = field(default_factory=Limits)
    keys: Keys = field(default_factory=Keys)
    memory_limit: int | str | None = None
    collection: str | None = None
    slow_query: float = 1.0
    log_requests: bool = False
    local: bool = True
    measure_recall: float = 0.0


class Service:
    """One root, served. Used by the event loop alone; what takes time goes to threads."""

    def __init__(self, path: Path, options: Options) -> None:
        self.path, self.options, self.limits = path, options, options.limits
        self.metrics, self.replays = Metrics(), Replays()
        threads = cpu_count()
        self.readers = _pool(threads, "read")
        self.writers = _pool(WRITERS, "write")
        self._jobs = _pool(self.limits.jobs, "job")
        self._files = _pool(1, "files")
        self._searchers = _pool(threads, "query")
        self._threads, self._working, self._held = threads, 0, 0
        self.shelf: Shelf  # once it has started
        self.started = self.closing = False
        self._measuring: asyncio.Task[None] | None = None

    # --- its life --------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the root.

        Raises: what `Root` raises
        """
        root = await self.in_thread(self._files, lambda: Root(self.path, memory_limit=self.options.memory_limit))
        self.shelf = Shelf(root, self.limits, self._files, self._batches)
        self.started = True
        if self.options.measure_recall:
            self._measuring = asyncio.create_task(self._measure_recall(self.options.measure_recall))

    async def drain(self, inside: Callable[[], int]) -> None:
        """Take in nothing more, and finish what is under way. inside: requests that are being served."""
        self.closing = True
        if self._measuring is not None:
            self._measuring.cancel()
        until = time.monotonic() + DRAIN_SECONDS
        while inside() and time.monotonic() < until:
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """Bring everything to the disk, and close the root."""
        if not self.started:
            return
        for entry in list(self.shelf.open.values()):
            with suppress(CoreNNError):
                await self.in_thread(self._files, entry.database.checkpoint)
        await self.in_thread(self._files, self.shelf.root.close)
        for pool in (self.readers, self.writers, self._jobs, self._files, self._searchers):
            pool.shutdown(wait=False, cancel_futures=True)
        log.info("all collections are closed")

    def _batches(self, database: CoreNN) -> Batches:
        searcher = Searcher(database)
        return Batches(
            searcher.answer, self._searchers, self._threads, self.limits.queries, self.metrics.searched
        )  # fmt: skip

    def hold(self, size: int) -> None:
        """Keep the body of a request until `let_go`, unless too much is being kept.

        Raises:
            OverloadedError
        """
        if self._held and self._held + size > self.limits.bodies:
            raise OverloadedError(f"bodies of {self._held:,} bytes are being worked on, as many as this server takes")
        self._held += size

    def let_go(self, size: int) -> None:
        """The body of a request is no longer needed."""
        self._held -= size

    # --- threads ---------------------------------------------------------------------------------------------------

    async def in_thread(self, pool: Executor, call: Callable[[], T]) -> T:
        """Call something in a thread of a pool. Who stops waiting does not stop it."""
        return await asyncio.get_running_loop().run_in_executor(pool, call)

    async def job(self, call: Callable[[], T], until: float | None) -> T:
        """Do something long, of which only so much is done at a time. until: see `deadline`; None to go on to the end.

        Raises:
            RefusedError: with 429 if too much is under way.
        """
        if self._working >= self.limits.jobs:
            raise busy(f"{self._working} jobs are under way already")
        self._working += 1

        def work() -> T:
            if until is None:
                return call()
            with deadline(until):
                return call()

        try:
            return await self.in_thread(self._jobs, work)
        finally:
            self._working -= 1

    async def _measure_recall(self, every: float) -> None:
        """Measure the recall of each open collection now and then, on one thread and with a bound on its time."""
        while True:
            await asyncio.sleep(every)
            for entry in list(self.shelf.open.values()):
                with suppress(CoreNNError, RefusedError):  # it is closed, or there is too much else to do
                    measure = partial(entry.database.recall, SAMPLED_K, SAMPLED, threads=1)
                    entry.recall = await self.job(measure, time.monotonic() + SAMPLED_SECONDS)

    # --- what routes ask for -----------------------------------------------------------------------------------------

    def snapshot_path(self, collection: str, name: str) -> Path:
        """Where a snapshot goes: always below the root, whatever it is called.

        Raises:
            InvalidArgumentError
        """
        root = self.path.resolve()
        path = root / SNAPSHOTS / check_name(collection) / check_name(name)
        with translated("create", path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.resolve() != path:
                raise InvalidArgumentError(f"{SNAPSHOTS}/{collection}/{name} leads out of it by a symbolic link")
        return path

    async def figures(self) -> bytes:
        """What `/metrics` answers."""
        entries, jobs = dict(self.shelf.open), self._working
        queues = {name: {"queries": len(each.batches), "writes": each.writes} for name, each in entries.items()}

        def text() -> bytes:
            return self.metrics.text(Present(_states(entries), queues, len(self.shelf.root.list()), jobs))

        return await self.in_thread(self.readers, text)


def _states(entries: dict[str, Entry]) -> dict[str, Any]:
    """What the open collections tell of themselves, but for those that have been closed since."""
    found: dict[str, Any] = {}
    for name, entry in entries.items():
        with suppress(CoreNNError):
            found[name] = entry.database.stats(), entry.recall
    return found


def _pool(threads: int, name: str) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix=f"corenn-{name}")
