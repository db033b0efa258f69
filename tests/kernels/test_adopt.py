"""Given edges.

Rules out one that is lost, kept twice or leads to its own row, a wrong order, a row that overflows, and a torn ring.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corenn.config import Settings
from corenn.graph.adopt import Adopter
from corenn.graph.check import check_graph
from corenn.graph.threads import Helpers
from corenn.graph.view import entries_of, raise_radius, take_view
from corenn.kernels.search import DEGREE, FIRST_NEIGHBOUR, LIFELINE
from corenn.storage.commit import NO_IDS, Commit
from corenn.storage.encode import encode
from corenn.storage.format import NO_ID
from corenn.storage.store import Store

ROWS = 40


def stored(vectors: Any, **others: Any) -> Store:
    """A collection in memory whose rows nothing links yet."""
    store = Store.in_memory(Settings(dim=vectors.shape[1], **others))
    encoded = encode(store.settings, vectors)
    count = len(vectors)
    ids = np.arange(count, dtype=np.uint32)
    store.commit(Commit(1, ids, range(count), [NO_ID] * count, [None] * count, encoded.rows, encoded.seals))
    if store.settings.metric == "ip":
        raise_radius(store, np.linalg.norm(vectors, axis=1).astype(np.float32))
    return store


def adopted(store: Store, lists: list[list[int]]) -> Any:
    """The rows of edges after adopting `lists`."""
    width = max(1, *map(len, lists))
    given_ids = np.zeros((len(lists), width), np.uint32)
    for row, names in enumerate(lists):
        given_ids[row, : len(names)] = names
    helpers = Helpers(2)
    adopter = Adopter(store, helpers)
    adopter.adopt(0, np.array([len(names) for names in lists], np.int64), given_ids)
    adopter.finish(np.array([len(lists) // 2], np.uint32), lambda rows: None)
    helpers.close()
    return store.edges.array[: len(lists)]


def neighbours(edges: Any, row: int) -> list[int]:
    found: list[int] = edges[row, FIRST_NEIGHBOUR : FIRST_NEIGHBOUR + edges[row, DEGREE]].tolist()
    return found


LISTS = st.lists(st.lists(st.integers(0, ROWS - 1), max_size=14), min_size=ROWS, max_size=ROWS)


@settings(max_examples=30)
@given(LISTS, st.integers(0, 9))
def test_rows_keep_what_is_given_nearest_first(lists: list[list[int]], seed: int) -> None:
    vectors = np.random.default_rng(seed).integers(-9, 9, (ROWS, 3)).astype(np.float32)
    edges = adopted(stored(vectors, metric="l2", max_edges=16), lists)
    for row, names in enumerate(lists):
        expected = sorted((float(((vectors[row] - vectors[name]) ** 2).sum()), name) for name in {*names} - {row})
        assert neighbours(edges, row) == [name for _, name in expected]


@settings(max_examples=30)
@given(LISTS)
def test_the_graph_is_whole_whatever_is_given(lists: list[list[int]]) -> None:
    vectors = np.random.default_rng(1).integers(0, 3, (ROWS, 2)).astype(np.float32)  # many equal rows
    store = stored(vectors, metric="l2", max_edges=16)
    edges = adopted(store, lists)
    assert (edges[:, LIFELINE] != 0).all()
    faults = check_graph(take_view(store, store.metadata.head, NO_IDS))
    assert not faults.any
    assert entries_of(store)[0] == ROWS // 2


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
def test_more_than_a_row_holds_are_pruned(metric: str) -> None:
    vectors = np.random.default_rng(3).normal(size=(ROWS, 4)).astype(np.float32)
    store = stored(vectors, metric=metric, max_edges=4)
    edges = adopted(store, [[name for name in range(ROWS) if name % 2 == row % 2] for row in range(ROWS)])
    for row in range(ROWS):
        kept = neighbours(edges, row)
        assert 1 <= len(kept) <= 4
        assert len(set(kept)) == len(kept)
        assert row not in kept
        assert all(name % 2 == row % 2 for name in kept)
        if metric == "l2":  # the nearest of all is never pruned
            others = [name for name in range(ROWS) if name % 2 == row % 2 and name != row]
            assert kept[0] == min(others, key=lambda name: float(((vectors[row] - vectors[name]) ** 2).sum()))
