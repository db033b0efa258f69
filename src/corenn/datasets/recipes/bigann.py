"""Files of big-ann-benchmarks: base and queries behind a header of eight bytes, neighbours in a file of their own.

Rows lie one behind the other, so the first ones are the beginning of the file. Its header is rewritten to their number.
"""

from __future__ import annotations

import os
import struct
from functools import partial
from pathlib import Path

from ...errors import DatasetError
from ..formats.bigann import HEADER
from ..neighbours import read_truth
from ..remote import RemoteFile
from ..transports import UnavailableError
from ..vectors import open_vectors
from . import Job, Prepared, Wanted


def wanted(job: Job) -> list[Wanted]:
    """The rows of the base that are asked for, the queries, and the neighbours if there are any for these rows."""
    source, queries, dim, row_bytes = job.source, job.entry.queries, job.entry.dim, job.entry.row_bytes
    assert source.queries is not None  # Source sees to it
    stop = None if job.rows == source.total else HEADER + job.rows * row_bytes
    base = partial(retitle, total=source.total, rows=job.rows, dim=dim, row_bytes=row_bytes)
    asked = partial(retitle, total=queries, rows=queries, dim=dim, row_bytes=row_bytes)
    files = [
        Wanted(source.base, _base(job), stop, finish=base),
        Wanted(source.queries, job.raw(source.queries.name), finish=asked),
    ]
    if truth := source.truths.get(job.rows):
        files.append(Wanted(truth, job.raw(truth.name), finish=partial(check_neighbours, queries=queries)))
    return files


def _base(job: Job) -> Path:
    """Where the base goes; a slice says in its name that it is one."""
    name = Path(job.source.base.name)
    whole = job.rows == job.source.total
    return job.raw(name.name if whole else f"{name.stem}.first-{job.rows}{name.suffix}")


def retitle(path: Path, *, total: int, rows: int, dim: int, row_bytes: int) -> None:
    """Check the header of a file that has been fetched, and make it say how many rows have been taken.

    Raises:
        UnavailableError: if it says anything but `total` (or already `rows`) times `dim`, or the file has not the size
            that `rows` of `row_bytes` have.
    """
    size = path.stat().st_size
    if size != HEADER + rows * row_bytes:
        raise UnavailableError(f"has {size:,} bytes; {rows:,} rows and the header have {HEADER + rows * row_bytes:,}")
    with path.open("r+b") as file:
        found = struct.unpack("<II", file.read(HEADER))
        if found not in ((total, dim), (rows, dim)):
            raise UnavailableError(f"its header says {found[0]:,} × {found[1]:,}, not {total:,} × {dim:,}")
        if found[0] != rows:
            file.seek(0)
            file.write(struct.pack("<I", rows))
            file.flush()
            os.fsync(file.fileno())


def check_neighbours(path: Path, *, queries: int) -> None:
    """Refuse a file that is not of the neighbours of so many queries, with distances or without.

    Raises:
        UnavailableError: for such a one.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        count, k = struct.unpack("<II", file.read(HEADER).ljust(HEADER, b"\0"))
    if count != queries or size not in (HEADER + count * k * 4, HEADER + count * k * 8):
        raise UnavailableError(f"has {size:,} bytes, and its header says {count:,} queries with {k:,} neighbours each")


def prepare(job: Job) -> Prepared:
    """The same files under names that do not depend on the source."""
    entry, source = job.entry, job.source
    assert source.queries is not None
    base = job.share(_base(job), job.layout.processed / f"{job.stem}{_base(job).suffix}")
    raw = job.raw(source.queries.name)
    queries = job.share(raw, job.layout.processed / f"{entry.name}.queries{raw.suffix}")
    for file, rows in ((base, job.rows), (queries, entry.queries)):
        with open_vectors(file) as vectors:
            if vectors.shape != (rows, entry.dim):
                raise DatasetError(f"{file}: shape {vectors.shape}; {entry.name} has {rows:,} × {entry.dim}")
    truth = source.truths.get(job.rows)
    return Prepared(
        entry.name, entry.metric, job.rows, entry.dim, base, queries, None if truth is None else _truth(job, truth)
    )


def _truth(job: Job, truth: RemoteFile) -> Path:
    """The neighbours below gt/, in a name that says what they are."""
    file = job.share(job.raw(truth.name), job.layout.gt / f"{job.stem}.ibin")
    check_truth(job, file)
    return file


def check_truth(job: Job, file: Path) -> None:
    """Neighbours must be of as many queries as there are, and among the rows that were taken.

    Raises:
        DatasetError: otherwise.
    """
    ids = read_truth(file).ids
    if len(ids) != job.entry.queries or ids.max() >= job.rows:
        raise DatasetError(
            f"{file}: neighbours of {len(ids):,} queries up to row {ids.max():,}; "
            f"{job.entry.name} has {job.entry.queries:,} queries, and {job.rows:,} rows were taken"
        )
