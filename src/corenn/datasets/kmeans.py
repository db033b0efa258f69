"""k-means: Lloyd's algorithm over blocks of rows, in bounded memory; the same outcome with any number of threads.

Lloyd: Least squares quantization in PCM, 1982. Seeding: Arthur & Vassilvitskii, k-means++, 2007.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import DatasetError, InvalidArgumentError
from ..graph.threads import Helpers
from ..kernels.clusters import add_up, draw_near
from ..types import AnyArray, Float32s, Float64s, Int64s
from .exact import Search, lengths_squared
from .transform import deal
from .vectors import Vectors
from .work import MEMORY, plan, single_threaded_products

BLOCK = 16_384  # rows assigned at a time, fewer if they are long: by the file alone, so that sums have one order
BLOCK_NUMBERS = 1 << 24
SAMPLED_PER_CLUSTER = 256
SEEDED_PER_CLUSTER = 32
FEWEST_SEEDED = 4096
SPARE = 256  # rows that are kept to seed empty clusters anew
SEEDINGS = ("k-means++", "random")
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Clusters:
    """What k-means found.

    centroids: float32 (k, dim). counts: int64 (k,), rows of each cluster. inertia: sum of the squared distances of the
    rows to their centroids. rows: how many rows these are. iterations: how often the centroids were moved. converged:
    whether that ended because it changed little.
    """

    centroids: Float32s
    counts: Int64s
    inertia: float
    rows: int
    iterations: int
    converged: bool

    @property
    def empty(self) -> int:
        """Clusters without rows: only where there are fewer distinct rows than clusters."""
        return int(np.count_nonzero(self.counts == 0))


def kmeans(
    vectors: Vectors,
    k: int,
    *,
    iterations: int = 25,
    seed: int = 0,
    seeding: str = "k-means++",
    sample: int | None = None,
    tolerance: float = 1e-4,
    threads: int | None = None,
    memory_bytes: int = MEMORY,
    progress: Progress | None = None,
) -> Clusters:
    """Centroids of k clusters under squared Euclidean distance.

    Args:
        vectors: an open file.
        k: clusters, at most the rows that are used.
        iterations: how often the centroids are moved at most.
        seed: of the sample and of the first centroids.
        seeding: "k-means++" (time grows with the square of k) or "random".
        sample: rows to use, drawn without replacement and held in memory; 0 for all, read anew in each iteration. 256
            per cluster unless given.
        tolerance: ends when the inertia falls by less than this share.
        threads: all cores unless given; the outcome does not depend on them.
        memory_bytes: for all that is in work.
        progress: called with each number of rows assigned.

    Raises:
        DatasetError: for fewer rows than clusters, NaN or infinity, or too little memory.
        InvalidArgumentError: for an argument out of its bounds.
    """
    if k < 1 or iterations < 0 or seeding not in SEEDINGS or (sample is not None and sample < 0):
        raise InvalidArgumentError(
            f"k {k}, iterations {iterations}, sample {sample}, seeding {seeding!r}: needs k ≥ 1, the others ≥ 0, and "
            f"a seeding of {', '.join(SEEDINGS)}"
        )
    wanted = SAMPLED_PER_CLUSTER * k if sample is None else sample or len(vectors)
    count = min(wanted, len(vectors))
    if count < k:
        raise DatasetError(f"{vectors.path}: {count:,} rows for {k:,} clusters; needs at least as many rows")
    random = np.random.default_rng(seed)
    helpers = Helpers(threads)
    try:
        with single_threaded_products():
            rows = _Rows(vectors, None)
            if count < len(vectors):
                _check_memory(count, vectors.dim, memory_bytes)
                rows = _Rows(vectors, drawn(vectors, count, random))
            lloyd = _Lloyd(rows, helpers, memory_bytes, random, progress)
            centroids = _seeds(rows, k, seeding, random, helpers)
            return lloyd.run(centroids, iterations, tolerance)
    finally:
        helpers.close()


def _check_memory(count: int, dim: int, memory: int) -> None:
    needed = count * dim * 4
    if needed > memory // 2:
        raise DatasetError(
            f"a sample of {count:,} rows of {dim:,} dimensions is {needed // 1_000_000:,} MB, more than half of the "
            f"{memory // 1_000_000:,} MB of memory allowed: raise the limit, or take a smaller sample"
        )


def drawn(vectors: Vectors, count: int, random: np.random.Generator) -> Float32s:
    """`count` rows drawn without replacement, in the order of the file, as float32."""
    out = np.empty((count, vectors.dim), np.float32)
    step, filled = _step(vectors.dim), 0
    # Generator.choice would list all rows of the file, 8 bytes each, for more than a twentieth of them.
    counts = [count, len(vectors) - count]
    owners = deal(len(vectors), counts, int(random.integers(2**63)), step) if all(counts) else None
    for first in range(0, len(vectors), step):
        stop = min(first + step, len(vectors))
        chosen = np.arange(stop - first) if owners is None else np.flatnonzero(next(owners) == 0)
        if len(chosen):
            out[filled : filled + len(chosen)] = _checked(vectors, vectors.rows(first, stop)[chosen], first + chosen)
            filled += len(chosen)
    return out[:filled]


def _step(dim: int) -> int:
    """Rows at a time."""
    return max(1, min(BLOCK, BLOCK_NUMBERS // dim))


def _checked(vectors: Vectors, block: AnyArray, numbers: AnyArray) -> Float32s:
    """Rows of the file as float32. numbers: of each row in the file, for the message.

    Raises:
        DatasetError: for NaN, infinity or values too large to square.
    """
    with np.errstate(over="ignore"):
        rows: Float32s = np.array(block, np.float32, order="C")
    unknown = np.flatnonzero(~np.isfinite(lengths_squared(rows)))
    if len(unknown):
        row = int(numbers[unknown[0]])
        raise DatasetError(f"{vectors.path}: row {row:,} holds NaN, infinity or values too large to square")
    return rows


class _Rows:
    """The rows to cluster: a sample in memory, or the file itself."""

    def __init__(self, vectors: Vectors, sample: Float32s | None) -> None:
        self._vectors, self._sample = vectors, sample
        self.count, self.dim = vectors.shape if sample is None else sample.shape

    def blocks(self) -> Iterator[tuple[int, Float32s]]:
        """All rows in order, some at a time, as float32."""
        step = _step(self.dim)
        if self._sample is None:
            for first, block in self._vectors.blocks(step):
                yield first, _checked(self._vectors, block, np.arange(first, first + len(block)))
            return
        for first in range(0, self.count, step):
            yield first, self._sample[first : first + step]

    def drawn(self, count: int, random: np.random.Generator) -> Float32s:
        """Some of them, without replacement."""
        if self._sample is None:
            return drawn(self._vectors, count, random)
        return self._sample[np.sort(random.choice(self.count, count, replace=False, shuffle=False))]


# --- the first centroids ----------------------------------------------------------------------------------------------


def _seeds(rows: _Rows, k: int, seeding: str, random: np.random.Generator, helpers: Helpers) -> Float32s:
    if seeding == "random":
        return rows.drawn(k, random)
    some = rows.drawn(min(rows.count, max(FEWEST_SEEDED, SEEDED_PER_CLUSTER * k)), random)
    centroids = np.empty((k, rows.dim), np.float32)
    nearest = np.full(len(some), np.inf)
    chosen = int(random.integers(len(some)))
    for at in range(k):
        centre = centroids[at] = some[chosen]
        _draw_near(some, centre, nearest, helpers)
        heights = np.cumsum(nearest)
        # Where every row is a centroid already, all heights are 0 and the first row is taken again.
        height = float(random.random()) * heights[-1]
        chosen = min(int(np.searchsorted(heights, height, side="right")), len(some) - 1) if heights[-1] > 0 else 0
    return centroids


def _draw_near(rows: Float32s, centre: Float32s, nearest: Float64s, helpers: Helpers) -> None:
    def work(start: int, stop: int) -> None:
        draw_near(rows[start:stop], centre, nearest[start:stop])

    helpers.run(work, len(rows), BLOCK)


# --- assignment -------------------------------------------------------------------------------------------------------


def labelled(block: Float32s, centroids: Float32s, helpers: Helpers, memory: int) -> tuple[Int64s, Float64s]:
    """The nearest centroid of each row, the first of several, and its squared distance."""
    cut = plan(len(centroids), len(block), block.shape[1], 1, helpers.threads, False, memory)
    search = Search(block, 1, "l2", cut, helpers)
    for first in range(0, len(centroids), cut.rows):
        search.offer(centroids[first : first + cut.rows], first)
    return search.heaps.ids[:, 0], search.heaps.distances[:, 0]


def assignments(
    vectors: Vectors,
    centroids: Float32s,
    *,
    threads: int | None = None,
    memory_bytes: int = MEMORY,
    progress: Progress | None = None,
) -> Iterator[tuple[NDArray[np.int32], Float64s]]:
    """Block after block of all rows: the nearest centroid of each, and its squared distance."""
    helpers = Helpers(threads)
    try:
        with single_threaded_products():
            for _, block in _Rows(vectors, None).blocks():
                labels, distances = labelled(block, centroids, helpers, memory_bytes)
                yield labels.astype(np.int32), distances
                if progress is not None:
                    progress(len(block))
    finally:
        helpers.close()


# --- Lloyd ------------------------------------------------------------------------------------------------------------


class _Lloyd:
    """Moves centroids to the means of their rows until that changes little."""

    def __init__(
        self, rows: _Rows, helpers: Helpers, memory: int, random: np.random.Generator, progress: Progress | None
    ) -> None:
        self._rows, self._helpers, self._memory = rows, helpers, memory
        self._random, self._progress = random, progress

    def run(self, centroids: Float32s, iterations: int, tolerance: float) -> Clusters:
        before = np.inf
        for moved in range(iterations + 1):
            sums, counts, inertia, spares = self._assign(centroids)
            settled = inertia >= before * (1 - tolerance) and not spares
            if settled or moved == iterations:
                return Clusters(centroids, counts, inertia, self._rows.count, moved, settled)
            centroids = _moved(centroids, sums, counts, spares)
            before = inertia
        raise AssertionError("the last iteration returns")

    def _assign(self, centroids: Float32s) -> tuple[Float64s, Int64s, float, list[Float32s]]:
        """Sums and counts of the clusters, the inertia, and rows for those that are empty."""
        sums, counts = np.zeros(centroids.shape), np.zeros(len(centroids), np.int64)
        inertia, spares = 0.0, _Spares(SPARE, centroids.shape[1], self._random)
        share = -(-len(centroids) // self._helpers.threads)
        for _, block in self._rows.blocks():
            labels, distances = labelled(block, centroids, self._helpers, self._memory)

            def work(low: int, high: int, block: AnyArray = block, labels: Int64s = labels) -> None:
                add_up(block, labels, low, high, sums, counts)

            self._helpers.run(work, len(centroids), share)
            inertia += float(distances.sum())
            spares.add(block, distances)
            if self._progress is not None:
                self._progress(len(block))
        return sums, counts, inertia, spares.apart(int(np.count_nonzero(counts == 0)))


def _moved(centroids: Float32s, sums: Float64s, counts: Int64s, spares: list[Float32s]) -> Float32s:
    """The means; an empty cluster goes to a row that was far from its centroid, or stays where there is none."""
    means = sums / np.maximum(counts, 1)[:, None]
    moved = np.where(counts[:, None] > 0, means, centroids).astype(np.float32)
    for at, row in zip(np.flatnonzero(counts == 0), spares, strict=False):
        moved[at] = row
    return moved


class _Spares:
    """At most `room` rows, drawn with a chance that grows with the squared distance to their centroids.

    Weighted reservoir sampling: Efraimidis & Spirakis, 2006.
    """

    def __init__(self, room: int, dim: int, random: np.random.Generator) -> None:
        self._room, self._random = room, random
        self._keys, self._distances = np.empty(0), np.empty(0)
        self._rows = np.empty((0, dim), np.float32)

    def add(self, block: Float32s, distances: Float64s) -> None:
        """Give each row of a block its chance; one that is its own centroid has none."""
        draws = self._random.exponential(size=len(block))
        keys = np.divide(draws, distances, out=np.full(len(block), np.inf), where=distances > 0)
        bound = self._keys[-1] if len(self._keys) == self._room else np.inf
        chosen = np.flatnonzero(keys < bound)
        both = np.concatenate([self._keys, keys[chosen]])
        order = np.argsort(both, kind="stable")[: self._room]
        self._keys = both[order]
        self._distances = np.concatenate([self._distances, distances[chosen]])[order]
        self._rows = np.concatenate([self._rows, block[chosen]])[order]

    def apart(self, count: int) -> list[Float32s]:
        """At most `count` of them, each as far as can be from all centroids and from those before it."""
        near = self._distances.copy()
        chosen: list[Float32s] = []
        while len(chosen) < count and len(near) and near.max() > 0:
            row = self._rows[int(near.argmax())]
            chosen.append(row)
            near = np.minimum(near, np.square(self._rows - row, dtype=np.float64).sum(axis=1))
        return chosen
