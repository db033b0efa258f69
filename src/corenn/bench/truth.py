"""Our exact neighbours beside faiss `IndexFlat`: `python -m corenn.bench.truth --data FILE`.

Both get the same float32 rows, queries and threads, and take turns; the best of several turns counts. The answers are
compared by distance: ids may differ only among rows that float32 cannot tell apart.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets import open_vectors
from ..datasets.exact import nearest
from ..types import Float32s
from .recall import distances_of
from .report import circumstances
from .timing import alternate


def compare(base: Float32s, queries: Float32s, k: int, metric: str, threads: int, turns: int) -> dict[str, Any]:
    """Seconds of both, their ratio, and how far the answers of faiss lie from ours.

    Args:
        base, queries: float32, shape (rows, dim) and (queries, dim).
        k: neighbours.
        metric: l2 or ip.
        threads: of either.
        turns: each; the best counts.
    """
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    index = faiss.IndexFlatL2(base.shape[1]) if metric == "l2" else faiss.IndexFlatIP(base.shape[1])
    index.add(base)
    _, distances = nearest(base, queries, k, metric, threads=threads)
    theirs = distances_of(index.search(queries, k)[1], base, queries, metric)
    ours_s, peer_s = alternate(
        turns, lambda: nearest(base, queries, k, metric, threads=threads), lambda: index.search(queries, k)
    )
    faiss.omp_set_num_threads(before)
    slack = 1e-6 * np.abs(distances) + 1e-9
    return {
        "rows": len(base), "queries": len(queries), "dim": base.shape[1], "k": k, "metric": metric, "threads": threads,
        "ours_s": ours_s, "faiss_s": peer_s, "speed_over_faiss": peer_s / ours_s,
        "gflops": 2 * base.size * len(queries) / ours_s / 1e9,
        "farther_in_faiss": int(np.count_nonzero(theirs > distances + slack)),
        "nearer_in_faiss": int(np.count_nonzero(theirs < distances - slack)),
    }  # fmt: skip


def _read(file: Path, part: str, rows: int) -> Float32s:
    with open_vectors(file, part) as vectors:
        return np.array(vectors.rows(0, min(rows, len(vectors))), np.float32)


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m corenn.bench.truth", description="Exact search beside faiss.")
    parser.add_argument("--data", type=Path, required=True, help="HDF5 file with train and test")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows at most (default: %(default)s)")
    parser.add_argument("--queries", type=int, default=1_000, help="queries at most (default: %(default)s)")
    parser.add_argument("-k", type=int, nargs="+", default=[10, 100], help="neighbours (default: 10 and 100)")
    parser.add_argument("--metric", choices=("l2", "ip"), default="l2", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="threads of either (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="turns of either; the best counts (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures and circumstances to this file")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    """Measure and print one line per k."""
    asked = _arguments(given)
    base, queries = _read(asked.data, "train", asked.rows), _read(asked.data, "test", asked.queries)
    told = [compare(base, queries, k, asked.metric, asked.threads, asked.turns) for k in asked.k]
    for each in told:
        print(
            f"{each['rows']:,} rows × {each['dim']}, {each['queries']:,} queries, k {each['k']}, {each['metric']}, "
            f"threads {each['threads']}: {each['ours_s']:.3f} s, faiss {each['faiss_s']:.3f} s, "
            f"speed over faiss {each['speed_over_faiss']:.2f}; farther in faiss: {each['farther_in_faiss']}"
        )
    if asked.json:
        asked.json.write_text(
            json.dumps({**circumstances(), "data": asked.data.name, "results": told}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
