"""What the commands that make a data set share: rows, queries and true neighbours into files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import console
from .limits import MB
from .options import must_be_free, record, shape_line, size_line

if TYPE_CHECKING:
    from ...types import AnyArray

DTYPES = ("f32", "f16", "bf16", "i8", "u8")


@dataclass(frozen=True, slots=True)
class Made:
    """A data set to be written.

    out: the file; its ending chooses the format. blocks: the rows, `rows` in all. queries: shape (queries, dim), of the
    same type. k: true neighbours per query, 0 for none. threads, memory: of their search, MB.
    """

    out: Path
    blocks: Iterable[AnyArray]
    rows: int
    queries: AnyArray
    metric: str
    k: int
    threads: int | None
    memory: int


def check_outs(out: Path, queries: int, k: int, overwrite: bool) -> None:
    """Stop before any work if true neighbours have no queries, or a file to be written exists."""
    from ...datasets.whole import files_of

    if k and not queries:
        console.fail(f"--truth {k} needs --queries of at least 1")
    for path in files_of(out, queries, k):
        must_be_free(path, None, overwrite)


def write(made: Made, line: str, manifest: bool, as_json: bool) -> None:
    """Write all of it, with manifests where they belong, and say what there is now. line: the command."""
    from ...datasets.dtypes import name_of
    from ...datasets.whole import write_set

    dtype = made.queries.dtype
    steps = made.rows * (2 if made.k else 1)
    with console.progress("writing and searching" if made.k else "writing", steps) as advance:
        files = write_set(
            made.out, made.blocks, made.rows, made.queries, made.metric, dtype, k=made.k, threads=made.threads,
            memory_bytes=made.memory * MB, progress=advance, searched=advance,
        )  # fmt: skip
    recorded = [record(path, made.out, line, made.metric, always=manifest) for path in files]
    figures: dict[str, Any] = {
        "path": str(made.out), "rows": made.rows, "queries": len(made.queries), "dim": made.queries.shape[1],
        "dtype": name_of(dtype), "metric": made.metric, "neighbours": made.k,
        "files": [
            {"path": str(path), "bytes": path.stat().st_size, "manifest": None if where is None else str(where)}
            for path, where in zip(files, recorded, strict=True)
        ],
    }  # fmt: skip
    if as_json:
        console.print_json(figures)
        return
    queries = f", {len(made.queries):,} queries" if len(made.queries) else ""
    known = f" with {min(made.k, made.rows):,} neighbours each" if made.k else ""
    shape = shape_line("vectors", made.rows, figures["dim"], figures["dtype"])
    for path in files:
        console.say(f"{path}: {size_line(path.stat().st_size)}")
    console.stdout().print(f"{made.out}: {shape}{queries}{known}", markup=False, soft_wrap=True, highlight=False)
