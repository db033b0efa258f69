"""k-means against NumPy, and its promises: determinism, convergence, empty clusters, bounded memory.

Rules out rows assigned to a farther centroid, centroids that are not the means of their rows, an outcome that depends
on threads or on whether the rows were in memory, inertia that grows, and clusters left empty although rows could fill
them.
"""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner, Result

from corenn.cli import app
from corenn.datasets import create_vectors, open_vectors
from corenn.datasets import kmeans as module
from corenn.datasets.kmeans import Clusters, assignments, kmeans
from corenn.errors import DatasetError, InvalidArgumentError
from tests import oracle

Rows = NDArray[Any]


def stored(path: Path, rows: Rows) -> Path:
    with create_vectors(path, rows.shape[1], rows.dtype) as out:
        out.append(rows)
    return path


def clustered(path: Path, k: int, **options: Any) -> Clusters:
    with open_vectors(path) as vectors:
        return kmeans(vectors, k, **options)


def run(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["dataset", "kmeans", *map(str, arguments)])


@pytest.fixture
def blobs(tmp_path: Path, rng: np.random.Generator) -> tuple[Path, Rows, Rows]:
    """600 rows in six narrow clusters far apart: the file, the rows, the centres."""
    centres = rng.normal(size=(6, 5)) * 50
    rows = (centres[np.arange(600) % 6] + rng.normal(size=(600, 5))).astype(np.float32)
    return stored(tmp_path / "blobs.npy", rows), rows, centres


def test_clusters_far_apart_are_found(blobs: tuple[Path, Rows, Rows]) -> None:
    path, rows, centres = blobs
    found = clustered(path, 6)
    assert found.converged and found.empty == 0 and found.counts.tolist() == [100] * 6
    near = oracle.distances("l2", found.centroids, centres).argmin(axis=1)
    means = np.array([rows[at::6].mean(axis=0, dtype=np.float64) for at in range(6)])
    assert sorted(near) == list(range(6)) and np.allclose(found.centroids[near], means, atol=1e-4)
    inertia = sum(((rows[at::6] - rows[at::6].mean(axis=0)) ** 2).sum() for at in range(6))
    assert found.inertia == pytest.approx(inertia, rel=1e-5)


def test_each_step_is_that_of_lloyd(tmp_path: Path, rng: np.random.Generator) -> None:
    rows = rng.normal(size=(500, 6)).astype(np.float32)
    path = stored(tmp_path / "rows.npy", rows)
    first = clustered(path, 8, iterations=0, seeding="random", tolerance=0)
    assert all((rows == each).all(axis=1).any() for each in first.centroids), "the first centroids are rows"
    inertias = []
    for iterations in range(6):
        found = clustered(path, 8, iterations=iterations, seeding="random", tolerance=0)
        centroids, inertia = _steps(rows, first.centroids, iterations)
        assert np.allclose(found.centroids, centroids, atol=1e-5) and found.iterations == iterations
        assert found.inertia == pytest.approx(inertia, rel=1e-6)
        inertias.append(found.inertia)
    assert inertias == sorted(inertias, reverse=True) and inertias[-1] < inertias[0]


def _steps(rows: Rows, centroids: Rows, iterations: int) -> tuple[Rows, float]:
    for _ in range(iterations):
        labels = oracle.distances("l2", centroids, rows).argmin(axis=1)
        means = [rows[labels == each].mean(axis=0, dtype=np.float64) for each in range(len(centroids))]
        centroids = np.array(means).astype(np.float32)
    return centroids, float(oracle.distances("l2", centroids, rows).min(axis=1).sum())


@pytest.mark.parametrize("seeding", ["k-means++", "random"])
def test_the_seed_alone_decides(
    seeding: str, tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK", 256)
    rows = rng.normal(size=(2_000, 7)).astype(np.float32)
    path = stored(tmp_path / "rows.fbin", rows)
    options: dict[str, Any] = {"seeding": seeding, "iterations": 4, "sample": 1500}
    one = clustered(path, 12, seed=5, threads=1, **options)
    for threads, memory in ((2, 1 << 30), (3, 2_000_000)):
        other = clustered(path, 12, seed=5, threads=threads, memory_bytes=memory, **options)
        assert np.array_equal(one.centroids, other.centroids) and one.inertia == other.inertia
        assert np.array_equal(one.counts, other.counts)
    assert not np.array_equal(one.centroids, clustered(path, 12, seed=6, **options).centroids)


def test_all_rows_in_memory_or_from_the_file(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every row is used: as a sample that is as large as the file, and as the file itself, of a narrower type."""
    monkeypatch.setattr(module, "BLOCK", 128)
    rows = rng.integers(0, 255, (1_000, 6)).astype(np.uint8)
    steps: list[int] = []
    narrow = clustered(stored(tmp_path / "rows.u8bin", rows), 9, sample=0, progress=steps.append)
    wide = clustered(stored(tmp_path / "rows.npy", rows.astype(np.float32)), 9, sample=5_000)
    assert np.array_equal(narrow.centroids, wide.centroids) and narrow.rows == wide.rows == 1_000
    assert sum(steps) == 1_000 * (narrow.iterations + 1)


def test_a_cluster_without_rows_starts_anew(blobs: tuple[Path, Rows, Rows], monkeypatch: pytest.MonkeyPatch) -> None:
    """All centroids begin at one row, so that all but the first are empty."""
    path, rows, _ = blobs
    monkeypatch.setattr(module, "_seeds", lambda *_: np.tile(rows[0], (6, 1)))
    found = clustered(path, 6, iterations=50, tolerance=0)
    assert found.empty == 0 and found.counts.sum() == 600
    assert found.inertia < 0.01 * ((rows - rows.mean(axis=0)) ** 2).sum()


def test_fewer_distinct_rows_than_clusters(tmp_path: Path) -> None:
    rows = np.repeat(np.arange(3, dtype=np.float32)[:, None], 10, axis=0)
    found = clustered(stored(tmp_path / "rows.npy", rows), 5)
    assert found.empty == 2 and found.inertia == 0 and found.converged
    assert sorted(set(found.centroids[found.counts > 0, 0].tolist())) == [0, 1, 2]


@pytest.mark.parametrize(("rows", "k"), [(1, 1), (5, 5), (7, 1)])
def test_the_smallest_tasks(rows: int, k: int, tmp_path: Path) -> None:
    given = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
    found = clustered(stored(tmp_path / "rows.npy", given), k)
    assert found.counts.tolist() == [rows // k] * k
    assert k > 1 or found.centroids[0].tolist() == given.mean(axis=0).tolist()


def test_assignments_are_to_the_nearest(tmp_path: Path, rng: np.random.Generator) -> None:
    rows = rng.integers(0, 4, (700, 3)).astype(np.float32)
    centroids = rows[:20]
    with open_vectors(stored(tmp_path / "rows.npy", rows)) as vectors:
        parts = list(assignments(vectors, centroids, threads=2))
    table = oracle.distances("l2", centroids, rows)
    assert np.array_equal(np.concatenate([labels for labels, _ in parts]), table.argmin(axis=1)), "ties to the first"
    assert np.array_equal(np.concatenate([far for _, far in parts]), table.min(axis=1))


def test_misuse_is_refused(tmp_path: Path) -> None:
    path = stored(tmp_path / "rows.npy", np.ones((5, 300), np.float32))
    for options in ({"iterations": -1}, {"sample": -1}, {"seeding": "best"}):
        with pytest.raises(InvalidArgumentError, match="seeding of"):
            clustered(path, 2, **options)
    with pytest.raises(InvalidArgumentError, match="k 0"):
        clustered(path, 0)
    with pytest.raises(DatasetError, match="5 rows for 6 clusters"):
        clustered(path, 6)
    with pytest.raises(DatasetError, match="4 rows for 5 clusters"):
        clustered(path, 5, sample=4)
    with pytest.raises(DatasetError, match="take a smaller sample"):
        clustered(path, 2, sample=4, memory_bytes=5_000)


def test_the_command(blobs: tuple[Path, Rows, Rows], tmp_path: Path) -> None:
    path, rows, _ = blobs
    out, labels = tmp_path / "centroids.fbin", tmp_path / "labels.npy"
    result = run(path, "-k", 6, "--out", out, "--assignments", labels, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["converged"] and told["empty"] == 0 and told["assigned"] == 600
    with open_vectors(out) as vectors:
        centroids = np.array(vectors.rows(0, 6))
    assigned = np.load(labels)
    assert assigned.shape == (600, 1)
    assert np.array_equal(assigned[:, 0], oracle.distances("l2", centroids, rows).argmin(axis=1))
    assert told["inertia_of_all_rows"] == pytest.approx(told["inertia"], rel=1e-5)
    again = run(path, "-k", 6, "--out", out)
    assert again.exit_code == 1 and "exists; replace it with --overwrite" in again.stderr
    shown = run(path, "-k", 6, "--iterations", 0)
    assert shown.exit_code == 0 and "0, stopped" in shown.stdout


@pytest.mark.parametrize("sample", [0, 500])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e200])
def test_the_row_that_holds_no_number_is_named(tmp_path: Path, sample: int, value: float) -> None:
    """By its place in the file, not in a sample or a block."""
    rows = np.ones((501, 3))
    rows[::2, 1] = value
    with pytest.raises(DatasetError, match=r"rows\.npy: row (0|2) holds NaN, infinity or values too large"):
        clustered(stored(tmp_path / "rows.npy", rows), 2, sample=sample)


def test_long_rows_are_taken_fewer_at_a_time(tmp_path: Path) -> None:
    """A fixed number of rows would be more than the memory, though the file has few clusters and the rows few."""
    rows = np.zeros((2_000, 20_000), np.uint8)
    rows[1_000:] = 1
    found = clustered(stored(tmp_path / "long.u8bin", rows), 2, sample=0, memory_bytes=300_000_000)
    assert found.inertia == 0 and found.counts.tolist() == [1_000, 1_000]


@pytest.mark.parametrize(
    ("outs", "reason"),
    [
        (("--out", "c.u8bin"), "holds u8, not f32"),
        (("--assignments", "a.fbin"), "holds f32, not i32"),
        (("--out", "c.npy", "--assignments", "c.npy"), "choose two files"),
    ],
)
def test_files_that_cannot_be_written_are_refused_before_the_work(
    outs: tuple[str, ...], reason: str, blobs: tuple[Path, Rows, Rows], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "_seeds", lambda *_: pytest.fail("clustered"))
    result = run(blobs[0], "-k", 3, *outs)
    assert result.exit_code == 1 and reason in result.stderr, result.output
    assert [each.name for each in tmp_path.iterdir()] == ["blobs.npy"]


def test_a_sample_of_many_rows_lists_no_others(tmp_path: Path) -> None:
    """A tenth of ten million: their numbers alone would be 80 MB."""
    path = tmp_path / "many.u8bin"
    with path.open("wb") as file:
        file.write(np.array([10_000_000, 1], "<u4").tobytes())
        file.truncate(8 + 10_000_000)
    tracemalloc.start()
    try:
        with open_vectors(path) as vectors:
            rows = module.drawn(vectors, 1_000_000, np.random.default_rng(0))
        assert rows.shape == (1_000_000, 1)
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()


def test_every_row_may_be_drawn_and_none_twice(tmp_path: Path) -> None:
    path = stored(tmp_path / "rows.npy", np.arange(20, dtype=np.float32)[:, None])
    seen: set[float] = set()
    with open_vectors(path) as vectors:
        for seed in range(60):
            rows = module.drawn(vectors, 3, np.random.default_rng(seed))[:, 0].tolist()
            assert rows == sorted(set(rows)) and len(rows) == 3
            seen |= set(rows)
        assert module.drawn(vectors, 20, np.random.default_rng(0))[:, 0].tolist() == list(range(20))
    assert seen == set(range(20))
