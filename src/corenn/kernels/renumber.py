"""Kernels that copy what is live to other places: edges under other ids, and runs of bytes."""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import kernel
from .search import DEGREE, FIRST_NEIGHBOUR, LIFELINE

GONE = np.uint32(0xFFFFFFFF)  # in `numbers`: an id that has no other


@kernel
def translate_edges(edges: Any, ids: Any, numbers: Any, out: Any) -> Any:
    """Write the edges of the rows `ids` to `out`, with numbers[id] for each id; those without a number are left out.

    A lifeline leads to the next row on the ring that has a number, so that the ring loses what has none and holds the
    rest in the same order. Returns how many rows were written: fewer than all if the lifeline of the next leads
    nowhere. numbers: uint32 (rows,), of the first rows; later ones have none. out: uint32 (ids, columns of edges).
    """
    rows, bound = numbers.shape[0], edges.shape[0]
    slots = edges.shape[1] - FIRST_NEIGHBOUR
    for i in range(ids.shape[0]):
        node = np.int64(ids[i])
        count = 0
        for slot in range(FIRST_NEIGHBOUR, FIRST_NEIGHBOUR + min(np.int64(edges[node, DEGREE]), slots)):
            other = np.int64(edges[node, slot])
            if other < rows and numbers[other] != GONE:
                out[i, FIRST_NEIGHBOUR + count] = numbers[other]
                count += 1
        for slot in range(FIRST_NEIGHBOUR + count, edges.shape[1]):
            out[i, slot] = 0
        out[i, DEGREE] = count
        after, steps = np.int64(edges[node, LIFELINE]) - 1, 0
        while 0 <= after < bound and steps < bound and (after >= rows or numbers[after] == GONE):
            after, steps = np.int64(edges[after, LIFELINE]) - 1, steps + 1
        if not 0 <= after < rows or numbers[after] == GONE:
            return i
        out[i, LIFELINE] = numbers[after] + np.uint32(1)
    return ids.shape[0]


@kernel
def gather_bytes(source: Any, starts: Any, lengths: Any, out: Any) -> None:
    """Copy source[starts[i] : starts[i] + lengths[i]], one after the other, to `out`. All of uint8, int64, int64."""
    at = 0
    for i in range(starts.shape[0]):
        for byte in range(starts[i], starts[i] + lengths[i]):
            out[at] = source[byte]
            at += 1
