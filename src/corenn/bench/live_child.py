"""What the goal table of live data runs in other processes: one that updates until it is killed, one that reads.

    python -m corenn.bench.live_child update DATABASE POOL ORDER LIVE COUNTS
    python -m corenn.bench.live_child ask DATABASE QUERIES SEARCH_LIST RATE SECONDS

`update` counts the calls begun and acknowledged in the file COUNTS. `ask` prints its figures twice, each time as a line
of JSON: at once, and after a line on its standard input, by when somebody updates.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..database import CoreNN
from ..types import Float32s, Int64s
from .curve import K
from .load import Load, arrivals, open_loop
from .timing import seconds
from .turnover import UPDATE, Ring, delete, keys_of

REFRESH_SECONDS = 0.1  # between two refreshes of a reader
BEGUN, ACKNOWLEDGED = 0, 1


def command(name: str, *arguments: object) -> list[str]:
    """The command line of a child."""
    return [sys.executable, "-m", __name__, name, *map(str, arguments)]


def mapped_counts(path: Path) -> Int64s:
    """The numbers of calls begun and acknowledged, which survive the process that counts."""
    if not path.exists():
        path.write_bytes(bytes(16))
    counts: Int64s = np.memmap(path, np.int64, "r+", shape=(2,))
    return counts


def make_call(db: CoreNN, ring: Ring, number: int) -> None:
    """Call `number`, from 0 on, of an endless row of them: by turns a delete and an insert."""
    step = number // 2 * UPDATE
    if number % 2 == 0:
        delete(db, ring.rows(step, UPDATE))
    else:
        rows = ring.rows(step + ring.live, UPDATE)
        db.insert(keys_of(rows), ring.vectors[rows])


def update(path: str, pool: str, order: str, live: str, counts: str) -> None:
    """Go on where the file COUNTS says, until killed."""
    ring = Ring(np.load(pool, mmap_mode="r"), np.load(order), int(live))
    told = mapped_counts(Path(counts))
    with CoreNN.open(path) as db:
        number = int(told[ACKNOWLEDGED])
        while True:
            told[BEGUN] = number + 1
            make_call(db, ring, number)
            number += 1
            told[ACKNOWLEDGED] = number


def offered(db: CoreNN, queries: Float32s, search_list: int, rate: float, lasting: float) -> Load:
    """Queries one by one on one thread, each due at a moment that was fixed before."""

    def call(number: int) -> object:
        return db.query(queries[number % len(queries)], k=K, search_list=search_list, threads=1)

    call(0)
    return open_loop(call, arrivals(rate, max(int(rate * lasting), 1), "even"))


def idle_figures(db: CoreNN, queries: Float32s, search_list: int, rate: float, lasting: float) -> dict[str, Any]:
    """The figures of the best of three loads of a sixth of the time: others at work on the machine are no excuse."""
    loads = [offered(db, queries, search_list, rate, lasting / 6) for _ in range(3)]
    return min(map(figures, loads), key=lambda told: float(told["p99"]))


def ask(path: str, queries: str, search_list: str, rate: str, lasting: str) -> None:
    """Measure twice, while another thread brings the reader up to date every now and then."""
    vectors, load = np.load(queries, allow_pickle=False), (int(search_list), float(rate), float(lasting))
    with CoreNN.open(path, mode="r") as db:

        def refresh(_: threading.Event) -> None:
            db.refresh()

        with Beside(refresh, REFRESH_SECONDS):
            idle = idle_figures(db, vectors, *load)
        print(json.dumps(idle), flush=True)
        sys.stdin.readline()
        with Beside(refresh, REFRESH_SECONDS) as refreshes:
            busy = figures(offered(db, vectors, *load))
        told = {**busy, "refreshes": len(refreshes), "refresh_s": float(np.mean(refreshes))}
        print(json.dumps(told), flush=True)


def figures(load: Load) -> dict[str, Any]:
    """What the table needs of a load, in seconds."""
    return {
        "p50": load.latency.percentile(50), "p99": load.latency.percentile(99), "max": load.latency.greatest,
        "per_second": load.per_second,
    }  # fmt: skip


class Beside:
    """A block in which a thread does something again and again, once at least; the seconds that each turn took.

    turn: called with what is set when the block ends, which a long one should look at. pause: seconds between two.
    """

    def __init__(self, turn: Callable[[threading.Event], object], pause: float = 0.0) -> None:
        self._turn, self._pause = turn, pause
        self._stop = threading.Event()
        self._taken: list[float] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._stop.is_set() or not self._taken:
            self._taken.append(seconds(lambda: self._turn(self._stop)))
            self._stop.wait(self._pause)

    def __enter__(self) -> Sequence[float]:
        self._thread.start()
        return self._taken

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def counted(counts: Int64s, at_least: int, alive: Callable[[], bool], patience: float = 120.0) -> None:
    """Wait until a child has acknowledged so many calls.

    Raises:
        RuntimeError: if it ends before, or takes too long.
    """
    until = time.monotonic() + patience
    while counts[ACKNOWLEDGED] < at_least:
        if not alive() or time.monotonic() > until:
            raise RuntimeError(f"the updating process has acknowledged {counts[ACKNOWLEDGED]} calls and ended or hangs")
        time.sleep(0.01)


CHILDREN: dict[str, Callable[..., None]] = {"update": update, "ask": ask}

if __name__ == "__main__":
    CHILDREN[sys.argv[1]](*sys.argv[2:])
