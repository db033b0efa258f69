"""Memory of this process, now and at its highest, and what it takes from the disk."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_IO = Path("/proc/self/io")


def resident() -> int | None:
    """Bytes resident now; None where neither /proc nor psutil can tell."""
    if _STATUS.exists():
        return _field("VmRSS")
    try:
        import psutil  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        return None
    return int(psutil.Process().memory_info().rss)


def anonymous() -> int | None:
    """The part of `resident` that is not of files; None where only /proc could tell."""
    return _field("RssAnon") if _STATUS.exists() else None


def peak() -> int:
    """Most bytes that were resident at once, since the start or the last `reset_peak`."""
    if _STATUS.exists():
        return _field("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak() -> bool:
    """Let `peak` count from now; False where the system cannot."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def forget(folder: Path) -> None:
    """Ask the system to drop what it caches of the files below a folder; it keeps what is mapped or not written yet."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_bytes() -> int | None:
    """Bytes that this process has had read from a disk, ahead or not; None where the system does not tell."""
    try:
        told = _IO.read_text()
    except OSError:
        return None
    return int(next(line for line in told.splitlines() if line.startswith("read_bytes:")).split()[1])


def major_faults() -> int:
    """Touches of pages that had to be read from a disk first, since the start."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def field_of(pid: int, name: str) -> int:
    """Bytes that /proc/PID/status gives under a name such as VmRSS.

    Raises:
        OSError, StopIteration: if there is no such process, or it has ended.
    """
    return _read(Path(f"/proc/{pid}/status"), name)


def _field(name: str) -> int:
    return _read(_STATUS, name)


def _read(status: Path, name: str) -> int:
    line = next(line for line in status.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
