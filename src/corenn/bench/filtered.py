"""Filtered searches beside other systems, in one run: `python -m corenn.bench.filtered DATA[,PAYLOADS] …`.

    python -m corenn.bench.filtered sift.hdf5 packages.hdf5,packages.jsonl.gz --json filtered.json

Each data set is a file of ann-benchmarks; with JSON lines behind a comma, rows are filtered by fields of these, else by
labels that are made up. Every selectivity, one thread, one query per call, each with its filter. Then, of CoreNN alone,
what filters take by themselves and what indexing them costs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..database import CoreNN
from ..errors import CoreNNError
from .contestant import Plan
from .filtered_data import SHARES, prepare
from .filtered_plot import draw
from .filtered_race import Limits, Race
from .filtered_tables import Results, markdown, plain
from .filters import costs, evaluated, payloads, print_costs, print_evaluated, read
from .report import circumstances
from .spec import parse_systems

K = 10
SYSTEMS = (
    "corenn,zvec,lancedb,milvus-lite,chroma,qdrant-memory,usearch,hnswlib,faiss-hnsw,faiss-ivf,faiss-flat"
)  # fmt: skip
ROWS = 100_000


def arguments() -> argparse.ArgumentParser:
    """What can be asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m corenn.bench.filtered", description="Filtered searches beside other systems."
    )
    parser.add_argument(
        "data", nargs="+", help="HDF5 file; with `,FILE.jsonl[.gz]` of payloads, or none: made-up labels"
    )
    parser.add_argument("--systems", default=SYSTEMS, help="separated by commas (default: %(default)s)")
    parser.add_argument("--fields", default="section,size", help="of payloads, to filter by (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=ROWS, help="to index at most (default: %(default)s)")
    parser.add_argument("--queries", type=int, default=100, help="to ask (default: %(default)s)")
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="selectivities (default: %(default)s)")
    parser.add_argument("--recall", type=float, default=0.95, help="that is enough (default: %(default)s)")
    parser.add_argument("--repetitions", type=int, default=5, help="of each timing (default: %(default)s)")
    parser.add_argument("--build-seconds", type=float, default=240.0, help="for a build (default: %(default)s)")
    parser.add_argument("--cell-seconds", type=float, default=0.5, help="to ask a slow system (default: %(default)s)")
    parser.add_argument(
        "--system-seconds", type=float, default=60.0, help="for all questions to a system (default: %(default)s)"
    )
    parser.add_argument("--no-costs", action="store_true", help="leave out what filters and their index cost CoreNN")
    parser.add_argument("--json", type=Path, help="write the figures to this file, and plots beside it")
    parser.add_argument("--logs", type=Path, help="folder for what systems print; removed at the end unless given")
    return parser


def compare(given: str, options: argparse.Namespace, folder: Path) -> Results:
    """All systems on one data set."""
    file, _, told = given.partition(",")
    asked = prepare(
        Path(file), Path(told) if told else None, options.fields.split(","), folder, rows=options.rows,
        queries=options.queries, shares=options.shares,
    )  # fmt: skip
    plan = Plan(
        K, 1, 2, (options.recall,), options.repetitions, options.build_seconds, max(options.system_seconds, 1.0), 1.0
    )
    limits = Limits(options.recall, options.repetitions, options.cell_seconds, options.system_seconds)
    logs = options.logs or folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    race = Race(parse_systems([options.systems]), plan, asked, folder, logs, limits, say)
    return Results(asked, race.systems, race.go(), options.recall)


def alone(file: Path, rows: int, folder: Path) -> dict[str, Any]:
    """Filters by themselves over twice as many rows, and what indexing costs."""
    base, queries = read(str(file), "train", 2 * rows), read(str(file), "test", 10)
    made = payloads(base, queries)
    say("filters by themselves")
    with CoreNN.build(folder / "evaluated", range(len(base)), base, made, dim=base.shape[1], metric="l2") as db:
        told = evaluated(db)
    say("what indexing costs")
    indexing = costs(base[:rows], made[:rows], folder)
    print(f"\n## Filters by themselves, over {len(base):,} rows")
    print_evaluated(told)
    print_costs(indexing)
    return {"rows": len(base), "evaluated": told, "indexing": indexing}


def say(what: str) -> None:
    """What is going on."""
    print(what, file=sys.stderr, flush=True)


def main(given: Sequence[str] | None = None) -> None:
    """See above."""
    options = arguments().parse_args(given)
    about = circumstances()
    written: dict[str, Any] = {**about, "data": []}
    print(f"# Filtered searches, k = {K}, one thread\n\n{about['cpu']}, {about['cores']} cores, {about['date']}")
    try:
        for number, each in enumerate(options.data):
            with tempfile.TemporaryDirectory(prefix="corenn-filtered-") as folder:
                results = compare(each, options, Path(folder))
            print(f"\n{markdown(results)}", flush=True)
            written["data"].append(plain(results))
            if options.json:
                for kind in ("svg", "png"):
                    draw(results, options.json.with_name(f"{options.json.stem}-{number}.{kind}"))
        if not options.no_costs:
            with tempfile.TemporaryDirectory(prefix="corenn-filtered-") as folder:
                written["alone"] = alone(Path(options.data[0].partition(",")[0]), options.rows, Path(folder))
    except CoreNNError as error:
        raise SystemExit(f"corenn: {error}") from error
    finally:
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(written, indent=2, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
