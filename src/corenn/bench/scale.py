"""The cost model beside what it foretells: `python -m corenn.bench.scale --data FILE --rows 50000,200000`.

For each number of rows a database is built in memory and asked, the search list found that has the recall, and hops,
distances, time per query and time to build put beside the figures of plan.py. Processor time is compared, so that other
work on the machine does not count. The plot shows how the work grows, and where the model goes from there.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..database import CoreNN
from ..datasets import open_vectors
from ..measure import Machine, known_machine, measure
from ..plan import Ask, plan
from ..types import Float32s
from .palette import BLUE, GREEN, GREY, ORANGE, VERMILION
from .plots import STYLE
from .report import circumstances

LISTS = (10, 11, 12, 13, 14, 16, 18, 20, 23, 26, 32, 40, 52, 64, 80, 100, 130, 170)
TURNS = 4
MEMORY_COMMIT_US = 1.0  # per row: nothing goes to a disk
# What others have published for walks that read a page per expansion: rows, reads per query, what.
PUBLISHED = (
    (10**8, 52.0, "PipeANN, SIFT100M at .942"),
    (10**9, 63.6, "DiskANN, BIGANN at .951"),
)


def compare(name: str, base: Float32s, queries: Float32s, ask: Ask, machine: Machine) -> dict[str, Any]:
    """Measured and foretold figures of one database in memory.

    base, queries: float32, shape (rows, dim) and (queries, dim). ask: of which the rows are those of `base`.
    """
    settings = ask.settings()
    began = time.process_time()
    with CoreNN.build(
        None, range(len(base)), base, dim=ask.dim, metric=ask.metric, dtype=ask.dtype, max_edges=settings.max_edges
    ) as db:
        built = time.process_time() - began
        truth: Any = db.query(queries, k=ask.k, exact=True)
        points = []
        for length in LISTS:
            points.append(_point(db, queries, ask.k, length, truth.keys))
            if points[-1]["recall"] >= ask.recall:
                break
        codes = db.stats().compression_mode
    measured = {**_at(points, ask.recall), "build_us": built / len(base) * 1e6}
    return {
        "data": name, "rows": len(base), "dim": ask.dim, "max_edges": settings.max_edges, "codes": codes,
        "recall": ask.recall, "measured": measured, **foretold(ask, machine),
    }  # fmt: skip


def foretold(ask: Ask, machine: Machine) -> dict[str, Any]:
    """The figures of the model for a database in memory, and their ranges."""
    expected = plan(ask, replace(machine, commit_us=MEMORY_COMMIT_US)).ways[0]
    query, link = machine.cores * 1e6, machine.cores * 1e6 / ask.rows
    qps, build = expected.qps, expected.build_s
    return {
        "model": {
            "hops": expected.hops.value, "distances": expected.distances.value, "us": query / qps.value,
            "build_us": build.value * link,
        },
        "range": {
            "hops": (expected.hops.low, expected.hops.high),
            "distances": (expected.distances.low, expected.distances.high),
            "us": (query / qps.high, query / qps.low), "build_us": (build.low * link, build.high * link),
        },
    }  # fmt: skip


def _point(db: CoreNN, queries: Float32s, k: int, length: int, truth: Any) -> dict[str, float]:
    taken = []
    for _ in range(TURNS):
        began = time.thread_time()
        found: Any = db.query(queries, k=k, search_list=length, threads=1)
        taken.append(time.thread_time() - began)
    told: Any = db.query(queries, k=k, search_list=length, threads=1, explain=True)
    shared = [len(np.intersect1d(one, other)) for one, other in zip(found.keys, truth, strict=True)]
    return {
        "list": length, "recall": sum(shared) / (k * len(queries)),
        "hops": sum(each.explain.hops for each in told) / len(queries),
        "distances": sum(each.explain.distances for each in told) / len(queries),
        "us": min(taken) / len(queries) * 1e6,
    }  # fmt: skip


def _at(points: Sequence[dict[str, float]], recall: float) -> dict[str, float]:
    """The figures at exactly this recall, between the two points around it."""
    last = points[-1]
    if len(points) == 1 or last["recall"] < recall:
        return last
    before = points[-2]
    share = (recall - before["recall"]) / (last["recall"] - before["recall"])
    return {name: before[name] + share * (last[name] - before[name]) for name in last}


def draw(results: Sequence[dict[str, Any]], machine: Machine, path: Path) -> None:
    """Draw expansions and processor time of a build over the number of rows: points measured, lines of the model."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    sizes = np.logspace(4, 9, 51).astype(np.int64)
    asks = {
        edges: [Ask(rows=int(n), dim=96, dtype="u8", metric="l2", memory=1 << 50, max_edges=edges) for n in sizes]
        for edges in (32, 64)
    }
    with rc_context(STYLE):
        figure = Figure(figsize=(10.4, 4.4), layout="constrained")
        work, build = figure.subplots(1, 2)
        for edges, colour in ((32, VERMILION), (64, BLUE)):
            hops = [plan(ask, machine).ways[0].hops for ask in asks[edges]]
            work.plot(sizes, [each.value for each in hops], color=colour, label=f"model, {edges} edges")
            work.fill_between(
                sizes, [each.low for each in hops], [each.high for each in hops], color=colour, alpha=0.12, linewidth=0
            )
        for edges, marker in ((32, "o"), (64, "s")):
            for data, colour in zip(
                dict.fromkeys(each["data"] for each in results), (ORANGE, GREEN, GREY), strict=False
            ):
                some = [each for each in results if each["data"] == data and each["max_edges"] == edges]
                if some:
                    work.plot(
                        [each["rows"] for each in some], [each["measured"]["hops"] for each in some], color=colour,
                        marker=marker, linestyle="", label=f"{data}, {edges} edges",
                    )  # fmt: skip
        for rows, reads, what in PUBLISHED:
            work.plot([rows], [reads], color="#444444", marker="x", linestyle="")
            work.annotate(what, (rows, reads), xytext=(-6, 8), textcoords="offset points", ha="right", fontsize=8)
        work.set_title("rows expanded per query, recall@10 .95", loc="left", fontweight="bold")
        measured = sorted(results, key=lambda each: each["rows"])
        build.plot(
            [each["rows"] for each in measured],
            [each["measured"]["build_us"] / each["model"]["build_us"] for each in measured],
            color=VERMILION, marker="o", linestyle="", label="build",
        )  # fmt: skip
        build.plot(
            [each["rows"] for each in measured],
            [each["measured"]["us"] / each["model"]["us"] for each in measured],
            color=BLUE, marker="s", linestyle="", label="query",
        )  # fmt: skip
        build.axhline(1, color=GREY, linewidth=1)
        build.set_title("processor time, measured over model", loc="left", fontweight="bold")
        build.set_ylim(0, 2)
        for axes in (work, build):
            axes.set_xscale("log")
            axes.set_xlabel("rows")
            axes.grid(axis="y")
            axes.legend(fontsize=8, loc="upper left")
        figure.savefig(path, dpi=170, metadata={"Date": None} if path.suffix == ".svg" else {})


def table(results: Sequence[dict[str, Any]]) -> str:
    """The results as a table in Markdown: measured, and the model's figure with its range."""
    heads = ("data", "rows", "edges", "codes", "hops", "distances", "µs per query", "µs per row built")
    lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    for each in results:
        cells = [each["data"], f"{each['rows']:,}", f"{each['max_edges']}", each["codes"]]
        for name, digits in (("hops", 1), ("distances", 0), ("us", 1), ("build_us", 1)):
            low, high = each["range"][name]
            cells.append(
                f"{each['measured'][name]:,.{digits}f}; {each['model'][name]:,.{digits}f} "
                f"({low:,.{digits}f}–{high:,.{digits}f})"
            )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _read(file: Path, part: str, rows: int) -> Float32s:
    with open_vectors(file, part) as vectors:
        return np.array(vectors.rows(0, min(rows, len(vectors))), np.float32)


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m corenn.bench.scale", description="The cost model against reality.")
    parser.add_argument("--data", type=Path, action="append", required=True, help="HDF5 file; may be repeated")
    parser.add_argument("--name", action="append", default=[], help="what to call each file (default: its name)")
    parser.add_argument("--rows", action="append", required=True, help="numbers of rows of each file, by commas")
    parser.add_argument("--edges", default="32", help="max_edges, by commas (default: %(default)s)")
    parser.add_argument("--metric", choices=("l2", "cosine", "ip"), default="l2", help="default: %(default)s")
    parser.add_argument("--recall", type=float, default=0.95, help="default: %(default)s")
    parser.add_argument("--queries", type=int, default=1_000, help="at most (default: %(default)s)")
    parser.add_argument("--measure", action="store_true", help="measure the machine first, here and now")
    parser.add_argument("--json", type=Path, help="write figures and circumstances to this file")
    parser.add_argument("--plot", type=Path, help="draw into this file, .svg or .png")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    """Measure, and print the table."""
    asked = _arguments(given)
    machine = measure(Path()) if asked.measure else known_machine()
    results = []
    for at, (file, sizes) in enumerate(zip(asked.data, asked.rows, strict=True)):
        name = asked.name[at] if at < len(asked.name) else file.stem
        queries = _read(file, "test", asked.queries)
        for rows in (int(float(size)) for size in sizes.split(",")):
            base = _read(file, "train", rows)
            ask = Ask(
                rows=len(base), dim=base.shape[1], metric=asked.metric, memory=machine.memory, recall=asked.recall
            )
            for edges in map(int, asked.edges.split(",")):
                results.append(compare(name, base, queries, replace(ask, max_edges=edges), machine))
                print(table(results[-1:]).splitlines()[-1], flush=True)
    print(table(results))
    if asked.json:
        told = {**circumstances(), "machine": machine.as_dict(), "results": results}
        asked.json.write_text(json.dumps(told, indent=2) + "\n")
    if asked.plot:
        draw(results, machine, asked.plot)


if __name__ == "__main__":
    main()
