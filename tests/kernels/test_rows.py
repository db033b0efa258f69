"""Rules out a stored type whose distances differ from NumPy's on the decoded rows."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from corenn.kernels.jit import kernel
from corenn.kernels.rows import (
    NORM,
    BFloat16Rows,
    CodeRows,
    Float16Rows,
    Float32Rows,
    decode_rows,
    distance,
    inner,
    lift_of,
)

DIMS = (1, 7, 16, 33, 100)


def stored(kind: str, dim: int, radius: float = 0) -> tuple[Any, np.ndarray]:
    """Rows of one stored type, and the float32 values that they stand for."""
    random = np.random.default_rng(dim)
    values = random.normal(size=(20, dim)).astype(np.float32)
    seals = np.zeros((20, 4), np.float32)
    seals[:, 2], seals[:, 3] = random.uniform(0.01, 0.1, 20), random.normal(size=20)
    seals[:, NORM] = np.linalg.norm(values, axis=1)
    limit = np.float32(radius)
    if kind == "f32":
        return Float32Rows(values, seals, dim, limit), values
    if kind == "f16":
        half = values.astype(np.float16)
        return Float16Rows(half.view(np.uint16), seals, dim, limit), half.astype(np.float32)
    if kind == "bf16":
        brain = values.astype(ml_dtypes.bfloat16)
        return BFloat16Rows(brain.view(np.uint16), seals, dim, limit), brain.astype(np.float32)
    codes = random.integers(-128 if kind == "i8" else 0, 128, (20, dim)).astype(np.int8 if kind == "i8" else np.uint8)
    return CodeRows(codes, seals, dim, limit), codes * seals[:, 2:3] + seals[:, 3:4]


@kernel
def measure(rows: Any, query: Any, lift: Any, out: Any) -> None:
    for row in range(rows.vectors.shape[0]):
        out[row, 0] = distance(rows, query, lift, row)
        out[row, 1] = inner(rows, query, row)
        out[row, 2] = lift_of(rows, row)


@pytest.mark.few(4)
@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "i8", "u8"])
@pytest.mark.parametrize("dim", DIMS)
def test_distances_and_products_are_numpys(kind: str, dim: int) -> None:
    rows, values = stored(kind, dim)
    query = np.random.default_rng(1).normal(size=dim).astype(np.float32)
    out = np.zeros((20, 3), np.float32)
    measure(rows, query, np.float32(0), out)
    assert np.allclose(out[:, 0], ((values - query) ** 2).sum(axis=1), rtol=1e-5, atol=1e-5)
    assert np.allclose(out[:, 1], values @ query, rtol=1e-4, atol=1e-4)
    assert (out[:, 2] == 0).all()


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "i8", "u8"])
def test_decoded_rows_are_what_was_stored(kind: str) -> None:
    rows, values = stored(kind, 33)
    out = np.empty((3, 33), np.float32)
    decode_rows(rows, np.array([4, 0, 19], np.uint32), out)
    assert np.allclose(out, values[[4, 0, 19]], rtol=1e-6)


def test_a_lift_brings_every_row_to_the_same_norm() -> None:
    radius = 400.0
    rows, values = stored("f32", 16, radius)
    out = np.zeros((20, 3), np.float32)
    measure(rows, np.zeros(16, np.float32), np.float32(0), out)
    assert np.allclose((values**2).sum(axis=1) + out[:, 2] ** 2, radius, rtol=1e-5)
    assert np.allclose(out[:, 0], radius, rtol=1e-5)


def test_a_zero_row_stands_at_a_right_angle_under_cosine() -> None:
    rows, _ = stored("f32", 8, -1)
    rows.vectors[3], rows.seals[3, NORM] = 0, 0
    out = np.zeros((20, 3), np.float32)
    query = np.eye(8, dtype=np.float32)[0]
    measure(rows, query, np.float32(0), out)
    assert out[3, 0] == 2  # the squared distance of unit vectors at a right angle
    assert out[3, 2] == 1
    assert (np.delete(out[:, 2], 3) == 0).all()
