"""Bounds of one field that hold together, answered as one slice of its column.

Rules out a range that mixes bounds of texts and of numbers or of two fields, takes an end that is left out, joins what
two elements of a list may meet one by one, and one that is not joined at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import and_
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corenn import CoreNN, F
from corenn.filters.columns import Column
from corenn.filters.expression import And, Condition, Filter
from corenn.filters.index import PayloadIndex
from corenn.filters.ranges import Range, joined
from tests.filters.made import numbers, texts
from tests.oracle import meets

bounds = st.builds(
    Condition, st.sampled_from("ab"), st.sampled_from(["gt", "gte", "lt", "lte"]), st.one_of(texts, numbers)
)
parts = st.one_of(bounds, st.builds(Condition, st.just("a"), st.just("eq"), numbers))
values = st.one_of(texts, numbers, st.lists(numbers, max_size=2))


@given(
    st.lists(st.fixed_dictionaries({}, optional={"a": values, "b": values}), min_size=1), st.lists(parts, min_size=1)
)
def test_bounds_in_any_number_and_order(payloads: list[dict[str, Any]], asked: list[Filter]) -> None:
    tree = reduce(and_, asked)
    with CoreNN.in_memory(dim=1, metric="l2") as db:
        db.insert(range(len(payloads)), np.zeros((len(payloads), 1)), payloads)
        found = [record.key for record in db.scroll(tree, limit=len(payloads))[0]]
    assert found == [row for row, each in enumerate(payloads) if meets(tree.to_dict(), each, row)]


@given(st.lists(parts, max_size=8))
def test_all_that_is_asked_stands_in_it_once(asked: list[Filter]) -> None:
    found: list[Filter] = []
    for each in joined(asked):
        if isinstance(each, Range):
            assert each.lower.path == each.upper.path
            assert isinstance(each.lower.operand, str) == isinstance(each.upper.operand, str)
            assert each.lower.operator.startswith("gt") and each.upper.operator.startswith("lt")
            found += [each.lower, each.upper]
        else:
            found.append(each)
    assert sorted(map(repr, found)) == sorted(map(repr, asked))


@pytest.mark.parametrize(("lists", "slices"), [(False, 1), (True, 2)])
def test_one_slice_where_no_row_has_two_values(monkeypatch: pytest.MonkeyPatch, lists: bool, slices: int) -> None:
    calls = []
    parts = Column._parts

    def counted(self: Column, low: Any, high: Any, **options: Any) -> Any:
        calls.append((low, high))
        return parts(self, low, high, **options)

    monkeypatch.setattr(Column, "_parts", counted)
    with CoreNN.in_memory(dim=1, metric="l2") as db:
        db.insert(range(9), np.zeros((9, 1)), [{"n": row} for row in range(8)] + [{"n": [0, 9] if lists else 8}])
        tree = And((F("n") >= 3, F("n") < 5))  # which two elements of the list meet, one each
        assert db.count(tree) == (3 if lists else 2) and len(calls) == slices


def test_conditions_that_hold_together_are_not_evaluated_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice of a column and a value of another, of which no bitmap of the slice is made; and one that has a list."""
    monkeypatch.setattr(PayloadIndex, "_answer", lambda *given: pytest.fail("evaluated"))
    payloads = [{"n": row, "of": ["few", "many"][row % 3 > 0], "at": [row] if row == 7 else row} for row in range(300)]
    with CoreNN.in_memory(dim=1, metric="l2") as db:
        db.insert(range(300), np.zeros((300, 1)), payloads)
        db.delete([4])
        for tree in (
            And((F("n") >= 3, F("n") < 9, F("of") == "many")),
            And((F("of") == "many", F("n") < 9, F("n") > 2)),
        ):
            assert [record.key for record in db.scroll(tree, limit=300)[0]] == [5, 7, 8]
        assert db.count(And((F("of") == "none", F("n") < 9))) == db.count(And((F("n") > 400, F("of") == "few"))) == 0
        with pytest.raises(pytest.fail.Exception):
            db.count(And((F("at") < 9, F("of") == "few")))


@pytest.mark.parametrize("keys", [range(9), [1]])
def test_a_row_that_is_replaced_while_a_filter_is_evaluated_is_not_lost(keys: Sequence[int]) -> None:
    """The view is older than the commit, and what is taken from the index last knows of it."""
    tree = And((F("n") >= 0, F("of") == "few"))
    tree = tree if len(keys) == 9 else tree & F.keys(list(keys))
    with CoreNN.in_memory(dim=1, metric="l2") as db:
        db.insert(range(9), np.zeros((9, 1)), [{"n": 0, "of": "few"}] * 9)
        assert db._writer is not None
        index, waiting = db._writer.payload_index, [1]

        class Interrupted(PayloadIndex):
            """A commit comes in before it is told which rows are gone."""

            @property
            def _gone(self) -> Any:
                for key in waiting[:]:
                    waiting.clear()
                    db.upsert([key], np.zeros((1, 1)), [{"n": 0, "of": "few"}])
                return self.__dict__["_gone"]

            @_gone.setter
            def _gone(self, value: Any) -> None:
                self.__dict__["_gone"] = value

        index.__class__ = Interrupted
        assert sorted(record.key for record in db.scroll(tree, limit=9)[0]) == list(keys)  # type: ignore[type-var]
        assert not waiting
        index.__class__ = PayloadIndex
