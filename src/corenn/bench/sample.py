"""Real vectors with exact answers, from a file in the layout of ann-benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..types import AnyArray, Float32s, Float64s
from .recall import distances_of, exact_neighbours

METRICS = {"euclidean": "l2", "angular": "cosine", "ip": "ip", "dot": "ip"}


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows to index, queries with the distances of their true neighbours, and further rows to insert one by one.

    base (rows, dim), queries (queries, dim), spare (any, dim): float32. truth (queries, k): float64, ascending.
    """

    metric: str
    base: Float32s
    queries: Float32s
    spare: Float32s
    truth: Float64s


def load(file: Path, rows: int, queries: int, spare: int, k: int) -> Sample:
    """The first `rows` rows and `queries` queries of an HDF5 file with `train`, `test`, `neighbors` and `distance`.

    Truth is taken from the file if all its rows are used, and computed otherwise.

    Raises:
        ValueError: for a file without these datasets, or of an unknown distance.
    """
    import h5py

    with h5py.File(file) as opened:
        named = str(opened.attrs.get("distance", ""))
        if named not in METRICS or "train" not in opened or "test" not in opened:
            raise ValueError(f"{file}: needs train, test and a distance of {', '.join(METRICS)}; has {named!r}")
        train, test = opened["train"], opened["test"]
        base, asked = _floats(train[:rows]), _floats(test[:queries])
        more = _floats(train[rows : rows + spare])
        known = opened["neighbors"][:queries, :k] if rows >= len(train) and "neighbors" in opened else None
    metric = METRICS[named]
    if known is None:
        truth = exact_neighbours(base, asked, k, metric)[1]
    else:
        truth = np.sort(distances_of(known, base, asked, metric), axis=1)
    return Sample(metric, base, asked, more if len(more) else _between(base, spare), truth)


def made(rows: int, dim: int, queries: int, spare: int, k: int) -> Sample:
    """Rows and queries on a bent manifold of 16 dimensions, which are searched as embeddings are."""
    from ..datasets.synthetic import Shape, Synthetic

    source = Synthetic(Shape(dim, min(16, dim)))
    everything = np.concatenate(list(source.blocks(rows + spare)))
    base, asked = everything[:rows], source.queries(queries)
    return Sample("l2", base, asked, everything[rows:], exact_neighbours(base, asked, k, "l2")[1])


def _floats(rows: AnyArray) -> Float32s:
    return np.ascontiguousarray(rows, dtype=np.float32)


def _between(base: Float32s, count: int) -> Float32s:
    """New rows where the file has none left: half way between two of its rows."""
    first, second = np.random.default_rng(0).integers(0, len(base), (2, count))
    return np.asarray((base[first] + base[second]) / 2, np.float32)
