"""Walks that take no notice of one row.

Rules out a hidden row that is found, expanded or begun with, one that changes the answer of a query that would not have
met it, and a walk that dead rows starve.
"""

from __future__ import annotations

import numpy as np
import pytest

from corenn import CoreNN
from corenn.graph.query import Searcher
from corenn.graph.scratch import ScratchPool
from corenn.graph.threads import Helpers
from corenn.graph.view import View
from corenn.kernels.search import HOPS, Results
from tests.conftest import COMPILED, Create

ROWS = 1500 if COMPILED else 200
K = 5


def walk(view: View, query: np.ndarray, hidden: int) -> Results:
    results = Results(np.zeros((1, K), np.uint32), np.zeros((1, K), np.float32), np.zeros((1, 4), np.int64))
    assert Searcher(ScratchPool(), Helpers(1)).walk_without(view, query[None], 20, hidden, results)
    return results


@pytest.fixture(params=["none", "sq8"])
def db(memory: Create, rng: np.random.Generator, request: pytest.FixtureRequest) -> CoreNN:
    db = memory(dim=6, metric="l2", compression_mode=request.param, compression_threshold=0, max_edges=8)
    db.insert(range(ROWS), rng.normal(size=(ROWS, 6)))
    return db


@pytest.mark.parametrize("dead", [False, True])
def test_a_hidden_row_is_not_found(db: CoreNN, dead: bool) -> None:
    if dead:
        db.delete(range(0, ROWS, 3))
    view = db._current()
    for row in range(1, ROWS, ROWS // 20):
        vector = db.get([row])[0]
        if vector is None:
            continue
        plain, hidden = walk(view, vector.vector, -1), walk(view, vector.vector, row)
        assert plain.ids[0, 0] == row
        assert row not in hidden.ids[0]
        assert np.isin(plain.ids[0, 1:], hidden.ids[0]).mean() >= 0.5


def test_a_walk_does_not_begin_at_a_hidden_row(db: CoreNN) -> None:
    view = db._current()
    entry = int(view.graph.entries[0])
    vector = db.get([entry])[0].vector
    assert entry not in walk(view, vector, entry).ids[0]
    alone = view._replace(graph=view.graph._replace(entries=view.graph.entries[:1]))
    results = Results(np.zeros((1, K), np.uint32), np.zeros((1, K), np.float32), np.zeros((1, 4), np.int64))
    assert not Searcher(ScratchPool(), Helpers(1)).walk_without(alone, vector[None], 20, entry, results)
    assert results.info[0, HOPS] == 0


def test_a_row_that_is_far_may_be_hidden_or_not(db: CoreNN) -> None:
    view, query = db._current(), np.zeros(6, np.float32)
    far = db.query(query, k=ROWS, exact=True).keys[-1]
    plain, hidden = walk(view, query, -1), walk(view, query, far)
    assert np.array_equal(plain.ids, hidden.ids)
    assert np.array_equal(plain.distances, hidden.distances)
