"""HDF5 in the layout of ann-benchmarks (dense): data sets `train`, `test`, `neighbors`, `distances`.

Attributes: `type` (dense), `distance` (euclidean, angular, ip or dot), `dimension`, `point_type`. Any other data set of
two axes may be read and written by its name too. Needs the extra `datasets`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DatasetError
from ...types import AnyArray
from ..dtypes import NAMES, NATIVE, DType, is_integer
from ..vectors import Vectors, Writer

METRICS = {"euclidean": "l2", "angular": "cosine", "ip": "ip", "dot": "ip"}
DISTANCES = {"l2": "euclidean", "cosine": "angular", "ip": "ip"}
CHUNK_BYTES = 1 << 20
CACHE_BYTES = 64 << 20  # a chunk that does not fit is unpacked anew for every block
MAX_CHUNK_BYTES = 1 << 30
MAX_WORD_BYTES = 256
DEFAULT_PART = "train"
VECTORS = (DEFAULT_PART, "test")


def carried(_ending: str) -> tuple[DType, ...]:
    """All but bf16, which HDF5 has no type for; f32 first."""
    return (NAMES["f32"], *(dtype for dtype in NATIVE if dtype != NAMES["f32"]))


def open_file(path: Path, part: str | None) -> Vectors:
    """The data set `part` of `path`, "train" unless given."""
    file = _opened(path)
    try:
        return _Vectors(path, file, part or DEFAULT_PART)
    except BaseException:
        file.close()
        raise


def parts(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of every data set at the top of `path`, by name."""
    import h5py

    with opened(path) as file:
        return {
            name: (tuple(file[name].shape), str(file[name].dtype))
            for name in file
            if isinstance(file.get(name, getlink=True), h5py.HardLink) and isinstance(file[name], h5py.Dataset)
        }


def check_library() -> None:
    """Raise ModuleNotFoundError where h5py, of the extra `datasets`, is missing."""
    import h5py  # noqa: F401


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The h5py.File of `path`, to read from; errors of HDF5 come out as DatasetError."""
    with _translated(path), _opened(path) as file:
        yield file


def metric_of(file: Any) -> str | None:
    """The metric that the attribute `distance` names."""
    # The size is looked at first: a damaged attribute may claim any, and reading it would allocate that.
    if "distance" not in file.attrs or (found := file.attrs.get_id("distance")).shape != ():
        return None
    value = file.attrs["distance"] if found.get_storage_size() <= MAX_WORD_BYTES else ""
    return METRICS.get(value.decode(errors="replace") if isinstance(value, bytes) else str(value))


def matrix(file: Any, path: Path, name: str) -> Any:
    """The h5py data set `name`, which must be a whole, non-empty matrix of numbers within the file itself."""
    import h5py

    link = file.get(name, getlink=True)
    if link is None:
        raise DatasetError(f"{path}: no data set {name!r}; has {', '.join(map(repr, file)) or 'none'}")
    found = file[name] if isinstance(link, h5py.HardLink) else None
    if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual:
        raise DatasetError(f"{path}: {name!r} is not a data set stored in this file")
    if len(found.shape) != 2 or found.dtype.newbyteorder("=") not in NATIVE:
        raise DatasetError(f"{path}: {name!r} holds {found.dtype} of shape {found.shape}; needs numbers (rows, dim)")
    if 0 in found.shape:
        raise DatasetError(f"{path}: {name!r} is empty: its shape is {found.shape}")
    _check_storage(found, path, name)
    return found


def _check_storage(found: Any, path: Path, name: str) -> None:
    """HDF5 fills what was never written with zeros; a file that lacks it is torn."""
    if found.chunks is None:
        needed, stored = found.size * found.dtype.itemsize, found.id.get_storage_size()
    else:
        if np.prod(found.chunks, dtype=float) * found.dtype.itemsize > MAX_CHUNK_BYTES:
            raise DatasetError(f"{path}: {name!r} is stored in chunks of {found.chunks}, too large to read")
        needed = int(np.prod([-(-have // chunk) for have, chunk in zip(found.shape, found.chunks, strict=True)]))
        stored = found.id.get_num_chunks()
    if stored < needed:
        what = "bytes" if found.chunks is None else "chunks"
        raise DatasetError(f"{path}: {name!r} is torn: {stored:,} of {needed:,} {what} are there; get it again")


class _Vectors(Vectors):
    def __init__(self, path: Path, file: Any, part: str) -> None:
        with _translated(path):
            found = matrix(file, path, part)
            self.path = path
            self.shape = found.shape
            self.dtype = found.dtype.newbyteorder("=")
        self._file = file
        self._found = found

    @property
    def metric(self) -> str | None:
        """Of the attribute `distance`; read only when asked for, since HDF5 itself may hang on a damaged text."""
        with _translated(self.path):
            return metric_of(self._file) if self._file else None

    def _rows(self, start: int, stop: int) -> AnyArray:
        if not self._file:
            raise DatasetError(f"{self.path} is closed")
        with _translated(self.path):
            return np.ascontiguousarray(self._found[start:stop], self.dtype)

    def close(self) -> None:
        self._file.close()


def _opened(path: Path) -> Any:
    import h5py

    with _translated(path):
        return h5py.File(path, "r", rdcc_nbytes=CACHE_BYTES)


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """What HDF5 says about a damaged file, as one line of ours."""
    try:
        yield
    except DatasetError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise DatasetError(f"{path}: not a whole HDF5 file ({error})") from error


def create_file(path: Path, dim: int, dtype: DType, rows: int | None, part: str | None, metric: str | None) -> Writer:
    """A new data set; in a file that exists if `part` is given, else in a new file."""
    return _Writer(path, dim, dtype, rows, part, metric)


@contextmanager
def extended(path: Path, part: Path) -> Iterator[Any]:
    """An h5py.File at `part` to write to, which begins with all that `path` holds if that exists."""
    with _opened_copy(path, part, keep=True) as file:
        yield file


def _opened_copy(path: Path, part: Path, keep: bool) -> Any:
    import h5py

    if keep and path.exists():
        shutil.copyfile(path, part)
    with _translated(path):
        return h5py.File(part, "a")


class _Writer(Writer):
    _file: Any = None

    def __init__(
        self, path: Path, dim: int, dtype: DType, rows: int | None, part: str | None, metric: str | None
    ) -> None:
        super().__init__(path, dim, dtype, rows)
        self._name = part or DEFAULT_PART
        self._keep = part is not None
        self._metric = metric
        # Of a number of rows not known ahead, what is less than one chunk is stored in one piece.
        self._chunk = max(1, CHUNK_BYTES // (dim * dtype.itemsize))
        self._gathered: list[AnyArray] = []
        self._found: Any = None

    def _begin(self) -> None:
        self._file = _opened_copy(self.path, self._part, self._keep)
        with self._named():
            if self._name in self._file:
                del self._file[self._name]
        # The attributes are of the vectors, not of a column of clusters beside them.
        of_vectors = self._name in VECTORS or "dimension" not in self._file.attrs
        describe(self._file, self.dim if of_vectors else None, self.dtype, self._metric)
        if self._expected:
            self._found = self._create((self._expected, self.dim))

    @contextmanager
    def _named(self) -> Iterator[None]:
        """What HDF5 says about the name of a data set, such as "." or one below another data set, as one line."""
        try:
            yield
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            raise DatasetError(f"{self.path}: HDF5 cannot keep a data set {self._name!r} ({error})") from error

    def _create(self, shape: tuple[int, int], **options: Any) -> Any:
        with self._named():
            return self._file.create_dataset(self._name, shape, self.dtype, **options)

    def _write(self, block: AnyArray) -> None:
        if self._found is not None:
            self._put(self.count, block)
            return
        self._gathered.append(block.copy())
        if sum(map(len, self._gathered)) >= self._chunk:
            self._found = self._create((0, self.dim), maxshape=(None, self.dim), chunks=(self._chunk, self.dim))
            self._put(0, np.concatenate(self._gathered))
            self._gathered = []

    def _put(self, first: int, rows: AnyArray) -> None:
        if not self._expected:
            self._found.resize(first + len(rows), axis=0)
        self._found[first : first + len(rows)] = rows

    def _finish(self) -> None:
        if self._found is None:
            self._create((self.count, self.dim), data=np.concatenate(self._gathered))
        self._file.close()

    def _abort(self) -> None:
        if self._file is not None:
            self._file.close()


def describe(file: Any, dim: int | None, dtype: DType, metric: str | None) -> None:
    """Set the attributes of ann-benchmarks; what is not known stays as it is."""
    file.attrs["type"] = "dense"
    if dim is not None:
        file.attrs["dimension"] = dim
        file.attrs["point_type"] = "int" if is_integer(dtype) else "float"
    if metric is not None:
        file.attrs["distance"] = DISTANCES[metric]
