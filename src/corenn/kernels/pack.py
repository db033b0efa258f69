"""Slots of disk.slab, so that the rows of a page are near to each other (Wang et al., Starling, 2024).

A row that has no slot opens a page, and the nearest rows that have none either fill it: those to which its edges lead,
and those of these. Which are nearest is told by codes, so that of the others nothing but edges is read.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..types import Float32s, UInt32s, UInt64s
from .candidates import id_of, insert_at, place_of
from .codes import scorer_of
from .disk import PAGE, SEALS, assemble
from .intrinsics import copy_bytes, read_at
from .jit import inlined, kernel
from .rows import aim_at, decode, lift_of
from .search import BORN, DEGREE, FIRST_NEIGHBOUR, score


class Packer(NamedTuple):
    """Working memory.

    words: uint32 (1, words of a row). query: float32 (dim,). frontier: uint64 (columns of edges,). near: uint64, for
    candidates of one page.
    """

    words: UInt32s
    query: Float32s
    frontier: UInt64s
    near: UInt64s


@kernel
def pack_rows(
    rows: Any, codes: Any, asked: Any, live: Any, disk: Any, packer: Any, seeds: Any, first: Any, placed: Any, info: Any
) -> Any:
    """Give rows the slots from `first` on, which nobody has: those of `seeds` that have none, and what is near to them.

    rows: as kernels take them, but with room for a single one. placed: uint32, receives the rows in the order of their
    slots. When there is no place for a whole unit in it any more, no other is begun. There is room for a row at least,
    and up to the end of a unit.
    Returns how many seeds were looked at, and how many rows were placed.
    """
    scorer = scorer_of(codes, asked)
    room = max(placed.shape[0] - disk.unit_rows, 1)
    count = done = 0
    for i in range(seeds.shape[0]):
        if count >= room and (first + count) % disk.unit_rows == 0:
            break
        done = i + 1
        if not _wants(disk, live, seeds[i]):
            continue
        count = _place(disk, placed, first, count, seeds[i])
        if (first + count) % disk.unit_rows != 0:
            count = _fill(rows, scorer, live, disk, packer, first, count, placed, info)
    return done, count


@inlined
def _wants(disk: Any, live: Any, row: Any) -> Any:
    return row < live.rows and disk.slots[row] == 0 and live.state[row, BORN] != 0


@inlined
def _place(disk: Any, placed: Any, first: Any, count: Any, row: Any) -> Any:
    disk.slots[row] = np.uint32(first + count + 1)
    placed[count] = np.uint32(row)
    return count + 1


@inlined
def _fill(
    rows: Any, scorer: Any, live: Any, disk: Any, packer: Any, first: Any, count: Any, placed: Any, info: Any
) -> Any:
    """Fill a page with what is near to the row that was placed last. Returns how many are placed: fewer where edges
    lead to no more, and the next seed goes on there.
    """
    words, near = packer.words, packer.near
    edges_at = SEALS + disk.seals.shape[1]
    size = 4 * disk.edge_words
    if not assemble(disk, live, np.int64(placed[count - 1]), words, info):
        return count
    copy_bytes(words, 0, 4 * (edges_at + disk.edge_words), rows.vectors, 0, 4 * disk.vector_words)
    copy_bytes(words, 0, 4 * SEALS, rows.seals, 0, 4 * disk.seals.shape[1])
    decode(rows, 0, packer.query)
    lift = lift_of(rows, 0)
    aim_at(scorer, packer.query)
    total = at = 0
    while True:
        waiting = 0
        last = edges_at + FIRST_NEIGHBOUR
        last += min(np.int64(words[0, edges_at + DEGREE]), disk.edge_words - FIRST_NEIGHBOUR)
        for slot in range(edges_at + FIRST_NEIGHBOUR, last):
            if _wants(disk, live, words[0, slot]):
                packer.frontier[waiting] = np.uint64(words[0, slot])
                waiting += 1
        score(scorer, packer.query, lift, packer.frontier, waiting)
        for t in range(waiting):
            place = place_of(near, total, packer.frontier[t])
            if place < near.shape[0] and (place == total or near[place] != packer.frontier[t]):
                insert_at(near, place, total, near.shape[0], packer.frontier[t])
                total = min(total + 1, near.shape[0])
                at = min(at, place)
        while at < total and disk.slots[id_of(near[at])] != 0:
            at += 1
        if at == total:
            break
        row = id_of(near[at])
        count = _place(disk, placed, first, count, row)
        if (first + count) % disk.unit_rows == 0:
            break
        if read_at(disk.edges, PAGE + row * size, size, words, 0, 4 * edges_at) != size:
            words[0, edges_at + DEGREE] = np.uint32(0)
    return count
