"""`corenn upgrade`: bring a database to the present version of the format."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from . import console


def upgrade(
    path: Annotated[Path, typer.Argument(help="Directory of the database.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Bring a database that an earlier CoreNN has written to the present version of the format, for good.

    Needs the database for itself, and as much space again while it runs; what is cut off leaves the database as it was
    or a version further. One of the present version is left as it is.

    Example: corenn upgrade photos.corenn
    """
    from ..storage.upgrade import upgrade as bring_up

    with console.status(f"upgrading {path}"):
        done = bring_up(path)
    if as_json:
        console.print_json(asdict(done))
    else:
        console.stdout().print(
            f"{path} has format version {done.after}, the present one; nothing was to be done"
            if done.before == done.after
            else f"{path} was of format version {done.before}, and is of {done.after} now",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
