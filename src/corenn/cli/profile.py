"""`corenn profile query` and `corenn profile insert`: where the time goes, with a flame graph."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import console

if TYPE_CHECKING:
    from ..bench.profile import Profile
    from ..types import AnyArray

LINES = 12
SAMPLE = 2_000

profile = typer.Typer(
    cls=console.Commands, no_args_is_help=True, help="Where the time of queries or inserts goes, with a flame graph."
)

Seconds = Annotated[float, typer.Option(min=1, max=3600, help="How long to look.")]
Rate = Annotated[int, typer.Option(min=10, max=1000, help="Samples per second.")]
Out = Annotated[Path, typer.Option(help="Folder for flame.svg.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@profile.command("query")
def query(
    path: Annotated[Path, typer.Argument(help="Directory of the database.")],
    queries: Annotated[
        Path | None, typer.Option(help="Vectors to ask for, in any format. Default: 2,000 stored ones.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Neighbours to ask for.")] = 10,
    search_list: Annotated[int | None, typer.Option(min=1, help="Search list. Default: that of the database.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Queries per call.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of a call. Default: all cores.")] = None,
    seconds: Seconds = 5.0,
    rate: Rate = 250,
    out: Out = Path("profile"),
    as_json: Json = False,
) -> None:
    """Profile queries: time in the kernel and in Python, distances and hops, processor counters, and a flame graph.

    Example: corenn profile query photos.corenn --search-list 50 --out profile
    """
    import numpy as np

    with tempfile.TemporaryDirectory(prefix="corenn-profile-") as folder:
        asked = _stored(path) if queries is None else _read(queries, SAMPLE)
        np.save(Path(folder) / "queries.npy", asked)
        spec = {
            "kind": "query", "path": str(path), "queries": str(Path(folder) / "queries.npy"), "k": k,
            "search_list": search_list, "batch": batch, "threads": threads,
        }  # fmt: skip
        _run(spec, seconds, rate, out, as_json)


@profile.command("insert")
def insert(
    vectors: Annotated[Path, typer.Argument(help="Vectors to insert, in any format.")],
    batch: Annotated[int, typer.Option(min=1, max=100_000, help="Rows per insert.")] = 1_000,
    start: Annotated[int, typer.Option(min=0, help="Rows to insert before the profile begins.")] = 10_000,
    metric: Annotated[str, typer.Option(help="Metric: l2, cosine or ip.")] = "l2",
    dtype: Annotated[str, typer.Option(help="Stored type: f32, f16, bf16, i8 or u8.")] = "f32",
    durability: Annotated[str, typer.Option(help="os or sync.")] = "os",
    memory: Annotated[bool, typer.Option("--memory", help="Insert into a database in memory.")] = False,
    seconds: Seconds = 5.0,
    rate: Rate = 250,
    out: Out = Path("profile"),
    as_json: Json = False,
) -> None:
    """Profile inserts into a new database, which is removed afterwards: time by stage, and a flame graph.

    Example: corenn profile insert sift.fvecs --batch 1 --out profile
    """
    import numpy as np

    from ..config import Settings

    with tempfile.TemporaryDirectory(prefix="corenn-profile-") as folder:
        rows = _read(vectors, None)
        if len(rows) <= start:
            console.fail(f"{vectors} holds {len(rows):,} rows; give a smaller --start than {start:,}")
        np.save(Path(folder) / "rows.npy", rows)
        settings: dict[str, Any] = {"dim": rows.shape[1], "metric": metric, "dtype": dtype, "durability": durability}
        console.compile_kernels(Settings.from_dict(settings))
        spec = {
            "kind": "insert", "path": None if memory else str(Path(folder) / "database"),
            "rows": str(Path(folder) / "rows.npy"), "batch": batch, "start": start, "settings": settings,
        }  # fmt: skip
        _run(spec, seconds, rate, out, as_json)


def _stored(path: Path) -> AnyArray:
    """Vectors of the database itself, evenly from all of it."""
    import numpy as np

    with console.open_database(path, mode="r") as db:
        if not len(db):
            console.fail(f"{path} is empty; insert something to ask for")
        step = -(-len(db) // SAMPLE)
        keys = [key for at, key in enumerate(db.keys()) if at % step == 0]
        return np.array([record.vector for record in db.get(keys) if record is not None])


def _read(file: Path, most: int | None) -> AnyArray:
    import numpy as np

    from ..datasets import open_vectors

    with open_vectors(file) as vectors:
        return np.ascontiguousarray(vectors.rows(0, min(len(vectors), most or len(vectors))), np.float32)


def _run(spec: dict[str, Any], seconds: float, rate: int, out: Path, as_json: bool) -> None:
    from ..bench.profile import profile as look

    with console.status(f"profiling for {seconds:g} s"):
        found = look(spec, seconds, rate, out)
    if as_json:
        console.print_json(as_dict(found))
    else:
        show(spec["kind"], found)


def as_dict(found: Profile) -> dict[str, Any]:
    """The profile, ready for JSON."""
    samples = sum(frame.own for frame in found.frames)
    return {
        **found.figures,
        "stages": found.stages,
        "counters": found.counters,
        "samples": samples,
        "lines": [{"line": frame.name, "own": frame.own, "total": frame.total} for frame in found.frames[:100]],
        "flame": None if found.flame is None else str(found.flame),
        "notes": list(found.notes),
    }


def show(kind: str, found: Profile) -> None:
    """The profile as tables."""
    figures, unit = found.figures, found.figures["unit"]
    count, seconds = figures["operations"], figures["seconds"]
    many = {"query": "queries", "insert": "rows"}[kind]
    shown = {many: f"{count:,} in {seconds:.1f} s, {seconds / max(count, 1) * 1e6:,.1f} µs per {unit}"}
    if "distances" in figures:
        shown["work"] = f"{figures['distances']:,.0f} distances, {figures['hops']:,.1f} hops per {unit}"
    for stage, taken in sorted(found.stages.items(), key=lambda pair: -pair[1]):
        shown[stage] = f"{taken / max(count, 1) * 1e6:,.1f} µs per {unit}, {taken / seconds:.0%} of one thread's time"
    for event, number in (found.counters or {}).items():
        shown[event] = f"{number / max(count, 1):,.1f} per {unit}"
    console.print_figures("Profile", shown.items())
    samples = sum(frame.own for frame in found.frames)
    if samples:
        lines = [(f"{frame.own / samples:.1%}", frame.name) for frame in found.frames[:LINES] if frame.own]
        console.print_figures("Lines by their own time", lines)
    for note in found.notes:
        console.say(note)
    if found.flame is not None:
        console.say(f"Flame graph: {found.flame}")
