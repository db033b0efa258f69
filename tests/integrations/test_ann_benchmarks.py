"""Our ann-benchmarks module, driven as that harness drives it.

Rules out a module that the harness cannot find or construct from its config.yml, answers that are no row numbers of the
training set or too few, low recall, distances that are not counted per setting, and memory in another unit.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from corenn import InvalidSettingError
from corenn.bench.recall import exact_neighbours
from corenn.errors import InvalidArgumentError
from tests.conftest import Sample
from tests.integrations.standins import ANN_BENCHMARKS, INTEGRATIONS, plant, product

yaml = pytest.importorskip("yaml")
FOLDER = "ann_benchmarks/algorithms"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    root = tmp_path / "harness"
    load = plant(
        monkeypatch, root / FOLDER, {name.removeprefix(f"{FOLDER}/"): text for name, text in ANN_BENCHMARKS.items()},
        "ann_benchmarks",
    )  # fmt: skip
    monkeypatch.syspath_prepend(root)
    return load("ann_benchmarks.algorithms.corenn.module")


def definitions() -> list[tuple[dict[str, Any], list[Any], list[list[Any]]]]:
    """As the harness expands them: algorithm, constructor arguments with @metric, groups of query arguments."""
    config = yaml.safe_load((INTEGRATIONS / "ann_benchmarks/corenn/config.yml").read_text())
    found = []
    for algorithm in config["float"]["any"]:
        for group in algorithm["run_groups"].values():
            for arguments in product(group["arg_groups"]):
                queries = product(group["query_args"])
                found.append((algorithm, [*algorithm["base_args"], *arguments], queries))
    return found


def test_the_config_names_what_is_there(module: Any) -> None:
    for algorithm, arguments, queries in definitions():
        assert set(algorithm) >= {"base_args", "constructor", "docker_tag", "module", "name", "run_groups"}
        found = importlib.import_module(f"{algorithm['module']}.module")
        constructor = getattr(found, algorithm["constructor"])
        base = importlib.import_module("ann_benchmarks.algorithms.base.module").BaseANN
        assert issubclass(constructor, base)
        assert arguments[0] == "@metric" and len(arguments) == 2
        algo = constructor("euclidean", arguments[1])
        for group in queries:
            algo.set_query_arguments(*group)
            assert str(algo) == algo.name
            assert all(f"{name}={value}" in str(algo) for name, value in arguments[1].items())
            assert f"search_list={group[0]}" in str(algo)
        algo.done()
    names = [str(queries) + str(arguments) for _, arguments, queries in definitions()]
    assert len(names) == len(set(names)) >= 4


def test_metrics_and_settings_that_do_not_exist_are_refused(module: Any) -> None:
    for metric in ("hamming", "jaccard"):
        with pytest.raises(InvalidArgumentError, match=metric):
            module.CoreNN(metric, {})
    with pytest.raises(InvalidSettingError, match="ef"):
        module.CoreNN("euclidean", {"ef": 1})


@pytest.mark.compiled
@pytest.mark.parametrize("metric", ["euclidean", "angular"])
@pytest.mark.parametrize("batch", [False, True])
def test_a_run(module: Any, metric: str, batch: bool, sift: Sample, embeddings: Sample) -> None:
    rows, queries = sift if metric == "euclidean" else embeddings
    rows, queries, count = rows[:3_000], queries[:60], 10
    ours = {"euclidean": "l2", "angular": "cosine"}[metric]
    _, truth = exact_neighbours(rows, queries, count, ours)
    algo = module.CoreNN(metric, {"max_edges": 32, "update_search_list_cap": 96})
    before = algo.get_memory_usage()
    algo.fit(rows)
    assert algo.get_memory_usage() == pytest.approx(psutil.Process().memory_info().rss / 1024, rel=0.2)
    assert algo.get_memory_usage() > 0.5 * before
    worked = []
    for search_list in (5, 40, 200):  # one of them below the number of neighbours
        algo.set_query_arguments(search_list)
        assert algo.get_additional() == {"dist_comps": 0}
        if batch:
            algo.batch_query(queries, count)
            results = algo.get_batch_results()
        else:
            results = [algo.query(query, count) for query in queries]
        assert len(results) == len(queries)
        recall = 0
        for query, found, known in zip(queries, results, truth, strict=True):
            ids = [int(row) for row in found]  # the harness indexes the training set with them
            assert np.asarray(found).dtype.kind == "i"
            assert len(ids) == count == len(set(ids)) and 0 <= min(ids) <= max(ids) < len(rows)
            recall += sum(distance(query, rows[row], metric) <= edge(known[-1], metric) + 1e-3 for row in ids)
        worked.append(algo.get_additional()["dist_comps"] / len(queries))
        assert recall / (count * len(queries)) >= (0.6 if search_list == 5 else 0.95)
    assert count < worked[0] < worked[1] < worked[2] <= len(rows)
    algo.done()


def distance(query: Any, row: Any, metric: str) -> float:
    """As the harness measures it."""
    if metric == "euclidean":
        return float(np.linalg.norm(query - row))
    return 1 - float(query @ row / (np.linalg.norm(query) * np.linalg.norm(row)))


def edge(known: float, metric: str) -> float:
    """The k-th distance in the unit of the harness."""
    return float(np.sqrt(known)) if metric == "euclidean" else float(known)


def test_fewer_rows_than_neighbours_are_all_found_and_nothing_is_made_up(module: Any, rng: np.random.Generator) -> None:
    rows = rng.normal(size=(4, 5)).astype(np.float32)
    algo = module.CoreNN("euclidean", {})
    algo.fit(rows)
    algo.set_query_arguments(10)
    assert sorted(algo.query(rows[0], 10).tolist()) == [0, 1, 2, 3]
    algo.batch_query(rows[:2], 10)
    assert [sorted(found) for found in algo.get_batch_results().tolist()] == [[0, 1, 2, 3]] * 2
    assert algo.query(rows[3], 1).tolist() == [3]
    algo.fit(rows[:2])  # again, on other data
    assert sorted(algo.query(rows[0], 10).tolist()) == [0, 1]
    algo.done()
    algo.done()
