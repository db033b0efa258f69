"""Kernels for rows whose edges are known before they are linked: no search."""

from __future__ import annotations

from typing import Any

from .candidates import id_of, pack, sort_distinct
from .jit import kernel
from .link import write_edges
from .rows import decode, distance, lift_of, prefetch_row
from .search import AHEAD, DEGREE, FIRST_NEIGHBOUR


@kernel
def adopt_edges(rows: Any, edges: Any, shape: Any, first: Any, degrees: Any, given: Any, bench: Any) -> None:
    """Give the rows `first`, `first` + 1, … their edges: the first degrees[i] of given[i], which are ids in use.

    The row itself and what is given twice are left out. Edges stand nearest first, as after a prune, which the ring of
    lifelines needs; only where they are more than a row holds is there a prune. given: uint32 (n, width); bench: room
    for `width` candidates.
    """
    slots = edges.shape[1] - FIRST_NEIGHBOUR
    for i in range(given.shape[0]):
        node, count, total = first + i, degrees[i], 0
        decode(rows, node, bench.anchor)
        lift = lift_of(rows, node)
        for t in range(min(AHEAD, count)):
            prefetch_row(rows, given[i, t])
        for t in range(count):
            if t + AHEAD < count:
                prefetch_row(rows, given[i, t + AHEAD])
            if given[i, t] != node:
                bench.candidates[total] = pack(distance(rows, bench.anchor, lift, given[i, t]), given[i, t])
                total += 1
        count = sort_distinct(bench.candidates, total)
        if count > slots:
            write_edges(rows, node, shape, bench, count, edges[node])
        else:
            for t in range(count):
                edges[node, FIRST_NEIGHBOUR + t] = id_of(bench.candidates[t])
            edges[node, DEGREE] = count
