"""One interface to vector files of any format, looked up by the ending of the name.

A format is a module below formats/ with three things:

    open_file(path, part) -> Vectors
    create_file(path, dim, dtype, rows, part, metric) -> Writer
    carried(ending) -> the element types that a file of that ending can hold, the usual one first
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from operator import index
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from ..errors import DatasetError, InvalidArgumentError
from ..storage.files import translated
from ..types import AnyArray
from .atomic import publish, temporary
from .dtypes import DType, converted, dtype_named, name_of

ENDINGS: dict[str, str] = {
    ".npy": "npy",
    ".fvecs": "texmex",
    ".ivecs": "texmex",
    ".bvecs": "texmex",
    ".fbin": "bigann",
    ".f16bin": "bigann",
    ".u8bin": "bigann",
    ".i8bin": "bigann",
    ".ibin": "bigann",
    ".hdf5": "hdf5",
    ".h5": "hdf5",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".raw": "raw",
    ".bin": "raw",
}
BLOCK_BYTES = 16 << 20
MAX_DIM = 1 << 20


class Vectors(ABC):
    """A file of vectors open for reading; a context manager.

    Rows are read when they are asked for, never all at once. One thread at a time, unless the format says otherwise.

    path: the file. shape: (rows, dim), both at least 1. dtype: that of the rows, in native byte order; bfloat16 is
    that of ml_dtypes.
    """

    path: Path
    shape: tuple[int, int]
    dtype: DType

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def dim(self) -> int:
        """Numbers per row."""
        return self.shape[1]

    @property
    def metric(self) -> str | None:
        """ "l2", "cosine" or "ip"; None where the file does not say."""
        return None

    def rows(self, start: int, stop: int) -> AnyArray:
        """Rows start to stop - 1: C-contiguous, shape (stop - start, dim); a view of the file where it can be.

        Raises:
            InvalidArgumentError: unless 0 ≤ start ≤ stop ≤ rows.
            DatasetError: if these rows contradict the header of the file, or it is closed.
        """
        if not 0 <= start <= stop <= len(self):
            raise InvalidArgumentError(f"{self.path}: rows {start} to {stop} of {len(self):,}")
        return self._rows(start, stop)

    def blocks(
        self, size: int | None = None, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[int, AnyArray]]:
        """Rows start to stop - 1 in order: the number of the first row of each block, and its rows, at most `size`.

        Without `size`, a block is about 16 MiB; without `stop`, the rows go to the end.
        """
        step = size or block_rows(self.dim, self.dtype)
        stop = len(self) if stop is None else stop
        for first in range(start, stop, step):
            yield first, self.rows(first, min(first + step, stop))

    @abstractmethod
    def _rows(self, start: int, stop: int) -> AnyArray:
        """As `rows`, for bounds that are known to be right."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the file. May be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Writer(ABC):
    """A file of vectors being written; a context manager.

    The rows go to a temporary file beside `path`, which gets its name when the block ends without an error and is
    removed otherwise. A file that was there before is replaced at that moment.

    path: the file. dim: numbers per row. dtype: what rows are stored as. count: rows written so far.
    """

    def __init__(self, path: Path, dim: int, dtype: DType, rows: int | None) -> None:
        self.path = path
        self.dim = dim
        self.dtype = dtype
        self.count = 0
        self._expected = rows
        self._part = temporary(path)

    def append(self, block: AnyArray) -> None:
        """Write the rows of `block`, shape (rows, dim), converted to the type of the file.

        Raises:
            DatasetError: for another shape, more rows than announced, or a value that the type cannot hold.
        """
        block = np.asarray(block)
        if block.ndim != 2 or block.shape[1] != self.dim:
            raise DatasetError(f"{self.path}: got a block of shape {block.shape}; needs (rows, {self.dim})")
        if self._expected is not None and self.count + len(block) > self._expected:
            raise DatasetError(f"{self.path}: more rows than the {self._expected:,} announced")
        if len(block):
            rows = converted(block, self.dtype, str(self.path), self.count)
            with translated("write", self.path):
                self._write(rows)
            self.count += len(block)

    @abstractmethod
    def _begin(self) -> None:
        """Open the temporary file."""

    @abstractmethod
    def _write(self, block: AnyArray) -> None:
        """Write rows of the right shape and type, at least one."""

    @abstractmethod
    def _finish(self) -> None:
        """Complete the temporary file and close it."""

    @abstractmethod
    def _abort(self) -> None:
        """Close the temporary file, whatever is in it."""

    def _publish(self) -> None:
        publish(self._part, self.path)

    def __enter__(self) -> Self:
        try:
            with translated("write", self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._begin()
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._check_count()
                with translated("write", self.path):
                    self._finish()
                    self._publish()
        finally:
            self._discard()

    def _discard(self) -> None:
        """Remove the temporary file, if it is still there, though it cannot even be closed: on a full disk."""
        try:
            with suppress(OSError, RuntimeError):
                self._abort()
        finally:
            with suppress(FileNotFoundError, NotADirectoryError):
                self._part.unlink()

    def _check_count(self) -> None:
        if self.count == 0:
            raise DatasetError(f"{self.path}: no rows to write")
        if self._expected is not None and self.count != self._expected:
            raise DatasetError(f"{self.path}: {self.count:,} rows came, {self._expected:,} were announced")


def open_vectors(path: str | Path, part: str | None = None) -> Vectors:
    """The vectors in `path`, whatever its format.

    Args:
        path: a file whose name ends in one of ENDINGS.
        part: which data set of an HDF5 file ("train" unless given), which column of a Parquet or Arrow file (the
            only column of vectors unless given).

    Raises:
        DatasetError: for a file that is missing, torn, empty, inconsistent or of an unknown format.
        ModuleNotFoundError: for HDF5 without the extra `datasets`, for Parquet and Arrow without `arrow`.
    """
    path = existing(path)
    vectors: Vectors = _format(path).open_file(path, part)
    return vectors


def create_vectors(
    path: str | Path,
    dim: int,
    dtype: str | np.typing.DTypeLike,
    rows: int | None = None,
    *,
    part: str | None = None,
    metric: str | None = None,
) -> Writer:
    """A new file of vectors, to be used as a context manager.

    Args:
        path: the file; its ending chooses the format. Missing folders are made.
        dim: numbers per row.
        dtype: a short name such as "f16", or a NumPy type.
        rows: how many rows will come, if that is known; HDF5 is then stored in one piece.
        part: name of the HDF5 data set or of the column. With it, the other data sets of an HDF5 file that exists are
            kept; without it, such a file is replaced.
        metric: "l2", "cosine" or "ip", kept where the format has a place for it.

    Raises:
        DatasetError: for an unknown format, a type that the format cannot carry, or dimensions out of range.
        InvalidArgumentError: for an unknown metric.
    """
    path, dim = Path(path), index(dim)
    if metric not in (None, "l2", "cosine", "ip"):
        raise InvalidArgumentError(f"{path}: unknown metric {metric!r}; choose one of l2, cosine, ip")
    kind = as_dtype(dtype)
    if not 1 <= dim <= MAX_DIM:
        raise DatasetError(f"{path}: {dim} dimensions; needs 1 to {MAX_DIM:,}")
    if kind not in (known := carried(path)):
        raise DatasetError(f"{path}: {ending(path)} holds {_names(known)}, not {name_of(kind)}; {_alternatives(kind)}")
    writer: Writer = _format(path).create_file(path, dim, kind, rows, part, metric)
    return writer


def ending(path: Path) -> str:
    """The ending of `path` that chooses its format.

    Raises:
        DatasetError: if it is none of ENDINGS.
    """
    found = path.suffix.lower()
    if found not in ENDINGS:
        raise DatasetError(f"{path}: unknown format; the name must end in one of {', '.join(ENDINGS)}")
    return found


def carried(path: Path) -> tuple[DType, ...]:
    """The element types that a file of this name can hold, the usual one first."""
    known: tuple[DType, ...] = _format(path).carried(ending(path))
    return known


def fitting(path: Path, dtype: DType) -> DType:
    """`dtype` if a file of this name can hold it, else the usual type of its format."""
    known = carried(path)
    return dtype if dtype in known else known[0]


def as_dtype(dtype: str | np.typing.DTypeLike) -> DType:
    """The type behind a short name or a NumPy type, in native byte order."""
    if isinstance(dtype, str):
        return dtype_named(dtype)
    return dtype_named(name_of(np.dtype(dtype)))


def existing(path: str | Path) -> Path:
    """`path`, which must be a file with something in it.

    Raises:
        DatasetError: otherwise.
    """
    path = Path(path)
    if not path.exists():
        raise DatasetError(f"{path} does not exist")
    if not path.is_file():
        raise DatasetError(f"{path} is not a file")
    if path.stat().st_size == 0:
        raise DatasetError(f"{path} is empty: 0 bytes")
    return path


def block_rows(dim: int, dtype: DType) -> int:
    """How many rows make a block of about BLOCK_BYTES."""
    return max(1, BLOCK_BYTES // (dim * dtype.itemsize))


def _format(path: Path) -> Any:
    return import_module(f".formats.{ENDINGS[ending(path)]}", __package__)


def _names(dtypes: tuple[DType, ...]) -> str:
    return ", ".join(map(name_of, dtypes))


def _alternatives(dtype: DType) -> str:
    others = [each for each in ENDINGS if dtype in carried(Path(f"x{each}"))]
    return f"{name_of(dtype)} goes into {', '.join(others)}"
