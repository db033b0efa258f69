"""Linking a first load for which there is not enough memory at once: in parts, which are merged (DiskANN, 2019).

Rows are dealt out to parts by the leaders that they are nearest to, a row near a border to both sides of it. Each part
is copied into memory and linked there as a whole is; its edges go to a file. A row that was in two parts gets the edges
of both, in turns, and all are threaded onto one ring. What is read and written is read and written in order, but for
the rows themselves when a part is gathered.

A part takes half of the memory limit at most, so the outcome depends on the rows and the limit, never on threads. On
the disk it takes the edges once more for each part that a row is in, while it lasts.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np

from ..kernels.candidates import VACANT
from ..kernels.search import DEGREE, FIRST_NEIGHBOUR
from ..storage.commit import NO_IDS, Commit, Head
from ..storage.format import NO_ID
from ..storage.store import Store
from ..types import AnyArray, Float32s, UInt32s
from . import bulk
from .bulk import Builder, Progress, StoppedError
from .scratch import ScratchPool
from .threads import Helpers
from .view import View, radius_of, set_radius, take_view

log = logging.getLogger("corenn.parts")

LEAST_ROWS = 4_000  # of a part: with fewer, inserting is as quick
SHARE = 2  # one part takes at most one in so many bytes of the limit
BORDER = 4  # leaders of a row, by which it is told whether it lies near a border
LEADERS = 16  # for each part
FEWEST, MOST = 64, 4096
TRIES = 8
SHRINK = 0.8
GATHERED = 256  # rows copied between two looks at what is resident
MERGED = 4_096
RING_ROWS = 64
NOWHERE = 0xFFFF


def room_of(store: Store) -> int:
    """Rows of a part that there is memory for."""
    slabs = (store.vectors, store.seals, store.edges, store.state, store.keys)
    width = sum(slab.spec.columns * np.dtype(slab.spec.dtype).itemsize for slab in slabs)
    slots = 4 * bulk.OUTER * bulk.INNER * bulk.KEPT * (2 if store.settings.metric == "ip" else 1)
    return int(store.settings.memory_limit // SHARE // (width + slots + bulk.ROW_BYTES))


class Parts:
    """Links rows into a graph that is empty so far, part by part. Used by the one thread that writes."""

    def __init__(self, store: Store, scratches: ScratchPool, helpers: Helpers, builder: Builder) -> None:
        self._store = store
        self._scratches = scratches
        self._helpers = helpers
        self._builder = builder

    def build(self, ids: UInt32s, head: Head, stop: Callable[[], bool], progress: Progress | None = None) -> bool:
        """Link `ids`, as `Builder.build` does, with a part of them in memory at a time."""
        tell = progress or (lambda step, done, total: None)
        assert self._store.path is not None
        self._store.edges.note(slice(0, head.rows))
        self._builder.begin(stop, progress)
        try:
            self._builder.clear(ids)
            view = take_view(self._store, head, NO_IDS)
            dealt = self._deal(view, ids, room_of(self._store))
            with _file(self._store.path) as file:
                starts = [0]
                for members in _parts(dealt):
                    if stop():
                        raise StoppedError
                    self._link(view, ids[members], file, stop)
                    starts.append(starts[-1] + len(members))
                    tell("parts", starts[-1], int((dealt != NOWHERE).sum()))
                self._merge(view, ids, dealt, starts, file, stop)
            self._builder.thread(view, ids, RING_ROWS)
        except StoppedError:
            self._builder.clear(ids)
            return False
        return True

    def _deal(self, view: View, ids: UInt32s, room: int) -> AnyArray:
        """The parts of each row, uint16 (ids, 2), ascending, NOWHERE for none. No part has more than `room` rows."""
        count = min(max(LEADERS * 2 * len(ids) // room, FEWEST), MOST, len(ids))
        chosen = np.sort(np.random.default_rng(len(ids)).choice(len(ids), count, replace=False))
        near = self._builder.assign_leaders(view, ids, ids[chosen], min(BORDER, count), "dealing")
        weights = np.bincount(near[:, 0], minlength=count)
        places = self._builder.places(view, ids[chosen])
        target = float(room)
        for _ in range(TRIES):
            dealt = _deal_by(near, _packed(places, weights, target))
            if _sizes(dealt).max() <= room:
                break
            target *= SHRINK
        else:
            dealt = _cut(dealt, room)
        sizes = _sizes(dealt)
        log.info("%d rows in %d parts of %d rows at most", len(ids), len(sizes), sizes.max())
        return dealt

    def _link(self, view: View, ids: UInt32s, file: IO[bytes], stop: Callable[[], bool]) -> None:
        """Link some rows among themselves, and write their edges behind the others in the file."""
        settings = replace(view.settings, memory_limit=0, compression_mode="none", durability="os")
        part = Store.in_memory(settings)
        try:
            rows, seals = (self._gathered(slab.array, ids) for slab in (self._store.vectors, self._store.seals))
            own = np.arange(len(ids), dtype=np.uint32)
            part.commit(Commit(1, own, range(len(ids)), [NO_ID] * len(ids), [None] * len(ids), rows, seals))
            del rows, seals
            set_radius(part, radius_of(self._store))
            if not Builder(part, self._scratches, self._helpers).build(own, part.metadata.head, stop):
                raise StoppedError
            found = part.edges.array[: len(ids)]
            for start in range(0, len(ids), MERGED):
                some = found[start : start + MERGED].copy()
                neighbours = some[:, FIRST_NEIGHBOUR:]
                there = np.arange(neighbours.shape[1]) < some[:, DEGREE : DEGREE + 1]
                some[:, FIRST_NEIGHBOUR:] = np.where(there, ids[np.where(there, neighbours, 0)], VACANT)
                file.write(some.tobytes())
                self._helpers.between()
        finally:
            part.close()

    def _gathered(self, rows: AnyArray, ids: UInt32s) -> AnyArray:
        out = np.empty((len(ids), rows.shape[1]), rows.dtype)
        for start in range(0, len(ids), GATHERED):
            out[start : start + GATHERED] = rows[ids[start : start + GATHERED]]
            self._helpers.between()
        return out

    def _merge(
        self, view: View, ids: UInt32s, dealt: AnyArray, starts: list[int], file: IO[bytes], stop: Callable[[], bool]
    ) -> None:
        """Give each row the edges that it has in its parts."""
        edges = view.graph.edges
        width = edges.shape[1]
        slots = width - FIRST_NEIGHBOUR
        done = starts[:-1].copy()
        file.flush()
        for start in range(0, len(ids), MERGED):
            if stop():
                raise StoppedError
            mine = dealt[start : start + MERGED]
            given = np.full((len(mine), slots, 2), VACANT, np.uint32)
            for part in np.unique(mine[mine != NOWHERE]):
                at, which = np.nonzero(mine == part)
                file.seek(done[part] * width * 4)
                read = np.frombuffer(file.read(len(at) * width * 4), np.uint32).reshape(-1, width)
                given[at, :, which] = read[:, FIRST_NEIGHBOUR:]
                done[part] += len(at)
            chosen, degrees = in_turns(given.reshape(len(mine), -1), slots)
            rows = np.zeros((len(mine), width), np.uint32)
            rows[:, DEGREE] = degrees
            rows[:, FIRST_NEIGHBOUR:] = np.where(chosen == VACANT, 0, chosen)
            edges[ids[start : start + MERGED]] = rows
            self._helpers.between()


def in_turns(given: UInt32s, slots: int) -> tuple[UInt32s, AnyArray]:
    """The first `slots` of each row of `given` that stand there for the first time, VACANT behind; and how many."""
    order = np.argsort(given, axis=1, kind="stable")
    ordered = np.take_along_axis(given, order, axis=1)
    again = np.zeros(given.shape, np.bool_)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    left = np.empty(given.shape, np.bool_)
    np.put_along_axis(left, order, again | (ordered == VACANT), axis=1)
    front = np.argsort(left, axis=1, kind="stable")[:, :slots]
    chosen = np.where(np.take_along_axis(left, front, axis=1), VACANT, np.take_along_axis(given, front, axis=1))
    return chosen.astype(np.uint32), (chosen != VACANT).sum(axis=1)


def _parts(dealt: AnyArray) -> Iterator[AnyArray]:
    """The places of the rows of each part, ascending."""
    for part in range(len(_sizes(dealt))):
        yield np.flatnonzero((dealt == part).any(axis=1))


def _sizes(dealt: AnyArray) -> AnyArray:
    return np.bincount(dealt[dealt != NOWHERE])


def _deal_by(near: AnyArray, parts: AnyArray) -> AnyArray:
    """The part of the nearest leader, and the first other one among those of the leaders behind it."""
    dealt = np.full((len(near), 2), NOWHERE, np.uint16)
    for start in range(0, len(near), 1 << 16):
        of = parts[near[start : start + (1 << 16)]]
        other = of != of[:, :1]
        second = np.take_along_axis(of, other.argmax(axis=1)[:, None], axis=1)[:, 0]
        pair = np.stack((of[:, 0], np.where(other.any(axis=1), second, NOWHERE)), axis=1)
        dealt[start : start + (1 << 16)] = np.sort(pair, axis=1)
    return dealt


def _packed(places: Float32s, weights: AnyArray, target: float) -> AnyArray:
    """The part of each leader, uint16: halves of halves along the longest way, until none weighs more than `target`.

    Sums of a single thread: the parts do not depend on how many there are.
    """
    parts = np.zeros(len(places), np.uint16)
    waiting, number = [np.arange(len(places))], 0
    while waiting:
        members = waiting.pop()
        if len(members) == 1 or weights[members].sum() * 2 <= target:
            parts[members] = number
            number += 1
            continue
        some = places[members]
        one = some[((some - some.mean(axis=0)) ** 2).sum(axis=1).argmax()]
        other = some[((some - one) ** 2).sum(axis=1).argmax()]
        order = members[np.argsort((some * (other - one)).sum(axis=1), kind="stable")]
        heaped = np.cumsum(weights[order])
        middle = min(max(int(np.searchsorted(heaped, heaped[-1] / 2)), 1), len(order) - 1)
        waiting += [order[middle:], order[:middle]]
    return parts


def _cut(dealt: AnyArray, room: int) -> AnyArray:
    """Parts that are too large because their rows are too much alike, cut up; each row is in one part only."""
    alone = np.full_like(dealt, NOWHERE)
    number = 0
    for part in range(len(_sizes(dealt))):
        members = np.flatnonzero(dealt[:, 0] == part)
        for piece in np.array_split(members, max(-(-len(members) // room), 1)):
            if len(piece):
                alone[piece, 0] = number
                number += 1
    return alone


def _file(folder: Path) -> IO[bytes]:
    return tempfile.TemporaryFile(dir=folder)  # written, not mapped: a full disk is an error
