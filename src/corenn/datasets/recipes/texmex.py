"""An archive of the TexMex corpus: base and queries as .fvecs, numbers of the true neighbours as .ivecs."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from ...errors import DatasetError
from ...types import AnyArray, Float32s
from ..archive import extract
from ..neighbours import read_truth
from ..vectors import Vectors, open_vectors
from . import Job, Prepared, Wanted
from .hdf5 import ready, write

MARGIN = 64 << 20
PAIRS = 1 << 16


def wanted(job: Job) -> list[Wanted]:
    """The archive, whole: it is compressed."""
    return [Wanted(job.source.base, job.raw(job.source.base.name))]


def prepare(job: Job) -> Prepared:
    """One HDF5 file; distances are computed, since the archive names the neighbours only."""
    base, queries, truth = _members(job)
    target = job.layout.processed / f"{job.stem}.hdf5"
    job.make(target, f"raw/{job.source.base.name}", partial(_write, job, base, queries, truth))
    return ready(job, target, not job.cut)


def _members(job: Job) -> list[Path]:
    """The members of the archive below raw/, unpacked if they are not there yet."""
    archive = job.raw(job.source.base.name)
    files = [job.raw(name) for name in job.source.members]
    if not all(job.recorded(file) for file in files):
        # Learning sets are up to two and a half times as large as the base.
        limit = 4 * job.source.total * (job.entry.row_bytes + 4) + MARGIN
        extract(archive, {file.name: file for file in files}, limit, job.watch)
        for file in files:
            job.record(file, f"raw/{archive.name}")
    return files


def _write(job: Job, base_file: Path, query_file: Path, truth_file: Path, target: Path) -> None:
    with open_vectors(base_file) as base, open_vectors(query_file) as queries:
        _check(job, base, job.source.total)
        _check(job, queries, job.entry.queries)
        extra: dict[str, AnyArray] = {}
        if not job.cut:
            ids = read_truth(truth_file).ids
            if len(ids) != len(queries) or ids.min() < 0 or ids.max() >= len(base):
                raise DatasetError(
                    f"{truth_file}: {len(ids):,} queries, ids {ids.min()} to {ids.max()}; not of this base"
                )
            extra = {"neighbors": ids.astype(np.int32), "distances": distances(job.entry.metric, base, queries, ids)}
        write(job, target, base, queries, extra)


def _check(job: Job, vectors: Vectors, rows: int) -> None:
    if vectors.shape != (rows, job.entry.dim):
        raise DatasetError(f"{vectors.path}: shape {vectors.shape}; {job.entry.name} has {rows:,} × {job.entry.dim}")


def distances(metric: str, base: Vectors, queries: Vectors, ids: AnyArray) -> Float32s:
    """Distances of each query to rows of the base, as ann-benchmarks gives them: Euclidean, or 1 - cosine.

    The base is read once, from beginning to end.

    Args:
        metric: "l2" or "cosine".
        base: rows that `ids` counts.
        queries: shape (queries, dim); they fit into memory.
        ids: shape (queries, k).

    Raises:
        DatasetError: for another metric.
    """
    if metric not in ("l2", "cosine"):
        raise DatasetError(f"an archive of neighbours under {metric!r}; only l2 and cosine are known")
    asked = queries.rows(0, len(queries)).astype(np.float64)
    flat = ids.ravel()
    order = np.argsort(flat, kind="stable")
    ranked = flat[order]
    found = np.empty(flat.shape, np.float32)
    for start, block in base.blocks():
        first, end = np.searchsorted(ranked, (start, start + len(block)))
        for at in range(first, end, PAIRS):
            pairs = order[at : min(at + PAIRS, end)]
            rows = block[flat[pairs] - start].astype(np.float64)
            found[pairs] = _between(metric, rows, asked[pairs // ids.shape[1]])
    return found.reshape(ids.shape)


def _between(metric: str, rows: AnyArray, others: AnyArray) -> AnyArray:
    """The distance of each row to the other of the same number, both float64 of shape (pairs, dim)."""
    found: AnyArray
    if metric == "l2":
        found = np.linalg.norm(rows - others, axis=1)
    else:
        norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(others, axis=1)
        found = 1.0 - np.einsum("ij,ij->i", rows, others) / np.where(norms > 0, norms, 1.0)
    return found
