"""What a server takes on: every limit, its default and what it bounds. All are on unless they are raised by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ..errors import InvalidArgumentError, LimitError
from ..sizes import parse_bytes


def limit(default: float, meaning: str, *, size: bool = False) -> Any:
    """Declare a limit. size: in bytes, which may also be written as "32MB"."""
    return field(default=default, metadata={"meaning": meaning, "size": size})


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of one server. A request beyond one is refused by name before anything is done for it."""

    body: int = limit(32 << 20, "Bytes of the body of a request.", size=True)
    bodies: int = limit(256 << 20, "Bytes of all bodies that are being read or worked on.", size=True)
    connections: int = limit(4096, "Connections; beyond, others wait to be accepted.")
    requests: int = limit(512, "Requests that are being served; beyond, 503.")
    queries: int = limit(1024, "Queries of one collection that wait for their turn; beyond, 429.")
    writes: int = limit(64, "Writes of one collection that wait for their commit; beyond, 429.")
    jobs: int = limit(4, "Snapshots, compactions, measurements of recall and the like at a time; beyond, 429.")
    open_collections: int = limit(64, "Collections that are open; the one unused for longest is closed for another.")
    collections: int = limit(1024, "Collections that there may be.")
    batch_rows: int = limit(10_000, "Rows of one write, keys of one delete.")
    batch_queries: int = limit(1_000, "Vectors, or texts, of one query.")
    dim: int = limit(8_192, "Dimensions of a new collection.")
    k: int = limit(10_000, "Hits of one query, values of a field.")
    hits: int = limit(1_000_000, "Hits of all vectors or texts of one query together.")
    rows: int = limit(2_000, "Rows that come with their payloads in one answer of get, scroll, sample, map or query.")
    search_list: int = limit(16_384, "Search list of a query.")
    samples: int = limit(10_000, "Samples by which recall is measured.")
    filter_bytes: int = limit(1 << 20, "Bytes of a filter, as JSON.", size=True)
    filter_depth: int = limit(32, "Levels of a filter.")
    text_bytes: int = limit(8 << 10, "Bytes of one text of a query, of all `$text` of a filter together.", size=True)
    payload_bytes: int = limit(64 << 10, "Bytes of one payload, as JSON.", size=True)
    answer_vectors: int = limit(64 << 20, "Bytes of the vectors in one answer, as float32.", size=True)
    deadline: float = limit(30.0, "Seconds that a request may take; a client may ask for less.")
    job_deadline: float = limit(3600.0, "Seconds that a snapshot, a compaction or the like may take.")
    body_seconds: float = limit(30.0, "Seconds in which a body has to arrive.")

    @classmethod
    def of(cls, changes: Mapping[str, str]) -> Limits:
        """The defaults, but for what is named. Values are texts, such as "32MB" or "500".

        Raises:
            InvalidArgumentError
        """
        parsed: dict[str, Any] = {name: _parsed(name, text) for name, text in changes.items()}
        return cls(**parsed)

    def within(self, name: str, value: int, what: str) -> None:
        """Raises: LimitError: if `value` is more than the limit of a name."""
        most = getattr(self, name)
        if value > most:
            raise LimitError(
                f"{what} is {value:,}; this server takes {most:,} at most (limit {name}): ask for less, or "
                f"start it with --limit {name}=…"
            )


LIMITS: dict[str, Mapping[str, Any]] = {
    item.name: {**item.metadata, "default": item.default} for item in fields(Limits)
}


def _parsed(name: str, text: str) -> float:
    if name not in LIMITS:
        raise InvalidArgumentError(f"--limit {name}: there is no such limit; known are {', '.join(LIMITS)}")
    kind = type(LIMITS[name]["default"])
    try:
        value: float = parse_bytes(text) if LIMITS[name]["size"] else kind(text)
        if not 0 < value < 2**62:
            raise ValueError
    except ValueError:
        raise InvalidArgumentError(f"--limit {name}={text}: give a number above 0") from None
    return value
