"""Working memory of kernels, kept for the next call: a walk allocates nothing."""

from __future__ import annotations

import numpy as np

from ..kernels.codes import Asked, Codes, Form, asked_of, form_in
from ..kernels.disk import RING, Frame
from ..kernels.link import Workbench
from ..kernels.link_disk import CodeBench, EdgeFile
from ..kernels.rows import Rows, one_row
from ..kernels.search import ENTERED, TOMBSTONE_ROOM, Plan, Scratch
from ..types import UInt64s
from .view import View

Size = tuple[int, int, int, int, int, int, int, int]
LEAST_SEEN, MOST_SEEN = 1 << 12, 1 << 20  # places of a table of seen ids, of 4 bytes each


class ScratchPool:
    """Scratches by size. Taking and giving back are atomic list operations, so threads need no lock."""

    KEPT = 64

    def __init__(self) -> None:
        self._free: dict[Size, list[Scratch]] = {}
        self._asked: dict[Form, list[Asked]] = {}
        self._frames: dict[tuple[int, ...], list[tuple[Rows, Frame]]] = {}
        self._benches: dict[tuple[int, ...], list[CodeBench]] = {}
        self._candidates: dict[int, list[UInt64s]] = {}

    def take(self, view: View, plan: Plan, trail: int = 0, room: int = TOMBSTONE_ROOM) -> tuple[Size, Scratch]:
        """A scratch that no other thread uses, to be given back with its size.

        room: how many search lists its pool holds where there are tombstones.
        """
        columns = view.graph.edges.shape[1]
        at_once = plan.beam_width if view.disk is None else max(plan.beam_width, 1 + view.disk.disk.beside)
        entries = max(len(view.graph.entries), view.graph.navigation.starts)
        pool = plan.search_list * (room if plan.tombstones else 1)
        size = (view.settings.dim, columns, entries, plan.search_list, at_once, pool, trail, plan.leap)
        free = self._free.get(size)
        return size, free.pop() if free else _make(*size)

    def take_asked(self, codes: Codes) -> Asked:
        """Room for a query over codes, to be given back."""
        form = form_in(codes)
        free = self._asked.get(form)
        return free.pop() if free else asked_of(form)

    def give_asked(self, codes: Codes, asked: Asked) -> None:
        """Keep it for the next call."""
        self._asked.setdefault(form_in(codes), []).append(asked)

    def take_candidates(self, count: int) -> UInt64s:
        """Room for so many candidates or more, to be given back."""
        size = 1 << (count - 1).bit_length()
        free = self._candidates.get(size)
        return free.pop() if free else np.empty(size, np.uint64)

    def give_candidates(self, candidates: UInt64s) -> None:
        """Keep it for the next call."""
        self._candidates.setdefault(len(candidates), []).append(candidates)

    def take_frame(self, view: View, k: int) -> tuple[tuple[int, ...], Rows, Frame]:
        """Room for one row as it is read from the disk, and for k answers, to be given back with its size."""
        assert view.disk is not None
        rows, disk = view.rows, view.disk
        unit_bytes, unit_rows, beside = disk.disk.unit_bytes, disk.disk.unit_rows, disk.disk.beside
        ring = RING if unit_rows > 1 else 1
        size = (disk.words, ring, unit_bytes // 4, beside, disk.disk.most_width, k)
        free = self._frames.get(size)
        one, frame = free.pop() if free else (one_row(rows), _make_frame(*size))
        return size, one._replace(radius=rows.radius), frame

    def give_frame(self, size: tuple[int, ...], one: Rows, frame: Frame) -> None:
        """Keep it for the next call."""
        if len(self._frames) > self.KEPT:
            self._frames.clear()
        self._frames.setdefault(size, []).append((one, frame))

    def take_bench(self, codes: Codes, file: EdgeFile, room: int) -> CodeBench:
        """Room to link by codes among up to `room` candidates, to be given back."""
        size = (codes.signs.shape[1], file.words, file.most_width, room)
        free = self._benches.get(size)
        return free.pop() if free else _make_bench(*size)

    def give_bench(self, bench: CodeBench) -> None:
        """Keep it for the next call."""
        size = (bench.vectors.shape[1], bench.words.shape[1], len(bench.queue), len(bench.ids))
        self._benches.setdefault(size, []).append(bench)

    def give(self, size: Size, scratch: Scratch) -> None:
        """Keep a scratch for the next call."""
        if len(self._free) > self.KEPT:
            self._free.clear()
        self._free.setdefault(size, []).append(scratch)

    def clear(self) -> None:
        """Keep none: a closed database may be referred to for long."""
        for kept in (self._free, self._asked, self._frames, self._benches, self._candidates):
            kept.clear()


def _make(
    dim: int, columns: int, entries: int, search_list: int, at_once: int, pool: int, trail: int, leap: int
) -> Scratch:
    # About half of a row's edges lead to something new. A table three times as long as what it is to hold forgets
    # one id in thirty.
    seen = 1 << (max(search_list, pool // TOMBSTONE_ROOM) * columns * 4 // 3 - 1).bit_length()
    return Scratch(
        pool=np.empty(pool, np.uint64),
        best=np.empty(search_list, np.uint64),
        seen=np.empty(min(max(seen, LEAST_SEEN), MOST_SEEN), np.uint32),
        frontier=np.empty(max(at_once * columns * max(leap, 1), ENTERED + 1) + entries, np.uint64),
        trail=np.empty(trail, np.uint64),
        query=np.empty(dim, np.float32),
    )


def _make_frame(words: int, ring: int, unit: int, beside: int, width: int, k: int) -> Frame:
    return Frame(
        np.zeros((1, words), np.uint32), np.zeros((ring, unit), np.uint32), np.zeros(1 + ring, np.int64),
        np.empty(width, np.uint64), np.empty(k, np.uint64), np.empty(beside, np.uint64),
    )  # fmt: skip


def _make_bench(length: int, columns: int, width: int, room: int) -> CodeBench:
    return CodeBench(
        candidates=np.empty(room, np.uint64), ids=np.empty(room, np.uint32), alive=np.empty(room, np.uint8),
        vectors=np.empty((room, length), np.float32), lifts=np.empty(room, np.float32),
        anchor=np.empty(length, np.float32), origin=np.empty(length, np.float32),
        words=np.empty((1, columns), np.uint32), queue=np.empty(width, np.uint64),
    )  # fmt: skip


def workbench(dim: int, room: int) -> Workbench:
    """Working memory for pruning lists of up to `room` candidates."""
    vector, anchor = np.empty(dim, np.float32), np.empty(dim, np.float32)
    return Workbench(np.empty(room, np.uint64), np.empty(room, np.uint8), vector, anchor)
