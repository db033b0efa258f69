"""What formats of batches share: one column of vectors, read forward batch by batch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import DatasetError
from ...types import AnyArray
from ..dtypes import NAMES, NATIVE, DType
from ..vectors import Vectors, Writer, block_rows

if TYPE_CHECKING:
    import pyarrow

DEFAULT_COLUMN = "vector"


def carried(_ending: str) -> tuple[DType, ...]:
    """All but bf16, which Arrow has no type for; f32 first."""
    return (NAMES["f32"], *(dtype for dtype in NATIVE if dtype != NAMES["f32"]))


def column_of(schema: pyarrow.Schema, path: Path, part: str | None) -> str:
    """The name of the column of vectors: `part`, else "vector", else the only column of lists of numbers.

    Raises:
        DatasetError: if there is none, or several to choose from.
    """
    lists = [field.name for field in schema if _is_vectors(field.type)]
    if part is None:
        part = DEFAULT_COLUMN if DEFAULT_COLUMN in lists or len(lists) != 1 else lists[0]
        if part not in lists and lists:
            raise DatasetError(f"{path}: several columns of vectors, {_listed(lists)}; choose one, as with --part")
    if part not in schema.names:
        raise DatasetError(f"{path}: no column {part!r}; has {_listed(schema.names)}")
    if part not in lists:
        raise DatasetError(f"{path}: column {part!r} is {schema.field(part).type}; needs lists of numbers")
    return part


def _is_vectors(kind: pyarrow.DataType) -> bool:
    import pyarrow as pa

    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(lists and (pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type)))


def _listed(names: list[str], most: int = 10) -> str:
    shown = ", ".join(map(repr, names[:most]))
    return f"{shown}, …" if len(names) > most else shown or "none"


def element_type(kind: pyarrow.DataType) -> DType:
    """The NumPy type of the numbers in lists of type `kind`."""
    dtype: DType = np.dtype(kind.value_type.to_pandas_dtype())
    return dtype


def matrix_of(column: pyarrow.Array, dim: int | None, where: str) -> AnyArray:
    """A column of lists as an array of shape (rows, dim), without a copy where there are no gaps.

    Args:
        column: lists of numbers.
        dim: how long each must be; that of the first unless given.
        where: file and rows, for messages.

    Raises:
        DatasetError: for a row that is missing, holds a missing value, or is of another length.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if column.null_count:
        raise DatasetError(f"{where}: {column.null_count:,} rows have no vector")
    fixed = pa.types.is_fixed_size_list(column.type)
    lengths = [column.type.list_size] if fixed else pc.unique(pc.list_value_length(column)).to_pylist()
    dim = dim or lengths[0]
    if lengths != [dim] or not dim:
        raise DatasetError(f"{where}: vectors of {' and '.join(map(str, lengths[:4]))} dimensions, not all of {dim}")
    values = column.flatten()
    if values.null_count:
        raise DatasetError(f"{where}: {values.null_count:,} values are missing within vectors")
    flat: AnyArray = values.to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), dim)


class Batched(Vectors):
    """Vectors in batches that are read one after the other; going back starts at an earlier batch again.

    Reading rows in ascending order reads every batch once. Needs the extra `arrow`.
    """

    def __init__(self, path: Path, shape: tuple[int, int], dtype: DType) -> None:
        self.path = path
        self.shape = shape
        self.dtype = dtype
        self._stream: Iterator[AnyArray] | None = None
        self._first = 0
        self._block: AnyArray | None = None
        self._closed = False

    @abstractmethod
    def _start(self, row: int) -> int:
        """The last row at or before `row` at which a stream can begin."""

    @abstractmethod
    def _open_stream(self, row: int) -> Iterator[AnyArray]:
        """The batches from `row` on, which _start has returned."""

    def _rows(self, start: int, stop: int) -> AnyArray:
        if self._closed:
            raise DatasetError(f"{self.path} is closed")
        pieces: list[AnyArray] = []
        while start < stop:
            first, block = self._holding(start)
            pieces.append(block[start - first : stop - first])
            start = min(stop, first + len(block))
        if len(pieces) == 1:
            return np.ascontiguousarray(pieces[0])
        return np.concatenate(pieces) if pieces else np.empty((0, self.dim), self.dtype)

    def _holding(self, row: int) -> tuple[int, AnyArray]:
        """The batch with `row`, and the number of its first row."""
        while self._block is None or not self._first <= row < self._first + len(self._block):
            ahead = self._first + (0 if self._block is None else len(self._block))
            if self._stream is None or row < ahead or self._start(row) > ahead:
                ahead = self._start(row)
                self._stream = self._open_stream(ahead)
            self._first, self._block = ahead, None
            with arrow_errors(self.path):
                block = next(self._stream, None)
            if block is None:
                raise DatasetError(f"{self.path} is torn: it ends at row {ahead:,} of {len(self):,}; get it again")
            self._block = block
        return self._first, self._block

    def close(self) -> None:
        self._closed, self._stream, self._block = True, None, None


@contextmanager
def arrow_errors(path: Path) -> Iterator[None]:
    """What Arrow says about a damaged file, as one line of ours."""
    import pyarrow

    try:
        yield
    except DatasetError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, MemoryError) as error:
        raise DatasetError(f"{path}: torn, or not of this format ({error})") from error


class BatchedWriter(Writer):
    """Rows gathered into batches of some megabytes, each written as one column of lists of fixed size."""

    def __init__(self, path: Path, dim: int, dtype: DType, rows: int | None, part: str | None) -> None:
        super().__init__(path, dim, dtype, rows)
        self._column = part or DEFAULT_COLUMN
        self._gathered: list[AnyArray] = []
        self._rows_gathered = 0
        self._out: Any = None

    @abstractmethod
    def _open_out(self, schema: pyarrow.Schema) -> Any:
        """The Arrow writer at the temporary file."""

    @abstractmethod
    def _write_batch(self, batch: pyarrow.RecordBatch) -> None:
        """Write one batch."""

    def _begin(self) -> None:
        import pyarrow as pa

        kind = pa.list_(pa.from_numpy_dtype(self.dtype), self.dim)
        self._schema = pa.schema([pa.field(self._column, kind, nullable=False)])
        self._out = self._open_out(self._schema)

    def _write(self, block: AnyArray) -> None:
        most = block_rows(self.dim, self.dtype)
        for start in range(0, len(block), most):
            piece = block[start : start + most].copy()
            if self._rows_gathered + len(piece) > most:
                self._flush()
            self._gathered.append(piece)
            self._rows_gathered += len(piece)

    def _flush(self) -> None:
        import pyarrow as pa

        flat = pa.array(np.concatenate(self._gathered).reshape(-1))
        lists = pa.FixedSizeListArray.from_arrays(flat, type=self._schema.field(0).type)
        self._write_batch(pa.record_batch([lists], schema=self._schema))
        self._gathered, self._rows_gathered = [], 0

    def _finish(self) -> None:
        self._flush()
        self._close()

    def _abort(self) -> None:
        self._close()

    def _close(self) -> None:
        # Closed twice, Arrow's writer would write its footer twice.
        out, self._out = self._out, None
        if out is not None:
            out.close()
