"""Ground truth: the true neighbours of queries, read and written by the ending of the name.

| ending | ids | distances |
|---|---|---|
| .ibin | uint32 queries, uint32 k, int32 ids | float32 behind the ids, or none |
| .ivecs, .npy | rows of k | beside it, in NAME.distances.fvecs or NAME.distances.npy |
| .hdf5 | data set `neighbors` | data set `distances` |
| .rangeres | int32 queries, int32 total, int32 counts, int32 ids | float32 behind the ids |
| any other | a matrix of integers | none |
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DatasetError
from ..types import AnyArray, Float32s, Int64s
from .atomic import replacing
from .dtypes import NAMES, DType, is_integer
from .vectors import create_vectors, existing, open_vectors

HDF5 = (".hdf5", ".h5")
RANGE = ".rangeres"
HEADER = 8
MOST = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Truth:
    """The k nearest rows of each query, nearest first.

    ids: int64, shape (queries, k); -1 where there are fewer than k. distances: float32 of the same shape in the units
    of CoreNN (l2 is squared), or None where the file has none.
    """

    ids: Int64s
    distances: Float32s | None = None


@dataclass(frozen=True, slots=True)
class RangeTruth:
    """All rows within a radius of each query.

    limits: int64, shape (queries + 1,): the rows of query q are ids[limits[q] : limits[q + 1]]. ids: int64.
    distances: float32, one for each id.
    """

    limits: Int64s
    ids: Int64s
    distances: Float32s


def read_truth(path: str | Path) -> Truth:
    """The neighbours in `path`.

    Raises:
        DatasetError: for a file that is missing, torn, empty, inconsistent, of an unknown format or holds no integers.
    """
    path = existing(path)
    kind = path.suffix.lower()
    found = _read_hdf5(path) if kind in HDF5 else _read_ibin(path) if kind == ".ibin" else _read_matrices(path)
    if (least := int(found.ids.min())) < -1:
        raise DatasetError(f"{path}: an id of {least:,}; needs -1, for none, to {MOST:,}")
    return found


def truth_shape(path: Path) -> tuple[int, int, DType, bool]:
    """Queries, neighbours of each, type of the ids, and whether there are distances; without reading any of these.

    Raises:
        DatasetError: as read_truth, for what is told by sizes and headers.
    """
    kind = path.suffix.lower()
    if kind in HDF5:
        return _shape_of_hdf5(path)
    if kind == ".ibin":
        return _shape_of_ibin(path)
    return _shape_of_matrices(path)


def files_of(path: Path) -> list[Path]:
    """The files that ids and distances go to when neighbours are written to `path`."""
    return [path] if path.suffix.lower() in (*HDF5, ".ibin") else [path, beside(path)]


def check_writable(path: Path, rows: int) -> None:
    """Refuse what neighbours among `rows` rows could not be written to; to be asked before they are searched for.

    Raises:
        DatasetError: for a format that holds no int32, an HDF5 file that is damaged, or rows that int32 cannot number.
        ModuleNotFoundError: for HDF5 without the extra `datasets`.
    """
    if rows > MOST + 1:
        raise DatasetError(f"{path}: neighbours among {rows:,} rows; their numbers are int32, up to {MOST:,}")
    if path.suffix.lower() not in HDF5:
        create_vectors(path, 1, np.int32)  # which creates nothing yet
        return
    from .formats.hdf5 import check_library, parts

    check_library()
    if path.exists():
        parts(path)


def write_truth(
    path: str | Path, ids: AnyArray, distances: AnyArray | None = None, *, metric: str | None = None
) -> None:
    """Write neighbours to `path`, replacing it; in an HDF5 file the other data sets are kept.

    Args:
        path: ends in .ibin, .ivecs, .npy, .hdf5, or another format of integers.
        ids: integers, shape (queries, k); -1 where there are fewer than k.
        distances: shape (queries, k), in the units of CoreNN, or None.
        metric: "l2", "cosine" or "ip", for an HDF5 file that does not name it yet; distances of l2 are kept there as
            ann-benchmarks does, not squared.

    Raises:
        DatasetError: for shapes that do not fit, ids beyond int32, or a format without room for distances.
    """
    path = Path(path)
    ids, distances = _checked(path, ids, distances)
    kind = path.suffix.lower()
    if kind in HDF5:
        _write_hdf5(path, ids, distances, metric)
    elif kind == ".ibin":
        _write_packed(path, ids.shape, [ids.astype("<i4")], distances)
    else:
        _write_ids(path, ids, distances)


def _checked(path: Path, ids: AnyArray, distances: AnyArray | None) -> tuple[AnyArray, Float32s | None]:
    ids = np.asarray(ids)
    if ids.ndim != 2 or ids.size == 0 or not is_integer(ids.dtype):
        raise DatasetError(f"{path}: neighbours of shape {ids.shape} and type {ids.dtype}; needs integers (queries, k)")
    if int(ids.max()) > MOST or int(ids.min()) < -1:
        raise DatasetError(f"{path}: ids from {ids.min()} to {ids.max()}; needs -1 to {MOST:,}")
    if distances is not None and np.shape(distances) != ids.shape:
        raise DatasetError(f"{path}: distances of shape {np.shape(distances)} for neighbours of shape {ids.shape}")
    return ids, None if distances is None else np.asarray(distances, np.float32)


# --- .ibin ------------------------------------------------------------------------------------------------------------


def _shape_of_ibin(path: Path) -> tuple[int, int, DType, bool]:
    from .formats.bigann import read_header

    queries, k = read_header(path)
    size, numbers = path.stat().st_size, queries * k
    if size not in (HEADER + 4 * numbers, HEADER + 8 * numbers):
        hint = "; it holds ground truth of a range search" if _fits_range(path) else "; get it again"
        raise DatasetError(
            f"{path} is torn: {queries:,} queries with {k:,} neighbours are {HEADER + 4 * numbers:,} bytes, with "
            f"distances {HEADER + 8 * numbers:,}; the file has {size:,}{hint}"
        )
    return queries, k, NAMES["i32"], size != HEADER + 4 * numbers


def _read_ibin(path: Path) -> Truth:
    queries, k, _, with_distances = _shape_of_ibin(path)
    numbers = queries * k
    ids = np.fromfile(path, "<i4", numbers, offset=HEADER).astype(np.int64).reshape(queries, k)
    if not with_distances:
        return Truth(ids)
    distances = np.fromfile(path, "<f4", numbers, offset=HEADER + 4 * numbers).astype(np.float32, copy=False)
    return Truth(ids, distances.reshape(queries, k))


def _write_packed(path: Path, header: tuple[int, ...], columns: list[AnyArray], distances: Float32s | None) -> None:
    with replacing(path) as part, part.open("wb") as file:
        file.write(np.array(header, "<u4").tobytes())
        for column in columns:
            file.write(column.tobytes())
        if distances is not None:
            file.write(distances.astype("<f4").tobytes())


# --- ids and distances in files of their own --------------------------------------------------------------------------


def beside(path: Path) -> Path:
    """Where the distances go of a format that keeps only ids."""
    return path.with_name(f"{path.stem}.distances{'.fvecs' if path.suffix.lower() == '.ivecs' else '.npy'}")


def _shape_of_matrices(path: Path) -> tuple[int, int, DType, bool]:
    with open_vectors(path) as ids:
        shape, dtype = ids.shape, ids.dtype
    if not is_integer(dtype):
        raise DatasetError(f"{path} holds {dtype} of shape {shape}; needs integers (queries, k)")
    if not (other := beside(path)).exists():
        return *shape, dtype, False
    with open_vectors(other) as distances:
        if distances.shape != shape:
            raise DatasetError(f"{other}: distances of shape {distances.shape} for neighbours of shape {shape}")
    return *shape, dtype, True


def _read_matrices(path: Path) -> Truth:
    with_distances = _shape_of_matrices(path)[3]
    ids = _whole(path).astype(np.int64)
    return Truth(ids, np.array(_whole(beside(path)), np.float32) if with_distances else None)


def _whole(path: Path) -> AnyArray:
    with open_vectors(path) as vectors:
        return vectors.rows(0, len(vectors))


def _write_ids(path: Path, ids: AnyArray, distances: Float32s | None) -> None:
    other, writer = beside(path), create_vectors(path, ids.shape[1], np.int32, len(ids))
    other.unlink(missing_ok=True)
    with writer as out:
        out.append(ids)
    if distances is not None:
        with create_vectors(other, ids.shape[1], np.float32, len(ids)) as out:
            out.append(distances)


# --- HDF5 -------------------------------------------------------------------------------------------------------------


def _shape_of_hdf5(path: Path) -> tuple[int, int, DType, bool]:
    from .formats.hdf5 import opened

    with opened(path) as file:
        ids, distances = _data_sets(file, path)
        return *ids.shape, ids.dtype.newbyteorder("="), distances is not None


def _read_hdf5(path: Path) -> Truth:
    from .formats.hdf5 import metric_of, opened

    with opened(path) as file:
        ids, distances = _data_sets(file, path)
        squared = metric_of(file) == "l2"
        return Truth(ids[:].astype(np.int64), None if distances is None else _units(distances[:], squared))


def _data_sets(file: Any, path: Path) -> tuple[Any, Any]:
    """The h5py data sets of ids and of distances, which may be None."""
    from .formats.hdf5 import matrix

    ids = matrix(file, path, "neighbors")
    if not is_integer(ids.dtype):
        raise DatasetError(f"{path}: 'neighbors' holds {ids.dtype}; needs integers (queries, k)")
    distances = matrix(file, path, "distances") if "distances" in file else None
    if distances is not None and distances.shape != ids.shape:
        raise DatasetError(f"{path}: 'distances' has shape {distances.shape}, 'neighbors' {ids.shape}")
    return ids, distances


def _units(distances: AnyArray, squared: bool) -> Float32s:
    """Distances of ann-benchmarks, which takes the root of l2, in the units of CoreNN."""
    return np.asarray(np.square(distances, dtype=np.float64) if squared else distances, np.float32)


def _write_hdf5(path: Path, ids: AnyArray, distances: Float32s | None, metric: str | None) -> None:
    from .formats.hdf5 import describe, extended, metric_of

    with replacing(path) as part, extended(path, part) as file:
        describe(file, None, ids.dtype, metric)
        values: dict[str, Any] = {"neighbors": ids.astype(np.int32), "distances": distances}
        if distances is not None and metric_of(file) == "l2":
            values["distances"] = np.sqrt(np.maximum(distances, 0), dtype=np.float64).astype(np.float32)
        for name, value in values.items():
            if name in file:
                del file[name]
            if value is not None:
                file.create_dataset(name, data=value)


# --- range search -----------------------------------------------------------------------------------------------------


def read_range_truth(path: str | Path) -> RangeTruth:
    """The rows within a radius of each query, from a file of big-ann-benchmarks (any ending).

    Raises:
        DatasetError: for a file that is missing, torn, empty or inconsistent.
    """
    path = existing(path)
    counts = range_counts(path)
    total, at = int(counts.sum()), HEADER + 4 * len(counts)
    ids = np.fromfile(path, "<i4", total, offset=at).astype(np.int64)
    if total and int(ids.min()) < 0:
        raise DatasetError(f"{path}: an id of {ids.min():,}; needs 0 to {MOST:,}")
    distances = np.fromfile(path, "<f4", total, offset=at + 4 * total).astype(np.float32, copy=False)
    return RangeTruth(np.concatenate([[0], np.cumsum(counts)]), ids, distances)


def range_counts(path: Path) -> Int64s:
    """How many rows are within the radius of each query of a file of big-ann-benchmarks.

    Raises:
        DatasetError: as read_range_truth, for what is told by sizes and counts.
    """
    if not _fits_range(path):
        raise DatasetError(f"{path}: not ground truth of a range search; its size does not fit its header")
    queries, total = (int(number) for number in np.fromfile(path, "<i4", 2))
    counts = np.fromfile(path, "<i4", queries, offset=HEADER).astype(np.int64)
    if int(counts.min()) < 0 or int(counts.sum()) != total:
        raise DatasetError(f"{path}: {queries:,} counts add up to {counts.sum():,}, its header says {total:,}")
    return counts


def write_range_truth(path: str | Path, truth: RangeTruth) -> None:
    """Write the rows within a radius of each query in the form of big-ann-benchmarks.

    Raises:
        DatasetError: if limits, ids and distances do not fit each other, there are no queries, or an `.ibin` would be
            as large as one of k neighbours per query, for which it would be taken.
    """
    path = Path(path)
    counts = np.diff(truth.limits)
    total = len(truth.ids)
    if len(counts) == 0 or (counts < 0).any() or truth.limits[0] != 0 or truth.limits[-1] != total:
        raise DatasetError(f"{path}: limits do not run from 0 to the {total:,} ids")
    if len(truth.distances) != total or total > MOST:
        raise DatasetError(f"{path}: {len(truth.distances):,} distances for {total:,} ids; needs one each, up to int32")
    if total and not 0 <= int(truth.ids.min()) <= int(truth.ids.max()) <= MOST:
        raise DatasetError(f"{path}: ids from {truth.ids.min()} to {truth.ids.max()}; needs 0 to {MOST:,}")
    if path.suffix.lower() == ".ibin" and 4 * len(counts) + 8 * total in (
        each * len(counts) * total for each in (4, 8)
    ):
        raise DatasetError(f"{path}: would be taken for {total} neighbours of each query; write it to {RANGE}")
    _write_packed(path, (len(counts), total), [counts.astype("<i4"), truth.ids.astype("<i4")], truth.distances)


def _fits_range(path: Path) -> bool:
    if path.stat().st_size < HEADER:
        return False
    queries, total = (int(number) for number in np.fromfile(path, "<i4", 2))
    return queries > 0 and total >= 0 and path.stat().st_size == HEADER + 4 * queries + 8 * total


# --- which is which ---------------------------------------------------------------------------------------------------


def is_knn_truth(path: Path, part: str | None = None) -> bool:
    """True for an `.ibin` with distances, ids with distances beside them, and HDF5 with neighbours alone.

    Ids alone are a matrix like any other.
    """
    kind = path.suffix.lower()
    if kind in HDF5 and part is None:
        from .formats.hdf5 import parts

        found = parts(path)
        return "neighbors" in found and "train" not in found
    if kind == ".ibin":
        return path.stat().st_size == _packed_size(path, 8)
    if kind in HDF5 or part is not None or not beside(path).exists():
        return False
    with open_vectors(path) as ids:
        if not is_integer(ids.dtype):
            return False
        with open_vectors(beside(path)) as distances:
            return ids.shape == distances.shape


def is_range_truth(path: Path) -> bool:
    """True for an `.ibin` whose size is that of ground truth of a range search and of nothing else."""
    sizes = (_packed_size(path, 4), _packed_size(path, 8))
    return path.suffix.lower() == ".ibin" and path.stat().st_size not in sizes and _fits_range(path)


def _packed_size(path: Path, each: int) -> int:
    """Bytes of an `.ibin` with `each` bytes per neighbour, as its header has it; 0 if it has none."""
    header = np.fromfile(path, "<u4", 2)
    return HEADER + int(header[0]) * int(header[1]) * each if len(header) == 2 else 0
