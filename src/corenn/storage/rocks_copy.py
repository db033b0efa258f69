"""The metadata of a new generation: what another one says of its live rows, under their new ids.

It is written as sorted tables, in the order of names, which RocksDB then takes in whole: nothing goes through a log and
nothing has to be compacted, so that the copy never takes more room than it ends with.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rocksdict import SstFileWriter

from ..errors import CorruptionError
from ..types import UInt32s, UInt64s
from .commit import SOFT
from .files import Files
from .format import HEAD_ROW, KEY_ROW, NO_ID, PAYLOAD_ROW
from .keys import key_name
from .platform import boot_id
from .renumber import Renumbering
from .rocks import _BOOT, _DURABLE, _HEAD, _ID, _SETTINGS, _SOFT, RocksMetadata
from .rocksdb import rocks_translated, table_options
from .store import Store

TABLE_BYTES = 32 << 20
STEP = 1 << 12  # rows between two looks at progress and Ctrl-C
TURN, PAUSE = 64, 1e-5  # rows, and seconds of rest after them: 99 in 100 queries wait below 1 ms instead of 14
ROW_BYTES = 32  # beside name and value, at most: lengths, sequence number, bloom filter, index
FIXED_BYTES = 256 << 10  # of a RocksDB that holds nothing: manifest, options, log of events

Row = tuple[bytes, bytes]
T = TypeVar("T")


class _Tables:
    """Sorted tables in a folder, one after the other."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: SstFileWriter | None = None
        self.paths: list[str] = []

    def put(self, name: bytes, value: bytes) -> None:
        if self._open is None:
            self.paths.append(str(self._folder / f"{len(self.paths)}.sst"))
            self._open = SstFileWriter(options=table_options())
            self._open.open(self.paths[-1])
        self._open[name] = value

    def finish_large(self) -> None:
        """Begin the next table if this one is large enough."""
        if self._open is not None and self._open.file_size() > TABLE_BYTES:
            self.finish()

    def finish(self) -> None:
        """Bring the table to the disk."""
        if self._open is not None:
            self._open.finish()
            self._open = None


def copy_metadata(
    source: Store, folder: Path, number: int, renumbering: Renumbering, soft: dict[str, bytes]
) -> Iterator[int]:
    """Write the metadata of generation `number` to a folder that is not there yet; yields the rows written so far.

    Every commit is durable in it. soft: what is stored under the names of SOFT. The source may be written to meanwhile:
    `copy_changes` sees to that.
    """
    former, files = source.metadata, source.files
    assert isinstance(former, RocksMetadata)
    draft = folder.with_name("meta.tables")
    files.make_folder(draft)
    tables, written = _Tables(draft), 0
    with rocks_translated("write", folder):
        stored = {**former.settings(), "generation": number}
        keys = _key_rows(former, renumbering, lambda: source.state.array)
        for rows in (keys, _own_rows(stored, renumbering, soft), _texts(former, renumbering), former.done_rows()):
            for name, value in rows:
                tables.put(name, value)
                written += 1
                if written % STEP == 0:
                    tables.finish_large()
                    yield written
        tables.finish()
        yield written
        _take_in(folder, tables.paths, files)
    files.sync_folder(folder)
    files.remove_tree(draft)


def _take_in(folder: Path, paths: list[str], files: Files) -> None:
    rocks = files.rocks(folder)
    try:
        rocks.ingest(paths)
        rocks.flush_wal(True)
    finally:
        rocks.close()


def copy_changes(source: Store, target: RocksMetadata, renumbering: Renumbering, first: int, changed: UInt32s) -> None:
    """Bring a copy up to what the source says now. Nobody reads it yet, so there may be any number of batches.

    first: the new id of the first row that has come since. changed: old ids of rows whose payloads have changed since.
    """
    former, numbers, head = source.metadata, renumbering.numbers, renumbering.head
    assert isinstance(former, RocksMetadata)
    rows: dict[bytes, bytes | None] = {}
    for old in renumbering.dead(source.state.array).tolist():
        rows[b"p" + _ID.pack(numbers[old])] = None
        key = source.key_of(old)
        if key is not None:
            rows[b"k" + key_name(key)] = None
    fresh = renumbering.kept[first:]
    for new, old in enumerate(fresh.tolist(), first):
        key = source.key_of(old)
        if key is None:
            raise CorruptionError("a row has no readable key in keys.slab; run repair(), then compact again")
        rows[b"k" + key_name(key)] = KEY_ROW.pack(new, NO_ID)
    target.write_rows(rows.items())
    target.write_rows(
        (
            b"p" + _ID.pack(numbers[old]),
            None if text is None else PAYLOAD_ROW.pack(head.commit, len(text), -1) + text,
        )
        for old, text in _now(former, np.concatenate((changed, fresh)), head.commit)
    )
    target.write_rows(former.done_rows(target.head.commit))
    target.rewrite_head(head)
    target.checkpoint(head.commit, boot_id())


def _now(source: RocksMetadata, ids: UInt32s, snapshot: int) -> Iterator[tuple[int, bytes | None]]:
    """Ids with their payloads."""
    for start in range(0, len(ids), TURN):
        some = ids[start : start + TURN].tolist()
        yield from zip(some, source.payloads(some, snapshot), strict=True)


def metadata_bytes(source: RocksMetadata, renumbering: Renumbering, name_bytes: int) -> Iterator[int]:
    """Yields, as often as progress is due, how many bytes the copy takes at most; the last one counts.

    name_bytes: of the names of all keys.
    """
    size = FIXED_BYTES + name_bytes + len(renumbering.kept) * (KEY_ROW.size + ROW_BYTES)
    size += sum(len(source.soft(name) or b"") for name in SOFT)
    size += sum(len(name) + len(value) + ROW_BYTES for name, value in source.done_rows())
    for count, (_, value) in enumerate(_texts(source, renumbering)):
        size += len(value) + ROW_BYTES
        if count % STEP == 0:
            yield size
    yield size


def _paced(rows: Iterator[T]) -> Iterator[T]:
    """The same, leaving the interpreter to queries every now and then."""
    for count, row in enumerate(rows):
        if count % TURN == 0:
            time.sleep(PAUSE)
        yield row


def _key_rows(source: RocksMetadata, renumbering: Renumbering, state: Callable[[], UInt64s]) -> Iterator[Row]:
    numbers = renumbering.numbers.data
    rows, owned = len(numbers), bytearray(len(renumbering.kept))
    for key, now, before in _paced(source.names()):
        new = numbers[now] if now < rows else NO_ID
        if new == NO_ID and before < rows:
            new = numbers[before]
        if new == NO_ID and now < rows and not state()[now].any():
            raise CorruptionError(f"the state of key {key!r} is lost; run repair(), then compact again")
        if new != NO_ID:
            owned[new] = 1
            yield b"k" + key_name(key), KEY_ROW.pack(new, NO_ID)
    lost = np.flatnonzero(np.frombuffer(owned, np.uint8) == 0)
    if len(lost) and (lost := lost[state()[renumbering.kept[lost], 1] == 0]).size:  # others have died meanwhile
        raise CorruptionError(
            f"{len(lost):,} of {len(owned):,} live rows have no key of their own in the metadata; run "
            "repair(), then compact again"
        )


def _own_rows(stored: dict[str, Any], renumbering: Renumbering, soft: dict[str, bytes]) -> Iterator[Row]:
    """Settings, head and marks, as after a checkpoint."""
    rows = {
        _SETTINGS: json.dumps(stored).encode(),
        _HEAD: HEAD_ROW.pack(*renumbering.head),
        _DURABLE: renumbering.head.commit.to_bytes(8, "little"),
        _BOOT: boot_id().encode(),
        **{_SOFT[name]: raw for name, raw in soft.items()},
    }
    yield from sorted(rows.items())


def _texts(source: RocksMetadata, renumbering: Renumbering) -> Iterator[Row]:
    """The payloads; none is kept of what they were before."""
    numbers = renumbering.numbers.data
    for row, commit, text in _paced(source.payload_rows()):
        if row < len(numbers) and numbers[row] != NO_ID:
            yield b"p" + _ID.pack(numbers[row]), PAYLOAD_ROW.pack(commit, len(text), -1) + text
