"""The payload index on the disk: `fields.index`, a file of NumPy's savez.

Soft: written to another name and renamed, whole or not at all; a checksum for each array is part of the format, and
what cannot be read, or is not of this database, generation and settings, is as if it were not there.
"""

from __future__ import annotations

import io
import json
import logging
from typing import Any, NamedTuple

import numpy as np
from pyroaring import BitMap

from ..storage.store import Store
from ..types import AnyArray, Bytes, UInt32s
from .columns import NUMBERS, TEXTS, Column, Packed, Run
from .fields import SETS, Field

log = logging.getLogger("corenn.filters")

NAME, DRAFT = "fields.index", "fields.index.new"
VERSION = 1


class Kept(NamedTuple):
    """What was written. commit: as of which it is. rows: ids in use then. wanted: the settings that it was made by."""

    fields: dict[str, Field]
    commit: int
    rows: int
    full: bool
    wanted: list[list[str]]


def wanted_by(store: Store) -> list[list[str]]:
    """What the settings say about which fields are indexed."""
    return [list(store.settings.index_fields), list(store.settings.no_index_fields)]


def write(store: Store, fields: dict[str, Field], commit: int, rows: int, *, full: bool) -> None:
    """Write an index, in the place of what is there.

    Raises:
        DiskFullError, StorageError
    """
    folder, files = store.folder, store.files
    assert folder is not None
    arrays: dict[str, AnyArray] = {"about": _bytes(json.dumps(_about(store, fields, commit, rows, full=full)).encode())}
    for number, field in enumerate(fields.values()):
        for name in SETS:
            arrays[f"{number}.{name}"] = _bytes(getattr(field, name).serialize())
        numbers, texts = field.numbers.whole(), field.texts.whole()
        arrays[f"{number}.numbers"], arrays[f"{number}.number_ids"] = numbers.values, numbers.ids
        starts = _starts(texts.values)
        held = texts.values[starts].tolist()
        arrays[f"{number}.texts"] = _bytes("".join(held).encode())
        arrays[f"{number}.lengths"] = np.array([len(text) for text in held], np.uint16)
        arrays[f"{number}.counts"] = np.diff(np.append(starts, len(texts.values))).astype(np.uint32)
        arrays[f"{number}.text_ids"] = texts.ids
    raw = io.BytesIO()
    np.savez(raw, allow_pickle=False, **arrays)
    draft = folder / DRAFT
    files.remove(draft)
    descriptor = files.open(draft, writable=True, create=True)
    try:
        files.write(descriptor, raw.getbuffer(), 0, draft)
    finally:
        files.close(descriptor)
    files.rename(draft, folder / NAME)


def _about(store: Store, fields: dict[str, Field], commit: int, rows: int, *, full: bool) -> dict[str, Any]:
    return {
        "version": VERSION, "database": store.vectors.spec.database, "generation": store.generation,
        "commit": commit, "rows": rows, "full": full, "wanted": wanted_by(store), "fields": list(fields),
    }  # fmt: skip


def commit_in(store: Store) -> int:
    """The commit as of which there is an index on the disk; -1 if there is none, 0 for a database in memory."""
    folder = store.folder
    if folder is None:
        return 0
    try:
        with (folder / NAME).open("rb") as file, np.load(file, allow_pickle=False) as held:
            return int(_checked(store, held)["commit"])
    except Exception:  # noqa: BLE001 - whatever a damaged file raises
        return 0 if store.metadata.head.commit == 0 else -1


def read(store: Store) -> Kept | None:
    """What is on the disk; None if that is nothing of use."""
    path = None if store.folder is None else store.folder / NAME
    if path is None or not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
            about = _checked(store, held)
            rows = int(about["rows"])
            fields = {name: _field(held, number, rows) for number, name in enumerate(about["fields"])}
            return Kept(fields, int(about["commit"]), rows, bool(about["full"]), about["wanted"])
    except Exception:  # whatever a damaged file raises
        log.warning("%s is of no use; the index of payloads is made anew", path, exc_info=True)
        return None


def disk_bytes(store: Store) -> int:
    """Bytes that it takes on disk."""
    try:
        return 0 if store.folder is None else (store.folder / NAME).stat().st_blocks * 512
    except OSError:
        return 0  # there is none


def _checked(store: Store, held: Any) -> dict[str, Any]:
    about: dict[str, Any] = json.loads(held["about"].tobytes())
    expected = _about(store, {}, 0, 0, full=False)
    for name in ("version", "database", "generation"):
        if about[name] != expected[name]:
            raise ValueError(f"it has {name} {about[name]}, not {expected[name]}")
    return about


def _field(held: Any, number: int, rows: int) -> Field:
    field = Field()
    for name in SETS:
        found = BitMap.deserialize(held[f"{number}.{name}"].tobytes())
        if found and found.max() >= rows:
            raise ValueError(f"{name} of field {number} has an id beyond {rows}")
        setattr(field, name, found)
    values = held[f"{number}.numbers"].astype(NUMBERS, copy=False)
    ids = _checked_ids(held[f"{number}.number_ids"], len(values), rows)
    field.numbers = Column(NUMBERS, [Run(values, ids)] if len(ids) else [])
    text = held[f"{number}.texts"].tobytes().decode()
    packed = Packed(text, held[f"{number}.lengths"], held[f"{number}.counts"])
    if int(packed.lengths.sum(dtype=np.int64)) != len(text) or len(packed.lengths) != len(packed.counts):
        raise ValueError(f"the texts of field {number} are not what they are to be")
    ids = _checked_ids(held[f"{number}.text_ids"], int(packed.counts.sum(dtype=np.int64)), rows)
    field.texts = Column(TEXTS, [Run(None, ids, packed)] if len(ids) else [])
    return field


def _checked_ids(ids: AnyArray, count: int, rows: int) -> UInt32s:
    if len(ids) != count or (len(ids) and int(ids.max()) >= rows):
        raise ValueError("a column is not what it is to be")
    return ids.astype(np.uint32, copy=False)


def _starts(values: AnyArray) -> AnyArray:
    """Where each value of a sorted array begins."""
    return np.flatnonzero(np.concatenate(([True], values[1:] != values[:-1]))) if len(values) else np.empty(0, np.int64)


def _bytes(raw: bytes) -> Bytes:
    return np.frombuffer(raw, np.uint8)
