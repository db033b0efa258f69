"""The parent's end of a worker process: requests with a limit of time, and what became of a process that fell over."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from . import worker
from .machine import THREAD_VARIABLES

PACKAGE = Path(__file__).parents[1]
GRACE_SECONDS = 5.0


class Fault(Exception):  # noqa: N818
    """A system could not do what it was asked. reason: not installed, failed, hung, crashed or wrong."""

    def __init__(self, stage: str, reason: str, message: str) -> None:
        super().__init__(message)
        self.stage = stage
        self.reason = reason
        self.message = " ".join(message.split())


class Process:
    """A worker in a process and session of its own; Ctrl-C at the terminal does not reach it. A context manager.

    Used from one thread.
    """

    def __init__(
        self, log: Path, threads: int, environment: dict[str, str], python: Path | None = None,
        scratch: Path | None = None, prefix: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """
        Args:
            log: where standard error goes; appended to.
            threads: what libraries that size their pools by the environment are told.
            environment: further variables.
            python: another interpreter; it needs NumPy, and gets this package lent.
            scratch: folder through which the package is lent; that of the log unless given.
            prefix: what the command line begins with; it must become the worker, by exec.

        Raises:
            Fault: if there is no starting it.
        """
        self.log = log
        self._buffer = b""
        self._lent = _lend(scratch or log.parent) if python else None
        variables = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads)), **environment}
        if self._lent is not None:
            variables["PYTHONPATH"] = str(self._lent)
        command = [*prefix, str(python or sys.executable), "-m", worker.__name__]
        try:
            with log.open("ab") as errors:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=variables,
                    start_new_session=True,
                )  # fmt: skip
        except OSError as error:
            raise Fault("start", "failed", str(error)) from error

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def ask(self, do: str, seconds: float, **arguments: Any) -> Any:
        """One request and its answer.

        Raises:
            Fault: if the system fails, dies, or takes longer than `seconds`; in the last two cases the process is gone.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._death(do) from None
        answered = json.loads(self._line(do, time.monotonic() + seconds, seconds))
        if "error" in answered:
            raise Fault(do, answered["error"], answered["message"])
        return answered["ok"]

    def _line(self, do: str, until: float, seconds: float) -> bytes:
        assert self._process.stdout is not None
        stream = self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            if not select.select([stream], [], [], max(until - time.monotonic(), 0))[0]:
                self.kill()
                raise Fault(do, "hung", f"no answer within {seconds:g} seconds")
            read = os.read(stream, 1 << 16)
            if not read:
                raise self._death(do)
            self._buffer += read
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _death(self, do: str) -> Fault:
        """How the process ended."""
        try:
            code = self._process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            return Fault(do, "crashed", "closed its output")
        if code < 0:
            return Fault(do, "crashed", f"killed by {signal.Signals(-code).name}")
        return Fault(do, "crashed", f"exited with code {code}: {last_words(self.log)}")

    def close(self) -> None:
        """Let the process end by itself, and make sure that it does."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End the process and all that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close() if kind is None else self.kill()


def _lend(folder: Path) -> Path:
    """A folder with nothing but this package, for another interpreter's path: its own packages stay its own."""
    lent = folder / "lent"
    lent.mkdir(exist_ok=True)
    link = lent / PACKAGE.name
    if not link.exists() or link.resolve() != PACKAGE:
        link.unlink(missing_ok=True)
        link.symlink_to(PACKAGE, target_is_directory=True)
    return lent


def last_words(log: Path) -> str:
    """The last line of standard error that says anything."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
