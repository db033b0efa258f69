"""`corenn bench report`: tables and plots of a log."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import console


def report(
    logs: Annotated[list[Path], typer.Argument(help="Folders with a runs.jsonl, or such files.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of report and plots. Default: that of the first log.")
    ] = None,
    update: Annotated[Path | None, typer.Option(help="Page whose generated part is made anew.")] = None,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="OLD NEW", help="Two commits, or other logs: what changed from one to the other."),
    ] = None,
    plots: Annotated[bool, typer.Option(help="Draw the plots as well; needs matplotlib.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make tables and plots of what was measured.

    Every system is shown in its newest run. Data, rows, k or threads that differ make separate sections.

    Example: corenn bench report results --out results

    Into the documentation: corenn bench report results --update docs/benchmarks.md

    With what changed between two commits: corenn bench report results --compare 3dde540 97d0500
    """
    from ...bench.reporting import split_page, update_page, write_report

    if update is not None:
        split_page(update)
    folder = out or (logs[0] if logs[0].is_dir() else logs[0].parent)
    with console.status("drawing"):
        made = write_report(logs, folder, plots=plots, compared=compare)
        pages = [] if update is None else update_page(update, made)
    if made.unread:
        console.say(f"{made.unread} lines could not be read and are left out")
    if as_json:
        console.print_json({**made.as_dict(), "updated": [str(path) for path in pages]})
        return
    for path in (made.page, *(plot for part in made.parts for plot in part.plots), *pages):
        console.stdout().print(str(path), markup=False, highlight=False, soft_wrap=True)
