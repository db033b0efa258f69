"""`corenn dataset ground-truth`: the true nearest rows of each query."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import console
from .limits import MB, METRICS, Memory, Threads
from .options import (
    HDF5,
    Json,
    Overwrite,
    Part,
    Record,
    command_line,
    record_truth,
    size_line,
    truth_must_be_free,
)

if TYPE_CHECKING:
    from ...datasets import Truth, Vectors
    from ...types import AnyArray


def ground_truth(
    base: Annotated[Path, typer.Argument(help="File of the rows, in any format and of any size.")],
    queries: Annotated[Path, typer.Argument(help="File of the queries; may be BASE, if that is HDF5.")],
    out: Annotated[Path, typer.Option(help="File to write: .ibin, .ivecs, .npy or .hdf5.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Neighbours per query.")] = 100,
    metric: Annotated[
        str | None, typer.Option(help="l2, cosine or ip. Default: that of BASE if it says, else l2.")
    ] = None,
    part: Part = None,
    query_part: Annotated[
        str | None, typer.Option(help="Data set of QUERIES if it is HDF5, or column. Default: test.")
    ] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Search the first so many rows only. Default: all.")] = None,
    threads: Threads = None,
    memory: Memory = 1000,
    restart: Annotated[bool, typer.Option("--restart", help="Do not go on from an interrupted call.")] = False,
    manifest: Record = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Find the exact nearest rows of every query, in one pass over the rows and bounded memory.

    Distances are those of CoreNN: l2 squared, 1 - cos, 1 - dot; they are measured in float64, and equal ones are
    ordered by row. An interrupted call leaves a state beside OUT, from which the same command goes on.

    Example: corenn dataset ground-truth base.fbin queries.fbin -k 100 --out truth.ibin

    Into a file of ann-benchmarks: corenn dataset ground-truth sift.hdf5 sift.hdf5 --out sift.hdf5
    """
    from ...datasets import open_vectors, write_truth
    from ...datasets.neighbours import check_writable

    if metric not in (None, *METRICS):
        console.fail(f"--metric {metric}: choose one of {', '.join(METRICS)}")
    truth_must_be_free(out, overwrite)
    state = out.with_name(f".{out.name}.state")
    if restart:
        state.unlink(missing_ok=True)
    began = time.perf_counter()
    with open_vectors(base, part) as vectors:
        known = metric or vectors.metric or "l2"
        count = min(rows or len(vectors), len(vectors))
        check_writable(out, count)
        asked = _queries(queries, query_part, vectors, k, count, threads, memory)
        if k > count:
            console.say(f"{base} has {count:,} rows to search: {count:,} neighbours per query instead of {k:,}.")
        truth = _search(vectors, asked, k, known, count, state, threads, memory)
    write_truth(out, truth.ids, truth.distances, metric=known)
    state.unlink(missing_ok=True)
    line = command_line(
        "ground-truth", base, queries, out=out, k=None, metric=known, part=part, query_part=query_part, rows=rows,
        overwrite=overwrite,
    ).replace(" --out", f" -k {k} --out", 1)  # fmt: skip
    written = record_truth(out, base, line, known, always=manifest)
    figures = {
        "path": str(out), "rows": count, "queries": len(asked), "k": truth.ids.shape[1], "metric": known,
        "seconds": round(time.perf_counter() - began, 3), "bytes": out.stat().st_size,
        "manifest": None if written is None else str(written),
    }  # fmt: skip
    _show(figures, as_json)


def _queries(
    file: Path, part: str | None, base: Vectors, k: int, rows: int, threads: int | None, memory: int
) -> AnyArray:
    """All queries; refused unread if they do not fit into the memory."""
    import numpy as np

    from ...datasets import open_vectors
    from ...datasets.truth import check_memory

    if part is None and file.suffix.lower() in HDF5:
        part = "test"
    with open_vectors(file, part) as vectors:
        check_memory(base, vectors, k, rows=rows, threads=threads, memory_bytes=memory * MB)
        return np.array(vectors.rows(0, len(vectors)))


def _search(
    vectors: Vectors, queries: AnyArray, k: int, metric: str, rows: int, state: Path, threads: int | None, memory: int
) -> Truth:
    from ...datasets.truth import exact_truth

    going_on = state.exists()
    done = 0

    def count(step: int) -> None:
        nonlocal done
        if going_on and done == 0:
            console.say(f"Going on from {state}.")
        done += step
        advance(step)

    try:
        with console.progress("searching", rows) as advance:
            return exact_truth(
                vectors, queries, k, metric, threads=threads, memory_bytes=memory * MB, progress=count, state=state,
                rows=rows,
            )  # fmt: skip
    except KeyboardInterrupt:
        kept = f"; the same command goes on from {state}" if state.exists() else ""
        console.say(f"Interrupted at {done:,} of {rows:,} rows{kept}.")
        raise typer.Exit(console.INTERRUPTED) from None


def _show(figures: dict[str, Any], as_json: bool) -> None:
    if as_json:
        console.print_json(figures)
        return
    line = (
        f"{figures['path']}: {figures['queries']:,} queries with {figures['k']:,} neighbours among {figures['rows']:,} "
        f"rows ({figures['metric']}), {size_line(figures['bytes'])}, {figures['seconds']:,} s"
    )
    console.stdout().print(line, markup=False, soft_wrap=True, highlight=False)
