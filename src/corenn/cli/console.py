"""What the commands share: two consoles, progress, JSON, opening, and the translation of errors into one line.

Figures go to stdout, everything else to stderr, so that `--json` can be piped. rich is imported at its first use:
`corenn --help` stays quick.
"""

from __future__ import annotations

import errno
import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import typer
from typer.core import TyperGroup

from ..errors import CoreNNError, NotADatabaseError
from ..sizes import as_size
from ..types import Step

if TYPE_CHECKING:
    from rich.console import Console

    from ..config import Settings
    from ..database import CoreNN

EXTRAS = {
    "sklearn": "demo",
    "scipy": "demo",
    "pyarrow": "arrow",
    "h5py": "datasets",
    "httpx": "datasets",
    "msgspec": "server",
    "granian": "server",
    "uvloop": "server",
    "prometheus_client": "server",
    "matplotlib": "bench",
    "yaml": "bench",
    "hnswlib": "peers",
    "psutil": "bench",
}
INTERRUPTED = 130


class Commands(TyperGroup):
    """The command group: an error of ours, or of the file system, is one line on stderr and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        with one_line_errors():
            return super().invoke(ctx)

    def list_commands(self, ctx: Any) -> list[str]:
        """The commands, then the groups of commands, each in the order in which they were added."""
        return sorted(super().list_commands(ctx), key=lambda name: isinstance(self.commands[name], TyperGroup))


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what a user can cause into `fail`; anything else is a bug and keeps its traceback."""
    try:
        yield
    except CoreNNError as error:
        fail(str(error))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        fail(f"this command needs {package}: pip install 'corenn[{EXTRAS[package]}]'")
    except OSError as error:
        if error.errno is None or error.errno == errno.EPIPE:
            raise
        fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))


def fail(message: str) -> NoReturn:
    """One red line on stderr, exit code 1."""
    stderr().print(
        f"error: {' '.join(message.split())}", style="bold red", markup=False, highlight=False, soft_wrap=True
    )
    raise typer.Exit(1)


def say(message: str) -> None:
    """A line for the person at the terminal; never part of the output."""
    stderr().print(message, markup=False, highlight=False, soft_wrap=True)


def stdout() -> Console:
    """The console of results."""
    from rich.console import Console

    return Console()


def stderr() -> Console:
    """The console of progress and errors."""
    from rich.console import Console

    return Console(stderr=True)


def print_json(figures: Any) -> None:
    """`figures` as indented JSON, alone on stdout."""
    sys.stdout.write(json.dumps(figures, indent=2, ensure_ascii=False) + "\n")


def print_figures(title: str, figures: Iterable[tuple[str, str]]) -> None:
    """A table of two columns, what and how much."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in figures:
        table.add_row(name, Text(value))
    stdout().print(table)


@contextmanager
def progress(title: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr, with the time left; call the yielded function with each number of steps done."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr()) as bar:
        task = bar.add_task(title, total=total)
        yield lambda steps: bar.advance(task, steps)


@contextmanager
def steps() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on stderr for work in several steps: call the yielded function with the step, done and total.

    A `Step` says more than its name: the time that is left for all of them, and what is taken of the disk.
    """
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(20), TaskProgressColumn(), TimeElapsedColumn(),
        TextColumn("{task.fields[more]}"),
    )  # fmt: skip
    with Progress(*columns, console=stderr()) as bar:
        task = bar.add_task("", total=None, more="")
        yield lambda step, done, total: bar.update(
            task, description=step, completed=done, total=total, more=_beside(step)
        )


def _beside(step: str) -> str:
    """What a step of a load says of time and disk."""
    if not isinstance(step, Step):
        return ""
    left = "" if step.seconds_left is None else f"left {timedelta(seconds=round(step.seconds_left))}"
    most = f" of {as_size(step.most_disk_bytes)} at most" if step.most_disk_bytes else ""
    return f"{left}  disk {as_size(step.disk_bytes)}{most}".strip() if step.disk_bytes else left


@contextmanager
def status(title: str) -> Iterator[None]:
    """A spinner on stderr around something that counts nothing."""
    console = stderr()
    with console.status(title):
        yield


def exists(path: Path) -> bool:
    """True if something other than an empty folder is at `path`."""
    return path.exists() and (not path.is_dir() or any(path.iterdir()))


def create(path: Path, settings: Mapping[str, Any]) -> CoreNN:
    """A new database; compiles the kernels first if this machine has not yet, and says so."""
    from ..config import Settings
    from ..database import CoreNN

    compile_kernels(Settings.from_dict(settings))
    return CoreNN.create(path, **settings)


def open_database(path: Path, mode: Literal["rw", "r", "rescue"] = "rw") -> CoreNN:
    """An existing database; what the library logs meanwhile, such as a first compilation, is shown."""
    from ..database import CoreNN

    if not path.exists():
        raise NotADatabaseError(f"{path} does not exist")
    with _log_shown(), status(f"opening {path}"):
        return CoreNN.open(path, mode=mode)


@contextmanager
def _log_shown() -> Iterator[None]:
    log, handler = logging.getLogger("corenn"), _Say()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.setLevel(level)
        log.removeHandler(handler)


class _Say(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


def compile_kernels(settings: Settings) -> None:
    """Compile the kernels for `settings` into the cache if they are not there, and say so."""
    from ..warmup import STEPS, compiled, warm

    if compiled(settings):
        return
    say(f"Compiling the kernels for {settings.dtype}. This happens once on a machine and takes about a minute.")
    with progress("compiling", len(STEPS)) as advance:
        warm(settings, progress=lambda _: advance(1))
