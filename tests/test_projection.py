"""Rules out a map on axes other than the principal components, or that goes on past its deadline."""

from __future__ import annotations

import time

import numpy as np
import pytest

from corenn import DeadlineError
from corenn.deadline import deadline
from corenn.projection import project


@pytest.mark.parametrize(("count", "dim"), [(300, 40), (30, 200), (5, 3), (40, 2), (2, 9)])
def test_axes_are_the_first_two_principal_components(rng: np.random.Generator, count: int, dim: int) -> None:
    rows = rng.normal(size=(count, dim)) * np.geomspace(1, 0.01, dim) + 5
    plane = project(rows.astype(np.float32))
    centred = rows - rows.mean(axis=0)
    lengths = np.linalg.svd(centred, compute_uv=False)
    np.testing.assert_allclose(plane.shares, (lengths**2 / (lengths**2).sum())[:2], rtol=1e-4, atol=1e-9)
    kept = plane.axes[plane.shares > 0]
    np.testing.assert_allclose(kept @ kept.T, np.eye(len(kept)), atol=1e-9)
    np.testing.assert_allclose(plane.places, (rows - plane.origin) @ plane.axes.T, atol=1e-4)


def test_the_same_rows_lie_at_the_same_places(rng: np.random.Generator) -> None:
    rows = rng.normal(size=(50, 8)).astype(np.float32)
    np.testing.assert_array_equal(project(rows).places, project(rows.copy()).places)


@pytest.mark.parametrize("rows", [np.empty((0, 4)), np.ones((1, 4)), np.ones((7, 4))])
def test_rows_without_extent_lie_in_the_middle(rows: np.ndarray) -> None:
    plane = project(rows)
    assert plane.places.shape == (len(rows), 2)
    assert not plane.places.any()
    assert not plane.shares.any()


def test_rows_on_a_line_have_one_axis() -> None:
    plane = project(np.arange(12.0)[:, None] * np.array([3.0, 4.0, 0.0]))
    np.testing.assert_allclose(plane.shares, [1, 0], atol=1e-12)
    np.testing.assert_allclose(plane.axes, [[0.6, 0.8, 0], [0, 0, 0]], atol=1e-12)


def test_it_gives_up_at_its_deadline(rng: np.random.Generator) -> None:
    with deadline(time.monotonic() - 1), pytest.raises(DeadlineError):
        project(rng.normal(size=(10, 4)))
