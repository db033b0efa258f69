"""Recall on request, through the public interface.

Rules out a `min_recall` that unseen queries do not get, a curve that flatters, is lost with the handle or outlives its
data, a query that guesses or that waits for what it did not ask for, and figures that cannot be reproduced.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from corenn import CoreNN, InvalidArgumentError, Recall
from corenn import writer as writer_module
from corenn.graph import calibrate
from corenn.graph.calibrate import Calibrator
from corenn.graph.curve import ONE_SIDED, Curve, Point, interval, pack, rung_of, unpack
from corenn.storage.commit import Head
from tests.conftest import COMPILED, Create, Sample
from tests.oracle import distances, recall, tolerance

Rows = NDArray[np.float32]
TARGETS = (0.9, 0.95, 0.99)
compiled = pytest.mark.compiled


def fill(db: CoreNN, rows: Rows, first: int = 0) -> CoreNN:
    for start in range(0, len(rows), 1000):
        part = rows[start : start + 1000]
        db.insert(range(first + start, first + start + len(part)), part)
    return db


@cache
def _table(metric: str, rows: bytes, queries: bytes, dim: int) -> Rows:
    """The oracle's distances, once for the same data."""
    return distances(metric, *(np.frombuffer(part, np.float32).reshape(-1, dim) for part in (rows, queries)))


def found(db: CoreNN, rows: Rows, queries: Rows, k: int = 10, **options: Any) -> float:
    """recall@k by the oracle, by distance. The keys are the numbers of the rows."""
    table = _table(db.settings.metric, rows.tobytes(), queries.tobytes(), rows.shape[1])
    limits = np.partition(table, k - 1, axis=1)[:, k - 1] + tolerance(db.settings.metric, rows, queries) / 10
    answers = np.array([hits.keys for hits in db.query(queries, k=k, **options)])
    return float((np.take_along_axis(table, answers, axis=1) <= limits[:, None]).mean())


def how(db: CoreNN, query: Rows, **options: Any) -> Any:
    return db.query(query, explain=True, **options).explain


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The k of every curve that a call has measured."""
    calls: list[int] = []
    measure = Calibrator.measure

    def noted(self: Calibrator, view: Any, k: int, *rest: Any) -> Curve:
        calls.append(k)
        return measure(self, view, k, *rest)

    monkeypatch.setattr(Calibrator, "measure", noted)
    yield calls


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves rest on few queries: for tests that do not ask how good they are."""
    monkeypatch.setattr(calibrate, "SAMPLES", 200)


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writers do not wait long before they measure in the background."""
    monkeypatch.setattr(writer_module, "IDLE_SECONDS", 0.02)


def wait_for_curve(db: CoreNN, query: Rows, k: int = 10) -> Any:
    deadline = time.monotonic() + 60
    while (explained := how(db, query, k=k)).chosen_by != "recall_target":
        assert time.monotonic() < deadline, "nothing is measured in the background"
        time.sleep(0.02)
    return explained


# --- what it promises -------------------------------------------------------------------------------------------------


def data(name: str, request: pytest.FixtureRequest) -> tuple[Rows, Rows, str]:
    """Rows, queries that are not among them, and the metric."""
    if name == "sift":
        rows, queries = request.getfixturevalue("sift")
        return rows[:5000], np.concatenate((rows[5000::3], queries)), "l2"
    if name == "embeddings":
        rows, queries = request.getfixturevalue("embeddings")
        return rows[:1500], np.concatenate((rows[1500:], queries)), "cosine"
    random = np.random.default_rng(8)
    centres = random.normal(size=(40, 24))
    rows = (centres[random.integers(0, 40, 5000)] + 0.3 * random.normal(size=(5000, 24))).astype(np.float32)
    if name == "ip":
        rows *= random.uniform(0.3, 3, (5000, 1)).astype(np.float32)
    return rows[:4000], rows[4000:], "ip" if name == "ip" else "l2"


@pytest.mark.few(2)
@compiled
@pytest.mark.parametrize(
    ("name", "mode"),
    [("sift", "none"), ("sift", "sq4"), ("embeddings", "sq4"), ("clusters", "none"), ("ip", "none")],
)
def test_unseen_queries_find_what_was_asked_for(
    memory: Create, request: pytest.FixtureRequest, name: str, mode: str
) -> None:
    rows, queries, metric = data(name, request)
    db = fill(memory(dim=rows.shape[1], metric=metric, compression_mode=mode, compression_threshold=0), rows)
    lists = []
    for target in TARGETS:
        assert found(db, rows, queries, min_recall=target) >= target - 0.01
        explained = how(db, queries[0], min_recall=target)
        assert explained.chosen_by == "min_recall"
        if explained.plan == "graph":
            assert explained.least_recall <= explained.expected_recall <= 1
            assert explained.expected_recall >= target
        lists.append(explained.search_list or len(rows))
    assert lists == sorted(lists)
    assert found(db, rows, queries) >= db.settings.recall_target - 0.01


@pytest.mark.few(1)
@compiled
@pytest.mark.parametrize("k", [1, 7, 50])
def test_any_k(memory: Create, sift: Sample, k: int) -> None:
    rows, queries = sift[0][:5000], np.concatenate((sift[0][5000::3], sift[1]))
    db = fill(memory(dim=128, metric="l2"), rows)
    assert found(db, rows, queries, k, min_recall=0.95) >= 0.94
    assert how(db, queries[0], k=k, min_recall=0.95).search_list >= k


@compiled
@pytest.mark.usefixtures("quick")
def test_deleted_rows_are_neither_asked_for_nor_counted(memory: Create, sift: Sample) -> None:
    rows, queries = sift[0][:5000], np.concatenate((sift[0][5000::3], sift[1]))
    db = fill(memory(dim=128, metric="l2"), rows)
    db.delete(range(1, 5000, 2))
    kept = rows[::2]
    answers = [[key // 2 for key in hits.keys] for hits in db.query(queries, min_recall=0.95)]
    assert recall("l2", kept, queries, answers) >= 0.94
    assert db.recall(samples=9999).samples == 2500


@compiled
@pytest.mark.usefixtures("quick")
def test_equal_rows_do_not_spoil_the_curve(memory: Create, rng: np.random.Generator) -> None:
    rows = np.repeat(rng.normal(size=(40, 8)).astype(np.float32), 50, axis=0)
    db = fill(memory(dim=8, metric="l2"), rows)
    assert found(db, rows, rows[::20], min_recall=0.95) >= 0.93
    assert db.recall().recall > 0.9


# --- when it is measured ----------------------------------------------------------------------------------------------


@compiled
@pytest.mark.usefixtures("quick")
def test_the_first_query_measures_and_the_next_does_not(memory: Create, sift: Sample, measured: list[int]) -> None:
    db, query = fill(memory(dim=128, metric="l2"), sift[0][:3000]), sift[1][0]
    before = how(db, query)
    assert (before.chosen_by, before.search_list) == ("query_search_list_cap", 96)
    assert (before.expected_recall, before.least_recall) == (None, None)
    began = time.monotonic()
    db.query(query, min_recall=0.95)
    assert time.monotonic() - began < 10  # two seconds, on a machine that is not busy with other tests
    db.query(query, min_recall=0.5)
    db.query(sift[1], min_recall=0.99)
    db.query(query, k=9, min_recall=0.95)
    assert measured == [10]
    db.query(query, k=11, min_recall=0.95)
    assert measured == [10, 20]
    after = how(db, query)
    assert after.chosen_by == "recall_target"
    assert after.search_list < 96
    assert after.expected_recall >= after.least_recall >= 0.97
    db.configure(recall_target=0)
    assert (how(db, query).chosen_by, how(db, query).search_list) == ("query_search_list_cap", 96)
    named = how(db, query, search_list=30)
    assert (named.chosen_by, named.search_list) == ("search_list", 30)
    assert 0.5 < named.expected_recall <= 1


@compiled
@pytest.mark.usefixtures("quick")
def test_callers_that_come_together_measure_once(memory: Create, sift: Sample, measured: list[int]) -> None:
    db = fill(memory(dim=128, metric="l2"), sift[0][:3000])
    threads = [threading.Thread(target=db.query, args=(sift[1],), kwargs={"min_recall": 0.9}) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert measured == [10]


@compiled
@pytest.mark.usefixtures("quick")
def test_it_is_measured_in_idle_time(create: Create, sift: Sample, idle: None, measured: list[int]) -> None:
    db = fill(create(dim=128, metric="l2"), sift[0][:3000])
    for k in (3, 10, 15, 100):
        explained = wait_for_curve(db, sift[1][0], k)
        assert explained.search_list >= k
    assert measured == []
    db.insert(["more"], sift[1][:1])
    assert how(db, sift[1][0]).chosen_by == "recall_target"


@compiled
@pytest.mark.usefixtures("quick")
def test_writes_go_on_meanwhile(memory: Create, sift: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "IDLE_SECONDS", 0.0)
    db = memory(dim=128, metric="l2")
    fill(db, sift[0][:2000])
    for row in range(2000, 2300):
        db.insert([row], sift[0][row : row + 1])
        assert db.query(sift[0][row], k=1).keys == [row]
    wait_for_curve(db, sift[1][0])
    assert found(db, sift[0][:2300], sift[1]) >= 0.96
    assert db.verify().ok


@compiled
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("change", ["doubled", "deleted"])
def test_it_is_measured_again_when_the_rows_have_changed(
    memory: Create, sift: Sample, measured: list[int], change: str
) -> None:
    db, query = fill(memory(dim=128, metric="l2"), sift[0][:3000]), sift[1][0]
    db.query(query, min_recall=0.95)
    fill(db, sift[0][3000:4400], 3000)
    db.query(query, min_recall=0.95)
    assert measured == [10]
    if change == "doubled":
        fill(db, sift[0][4400:], 4400)
    else:
        db.delete(range(0, 3000, 2))
    stale = how(db, query)
    assert stale.search_list >= 96  # until it is measured again
    assert stale.expected_recall is None
    db.query(query, min_recall=0.95)
    assert measured == [10, 10]
    assert how(db, query).search_list < 96


@compiled
@pytest.mark.usefixtures("quick")
def test_other_codes_have_another_curve(memory: Create, sift: Sample, measured: list[int]) -> None:
    db, query = memory(dim=128, metric="l2", compression_mode="sq4", compression_threshold=3500), sift[1][0]
    fill(db, sift[0][:3000])
    db.query(query, min_recall=0.95)
    fill(db, sift[0][3000:4000], 3000)
    assert db.stats().compression_mode == "sq4"
    assert how(db, query).chosen_by == "query_search_list_cap"
    db.query(query, min_recall=0.95)
    assert measured == [10, 10]


# --- keeping it -------------------------------------------------------------------------------------------------------


@compiled
@pytest.mark.usefixtures("quick")
def test_it_is_kept_with_the_database(tmp_path: Path, sift: Sample, measured: list[int]) -> None:
    path, query = tmp_path / "db", sift[1][0]
    with fill(CoreNN.create(path, dim=128, metric="l2"), sift[0][:3000]) as db:
        early = CoreNN.open(path, mode="r")
        before = how(db, query, min_recall=0.95)
    assert measured == [10]
    for mode in ("rw", "r"):
        with CoreNN.open(path, mode=mode) as db:
            assert how(db, query).chosen_by == "recall_target"
            assert how(db, query, min_recall=0.95) == before
    with early:
        assert how(early, query).chosen_by == "query_search_list_cap"
        early.refresh()
        assert how(early, query, min_recall=0.95) == before
    assert measured == [10]


@compiled
@pytest.mark.usefixtures("quick")
def test_a_reader_measures_its_own(tmp_path: Path, sift: Sample, measured: list[int]) -> None:
    path = tmp_path / "db"
    fill(CoreNN.create(path, dim=128, metric="l2"), sift[0][:3000]).close()
    with CoreNN.open(path, mode="r") as db:
        assert found(db, sift[0][:3000], sift[1], min_recall=0.95) >= 0.93
        assert how(db, sift[1][0]).chosen_by == "recall_target"
        db.refresh()
        assert how(db, sift[1][0]).chosen_by == "recall_target"
    assert measured == [10]


CURVE = Curve(
    10, 5000, 5000, 0, "none, beam 1", False, True,
    tuple(
        Point(size, mean, mean - 0.01, mean - 0.012, mean + 0.012, 1000, 100.0, 1e-5)
        for size, mean in ((10, 0.7), (20, 0.9), (40, 0.98))
    ),
)  # fmt: skip


def test_stored_curves_are_read_back() -> None:
    assert unpack(pack([CURVE])) == [CURVE]


@pytest.mark.parametrize(
    "change",
    [
        None, b"", b"\x00", b"[]", b"{}", b'{"version": 2, "curves": []}', b'{"version": 1}',
        b'{"version": 1, "curves": 3}',
        {"points": []}, {"points": 7}, {"points": [{}]}, {"k": 11}, {"k": "x"}, {"new": 1},
    ],
)  # fmt: skip
def test_stored_curves_that_cannot_be_read_are_left_out(change: Any) -> None:
    if isinstance(change, dict):
        stored = json.loads(pack([CURVE]))
        stored["curves"][0].update(change)
        change = json.dumps(stored).encode()
    assert unpack(change) == []


def test_lists_are_read_off_the_curve() -> None:
    assert [CURVE.list_for(recall) for recall in (0.1, 0.69, 0.89, 0.97, 0.975)] == [10, 10, 20, 40, 40]
    assert 10 < CURVE.list_for(0.8) < 20 < CURVE.list_for(0.93) < 40
    assert CURVE.list_for(0.99) is None
    assert CURVE.expected(20) == pytest.approx((0.9, 0.89))
    assert CURVE.expected(1) == CURVE.expected(10)
    assert CURVE.expected(900) == CURVE.expected(40)


def test_curves_fit_until_half_of_the_rows_have_changed() -> None:
    for head, fits in (
        (Head(1, 7499, 7499, 0), True),
        (Head(1, 7500, 7500, 0), False),
        (Head(9, 5000, 2500, 2500), False),
    ):
        assert CURVE.fits(head, CURVE.walk) == fits
    assert not CURVE.fits(Head(1, 5000, 5000, 0), "8/0, beam 1")


def test_one_curve_serves_the_k_below() -> None:
    assert [rung_of(k) for k in (1, 9, 10, 11, 21, 100, 101, 10**8)] == [10, 10, 10, 20, 50, 100, 200, 10**8]


@pytest.mark.parametrize("hard", [0.0, 0.01, 0.1])
@pytest.mark.parametrize("count", [20, 100, 1000])
def test_bounds_hold_as_often_as_they_say(rng: np.random.Generator, count: int, hard: float) -> None:
    """Queries that find nothing at all, a few, among others that find nearly everything."""
    mean = (1 - hard) * 0.98
    draws = [
        np.where(rng.random(count) < hard, 0, rng.binomial(10, 0.98, count) / 10) for _ in range(400)
    ]  # fmt: skip
    assert np.mean([interval(draw, ONE_SIDED)[1] <= mean for draw in draws]) >= 0.92
    assert interval(np.ones(count), ONE_SIDED)[1] < 1


# --- db.recall --------------------------------------------------------------------------------------------------------


@compiled
def test_recall_is_that_of_unseen_queries(memory: Create, sift: Sample) -> None:
    rows, queries = sift[0][:5000], np.concatenate((sift[0][5000::3], sift[1]))
    db = fill(memory(dim=128, metric="l2"), rows)
    for length in (10, 15, 25):
        told = db.recall(samples=2000, search_list=length)
        assert (told.k, told.samples, told.search_list) == (10, 2000, length)
        assert told.low < told.recall == float(told) < told.high
        assert told.low - 0.01 <= found(db, rows, queries, search_list=length) <= told.high + 0.03
        assert db.recall(samples=2000, search_list=length, threads=1).recall == told.recall
    assert told.distances > 50 and told.seconds > 0
    default = db.recall(samples=500)
    assert (default.search_list, default.samples) == (96, 500)
    assert default.recall > 0.98
    aimed = db.recall(min_recall=0.9)
    assert aimed.search_list < 96 and aimed.high >= 0.9


@compiled
def test_a_hidden_row_flatters_nobody(memory: Create, sift: Sample) -> None:
    rows = sift[0][:5000]
    db = fill(memory(dim=128, metric="l2"), rows)
    itself = found(db, rows, rows[:300], search_list=10)
    assert db.recall(samples=1000, search_list=10).high < itself


@compiled
def test_the_curve_grows_and_is_kept(memory: Create, sift: Sample, measured: list[int]) -> None:
    db = fill(memory(dim=128, metric="l2"), sift[0])
    points = db.recall_curve(samples=500)
    assert [point.search_list for point in points][:4] == [10, 14, 20, 28]
    assert all(a.recall <= b.recall + 0.005 and a.distances < b.distances for a, b in itertools.pairwise(points))
    assert points[-1].recall > 0.99
    assert how(db, sift[1][0], min_recall=0.95).search_list <= points[-1].search_list
    assert measured == [10]


def test_few_rows_are_scanned(create: Create) -> None:
    db = create(dim=4, metric="l2")
    for rows in (0, 3):
        if rows:
            db.insert(range(rows), np.eye(4)[:rows])
        told = db.recall()
        assert isinstance(told, Recall)
        assert (float(told), told.low, told.high, told.samples, told.search_list) == (1.0, 1.0, 1.0, rows, 0)
        assert db.recall_curve() == []
        assert len(db.query(np.ones(4), min_recall=0.9)) == rows
    explained = how(db, np.ones(4), min_recall=0.9)
    assert (explained.plan, explained.expected_recall, explained.chosen_by) == ("exact", 1.0, "min_recall")


@compiled
def test_all_of_it_is_a_scan(memory: Create, sift: Sample, measured: list[int]) -> None:
    db = fill(memory(dim=128, metric="l2"), sift[0][:2000])
    for options in ({"min_recall": 1}, {"min_recall": 1.0, "k": 3}, {"exact": True}, {"min_recall": 0.9, "k": 500}):
        explained = how(db, sift[1][0], **options)
        assert (explained.plan, explained.expected_recall, explained.least_recall) == ("exact", 1.0, 1.0)
    assert measured == []


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [0, -0.5, 1.01, 95, float("nan"), float("inf"), True, "0.9", [0.9], 1j])
def test_a_recall_that_is_none_is_refused(memory: Create, wrong: Any) -> None:
    db = memory(dim=2)
    for call in (lambda: db.query([1, 2], min_recall=wrong), lambda: db.recall(min_recall=wrong)):
        with pytest.raises(InvalidArgumentError, match=r"min_recall=.*above 0 and at most 1"):
            call()


def test_one_way_to_say_how_well_to_search(memory: Create) -> None:
    db = memory(dim=2)
    with pytest.raises(InvalidArgumentError, match=r"min_recall=0\.9 and search_list=50"):
        db.query([1, 2], min_recall=0.9, search_list=50)
    with pytest.raises(InvalidArgumentError, match=r"min_recall=0\.9 and exact=True"):
        db.query([1, 2], min_recall=0.9, exact=True)
    with pytest.raises(InvalidArgumentError, match=r"min_recall=0\.9 and search_list=50"):
        db.recall(min_recall=0.9, search_list=50)
    for wrong in ({"k": 0}, {"samples": 0}, {"samples": 1.5}, {"search_list": 9}, {"threads": 0}):
        with pytest.raises(InvalidArgumentError):
            db.recall(**wrong)
        if "search_list" not in wrong:
            with pytest.raises(InvalidArgumentError):
                db.recall_curve(**wrong)


@compiled
@pytest.mark.usefixtures("quick")
def test_ctrl_c_ends_a_measurement(memory: Create, sift: Sample) -> None:
    db = fill(memory(dim=128, metric="l2"), sift[0])
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        while True:
            db.recall_curve(samples=6000)
    timer.join()
    assert found(db, sift[0], sift[1], min_recall=0.95) >= 0.93


if not COMPILED:

    def test_a_curve_without_the_compiler(memory: Create, rng: np.random.Generator) -> None:
        rows = rng.normal(size=(1100, 3)).astype(np.float32)
        db = fill(memory(dim=3, metric="l2", max_edges=4, update_search_list_cap=8), rows)
        assert db.recall(k=2, samples=5, search_list=20).samples == 5
