"""`corenn dataset sample`: some rows of a file, chosen at random."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import console
from .options import (
    In,
    Json,
    OutPart,
    Overwrite,
    Part,
    Record,
    Seed,
    Type,
    command_line,
    must_be_free,
    record,
    show_written,
    type_of,
)


def sample(
    file: In,
    out: Annotated[Path, typer.Argument(help="File to write; its ending chooses the format.")],
    rows: Annotated[int, typer.Option(min=1, help="Rows to take.")],
    seed: Seed = 0,
    dtype: Type = None,
    part: Part = None,
    out_part: OutPart = None,
    manifest: Record = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Take rows at random without replacement, in the order of the file, in one pass and bounded memory.

    Every choice of rows is equally likely, and the seed alone decides it: the same for every format of the same rows.

    Example: corenn dataset sample base.fbin small.fbin --rows 100000 --seed 1
    """
    from ...datasets import create_vectors, open_vectors
    from ...datasets.transform import copy_rows, deal_rows

    must_be_free(out, out_part, overwrite)
    with open_vectors(file, part) as vectors:
        if rows > len(vectors):
            console.fail(f"--rows {rows}: {file} has {len(vectors):,}")
        metric, kind = vectors.metric, type_of(out, dtype, vectors.dtype)
        writer = create_vectors(out, vectors.dim, kind, rows, part=out_part, metric=metric)
        with writer, console.progress("sampling", len(vectors)) as advance:
            if rows == len(vectors):
                copy_rows(vectors, writer, progress=advance)
            else:
                deal_rows(vectors, [writer, None], [rows, len(vectors) - rows], seed, advance)
    line = command_line(
        "sample", file, out, rows=rows, seed=seed, dtype=dtype, part=part, out_part=out_part, overwrite=overwrite
    )
    show_written(out, out_part, file, record(out, file, line, metric, always=manifest), as_json)
