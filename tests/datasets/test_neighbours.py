"""Ground truth files.

Rules out ids or distances that come back changed or in other units, distances of an earlier truth beside new ids, torn
or contradicting files that are read as if they were whole, and a range truth taken for k neighbours or the reverse.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from corenn.datasets import (
    RangeTruth,
    create_vectors,
    open_vectors,
    read_range_truth,
    read_truth,
    write_range_truth,
    write_truth,
)  # fmt: skip
from corenn.datasets.contents import contents
from corenn.errors import DatasetError

h5py = pytest.importorskip("h5py")

ENDINGS = (".ibin", ".ivecs", ".npy", ".hdf5", ".h5")


def some_truth(queries: int = 5, k: int = 3, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    distances = np.sort(rng.random((queries, k), np.float32), axis=1)
    return rng.integers(-1, 2**31 - 1, (queries, k)), distances


# --- k neighbours -----------------------------------------------------------------------------------------------------


@given(shape=st.tuples(st.integers(1, 20), st.integers(1, 12)), ending=st.sampled_from(ENDINGS), known=st.booleans())
def test_ids_and_distances_come_back(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, int], ending: str, known: bool
) -> None:
    path = tmp_path_factory.mktemp("truth") / f"gt{ending}"
    ids, distances = some_truth(*shape)
    write_truth(path, ids, distances if known else None)
    found = read_truth(path)
    assert found.ids.dtype == np.int64 and np.array_equal(found.ids, ids)
    if not known:
        assert found.distances is None
    else:
        assert found.distances is not None and found.distances.dtype == np.float32
        assert np.array_equal(found.distances, distances)


@pytest.mark.parametrize("ending", ENDINGS)
def test_new_truth_without_distances_forgets_the_old_ones(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"gt{ending}"
    write_truth(path, *some_truth())
    write_truth(path, some_truth(seed=1)[0])
    assert read_truth(path).distances is None
    assert np.array_equal(read_truth(path).ids, some_truth(seed=1)[0])
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_the_bytes_are_those_of_big_ann(tmp_path: Path) -> None:
    write_truth(tmp_path / "gt.ibin", np.array([[5, 7], [1, -1]]), np.array([[0.5, 1], [2, np.inf]]))
    assert (tmp_path / "gt.ibin").read_bytes() == struct.pack("<II4i4f", 2, 2, 5, 7, 1, -1, 0.5, 1, 2, np.inf)
    write_truth(tmp_path / "ids.ibin", np.array([[5, 7], [1, -1]]))
    assert (tmp_path / "ids.ibin").read_bytes() == struct.pack("<II4i", 2, 2, 5, 7, 1, -1)
    with open_vectors(tmp_path / "ids.ibin") as ids:  # ids alone are a matrix
        assert ids.rows(0, 2).tolist() == [[5, 7], [1, -1]]
    with pytest.raises(DatasetError, match=r"2 neighbours with distances .* not vectors"):
        open_vectors(tmp_path / "gt.ibin")


@pytest.mark.parametrize("ending", [".ibin", ".hdf5"])
def test_torn_at_every_byte(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"gt{ending}"
    ids, distances = some_truth()
    write_truth(path, ids, distances)
    for size in reversed(range(path.stat().st_size)):
        os.truncate(path, size)
        try:
            found = read_truth(path)
        except DatasetError as error:
            assert str(path) in str(error)
        else:  # cut exactly behind the ids, it is a truth without distances
            assert ending == ".ibin" and size == 8 + ids.size * 4
            assert found.distances is None and np.array_equal(found.ids, ids)


@pytest.mark.parametrize("header", [(0, 3), (5, 0), (4, 3), (5, 4), (2**32 - 1, 2**32 - 1)])
def test_headers_that_do_not_fit(tmp_path: Path, header: tuple[int, int]) -> None:
    (tmp_path / "gt.ibin").write_bytes(struct.pack("<II", *header) + bytes(5 * 3 * 8))
    with pytest.raises(DatasetError, match=r"gt\.ibin"):
        read_truth(tmp_path / "gt.ibin")


@pytest.mark.parametrize(
    ("ids", "distances"),
    [
        (np.zeros(3, int), None), (np.zeros((0, 3), int), None), (np.zeros((3, 2)), None),
        (np.full((1, 1), 2**31), None), (np.full((1, 1), -2), None), (np.zeros((2, 2), int), np.zeros((2, 3))),
    ],
)  # fmt: skip
def test_truths_that_cannot_be_written(tmp_path: Path, ids: Any, distances: Any) -> None:
    for ending in ENDINGS:
        with pytest.raises(DatasetError, match=rf"gt{ending}"):
            write_truth(tmp_path / f"gt{ending}", ids, distances)
    assert list(tmp_path.iterdir()) == []


def test_vectors_are_no_truth(tmp_path: Path) -> None:
    for ending in (".npy", ".fvecs", ".hdf5"):
        path = tmp_path / f"a{ending}"
        with create_vectors(path, 3, "f32", part="neighbors" if ending == ".hdf5" else None) as out:
            out.append(np.ones((2, 3)))
        with pytest.raises(DatasetError, match="needs integers"):
            read_truth(path)


def test_other_integers_are_a_truth(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    for ending, dtype in ((".npy", "u32"), (".parquet", "i64"), (".bin", "u32")):
        with create_vectors(tmp_path / f"a{ending}", 3, dtype, part="neighbors_id") as out:
            out.append(some_truth()[0].clip(0))
        assert np.array_equal(read_truth(tmp_path / f"a{ending}").ids, some_truth()[0].clip(0))


def test_distances_of_another_shape(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["neighbors"], file["distances"] = np.zeros((4, 3), int), np.zeros((4, 2))
    with pytest.raises(DatasetError, match="'distances' has shape"):
        read_truth(tmp_path / "a.hdf5")
    write_truth(tmp_path / "a.npy", *some_truth())
    np.save(tmp_path / "a.distances.npy", np.zeros((5, 2), np.float32))
    with pytest.raises(DatasetError, match="distances"):
        read_truth(tmp_path / "a.npy")


def test_units_of_ann_benchmarks(tmp_path: Path) -> None:
    """They take the root of l2; CoreNN does not."""
    ids, distances = np.array([[3, 4]]), np.array([[4.0, 9.0]])
    for metric, kept in (("l2", [[2, 3]]), ("cosine", [[4, 9]]), ("ip", [[4, 9]])):
        path = tmp_path / f"{metric}.hdf5"
        write_truth(path, ids, distances, metric=metric)
        with h5py.File(path) as file:
            assert file["distances"][:].tolist() == kept
        found = read_truth(path).distances
        assert found is not None and found.tolist() == distances.tolist()


def test_truth_goes_into_the_file_of_its_vectors(tmp_path: Path) -> None:
    path, rows = tmp_path / "a.hdf5", np.random.default_rng(0).random((9, 4), np.float32)
    for part in ("train", "test"):
        with create_vectors(path, 4, "f32", part=part, metric="l2") as out:
            out.append(rows)
    write_truth(path, *some_truth())
    write_truth(path, *some_truth(seed=1))
    with open_vectors(path, "test") as test:
        assert np.array_equal(test.rows(0, 9), rows) and test.metric == "l2"
    with h5py.File(path) as file:
        assert set(file) == {"train", "test", "neighbors", "distances"}
        assert np.array_equal(file["neighbors"], some_truth(seed=1)[0])
        assert np.allclose(np.square(file["distances"]), some_truth(seed=1)[1])


# --- range search -----------------------------------------------------------------------------------------------------


@given(counts=st.lists(st.integers(0, 9), min_size=1), ending=st.sampled_from([".ibin", ".rangeres"]))
@example(counts=[0, 1], ending=".rangeres")
def test_ranges_come_back(tmp_path_factory: pytest.TempPathFactory, counts: list[int], ending: str) -> None:
    path = tmp_path_factory.mktemp("ranges") / f"gt{ending}"
    rng, total = np.random.default_rng(0), sum(counts)
    assume(ending == ".rangeres" or (len(counts), total) not in ((2, 1), (3, 3), (4, 2)))  # k neighbours, by their size
    truth = RangeTruth(
        np.concatenate([[0], np.cumsum(counts)]), rng.integers(0, 99, total), rng.random(total, np.float32)
    )
    write_range_truth(path, truth)
    found = read_range_truth(path)
    for one, other in ((found.limits, truth.limits), (found.ids, truth.ids), (found.distances, truth.distances)):
        assert np.array_equal(one, other)
    assert path.read_bytes()[: 8 + 4 * len(counts)] == struct.pack(f"<ii{len(counts)}i", len(counts), total, *counts)


def test_which_is_which(tmp_path: Path) -> None:
    write_range_truth(tmp_path / "range.ibin", RangeTruth(np.array([0, 2, 2, 5]), np.arange(5), np.ones(5, np.float32)))
    write_truth(tmp_path / "knn.ibin", *some_truth())
    write_truth(tmp_path / "ids.ibin", some_truth()[0])
    write_truth(tmp_path / "alone.hdf5", *some_truth())
    found = {path.stem: contents(path) for path in tmp_path.iterdir()}
    kinds = {name: (each.kind, each.rows, each.dim, each.distances) for name, each in found.items()}
    assert kinds == {
        "range": ("ranges", 3, None, True), "knn": ("neighbours", 5, 3, True),
        "ids": ("vectors", 5, 3, False), "alone": ("neighbours", 5, 3, True),
    }  # fmt: skip
    with pytest.raises(DatasetError, match="ground truth of a range search"):
        read_truth(tmp_path / "range.ibin")
    with pytest.raises(DatasetError, match="not ground truth of a range search"):
        read_range_truth(tmp_path / "knn.ibin")


def test_ranges_torn_at_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "gt.rangeres"
    write_range_truth(path, RangeTruth(np.array([0, 2, 2, 5]), np.arange(5), np.ones(5, np.float32)))
    for size in reversed(range(path.stat().st_size)):
        os.truncate(path, size)
        with pytest.raises(DatasetError, match=r"gt\.rangeres"):
            read_range_truth(path)


@pytest.mark.parametrize("counts", [[1, 2, 3], [-1, 3, 3], [2**31 - 1, 1, 1]])
def test_counts_that_do_not_add_up(tmp_path: Path, counts: list[int]) -> None:
    path = tmp_path / "gt.rangeres"
    path.write_bytes(struct.pack("<ii3i", 3, 5, *counts) + bytes(40))
    with pytest.raises(DatasetError, match="add up to"):
        read_range_truth(path)


@pytest.mark.parametrize(
    ("limits", "ids", "distances"), [([0], 0, 0), ([0, 3], 2, 2), ([1, 2], 2, 2), ([0, 2, 1, 2], 2, 2), ([0, 2], 2, 1)]
)
def test_ranges_that_cannot_be_written(tmp_path: Path, limits: list[int], ids: int, distances: int) -> None:
    truth = RangeTruth(np.array(limits), np.zeros(ids, np.int64), np.zeros(distances, np.float32))
    with pytest.raises(DatasetError, match=r"gt\.rangeres"):
        write_range_truth(tmp_path / "gt.rangeres", truth)


# --- what tells neighbours from other numbers -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gt.ibin", "gt.npy", "gt.hdf5"])
def test_ids_beyond_int32_are_not_read_as_other_numbers(tmp_path: Path, name: str) -> None:
    ids = np.array([[1, -1], [2, -2]], np.int32)  # as uint32, 4,294,967,294
    if name == "gt.ibin":
        (tmp_path / name).write_bytes(struct.pack("<II", 2, 2) + ids.tobytes())
    elif name == "gt.npy":
        np.save(tmp_path / name, ids)
    else:
        with h5py.File(tmp_path / name, "w") as file:
            file["neighbors"] = ids
    with pytest.raises(DatasetError, match=r"an id of -2; needs -1, for none, to 2,147,483,647"):
        read_truth(tmp_path / name)


def test_negative_ids_within_a_radius(tmp_path: Path) -> None:
    path = tmp_path / "gt.rangeres"
    path.write_bytes(struct.pack("<3i2i2f", 1, 2, 2, 5, -1, 0.0, 1.0))
    with pytest.raises(DatasetError, match="an id of -1"):
        read_range_truth(path)
    with pytest.raises(DatasetError, match="ids from -1 to 5"):
        write_range_truth(path, RangeTruth(np.array([0, 2]), np.array([5, -1]), np.zeros(2, np.float32)))


def test_ranges_that_would_be_taken_for_k_neighbours(tmp_path: Path) -> None:
    """Three rows in all for three queries are as many bytes as three for each, without distances."""
    truth = RangeTruth(np.array([0, 1, 2, 3]), np.arange(3), np.zeros(3, np.float32))
    with pytest.raises(DatasetError, match=r"taken for 3 neighbours of each query; write it to \.rangeres"):
        write_range_truth(tmp_path / "gt.ibin", truth)
    assert list(tmp_path.iterdir()) == []
    write_range_truth(tmp_path / "gt.rangeres", truth)
    assert read_range_truth(tmp_path / "gt.rangeres").ids.tolist() == [0, 1, 2]


@pytest.mark.parametrize("ending", [".npy", ".ivecs", ".parquet"])
def test_ids_with_distances_beside_them_are_neighbours(tmp_path: Path, ending: str) -> None:
    ids, distances = some_truth()
    path = tmp_path / f"gt{ending}"
    write_truth(path, ids)
    assert contents(path).kind == "vectors"
    write_truth(path, ids, distances)
    found = contents(path)
    assert (found.kind, found.rows, found.dim, found.dtype, found.distances) == ("neighbours", 5, 3, "i32", True)


def test_other_numbers_with_distances_beside_them_are_not(tmp_path: Path) -> None:
    """As of a file and what `corenn dataset distances` makes of it."""
    np.save(tmp_path / "a.distances.npy", np.zeros((5, 5), np.float32))
    for rows in (np.zeros((5, 5), np.float32), np.zeros((5, 3), np.int8)):
        np.save(tmp_path / "a.npy", rows)
        assert contents(tmp_path / "a.npy").kind == "vectors"


def test_what_a_huge_file_holds_is_told_by_its_header(tmp_path: Path) -> None:
    path = tmp_path / "graph.ibin"
    with path.open("wb") as file:
        file.write(struct.pack("<II", 2**31, 100))
        file.truncate(8 + 8 * 100 * 2**31)
    found = contents(path)
    assert (found.kind, found.rows, found.dim, found.distances) == ("neighbours", 2**31, 100, True)


def test_a_format_that_cannot_carry_ids_costs_no_distances(tmp_path: Path) -> None:
    np.save(tmp_path / "base.distances.npy", np.ones((2, 2), np.float32))
    with pytest.raises(DatasetError, match="not i32"):
        write_truth(tmp_path / "base.fbin", np.zeros((2, 2), int))
    assert (tmp_path / "base.distances.npy").exists()
