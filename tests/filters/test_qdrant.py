"""The same filters here and in a local Qdrant, where they mean the same: docs/filters.md says where they do not.

Rules out a meaning of our own that nobody else would expect, in what both have: equality, ranges, one of several
values, null, emptiness, ids, paths through objects and lists, and what joins them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corenn import CoreNN
from tests.conftest import COMPILED

qdrant_client = pytest.importorskip("qdrant_client")
models: Any = qdrant_client.models


class Both(NamedTuple):
    """One filter in two languages."""

    ours: dict[str, Any]
    theirs: Any


# What both take for the same: no float is a whole number, and none is large.
texts = st.sampled_from(["", "a", "b", "ab", "é", "A"])
whole, broken = st.integers(-2, 3), st.sampled_from([-1.5, 0.5, 2.5])
numbers, scalars = st.one_of(whole, broken), st.one_of(st.booleans(), texts, whole, broken)
lists = st.lists(st.one_of(scalars, st.none()), max_size=3)
anything = st.one_of(st.none(), scalars, lists, st.fixed_dictionaries({"x": scalars}))
objects = st.fixed_dictionaries({}, optional={"x": st.one_of(st.none(), scalars, lists)})
payloads = st.fixed_dictionaries(
    {},
    optional={
        "any": anything,
        "one": st.one_of(st.none(), scalars),  # never a list
        "some": st.one_of(st.none(), scalars, st.lists(scalars, min_size=1, max_size=3)),  # no list without a value
        "o": objects,
        "l": st.lists(objects, max_size=3),
    },
)
PATHS = {"any": "any", "one": "one", "some": "some", "o.x": "o.x", "l.x": "l[].x"}  # through a list, theirs says so


def field(path: str, **condition: Any) -> Any:
    return models.FieldCondition(key=PATHS[path], **condition)


def equal(path: str, value: Any) -> Both:
    return Both({path: value}, field(path, match=models.MatchValue(value=value)))


def ordered(path: str, operator: str, value: float) -> Both:
    return Both({path: {f"${operator}": value}}, field(path, range=models.Range(**{operator: value})))


def among(path: str, values: list[Any]) -> Both:
    return Both({path: {"$in": values}}, field(path, match=models.MatchAny(any=values)))


def excepted(path: str, values: list[Any]) -> Both:
    """Theirs wants a value that is none of these; ours holds for a field that has none as well."""
    ours = {"$and": [{path: {"$nin": values}}, {path: {"$ne": None}}]}
    return Both(ours, field(path, match=models.MatchExcept(**{"except": values})))


def null(path: str) -> Both:
    ours = {"$and": [{path: None}, {path: {"$exists": True}}]}
    return Both(ours, models.IsNullCondition(is_null=models.PayloadField(key=PATHS[path])))


def empty(path: str) -> Both:
    return Both({path: None}, models.IsEmptyCondition(is_empty=models.PayloadField(key=PATHS[path])))


def identified(keys: list[int]) -> Both:
    return Both({"$keys": keys}, models.HasIdCondition(has_id=keys))


def joined(kind: str, parts: list[Both]) -> Both:
    ours, theirs = [part.ours for part in parts], [part.theirs for part in parts]
    if kind == "must_not":
        return Both({"$not": {"$or": ours}}, models.Filter(must_not=theirs))
    return Both({{"must": "$and", "should": "$or"}[kind]: ours}, models.Filter(**{kind: theirs}))


paths = st.sampled_from([*PATHS])
some = st.one_of(st.lists(texts, max_size=3), st.lists(whole, max_size=3))
conditions = st.one_of(
    st.builds(equal, paths, st.one_of(st.booleans(), texts, whole)),
    st.builds(ordered, paths, st.sampled_from(["gt", "gte", "lt", "lte"]), numbers),
    st.builds(among, paths, some),
    st.builds(excepted, st.just("one"), some),
    st.builds(null, paths),
    st.builds(empty, st.sampled_from(["one", "some"])),
    st.builds(identified, st.lists(st.integers(0, 30), max_size=4)),
)
filters = st.recursive(
    conditions,
    lambda part: st.builds(
        joined, st.sampled_from(["must", "should", "must_not"]), st.lists(part, min_size=1, max_size=3)
    ),
    max_leaves=6,
).map(lambda both: both if isinstance(both.theirs, models.Filter) else joined("must", [both]))


@pytest.fixture(scope="module")
def peer() -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of theirs, which are errors here otherwise
        client = qdrant_client.QdrantClient(":memory:")
        yield client
        client.close()


@settings(max_examples=150 if COMPILED else 20)
@given(made=st.lists(payloads, min_size=1, max_size=25), asked=st.lists(filters, min_size=1, max_size=5))
def test_the_same_rows_meet_the_same_filter(peer: Any, made: list[Any], asked: list[Both]) -> None:
    peer.create_collection("c", models.VectorParams(size=2, distance=models.Distance.EUCLID))
    try:
        peer.upsert("c", [models.PointStruct(id=key, vector=[0.0, 1.0], payload=each) for key, each in enumerate(made)])
        with CoreNN.in_memory(dim=2, metric="l2") as db:
            db.insert(range(len(made)), np.zeros((len(made), 2)), made)
            for both in asked:
                theirs = sorted(point.id for point in peer.scroll("c", scroll_filter=both.theirs, limit=100)[0])
                assert [record.key for record in db.scroll(both.ours)[0]] == theirs, both
                assert db.count(both.ours) == peer.count("c", count_filter=both.theirs).count
    finally:
        peer.delete_collection("c")


@pytest.mark.parametrize(
    ("payload", "both", "here"),
    [
        ({"any": 1.0}, equal("any", 1), True),
        ({}, Both({"any": {"$nin": ["a"]}}, field("any", match=models.MatchExcept(**{"except": ["a"]}))), True),
        (
            {"any": ["a", "b"]},
            Both({"any": {"$nin": ["a"]}}, field("any", match=models.MatchExcept(**{"except": ["a"]}))),
            False,
        ),
        (
            {"any": [1, 5]},
            Both({"any": {"$gt": 4, "$lt": 2}}, field("any", range=models.Range(gt=4, lt=2))),
            True,
        ),
        ({"any": []}, Both({"any": None}, empty("any").theirs), False),
        ({"any": [None]}, Both({"any": None}, empty("any").theirs), True),
        ({"any": "2024-01-02"}, Both({"any": {"$gt": "2024-01-01"}}, field("any", range=models.Range(gt=0))), True),
        ({"l": [{"x": 1}]}, Both({"l.x": 1}, models.FieldCondition(key="l.x", match=models.MatchValue(value=1))), True),
        ({}, Both({"$or": []}, models.Filter(should=[])), False),
    ],
)
def test_where_meanings_differ(peer: Any, payload: Any, both: Both, here: bool) -> None:
    """As docs/filters.md says."""
    peer.create_collection("d", models.VectorParams(size=2, distance=models.Distance.EUCLID))
    try:
        peer.upsert("d", [models.PointStruct(id=0, vector=[0.0, 1.0], payload=payload)])
        theirs = both.theirs if isinstance(both.theirs, models.Filter) else models.Filter(must=[both.theirs])
        assert peer.count("d", count_filter=theirs).count == (not here)
    finally:
        peer.delete_collection("d")
    with CoreNN.in_memory(dim=2, metric="l2") as db:
        db.insert([0], np.zeros((1, 2)), [payload])
        assert db.count(both.ours) == here
