"""What only a fresh process can tell: resident memory and the time to a first answer.

    python -m corenn.bench.probe resident VECTORS ROWS DIM METRIC
    python -m corenn.bench.probe answer DATABASE QUERY
    python -m corenn.bench.probe serve DATABASE QUERIES K SEARCH_LIST
    python -m corenn.bench.probe pages DATABASE QUERIES K SEARCH_LIST

Each prints one line of JSON, `serve` a second one when all queries are answered. `child` runs one and reads it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BATCH = 1_000


def child(*arguments: object) -> tuple[dict[str, Any], float]:
    """Run a probe in a new process: what it printed, and the seconds until its first line.

    Raises:
        RuntimeError: if it fails.
    """
    command = [sys.executable, "-m", __name__, *map(str, arguments)]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = process.stdout.readline()
        taken = time.perf_counter() - began
        rest = process.stdout.read()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with exit code {process.returncode}")
    figures: dict[str, Any] = {}
    for line in (told, *rest.splitlines()):
        figures |= json.loads(line)
    return figures, taken


def resident(vectors: str, rows: str, dim: str, metric: str) -> Iterator[dict[str, Any]]:
    """Resident bytes of this process with `rows` rows in memory, and the bytes of their edges."""
    import gc

    import numpy as np
    import psutil  # type: ignore[import-untyped]

    from ..database import CoreNN

    db = CoreNN.in_memory(dim=int(dim), metric=metric)
    with Path(vectors).open("rb") as file:
        for first in range(0, int(rows), BATCH):
            keys = [str(row) for row in range(first, min(first + BATCH, int(rows)))]
            db.insert(keys, np.fromfile(file, np.float32, len(keys) * int(dim)).reshape(-1, int(dim)))
    gc.collect()
    yield {"resident": psutil.Process().memory_info().rss, "edges": db.stats().memory["edges"], "rows": len(db)}


def answer(path: str, query: str) -> Iterator[dict[str, Any]]:
    """Seconds to open a database; the line is printed once a first query is answered."""
    import numpy as np

    from ..database import CoreNN

    vector = np.fromfile(query, np.float32)
    began = time.perf_counter()
    db = CoreNN.open(path)
    opened = time.perf_counter() - began
    hits = db.query(vector, k=10)
    yield {"open": opened, "hits": len(hits)}


def serve(path: str, queries: str, k: str, search_list: str) -> Iterator[dict[str, Any]]:
    """Seconds to import, to open for reading and to answer a first query; then resident bytes once all are answered.

    queries: a .npy file of float32, shape (queries, dim). search_list: 0 for that of the database.
    """
    began = time.perf_counter()
    import numpy as np

    from ..database import CoreNN
    from . import memory

    imported = time.perf_counter()
    db = CoreNN.open(path, mode="r")
    opened = time.perf_counter()
    vectors = np.load(queries, mmap_mode="r", allow_pickle=False)
    asked = time.perf_counter()
    options: dict[str, Any] = {"k": int(k), "search_list": int(search_list) or None}
    db.query(vectors[0], **options)
    answered = time.perf_counter()
    yield {
        "import_s": round(imported - began, 4), "open_s": round(opened - imported, 4),
        "first_query_s": round(answered - asked, 4), "rss_opened": memory.resident(),
    }  # fmt: skip
    for first in range(0, len(vectors), BATCH):
        db.query(vectors[first : first + BATCH], **options)
    yield {"rss": memory.resident(), "rss_peak": memory.peak()}


def pages(path: str, queries: str, k: str, search_list: str) -> Iterator[dict[str, Any]]:
    """Pages per query, mean over all, where nothing of the database is in memory at first; its opening counts as well.

    faults: pages, or groups of neighbouring ones, that had to be mapped. read: pages that came from the disk, among
    them those that the system reads ahead; None where it does not tell.
    """
    import gc
    import resource

    import numpy as np

    from ..database import CoreNN
    from . import memory

    vectors = np.load(queries, allow_pickle=False)
    options: dict[str, Any] = {"k": int(k), "search_list": int(search_list) or None, "threads": 1}

    def counted() -> tuple[int, int | None]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_minflt + usage.ru_majflt, memory.read_bytes()

    with CoreNN.open(path, mode="r") as db:
        db.query(vectors[:1], **options)  # loads machine code, which is not counted
    del db
    gc.collect()  # what is mapped would stay in memory
    memory.forget(Path(path))
    faults, read = counted()
    with CoreNN.open(path, mode="r") as db:
        for first in range(0, len(vectors), BATCH):
            db.query(vectors[first : first + BATCH], **options)
        faults_after, read_after = counted()
    from_disk = None if read is None or read_after is None else (read_after - read) / resource.getpagesize()
    yield {
        "faults": round((faults_after - faults) / len(vectors), 3),
        "read": None if from_disk is None else round(from_disk / len(vectors), 3),
    }  # fmt: skip


PROBES: dict[str, Callable[..., Iterator[dict[str, Any]]]] = {
    "resident": resident, "answer": answer, "serve": serve, "pages": pages,
}  # fmt: skip

if __name__ == "__main__":
    for figures in PROBES[sys.argv[1]](*sys.argv[2:]):
        print(json.dumps(figures), flush=True)
