"""The formats of big-ann-benchmarks: `.fbin` (f32), `.f16bin`, `.u8bin`, `.i8bin`, `.ibin` (i32).

uint32 rows, uint32 dim, then the numbers row after row; all little-endian. A file of neighbours may also be an `.ibin`
(see neighbours.py); one with distances is told by its size and is no matrix of vectors.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...errors import DatasetError
from ..dtypes import NAMES, DType
from ..vectors import ending
from .plain import Mapped, PlainWriter, check_size, map_file

KINDS = {".fbin": "f32", ".f16bin": "f16", ".u8bin": "u8", ".i8bin": "i8", ".ibin": "i32"}
HEADER = 8
MOST = 2**32 - 1


def carried(given: str) -> tuple[DType, ...]:
    """The one type of the ending."""
    return (NAMES[KINDS[given]],)


def read_header(path: Path) -> tuple[int, int]:
    """The two numbers at the beginning: rows and dim, or queries and neighbours, or queries and total.

    Raises:
        DatasetError: if the file is shorter, or one of them is 0.
    """
    with path.open("rb") as file:
        header = file.read(HEADER)
    if len(header) < HEADER:
        raise DatasetError(f"{path} is torn: {len(header)} bytes; its header alone has {HEADER}")
    first, second = (int(number) for number in np.frombuffer(header, "<u4"))
    if first == 0 or second == 0:
        raise DatasetError(f"{path} is empty: its header says {first:,} × {second:,}")
    return first, second


def open_file(path: Path, _part: str | None) -> Mapped:
    """The matrix in `path`, mapped."""
    dtype = NAMES[KINDS[ending(path)]]
    rows, dim = read_header(path)
    numbers = rows * dim
    if ending(path) == ".ibin" and path.stat().st_size == HEADER + numbers * 8:
        raise DatasetError(
            f"{path} holds {dim} neighbours with distances for {rows:,} queries, not vectors; read it as ground truth"
        )
    check_size(path, HEADER + numbers * dtype.itemsize, f"{rows:,} rows of {dim:,} {KINDS[ending(path)]}")
    return Mapped(path, map_file(path, dtype.newbyteorder("<"), HEADER, (rows, dim)), dtype)


def create_file(
    path: Path, dim: int, dtype: DType, rows: int | None, _part: str | None, _metric: str | None
) -> PlainWriter:
    """A new matrix behind its header."""
    return _Writer(path, dim, dtype, rows)


class _Writer(PlainWriter):
    def _header(self, count: int) -> bytes:
        if count > MOST:
            raise DatasetError(f"{self.path}: {count:,} rows; this format counts up to {MOST:,}")
        return np.array([count, self.dim], "<u4").tobytes()
