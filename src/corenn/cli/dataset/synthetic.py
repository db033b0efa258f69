"""`corenn dataset synthetic`: made vectors of a known intrinsic dimension."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import console
from .limits import METRICS, Memory, Threads
from .made import DTYPES, Made, check_outs, write
from .options import Json, Overwrite, Record, Seed, command_line

MANIFOLDS = ("curved", "linear")


def synthetic(
    out: Annotated[Path, typer.Argument(help="File to write; its ending chooses the format.")],
    rows: Annotated[int, typer.Option(min=1, help="Rows.")] = 100_000,
    dim: Annotated[int, typer.Option(min=1, help="Numbers per row.")] = 128,
    intrinsic_dim: Annotated[int, typer.Option(min=1, help="Dimensions of the manifold that the rows lie on.")] = 16,
    clusters: Annotated[int, typer.Option(min=1, help="Clusters.")] = 100,
    noise: Annotated[
        float, typer.Option(min=0, help="Length of a random step off the manifold, in deviations of a cluster.")
    ] = 0.0,
    manifold: Annotated[str, typer.Option(help="curved or linear.")] = "curved",
    queries: Annotated[int, typer.Option(min=0, help="Queries from the same distribution.")] = 1000,
    truth: Annotated[int, typer.Option(min=0, help="True neighbours to find per query.")] = 0,
    seed: Seed = 0,
    dtype: Annotated[str, typer.Option(help=f"Type of the numbers: {', '.join(DTYPES)}.")] = "f32",
    metric: Annotated[str, typer.Option(help="l2, cosine or ip: of the true neighbours, and named in HDF5.")] = "l2",
    threads: Threads = None,
    memory: Memory = 1000,
    manifest: Record = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Make vectors whose intrinsic dimension and clusters are known, any number of them, in bounded memory.

    A row depends on its number and the options alone: the first rows of a larger file are those of a smaller one. HDF5
    gets train, test, and with --truth neighbors and distances; any other format a file for each, named OUT-test and
    OUT-truth.

    Example: corenn dataset synthetic made.hdf5 --rows 1000000 --dim 96 --intrinsic-dim 12 --truth 100
    """
    import numpy as np

    from ...datasets.synthetic import Scale, Shape, Synthetic
    from ...datasets.vectors import as_dtype

    if manifold not in MANIFOLDS:
        console.fail(f"--manifold {manifold}: choose one of {', '.join(MANIFOLDS)}")
    if dtype not in DTYPES or metric not in METRICS:
        console.fail(f"--dtype {dtype}, --metric {metric}: choose of {', '.join(DTYPES)}, and of {', '.join(METRICS)}")
    check_outs(out, queries, truth, overwrite)
    made = Synthetic(Shape(dim, intrinsic_dim, clusters, noise, seed, manifold == "curved"))
    scale = Scale.of(as_dtype(dtype), made)
    asked = scale.apply(made.queries(queries)) if queries else np.empty((0, dim), scale.dtype)
    line = command_line(
        "synthetic", out, rows=rows, dim=dim, intrinsic_dim=intrinsic_dim, clusters=clusters, noise=noise,
        manifold=manifold, queries=queries, truth=truth, seed=seed, dtype=dtype, metric=metric, overwrite=overwrite,
    )  # fmt: skip
    blocks = map(scale.apply, made.blocks(rows))
    write(Made(out, blocks, rows, asked, metric, truth, threads, memory), line, manifest, as_json)
