"""The formats of the TexMex collections: `.fvecs` (f32), `.ivecs` (i32), `.bvecs` (u8).

Each row is its dimension as int32, then its numbers. There is no header, so a file that was cut between two rows looks
like a shorter one: only a manifest tells.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...errors import DatasetError
from ...types import AnyArray
from ..dtypes import NAMES, DType
from ..vectors import MAX_DIM, ending
from .plain import Mapped, PlainWriter, map_file

KINDS = {".fvecs": "f32", ".ivecs": "i32", ".bvecs": "u8"}
PREFIX = 4


def carried(given: str) -> tuple[DType, ...]:
    """The one type of the ending."""
    return (NAMES[KINDS[given]],)


def open_file(path: Path, _part: str | None) -> Mapped:
    """The rows of `path`, mapped; the first and the last must agree on the dimension."""
    dtype = NAMES[KINDS[ending(path)]]
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(PREFIX)
    dim = int.from_bytes(prefix, "little", signed=True)
    if len(prefix) < PREFIX or not 1 <= dim <= MAX_DIM:
        raise DatasetError(f"{path}: the first row says {dim:,} dimensions; not a file of this format")
    stride = PREFIX + dim * dtype.itemsize
    if size % stride:
        raise DatasetError(
            f"{path} is torn: {size:,} bytes is not a whole number of rows of {dim} dimensions ({stride:,} bytes each)"
        )
    vectors = _Vectors(path, map_file(path, np.dtype(np.uint8), 0, (size // stride, stride)), dtype)
    vectors.rows(len(vectors) - 1, len(vectors))
    return vectors


class _Vectors(Mapped):
    def __init__(self, path: Path, raw: AnyArray, dtype: DType) -> None:
        super().__init__(path, raw, dtype)
        self.shape = (len(raw), (raw.shape[1] - PREFIX) // dtype.itemsize)

    def _rows(self, start: int, stop: int) -> AnyArray:
        raw = self.matrix[start:stop]
        dims = np.ascontiguousarray(raw[:, :PREFIX]).view("<i4")[:, 0]
        if (dims != self.dim).any():
            row = int(np.argmax(dims != self.dim))
            raise DatasetError(f"{self.path}: row {start + row} says {dims[row]:,} dimensions, the first {self.dim:,}")
        numbers = np.ascontiguousarray(raw[:, PREFIX:])
        return numbers.view(self.dtype.newbyteorder("<")).astype(self.dtype, copy=False)


def create_file(
    path: Path, dim: int, dtype: DType, rows: int | None, _part: str | None, _metric: str | None
) -> PlainWriter:
    """A new file of rows with their dimension."""
    return _Writer(path, dim, dtype, rows)


class _Writer(PlainWriter):
    def _write(self, block: AnyArray) -> None:
        packed = np.empty((len(block), PREFIX + self.dim * self.dtype.itemsize), np.uint8)
        packed[:, :PREFIX] = np.frombuffer(self.dim.to_bytes(PREFIX, "little"), np.uint8)
        packed[:, PREFIX:] = block.astype(self.dtype.newbyteorder("<"), copy=False).view(np.uint8)
        super()._write(packed)
