"""Filters as they are written: by `F`, and as dicts.

Rules out a filter that means something else than it says, one that is accepted though no payload could meet it, a
message that does not lead to the fault, and a wire form that is not that of the tree.
"""

from __future__ import annotations

import json
from datetime import date
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from corenn import F, InvalidFilterError
from corenn.filters import Filter, as_filter
from corenn.filters.match import matches
from tests.filters.made import filters, payloads
from tests.oracle import meets


def holds(tree: Filter, payload: Any, key: Any = "key") -> bool:
    text = None if payload is None else json.dumps(payload).encode()
    return matches(tree, text, lambda asked: key in asked.keys)


@pytest.mark.parametrize(
    ("tree", "wire"),
    [
        (F("a") == 1, {"a": {"$eq": 1}}),
        (F("a") != "x", {"a": {"$ne": "x"}}),
        (F("a.b") > 1.5, {"a.b": {"$gt": 1.5}}),
        (F("a") >= "2024-01-01", {"a": {"$gte": "2024-01-01"}}),
        (F("a") < 0, {"a": {"$lt": 0}}),
        (F("a") <= 0, {"a": {"$lte": 0}}),
        (F("a").isin([1, None, True]), {"a": {"$in": [1, None, True]}}),
        (F("a").notin(("x",)), {"a": {"$nin": ["x"]}}),
        (F("a").exists(), {"a": {"$exists": True}}),
        (F("a").exists(False), {"a": {"$exists": False}}),
        (F("a").contains("x"), {"a": {"$contains": ["x"]}}),
        (F("a").contains(["x", 1]), {"a": {"$contains": ["x", 1]}}),
        (F.keys(["k", 7, "k"]), {"$keys": ["k", 7]}),
        (~(F("a") == 1), {"$not": {"a": {"$eq": 1}}}),
        ((F("a") == 1) & (F("b") == 2) & (F("c") == 3), {"$and": [{x: {"$eq": i + 1}} for i, x in enumerate("abc")]}),
        ((F("a") == 1) | (F("b") == 2), {"$or": [{"a": {"$eq": 1}}, {"b": {"$eq": 2}}]}),
    ],
)
def test_builder_and_wire_form_are_the_same_tree(tree: Filter, wire: dict[str, Any]) -> None:
    assert tree.to_dict() == wire
    assert as_filter(wire) == tree
    assert as_filter(json.loads(json.dumps(wire))) == tree
    assert eval(repr(tree), {"F": F}) == tree  # noqa: S307 - our own text


@given(filters, payloads)
def test_a_payload_meets_a_filter_as_the_reference_says(wire: dict[str, Any], payload: Any) -> None:
    tree = as_filter(wire)
    assert holds(tree, payload, 3) == meets(wire, payload, 3)
    assert holds(as_filter(tree.to_dict()), payload, 3) == meets(wire, payload, 3)
    assert tree.to_dict() == as_filter(tree.to_dict()).to_dict()


@pytest.mark.parametrize(
    ("wire", "path"),
    [
        ({"$and": [{"a": 1}, {"year": {"$gt": None}}]}, "filter.$and[1].year.$gt"),
        ({"$or": [{"$and": [{"a": {"$in": 3}}]}]}, "filter.$or[0].$and[0].a.$in"),
        ({"a": {"$in": [1, [2]]}}, "filter.a.$in"),
        ({"a": {"$between": [1, 2]}}, "filter.a.$between"),
        ({"a": {"b": 1}}, "filter.a.b"),
        ({"a": {}}, "filter.a"),
        ({"a": [1]}, "filter.a"),
        ({"a": {"$gt": True}}, "filter.a.$gt"),
        ({"a": {"$eq": float("nan")}}, "filter.a.$eq"),
        ({"a": {"$lt": float("inf")}}, "filter.a.$lt"),
        ({"a": {"$exists": 1}}, "filter.a.$exists"),
        ({"a": {"$not": 1}}, "filter.a.$not"),
        ({"a": {"$not": {"$not": {"$gte": []}}}}, "filter.a.$not.$not.$gte"),
        ({"$and": {"a": 1}}, "filter.$and"),
        ({"$or": [1]}, "filter.$or[0]"),
        ({"$not": [1]}, "filter.$not"),
        ({"$nor": []}, "filter.$nor"),
        ({"$gt": 1}, "filter.$gt"),
        ({"$keys": "abc"}, "filter.$keys"),
        ({"$keys": [1.5]}, "filter.$keys"),
        ({"$keys": [2**63]}, "filter.$keys"),
        ({"a..b": 1}, "filter.a..b"),
        ({"": 1}, "filter"),
        ({"a.$b": 1}, "filter.a.$b"),
        ({1: 2}, "filter.1"),
        ({"a": "\ud800"}, "filter.a"),
        ({"a": {"$eq": date(2024, 1, 2)}}, "filter.a.$eq"),
        ({"a": {"$eq": b"x"}}, "filter.a.$eq"),
    ],
)
def test_a_malformed_filter_is_refused_with_the_path_to_the_fault(wire: dict[Any, Any], path: str) -> None:
    with pytest.raises(InvalidFilterError) as caught:
        as_filter(wire)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("value", [None, 1, "a", [], [("a", 1)], F("a"), lambda: True])
def test_what_is_no_filter_is_refused(value: Any) -> None:
    with pytest.raises(InvalidFilterError):
        as_filter(value)


def test_filters_have_no_truth() -> None:
    a, b = F("a") > 1, F("b") > 1
    for wrong in (lambda: a and b, lambda: not a, lambda: 1 < F("a") < 3, lambda: bool(F("a"))):
        with pytest.raises(InvalidFilterError, match=r"&|compare"):
            wrong()
    with pytest.raises(InvalidFilterError, match="no filter"):
        a & {"b": 1}  # type: ignore[operator]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1], {"a": 1}, b"x", 1j, np.float64("nan"), date.min])
def test_operands_that_no_payload_holds_are_refused(value: Any) -> None:
    for make in (lambda: F("a") == value, lambda: F("a") > value, lambda: F("a").isin([value])):
        with pytest.raises(InvalidFilterError):
            make()


@pytest.mark.parametrize("path", ["", ".", "a.", "$a", "a.$b", 1, None, "\ud800"])
def test_paths_that_lead_nowhere_are_refused(path: Any) -> None:
    with pytest.raises(InvalidFilterError):
        F(path)


def test_numpy_scalars_are_taken_as_plain_ones() -> None:
    assert (F("a") == np.int32(3)) == (F("a") == 3)
    assert F("a").isin(np.array([1, 2])).to_dict() == {"a": {"$in": [1, 2]}}
    assert type((F("a") == np.bool_(True)).to_dict()["a"]["$eq"]) is bool
    assert F.keys(np.arange(3)) == F.keys([0, 1, 2])


def test_one_is_not_true_and_numbers_are_equal_by_value() -> None:
    assert not holds(F("a") == 1, {"a": True})
    assert not holds(F("a") == True, {"a": 1})  # noqa: E712
    assert holds(F("a") == 1, {"a": 1.0})
    assert not holds(F("a") == 2**53, {"a": 2**53 + 1})
    assert holds(F("a") > float(2**53), {"a": 2**53 + 1})
    assert not holds(F("a") < "b", {"a": 1})


def test_missing_fields_null_and_empty_lists() -> None:
    some = ({}, {"a": None}, {"a": []}, {"a": {}}, {"a": [1, None]}, None)
    assert [holds(F("a") == None, each) for each in some] == [True, True, False, False, True, True]  # noqa: E711
    assert [holds(F("a").exists(), each) for each in ({}, {"a": None}, {"a": []})] == [False, True, True]
    assert holds(F("a") != 1, {})
    assert not holds(F("a") > 0, {"a": None})
    assert not holds(F("a").isin([]), {"a": 1})
    assert holds(F("a").notin([]), {})
    assert holds(as_filter({}), None)
    assert not holds(as_filter({"$or": []}), {"a": 1})
    assert holds(as_filter({"$and": []}), {"a": 1})


def test_any_element_of_a_list_and_any_object_on_the_way() -> None:
    payload = {"a": [1, 5], "o": [{"b": 1}, {"b": [2, 3]}, 7]}
    assert holds((F("a") > 4) & (F("a") < 2), payload)  # by different elements
    assert holds(F("o.b") == 3, payload)
    assert not holds(F("o.b").contains(1), payload)
    assert holds(F("o.b").contains([3, 2]), payload)
    assert not holds(F("a").contains([1, 2]), payload)
    assert holds(F("a").contains([]), payload)
    assert not holds(F("o.b.c").exists(), payload)


def test_nesting_has_an_end() -> None:
    deep: Any = {"a": 1}
    for _ in range(62):
        deep = {"$not": deep}
    assert holds(as_filter(deep), {"a": 1})
    for _ in range(3):
        deep = {"$not": deep}
    with pytest.raises(InvalidFilterError, match="deep"):
        as_filter(deep)
    tree = F("a") == 1
    for _ in range(100):
        tree = ~tree
    with pytest.raises(InvalidFilterError, match="deep"):
        as_filter(tree)
    endless: dict[str, Any] = {}
    endless["$not"] = endless
    with pytest.raises(InvalidFilterError, match="deep"):
        as_filter(endless)
    with pytest.raises(InvalidFilterError, match="conditions"):
        as_filter({"$or": [{"a": 1}] * 5000})
    chain = F("a") == 0
    for value in range(1, 1000):
        chain = chain | (F("a") == value)
    assert as_filter(chain) is chain  # long, and not deep
