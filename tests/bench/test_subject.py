"""The data of a run.

Rules out rows, queries or truth of another file, part, order or number than was asked for, neighbours among all rows
taken for those among some, an answer that is better for naming a row twice, and data that do not fit each other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corenn import InvalidArgumentError
from corenn.bench.recall import exact_neighbours
from corenn.bench.subject import Source, Subject, locate, prepare
from corenn.datasets import create_vectors, write_truth
from corenn.datasets.manifest import describe, write_manifest
from corenn.errors import DatasetError

K = 5


@pytest.fixture
def vectors(rng: np.random.Generator) -> tuple[Any, Any]:
    """300 rows and 20 queries of 6 dimensions, whole numbers, many at equal distances."""
    return rng.integers(0, 4, (300, 6)).astype(np.float32), rng.integers(0, 4, (20, 6)).astype(np.float32)


@pytest.fixture
def hdf5(vectors: tuple[Any, Any], tmp_path: Path) -> Path:
    """The same in one file, with the neighbours among all rows."""
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "whole.hdf5"
    ids, distances = exact_neighbours(*vectors, 10, "l2")
    with h5py.File(path, "w") as file:
        file.attrs["distance"] = "euclidean"
        file["train"], file["test"] = vectors[0].astype(np.uint8), vectors[1].astype(np.uint8)
        file["neighbors"], file["distances"] = ids.astype(np.int32), np.sqrt(distances).astype(np.float32)
    return path


def made(source: Source, folder: Path, count: int | None = None, queries: int = 100, k: int = K) -> Subject:
    folder.mkdir()
    return prepare(source, folder, count, queries, k, lambda _: None)


def test_one_hdf5_file(hdf5: Path, vectors: tuple[Any, Any], tmp_path: Path) -> None:
    subject = made(locate(str(hdf5)), tmp_path / "work")
    assert subject.base.dtype == subject.queries.dtype == np.float32
    assert np.array_equal(subject.base, vectors[0]) and np.array_equal(subject.queries, vectors[1])
    assert np.array_equal(np.load(subject.base_file), vectors[0])
    assert np.allclose(subject.truth, exact_neighbours(*vectors, K, "l2")[1])
    assert subject.about == {
        "name": "whole.hdf5", "rows": 300, "dim": 6, "metric": "l2", "sha256": None, "queries": 20,
        "bytes": hdf5.stat().st_size, "truth": "file",
    }  # fmt: skip


def test_the_first_rows_and_queries_have_their_own_truth(hdf5: Path, vectors: tuple[Any, Any], tmp_path: Path) -> None:
    subject = made(locate(str(hdf5)), tmp_path / "work", count=100, queries=7)
    assert subject.base.shape == (100, 6) and subject.queries.shape == (7, 6)
    assert subject.about["truth"] == "computed" and subject.about["rows"] == 300
    assert np.allclose(subject.truth, exact_neighbours(vectors[0][:100], vectors[1][:7], K, "l2")[1])
    more = made(locate(str(hdf5)), tmp_path / "more", k=11)
    assert more.about["truth"] == "computed"  # the file has ten neighbours


def test_neighbours_by_another_metric_do_not_count(hdf5: Path, vectors: tuple[Any, Any], tmp_path: Path) -> None:
    subject = made(locate(str(hdf5), metric="ip"), tmp_path / "work")
    assert subject.about["truth"] == "computed"
    assert np.allclose(subject.truth, exact_neighbours(*vectors, K, "ip")[1])
    assert made(locate(str(hdf5), metric="l2"), tmp_path / "same").about["truth"] == "file"


def test_more_rows_than_there_are_means_all(hdf5: Path, tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "work").mkdir()
    subject = prepare(locate(str(hdf5)), tmp_path / "work", 301, 100, K, said.append)
    assert len(subject.base) == 300 and "whole.hdf5 has 300 rows: all of them are taken" in said


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
def test_three_files_of_any_format(vectors: tuple[Any, Any], tmp_path: Path, metric: str) -> None:
    rows, asked = vectors[0] + 1, vectors[1] + 1
    for name, values in {"rows.fbin": rows, "asked.fvecs": asked}.items():
        with create_vectors(tmp_path / name, 6, np.float32) as out:
            out.append(values)
    ids, distances = exact_neighbours(rows, asked, 10, metric)
    write_truth(tmp_path / "truth.ibin", ids, distances.astype(np.float32))
    write_manifest(tmp_path / "rows.fbin", manifest := describe(tmp_path / "rows.fbin"))
    named = {"queries": tmp_path / "asked.fvecs", "metric": metric}
    for truth, origin in ((tmp_path / "truth.ibin", "file"), (None, "computed")):
        source = locate(str(tmp_path / "rows.fbin"), truth=truth, **named)
        subject = made(source, tmp_path / origin)
        assert subject.about["truth"] == origin and subject.about["sha256"] == manifest.sha256
        assert np.allclose(subject.truth, distances[:, :K]) and subject.metric == metric


def test_recalls(hdf5: Path, vectors: tuple[Any, Any], tmp_path: Path) -> None:
    subject = made(locate(str(hdf5)), tmp_path / "work")
    ids = exact_neighbours(*vectors, K, "l2")[0]
    assert subject.recalls(ids) == (1, 1, 1)
    assert subject.recalls(ids[:3]) == (1, 1, 1)  # of the first queries only
    assert subject.recalls(np.full_like(ids, -1)) == (0, 0, 0)
    again = ids.copy()
    again[:, 1:] = ids[:, :1]
    assert subject.recalls(again) == (1 / K, 1, 1)  # the same row five times is one row
    farther = np.argmax(((vectors[1][:, None] - vectors[0]) ** 2).sum(axis=2), axis=1)
    last = ids.copy()
    last[:, 0], last[:, -1] = farther, ids[:, 0]
    recall, first, among = subject.recalls(last)
    assert recall == pytest.approx((K - 1) / K) and first == 0 and among == 1


def test_ties_count_whichever_row_is_named(hdf5: Path, vectors: tuple[Any, Any], tmp_path: Path) -> None:
    subject = made(locate(str(hdf5)), tmp_path / "work")
    apart = ((vectors[1][:, None] - vectors[0]) ** 2).sum(axis=2)
    backwards = 299 - np.argsort(apart[:, ::-1], axis=1, kind="stable")[:, :K]
    assert not np.array_equal(backwards, exact_neighbours(*vectors, K, "l2")[0])
    assert subject.recalls(backwards) == (1, 1, 1)


def test_a_data_set_of_the_catalogue(hdf5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from corenn.datasets import catalogue
    from corenn.datasets import fetch as fetching
    from corenn.datasets.remote import Entry, RemoteFile
    from corenn.datasets.remote import Source as Origin

    origin = Origin("hdf5", RemoteFile("whole.hdf5", (hdf5.as_uri(),)), 300)
    entry = Entry("wholes", "Made", 300, 20, 6, "u8", "l2", "http://localhost", (origin,))
    monkeypatch.setattr(catalogue, "find", lambda name: entry)
    with pytest.raises(DatasetError, match="wholes is not here yet; get it with `corenn dataset fetch wholes`"):
        locate("wholes", root=tmp_path / "sets")
    fetching.fetch(entry, folder=tmp_path / "sets")
    subject = made(locate("wholes", root=tmp_path / "sets"), tmp_path / "work")
    assert subject.about["name"] == "wholes" and subject.about["truth"] == "file" and len(subject.base) == 300
    assert len(subject.about["sha256"]) == 64
    fetching.fetch(entry, rows=50, folder=tmp_path / "first")
    few = locate("wholes", rows=50, root=tmp_path / "first")
    assert few.truth is None or made(few, tmp_path / "few", count=50).about["rows"] in (50, 300)


# --- what does not fit ------------------------------------------------------------------------------------------------


def test_data_that_cannot_be_used(hdf5: Path, vectors: tuple[Any, Any], tmp_path: Path) -> None:
    rows, wide = tmp_path / "rows.npy", tmp_path / "wide.npy"
    np.save(rows, vectors[0])
    np.save(wide, np.ones((3, 7), np.float32))
    np.save(tmp_path / "few.npy", np.zeros((300, 6), np.int64))
    for message, how in (
        ("has no queries; name a file of queries", lambda: locate(str(rows))),
        ("no data set 'nothing' in the catalogue", lambda: locate("nothing")),
        ("does not say its metric", lambda: made(locate(str(rows), queries=rows), tmp_path / "a")),
        ("queries of 7 dimensions; the rows have 6", lambda: made(locate(str(hdf5), queries=wide), tmp_path / "b")),
        ("does not exist", lambda: made(locate(str(hdf5), truth=tmp_path / "no.ibin"), tmp_path / "c")),
    ):
        with pytest.raises(DatasetError, match=message):
            how()
    with pytest.raises(InvalidArgumentError, match="metric='manhattan': choose one of l2, cosine, ip"):
        locate(str(rows), queries=rows, metric="manhattan")
    with pytest.raises(InvalidArgumentError, match="k=301: must be at most the number of rows, 300"):
        made(locate(str(hdf5)), tmp_path / "d", k=301)


def test_truth_that_names_rows_that_are_not_there(hdf5: Path, tmp_path: Path) -> None:
    write_truth(tmp_path / "other.ivecs", np.full((20, 10), 4711), None)
    with pytest.raises(DatasetError, match="300 rows"):
        made(locate(str(hdf5), truth=tmp_path / "other.ivecs"), tmp_path / "work")
