"""`corenn export-vectors`: a database as files that anything can read."""

from __future__ import annotations

import shlex
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from . import console


def export_vectors(
    path: Annotated[Path, typer.Argument(help="Directory of the database.")],
    out: Annotated[Path, typer.Option(help="Folder to make; it appears when it is whole.")],
    dtype: Annotated[str, typer.Option(help="Type of the vectors: f32, f16, bf16, f64, u8, i8, …")] = "f32",
    parquet: Annotated[bool, typer.Option("--parquet", help="Write rows.parquet as well.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Export ids, keys, vectors and payloads, row by row in bounded memory, as of this moment.

    A writer may be at work meanwhile: what it commits after the start is left out.

    Example: corenn export-vectors photos.corenn --out photos-export --parquet
    """
    from ..migrate import Snapshot
    from ..migrate import export_vectors as export

    began = time.perf_counter()
    options = ["--out", str(out), "--dtype", dtype, *(["--parquet"] if parquet else [])]
    command = shlex.join(["corenn", "export-vectors", str(path), *options])
    with Snapshot(path) as snapshot:
        console.compile_kernels(snapshot.settings)
        with console.progress("exporting", len(snapshot)) as advance:
            made = export(snapshot, out, dtype=dtype, parquet=parquet, command=command, progress=advance)
    seconds = time.perf_counter() - began
    if as_json:
        console.print_json({"path": str(path), "out": str(out), **asdict(made), "seconds": round(seconds, 3)})
        return
    shape = f"{made.rows:,} rows of {made.dim:,} {made.dtype}"
    console.stdout().print(
        f"{shape} exported in {seconds:.1f} s; {out} holds {', '.join(made.files)}",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
