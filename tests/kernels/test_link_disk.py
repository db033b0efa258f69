"""Rules out codes that stand for something else than the vectors they were made of, among which edges are chosen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from corenn import CoreNN
from corenn.kernels.codes import asked_of, form_in, place_among, rebuild
from corenn.kernels.jit import kernel
from tests.conftest import Sample

pytestmark = pytest.mark.compiled  # linking so many rows takes minutes as plain Python

# The squared distance between a vector and what its code stands for, in parts of that between two rows, at most.
MISSED = {"sq8": 1e-3, "sq4": 0.02, "rabitq": 0.02, "pq": 0.35, "opq": 0.35}
ROWS = 1_500


@kernel
def rebuild_rows(codes: Any, out: Any) -> None:
    for row in range(out.shape[0]):
        rebuild(codes, row, out[row])


@kernel
def place_rows(codes: Any, vectors: Any, turned: Any, out: Any) -> None:
    for row in range(vectors.shape[0]):
        place_among(codes, vectors[row], turned)
        for at in range(out.shape[1]):
            out[row, at] = turned[0, at]


def both(sample: Sample, mode: str, dim: int, **options: Any) -> tuple[Any, Any, Any]:
    """Vectors, where they stand among what codes stand for, and what theirs do."""
    rows = np.ascontiguousarray(sample[0][:ROWS, :dim], np.float32)
    with CoreNN.in_memory(
        dim=dim, metric="l2", compression_mode=mode, compression_threshold=0, recall_target=0, **options
    ) as db:
        db.insert(range(len(rows)), rows)
        codes = db._current().codes
        assert codes is not None
        form = form_in(codes)
        made, placed = (np.empty((len(rows), form.length), np.float32) for _ in range(2))
        rebuild_rows(codes, made)
        place_rows(codes, rows, asked_of(form).turned, placed)
    return rows, placed, made


@pytest.mark.few(4)
@pytest.mark.parametrize("dim", [128, 61])
@pytest.mark.parametrize("mode", MISSED)
def test_what_codes_stand_for(sift: Sample, mode: str, dim: int) -> None:
    rows, placed, made = both(sift, mode, dim)
    pairs = np.random.default_rng(0).integers(0, len(rows), (2, 500))
    apart = ((rows[pairs[0]] - rows[pairs[1]]) ** 2).sum(axis=1)
    turned = ((placed[pairs[0]] - placed[pairs[1]]) ** 2).sum(axis=1)
    np.testing.assert_allclose(turned, apart, rtol=1e-3, atol=1e-3 * apart.mean())
    missed = ((placed - made) ** 2).sum(axis=1)
    assert missed.mean() <= MISSED[mode] * apart.mean()
    assert missed.mean() > 0


def test_truncated_codes_are_as_long_as_the_whole(sift: Sample) -> None:
    rows, placed, made = both(sift, "trunc", 128, trunc_dims=32)
    assert placed.shape[1] == 32
    lengths = np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(np.linalg.norm(placed, axis=1), lengths, rtol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), lengths, rtol=0.02)
    np.testing.assert_allclose(placed / lengths[:, None], made / lengths[:, None], atol=0.02)
