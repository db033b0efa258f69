"""The state of an unfinished search for true neighbours: a file from which a later call goes on.

It is a `.npz` with the heaps and, as JSON, what they belong to. A state of other inputs or arguments, or a damaged one,
is not used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ..kernels.topk import Heaps
from ..types import AnyArray
from .atomic import replacing
from .vectors import Vectors

log = logging.getLogger("corenn.datasets")

VERSION = 1
# What NumPy and zipfile say of wrong bytes; a single one may claim encryption, another compression or a vast array.
DAMAGE = (
    OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, struct.error, RuntimeError, TypeError,
    AttributeError, OverflowError, MemoryError,
)  # fmt: skip
PROBES = 64  # rows of the base that are looked at to recognise it, beside its size and time


def identity(base: Vectors, rows: int, queries: AnyArray, k: int, metric: str) -> dict[str, Any]:
    """What a state belongs to: the file of the base by size, time and some of its rows, the queries by all bytes."""
    file = base.path.stat()
    probes = hashlib.sha256()
    for row in np.linspace(0, rows - 1, min(PROBES, rows)).astype(int).tolist():
        probes.update(base.rows(row, row + 1).tobytes())
    return {
        "version": VERSION,
        "base": str(base.path.resolve()),
        "bytes": file.st_size,
        "modified_ns": file.st_mtime_ns,
        "rows": rows,
        "dim": base.shape[1],
        "dtype": str(base.dtype),
        "probes": probes.hexdigest(),
        "queries": [str(queries.dtype), *queries.shape, _digest(queries)],
        "k": k,
        "metric": metric,
    }


def _digest(rows: AnyArray) -> str:
    """Of all bytes; C-contiguous rows are not copied."""
    return hashlib.sha256(np.ascontiguousarray(rows).view(np.uint8).data).hexdigest()


def save(path: Path, belongs_to: dict[str, Any], heaps: Heaps) -> None:
    """Write the state to `path`, atomically."""
    label = np.frombuffer(json.dumps(belongs_to).encode(), np.uint8)
    with replacing(path) as part, part.open("wb") as file:
        np.savez(file, label=label, **heaps._asdict())


def restore(path: Path, belongs_to: dict[str, Any], heaps: Heaps) -> bool:
    """Fill `heaps` from the state in `path`; False, and a line in the log, if it cannot be used."""
    if not path.exists():
        return False
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            label = json.loads(saved["label"].tobytes())
            parts = {name: saved[name] for name in Heaps._fields}
        other = [name for name, value in belongs_to.items() if label.get(name) != value]
    except DAMAGE as error:
        log.warning("%s is damaged (%s); starting afresh", path, error)
        return False
    if other:
        log.warning("%s belongs to another task (%s); starting afresh", path, ", ".join(other))
        return False
    for mine, saved_part in zip(heaps, parts.values(), strict=True):
        if mine.shape != saved_part.shape or mine.dtype != saved_part.dtype:
            log.warning("%s is damaged (a part of shape %s); starting afresh", path, saved_part.shape)
            return False
    for mine, saved_part in zip(heaps, parts.values(), strict=True):
        mine[...] = saved_part
    return True
