"""Queries with filters: recall, time and plan at each share of matches, whatever these have to do with the query.

    python -m corenn.bench.filters vectors.hdf5 [ROWS]

Rows get numbers from 0 to 1 that say nothing, and others by how near they are to a query: so filters select rows at
random, those nearest to each query, and those farthest from it. One thread, k = 10; times are medians of the
processor's, with the plan that is chosen and with each that is forced. Then, what filters take by themselves, and what
indexing costs inserts and a build.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..database import CoreNN
from ..datasets.vectors import open_vectors
from ..filters import F, Filter
from ..types import Float32s

SHARES = (1.0, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.001, 0.0001)
PLANS = (None, "scan", "two-hop", "graph")
QUERIES, AROUND, K = 100, 5, 10
LEAST_WALKED = {"two-hop": 0.01, "graph": 0.05}  # walks among fewer matches take too long to wait for


def read(name: str, part: str, most: int | None) -> Float32s:
    """The first rows of a data set, as float32."""
    with open_vectors(name, part) as file:
        return np.array(file.rows(0, min(len(file), most or len(file))), np.float32)


def payloads(rows: Float32s, queries: Float32s) -> list[dict[str, Any]]:
    """Fields of several kinds; near0 … of ranks by the distance to each of the first queries."""
    random, count = np.random.default_rng(0), len(rows)
    section, size, any_ = random.zipf(1.5, count) % 58, random.integers(0, 10**7, count), random.random(count)
    made: list[dict[str, Any]] = [
        {"section": f"s{section[i]}", "size": int(size[i]), "any": float(any_[i]), "name": f"name-{i}"}
        for i in range(count)
    ]
    for i, each in enumerate(made):
        each["year"] = 2000 + i % 25
    for number, query in enumerate(queries[:AROUND]):
        near = np.argsort(np.argsort(((rows - query) ** 2).sum(axis=1))) / count
        for each, rank in zip(made, near.tolist(), strict=True):
            each[f"near{number}"] = rank
    return made


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call gives, and the microseconds of this thread."""
    began = time.thread_time()
    return call(), (time.thread_time() - began) * 1e6


def line(db: CoreNN, asked: list[tuple[Float32s, Filter]], plan: str | None) -> str:
    """Recall, median time and plan of queries with a filter each."""
    truths = [db.query(query, k=K, filter=tree, exact=True).keys for query, tree in asked]
    # By themselves, for what an exact scan leaves of the caches is not what queries leave.
    answers = [timed(partial(db.query, query, k=K, filter=tree, plan=plan, threads=1)) for query, tree in asked]
    found, times = 0.0, [took for _, took in answers]
    for truth, (hits, _) in zip(truths, answers, strict=True):
        assert len(hits) == len(truth), "fewer hits than match"
        found += len(set(hits.keys) & set(truth)) / max(len(truth), 1)
    told = [db.query(query, k=K, filter=tree, plan=plan, explain=True).explain for query, tree in asked]
    plans = {each.plan for each in told}
    chosen = f" ({'/'.join(sorted(plans))})" if plan is None else ""
    return f"{found / len(asked):.3f}, {np.median(times):,.0f} µs{chosen}"


def table(db: CoreNN, queries: Float32s) -> None:
    """Every share of matches, at random, near and far."""
    plain = [timed(partial(db.query, query, k=K, threads=1))[1] for query in queries]
    print(f"\nwithout a filter {np.median(plain):,.0f} µs\n\n| matches | | chosen | scan | two-hop | graph |")
    print("|---|---|---|---|---|---|")
    for share in SHARES:
        for kind in ("any", "near", "far"):
            if kind == "any":
                asked = [(query, F("any") < share) for query in queries]
            else:
                fields = [F(f"near{number}") for number in range(AROUND)]
                trees = [field < share if kind == "near" else field >= 1 - share for field in fields]
                asked = list(zip(queries[:AROUND], trees, strict=True)) * 4
            for query, tree in asked[:AROUND]:  # what is remembered of a filter is no part of a search
                db.query(query, k=K, filter=tree)
            cells = [line(db, asked, plan) if share >= LEAST_WALKED.get(plan or "", 0) else "" for plan in PLANS]
            print(f"| {share:.2%} | {kind} | {' | '.join(cells)} |", flush=True)


def evaluated(db: CoreNN, rounds: int = 200) -> list[tuple[str, int, float]]:
    """Filters by themselves, nothing being remembered of them: name, matches and median microseconds of each."""
    index = db._current().payload_index
    assert index is not None
    index.remember = lambda *_: None  # type: ignore[method-assign]
    trees = {
        "a text": F("section") == "s1", "a range": F("any") < 0.5, "a narrow one": F("any") < 0.01,
        "three conditions": (F("section") == "s1") & (F("size") < 5_000_000) & (F("year") >= 2010),
        "three, of them two ranges": (F("section") != "s1") & (F("size") < 5_000_000) & (F("any") >= 0.3),
    }  # fmt: skip
    return [
        (name, db.count(tree), float(np.median([timed(partial(db.count, tree))[1] for _ in range(rounds)])))
        for name, tree in trees.items()
    ]


def print_evaluated(told: list[tuple[str, int, float]]) -> None:
    """The table of `evaluated`."""
    print("\n| filter | matches | µs |\n|---|---|---|")
    for name, matches, micros in told:
        print(f"| {name} | {matches:,} | {micros:,.0f} |")


def beside(db: CoreNN, queries: Float32s) -> None:
    """What is asked of values beside searches: counts of them, and hits of which none have the same."""
    recent = F("year") >= 2010
    calls: dict[str, Callable[[], Any]] = {
        "facets of 58 texts": partial(db.facets, "section"),
        "the same within a filter": partial(db.facets, "section", recent),
        "facets of texts that are all different": partial(db.facets, "name"),
        "facets of 25 numbers": partial(db.facets, "year"),
    }
    print("\n| | µs |\n|---|---|")
    for name, call in calls.items():
        print(f"| {name} | {np.median([timed(call)[1] for _ in range(7)]):,.0f} |")
    for field in ("year", "section", "name"):
        asked = [partial(db.query, query, k=K, group_by=field, threads=1) for query in queries]
        print(f"| a query, grouped by {field} | {np.median([timed(each)[1] for each in asked]):,.0f} |")
    each = [F("any") < 0.5, recent, None, F("section") == "s1"] * (len(queries) // 4)
    some = queries[: len(each)]
    took = timed(partial(db.query, some, k=K, filter=each, threads=1))[1] / len(each)
    print(f"| a query of {len(each)} with four filters in turns, µs each | {took:,.0f} |")


def costs(rows: Float32s, made: list[dict[str, Any]], folder: Path, turns: int = 3) -> dict[str, tuple[float, float]]:
    """Inserts by 1,000, and a build: least microseconds per row with five fields indexed, and with none, in turns."""
    some = [{name: each[name] for name in ("section", "size", "any", "name", "year")} for each in made]
    runs: dict[str, Callable[..., float]] = {"inserts": inserting, "build": building}
    told = {}
    for what, run in runs.items():
        best = {True: np.inf, False: np.inf}
        for turn in range(2 * turns):
            indexed = turn % 2 == 0
            settings: dict[str, Any] = {} if indexed else {"no_index_fields": ["*"]}
            best[indexed] = min(best[indexed], run(rows, some, folder / "db", settings) * 1e6)
            shutil.rmtree(folder / "db")
        told[what] = (best[True], best[False])
    return told


def building(rows: Float32s, some: list[dict[str, Any]], path: Path, settings: dict[str, Any]) -> float:
    """Seconds per row of a build."""
    began = time.perf_counter()
    CoreNN.build(path, range(len(rows)), rows, some, dim=rows.shape[1], metric="l2", **settings).close()
    return (time.perf_counter() - began) / len(rows)


def inserting(rows: Float32s, some: list[dict[str, Any]], path: Path, settings: dict[str, Any]) -> float:
    """Seconds per row of inserts of 1,000."""
    inserted = min(len(rows), 20_000)
    began = time.perf_counter()
    with CoreNN.create(path, dim=rows.shape[1], metric="l2", **settings) as db:
        for first in range(0, inserted, 1000):
            part = slice(first, min(first + 1000, inserted))
            db.insert(range(inserted)[part], rows[part], some[part])
        return (time.perf_counter() - began) / inserted


def print_costs(told: dict[str, tuple[float, float]]) -> None:
    """The table of `costs`."""
    print("\n| | with an index | without | |\n|---|---|---|---|")
    for what, (indexed, plain) in told.items():
        print(f"| {what}, µs per row | {indexed:.1f} | {plain:.1f} | {indexed / plain - 1:+.0%} |")


def main() -> None:
    """See above."""
    name, count = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None
    rows, queries = read(name, "train", count), read(name, "test", QUERIES)
    made = payloads(rows, queries)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "searched"
        with CoreNN.build(path, range(len(rows)), rows, made, dim=rows.shape[1], metric="l2") as db:
            db.recall_curve(K, 500)
            print(
                f"{len(db):,} rows, {db.stats().compression_mode}, index {db.stats().memory['payload_index']:,} bytes"
            )
            table(db, queries)
            beside(db, queries)
            print_evaluated(evaluated(db))
        print_costs(costs(rows, made, Path(folder)))


if __name__ == "__main__":
    main()
