"""Snapshots: the files of a database, elsewhere.

A snapshot is a database of its own in another folder. It appears there when it is whole, or not at all.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import (
    DatabaseExistsError,
    FormatError,
    InvalidArgumentError,
)
from .storage.draft import folder_draft
from .storage.files import Files
from .storage.rocks import RocksMetadata
from .storage.snapshot import Copier, Cut, Marker, Progress, read_marker
from .storage.store import Store
from .storage.update import MARKER, META_NEW, Update, clear, finish, locked, refuse_readers
from .types import Copied
from .writer import Task, Writer


def take_snapshot(
    writer: Writer, path: Path, files: Files, still_open: Callable[[], None], progress: Progress | None = None
) -> Copied:
    """Copy a database to `path`, or bring a snapshot of it that is there up to date.

    still_open: raises if the handle was closed meanwhile.
    """
    _check_target(writer.store.path, path)
    if (path / MARKER).exists() and not path.is_symlink():
        return _renew(writer, path, files, still_open, progress)
    if (path / "meta" / "CURRENT").exists():
        raise DatabaseExistsError(
            f"{path} holds a database, or a snapshot that was opened for writing since; choose another path"
        )
    with folder_draft(path, files) as draft, held(writer) as cut:
        copier = Copier(writer.store, cut, files, progress)
        copied = copier.write(draft)
        still_open()
    return Copied(str(path), cut.head.commit, cut.head.live, copied, copied)


def _check_target(own: Path | None, target: Path) -> None:
    """Refuse a copy of a database that would lie within it."""
    if own is None:
        raise InvalidArgumentError("a database in memory has no files to copy; insert its rows into one on disk")
    if own.resolve() in (target.resolve(), *target.resolve().parents):
        raise InvalidArgumentError(f"{target} lies within the database; choose a path outside of {own}")


@contextmanager
def held(writer: Writer) -> Iterator[Cut]:
    """The present state of a database, held while it is copied."""
    task = Task(writer.begin_copy)
    try:
        yield writer.submit(task)
    finally:
        if task.done.is_set() and task.error is None:
            shutil.rmtree(task.result.meta, ignore_errors=True)
            writer.schedule(Task(writer.end_copy))


def _renew(
    writer: Writer, path: Path, files: Files, still_open: Callable[[], None], progress: Progress | None
) -> Copied:
    _require_snapshot_of(writer.store, path, read_marker(path / MARKER, files))
    with locked(path, files):
        finish(path, files)
        clear(path, files)
        before = read_marker(path / MARKER, files)
        _require_whole(path, before)
        refuse_readers(path, files)
        with held(writer) as cut:
            copier, update = Copier(writer.store, cut, files, progress), Update(path, files)
            try:
                copier.write_changes(path, before.stamp, update)
                files.move_folder(cut.meta, path / META_NEW)
                still_open()
                refuse_readers(path, files)  # who comes after this finds the update, or is found before it is written
                update.decide(copier.sizes, copier.marker())
            except BaseException:
                clear(path, files)
                raise
            finally:
                update.close()
        finish(path, files)
    return Copied(str(path), cut.head.commit, cut.head.live, sum(copier.sizes.values()), update.size)


def _require_snapshot_of(store: Store, path: Path, found: Marker) -> None:
    """Refuse to bring a snapshot of another database up to date."""
    assert isinstance(store.metadata, RocksMetadata)
    if store.metadata.settings()["database"] != found.database:
        raise DatabaseExistsError(f"{path} is a snapshot of another database; choose another path, or remove it")


def _require_whole(path: Path, found: Marker) -> None:
    """Refuse to bring a snapshot up to date that has lost files."""
    for name, size in found.sizes.items():
        if not (path / name).is_file() or (path / name).stat().st_size < size:
            raise FormatError(f"{path / name} is missing or truncated; remove the snapshot, and take another one")
