"""Pairwise distances against the definition.

Rules out a distance of the wrong pair, metric or precision, blocks in the wrong order, memory beyond the limit, and a
matrix too large to print or to store that is begun all the same.
"""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner, Result

from corenn.cli import app
from corenn.datasets import create_vectors, open_vectors
from corenn.datasets.pairwise import distance_blocks
from corenn.errors import DatasetError, InvalidArgumentError
from tests import oracle

Rows = NDArray[Any]


def stored(path: Path, rows: Rows) -> Path:
    with create_vectors(path, rows.shape[1], rows.dtype) as out:
        out.append(rows)
    return path


def blocks(one: Path, other: Path, metric: str, **options: Any) -> list[Rows]:
    with open_vectors(one) as left, open_vectors(other) as right:
        return list(distance_blocks(left, right, metric, **options))


def run(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["dataset", "distances", *map(str, arguments)])


@pytest.fixture
def files(tmp_path: Path, rng: np.random.Generator) -> tuple[Path, Path]:
    one, other = rng.normal(size=(40, 7)), rng.normal(size=(23, 7)).astype(np.float32)
    one[3] = 0
    return stored(tmp_path / "one.npy", one), stored(tmp_path / "other.fbin", other)


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
@pytest.mark.parametrize("memory", [1 << 30, 120_000])
def test_every_pair(metric: str, memory: int, files: tuple[Path, Path]) -> None:
    found = blocks(*files, metric, memory_bytes=memory, threads=2)
    assert (len(found) > 1) == (memory < 10**6)
    with open_vectors(files[0]) as left, open_vectors(files[1]) as right:
        expected = oracle.distances(metric, right.rows(0, 23), left.rows(0, 40))
    assert np.allclose(np.concatenate(found), expected, rtol=1e-12, atol=1e-12)


def test_a_row_is_at_distance_zero_of_itself(tmp_path: Path, rng: np.random.Generator) -> None:
    """From the definition, not from a product: nothing is left over."""
    rows = (rng.normal(size=(1_100, 5)) + 1e4).astype(np.float32)
    path = stored(tmp_path / "rows.npy", rows[:60])
    found = np.concatenate(blocks(path, path, "l2"))
    assert not np.diagonal(found).any() and np.array_equal(found, found.T)
    wide = stored(tmp_path / "wide.npy", rows)
    found = np.concatenate(blocks(path, wide, "l2"))
    assert found.shape == (60, 1_100) and not np.diagonal(found).any()


def test_misfits_are_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    narrow = stored(tmp_path / "narrow.npy", np.ones((3, 4), np.float32))
    with pytest.raises(DatasetError, match="do not fit"):
        blocks(files[0], narrow, "l2")
    with pytest.raises(InvalidArgumentError, match="unknown metric"):
        blocks(*files, "l1")
    with pytest.raises(DatasetError, match="raise the limit, or exchange the files"):
        blocks(*files, "l2", memory_bytes=100)


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_the_command_writes_a_matrix(dtype: str, files: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "distances.npy"
    result = run(*files, "--metric", "cosine", "--out", out, "--dtype", dtype, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["rows"], told["columns"], told["metric"]) == (40, 23, "cosine")
    found = np.load(out)
    assert found.dtype == {"f32": np.float32, "f64": np.float64}[dtype]
    assert np.array_equal(found, np.concatenate(blocks(*files, "cosine")).astype(found.dtype))


def test_the_command_prints_a_small_matrix(files: tuple[Path, Path]) -> None:
    told = json.loads(run(files[1], "--json").stdout)
    assert np.array_equal(told["distances"], np.concatenate(blocks(files[1], files[1], "l2")))
    assert "the first 8 of 23 columns" in " ".join(run(files[1]).stdout.split())


def test_the_command_refuses(files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = stored(tmp_path / "large.npy", np.ones((200, 7), np.float32))
    out = tmp_path / "out.npy"
    for arguments, expected in (
        ((large, files[0]), "200 × 40 distances are too many to print; write them with --out FILE"),
        ((*files, "--metric", "l1"), "--metric l1: choose one of"),
        ((*files, "--out", files[0]), "exists; replace it"),
        ((*files, "--out", tmp_path / "out.u8bin"), "holds u8, not f32"),
        ((*files, "--out", out, "--dtype", "f23"), "unknown type 'f23'"),
    ):
        result = run(*arguments)
        assert result.exit_code == 1 and expected in result.stderr
    used = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: used._replace(free=1000))
    full = run(*files, "--out", out)
    assert full.exit_code == 1 and "would take 3.7 kB" in full.stderr and "has 1.0 kB free" in full.stderr
    assert not out.exists()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rows_that_hold_no_numbers_are_named(value: float, tmp_path: Path) -> None:
    good, bad = np.ones((30, 4), np.float32), np.ones((30, 4), np.float32)
    bad[17, 2] = value
    one, other = stored(tmp_path / "good.npy", good), stored(tmp_path / "bad.npy", bad)
    for pair in ((one, other), (other, one)):
        with pytest.raises(DatasetError, match=r"bad\.npy: row 17 holds NaN, infinity"):
            blocks(*pair, "l2", memory_bytes=51_000)
    result = run(one, other, "--out", tmp_path / "out.npy")
    assert result.exit_code == 1 and not (tmp_path / "out.npy").exists()


def test_a_type_of_fewer_bytes_takes_no_second_block(tmp_path: Path) -> None:
    path = stored(tmp_path / "rows.npy", np.zeros((3_000, 1), np.float32))
    tracemalloc.start()
    try:
        assert run(path, "--out", tmp_path / "out.npy", "--memory", 60).exit_code == 0
        assert tracemalloc.get_traced_memory()[1] < 96_000_000
    finally:
        tracemalloc.stop()
