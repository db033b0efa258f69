"""BigANN as the TexMex corpus serves it: .bvecs in gzip, and the neighbours for several numbers of rows in one archive.

The first rows are the beginning of what the stream unpacks to, and that is never much longer packed than unpacked.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from ...errors import DatasetError
from ...types import AnyArray
from ..archive import extract, gunzip
from ..neighbours import read_truth, write_truth
from ..vectors import create_vectors, open_vectors
from . import Job, Prepared, Wanted
from .bigann import check_truth

PREFIX = 4
MARGIN = 1 << 20
TRUTH_BYTES = 8 << 30


def wanted(job: Job) -> list[Wanted]:
    """As much of the base as surely holds the rows that are asked for, the queries, and the archive of neighbours."""
    source = job.source
    assert source.queries is not None  # Source sees to it
    stop = None if job.rows == source.total else _unpacked(job, job.rows) * 513 // 512 + MARGIN
    files = [
        Wanted(source.base, _base(job), stop, clip=True),
        Wanted(source.queries, job.raw(source.queries.name)),
    ]
    truth = source.truths.get(job.rows)
    return files if truth is None else [*files, Wanted(truth, job.raw(truth.name))]


def _base(job: Job) -> Path:
    name = job.source.base.name
    return job.raw(name if job.rows == job.source.total else f"{name}.beginning-{job.rows}")


def _unpacked(job: Job, rows: int) -> int:
    return rows * (PREFIX + job.entry.row_bytes)


def prepare(job: Job) -> Prepared:
    """Base and queries as .u8bin, neighbours as .ibin."""
    entry, source = job.entry, job.source
    assert source.queries is not None
    base = _converted(job, _base(job), job.rows, job.layout.processed / f"{job.stem}.u8bin")
    packed = job.raw(source.queries.name)
    queries = _converted(job, packed, entry.queries, job.layout.processed / f"{entry.name}.queries.u8bin")
    truth = None
    if job.rows in source.truths:
        truth = job.layout.gt / f"{job.stem}.ibin"
        job.make(truth, f"raw/{source.truths[job.rows].name}", partial(_write_truth, job))
        check_truth(job, truth)
    return Prepared(entry.name, entry.metric, job.rows, entry.dim, base, queries, truth)


def _converted(job: Job, packed: Path, rows: int, target: Path) -> Path:
    def write(path: Path) -> None:
        middle = path.with_name(f".{path.stem}.bvecs")
        try:
            gunzip(packed, middle, _unpacked(job, rows), prefix=True, watch=job.watch)
            with open_vectors(middle) as vectors, create_vectors(path, vectors.dim, "u8", rows) as out:
                if vectors.shape != (rows, job.entry.dim):
                    raise DatasetError(f"{packed}: shape {vectors.shape}; needs {rows:,} × {job.entry.dim}")
                for _, block in vectors.blocks():
                    out.append(block)
        finally:
            middle.unlink(missing_ok=True)

    return job.make(target, f"raw/{packed.name}", write)


def _write_truth(job: Job, target: Path) -> None:
    """Numbers and squared distances of the neighbours, from two members of the archive."""
    archive = job.raw(job.source.truths[job.rows].name)
    names = [name.format(rows=job.rows, millions=job.rows // 1_000_000) for name in job.source.members]
    files = [target.with_name(f".{job.stem}{Path(name).suffix}") for name in names]
    try:
        extract(archive, dict(zip(names, files, strict=True)), TRUTH_BYTES, job.watch)
        ids = read_truth(files[0]).ids
        write_truth(target, ids, _all(files[1]) if len(files) > 1 else None)
    finally:
        for file in files:
            file.unlink(missing_ok=True)


def _all(file: Path) -> AnyArray:
    with open_vectors(file) as vectors:
        return np.array(vectors.rows(0, len(vectors)))
