"""`corenn repair`: mend what can be mended."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import console
from .verify import show_report


def repair(
    path: Annotated[Path, typer.Argument(help="Directory of the database.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Mend edges, orphans and look-aside files from the stored vectors and keys; exit code 1 if a fault is left.

    Needs the database for itself: no other process may be writing.

    Example: corenn repair photos.corenn
    """
    with console.open_database(path, mode="rescue") as db, console.status(f"repairing {path}"):
        report = db.repair()
    show_report(path, report, as_json)
