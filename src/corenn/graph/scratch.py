"""Working memory of kernels, kept for the next call: a walk allocates nothing."""

from __future__ import annotations

import numpy as np

from ..kernels.link import Workbench
from ..kernels.search import TOMBSTONE_ROOM, Graph, Scratch

Size = tuple[int, int, int, int, int, bool, int, int]


class ScratchPool:
    """Scratches by size. Taking and giving back are atomic list operations, so threads need no lock."""

    KEPT = 64

    def __init__(self) -> None:
        self._free: dict[Size, list[Scratch]] = {}

    def take(
        self,
        dim: int,
        graph: Graph,
        search_list: int,
        beam_width: int,
        tombstones: bool,
        trail: int = 0,
        grown: int = 0,
    ) -> tuple[Size, Scratch]:
        """A scratch that no other thread uses, to be given back. grown: how often its visited set was too small."""
        size = (dim, graph.edges.shape[1], len(graph.entries), search_list, beam_width, tombstones, trail, grown)
        free = self._free.get(size)
        return size, free.pop() if free else _make(*size)

    def give(self, size: Size, scratch: Scratch) -> None:
        """Keep a scratch for the next call."""
        if len(self._free) > self.KEPT:
            self._free.clear()
        self._free.setdefault(size, []).append(scratch)


def _make(
    dim: int, columns: int, entries: int, search_list: int, beam_width: int, tombstones: bool, trail: int, grown: int
) -> Scratch:
    frontier = beam_width * columns + entries
    # About 20 new rows a hop, half of the set free; the least serves short lists, whose first hops meet the most.
    visited = max(2048, 1 << (64 * search_list - 1).bit_length()) << grown
    while visited < 4 * frontier:
        visited *= 2
    return Scratch(
        pool=np.empty(search_list * (TOMBSTONE_ROOM if tombstones else 1), np.uint64),
        best=np.empty(search_list, np.uint64),
        visited=np.empty(visited, np.uint32),
        frontier=np.empty(frontier, np.uint32),
        trail=np.empty(trail, np.uint64),
        query=np.empty(dim, np.float32),
    )


def workbench(dim: int, room: int) -> Workbench:
    """Working memory for pruning lists of up to `room` candidates."""
    vector, anchor = np.empty(dim, np.float32), np.empty(dim, np.float32)
    return Workbench(np.empty(room, np.uint64), np.empty(room, np.uint8), vector, anchor)
