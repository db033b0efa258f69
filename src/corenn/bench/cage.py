"""A process that cannot have more memory than it was given, and what it took.

Where a control group can be made (Linux, with the rights to it), the kernel holds the process to the limit. Pages that
the system caches of files which the process reads count as well, so that "larger than memory" is true of it however
much memory the machine has. Elsewhere RLIMIT_DATA bounds what it asks for, and nothing bounds the cache. In both cases
a thread looks at the resident set all the while.
"""

from __future__ import annotations

import os
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from .memory import field_of

ROOT = Path("/sys/fs/cgroup")
LOOK_SECONDS = 0.02
ENDING_SECONDS = 5.0
STACKS = 256 << 20  # of address space, which stacks and arenas of threads reserve and hardly use


@dataclass(frozen=True, slots=True)
class Group:
    """A control group of version 1 or 2, by the files that say and bound its memory. Used from one thread."""

    folder: Path

    @property
    def _new(self) -> bool:
        return (self.folder / "memory.max").exists()

    def bound(self, limit: int) -> None:
        """Let its processes have so many bytes, of the system's cache as well, and no swap."""
        (self.folder / ("memory.max" if self._new else "memory.limit_in_bytes")).write_text(str(limit))
        swap, most = ("memory.swap.max", "0") if self._new else ("memory.memsw.limit_in_bytes", str(limit))
        with suppress(OSError):  # a kernel without accounts of swap
            (self.folder / swap).write_text(most)

    def held(self) -> int:
        """Bytes that cannot be taken back: anonymous memory and the kernel's own.

        Pages of libraries count for the group that has touched them first, which is another one as a rule.
        """
        told = dict(line.split() for line in (self.folder / "memory.stat").read_text().splitlines())
        if self._new:
            return int(told["anon"]) + int(told.get("kernel", 0))
        kernel = self.folder / "memory.kmem.usage_in_bytes"
        return int(told["rss"]) + (int(kernel.read_text()) if kernel.exists() else 0)

    def kills(self) -> int:
        """How many processes the kernel has killed for want of memory."""
        file = self.folder / ("memory.events" if self._new else "memory.oom_control")
        told = dict(line.split() for line in file.read_text().splitlines())
        return int(told.get("oom_kill", 0))


@contextmanager
def new_group() -> Iterator[Group | None]:
    """A group of its own below that of this process, or else below the root; None where neither can be made."""
    folder = next(filter(None, map(_made, _parents())), None)
    if folder is None:
        yield None
        return
    try:
        yield Group(folder)
    finally:
        _remove(folder)


def _parents() -> Iterator[Path]:
    """Groups below which one for memory may be made, the nearest first."""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if "memory" in controllers.split(","):
                yield ROOT / "memory" / path.lstrip("/")
            elif not controllers:
                yield ROOT / path.lstrip("/")


def _made(parent: Path) -> Path | None:
    folder = parent / f"corenn-{os.getpid()}-{time.monotonic_ns()}"
    try:
        folder.mkdir()
    except OSError:
        return None
    if not any((folder / name).exists() for name in ("memory.max", "memory.limit_in_bytes")):
        folder.rmdir()  # memory is not among the controllers here
        return None
    return folder


def _remove(folder: Path) -> None:
    """The kernel lets a group go once the last process in it has ended."""
    until = time.monotonic() + ENDING_SECONDS
    while True:
        try:
            folder.rmdir()
        except OSError:
            if time.monotonic() > until:
                return
            time.sleep(LOOK_SECONDS)
        else:
            return


class Cage:
    """What a process is started in to be held to a limit. A context manager, for one process at a time.

    limit: bytes of memory in all, None for none. kind: "cgroup", "rlimit", or "" where nothing is bounded.
    """

    def __init__(self, limit: int | None, *, reserved: int = 0, groups: bool = True) -> None:
        """
        Args:
            limit: bytes of anonymous memory, mapped pages and cached files together.
            reserved: bytes of private mappings that cost no memory; they count for RLIMIT_DATA.
            groups: False to do without control groups even where there are any.
        """
        self.limit = limit
        self._reserved = reserved
        self._groups = groups
        self._group: Group | None = None
        self._context = new_group()

    def __enter__(self) -> Self:
        self._group = self._context.__enter__() if self._groups else None
        if self._group is not None and self.limit is not None:
            self._group.bound(self.limit)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._groups:
            self._context.__exit__(None, None, None)

    @property
    def kind(self) -> str:
        """What holds the process."""
        if self.limit is None:
            return ""
        return "rlimit" if self._group is None else "cgroup"

    @property
    def prefix(self) -> Sequence[str]:
        """What a command line begins with, so that even its first page counts."""
        if self._group is not None:
            return ("sh", "-c", f'echo $$ > {shlex.quote(str(self._group.folder / "cgroup.procs"))} && exec "$@"', "sh")
        if self.limit is not None:
            most = (self.limit + self._reserved + STACKS) // 1024
            return ("sh", "-c", f'ulimit -d {most} && exec "$@"', "sh")
        return ()

    def held(self, pid: int) -> int:
        """Bytes of the process that cannot be taken back, as the limit counts them."""
        return field_of(pid, "VmData") if self._group is None else self._group.held()

    def kills(self) -> int:
        """How many processes were killed by the kernel because the limit was reached."""
        return 0 if self._group is None else self._group.kills()


class Watch:
    """A block in which a thread looks at a process again and again.

    resident: the most bytes that were seen resident. told: the highest that `also` has returned.
    """

    def __init__(self, pid: int, also: Callable[[], int] | None = None, every: float = LOOK_SECONDS) -> None:
        self._pid, self._also, self._every = pid, also, every
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.resident = 0
        self.told = 0

    def _run(self) -> None:
        while True:
            with suppress(OSError, StopIteration):  # it has ended
                self.resident = max(self.resident, field_of(self._pid, "VmRSS"))
                if self._also is not None:
                    self.told = max(self.told, self._also())
            if self._stop.wait(self._every):
                return

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
