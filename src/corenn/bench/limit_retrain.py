"""Queries while the codes are trained and made anew, again and again, beside queries while nothing happens."""

from __future__ import annotations

import threading
import time
from itertools import cycle
from pathlib import Path
from statistics import mean

from ..database import CoreNN
from ..types import Float32s
from .codes import wait_for
from .curve import GRID, K
from .limit_rows import RECALL, Bench
from .live_child import figures, idle_figures, offered
from .live_rows import RATE
from .report import Row

SLOWER = 2.0
ROWS = 200_000  # at most
POLL_SECONDS = 0.05


def retraining(bench: Bench, path: Path, lasting: float) -> list[Row]:
    """The 99th percentile of queries, one by one at moments fixed before, over that of a database left alone."""
    sample = bench.sample
    base = sample.base[:ROWS]
    with CoreNN.build(
        path, range(len(base)), base, dim=bench.dim, metric=sample.metric, compression_threshold=0, recall_target=0.0
    ) as db:
        wait_for(db, "opq")
        length = _length(db, sample.queries)
        idle = idle_figures(db, sample.queries, length, RATE, lasting)
        with Recoding(db) as swaps:
            busy = figures(offered(db, sample.queries, length, RATE, lasting))
    return [
        Row(
            name="p99 of queries beside retraining, over idle", figure=busy["p99"] / idle["p99"], unit="×", goal=SLOWER,
            at_most=True,
            note=f"{idle['p99'] * 1e3:.2f} → {busy['p99'] * 1e3:.2f} ms, median {idle['p50'] * 1e3:.2f} → "
            f"{busy['p50'] * 1e3:.2f}, longest {idle['max'] * 1e3:.1f} → {busy['max'] * 1e3:.1f}; {len(base):,} rows, "
            f"list {length}, {RATE:g} queries per second; {len(swaps)} new codes, {sum(swaps):.0f} s",
        )
    ]  # fmt: skip


def _length(db: CoreNN, queries: Float32s) -> int:
    """The shortest list that finds enough."""
    truth = [set(hits.keys) for hits in db.query(queries, k=K, exact=True)]
    length: int
    for length in GRID:
        found = db.query(queries, k=K, search_list=length)
        if mean(len(set(hits.keys) & near) / K for hits, near in zip(found, truth, strict=True)) >= RECALL:
            break
    return length


class Recoding:
    """A block in which a thread has a database move from one kind of product codes to the other without a pause; the
    seconds that each move took, one that the end has cut short included.
    """

    def __init__(self, db: CoreNN) -> None:
        self._db = db
        self._stop = threading.Event()
        self._taken: list[float] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        for mode in cycle(("pq", "opq")):
            if self._stop.is_set():
                return
            began = time.perf_counter()
            self._db.configure(compression_mode=mode)
            while self._db.stats().compression_mode != mode and not self._stop.wait(POLL_SECONDS):
                pass
            self._taken.append(time.perf_counter() - began)

    def __enter__(self) -> list[float]:
        self._thread.start()
        return self._taken

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
