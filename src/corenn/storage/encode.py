"""From the caller's vectors to stored rows: the dtype, the geometry of the metric, and the constants beside each row.

Under `cosine` the unit vector is stored and the norm beside it; zero vectors stay zero. Codes (`i8`, `u8`) carry a
scale and an offset per row: a component is scale * code + offset.
"""

from __future__ import annotations

from typing import NamedTuple

import ml_dtypes
import numpy as np

from ..config import Settings
from ..errors import InvalidVectorError
from ..kernels.rows import LENGTH, NORM, OFFSET, SCALE
from ..types import AnyArray, Float32s, UInt32s

MOST_NORM = 2.0**60  # squared distances between such vectors stay finite in float32

STORED: dict[str, np.dtype[np.generic]] = {
    "f32": np.dtype(np.float32), "f16": np.dtype(np.uint16), "bf16": np.dtype(np.uint16),
    "i8": np.dtype(np.int8), "u8": np.dtype(np.uint8),
}  # fmt: skip


def stored_columns(settings: Settings) -> int:
    """Items per stored row: whole cache lines, or a power of two of bytes below one."""
    size = STORED[settings.dtype].itemsize
    needed = settings.dim * size
    padded = -(-needed // 64) * 64 if needed > 32 else max(8, 1 << (needed - 1).bit_length())
    return padded // size


def seal_columns(settings: Settings) -> int:
    """Words beside each row: the checksum; the norm; the length after rounding, or scale and offset."""
    if settings.dtype in ("i8", "u8"):
        return 4
    if settings.metric == "cosine" and settings.dtype in ("f16", "bf16"):
        return 3
    return 1 if settings.metric == "l2" else 2


class Encoded(NamedTuple):
    """rows: stored form, (n, columns). seals: uint32 (n, columns), checksums still zero."""

    rows: AnyArray
    seals: UInt32s


def encode(
    settings: Settings, vectors: AnyArray, scales: Float32s | None = None, zero_points: Float32s | None = None
) -> Encoded:
    """Encode finite vectors, real numbers of shape (n, dim), or int8 codes if `scales` are given.

    Raises:
        InvalidVectorError: for a vector that the dtype or the distances cannot hold.
    """
    if scales is not None and zero_points is not None:
        return _seal_codes(settings, vectors, scales, zero_points)
    if settings.dtype == "f32" and settings.metric == "l2" and vectors.dtype == np.float32:
        check_norms(np.sqrt(np.einsum("ij,ij->i", vectors, vectors)))
        return Encoded(_padded(settings, vectors), np.zeros((len(vectors), 1), np.uint32))
    wide = vectors.astype(np.float64)
    norms = np.sqrt(np.einsum("ij,ij->i", wide, wide))
    check_norms(norms)
    if settings.dtype == "u8":
        return _round_to_bytes(settings, wide)
    if settings.metric == "cosine":
        wide = _divide(wide, norms)
    if settings.dtype == "i8":
        return _quantize(settings, wide, norms)
    return _as_floats(settings, wide if settings.metric == "cosine" else vectors, norms)


def check_norms(norms: AnyArray) -> None:
    """Refuse vectors so long that float32 could not hold their squared distances."""
    if not (norms < MOST_NORM).all():
        bad = np.flatnonzero(~(norms < MOST_NORM))
        raise InvalidVectorError(
            f"vector {bad[0]} has norm {norms[bad[0]]:.6g}; distances need norms below 2^60: scale the vectors down"
        )


def _divide(wide: AnyArray, norms: AnyArray) -> AnyArray:
    return wide / np.where(norms > 0, norms, 1.0)[:, None]


def _as_floats(settings: Settings, vectors: AnyArray, norms: AnyArray) -> Encoded:
    stored = STORED[settings.dtype]
    with np.errstate(over="ignore"):
        if settings.dtype == "f16":
            values = vectors.astype(np.float16)
        elif settings.dtype == "bf16":
            values = vectors.astype(np.float32).astype(ml_dtypes.bfloat16)
        else:
            values = vectors.astype(np.float32, copy=False)
        rounded = values.astype(np.float32, copy=False)
        finite = np.isfinite(rounded).all(axis=1)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        raise InvalidVectorError(
            f"vector {row} has a component of {np.abs(vectors[row]).max():.6g}, which {settings.dtype} cannot hold; "
            "scale the vectors or store them as f32"
        )
    seals = np.zeros((len(vectors), seal_columns(settings)), np.float32)
    if seals.shape[1] > 1:
        seals[:, NORM] = norms
    if seals.shape[1] > 2:
        seals[:, LENGTH] = np.sqrt(np.einsum("ij,ij->i", rounded, rounded))
    return Encoded(_padded(settings, np.ascontiguousarray(values).view(stored)), seals.view(np.uint32))


def _round_to_bytes(settings: Settings, wide: AnyArray) -> Encoded:
    values = np.rint(wide)
    bad = np.flatnonzero((values < 0).any(axis=1) | (values > 255).any(axis=1))
    if len(bad):
        worst = wide[bad[0]][np.argmax(np.abs(wide[bad[0]] - 127.5))]
        raise InvalidVectorError(f"vector {bad[0]} has the component {worst:.6g}; u8 holds 0 to 255: scale the vectors")
    norms = np.sqrt(np.einsum("ij,ij->i", values, values))
    seals = np.zeros((len(wide), 4), np.float32)
    seals[:, NORM] = norms
    seals[:, SCALE] = _unit_scale(settings, norms)
    return Encoded(_padded(settings, values.astype(np.uint8)), seals.view(np.uint32))


def _unit_scale(settings: Settings, norms: AnyArray) -> AnyArray:
    """What codes are multiplied with beside their own scale, so that they decode to unit length under `cosine`."""
    if settings.metric != "cosine":
        return np.ones(len(norms))
    return np.where(norms > 0, 1.0 / np.where(norms > 0, norms, 1.0), 0.0)


def _quantize(settings: Settings, wide: AnyArray, norms: AnyArray) -> Encoded:
    low, high = wide.min(axis=1), wide.max(axis=1)
    scale = (high - low) / 255.0
    steps = np.rint((wide - low[:, None]) / np.where(scale > 0, scale, 1.0)[:, None])
    codes = (np.clip(steps, 0, 255) - 128).astype(np.int8)
    offset = low + 128.0 * scale
    if settings.metric == "cosine":
        decoded = scale[:, None] * codes + offset[:, None]
        length = np.sqrt(np.einsum("ij,ij->i", decoded, decoded))
        length = np.where(length > 0, length, 1.0)
        scale, offset, norms = scale / length, offset / length, norms * length
    return _sealed(settings, codes, norms, scale, offset)


def _seal_codes(settings: Settings, codes: AnyArray, scales: Float32s, zero_points: Float32s) -> Encoded:
    scale = scales.astype(np.float64)
    decoded = scale[:, None] * (codes - zero_points.astype(np.float64)[:, None])
    norms = np.sqrt(np.einsum("ij,ij->i", decoded, decoded))
    check_norms(norms)
    scale = scale * _unit_scale(settings, norms)
    return _sealed(settings, codes, norms, scale, -scale * zero_points.astype(np.float64))


def _sealed(settings: Settings, codes: AnyArray, norms: AnyArray, scale: AnyArray, offset: AnyArray) -> Encoded:
    seals = np.zeros((len(codes), 4), np.float32)
    seals[:, NORM], seals[:, SCALE], seals[:, OFFSET] = norms, scale, offset
    return Encoded(_padded(settings, codes), seals.view(np.uint32))


def _padded(settings: Settings, values: AnyArray) -> AnyArray:
    columns = stored_columns(settings)
    if values.shape[1] == columns:
        whole = np.ascontiguousarray(values)
        return whole if whole.flags.writeable else whole.copy()  # read-only is another type to the compiler
    padded = np.zeros((len(values), columns), values.dtype)
    padded[:, : values.shape[1]] = values
    return padded
