"""Index files that the real hnswlib has written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hnswlib
import numpy as np
from numpy.typing import NDArray

from corenn.migrate import HnswFile

Floats = NDArray[np.float32]
Numbers = NDArray[Any]


def gaussian(rows: int, dim: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)


def make(
    metric: str, vectors: Floats, labels: Numbers | None = None, m: int = 8, *, room: int = 0, replace: bool = False
) -> Any:
    """An index of `vectors`, built on one thread: the same each time."""
    index = hnswlib.Index(metric, vectors.shape[1])
    index.init_index(len(vectors) + room, ef_construction=80, M=m, random_seed=7, allow_replace_deleted=replace)
    index.set_num_threads(1)
    if len(vectors):
        index.add_items(vectors, np.arange(len(vectors)) if labels is None else labels)
    return index


def save(index: Any, path: Path) -> Path:
    index.save_index(str(path))
    return path


def lists_of(file: HnswFile) -> Iterator[tuple[int, list[int]]]:
    """Every list above level 0: whose it is and whom it names."""
    for owners, edges in file.upper_edges(0, file.count):
        for owner, degree, neighbours in zip(owners.tolist(), edges.degrees, edges.neighbours.tolist(), strict=True):
            yield owner, neighbours[:degree]
