"""What `corenn eval` reads: vectors, queries and true neighbours of any format, or packed matrices without a header.

The format follows from the ending of the name. Where the ending is unknown, or is that of raw values without a manifest
beside them, the rows are taken to be packed: `--dtype` and `--dim` say how.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import console

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..types import AnyArray

# What a database stores for matrices of a type; the others become f32.
STORED = {"f32": "f32", "f16": "f16", "bf16": "bf16", "u8": "u8", "f64": "f32", "i8": "f32"}
BLOCK_ROWS = 8_192
HDF5 = (".hdf5", ".h5")


@dataclass(frozen=True, slots=True)
class Form:
    """The shape of packed matrices: rows of `dim` values of type `dtype`, without a header."""

    dtype: str
    dim: int

    def read(self, path: Path) -> AnyArray:
        """The matrix in `path`, mapped, shape (rows, dim)."""
        import ml_dtypes
        import numpy as np

        names = {"f32": "<f4", "f16": "<f2", "f64": "<f8", "u8": "u1", "i8": "i1", "bf16": ml_dtypes.bfloat16}
        kind = np.dtype(names[self.dtype])
        with path.open("rb") as file:
            if file.read(6) == b"\x93NUMPY":
                console.fail(f"{path} is a NumPy file; give it a name that ends in .npy")
        size, row = path.stat().st_size, self.dim * kind.itemsize
        if size == 0 or size % row:
            console.fail(
                f"{path}: {size:,} bytes is not a whole number of rows of {self.dim} {self.dtype} values "
                f"({row:,} bytes each); check --dim and --dtype"
            )
        return np.memmap(path, kind, mode="r", shape=(size // row, self.dim))


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a file: how many, of what, and in blocks of (number of the first row, rows of shape (some, dim))."""

    count: int
    dim: int
    dtype: str
    metric: str | None
    blocks: Iterable[tuple[int, AnyArray]]

    @property
    def stored(self) -> str:
        """What a database stores for them."""
        return STORED.get(self.dtype, "f32")


def known(path: Path) -> bool:
    """Whether `path` says itself what it holds, by its ending or by a manifest."""
    from ..datasets import ENDINGS
    from ..datasets.layout import manifest_path

    kind = ENDINGS.get(path.suffix.lower())
    return kind is not None and (kind != "raw" or manifest_path(path).exists())


@contextmanager
def opened(path: Path, form: Form | None, part: str) -> Iterator[Rows]:
    """The rows in `path`; `form` is used where the file does not tell, `part` is the data set of an HDF5 file."""
    if not known(path):
        if form is None:
            console.fail(f"{path}: a file of rows without a header needs --dim, the number of dimensions")
        matrix = form.read(path)
        starts = range(0, len(matrix), BLOCK_ROWS)
        blocks = ((start, matrix[start : start + BLOCK_ROWS]) for start in starts)
        yield Rows(len(matrix), form.dim, form.dtype, None, blocks)
        return
    from ..datasets import open_vectors
    from ..datasets.dtypes import name_of

    with open_vectors(path, part if path.suffix.lower() in HDF5 else None) as vectors:
        rows, dim = vectors.shape
        yield Rows(rows, dim, name_of(vectors.dtype), vectors.metric, vectors.blocks())


def read_all(rows: Rows) -> AnyArray:
    """All of `rows` as float32, shape (rows, dim)."""
    import numpy as np

    return np.concatenate([np.asarray(block, np.float32) for _, block in rows.blocks])


def read_truth(path: Path, queries: int, k: int) -> AnyArray:
    """Row numbers of the k nearest of each query, int64 of shape (queries, k); packed ones are uint32."""
    import numpy as np

    if known(path):
        from ..datasets import read_truth

        ids = read_truth(path).ids
        if len(ids) != queries or ids.shape[1] < k:
            console.fail(f"{path}: {ids.shape[1]} neighbours of {len(ids):,} queries; needs {k} or more of {queries:,}")
        return ids[:, :k]
    size = path.stat().st_size
    columns, rest = divmod(size, 4 * queries)
    if rest or columns < k:
        console.fail(
            f"{path}: {size:,} bytes is not {queries:,} rows of {k} or more uint32 ({4 * k} bytes or more each)"
        )
    return np.fromfile(path, "<u4").reshape(queries, columns)[:, :k].astype(np.int64)
