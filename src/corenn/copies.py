"""Snapshots, backups, and what becomes of them: the files of a database, elsewhere.

A snapshot is a database of its own in another folder. A backup is one with a checksum for every file, as a folder or in
an archive: storage/archive.py. All of them appear under their name when they are whole, or not at all.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import (
    CoreNNError,
    DatabaseExistsError,
    DiskFullError,
    FormatError,
    InvalidArgumentError,
)
from .storage.archive import MANIFEST, describe, is_archive, names_in, open_backup, pack
from .storage.commit import Head
from .storage.draft import folder_draft, publish, workshop
from .storage.files import Files
from .storage.rocks import RocksMetadata
from .storage.snapshot import Copier, Cut, Marker, Progress, read_marker, write_file
from .storage.store import Store
from .storage.update import MARKER, META_NEW, Update, clear, finish, finish_if_due, locked, refuse_readers
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


def back_up(
    writer: Writer, target: Path, files: Files, still_open: Callable[[], None], progress: Progress | None = None
) -> Copied:
    """Copy a database, with checksums, to a folder or an archive where nothing is yet. still_open: see above."""
    _check_target(writer.store.path, target)
    archived = is_archive(target)
    with workshop(target, files) as place:
        folder = place / "whole"
        with held(writer) as cut:
            Copier(writer.store, cut, files, progress).write(folder)
            still_open()
        files.remove(folder / MARKER)
        return _finish_backup(folder, place, target, (cut.database, cut.head), files, progress, archived=archived)


def back_up_snapshot(path: Path, target: Path, files: Files, progress: Progress | None = None) -> Copied:
    """The same of a snapshot, which stays one: nobody opens it for writing."""
    _check_target(path, target)
    archived = is_archive(target)
    finish_if_due(path, files)
    with locked(path, files), workshop(target, files) as place:
        marker = read_marker(path / MARKER, files)
        folder = path
        if not archived:
            folder = place / "whole"
            (folder / "meta").mkdir(parents=True)
            for name in names_in(path):
                files.copy_file(path / name, folder / name)
            files.sync_folder(folder / "meta")
        return _finish_backup(folder, place, target, (marker.database, marker.head), files, progress, archived=archived)


def _finish_backup(
    folder: Path, place: Path, target: Path, of: tuple[int, Head], files: Files, progress: Progress | None,
    *, archived: bool,
) -> Copied:  # fmt: skip
    """Add the checksums to what is in `folder`, bring it into its form, and give it its name. of: database and head."""
    total = sum((folder / name).stat().st_size for name in names_in(folder))
    manifest = describe(folder, *of, _counting("checksums", total, progress))
    written = manifest.size
    if archived:
        draft = place / target.name
        pack(folder, manifest, draft, files, _counting("packing", total, progress))
        written = draft.stat().st_size
    else:
        draft = folder
        write_file(folder / MANIFEST, manifest.pack(), files)
        files.sync_folder(folder)
    publish(draft, target, files)
    return Copied(str(target), manifest.head.commit, manifest.head.live, manifest.size, written)


def restore(source: Path, path: Path, files: Files, progress: Progress | None = None) -> Copied:
    """Make a database at `path`, where nothing is yet, of a backup that nobody has vouched for."""
    with folder_draft(path, files) as draft:
        with open_backup(source) as backup:
            manifest = backup.manifest
            free = shutil.disk_usage(draft.parent).free
            if manifest.size > free:
                raise DiskFullError(f"{source} holds {manifest.size:,} bytes, and {path.parent} has room for {free:,}")
            backup.unpack(draft, files, _counting("restoring", manifest.size, progress))
        try:
            Store.open(draft, "r", files).close()  # its headers, its metadata, and that they belong together
        except CoreNNError as error:
            why = str(error).replace(str(draft), str(path))
            raise type(error)(f"{source} holds no database that opens: {why}") from error
    return Copied(str(path), manifest.head.commit, manifest.head.live, manifest.size, manifest.size)


def _counting(step: str, total: int, progress: Progress | None) -> Callable[[int], None]:
    """To be told of bytes one after the other; tells how many there were so far."""
    done = 0

    def tell(size: int) -> None:
        nonlocal done
        done += size
        if progress is not None:
            progress(step, done, total)

    return tell


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
                files.move_folder(cut.detach(), path / META_NEW)
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
