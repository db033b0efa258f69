"""What `corenn eval` has measured as lines of the log of `corenn bench run`, for its reports and comparisons."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .. import __version__
from .log import SCHEMA, Log
from .machine import commit, cores, machine, versions

SYSTEM, LABEL = "corenn-disk", "corenn eval"  # a label of its own: it was not measured in turns with others
BUILD = ("max_edges", "update_search_list_cap", "distance_threshold", "dtype", "durability")
LATENCIES = ("mean", "p50", "p90", "p95", "p99", "p999", "max")
FURTHER = ("scaling", "closed_loop", "open_loop", "held", "inserted", "insert_rows_per_s", "recall_by")
Line = dict[str, Any]


def record(
    out: Path, figures: Mapping[str, Any], settings: Mapping[str, Any], dataset: Line, config: Line, k: int
) -> Path:
    """Append a line for each operating point and each recall target to the log in `out`; the file.

    Args:
        out: folder of the log; made if it is missing.
        figures: as `corenn eval --json` prints them.
        settings: of the database.
        dataset, config: the members of these names, see docs/benchmarking.md.
        k: neighbours.
    """
    every = lines(figures, settings, {"dataset": dataset, "config": config, "k": k})
    with Log(out) as log:
        for line in every:
            log.append(line)
        return log.path


def lines(figures: Mapping[str, Any], settings: Mapping[str, Any], about: Line) -> list[Line]:
    """The operating point that was asked for, those of the sweep, and the targets."""
    common = _common(figures, settings) | about
    asked = figures["search_list"]
    latency = {name: figures[f"{name}_ms"] for name in LATENCIES} | {"count": figures["calls"]}
    points = [{**figures, "latency_ms": latency}]
    points += [point for point in figures.get("points", []) if point["search_list"] != asked]
    found = [{**common, **_point(point, figures["queries"])} for point in points]
    found += [{**common, **_target(target)} for target in figures.get("targets", [])]
    return [line | {"params": {**line["build_params"], **line["query_params"]}} for line in found]


def _common(figures: Mapping[str, Any], settings: Mapping[str, Any]) -> Line:
    fresh = figures.get("fresh", {})
    resident = {"start": None, "peak": figures.get("build_peak_rss", fresh.get("rss_peak")),
                "steady": fresh.get("rss"), "anonymous": None}  # fmt: skip
    return {
        "schema": SCHEMA, "run": secrets.token_hex(6), "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(), "versions": versions(), "machine": machine(), "system": SYSTEM, "label": LABEL,
        "version": __version__, "n": figures["rows"], "dim": settings["dim"], "threads": figures["threads"] or cores(),
        "build_params": {name: settings[name] for name in BUILD}, "build_threads": cores(),
        "build_seconds": figures.get("build_s"), "build_rows_per_second": figures.get("build_rows_per_s"),
        "index_bytes": sum(figures["memory"].values()), "memory_parts": figures["memory"],
        "disk_bytes": figures["disk_bytes"], "disk_parts": None, "rss": resident,
        "import_seconds": fresh.get("import_s"), "open_seconds": fresh.get("open_s"),
        "first_query_seconds": fresh.get("first_query_s"), "notes": ["measured by corenn eval, alone"], "errors": [],
        "evaluation": {name: figures[name] for name in FURTHER if name in figures},
    }  # fmt: skip


def _point(point: Mapping[str, Any], queries: int) -> Line:
    runs = point["qps_runs"]
    return {
        "kind": "point", **_params(point["search_list"]), "queries": queries,
        "recall": point["recall"], "recall_1": point["recall_1"], "recall_1_at_k": point["recall_1_at_k"],
        "qps": max(runs), "qps_runs": runs, "qps_spread": 1 - min(runs) / max(runs), "cores_used": None,
        "latency_ms": point.get("latency_ms"),
        "distances": point["distances_per_query"], "hops": point["hops_per_query"],
    }  # fmt: skip


def _target(target: Mapping[str, Any]) -> Line:
    lengths = target.get("search_lists", [])
    return {
        "kind": "target", **_params(lengths[-1] if lengths else None), "target": target["target"],
        "reached": target["reached"], "at_least": target.get("at_least", False), "recall": target["recall"],
        "qps": target["qps"], "qps_low": target.get("qps_low"), "latency_ms": None,
        "between": [{"search_list": length} for length in lengths],
    }  # fmt: skip


def _params(search_list: int | None) -> Line:
    return {"query_params": {} if search_list is None else {"search_list": search_list}}
