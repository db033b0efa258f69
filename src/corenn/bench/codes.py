"""What each kind of codes costs and finds: `python -m corenn.bench.codes --data FILE.hdf5`.

One graph, built over the vectors; the codes change, so that what is lost is lost by them. Times are of the thread,
which other work beside it moves less than the clock.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..config import Settings
from ..database import CoreNN
from ..graph import codebook
from ..graph.threads import Helpers
from ..kernels.codes import TRAINED, asked_of, codes_of, encode_rows, form_of
from ..kernels.rows import Float32Rows
from ..warmup import warm
from .curve import K, Ours
from .sample import Sample, load

MODES = ("none", "sq8", "sq4", "rabitq", "pq", "opq", "trunc")
LISTS = (10, 12, 14, 16, 20, 24, 32, 48, 64, 96)
TURNS = 5
ENCODED = 20_000
ALIKE = 300  # times the same query, all of whose rows are in the cache then


def least(run: Callable[[], object], clock: Callable[[], float] = time.thread_time) -> float:
    """The shortest of several runs, in seconds."""
    taken = []
    for _ in range(TURNS):
        began = clock()
        run()
        taken.append(clock() - began)
    return min(taken)


def wait_for(db: CoreNN, mode: str) -> None:
    """Have the background make codes."""
    db.configure(compression_mode=mode)
    while db.stats().compression_mode != mode:
        time.sleep(0.01)


def searched(db: CoreNN, sample: Sample, lists: Sequence[int]) -> list[str]:
    """Recall and microseconds per query at each list, and nanoseconds per distance for one query over and over."""
    ours, cells = Ours(db, sample), []
    for search_list in lists:
        recall = ours.point(search_list).recall
        taken = least(lambda at=search_list: ours.run(at))  # type: ignore[misc]
        cells.append(f"{recall:.4f}, {taken / len(sample.queries) * 1e6:.1f}")
    again = np.repeat(sample.queries[:1], ALIKE, axis=0)
    explain = db.query(again[:1], k=K, search_list=lists[-1], explain=True)[0].explain
    taken = least(lambda: db.query(again, k=K, search_list=lists[-1], threads=1))
    return [*cells, f"{taken / ALIKE / (explain.distances if explain else 1) * 1e9:.1f}"]


def made(sample: Sample, mode: str) -> str:
    """Seconds of the processors for a codebook of all rows, and rows per second that one thread encodes."""
    rows, dim = sample.base.shape
    form, book, trained = form_of(Settings(dim=dim, compression_mode=mode), mode), None, 0.0
    if mode in TRAINED:
        helpers, began = Helpers(), time.process_time()
        book = codebook.train(sample.base.copy(), form.subspaces, 1, helpers, rotated=mode == "opq")
        trained = time.process_time() - began
        helpers.close()
    stored = Float32Rows(sample.base, np.zeros((rows, 1), np.float32), dim, np.float32(0))
    codes = codes_of(np.zeros((min(rows, ENCODED), form.row_bytes), np.uint8), stored, form, book=book)
    vector, asked = np.empty(dim, np.float32), asked_of(form)
    taken = least(lambda: encode_rows(stored, codes, 0, codes.vectors, vector, asked))
    return f"{form.row_bytes} | {trained:.1f} | {len(codes.vectors) / taken:,.0f}"


def main(given: Sequence[str] | None = None) -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m corenn.bench.codes", description="What codes cost and find.")
    parser.add_argument("--data", type=Path, required=True, help="HDF5 file in the layout of ann-benchmarks")
    parser.add_argument("--rows", type=int, default=100_000, help="rows to use (default: %(default)s)")
    parser.add_argument("--queries", type=int, default=1_000, help="queries to ask (default: %(default)s)")
    parser.add_argument("--modes", default=",".join(MODES), help="which codes (default: %(default)s)")
    parser.add_argument("--subspaces", type=int, default=0, help="pq_subspaces (default: %(default)s)")
    asked = parser.parse_args(given)
    sample = load(asked.data, asked.rows, asked.queries, 1, K)
    dim = sample.base.shape[1]
    warm(Settings(dim=dim, metric=sample.metric))
    keys = [str(row) for row in range(len(sample.base))]
    lists = [length for length in LISTS if 4 * length < len(keys)]
    db = CoreNN.build(None, keys, sample.base, dim=dim, metric=sample.metric, compression_mode="none",
                      compression_threshold=0, pq_subspaces=asked.subspaces)  # fmt: skip
    print("| codes | bytes | training, s | rows/s | " + " | ".join(map(str, lists)) + " | ns |")
    print("|---" * (len(lists) + 5) + "|")
    for mode in asked.modes.split(","):
        wait_for(db, mode)
        cost = made(sample, mode) if mode not in ("none", "rabitq") else " | | "
        print(f"| {mode} | {cost} | {' | '.join(searched(db, sample, lists))} |", flush=True)
    db.close()


if __name__ == "__main__":
    main()
