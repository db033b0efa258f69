"""What only a fresh process can tell: resident memory and the time to a first answer. Run by `corenn.bench.core`.

    python -m corenn.bench.probe resident VECTORS ROWS DIM METRIC
    python -m corenn.bench.probe answer DATABASE QUERY

Both print one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

BATCH = 1_000


def resident(vectors: str, rows: str, dim: str, metric: str) -> dict[str, float]:
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
    return {"resident": psutil.Process().memory_info().rss, "edges": db.stats().memory["edges"], "rows": len(db)}


def answer(path: str, query: str) -> dict[str, float]:
    """Seconds to open a database; the line is printed once a first query is answered."""
    import numpy as np

    from ..database import CoreNN

    vector = np.fromfile(query, np.float32)
    began = time.perf_counter()
    db = CoreNN.open(path)
    opened = time.perf_counter() - began
    hits = db.query(vector, k=10)
    return {"open": opened, "hits": len(hits)}


if __name__ == "__main__":
    print(json.dumps(resident(*sys.argv[2:]) if sys.argv[1] == "resident" else answer(*sys.argv[2:])), flush=True)
