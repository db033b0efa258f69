"""Edges to rows that are gone, and rows that leave the ring.

Rules out an edge to such a row that is left or replaced by one to another such row, an edge that is kept twice or leads
to its own row, a row that overflows, one that is changed although it has lost nothing, and a torn ring.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from corenn.graph.scratch import workbench
from corenn.graph.view import View
from corenn.kernels.link import HEIRS, LOSS, Shape, lot, mend_edges, ring_length, unthread
from corenn.kernels.search import DEGREE, DIED, FIRST_NEIGHBOUR, LIFELINE
from corenn.storage.state import state_words
from tests.conftest import COMPILED

from .test_link import linked

ROWS, DIM = (400, 6) if COMPILED else (60, 3)


def mended(view: View, gone: Any) -> tuple[Any, Any]:
    """The edges before, and which rows are weak, after these rows have died and all others were mended."""
    view.live.state[gone] = state_words(gone, 1, 2)
    doomed = np.zeros(-(-ROWS // 8) * 8, np.bool_)
    doomed[gone] = True
    bits = np.packbits(doomed, bitorder="little")
    before, weak = view.graph.edges[:ROWS].copy(), np.zeros(ROWS, np.uint8)
    shape = Shape(view.settings.max_edges, np.float32(view.settings.distance_threshold))
    bench = workbench(DIM, (1 + HEIRS) * view.graph.edges.shape[1])
    mend_edges(view.rows, view.graph, view.live, shape, bits, 0, weak, bench)
    unthread(view.graph.edges, bits, np.zeros(2, np.uint64), 0, ROWS)
    return before, weak


def test_some_of_those_that_lose_little_are_drawn_by_lot(rng: np.random.Generator) -> None:
    """Over many passes, about as often as they lose their edges, times SEARCHES; in no two passes the same."""
    size, passes = (24, 3000) if COMPILED else (24, 400)
    drawn = np.array(
        [[lot(row, np.uint64(commit << 16 | 0xFFFF), size) for row in range(3)] for commit in range(passes)]
    )
    assert drawn.min() == 0 and drawn.max() == size - 1
    counts = np.bincount(drawn.reshape(-1), minlength=size)
    assert abs(counts - drawn.size / size).max() < 6 * np.sqrt(drawn.size / size)
    assert not (drawn[:, 0] == drawn[:, 1]).all()


def neighbours(row: Any) -> list[int]:
    return [int(each) for each in row[FIRST_NEIGHBOUR : FIRST_NEIGHBOUR + row[DEGREE]]]


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
@pytest.mark.parametrize("share", [1, 3, 10])
def test_no_edge_leads_to_what_is_gone(rng: np.random.Generator, metric: str, share: int) -> None:
    view = linked(rng.normal(size=(ROWS, DIM)), metric=metric, max_edges=8)
    gone = np.sort(rng.choice(np.arange(1, ROWS), (ROWS - 1) // (share + 1), replace=False)).astype(np.uint32)
    before, weak = mended(view, gone)
    edges, dead = view.graph.edges, set(gone.tolist())
    for node in set(range(ROWS)) - dead:
        found, had = neighbours(edges[node]), neighbours(before[node])
        lost = [other for other in had if other in dead]
        assert not dead & set(found) and node not in found and len(set(found)) == len(found)
        assert len(found) <= edges.shape[1] - FIRST_NEIGHBOUR
        if not lost:
            assert found == had
        assert weak[node] or LOSS * len(lost) <= len(had)
        assert lost or not weak[node]
    for node in dead:
        assert neighbours(edges[node]) == neighbours(before[node]), "others may still look for heirs there"
        assert edges[node, LIFELINE] == 0
    assert ring_length(edges, 0, ROWS) == ROWS - len(dead) == (edges[:ROWS, LIFELINE] != 0).sum()
    assert (view.live.state[:ROWS, DIED] != 0).sum() == len(dead)


def test_a_row_whose_neighbours_are_all_gone_finds_those_beyond(rng: np.random.Generator) -> None:
    view = linked(rng.normal(size=(ROWS, DIM)), max_edges=8)
    node = ROWS // 2
    gone = {*neighbours(view.graph.edges[node])}
    gone |= {other for each in tuple(gone) for other in neighbours(view.graph.edges[each])} - {node}
    beyond = {other for each in gone for other in neighbours(view.graph.edges[each])} - gone - {node}
    if not beyond or 0 in gone:
        pytest.skip("too few rows")
    mended(view, np.array(sorted(gone), np.uint32))
    assert set(neighbours(view.graph.edges[node])) <= beyond
