"""Files of rows, read in batches of bounded memory: JSON lines, tables of Arrow, and vector files of any format.

Every batch knows which rows or lines it came from, and an error names file and line.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..datasets import ENDINGS, Vectors, open_vectors
from ..errors import InvalidArgumentError
from ..types import AnyArray, Float32s, Key, Payload

if TYPE_CHECKING:
    import pyarrow

PARQUET_BUFFER = 1 << 20


@dataclass(frozen=True, slots=True)
class Fields:
    """Which fields are the key and the vector; `payload` None takes all others."""

    key: str = "key"
    vector: str = "vector"
    payload: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows to insert, in the type of the file, and where they stood: "rows 0–999" or "lines 1–1000"."""

    keys: list[Key]
    vectors: AnyArray
    payloads: list[Payload | None] | None
    where: str


@dataclass(frozen=True, slots=True)
class Source:
    """An open file: its batches, and its number of rows and its metric if the format tells."""

    batches: Iterator[Batch]
    total: int | None
    metric: str | None = None


def open_source(file: Path, fields: Fields, size: int, part: str | None = None) -> Source:
    """The rows of `file` in batches of `size`.

    Args:
        file: JSON lines or a table, whose rows have keys; or vectors in any other format, whose keys are row numbers.
        fields: key, vector and payload of JSON lines and tables.
        size: rows per batch.
        part: data set of an HDF5 file; or column of a table, which then is read as vectors alone.

    Raises:
        InvalidArgumentError: for an unknown format, and while reading, for a row that cannot be imported.
        DatasetError: for a file of vectors that is torn, empty or inconsistent.
        ModuleNotFoundError: for tables without the extra `arrow`, for HDF5 without `datasets`.
    """
    if not file.exists():
        raise InvalidArgumentError(f"{file} does not exist")
    for suffix, reader in READERS.items():
        if file.name.lower().endswith(suffix) and part is None:
            if fields.key == fields.vector:
                raise InvalidArgumentError(f"{file}: field {fields.key!r} cannot be both the key and the vector")
            return reader(file, fields, size)
    if file.suffix.lower() in ENDINGS:
        return _vectors(file, size, part)
    raise InvalidArgumentError(f"{file}: unknown format; give one of {', '.join({**READERS, **ENDINGS})}")


# --- vectors ----------------------------------------------------------------------------------------------------------


def _vectors(file: Path, size: int, part: str | None) -> Source:
    vectors = open_vectors(file, part)
    return Source(_vector_batches(vectors, size), len(vectors), vectors.metric)


def _vector_batches(vectors: Vectors, size: int) -> Iterator[Batch]:
    with vectors:
        for first, block in vectors.blocks(size):
            last = first + len(block) - 1
            yield Batch(list(range(first, last + 1)), block, None, f"rows {first}–{last}")


# --- JSON lines -------------------------------------------------------------------------------------------------------


def _jsonl(file: Path, fields: Fields, size: int) -> Source:
    return Source(_jsonl_batches(file, fields, size), None)


def _jsonl_batches(file: Path, fields: Fields, size: int) -> Iterator[Batch]:
    with _gzip_errors(file), _opened(file) as lines:
        numbered = ((at, line) for at, line in enumerate(lines, 1) if line.strip())
        dim: int | None = None
        names: set[str] = set()
        while chunk := list(islice(numbered, size)):
            rows = []
            for at, line in chunk:
                row = _json_object(line, f"{file}:{at}")
                names.update(row)
                rows.append(_json_row(row, fields, f"{file}:{at}", dim))
                dim = len(rows[-1][1])
            _require_payload(names, file, fields)
            keys, vectors, payloads = zip(*rows, strict=True)
            where = f"lines {chunk[0][0]}–{chunk[-1][0]}"
            yield Batch(list(keys), np.stack(vectors), list(payloads), where)


def _opened(file: Path) -> gzip.GzipFile | BufferedReader:
    return gzip.open(file) if file.suffix == ".gz" else file.open("rb")


@contextmanager
def _gzip_errors(file: Path) -> Iterator[None]:
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InvalidArgumentError(f"{file}: torn, or not gzip ({error})") from error


def _require_payload(names: set[str], file: Path, fields: Fields) -> None:
    """Each field of the payload must be in some row of the first batch."""
    for name in fields.payload or ():
        if name not in names:
            raise InvalidArgumentError(f"{file}: no row has a field {name!r}; they have {_names(sorted(names))}")


def _json_object(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"{where}: not JSON ({error})") from error
    if not isinstance(row, dict):
        raise InvalidArgumentError(f"{where}: not a JSON object")
    return row


def _json_row(row: dict[str, Any], fields: Fields, where: str, dim: int | None) -> tuple[Key, Float32s, Payload | None]:
    for name in (fields.key, fields.vector):
        if name not in row:
            raise InvalidArgumentError(f"{where}: no field {name!r}; has {_names(row)}")
    key = _checked_key(row.pop(fields.key), where)
    vector = _checked_vector(row.pop(fields.vector), where, dim)
    if fields.payload is not None:
        row = {name: row[name] for name in fields.payload if name in row}
    return key, vector, row or None


def _checked_key(key: Any, where: str) -> Key:
    if isinstance(key, bool) or not isinstance(key, str | int):
        raise InvalidArgumentError(f"{where}: the key is {key!r}; needs a text or an integer")
    return key


def _checked_vector(values: Any, where: str, dim: int | None) -> Float32s:
    try:
        given = np.asarray(values)
    except ValueError as error:
        raise InvalidArgumentError(f"{where}: the vector is not a flat list of numbers") from error
    if given.ndim != 1 or given.size == 0 or given.dtype.kind not in "fiu":
        raise InvalidArgumentError(f"{where}: the vector is not a flat list of numbers")
    if dim is not None and len(given) != dim:
        raise InvalidArgumentError(f"{where}: the vector has {len(given)} dimensions, those before have {dim}")
    with np.errstate(over="ignore"):
        vector = given.astype(np.float32)
    if not np.isfinite(vector).all():
        raise InvalidArgumentError(f"{where}: the vector holds NaN, infinity or a number beyond float32")
    return vector


def _names(fields: Any, most: int = 10) -> str:
    names = [repr(name) for name in fields]
    return ", ".join(names[:most]) + (", …" if len(names) > most else "") or "none"


# --- tables -----------------------------------------------------------------------------------------------------------


def _parquet(file: Path, fields: Fields, size: int) -> Source:
    import pyarrow
    import pyarrow.parquet

    try:
        # Without a buffer, the columns of a row group are read whole.
        opened = pyarrow.parquet.ParquetFile(file, pre_buffer=False, buffer_size=PARQUET_BUFFER)
    except pyarrow.ArrowInvalid as error:
        raise InvalidArgumentError(f"{file}: not a Parquet file ({error})") from error
    names = _columns(opened.schema_arrow.names, file, fields)
    return Source(_table_batches(opened.iter_batches(size, columns=names), file, fields), opened.metadata.num_rows)


def _arrow(file: Path, fields: Fields, size: int) -> Source:
    import pyarrow
    import pyarrow.ipc

    try:
        opened = pyarrow.ipc.open_file(pyarrow.memory_map(str(file)))
    except pyarrow.ArrowInvalid as error:
        raise InvalidArgumentError(f"{file}: not an Arrow file ({error})") from error
    names = _columns(opened.schema.names, file, fields)
    return Source(_table_batches(_arrow_slices(opened, names, size), file, fields), None)


def _arrow_slices(opened: Any, names: list[str], size: int) -> Iterator[pyarrow.RecordBatch]:
    for at in range(opened.num_record_batches):
        rows = opened.get_batch(at).select(names)
        rows.validate(full=True)
        for first in range(0, len(rows), size):
            yield rows.slice(first, size)


def _columns(names: list[str], file: Path, fields: Fields) -> list[str]:
    """The columns to read: key, vector and payload."""
    for name in (fields.key, fields.vector, *(fields.payload or ())):
        if name not in names:
            hint = f"; with --part {fields.vector} the keys are row numbers" if name == fields.key else ""
            raise InvalidArgumentError(f"{file}: no column {name!r}; has {_names(names)}{hint}")
    kept = dict.fromkeys(names if fields.payload is None else fields.payload)
    read = [fields.key, fields.vector, *(name for name in kept if name not in (fields.key, fields.vector))]
    for name in read:
        if names.count(name) > 1:
            raise InvalidArgumentError(f"{file}: {names.count(name)} columns are called {name!r}; rename all but one")
    return read


def _table_batches(batches: Iterator[pyarrow.RecordBatch], file: Path, fields: Fields) -> Iterator[Batch]:
    first = 0
    with _arrow_errors(file):
        for rows in batches:
            where = f"rows {first}–{first + len(rows) - 1}"
            keys = rows.column(fields.key).to_pylist()
            checked = [_checked_key(key, f"{file}, row {first + at}") for at, key in enumerate(keys)]
            vectors = _arrow_vectors(rows.column(fields.vector), f"{file}, {where}")
            others = [name for name in rows.schema.names if name not in (fields.key, fields.vector)]
            yield Batch(checked, vectors, rows.select(others).to_pylist() if others else None, where)
            first += len(rows)


@contextmanager
def _arrow_errors(file: Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise InvalidArgumentError(f"{file}: torn, or not of this format ({error})") from error


def _arrow_vectors(column: pyarrow.Array, where: str) -> AnyArray:
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not lists or not (pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type)):
        raise InvalidArgumentError(f"{where}: the vectors are {kind}; needs lists of numbers")
    lengths = set(pc.list_value_length(column).to_pylist())
    values = column.flatten()
    if len(lengths) != 1 or None in lengths or 0 in lengths or values.null_count:
        raise InvalidArgumentError(f"{where}: the vectors differ in length, or miss values")
    flat: AnyArray = values.to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), -1)


READERS: dict[str, Callable[[Path, Fields, int], Source]] = {
    ".jsonl": _jsonl,
    ".jsonl.gz": _jsonl,
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".feather": _arrow,
}


def field_list(names: Sequence[str] | None) -> tuple[str, ...] | None:
    """Names given once each, comma-separated or both."""
    return None if names is None else tuple(part for name in names for part in name.split(",") if part)
