"""NumPy's own format: `.npy`, one array of shape (rows, dim)."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from tokenize import TokenError
from typing import Any

from numpy.lib import format as npy

from ...errors import DatasetError
from ..dtypes import NAMES, NATIVE, DType, name_of
from .plain import Mapped, PlainWriter, check_size, map_file

MOST_HEADER = 1 << 16
# What the parser of Python says of wrong text; out of memory, to it, is what is nested too deeply.
DAMAGE = (ValueError, TypeError, SyntaxError, EOFError, ArithmeticError, RecursionError, MemoryError, TokenError)


def carried(_ending: str) -> tuple[DType, ...]:
    """All but bf16, which NumPy would read back as raw bytes; f32 first."""
    return (NAMES["f32"], *(dtype for dtype in NATIVE if dtype != NAMES["f32"]))


def open_file(path: Path, _part: str | None) -> Mapped:
    """The array in `path`, mapped."""
    shape, fortran, dtype, offset = _header(path)
    if dtype.hasobject or dtype.newbyteorder("=") not in NATIVE or len(shape) != 2:
        raise DatasetError(f"{path}: holds {dtype} of shape {shape}; needs numbers of shape (rows, dim)")
    rows, dim = shape
    if rows < 1 or dim < 1:
        raise DatasetError(f"{path} is empty: its shape is {shape}")
    check_size(path, offset + rows * dim * dtype.itemsize, f"shape {shape} of {name_of(dtype)}")
    matrix = map_file(path, dtype, offset, (rows, dim), "F" if fortran else "C")
    return Mapped(path, matrix, dtype.newbyteorder("="))


def _header(path: Path) -> tuple[tuple[int, ...], bool, DType, int]:
    """Shape, whether columns come first, type, and where the numbers begin."""
    with path.open("rb") as file:
        head = io.BytesIO(file.read(MOST_HEADER))
    try:
        # A header that old or foreign programs wrote is read all the same; NumPy would only remark on it.
        with warnings.catch_warnings(action="ignore"):
            version = npy.read_magic(head)
            # 3.0 is 2.0 with names in UTF-8, and an array of numbers has no names.
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, fortran, dtype = read(head)
    except DAMAGE as error:
        raise DatasetError(f"{path}: not an array of numbers in NumPy's format ({error})") from error
    return shape, fortran, dtype, head.tell()


def create_file(
    path: Path, dim: int, dtype: DType, rows: int | None, _part: str | None, _metric: str | None
) -> PlainWriter:
    """A new array; NumPy leaves room in the header for the number of rows."""
    return _Writer(path, dim, dtype, rows)


class _Writer(PlainWriter):
    def _header(self, count: int) -> bytes:
        header = io.BytesIO()
        fields: dict[str, Any] = {
            "descr": npy.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (count, self.dim),
        }
        npy.write_array_header_1_0(header, fields)
        return header.getvalue()
