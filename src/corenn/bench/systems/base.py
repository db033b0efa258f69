"""The contract of a system under test. One file per system beside this one; none imports its package at import.

A system lives in a worker process of its own. Its methods are called one after the other, from one thread.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np

from ...types import AnyArray, Float32s, Int64s
from ..conditions import Fields, Where
from ..recall import MISSING, table

Option: TypeAlias = int | float | str
Options: TypeAlias = Mapping[str, Option]
Params: TypeAlias = dict[str, Any]

# Lengths of a search list, or whatever a system calls it, from hasty to thorough.
EFFORTS = (10, 12, 14, 16, 18, 20, 24, 28, 32, 36, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 256, 320, 384, 512, 768)


class System(ABC):
    """One way to index vectors and to search them.

    name: as in --systems; the file is named after it, with _ for -. module: what must import, else the system counts
    as not installed. package: the distribution that has the version. options: build options and their defaults.
    on_disk: `open` brings back in a new process what `build` has left in `folder`. environment: variables set before
    anything is imported. pools: what libraries that take their threads from the environment alone are told, the
    threads of the build or those of a search; once opened again, always those of a search. notes: what a reader must
    know to judge the figures. ready_made: what restricts a search is a set of rows made beforehand, for whose making no
    query pays.
    """

    name: ClassVar[str]
    module: ClassVar[str]
    package: ClassVar[str]
    options: ClassVar[Options] = {}
    on_disk: ClassVar[bool] = False
    environment: ClassVar[Mapping[str, str]] = {}
    pools: ClassVar[Literal["build", "search"]] = "build"
    notes: ClassVar[tuple[str, ...]] = ()
    ready_made: ClassVar[bool] = False

    def __init__(self, folder: Path, threads: int, **options: Option) -> None:
        """`folder` is empty and private, `threads` are those of a search; unknown options are the caller's mistake."""
        self.folder = folder
        self.threads = threads
        self.option: dict[str, Any] = {**self.options, **options}
        self.fields: Fields = {}  # set before `build` where searches are to be restricted by them

    def version(self) -> str:
        """Version of the installed package."""
        return version(self.package)

    def warm(self, base: Float32s, metric: str, threads: int) -> None:  # noqa: B027
        """Compile what is compiled once on a machine, before the build is timed."""

    @abstractmethod
    def build(self, base: Float32s, metric: str, threads: int) -> None:
        """Index `base` (n, dim), read-only float32, so that every row is searchable when this returns.

        Ids are row numbers. metric: l2, cosine or ip. Columns in `fields` are declared, stored and indexed with them.

        Raises:
            ValueError: for a metric that the system lacks.
        """

    def open(self, dim: int, metric: str) -> None:
        """Make what `build` has left in `folder` searchable; only for systems on disk."""
        raise NotImplementedError(f"{self.name} keeps nothing on disk")

    def settle(self, seconds: float) -> None:  # noqa: B027
        """Wait until what is done in the background after `open` is done, for so many seconds at most."""

    @abstractmethod
    def grid(self, k: int) -> list[Params]:
        """Query-time parameters, from hasty to thorough. Entries that differ in their last one alone form a curve."""

    def configure(self, **params: Any) -> None:
        """Set query-time parameters for the searches to come."""
        vars(self).update(params)

    def query(self, queries: Float32s, k: int) -> Int64s:
        """The ids of the k nearest rows of each of `queries` (q, dim), shape (q, k), filled up with -1.

        Uses `threads`. Here for systems without a call for several queries: one by one, divided among the threads.
        """
        if self.threads == 1:
            return table([self.query_one(query, k) for query in queries], k, MISSING)
        with ThreadPoolExecutor(self.threads) as pool:
            return table(list(pool.map(lambda query: self.query_one(query, k), queries)), k, MISSING)

    def query_one(self, query: Float32s, k: int) -> Sequence[int] | AnyArray:
        """The ids of the k nearest rows of one query (dim,), at most k of them."""
        ids: AnyArray = self.query(query[None], k)[0]
        return ids

    def grid_within(self, k: int) -> list[Params]:
        """Query-time parameters for restricted searches: further than `grid`, for most need more."""
        return self.grid(k)

    def restriction(self, where: Where) -> Any:
        """What goes with a query to restrict it to rows that meet conditions on `fields`; made before time is taken.

        Raises:
            NotImplementedError: for systems that cannot.
        """
        raise NotImplementedError(f"{self.package} takes no filter")

    def query_within(self, query: Float32s, k: int, within: Any) -> Sequence[int] | AnyArray:
        """As `query_one`, among the rows of a restriction: at most k ids, MISSING among them not counted."""
        raise NotImplementedError(f"{self.package} takes no filter")

    def plan_within(self, query: Float32s, k: int, within: Any) -> str:
        """The way such a query is answered, where the system tells."""
        return ""

    def work(self, queries: Float32s, k: int) -> dict[str, float]:
        """Mean `distances` and `hops` per query, where the system counts them."""
        return {}

    def memory_bytes(self) -> int | None:
        """Bytes of the index in memory, where the system tells."""
        parts = self.memory_parts()
        return sum(parts.values()) if parts else None

    def memory_parts(self) -> dict[str, int] | None:
        """The same by part."""
        return None

    def disk_bytes(self) -> int | None:
        """Bytes allocated on disk."""
        return allocated(self.folder) if self.on_disk else None

    def disk_parts(self) -> dict[str, int] | None:
        """The same by part: files and folders at the top of `folder`."""
        return {each.name: allocated(each) for each in sorted(self.folder.iterdir())} if self.on_disk else None

    def close(self) -> None:  # noqa: B027
        """Release everything; for systems on disk, bring everything to the disk."""


def allocated(path: Path) -> int:
    """Bytes that a file, or all files below a folder, take on the disk."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return sum(each.stat().st_blocks * 512 for each in files)


def along(name: str, k: int, values: Sequence[int] = EFFORTS) -> list[Params]:
    """A grid over one parameter that must be k at least."""
    return [{name: value} for value in values if value >= k] or [{name: k}]


def further(name: str, k: int, most: int = 8_192) -> list[Params]:
    """The same with values beyond those of ordinary searches, in steps of a half."""
    more = [int(EFFORTS[-1] * 1.5**step) for step in range(1, 12)]
    return along(name, k, [*EFFORTS, *(value for value in more if value <= most)])


def normalised(rows: Float32s) -> Float32s:
    """Rows of unit length, for systems that know the inner product only; zeros stay zeros."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Float32s = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    return unit


def batches(rows: Float32s, size: int, use: Callable[[int, Float32s], object]) -> None:
    """Call `use` with the first row number and the rows of each batch."""
    for first in range(0, len(rows), size):
        use(first, rows[first : first + size])
