"""Parquet with a column of vectors: `.parquet`. Needs the extra `arrow`."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import DatasetError
from ...types import AnyArray
from ..dtypes import DType
from ..vectors import block_rows
from .batched import Batched, BatchedWriter, arrow_errors, carried, column_of, element_type, matrix_of

if TYPE_CHECKING:
    import pyarrow

__all__ = ["carried", "create_file", "open_file"]

BUFFER = 1 << 20


def open_file(path: Path, part: str | None) -> Batched:
    """The vectors in column `part` of `path`."""
    import pyarrow.parquet

    with arrow_errors(path):
        # Reading a row group ahead would hold all of it.
        file = pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER)
    try:
        column = column_of(file.schema_arrow, path, part)
        return _Vectors(path, file, column)
    except BaseException:
        file.close()
        raise


class _Vectors(Batched):
    def __init__(self, path: Path, file: Any, column: str) -> None:
        self._file = file
        self._column = column
        rows = file.metadata.num_rows
        groups = [file.metadata.row_group(at).num_rows for at in range(file.metadata.num_row_groups)]
        if sum(groups) != rows or min(groups, default=0) < 0:
            raise DatasetError(f"{path}: {rows:,} rows, of which row groups have {sum(groups):,}; get it again")
        self._groups: list[int] = [0, *accumulate(groups)]
        with arrow_errors(path):
            head = next(file.iter_batches(1, columns=[column]), None)
            if rows == 0 or head is None or len(head) == 0:
                raise DatasetError(f"{path} is empty: it has no rows")
            first = matrix_of(head.column(0), None, f"{path}, row 0")
            super().__init__(path, (rows, first.shape[1]), element_type(head.column(0).type))

    def _start(self, row: int) -> int:
        return self._groups[bisect_right(self._groups, row) - 1]

    def _open_stream(self, row: int) -> Iterator[AnyArray]:
        groups = range(self._groups.index(row), len(self._groups) - 1)
        size = block_rows(self.dim, self.dtype)
        for batch in self._file.iter_batches(size, row_groups=list(groups), columns=[self._column]):
            where = f"{self.path}, rows {row} to {row + len(batch) - 1}"
            yield matrix_of(batch.column(0), self.dim, where)
            row += len(batch)

    def close(self) -> None:
        super().close()
        self._file.close()


def create_file(
    path: Path, dim: int, dtype: DType, rows: int | None, part: str | None, _metric: str | None
) -> BatchedWriter:
    """A new file with the one column `part`, "vector" unless given."""
    return _Writer(path, dim, dtype, rows, part)


class _Writer(BatchedWriter):
    def _open_out(self, schema: pyarrow.Schema) -> Any:
        import pyarrow.parquet

        # Dictionaries and general compression take time on numbers of vectors and save next to nothing.
        return pyarrow.parquet.ParquetWriter(self._part, schema, use_dictionary=False, compression="none")

    def _write_batch(self, batch: pyarrow.RecordBatch) -> None:
        self._out.write_batch(batch)
