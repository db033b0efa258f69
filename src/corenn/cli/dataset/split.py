"""`corenn dataset split`: all rows of a file, dealt at random to several."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import console
from .options import (
    HDF5,
    In,
    Json,
    Overwrite,
    Part,
    Record,
    Seed,
    Type,
    command_line,
    must_be_free,
    record,
    size_line,
    type_of,
)

if TYPE_CHECKING:
    from ...datasets import Vectors
    from ...datasets.dtypes import DType


def split(
    file: In,
    out: Annotated[
        str | None,
        typer.Option(
            help="Files to write, with {part} for the name of the part; or one HDF5 file for all of them. "
            "Default: beside FILE, with the part before the ending."
        ),
    ] = None,
    test: Annotated[
        str | None, typer.Option(help="Rows of the part test, a number or a share; the others are train.")
    ] = None,
    parts: Annotated[
        str | None, typer.Option(help="Parts and their rows, numbers, shares or rest: train=0.9,test=1000,spare=rest.")
    ] = None,
    seed: Seed = 0,
    dtype: Type = None,
    part: Part = None,
    manifest: Record = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Deal all rows at random to parts, each in the order of the file, in bounded memory.

    Every way to deal is equally likely, and the seed alone decides it.

    Example: corenn dataset split vectors.npy --test 1000

    Into one file of ann-benchmarks: corenn dataset split vectors.npy --test 0.1 --out vectors.hdf5
    """
    from ...datasets import open_vectors
    from ...datasets.transform import part_sizes

    wanted = _wanted(test, parts)
    outs = _outs(file, out, list(wanted))
    for path in dict.fromkeys(outs.values()):
        must_be_free(path, None, overwrite)
    with open_vectors(file, part) as vectors:
        sizes = dict(zip(wanted, part_sizes(len(vectors), list(wanted.values())), strict=True))
        kind = type_of(next(iter(outs.values())), dtype, vectors.dtype)
        metric = vectors.metric
        (_into_one if len(set(outs.values())) == 1 else _into_files)(vectors, outs, sizes, kind, seed)
    line = command_line(
        "split", file, out=out, test=test, parts=parts, seed=seed, dtype=dtype, part=part, overwrite=overwrite
    )
    for path in dict.fromkeys(outs.values()):
        record(path, file, line, metric, always=manifest)
    _show(file, outs, sizes, as_json)


def _wanted(test: str | None, parts: str | None) -> dict[str, str]:
    """Rows of each part as they were asked for, by its name."""
    if (test is None) == (parts is None):
        console.fail("give --test ROWS, or --parts NAME=ROWS,NAME=ROWS")
    if test is not None:
        return {"train": "rest", "test": test}
    pairs = [each.partition("=") for each in (parts or "").split(",")]
    names = [name.strip() for name, _, _ in pairs]
    if len(pairs) < 2 or len(set(names)) < len(names) or not all(name and "/" not in name for name in names):
        console.fail(f"--parts {parts}: needs two or more of NAME=ROWS, separated by commas, each name once")
    return {name: rows.strip() for name, (_, _, rows) in zip(names, pairs, strict=True)}


def _outs(file: Path, out: str | None, names: list[str]) -> dict[str, Path]:
    """The file of each part, by its name."""
    if out is None:
        return {name: file.with_name(f"{file.stem}-{name}{file.suffix}") for name in names}
    if "{part}" in out:
        return {name: Path(out.replace("{part}", name)) for name in names}
    if Path(out).suffix.lower() not in HDF5:
        console.fail(
            f"--out {out}: needs {{part}} in it, as in base-{{part}}.fbin; only HDF5 takes all parts in one file"
        )
    return {name: Path(out) for name in names}


def _into_files(vectors: Vectors, outs: dict[str, Path], sizes: dict[str, int], kind: DType, seed: int) -> None:
    from ...datasets import create_vectors
    from ...datasets.transform import deal_rows

    with ExitStack() as stack:
        writers = [
            stack.enter_context(create_vectors(path, vectors.dim, kind, sizes[name], metric=vectors.metric))
            for name, path in outs.items()
        ]
        advance = stack.enter_context(console.progress("splitting", len(vectors)))
        deal_rows(vectors, writers, list(sizes.values()), seed, advance)


def _into_one(vectors: Vectors, outs: dict[str, Path], sizes: dict[str, int], kind: DType, seed: int) -> None:
    """One pass over the rows per part, because a writer has an HDF5 file for itself."""
    from ...datasets import create_vectors
    from ...datasets.atomic import replacing
    from ...datasets.transform import deal_rows

    counts: list[int] = list(sizes.values())
    with (
        replacing(next(iter(outs.values()))) as whole,
        console.progress("splitting", len(vectors) * len(outs)) as advance,
    ):
        for at, name in enumerate(outs):
            writer = create_vectors(whole, vectors.dim, kind, sizes[name], part=name, metric=vectors.metric)
            with writer:
                takers = [writer if other == at else None for other in range(len(outs))]
                deal_rows(vectors, takers, counts, seed, advance)


def _show(file: Path, outs: dict[str, Path], sizes: dict[str, int], as_json: bool) -> None:
    if as_json:
        parts: dict[str, Any] = {name: {"path": str(path), "rows": sizes[name]} for name, path in outs.items()}
        console.print_json({"path": str(file), "parts": parts})
        return
    figures = [
        (name, f"{sizes[name]:,} rows in {path} ({size_line(path.stat().st_size)})") for name, path in outs.items()
    ]
    console.print_figures(str(file), figures)
