"""`corenn bench run`: every system on the same data, and the log."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import console

if TYPE_CHECKING:
    from ...bench.contestant import Plan

WIDTH = 160  # columns of the table where nobody looks at a terminal
QUICK_ROWS = 2_000
QUICK = {"queries": 100, "repetitions": 2, "point_seconds": 1.0}


def run(
    dataset: Annotated[
        str, typer.Argument(help="Name in the catalogue, HDF5 file of ann-benchmarks, or any vector file.")
    ],
    systems: Annotated[list[str], typer.Option(help="Systems, separated by commas, with options as in hnswlib:M=32.")],
    out: Annotated[Path, typer.Option(help="Folder of the log, runs.jsonl, to which lines are added.")],
    count: Annotated[
        int | None, typer.Option(min=1, help="Rows to index, the first of the file. Default: all.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Neighbours to ask for.")] = 10,
    threads: Annotated[int, typer.Option(min=1, help="Threads, and cores, of a search.")] = 1,
    build_threads: Annotated[int | None, typer.Option(min=1, help="Threads of a build. Default: all cores.")] = None,
    recalls: Annotated[str, typer.Option(help="Recalls to give the speed at, separated by commas.")] = "0.9,0.95,0.99",
    queries: Annotated[int, typer.Option(min=1, help="Queries to ask at most, the first of the file.")] = 10_000,
    repetitions: Annotated[int, typer.Option(min=1, help="Timings of each operating point; the best counts.")] = 5,
    query_file: Annotated[Path | None, typer.Option(help="File of queries, if DATASET has none.")] = None,
    truth_file: Annotated[Path | None, typer.Option(help="File of true neighbours. Default: computed.")] = None,
    metric: Annotated[str | None, typer.Option(help="l2, cosine or ip, if DATASET does not say.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of data sets, for names of the catalogue.")] = None,
    python: Annotated[
        list[str] | None, typer.Option(help="NAME=PATH: a system's own interpreter. May be repeated.")
    ] = None,
    build_timeout: Annotated[float, typer.Option(min=1, help="Seconds for a build before it counts as hung.")] = 3600.0,
    query_timeout: Annotated[float, typer.Option(min=1, help="Seconds for any other request.")] = 300.0,
    point_seconds: Annotated[
        float, typer.Option(min=0.1, help="A slow system is asked fewer queries, to take so long.")
    ] = 5.0,
    scratch: Annotated[Path | None, typer.Option(help="Folder for indexes. Default: that of temporary files.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="2,000 rows, 100 queries, 2 repetitions: to try, not to measure.")
    ] = False,
    report: Annotated[bool, typer.Option(help="Make tables and plots of the log at the end.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the lines as JSON.")] = False,
) -> None:
    """Build and search with several systems, and find out how fast each is at the same recall.

    Systems that are not installed, fail, hang or crash are reported and left out. Choose from chroma, corenn,
    corenn-disk, corenn-py, faiss-hnsw, faiss-hnsw-sq8, faiss-ivfpq, hnswlib, lancedb, milvus-lite, ngt,
    pynndescent, qdrant, sqlite-vec, svs, usearch, voyager, vsag and zvec, or give the dotted name of a module with
    a System of your own.

    Example: corenn bench run sift-128-euclidean.hdf5 --systems corenn,hnswlib:M=32 --count 100000 --out results
    """  # fmt: skip
    from ...bench.contestant import Plan
    from ...bench.machine import cores
    from ...bench.run import run as measure
    from ...bench.spec import parse_systems
    from ...bench.subject import locate

    specs = parse_systems(systems)
    small: dict[str, Any] = QUICK if quick else {}
    source = locate(
        dataset, queries=query_file, truth=truth_file, metric=metric, rows=count, root=root
    )  # fmt: skip
    plan = Plan(
        k=k, threads=threads, build_threads=build_threads or cores(), recalls=_recalls(recalls),
        repetitions=small.get("repetitions", repetitions), build_timeout=build_timeout, query_timeout=query_timeout,
        point_seconds=small.get("point_seconds", point_seconds),
        pythons=_pythons(python or [], {name for spec in specs for name in (spec.name, spec.label)}),
    )  # fmt: skip
    asked = small.get("queries", queries)
    lines = measure(
        specs, plan, source, out, count=count if count or not quick else QUICK_ROWS, queries=asked,
        config=_config(systems, plan, asked, quick), scratch=scratch, tell=console.say,
    )  # fmt: skip
    if report:
        _report(out)
    if as_json:
        console.print_json(lines)
    else:
        _print([spec.label for spec in specs], lines, plan.recalls)
        console.stdout().print(f"log: {out / 'runs.jsonl'}", markup=False, highlight=False, soft_wrap=True)


def _config(systems: list[str], plan: Plan, queries: int, quick: bool) -> dict[str, Any]:
    """What was asked for, as it stands in the log."""
    return {
        "systems": ",".join(systems), "queries": queries, "repetitions": plan.repetitions,
        "recalls": list(plan.recalls), "build_threads": plan.build_threads, "build_timeout": plan.build_timeout,
        "query_timeout": plan.query_timeout, "point_seconds": plan.point_seconds, "quick": quick,
    }  # fmt: skip


def _recalls(text: str) -> tuple[float, ...]:
    try:
        found = tuple(sorted({float(part) for part in text.split(",") if part.strip()}))
    except ValueError:
        found = ()
    if not found or not 0 < found[0] <= found[-1] <= 1:
        console.fail(
            f"--recalls {text}: must be numbers above 0, at most 1, separated by commas, such as 0.9,0.95,0.99"
        )
    return found


def _pythons(given: list[str], known: set[str]) -> dict[str, Path]:
    """Interpreters by system; a label may have a = of its own, a path before it may not."""
    found = {}
    for text in given:
        name, equals, path = text.rpartition("=")
        if not equals or not Path(path).is_file():
            console.fail(f"--python {text}: must be a system, =, and the path of an interpreter")
        if name not in known:
            console.fail(f"--python {text}: {name} is not among the systems of this run")
        found[name] = Path(path)
    return found


def _report(out: Path) -> None:
    """Tables and plots beside the log."""
    from ...bench.reporting import write_report

    try:
        console.say(f"report: {write_report([out], out).page}")
    except ModuleNotFoundError as error:
        console.say(f"no plots: they need {error.name}, which comes with pip install 'corenn[bench]'")


def _print(labels: list[str], lines: list[dict[str, Any]], recalls: tuple[float, ...]) -> None:
    """Speed at each recall, and what it costs; a line for each system."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("system", no_wrap=True)
    for heading in ("version", *(f"QPS @{recall:g}" for recall in recalls), "build s", "index MB", "spread"):
        table.add_column(heading, justify="right")
    table.add_column("note")
    for label in labels:
        table.add_row(*_row([line for line in lines if line["label"] == label], recalls))
    Console(width=None if sys.stdout.isatty() else WIDTH).print(table)


def _row(lines: list[dict[str, Any]], recalls: tuple[float, ...]) -> list[str]:
    first = lines[-1]
    targets = {line["target"]: line for line in lines if line["kind"] == "target"}
    spreads = [line["qps_spread"] for line in lines if line["kind"] == "point" and len(line["qps_runs"]) > 1]
    failures = [f"{line['reason']} ({line['stage']}): {line['message']}" for line in lines if line["kind"] == "failure"]
    size = first["disk_bytes"] or first["index_bytes"]
    return [
        first["label"],
        first["version"] or "–",
        *(_speed(targets.get(recall)) for recall in recalls),
        "–" if first["build_seconds"] is None else f"{first['build_seconds']:.1f}",
        "–" if size is None else f"{size / 1e6:.0f}",
        "–" if not spreads else f"{sorted(spreads)[len(spreads) // 2]:.0%}",
        "; ".join(failures) or "; ".join(note for note in first["notes"] if note.startswith(("slow", "ended"))),
    ]


def _speed(target: dict[str, Any] | None) -> str:
    if target is None:
        return "–"
    if not target["reached"]:
        return f"max {target['recall']:.3f}"
    return f"{'≥ ' if target['at_least'] else ''}{target['qps']:,.0f}"
