"""`corenn dataset verify`: every file against its manifest."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import console
from .options import Json, Root, bytes_progress


def verify(
    names: Annotated[list[str] | None, typer.Argument(help="Data sets to check. Default: all of them.")] = None,
    root: Root = None,
    as_json: Json = False,
) -> None:
    """Check every file of the data sets against its manifest: size, SHA-256, dim, count and type.

    Exit code 1 if a file differs, is missing, or has no manifest. Changes nothing.

    Example: corenn dataset verify
    """
    from ...datasets import layout
    from ...datasets.manifest import verify_layout

    top = layout.root(root)
    found = {each.name: each for each in layout.layouts(root)}
    for name in names or ():
        if name not in found:
            console.fail(f"{top} has no data set {name!r}; has {', '.join(found) or 'none'}")
    chosen = [found[name] for name in names or found]
    if not chosen:
        console.fail(f"{top} holds no data sets; choose another folder with --root or CORENN_DATASETS")
    total = sum(file.stat().st_size for each in chosen for file in each.files())
    with bytes_progress("checking", total) as advance:
        verdicts = [verdict for each in chosen for verdict in verify_layout(each, advance)]
    problems = [verdict for verdict in verdicts if verdict.problem is not None]
    if as_json:
        files = [{"file": str(each.file), "problem": each.problem} for each in verdicts]
        console.print_json({"root": str(top), "ok": not problems, "files": files})
    else:
        shown = [(str(each.file.relative_to(top)), each.problem or "as its manifest says") for each in verdicts]
        count = f"{len(problems)} of {len(verdicts)} files" if problems else f"all {len(verdicts)} files are whole"
        console.print_figures(str(top), [*shown, ("problems" if problems else "result", count)])
    if problems:
        raise typer.Exit(1)
