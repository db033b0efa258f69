"""`corenn dataset list`: what is on this machine, and what can be fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import console
from .options import Json, Root, shape_line, size_line


def list_(root: Root = None, as_json: Json = False) -> None:
    """List the data sets on this machine with their files, and those of the catalogue.

    Example: corenn dataset list
    """
    from ...datasets import layout

    top = layout.root(root)
    here = {each.name: [_file(each, file) for file in each.files()] for each in layout.layouts(root)}
    known = _catalogue(set(here))
    if as_json:
        console.print_json({"root": str(top), "datasets": here, "catalogue": known})
        return
    for name, files in here.items():
        console.print_figures(f"{top / name}", [(each["file"], _line(each)) for each in files])
    if not here:
        console.say(f"{top} holds no data sets")
    console.print_figures("catalogue", [(name, _entry_line(each)) for name, each in known.items()])


def _file(layout: Any, file: Path) -> dict[str, Any]:
    """A file of a layout, by its manifest if that can be read."""
    from ...datasets.manifest import read_manifest
    from ...errors import DatasetError

    figures: dict[str, Any] = {"file": f"{file.parent.name}/{file.name}", "bytes": file.stat().st_size}
    try:
        manifest = read_manifest(layout.manifest_of(file))
    except DatasetError as error:
        return {**figures, "manifest": False, "problem": str(error)}
    fields = {name: getattr(manifest, name) for name in ("count", "dim", "dtype", "metric", "sha256", "created")}
    return {**figures, "manifest": True, **fields}


def _line(file: dict[str, Any]) -> str:
    size = size_line(file["bytes"])
    if not file["manifest"]:
        return f"{size}; {file['problem']}"
    if file["count"] is None or file["dim"] is None:
        return size
    return f"{shape_line('vectors', file['count'], file['dim'], file['dtype'])}, {size}"


def _catalogue(here: set[str]) -> dict[str, dict[str, Any]]:
    from ...datasets.catalogue import ENTRIES

    return {
        entry.name: {
            "title": entry.title, "rows": entry.rows, "queries": entry.queries, "dim": entry.dim, "dtype": entry.dtype,
            "metric": entry.metric, "licence": entry.licence or None, "here": entry.name in here,
        }
        for entry in ENTRIES
    }  # fmt: skip


def _entry_line(entry: dict[str, Any]) -> str:
    line = f"{shape_line('vectors', entry['rows'], entry['dim'], entry['dtype'])}, {entry['metric']}"
    return f"{line}; on this machine" if entry["here"] else line
