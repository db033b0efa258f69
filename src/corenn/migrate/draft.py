"""Folders that appear under their name only when they are whole."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import DatabaseExistsError, StorageError
from ..storage.files import Files


@contextmanager
def folder_draft(path: Path, files: Files) -> Iterator[Path]:
    """A hidden name beside `path`, where nothing is. The folder made there becomes `path` when the block ends.

    If the block fails, the folder is removed.

    Raises:
        DatabaseExistsError: if something other than an empty folder is at `path`.
        StorageError: if the folder around it cannot be written.
    """
    path = path.absolute()
    if path.is_symlink() or (path.exists() and (not path.is_dir() or any(path.iterdir()))):
        raise DatabaseExistsError(f"{path} exists already; choose another path, or remove it")
    draft = path.with_name(f".{path.name}.making-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise StorageError(f"cannot write beside {path}: {error.strerror}; choose another folder") from error
    try:
        yield draft
        files.sync_folder(draft)
        files.rename(draft, path)
        files.sync_folder(path.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
