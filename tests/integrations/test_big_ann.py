"""Our big-ann-benchmarks modules, driven as that harness drives them.

Rules out modules that the harness cannot find or construct from their config.yaml, vectors that change their value on
the way in, deleted or replaced rows that come back, hits that do not match their filter or are fewer than match, range
results that miss or invent rows, and an index that cannot be opened again or stored and fetched.
"""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corenn import CoreNN
from corenn.bench.harness import fill, list_for, range_search
from corenn.bench.recall import MISSING, distances_of, exact_neighbours, recall_by_distance
from corenn.config import MAX_SEARCH_LIST
from corenn.errors import InvalidArgumentError
from tests.conftest import Sample
from tests.integrations.standins import BIG_ANN, INTEGRATIONS, DataSet, Load, plant

yaml = pytest.importorskip("yaml")
sparse = pytest.importorskip("scipy.sparse")
CONFIGS = {
    "plain": "algos-corenn.yaml",
    "streaming": "neurips23/streaming/corenn/config.yaml",
    "filter": "neurips23/filter/corenn/config.yaml",
}
PLAIN, STREAMING, FILTER = (
    "benchmark.algorithms.corenn", "neurips23.streaming.corenn.corenn", "neurips23.filter.corenn.corenn",
)  # fmt: skip
SMALL = {"max_edges": 32, "update_search_list_cap": 96}


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Load:
    return plant(monkeypatch, tmp_path, BIG_ANN, "big_ann")


def offer(load: Load, name: str, ds: DataSet) -> DataSet:
    """Make the harness know a data set."""
    load("benchmark.datasets").DATASETS[name] = lambda: ds
    return ds


def recall(found: Any, rows: Any, queries: Any, k: int, metric: str, ids: Any = None) -> float:
    """Recall@k of row numbers against exact distances over all rows, or over those in `ids`."""
    base = rows if ids is None else rows[ids]
    truth = exact_neighbours(base.astype(np.float32), queries, k, metric)[1]
    return recall_by_distance(distances_of(found, rows.astype(np.float32), queries, metric), truth, k)


@pytest.mark.parametrize("track", CONFIGS)
def test_the_config_names_what_is_there(load: Load, track: str) -> None:
    config = yaml.safe_load((INTEGRATIONS / "big_ann" / CONFIGS[track]).read_text())
    assert "random-xs" in config  # the harness falls back on it for a data set that is not named
    for dataset, algorithms in config.items():
        for algorithm in algorithms.values():
            assert set(algorithm) == {"docker-tag", "module", "constructor", "base-args", "run-groups"}
            constructor = getattr(load(algorithm["module"]), algorithm["constructor"])
            assert issubclass(constructor, importlib.import_module("benchmark.algorithms.base").BaseANN)
            assert algorithm["base-args"] == ["@metric"]
            for group in algorithm["run-groups"].values():
                for arguments in json.loads(group["args"]):
                    algo = constructor("euclidean", arguments)
                    queries = json.loads(group["query-args"])
                    assert queries, dataset
                    for each in queries:
                        algo.set_query_arguments(each)
                        assert str(algo) == algo.name and str(each) in str(algo)


def test_other_metrics_are_refused(load: Load) -> None:
    for name in (PLAIN, STREAMING, FILTER):
        with pytest.raises(InvalidArgumentError, match="hamming"):
            load(name).CoreNN("hamming", {})
    with pytest.raises(InvalidArgumentError, match="float64"):
        load(STREAMING).CoreNN("euclidean", {}).setup("float64", 10, 4)


def test_a_search_list_has_room_for_the_answer() -> None:
    assert [list_for(10, 5), list_for(10, 20), list_for(10, None)] == [10, 20, None]
    assert list_for(MAX_SEARCH_LIST, 5) == MAX_SEARCH_LIST and list_for(MAX_SEARCH_LIST + 1, 5) is None


# --- plain ------------------------------------------------------------------------------------------------------------


@pytest.mark.compiled
@pytest.mark.parametrize(("dtype", "metric"), [("uint8", "euclidean"), ("int8", "ip"), ("float32", "angular")])
def test_plain(load: Load, sift: Sample, dtype: str, metric: str) -> None:
    rows, queries = sift[0][:2_500], sift[1][:50]
    if dtype == "int8":
        rows, queries = rows - 120, queries - 120
    ds = offer(load, "sample", DataSet(rows.astype(dtype), queries.astype(dtype)))
    module = load(PLAIN)
    algo = module.CoreNN(metric, SMALL)
    assert algo.track() == "T1" and algo.get_memory_usage() > 1_000
    assert algo.load_index("sample") is False
    algo.fit("sample")
    algo.set_query_arguments({"search_list": 64, "threads": 1})
    algo.query(ds.get_queries(), 10)
    first = algo.get_results()
    assert first.shape == (50, 10) and first.dtype == np.int32
    ours = {"euclidean": "l2", "ip": "ip", "angular": "cosine"}[metric]
    assert recall(first, ds.rows, ds.get_queries(), 10, ours) >= 0.9
    spent = algo.get_additional()["dist_comps"]
    assert 50 * 10 < spent < 50 * len(rows)
    algo.done()
    again = module.CoreNN(metric, SMALL)
    assert again.load_index("sample") is True
    again.set_query_arguments({"search_list": 64, "threads": 1})
    again.query(ds.get_queries(), 10)
    assert np.array_equal(again.get_results(), first)
    again.done()
    other = module.CoreNN(metric, {"max_edges": 16})
    assert other.load_index("sample") is False, "an index of other parameters is another one"


def test_vectors_are_stored_as_they_are(load: Load, rng: np.random.Generator) -> None:
    """The harness hands out whole numbers as float32; int8 stored from those would be quantized."""
    for dtype in ("int8", "uint8", "float32"):
        low = -128 if dtype == "int8" else 0
        rows = rng.integers(low, low + 256, (40, 6)).astype(dtype)
        offer(load, dtype, DataSet(rows, rows[:1]))
        plain, stream = load(PLAIN).CoreNN("euclidean", {}), load(STREAMING).CoreNN("euclidean", {})
        plain.fit(dtype)
        stream.setup(dtype, 40, 6)
        stream.insert(rows.astype(np.float32), np.arange(40, dtype=np.uint32))
        for algo in (plain, stream):
            stored = np.stack([record.vector for record in algo._db.get(list(range(40)))])
            assert np.array_equal(stored, rows)
            algo.done()


def test_an_index_travels_as_its_files_to_store(load: Load, rng: np.random.Generator, tmp_path: Path) -> None:
    rows = rng.normal(size=(60, 4)).astype(np.float32)
    offer(load, "sample", DataSet(rows, rows[:5]))
    algo = load(PLAIN).CoreNN("euclidean", {})
    folder, prefix, names = algo.index_files_to_store("sample")  # asked before anything is there, to download to
    assert Path(folder).is_dir() and Path(folder).is_relative_to(tmp_path / "data" / "indices")
    assert load("benchmark.datasets").DATASETS["sample"]().short_name() in folder
    algo.fit("sample")
    assert algo.index_files_to_store("sample") == (folder, prefix, names)
    stored = [tmp_path / name for name in names]
    for name, copy in zip(names, stored, strict=True):
        shutil.copy(f"{folder}/{prefix}{name}", copy)
    algo.done()
    shutil.rmtree(tmp_path / "data")
    algo = load(PLAIN).CoreNN("euclidean", {})
    folder, prefix, names = algo.index_files_to_store("sample")
    for name, copy in zip(names, stored, strict=True):
        shutil.copy(copy, f"{folder}/{prefix}{name}")
    assert algo.load_index("sample")
    algo.query(rows[:5], 1)
    assert algo.get_results().ravel().tolist() == [0, 1, 2, 3, 4]
    algo.done()


@pytest.mark.parametrize("metric", ["euclidean", "ip"])
def test_range_results(load: Load, metric: str, rng: np.random.Generator) -> None:
    """Compared with all distances; the radius is squared under euclidean and the least product under ip."""
    rows, queries = rng.normal(size=(150, 3)).astype(np.float32), rng.normal(size=(8, 3)).astype(np.float32)
    queries[0] = 100  # nothing within its radius, under euclidean; everything or nothing under ip
    offer(load, "sample", DataSet(rows, queries, "range"))
    plain, stream = load(PLAIN).CoreNN(metric, {}), load(STREAMING).CoreNN(metric, {})
    plain.fit("sample")
    stream.setup("float32", 150, 3)
    stream.insert(rows, np.arange(150, dtype=np.uint32))
    wide = {"euclidean": ((queries[:, None] - rows) ** 2).sum(axis=2), "ip": queries @ rows.T}[metric]
    for radius in (0.5, 2.0, 60.0):
        for algo in (plain, stream):
            algo.range_query(queries, radius)
            lims, distances, ids = algo.get_range_results()
            assert lims.shape == (9,) and lims[0] == 0 and lims[-1] == len(ids) == len(distances)
            for at in range(8):
                found, known = ids[lims[at] : lims[at + 1]], distances[lims[at] : lims[at + 1]]
                expected = np.flatnonzero(wide[at] <= radius if metric == "euclidean" else wide[at] >= radius)
                assert sorted(found.tolist()) == expected.tolist()
                assert np.allclose(known, wide[at, found], rtol=1e-4, atol=1e-4)
    assert plain.get_additional()["dist_comps"] > 0
    plain.done()
    stream.done()


@pytest.mark.slow
@pytest.mark.compiled
def test_ranges_wider_than_any_search_list() -> None:
    """More hits than the longest search list has room for, with and without one that was set."""
    rows = np.zeros((MAX_SEARCH_LIST + 500, 1), np.float32)
    rows[:10] = 5
    with CoreNN.in_memory(dim=1, metric="l2", max_edges=4, update_search_list_cap=8) as db:
        fill(db, [rows])
        for options in ({}, {"search_list": 40}):
            lims, distances, ids, _ = range_search(db, np.zeros((1, 1), np.float32), 1.0, **options)
            assert lims.tolist() == [0, len(rows) - 10] and len(set(ids.tolist())) == len(rows) - 10
            assert ids.min() == 10 and not distances.any()


# --- streaming --------------------------------------------------------------------------------------------------------


@pytest.mark.compiled
def test_streaming(load: Load, sift: Sample) -> None:
    """A runbook of inserts, deletes, replaces and searches, as the harness plays it, against a dict of live rows."""
    rows, queries = sift[0][:4_000].astype(np.uint8), sift[1][:40]
    algo = load(STREAMING).CoreNN("euclidean", SMALL)
    assert algo.track() == "stream" and algo.load_index("sample") is False
    algo.setup("uint8", 3_000, 128)
    algo.set_query_arguments({"search_list": 64, "threads": 2})
    live: dict[int, int] = {}

    def search() -> None:
        algo.query(queries, 10)
        tags = algo.get_results()
        assert tags.shape == (40, 10) and set(tags.ravel().tolist()) <= set(live)
        vectors = np.vectorize(live.get)(tags)
        assert recall(vectors, rows, queries, 10, "l2", np.array(sorted(live.values()))) >= 0.95

    for _ in range(2):  # the harness plays it once for each set of query arguments
        live.clear()
        assert algo.get_additional()["dist_comps"] == 0
        algo.insert(rows[:2_000], np.arange(2_000, dtype=np.uint32))
        live.update(zip(range(2_000), range(2_000), strict=True))
        search()
        algo.delete(np.arange(0, 1_500, dtype=np.uint32))
        for tag in range(1_500):
            del live[tag]
        search()
        algo.insert(rows[0:500], np.arange(0, 500, dtype=np.uint32))  # the same tags once more
        live.update(zip(range(500), range(500), strict=True))
        algo.replace(rows[3_000:3_400], np.arange(1_500, 1_900, dtype=np.uint32))
        live.update(zip(range(1_500, 1_900), range(3_000, 3_400), strict=True))
        search()
        told = algo.get_additional()
        assert told["dist_comps"] > 0 and 0 < told["tombstones"] <= 1_900
        algo.set_query_arguments({"search_list": 96})
    algo.delete(np.arange(2, 2_000, dtype=np.uint32))
    algo.insert(rows[:2], np.arange(2, dtype=np.uint32))
    algo.query(queries[:1], 4)
    assert sorted(algo.get_results()[0].tolist()) == [MISSING, MISSING, 0, 1]
    algo.done()


# --- filter -----------------------------------------------------------------------------------------------------------


def csr(words: list[list[int]], width: int) -> Any:
    """A matrix whose row i holds ones at `words[i]`."""
    indptr = np.cumsum([0, *map(len, words)])
    indices = np.array([word for row in words for word in row], np.int32)
    return sparse.csr_matrix((np.ones(len(indices), np.float32), indices, indptr), shape=(len(words), width))


def check_filtered(
    algo: Any, rows: Any, queries: Any, words: list[set[int]], asked: list[list[int]], k: int, metric: str = "l2"
) -> float:
    """Every hit matches, there are min(k, matching) of them, none twice, the nearest first; the mean recall."""
    algo.filtered_query(queries, csr(asked, 64), k)
    found = algo.get_results()
    assert found.shape == (len(queries), k)
    recalls = []
    for query, wanted, hits in zip(queries, asked, found, strict=True):
        matching = np.array([row for row in range(len(rows)) if set(wanted) <= words[row]], np.int64)
        count = min(k, len(matching))
        ids = hits[:count].tolist()
        assert set(hits[count:].tolist()) <= {MISSING}
        assert len(set(ids)) == count and set(ids) <= set(matching.tolist())
        if count:
            distances = distances_of(hits[None, :count], rows, query[None], metric)
            assert (np.diff(distances[0]) >= -1e-3 * np.abs(distances[0]).max()).all()
            recalls.append(recall(hits[None, :count], rows, query[None], count, metric, matching))
    return float(np.mean(recalls)) if recalls else 1.0


@settings(max_examples=15)
@given(data=st.data(), metric=st.sampled_from(["euclidean", "ip", "angular"]))
def test_filtered_hits_match_and_are_as_many_as_there_are(
    data: st.DataObject, metric: str, tmp_path_factory: Any
) -> None:
    count = data.draw(st.integers(1, 60))
    words = data.draw(st.lists(st.sets(st.integers(0, 5)), min_size=count, max_size=count))
    asked = data.draw(st.lists(st.lists(st.integers(0, 7), unique=True), min_size=3, max_size=3))
    rows = np.random.default_rng(count).integers(-4, 5, (count, 3)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        load = plant(patch, tmp_path_factory.mktemp("harness"), BIG_ANN, "big_ann")
        offer(load, "sample", DataSet(rows, rows, "knn_filtered", csr([sorted(each) for each in words], 6)))
        algo = load(FILTER).CoreNN(metric, {})
        algo.fit("sample")
        ours = {"euclidean": "l2", "ip": "ip", "angular": "cosine"}[metric]
        queries = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
        for k in (1, 7, count + 3):
            assert check_filtered(algo, rows, queries, words, asked, k, ours) == 1
        algo.done()


@pytest.mark.compiled
def test_filters_of_every_selectivity(load: Load, sift: Sample) -> None:
    """From all rows to one: word w is on every 2^w-th row, and one word clusters away from the queries."""
    rows, queries = sift[0], sift[1][:12]
    far = set(np.argsort(((rows - queries.mean(axis=0)) ** 2).sum(axis=1))[-2_500:].tolist())
    words = [
        {word for word in range(12) if row % 2**word == 0} | ({20} if row in far else set()) for row in range(6_000)
    ]
    metadata = csr([sorted(each) for each in words], 64)
    offer(load, "sample", DataSet(rows.astype(np.uint8), queries, "knn_filtered", metadata))
    algo = load(FILTER).CoreNN("euclidean", SMALL)
    assert algo.track() == "filter" and not algo.load_index("sample")
    algo.fit("sample")
    algo.done()
    algo = load(FILTER).CoreNN("euclidean", SMALL)
    assert algo.load_index("sample")
    algo.set_query_arguments({"search_list": 48, "threads": 2})
    scans = []
    for asked in ([], [0], [1], [3], [0, 1, 2], [6], [11], [20], [1, 20], [13], [63]):
        before = algo.get_additional()["dist_comps"]
        assert check_filtered(algo, rows, queries, words, [asked] * 12, 10) >= 0.95, asked
        scans.append((algo.get_additional()["dist_comps"] - before) / 12)
    assert 48 < scans[0] < 3_000, "all rows match: a walk, not a scan"
    assert scans[5] == len(range(0, 6_000, 64)), "few match: just those are looked at"
    assert scans[-1] == 0
    algo.query(queries, 10)
    assert recall(algo.get_results(), rows, queries, 10, "l2") >= 0.95
    algo.done()
