"""A database as files that anything can read: packed vectors, keys, payloads, ids, and all of it as Parquet."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ..datasets import create_vectors, manifest
from ..datasets.atomic import replacing
from ..datasets.dtypes import DType, converted, dtype_named
from ..errors import DatasetError
from ..storage.draft import folder_draft
from ..storage.files import Files
from ..types import Key
from .snapshot import Rows, Snapshot

if TYPE_CHECKING:
    import pyarrow

Write = Callable[[Rows], None]
VECTORS, IDS, KEYS, PAYLOADS, PARQUET = "vectors.raw", "ids.raw", "keys.jsonl", "payloads.jsonl", "rows.parquet"


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export has written. rows, dim, dtype: of the vectors. files: names, in the folder."""

    rows: int
    dim: int
    dtype: str
    files: tuple[str, ...]


def export_vectors(
    snapshot: Snapshot, out: Path, *, dtype: str = "f32", parquet: bool = False, command: str = "",
    progress: Callable[[int], None] | None = None,
) -> Exported:  # fmt: skip
    """Write all rows of a snapshot to a new folder `out`, block by block. It appears whole or not at all.

    Row i of every file is the same row, in the order of insertion: `vectors.raw` and `ids.raw` are packed matrices,
    `keys.jsonl` and `payloads.jsonl` have one JSON value per line, null for no payload. Each file has a manifest.

    Args:
        snapshot: the rows.
        out: where nothing is yet.
        dtype: of the vectors, a name of corenn.datasets. Floats round; integers must hold every component exactly.
        parquet: write `rows.parquet` as well, with id, key, vector and payload; needs the extra `arrow`.
        command: noted in the manifests.
        progress: called with each number of rows written.

    Raises:
        DatasetError: for an empty database, or a component that the dtype cannot hold.
        CorruptionError: for a row that is damaged.
        DatabaseExistsError: if something is at `out`.
    """
    kind = dtype_named(dtype)
    if not len(snapshot):
        raise DatasetError(f"{snapshot.path} holds no rows to export")
    files = Files()
    with folder_draft(out, files) as draft:
        draft.mkdir()
        makers = [_matrices(draft, snapshot, kind), _lines(draft)]
        makers += [_table(draft, snapshot, kind)] if parquet else []
        with ExitStack() as stack:
            writers = [stack.enter_context(maker) for maker in makers]
            for rows in snapshot.blocks():
                for write in writers:
                    write(rows)
                if progress is not None:
                    progress(len(rows.ids))
        names = (VECTORS, IDS, KEYS, PAYLOADS, *([PARQUET] if parquet else []))
        for name in names:
            _describe(draft / name, snapshot, out.name, command)
    return Exported(len(snapshot), snapshot.settings.dim, dtype, names)


@contextmanager
def _matrices(folder: Path, snapshot: Snapshot, kind: DType) -> Iterator[Write]:
    settings, count = snapshot.settings, len(snapshot)
    with (
        create_vectors(folder / VECTORS, settings.dim, kind, count, metric=settings.metric) as vectors,
        create_vectors(folder / IDS, 1, np.uint32, count) as ids,
    ):

        def write(rows: Rows) -> None:
            vectors.append(converted(rows.vectors, kind, str(snapshot.path), vectors.count))
            ids.append(rows.ids[:, None])

        yield write


@contextmanager
def _lines(folder: Path) -> Iterator[Write]:
    with ExitStack() as stack:
        keys, payloads = (_opened(stack, folder / name) for name in (KEYS, PAYLOADS))

        def write(rows: Rows) -> None:
            keys.write(b"".join(json.dumps(key, ensure_ascii=False).encode() + b"\n" for key in rows.keys))
            payloads.write(b"".join((payload or b"null") + b"\n" for payload in rows.payloads))

        yield write


def _opened(stack: ExitStack, path: Path) -> BinaryIO:
    return stack.enter_context(stack.enter_context(replacing(path)).open("wb"))


@contextmanager
def _table(folder: Path, snapshot: Snapshot, kind: DType) -> Iterator[Write]:
    import pyarrow as pa
    import pyarrow.parquet

    schema = _schema(snapshot, kind)
    integers = schema.field("key").type == pa.int64()

    def batch(rows: Rows) -> pyarrow.RecordBatch:
        flat = pa.array(converted(rows.vectors, kind, PARQUET).reshape(-1))
        keys: list[Key] = rows.keys if integers else [str(key) for key in rows.keys]
        columns: list[Any] = [
            pa.array(rows.ids), pa.array(keys, schema.field("key").type),
            pa.FixedSizeListArray.from_arrays(flat, type=schema.field("vector").type),
            pa.array([None if payload is None else payload.decode() for payload in rows.payloads], pa.string()),
        ]  # fmt: skip
        return pa.record_batch(columns, schema=schema)

    with (
        replacing(folder / PARQUET) as part,
        # Dictionaries take time on numbers of vectors and save nothing.
        pyarrow.parquet.ParquetWriter(part, schema, use_dictionary=False, compression="zstd") as file,
    ):
        yield lambda rows: file.write_batch(batch(rows))


def _schema(snapshot: Snapshot, kind: DType) -> pyarrow.Schema:
    """Keys are int64 if all are integers, else strings."""
    import pyarrow as pa

    if kind.kind not in "fiu":
        raise DatasetError(f"Parquet has no type for {kind.name}; choose f32 or f16, or leave out Parquet")
    key = pa.int64() if snapshot.key_types() == {int} else pa.string()
    return pa.schema([
        pa.field("id", pa.uint32(), nullable=False), pa.field("key", key, nullable=False),
        pa.field("vector", pa.list_(pa.from_numpy_dtype(kind), snapshot.settings.dim), nullable=False),
        pa.field("payload", pa.string()),
    ])  # fmt: skip


def _describe(file: Path, snapshot: Snapshot, name: str, command: str) -> None:
    """Write the manifest of a file, or complete the one that its writer has left."""
    beside = file.with_name(f"{file.name}.json")
    found = manifest.read_manifest(beside) if beside.exists() else manifest.describe(file)
    manifest.write_manifest(file, replace(found, name=name, source=str(snapshot.path), command=command))
