"""What the goal table of data larger than memory runs in processes that are held to a limit.

    python -m corenn.bench.limit_child idle FOLDER DIM METRIC LIMIT
    python -m corenn.bench.limit_child build PATH ROWS METRIC LIMIT
    python -m corenn.bench.limit_child insert PATH ROWS FIRST LIMIT SECONDS

ROWS is a .npy file of float32 that is read as it is needed, never mapped: what is resident is the database's. Each
prints one line of JSON when it is through and then waits for its input to end, so that it can be looked at.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..database import CoreNN
from ..types import Float32s
from . import memory
from .timing import settled

BATCH = 1000
FEW = 12_000  # as many as a build links without a walk
SETTLE_SECONDS = 600.0


class Rows:
    """Rows of a .npy file, read slice by slice."""

    def __init__(self, path: Path) -> None:
        mapped = np.load(path, mmap_mode="r")  # for its header; what is not touched is not resident
        self.shape, self.dtype = mapped.shape, mapped.dtype
        self._path, self._offset = path, mapped.offset

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, rows: slice) -> Float32s:
        start, stop, _ = rows.indices(len(self))
        width = int(self.shape[1])
        at = self._offset + start * width * self.dtype.itemsize
        read: Float32s = np.fromfile(self._path, self.dtype, (stop - start) * width, offset=at)
        return read.reshape(-1, width)


def idle(folder: str, dim: str, metric: str, limit: str) -> dict[str, Any]:
    """An open empty database, in a process that has used another one, so that all code is loaded."""
    rows = np.random.default_rng(0).normal(size=(FEW, int(dim))).astype(np.float32)
    with CoreNN.build(
        Path(folder) / "few", range(FEW), rows, dim=int(dim), metric=metric, recall_target=0.0
    ) as few:  # fmt: skip
        few.insert(range(FEW, FEW + 1000), rows[:1000])
        few.query(rows[:10], k=10)
    held.append(CoreNN.create(Path(folder) / "empty", dim=int(dim), metric=metric, memory_limit=int(limit)))
    gc.collect()
    return {}


def build(path: str, rows: str, metric: str, limit: str) -> dict[str, Any]:
    """A database of all rows, built within the limit."""
    source = Rows(Path(rows))
    steps: dict[str, float] = {}
    began = time.perf_counter()

    def tell(step: str, done: int, total: int) -> None:
        steps[step] = time.perf_counter() - began

    with CoreNN.build(
        path, range(len(source)), source, dim=source.shape[1], metric=metric, memory_limit=int(limit),
        recall_target=0.0, progress=tell,
    ) as db:  # fmt: skip
        taken = time.perf_counter() - began
        stats = db.stats()
        found = {"seconds": taken, "steps": steps, "rows": stats.rows, "disk_bytes": stats.disk_bytes}
        return {**found, "memory": stats.memory, "compression_mode": stats.compression_mode}


def insert(path: str, rows: str, first: str, limit: str, lasting: str) -> dict[str, Any]:
    """Rows come in batches for so many seconds to a database with codes, under the keys from `first` on."""
    source, at = Rows(Path(rows)), 0
    with CoreNN.open(path, memory_limit=int(limit)) as db:
        before = settled(db, SETTLE_SECONDS)
        taken: list[float] = []
        faults, read, spent = memory.major_faults(), memory.read_bytes() or 0, time.process_time()
        while sum(taken) < float(lasting) and at + BATCH <= len(source):
            some = source[at : at + BATCH]
            began = time.perf_counter()
            db.insert(range(int(first) + at, int(first) + at + BATCH), some)
            taken.append(time.perf_counter() - began)
            at += BATCH
        work: dict[str, float] = {"faults": memory.major_faults() - faults, "read": (memory.read_bytes() or 0) - read}
        work |= {"processor_seconds": time.process_time() - spent}
        stats = db.stats()
        caught_up = settled(db, SETTLE_SECONDS)
    return {
        **work, "caught_up_seconds": caught_up,
        "batches": taken, "rows": BATCH * len(taken), "settle_seconds": before, "memory": stats.memory,
        "compression_mode": stats.compression_mode, "disk_backlog": stats.disk_backlog,
    }  # fmt: skip


held: list[CoreNN] = []
CHILDREN: dict[str, Callable[..., dict[str, Any]]] = {"idle": idle, "build": build, "insert": insert}


def main() -> None:
    """Do what the command line says, and tell of it."""
    memory.reset_peak()
    told = CHILDREN[sys.argv[1]](*sys.argv[2:])
    figures = {
        "resident": memory.resident(), "peak": memory.peak(), "read_bytes": memory.read_bytes(),
        "major_faults": memory.major_faults(),
    }  # fmt: skip
    print(json.dumps({**told, **figures}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
