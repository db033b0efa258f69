"""`corenn snapshot`, `corenn backup` and `corenn restore`: copies of a database."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import console

if TYPE_CHECKING:
    from ..types import Copied

DatabaseArgument = Annotated[Path, typer.Argument(help="Directory of the database.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def snapshot(
    path: DatabaseArgument,
    target: Annotated[Path, typer.Argument(help="Directory to make, or an earlier snapshot of the database.")],
    as_json: JsonOption = False,
) -> None:
    """Copy a database as it is to another directory, which can be opened; an earlier snapshot is brought up to date.

    Only what has changed since is copied then. The database must not be open for writing elsewhere: there,
    db.snapshot() does the same while writes go on.

    Example: corenn snapshot photos.corenn photos-snapshot
    """
    with console.open_database(path) as db:
        _copy(lambda progress: db.snapshot(target, progress), path, "snapshot", as_json)


def backup(
    path: Annotated[Path, typer.Argument(help="Directory of the database, or of a snapshot.")],
    target: Annotated[Path, typer.Argument(help="Directory to make, or archive: a name that ends in .tar.gz or .tar.")],
    as_json: JsonOption = False,
) -> None:
    """Copy a database, with a SHA-256 for every file, to a directory or an archive where nothing is yet.

    Example: corenn backup photos.corenn /backups/photos.tar.gz
    """
    from ..copies import back_up_snapshot
    from ..storage.files import Files
    from ..storage.update import MARKER

    if (path / MARKER).exists():  # to open it would make it a database of its own
        _copy(lambda progress: back_up_snapshot(path, target.absolute(), Files(), progress), path, "backup", as_json)
        return
    with console.open_database(path) as db:
        _copy(lambda progress: db.backup(target, progress), path, "backup", as_json)


def restore(
    source: Annotated[Path, typer.Argument(help="What corenn backup has made.")],
    path: Annotated[Path, typer.Argument(help="Directory of the new database; it appears when it is whole.")],
    as_json: JsonOption = False,
) -> None:
    """Make a database of a backup, once every checksum holds. Refused is what holds anything else than one.

    Example: corenn restore /backups/photos.tar.gz photos.corenn
    """
    from ..database import CoreNN

    _copy(lambda progress: CoreNN.restore(source, path, progress), source, "database", as_json)


def _copy(make: Callable[[Any], Copied], source: Path, kind: str, as_json: bool) -> None:
    began = time.perf_counter()
    with console.steps() as progress:
        made = make(progress)
    seconds = time.perf_counter() - began
    if as_json:
        console.print_json({"source": str(source), **asdict(made), "seconds": round(seconds, 3)})
        return
    console.stdout().print(
        f"{kind} of {made.rows:,} rows as of commit {made.commit:,} in {seconds:.1f} s; {made.path} holds "
        f"{made.bytes / 1e6:,.1f} MB, of which {made.copied / 1e6:,.1f} MB were written",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
