"""The figures of `corenn eval` as a table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import console


def show(path: Path, figures: dict[str, Any]) -> None:
    """One line per figure."""
    console.print_figures(str(path), lines(figures))


def lines(figures: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Names and texts, in the order of the table."""
    k = figures["k"]
    by = " (ties by distance)" if figures["recall_by"] == "distance" else " (by id)"
    yield f"recall@{k}", f"{figures['recall']:.4f}{by}"
    yield "nearest row found", f"{figures['recall_1']:.4f} first, {figures['recall_1_at_k']:.4f} among the {k}"
    yield "queries per second", _batch(figures)
    yield "one query per call", latency(figures)
    yield "per query", f"{figures['distances_per_query']:,.0f} distances, {figures['hops_per_query']:,.0f} hops"
    yield "search list", f"{figures['search_list']}"
    yield from ((f"at recall {target['target']:g}", _target(target)) for target in figures.get("targets", []))
    yield from ((_threads(each["threads"]), _scaled(each)) for each in figures.get("scaling", []))
    if "closed_loop" in figures:
        yield f"{figures['closed_loop']['clients']} clients", loaded(figures["closed_loop"])
    if "open_loop" in figures:
        yield f"offered {figures['open_loop']['offered']:,g}/s", loaded(figures["open_loop"])
    if "held" in figures:
        yield f"p99 within {figures['held']['p99_ms']:g} ms", _held(figures["held"])
    yield "rows", f"{figures['rows']:,}"
    if "inserted" in figures:
        yield "inserted", f"{figures['inserted']:,} rows, {figures['insert_rows_per_s']:,} rows/s"
        yield "built", f"{figures['build_s']:,} s, all rows linked; {_mb(figures['build_peak_rss'])} resident at most"
    yield "on disk", _mb(figures["disk_bytes"])
    yield "in use", ", ".join(f"{part} {_mb(size)}" for part, size in figures["memory"].items() if size >= 1e5)
    if "fresh" in figures:
        yield from _fresh(figures["fresh"])


def latency(told: dict[str, Any]) -> str:
    """Percentiles, in milliseconds."""
    return "  ".join(f"p{share} {told[f'p{share}_ms']:.3f} ms" for share in (50, 95, 99))


def loaded(load: dict[str, Any]) -> str:
    """Answers per second and latency of a load."""
    return f"{load['per_second']:,.0f} answers/s  {latency(load)}  max {load['max_ms']:.3f} ms"


def _batch(figures: dict[str, Any]) -> str:
    threads = figures["threads"] or "all"
    slowest = f", slowest of {figures['repeat']} {figures['qps_slowest']:,.0f}" if figures["repeat"] > 1 else ""
    return f"{figures['qps']:,.0f} (one call, {figures['queries']:,} queries, threads: {threads}{slowest})"


def _target(target: dict[str, Any]) -> str:
    if not target["reached"]:
        return f"not reached: {target['recall']:.4f} is the best"
    at_least = f"≥ {target['recall']:.4f}: " if target["at_least"] else ""
    lists = "–".join(map(str, target["search_lists"]))
    rates = f"{target['qps']:,.0f} queries per second ({target['qps_low']:,.0f} at worst)"
    return f"{at_least}{rates}, search list {lists}, {target['distances_per_query']:,.0f} distances"


def _threads(count: int) -> str:
    return f"{count} thread{'' if count == 1 else 's'}"


def _scaled(each: dict[str, Any]) -> str:
    return f"{each['qps']:,.0f} queries per second in one call, {each['clients_qps']:,.0f} by as many clients"


def _held(held: dict[str, Any]) -> str:
    if held["rate"] is None:
        return f"not held at any rate down to {held['tried'][-1]['rate']:,} queries per second"
    return f"up to {held['rate']:,.0f} queries per second  {latency(held['load'])}"


def _fresh(told: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield (
        "new process",
        (
            f"opened in {told['open_s'] * 1e3:,.0f} ms, first query {told['first_query_s'] * 1e3:,.1f} ms, "
            f"first answer {told['first_answer_s']:.2f} s after its start"
        ),
    )
    if told["rss"] is not None:
        yield "resident", f"{_mb(told['rss'])} after all queries, {_mb(told['rss_peak'])} at most"
    pages = told["pages_per_query"]
    read = "" if pages["read"] is None else f", {pages['read']:,.1f} read from the disk"
    yield "pages per query", f"{pages['faults']:,.1f} mapped{read}, beginning with an empty cache"


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
