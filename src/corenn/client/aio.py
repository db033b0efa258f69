"""The client of asyncio: as the other one, with calls to be awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any, TypeVar

import httpx

from ..config import Settings
from ..errors import CollectionNotFoundError
from ..names import check_name
from ..types import Copied, Facet, Key, Payload, Recall, Record, Stats
from . import calls
from .calls import Call
from .http import Server, as_answer, as_trust
from .parts import Parts, given
from .retries import Retries, check_retries

T = TypeVar("T")


class AsyncClient:
    """A root that `corenn serve` serves: collections by name, as `Root` has them. For one event loop.

    Calls that fail because the server is busy, restarting or out of reach are repeated; a write that is has been
    done once all the same, unless the server was restarted in between.
    """

    def __init__(
        self, url: str, api_key: str | None = None, *, timeout: float = 30.0, retries: int = 4, verify: Any = True
    ) -> None:
        """Nothing is sent yet.

        url: such as "http://127.0.0.1:4224". api_key: one of the server's keys. timeout: seconds for each call, which
        the server keeps to as well. retries: how often a call is repeated at most. verify: a file of
        certificates to trust, in PEM form, or as httpx takes it, such as an `ssl.SSLContext`.

        Raises:
            InvalidArgumentError
        """
        self._server, self._retries = Server(url, api_key, timeout), check_retries(retries)
        self._http = httpx.AsyncHTTPTransport(verify=as_trust(verify), trust_env=False)

    async def create(
        self, name: str, *, dim: int, metric: str = "cosine", dtype: str = "f32", durability: str = "os",
        **settings: Any,
    ) -> AsyncCollection:  # fmt: skip
        """Make a collection; arguments as for `CoreNN.create`.

        Raises:
            DatabaseExistsError, InvalidArgumentError, InvalidSettingError, LimitError, AccessError, ServerError
        """
        chosen = {"dim": dim, "metric": metric, "dtype": dtype, "durability": durability, **settings}
        await self._send(calls.create(check_name(name), chosen))
        return AsyncCollection(self, name)

    def __getitem__(self, name: str) -> AsyncCollection:
        """The collection of a name, whether there is one or not: the first call that is made of it will tell.

        Raises:
            InvalidArgumentError
        """
        return AsyncCollection(self, check_name(name))

    async def has(self, name: str) -> bool:
        """Whether there is a collection of a name."""
        try:
            await self._send(calls.state(check_name(name)))
        except CollectionNotFoundError:
            return False
        return True

    async def list(self) -> list[str]:
        """The names of all collections that the key may see, sorted."""
        return await self._send(calls.list_collections())

    async def drop(self, name: str) -> None:
        """Remove a collection with all that is in it, for good.

        Raises:
            CollectionNotFoundError, InvalidArgumentError, AccessError, ServerError
        """
        await self._send(calls.drop(check_name(name)))

    async def close(self) -> None:
        """Give the connections back."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<AsyncClient of {self._server.url}>"

    async def _send(self, call: Call[T]) -> T:
        """Send a call until it is answered."""
        retries = Retries(self._retries)
        while True:
            try:
                response = await self._http.handle_async_request(self._server.request(call))
                await response.aread()
                answer = as_answer(response)
            except httpx.HTTPError as error:
                wait = retries.after_break(self._server.url, error)
            else:
                again = retries.after(answer)
                if again is None:
                    return call.read(answer)
                wait = again
            await asyncio.sleep(wait)


class AsyncCollection:
    """One collection of a server: the methods of `Collection`, to be awaited."""

    def __init__(self, client: AsyncClient, name: str) -> None:
        self._client, self.name = client, name

    async def insert(
        self, keys: Sequence[Key], vectors: Any, payloads: Sequence[Payload | None] | None = None, *,
        scales: Any = None, zero_points: Any = None,
    ) -> None:  # fmt: skip
        """Insert new rows, all or none: see `CoreNN.insert`."""
        await self._send(calls.write_rows(self.name, "insert", keys, vectors, payloads, scales, zero_points))

    async def upsert(
        self, keys: Sequence[Key], vectors: Any, payloads: Sequence[Payload | None] | None = None, *,
        scales: Any = None, zero_points: Any = None,
    ) -> None:  # fmt: skip
        """Insert rows or replace those whose keys exist, all or none: see `CoreNN.upsert`."""
        await self._send(calls.write_rows(self.name, "upsert", keys, vectors, payloads, scales, zero_points))

    async def insert_all(
        self, keys: Sequence[Key], vectors: Any, payloads: Sequence[Payload | None] | None = None, *,
        batch: int = 1000,
    ) -> None:  # fmt: skip
        """Insert any number of rows, in requests of `batch` rows. Each is all or none; after an error, those before it
        have been inserted. vectors: anything that gives its rows by slices, such as a mapped file.
        """
        for part in Parts(keys, vectors, payloads, batch):
            await self.insert(*part)

    async def set_payload(self, keys: Sequence[Key], payloads: Sequence[Payload | None]) -> None:
        """Replace the payloads of existing rows, all or none: see `CoreNN.set_payload`."""
        await self._send(calls.set_payload(self.name, keys, payloads))

    async def delete(self, keys: Sequence[Key] | None = None, *, filter: Any = None) -> int:
        """Delete rows by key, by filter, or both, all or none: see `CoreNN.delete`."""
        return await self._send(calls.delete(self.name, keys, filter))

    async def get(self, keys: Sequence[Key]) -> list[Record | None]:
        """The rows of keys, in their order; None for a key that does not exist."""
        return await self._send(calls.get(self.name, keys))

    async def contains(self, key: Key) -> bool:
        """Whether there is a row of a key."""
        return await self._send(calls.contains(self.name, key))

    async def count(self, filter: Any = None) -> int:
        """How many rows there are, or a filter selects."""
        return await self._send(calls.count(self.name, filter))

    async def facets(self, field: str, filter: Any = None) -> list[Facet]:
        """The values of a field, and how many rows have each: see `CoreNN.facets`."""
        return await self._send(calls.facets(self.name, field, filter))

    async def scroll(
        self, filter: Any = None, limit: int = 100, cursor: str | None = None
    ) -> tuple[list[Record], str | None]:
        """The next rows in the order of insertion, and a cursor for the rest: see `CoreNN.scroll`."""
        return await self._send(calls.scroll(self.name, filter, limit, cursor))

    async def scroll_all(self, filter: Any = None, *, page: int = 1000) -> AsyncIterator[Record]:
        """All rows, or those that a filter selects, in the order of insertion; `page` rows in a request."""
        cursor: str | None = None
        while True:
            records, cursor = await self.scroll(filter, page, cursor)
            for record in records:
                yield record
            if cursor is None:
                return

    async def sample(self, size: int = 1000, filter: Any = None) -> list[Record]:
        """Rows at random: see `CoreNN.sample`."""
        return await self._send(calls.sample(self.name, size, filter))

    async def query(
        self, vectors: Any = None, k: int = 10, *, key: Key | None = None, text: str | list[str] | None = None,
        min_recall: float | None = None, search_list: int | None = None, exact: bool = False,
        max_distance: float | None = None, filter: Any = None, group_by: str | None = None,
        per_group: int | None = None, fusion: str = "rrf", plan: str | None = None, with_payloads: bool = False,
        explain: bool = False,
    ) -> Any:  # fmt: skip
        """The k nearest rows, or the best by text: Hits for one vector, key or text, a HitsList for several. See
        `CoreNN.query`.
        """
        return await self._send(calls.query(self.name, vectors, given(locals())))

    async def recall(
        self, k: int = 10, samples: int = 1000, *, min_recall: float | None = None, search_list: int | None = None
    ) -> Recall:
        """Measure the recall of queries: see `CoreNN.recall`."""
        return await self._send(calls.recall(self.name, given(locals())))

    async def recall_curve(self, k: int = 10, samples: int = 1000) -> list[Recall]:
        """Measure how recall grows with the search list: see `CoreNN.recall_curve`."""
        return await self._send(calls.recall_curve(self.name, given(locals())))

    async def settings(self) -> Settings:
        """The settings in force."""
        return (await self._send(calls.state(self.name)))[0]

    async def stats(self) -> Stats:
        """Counts, settings and sizes as of now; where it lies on the server is not told."""
        return (await self._send(calls.state(self.name)))[1]

    async def checkpoint(self) -> None:
        """Bring everything to the server's disk."""
        await self._send(calls.upkeep(self.name, "checkpoint"))

    async def compact(self) -> None:
        """Give the space of deleted and replaced rows back."""
        await self._send(calls.upkeep(self.name, "compact"))

    async def snapshot(self, name: str) -> Copied:
        """Copy it, as of this moment, to where the server keeps its snapshots. name: of a new one, or of an earlier
        one of this collection, of which only what has changed is copied.
        """
        return await self._send(calls.snapshot(self.name, check_name(name)))

    def __repr__(self) -> str:
        return f"<AsyncCollection {self.name!r} of {self._client!r}>"

    async def _send(self, call: Call[T]) -> T:
        return await self._client._send(call)
