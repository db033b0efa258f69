"""`corenn dataset fetch`: a data set of the catalogue, from the first mirror that serves it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import console
from .options import Json, Root, command_line, size_line

if TYPE_CHECKING:
    from ...datasets.fetch import Planned, Prepared
    from ...datasets.remote import Entry


def fetch(
    name: Annotated[str, typer.Argument(help="Data set of the catalogue; corenn dataset list shows them.")],
    rows: Annotated[int | None, typer.Option(min=1, help="Take the first N rows only. Default: all.")] = None,
    root: Root = None,
    url: Annotated[
        list[str] | None,
        typer.Option(help="Another address, tried first: of a file, or of a folder (ends in /). May be repeated."),
    ] = None,
    catalogue: Annotated[Path | None, typer.Option(help="JSON file with data sets of your own.")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds without a byte until a connection is lost.")] = 30.0,
    attempts: Annotated[int, typer.Option(min=1, help="Tries in a row at a mirror that bring nothing new.")] = 5,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be fetched, and fetch nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Fetch a data set, check it, and make it ready for use.

    Mirrors are tried in order. A fetch that broke off, or that you stop with Ctrl-C, goes on where it was when you run
    it again. What is there already is not fetched twice.

    Example: corenn dataset fetch sift1m

    The first ten million rows of a billion, without the rest: corenn dataset fetch deep-1b --rows 10000000
    """
    from ...datasets.catalogue import ENTRIES, find, read_catalogue
    from ...datasets.fetch import fetch as bring
    from ...datasets.fetch import plan
    from ...datasets.transfer import Patience

    entry = find(name, ENTRIES if catalogue is None else read_catalogue(catalogue))
    urls = url or []
    if dry_run:
        _show_plan(entry, plan(entry, rows=rows, folder=root, urls=urls), as_json)
        return
    command = command_line("fetch", name, rows=rows, root=root, catalogue=catalogue)
    with _bars() as bars:
        try:
            found = bring(
                entry, rows=rows, folder=root, urls=urls, command=command, patience=Patience(attempts, timeout),
                watch=bars,
            )  # fmt: skip
        except KeyboardInterrupt:
            bars.note("stopped; the same command goes on from here")
            raise
    _show(entry, found, as_json)


class _Bars:
    """A line of progress for each file; see datasets.transfer.Watcher."""

    def __init__(self, progress: Any) -> None:
        self._progress = progress
        self._task: Any = None

    def begin(self, title: str, total: int | None) -> None:
        """A step begins."""
        if self._task is not None:
            self._progress.stop_task(self._task)
        self._task = self._progress.add_task(title, total=total)

    def advance(self, count: int) -> None:
        """So many bytes were done."""
        if self._task is not None:
            self._progress.advance(self._task, count)

    def note(self, text: str) -> None:
        """A line above the bars."""
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _bars() -> Iterator[_Bars]:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console.stderr()) as progress:
        yield _Bars(progress)


def _show_plan(entry: Entry, sources: list[list[Planned]], as_json: bool) -> None:
    if as_json:
        files = [
            [
                {
                    "file": each.name, "target": str(each.target), "urls": list(each.urls), "bytes": each.bytes,
                    "verified": each.verified, "cited": each.cited or None, "there": each.there,
                }
                for each in source
            ]
            for source in sources
        ]  # fmt: skip
        console.print_json({"name": entry.name, "licence": entry.licence or None, "sources": files})
        return
    out = console.stdout()
    for number, source in enumerate(sources):
        lines = [f"{entry.name} would come from" if number == 0 else "and if that fails, from"]
        lines += [line for each in source for line in _lines(each)]
        out.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def _lines(each: Planned) -> list[str]:
    size = "of unknown size" if each.bytes is None else size_line(each.bytes)
    check = f"verified by the checksum in {each.cited}" if each.verified else "unverified: no checksum is published"
    state = "is there already" if each.there else size
    return [f"  {each.target}: {state}, {check}", *(f"    {url}" for url in each.urls)]


def _show(entry: Entry, found: Prepared, as_json: bool) -> None:
    licence = entry.licence or f"unverified; see {entry.homepage}"
    if as_json:
        console.print_json({
            "name": found.name, "metric": found.metric, "rows": found.rows, "dim": found.dim,
            "base": str(found.base), "base_part": found.base_part, "queries": str(found.queries),
            "queries_part": found.queries_part, "truth": None if found.truth is None else str(found.truth),
            "licence": entry.licence or None,
        })  # fmt: skip
        return
    truth = "not published for these rows: corenn dataset ground-truth makes them"
    console.print_figures(
        f"{found.name}: {found.rows:,} rows of {found.dim}, {found.metric}",
        [
            ("rows", f"{found.base}{_part(found.base_part)}"),
            ("queries", f"{found.queries}{_part(found.queries_part)}"),
            ("true neighbours", truth if found.truth is None else str(found.truth)),
            ("licence", licence),
        ],
    )


def _part(name: str | None) -> str:
    return f", {name}" if name else ""
