"""`corenn bench`: one module per command."""

from __future__ import annotations

from collections.abc import Callable

import typer

from ..console import Commands
from .compare import compare
from .report import report
from .run import run
from .runbook import runbook

__all__ = ["bench"]

bench = typer.Typer(cls=Commands, no_args_is_help=True, help="Measure CoreNN and other systems side by side.")
_COMMANDS: dict[str, Callable[..., None]] = {
    "run": run,
    "report": report,
    "compare": compare,
    "runbook": runbook,
}
for _name, _command in _COMMANDS.items():
    bench.command(_name)(_command)
