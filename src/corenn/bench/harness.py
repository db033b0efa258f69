"""What the runners in `integrations/` share: the names of other benchmarks, and answers as their matrices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..config import MAX_SEARCH_LIST
from ..errors import InvalidArgumentError
from ..types import AnyArray, Hits, HitsList, Int32s, Int64s
from .recall import MISSING
from .sample import METRICS

if TYPE_CHECKING:
    from ..database import CoreNN

BATCH = 1_000
RANGE_START = 64  # hits asked for first in a range search; four times as many until the range is exhausted
STORED = {"float32": "f32", "uint8": "u8", "int8": "i8", "float16": "f16"}


def metric_of(name: str) -> str:
    """Our metric for that of a benchmark: euclidean, angular, ip.

    Raises:
        InvalidArgumentError: for any other, such as hamming.
    """
    if name not in METRICS:
        raise InvalidArgumentError(f"metric {name!r}: CoreNN has {', '.join(METRICS)}")
    return METRICS[name]


def stored_type(dtype: Any) -> str:
    """The stored type that keeps vectors of a NumPy type as they are.

    Raises:
        InvalidArgumentError: for a type that is not among those of the benchmarks.
    """
    name = np.dtype(dtype).name
    if name not in STORED:
        raise InvalidArgumentError(f"vectors of type {name}: CoreNN stores {', '.join(STORED)} as they are")
    return STORED[name]


def fill(db: CoreNN, blocks: Iterable[AnyArray], dtype: Any = None) -> int:
    """Insert blocks of shape (n, dim) under row numbers from 0 on; how many rows that were.

    dtype: type of the vectors where a harness hands them out as another: int8 given as float32 would be quantized.
    """
    first = 0
    for block in blocks:
        for start in range(0, len(block), BATCH):
            part = np.asarray(block[start : start + BATCH], dtype)
            db.insert(range(first, first + len(part)), part)
            first += len(part)
    return first


def list_for(k: int, wanted: int | None) -> int | None:
    """The search list of a query for k hits: at least k, as it must be; None leaves it to the database.

    wanted: what the harness has set, the same for every k; None if nothing. Beyond the longest list that there is, the
    database answers by a scan what a walk does not find.
    """
    return None if wanted is None or k > MAX_SEARCH_LIST else max(k, wanted)


def row_numbers(answers: HitsList, k: int) -> Int64s:
    """The keys of answers, all of them numbers, of shape (queries, k), MISSING where fewer than k came back."""
    keys = answers.keys
    full = np.full((len(answers), k), MISSING, np.int64)
    full[:, : keys.shape[1]] = keys if keys.dtype == np.int64 else np.where(keys == None, MISSING, keys)  # noqa: E711
    return full


def works(answers: Sequence[Hits]) -> int:
    """Distances computed for all answers, which must have been asked for with explain=True."""
    return sum(hits.explain.distances for hits in answers if hits.explain is not None)


def range_search(
    db: CoreNN, queries: AnyArray, bound: float, **options: Any
) -> tuple[NDArray[np.int64], NDArray[np.float32], Int32s, int]:
    """All rows within a distance of each query, as far as walks find them.

    Each query is asked again for four times as many hits until one of them lies beyond the bound or no row is left.

    Args:
        queries: shape (n, dim).
        bound: greatest distance, in the unit of the database: squared under l2.
        options: of `CoreNN.query`; a `search_list` is raised to the number of hits.

    Returns:
        lims (n + 1,), distances (lims[n],), row numbers (lims[n],): those of query q are [lims[q]:lims[q + 1]],
        nearest first; and the number of distances computed.
    """
    found: dict[int, Hits] = {}
    asked, size, spent = list(range(len(queries))), RANGE_START, 0
    while asked:
        size = max(min(size, len(db)), 1)
        sized = {**options, "search_list": list_for(size, options.get("search_list"))}
        answers = db.query(queries[asked], k=size, max_distance=bound, explain=True, **sized)
        spent += works(answers)
        full = [hits for hits in zip(asked, answers, strict=True) if len(hits[1]) == size < len(db)]
        found.update(zip(asked, answers, strict=True))
        asked, size = [at for at, _ in full], 4 * size
    ordered = [found[at] for at in range(len(queries))]
    lims = np.zeros(len(queries) + 1, np.int64)
    np.cumsum([len(hits) for hits in ordered], out=lims[1:])
    distances = np.concatenate([hits.distances for hits in ordered] or [np.empty(0, np.float32)])
    ids = np.array([key for hits in ordered for key in hits.keys], np.int32)
    return lims, distances, ids, spent


class BigAnnSearches:
    """The half of a runner for big-ann-benchmarks that asks: every track has it, beside its own way to fill `_db`."""

    _db: Any = None
    _metric = "l2"
    _described = ""

    def set_query_arguments(self, query_args: Mapping[str, Any]) -> None:
        """{"search_list": candidates that a walk keeps, "threads": at most so many}; begins to count anew."""
        self._options = {name: query_args[name] for name in ("search_list", "threads") if name in query_args}
        self._distances = 0
        self.name = f"corenn({self._described}, {query_args})"

    def query(self, X: Any, k: int) -> None:  # noqa: N803
        """Find the k nearest rows of each row of X; see get_results."""
        options = {**self._options, "search_list": list_for(k, self._options.get("search_list"))}
        answers = self._db.query(np.asarray(X), k=k, explain=True, **options)
        self._distances += works(answers)
        self.res: Any = row_numbers(answers, k).astype(np.int32)

    def range_query(self, X: Any, radius: float) -> None:  # noqa: N803
        """Find all rows within a radius of each row of X; see get_range_results.

        radius: under euclidean the square of the distance, as the data sets give it; under ip the least product.
        """
        bound = 1 - radius if self._metric == "ip" else radius
        lims, distances, ids, spent = range_search(self._db, np.asarray(X), bound, **self._options)
        self._distances += spent
        self.res = lims, (1 - distances if self._metric == "ip" else distances), ids

    def get_results(self) -> Any:
        """Row numbers or tags of the last query, int32 (queries, k); -1 where there are fewer than k."""
        return self.res

    def get_range_results(self) -> Any:
        """lims, D, I of the last range query: I[lims[q]:lims[q + 1]] are the rows of query q, D their distances."""
        return self.res

    def get_additional(self) -> dict[str, Any]:
        """`dist_comps`: distances computed since the query arguments were set."""
        return {"dist_comps": self._distances}

    def get_memory_usage(self) -> float:
        """Resident memory of this process in kB."""
        return resident_kilobytes()

    def done(self) -> None:
        """Release the database; one on disk stays there."""
        db, self._db = self._db, None
        if db is not None:
            db.close()

    def __str__(self) -> str:
        return self.name


def resident_kilobytes() -> float:
    """Resident memory of this process in kB, the unit of both harnesses."""
    import psutil  # type: ignore[import-untyped,unused-ignore]

    return float(psutil.Process().memory_info().rss / 1024)
