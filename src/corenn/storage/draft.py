"""Folders and files that appear under their name only when they are whole.

A draft grows in a hidden workshop beside its target, `.NAME.making-…`, which is locked for as long as its maker lives.
So what a killed process has left is told from what another one is at, and goes when the same name is made again.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import DatabaseExistsError, StorageError
from .files import Files, translated

MARK = "RESUMABLE"  # in a workshop: what is in there is of use to who makes the same once more


@contextmanager
def folder_draft(path: Path, files: Files, keep: Callable[[], bool] | None = None) -> Iterator[Path]:
    """A name where nothing is. The folder made there becomes `path` when the block ends.

    If the block fails, the folder is removed. What killed processes have left of drafts of `path` is removed first.

    keep: asked after a failure whether the draft is to stay for another try. With it, one that was left is not removed
    but handed out again: it may be there, and whole or not.

    Raises:
        DatabaseExistsError: if something other than an empty folder is at `path`.
        StorageError: if the folder around it cannot be written.
    """
    kept = False
    with workshop(path, files, resume=keep is not None, keep=lambda: kept) as place:
        draft = place / "whole"
        if keep is not None:
            with translated("write to", place):
                (place / MARK).touch()
        try:
            yield draft
        except BaseException:
            kept = keep is not None and keep()
            raise
        files.sync_folder(draft)
        publish(draft, path, files)


def publish(draft: Path, path: Path, files: Files) -> None:
    """Give a draft its name.

    Raises:
        DatabaseExistsError: if something is there by now.
    """
    _require_vacant(path)  # a file would take the place of another one without a word
    try:
        files.rename(draft, path)
    except StorageError:
        if draft.exists():
            _require_vacant(path)  # of those who make one path at a time, one is first
        raise
    files.sync_folder(path.parent)


@contextmanager
def workshop(
    path: Path, files: Files, *, resume: bool = False, keep: Callable[[], bool] = lambda: False
) -> Iterator[Path]:
    """A hidden folder beside `path`, removed when the block ends, in which something grows that takes this name.

    resume: whether one that was left, and bears MARK, is handed out again. keep: asked at the end whether it stays.

    Raises: as folder_draft.
    """
    path = path.absolute()
    _require_vacant(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        place, lock = _take_abandoned(path, resume=resume) or _open_workshop(path)
    except OSError as error:
        raise StorageError(f"cannot write beside {path}: {error.strerror}; choose another folder") from error
    try:
        yield place
    finally:
        if not keep():
            shutil.rmtree(place, ignore_errors=True)
        os.close(lock)


def _require_vacant(path: Path) -> None:
    with translated("look at", path):
        taken = path.is_symlink() or (path.exists() and (not path.is_dir() or any(path.iterdir())))
    if taken:
        raise DatabaseExistsError(f"{path} exists already; choose another path, or remove it")


def _open_workshop(path: Path) -> tuple[Path, int]:
    """A new hidden folder beside `path`, and the descriptor that holds its lock."""
    while True:
        place = path.with_name(f".{path.name}.making-{secrets.token_hex(4)}")
        place.mkdir()
        with suppress(FileNotFoundError):  # another process may take it for abandoned before it is locked
            lock = os.open(place, os.O_RDONLY)
            if _locked(lock) is not False and place.is_dir():
                return place, lock
            os.close(lock)


def _take_abandoned(path: Path, *, resume: bool) -> tuple[Path, int] | None:
    """Remove the workshops of `path` whose makers are dead; but with `resume` take over one that bears MARK."""
    taken = None
    named = re.compile(rf"\.{re.escape(path.name)}\.making-[0-9a-f]{{8}}")
    for place in path.parent.iterdir():
        if named.fullmatch(place.name):
            with suppress(OSError):  # it is gone meanwhile, or somebody else's
                lock = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                try:
                    if not _locked(lock):
                        continue
                    if resume and taken is None and (place / MARK).is_file():
                        taken, lock = (place, lock), -1
                        continue
                    shutil.rmtree(place, ignore_errors=True)
                finally:
                    if lock >= 0:
                        os.close(lock)
    return taken


def _locked(folder: int) -> bool | None:
    """Lock an open folder until it is closed: False if another process holds it, None if folders have no locks here."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
