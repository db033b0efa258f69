"""Working memory of kernels, kept for the next call: a walk allocates nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from ..kernels.link import Workbench
from ..kernels.search import TOMBSTONE_ROOM, Graph, Scratch


class _Size(NamedTuple):
    dim: int
    search_list: int
    tombstones: bool
    frontier: int
    trail: int
    visited: int


class ScratchPool:
    """Scratches by size. Taking and giving back are atomic list operations, so threads need no lock."""

    KEPT = 64

    def __init__(self) -> None:
        self._free: dict[_Size, list[Scratch]] = {}

    @contextmanager
    def take(
        self, dim: int, graph: Graph, search_list: int, beam_width: int, *, tombstones: bool, trail: int = 0, grown: int = 0
    ) -> Iterator[Scratch]:  # fmt: skip
        """A scratch that no other thread uses. grown: how often its visited set has been too small."""
        # About 20 new rows a hop, half of the set free; the least serves short lists, whose first hops meet the most.
        visited = max(2048, 1 << (64 * search_list - 1).bit_length()) << grown
        frontier = beam_width * graph.edges.shape[1] + len(graph.entries)
        while visited < 4 * frontier:
            visited *= 2
        size = _Size(dim, search_list, tombstones, frontier, trail, visited)
        free = self._free.setdefault(size, [])
        scratch = free.pop() if free else _make(size)
        try:
            yield scratch
        finally:
            if len(self._free) > self.KEPT:
                self._free.clear()
            free.append(scratch)


def _make(size: _Size) -> Scratch:
    return Scratch(
        pool=np.empty(size.search_list * (TOMBSTONE_ROOM if size.tombstones else 1), np.uint64),
        best=np.empty(size.search_list, np.uint64),
        visited=np.empty(size.visited, np.uint32),
        frontier=np.empty(size.frontier, np.uint32),
        trail=np.empty(size.trail, np.uint64),
        query=np.empty(size.dim, np.float32),
    )


def workbench(dim: int, room: int) -> Workbench:
    """Working memory for pruning lists of up to `room` candidates."""
    return Workbench(np.empty(room, np.uint64), np.empty(room, np.uint8), np.empty(dim, np.float32))
