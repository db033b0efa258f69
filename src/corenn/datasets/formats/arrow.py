"""Arrow's file format, also known as Feather 2, with a column of vectors: `.arrow`, `.feather`.

Mapped: batches that are not compressed are not copied. Needs the extra `arrow`.
"""

from __future__ import annotations

import mmap
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import DatasetError
from ...types import AnyArray
from ..dtypes import DType
from .batched import Batched, BatchedWriter, arrow_errors, carried, column_of, element_type, matrix_of
from .plain import release

if TYPE_CHECKING:
    import pyarrow

__all__ = ["carried", "create_file", "open_file"]


def open_file(path: Path, part: str | None) -> Batched:
    """The vectors in column `part` of `path`."""
    import pyarrow as pa
    import pyarrow.ipc

    with arrow_errors(path):
        with path.open("rb") as file:
            pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        schema = pa.ipc.open_file(pa.py_buffer(pages)).schema
        column = column_of(schema, path, part)
        options = pa.ipc.IpcReadOptions(included_fields=[schema.names.index(column)])
        return _Vectors(path, pa.ipc.open_file(pa.py_buffer(pages), options=options), pages)


class _Vectors(Batched):
    def __init__(self, path: Path, file: Any, pages: mmap.mmap) -> None:
        self._file = file
        self._pages: mmap.mmap | None = pages
        batches = [self._count(at) for at in range(file.num_record_batches)]
        self._firsts: list[int] = [0, *accumulate(batches)]
        if self._firsts[-1] == 0:
            raise DatasetError(f"{path} is empty: it has no rows")
        head = self._column(next(at for at, rows in enumerate(batches) if rows)).slice(0, 1)
        first = matrix_of(head, None, f"{path}, row 0")
        super().__init__(path, (self._firsts[-1], first.shape[1]), element_type(head.type))

    def _count(self, batch: int) -> int:
        """Rows of a batch: the file says so only in the batch itself, and Arrow touches all of it to read that."""
        count: int = self._file.get_batch(batch).num_rows
        release(self._pages)
        return count

    def _column(self, batch: int) -> pyarrow.Array:
        column = self._file.get_batch(batch).column(0)
        column.validate(full=True)
        return column

    def _start(self, row: int) -> int:
        return self._firsts[bisect_right(self._firsts, row) - 1]

    def _open_stream(self, row: int) -> Iterator[AnyArray]:
        for at in range(bisect_right(self._firsts, row) - 1, len(self._firsts) - 1):
            column = self._column(at)
            where = f"{self.path}, rows {self._firsts[at]} to {self._firsts[at + 1] - 1}"
            if len(column):
                yield matrix_of(column, self.dim, where)
            del column
            release(self._pages)

    def close(self) -> None:
        super().close()
        self._file = self._pages = None


def create_file(
    path: Path, dim: int, dtype: DType, rows: int | None, part: str | None, _metric: str | None
) -> BatchedWriter:
    """A new file with the one column `part`, "vector" unless given."""
    return _Writer(path, dim, dtype, rows, part)


class _Writer(BatchedWriter):
    def _open_out(self, schema: pyarrow.Schema) -> Any:
        import pyarrow as pa
        import pyarrow.ipc

        return pa.ipc.new_file(str(self._part), schema)

    def _write_batch(self, batch: pyarrow.RecordBatch) -> None:
        self._out.write_batch(batch)
