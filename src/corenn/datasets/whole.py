"""A data set written in one go: rows, queries and their true neighbours."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from ..errors import DatasetError
from ..types import AnyArray
from .atomic import replacing
from .dtypes import DType
from .neighbours import HDF5, write_truth
from .truth import exact_truth
from .vectors import create_vectors, open_vectors
from .work import MEMORY

Progress = Callable[[int], None]


def beside(out: Path, what: str, ending: str | None = None) -> Path:
    """A file beside `out`, with `what` before the ending: base.fbin, base-test.fbin."""
    return out.with_name(f"{out.stem}-{what}{out.suffix if ending is None else ending}")


def files_of(out: Path, queries: int, k: int) -> list[Path]:
    """The files that write_set makes: HDF5 holds everything, any other format has a file for each part."""
    if out.suffix.lower() in HDF5:
        return [out]
    return [
        out,
        *([beside(out, "test")] if queries else []),
        *([beside(out, "truth", ".ibin")] if queries and k else []),
    ]


def write_set(
    out: Path,
    blocks: Iterable[AnyArray],
    count: int,
    queries: AnyArray,
    metric: str,
    dtype: DType,
    *,
    k: int = 0,
    threads: int | None = None,
    memory_bytes: int = MEMORY,
    progress: Progress | None = None,
    searched: Progress | None = None,
) -> list[Path]:
    """Write rows, queries and true neighbours; returns files_of.

    Args:
        out: its ending chooses the format. HDF5 gets `train`, `test`, `neighbors` and `distances` and appears whole.
        blocks: the rows, `count` of them in all, in `dtype`.
        queries: shape (queries, dim), in `dtype`; may be none.
        metric: l2, cosine or ip.
        dtype: of rows and queries in the file.
        k: true neighbours per query, 0 for none.
        threads, memory_bytes: of their search.
        progress: called with each number of rows written.
        searched: called with each number of rows searched.

    Raises:
        DatasetError: for a format that cannot carry `dtype`, or that cannot be written.
    """
    if k and not len(queries):
        raise DatasetError("true neighbours need queries: ask for at least one")
    if out.suffix.lower() not in HDF5:
        _write(out, None, blocks, count, queries.shape[1], metric, dtype, progress)
        test, truth = beside(out, "test"), beside(out, "truth", ".ibin")
        if len(queries):
            _write(test, None, [queries], len(queries), queries.shape[1], metric, dtype, None)
        if k:
            _search(out, None, queries, truth, k, metric, threads, memory_bytes, searched)
        return files_of(out, len(queries), k)
    with replacing(out) as whole:
        _write(whole, "train", blocks, count, queries.shape[1], metric, dtype, progress)
        if len(queries):
            _write(whole, "test", [queries], len(queries), queries.shape[1], metric, dtype, None)
        if k:
            _search(whole, "train", queries, whole, k, metric, threads, memory_bytes, searched)
    return [out]


def _write(
    path: Path, part: str | None, blocks: Iterable[AnyArray], count: int, dim: int, metric: str, dtype: DType,
    progress: Progress | None,
) -> None:  # fmt: skip
    with create_vectors(path, dim, dtype, count, part=part, metric=metric) as out:
        for block in blocks:
            out.append(block)
            if progress is not None:
                progress(len(block))


def _search(
    path: Path, part: str | None, queries: AnyArray, truth: Path, k: int, metric: str, threads: int | None,
    memory: int, progress: Progress | None,
) -> None:  # fmt: skip
    with open_vectors(path, part) as vectors:
        found = exact_truth(
            vectors, np.asarray(queries), k, metric, threads=threads, memory_bytes=memory, progress=progress
        )
    write_truth(truth, found.ids, found.distances, metric=metric)
