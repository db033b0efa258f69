"""`corenn migrate-hnsw`: a database made of an index file of hnswlib."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from . import console


def migrate_hnsw(
    index: Annotated[Path, typer.Argument(help="File that save_index of hnswlib has written.")],
    out: Annotated[Path, typer.Option(help="Directory of the new database; it appears when it is whole.")],
    dim: Annotated[int, typer.Option(min=1, help="Dimensions of the vectors.")],
    metric: Annotated[str, typer.Option(help="Metric of the index, which the file does not tell: l2, cosine or ip.")],
    max_edges: Annotated[
        int | None, typer.Option(min=4, max=512, help="max_edges of the database. Default: 2 x M, to keep all edges.")
    ] = None,
    duplicates: Annotated[
        str, typer.Option(help="Where several elements bear a label: error, or last to keep the last of them.")
    ] = "error",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make a database of an index of hnswlib: labels become keys, deleted marks are kept, and so is the graph.

    Nothing is built anew: the database answers as well as the index did, and takes inserts and deletes from then on.

    Example: corenn migrate-hnsw photos.bin --out photos.corenn --dim 128 --metric cosine
    """
    from ..config import Settings
    from ..migrate import HnswFile
    from ..migrate import migrate_hnsw as migrate

    began = time.perf_counter()
    settings = Settings(dim=dim, metric=metric)
    with HnswFile(index, dim) as source:
        console.compile_kernels(settings)
        with console.progress("storing, then linking", 2 * source.count) as advance:
            made = migrate(
                source, out, metric=metric, max_edges=max_edges, duplicates=duplicates, progress=advance
            )  # fmt: skip
    seconds = time.perf_counter() - began
    if as_json:
        console.print_json({"index": str(index), "path": str(out), **asdict(made), "seconds": round(seconds, 3)})
        return
    notes = [f"{made.deleted:,} deleted"] if made.deleted else []
    notes += [f"{made.superseded:,} superseded by a later element of the same label"] if made.superseded else []
    beside = f" ({', '.join(notes)})" if notes else ""
    console.stdout().print(
        f"{made.rows:,} rows{beside} migrated in {seconds:.1f} s; {out} takes {made.max_edges} edges per row",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
