"""Arguments and options that several `corenn dataset` commands share, and what they do with an output file."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import console

if TYPE_CHECKING:
    from ...datasets.dtypes import DType

HDF5 = (".hdf5", ".h5")

In = Annotated[Path, typer.Argument(help="File of vectors, in any format.")]
Part = Annotated[
    str | None, typer.Option(help="Data set of an HDF5 file, or column of a Parquet or Arrow file. Default: train.")
]
OutPart = Annotated[str | None, typer.Option(help="Data set of OUT to write, or column; other data sets are kept.")]
Type = Annotated[str | None, typer.Option(help="Type of the numbers in OUT, such as f16. Default: as in FILE.")]
Seed = Annotated[int, typer.Option(min=0, help="Chooses the rows; the same seed, the same rows.")]
Record = Annotated[bool, typer.Option("--manifest", help="Write a manifest also outside of a layout.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Root = Annotated[Path | None, typer.Option(help="Folder of all data sets. Default: $CORENN_DATASETS, else ./datasets.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def command_line(name: str, *arguments: object, **options: object) -> str:
    """`corenn dataset …` as one would type it; options that are None or False are left out."""
    words = ["corenn", "dataset", name, *map(str, arguments)]
    for option, value in options.items():
        flag = f"--{option.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif value is not None and value is not False:
            words += [flag, str(value)]
    return shlex.join(words)


def must_be_free(out: Path, part: str | None, overwrite: bool) -> None:
    """Stop if `out`, or the data set `part` of it, exists and is not to be replaced."""
    from ...datasets.formats import hdf5

    if overwrite or not out.exists():
        return
    if part is not None and out.suffix.lower() in HDF5:
        if part in hdf5.parts(out):
            console.fail(f"{out} has a data set {part!r} already; replace it with --overwrite")
        return
    console.fail(f"{out} exists; replace it with --overwrite")


def truth_must_be_free(out: Path, overwrite: bool) -> None:
    """As must_be_free, for all files that neighbours would be written to."""
    from ...datasets.neighbours import files_of

    for each in files_of(out):
        must_be_free(each, "neighbors", overwrite)


def type_of(out: Path, wanted: str | None, given: DType) -> DType:
    """The type of the numbers in `out`: what is wanted, else what is given if the format can carry it."""
    from ...datasets.vectors import as_dtype, fitting

    return as_dtype(wanted) if wanted is not None else fitting(out, given)


def record(out: Path, source: Path, command: str, metric: str | None, *, always: bool) -> Path | None:
    """Write the manifest of `out` if it lies in a layout, has one already, or `always`; returns where it is."""
    from ...datasets.layout import layout_of, manifest_path
    from ...datasets.manifest import describe, write_manifest

    if not always and layout_of(out) is None and not manifest_path(out).exists():
        return None
    with bytes_progress("checksum", out.stat().st_size) as advance:
        manifest = describe(out, source=str(source), command=command, metric=metric, progress=advance)
    return write_manifest(out, manifest)


def record_truth(out: Path, source: Path, command: str, metric: str | None, *, always: bool) -> Path | None:
    """As record, for neighbours and for their distances where these have a file of their own."""
    from ...datasets.neighbours import files_of

    written = [record(each, source, command, metric, always=always) for each in files_of(out) if each.exists()]
    return written[0]


def bytes_progress(title: str, total: int) -> Any:
    """A progress bar in megabytes."""
    return _Megabytes(title, total)


class _Megabytes:
    """As console.progress; steps are bytes."""

    def __init__(self, title: str, total: int) -> None:
        self._bar = console.progress(f"{title}, MB", max(1, total // 10**6))
        self._left = 0

    def __enter__(self) -> Callable[[int], None]:
        self._advance = self._bar.__enter__()
        return self._step

    def _step(self, size: int) -> None:
        self._left += size
        self._advance(self._left // 10**6)
        self._left %= 10**6

    def __exit__(self, *error: Any) -> None:
        self._bar.__exit__(*error)


def show_written(out: Path, part: str | None, source: Path, manifest: Path | None, as_json: bool) -> None:
    """Say what is in `out` now."""
    from ...datasets.contents import contents

    found = contents(out, part)
    figures = {
        "path": str(out), "part": part, "kind": found.kind, "rows": found.rows, "dim": found.dim,
        "dtype": found.dtype, "bytes": out.stat().st_size, "source": str(source),
        "manifest": None if manifest is None else str(manifest),
    }  # fmt: skip
    if as_json:
        console.print_json(figures)
        return
    line = f"{out}{f', {part}' if part else ''}: {shape_line(found.kind, found.rows, found.dim, found.dtype)}"
    console.stdout().print(f"{line}, {size_line(figures['bytes'])}", markup=False, soft_wrap=True, highlight=False)


def shape_line(kind: str, rows: int | None, dim: int | None, dtype: str | None) -> str:
    """ "1,000 rows of 128 f32", or the like for neighbours."""
    if kind == "neighbours":
        return f"{rows:,} queries with {dim:,} neighbours each"
    if kind == "ranges":
        return f"{rows:,} queries with all their neighbours in a radius"
    return f"{rows:,} rows of {dim:,} {dtype}"


def size_line(size: Any) -> str:
    """Bytes in the unit that reads best."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:,.1f} {unit}"
    return f"{size} bytes"
