"""`corenn bench runbook`: inserts, deletes, replaces and searches as a runbook says, and recall at each search."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import console

if TYPE_CHECKING:
    from ...bench.player import Line, Player
    from ...bench.runbook import Runbook
    from ...database import CoreNN
    from ...datasets import Vectors

WIDTH = 160  # columns of the table where nobody looks at a terminal


def runbook(
    file: Annotated[Path, typer.Argument(help="Runbook of big-ann-benchmarks: YAML.")],
    dataset: Annotated[
        str | None,
        typer.Option(help="Name in the catalogue, HDF5 file, or any vector file. Default: as FILE calls it."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the log, runbook.jsonl, to which lines are added.")] = Path(
        "runbook-results"
    ),
    name: Annotated[str | None, typer.Option(help="Data set in FILE to play. Default: the only one.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Neighbours to ask for.")] = 10,
    path: Annotated[
        Path | None, typer.Option(help="Keep the database here, on disk. Default: in memory, gone at the end.")
    ] = None,
    query_file: Annotated[Path | None, typer.Option(help="File of queries, if the data set has none.")] = None,
    queries: Annotated[int, typer.Option(min=1, help="Queries to ask at most, the first of the file.")] = 10_000,
    metric: Annotated[str | None, typer.Option(help="l2, cosine or ip, if the data set does not say.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of data sets, for names of the catalogue.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Stored type. Default: that of the data.")] = None,
    max_edges: Annotated[int | None, typer.Option(min=1, help="Edges per node. Default: that of CoreNN.")] = None,
    search_list: Annotated[int | None, typer.Option(min=1, help="Search list. Default: that of CoreNN.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of a search. Default: all cores.")] = None,
    batch: Annotated[int, typer.Option(min=1, max=100_000, help="Rows per insert.")] = 1_000,
    check: Annotated[
        bool, typer.Option("--check", help="Check the runbook against the data, and play nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the lines as JSON.")] = False,
) -> None:
    """Play a runbook: recall at every search against the rows live at that moment, and the speed of every step.

    Every step is checked before the first is done. Ctrl-C ends it; what was logged until then stays.

    Example: corenn bench runbook simple.yaml --dataset sift-128-euclidean.hdf5 --out results
    """
    from ...bench.log import Log
    from ...bench.player import FILE
    from ...bench.runbook import read_runbook, section_of

    with ExitStack() as opened:
        base, about = _open(opened, dataset or section_of(file, name), query_file, metric, root)
        book = read_runbook(file, len(base), name)
        if check:
            _print_checked(book, len(base), as_json)
            return
        player = _player(opened, book, base, about, {
            "k": k, "path": path, "queries": queries, "dtype": dtype, "max_edges": max_edges,
            "search_list": search_list, "threads": threads, "batch": batch,
        })  # fmt: skip
        log = opened.enter_context(Log(out, FILE, lambda _: []))
        lines, ended = _play(player, log)
    plots = _draw(lines, out / file.stem)
    if as_json:
        console.print_json(lines)
    else:
        _print(lines)
        for made in (log.path, *plots):
            console.stdout().print(str(made), markup=False, highlight=False, soft_wrap=True)
    if not ended:
        console.say(f"Interrupted after step {lines[-1]['step'] if lines else 0} of {len(book.steps)}.")
        raise typer.Exit(console.INTERRUPTED)


# --- the data ---------------------------------------------------------------------------------------------------------


def _open(
    opened: ExitStack, dataset: str, query_file: Path | None, metric: str | None, root: Path | None
) -> tuple[Vectors, dict[str, Any]]:
    """The rows, and what is known about them."""
    from ...bench.subject import locate
    from ...config import METRICS
    from ...datasets import open_vectors

    source = locate(dataset, queries=query_file, metric=metric, root=root)
    base = opened.enter_context(open_vectors(source.base, source.base_part))
    chosen = source.metric or base.metric
    if chosen not in METRICS:
        console.fail(f"{source.base} does not say its metric; name it with --metric, one of {', '.join(METRICS)}")
    asked = opened.enter_context(open_vectors(source.queries, source.queries_part))
    if asked.dim != base.dim:
        console.fail(f"{asked.path}: queries of {asked.dim} dimensions; the rows have {base.dim}")
    return base, {"source": source, "metric": chosen, "asked": asked}


def _player(opened: ExitStack, book: Runbook, base: Vectors, about: dict[str, Any], asked: dict[str, Any]) -> Player:
    import numpy as np

    from ...bench.player import Player, stored_type

    settings = {
        "dim": base.dim, "metric": about["metric"], "dtype": asked["dtype"] or stored_type(base.dtype),
        **({} if asked["max_edges"] is None else {"max_edges": asked["max_edges"]}),
    }  # fmt: skip
    questions = about["asked"].rows(0, min(asked["queries"], len(about["asked"])))
    source = about["source"]
    told = {
        "name": source.name, "rows": len(base), "dim": base.dim, "metric": about["metric"], "sha256": source.sha256,
        "bytes": source.base.stat().st_size, "queries": len(about["asked"]), "truth": "computed",
    }  # fmt: skip
    return Player(
        book, base, np.ascontiguousarray(questions, np.float32), about["metric"], asked["k"],
        opened.enter_context(_database(asked["path"], settings)),
        asked["search_list"], asked["threads"], asked["batch"], {"dataset": told},
    )  # fmt: skip


def _database(path: Path | None, settings: dict[str, Any]) -> CoreNN:
    from ...config import Settings
    from ...database import CoreNN

    if path is not None:
        return console.create(path, settings)
    console.compile_kernels(Settings.from_dict(settings))
    return CoreNN.in_memory(**settings)


# --- playing and showing ----------------------------------------------------------------------------------------------


def _play(player: Player, log: Any) -> tuple[list[Line], bool]:
    """The lines, and whether it came to the end."""
    lines: list[Line] = []
    written = sum(len(step.tags) for step in player.runbook.steps)
    try:
        with console.progress("playing", written) as advance:
            for line in player.play(advance):
                log.append(line)
                lines.append(line)
    except KeyboardInterrupt:
        return lines, False
    return lines, True


def _draw(lines: list[Line], stem: Path) -> list[Path]:
    from ...bench.steps import draw

    try:
        return draw(lines, stem)
    except ModuleNotFoundError as error:
        console.say(f"no plot: it needs {error.name}, which comes with pip install 'corenn[bench]'")
        return []


def _print_checked(book: Runbook, rows: int, as_json: bool) -> None:
    figures = {"steps": len(book.steps), "searches": book.searches, "peak_rows": book.peak, "max_pts": book.most}
    if as_json:
        console.print_json({"runbook": str(book.path), "section": book.name, "rows": rows, **figures})
    else:
        shown = [(name.replace("_", " "), f"{value:,}") for name, value in figures.items()]
        console.print_figures(f"{book.path.name}: {book.name}", [*shown, ("result", "every step fits the data")])


def _print(lines: list[Line]) -> None:
    """A row per step."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("step", justify="right")
    table.add_column("operation", no_wrap=True)
    for heading in ("count", "per second", "recall", "distances", "live", "tombstones", "RSS MB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(*_row(line))
    Console(width=None if sys.stdout.isatty() else WIDTH).print(table)


def _row(line: Line) -> list[str]:
    recall, resident = line.get("recall"), line["rss_bytes"]
    tags = line["tags"]
    return [
        str(line["step"]),
        line["operation"] if tags is None else f"{line['operation']} {tags[0]:,}–{tags[1] - 1:,}",
        f"{line['count']:,}",
        "–" if line["rate"] is None else f"{line['rate']:,.0f}",
        "" if recall is None else f"{recall:.4f}",
        f"{line['distances']:,.0f}" if "distances" in line else "",
        f"{line['n']:,}",
        f"{line['tombstones']:,}",
        "–" if resident is None else f"{resident / 1e6:,.0f}",
    ]
