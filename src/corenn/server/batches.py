"""Queries that arrive together are searched together.

A query that comes while nobody searches is searched at once, with those that have come in the same moment. Those that
come meanwhile wait, and the thread that is done takes all of one kind that wait, up to as many as were answered in a
bounded time so far: so batches grow with the load, and nobody waits for company. Another thread joins in where what
waits is worth one: threads that answer small batches take the interpreter from each other and from the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

from ..errors import DeadlineError, OverloadedError
from .faults import busy

BATCH_SECONDS = 0.01  # that a batch is to last at most
WORTH_A_THREAD = BATCH_SECONDS / 2  # of searching that waits, for which another thread joins in
LEAST, MOST = 4, 256  # queries of a batch, whatever was measured
MEMORY = 0.8  # how slowly what was measured is forgotten

Answer: TypeAlias = Callable[[Any, Sequence[Any], float], Sequence[Any]]
Told: TypeAlias = Callable[[Sequence[Any], float], None]


def _nobody(answers: Sequence[Any], seconds: float) -> None:
    """Nobody wants to know."""


@dataclass(slots=True)
class Waiting:
    """One query, and who waits for it."""

    kind: Hashable
    what: Any
    until: float
    done: asyncio.Future[Any]


class Batches:
    """The queries of one collection. Used by the event loop alone; `answer` is called by threads of `pool`.

    answer(kind, queries, until): the answers to queries of one kind, in their order, before a moment of
    `time.monotonic()`; an exception fails all of them, an answer that is one fails its query.
    told(answers, seconds): called by the event loop with the answers of a batch, and how long they took.
    """

    def __init__(
        self, answer: Answer, pool: Executor, threads: int, most_waiting: int, told: Told = _nobody
    ) -> None:  # fmt: skip
        self._answer, self._pool, self._threads, self._most, self._told = answer, pool, threads, most_waiting, told
        self._waiting: deque[Waiting] = deque()
        self._busy = 0
        self._called = False
        self._seconds = BATCH_SECONDS / LEAST  # per query, as it was measured

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def largest(self) -> int:
        """Queries that are answered together, at most."""
        return max(LEAST, min(MOST, int(BATCH_SECONDS / self._seconds)))

    async def ask(self, kind: Hashable, what: Any, until: float) -> Any:
        """The answer to one query.

        Raises:
            RefusedError: with 429 if too many wait.
            DeadlineError: if its turn does not come before `until`.
        """
        if len(self._waiting) >= self._most:
            raise busy(f"{self._most:,} queries of this collection wait already")
        loop = asyncio.get_running_loop()
        one = Waiting(kind, what, until, loop.create_future())
        self._waiting.append(one)
        if not self._called:
            self._called = True
            loop.call_soon(self._look, loop)  # once all that has arrived is here
        return await one.done

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start as many threads as what waits is worth."""
        self._called = False
        while self._waiting and self._busy < self._threads:
            if self._busy and len(self._waiting) * self._seconds < WORTH_A_THREAD:
                return
            self._start(loop)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Search for those that wait longest, and others of their kind, in one thread."""
        batch = self._taken()
        if not batch:
            return
        self._busy += 1
        with suppress(RuntimeError):  # the pool is closing, and so is the server
            self._pool.submit(self._search, batch, loop)
            return
        self._busy -= 1
        for one in batch:
            _settle(one, OverloadedError("the server is shutting down; try again"))

    def _taken(self) -> list[Waiting]:
        now, most = time.monotonic(), self.largest
        batch: list[Waiting] = []
        left: deque[Waiting] = deque()
        while self._waiting and len(batch) < most:
            one = self._waiting.popleft()
            if one.done.done():  # whoever asked has gone
                continue
            if one.until <= now:
                _settle(one, DeadlineError("its turn did not come before the deadline; ask again, or allow more time"))
            elif not batch or one.kind == batch[0].kind:
                batch.append(one)
            else:
                left.append(one)
        self._waiting.extendleft(reversed(left))
        return batch

    def _search(self, batch: list[Waiting], loop: asyncio.AbstractEventLoop) -> None:
        """In a thread."""
        began = time.perf_counter()
        answers: Sequence[Any]
        try:
            answers = self._answer(batch[0].kind, [one.what for one in batch], max(one.until for one in batch))
        except Exception as error:  # noqa: BLE001 (it is raised again for each that waits)
            answers = [error] * len(batch)
        took = time.perf_counter() - began
        with suppress(RuntimeError):  # the loop is gone
            loop.call_soon_threadsafe(self._finish, batch, answers, took, loop)

    def _finish(
        self, batch: list[Waiting], answers: Sequence[Any], took: float, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._busy -= 1
        self._seconds = MEMORY * self._seconds + (1 - MEMORY) * took / len(batch)
        self._look(loop)
        for one, answer in zip(batch, answers, strict=True):
            _settle(one, answer)
        self._told(answers, took)


def _settle(one: Waiting, answer: Any) -> None:
    if one.done.done():
        return
    if isinstance(answer, BaseException):
        one.done.set_exception(answer)
    else:
        one.done.set_result(answer)
