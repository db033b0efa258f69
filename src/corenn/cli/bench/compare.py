"""`corenn bench compare`: two commits or two logs, figure by figure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import console

if TYPE_CHECKING:
    from ...bench.compare import Change

MARKS = {"better": "bold green", "worse": "bold red"}


def compare(
    before: Annotated[str, typer.Argument(help="A log (folder or file), or the beginning of a commit.")],
    after: Annotated[str, typer.Argument(help="The same, for the other side.")],
    log: Annotated[list[Path] | None, typer.Option(help="Log to look for commits in. May be repeated.")] = None,
    system: Annotated[list[str] | None, typer.Option(help="System to tell of. Default: those that changed.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare two commits, or two logs, and tell changes from noise.

    Each figure has a 95 % interval from its repetitions. A change within it, or within what systems that did not change
    have moved by meanwhile, is noise. Measure both sides several times, with at least one such system beside CoreNN.

    Example: corenn bench compare 3dde540 97d0500 --log results

    Two logs: corenn bench compare results-before results-after
    """
    from ...bench.compare import between

    changes = between(before, after, log or [], ours=system)
    if as_json:
        console.print_json([change.as_dict() for change in changes])
    else:
        _show(changes)


def _show(changes: list[Change]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from ...bench.tables import VERDICTS, change_cells

    for setting in dict.fromkeys(change.setting for change in changes):
        table = Table(title=str(setting), title_justify="left", box=box.SIMPLE_HEAD)
        for name in ("system", "figure"):
            table.add_column(name, no_wrap=True)
        for name in ("before", "after", "change", "95 % interval", "drift"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("verdict")
        for change in changes:
            if change.setting == setting and (change.before is not None or change.after is not None):
                verdict = Text(VERDICTS[change.verdict], MARKS.get(change.verdict, ""))
                table.add_row(change.label, change.figure, *change_cells(change), verdict)
        console.stdout().print(table)
