"""Stored vectors as kernels see them: one NamedTuple per stored type, and how each is scored against a query.

The geometry is always squared Euclidean distance. A *lift* is one more coordinate that a row has without storing it:
under `ip` it brings every row to the same norm (Bachrach et al. 2014), under `cosine` it sets the rows that have no
direction at a right angle to all others.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import types

from ..types import AnyArray, Float32s
from .intrinsics import brain_float, half_float, prefetch
from .jit import compiled_for, inlined, kernel

NORM, SCALE, OFFSET = 1, 2, 3  # columns of `seals`; column 0 is the checksum
LENGTH = 2  # where there are three columns: the length that a unit vector has kept in half precision


class _Rows(NamedTuple):
    """vectors: (rows, width), of which `dim` columns count. seals: (rows, 1 … 4) float32.

    radius: squared norm to which rows are lifted (`ip`), -1 to lift zero vectors (`cosine`), 0 for no lift.
    """

    vectors: AnyArray
    seals: Float32s
    dim: int
    radius: np.float32


class Float32Rows(_Rows):
    """vectors: float32."""


class Float16Rows(_Rows):
    """vectors: the bits of float16, as uint16."""


class BFloat16Rows(_Rows):
    """vectors: the bits of bfloat16, as uint16."""


class CodeRows(_Rows):
    """vectors: int8 or uint8 codes; a component is scale * code + offset."""


Rows = Float32Rows | Float16Rows | BFloat16Rows | CodeRows


def one_row(rows: Rows) -> Rows:
    """Room for a single row like these, zeroed."""
    vectors, seals = rows.vectors, rows.seals
    return rows._replace(
        vectors=np.zeros((1, vectors.shape[1]), vectors.dtype), seals=np.zeros((1, seals.shape[1]), np.float32)
    )


@inlined
def _score_float32(rows: Any, query: Any, row: Any) -> Any:
    stored = rows.vectors[row]
    total = np.float32(0)
    for i in range(rows.dim):
        difference = query[i] - stored[i]
        total += difference * difference
    return total


@inlined
def _score_float16(rows: Any, query: Any, row: Any) -> Any:
    stored = rows.vectors[row]
    total = np.float32(0)
    for i in range(rows.dim):
        difference = query[i] - half_float(stored[i])
        total += difference * difference
    return total


@inlined
def _score_bfloat16(rows: Any, query: Any, row: Any) -> Any:
    stored = rows.vectors[row]
    total = np.float32(0)
    for i in range(rows.dim):
        difference = query[i] - brain_float(stored[i])
        total += difference * difference
    return total


@inlined
def _score_codes(rows: Any, query: Any, row: Any) -> Any:
    stored = rows.vectors[row]
    scale, offset = rows.seals[row, SCALE], rows.seals[row, OFFSET]
    total = np.float32(0)
    for i in range(rows.dim):
        difference = query[i] - (scale * np.float32(stored[i]) + offset)
        total += difference * difference
    return total


@inlined
def _inner_float32(rows: Any, query: Any, row: Any) -> Any:
    stored = rows.vectors[row]
    total = np.float32(0)
    for i in range(rows.dim):
        total += query[i] * stored[i]
    return total


@inlined
def _inner_float16(rows: Any, query: Any, row: Any) -> Any:
    stored = rows.vectors[row]
    total = np.float32(0)
    for i in range(rows.dim):
        total += query[i] * half_float(stored[i])
    return total


@inlined
def _inner_bfloat16(rows: Any, query: Any, row: Any) -> Any:
    stored = rows.vectors[row]
    total = np.float32(0)
    for i in range(rows.dim):
        total += query[i] * brain_float(stored[i])
    return total


@inlined
def _inner_codes(rows: Any, query: Any, row: Any) -> Any:
    stored = rows.vectors[row]
    scale, offset = rows.seals[row, SCALE], rows.seals[row, OFFSET]
    total = np.float32(0)
    for i in range(rows.dim):
        total += query[i] * (scale * np.float32(stored[i]) + offset)
    return total


@inlined
def _decode_float32(rows: Any, row: Any, out: Any) -> None:
    stored = rows.vectors[row]
    for i in range(rows.dim):
        out[i] = stored[i]


@inlined
def _decode_float16(rows: Any, row: Any, out: Any) -> None:
    stored = rows.vectors[row]
    for i in range(rows.dim):
        out[i] = half_float(stored[i])


@inlined
def _decode_bfloat16(rows: Any, row: Any, out: Any) -> None:
    stored = rows.vectors[row]
    for i in range(rows.dim):
        out[i] = brain_float(stored[i])


@inlined
def _decode_codes(rows: Any, row: Any, out: Any) -> None:
    stored = rows.vectors[row]
    scale, offset = rows.seals[row, SCALE], rows.seals[row, OFFSET]
    for i in range(rows.dim):
        out[i] = scale * np.float32(stored[i]) + offset


# By the type of rows; codes (scalar.py) add theirs.
SCORERS: dict[type, Any] = {
    Float32Rows: _score_float32, Float16Rows: _score_float16, BFloat16Rows: _score_bfloat16, CodeRows: _score_codes,
}  # fmt: skip
_INNER: dict[type, Any] = {
    Float32Rows: _inner_float32, Float16Rows: _inner_float16, BFloat16Rows: _inner_bfloat16, CodeRows: _inner_codes,
}  # fmt: skip
_DECODE: dict[type, Any] = {
    Float32Rows: _decode_float32, Float16Rows: _decode_float16, BFloat16Rows: _decode_bfloat16,
    CodeRows: _decode_codes,
}  # fmt: skip


def flat_distance(rows: Any, query: Any, row: Any) -> Any:
    """Squared distance of a stored row to `query` (float32, at least `dim` long), without lifts."""
    return SCORERS[type(rows)](rows, query, row)


def inner(rows: Any, query: Any, row: Any) -> Any:
    """Inner product of a stored row with `query`."""
    return _INNER[type(rows)](rows, query, row)


def decode(rows: Any, row: Any, out: Any) -> None:
    """Write a stored row to `out` as float32."""
    _DECODE[type(rows)](rows, row, out)


# Scorers that estimate, by their type, and how each is aimed at a query.
AIMERS: dict[type, Any] = {}


def aim_at(scorer: Any, query: Any) -> None:
    """Prepare a scorer for a query, float32 (dim,) in the graph's geometry. Rows need no preparation."""
    if type(scorer) in AIMERS:
        AIMERS[type(scorer)](scorer, query)


def estimates(scorer: Any) -> bool:
    """Whether a scorer estimates distances; rows measure them."""
    return type(scorer) in AIMERS


def _choose(table: dict[type, Any], rows: Any) -> Any:
    """The function for a compile-time type of rows: what makes one kernel serve all stored types."""
    return table[rows.instance_class] if isinstance(rows, types.BaseNamedTuple) else None  # type: ignore[attr-defined]


@compiled_for(flat_distance)
def _(rows: Any, query: Any, row: Any) -> Any:
    chosen = _choose(SCORERS, rows)
    return lambda rows, query, row: chosen(rows, query, row)


@compiled_for(inner)
def _(rows: Any, query: Any, row: Any) -> Any:
    chosen = _choose(_INNER, rows)
    return lambda rows, query, row: chosen(rows, query, row)


@compiled_for(decode)
def _(rows: Any, row: Any, out: Any) -> Any:
    chosen = _choose(_DECODE, rows)
    return lambda rows, row, out: chosen(rows, row, out)


@compiled_for(aim_at)
def _(scorer: Any, query: Any) -> Any:
    chosen = AIMERS.get(scorer.instance_class)
    if chosen is None:
        return lambda scorer, query: None
    return lambda scorer, query: chosen(scorer, query)


@compiled_for(estimates)
def _(scorer: Any) -> Any:
    answer = scorer.instance_class in AIMERS
    return lambda scorer: answer


@inlined
def lift_of(rows: Any, row: Any) -> Any:
    """The coordinate that `row` has beside its stored ones."""
    if rows.radius == 0:
        return np.float32(0)
    norm = rows.seals[row, NORM]
    if rows.radius < 0:
        return np.float32(1) if norm == 0 else np.float32(0)
    return np.float32(math.sqrt(max(np.float32(0), rows.radius - norm * norm)))


@inlined
def distance(rows: Any, query: Any, lift: Any, row: Any) -> Any:
    """Squared distance between a stored row and a query with its lift."""
    total = flat_distance(rows, query, row)
    if rows.radius != 0:
        rise = lift - lift_of(rows, row)
        total += rise * rise
    return total


@inlined
def prefetch_row(rows: Any, row: Any) -> None:
    """Ask for the stored row, and for its seal where scoring reads it."""
    prefetch(rows.vectors, row)
    if rows.seals.shape[1] == 4 or rows.radius != 0:
        prefetch(rows.seals, row)


@kernel
def decode_rows(rows: Any, ids: Any, out: Any) -> None:
    """Write the stored rows `ids` to out, float32 of shape (ids, dim)."""
    for i in range(ids.shape[0]):
        decode(rows, ids[i], out[i])
