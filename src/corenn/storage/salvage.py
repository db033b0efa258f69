"""Saving what can be saved of damaged metadata: mode="rescue" makes it anew, with the slabs as its index.

Which rows live is in state.slab, their keys are in keys.slab as well, and settings.json repeats the settings; so of one
damaged file of RocksDB only payloads can be lost, and it is known of which rows. The damaged folder is kept.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rocksdict import WriteBatch

from ..config import Settings
from ..errors import CoreNNError, CorruptionError, StorageError
from ..types import Key, UInt32s
from .commit import Head
from .files import Files
from .format import NEVER, NO_ID, PUBLISHED
from .keys import unpack_key
from .platform import boot_id
from .rocks import BATCH_BYTES, RocksMetadata, key_row, payload_name, record_numbers
from .rocksdb import Rocks, repair_tables, rocks_translated
from .slab import FileSlab, SlabSpec
from .state import broken_states, commit_of

log = logging.getLogger("corenn.storage")

SETTINGS_FILE = "settings.json"
_HEADER_WORD = 8


class Salvaged(NamedTuple):
    """fault: what was wrong. lost: keys of rows whose payloads could not be read, if they had any."""

    fault: str
    lost: tuple[Key, ...]


def keep_settings(folder: Path, stored: dict[str, Any], files: Files) -> None:
    """Repeat format version and settings beside the metadata."""
    draft, target = folder / f".{SETTINGS_FILE}", folder / SETTINGS_FILE
    draft.unlink(missing_ok=True)
    descriptor = files.open(draft, writable=True, create=True)
    try:
        files.write(descriptor, memoryview(json.dumps(stored, indent=1).encode()), 0, draft)
        files.sync(descriptor, draft)
    finally:
        files.close(descriptor)
    files.rename(draft, target)


def kept_settings(folder: Path) -> dict[str, Any] | None:
    """What keep_settings has kept, or None."""
    try:
        stored: dict[str, Any] = json.loads((folder / SETTINGS_FILE).read_bytes())
        Settings.from_dict(stored["settings"])
        return stored if isinstance(stored["database"], int) and isinstance(stored["version"], int) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def salvage(path: Path, files: Files, specs: Any) -> Salvaged | None:
    """Make the metadata anew if it is damaged. specs: the slabs that settings and a database number imply.

    Raises:
        CoreNNError: if it cannot be done; nothing has changed then.
    """
    fault = _fault(path, files)
    if fault is None:
        return None
    log.warning("%s; saving what the slabs and the rest of it hold", fault)
    copy, made = path / "meta.salvage", path / "meta.new"
    for folder in (copy, made):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        source = _open_source(path / "meta", copy, files)
        try:
            lost = _rebuild(path, made, source, files, specs)
        finally:
            if source is not None:
                source.close()
        damaged = path / "meta.damaged"
        shutil.rmtree(damaged, ignore_errors=True)
        files.rename(path / "meta", damaged)
        files.rename(made, path / "meta")
        files.sync_folder(path)
    finally:
        for folder in (copy, made):
            shutil.rmtree(folder, ignore_errors=True)
    return Salvaged(fault, lost)


def _fault(path: Path, files: Files) -> str | None:
    """What is wrong with the metadata, after a look at all of it."""
    try:
        metadata = RocksMetadata(path / "meta", files)
        try:
            metadata.settings()
            metadata.scan()
            return metadata.torn(_published(path))
        finally:
            metadata.close()
    except (CorruptionError, FileNotFoundError) as error:
        return f"{error}"
    except StorageError as error:
        if "No such file" not in str(error):
            raise  # the disk fails, which is no reason to write to it
        return f"{error}"


def _published(path: Path) -> int:
    """The last commit whose births and deaths are in place, as far as can be told."""
    with suppress(OSError), (path / "state.slab").open("rb") as file:
        file.seek(PUBLISHED * _HEADER_WORD)
        return int.from_bytes(file.read(_HEADER_WORD), "little")
    return 0


def _open_source(meta: Path, copy: Path, files: Files) -> Rocks | None:
    """A copy of the metadata, opened with whatever is readable in it; None if nothing is."""
    for repaired in (False, True):
        with suppress(CoreNNError):
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(meta, copy)
            with rocks_translated("read", copy):
                if repaired:
                    repair_tables(copy)
                return files.rocks(copy, lenient=True)
    return None


class _Source:
    """What can be read of the damaged metadata, a name at a time."""

    def __init__(self, rocks: Rocks | None) -> None:
        self._rocks = rocks

    def get(self, name: bytes) -> tuple[bytes | None, bool]:
        """The value, and whether it could be read."""
        if self._rocks is None:
            return None, False
        try:
            return self._rocks.get(name), True
        except Exception:  # noqa: BLE001 - RocksDB has no types of its own
            return None, False

    def records(self) -> list[int] | None:
        """The numbers of the commits of which records are kept, None if they cannot be read."""
        try:
            return None if self._rocks is None else record_numbers(self._rocks)
        except Exception:  # noqa: BLE001
            return None


def _rebuild(path: Path, made: Path, rocks: Rocks | None, files: Files, specs: Any) -> tuple[Key, ...]:
    source = _Source(rocks)
    raw, _ = source.get(b"msettings")
    stored = kept_settings(path) if raw is None else json.loads(raw)
    if stored is None:
        raise CorruptionError(f"the settings of {path} are lost in both places; restore the database from a snapshot")
    slabs = _open_slabs(path, files, specs(Settings.from_dict(stored["settings"]), stored["database"]))
    try:
        return _write_all(made, stored, source, slabs, files)
    finally:
        for slab in slabs.values():
            slab.close()


def _open_slabs(path: Path, files: Files, specs: dict[str, SlabSpec]) -> dict[str, FileSlab]:
    names = ("state.slab", "keys.slab", "keys.heap")
    return {name: FileSlab(files, path / name, specs[name], writable=False) for name in names}


def _write_all(
    made: Path, stored: dict[str, Any], source: _Source, slabs: dict[str, FileSlab], files: Files
) -> tuple[Key, ...]:
    state = slabs["state.slab"].array
    used = np.flatnonzero(state.any(axis=1)).astype(np.uint32)
    sound = np.setdiff1d(used, broken_states(state, used))
    raw, _ = source.get(b"mhead")
    before = Head(*RocksMetadata.unpack_head(raw)) if raw is not None else Head()
    known = state[sound]
    commit = int(commit_of(known[known != NEVER]).max(initial=0))
    alive = sound[(known[:, 0] != 0) & (known[:, 1] == 0)]
    dead = int(((known[:, 0] != 0) & (known[:, 1] != 0)).sum())
    rows = max(int(used[-1]) + 1 if len(used) else 0, min(before.rows, len(state)))
    head = Head(max(commit, before.commit), rows, len(alive), dead)
    unsure = _lost_commits(source, before.commit)
    lost: list[Key] = []
    with rocks_translated("write", made):
        target = files.rocks(made)
        try:
            batch = RocksMetadata.first_batch(stored, head, boot_id())
            cut_off, _ = source.get(b"mcutoff")
            if cut_off is not None:
                batch.put(b"mcutoff", cut_off)
            for row, key in _named(slabs, alive):
                batch.put(*key_row(key, row, NO_ID))
                payload, readable = source.get(payload_name(row))
                if payload is not None:
                    batch.put(payload_name(row), payload)
                elif not readable or unsure(int(commit_of(state[row, 0]))):
                    lost.append(key)
                if batch.size_in_bytes() > BATCH_BYTES:
                    target.write(batch)
                    batch = WriteBatch(raw_mode=True)
            target.write(batch)
            target.flush_wal(True)
        finally:
            target.close()
    return tuple(lost)


def _named(slabs: dict[str, FileSlab], ids: UInt32s) -> Iterator[tuple[int, Key]]:
    """Rows with their keys, as far as these are readable."""
    words, heap = slabs["keys.slab"].array, slabs["keys.heap"].array.reshape(-1)
    for row in ids[ids < len(words)].tolist():
        key = unpack_key(words[row], heap)
        if key is not None:
            yield row, key


def _lost_commits(source: _Source, last: int) -> Callable[[int], bool]:
    """Whether the log has lost a commit: one after the last, or one whose record is missing between others."""
    kept = source.records()
    if kept is None:
        return lambda number: True
    missing = set(range(kept[0], last + 1)) - set(kept) if kept else set()
    return lambda number: number > last or number in missing
