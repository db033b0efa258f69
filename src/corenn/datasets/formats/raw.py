"""Packed matrices without a header, `.raw` or `.bin`, described by the manifest beside them.

The manifest is NAME.json beside the file, or that of the layout the file lies in. To be read, `dim` and `dtype` are
enough: {"dim": 128, "dtype": "f32"}. The numbers are little-endian, row after row.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DatasetError
from ...types import AnyArray
from ..dtypes import ALL, NAMES, DType, dtype_named, name_of
from ..vectors import MAX_DIM
from .plain import Mapped, PlainWriter, check_size, map_file


def carried(_ending: str) -> tuple[DType, ...]:
    """Every type, bf16 too; f32 first."""
    return (NAMES["f32"], *(dtype for dtype in ALL if dtype != NAMES["f32"]))


def open_file(path: Path, _part: str | None) -> Mapped:
    """The matrix in `path`, mapped."""
    where, found = _manifest(path)
    dim, dtype = found.get("dim"), found.get("dtype")
    if type(dim) is not int or not 1 <= dim <= MAX_DIM or dtype not in tuple(NAMES):
        raise DatasetError(f"{where}: dim is {dim!r} and dtype {dtype!r}; needs a number and one of {', '.join(NAMES)}")
    kind = dtype_named(str(dtype))
    size, row = path.stat().st_size, dim * kind.itemsize
    if size % row:
        raise DatasetError(
            f"{path} is torn: {size:,} bytes is not a whole number of rows of {dim:,} {dtype} ({row:,} bytes each)"
        )
    count = found.get("count")
    if type(count) is int:
        check_size(path, count * row, f"{count:,} rows of {dim:,} {dtype}")
    metric = found.get("metric")
    matrix = map_file(path, kind.newbyteorder("<"), 0, (size // row, dim))
    return Mapped(path, matrix, kind, metric if metric in ("l2", "cosine", "ip") else None)


def _manifest(path: Path) -> tuple[Path, dict[str, Any]]:
    from ..layout import manifest_path
    from ..manifest import read_json

    beside = path.with_name(f"{path.name}.json")
    for where in (manifest_path(path), beside):
        if where.exists():
            return where, read_json(where)
    raise DatasetError(
        f'{path} has no header; say what it holds in {beside.name} beside it: {{"dim": 128, "dtype": "f32"}}'
    )


def create_file(
    path: Path, dim: int, dtype: DType, rows: int | None, _part: str | None, metric: str | None
) -> PlainWriter:
    """A new matrix and its manifest."""
    return _Writer(path, dim, dtype, rows, metric)


class _Writer(PlainWriter):
    def __init__(self, path: Path, dim: int, dtype: DType, rows: int | None, metric: str | None) -> None:
        super().__init__(path, dim, dtype, rows)
        self._metric = metric
        self._digest = hashlib.sha256()

    def _write(self, block: AnyArray) -> None:
        block = block.astype(self.dtype.newbyteorder("<"), copy=False)
        self._digest.update(block.view(np.uint8).data)
        super()._write(block)

    def _publish(self) -> None:
        from ..layout import layout_of, manifest_path
        from ..manifest import Manifest, now, write_manifest

        # A matrix without its manifest is an error to read; one with that of another would be read wrongly.
        manifest_path(self.path).unlink(missing_ok=True)
        super()._publish()
        inside = layout_of(self.path)
        manifest = Manifest(
            name=inside.name if inside else self.path.stem,
            source="",
            dim=self.dim,
            dtype=name_of(self.dtype),
            count=self.count,
            metric=self._metric,
            sha256=self._digest.hexdigest(),
            command="",
            created=now(),
            file=f"{self.path.parent.name}/{self.path.name}" if inside else self.path.name,
            size=self.path.stat().st_size,
        )
        write_manifest(self.path, manifest)
