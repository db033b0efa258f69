"""The exact k nearest rows, from blocks of rows that come one after the other, for queries that stay.

Matrix products in float32 find the rows that may count; those are measured again in float64, so that rounding swaps no
neighbours. Equal distances are ordered by id. See kernels/topk.py for why the outcome is exact.
"""

from __future__ import annotations

import numpy as np

from ..errors import DatasetError, InvalidArgumentError
from ..graph.threads import Helpers
from ..kernels.search import COSINE, IP, L2
from ..kernels.topk import ROUNDING, Asked, Block, Candidates, Heaps, conclude, distances_to, offer, squares_of
from ..types import AnyArray, Float32s, Float64s, Int64s
from .work import MEMORY, Gate, Plan, candidates_of, is_wide, plan, single_threaded_products

METRICS = {"l2": L2, "cosine": COSINE, "ip": IP}
PREPARED = 2048  # rows that one thread converts at a time
UNIT = 2.0**-24  # half a unit in the last place of float32, relative
DISTANCE_UNIT = 2.0**-51  # what 1 - dot may lose in float64: rows so much apart have to be told apart by their ids
TINY = 2.0**-124  # what one product loses where float32 runs out of exponents
HUGE, SMALL = 1e37, 1e-30  # squared lengths outside of which float32 is not trusted at all
FAR = 100.0  # a mean this many times larger than the spread, both squared, is taken off first
CENTRED = 1024  # rows that the mean is taken from


def metric_number(metric: str) -> int:
    """The number of a metric in kernels.

    Raises:
        InvalidArgumentError: if there is none of this name.
    """
    if metric not in METRICS:
        raise InvalidArgumentError(f"unknown metric {metric!r}; choose one of {', '.join(METRICS)}")
    return METRICS[metric]


def centre_of(rows: AnyArray, metric: str) -> Float32s | None:
    """What to take off rows and queries before their products are formed, or None for nothing.

    rows: a few of the base, shape (n, dim). Vectors that lie close together, far from the origin, lose in float32 what
    tells them apart. Only l2 does not change when all are moved.
    """
    if metric != "l2":
        return None
    exact = rows.astype(np.float64)
    with np.errstate(all="ignore"):
        mean = exact.mean(axis=0)
        spread = float(np.square(exact - mean).sum(axis=1).mean())
        reach = float(mean @ mean)
    return mean.astype(np.float32) if FAR * spread < reach < HUGE else None


class Search:
    """The k nearest to each of a set of queries among all rows offered so far.

    One thread at a time may use it; it works on `helpers`.

    heaps: the state, which may be saved between two calls of `offer` and put in place again before the first.
    """

    def __init__(
        self,
        queries: AnyArray,
        k: int,
        metric: str,
        plan: Plan,
        helpers: Helpers,
        *,
        wide: bool = False,
        centre: Float32s | None = None,
    ) -> None:
        count, self.dim = queries.shape
        self.heaps = Heaps(
            np.full((count, k), np.inf), np.full((count, k), np.iinfo(np.int64).max), np.zeros(count, np.int64)
        )
        self._plan, self._helpers, self._centre = plan, helpers, centre
        self._gate = Gate()
        self._metric = metric_number(metric)
        self._exact = np.float64 if wide else np.float32
        self._slack = (self.dim + 24) * UNIT
        self._asked, self._scored = self._aim(np.array(queries, self._exact, order="C"))
        self._values = np.empty((plan.rows, self.dim), self._exact)
        separate = wide or centre is not None
        self._lowered = np.empty((plan.rows, self.dim), np.float32) if separate else None

    def _aim(self, values: AnyArray) -> tuple[Asked, Float32s]:
        """The queries as they are measured, and as they are multiplied."""
        squares = lengths_squared(values)
        unknown = np.flatnonzero(~np.isfinite(squares))
        if len(unknown):
            raise DatasetError(f"query {unknown[0]:,} holds NaN, infinity or values too large to square")
        if self._metric == L2:
            scored = self._moved(values)
            reach = lengths_squared(scored)
            errors = self._slack * reach
            slopes, rises = np.ones(len(values)), errors - reach
        else:
            lengths = np.sqrt(squares)
            lengths[lengths == 0] = 1
            scored = (values / lengths[:, None]).astype(np.float32)
            slopes = 1 / lengths if self._metric == IP else np.ones(len(values))
            errors = slopes * DISTANCE_UNIT
            rises, reach = errors - slopes, squares
        # Under ip and cosine it is the direction that is multiplied, whose length is 1.
        trusted = (reach < HUGE) if self._metric == L2 else np.isfinite(scored).all(axis=1) & np.isfinite(slopes)
        slopes = np.where(trusted, slopes, 1.0)
        rises, errors = (np.where(trusted, each, np.inf) for each in (rises, errors))
        return Asked(values, squares, slopes, rises, errors, self._metric), scored

    def _moved(self, values: AnyArray) -> Float32s:
        if self._centre is not None:
            values = values - self._centre
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(values, np.float32)

    def offer(self, block: AnyArray, first: int) -> None:
        """Consider more rows.

        Args:
            block: shape (at most plan.rows, dim), any real type.
            first: the id of its first row; ids ascend from call to call.

        Raises:
            DatasetError: for NaN, infinity or values too large to square.
        """
        rows, scored = self._prepare(block, first)
        step = self._plan.columns

        def work(start: int, stop: int) -> None:
            with self._gate as entered:
                if entered:
                    consider(start, stop)

        def consider(start: int, stop: int) -> None:
            asked, heaps = _asked_cut(self._asked, start, stop), _heaps_cut(self.heaps, start, stop)
            candidates = self._no_candidates(asked, heaps)
            aimed, room = self._scored[start:stop], np.empty((stop - start) * min(step, len(scored)), np.float32)
            with np.errstate(all="ignore"):  # what overflows is measured
                for at in range(0, len(scored), step):
                    part = scored[at : at + step]
                    products = room[: len(aimed) * len(part)].reshape(len(aimed), len(part))
                    np.matmul(aimed, part.T, out=products)
                    offer(rows, at, products, asked, candidates, heaps)
                conclude(rows, asked, candidates, heaps)

        self._helpers.run(work, len(self._scored), self._plan.queries)

    def _no_candidates(self, asked: Asked, heaps: Heaps) -> Candidates:
        count, k = heaps.ids.shape
        limits = (asked.slopes * heaps.distances[:, 0] + asked.rises).astype(np.float32)
        limits += np.abs(limits) * ROUNDING
        return Candidates(np.empty((count, candidates_of(k)), np.uint64), np.zeros(count, np.int64), limits)

    def _prepare(self, block: AnyArray, first: int) -> tuple[Block, Float32s]:
        """The rows as they are measured, and as they are multiplied."""
        count = len(block)
        given = block.dtype == self._exact and block.flags.carray
        values, squares = block if given else self._values[:count], np.empty(count)
        offsets, factors = np.empty(count, np.float32), np.empty(count, np.float32)
        errors = np.zeros(-(-count // PREPARED))
        scored: Float32s = values if self._lowered is None else self._lowered[:count]

        def work(start: int, stop: int) -> None:
            cut = slice(start, stop)
            if not given:
                values[cut] = block[cut]
            squares_of(values[cut], squares[cut])
            if self._lowered is not None:
                scored[cut] = self._moved(values[cut])
            reach = lengths_squared(scored[cut]) if self._lowered is not None else squares[cut]
            offsets[cut], factors[cut], errors[start // PREPARED] = self._bounds(reach)

        self._helpers.run(work, count, PREPARED)
        unknown = np.flatnonzero(~np.isfinite(squares))
        if len(unknown):
            raise DatasetError(f"row {first + unknown[0]:,} holds NaN, infinity or values too large to square")
        return Block(values, squares, offsets, factors, float(errors.max()), first), scored

    def _bounds(self, reach: Float64s) -> tuple[Float64s, Float64s, float]:
        """Offsets, factors and the largest error of rows, by their squared lengths; see kernels/topk.py."""
        tiny = self.dim * TINY
        if self._metric == COSINE:
            trusted = (reach < HUGE) & ((reach > SMALL) | (reach == 0))
            lengths = np.sqrt(np.where(trusted & (reach > 0), reach, 1.0))
            centres, errors, factors = (
                np.zeros(len(reach)),
                np.full(len(reach), self._slack),
                np.where(reach > 0, 1 / lengths, 0.0),
            )
        else:
            trusted, factors = reach < HUGE, np.full(len(reach), 2.0 if self._metric == L2 else 1.0)
            centres = reach if self._metric == L2 else np.zeros(len(reach))
            errors = self._slack * (reach if self._metric == L2 else np.sqrt(reach)) + tiny
        with np.errstate(invalid="ignore"):
            offsets = np.where(trusted, centres - errors, -np.inf)
        return offsets, np.where(trusted, factors, 1.0), float(errors[trusted].max(initial=0.0))

    def settle(self) -> None:
        """After an interruption: wait until no thread is at work any more, so that the heaps hold still.

        Each holds all rows below its `seen`, and no others. No more rows are considered afterwards.
        """
        self._gate.close()

    def results(self) -> tuple[Int64s, Float64s]:
        """Ids and distances, shape (queries, k), by distance and then by id; ids are meaningless where it is inf."""
        order = np.lexsort((self.heaps.ids, self.heaps.distances), axis=1)
        return np.take_along_axis(self.heaps.ids, order, 1), np.take_along_axis(self.heaps.distances, order, 1)


def _asked_cut(asked: Asked, start: int, stop: int) -> Asked:
    cut = slice(start, stop)
    return Asked(
        asked.values[cut], asked.squares[cut], asked.slopes[cut], asked.rises[cut], asked.errors[cut], asked.metric
    )  # fmt: skip


def _heaps_cut(heaps: Heaps, start: int, stop: int) -> Heaps:
    return Heaps(heaps.distances[start:stop], heaps.ids[start:stop], heaps.seen[start:stop])


def lengths_squared(values: AnyArray) -> Float64s:
    """Squared length of each row, in float64."""
    out = np.empty(len(values))
    squares_of(values, out)
    return out


def nearest(
    base: AnyArray, queries: AnyArray, k: int, metric: str, *, threads: int | None = None, memory: int = MEMORY
) -> tuple[Int64s, Float64s]:
    """The k nearest rows of an array: ids and distances of shape (queries, min(k, rows)), by distance, then by id.

    Args:
        base: shape (rows, dim), any real type.
        queries: shape (queries, dim).
        k: at least 1.
        metric: l2 (squared Euclidean), cosine (1 - cos, 1 where a vector is zero) or ip (1 - dot).
        threads: all cores unless given.
        memory: bytes for what is computed, beside base and queries.

    Raises:
        DatasetError: for shapes that do not fit, no rows, NaN or infinity.
        InvalidArgumentError: for k < 1 or an unknown metric.
    """
    check_task(base.shape, queries.shape, k)
    helpers = Helpers(threads)
    try:
        k = min(k, len(base))
        wide = is_wide(base.dtype, queries.dtype)
        cut = plan(len(base), len(queries), base.shape[1], k, helpers.threads, wide, memory)
        centre = centre_of(base[:CENTRED], metric)
        search = Search(queries, k, metric, cut, helpers, wide=wide, centre=centre)
        with single_threaded_products():
            for first in range(0, len(base), cut.rows):
                search.offer(base[first : first + cut.rows], first)
    finally:
        helpers.close()
    return search.results()


def check_task(base: tuple[int, ...], queries: tuple[int, ...], k: int) -> None:
    """Refuse shapes that do not fit each other, an empty base, and k < 1.

    Raises:
        DatasetError, InvalidArgumentError: as said.
    """
    if len(base) != 2 or len(queries) != 2 or base[1] != queries[1] or 0 in base:
        raise DatasetError(f"queries of shape {queries} do not fit a base of shape {base}; both need (rows, dim)")
    if k < 1:
        raise InvalidArgumentError(f"k is {k}; needs at least 1")


def measured(base: AnyArray, queries: AnyArray, ids: AnyArray, metric: str) -> Float64s:
    """The distance of each query to certain rows, in float64 of the shape of `ids`, inf where an id is negative.

    Args:
        base: shape (rows, dim). Rows that are asked for are read, no others.
        queries: shape (queries, dim).
        ids: integers, shape (queries, n).
        metric: l2, cosine or ip.

    Raises:
        DatasetError: for shapes that do not fit, or an id beyond the rows.
    """
    check_task(base.shape, queries.shape, 1)
    if ids.shape[:1] != queries.shape[:1] or ids.ndim != 2 or (ids.size and int(ids.max()) >= len(base)):
        raise DatasetError(f"ids of shape {ids.shape} do not fit {len(queries):,} queries and {len(base):,} rows")
    kind = np.float64 if is_wide(base.dtype, queries.dtype) else np.float32
    wanted, places = np.unique(ids, return_inverse=True)
    missing = int(np.searchsorted(wanted, 0))
    values = np.ascontiguousarray(base[wanted[missing:]], kind)
    asked = np.array(queries, kind, order="C")
    out = np.empty(ids.shape)
    distances_to(
        values, lengths_squared(values), asked, lengths_squared(asked),
        places.reshape(ids.shape).astype(np.int64) - missing, metric_number(metric), out,
    )  # fmt: skip
    return out
