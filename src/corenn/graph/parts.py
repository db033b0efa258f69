"""Linking a first load for which there is not enough memory at once: in parts, which are merged (DiskANN, 2019).

Rows are dealt out to parts by the leaders that they are nearest to, each to the part of the nearest one and, where
there is room, to the next other one. Each part is copied into memory and linked there as a whole is; its edges go to a
file. One part more is a sample of all rows, whose edges lead where no border does. A row of several parts gets the
edges of all, in turns, and the rings of all parts are joined to one. So no vector is looked at but those of the part
that is in memory, and all is read and written in order: a first version threaded the ring over mapped rows and read 125
GB for 150,000 of them, once the system had no room to keep them.

A part takes a third of the memory limit at most, so the outcome depends on the rows and the limit, never on threads. On
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

from ..errors import StorageError
from ..kernels.candidates import VACANT
from ..kernels.carve import MOST
from ..kernels.search import DEGREE, FIRST_NEIGHBOUR, LIFELINE
from ..storage.commit import NO_IDS, Commit, Head
from ..storage.format import NO_ID
from ..storage.platform import give_back_heap
from ..storage.slab import FileSlab, Slab
from ..storage.store import Store
from ..types import AnyArray, Float32s, UInt32s
from . import bulk
from .bulk import Builder, Progress, StoppedError
from .scratch import ScratchPool
from .threads import Helpers
from .view import View, growth_of, note_growth, radius_of, set_entries, set_radius, take_view

log = logging.getLogger("corenn.parts")

LEAST_ROWS = 4_000  # of a part: with fewer, inserting is as quick
SHARE = 3  # one part takes at most one in so many bytes of the limit
BORDER = 16  # leaders of a row, by which it is told whether it lies near a border
LEADERS = 16  # for each part
FEWEST = 64  # and MOST, which the kernel tells apart
OWN = 0.45  # of the room of a part, for rows whose nearest leader is in it
GATHERED = 256  # rows copied between two looks at what is resident
MERGED = 4_096
HELD_BYTES = 4 + 3 * 2 + 4  # per row, all the time: its id, its parts, the next one on the ring
DEALT_BYTES = 2 * BORDER  # while it is dealt out: its leaders
MEASURED = 4  # parts in which the growth of distances is measured
NOWHERE = 0xFFFF


def room_of(store: Store) -> int:
    """Rows of a part that there is memory for."""
    return int(store.settings.memory_limit // SHARE // _row_bytes(store))


def worthwhile(store: Store) -> bool:
    """Whether parts are better than inserts: not if they are tiny, and not under `ip`.

    There, edges lead to the longest rows of all, which a part does not have: recall@10 was .81 where the whole had .97.
    """
    return store.settings.metric != "ip" and room_of(store) >= LEAST_ROWS


def _row_bytes(store: Store) -> int:
    """Bytes that a row of a part takes at most: in its files, once more as it is copied, and while it is linked."""
    slabs = (store.vectors, store.seals, store.vectors, store.seals, store.edges, store.state, store.keys)
    own = sum(slab.spec.columns * np.dtype(slab.spec.dtype).itemsize for slab in slabs)
    slots = 4 * bulk.OUTER * bulk.INNER * bulk.KEPT * (2 if store.settings.metric == "ip" else 1)
    return int(own + slots + bulk.ROW_BYTES)


class Parts:
    """Links rows into a graph that is empty so far, part by part. Used by the one thread that writes."""

    def __init__(self, store: Store, scratches: ScratchPool, helpers: Helpers, builder: Builder) -> None:
        self._store = store
        self._scratches = scratches
        self._helpers = helpers
        self._builder = builder
        self._ring: UInt32s = NO_IDS
        self._ends: list[tuple[int, int]] = []

    def build(self, ids: UInt32s, head: Head, stop: Callable[[], bool], progress: Progress | None = None) -> bool:
        """Link `ids`, as `Builder.build` does, with a part of them in memory at a time.

        Raises:
            StorageError: if the disk has no room for their edges. Nothing is linked.
        """
        tell = progress or (lambda step, done, total: None)
        assert self._store.path is not None
        self._store.edges.note(slice(0, head.rows))
        self._builder.begin(stop, progress)
        try:
            self._store.working = len(ids) * (HELD_BYTES + DEALT_BYTES)
            self._builder.clear(ids)
            view = take_view(self._store, head, NO_IDS)
            dealt = self._deal(view, ids, room_of(self._store))
            self._store.working = len(ids) * HELD_BYTES
            self._ring, self._ends = np.zeros(len(ids), np.uint32), []
            with _file(self._store.path) as file:
                starts = [0]
                for number, members in enumerate(_parts(dealt)):
                    if stop():
                        raise StoppedError
                    self._link(view, ids, members, dealt[members, 0] == number, file, stop)
                    starts.append(starts[-1] + len(members))
                    tell("parts", starts[-1], int((dealt != NOWHERE).sum()))
                self._join(ids)
                self._merge(view, ids, dealt, starts, file, stop)
        except StoppedError:
            self._builder.clear(ids)
            return False
        except OSError as error:
            self._builder.clear(ids)
            raise StorageError(
                f"cannot keep the edges of parts in {self._store.path}: {error.strerror}; free some space and try again"
            ) from error
        finally:
            self._ring, self._ends = NO_IDS, []
            self._store.working = 0
        return True

    def _deal(self, view: View, ids: UInt32s, room: int) -> AnyArray:
        """The parts of each row, uint16 (ids, 3), NOWHERE for none, the first that on whose ring it stands.

        No part has more than `room` rows.
        """
        count = min(max(LEADERS * 2 * len(ids) // room, FEWEST), MOST, len(ids))
        chosen = np.sort(np.random.default_rng(len(ids)).choice(len(ids), count, replace=False))
        near = self._builder.assign_leaders(view, ids, ids[chosen], min(BORDER, count), "dealing")
        weights = np.bincount(near[:, 0], minlength=count)
        places = self._builder.places(view, ids[chosen])
        dealt = _deal_by(near, _packed(places, weights, -(-len(ids) // int(OWN * room))))
        if np.bincount(dealt[:, 0]).max() > room:
            dealt = _cut(dealt, room)
        _fit(dealt, room)
        dealt = _with_sample(dealt, room)
        sizes = _sizes(dealt)
        log.info("%d rows in %d parts of %d rows at most", len(ids), len(sizes), sizes.max())
        return dealt

    def _link(
        self, view: View, everything: UInt32s, members: AnyArray, home: AnyArray, file: IO[bytes],
        stop: Callable[[], bool],
    ) -> None:  # fmt: skip
        """Link some rows among themselves, and write their edges behind the others in the file.

        members: places in `everything`. home: which of them stand on the ring of this part, and not of another one.
        """
        ids = everything[members]
        self._store.working = len(everything) * HELD_BYTES + len(ids) * _row_bytes(self._store)
        settings = replace(view.settings, memory_limit=0, compression_mode="none", durability="os")
        part = Store.in_memory(settings)
        try:
            rows, seals = (self._gathered(slab, ids) for slab in (self._store.vectors, self._store.seals))
            own = np.arange(len(ids), dtype=np.uint32)
            part.commit(Commit(1, own, range(len(ids)), [NO_ID] * len(ids), [None] * len(ids), rows, seals))
            del rows, seals
            set_radius(part, radius_of(self._store))
            builder = Builder(part, self._scratches, self._helpers)
            if not builder.build(own, part.metadata.head, stop):
                raise StoppedError
            if len(self._ends) < MEASURED and len(own) > LEAST_ROWS:
                self._measure(part, builder)
            self._note_ring(part.edges.array[: len(ids), LIFELINE], ids, members, home)
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
            del part
            give_back_heap()
            self._store.working = len(everything) * HELD_BYTES

    def _measure(self, part: Store, builder: Builder) -> None:
        """Note how distances grow with rank: as they do within some of the parts."""
        set_entries(part, np.zeros(1, np.uint32))
        builder.measure_growth(take_view(part, part.metadata.head, NO_IDS))
        growth = growth_of(part)
        if growth:
            note_growth(self._store, np.full(bulk.SAMPLE, growth, np.float32))

    def _note_ring(self, lifelines: UInt32s, ids: UInt32s, members: AnyArray, home: AnyArray) -> None:
        """Keep the ring of a part, without the rows that stand on another one's."""
        after, at, order = lifelines.tolist(), 0, []
        for _ in range(len(after)):
            order.append(at)
            at = after[at] - 1
        ring = np.array(order)[home[order]]
        if len(ring):
            self._ring[members[ring[:-1]]] = ids[ring[1:]] + np.uint32(1)
            self._ends.append((int(members[ring[0]]), int(members[ring[-1]])))

    def _join(self, ids: UInt32s) -> None:
        """Let the last row of each ring lead to the first of the next."""
        for (_, last), (first, _) in zip(self._ends, self._ends[1:] + self._ends[:1], strict=True):
            self._ring[last] = ids[first] + np.uint32(1)

    def _gathered(self, slab: Slab, ids: UInt32s) -> AnyArray:
        rows = slab.array
        out = np.empty((len(ids), rows.shape[1]), rows.dtype)
        for start in range(0, len(ids), GATHERED):
            if isinstance(slab, FileSlab):
                slab.will_need(ids[start : start + GATHERED])
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
            given = np.full((len(mine), slots, mine.shape[1]), VACANT, np.uint32)
            for part in np.unique(mine[mine != NOWHERE]):
                at, which = np.nonzero(mine == part)
                file.seek(done[part] * width * 4)
                read = np.frombuffer(file.read(len(at) * width * 4), np.uint32).reshape(-1, width)
                given[at, :, which] = read[:, FIRST_NEIGHBOUR:]
                done[part] += len(at)
            chosen, degrees = in_turns(given.reshape(len(mine), -1), slots)
            rows = np.zeros((len(mine), width), np.uint32)
            rows[:, DEGREE], rows[:, LIFELINE] = degrees, self._ring[start : start + MERGED]
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
        dealt[start : start + (1 << 16), 0] = of[:, 0]
        dealt[start : start + (1 << 16), 1] = np.where(other.any(axis=1), second, NOWHERE)
    return dealt


def _packed(places: Float32s, weights: AnyArray, count: int) -> AnyArray:
    """The part of each leader, uint16, 0 to count - 1 at most: cut again and again across the longest way, by weight.

    Sums of a single thread: the parts do not depend on how many there are.
    """
    parts = np.zeros(len(places), np.uint16)
    waiting, number = [(np.arange(len(places)), count)], 0
    while waiting:
        members, pieces = waiting.pop()
        if len(members) == 1 or pieces <= 1:
            parts[members] = number
            number += 1
            continue
        some = places[members]
        one = some[((some - some.mean(axis=0)) ** 2).sum(axis=1).argmax()]
        other = some[((some - one) ** 2).sum(axis=1).argmax()]
        order = members[np.argsort((some * (other - one)).sum(axis=1), kind="stable")]
        heaped = np.cumsum(weights[order])
        less = pieces // 2
        cut = min(max(int(np.searchsorted(heaped, heaped[-1] * less / pieces)), 1), len(order) - 1)
        waiting += [(order[cut:], pieces - less), (order[:cut], less)]
    return parts


def _fit(dealt: AnyArray, room: int) -> None:
    """Of the rows that are in a part for the second time, leave as many as there is room for, evenly drawn."""
    own = np.bincount(dealt[:, 0])
    for part, size in enumerate(own):
        guests = np.flatnonzero(dealt[:, 1] == part)
        free = room - int(size)
        if len(guests) > free:
            kept = np.linspace(0, len(guests) - 1, free).astype(np.int64)
            dealt[np.delete(guests, kept), 1] = NOWHERE


def _with_sample(dealt: AnyArray, room: int) -> AnyArray:
    """One part more, of rows from everywhere: their edges lead from part to part, where no border does."""
    sample = np.linspace(0, len(dealt) - 1, min(room, len(dealt))).astype(np.int64)
    more = np.full((len(dealt), 1), NOWHERE, np.uint16)
    more[sample] = len(_sizes(dealt))
    return np.concatenate((dealt, more), axis=1)


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
