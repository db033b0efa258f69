"""The goal table of data larger than memory, in one run: `python -m corenn.bench.limit --data FILE.hdf5`.

Searches, inserts and a build in processes that cannot have more than 15 % of vectors and edges beyond what an open
empty database takes: the kernel sees to that where a control group can be made, and counts what it caches of files as
well. DiskANN and LanceDB are held to the same, each in a Python of its own if need be (`--python diskann=PATH`). What
codes lose and how fast they are made is measured in memory.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np

from ..config import Settings
from ..warmup import warm
from .core import CORES
from .curve import K
from .limit_retrain import retraining
from .limit_rows import (
    RECALL,
    Bench,
    building,
    built,
    bytes_per_row,
    inserting,
    lost_by_codes,
    product_rates,
    searches,
)
from .limit_search import Held, Plan, Searched
from .process import Fault
from .report import Row, circumstances, print_rows
from .sample import load
from .spec import Spec
from .subject import Subject
from .systems.base import Option

PARTS = ("codes", "product", "retraining", "search", "build", "insert")
OURS, PEERS = "corenn-disk", ("diskann", "lancedb")
SHARE = 0.15
SPARE = 50_000
TOGETHER = 32  # queries per call of a system that holds all candidates of a call in memory
WAITING = 8  # threads for each core, where they wait for a disk
BUILD_SECONDS, REQUEST_SECONDS = 14_400.0, 1_800.0


@dataclass(frozen=True, slots=True)
class Amount:
    """How much of everything. passes, pass_seconds: of each timing at least. lasting: seconds of inserts at most, and
    of queries beside retraining.
    """

    rows: int
    queries: int
    spare: int
    passes: int
    pass_seconds: float
    lasting: float

    @classmethod
    def of(cls, rows: int, quick: bool) -> Amount:
        """The full measurement, or one small enough for a test."""
        if quick:
            return cls(min(rows, 2_000), 50, 2_000, 1, 0.0, 1.0)
        return cls(rows, 1_000, SPARE, 3, 10.0, 60.0)


def options_of(name: str, limit: int, rows: int, dim: int) -> dict[str, Option]:
    """How a system is told of the limit, in its own words."""
    node = dim * 4 + 65 * 4
    return {
        OURS: {"limit": limit},
        # Half of it for codes, a sixteenth for rows: with a quarter for these it is killed while it opens.
        "diskann": {"memory": limit // 2, "cached": min(limit // 16 // node, rows // 10)},
        "lancedb": {"index": "IVF_PQ", "partitions": 0, "cache": limit // 2, "together": TOGETHER},
    }.get(name, {})  # type: ignore[return-value]


def search(bench: Bench, asked: argparse.Namespace, amount: Amount) -> tuple[list[Row], list[Searched], dict[str, str]]:
    """Ours and the peers under the limit; what failed, and why."""
    sample = bench.sample
    subject = Subject(
        bench.base_file, bench.folder / "queries.npy", sample.base, sample.queries, sample.truth, sample.metric, {}
    )
    plan = Plan(
        bench.limit,
        K,
        RECALL,
        bench.cores,
        amount.pass_seconds,
        amount.passes,
        BUILD_SECONDS,
        REQUEST_SECONDS,
        asked.python,
        bench.groups,
    )
    found: dict[str, Searched] = {}
    failed: dict[str, str] = {}
    for name in (OURS, *asked.peers):
        spec = Spec(name, options_of(name, bench.limit, len(sample.base), bench.dim))
        wide = (bench.cores,) if name == OURS else (bench.cores, WAITING * bench.cores)
        try:
            folder = bench.folder / name if name == OURS or not asked.keep else keeping(asked.keep, spec, bench)
            found[name] = Held(spec, plan, subject, folder).measure((1, *wide), _say)
        except Fault as fault:
            failed[name] = f"{fault.stage}: {fault.reason}: {fault.message}"
            _say(f"{name} {failed[name]}")
    peers = [each for name, each in found.items() if name != OURS]
    return (
        searches(bench, found.get(OURS), peers, [name for name in failed if name != OURS]),
        list(found.values()),
        failed,
    )


def measure(bench: Bench, asked: argparse.Namespace, amount: Amount) -> tuple[list[Row], dict[str, Any]]:
    """The rows of the parts asked for, and all that was seen on the way."""
    rows: list[Row] = []
    told: dict[str, Any] = {}
    if "codes" in asked.parts:
        _say("what codes lose")
        rows += lost_by_codes(bench)
    if "product" in asked.parts:
        _say("training and encoding")
        rows += product_rates(bench)
    if "retraining" in asked.parts:
        _say("queries beside retraining")
        rows += retraining(bench, bench.folder / "retrained", amount.lasting)
    if "search" in asked.parts:
        made, found, failed = search(bench, asked, amount)
        rows += made
        told["systems"] = [asdict(each) for each in found]
        told["failed"] = failed
        print(markdown(found, failed), flush=True)
    path = bench.folder / "built" / "database"
    if "build" in asked.parts:
        _say("building within the limit")
        path.parent.mkdir()
        made, told["build"] = building(bench, path)
        rows += made
    if "insert" in asked.parts:
        if not path.exists():
            _say("building, for the inserts")
            built(bench, path)
        _say("inserting within the limit")
        made, told["insert"] = inserting(bench, path, amount.lasting)
        rows += made
    return rows, told


def markdown(found: Sequence[Searched], failed: dict[str, str]) -> str:
    """The systems side by side, as a table in Markdown."""
    heads = (
        "system", "setting", "recall@10", "QPS, one thread", "QPS, all", "threads", "KB read per query", "pages",
        "major faults", "resident, MB", "build, s", "disk, MB",
    )  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", f"|---|---|{'---:|' * (len(heads) - 2)}"]
    for each in found:
        pages = each.work.get("pages", each.all.read_bytes / 4096)
        cells = (
            f"{each.label.partition(':')[0]} {each.version}", ", ".join(f"{k} {v}" for k, v in each.params.items()),
            f"{each.recall:.4f}", f"{each.one.qps:,.0f}", f"{each.all.qps:,.0f}", str(each.all.threads),
            f"{each.all.read_bytes / 1e3:,.1f}", f"{pages:,.1f}", f"{each.all.major_faults:,.2f}",
            f"{each.resident / 1e6:,.0f}", f"{each.build_seconds:,.0f}", f"{each.disk_bytes / 1e6:,.0f}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, *(f"{name} failed: {why}" for name, why in failed.items())])


def keeping(keep: Path, spec: Spec, bench: Bench) -> Path:
    """Where a peer's index of these rows, made with these options, is kept; what a build has left half done is gone."""
    told = hashlib.sha256(repr((spec.name, sorted(spec.options.items()), bench.sample.metric)).encode())
    with bench.base_file.open("rb") as rows:
        told.update(hashlib.file_digest(rows, "sha256").digest())
    folder = keep / f"{spec.name}-{told.hexdigest()[:16]}"
    if folder.exists() and not (folder / "built.json").exists():
        rmtree(folder)
    return folder


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def _python(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not equals or not Path(path).exists():
        raise argparse.ArgumentTypeError(f"{text!r}: needs NAME=PATH of an interpreter that is there")
    return name, Path(path)


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m corenn.bench.limit", description="The goal table of data larger than memory."
    )
    parser.add_argument("--data", type=Path, required=True, help="HDF5 file in the layout of ann-benchmarks")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows to use at most (default: %(default)s)")
    parser.add_argument(
        "--share", type=float, default=SHARE, help="the limit as a part of vectors and edges (default: %(default)s)"
    )
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (default: everything)"
    )
    parser.add_argument(
        "--peers", nargs="*", choices=PEERS, default=PEERS, help="what to compare with (default: %(default)s)"
    )
    parser.add_argument(
        "--python", type=_python, action="append", default=[], metavar="NAME=PATH",
        help="another interpreter for a peer; may be repeated",
    )  # fmt: skip
    parser.add_argument("--keep", type=Path, help="folder in which indexes of peers stay, to be used again")
    parser.add_argument("--no-groups", action="store_true", help="use no control group, even where one can be made")
    parser.add_argument("--json", type=Path, help="write figures, goals and circumstances to this file")
    parser.add_argument("--quick", action="store_true", help="2,000 rows: tries the program, not the speed")
    parser.add_argument("--dir", type=Path, help="folder for the databases (default: that of temporary files)")
    asked = parser.parse_args(given)
    asked.python = dict(asked.python)
    return asked


def main(given: Sequence[str] | None = None) -> None:
    """Measure, print the tables, and write them."""
    asked = _arguments(given)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    amount = Amount.of(asked.rows, asked.quick)
    with tempfile.TemporaryDirectory(prefix="corenn-bench-", dir=asked.dir) as folder:
        bench = prepared(asked, amount, Path(folder))
        _say(f"{len(bench.sample.base):,} rows × {bench.dim}, limit {bench.limit:,} bytes")
        rows, told = measure(bench, asked, amount)
    print_rows(rows)
    if asked.json:
        about = {"data": asked.data.name, "rows": len(bench.sample.base), "dim": bench.dim, "limit": bench.limit}
        about |= {"queries": len(bench.sample.queries), "metric": bench.sample.metric, "quick": asked.quick}
        written = {**circumstances(), **about, "results": [row.as_dict() for row in rows], **told}
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(json.dumps(written, indent=2, default=float) + "\n")


def prepared(asked: argparse.Namespace, amount: Amount, folder: Path) -> Bench:
    """The rows and queries of the file, as files that processes share.

    Raises:
        ValueError: for a file of another layout.
    """
    import h5py

    with h5py.File(asked.data) as opened:
        there = len(opened["train"]) if "train" in opened else amount.rows
    rows = min(amount.rows, there)
    if "insert" in asked.parts and not asked.quick and rows == there:
        _say(f"all {there:,} rows are taken: rows half way between two of them are inserted")
    sample = load(asked.data, rows, amount.queries, amount.spare, K)
    warm(Settings(dim=sample.base.shape[1], metric=sample.metric))
    for name, array in (("base", sample.base), ("queries", sample.queries), ("spare", sample.spare)):
        np.save(folder / f"{name}.npy", array)
    limit = int(asked.share * len(sample.base) * bytes_per_row(sample.base.shape[1]))
    return Bench(sample, folder / "base.npy", folder / "spare.npy", folder, limit, CORES, not asked.no_groups)


if __name__ == "__main__":
    main()
