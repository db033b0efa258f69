"""Batches of queries with a filter each.

Rules out an answer that belongs to another query or was restricted by its filter, and filters that are mixed up since
Python takes them for equal.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from corenn import CoreNN, F, InvalidArgumentError, InvalidFilterError
from tests.conftest import COMPILED, Create, Sample


@pytest.fixture
def db(memory: Create, sift: Sample) -> CoreNN:
    rows = sift[0][: 3000 if COMPILED else 200]
    made = memory(dim=128, metric="l2")
    made.insert(range(len(rows)), rows, [{"n": row % 10, "b": [True, 1, "1"][row % 3]} for row in range(len(rows))])
    return made


def test_each_query_has_the_answer_that_it_has_by_itself(db: CoreNN, sift: Sample) -> None:
    filters: list[Any] = [
        F("n") == 3, None, {"n": {"$lt": 5}}, F("n") == 3, F("b") == True, F("b") == 1, F("n") > 9, {},  # noqa: E712
        F.keys([5, 7]), F("b") == "1",
    ]  # fmt: skip
    queries = sift[1][: len(filters)]
    found = db.query(queries, k=5, filter=filters, with_payloads=True, explain=True, search_list=60)
    for each, query, tree in zip(found, queries, filters, strict=True):
        alone = db.query(query, k=5, filter=tree, with_payloads=True, explain=True, search_list=60)
        assert each == alone
        assert each.payloads == alone.payloads
        assert each.explain == alone.explain
    assert [len(each) for each in found] == [5, 5, 5, 5, 5, 5, 0, 5, 2, 5]
    assert found.distances.shape == (10, 5)
    assert np.isinf(found.distances[6]).all()
    assert found.keys[6].tolist() == [None] * 5


def test_a_tuple_and_batches_of_nothing(db: CoreNN, sift: Sample) -> None:
    found = db.query(sift[1][:2], k=3, filter=(F("n") == 1, F("n") == 2), max_distance=np.inf)
    assert [key % 10 for key in found[0].keys + found[1].keys] == [1, 1, 1, 2, 2, 2]
    assert len(db.query(sift[1][:0], filter=[])) == 0


def test_lists_that_do_not_fit(db: CoreNN, sift: Sample) -> None:
    with pytest.raises(InvalidArgumentError, match="1 filters for 2 queries"):
        db.query(sift[1][:2], filter=[{}])
    with pytest.raises(InvalidArgumentError, match="one query"):
        db.query(sift[1][0], filter=[{}])
    with pytest.raises(InvalidArgumentError, match="one query"):
        db.query(key=5, filter=[{}])
    with pytest.raises(InvalidFilterError, match=r"of 2 filters number 1: filter.n.\$gt"):
        db.query(sift[1][:2], filter=[{}, {"n": {"$gt": None}}])
    for call in (db.count, db.scroll, lambda filter: db.delete(filter=filter)):
        with pytest.raises(InvalidFilterError, match="list"):
            call([{}])
