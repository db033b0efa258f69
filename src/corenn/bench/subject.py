"""The data of a run: rows and queries as mapped .npy files, and the exact answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..config import METRICS
from ..datasets.neighbours import HDF5
from ..errors import DatasetError, InvalidArgumentError
from ..types import Float32s, Float64s, Int64s
from .recall import distances_of, exact_neighbours, once, recall_by_distance

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Source:
    """Where the data come from.

    base, queries: files for open_vectors, with the part of each. truth: a file for read_truth, or None. metric: that of
    `base` unless given. sha256: of `base`, where its manifest says it.
    """

    name: str
    base: Path
    base_part: str | None
    queries: Path
    queries_part: str | None
    truth: Path | None
    metric: str | None
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Subject:
    """What every system gets, and what its answers are compared with.

    base_file, queries_file: float32 .npy of shape (n, dim) and (queries, dim); base, queries: the same, mapped.
    truth: exact distances, float64 (queries, k), ascending. about: the member `dataset` of the log. fields_file: the
    columns by which searches are restricted, see conditions.py; None for none.
    """

    base_file: Path
    queries_file: Path
    base: Float32s
    queries: Float32s
    truth: Float64s
    metric: str
    about: dict[str, Any]
    fields_file: Path | None = None

    def recalls(self, ids: Int64s) -> tuple[float, float, float]:
        """recall@k, 1@1 and 1@k of the answers to the first len(ids) queries, ties counted by distance."""
        k, count = self.truth.shape[1], len(ids)
        truth = self.truth[:count]
        found = distances_of(once(ids), self.base, self.queries[:count], self.metric)
        best = found.min(axis=1, keepdims=True)
        return (
            recall_by_distance(found, truth, k),
            recall_by_distance(found, truth, 1),
            recall_by_distance(best, truth, 1),
        )


def locate(
    dataset: str, *, queries: Path | None = None, truth: Path | None = None, metric: str | None = None,
    rows: int | None = None, root: Path | None = None,
) -> Source:  # fmt: skip
    """Where the data of a run are.

    Args:
        dataset: a file, or else a name of the catalogue that was fetched, whole or its first `rows` rows.
        queries: a file of queries; those of the data set unless given, which a file has in HDF5 only.
        truth: a file of true neighbours; those of the data set unless given.
        metric: that of the data set unless given; with another one, neighbours that come with the data do not count.
        rows: how many will be indexed.
        root: folder of all data sets.

    Raises:
        DatasetError: for a file without queries, an unknown name, or a data set that was not fetched yet.
        InvalidArgumentError: for an unknown metric.
    """
    if metric is not None and metric not in METRICS:
        raise InvalidArgumentError(f"metric={metric!r}: choose one of {', '.join(METRICS)}")
    path = Path(dataset)
    if path.exists():
        found = _file(path, queries)
    else:
        found = _fetched(dataset, rows, root)
        if queries is not None:
            found = replace(found, queries=queries, queries_part=None, truth=None)
    if metric is not None and found.truth is not None and metric != _stated(found):
        found = replace(found, truth=None)  # neighbours by another metric than the one asked for
    return replace(found, truth=truth or found.truth, metric=metric or found.metric)


def _stated(source: Source) -> str | None:
    """The metric that the data set says it has."""
    from ..datasets import open_vectors

    if source.metric is not None:
        return source.metric
    with open_vectors(source.base, source.base_part) as base:
        return base.metric


def _file(path: Path, queries: Path | None) -> Source:
    """A file of vectors, and its queries."""
    hdf5 = path.suffix.lower() in HDF5
    if queries is None and not hdf5:
        raise DatasetError(f"{path} has no queries; name a file of queries (--query-file)")
    own = hdf5 and queries is None
    truth = path if own and "neighbors" in _parts(path) else None
    return Source(
        path.name, path, "train" if hdf5 else None, queries or path, "test" if own else None, truth, None,
        sha256_of(path),
    )  # fmt: skip


def _parts(path: Path) -> dict[str, Any]:
    from ..datasets.formats.hdf5 import parts

    return parts(path)


def _fetched(name: str, rows: int | None, root: Path | None) -> Source:
    """A data set of the catalogue, if all its files are there."""
    from ..datasets.catalogue import find
    from ..datasets.fetch import fetch, plan

    entry = find(name)
    for wanted in dict.fromkeys((None, rows)):
        if wanted is not None and wanted > entry.rows:
            continue
        if any(all(each.there for each in files) for files in plan(entry, rows=wanted, folder=root)):
            ready = fetch(entry, rows=wanted, folder=root)  # nothing is left to fetch
            return Source(
                ready.name, ready.base, ready.base_part, ready.queries, ready.queries_part, ready.truth, ready.metric,
                sha256_of(ready.base, root),
            )  # fmt: skip
    raise DatasetError(f"{entry.name} is not here yet; get it with `corenn dataset fetch {entry.name}`")


def sha256_of(file: Path, root: Path | None = None) -> str | None:
    """What the manifest of a file says; None if it has none."""
    from ..datasets.layout import manifest_path
    from ..datasets.manifest import read_manifest

    manifest = manifest_path(file, root)
    return read_manifest(manifest).sha256 if manifest.is_file() else None


def prepare(source: Source, folder: Path, count: int | None, queries: int, k: int, tell: Tell) -> Subject:
    """Read, convert and answer exactly.

    Args:
        source: the data.
        folder: where the .npy files go.
        count: rows to index, the first of the file; None, or more than there are, for all.
        queries: queries to ask at most, the first of the file.
        k: neighbours.
        tell: is told what is going on.

    Raises:
        DatasetError: for files that do not fit each other, without queries, or with too few rows.
    """
    from ..datasets import open_vectors

    with open_vectors(source.base, source.base_part) as base:
        metric = source.metric or base.metric
        if metric not in METRICS:
            raise DatasetError(
                f"{source.base} does not say its metric; name it with --metric, one of {', '.join(METRICS)}"
            )
        n = _count(source.base, len(base), count, k, tell)
        tell(f"reading {n:,} of {len(base):,} rows of {base.dim} dimensions from {source.base.name}")
        base_file = _convert(base, n, folder / "base.npy")
        about = {"name": source.name, "rows": len(base), "dim": base.dim, "metric": metric, "sha256": source.sha256}
    with open_vectors(source.queries, source.queries_part) as asked:
        if asked.dim != about["dim"]:
            raise DatasetError(f"{asked.path}: queries of {asked.dim} dimensions; the rows have {about['dim']}")
        about["queries"] = len(asked)
        queries_file = _convert(asked, min(queries, len(asked)), folder / "queries.npy")
    rows, questions = (np.asarray(np.load(file, mmap_mode="r")) for file in (base_file, queries_file))
    known = _known(source, len(questions), k) if n == about["rows"] else None
    about |= {"bytes": source.base.stat().st_size, "truth": "computed" if known is None else "file"}
    if known is None:
        tell(f"computing the exact neighbours of {len(questions):,} queries")
        known = exact_neighbours(rows, questions, k, metric)[0]
    truth = np.sort(distances_of(known, rows, questions, metric), axis=1)
    return Subject(base_file, queries_file, rows, questions, truth, metric, about)


def _count(path: Path, rows: int, count: int | None, k: int, tell: Tell) -> int:
    n = rows if count is None else min(count, rows)
    if count is not None and n < count:
        tell(f"{path.name} has {rows:,} rows: all of them are taken")
    if n < k:
        raise InvalidArgumentError(f"k={k}: must be at most the number of rows, {n:,}")
    return n


def _convert(vectors: Any, count: int, path: Path) -> Path:
    """The first `count` rows as float32 in a .npy file."""
    out = np.lib.format.open_memmap(path, "w+", np.float32, (count, vectors.dim))
    for first, block in vectors.blocks():
        if first >= count:
            break
        out[first : first + len(block)] = block[: count - first]
    out.flush()
    return path


def _known(source: Source, queries: int, k: int) -> Int64s | None:
    """The neighbours that came with the data, if they are enough."""
    from ..datasets import read_truth

    if source.truth is None:
        return None
    ids = read_truth(source.truth).ids
    if len(ids) < queries or ids.shape[1] < k or ids[:queries, :k].min() < 0:
        return None
    return ids[:queries, :k]
