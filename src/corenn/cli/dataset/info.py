"""`corenn dataset info`: what a file holds."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import console
from .options import HDF5, In, Json, Part, Root, shape_line, size_line

if TYPE_CHECKING:
    from ...types import AnyArray

LOOKED_AT = 1_000


def info(file: In, part: Part = None, root: Root = None, as_json: Json = False) -> None:
    """Say what a file of vectors or true neighbours holds: shape, type, metric, norms of the first rows, manifest.

    Example: corenn dataset info sift.hdf5
    """
    from ...datasets.contents import contents, format_of

    found = contents(file, part)
    figures: dict[str, Any] = {
        "path": str(file), "format": format_of(file), **asdict(found), "bytes": file.stat().st_size,
    }  # fmt: skip
    if file.suffix.lower() in HDF5:
        from ...datasets.formats.hdf5 import parts

        figures["parts"] = {name: {"shape": list(shape), "dtype": kind} for name, (shape, kind) in parts(file).items()}
    if found.kind == "vectors":
        figures["norms"] = norms(file, part)
    figures["manifest"] = manifest_of(file, root)
    if as_json:
        console.print_json(figures)
    else:
        show(file, figures)


def norms(file: Path, part: str | None) -> dict[str, Any]:
    """Euclidean norms of the first rows, and how many of these rows are zero or hold NaN or infinity."""
    import numpy as np

    from ...datasets import open_vectors

    with open_vectors(file, part) as vectors, np.errstate(over="ignore"):
        looked_at = min(LOOKED_AT, len(vectors))
        found = [_lengths(block) for _, block in vectors.blocks(stop=looked_at)]
    lengths: AnyArray = np.concatenate(found)
    figures = (lengths.min(), lengths.mean(), lengths.max()) if len(lengths) else (None, None, None)
    # A norm beyond float64 is none that JSON could tell.
    shown = [None if each is None or not np.isfinite(each) else round(float(each), 6) for each in figures]
    return {
        "rows": looked_at,
        **dict(zip(("min", "mean", "max"), shown, strict=True)),
        "zero_rows": int((lengths == 0).sum()),
        "non_finite_rows": looked_at - len(lengths),
    }


def _lengths(block: AnyArray) -> AnyArray:
    """The norms of those rows that are finite."""
    import numpy as np

    rows = block.astype(np.float64)
    found: AnyArray = np.linalg.norm(rows[np.isfinite(rows).all(axis=1)], axis=1)
    return found


def manifest_of(file: Path, root: Path | None) -> dict[str, Any] | None:
    """The manifest of `file`, as it stands; None if there is none."""
    from ...datasets.layout import manifest_path
    from ...datasets.manifest import read_json

    path = manifest_path(file, root)
    return read_json(path) if path.exists() else None


def show(file: Path, figures: dict[str, Any]) -> None:
    """The figures as a table."""
    shape = shape_line(figures["kind"], figures["rows"], figures["dim"], figures["dtype"])
    shown = {"format": figures["format"], "holds": shape, "size": size_line(figures["bytes"])}
    if figures["kind"] == "vectors":
        shown["metric"] = figures["metric"] or "not said"
        shown[f"norms of {figures['norms']['rows']:,} rows"] = _norms_line(figures["norms"])
    else:
        shown["distances"] = "yes" if figures["distances"] else "no"
    for name, each in figures.get("parts", {}).items():
        shown[f"data set {name}"] = f"{' × '.join(f'{size:,}' for size in each['shape'])} {each['dtype']}"
    for name in ("source", "command", "created", "sha256"):
        if figures["manifest"] and figures["manifest"].get(name):
            shown[name] = str(figures["manifest"][name])
    console.print_figures(str(file), shown.items())


def _norms_line(norms: dict[str, Any]) -> str:
    shown = {name: "beyond f64" if norms[name] is None else f"{norms[name]:.4g}" for name in ("min", "mean", "max")}
    finite = norms["rows"] > norms["non_finite_rows"]
    line = f"{shown['min']} to {shown['max']}, mean {shown['mean']}" if finite else "none finite"
    faults = ((norms["zero_rows"], "zero"), (norms["non_finite_rows"], "with NaN or infinity"))
    return line + "".join(f"; {count:,} {what}" for count, what in faults if count)
