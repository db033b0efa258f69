"""What formats of packed numbers share: a mapped matrix to read, a header and rows to write."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ...errors import DatasetError
from ...types import AnyArray
from ..dtypes import DType
from ..vectors import Vectors, Writer


class Mapped(Vectors):
    """Vectors that are a strided view of a mapped file. Any number of threads may read."""

    def __init__(self, path: Path, matrix: AnyArray, dtype: DType, metric: str | None = None) -> None:
        self.path = path
        self.shape = (matrix.shape[0], matrix.shape[1])
        self.dtype = dtype
        self._metric = metric
        self._matrix: AnyArray | None = matrix

    @property
    def metric(self) -> str | None:
        """Of the manifest, in a format that has one."""
        return self._metric

    def _rows(self, start: int, stop: int) -> AnyArray:
        return np.ascontiguousarray(self.matrix[start:stop], self.dtype)

    @property
    def matrix(self) -> AnyArray:
        """The whole file as it is mapped, in its own byte order and strides."""
        if self._matrix is None:
            raise DatasetError(f"{self.path} is closed")
        return self._matrix

    def blocks(
        self, size: int | None = None, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[int, AnyArray]]:
        """As Vectors.blocks. Pages that were passed are given back, so that a scan does not fill the memory."""
        for first, block in super().blocks(size, start, stop):
            yield first, block
            if self._matrix is not None:
                release(self._matrix)

    def close(self) -> None:
        self._matrix = None


def release(pages: object) -> None:
    """Tell the system that the pages mapped so far are not needed; they are read again if they are.

    Args:
        pages: a map, or an array whose memory is one.
    """
    while not isinstance(pages, mmap.mmap):
        pages = pages.obj if isinstance(pages, memoryview) else getattr(pages, "base", None)
        if pages is None:
            return
    if hasattr(mmap, "MADV_DONTNEED"):
        pages.madvise(mmap.MADV_DONTNEED)


def map_file(path: Path, dtype: DType, offset: int, shape: tuple[int, int], order: str = "C") -> AnyArray:
    """A read-only map of `shape` numbers behind `offset`; the size of the file has been checked."""
    return np.memmap(path, dtype, mode="r", offset=offset, shape=shape, order=order)  # type: ignore[call-overload,no-any-return]


def check_size(path: Path, needed: int, described: str) -> None:
    """Compare the size of a file with what its header asks for.

    Raises:
        DatasetError: if they differ.
    """
    size = path.stat().st_size
    if size != needed:
        word = "torn" if size < needed else "too long"
        raise DatasetError(f"{path} is {word}: {described} is {needed:,} bytes, the file has {size:,}; get it again")


class PlainWriter(Writer):
    """Rows behind a header whose length does not depend on their number."""

    _file: BinaryIO | None = None

    def _header(self, count: int) -> bytes:
        """The header of a file with `count` rows."""
        return b""

    def _begin(self) -> None:
        self._file = self._part.open("wb")
        self._file.write(self._header(0))

    def _write(self, block: AnyArray) -> None:
        assert self._file is not None
        self._file.write(block.view(np.uint8).data)

    def _finish(self) -> None:
        assert self._file is not None
        self._file.seek(0)
        self._file.write(self._header(self.count))
        self._file.close()

    def _abort(self) -> None:
        if self._file is not None:
            self._file.close()
