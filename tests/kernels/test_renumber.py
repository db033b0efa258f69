"""Rules out an edge that leads to another row than before, a row that falls off the ring, and bytes out of place."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corenn.kernels.renumber import GONE, gather_bytes, translate_edges
from corenn.kernels.search import DEGREE, FIRST_NEIGHBOUR, LIFELINE


def ring_of(edges: np.ndarray, start: int) -> list[int]:
    """The rows on the ring of lifelines, from `start` on."""
    found = [start]
    while (after := int(edges[found[-1], LIFELINE]) - 1) != start:
        found.append(after)
    return found


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.floats(0, 1))
def test_edges_and_ring_lead_where_they_led(seed: int, rows: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    edges = rng.integers(0, 2 * rows, (rows, FIRST_NEIGHBOUR + 6)).astype(np.uint32)  # some lead beyond the rows
    edges[:, DEGREE] = rng.integers(0, 9, rows)  # some are damaged
    order = rng.permutation(rows)
    edges[order, LIFELINE] = np.roll(order, -1) + 1
    alive = rng.random(rows) < share
    alive[rng.integers(rows)] = True
    kept = np.flatnonzero(alive).astype(np.uint32)
    numbers = np.full(rows, GONE, np.uint32)
    numbers[kept] = np.arange(len(kept))
    out = np.full((len(kept), edges.shape[1]), 7, np.uint32)
    assert translate_edges(edges, kept, numbers, out) == len(kept)
    for new, old in enumerate(kept):
        before = edges[old, FIRST_NEIGHBOUR : FIRST_NEIGHBOUR + min(int(edges[old, DEGREE]), 6)]
        expected = [int(numbers[row]) for row in before if row < rows and alive[row]]
        assert out[new, FIRST_NEIGHBOUR : FIRST_NEIGHBOUR + out[new, DEGREE]].tolist() == expected
        assert not out[new, FIRST_NEIGHBOUR + len(expected) :].any()
    start = int(kept[0])
    survivors = [int(numbers[row]) for row in ring_of(edges, start) if alive[row]]
    assert ring_of(out, 0) == survivors
    assert sorted(survivors) == list(range(len(kept)))


@pytest.mark.parametrize("wild", [0, 99, 2])
def test_a_lifeline_that_leads_nowhere_is_told(wild: int) -> None:
    edges = np.zeros((4, FIRST_NEIGHBOUR + 2), np.uint32)
    edges[:, LIFELINE] = [2, 3, wild, 1]  # of 0, 1, 2, 3; rows 1 and 2 are gone, and may lead to each other for ever
    numbers = np.array([0, GONE, GONE, 1], np.uint32)
    out = np.zeros((2, FIRST_NEIGHBOUR + 2), np.uint32)
    assert translate_edges(edges, np.array([3, 0], np.uint32), numbers, out) == 1


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 9), max_size=9))
def test_bytes_follow_each_other(seed: int, sizes: list[int]) -> None:
    rng = np.random.default_rng(seed)
    source = rng.integers(0, 256, 50).astype(np.uint8)
    lengths = np.array(sizes, np.int64)
    starts = rng.integers(0, 40, len(sizes))
    out = np.zeros(int(lengths.sum()), np.uint8)
    gather_bytes(source, starts, lengths, out)
    assert out.tobytes() == b"".join(
        source[start : start + size].tobytes() for start, size in zip(starts, lengths, strict=True)
    )
