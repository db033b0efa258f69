"""Queries while the codes are trained and made anew, again and again, beside queries while nothing happens."""

from __future__ import annotations

import threading
from itertools import cycle
from pathlib import Path
from statistics import mean

from ..database import CoreNN
from ..types import Float32s
from .codes import wait_for
from .curve import GRID, K
from .limit_rows import RECALL, Bench
from .live_child import Beside, figures, idle_figures, offered
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
        modes = cycle(("pq", "opq"))

        def recode(stop: threading.Event) -> None:
            """Move from one kind of product codes to the other, as far as it goes."""
            mode = next(modes)
            db.configure(compression_mode=mode)
            while db.stats().compression_mode != mode and not stop.wait(POLL_SECONDS):
                pass

        idle = idle_figures(db, sample.queries, length, RATE, lasting)
        with Beside(recode) as swaps:
            busy = figures(offered(db, sample.queries, length, RATE, lasting))
    return [
        Row(
            name="p99 of queries beside retraining, over idle", figure=busy["p99"] / idle["p99"], unit="×", goal=SLOWER,
            at_most=True,
            note=f"{idle['p99'] * 1e3:.2f} → {busy['p99'] * 1e3:.2f} ms, median {idle['p50'] * 1e3:.2f} → "
            f"{busy['p50'] * 1e3:.2f}, longest {idle['max'] * 1e3:.1f} → {busy['max'] * 1e3:.1f}; {len(base):,} rows, "
            f"list {length}, {RATE:g} queries per second; {len(swaps)} moves to other codes in {sum(swaps):.0f} s, the "
            "last of them cut short",
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
