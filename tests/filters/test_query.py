"""Queries with a filter, by every plan.

Rules out a query that gives fewer hits than match, one that gives what does not match, a plan whose recall falls at
some share of matches or where matches lie far from the query, and a planner that takes no notice of its costs.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from corenn import CoreNN, F, InvalidArgumentError, InvalidFilterError, writer
from corenn.graph import planner, query
from corenn.storage.residence import Residence
from tests.conftest import COMPILED, Create, Sample
from tests.kinds import diagonal
from tests.oracle import distances, recall

K = 10
SHARES = (1.0, 0.5, 0.2, 0.1, 0.03, 0.01, 0.001)
PLANS = ("scan", "cells", "graph", "two-hop") if COMPILED else ("scan", "graph", "two-hop")


def payloads(rows: np.ndarray[Any, Any], rng: np.random.Generator) -> list[dict[str, float]]:
    """Numbers from 0 to 1: at random, and by how near a row is to the first one."""
    near = np.argsort(np.argsort(distances("l2", rows, rows[0])[0])) / len(rows)
    return [{"any": float(one), "near": float(two)} for one, two in zip(rng.random(len(rows)), near, strict=True)]


@pytest.fixture(scope="module")
def photos(sift: Sample) -> Any:
    """6,000 rows over codes; a tenth has been deleted."""
    rows = sift[0] if COMPILED else sift[0][:300]
    made = payloads(rows, np.random.default_rng(5))
    with CoreNN.in_memory(dim=128, metric="l2", dtype="u8", compression_mode="sq8", compression_threshold=0) as db:
        db.insert(range(len(rows)), rows, made)
        db.delete(range(0, len(rows), 10))
        db._searcher.partition.fewest = 0 if COMPILED else 2 * len(rows)  # to find centres takes minutes
        yield db, rows, made


def check(
    found: Any, rows: np.ndarray[Any, Any], queries: np.ndarray[Any, Any], matching: list[int], k: int, least: float
) -> None:
    for hits in found:
        assert len(hits) == min(k, len(matching))
        assert set(hits.keys) <= set(matching)
        assert (np.diff(hits.distances) >= 0).all()
    if matching:
        place = {row: at for at, row in enumerate(matching)}
        numbers = [[place[key] for key in hits.keys] for hits in found]
        assert recall("l2", rows[matching], queries, numbers, k) >= least


@pytest.mark.parametrize(
    ("plan", "field"), diagonal([None, *PLANS, "exact"], ["any", "near", "far"], rounds=2 if COMPILED else 1)
)
def test_hits_match_and_are_the_nearest(photos: Any, sift: Sample, plan: str | None, field: str) -> None:
    """At every share of matches: at random, those nearest to one row, and those farthest from it."""
    db, rows, made = photos
    count = 20 if COMPILED else 5
    queries = sift[1][:count] if field == "any" else rows[:1] + np.arange(count, dtype=np.float32)[:, None] / 4
    for share in SHARES if COMPILED else SHARES[2::3]:
        tree = F("near") >= 1 - share if field == "far" else F(field) < share
        name = "near" if field == "far" else field
        matching = [
            row for row, each in enumerate(made)
            if row % 10 and (each[name] >= 1 - share if field == "far" else each[name] < share)
        ]  # fmt: skip
        found = db.query(queries, k=K, filter=tree, plan=plan)
        check(found, rows, queries, matching, K, 1.0 if plan == "exact" else 0.95)


@pytest.mark.few(2)
@pytest.mark.compiled
@pytest.mark.parametrize("plan", [None, *PLANS])
def test_matches_that_are_all_far_are_told_apart(
    memory: Create, sift: Sample, plan: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By coarse codes those at the far end are as far as each other, and walks come from where none are."""
    monkeypatch.setattr(query, "LEAST_CHOSEN", 20)
    rows = sift[0]
    far = np.argsort(np.argsort(distances("l2", rows, rows[0])[0]))
    db = memory(dim=128, metric="l2", compression_mode="sq4", compression_threshold=0)
    db.insert(range(len(rows)), rows, [{"far": int(each)} for each in far])
    for least in (3000, 5000):
        matching = np.flatnonzero(far >= least).tolist()
        queries = rows[:1] + np.arange(10, dtype=np.float32)[:, None] / 4
        found = db.query(queries, k=K, filter=F("far") >= least, plan=plan, search_list=12)
        check(found, rows, queries, matching, K, 0.95)


@pytest.mark.compiled
def test_far_matches_are_scanned_once(memory: Create, sift: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan tells them apart by the vectors of some; a walk that finds none in time is given up for a scan."""
    rows = sift[0]
    far = np.argsort(np.argsort(distances("l2", rows, rows[0])[0]))
    db = memory(dim=128, metric="l2", compression_mode="sq4", compression_threshold=0)
    db.insert(range(len(rows)), rows, [{"far": int(each)} for each in far])
    asked = partial(db.query, rows[0], k=K, filter=F("far") >= len(rows) // 2, explain=True, search_list=12)
    told = asked(plan="scan").explain
    assert told.distances == told.matches
    monkeypatch.setattr(planner, "COSTS", planner.Costs(scanned=1e6, leap=1e6))
    assert asked().explain.plan == "scan"


@pytest.mark.compiled
def test_matches_that_come_back_every_so_many_rows_are_not_taken_for_far(
    memory: Create, sift: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every other row matches: none of those at a fixed step does, if that is even."""
    monkeypatch.setattr(planner, "COSTS", planner.Costs(scanned=1e6, measured=1e6, leap=1e6))
    rows = sift[0][:5120]
    db = memory(dim=128, metric="l2")
    db.insert(range(len(rows)), rows, [{"odd": row % 2} for row in range(len(rows))])
    for odd in (0, 1):
        found = db.query(sift[1][:20], k=K, filter=F("odd") == odd, explain=True, search_list=40)
        assert {hits.explain.plan for hits in found} == {"graph"}


def test_every_row_one_row_and_none(photos: Any, sift: Sample) -> None:
    db, rows, _ = photos
    query = sift[1][0]
    for plan in (None, *PLANS, "exact"):
        assert db.query(query, k=K, filter=F("nobody").exists(), plan=plan).keys == []
        assert db.query(query, k=K, filter=F.keys([11]), plan=plan).keys == [11]
        assert db.query(query, k=K, filter=F.keys([11, 10, 12]), plan=plan).keys in ([11, 12], [12, 11])
    assert db.query(query, k=K, filter={}, search_list=64).keys == db.query(query, k=K, search_list=64).keys
    assert len(db.query(query, k=len(rows), filter=F("any") < 0.5)) == db.count(F("any") < 0.5)


def test_more_hits_begin_with_fewer(photos: Any, sift: Sample) -> None:
    db, _, _ = photos
    for share in (0.002, 0.05, 0.6):
        many = db.query(sift[1][3], k=40, filter=F("any") < share, plan="exact")
        for k in (1, 3, 12, 40):
            few = db.query(sift[1][3], k=k, filter=F("any") < share, plan="exact")
            assert few.keys == many.keys[:k]


@pytest.mark.few(4)
@pytest.mark.compiled
@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
@pytest.mark.parametrize("mode", ["none", "sq4", "opq"])
def test_metrics_and_codes(memory: Create, rng: np.random.Generator, metric: str, mode: str) -> None:
    count = 1500 if COMPILED else 200
    rows = rng.normal(size=(count, 24)) * rng.uniform(0.5, 2, (count, 1))
    db = memory(dim=24, metric=metric, dtype="f16", compression_mode=mode, compression_threshold=100)
    db.insert(range(count), rows, [{"n": row % 10} for row in range(count)])
    queries = rng.normal(size=(10, 24))
    matching = [row for row in range(count) if row % 10 < 3]
    stored = np.array([record.vector for record in db.get(matching)])
    for plan in (*PLANS, "exact"):
        found = db.query(queries, k=K, filter=F("n") < 3, plan=plan, search_list=100)
        assert all(len(hits) == K and set(hits.keys) <= set(matching) for hits in found)
        numbers = [[matching.index(key) for key in hits.keys] for hits in found]
        assert recall(metric, stored, queries, numbers, K) >= 0.95
    zero = db.query(np.zeros(24), k=K, filter=F("n") == 3)  # as near to every row, under cosine
    assert len(zero) == K
    assert all(key % 10 == 3 for key in zero.keys)


def test_rows_that_are_not_linked_yet_are_found(memory: Create, rng: np.random.Generator) -> None:
    db = memory(dim=4, metric="l2")
    db.insert(range(300), rng.normal(size=(300, 4)), [{"n": row % 3} for row in range(300)])
    with db.loading():
        for plan in (*PLANS, "exact"):
            hits = db.query(np.zeros(4), k=300, filter=F("n") == 1, plan=plan)
            assert sorted(hits.keys) == list(range(1, 300, 3))


@pytest.mark.compiled
@pytest.mark.parametrize("mode", ["rw", "r"])
def test_rows_that_are_read_from_the_disk(
    tmp_path: Path, sift: Sample, mode: Literal["rw", "r"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before disk.slab is there, and once it is, beside rows that have come since."""
    monkeypatch.setattr(Residence, "check", lambda self, fixed, limit=None: None)
    monkeypatch.setattr(writer, "IDLE_SECONDS", 0.001)
    rows, queries, count = sift[0][:1600], sift[1][:10], 1600
    made = payloads(rows, np.random.default_rng(3))
    limited: dict[str, Any] = {"compression_mode": "sq8", "compression_threshold": 0, "memory_limit": 1}
    with CoreNN.create(tmp_path / "db", dim=128, metric="l2", recall_target=0, **limited) as db:
        db.insert(range(1500), rows[:1500], made[:1500])
        for settled in (False, True):
            if settled:
                assert db._writer is not None
                while db.stats().disk_backlog or db._writer.spiller.due(calm=True):
                    time.sleep(0.002)
                db.insert(range(1500, count), rows[1500:], made[1500:])
                db.delete(range(0, count, 10))
            there = [row for row in range(count if settled else 1500) if row % 10 or not settled]
            with nullcontext(db) if mode == "rw" else CoreNN.open(tmp_path / "db", mode="r") as asked:
                for share in (0.7, 0.2, 0.01):
                    matching = [row for row in there if made[row]["any"] < share]
                    for plan in (None, "scan", "graph", "exact"):
                        found = asked.query(
                            queries, k=K, filter=F("any") < share, plan=plan, search_list=60, explain=True
                        )
                        check(found, rows, queries, matching, K, 0.95)
                        assert plan != "graph" or found[0].explain.pages > 0


@pytest.mark.parametrize("plan", [None, *PLANS])
def test_more_hits_are_no_worse(photos: Any, sift: Sample, plan: str | None) -> None:
    """As k grows there are no fewer hits, and those of a smaller k are among them as often as before."""
    db, _, made = photos
    tree, queries = F("any") < 0.2, sift[1][:30]
    matches = sum(each["any"] < 0.2 for row, each in enumerate(made) if row % 10)
    truth = [set(keys[:5]) for keys in (hits.keys for hits in db.query(queries, k=5, filter=tree, plan="exact"))]
    before = 0.0
    for k in (5, 10, 40, 10_000) if COMPILED else (5, 10_000):
        found = db.query(queries, k=k, filter=tree, plan=plan)
        assert {len(hits) for hits in found} == {min(k, matches)}
        share = float(np.mean([len(near & set(hits.keys)) / 5 for near, hits in zip(truth, found, strict=True)]))
        assert share >= before
        before = share
    assert before == 1


def test_the_row_itself_and_a_bound_on_the_distance(photos: Any) -> None:
    db, rows, _ = photos
    hits = db.query(key=11, k=3, filter=F("any") < 0.5, max_distance=float(np.inf))
    near = db.query(key=11, k=3, filter=F("any") < 0.5, max_distance=float(hits.distances[1]))
    assert near.keys == hits.keys[:2]
    several = db.query(rows[:4], k=3, filter=F("any") < 0.001, with_payloads=True)
    assert all(payload["any"] < 0.001 for each in several for payload in each.payloads)


def test_the_plan_is_told(photos: Any, sift: Sample) -> None:
    db, _, _ = photos
    for plan in (*PLANS, "exact"):
        told = db.query(sift[1][0], k=K, filter=F("any") < 0.3, plan=plan, explain=True).explain
        assert told.plan == plan
        assert told.matches == db.count(F("any") < 0.3)
        assert told.distances > 0
        assert (told.estimated > 0) == (plan != "exact")
        assert (told.expected_recall == 1) == (plan == "exact")
    told = db.query(sift[1][0], k=K, filter=F("any") < 0, explain=True).explain
    assert (told.plan, told.matches) == ("empty", 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"plan": "fast", "filter": {}}, "'exact', 'scan', 'cells', 'graph', 'two-hop'"),
        ({"plan": np.ones(3), "filter": {}}, "choose"),
        ({"plan": "scan"}, "filter"),
        ({"plan": "two-hop"}, "filter"),
        ({"plan": "graph", "exact": True, "filter": {}}, "one of them"),
    ],
)
def test_plans_that_make_no_sense_are_refused(photos: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        photos[0].query(np.zeros(128), **arguments)
    with pytest.raises(InvalidFilterError):
        photos[0].query(np.zeros(128), filter={"a": {"$gt": None}})


def test_a_plan_without_a_filter(photos: Any, sift: Sample) -> None:
    db, _, _ = photos
    assert db.query(sift[1][0], plan="graph", explain=True).explain.plan == "graph"
    assert db.query(sift[1][0], plan="exact", explain=True).explain.plan == "exact"


# --- the planner ------------------------------------------------------------------------------------------------------


def test_few_matches_are_scanned_and_most_are_walked() -> None:
    live = 1_000_000
    plans = [planner.estimates(int(live * share), live, 50)[0].plan for share in (1e-6, 1e-3, 0.9, 1.0)]
    assert plans == ["scan", "scan", "graph", "graph"]
    assert planner.estimates(live // 2, live, 50, on_disk=True)[0].plan == "graph"
    assert {each.plan for each in planner.estimates(live // 2, live, 50, on_disk=True)} == {"scan", "graph"}


def test_the_plan_follows_from_the_costs(photos: Any, sift: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    db, _, _ = photos

    def plan() -> str:
        told = db.query(sift[1][0], k=K, filter=F("any") < 0.4, explain=True).explain
        return str(told.plan)

    for name, chosen in (("scanned", "scan"), ("walk", "graph"), ("leap", "two-hop")):
        dear = planner.Costs(scanned=1e6, walk=1e6, leap=1e6, sparse=0.0)
        monkeypatch.setattr(planner, "COSTS", dear._replace(**{name: 1e-6}))
        assert plan() == chosen


def test_estimates_are_near_what_is_computed(photos: Any, sift: Sample) -> None:
    db, _, _ = photos
    told = db.query(sift[1][0], k=K, filter=F("any") < 0.2, plan="scan", explain=True).explain
    assert told.distances == told.estimated == told.matches
