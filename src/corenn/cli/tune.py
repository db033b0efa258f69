"""`corenn tune`: the calibration curve of a database, as a table and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InvalidArgumentError
from . import console

if TYPE_CHECKING:
    from ..database import CoreNN
    from ..types import Explain, Recall

TARGETS = "0.9,0.95,0.97,0.99"
PLOTS = (".svg", ".png")


def tune(
    path: Annotated[Path, typer.Argument(help="Directory of the database.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Neighbours to ask for.")] = 10,
    samples: Annotated[int, typer.Option(min=1, help="Stored rows that are asked for.")] = 1_000,
    targets: Annotated[str, typer.Option(help="Recalls whose search lists are shown, by commas.")] = TARGETS,
    plot: Annotated[Path | None, typer.Option(help="Draw the curve into this file, .svg or .png.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure which search list gives which recall, against exact search, and which list reaches a recall.

    Opens the database for reading: a writer may be at work beside. Changes nothing.

    Example: corenn tune photos.corenn --targets 0.9,0.99 --plot curve.svg
    """
    wanted = _targets(targets)
    if plot is not None:
        if plot.suffix not in PLOTS:
            raise InvalidArgumentError(f"--plot {plot}: the name must end in {' or '.join(PLOTS)}")
        import matplotlib  # noqa: F401 - that it is missing is to be known before anything is measured
    with console.open_database(path, mode="r") as db:
        rows = len(db)
        with console.status(f"asking for {min(samples, rows):,} of {rows:,} rows"):
            points = db.recall_curve(k, samples)
            chosen = _chosen(db, k, wanted) if rows else {}
    drawn = None
    if plot is not None and points:
        from ..bench.recall_plot import draw

        draw(points, {target: found.search_list for target, found in chosen.items()}, f"{rows:,} rows", plot)
        drawn = str(plot)
    if as_json:
        console.print_json(_as_dict(k, rows, points, chosen, drawn))
        return
    if points:
        _show(str(path), k, points)
    else:
        console.say(f"{path} has {rows:,} rows: for k = {k} queries scan them all, and miss nothing")
    _show_chosen(chosen)
    if drawn is not None:
        console.say(f"Plot: {drawn}")


def _targets(text: str) -> list[float]:
    from ..inputs import as_recall

    found = []
    for part in text.split(","):
        try:
            number = float(part)
        except ValueError:
            raise InvalidArgumentError(
                f"--targets {text!r}: {part!r} is not a number; give recalls such as {TARGETS}"
            ) from None
        found.append(as_recall(number, "--targets"))
    return found


def _chosen(db: CoreNN, k: int, targets: Sequence[float]) -> dict[float, Explain]:
    """How queries with each target are answered."""
    key = next(iter(db.keys()))
    return {target: db.query(key=key, k=k, min_recall=target, explain=True).explain for target in targets}  # type: ignore[misc]


def _as_dict(
    k: int, rows: int, points: Sequence[Recall], chosen: dict[float, Explain], plot: str | None
) -> dict[str, Any]:
    named = ("plan", "search_list", "expected_recall", "least_recall")
    return {
        "k": k,
        "rows": rows,
        "points": [asdict(point) for point in points],
        "targets": [
            {"min_recall": target, **{name: getattr(found, name) for name in named}} for target, found in chosen.items()
        ],
        "plot": plot,
    }


def _show(title: str, k: int, points: Sequence[Recall]) -> None:
    lines = [
        (
            f"{point.search_list:,}", f"{point.recall:.4f}", f"{point.low:.4f} – {point.high:.4f}",
            f"{point.distances:,.0f}", f"{1 / point.seconds:,.0f}",
        )
        for point in points
    ]  # fmt: skip
    heads = ("search list", f"recall@{k}", "95 % interval", "distances", "queries/s, one thread")
    _table(f"{title}, {points[0].samples:,} rows asked for", heads, lines)


def _show_chosen(chosen: dict[float, Explain]) -> None:
    lines = []
    for target, found in chosen.items():
        scanned = found.plan != "graph"
        least = "" if found.least_recall is None else f"{found.least_recall:.4f}"
        expected = "" if found.expected_recall is None else f"{found.expected_recall:.4f}"
        lines.append((f"{target:g}", "scan" if scanned else f"{found.search_list:,}", expected, least))
    if lines:
        _table("Queries with min_recall", ("min_recall", "search list", "recall expected", "at least"), lines)


def _table(title: str, heads: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    console.stdout().print(table)
