"""The client that waits for its answers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
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


class Client:
    """A root that `corenn serve` serves: collections by name, as `Root` has them. Safe for any number of threads.

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
        self._http = httpx.HTTPTransport(verify=as_trust(verify), trust_env=False)

    def create(
        self, name: str, *, dim: int, metric: str = "cosine", dtype: str = "f32", durability: str = "os",
        **settings: Any,
    ) -> Collection:  # fmt: skip
        """Make a collection; arguments as for `CoreNN.create`.

        Raises:
            DatabaseExistsError, InvalidArgumentError, InvalidSettingError, LimitError, AccessError, ServerError
        """
        chosen = {"dim": dim, "metric": metric, "dtype": dtype, "durability": durability, **settings}
        self._send(calls.create(check_name(name), chosen))
        return Collection(self, name)

    def __getitem__(self, name: str) -> Collection:
        """The collection of a name.

        Raises:
            CollectionNotFoundError, InvalidArgumentError, AccessError, ServerError
        """
        self._send(calls.state(check_name(name)))
        return Collection(self, name)

    def __contains__(self, name: object) -> bool:
        try:
            self._send(calls.state(check_name(name)))
        except CollectionNotFoundError:
            return False
        return True

    def list(self) -> list[str]:
        """The names of all collections that the key may see, sorted."""
        return self._send(calls.list_collections())

    def __iter__(self) -> Iterator[str]:
        return iter(self.list())

    def __len__(self) -> int:
        return len(self.list())

    def drop(self, name: str) -> None:
        """Remove a collection with all that is in it, for good.

        Raises:
            CollectionNotFoundError, InvalidArgumentError, AccessError, ServerError
        """
        self._send(calls.drop(check_name(name)))

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client of {self._server.url}>"

    def _send(self, call: Call[T]) -> T:
        """Send a call until it is answered."""
        retries = Retries(self._retries)
        while True:
            try:
                response = self._http.handle_request(self._server.request(call))
                response.read()
                answer = as_answer(response)
            except httpx.HTTPError as error:
                wait = retries.after_break(self._server.url, error)
            else:
                again = retries.after(answer)
                if again is None:
                    return call.read(answer)
                wait = again
            time.sleep(wait)


class Collection:
    """One collection of a server, with the methods, results and errors of the embedded `CoreNN`.

    Each call is one request, as large as the server's limits allow; `insert_all` and `scroll_all` make many of one.
    """

    def __init__(self, client: Client, name: str) -> None:
        self._client, self.name = client, name

    def insert(
        self, keys: Sequence[Key], vectors: Any, payloads: Sequence[Payload | None] | None = None, *,
        scales: Any = None, zero_points: Any = None,
    ) -> None:  # fmt: skip
        """Insert new rows, all or none: see `CoreNN.insert`."""
        self._send(calls.write_rows(self.name, "insert", keys, vectors, payloads, scales, zero_points))

    def upsert(
        self, keys: Sequence[Key], vectors: Any, payloads: Sequence[Payload | None] | None = None, *,
        scales: Any = None, zero_points: Any = None,
    ) -> None:  # fmt: skip
        """Insert rows or replace those whose keys exist, all or none: see `CoreNN.upsert`."""
        self._send(calls.write_rows(self.name, "upsert", keys, vectors, payloads, scales, zero_points))

    def insert_all(
        self, keys: Sequence[Key], vectors: Any, payloads: Sequence[Payload | None] | None = None, *,
        batch: int = 1000,
    ) -> None:  # fmt: skip
        """Insert any number of rows, in requests of `batch` rows. Each is all or none; after an error, those before it
        have been inserted. vectors: anything that gives its rows by slices, such as a mapped file.
        """
        for part in Parts(keys, vectors, payloads, batch):
            self.insert(*part)

    def set_payload(self, keys: Sequence[Key], payloads: Sequence[Payload | None]) -> None:
        """Replace the payloads of existing rows, all or none: see `CoreNN.set_payload`."""
        self._send(calls.set_payload(self.name, keys, payloads))

    def delete(self, keys: Sequence[Key] | None = None, *, filter: Any = None) -> int:
        """Delete rows by key, by filter, or both, all or none: see `CoreNN.delete`."""
        return self._send(calls.delete(self.name, keys, filter))

    def get(self, keys: Sequence[Key]) -> list[Record | None]:
        """The rows of keys, in their order; None for a key that does not exist."""
        return self._send(calls.get(self.name, keys))

    def __len__(self) -> int:
        return self.count()

    def __contains__(self, key: object) -> bool:
        return self._send(calls.contains(self.name, key))

    def keys(self) -> Iterator[Key]:
        """The keys of all rows, in the order of insertion; the rows come with them, a page at a time."""
        return (record.key for record in self.scroll_all())

    def __iter__(self) -> Iterator[Key]:
        return self.keys()

    def count(self, filter: Any = None) -> int:
        """How many rows there are, or a filter selects."""
        return self._send(calls.count(self.name, filter))

    def facets(self, field: str, filter: Any = None) -> list[Facet]:
        """The values of a field, and how many rows have each: see `CoreNN.facets`."""
        return self._send(calls.facets(self.name, field, filter))

    def scroll(
        self, filter: Any = None, limit: int = 100, cursor: str | None = None
    ) -> tuple[list[Record], str | None]:
        """The next rows in the order of insertion, and a cursor for the rest: see `CoreNN.scroll`."""
        return self._send(calls.scroll(self.name, filter, limit, cursor))

    def scroll_all(self, filter: Any = None, *, page: int = 1000) -> Iterator[Record]:
        """All rows, or those that a filter selects, in the order of insertion; `page` rows in a request."""
        cursor: str | None = None
        while True:
            records, cursor = self.scroll(filter, page, cursor)
            yield from records
            if cursor is None:
                return

    def sample(self, size: int = 1000, filter: Any = None) -> list[Record]:
        """Rows at random: see `CoreNN.sample`."""
        return self._send(calls.sample(self.name, size, filter))

    def query(
        self, vectors: Any = None, k: int = 10, *, key: Key | None = None, text: str | list[str] | None = None,
        min_recall: float | None = None, search_list: int | None = None, exact: bool = False,
        max_distance: float | None = None, filter: Any = None, group_by: str | None = None,
        per_group: int | None = None, fusion: str = "rrf", plan: str | None = None, with_payloads: bool = False,
        explain: bool = False,
    ) -> Any:  # fmt: skip
        """The k nearest rows, or the best by text: Hits for one vector, key or text, a HitsList for several. See
        `CoreNN.query`.
        """
        return self._send(calls.query(self.name, vectors, given(locals())))

    def recall(
        self, k: int = 10, samples: int = 1000, *, min_recall: float | None = None, search_list: int | None = None
    ) -> Recall:
        """Measure the recall of queries: see `CoreNN.recall`."""
        return self._send(calls.recall(self.name, given(locals())))

    def recall_curve(self, k: int = 10, samples: int = 1000) -> list[Recall]:
        """Measure how recall grows with the search list: see `CoreNN.recall_curve`."""
        return self._send(calls.recall_curve(self.name, given(locals())))

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self._send(calls.state(self.name))[0]

    def stats(self) -> Stats:
        """Counts, settings and sizes as of now; where it lies on the server is not told."""
        return self._send(calls.state(self.name))[1]

    def checkpoint(self) -> None:
        """Bring everything to the server's disk."""
        self._send(calls.upkeep(self.name, "checkpoint"))

    def compact(self) -> None:
        """Give the space of deleted and replaced rows back."""
        self._send(calls.upkeep(self.name, "compact"))

    def snapshot(self, name: str) -> Copied:
        """Copy it, as of this moment, to where the server keeps its snapshots. name: of a new one, or of an earlier
        one of this collection, of which only what has changed is copied.
        """
        return self._send(calls.snapshot(self.name, check_name(name)))

    def __repr__(self) -> str:
        return f"<Collection {self.name!r} of {self._client!r}>"

    def _send(self, call: Call[T]) -> T:
        return self._client._send(call)
