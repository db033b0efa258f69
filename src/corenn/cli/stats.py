"""`corenn stats`: what a database holds and what it costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..sizes import as_size
from . import console

if TYPE_CHECKING:
    from ..types import Stats


def stats(
    path: Annotated[Path, typer.Argument(help="Directory of the database.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show rows, settings, memory and disk of a database.

    Opens it for reading: a writer may be at work beside.

    Example: corenn stats photos.corenn --json
    """
    with console.open_database(path, mode="r") as db:
        found = db.stats()
    if as_json:
        console.print_json(asdict(found))
    else:
        console.print_figures(str(path), _figures(found))


def _figures(found: Stats) -> Iterator[tuple[str, str]]:
    for name, value in asdict(found).items():
        if name == "memory":
            yield from ((f"memory: {part}", as_size(size)) for part, size in value.items())
        elif isinstance(value, dict):  # of durations: a handle that is opened to look has done nothing
            continue
        elif name.endswith("_bytes"):
            yield name.removesuffix("_bytes"), as_size(value)
        elif name != "path":
            yield name, f"{value:,}" if isinstance(value, int) and name != "oldest_reader" else str(value)
