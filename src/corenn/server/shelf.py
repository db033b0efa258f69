"""The collections of a root, open while they are used, and never more of them than may be."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from itertools import count
from typing import TypeAlias, TypeVar

from ..database import CoreNN
from ..errors import OverloadedError
from ..root import Root
from ..types import Recall
from .batches import Batches
from .limits import Limits

T = TypeVar("T")
Batcher: TypeAlias = Callable[[CoreNN], Batches]


class Entry:
    """One open collection, and what is under way in it."""

    __slots__ = ("batches", "database", "name", "recall", "used", "users", "writes")

    def __init__(self, name: str, database: CoreNN, batches: Batches) -> None:
        self.name, self.database, self.batches = name, database, batches
        self.users = self.used = self.writes = 0
        self.recall: Recall | None = None  # as it was measured last

    def leave(self) -> None:
        """One user less."""
        self.users -= 1


class Shelf:
    """Opens, closes, makes and drops the collections of a root. Used by the event loop alone; the rest is done in
    `pool`, one at a time.
    """

    def __init__(self, root: Root, limits: Limits, pool: Executor, batcher: Batcher) -> None:
        self.root, self._limits, self._pool, self._batcher = root, limits, pool, batcher
        self.open: dict[str, Entry] = {}
        self._turns = count()
        self._changing = asyncio.Lock()

    async def enter(self, name: str) -> Entry:
        """A collection, opened if it is not, and kept open until its `leave` is called.

        Raises:
            CollectionNotFoundError, OverloadedError, and what opening raises
        """
        entry = self.open.get(name)
        while entry is None or entry.database.closed:
            entry = await self._opened(name)
        entry.users += 1
        entry.used = next(self._turns)
        return entry

    async def create(self, name: str, make: Callable[[], CoreNN]) -> CoreNN:
        """Make a collection, unless there are as many as there may be.

        Raises:
            LimitError, and what making raises
        """
        async with self._changing:
            self._limits.within("collections", len(await self.names()) + 1, "the number of collections")
            await self._make_room()
            made = await self.run(make)
            self._keep(name, made)
            return made

    async def drop(self, name: str) -> None:
        """Remove a collection. Whoever is at work in it gets an error."""
        async with self._changing:
            self.open.pop(name, None)
            await self.run(lambda: self.root.drop(name))

    async def names(self) -> list[str]:
        """The names of all collections, sorted."""
        return await self.run(self.root.list)

    async def run(self, call: Callable[[], T]) -> T:
        """Call something that waits for the disk, off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    async def _opened(self, name: str) -> Entry:
        async with self._changing:
            entry = self.open.get(name)
            if entry is None or entry.database.closed:
                self.open.pop(name, None)
                await self._make_room()
                entry = self._keep(name, await self.run(lambda: self.root[name]))
            return entry

    def _keep(self, name: str, database: CoreNN) -> Entry:
        entry = self.open[name] = Entry(name, database, self._batcher(database))
        return entry

    async def _make_room(self) -> None:
        """Close the collection that nobody has used for longest, if as many are open as may be."""
        if len(self.open) < self._limits.open_collections:
            return
        idle = [(entry.used, name) for name, entry in self.open.items() if not entry.users]
        if not idle:
            raise OverloadedError(f"{len(self.open):,} collections are open and in use, as many as may be; try again")
        closed = self.open.pop(min(idle)[1])
        await self.run(closed.database.close)
