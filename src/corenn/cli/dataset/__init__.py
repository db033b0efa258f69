"""`corenn dataset …`: vector files and data sets; one module per command."""

from __future__ import annotations

from collections.abc import Callable

import typer

from .. import console
from .convert import convert
from .distances import distances
from .docstrings import docstrings
from .fetch import fetch
from .ground_truth import ground_truth
from .info import info
from .kmeans import kmeans
from .list_ import list_
from .sample import sample
from .split import split
from .synthetic import synthetic
from .verify import verify

__all__ = ["dataset"]

dataset = typer.Typer(
    cls=console.Commands, no_args_is_help=True,
    help="Vector files and data sets: look at them, fetch, convert, sample, split and check them.",
)  # fmt: skip
_COMMANDS: dict[str, Callable[..., None]] = {
    "list": list_,
    "fetch": fetch,
    "info": info,
    "convert": convert,
    "sample": sample,
    "split": split,
    "verify": verify,
    "ground-truth": ground_truth,
    "distances": distances,
    "kmeans": kmeans,
    "synthetic": synthetic,
    "docstrings": docstrings,
}
for _name, _command in _COMMANDS.items():
    dataset.command(_name)(_command)
