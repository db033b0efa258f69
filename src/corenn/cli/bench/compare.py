"""`corenn bench compare`: two commits or two logs, figure by figure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    from ...bench.compare import compare as judge

    lines = _side(before, log or []), _side(after, log or [])
    changes = judge(*lines, ours=system)
    if not changes:
        console.fail(f"{before} and {after} have no system in common that was measured on the same data and setting")
    if as_json:
        console.print_json([change.as_dict() for change in changes])
    else:
        _show(changes)


def _side(given: str, logs: list[Path]) -> list[dict[str, Any]]:
    """The lines of a log, or of a commit in `logs`."""
    from ...bench.compare import of_commit
    from ...bench.runs import read

    if Path(given).exists():
        return read([Path(given)])[0]
    if not logs:
        console.fail(f"{given}: no such log; for a commit, name the log to look in with --log")
    every = read(logs)[0]
    found = of_commit(every, given)
    if not found:
        known = sorted({str(line["commit"])[:9] + str(line["commit"])[40:] for line in every if line.get("commit")})
        console.fail(f"{given}: no run of this commit; there are {', '.join(known) or 'none with a commit'}")
    return found


def _show(changes: list[Change]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

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
                table.add_row(change.label, change.figure, *_cells(change), verdict)
        console.stdout().print(table)


VERDICTS = {
    "better": "better", "worse": "worse", "noise": "noise", "same": "the same",
    "too few": "too few runs to tell", "missing": "not on both sides",
}  # fmt: skip


def _cells(change: Change) -> tuple[str, ...]:
    interval = "–"
    if change.low is not None and change.high is not None and change.low != change.high:
        interval = f"{_percent(change.low)} to {_percent(change.high)}"
    drift = "–" if change.drift is None else f"± {(change.drift - 1):.1%}"
    return (_shown(change.before), _shown(change.after), _percent(change.ratio), interval, drift)


def _percent(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio - 1:+.1%}"


def _shown(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
