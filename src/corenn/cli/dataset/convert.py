"""`corenn dataset convert`: from any format into any other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import console
from .options import (
    HDF5,
    In,
    Json,
    OutPart,
    Overwrite,
    Part,
    Record,
    Type,
    command_line,
    must_be_free,
    record,
    record_truth,
    show_written,
    truth_must_be_free,
    type_of,
)

if TYPE_CHECKING:
    from ...datasets import Vectors


def convert(
    file: In,
    out: Annotated[Path, typer.Argument(help="File to write; its ending chooses the format.")],
    dtype: Type = None,
    part: Part = None,
    out_part: OutPart = None,
    rows: Annotated[str | None, typer.Option(help="Rows to take, FIRST:END, such as 0:1000000. Default: all.")] = None,
    metric: Annotated[
        str | None, typer.Option(help="l2, cosine or ip, for formats and manifests that name it. Default: as in FILE.")
    ] = None,
    manifest: Record = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Convert vectors, or true neighbours, from one format into another, in bounded memory.

    A type of whole numbers takes only values that it holds exactly; f16 and bf16 round. OUT appears when it is whole.

    Example: corenn dataset convert base.fvecs base.fbin

    Into one file of ann-benchmarks: corenn dataset convert query.fvecs sift.hdf5 --out-part test --metric l2

    True neighbours with distances out of it: corenn dataset convert sift.hdf5 truth.ibin --part neighbors
    """
    from ...datasets.contents import contents

    if metric not in (None, "l2", "cosine", "ip"):
        console.fail(f"--metric {metric}: choose one of l2, cosine, ip")
    must_be_free(out, out_part, overwrite)
    if file.suffix.lower() in HDF5 and part == "neighbors":
        kind = "neighbours"
    else:
        kind = contents(file, part).kind
    if kind == "vectors":
        known = _convert_vectors(file, out, dtype, part, out_part, rows, metric)
    elif dtype is None and rows is None and out_part is None:
        if kind == "neighbours":
            truth_must_be_free(out, overwrite)
        known = _convert_truth(file, out, kind, metric)
    else:
        console.fail(f"{file} holds {kind}; --dtype, --rows and --out-part are for vectors")
    line = command_line(
        "convert", file, out, dtype=dtype, part=part, out_part=out_part, rows=rows, metric=metric, overwrite=overwrite
    )
    written = (record_truth if kind == "neighbours" else record)(out, file, line, known, always=manifest)
    shown = "neighbors" if kind == "neighbours" and out.suffix.lower() in HDF5 else out_part
    show_written(out, shown, file, written, as_json)


def _convert_vectors(
    file: Path, out: Path, dtype: str | None, part: str | None, out_part: str | None, rows: str | None,
    metric: str | None,
) -> str | None:  # fmt: skip
    """The metric of what was written."""
    from ...datasets import create_vectors, open_vectors
    from ...datasets.transform import copy_rows

    with open_vectors(file, part) as vectors:
        first, end = _row_range(rows, vectors)
        known = metric or vectors.metric
        kind = type_of(out, dtype, vectors.dtype)
        writer = create_vectors(out, vectors.dim, kind, end - first, part=out_part, metric=known)
        with writer, console.progress("converting", end - first) as advance:
            copy_rows(vectors, writer, first, end, advance)
    return known


def _row_range(rows: str | None, vectors: Vectors) -> tuple[int, int]:
    first, _, end = (rows or ":").partition(":")
    try:
        found = int(first or 0), int(end or len(vectors))
    except ValueError:
        console.fail(f"--rows {rows}: needs FIRST:END, such as 0:1000000")
    if not 0 <= found[0] < found[1] <= len(vectors):
        console.fail(f"--rows {rows}: {vectors.path} has rows 0:{len(vectors)}")
    return found


def _convert_truth(file: Path, out: Path, kind: str, metric: str | None) -> str | None:
    from ...datasets import read_range_truth, read_truth, write_range_truth, write_truth

    if kind == "ranges":
        if out.suffix.lower() not in (".rangeres", ".ibin"):
            console.fail(f"{out}: neighbours within a radius go into .rangeres or .ibin")
        write_range_truth(out, read_range_truth(file))
    else:
        truth = read_truth(file)
        write_truth(out, truth.ids, truth.distances, metric=metric)
    return metric
