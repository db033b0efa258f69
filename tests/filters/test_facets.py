"""Values of a field and how many rows have each, against a look at every payload.

Rules out a row that counts twice for a value, values that are mixed up because they are equal in Python, and counts of
another commit.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corenn import CoreNN, Facet, InvalidFilterError
from corenn.filters import columns, index
from tests.conftest import COMPILED, Create
from tests.filters.made import FIELDS, change, filters, payloads
from tests.oracle import field_values, meets

DIM = 2


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows are to be many."""
    monkeypatch.setattr(columns, "FREQUENT", 4)
    monkeypatch.setattr(index, "CLEANED_AT", 5)


def rows(count: int) -> np.ndarray[Any, Any]:
    return np.zeros((count, DIM), np.float32)


def told(facets: list[Facet]) -> Counter[Any]:
    """Values with their kinds, which Python does not tell apart."""
    return Counter(
        {(type(each.value) is bool, str(type(each.value) is str), each.value): each.count for each in facets}
    )


def counted(model: dict[Any, Any], path: str, wire: dict[str, Any]) -> Counter[Any]:
    found: Counter[Any] = Counter()
    for key, payload in model.items():
        if meets(wire, payload, key):
            found.update({(kind == "bool", str(kind == "text"), value) for kind, value in field_values(payload, path)})
    return found


def check(db: CoreNN, model: dict[Any, Any], path: str, wire: dict[str, Any]) -> None:
    facets = db.facets(path, wire)
    assert told(facets) == counted(model, path, wire)
    assert len(told(facets)) == len(facets)
    counts = [each.count for each in facets]
    assert counts == sorted(counts, reverse=True)
    assert min(counts, default=1) > 0


@settings(max_examples=25 if COMPILED else 15)
@given(st.lists(payloads, min_size=1, max_size=25), filters, st.data())
def test_counts_are_those_of_a_look_at_every_payload(given_payloads: list[Any], wire: Any, data: st.DataObject) -> None:
    with CoreNN.in_memory(dim=DIM, metric="l2") as db:
        model = dict(enumerate(given_payloads))
        db.insert(list(model), rows(len(model)), given_payloads)
        change(db, model, data)
        for path in FIELDS:
            check(db, model, path, wire)
            check(db, model, path, {})


def test_the_order_and_the_kinds(create: Create) -> None:
    db = create(dim=DIM, metric="l2")
    values = [1, 1.0, True, "1", None, "b", "a", 2.5, ["a", "a", "b"], [], {"x": 1}, "x" * 300, 10**30, False]
    db.insert(range(len(values) + 1), rows(len(values) + 1), [*({"f": value} for value in values), None])
    found = db.facets("f")
    assert found[:3] == [Facet(1, 2), Facet("a", 2), Facet("b", 2)]
    assert [repr(each.value) for each in found[3:]] == [
        "None", "False", "True", "2.5", repr(10**30), "'1'", repr("x" * 300)
    ]  # fmt: skip
    assert type(found[0].value) is int
    assert {each.count for each in found[3:]} == {1}
    assert db.facets("f.x") == [Facet(1, 1)]
    assert db.facets("nobody") == []
    assert db.facets("f", {"f": "a"}) == [Facet("a", 2), Facet("b", 1)]


def test_fields_that_are_not_indexed(create: Create) -> None:
    db = create(dim=DIM, metric="l2", no_index_fields=["a"])
    model = {row: {"a": row % 3, "b": [row % 2, "x"]} for row in range(20)}
    db.insert(list(model), rows(20), list(model.values()))
    check(db, model, "a", {})
    check(db, model, "a", {"b": 1})
    check(db, model, "b", {"a": 1})


def test_a_view_that_others_have_overtaken(create: Create) -> None:
    """Counted beside a writer, values are those of the commit that the count has seen."""
    db = create(dim=DIM, metric="l2")
    model: dict[Any, Any] = {row: {"n": row % 3} for row in range(30)}
    db.insert(list(model), rows(30), list(model.values()))
    with db._view(with_metadata=True) as view:
        db.set_payload([0, 1], [{"n": 9}] * 2)
        db.delete([2])
        db.insert(["late"], rows(1), [{"n": 9}])
        from corenn.filters.facets import count_values
        from corenn.graph.grouped import all_of

        found = count_values(
            db._index(view), "n", all_of(view).members, view.head.commit, view.live.rows, view.metadata
        )  # fmt: skip
    assert told(found) == counted(model, "n", {})


def test_a_reader_counts_what_it_has_seen(tmp_path: Path) -> None:
    with CoreNN.create(tmp_path / "db", dim=DIM, metric="l2") as writer:
        model: dict[Any, Any] = {row: {"n": row % 3} for row in range(30)}
        writer.insert(list(model), rows(30), list(model.values()))
        with CoreNN.open(tmp_path / "db", mode="r") as reader:
            writer.set_payload([0], [{"n": 9}])
            check(reader, model, "n", {})
            reader.refresh()
            check(reader, model | {0: {"n": 9}}, "n", {})


@pytest.mark.parametrize("field", ["", "a..b", "$a", 5, None])
def test_fields_that_no_payload_has_are_refused(create: Create, field: Any) -> None:
    with pytest.raises(InvalidFilterError, match=r"field|\$"):
        create(dim=DIM).facets(field)
