"""The binary form: the other fields as JSON, then rows of numbers, little-endian, one after the other.

Content-Type: application/vnd.corenn.rows
Corenn-Dtype: f32        of the numbers: f64, f32, f16, bf16, i8 or u8
Corenn-Shape: 1000,128   of the rows; for one vector 128
Corenn-Head: 5120        bytes of JSON before the rows; none if it is missing
"""

from __future__ import annotations

import re
from math import prod
from typing import Any

import ml_dtypes
import numpy as np

from ..types import AnyArray
from .codec import WireError

DTYPES: dict[str, np.dtype[Any]] = {
    "f64": np.dtype("<f8"), "f32": np.dtype("<f4"), "f16": np.dtype("<f2"), "bf16": np.dtype(ml_dtypes.bfloat16),
    "i8": np.dtype("i1"), "u8": np.dtype("u1"),
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_SENT = {DTYPES[name] for name in ("f32", "f16", "i8", "u8")}
_SHAPE = re.compile(r"[0-9]{1,10}(,[0-9]{1,5})?")


def rows_of(vectors: Any) -> AnyArray:
    """Vectors as a client sends them: small numbers as they are, anything else as float32."""
    array = np.asarray(vectors)
    if array.dtype not in _SENT:
        with np.errstate(over="ignore"):  # what is too large is infinite then, and refused
            array = array.astype(np.float32)
    return np.ascontiguousarray(array)


def pack_rows(head: bytes, rows: AnyArray) -> tuple[dict[str, str], bytes]:
    """The headers and the body. rows: contiguous, of a dtype that has a name here."""
    headers = {"corenn-dtype": _NAMES[rows.dtype], "corenn-shape": ",".join(map(str, rows.shape))}
    if head:
        headers["corenn-head"] = str(len(head))
    return headers, head + rows.tobytes()


def unpack_rows(body: bytes, dtype: str | None, shape: str | None, head: str | None) -> tuple[bytes, AnyArray]:
    """The JSON and the rows, of one or two dimensions, read-only over the body.

    Raises:
        WireError
    """
    if dtype not in DTYPES:
        raise WireError(f"Corenn-Dtype: {dtype or 'is missing'}; choose one of {', '.join(DTYPES)}")
    if shape is None or not _SHAPE.fullmatch(shape):
        raise WireError(f"Corenn-Shape: {shape or 'is missing'}; give that of the rows, such as 1000,128")
    if head is not None and not (head.isascii() and head.isdigit() and len(head) < 12):
        raise WireError(f"Corenn-Head: {head}; give the number of bytes of JSON before the rows")
    length, sides, kind = int(head or 0), tuple(map(int, shape.split(","))), DTYPES[dtype]
    wanted = prod(sides) * kind.itemsize
    if length + wanted != len(body):
        raise WireError(
            f"the body has {len(body):,} bytes, but {length:,} of JSON and rows of {wanted:,} are announced"
        )
    return body[:length], np.frombuffer(body, kind, offset=length).reshape(sides)
