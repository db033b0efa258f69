"""Rules out queries that are mixed up, left waiting, or made to wait for company when they are answered together."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from corenn import DeadlineError, OverloadedError
from corenn.server.batches import BATCH_SECONDS, LEAST, Batches
from corenn.server.faults import RefusedError

FOREVER = time.monotonic() + 10**6


class Engine:
    """Answers a number by its double, when it is let to."""

    def __init__(self) -> None:
        self.batches: list[tuple[Any, list[int]]] = []
        self.open = threading.Event()
        self.entered = threading.Semaphore(0)

    def answer(self, kind: Any, queries: Sequence[int], until: float) -> list[Any]:
        self.batches.append((kind, list(queries)))
        self.entered.release()
        assert self.open.wait(30)
        if kind == "broken":
            raise ValueError("broken")
        return [2 * each for each in queries]


def run(test: Callable[[Engine, Batches], Coroutine[Any, Any, None]], most: int = 1000) -> Engine:
    """Run a test with one thread that answers."""
    engine = Engine()

    async def everything() -> None:
        with ThreadPoolExecutor(1) as pool:
            await test(engine, Batches(engine.answer, pool, 1, most))

    asyncio.run(everything())
    return engine


async def asked(batches: Batches, engine: Engine, *queries: tuple[Any, int]) -> list[asyncio.Task[Any]]:
    """Ask one query, and when it is being answered the others."""
    tasks = [asyncio.create_task(batches.ask("first", 0, FOREVER))]
    await asyncio.sleep(0)
    assert await asyncio.to_thread(engine.entered.acquire, timeout=30)
    tasks += [asyncio.create_task(batches.ask(*each, FOREVER)) for each in queries]
    await asyncio.sleep(0)
    return tasks


def test_a_query_that_comes_alone_does_not_wait_for_company() -> None:
    async def test(engine: Engine, batches: Batches) -> None:
        engine.open.set()
        assert [await batches.ask("kind", n, FOREVER) for n in range(3)] == [0, 2, 4]

    assert run(test).batches == [("kind", [0]), ("kind", [1]), ("kind", [2])]


def test_those_that_wait_are_answered_together_by_their_kind() -> None:
    async def test(engine: Engine, batches: Batches) -> None:
        tasks = await asked(batches, engine, ("a", 1), ("b", 2), ("a", 3), ("b", 4))
        engine.open.set()
        assert await asyncio.gather(*tasks) == [0, 2, 4, 6, 8]

    assert run(test).batches == [("first", [0]), ("a", [1, 3]), ("b", [2, 4])]


def test_batches_are_no_larger_than_what_was_measured_allows() -> None:
    async def test(engine: Engine, batches: Batches) -> None:
        tasks = await asked(batches, engine, *(("a", n) for n in range(2 * LEAST + 1)))
        assert batches.largest == LEAST  # nothing has been measured yet
        await asyncio.sleep(2 * BATCH_SECONDS)  # the first is slow
        engine.open.set()
        await asyncio.gather(*tasks)

    assert [len(queries) for _, queries in run(test).batches[:2]] == [1, LEAST]


def test_an_error_fails_its_batch_alone() -> None:
    async def test(engine: Engine, batches: Batches) -> None:
        tasks = await asked(batches, engine, ("broken", 1), ("a", 2), ("broken", 3))
        engine.open.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [found[0], found[2]] == [0, 4]
        assert [type(found[1]), type(found[3])] == [ValueError, ValueError]
        assert await batches.ask("a", 5, FOREVER) == 10

    run(test)


def test_whoever_has_gone_or_is_late_is_left_out() -> None:
    async def test(engine: Engine, batches: Batches) -> None:
        tasks = await asked(batches, engine, ("a", 1), ("a", 2))
        late = asyncio.create_task(batches.ask("a", 3, time.monotonic()))
        await asyncio.sleep(0)
        tasks[1].cancel()
        engine.open.set()
        assert await tasks[2] == 4
        with pytest.raises(DeadlineError):
            await late

    assert run(test).batches == [("first", [0]), ("a", [2])]


def test_too_many_are_refused() -> None:
    async def test(engine: Engine, batches: Batches) -> None:
        tasks = await asked(batches, engine, ("a", 1), ("a", 2))
        with pytest.raises(RefusedError) as refused:
            await batches.ask("a", 3, FOREVER)
        assert refused.value.status == 429
        assert isinstance(refused.value.error, OverloadedError)
        engine.open.set()
        await asyncio.gather(*tasks)

    run(test, most=2)
