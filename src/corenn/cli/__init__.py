"""The command line: `main`, and one module per command."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from .backup import backup, restore, snapshot
from .bench import bench
from .compact import compact
from .console import Commands
from .dataset import dataset
from .demo import demo
from .evaluate import evaluate
from .export import export_vectors
from .import_ import import_
from .migrate import migrate_hnsw
from .plan import plan
from .profile import profile
from .query import count, facets, query
from .repair import repair
from .serve import serve
from .stats import stats
from .tune import tune
from .upgrade import upgrade
from .verify import verify
from .warmup import warmup

__all__ = ["app", "main"]

app = typer.Typer(
    cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="CoreNN: nearest neighbours from a directory on your disk. Start with [bold]corenn demo[/bold].",
)  # fmt: skip
_COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo, "eval": evaluate, "import": import_, "query": query, "count": count, "facets": facets,
    "stats": stats, "tune": tune, "serve": serve,
    "verify": verify, "repair": repair, "compact": compact, "upgrade": upgrade, "warmup": warmup,
    "snapshot": snapshot, "backup": backup, "restore": restore,
    "export-vectors": export_vectors, "migrate-hnsw": migrate_hnsw, "plan": plan,
}  # fmt: skip
for _name, _command in _COMMANDS.items():
    app.command(_name)(_command)
app.add_typer(dataset, name="dataset")
app.add_typer(profile, name="profile")
app.add_typer(bench, name="bench")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"corenn {version('corenn')}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options before the command."""


def main() -> None:
    """Run the command line."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr does it: names of files may be no text
    app()
