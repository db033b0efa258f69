"""Checks of the graph: edges within bounds, and every live row within reach of the entries."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..config import MAX_ROWS
from ..kernels.link import BEYOND, check_edges, reach, ring_length
from ..kernels.search import BORN, LIFELINE
from ..storage.commit import NO_IDS
from ..types import UInt32s
from .view import View, radius_fits


@dataclass(frozen=True, slots=True)
class GraphFaults:
    """edges: out-edges of reachable rows. damaged: born rows whose edges are out of bounds or missing.
    unreachable: live rows that no walk comes to. torn: the ring of lifelines does not hold every linked row.
    lifted: the radius in the header is not that of the rows.
    """

    edges: int
    damaged: UInt32s
    unreachable: UInt32s
    torn: bool
    lifted: bool

    @property
    def any(self) -> bool:
        return bool(len(self.damaged) or len(self.unreachable) or self.torn or self.lifted)


def check_graph(view: View, *, exclusive: bool = True, freed: bool = False, gone: UInt32s = NO_IDS) -> GraphFaults:
    """Look at every row, but for those that wait to be linked.

    freed: whether ids of dead rows were ever given away. gone: rows that have died since, and may be out of the graph.

    Not exclusive: a writer in another process goes on meanwhile, so edges may lead to rows newer than the view, and the
    ring may hold them.
    """
    edges, rows = view.graph.edges, view.live.rows
    bound = rows if exclusive else len(edges)
    born, alive = view.born(), view.alive()
    for mask in (born, alive):
        mask[view.pending[view.pending < rows]] = False
        mask[gone] = False
    threads = edges[:rows, LIFELINE]
    # A row that died in the commit that bore it was never linked, and one that repair has taken out is so no longer.
    ids = np.flatnonzero(alive | (born & (threads != 0))).astype(np.uint32)
    bad = np.zeros(len(ids), np.uint8)
    # Edges of dead rows may lead to ids that are free: nothing but the ring leads to them.
    known = view.born() if exclusive else np.ones(1, np.bool_)
    check_edges(edges, ids, bound if exclusive else MAX_ROWS, known, alive, bad)
    threaded = int((threads != 0).sum())  # before the ring is walked, which may grow meanwhile
    reached = np.zeros(bound, np.uint8)
    walked = reach(view.graph, bound, reached, np.empty(bound, np.uint32))
    unreachable = np.flatnonzero(alive & (reached[:rows] == 0)).astype(np.uint32)
    root = int(view.graph.entries[0]) if len(view.graph.entries) else -1
    length = ring_length(edges, root, bound) if 0 <= root < bound else -1
    if exclusive:
        torn = threaded > 0 and (length != threaded or bool(threads[view.live.state[:rows, BORN] == 0].any()))
    else:  # one row may be half threaded: by a writer at work, or by one that was killed and is mended by the next
        threaded = min(threaded, int((threads != 0).sum()))  # rows may have been taken off it meanwhile
        torn = threaded > 1 and length < threaded - 1 and length != BEYOND
    return GraphFaults(
        int(walked), ids[bad != 0], unreachable, torn, not radius_fits(view, exact=exclusive and not freed)
    )
