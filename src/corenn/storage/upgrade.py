"""Versions of the format: what is refused for its version, and bringing files of an earlier one up to the present one.

What a newer CoreNN has written is refused before anything in the directory is touched. What an earlier one has written
is refused as well, until somebody asks for the upgrade: a change that cannot be taken back is not made by `open`.

A step brings a copy of the files from one version to the next. The copy is a generation of its own, put into the place
of the one before by a rename, as a compaction does it: whatever ends the upgrade leaves one version or the other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import DiskFullError, FormatError
from ..types import Upgraded
from . import format as fmt
from .changes import COLUMNS
from .changes import NAME as CHANGES
from .files import Files, translated
from .generation import (
    METADATA,
    adopt_generation,
    discard_draft,
    draft_generation,
    folder_of,
    read_generation,
    remove_generation,
    remove_leftovers,
)
from .platform import require_supported
from .rocks import SETTINGS
from .rocksdb import require_threads, rocks_translated
from .salvage import SETTINGS_FILE
from .update import finish_if_due, locked, take_over

Step = Callable[[Path, Files], None]

# By the version that a step begins with: it changes the files in a folder, which nobody else sees, to what the next
# version wants of them. Version, generation and checksum of the headers are seen to when it is done.
STEPS: dict[int, Step] = {}


def require_present(path: Path) -> None:
    """Refuse a database of another version, by the files that say so and without a change to any.

    Nothing is said about files that are missing or damaged: whoever opens them finds that.

    Raises:
        NewerFormatError, OlderFormatError, StorageError
    """
    try:
        folder = folder_of(path, read_generation(path))
    except FormatError:
        return
    for file, version, flags in _versions(folder):
        fmt.require_version(version, flags, file, path)


def _versions(folder: Path) -> Iterator[tuple[Path, int, int]]:
    """The version and the flags of each file in a folder that names them."""
    for name in (*COLUMNS, CHANGES):
        found = fmt.version_in(_beginning(folder / name))
        if found is not None:
            yield folder / name, *found
    try:
        version = json.loads((folder / SETTINGS_FILE).read_bytes())["version"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if isinstance(version, int):
        yield folder / SETTINGS_FILE, version, 0


def _beginning(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(fmt.PAGE)
    except OSError:
        return b""


def upgrade(path: str | os.PathLike[str]) -> Upgraded:
    """Bring a database of an earlier version of the format to the present one; one of that version stays as it is.

    It must not be open for writing. For each version in between, what is there is copied beside it, changed, and put in
    its place when it is whole and on the disk: after an error, Ctrl-C or the death of the process the database is that
    of one version or the next. A snapshot becomes a database of its own.

    Raises:
        NotADatabaseError, NewerFormatError, LockedError, FormatError, StorageError
        DiskFullError: if the copy might not fit beside what is there; nothing has changed.
        ForkedError: in a forked child of a process that has used a database on disk.
    """
    require_supported()
    folder = Path(os.fspath(path))
    require_threads()
    return upgrade_folder(folder, Files())


def upgrade_folder(path: Path, files: Files) -> Upgraded:
    """See `upgrade`."""
    before = stored_version(path)
    if before == fmt.VERSION:
        return Upgraded(str(path), before, before)
    for version in range(before, fmt.VERSION):
        if version not in STEPS:
            raise FormatError(
                f"{path} has format version {version}, from which this CoreNN cannot upgrade; upgrade it with an "
                "earlier one first"
            )
    finish_if_due(path, files)
    with locked(path, files):
        take_over(path, files)
        for version in range(stored_version(path), fmt.VERSION):
            _step(path, version, files)
    return Upgraded(str(path), before, fmt.VERSION)


def stored_version(path: Path) -> int:
    """The version of the format of a database.

    Raises:
        NotADatabaseError, NewerFormatError
        FormatError: if its files do not agree on one.
    """
    folder = folder_of(path, read_generation(path))
    found = list(_versions(folder))
    for file, version, flags in found:
        if version > fmt.VERSION or flags:
            fmt.require_version(version, flags, file, path)
    versions = {version for _, version, _ in found}
    if len(versions) != 1:
        raise FormatError(
            f"the files in {folder} are of format versions {sorted(versions)}; put back those that were written "
            "together, or run `corenn repair` with the CoreNN that wrote them"
        )
    return versions.pop()


def _step(path: Path, version: int, files: Files) -> None:
    """From one version to the next, all or nothing."""
    number = read_generation(path)
    remove_leftovers(path, number, files)
    source, target = folder_of(path, number), folder_of(path, number + 1)
    names = _names_in(source)
    needed, free = sum((source / name).stat().st_size for name in names), files.free_bytes(path)
    if free < needed:
        raise DiskFullError(
            f"upgrading {path} takes {needed:,} bytes beside what is there, and {free:,} are free; make room for "
            f"{needed - free:,} more, and upgrade again"
        )
    try:
        files.make_folder(target)
        files.make_folder(target / METADATA)
        for name in names:
            files.copy_file(source / name, target / name)
        STEPS[version](target, files)
        _stamp(target, version + 1, number + 1, files)
        _sync(target, files)
        draft_generation(path, number + 1, files)
        files.sync_folder(path)  # the folder is to be there before its name
        adopt_generation(path, files)
    except BaseException:
        if read_generation(path) == number:  # Ctrl-C may come when it is done already
            discard_draft(path, files)
            remove_generation(path, number + 1, files)
        raise
    files.sync_folder(path)
    remove_generation(path, number, files)


def _names_in(folder: Path) -> list[Path]:
    """The files of a generation, below its folder. The notes of changes are left out: everything has changed."""
    names = [Path(name) for name in (*COLUMNS, SETTINGS_FILE) if (folder / name).exists()]
    meta = [each for each in (folder / METADATA).iterdir() if each.is_file() and each.name != "LOCK"]
    return names + sorted(each.relative_to(folder) for each in meta)


def _stamp(folder: Path, version: int, generation: int, files: Files) -> None:
    """Say in every file which version and generation it is of now."""
    for name in COLUMNS:
        if (folder / name).exists():
            descriptor = files.open(folder / name, writable=True)
            try:
                page = files.read(descriptor, fmt.PAGE, 0, folder / name)
                header = memoryview(fmt.restamped(page, version, generation))
                files.write(descriptor, header, 0, folder / name)
            finally:
                files.close(descriptor)
    with rocks_translated("write", folder / METADATA):
        rocks = files.rocks(folder / METADATA)
        try:
            stored = json.loads(rocks.get(SETTINGS))
            rocks.put(SETTINGS, json.dumps({**stored, "version": version, "generation": generation}).encode())
            rocks.flush_wal(True)
        finally:
            rocks.close()
    files.remove(folder / SETTINGS_FILE)  # the next writer repeats it


def _sync(folder: Path, files: Files) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with translated("open", path):
                descriptor = files.open(path, writable=True)
            try:
                files.sync(descriptor, path)
            finally:
                files.close(descriptor)
    files.sync_folder(folder / METADATA)
    files.sync_folder(folder)
