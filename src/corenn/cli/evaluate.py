"""`corenn eval`: recall, speed, latency, sizes and memory against known answers."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import console
from .matrices import STORED, Form, Rows, opened, read_all, read_truth

if TYPE_CHECKING:
    from ..bench.evaluation import Evaluation
    from ..database import CoreNN

ARRIVALS = ("poisson", "even")


def evaluate(
    path: Annotated[Path, typer.Argument(help="Directory of the database; created if --vectors is given.")],
    queries: Annotated[Path, typer.Option(help="Queries: a file of vectors, or packed rows of --dtype.")],
    results: Annotated[Path, typer.Option(help="True neighbours, at least K per query: a file of them, or uint32.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Neighbours to ask for.")],
    vectors: Annotated[Path | None, typer.Option(help="Rows to insert first; keys are row numbers.")] = None,
    dtype: Annotated[str, typer.Option(help=f"Type of packed rows: {', '.join(STORED)}.")] = "f32",
    dim: Annotated[int | None, typer.Option(min=1, help="Dimensions; needed with packed --vectors.")] = None,
    metric: Annotated[
        str | None, typer.Option(help="Metric of a new database. Default: that of the file, or l2.")
    ] = None,
    search_list: Annotated[int | None, typer.Option(min=1, help="Search list. Default: that of the database.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the batch query. Default: all cores.")] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Repetitions of each timed batch; the best counts.")] = 3,
    recalls: Annotated[str | None, typer.Option(help="Find the speed at these recalls, such as 0.9,0.95.")] = None,
    scale: Annotated[int | None, typer.Option(min=1, help="Speed with 1, 2, 4 … up to this many threads.")] = None,
    clients: Annotated[int, typer.Option(min=1, help="Threads that send single queries.")] = 1,
    open_loop: Annotated[float | None, typer.Option(min=0.001, help="Offer so many queries per second.")] = None,
    hold_p99: Annotated[float | None, typer.Option(min=0.001, help="Find the rate that holds this p99, in ms.")] = None,
    arrivals: Annotated[str, typer.Option(help=f"When offered queries arrive: {' or '.join(ARRIVALS)}.")] = "poisson",
    duration: Annotated[float, typer.Option(min=0.001, help="Seconds of each offered load.")] = 5.0,
    fresh: Annotated[bool, typer.Option(help="Measure opening and memory in a new process.")] = True,
    out: Annotated[Path | None, typer.Option(help="Folder of a log, runs.jsonl, to which lines are added.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure recall, speed, latency, sizes and memory against known neighbours.

    Files are read by their ending: .fvecs, .fbin, .hdf5 of ann-benchmarks (which may be given for all three), .npy and
    more. Any other is taken for packed rows: raw values without a header, of --dtype and --dim. The keys of the
    database are the row numbers of --vectors, as integers or as text; --results holds such row numbers.

    Example: corenn eval sift.corenn --vectors base.bin --queries q.bin --results truth.bin -k 10 --dim 128

    Speed at given recalls: corenn eval sift.corenn --queries q.bin --results truth.bin -k 10 --recalls 0.9,0.95

    Latency under load: corenn eval sift.corenn --queries q.bin --results truth.bin -k 10 --open-loop 2000
    """
    if dtype not in STORED:
        console.fail(f"--dtype {dtype}: choose one of {', '.join(STORED)}")
    if arrivals not in ARRIVALS:
        console.fail(f"--arrivals {arrivals}: choose one of {', '.join(ARRIVALS)}")
    targets = recall_targets(recalls)
    if vectors is None:
        dim = stored_dim(path, dim, metric)
    form = None if dim is None else Form(dtype, dim)
    figures: dict[str, Any] = {}
    with ExitStack() as files:
        base = None if vectors is None else files.enter_context(opened(vectors, form, "train"))
        form = form if base is None else Form(dtype, base.dim)
        asked = files.enter_context(opened(queries, form, "test"))
        dims = {"--dim": dim, str(queries): asked.dim}
        check_dims(dims if base is None else {**dims, str(vectors): base.dim})
        rows = read_all(asked)
        truth = read_truth(results, len(rows), k)
        if base is not None:
            chosen = {"dim": base.dim, "metric": metric or base.metric or "l2", "dtype": base.stored}
            figures = load(path, base, chosen, metric)
    with console.open_database(path, mode="r") as db:
        from ..bench import evaluation
        from ..bench.judge import Judge

        exact = db.settings.dtype in ("f32", (base or asked).stored)
        judge = Judge(db, rows, truth, exact_vectors=exact)
        subject = evaluation.Evaluation(db, rows, judge, k, search_list, threads)
        figures |= evaluation.figures(subject, repeat)
        if targets:
            figures["targets"], figures["points"] = evaluation.targets(subject, targets, repeat)
        if scale is not None:
            figures["scaling"] = evaluation.scaling(subject, scale, repeat)
        figures |= loads(subject, clients, open_loop, hold_p99, duration, arrivals)
        settings = db.settings.as_dict()
    if fresh:
        figures["fresh"] = evaluation.fresh(path, rows, k, search_list)
    if out is not None:
        config = {
            "queries": len(rows), "repetitions": repeat, "recalls": targets, "search_list": search_list,
            "clients": clients, "open_loop": open_loop, "hold_p99": hold_p99, "arrivals": arrivals,
            "duration": duration,
        }  # fmt: skip
        logged(out, vectors or path, figures, settings, config)
    if as_json:
        console.print_json({"path": str(path), **figures})
    else:
        from .evaluated import show

        show(path, figures)


def logged(out: Path, data: Path, figures: dict[str, Any], settings: dict[str, Any], config: dict[str, Any]) -> None:
    """Add what was measured to the log in `out`. data: the file of the rows, or the database that has them."""
    from ..bench.record import record
    from ..bench.subject import sha256_of

    file = data.is_file()
    dataset = {
        "name": data.name, "rows": figures["rows"], "dim": settings["dim"], "metric": settings["metric"],
        "sha256": sha256_of(data) if file else None, "bytes": data.stat().st_size if file else figures["disk_bytes"],
        "queries": figures["queries"], "truth": "file",
    }  # fmt: skip
    console.say(f"log: {record(out, figures, settings, dataset, config, figures['k'])}")


def recall_targets(given: str | None) -> list[float]:
    """The recalls of a list such as "0.9,0.95", ascending."""
    if given is None:
        return []
    try:
        targets = sorted({float(part) for part in given.split(",")})
    except ValueError:
        targets = []
    if not targets or not all(0 < target <= 1 for target in targets):
        console.fail(f"--recalls {given}: give numbers above 0 and up to 1, such as 0.9,0.95,0.99")
    return targets


def stored_dim(path: Path, dim: int | None, metric: str | None) -> int:
    """Dimensions of an existing database, which must be `dim` if that is given, as its metric must be `metric`."""
    with console.open_database(path, mode="r") as db:
        stored = db.settings
    if dim is not None and dim != stored.dim:
        console.fail(f"--dim {dim}: {path} holds vectors of {stored.dim} dimensions")
    check_metric(path, metric, stored.metric)
    return stored.dim


def check_metric(path: Path, metric: str | None, stored: str) -> None:
    """The metric of an existing database must be the one that was asked for, if one was."""
    if metric not in (None, stored):
        console.fail(f"--metric {metric}: {path} was created with {stored}")


def check_dims(found: dict[str, int | None]) -> None:
    """All that have dimensions must have the same."""
    told = {name: dim for name, dim in found.items() if dim is not None}
    if len(set(told.values())) > 1:
        console.fail("; ".join(f"{name}: {dim} dimensions" for name, dim in told.items()) + ": these must be the same")


def load(path: Path, base: Rows, settings: dict[str, Any], metric: str | None) -> dict[str, Any]:
    """Insert `base` under its row numbers into a new database, or an empty one, whose metric must be `metric`."""
    from ..bench.evaluation import insert

    with _empty(path, settings, metric) as db, console.progress("inserting", base.count) as advance:
        return insert(db, base.blocks, advance)


def _empty(path: Path, settings: dict[str, Any], metric: str | None) -> CoreNN:
    if not console.exists(path):
        return console.create(path, settings)
    with ExitStack() as opened_only:
        db = opened_only.enter_context(console.open_database(path))
        check_metric(path, metric, db.settings.metric)
        if len(db):
            console.fail(f"{path} already holds {len(db):,} rows; leave out --vectors to evaluate it as it is")
        opened_only.pop_all()
    return db


def loads(
    subject: Evaluation, clients: int, rate: float | None, bound: float | None, seconds: float, kind: Any
) -> dict[str, Any]:
    """Single queries from several clients, and at a rate."""
    from ..bench import evaluation
    from ..bench.load import closed_loop

    found: dict[str, Any] = {}
    if clients > 1:
        found["closed_loop"] = closed_loop(subject.ask, evaluation.calls(subject), clients).as_dict()
    if rate is not None:
        with console.status(f"offering {rate:,.0f} queries per second"):
            load = evaluation.offered(subject, rate, seconds, clients, kind)
            found["open_loop"] = {"offered": rate, **load.as_dict()}
    if bound is not None:
        with console.status(f"looking for the rate that holds a p99 of {bound:g} ms"):
            found["held"] = evaluation.held_rate(subject, bound, rate or 100.0, seconds, clients, kind)
    return found
