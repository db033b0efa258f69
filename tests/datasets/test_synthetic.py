"""Made vectors: what they promise is measured on them.

Rules out rows that depend on how many were asked for, an intrinsic dimension or clusters other than those stated,
queries that are rows, values that a type clips, and a set that is half written.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner, Result

from corenn.cli import app
from corenn.datasets import open_vectors, read_truth, synthetic
from corenn.datasets.exact import nearest
from corenn.datasets.kmeans import kmeans
from corenn.datasets.synthetic import CHUNK, Scale, Shape, Synthetic
from corenn.datasets.vectors import as_dtype
from corenn.errors import InvalidArgumentError

Rows = NDArray[Any]


def made(shape: Shape, rows: int) -> Rows:
    return np.concatenate(list(Synthetic(shape).blocks(rows)))


def estimated_dimension(rows: Rows, k: int = 30) -> float:
    """Maximum likelihood by the distances to the k nearest (Levina & Bickel 2004; mean by MacKay & Ghahramani 2005)."""
    sample = rows[:: max(1, len(rows) // 400)]
    _, squared = nearest(rows, sample, k + 1, "l2")
    distances = np.sqrt(squared[:, 1:])
    return float(1 / np.log(distances[:, -1:] / distances[:, :-1]).mean())


def run(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["dataset", "synthetic", *map(str, arguments)])


# --- what is promised -------------------------------------------------------------------------------------------------


@pytest.mark.compiled
@pytest.mark.parametrize("curved", [True, False])
@pytest.mark.parametrize(("dim", "intrinsic"), [(16, 1), (16, 3), (64, 6), (128, 8)])
@pytest.mark.parametrize("clusters", [1, 20])
def test_the_intrinsic_dimension_is_as_stated(curved: bool, dim: int, intrinsic: int, clusters: int) -> None:
    found = estimated_dimension(made(Shape(dim, intrinsic, clusters, curved=curved), 20_000))
    assert found == pytest.approx(intrinsic, rel=0.15)


@pytest.mark.compiled
def test_noise_adds_dimensions() -> None:
    thin, thick = (estimated_dimension(made(Shape(64, 3, noise=noise), 8_000)) for noise in (0.01, 1.0))
    assert thin < 4.5 < 8 < thick


def test_a_flat_has_the_rank_of_its_dimension_and_a_curved_one_does_not() -> None:
    flat, curved = (made(Shape(20, 4, curved=curved), 500).astype(np.float64) for curved in (False, True))
    assert np.linalg.matrix_rank(flat, tol=1e-3) == 4 < np.linalg.matrix_rank(curved - curved.mean(axis=0), tol=1e-3)


def test_clusters_are_as_many_as_stated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Far enough apart, k-means finds them, each with its own rows."""
    monkeypatch.setattr(synthetic, "SEPARATION", 100.0)
    rows = made(Shape(10, 4, clusters=7, curved=False), 2_000)
    np.save(tmp_path / "rows.npy", rows)
    with open_vectors(tmp_path / "rows.npy") as vectors:
        found = kmeans(vectors, 7, sample=0)
    assert found.inertia / 2_000 == pytest.approx(4, rel=0.15), "each has a variance of 1 along 4 axes"
    assert found.counts.min() > 200


def test_a_row_depends_on_its_number_alone() -> None:
    shape = Shape(6, 2, clusters=3, noise=0.1, seed=4)
    long = made(shape, CHUNK + 50)
    for rows in (1, 49, CHUNK, CHUNK + 1):
        assert np.array_equal(made(shape, rows), long[:rows])
    assert len(np.unique(long, axis=0)) == len(long)
    assert not np.array_equal(made(Shape(6, 2, clusters=3, noise=0.1, seed=5), 5), long[:5])


def test_queries_come_from_the_same_place_and_are_no_rows() -> None:
    maker = Synthetic(Shape(8, 3, clusters=4))
    rows, queries = made(maker.shape, 3_000), maker.queries(200)
    assert np.array_equal(maker.queries(50), queries[:50]) and maker.queries(0).shape == (0, 8)
    far = np.sqrt(nearest(rows, queries, 1, "l2")[1])
    among = np.sqrt(nearest(rows, rows[:200], 2, "l2")[1][:, 1])
    assert far.min() > 0 and np.median(far) == pytest.approx(np.median(among), rel=0.3)


@pytest.mark.parametrize("dtype", ["u8", "i8", "f16", "bf16"])
def test_narrow_types_keep_the_order_of_distances(dtype: str) -> None:
    maker = Synthetic(Shape(32, 4, clusters=10))
    scale = Scale.of(as_dtype(dtype), maker)
    rows = made(maker.shape, 2 * CHUNK)
    narrow = scale.apply(rows)
    assert narrow.dtype == as_dtype(dtype)
    if dtype in ("u8", "i8"):
        limits = np.iinfo(narrow.dtype)
        clipped = np.isin(narrow, (limits.min, limits.max)).mean()
        assert clipped < 0.001 and np.ptp(narrow.astype(int)) > 150
    ours, theirs = (nearest(each[:4000], each[4000:4050], 10, "l2")[0] for each in (rows, narrow))
    shared = np.mean([len(set(one) & set(other)) for one, other in zip(ours, theirs, strict=True)])
    assert shared > 8


@pytest.mark.parametrize(
    "wrong",
    [(4, 5), (4, 0), (4, 2, 0), (4, 2, 1, -0.1), (4, 2, 1, float("nan")), (4, 2, 1, float("inf")), (4, 2, 1, 0.0, -1)],
)
def test_impossible_shapes_are_refused(wrong: tuple[Any, ...]) -> None:
    with pytest.raises(InvalidArgumentError, match="needs 1 ≤ intrinsic dim ≤ dim"):
        Shape(*wrong)


# --- the command ------------------------------------------------------------------------------------------------------

SMALL = ("--rows", 900, "--dim", 6, "--intrinsic-dim", 2, "--clusters", 3, "--queries", 20)


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
def test_a_whole_set_in_one_file(metric: str, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "made.hdf5"
    result = run(path, *SMALL, "--truth", 7, "--metric", metric, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["rows"], told["queries"], told["dim"], told["neighbours"]) == (900, 20, 6, 7)
    with h5py.File(path) as file:
        assert set(file) == {"train", "test", "neighbors", "distances"}
        assert file.attrs["distance"] == {"l2": "euclidean", "cosine": "angular", "ip": "ip"}[metric]
        rows, queries = file["train"][:], file["test"][:]
    maker = Synthetic(Shape(6, 2, 3))
    assert np.array_equal(rows, made(maker.shape, 900)) and np.array_equal(queries, maker.queries(20))
    truth, expected = read_truth(path), nearest(rows, queries, 7, metric)
    assert truth.distances is not None and np.array_equal(truth.ids, expected[0])
    assert np.allclose(truth.distances, expected[1], rtol=1e-6)


def test_a_file_for_each_part(tmp_path: Path) -> None:
    assert run(tmp_path / "made.u8bin", *SMALL, "--dtype", "u8", "--truth", 5).exit_code == 0
    with open_vectors(tmp_path / "made.u8bin") as rows, open_vectors(tmp_path / "made-test.u8bin") as queries:
        assert rows.shape == (900, 6) and queries.shape == (20, 6) and rows.dtype == np.uint8
        expected = nearest(rows.rows(0, 900), queries.rows(0, 20), 5, "l2")
    assert np.array_equal(read_truth(tmp_path / "made-truth.ibin").ids, expected[0])
    assert run(tmp_path / "alone.npy", *SMALL[:-1], 0).exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("alone")) == ["alone.npy"]


def test_the_command_refuses(tmp_path: Path) -> None:
    (tmp_path / "taken-test.fbin").write_bytes(b"here")
    for arguments, expected in (
        ((tmp_path / "x.fbin", "--dim", 3, "--intrinsic-dim", 4), "needs 1 ≤ intrinsic dim ≤ dim"),
        ((tmp_path / "x.fbin", "--manifold", "round"), "--manifold round: choose one of"),
        ((tmp_path / "x.fbin", "--dtype", "i64"), "--dtype i64"),
        ((tmp_path / "x.fbin", "--metric", "l1"), "--metric l1"),
        ((tmp_path / "x.fbin", "--truth", 5, "--queries", 0), "--truth 5 needs --queries"),
        ((tmp_path / "taken.fbin", *SMALL), "taken-test.fbin exists"),
        ((tmp_path / "x.u8bin", *SMALL), "holds u8, not f32"),
        ((tmp_path / "x.xyz", *SMALL), "unknown format"),
    ):
        result = run(*arguments)
        assert result.exit_code == 1 and expected in result.stderr, result.output
    assert [path.name for path in tmp_path.iterdir()] == ["taken-test.fbin"]
