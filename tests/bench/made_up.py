"""Logs that nobody has measured, with the shapes that occur: for tests of tables, plots and comparisons."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

Line = dict[str, Any]
EFFORTS = (10, 14, 20, 28, 40, 56, 80, 128, 192, 320)


def common(system: str, **changes: Any) -> Line:
    """What every line has."""
    return {
        "kind": "point", "schema": 1, "run": "first", "time": "2026-01-02T03:04:05+00:00", "commit": "a" * 40,
        "versions": {"python": "3.11.7", "numpy": "2.4.6", "numba": "0.68.1"},
        "machine": {"cpu": "Made-up Processor 9000", "cores": 2, "memory_bytes": 16_000_000_000, "kernel": "6.1",
                    "huge_pages": "madvise", "flags": ["avx2"], "load": 0.1},
        "dataset": {"name": "sift-128-euclidean.hdf5", "rows": 1_000_000, "dim": 128, "metric": "l2", "sha256": None,
                    "bytes": 1, "queries": 10_000, "truth": "computed"},
        "config": {"repetitions": 3, "quick": False}, "system": system, "label": system, "version": "1.2.3",
        "n": 100_000, "dim": 128, "k": 10, "threads": 1, "build_threads": 2, "params": {}, "build_params": {},
        "query_params": {}, "build_seconds": 12.5, "build_rows_per_second": 8_000.0, "index_bytes": 66_000_000,
        "memory_parts": None, "disk_bytes": None, "disk_parts": None, "import_seconds": None, "open_seconds": None,
        "first_query_seconds": None, "evaluation": None, "notes": [], "errors": [],
        "rss": {"start": 50_000_000, "peak": 260_000_000, "steady": 140_000_000, "anonymous": 120_000_000}, **changes,
    }  # fmt: skip


def curve(system: str, speed: float, ease: float, seed: int = 0, noise: float = 0.04, **changes: Any) -> list[Line]:
    """Points of a system that answers `speed` queries per second at its hastiest, and has recall 1 - ease / effort²."""
    rng = np.random.default_rng([seed, sum(system.encode())])
    lines = []
    for effort in EFFORTS:
        recall = float(np.clip(1 - ease / effort**1.6, 0.02, 1.0))
        rate = speed / (1 + effort / 25)
        runs = [round(float(rate * (1 - noise * rng.random())), 2) for _ in range(3)]
        latency = 1e3 / rate * 1.1
        lines.append(common(
            system, params={"ef": effort}, query_params={"ef": effort}, recall=recall, recall_1=recall,
            recall_1_at_k=min(1.0, recall * 1.01), queries=10_000, qps=max(runs), qps_runs=runs,
            qps_spread=1 - min(runs) / max(runs), cores_used=1.0, distances=40.0 * effort, hops=effort * 1.1,
            latency_ms={"mean": latency, "p50": latency, "p90": latency * 1.2, "p95": latency * 1.4,
                        "p99": latency * 2.1, "p999": latency * 4, "max": latency * 9, "count": 1000},
        ) | changes)  # fmt: skip
    return lines


def target(system: str, recall: float, qps: float | None, **changes: Any) -> Line:
    """A line of speed at a recall; not reached if `qps` is None."""
    reached = qps is not None
    return common(
        system, kind="target", target=recall, reached=reached, at_least=False, recall=recall if reached else 0.7,
        qps=qps, qps_low=qps and qps * 0.95, latency_ms={"p50": 1e3 / qps, "p99": 2e3 / qps} if qps else None,
        between=[{"ef": 20}, {"ef": 28}] if reached else [],
    ) | changes  # fmt: skip


def failure(system: str, **changes: Any) -> Line:
    """A line of a system that could not be had."""
    return common(
        system, kind="failure", stage="start", reason="not installed", message=f"No module named '{system}'",
        build_seconds=None, index_bytes=None, rss=None, version=None,
    ) | changes  # fmt: skip


def write(path: Path, lines: Sequence[Line]) -> Path:
    """A log of `lines`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
