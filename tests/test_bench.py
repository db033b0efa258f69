"""Recall by hand-made cases, exact answers against the definition, and the goal table at its smallest.

Rules out a recall that counts ties as misses or misses as hits, interpolation outside its bracket, goals that an
unmeasured figure passes, and a table with rows missing.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corenn import CoreNN
from corenn.bench import codes
from corenn.bench.curve import GRID, Point, bracket, interpolate
from corenn.bench.recall import (
    MISSING,
    distances_of,
    exact_neighbours,
    recall_by_distance,
    recall_by_id,
    table,
)
from corenn.bench.report import Row, shown
from corenn.bench.timing import alternate, one_by_one, percentiles_ms

INF, NAN = math.inf, math.nan


# --- recall -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "k", "recall"),
    [
        ([1, 2, 3], 3, 1),
        ([1, 2, 4], 3, 2 / 3),
        ([3, 3, 3], 3, 1),  # others at the distance of the third are as good
        ([1, 2, 3 + 1e-7], 3, 1),
        ([1, 2, 3 + 1e-4], 3, 2 / 3),
        ([1, 2, INF], 3, 2 / 3),
        ([1, 2, NAN], 3, 2 / 3),
        ([1, 2], 3, 2 / 3),
        ([INF, INF, INF], 3, 0),
        ([1, 3, 2], 2, 1 / 2),  # only the first k count, and only up to the k-th distance
        ([2, 2.5, 1], 1, 0),
    ],
)
def test_recall_by_distance(found: list[float], k: int, recall: float) -> None:
    assert recall_by_distance(np.array([found]), np.array([[1.0, 2.0, 3.0]]), k) == pytest.approx(recall)


def test_recall_by_distance_is_a_mean_over_queries() -> None:
    truth = np.array([[1.0, 2.0], [10.0, 20.0]])
    assert recall_by_distance(np.array([[1.0, 2.0], [10.0, 21.0]]), truth, 2) == 0.75


def test_recall_at_distance_zero_has_an_absolute_tolerance() -> None:
    assert recall_by_distance(np.array([[1e-10]]), np.zeros((1, 1)), 1) == 1
    assert recall_by_distance(np.array([[1e-7]]), np.zeros((1, 1)), 1) == 0
    assert recall_by_distance(np.array([[1e-7]]), np.zeros((1, 1)), 1, absolute=1e-6) == 1


def test_recall_refuses_shapes_that_do_not_fit() -> None:
    one, two = np.ones((1, 2)), np.ones((2, 2))
    for found, truth, k in ((one, two, 1), (one, one, 3), (one, one, 0), (one[0], one, 1)):
        with pytest.raises(ValueError, match="does not fit"):
            recall_by_distance(found, truth, k)
    with pytest.raises(ValueError, match="does not fit"):
        recall_by_id(one, two)


def test_recall_by_id() -> None:
    truth = np.array([[1, 2, 3], [4, 5, 6]], np.uint32)
    assert recall_by_id(truth[:, ::-1], truth) == 1
    assert recall_by_id(np.array([[1, 1, 1], [6, 7, MISSING]]), truth) == pytest.approx(2 / 6)
    assert recall_by_id(np.full((2, 3), MISSING), truth) == 0


def test_table_of_ragged_rows() -> None:
    assert table([[1, 2, 3], [], [4]], 2, MISSING).tolist() == [[1, 2], [-1, -1], [4, -1]]
    filled = table([np.array([0.5], np.float32)], 2, np.inf)
    assert filled.dtype == np.float64 and filled.tolist() == [[0.5, INF]]


# --- exact answers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
@pytest.mark.parametrize("k", [1, 10, 400])
def test_exact_neighbours(metric: str, k: int, rng: np.random.Generator) -> None:
    base = rng.integers(-3, 4, (300, 3)).astype(np.float32)  # many ties
    base[0] = 0
    queries = rng.normal(size=(20, 3)).astype(np.float32)
    queries[0] = base[5]
    ids, distances = exact_neighbours(base, queries, k, metric)
    for at, query in enumerate(queries.astype(np.float64)):
        expected = [distance(row, query, metric) for row in base.astype(np.float64)]
        assert np.allclose(distances[at], np.sort(expected)[:k], atol=1e-12)
        assert np.allclose(distances[at], np.array(expected)[ids[at]], atol=1e-12)
        assert len(set(ids[at].tolist())) == min(k, 300)


def distance(row: Any, query: Any, metric: str) -> float:
    """By the definition."""
    if metric == "l2":
        return float(sum((a - b) ** 2 for a, b in zip(row, query, strict=True)))
    dot = float(sum(a * b for a, b in zip(row, query, strict=True)))
    if metric == "ip":
        return 1 - dot
    norms = math.hypot(*row) * math.hypot(*query)
    return 1 - dot / norms if norms else 1.0


def test_distance_of_what_is_missing_is_infinite() -> None:
    base = np.eye(2, dtype=np.float32)
    assert distances_of(np.array([[1, MISSING, 0]]), base, base[:1], "l2").tolist() == [[2, INF, 0]]


# --- curves, figures, timing ------------------------------------------------------------------------------------------


def test_interpolation_is_log_linear() -> None:
    points = [Point(10, 0.90), Point(20, 0.94), Point(30, 0.98)]
    assert bracket(points, 0.96) == points[1:] and bracket(points, 0.5) == points[:1] and bracket(points, 0.99) == []
    assert bracket(points, 0.94) == points[:2]
    assert interpolate(points[1:], [400, 100], 0.96) == pytest.approx(200)
    assert interpolate(points[1:], [400, 100], 0.98) == pytest.approx(100)
    assert interpolate(points[:1], [400], 0.5) == 400
    assert math.isnan(interpolate([], [], 0.99))
    assert list(GRID) == sorted(set(GRID)) and GRID[0] == 10


def test_goals() -> None:
    assert Row(name="", figure=2, goal=2, peer=4).ok and Row(name="", figure=2, goal=2, peer=4).ratio == 0.5
    assert not Row(name="", figure=1.9, goal=2).ok
    assert Row(name="", figure=1.9, goal=2, at_most=True).ok and not Row(name="", figure=2.1, goal=2, at_most=True).ok
    unmeasured = Row(name="", figure=NAN, goal=NAN, peer=NAN)
    assert not unmeasured.ok and not Row(name="", figure=NAN, goal=2, at_most=True).ok
    assert unmeasured.as_dict()["figure"] is None and unmeasured.as_dict()["ok"] is False
    assert (shown(12_345.6), shown(0.97123)) == ("12,346", "0.9712")


def test_alternate_takes_turns() -> None:
    calls: list[str] = []
    taken = alternate(3, lambda: calls.append("a"), lambda: calls.append("b"))
    assert calls == ["a", "b"] * 3 and len(taken) == 2 and min(taken) > 0
    assert alternate(3) == []


def test_one_by_one(rng: np.random.Generator) -> None:
    rows = rng.normal(size=(30, 4)).astype(np.float32)
    with CoreNN.in_memory(dim=4) as db:
        db.insert(list(range(30)), rows)
        taken = one_by_one(db, rows[:5], 3)
    assert taken.shape == (5,) and (taken > 0).all()
    assert percentiles_ms(np.array([0.001, 0.002, 0.003]), 0, 50, 100) == {"p0_ms": 1, "p50_ms": 2, "p100_ms": 3}


# --- the table --------------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A file in the layout of ann-benchmarks: a few clusters, whose truth in the file is that of all 2,100 rows."""
    h5py = pytest.importorskip("h5py")
    centres = rng.normal(size=(40, 16)) * 3
    rows, queries = (centres[rng.integers(0, 40, n)] + rng.normal(size=(n, 16)) for n in (2_100, 60))
    ids, distances = exact_neighbours(rows.astype(np.float32), queries.astype(np.float32), 100, "l2")
    path = tmp_path / "clusters-16-euclidean.hdf5"
    with h5py.File(path, "w") as file:
        file.attrs["distance"] = "euclidean"
        for name, values in {"train": rows, "test": queries, "neighbors": ids, "distances": np.sqrt(distances)}.items():
            file[name] = values.astype(np.int32 if name == "neighbors" else np.float32)
    return path


def test_truth_from_the_file_and_computed_agree(data: Path) -> None:
    from corenn.bench.sample import load

    everything, part = load(data, 3_000, 50, 10, 10), load(data, 2_000, 50, 10, 10)
    assert everything.base.shape == (2_100, 16) and part.base.shape == (2_000, 16)
    assert everything.metric == "l2" and len(everything.spare) == len(part.spare) == 10
    for sample in (everything, part):
        expected = exact_neighbours(sample.base, sample.queries, 10, "l2")[1]
        assert np.allclose(sample.truth, expected)
    assert not np.allclose(everything.truth, part.truth)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    from corenn.bench.sample import load

    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["train"] = np.zeros((3, 3))
    with pytest.raises(ValueError, match="needs train, test and a distance"):
        load(tmp_path / "other.hdf5", 3, 3, 3, 3)


@pytest.mark.compiled
def test_the_goal_table_is_complete(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("hnswlib")
    pytest.importorskip("psutil")
    written = tmp_path / "core.json"
    command = [
        sys.executable,
        "-m",
        "corenn.bench.core",
        "--data",
        data,
        "--quick",
        "--json",
        written,
        "--dir",
        tmp_path,
    ]
    run = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True, timeout=250)
    told = json.loads(written.read_text())
    assert [row["name"] for row in told["results"]] == [
        "recall@10 at default settings",
        "QPS at recall@10 0.95",
        "QPS at recall@10 0.99",
        "one query per call, on disk",
        "… above the same in a batch",
        "insert on disk, batches of 1,000",
        "… against hnswlib's build",
        "resident beyond vectors and edges",
        "open",
        "first answer in a new process",
        "on disk over in memory",
        "one row per call, os",
        "one row per call, sync",
        "… from 32 threads",
    ]
    assert all(row["name"] in run.stdout for row in told["results"])
    assert all(row["figure"] is not None and isinstance(row["ok"], bool) for row in told["results"])
    assert told["results"][0]["figure"] > 0.9
    assert told["rows"] == 2_100 and told["quick"] and told["versions"]["hnswlib"] and told["cpu"] and told["date"]
    recalls = [point["recall"] for point in told["curves"]["hnswlib"]]
    assert recalls[-1] > 0.9 and len(told["curves"]["corenn"]) >= 1
    assert not list(tmp_path.glob("corenn-bench-*"))


@pytest.mark.compiled
def test_what_codes_cost_and_find(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    codes.main(["--data", str(data), "--rows", "1500", "--queries", "40", "--modes", "none,sq4,opq,trunc"])
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == ["codes", "---", "none", "sq4", "opq", "trunc"]
    assert len({len(line) for line in lines}) == 1
    recalls = {line[0]: float(line[-2].partition(",")[0]) for line in lines[2:]}
    assert min(recalls["none"], recalls["sq4"], recalls["opq"]) > 0.9
    assert all(float(line[-1]) > 0 for line in lines[2:])


@pytest.mark.compiled
def test_the_goals_of_speed_in_memory(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("hnswlib")
    written = tmp_path / "goals.json"
    command = [
        sys.executable,
        "-m",
        "corenn.bench.goals",
        "--data",
        data,
        "--growing",
        data,
        "--quick",
        "--json",
        written,
    ]
    run = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True, timeout=250)
    told = {row["name"]: row for row in json.loads(written.read_text())["results"]}
    assert list(told) == [
        "build in one call", "inserts of 1,000 rows", "QPS at recall@10 0.95, built in one call",
        "QPS at recall@10 0.99, built in one call", "two threads over one", "bytes per row beside vector, code and key",
        "distances at recall@10 .95, 2,000 rows over 1,500",
    ]  # fmt: skip
    assert all(name in run.stdout for name in told)
    assert all(row["figure"] is not None and isinstance(row["ok"], bool) for row in told.values())
    assert told["bytes per row beside vector, code and key"]["ok"]
