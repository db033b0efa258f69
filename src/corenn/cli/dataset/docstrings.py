"""`corenn dataset docstrings`: the embeddings of the demo as a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import console
from .limits import Memory, Threads
from .made import DTYPES, Made, check_outs, write
from .options import Json, Overwrite, Record, command_line, must_be_free, record


def docstrings(
    out: Annotated[Path, typer.Argument(help="File to write; its ending chooses the format.")],
    rows: Annotated[int, typer.Option(min=1, help="Texts to take at most, beside the queries.")] = 20_000,
    dim: Annotated[int, typer.Option(min=2, max=1024, help="Dimensions of the vectors.")] = 256,
    queries: Annotated[int, typer.Option(min=0, help="Texts held back as queries.")] = 300,
    truth: Annotated[int, typer.Option(min=0, help="True neighbours to find per query, by cosine.")] = 0,
    dtype: Annotated[str, typer.Option(help="Type of the numbers: f32, f16 or bf16.")] = "f32",
    names: Annotated[Path | None, typer.Option(help="File for the name of each row, a line each.")] = None,
    threads: Threads = None,
    memory: Memory = 1000,
    manifest: Record = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Embed the documentation of this Python installation: real text, without a download.

    Latent semantic analysis of the docstrings of the standard library and of the installed packages, as in the demo.
    Another installation gives other vectors. HDF5 gets train, test, and with --truth neighbors and distances; any other
    format a file for each, named OUT-test and OUT-truth.

    Needs: pip install 'corenn\\[demo]'

    Example: corenn dataset docstrings docs.hdf5 --rows 20000 --dim 128 --truth 100
    """
    from ...datasets import lsa  # noqa: F401 - first of all: without the extra there is no point in harvesting
    from ...datasets.atomic import replacing
    from ...datasets.corpus import embed, read
    from ...datasets.vectors import as_dtype
    from ...datasets.whole import files_of

    if dtype not in (floats := DTYPES[:3]):
        console.fail(f"--dtype {dtype}: choose one of {', '.join(floats)}")
    check_outs(out, queries, truth, overwrite)
    if names is not None:
        must_be_free(names, None, overwrite)
        if names in files_of(out, queries, truth):
            console.fail(f"--names {names}: vectors go there; choose another file")
    with console.progress("reading documentation", rows + queries) as advance:
        found = read(rows + queries, advance)
    if len(found) - queries <= dim:
        console.fail(f"only {len(found)} texts found: choose --dim and --queries below that, or more --rows")
    with console.status(f"embedding {len(found):,} texts in {dim} dimensions"):
        corpus = embed(found, queries, dim)
    line = command_line(
        "docstrings", out, rows=rows, dim=dim, queries=queries, truth=truth, dtype=dtype, names=names,
        overwrite=overwrite,
    )  # fmt: skip
    kind = as_dtype(dtype)
    made = Made(
        out, [corpus.vectors.astype(kind)], len(corpus.vectors), corpus.queries.astype(kind), "cosine", truth, threads,
        memory,
    )  # fmt: skip
    if names is not None:
        with replacing(names) as part:
            part.write_text("".join(f"{document.name}\n" for document in corpus.documents))
        record(names, out, line, None, always=manifest)
    write(made, line, manifest, as_json)
