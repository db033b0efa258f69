"""Functions of the user as filters.

Rules out a function that is put to numbers which are not those of its row, in this snapshot or another, a walk that
tests all rows, one that finds fewer than match, and a function that is refused without a word of why, compiled again
and again, or takes the database down.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corenn import CoreNN, F, InvalidFilterError
from corenn.filters import Filter, as_filter, predicate, select, tested
from corenn.filters.lift import lift
from corenn.graph import planner
from corenn.storage.residence import Residence
from tests.conftest import COMPILED, Create, Sample
from tests.filters.made import change, filters, payloads
from tests.filters.test_query import check
from tests.filters.test_query import payloads as numbered
from tests.kinds import diagonal
from tests.oracle import meets, number_at

K = 10
PLANS = (None, "graph", "two-hop", "scan", "exact")
THRESHOLD = 0.5  # of a module


def met(tree: Any, payload: Any, key: int) -> bool:
    """Whether a row meets what `trees` draws."""
    match tree:
        case ("where", function, paths):
            numbers = [number_at(payload, path) for path in paths]
            return None not in numbers and bool(function(*numbers))
        case ("and", *parts):
            return all(met(part, payload, key) for part in parts)
        case ("or", *parts):
            return any(met(part, payload, key) for part in parts)
        case ("not", part):
            return not met(part, payload, key)
    return meets(tree, payload, key)


def built(tree: Any) -> Filter:
    """The filter that it is."""
    match tree:
        case ("where", function, paths):
            return F.where(function, **dict(zip(function.__code__.co_varnames, paths, strict=False)))
        case ("and", one, other):
            return built(one) & built(other)
        case ("or", one, other):
            return built(one) | built(other)
        case ("not", part):
            return ~built(part)
    return as_filter(tree)


paths = st.sampled_from(["a", "b", "c", "a.x", "a.y", "c.x", "nobody"])
wheres = st.one_of(
    st.tuples(st.just("where"), st.sampled_from([lambda v: v > 0, lambda v: v != 1e300]), st.tuples(paths)),
    st.tuples(
        st.just("where"), st.sampled_from([lambda v, w: v <= w, lambda v, w: v + w > 1]), st.tuples(paths, paths)
    ),
)
trees = st.recursive(
    st.one_of(wheres, filters),
    lambda part: st.one_of(
        st.tuples(st.just("and"), part, part), st.tuples(st.just("or"), part, part), st.tuples(st.just("not"), part)
    ),
    max_leaves=4,
)


# --- which rows -------------------------------------------------------------------------------------------------------


@settings(max_examples=60 if COMPILED else 20)
@given(data=st.data())
def test_rows_are_those_of_which_the_function_holds(data: st.DataObject) -> None:
    """Beside other filters, over changes, and whether all is tested at once or nothing before it must be."""
    made = data.draw(st.lists(payloads, min_size=1, max_size=30))
    model: dict[int, Any] = dict(enumerate(made))
    with pytest.MonkeyPatch.context() as patch, CoreNN.in_memory(dim=2, metric="l2") as db:
        patch.setattr(select, "SETTLED", data.draw(st.sampled_from([-1, 1 << 12])))
        db.insert(range(len(made)), np.arange(2 * len(made)).reshape(-1, 2), made)
        for turn in range(2):
            asked = data.draw(trees)
            wanted = [key for key, payload in model.items() if met(asked, payload, key)]
            tree = built(asked)
            assert db.count(tree) == len(wanted)
            assert sorted(db.query(np.zeros(2), k=len(model) + 1, filter=tree).keys) == wanted
            assert [record.key for record in db.scroll(tree, limit=100)[0]] == wanted
            assert sum(each.count for each in db.facets("b", tree)) == sum(
                each.count for each in db.facets("b", F.keys(wanted))
            )
            if not turn:
                change(db, model, data)


@pytest.mark.parametrize(
    ("value", "matches"),
    [
        (2, True), (2.5, True), (1, False), (0, True), (2**53 + 1, True), (10**400, False), (-(10**400), False),
        (None, False), (True, False), ("2", False), ([2], False), ([2, 2], False), ([], False), ({"v": 2}, False),
        (-1, False),
    ],
)  # fmt: skip
def test_what_is_no_single_number_does_not_match(memory: Create, value: Any, matches: bool) -> None:
    """A division by zero is infinity. What raises does not hold."""

    def asked(v: float) -> bool:
        if v < 0:
            raise ValueError("no")
        return v > 1 if v else 1 / v > 3

    db = memory(dim=2, metric="l2")
    db.insert([0, 1], np.zeros((2, 2)), [{"v": value}, None])
    assert db.query(np.zeros(2), filter=asked).keys == [0] * matches
    assert db.count(~F.where(asked)) == 2 - matches


def test_a_field_that_is_not_indexed_is_read_from_payloads(memory: Create) -> None:
    db = memory(dim=2, metric="l2", no_index_fields=["b"])
    db.insert(range(4), np.zeros((4, 2)), [{"a": row, "b": {"c": row}, "d": [{"e": row}]} for row in range(4)])
    assert db.count(F.where(lambda a, c: a + c > 3, c="b.c")) == 2
    assert db.count(F.where(lambda e: e > 0, e="d.e")) == 3
    assert db.delete(filter=lambda a: a > 2) == 1
    assert [record.key for record in db.scroll(lambda a: a >= 1)[0]] == [1, 2]


# --- walks ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(sift: Sample) -> Any:
    """6,000 rows over codes; a tenth has been deleted, and one in seven lacks the fields."""
    rows = sift[0] if COMPILED else sift[0][:80]
    made: list[Any] = [
        None if row % 7 == 0 else {**each, "n": row % 4}
        for row, each in enumerate(numbered(rows, np.random.default_rng(5)))
    ]
    with CoreNN.in_memory(dim=128, metric="l2", dtype="u8", compression_mode="sq8", compression_threshold=0) as db:
        db.insert(range(len(rows)), rows, made)
        db.delete(range(0, len(rows), 10))
        yield db, rows, made


@pytest.fixture
def _left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """No number of rows is so small that all are tested at once."""
    monkeypatch.setattr(select, "SETTLED", 0)


def below(limit: Any) -> Callable[[float], bool]:
    return lambda v: v < limit


def at_least(limit: float) -> Callable[[float], bool]:
    return lambda v: v >= limit


@pytest.mark.compiled
@pytest.mark.usefixtures("_left_open")
@pytest.mark.parametrize(("plan", "field"), diagonal(PLANS, ["any", "near", "far"], rounds=2))
def test_hits_match_and_are_the_nearest(photos: Any, sift: Sample, plan: str | None, field: str) -> None:
    """At every share of matches, at random, near and far; all as one batch, and beside another filter."""
    db, rows, made = photos
    queries = sift[1][:10] if field == "any" else rows[:1] + np.arange(10, dtype=np.float32)[:, None] / 4
    name = "any" if field == "any" else "near"
    for share in (1.0, 0.5, 0.1, 0.01, 0.0):
        holds = at_least(1 - share) if field == "far" else below(share)
        tree, one = F.where(holds, v=name), F("n") == 1
        there = [row for row, each in enumerate(made) if row % 10 and each is not None]
        for asked, wanted in (
            (tree, [row for row in there if holds(made[row][name])]),
            (one & tree, [row for row in there if holds(made[row][name]) and made[row]["n"] == 1]),
            (one | tree, [row for row in there if holds(made[row][name]) or made[row]["n"] == 1]),
        ):
            check(db.query(queries, k=K, filter=asked, plan=plan), rows, queries, wanted, K, 0.95)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each range has that is tested outside of walks."""
    ranges: list[int] = []
    test_rows = tested.test_rows

    def noted(words: Any, ids: Any, out: Any) -> None:
        ranges.append(len(ids))
        test_rows(words, ids, out)

    monkeypatch.setattr(tested, "test_rows", noted)
    return ranges


@pytest.mark.compiled
@pytest.mark.usefixtures("_left_open")
def test_a_walk_tests_what_it_meets_and_a_sample(photos: Any, sift: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    db, rows, made = photos
    monkeypatch.setattr(select, "SAMPLED", 100)
    ranges = counted(monkeypatch)
    for plan, limit in (("graph", 0.7), ("two-hop", 0.8)):
        tree = F.where(below(limit), v="any")
        told = db.query(sift[1][0], k=K, filter=tree, plan=plan, search_list=40, explain=True).explain
        assert told.plan == plan
        assert 0.3 * len(rows) < told.matches < len(rows)  # an estimate
    assert 0 < sum(ranges) < 0.2 * len(rows)
    told = db.query(sift[1][0], k=K, filter=tree, plan="scan", explain=True).explain
    assert told.matches == sum(row % 10 > 0 and row % 7 > 0 and each["any"] < 0.8 for row, each in enumerate(made))
    assert sum(ranges) > 0.5 * len(rows)


@pytest.mark.compiled
@pytest.mark.usefixtures("_left_open")
def test_a_function_that_is_asked_often_is_put_to_all_rows(
    photos: Any, sift: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scan of what matches is cheaper by then than walk after walk, or the next of a batch."""
    db, _, _ = photos
    monkeypatch.setattr(planner, "COSTS", planner.Costs(leap=1e6, tested=10.0))
    told = [db.query(sift[1][0], k=K, filter=lambda any: any < 0.31, explain=True).explain for _ in range(100)]
    plans = [each.plan for each in told]
    assert plans[0] == "graph"
    assert plans[-1] == "scan"
    assert plans == sorted(plans)
    several = db.query(sift[1][:100], k=K, filter=lambda any: any < 0.32, explain=True)
    assert {each.explain.plan for each in several} == {"scan"}


@pytest.mark.skipif(COMPILED, reason="the calls of what is compiled cannot be counted")
@pytest.mark.usefixtures("_left_open")
def test_a_walk_calls_the_function_for_few_rows(memory: Create, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "SAMPLED", 20)
    rows = np.random.default_rng(0).normal(size=(300, 2))
    db = memory(dim=2, metric="l2", max_edges=8)
    db.insert(range(len(rows)), rows, [{"n": row % 4} for row in range(len(rows))])
    calls: list[float] = []
    for plan in ("graph", "two-hop"):
        calls.clear()
        hits = db.query(np.zeros(2), k=3, filter=lambda n: calls.append(n) or n > 0, plan=plan, search_list=4)
        assert (len(hits), all(key % 4 for key in hits.keys)) == (3, True)
        assert 0 < len(calls) < 250


@pytest.mark.usefixtures("_left_open")
def test_ranges_are_short_and_ctrl_c_is_seen_between(photos: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    db, _, made = photos
    monkeypatch.setattr(tested, "RANGE_SECONDS", 0.0)
    monkeypatch.setattr(tested, "LEAST_RANGE", 8)
    ranges = counted(monkeypatch)
    wanted = sum(row % 10 > 0 and each is not None and each["any"] < 0.5 for row, each in enumerate(made))
    assert db.count(F.where(lambda any, n: any < 0.5 and n >= 0)) == wanted
    assert set(ranges[:-1]) == {8}

    def interrupted(words: Any, ids: Any, out: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tested, "test_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        db.count(F.where(lambda any, n: any < 0.25 and n >= 0))
    monkeypatch.undo()
    assert db.count(F.where(lambda any, n: any < 0.5 and n >= 0)) == wanted


@pytest.mark.compiled
@pytest.mark.usefixtures("_left_open")
def test_rows_that_are_read_from_the_disk(tmp_path: Path, sift: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Residence, "check", lambda self, fixed, limit=None: None)
    rows, queries = sift[0][:1200], sift[1][:10]
    made = numbered(rows, np.random.default_rng(3))
    limited: dict[str, Any] = {"compression_mode": "sq8", "compression_threshold": 0, "memory_limit": 1}
    with CoreNN.create(tmp_path / "db", dim=128, metric="l2", recall_target=0, **limited) as db:
        db.insert(range(len(rows)), rows, made)
        for share in (0.7, 0.2):
            matching = [row for row, each in enumerate(made) if each["any"] < share]
            for plan in (None, "graph", "scan"):
                tree = F.where(below(share), v="any")
                found = db.query(queries, k=K, filter=tree, plan=plan, search_list=60, explain=True)
                check(found, rows, queries, matching, K, 0.95)
                assert plan != "graph" or found[0].explain.pages > 0


def test_other_calls_take_functions(photos: Any, sift: Sample) -> None:
    db, _, made = photos
    rows = [row for row, each in enumerate(made) if row % 10 and each is not None and each["any"] < 0.3]
    grouped = db.query(sift[1][0], k=3, filter=lambda any: any < 0.3, group_by="n", with_payloads=True)
    assert len({payload["n"] for payload in grouped.payloads}) == 3
    assert all(payload["any"] < 0.3 for payload in grouped.payloads)
    facets = {each.value: each.count for each in db.facets("n", lambda any: any < 0.3)}
    assert facets == {n: sum(made[row]["n"] == n for row in rows) for n in {made[row]["n"] for row in rows}}
    each = db.query(sift[1][:3], k=5, filter=[lambda any: any < 0.3, None, lambda any: any >= 0.3], with_payloads=True)
    assert [len(hits) for hits in each] == [5, 5, 5]
    assert all(payload["any"] < 0.3 for payload in each[0].payloads)
    assert all(payload["any"] >= 0.3 for payload in each[2].payloads)
    assert db.query(sift[1][0], k=5, filter=lambda any: any < 0, explain=True).explain.plan == "empty"
    near = db.query(sift[1][0], k=5, filter=lambda any: any < 0.3)
    few = db.query(sift[1][0], k=5, filter=lambda any: any < 0.3, max_distance=float(near.distances[1]))
    assert few.keys == near.keys[:2]


# --- snapshots --------------------------------------------------------------------------------------------------------


@pytest.mark.compiled
@pytest.mark.usefixtures("_left_open")
def test_hits_match_while_payloads_change(memory: Create, rng: np.random.Generator) -> None:
    """The payload of a hit, which is of the same snapshot, is one of which the function holds."""
    count = 1200
    rows = rng.normal(size=(count, 8))
    db = memory(dim=8, metric="l2")
    db.insert(range(count), rows, [{"n": row % 5} for row in range(count)])
    stop, failures = threading.Event(), list[Exception]()

    def write() -> None:
        try:
            for turn in range(10_000):
                if stop.is_set():
                    return
                keys = rng.choice(count, 20, replace=False).tolist()
                if turn % 3:
                    db.set_payload(keys, [{"n": (key + turn) % 5} if key % 11 else {"n": [turn % 5]} for key in keys])
                else:
                    db.upsert(keys, rows[keys], [{"n": (key + turn) % 5, "new": turn} for key in keys])
        except Exception as error:  # noqa: BLE001 - told of below
            failures.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for turn in range(60):
            plan = ("graph", "two-hop", "scan", None)[turn % 4]
            hits = db.query(rows[turn], k=20, filter=lambda n: n >= 2, plan=plan, with_payloads=True)
            assert len(hits) == 20
            assert all(type(payload["n"]) is int and payload["n"] >= 2 for payload in hits.payloads)
    finally:
        stop.set()
        writer.join()
    assert not failures


@pytest.mark.usefixtures("_left_open")
def test_a_reader_and_a_reopen(tmp_path: Path) -> None:
    def odd(n: float) -> bool:
        return n % 2 == 1

    with CoreNN.create(tmp_path / "db", dim=2, metric="l2") as db:
        db.insert(range(100), np.zeros((100, 2)), [{"n": row} for row in range(100)])
        assert db.count(odd) == 50
        with CoreNN.open(tmp_path / "db", mode="r") as reader:
            assert reader.count(odd) == 50
            db.set_payload(range(10), [{"n": 1}] * 10)
            db.delete(range(90, 100))
            assert reader.count(odd) == 50
            reader.refresh()
            assert reader.count(odd) == 50 == db.count(odd)
            assert len(reader.query(np.zeros(2), k=100, filter=odd)) == 50
        db.compact()
        assert db.count(odd) == 50
    with CoreNN.open(tmp_path / "db") as db:
        assert db.count(odd) == 50
        db.insert([100], np.zeros((1, 2)), [{"n": 101}])
        assert db.count(odd) == 51


def test_columns_are_counted_as_memory(memory: Create) -> None:
    db = memory(dim=2, metric="l2")
    db.insert(range(200), np.zeros((200, 2)), [{"n": row} for row in range(200)])
    before = db.stats().memory["payload_index"]
    db.count(lambda n: n > 5)
    assert db.stats().memory["payload_index"] >= before + 8 * 200


# --- what is compiled -------------------------------------------------------------------------------------------------


def test_functions_are_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For each code and all that it finds around it; numbers of closures are no part of that."""

    def made(limit: Any) -> Any:
        return F.where(below(limit))

    assert made(1.5).compiled is made(2.5).compiled
    assert repr(made(1.5)) != repr(made(2.5))
    assert made(1).compiled is not made(1.5).compiled  # an integer
    assert made(True).compiled is not made(False).compiled
    first = module_threshold().compiled
    assert module_threshold().compiled is first
    monkeypatch.setitem(globals(), "THRESHOLD", 0.75)
    assert module_threshold().compiled is not first
    monkeypatch.setattr(predicate, "_KEPT", predicate._Kept())
    monkeypatch.setattr(predicate, "MOST_KEPT", 2)
    kept = made(1.5).compiled
    for limit in (True, 1.5, False):
        made(limit)
    assert made(1.5).compiled is kept
    assert len(predicate._KEPT._compiled) == 2


def module_threshold() -> Any:
    return F.where(lambda v: v < THRESHOLD)


def added(times: int) -> Callable[[float], bool]:
    """A number of its closure is no part of its parameters, for it has variables of its own."""

    def several(v: float) -> bool:
        total = 0.0
        for _ in range(times):
            total += v
        return total > 8

    return several


def test_numbers_around_a_function_are_those_of_its_making(memory: Create) -> None:
    db = memory(dim=2, metric="l2")
    db.insert(range(10), np.zeros((10, 2)), [{"n": row} for row in range(10)])
    for limit in (3, 4.5, np.float32(2), np.int64(7), -1):
        assert db.count(F.where(below(limit), v="n")) == sum(row < limit for row in range(10))
    assert db.count(lambda n: n <= THRESHOLD) == 1
    for times in (1, 3):
        assert db.count(F.where(added(times), v="n")) == sum(row * times > 8 for row in range(10))
    assert db.count(lambda n: math.sqrt(n) > 2.5 and np.isfinite(n)) == 3


@settings(max_examples=30)
@given(st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.floats(allow_nan=False))
def test_what_is_lifted_says_the_same(whole: int, broken: float, value: float) -> None:
    function: Any = lambda v: (v < whole) != (v < broken)  # noqa: E731
    lifted = lift(function)
    assert lifted.constants == {"broken": broken, "whole": whole}
    numbers = [lifted.constants[name] for name in function.__code__.co_freevars]
    assert lifted.function(value, *numbers) == function(value)


ERRORS: list[tuple[Any, str]] = [
    (lambda: True, "has 0 parameters: name 1 to 32 numeric fields"),
    (lambda *values: True, r"behind or beyond a \*"),
    (lambda **values: True, r"behind or beyond a \*"),
    (lambda v, *, w: v > w, r"behind or beyond a \*"),
    (lambda v, w=3: v > w, "a default for 'w'"),
    (len, "no Python function"),
    (print, "no Python function"),
]
REFUSED: list[tuple[Any, str]] = [
    (lambda v: v + 1, "it returns float64 and no bool"),
    (lambda v: None, "it returns none and no bool"),
    (lambda v: v.year > 3, "Unknown attribute 'year' of type float64"),
    (lambda v: v < "x", "No implementation of function .* signature: >>> lt"),
    (lambda v: print(F), "'F'"),
    (lambda v: undefined(v), "undefined"),  # type: ignore[name-defined]  # noqa: F821
]


@pytest.mark.parametrize(("function", "message"), ERRORS)
def test_functions_that_name_no_fields_are_refused(photos: Any, function: Any, message: str) -> None:
    for call in (photos[0].count, lambda each: photos[0].query(np.zeros(128), filter=each)):
        with pytest.raises(InvalidFilterError, match=f"^filter: .*{message}"):
            call(function)
    with pytest.raises(InvalidFilterError, match=f"^of 2 filters number 1: filter: .*{message}"):
        photos[0].query(np.zeros((2, 128)), filter=[None, function])
    with pytest.raises(InvalidFilterError, match=f"^F.where: .*{message}"):
        F.where(function)


@pytest.mark.compiled
@pytest.mark.parametrize(("function", "message"), REFUSED)
def test_functions_that_cannot_be_compiled_are_refused(function: Any, message: str) -> None:
    with pytest.raises(
        InvalidFilterError, match=f"<lambda> at test_predicate.py:[0-9]+ cannot be compiled: .*{message}"
    ):
        F.where(function)


def test_paths_and_wires() -> None:
    tree = F.where(lambda v: v > 1, v="a.b")
    with pytest.raises(InvalidFilterError, match="Python function, which no dict or JSON can hold"):
        (tree & (F("n") == 1)).to_dict()
    with pytest.raises(InvalidFilterError, match="no parameter 'w'; it has v"):
        F.where(lambda v: v > 1, w="a.b")
    with pytest.raises(InvalidFilterError, match=r"F.where: field 'a\.\.b' has an empty part"):
        F.where(lambda v: v > 1, v="a..b")
    with pytest.raises(InvalidFilterError, match=r"F.where\(function\) and their like"):
        tree & (lambda v: v > 1)
    with pytest.raises(InvalidFilterError, match="is no filter"):
        as_filter({"$and": [lambda v: v > 1]})
    with pytest.raises(InvalidFilterError, match="and, or"):
        bool(tree)
    assert "'a.b'" in repr(tree)
