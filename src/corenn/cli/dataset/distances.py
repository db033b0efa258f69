"""`corenn dataset distances`: every row of one file against every row of another."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import console
from .limits import MB, METRICS, Memory, Threads
from .options import In, Json, Overwrite, Part, Record, command_line, must_be_free, record, size_line

if TYPE_CHECKING:
    from ...datasets import Vectors

SHOWN = 1_000  # distances printed at most
COLUMNS = 8  # of a table


def distances(
    file: In,
    other: Annotated[Path | None, typer.Argument(help="File of the columns. Default: FILE itself.")] = None,
    metric: Annotated[
        str | None, typer.Option(help="l2, cosine or ip. Default: that of FILE if it says, else l2.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write; its ending chooses the format.")] = None,
    dtype: Annotated[str, typer.Option(help="Type of the distances in OUT, such as f32 or f64.")] = "f32",
    part: Part = None,
    other_part: Annotated[str | None, typer.Option(help="As --part, for OTHER. Default: as --part.")] = None,
    threads: Threads = None,
    memory: Memory = 1000,
    manifest: Record = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """The distance of every row of FILE to every row of OTHER, as a matrix with a row for each row of FILE.

    Each is measured in float64 by its definition: l2 squared, 1 - cos, 1 - dot. Without --out the matrix is printed,
    if it is small.

    Example: corenn dataset distances queries.npy base.npy --metric cosine --out distances.npy
    """
    from ...datasets import open_vectors

    if metric not in (None, *METRICS):
        console.fail(f"--metric {metric}: choose one of {', '.join(METRICS)}")
    with open_vectors(file, part) as left, open_vectors(other or file, other_part or part) as right:
        known = metric or left.metric or "l2"
        shape = len(left), len(right)
        if out is None:
            if shape[0] * shape[1] > SHOWN:
                console.fail(f"{shape[0]:,} × {shape[1]:,} distances are too many to print; write them with --out FILE")
            _print(left, right, known, threads, memory, as_json)
            return
        must_be_free(out, None, overwrite)
        _write(left, right, known, out, dtype, threads, memory)
    line = command_line(
        "distances", file, *([other] if other else []), metric=known, out=out, dtype=dtype, part=part,
        other_part=other_part, overwrite=overwrite,
    )  # fmt: skip
    written = record(out, file, line, None, always=manifest)
    figures = {
        "path": str(out), "rows": shape[0], "columns": shape[1], "metric": known, "dtype": dtype,
        "bytes": out.stat().st_size, "manifest": None if written is None else str(written),
    }  # fmt: skip
    if as_json:
        console.print_json(figures)
        return
    line = f"{out}: {shape[0]:,} × {shape[1]:,} distances ({known}, {dtype}), {size_line(figures['bytes'])}"
    console.stdout().print(line, markup=False, soft_wrap=True, highlight=False)


def _write(left: Vectors, right: Vectors, metric: str, out: Path, dtype: str, threads: int | None, memory: int) -> None:
    from ...datasets import create_vectors
    from ...datasets.pairwise import distance_blocks
    from ...datasets.vectors import as_dtype, block_rows

    kind = as_dtype(dtype)
    needed, folder = len(left) * len(right) * kind.itemsize, out.parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        console.fail(f"{out} would take {size_line(needed)}; {folder} has {size_line(free)} free")
    writer, step = create_vectors(out, len(right), kind, len(left)), block_rows(len(right), kind)
    with writer, console.progress("measuring", len(left)) as advance:
        for block in distance_blocks(left, right, metric, threads=threads, memory_bytes=memory * MB):
            # In pieces, since a type of fewer bytes takes a copy.
            for at in range(0, len(block), step):
                writer.append(block[at : at + step])
            advance(len(block))


def _print(left: Vectors, right: Vectors, metric: str, threads: int | None, memory: int, as_json: bool) -> None:
    from ...datasets.pairwise import distance_blocks

    rows: list[list[float]] = []
    for block in distance_blocks(left, right, metric, threads=threads, memory_bytes=memory * MB):
        rows += block.tolist()
    if as_json:
        figures: dict[str, Any] = {"path": str(left.path), "other": str(right.path), "metric": metric}
        console.print_json({**figures, "distances": rows})
        return
    shown = [(f"row {at}", "  ".join(f"{value:<9.4g}" for value in row[:COLUMNS])) for at, row in enumerate(rows)]
    more = f", the first {COLUMNS} of {len(right):,} columns" if len(right) > COLUMNS else ""
    console.print_figures(f"{left.path} to {right.path}, {metric}{more}", shown)
