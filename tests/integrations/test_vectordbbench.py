"""Our VectorDBBench client under its real base class. Skipped where vectordb-bench is not installed.

Rules out a client that cannot be pickled, opened in other processes or read beside a writer, rows that are lost or
inserted twice, somebody else's folder being dropped, an index of other settings being taken for the same, and a case
that does not run from loading to its result file.
"""

from __future__ import annotations

import json
import multiprocessing
import pickle
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corenn import CoreNN, NotADatabaseError
from corenn.bench.recall import exact_neighbours
from tests.conftest import Sample

HERE = Path(__file__).parents[2] / "integrations" / "vectordbbench"
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # theirs
    pytest.mark.compiled,
    pytest.mark.skipif(find_spec("vectordb_bench") is None, reason="vectordb-bench is not installed"),
]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Make a client; keyword arguments are those of its two configurations."""
    monkeypatch.chdir(tmp_path)  # the benchmark writes its log to the working directory
    monkeypatch.syspath_prepend(HERE)
    from corenn_client import CoreNN as Client
    from corenn_client import CoreNNConfig, CoreNNIndexConfig
    from vectordb_bench.backend.clients.api import DBCaseConfig, DBConfig, MetricType, VectorDB

    assert issubclass(Client, VectorDB) and issubclass(CoreNNConfig, DBConfig)
    assert issubclass(CoreNNIndexConfig, DBCaseConfig)

    def make(dim: int, drop_old: bool = False, metric: str = "L2", **options: Any) -> Any:
        case = CoreNNIndexConfig(**options)
        case.metric_type = MetricType(metric)  # as the benchmark sets it
        config = CoreNNConfig(path=str(tmp_path / "kept")).to_dict()
        return Client(dim=dim, db_config=config, db_case_config=case, drop_old=drop_old, with_scalar_labels=False)

    yield make


def search(client: Any, queries: Any, k: int) -> list[list[int]]:
    """In whatever process this is called."""
    with client.init():
        return [client.search_embedding(query, k) for query in queries]


def load(client: Any, rows: Any, first: int = 0, threads: int = 1) -> None:
    """As the benchmark loads: batches as lists, from several threads."""
    starts = range(0, len(rows), 500)
    with client.init(), ThreadPoolExecutor(threads) as pool:
        done = pool.map(
            lambda at: client.insert_embeddings(
                rows[at : at + 500].tolist(),
                list(range(first + at, first + min(at + 500, len(rows)))),
                labels_data=None,
            ),
            starts,
        )
        assert [error for _, error in done] == [None] * len(starts)


def test_load_and_search_in_other_processes(made: Any, sift: Sample) -> None:
    rows, queries = sift[0][:3_000], sift[1][:30]
    truth = exact_neighbours(rows, queries, 10, "l2")[0]
    client = made(128, drop_old=True, search_list=64)
    assert client.thread_safe and not client.need_normalize_cosine()
    load(client, rows, threads=4)
    with client.init():
        client.optimize(data_size=len(rows))
    again = pickle.loads(pickle.dumps(client))  # noqa: S301 - our own bytes
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        for found in pool.map(search, [again, again], [queries.tolist()] * 2, [10, 10]):
            assert all(type(row) is int for row in found[0])
            shares = [len(set(ids) & set(known)) for ids, known in zip(found, truth.tolist(), strict=True)]
            assert sum(shares) >= 0.95 * 10 * len(queries)
    assert len(search(made(128, search_list=64), queries[:1], 100)[0]) == 100


def test_a_reader_sees_what_a_writer_beside_it_inserts(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from corenn_client import client as module

    rows = np.eye(6, dtype=np.float32)
    writer = made(6, drop_old=True)
    load(writer, rows[:3])
    monkeypatch.setattr(module, "REFRESH_SECONDS", 0.0)
    reader = pickle.loads(pickle.dumps(writer))  # noqa: S301 - our own bytes
    with reader.init(), writer.init():
        assert sorted(reader.search_embedding(rows[4].tolist(), 6)) == [0, 1, 2]
        assert writer.insert_embeddings(rows[3:].tolist(), [3, 4, 5]) == (3, None)
        assert reader.search_embedding(rows[4].tolist(), 6)[0] == 4


def test_a_batch_that_fails_is_reported_and_leaves_nothing(made: Any) -> None:
    client = made(3, drop_old=True)
    with client.init():
        assert client.insert_embeddings([[1, 2, 3]], [7]) == (1, None)
        count, error = client.insert_embeddings([[4, 5, 6], [1, 2, 3]], [8, 7])
        assert count == 0 and "exists already" in str(error)
        assert client.search_embedding([4, 5, 6], 10) == [7]
        assert client.insert_embeddings([[4, 5, 6]], [8]) == (1, None)
        count, error = client.insert_embeddings([[1, 1, 1]], [9], tenant_labels_data=["a"])
        assert count == 0 and isinstance(error, NotImplementedError)


def test_only_what_is_ours_is_dropped(made: Any, tmp_path: Path) -> None:
    client = made(3, drop_old=True)
    with client.init():
        with pytest.raises(NotADatabaseError):
            client.search_embedding([1, 2, 3], 1)
        client.insert_embeddings([[1, 2, 3]], [1])
    path = next((tmp_path / "kept").iterdir())
    with made(3).init():
        pass
    assert path.exists()
    made(3, drop_old=True)
    assert not path.exists()
    path.mkdir()
    (path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="no CoreNN database"):
        made(3, drop_old=True)
    assert (path / "mine.txt").exists()


def test_settings_of_another_index_are_refused(made: Any) -> None:
    load(made(3, drop_old=True), np.ones((2, 3)))
    for options in ({"metric": "COSINE"}, {"max_edges": 16}, {"dtype": "f16"}):
        with pytest.raises(ValueError, match="drop it"), made(3, **options).init():
            pass
    with pytest.raises(ValueError, match="drop it"), made(4).init():
        pass
    with pytest.raises(ValueError, match="HAMMING"):
        made(3, metric="HAMMING")


def test_filters_and_payloads_are_not_pretended(made: Any) -> None:
    from vectordb_bench.backend.filter import FilterOp, IntFilter, LabelFilter, non_filter
    from vectordb_bench.backend.payload import PayloadProfile

    client = made(3, drop_old=True)
    assert type(client).filter_supported(non_filter) and client.supported_filter_types == [FilterOp.NonFilter]
    client.prepare_filter(non_filter)
    for filters in (IntFilter(int_value=3), LabelFilter(label_percentage=0.5)):
        assert not type(client).filter_supported(filters)
        with pytest.raises(ValueError, match="no filters"):
            client.prepare_filter(filters)
    assert client.supports_payload_profile(PayloadProfile.IDS_ONLY)
    assert not client.supports_payload_profile(PayloadProfile.VECTOR)
    assert not client.supports_multitenant() and not client.supports_full_text_search()


@pytest.mark.slow
def test_a_case_runs_from_files_to_its_result(tmp_path: Path, sift: Sample) -> None:
    """prepare.py and run.py as a user calls them; the processes are those of the benchmark."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "sift-128-euclidean.hdf5", "w") as file:
        file.attrs["distance"] = "euclidean"
        file["train"], file["test"] = sift[0], sift[1][:50]
    prepared, out = tmp_path / "data", tmp_path / "out"

    def run(*arguments: object) -> str:
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=280,
            cwd=tmp_path,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3_000:]
        return done.stdout

    run(HERE / "prepare.py", tmp_path / "sift-128-euclidean.hdf5", prepared, "--rows", 4_000)
    told = run(HERE / "run.py", prepared, "--metric", "l2", "--out", out, "-k", 10, "--seconds", 1, "--concurrency", 1)
    metrics = json.loads(told)
    assert metrics["recall"] >= 0.97 and metrics["inserted_count"] == 4_000 and metrics["qps"] > 0
    (result,) = (out / "CoreNN").glob("*.json")
    kept = json.loads(result.read_text())["results"][0]
    assert kept["task_config"]["db"] == "CoreNN" and kept["metrics"]["recall"] == metrics["recall"]
    with CoreNN.open(next(out.glob("*.corenn")), mode="r") as db:
        assert len(db) == 4_000
