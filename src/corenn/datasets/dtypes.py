"""The element types of vector files: their short names, and conversion that loses no value."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from ..errors import DatasetError
from ..types import AnyArray

DType = np.dtype[Any]

NAMES: dict[str, DType] = {
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
    "i8": np.dtype(np.int8),
    "u8": np.dtype(np.uint8),
    "i16": np.dtype(np.int16),
    "u16": np.dtype(np.uint16),
    "i32": np.dtype(np.int32),
    "u32": np.dtype(np.uint32),
    "i64": np.dtype(np.int64),
    "u64": np.dtype(np.uint64),
}
INTEGERS = frozenset(name for name in NAMES if name[0] in "iu")
ALL = tuple(NAMES.values())
NATIVE = tuple(dtype for name, dtype in NAMES.items() if name != "bf16")


def dtype_named(name: str) -> DType:
    """The type called `name`, such as "f16".

    Raises:
        DatasetError: for a name that is not in NAMES.
    """
    if name not in NAMES:
        raise DatasetError(f"unknown type {name!r}; choose one of {', '.join(NAMES)}")
    return NAMES[name]


def name_of(dtype: DType) -> str:
    """The short name of `dtype`, whatever its byte order; its NumPy name if it has no short one."""
    native = dtype.newbyteorder("=")
    return next((name for name, each in NAMES.items() if each == native), str(dtype))


def is_integer(dtype: DType) -> bool:
    """True for i8 to u64."""
    return name_of(dtype) in INTEGERS


def converted(block: AnyArray, dtype: DType, where: str, first: int = 0) -> AnyArray:
    """`block` as a C-contiguous array of `dtype`.

    Floating types round to the nearest value; integers take whole numbers within their range only.

    Args:
        block: shape (rows, dim).
        where: the file, for the message.
        first: number of the first row, for the message.

    Raises:
        DatasetError: if a value is beyond the range of `dtype`, or would lose its fraction.
    """
    if block.dtype == dtype:
        return np.ascontiguousarray(block)
    lost = _not_whole(block, dtype) if is_integer(dtype) else None
    with np.errstate(over="ignore", invalid="ignore"):
        cast = np.ascontiguousarray(block, dtype)
    if lost is None:
        lost = np.isfinite(block) & ~np.isfinite(cast)
    if lost.any():
        row, column = np.argwhere(lost)[0]
        value = block[row, column]
        raise DatasetError(f"{where}, row {first + row}: {value} cannot be kept as {name_of(dtype)}; use a wider type")
    return cast


def _not_whole(block: AnyArray, dtype: DType) -> AnyArray:
    """Where `block` holds something else than a whole number within the range of `dtype`."""
    limits = np.iinfo(dtype)
    lost: AnyArray
    if is_integer(block.dtype):
        lost = (block < limits.min) | (block > limits.max)
    else:
        wide = block.astype(np.float64)
        # The largest i64 is no float64; the number above it is.
        lost = ~((wide >= float(limits.min)) & (wide < float(limits.max + 1)) & (np.trunc(wide) == wide))
    return lost
