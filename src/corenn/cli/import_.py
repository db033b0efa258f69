"""`corenn import`: rows from a file into a new or existing database."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import CoreNNError
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
    settings = {
        name: value for name, value in (("metric", metric), ("dtype", dtype), ("dim", dim)) if value is not None
    }
    first = next(source.batches, None)
    if first is None:
        console.fail(f"{file} holds no rows")
    began = time.perf_counter()
    with _database(path, settings, first.vectors.shape[1], source.metric) as db:
        rows = _write(db, source, first, upsert, file)
        seconds = time.perf_counter() - began
        figures = {"path": str(path), "imported": rows, "rows": len(db), "seconds": round(seconds, 3)}
    figures["rows_per_s"] = round(rows / seconds)
    if as_json:
        console.print_json(figures)
    else:
        rate = f"{figures['rows_per_s']:,} rows/s"
        console.stdout().print(
            f"{rows:,} rows imported ({rate}); {path} holds {figures['rows']:,}", markup=False, soft_wrap=True
        )


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
            console.fail(f"--{name} {value}: {path} was created with {getattr(stored, name)}")
    return db


@contextmanager
def _loading(db: CoreNN) -> Iterator[None]:
    """CoreNN.loading, with a bar that comes with the linking."""
    with ExitStack() as shown:
        bars: list[Callable[[str, int, int], None]] = []

        def tell(step: str, done: int, total: int) -> None:
            if not bars:
                bars.append(shown.enter_context(console.steps()))
            bars[0](f"linking: {step}", done, total)

        with db.loading(tell):
            yield


def _write(db: CoreNN, source: Source, first: Batch, upsert: bool, file: Path) -> int:
    """Rows written; on an error or Ctrl-C says how many went in before it."""
    write = db.upsert if upsert else db.insert
    rows, batch = 0, first
    try:
        # Rows of a new database are linked all at once: several times as fast.
        with _loading(db), console.progress("importing", source.total) as advance:
            while True:
                write(batch.keys, batch.vectors, batch.payloads)
                rows += len(batch.keys)
                advance(len(batch.keys))
                following = next(source.batches, None)
                if following is None:
                    return rows
                batch = following
    except KeyboardInterrupt:
        console.say(f"Interrupted: {rows:,} rows of {file} are in the database.")
        raise typer.Exit(console.INTERRUPTED) from None
    except CoreNNError as error:
        place = "" if str(error).startswith(str(file)) else f"{file}, {batch.where}: "
        console.fail(f"{place}{error} (rows imported before it: {rows:,})")
