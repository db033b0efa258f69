"""The recurring shapes, named once."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow

Key: TypeAlias = str | int
Payload: TypeAlias = dict[str, Any]
Float32s: TypeAlias = NDArray[np.float32]
Float64s: TypeAlias = NDArray[np.float64]
Int32s: TypeAlias = NDArray[np.int32]
Int64s: TypeAlias = NDArray[np.int64]
UInt32s: TypeAlias = NDArray[np.uint32]
UInt64s: TypeAlias = NDArray[np.uint64]
Bytes: TypeAlias = NDArray[np.uint8]
AnyArray: TypeAlias = NDArray[Any]


class Step(str):
    """The step that a first load is at, as its progress is told; "done" at the end. It is the name, and says more.

    disk_bytes: taken on the disk now. peak_disk_bytes: the most that was. most_disk_bytes: what it takes at most, with
    files that are there only on the way. seconds: since the load began. seconds_left: to its end, by what was measured
    so far; None where there is nothing to go by.
    """

    disk_bytes: int
    peak_disk_bytes: int
    most_disk_bytes: int
    seconds: float
    seconds_left: float | None

    def __new__(
        cls, name: str, disk_bytes: int = 0, peak_disk_bytes: int = 0, most_disk_bytes: int = 0, seconds: float = 0.0,
        seconds_left: float | None = None,
    ) -> Step:  # fmt: skip
        """A step as of now."""
        made = super().__new__(cls, name)
        made.disk_bytes, made.peak_disk_bytes, made.most_disk_bytes = disk_bytes, peak_disk_bytes, most_disk_bytes
        made.seconds, made.seconds_left = seconds, seconds_left
        return made


@dataclass(frozen=True, slots=True)
class Hit:
    """One neighbour: its key, its distance under the metric of the database, and its payload if it was asked for.

    Where a query has a text, distance is minus the score by which hits are ranked: see docs/text.md.
    """

    key: Key
    distance: float
    payload: Payload | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """One stored row: vector as float32 of shape (dim,), equal to what was inserted up to the dtype's rounding."""

    key: Key
    vector: Float32s
    payload: Payload | None = None


@dataclass(frozen=True, slots=True)
class Facet:
    """A value of a field, and how many rows have it."""

    value: str | int | float | bool | None
    count: int


@dataclass(frozen=True, slots=True)
class Explain:
    """How one query was answered.

    plan: "graph" (beam search), "exact" (scan of all rows) or "empty". With a filter, "exact" and "scan" are scans of
    its matches, by vectors and, where there are codes, by these first, and "cells" is one of those in the nearest
    cells, as many as `hops` says; "two-hop" is a beam search over matches alone.
    search_list: candidates kept by the beam search, 0 for a scan.
    distances: distances computed. hops: nodes expanded. pages: of 4 KiB, read from files for this query, 0 where what
    it needs is mapped; rows that are kept in memory are not counted, pages that the system happens to hold are.
    matches: rows that could have matched, with group_by before any is left out for its group; an estimate where a
    filter has a function that not all rows were put to.
    expected_recall: recall@k that the calibration curve gives for this list, 1 for a scan, None where none was
    measured. least_recall: its lower confidence bound (95 %).
    estimated: distances that the planner expected of that plan, 0 where there was no choice.
    terms: the words and phrases that a text asks for. text_matches: rows that have one of them, whatever the filter.
    fusion: how the text and the vector were joined, "" without both. With a text alone, plan is "text".
    chosen_by: what the list follows from: "search_list", "min_recall", "exact", "recall_target" (the curve, for a query
    that names nothing), "query_search_list_cap" (the setting, while there is no curve), or "text" where there is no
    vector.
    """

    plan: str
    search_list: int
    distances: int
    hops: int
    matches: int
    expected_recall: float | None = None
    least_recall: float | None = None
    chosen_by: str = ""
    pages: int = 0
    estimated: int = 0
    terms: tuple[str, ...] = ()
    text_matches: int = 0
    fusion: str = ""


@dataclass(frozen=True, slots=True)
class Recall:
    """recall@k as it was measured: the share of the k nearest rows that queries with one search list find.

    low, high: 95 % confidence interval. samples: queries that were tried. search_list: 0 if queries scan all rows, and
    miss nothing. distances, seconds: per query, on one thread; NaN for scans.
    """

    recall: float
    low: float
    high: float
    k: int
    samples: int
    search_list: int
    distances: float = math.nan
    seconds: float = math.nan

    def __float__(self) -> float:
        return self.recall


class HitBlock:
    """What the answers to several queries hold together. An object per query is as much as a batch can afford.

    keys[i], explains[i]: of query i. distances: float32 (queries, width). counts[i]: hits of query i, None if all have
    `width`. payloads[i]: of its hits, as JSON text.
    """

    __slots__ = ("counts", "distances", "explains", "keys", "payloads")

    def __init__(
        self, keys: Sequence[Sequence[Key]], distances: Float32s, counts: Sequence[int] | None = None,
        payloads: Sequence[Sequence[bytes | None]] | None = None, explains: Sequence[Explain] | None = None,
    ) -> None:  # fmt: skip
        self.keys = keys
        self.distances = distances
        self.counts = counts
        self.payloads = payloads
        self.explains = explains


class Hits(Sequence[Hit]):
    """The neighbours of one query, nearest first; ties in the order of insertion.

    Fixed when the query returns: no later write changes it, and it stays readable after the database is closed.
    A Python object per hit is made only when one is asked for.
    """

    __slots__ = ("_block", "_row")

    def __init__(self, block: HitBlock, row: int) -> None:
        self._block = block
        self._row = row

    @property
    def keys(self) -> list[Key]:
        """The keys of all hits."""
        return list(self._block.keys[self._row])

    @property
    def distances(self) -> Float32s:
        """The distances of all hits, shape (hits,)."""
        line: Float32s = self._block.distances[self._row]
        return line if self._block.counts is None else line[: self._block.counts[self._row]]

    @property
    def explain(self) -> Explain | None:
        """How the query was answered; None when it did not ask for that."""
        return None if self._block.explains is None else self._block.explains[self._row]

    @property
    def payloads(self) -> list[Payload | None]:
        """The payloads of all hits; None for each when the query did not ask for them."""
        return [self._payload(row) for row in range(len(self))]

    @property
    def _payloads(self) -> Sequence[bytes | None] | None:
        return None if self._block.payloads is None else self._block.payloads[self._row]

    def _payload(self, row: int) -> Payload | None:
        raw = None if self._payloads is None else self._payloads[row]
        return None if raw is None else json.loads(raw)

    def __len__(self) -> int:
        counts = self._block.counts
        return self._block.distances.shape[1] if counts is None else counts[self._row]

    @overload
    def __getitem__(self, row: int) -> Hit: ...
    @overload
    def __getitem__(self, row: slice) -> list[Hit]: ...
    def __getitem__(self, row: int | slice) -> Hit | list[Hit]:
        if isinstance(row, slice):
            return [self[at] for at in range(*row.indices(len(self)))]
        at = row + len(self) if row < 0 else row
        if not 0 <= at < len(self):
            raise IndexError(f"hit {row} of {len(self)}")
        return Hit(self._block.keys[self._row][at], float(self._block.distances[self._row, at]), self._payload(at))

    def __iter__(self) -> Iterator[Hit]:
        return (self[row] for row in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Hits):
            return NotImplemented
        return self.keys == other.keys and np.array_equal(self.distances, other.distances)

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        # Copied and pickled with plain keys: the others stand in the heap of the whole database.
        payloads, explains = ([part] if part is not None else None for part in (self._payloads, self.explain))
        return _alone, (type(self), [self.keys], self.distances[None], payloads, explains)

    def __repr__(self) -> str:
        shown = ", ".join(f"{hit.key!r}: {hit.distance:.6g}" for hit in self[:3])
        return f"Hits({len(self)}: {shown}{', …' if len(self) > 3 else ''})"

    def to_arrow(self) -> pyarrow.Table:
        """A table with the columns key, distance and, if they were asked for, payload (as JSON text).

        Needs the extra `arrow`. A mix of str and int keys is given as strings.
        """
        import pyarrow

        keys = self.keys
        if len({type(key) for key in keys}) > 1:
            keys = [str(key) for key in keys]
        columns: dict[str, Any] = {"key": keys, "distance": self.distances}
        if self._payloads is not None:
            columns["payload"] = [None if raw is None else raw.decode() for raw in self._payloads]
        return pyarrow.table(columns)


def _alone(made: type[Hits], *parts: Any) -> Hits:
    """Hits as they were copied or pickled, in a block of their own."""
    keys, distances, payloads, explains = parts
    return made(HitBlock(keys, distances, None, payloads, explains), 0)


class HitsList(list[Hits]):
    """The answers to several queries, in their order: a list of Hits, and all of their keys and distances as arrays.

    distances: float32 of shape (queries, width), infinite behind the last hit of a query that has fewer than others.
    """

    __slots__ = ("_keys", "distances")

    def __init__(self, hits: Iterable[Hits], distances: Float32s, keys: Callable[[], AnyArray]) -> None:
        super().__init__(hits)
        self.distances = distances
        self._keys = keys

    @property
    def keys(self) -> AnyArray:
        """The keys of all hits, shape (queries, width): int64 if all are numbers, else objects, None behind the last.

        For many queries quicker than the keys of each.
        """
        return self._keys()

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (), None, iter(self)  # what is copied or pickled is a plain list


@dataclass(frozen=True, slots=True)
class Timings:
    """How often something was done since the database was opened, and how long it took.

    counts: by the time that it took, in buckets up to 0.5 ms, 1 ms and so on to 32 s, and one beyond; see
    `corenn.durations`. seconds: of all of them.
    """

    counts: tuple[int, ...]
    seconds: float

    @property
    def count(self) -> int:
        """How often."""
        return sum(self.counts)


@dataclass(frozen=True, slots=True)
class Stats:
    """A snapshot of the state of a database. Sizes are in bytes.

    rows: live rows. tombstones: deleted rows whose ids cannot be used again yet. free: ids that new rows will take.
    reclaimable_bytes: what compact() would give back of the slabs. repair_backlog: deleted rows that edges may still
    lead to. disk_backlog: rows that disk.slab does not have as they are, 0 where searches do not go over the disk.
    codes_backlog: rows that have yet to get codes of the kind, or by the codebook, that walks are to go over.
    pending: committed rows that are not linked into the graph yet and are found by an exact scan. commit: number of the
    last commit. generation: 1, and one more with each compaction. readers: other processes that read; oldest_reader:
    the id of the one with the oldest snapshot, for which ids of rows deleted since are kept. memory: bytes of the rows
    in use, by part; mapped, and resident as far as they were touched. memory_limit: 0 for none. mapped_bytes: pages of
    files that have become resident since the database was opened, whatever in this process has touched them.
    resident_bytes: of the whole process, 0 where it cannot be told. disk_bytes: allocated on disk, 0 in memory.
    commits, syncs, compactions: what this handle has done since it was opened; a sync brings a file or the log of the
    metadata to the disk. compacted_rows: ids of deleted rows that compactions have given back meanwhile.
    """

    path: str | None
    mode: str
    dim: int
    metric: str
    dtype: str
    durability: str
    rows: int
    tombstones: int
    free: int
    pending: int
    commit: int
    generation: int
    readers: int
    oldest_reader: int | None
    reclaimable_bytes: int
    repair_backlog: int
    disk_backlog: int
    codes_backlog: int
    compression_mode: str
    memory: dict[str, int]
    memory_limit: int
    mapped_bytes: int
    resident_bytes: int
    disk_bytes: int
    commits: Timings
    syncs: Timings
    compactions: Timings
    compacted_rows: int


@dataclass(frozen=True, slots=True)
class Upgraded:
    """What an upgrade has done: the version of the format before it, and after; the same if there was nothing to do."""

    path: str
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Copied:
    """What snapshot() or backup() has made. Sizes are in bytes.

    path: where it is. commit: the last one that it holds. rows: live rows. bytes: of its vectors, graph and keys.
    copied: as many of these as had to be written.
    """

    path: str
    commit: int
    rows: int
    bytes: int
    copied: int


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault found by verify() or mended by repair(). `lost` names the keys that could not be saved."""

    part: str
    description: str
    count: int
    lost: tuple[Key, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """What verify() or repair() looked at and found.

    rows, tombstones: committed rows, live and deleted. edges: out-edges of the graph. unreachable: live rows that no
    walk from the entries reaches. problems: the faults found; repaired: the faults mended (repair only).
    """

    rows: int
    tombstones: int
    edges: int
    unreachable: int
    problems: tuple[Problem, ...]
    repaired: tuple[Problem, ...] = ()

    @property
    def ok(self) -> bool:
        """True if no fault is left."""
        return not self.problems
