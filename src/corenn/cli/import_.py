"""`corenn import`: rows from a file into a new or existing database."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ..errors import CoreNNError
from ..sizes import as_size, parse_bytes
from ..types import Step
from . import console

if TYPE_CHECKING:
    from ..database import CoreNN
    from .sources import Batch, Source


def import_(
    path: Annotated[Path, typer.Argument(help="Directory of the database; created if it does not exist.")],
    file: Annotated[Path, typer.Argument(help="File to read: JSON lines, a table, or vectors in any format.")],
    key: Annotated[str, typer.Option(help="Field with the key, in JSON lines and tables.")] = "key",
    vector: Annotated[str, typer.Option(help="Field with the vector.")] = "vector",
    payload: Annotated[
        list[str] | None, typer.Option(help="Field to keep as payload; may be repeated. Default: all others.")
    ] = None,
    part: Annotated[
        str | None, typer.Option(help="Data set of an HDF5 file, or column of a table to read as vectors alone.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="Metric of a new database. Default: that of the file, else cosine.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Stored type of a new database. Default: f32.")] = None,
    dim: Annotated[int | None, typer.Option(min=1, help="Dimensions. Default: those of the first row.")] = None,
    memory_limit: Annotated[
        str | None, typer.Option(help="Memory that a new database is to live within, such as 2GB. Default: none.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=100_000, help="Rows per insert.")] = 1_000,
    upsert: Annotated[bool, typer.Option("--upsert", help="Replace rows whose key exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Import vectors with keys and payloads from a file, in bounded memory.

    Every batch is atomic and, once counted, kept: after Ctrl-C or an error the rows before it are in the database.

    Example: corenn import photos.corenn photos.jsonl --key id --payload title --payload year

    Vectors alone, under their row numbers: corenn import mine.corenn vectors.npy --metric l2
    """
    from .sources import Fields, field_list, open_source

    source = open_source(file, Fields(key, vector, field_list(payload)), batch, part)
    settings: dict[str, Any] = {
        name: value for name, value in (("metric", metric), ("dtype", dtype), ("dim", dim)) if value is not None
    }
    if memory_limit is not None:
        settings["memory_limit"] = _bytes(memory_limit)
    first = next(source.batches, None)
    if first is None:
        console.fail(f"{file} holds no rows")
    began = time.perf_counter()
    with _database(path, settings, first.vectors.shape[1], source.metric) as db:
        rows, end = _write(db, source, first, upsert, file)
        seconds = time.perf_counter() - began
        figures = {"path": str(path), "imported": rows, "rows": len(db), "seconds": round(seconds, 3)}
    figures["rows_per_s"] = round(rows / seconds)
    if end is not None:
        figures |= {"disk_bytes": end.disk_bytes, "peak_disk_bytes": end.peak_disk_bytes}
    if as_json:
        console.print_json(figures)
        return
    space = (
        "" if end is None else f", {as_size(end.disk_bytes)} on disk, {as_size(end.peak_disk_bytes)} at most on the way"
    )
    console.stdout().print(
        f"{rows:,} rows imported in {seconds:,.1f} s ({figures['rows_per_s']:,} rows/s); {path} holds "
        f"{figures['rows']:,}{space}", markup=False, soft_wrap=True,
    )  # fmt: skip


def _bytes(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        console.fail(f"--memory-limit {error}")


@contextmanager
def _database(path: Path, settings: dict[str, Any], dim: int, metric: str | None) -> Iterator[CoreNN]:
    """The database at `path`. One that was made here goes again if nothing came into it; an empty folder stays."""
    if console.exists(path):
        with _existing(path, settings) as db:
            yield db
        return
    folder = path.exists()
    with console.create(path, {"dim": dim, **({"metric": metric} if metric else {}), **settings}) as db:
        try:
            yield db
        except BaseException:
            if len(db) == 0:
                db.close()
                shutil.rmtree(path)
                if folder:
                    path.mkdir()
            raise


def _existing(path: Path, settings: dict[str, Any]) -> CoreNN:
    db = console.open_database(path)
    stored = db.stats()
    for name, value in settings.items():
        if getattr(stored, name) != value:
            db.close()
            console.fail(f"--{name.replace('_', '-')} {value}: {path} was created with {getattr(stored, name)}")
    return db


@contextmanager
def _loading(db: CoreNN, total: int | None) -> Iterator[tuple[Callable[[int], None], list[Step]]]:
    """CoreNN.loading, with a bar: the function that moves it on by some rows, and the end of the load, if it had one.

    total: rows of the file, None if it does not say.
    """
    ends: list[Step] = []
    with ExitStack() as shown:
        bars: list[Callable[[str, int, int], None]] = []
        advance = shown.enter_context(console.progress("importing", None)) if total is None else _nothing

        def tell(step: str, done: int, count: int) -> None:
            if isinstance(step, Step) and step == "done":
                ends.append(step)
                return
            if not bars:
                bars.append(shown.enter_context(console.steps()))
            bars[0](_named(step), done, count)

        with db.loading(tell, rows=total or None):
            yield advance, ends


def _named(step: str) -> Step:
    """A step as it is shown: rows are imported, then linked."""
    said = step if isinstance(step, Step) else Step(step)
    name = "importing" if step == "rows" else f"linking: {step}"
    return Step(
        name, said.disk_bytes, said.peak_disk_bytes, said.most_disk_bytes, said.seconds, said.seconds_left
    )  # fmt: skip


def _nothing(_: int) -> None:
    """The database tells by itself how many have come."""


def _write(db: CoreNN, source: Source, first: Batch, upsert: bool, file: Path) -> tuple[int, Step | None]:
    """Rows written, and what the load has said at its end; on an error or Ctrl-C says how many went in before it."""
    write = db.upsert if upsert else db.insert
    rows, last, batch = 0, first, cast("Batch | None", first)
    try:
        # Rows of a new database are linked all at once: several times as fast.
        with _loading(db, source.total) as (advance, ends):
            while batch is not None:
                last = batch
                write(batch.keys, batch.vectors, batch.payloads)
                rows += len(batch.keys)
                advance(len(batch.keys))
                batch = next(source.batches, None)
        return rows, ends[-1] if ends else None
    except KeyboardInterrupt:
        waiting = db.stats().pending
        later = f" {waiting:,} of all wait to be linked: that goes on when it is opened for writing." if waiting else ""
        console.say(f"Interrupted: {rows:,} rows of {file} are in the database.{later}")
        raise typer.Exit(console.INTERRUPTED) from None
    except CoreNNError as error:
        place = "" if str(error).startswith(str(file)) else f"{file}, {last.where}: "
        console.fail(f"{place}{error} (rows imported before it: {rows:,})")
