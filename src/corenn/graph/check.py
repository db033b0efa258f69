"""Checks of the graph: edges within bounds, and every live row within reach of the entries."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..kernels.link import check_edges, reach, ring_length
from ..kernels.search import DEGREE, LIFELINE
from ..types import UInt32s
from .view import View


@dataclass(frozen=True, slots=True)
class GraphFaults:
    """edges: out-edges of reachable rows. damaged: born rows whose edges are out of bounds or missing.
    unreachable: live rows that no walk comes to. torn: the ring of lifelines does not hold every linked row.
    """

    edges: int
    damaged: UInt32s
    unreachable: UInt32s
    torn: bool

    @property
    def any(self) -> bool:
        return bool(len(self.damaged) or len(self.unreachable) or self.torn)


def check_graph(view: View) -> GraphFaults:
    """Look at every row, but for those that wait to be linked."""
    rows = view.live.rows
    state = view.live.state[:rows]
    born = state[:, 0] != 0
    born[view.pending[view.pending < rows]] = False
    alive = born & (state[:, 1] == 0)
    # A row that died in the commit that bore it was never linked.
    ids = np.flatnonzero(alive | (born & (view.graph.edges[:rows, DEGREE] > 0))).astype(np.uint32)
    bad = np.zeros(len(ids), np.uint8)
    check_edges(view.graph.edges, ids, rows, bad)
    reached = np.zeros(rows, np.uint8)
    walked = reach(view.graph, rows, reached, np.empty(rows, np.uint32))
    unreachable = np.flatnonzero(alive & (reached == 0)).astype(np.uint32)
    threaded = int((view.graph.edges[:rows, LIFELINE] != 0).sum())
    root = int(view.graph.entries[0]) if len(view.graph.entries) else -1
    torn = threaded > 0 and (not 0 <= root < rows or ring_length(view.graph.edges, root, rows) != threaded)
    return GraphFaults(int(walked), ids[bad != 0], unreachable, torn)
