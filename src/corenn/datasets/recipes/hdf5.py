"""A file of ann-benchmarks: `train`, `test`, `neighbors` and `distances` in one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from ...errors import DatasetError
from ...types import AnyArray
from ..atomic import replacing
from ..formats.hdf5 import describe, parts
from ..vectors import Vectors, open_vectors
from . import Job, Prepared, Wanted


def wanted(job: Job) -> list[Wanted]:
    """The one file, whole: rows within it cannot be addressed from outside."""
    return [Wanted(job.source.base, job.raw(job.source.base.name), finish=partial(_check, job))]


def prepare(job: Job) -> Prepared:
    """The file itself, or one with its first rows and without neighbours, which would be those among all rows."""
    raw = job.raw(job.source.base.name)
    _check(job, raw)
    target = job.layout.processed / f"{job.stem}.hdf5"
    if job.cut:
        job.make(target, f"raw/{raw.name}", partial(_slice, job, raw))
    else:
        job.share(raw, target)
    return ready(job, target, "neighbors" in parts(target))


def ready(job: Job, file: Path, truth: bool) -> Prepared:
    """What an HDF5 file of this layout holds."""
    entry = job.entry
    return Prepared(
        entry.name, entry.metric, job.rows, entry.dim, file, file, file if truth else None, "train", "test"
    )  # fmt: skip


def _check(job: Job, raw: Path) -> None:
    entry, found = job.entry, parts(raw)
    for name, rows in (("train", job.source.total), ("test", entry.queries)):
        shape = found[name][0] if name in found else None
        if shape != (rows, entry.dim):
            raise DatasetError(f"{raw}: {name!r} has shape {shape}; {entry.name} has {rows:,} × {entry.dim}")


def _slice(job: Job, raw: Path, target: Path) -> None:
    with open_vectors(raw, "train") as base, open_vectors(raw, "test") as queries:
        write(job, target, base, queries, {})


def write(job: Job, target: Path, base: Vectors, queries: Vectors, extra: dict[str, AnyArray]) -> None:
    """An HDF5 file in the layout of ann-benchmarks.

    Args:
        job: its rows say how many first rows of `base` go in.
        target: the file; it appears when it is whole.
        base, queries: what becomes `train` and `test`.
        extra: what else goes in, by name.
    """
    import h5py

    job.watch.begin(f"writing {target.name}", job.rows * base.dim * base.dtype.itemsize)
    with replacing(target) as part, h5py.File(part, "x") as file:
        describe(file, base.dim, base.dtype, job.entry.metric)
        for name, vectors, rows in (("train", base, job.rows), ("test", queries, len(queries))):
            data = file.create_dataset(name, (rows, vectors.dim), vectors.dtype)
            _copy(vectors, rows, data.__setitem__, job.watch.advance)
        for name, values in extra.items():
            file.create_dataset(name, data=values)


def _copy(vectors: Vectors, rows: int, put: Callable[[slice, AnyArray], None], advance: Callable[[int], None]) -> None:
    for start, block in vectors.blocks():
        block = block[: rows - start]
        if len(block) == 0:
            return
        put(slice(start, start + len(block)), block)
        advance(block.nbytes)
