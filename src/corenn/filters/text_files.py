"""The full-text index on the disk: the folder `text.index`, which holds what tantivy writes, and a mark of ours.

The mark is written before each write of the engine, and says what the index holds before it and after. Which of both
is there, the engine's own counter tells: it grows with each write, and is part of it. So a process may die at any time.

Soft: what cannot be read, fails a checksum, or is not of this database, generation and settings, is as if it were not
there.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import CorruptionError
from ..storage.files import Files
from ..storage.store import Store

log = logging.getLogger("corenn.filters")

NAME, MARK, DRAFT = "text.index", "mark.json", "mark.json.new"
META = "meta.json"  # the engine's: which segments are valid
VERSION = 1
ALL = 1 << 32  # beyond all ids
_FOOTER = struct.Struct("<II")  # of each file of a segment: how long its footer is, and a number that is always there
_MAGIC = 1337
_READ_BYTES = 1 << 20
TRIES = 8  # of copying what a writer changes meanwhile


class State(NamedTuple):
    """What an index holds: the texts of the rows below `covered`, as of a commit."""

    commit: int
    covered: int


EMPTY = State(0, 0)


def identity(store: Store, fields: tuple[str, ...]) -> dict[str, Any]:
    """What an index must be of, to be of use."""
    database, generation = store.vectors.spec.database, store.generation
    return {"version": VERSION, "database": database, "generation": generation, "fields": list(fields)}


def write_mark(files: Files, folder: Path, about: dict[str, Any], now: State, then: State) -> None:
    """Say what the index holds now, and what it will once the engine has written. about: its identity.

    Raises:
        DiskFullError, StorageError
    """
    draft = folder / DRAFT
    mark = {**about, "counter": _counter(folder), "now": [*now], "then": [*then]}
    files.remove(draft)
    descriptor = files.open(draft, writable=True, create=True)
    try:
        files.write(descriptor, memoryview(json.dumps(mark).encode()), 0, draft)
        files.sync(descriptor, draft)
    finally:
        files.close(descriptor)
    files.rename(draft, folder / MARK)
    files.sync_folder(folder)


def read_state(folder: Path, about: dict[str, Any]) -> State | None:
    """What the index in a folder holds; None if there is none of use. about: the identity that it is to have."""
    if not (folder / MARK).exists():
        return None
    try:
        mark = json.loads((folder / MARK).read_bytes())
        for name, value in about.items():
            if mark[name] != value:
                log.info("%s is of another %s, and is made anew", folder, name)
                return None
        counter = _counter(folder)
        if counter < mark["counter"]:
            raise ValueError(f"it has written {counter} times, and had written {mark['counter']} times before")
        commit, covered = mark["now" if counter == mark["counter"] else "then"]
        return State(int(commit), int(covered))
    except Exception:  # whatever a damaged file raises
        log.warning("%s is of no use; the full-text index is made anew", folder, exc_info=True)
        return None


def _counter(folder: Path) -> int:
    return int(json.loads((folder / META).read_bytes())["opstamp"])


def check(folder: Path) -> None:
    """Look at the checksum of every file of the engine.

    Raises:
        CorruptionError
    """
    try:
        for segment in json.loads((folder / META).read_bytes())["segments"]:
            name = segment["segment_id"].replace("-", "")
            parts = list(folder.glob(f"{name}.*"))
            if not parts:
                raise ValueError(f"segment {name} is missing")
            for path in parts:
                _check_file(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptionError(f"the full-text index in {folder} is damaged ({error}); run repair()") from error


def _check_file(path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(size - _FOOTER.size)
        length, magic = _FOOTER.unpack(file.read())
        body = size - _FOOTER.size - length
        if magic != _MAGIC or body < 0:
            raise ValueError(f"{path.name} is torn")
        file.seek(body)
        expected = json.loads(file.read(length))["crc"]
        file.seek(0)
        found = 0
        while body:
            part = file.read(min(body, _READ_BYTES))
            found, body = zlib.crc32(part, found), body - len(part)
    if found != expected:
        raise ValueError(f"{path.name} fails its checksum")


def copy_to(source: Path, target: Path) -> None:
    """Copy an index, which a writer may be changing, to a folder that is made for it. Files are linked where that goes:
    what the engine has written once it never changes.

    Raises:
        OSError, ValueError: if there is none, or it changes too fast.
    """
    for _ in range(TRIES):
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        try:
            before = (source / META).read_bytes(), (source / MARK).read_bytes()
            names = {segment["segment_id"].replace("-", "") for segment in json.loads(before[0])["segments"]}
            for path in source.iterdir():
                if path.name.partition(".")[0] in names:
                    _link(path, target / path.name)
            if before == ((source / META).read_bytes(), (source / MARK).read_bytes()):
                managed = [path.name for path in target.iterdir()]
                (target / META).write_bytes(before[0])
                (target / MARK).write_bytes(before[1])
                (target / ".managed.json").write_text(json.dumps([*managed, META]))
                return
        except FileNotFoundError:
            if not (source / MARK).exists():
                raise
    raise ValueError(f"{source} changes too fast to be copied")


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one that has no links
        shutil.copyfile(source, target)


def disk_bytes(folder: Path | None) -> int:
    """Bytes that it takes on disk."""
    try:
        return 0 if folder is None else sum(path.stat().st_blocks * 512 for path in folder.iterdir())
    except OSError:
        return 0  # there is none, or it changes just now
