"""`corenn verify`, and how a report is shown."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import console

if TYPE_CHECKING:
    from ..types import Problem, Report

SHOWN_KEYS = 10


def verify(
    path: Annotated[Path, typer.Argument(help="Directory of the database.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check every checksum, key, edge and path of a database; exit code 1 if something is wrong.

    Changes nothing. What it finds, corenn repair mends.

    Example: corenn verify photos.corenn
    """
    with console.open_database(path, mode="r") as db, console.status(f"checking {path}"):
        report = db.verify()
    show_report(path, report, as_json)


def show_report(path: Path, report: Report, as_json: bool) -> None:
    """Print a report; exit code 1 if faults are left."""
    if as_json:
        console.print_json({"path": str(path), "ok": report.ok, **asdict(report)})
    else:
        _print_report(path, report)
    if not report.ok:
        raise typer.Exit(1)


def _print_report(path: Path, report: Report) -> None:
    counts = {name: getattr(report, name) for name in ("rows", "tombstones", "edges", "unreachable")}
    mended = [("repaired", _line(problem)) for problem in report.repaired]
    left = [("problem", _line(problem)) for problem in report.problems]
    verdict = "no fault" if report.ok else f"{len(report.problems)} kind{'s'[: len(report.problems) > 1]} of fault"
    figures = [*((name, f"{count:,}") for name, count in counts.items()), *mended, *left, ("result", verdict)]
    console.print_figures(str(path), figures)


def _line(problem: Problem) -> str:
    text = f"{problem.part}: {problem.description} ({problem.count:,})"
    if problem.lost:
        more = len(problem.lost) - SHOWN_KEYS
        text += f"; lost: {', '.join(map(repr, problem.lost[:SHOWN_KEYS]))}{f' and {more:,} more' if more > 0 else ''}"
    return text
