"""`corenn compact`: give the space of deleted rows back."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from ..sizes import as_size
from . import console


@dataclass(frozen=True, slots=True)
class _Outcome:
    """rows: that are left. before, after: bytes on disk."""

    path: str
    rows: int
    generation: int
    before_bytes: int
    after_bytes: int


def compact(
    path: Annotated[Path, typer.Argument(help="Directory of the database.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Copy the live rows into new files and remove the old ones, so that deleted rows take no space any more.

    Needs the database for itself, but for reading processes, and for a while up to 1.1 times the space of the result
    beside the old files; it is refused if that is not there. After Ctrl-C the old files are as they were.

    Example: corenn compact photos.corenn
    """
    with console.open_database(path) as db:
        before = db.stats()
        try:
            with console.steps() as tell:
                db.compact(tell)
        except KeyboardInterrupt:
            console.say(f"Interrupted: {path} is as it was.")
            raise typer.Exit(console.INTERRUPTED) from None
        after = db.stats()
    outcome = _Outcome(str(path), after.rows, after.generation, before.disk_bytes, after.disk_bytes)
    if as_json:
        console.print_json(asdict(outcome))
    else:
        console.print_figures(
            str(path),
            [
                ("rows", f"{outcome.rows:,}"),
                ("generation", f"{outcome.generation:,}"),
                ("disk before", as_size(outcome.before_bytes)),
                ("disk after", as_size(outcome.after_bytes)),
            ],
        )
