"""`corenn dataset kmeans`: centroids, and the cluster of each row."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import console
from .limits import MB, Memory, Threads
from .options import In, Json, Overwrite, Part, Record, Seed, command_line, must_be_free, record

if TYPE_CHECKING:
    from ...datasets import Vectors, Writer
    from ...datasets.kmeans import Clusters


def kmeans(
    file: In,
    k: Annotated[int, typer.Option("-k", min=1, help="Clusters.")],
    out: Annotated[Path | None, typer.Option(help="File for the centroids; its ending chooses the format.")] = None,
    assignments: Annotated[
        Path | None, typer.Option(help="File for the cluster of each row of FILE, as a column of i32.")
    ] = None,
    iterations: Annotated[int, typer.Option(min=0, help="How often the centroids are moved at most.")] = 25,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Ends when the inertia falls by less than this share.")
    ] = 0.0001,
    sample: Annotated[
        int | None, typer.Option(min=0, help="Rows to learn from; 0 for all. Default: 256 per cluster.")
    ] = None,
    seeding: Annotated[str, typer.Option(help="First centroids: k-means++ or random.")] = "k-means++",
    seed: Seed = 0,
    part: Part = None,
    threads: Threads = None,
    memory: Memory = 1000,
    manifest: Record = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Find centroids by k-means under squared Euclidean distance, in bounded memory.

    The seed alone decides the outcome, with any number of threads. Inertia is the sum of the squared distances of the
    rows to their centroids. A cluster that loses all rows starts anew at a row far from its centroid.

    Example: corenn dataset kmeans base.fbin -k 1000 --out centroids.npy --assignments clusters.npy
    """
    from ...datasets import create_vectors, open_vectors
    from ...datasets.kmeans import kmeans as cluster

    outs = [path for path in (out, assignments) if path is not None]
    for path in outs:
        must_be_free(path, None, overwrite)
    if out is not None and out == assignments:
        console.fail(f"--out and --assignments are both {out}; choose two files")
    began = time.perf_counter()
    with open_vectors(file, part) as vectors:
        learned = 256 * k if sample is None else sample or len(vectors)
        total = (iterations + 1) * min(learned, len(vectors))
        # A format that cannot carry them is refused before hours of work.
        centroids = None if out is None else create_vectors(out, vectors.dim, "f32", k)
        labels = None if assignments is None else create_vectors(assignments, 1, "i32", len(vectors))
        with console.progress("clustering", total) as advance:
            found = cluster(
                vectors, k, iterations=iterations, seed=seed, seeding=seeding, sample=sample, tolerance=tolerance,
                threads=threads, memory_bytes=memory * MB, progress=advance,
            )  # fmt: skip
        if centroids is not None:
            with centroids:
                centroids.append(found.centroids)
        figures = _figures(file, k, found, time.perf_counter() - began)
        if labels is not None:
            figures |= _assign(vectors, found, labels, threads, memory)
    line = command_line(
        "kmeans", file, out=out, assignments=assignments, iterations=iterations, tolerance=tolerance, sample=sample,
        seeding=seeding, seed=seed, part=part, overwrite=overwrite,
    ).replace(" --", f" -k {k} --", 1)  # fmt: skip
    for path in outs:
        record(path, file, line, None, always=manifest)
    _show(figures, out, assignments, as_json)


def _figures(file: Path, k: int, found: Clusters, seconds: float) -> dict[str, Any]:
    return {
        "path": str(file), "k": k, "rows": found.rows, "inertia": found.inertia,
        "mean_squared_distance": found.inertia / found.rows, "iterations": found.iterations,
        "converged": found.converged, "empty": found.empty, "smallest": int(found.counts.min()),
        "largest": int(found.counts.max()), "seconds": round(seconds, 3),
    }  # fmt: skip


def _assign(vectors: Vectors, found: Clusters, writer: Writer, threads: int | None, memory: int) -> dict[str, Any]:
    """Write the cluster of every row; the inertia of all rows."""
    from ...datasets.kmeans import assignments

    inertia = 0.0
    with writer, console.progress("assigning", len(vectors)) as advance:
        options: dict[str, Any] = {"threads": threads, "memory_bytes": memory * MB, "progress": advance}
        for labels, distances in assignments(vectors, found.centroids, **options):
            writer.append(labels[:, None])
            inertia += float(distances.sum())
    return {"assigned": len(vectors), "inertia_of_all_rows": inertia}


def _show(figures: dict[str, Any], out: Path | None, assignments: Path | None, as_json: bool) -> None:
    if as_json:
        files = {"out": out and str(out), "assignments": assignments and str(assignments)}
        console.print_json({**figures, **files})
        return
    ended = "converged" if figures["converged"] else "stopped"
    shown = {
        "clusters": f"{figures['k']:,}, of {figures['smallest']:,} to {figures['largest']:,} rows",
        "learned from": f"{figures['rows']:,} rows, {figures['seconds']:,} s",
        "inertia": f"{figures['inertia']:.6g}, {figures['mean_squared_distance']:.6g} per row",
        "iterations": f"{figures['iterations']}, {ended}",
    }
    if figures["empty"]:
        shown["empty"] = f"{figures['empty']:,} clusters: there are fewer distinct rows than clusters"
    if out is not None:
        shown["centroids"] = str(out)
    if assignments is not None:
        shown["assignments"] = f"{assignments}, {figures['assigned']:,} rows"
    console.print_figures(figures["path"], shown.items())
