"""What figures depend on besides the code: the machine, the versions, the commit; and keeping to a number of cores."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("corenn", "numpy", "numba", "llvmlite", "rocksdict", "ml-dtypes")
# What libraries read at import to size their pools of threads.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "RAYON_NUM_THREADS",
    "TOKIO_WORKER_THREADS",
    "LANCE_CPU_THREADS",
)


def machine() -> dict[str, Any]:
    """Processor, cores, memory, operating system and its modes; None where the system does not tell."""
    described = _cpuinfo()
    return {
        "cpu": described.get("model name") or platform.processor() or None,
        "flags": (described.get("flags") or described.get("Features", "")).split(),  # x86; arm64
        "cores": cores(),
        "cores_total": os.cpu_count(),
        "memory_bytes": _memory(),
        "kernel": platform.release(),
        "platform": platform.platform(),
        "huge_pages": _chosen(_read("/sys/kernel/mm/transparent_hugepage/enabled")),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def versions() -> dict[str, str | None]:
    """Of Python and of what CoreNN runs on."""
    return {"python": platform.python_version(), **{name: version_of(name) for name in PACKAGES}}


def version_of(name: str) -> str | None:
    """Version of an installed package; None if it is not."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def commit() -> str | None:
    """Commit of the sources, with a + if they are changed; None outside a clone."""
    file = Path(__file__)
    try:
        _git(file.parent, "ls-files", "--error-unmatch", file.name)  # else we lie in the .venv of somebody's clone
        return _git(file.parent, "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    asked = ["git", "-C", str(folder), *arguments]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def confine(allowed: Iterable[int], count: int) -> None:
    """Keep every thread of this process, present and future, to `count` of the cores `allowed`; Linux only."""
    if not hasattr(os, "sched_setaffinity"):
        return
    chosen = sorted(allowed)[-count:]
    for thread in Path("/proc/self/task").iterdir():
        try:
            os.sched_setaffinity(int(thread.name), chosen)
        except ProcessLookupError:  # it has ended meanwhile
            continue


def allowed_cores() -> list[int]:
    """Numbers of the cores this process may use; empty where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def _cpuinfo() -> dict[str, str]:
    lines = (_read("/proc/cpuinfo") or "").partition("\n\n")[0].splitlines()
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def _chosen(modes: str | None) -> str | None:
    """The mode in brackets, as in `always [madvise] never`."""
    return modes.partition("[")[2].partition("]")[0] or None if modes else None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
