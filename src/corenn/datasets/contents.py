"""What a file holds, whichever format and kind: vectors, or neighbours of queries."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .dtypes import name_of
from .neighbours import HDF5, RANGE, is_knn_truth, is_range_truth, range_counts, truth_shape
from .vectors import ENDINGS, ending, existing, open_vectors


@dataclass(frozen=True, slots=True)
class Contents:
    """What a file holds.

    kind: "vectors", "neighbours" (k per query) or "ranges" (any number per query). rows, dim: of the matrix; for
    neighbours queries and k, for ranges queries and None. dtype: short name. metric: None where the file does not say.
    distances: whether neighbours come with theirs.
    """

    kind: str
    rows: int
    dim: int | None
    dtype: str
    metric: str | None = None
    distances: bool = False


def contents(path: str | Path, part: str | None = None) -> Contents:
    """What `path` holds, by sizes and headers; `part` as in open_vectors.

    Raises:
        DatasetError: for a file that is missing, torn, empty, inconsistent or of an unknown format.
    """
    path = existing(path)
    if path.suffix.lower() == RANGE or is_range_truth(path):
        return Contents("ranges", len(range_counts(path)), None, "i32", distances=True)
    if is_knn_truth(path, part):
        queries, k, dtype, distances = truth_shape(path)
        return Contents("neighbours", queries, k, name_of(dtype), distances=distances)
    with open_vectors(path, part) as vectors:
        return Contents("vectors", len(vectors), vectors.dim, name_of(vectors.dtype), vectors.metric)


def format_of(path: Path) -> str:
    """The name of the format of `path`, such as "texmex"."""
    return "big-ann ranges" if path.suffix.lower() == RANGE else ENDINGS[ending(path)]


def readable(path: Path) -> bool:
    """True if the ending of `path` is that of vectors or neighbours."""
    return path.suffix.lower() in (*ENDINGS, RANGE, *HDF5)
