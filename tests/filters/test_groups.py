"""Hits of which no more than so many have the same value, against a look at every row.

Rules out a group that has too many hits or hides a nearer row, rows that are lost because some group has very many
nearby, and fewer hits than there are.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corenn import CoreNN, F, InvalidArgumentError, InvalidFilterError
from tests.conftest import COMPILED, Create, Sample
from tests.filters.made import filters, payloads
from tests.oracle import distances, field_values, meets

DIM = 2


def grouped(
    model: dict[int, Any], place: dict[int, float], path: str, most: int, k: int, wire: dict[str, Any]
) -> list[int]:
    """The keys of the nearest rows, by the definition; place: the distance of each."""
    counts: Counter[Any] = Counter()
    found: list[int] = []
    for key in sorted(model, key=lambda each: (place[each], each)):
        groups = {(kind, value) for kind, value in field_values(model[key], path)} or {("null", None)}
        if meets(wire, model[key], key) and all(counts[group] < most for group in groups):
            counts.update(groups)
            found.append(key)
    return found[:k]


@settings(max_examples=30 if COMPILED else 15)
@given(
    st.lists(payloads, min_size=1, max_size=25), st.sampled_from(["a", "b", "a.x", "nobody"]), st.integers(1, 3),
    st.integers(1, 6), filters,
)  # fmt: skip
def test_groups_are_those_of_a_look_at_every_row(
    given_payloads: list[Any], path: str, most: int, k: int, wire: dict[str, Any]
) -> None:
    model = dict(enumerate(given_payloads))
    rows = np.array([[(key * 7) % 5, 0] for key in model], np.float32)
    place = {key: float(rows[key, 0] ** 2) for key in model}
    with CoreNN.in_memory(dim=DIM, metric="l2") as db:
        db.insert(list(model), rows, given_payloads)
        for asked in (wire, {}):
            found = db.query(np.zeros(DIM), k=k, filter=asked or None, group_by=path, per_group=most)
            assert found.keys == grouped(model, place, path, most, k, asked)


@pytest.mark.compiled
@pytest.mark.parametrize("mode", ["none", "sq8"])
def test_a_group_with_very_many_rows_nearby(memory: Create, sift: Sample, mode: str) -> None:
    """The nearest thousands are of one group, the others are small and far."""
    rows, queries = sift[0], sift[1][:4]
    far = np.argsort(np.argsort(distances("l2", rows, queries[0])[0]))
    made = [{"g": "near" if rank < 5000 else f"g{rank % 30}"} for rank in far.tolist()]
    db = memory(dim=128, metric="l2", compression_mode=mode, compression_threshold=0)
    db.insert(range(len(rows)), rows, made)
    place = dict(enumerate(distances("l2", rows, queries[0])[0].tolist()))
    wanted = grouped(dict(enumerate(made)), place, "g", 2, 12, {})
    hits = db.query(queries, k=12, group_by="g", per_group=2, with_payloads=True, explain=True)
    assert Counter(payload["g"] for payload in hits[0].payloads).most_common(1)[0][1] == 2
    assert [len(each) for each in hits] == [12] * 4
    assert hits[0].keys[0] == wanted[0]
    assert len(set(hits[0].keys) & set(wanted)) >= 11
    assert hits[0].explain.distances > hits[1].explain.distances / 2
    for each in hits:
        assert (np.diff(each.distances) >= 0).all()
        assert max(Counter(payload["g"] for payload in each.payloads).values()) <= 2
    few = db.query(queries[0], k=100, group_by="g", filter=F("g") != "near", exact=True)
    assert len(few) == 30


def test_fewer_groups_than_hits_and_none(memory: Create) -> None:
    db = memory(dim=DIM, metric="l2")
    assert len(db.query(np.zeros(DIM), group_by="g")) == 0
    db.insert(range(6), np.arange(12).reshape(6, 2), [{"g": row % 2} for row in range(6)])
    assert db.query(np.zeros(DIM), group_by="g").keys == [0, 1]
    assert db.query(np.zeros(DIM), group_by="g", per_group=2).keys == [0, 1, 2, 3]
    assert db.query(np.zeros(DIM), group_by="nobody", k=3).keys == [0]
    assert db.query(key=5, group_by="g", k=1).keys == [5]
    assert len(db.query(np.zeros(DIM), group_by="g", filter=F("g") > 5)) == 0
    assert db.query(np.zeros(DIM), group_by="g", max_distance=1.5).keys == [0]
    several = db.query(np.zeros((2, DIM)), group_by="g", filter=[None, {"g": 1}])
    assert [each.keys for each in several] == [[0, 1], [1]]
    assert len(db.query(np.zeros((0, DIM)), group_by="g")) == 0


def test_arguments_that_make_no_sense(memory: Create) -> None:
    db = memory(dim=DIM)
    with pytest.raises(InvalidArgumentError, match="group_by"):
        db.query(np.zeros(DIM), per_group=2)
    with pytest.raises(InvalidArgumentError, match="per_group"):
        db.query(np.zeros(DIM), group_by="g", per_group=0)
    with pytest.raises(InvalidFilterError, match=r"a\.\.b"):
        db.query(np.zeros(DIM), group_by="a..b")
