"""`corenn eval`: recall and speed against known answers, from packed matrices."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import console

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..database import CoreNN
    from ..types import AnyArray, Float32s, Hits

BATCH = 1_000
SINGLES = 2_000
# What a database stores for matrices of a type; the others become f32.
STORED = {"f32": "f32", "f16": "f16", "bf16": "bf16", "u8": "u8", "f64": "f32", "i8": "f32"}


@dataclass(frozen=True, slots=True)
class Form:
    """The shape of packed matrices: rows of `dim` values of type `dtype`, without a header."""

    dtype: str
    dim: int

    def read(self, path: Path) -> AnyArray:
        """The matrix in `path`, mapped, shape (rows, dim)."""
        import ml_dtypes
        import numpy as np

        names = {"f32": "<f4", "f16": "<f2", "f64": "<f8", "u8": "u1", "i8": "i1", "bf16": ml_dtypes.bfloat16}
        kind = np.dtype(names[self.dtype])
        with path.open("rb") as file:
            if file.read(6) == b"\x93NUMPY":
                console.fail(f"{path} is a NumPy file; write the raw values with array.tofile()")
        size, row = path.stat().st_size, self.dim * kind.itemsize
        if size == 0 or size % row:
            console.fail(
                f"{path}: {size:,} bytes is not a whole number of rows of {self.dim} {self.dtype} values "
                f"({row:,} bytes each); check --dim and --dtype"
            )
        return np.memmap(path, kind, mode="r", shape=(size // row, self.dim))


def evaluate(
    path: Annotated[Path, typer.Argument(help="Directory of the database; created if --vectors is given.")],
    queries: Annotated[Path, typer.Option(help="Queries: packed rows of --dtype.")],
    results: Annotated[Path, typer.Option(help="True neighbours: packed rows of uint32, at least K per query.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Neighbours to ask for.")],
    vectors: Annotated[Path | None, typer.Option(help="Rows to insert first; keys are row numbers.")] = None,
    dtype: Annotated[str, typer.Option(help=f"Type of queries and vectors: {', '.join(STORED)}.")] = "f32",
    dim: Annotated[int | None, typer.Option(min=1, help="Dimensions; needed with --vectors.")] = None,
    metric: Annotated[str, typer.Option(help="Metric of a new database: l2, cosine or ip.")] = "l2",
    search_list: Annotated[int | None, typer.Option(min=1, help="Search list. Default: that of the database.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the batch query. Default: all cores.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure recall@k, queries per second and latency against known neighbours.

    Matrices are raw values, row after row, without a header. The keys of the database are the row numbers of --vectors,
    as integers or as text; --results holds such row numbers.

    Example: corenn eval sift.corenn --vectors base.bin --queries q.bin --results truth.bin -k 10 --dim 128

    Once more, without inserting: corenn eval sift.corenn --queries q.bin --results truth.bin -k 10 --search-list 200
    """
    if dtype not in STORED:
        console.fail(f"--dtype {dtype}: choose one of {', '.join(STORED)}")
    if vectors is None:
        dim = stored_dim(path, dim)
    elif dim is None:
        console.fail("--vectors needs --dim, the number of dimensions")
    form = Form(dtype, dim)
    asked = form.read(queries)
    truth = read_truth(results, len(asked), k)
    figures: dict[str, Any] = {}
    if vectors is not None:
        settings = {"dim": form.dim, "metric": metric, "dtype": STORED[dtype]}
        figures = load(path, form.read(vectors), settings)
    with console.open_database(path, mode="r") as db:
        figures |= measure(db, _floats(asked), truth, {"search_list": search_list, "threads": threads})
    if as_json:
        console.print_json({"path": str(path), **figures})
    else:
        show(path, figures)


def stored_dim(path: Path, dim: int | None) -> int:
    """Dimensions of an existing database, which must be `dim` if that is given."""
    with console.open_database(path, mode="r") as db:
        stored = db.stats().dim
    if dim is not None and dim != stored:
        console.fail(f"--dim {dim}: {path} holds vectors of {stored} dimensions")
    return stored


def _floats(rows: AnyArray) -> Float32s:
    import numpy as np

    return np.ascontiguousarray(rows, dtype=np.float32)


def read_truth(path: Path, queries: int, k: int) -> AnyArray:
    """The first k columns of a packed matrix of uint32 with one row per query."""
    import numpy as np

    size = path.stat().st_size
    columns, rest = divmod(size, 4 * queries)
    if rest or columns < k:
        console.fail(
            f"{path}: {size:,} bytes is not {queries:,} rows of {k} or more uint32 ({4 * k} bytes or more each)"
        )
    return np.fromfile(path, "<u4").reshape(queries, columns)[:, :k]


def load(path: Path, rows: AnyArray, settings: dict[str, Any]) -> dict[str, Any]:
    """Insert `rows` under their numbers into a new or empty database."""
    fresh = not console.exists(path)
    with console.create(path, settings) if fresh else console.open_database(path) as db:
        if len(db):
            console.fail(f"{path} already holds {len(db):,} rows; leave out --vectors to evaluate it as it is")
        began = time.perf_counter()
        with console.progress("inserting", len(rows)) as advance:
            for first in range(0, len(rows), BATCH):
                batch = _floats(rows[first : first + BATCH])
                db.insert(list(range(first, first + len(batch))), batch)
                advance(len(batch))
        seconds = time.perf_counter() - began
    return {"inserted": len(rows), "insert_s": round(seconds, 3), "insert_rows_per_s": round(len(rows) / seconds)}


def measure(db: CoreNN, queries: Float32s, truth: AnyArray, options: dict[str, Any]) -> dict[str, Any]:
    """Recall and work of all queries, speed of one call with all of them, latency of calls with one each."""
    import numpy as np

    from ..bench.recall import recall_by_id
    from ..bench.timing import one_by_one, percentiles_ms, seconds

    k = truth.shape[1]
    answers = db.query(queries, k=k, explain=True, **options)
    works = [hits.explain for hits in answers if hits.explain is not None]
    batch = seconds(lambda: db.query(queries, k=k, **options))
    singles = one_by_one(db, queries[:SINGLES], k, **options)
    return {
        "rows": len(db),
        "queries": len(queries),
        "k": k,
        "search_list": works[0].search_list,
        "threads": options["threads"],
        "recall": round(recall_by_id(row_numbers(answers, k), truth), 6),
        "qps": round(len(queries) / batch, 1),
        **percentiles_ms(singles, 50, 95, 99),
        "distances_per_query": round(float(np.mean([work.distances for work in works])), 1),
        "hops_per_query": round(float(np.mean([work.hops for work in works])), 1),
    }


def row_numbers(answers: Sequence[Hits], k: int) -> AnyArray:
    """Keys as row numbers, shape (queries, k); MISSING where fewer came back."""
    from ..bench.recall import MISSING, table

    try:
        return table([[int(key) for key in hits.keys] for hits in answers], k, MISSING)
    except ValueError:
        console.fail("the keys of this database are not row numbers; --results cannot name them")


def show(path: Path, figures: dict[str, Any]) -> None:
    """The figures as a table."""
    threads = figures["threads"] or "all"
    shown = {
        f"recall@{figures['k']}": f"{figures['recall']:.4f}",
        "queries per second": f"{figures['qps']:,.0f} (one call, {figures['queries']:,} queries, threads: {threads})",
        "one query per call": "  ".join(f"p{share} {figures[f'p{share}_ms']:.3f} ms" for share in (50, 95, 99)),
        "per query": f"{figures['distances_per_query']:,.0f} distances, {figures['hops_per_query']:,.0f} hops",
        "search list": f"{figures['search_list']}",
        "rows": f"{figures['rows']:,}",
    }
    if "inserted" in figures:
        shown["inserted"] = f"{figures['inserted']:,} rows, {figures['insert_rows_per_s']:,} rows/s"
    console.print_figures(str(path), shown.items())
