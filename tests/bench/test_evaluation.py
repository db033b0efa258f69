"""`corenn eval` in each of its modes, on real vectors, and the judge of recall behind it.

Rules out ties counted as misses where the stored vectors can tell, rows that do not exist counted as found, files read
as something else, a mode whose figures are missing or contradict each other, and refusals that come as tracebacks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from corenn import CoreNN, InvalidArgumentError
from corenn.bench.judge import Judge
from corenn.bench.log import faults
from corenn.bench.machine import commit
from corenn.bench.recall import exact_neighbours
from corenn.datasets import create_vectors, write_truth
from tests.conftest import Sample
from tests.test_cli import corenn, figures, refused

ROWS, QUERIES, K = 1_500, 60, 10


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, sift: Sample) -> Path:
    """A folder with rows, queries and the 20 true neighbours in several formats, and a database of the rows."""
    folder = tmp_path_factory.mktemp("eval")
    rows, queries = sift[0][:ROWS], sift[1][:QUERIES]
    ids, distances = exact_neighbours(rows, queries, 20, "l2")
    for ending, dtype in (("fvecs", "f32"), ("npy", "f32"), ("u8bin", "u8")):
        for name, matrix in (("base", rows), ("queries", queries)):
            with create_vectors(folder / f"{name}.{ending}", 128, dtype) as out:
                out.append(matrix)
    write_truth(folder / "truth.ibin", ids, distances.astype(np.float32))
    write_truth(folder / "truth.ivecs", ids)
    rows.tofile(folder / "base.bin")
    queries.tofile(folder / "queries.bin")
    ids.astype(np.uint32).tofile(folder / "truth.bin")
    with CoreNN.create(folder / "db", dim=128, metric="l2") as db:
        db.insert(list(range(ROWS)), rows)
    return folder


def asked(files: Path, *more: object, queries: str = "queries.npy", truth: str = "truth.ibin") -> list[object]:
    """Arguments for the database of `files`, without a process of its own unless it is asked for."""
    parts = ["eval", files / "db", "--queries", files / queries, "--results", files / truth, "-k", K, "--repeat", 1]
    return [*parts, *more, *([] if "--fresh" in more else ["--no-fresh"])]


# --- modes ------------------------------------------------------------------------------------------------------------


@pytest.mark.few(2)
@pytest.mark.compiled
@pytest.mark.parametrize(
    ("base", "queries", "truth", "more"),
    [
        ("base.fvecs", "queries.fvecs", "truth.ivecs", ()),
        ("base.u8bin", "queries.u8bin", "truth.ivecs", ()),
        ("base.npy", "queries.bin", "truth.bin", ("--dim", 128)),
        ("base.bin", "queries.npy", "truth.ibin", ("--dim", 128)),
    ],
)
def test_files_of_every_kind(
    files: Path, tmp_path: Path, base: str, queries: str, truth: str, more: tuple[object, ...]
) -> None:
    path = tmp_path / "new"
    told = figures(
        "eval", path, "--vectors", files / base, "--queries", files / queries, "--results", files / truth, "-k", K,
        "--no-fresh", "--repeat", 1, *more,
    )  # fmt: skip
    assert told["inserted"] == told["rows"] == ROWS and told["queries"] == QUERIES
    assert told["recall"] > 0.98 and told["recall_by"] == "distance"
    assert told["recall_1"] <= told["recall_1_at_k"] <= 1
    assert told["build_s"] >= told["insert_s"] > 0 and told["build_peak_rss"] > 1e7
    assert figures("stats", path)["dtype"] == ("u8" if base == "base.u8bin" else "f32")


@pytest.mark.compiled
def test_one_file_of_ann_benchmarks_is_enough(tmp_path: Path, embeddings: Sample) -> None:
    h5py = pytest.importorskip("h5py")
    rows, queries = embeddings[0][:800], embeddings[1][:30]
    ids, distances = exact_neighbours(rows, queries, 15, "cosine")
    path = tmp_path / "small-384-angular.hdf5"
    with h5py.File(path, "w") as file:
        file.attrs["distance"] = "angular"
        file["train"], file["test"] = rows, queries
        file["neighbors"], file["distances"] = ids.astype(np.int32), distances.astype(np.float32)
    told = figures(
        "eval", tmp_path / "db", "--vectors", path, "--queries", path, "--results", path, "-k", 10, "--no-fresh"
    )
    assert told["recall"] > 0.95 and told["recall_by"] == "distance"
    assert figures("stats", tmp_path / "db")["metric"] == "cosine"


@pytest.mark.compiled
def test_sizes_memory_and_a_new_process(files: Path) -> None:
    told = figures(*asked(files, "--fresh"))
    fresh = told["fresh"]
    assert min(fresh[name] for name in ("import_s", "open_s", "first_query_s")) > 0
    assert fresh["first_answer_s"] >= fresh["import_s"] + fresh["open_s"] + fresh["first_query_s"] - 0.001
    assert fresh["rss_peak"] >= fresh["rss"] > 1e7
    assert fresh["pages_per_query"]["faults"] > 0  # every page of a file has to be mapped once
    assert told["memory"]["vectors"] == ROWS * 128 * 4 and told["disk_bytes"] > ROWS * 128 * 4
    assert "fresh" not in figures(*asked(files))


@pytest.mark.compiled
def test_a_sweep_gives_the_speed_at_each_recall(files: Path) -> None:
    told = figures(*asked(files, "--recalls", "0.99,0.6,0.97", "--repeat", 2))["targets"]
    assert [target["target"] for target in told] == [0.6, 0.97, 0.99]
    low, *others = told
    assert low["at_least"] and low["search_lists"] == [K] and low["recall"] > 0.6  # k is the shortest list there is
    for target in others:
        assert target["reached"] and 1 <= len(target["search_lists"]) <= 2
        assert target["qps"] == target["qps_high"] >= target["qps_low"] > 0
        if not target["at_least"]:
            below, above = target["search_lists"]
            recalls = [figures(*asked(files, "--search-list", length))["recall"] for length in (below, above)]
            assert recalls[0] < target["target"] <= recalls[1]
    assert others[1]["distances_per_query"] >= others[0]["distances_per_query"] > 10


@pytest.mark.compiled
def test_an_evaluation_is_added_to_the_log(files: Path, tmp_path: Path) -> None:
    more = ("--recalls", "0.97,0.9999", "--scale", 1, "--repeat", 2, "--search-list", 40, "--out", tmp_path / "log")
    told = figures(*asked(files, *more, "--fresh"))
    figures(*asked(files, "--out", tmp_path / "log"))
    lines = [json.loads(line) for line in (tmp_path / "log" / "runs.jsonl").read_text().splitlines()]
    assert not [fault for line in lines for fault in faults(line)]
    first, *points = [line for line in lines[:-1] if line["kind"] == "point"]
    assert first["query_params"] == {"search_list": 40} and first["params"]["max_edges"] == 32
    assert (first["recall"], first["qps_runs"]) == (told["recall"], told["qps_runs"]) and first["latency_ms"]["p99"] > 0
    assert (first["n"], first["dim"], first["k"], first["commit"]) == (ROWS, 128, K, commit())
    assert first["rss"]["steady"] == told["fresh"]["rss"] and first["open_seconds"] > 0
    assert [line["query_params"] for line in points] == [
        {"search_list": point["search_list"]} for point in told["points"] if point["search_list"] != 40
    ]
    targets = [line for line in lines if line["kind"] == "target"]
    assert [line["qps"] for line in targets] == [target["qps"] for target in told["targets"]]
    assert first["evaluation"]["scaling"] == told["scaling"] and lines[-1]["run"] != first["run"]
    page = figures("bench", "report", tmp_path / "log", "--no-plots")
    assert [each["label"] for each in page["parts"][0]["systems"]] == ["corenn eval"] and page["unread"] == 0


@pytest.mark.compiled
def test_a_recall_that_is_never_reached(files: Path, tmp_path: Path) -> None:
    """Half of the truth is other rows: more than half of it cannot be found."""
    ids = np.fromfile(files / "truth.bin", np.uint32).reshape(QUERIES, 20)[:, :K].astype(np.int64)
    ids[:, K // 2 :] = ROWS + 7
    write_truth(tmp_path / "half.ibin", ids)
    told = figures(
        "eval", files / "db", "--queries", files / "queries.npy", "--results", tmp_path / "half.ibin", "-k", K,
        "--recalls", "0.4,0.9", "--no-fresh", "--repeat", 1,
    )  # fmt: skip
    assert told["recall_by"] == "id" and 0.45 <= told["recall"] <= 0.5
    reached, missed = told["targets"]
    assert reached["reached"] and not missed["reached"] and missed["qps"] is None
    assert 0.45 <= missed["recall"] <= 0.5


@pytest.mark.compiled
def test_threads_and_clients(files: Path) -> None:
    told = figures(*asked(files, "--scale", 3, "--clients", 2))
    assert [each["threads"] for each in told["scaling"]] == [1, 2, 3]
    assert all(each["qps"] > 0 and each["clients_qps"] > 0 for each in told["scaling"])
    closed = told["closed_loop"]
    assert (closed["kind"], closed["clients"], closed["calls"]) == ("closed", 2, QUERIES)
    assert 0 < closed["p50_ms"] <= closed["p99_ms"] <= closed["max_ms"]


@pytest.mark.compiled
@pytest.mark.parametrize("arrivals", ["even", "poisson"])
def test_an_open_loop_has_the_rate_it_was_told(files: Path, arrivals: str) -> None:
    told = figures(*asked(files, "--open-loop", 400, "--duration", 0.5, "--arrivals", arrivals))["open_loop"]
    assert (told["kind"], told["offered"], told["calls"]) == ("open", 400, 200)
    assert told["rate"] == pytest.approx(400, rel=0.05)
    assert told["p50_ms"] >= told["service"]["p50_ms"] * 0.98  # latency has all that service has; two buckets apart
    assert told["seconds"] >= 0.45


@pytest.mark.compiled
def test_the_rate_that_holds_a_percentile(files: Path) -> None:
    told = figures(*asked(files, "--hold-p99", 1000, "--open-loop", 20_000, "--duration", 0.01))
    held = told["held"]
    assert held["rate"] > 0 and held["load"]["p99_ms"] <= 1_000 and held["tried"][0]["rate"] > 0
    never = figures(*asked(files, "--hold-p99", 0.001, "--duration", 0.001, "--open-loop", 1_000_000))["held"]
    assert never["rate"] is None and never["load"] is None and len(never["tried"]) > 1


@pytest.mark.compiled
def test_everything_as_a_table(files: Path) -> None:
    modes = ["--recalls", "0.5,0.99,1", "--scale", 2, "--clients", 2, "--open-loop", 5_000, "--duration", 0.02,
             "--hold-p99", 500, "--fresh", "--repeat", 2]  # fmt: skip
    shown = corenn(*asked(files, *modes, truth="truth.ivecs"))
    assert shown.exit_code == 0, shown.output
    flat = " ".join(shown.stdout.split())
    for part in (
        "recall@10", "(ties by distance)", "nearest row found", "slowest of 2", "at recall 0.5 ≥", "at recall 0.99",
        "2 threads", "2 clients", "offered 5,000/s", "p99 within 500 ms up to", "on disk", "in use",
        "new process opened", "resident",
    ):  # fmt: skip
        assert part in flat, part


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.compiled
def test_what_does_not_fit_is_refused(files: Path, tmp_path: Path) -> None:
    assert "--recalls 0.9,1.1" in refused(*asked(files, "--recalls", "0.9,1.1"))
    assert "--recalls many" in refused(*asked(files, "--recalls", "many"))
    assert "--arrivals bursts" in refused(*asked(files, "--arrivals", "bursts"))
    np.save(tmp_path / "short.npy", np.zeros((3, 7), np.float32))
    told = refused(
        "eval", files / "db", "--queries", tmp_path / "short.npy", "--results", files / "truth.ibin", "-k", 5
    )
    assert "short.npy: 7 dimensions" in told and "128" in told
    told = refused(
        "eval", files / "db", "--queries", files / "queries.npy", "--results", files / "truth.ibin", "-k", 21
    )
    assert "20 neighbours of 60 queries; needs 21 or more of 60" in told
    (tmp_path / "torn.fvecs").write_bytes((files / "queries.fvecs").read_bytes()[:-3])
    told = refused(
        "eval", files / "db", "--queries", tmp_path / "torn.fvecs", "--results", files / "truth.ibin", "-k", 5
    )
    assert "torn.fvecs" in told
    write_truth(tmp_path / "cut.ibin", np.where(np.arange(K) < 3, 1, -1) * np.ones((QUERIES, 1), np.int64))
    told = refused(
        "eval", files / "db", "--queries", files / "queries.npy", "--results", tmp_path / "cut.ibin", "-k", K
    )
    assert "fewer than 10 true neighbours" in told


# --- the judge --------------------------------------------------------------------------------------------------------


def judged(
    rows: NDArray[np.float32], query: list[float], truth: list[int], found: list[int], *, exact: bool = True,
    keys: Any = int, metric: str = "l2",
) -> tuple[Judge, tuple[float, float, float]]:  # fmt: skip
    """The judge, and what it gives to an answer of these rows."""

    class Answer:
        def __init__(self) -> None:
            self.keys = [keys(row) for row in found]

    queries = np.array([query], np.float32)
    with CoreNN.in_memory(dim=rows.shape[1], metric=metric) as db:
        db.insert([keys(row) for row in range(len(rows))], rows)
        judge = Judge(db, queries, np.array([truth], np.int64), exact_vectors=exact)
        recalls = judge.recalls([Answer()])  # type: ignore[list-item]
    return judge, (recalls.recall, recalls.recall_1, recalls.recall_1_at_k)


LINE = np.array([[0.0, 0], [1, 0], [0, 1], [-1, 0], [2, 0], [3, 0]], np.float32)  # 1, 2 and 3 are tied around 0


@pytest.mark.parametrize("keys", [int, str])
@pytest.mark.parametrize(
    ("found", "by_distance", "by_id"),
    [
        ([0, 1, 2], (1, 1, 1), (1, 1, 1)),
        ([0, 3, 2], (1, 1, 1), (2 / 3, 1, 1)),  # 3 is as near as 1
        ([3, 2, 1], (1, 0, 0), (2 / 3, 0, 0)),
        ([1, 0, 4], (2 / 3, 0, 1), (2 / 3, 0, 1)),
        ([4, 5], (0, 0, 0), (0, 0, 0)),
        ([], (0, 0, 0), (0, 0, 0)),
    ],
)
def test_ties_count_by_distance(found: list[int], by_distance: Any, by_id: Any, keys: Any) -> None:
    judge, recalls = judged(LINE, [0, 0], [0, 1, 2], found, keys=keys)
    assert judge.by == "distance" and recalls == pytest.approx(by_distance)
    judge, recalls = judged(LINE, [0, 0], [0, 1, 2], found, keys=keys, exact=False)
    assert judge.by == "id" and recalls == pytest.approx(by_id)


def test_truth_that_names_rows_that_are_not_there_is_counted_by_id() -> None:
    judge, recalls = judged(LINE, [0, 0], [0, 99, 98], [0, 1, 2])
    assert judge.by == "id" and recalls == pytest.approx((1 / 3, 1, 1))


def test_keys_and_truth_that_cannot_be_judged() -> None:
    with pytest.raises(InvalidArgumentError, match="not row numbers, such as 'photo 0'"):
        judged(LINE, [0, 0], [0], [0], keys=lambda row: f"photo {row}", exact=False)
    with pytest.raises(InvalidArgumentError, match="query 0 has fewer than 2 true neighbours"):
        judged(LINE, [0, 0], [0, -1], [0])


def test_the_judge_of_many_queries_agrees_with_exact_search(sift: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """In small blocks, and with answers of which every third is a row that is not near."""
    monkeypatch.setattr("corenn.bench.judge.BLOCK_BYTES", 40_000)
    rows, queries = sift[0][:300], sift[1][:40]
    truth, distances = exact_neighbours(rows, queries, 6, "l2")
    found = truth.copy()
    found[:, ::3] = np.random.default_rng(0).integers(0, 300, (40, 2))
    near = ((rows[found] - queries[:, None, :]) ** 2).sum(axis=2)

    class Answer:
        def __init__(self, keys: list[int]) -> None:
            self.keys = keys

    with CoreNN.in_memory(dim=128, metric="l2") as db:
        db.insert(list(range(300)), rows)
        judge = Judge(db, queries, truth, exact_vectors=True)
        recalls = judge.recalls([Answer(line) for line in found.tolist()])  # type: ignore[misc]
    assert recalls.recall == pytest.approx(float((near <= distances[:, -1:] * (1 + 1e-6)).mean()))
    assert recalls.recall_1 == pytest.approx(float((near[:, 0] <= distances[:, 0] * (1 + 1e-6)).mean()))
