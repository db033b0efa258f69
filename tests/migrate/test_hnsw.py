"""Indexes of hnswlib as databases.

Rules out a key, vector, deleted mark or edge that is lost on the way, recall below that of the index at the same search
list, a database that is not whole or does not go on living, and one that appears although the migration failed.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corenn import CoreNN
from corenn.errors import CoreNNError, DatabaseExistsError, DatasetError, InvalidArgumentError, InvalidSettingError
from corenn.graph.insert import Linker
from corenn.kernels.search import DEGREE, FIRST_NEIGHBOUR
from corenn.migrate import HnswFile, Migrated, migrate_hnsw
from corenn.storage.format import ELECTED
from tests.conftest import Sample
from tests.crash.harness import environment
from tests.migrate.indexes import Floats, gaussian, make, save

compiled = pytest.mark.compiled


def migrated(index: Any, folder: Path, dim: int, metric: str = "l2", **options: Any) -> Migrated:
    """Make folder/database of an index of hnswlib."""
    with HnswFile(save(index, folder / "index"), dim) as source:
        return migrate_hnsw(source, folder / "database", metric=metric, **options)


def opened(folder: Path) -> CoreNN:
    """The database made of an index; it has no fault."""
    db = CoreNN.open(folder / "database")
    report = db.verify()
    assert report.ok, report
    return db


def share_found(found: Any, truth: Any) -> float:
    return float(np.mean([len(set(one) & set(other)) / len(other) for one, other in zip(found, truth, strict=True)]))


def recalls(db: CoreNN, index: Any, queries: Floats, search_list: int) -> tuple[float, float]:
    """Recall@10 of the database and of the index, both with the same search list."""
    index.set_ef(search_list)
    truth = [hits.keys for hits in db.query(queries, k=10, exact=True)]
    ours = [hits.keys for hits in db.query(queries, k=10, search_list=search_list)]
    return share_found(ours, truth), share_found(index.knn_query(queries, k=10)[0].tolist(), truth)


# --- recall -----------------------------------------------------------------------------------------------------------


@compiled
@pytest.mark.parametrize(("metric", "m"), [("l2", 4), ("l2", 16), ("cosine", 8), ("ip", 16)])
def test_recall_is_that_of_the_index_at_the_same_search_list(tmp_path: Path, sift: Sample, metric: str, m: int) -> None:
    base, queries = sift[0][:4000], sift[1]
    index = make(metric, base, m=m)
    migrated(index, tmp_path, 128, metric)
    with opened(tmp_path) as db:
        for search_list in (20, 40, 80):
            ours, theirs = recalls(db, index, queries, search_list)
            assert ours >= theirs - 0.01, search_list


@compiled
@pytest.mark.parametrize(("clusters", "m"), [(150, 6), (300, 4)])
def test_recall_holds_where_the_upper_levels_lead_from_cluster_to_cluster(
    tmp_path: Path, clusters: int, m: int
) -> None:
    random = np.random.default_rng(3)
    centres = random.normal(size=(clusters, 16))
    rows, queries, fresh = (
        (centres[random.integers(0, clusters, count)] + 0.02 * random.normal(size=(count, 16))).astype(np.float32)
        for count in (6000, 300, 800)
    )
    index = make("l2", rows, m=m, room=800)
    migrated(index, tmp_path, 16)
    with opened(tmp_path) as db:
        ours, theirs = recalls(db, index, queries, 15)
        assert ours >= theirs - 0.015  # of level 0 alone it is 0.025 to 0.03 less
        index.add_items(fresh, np.arange(6000, 6800))
        db.insert(range(6000, 6800), fresh)
        assert db._store.edges.header[ELECTED] > 6000  # the highest elements are no entries any more
        ours, theirs = recalls(db, index, queries, 15)
        assert ours >= theirs - 0.015


@compiled
def test_recall_holds_after_rows_are_inserted_into_both(tmp_path: Path) -> None:
    rows, fresh = gaussian(4000, 32), gaussian(600, 32, seed=1)
    index = make("l2", rows, m=6, room=600)
    migrated(index, tmp_path, 32)
    index.add_items(fresh, np.arange(4000, 4600))
    with opened(tmp_path) as db:
        db.insert(range(4000, 4600), fresh)
        assert db._store.edges.header[ELECTED] > 4000  # entries have been chosen anew
        for search_list in (20, 80):
            ours, theirs = recalls(db, index, gaussian(200, 32, seed=2), search_list)
            assert ours >= theirs - 0.01, search_list


@compiled
def test_recall_holds_among_deleted_elements(tmp_path: Path) -> None:
    rows = gaussian(4000, 12)
    index = make("l2", rows)
    for label in range(0, 4000, 2):
        index.mark_deleted(label)
    made = migrated(index, tmp_path, 12)
    assert (made.rows, made.deleted) == (2000, 2000)
    with opened(tmp_path) as db:
        assert db.stats().tombstones == 2000
        ours, theirs = recalls(db, index, gaussian(100, 12, seed=5), 40)
        assert ours >= theirs - 0.01
        assert all(key % 2 for hits in db.query(rows[:40], k=10) for key in hits.keys)


@compiled
def test_distances_are_those_of_the_index(tmp_path: Path) -> None:
    rows, queries = gaussian(1200, 8), gaussian(20, 8, seed=1)
    for metric in ("l2", "cosine", "ip"):
        index = make(metric, rows, m=16)
        index.set_ef(400)
        folder = tmp_path / metric
        folder.mkdir()
        migrated(index, folder, 8, metric)
        with opened(folder) as db:
            labels, distances = index.knn_query(queries, k=5)
            for hits, names, far in zip(
                db.query(queries, k=5, search_list=400), labels.tolist(), distances, strict=True
            ):
                assert hits.keys == names
                assert np.allclose(hits.distances, far, atol=1e-5)


# --- what is kept -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
@pytest.mark.parametrize(("dim", "m"), [(1, 2), (7, 5), (32, 24)])
def test_vectors_and_labels_are_kept(tmp_path: Path, metric: str, dim: int, m: int) -> None:
    labels = np.random.default_rng(2).permutation(np.concatenate((np.arange(80), 2**63 - 1 - np.arange(20))))
    index = make(metric, gaussian(100, dim), labels, m)
    made = migrated(index, tmp_path, dim, metric)
    assert made == Migrated(100, 0, 0, dim, metric, m, max(4, 2 * m))
    with opened(tmp_path) as db:
        assert list(db.keys()) == labels.tolist()
        assert db.settings.max_edges == max(4, 2 * m)
        for record, vector in zip(db.get(labels.tolist()), index.get_items(labels), strict=True):
            assert record is not None
            assert record.payload is None
            if metric == "cosine":  # of unit length as they stand in the index, and divided by it once more
                assert np.allclose(record.vector, vector, atol=1e-6)
            else:
                assert record.vector.tolist() == list(vector)


@compiled
def test_every_edge_of_level_0_is_kept_and_nothing_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the graph was searched")

    monkeypatch.setattr(Linker, "link", refuse)
    migrated(make("l2", gaussian(1500, 6), m=5), tmp_path, 6)
    with HnswFile(tmp_path / "index", 6) as source, opened(tmp_path) as db:
        given, edges = source.edges(0, 1500), db._store.edges.array
        for row in range(1500):
            kept = set(edges[row, FIRST_NEIGHBOUR : FIRST_NEIGHBOUR + edges[row, DEGREE]].tolist())
            assert kept >= set(given.neighbours[row, : given.degrees[row]].tolist())


def test_the_same_index_gives_the_same_graph(tmp_path: Path) -> None:
    index = make("cosine", gaussian(300, 6), m=4)
    graphs = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        migrated(index, tmp_path / name, 6, "cosine")
        with opened(tmp_path / name) as db:
            graphs.append(db._store.edges.array[:300].copy())
    assert (graphs[0] == graphs[1]).all()


def test_fewer_edges_than_the_index_has_are_pruned(tmp_path: Path) -> None:
    made = migrated(make("l2", gaussian(400, 6), m=16), tmp_path, 6, max_edges=4)
    assert made.max_edges == 4
    with opened(tmp_path) as db:
        assert db.settings.max_edges == 4
        assert db._store.edges.array[:400, DEGREE].max() <= 6


def test_an_m_beyond_the_most_edges_of_a_database_is_pruned(tmp_path: Path) -> None:
    index = make("l2", gaussian(900, 2), m=450)
    assert migrated(index, tmp_path, 2).max_edges == 512
    opened(tmp_path).close()


def test_deleted_labels_are_gone_and_free(tmp_path: Path) -> None:
    rows = gaussian(90, 4)
    index = make("l2", rows)
    for label in range(0, 90, 3):
        index.mark_deleted(label)
    migrated(index, tmp_path, 4)
    with opened(tmp_path) as db:
        assert len(db) == 60
        assert db.get([0, 3]) == [None, None]
        assert list(db.keys()) == [label for label in range(90) if label % 3]
        db.insert([0], rows[5:6])
        assert db.query(rows[5], k=2).keys == [5, 0]
        assert db.verify().ok


def test_replaced_elements_are_what_they_became(tmp_path: Path) -> None:
    rows, fresh = gaussian(80, 4), gaussian(20, 4, seed=9)
    index = make("l2", rows, room=0, replace=True)
    for label in range(20):
        index.mark_deleted(label)
    index.add_items(fresh[:15], np.arange(1000, 1015), replace_deleted=True)
    index.add_items(gaussian(1, 4, seed=4), np.array([50]))  # hnswlib's own upsert
    migrated(index, tmp_path, 4)
    with opened(tmp_path) as db:
        assert sorted(map(int, db.keys())) == [*range(20, 80), *range(1000, 1015)]
        for key, vector in zip(range(1000, 1015), fresh, strict=False):
            record = db.get([key])[0]
            assert record is not None
            assert (record.vector == vector).all()
        assert (db.get([50])[0].vector == gaussian(1, 4, seed=4)[0]).all()  # type: ignore[union-attr]
        assert db.stats().tombstones == 5


def test_a_label_of_two_elements_is_refused_or_the_last_is_kept(tmp_path: Path) -> None:
    index = make("l2", gaussian(40, 4), replace=True)
    index.mark_deleted(3)
    index.add_items(gaussian(1, 4, seed=8), np.array([30]), replace_deleted=True)  # 30 stands in two places now
    with pytest.raises(DatasetError, match="label 30 belongs to more than one"):
        migrated(index, tmp_path, 4)
    with pytest.raises(InvalidArgumentError, match="first"):
        migrated(index, tmp_path, 4, duplicates="first")
    made = migrated(index, tmp_path, 4, duplicates="last")
    assert (made.rows, made.deleted, made.superseded) == (39, 0, 1)
    loaded = make("l2", gaussian(0, 4))
    loaded.load_index(str(tmp_path / "index"))
    with opened(tmp_path) as db:
        assert db.get([30])[0].vector.tolist() == list(loaded.get_items([30])[0])  # type: ignore[union-attr]
        assert len(db.query(gaussian(1, 4)[0], k=40).keys) == 39


# --- special indexes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
def test_an_empty_index_is_an_empty_database(tmp_path: Path, metric: str) -> None:
    index = make(metric, gaussian(0, 5), m=6, room=10)
    assert migrated(index, tmp_path, 5, metric).rows == 0
    with opened(tmp_path) as db:
        assert len(db) == 0
        db.insert([1, 2], gaussian(2, 5))
        assert db.query(gaussian(2, 5)[1], k=1).keys == [2]
        assert db.verify().ok


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
def test_one_element(tmp_path: Path, metric: str) -> None:
    migrated(make(metric, gaussian(1, 5), np.array([77])), tmp_path, 5, metric)
    with opened(tmp_path) as db:
        assert db.query(gaussian(1, 5)[0], k=3).keys == [77]
        db.insert([1], gaussian(1, 5, seed=1))
        assert db.verify().ok


def test_all_elements_deleted(tmp_path: Path) -> None:
    index = make("l2", gaussian(50, 3))
    for label in range(50):
        index.mark_deleted(label)
    assert migrated(index, tmp_path, 3) == Migrated(0, 50, 0, 3, "l2", 8, 16)
    with opened(tmp_path) as db:
        assert len(db.query(gaussian(1, 3)[0], k=3)) == 0
        db.insert(range(60), gaussian(60, 3))
        assert db.query(gaussian(60, 3)[7], k=1).keys == [7]
        assert db.verify().ok


@compiled
def test_equal_vectors_are_all_reached(tmp_path: Path) -> None:
    rows = np.concatenate((np.zeros((300, 4)), gaussian(1500, 4))).astype(np.float32)
    migrated(make("l2", rows, m=4), tmp_path, 4)
    with opened(tmp_path) as db:
        hits = db.query(np.zeros(4), k=300, search_list=400)
        assert sorted(map(int, hits.keys)) == list(range(300))


def test_zero_vectors_stand_at_a_right_angle(tmp_path: Path) -> None:
    rows = gaussian(60, 4)
    rows[[5, 20]] = 0
    migrated(make("cosine", rows), tmp_path, 4, "cosine")
    with opened(tmp_path) as db:
        found = {hit.key: hit.distance for hit in db.query(rows[0], k=60)}
        assert (found[5], found[20]) == (1, 1)
        assert (db.get([5])[0].vector == 0).all()  # type: ignore[union-attr]


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_vectors_that_a_database_cannot_hold_are_named_unless_deleted(tmp_path: Path, bad: float) -> None:
    rows = gaussian(60, 4)
    rows[17, 2] = bad
    index = make("l2", rows)
    with pytest.raises(DatasetError, match="element 17"):
        migrated(index, tmp_path, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    index.mark_deleted(17)
    migrated(index, tmp_path, 4)
    opened(tmp_path).close()


def test_an_index_for_another_metric_than_cosine_is_told_by_its_lengths(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="length 1"):
        migrated(make("l2", gaussian(30, 4)), tmp_path, 4, "cosine")


def test_labels_beyond_64_bits_with_a_sign_are_refused(tmp_path: Path) -> None:
    labels = np.arange(20, dtype=np.uint64)
    labels[[4, 9]] = 2**63, 2**64 - 1
    index = make("l2", gaussian(20, 4), labels)
    with pytest.raises(DatasetError, match=r"label 9223372036854775808 .*\(2 such labels\)"):
        migrated(index, tmp_path, 4)
    index.mark_deleted(2**63)
    index.mark_deleted(2**64 - 1)
    migrated(index, tmp_path, 4)
    opened(tmp_path).close()


def test_settings_out_of_bounds_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    index = make("l2", gaussian(20, 4))
    for options in ({"metric": "hamming"}, {"max_edges": 3}, {"max_edges": 513}):
        with pytest.raises(InvalidSettingError):
            migrated(index, tmp_path, 4, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_what_is_there_is_not_replaced(tmp_path: Path) -> None:
    index = make("l2", gaussian(20, 4))
    migrated(index, tmp_path, 4)
    with pytest.raises(DatabaseExistsError):
        migrated(index, tmp_path, 4)
    opened(tmp_path).close()


# --- all or nothing ---------------------------------------------------------------------------------------------------


def steps(index: Any, folder: Path) -> int:
    """How often progress is called."""
    calls: list[int] = []
    migrated(index, folder, 4, progress=calls.append)
    assert sum(calls) == 2 * 200
    return len(calls)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_migration_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    index = make("l2", gaussian(200, 4))
    whole = tmp_path / "whole"
    whole.mkdir()

    def interrupt(after: int) -> Any:
        calls = iter(range(after))

        def progress(_: int) -> None:
            if next(calls, None) is None:
                raise error

        return progress

    for after in range(steps(index, whole)):
        with pytest.raises(error):
            migrated(index, tmp_path, 4, progress=interrupt(after))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "whole"]
    migrated(index, tmp_path, 4)
    opened(tmp_path).close()


def test_a_killed_migration_leaves_no_database(tmp_path: Path) -> None:
    save(make("l2", gaussian(200, 4)), tmp_path / "index")
    code = (
        "import os; from pathlib import Path; from corenn.migrate import HnswFile, migrate_hnsw\n"
        "migrate_hnsw(HnswFile(Path('index'), 4), Path('database'), metric='l2', progress=lambda rows: os._exit(7))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment(), check=False)
    assert done.returncode == 7
    assert not (tmp_path / "database").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".database.making-")]
    migrated(make("l2", gaussian(200, 4)), tmp_path, 4)
    opened(tmp_path).close()


# --- life goes on -----------------------------------------------------------------------------------------------------


@compiled
@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
def test_the_database_lives_on(tmp_path: Path, metric: str) -> None:
    rows, fresh, queries = gaussian(1500, 8), gaussian(1500, 8, seed=1), gaussian(60, 8, seed=2)
    index = make(metric, rows, m=6)
    for label in range(0, 200, 2):
        index.mark_deleted(label)
    migrated(index, tmp_path, 8, metric)
    expected = {label: rows[label] for label in range(1500) if label >= 200 or label % 2}
    for start in range(0, 1500, 500):
        with opened(tmp_path) as db:
            for at in range(start, start + 500, 125):
                db.insert([f"new {row}" for row in range(at, at + 125)], fresh[at : at + 125])
                expected |= {f"new {row}": fresh[row] for row in range(at, at + 125)}
            db.upsert(range(300, 340), fresh[start : start + 40])
            expected |= dict(zip(range(300, 340), fresh[start : start + 40], strict=True))
            db.delete(range(start + 400, start + 440))
            for key in range(start + 400, start + 440):
                expected.pop(key, None)
    with opened(tmp_path) as db:
        assert set(db.keys()) == set(expected)
        truth = [hits.keys for hits in db.query(queries, k=10, exact=True)]
        assert share_found([hits.keys for hits in db.query(queries, k=10)], truth) >= 0.97
        for key in list(expected)[::97]:
            assert key in db
        assert db.repair().ok


@pytest.fixture(autouse=True)
def nothing_is_left_open(tmp_path: Path) -> Iterator[None]:
    """No hidden folder is left beside what a test has made."""
    yield
    assert not list(tmp_path.rglob(".*"))


def test_errors_are_ours_and_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "index").write_bytes(b"no index")
    with pytest.raises(CoreNNError) as caught:
        HnswFile(tmp_path / "index", 4)
    assert "\n" not in str(caught.value)
