"""Linking a first load for which there is not enough memory at once: in parts, which are merged (DiskANN, 2019).

Rows are dealt out to parts by the leaders that they are nearest to, each to the part of the nearest one and, where
there is room, to the next other one. Each part is copied into memory and linked there as a whole is; its edges go to a
file. One part more is a sample of all rows, whose edges lead where no border does. A row of several parts gets the
edges of all, in turns, and the rings of all parts are joined to one. So no vector is looked at but those of the part
that is in memory, and all is read and written in order: a first version threaded the ring over mapped rows and read 125
GB for 150,000 of them, once the system had no room to keep them.

A part takes a third of the memory limit at most, so the outcome depends on the rows and the limit, never on threads. On
the disk it takes the edges once more for each part that a row is in, while it lasts (`most_bytes`).

What is linked is kept in parts.slab (storage/parts.py), with the plan of who is in which part. Cut off, by the death of
the process as well, the next one goes on with the part that was not finished, and the outcome is the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ..errors import DiskFullError
from ..kernels.candidates import VACANT
from ..kernels.carve import MOST
from ..kernels.search import BORN, DEGREE, DIED, FIRST_NEIGHBOUR, LIFELINE
from ..storage.commit import NO_IDS, Commit, Head
from ..storage.format import NO_ID
from ..storage.parts import PartsFile, digest_of, plan_bytes, remove
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
MOST_PARTS = 1 << 15  # of which numbers of 16 bits leave half for those that are cut up
DIVIDED = 0.9  # of a part: where cutting leaves more of it together, its rows are too much alike
KIND = "parts 1"  # what is kept of another kind is begun anew


def room_of(store: Store) -> int:
    """Rows of a part that there is memory for."""
    return int(store.settings.memory_limit // SHARE // _row_bytes(store))


def worthwhile(store: Store, count: int) -> bool:
    """Whether parts are better than inserts for so many rows: not if they are tiny, or more than can be told apart, and
    not under `ip`.

    There, edges lead to the longest rows of all, which a part does not have: recall@10 was .81 where the whole had .97.
    """
    room = room_of(store)
    return store.settings.metric != "ip" and room >= LEAST_ROWS and count <= MOST_PARTS * int(OWN * room)


def most_bytes(store: Store, count: int) -> int:
    """Bytes that parts of so many rows take on the disk at most, while they last.

    A row is in two of them, and one in so many as a part has room for in a third one, the sample.
    """
    edges = int(store.edges.spec.row_bytes)
    return (2 * count + min(room_of(store), count)) * edges + plan_bytes(count) + (1 << 16)


def _row_bytes(store: Store) -> int:
    """Bytes that a row of a part takes at most: in its files, once more as it is copied, and while it is linked."""
    slabs = (store.vectors, store.seals, store.vectors, store.seals, store.edges, store.state, store.keys)
    own = sum(slab.spec.columns * np.dtype(slab.spec.dtype).itemsize for slab in slabs)
    slots = 4 * bulk.OUTER * bulk.INNER * bulk.KEPT * (2 if store.settings.metric == "ip" else 1)
    return int(own + slots + bulk.ROW_BYTES)


@dataclass(frozen=True, slots=True)
class Linked:
    """A part that is linked: the places of the first and the last row of its ring, none where all stand on others; and
    how distances grow.
    """

    ends: list[int]
    growth: float


class Parts:
    """Links rows into a graph that is empty so far, part by part. Used by the one thread that writes."""

    def __init__(self, store: Store, scratches: ScratchPool, helpers: Helpers, builder: Builder) -> None:
        self._store = store
        self._scratches = scratches
        self._helpers = helpers
        self._builder = builder
        self._ring: UInt32s = NO_IDS
        self._linked: dict[int, Linked] = {}
        self._begun_how = ""  # the settings with which that was begun
        self.kept = 0  # parts that were linked, by this or an earlier process, and need not be again

    def build(
        self, ids: UInt32s, head: Head, stop: Callable[[], bool], progress: Progress | None = None,
        pause: Callable[[], bool] = lambda: False,
    ) -> UInt32s | None:  # fmt: skip
        """Link `ids`, as `Builder.build` does, with a part of them in memory at a time. Returns those that are linked:
        those that live, or those with which an earlier call has begun; None if it stopped on the way.

        pause: asked between two parts whether to leave the rest to another call, which goes on there.

        Raises:
            DiskFullError, StorageError: if the disk has no room for their edges. Nothing is linked, and what is there
            of them is kept.
        """
        tell = progress or (lambda step, done, total: None)
        self._builder.begin(stop, progress)
        try:
            view = take_view(self._store, head, NO_IDS)
            file = self._begun(view, ids) or self._begin(view, ids, tell)
            self._store.working = len(file.ids) * HELD_BYTES
            done, total = int(file.sizes[list(self._linked)].sum()), int(file.sizes.sum())
            tell("parts", done, total)
            for number in sorted(set(range(len(file.sizes))) - set(self._linked)):
                if stop() or pause():
                    raise StoppedError
                self._link(view, file, number, stop)
                done += int(file.sizes[number])
                tell("parts", done, total)
            self._store.edges.note(slice(0, head.rows))
            self._merge(view, file, stop, tell)
            for number in range(len(file.sizes)):
                if growth := self._linked[number].growth:
                    note_growth(self._store, np.full(bulk.SAMPLE, growth, np.float32))
            return file.ids
        except StoppedError:
            return None
        finally:
            if self._store.parts is None:
                self._forget()

    def discard(self) -> None:
        """Remove what is kept of parts: it is linked, or of no use."""
        file, self._store.parts = self._store.parts, None
        self._forget()
        if file is not None:
            file.close()
        if self._store.folder is not None:
            remove(self._store.files, self._store.folder)

    def _forget(self) -> None:
        self._ring, self._linked = NO_IDS, {}
        self._store.working = 0

    # --- the plan --------------------------------------------------------------------------------------------------

    def _begin(self, view: View, ids: UInt32s, tell: Progress) -> PartsFile:
        """Deal the rows that live out to parts."""
        store = self._store
        assert store.folder is not None
        self.discard()
        self.kept = 0
        ids = ids[store.state.array[ids, DIED] == 0]
        needed, free = most_bytes(store, len(ids)), store.files.free_bytes(store.folder)
        if free < needed:
            raise DiskFullError(
                f"to link {len(ids):,} rows within memory_limit={store.settings.memory_limit:,} takes up to "
                f"{needed:,} bytes beside the database for a while, and the disk of {store.folder} has {free:,} free; "
                f"make room for {needed - free:,} more"
            )
        store.working = len(ids) * (HELD_BYTES + DEALT_BYTES)
        store.edges.note(slice(0, view.head.rows))
        self._builder.clear(ids)
        dealt = self._deal(view, ids, room_of(store))
        store.parts = PartsFile.create(
            store.files, store.folder, store.edges.spec, self._what(ids), ids, dealt, NOWHERE
        )  # fmt: skip
        self._ring, self._begun_how = np.zeros(len(ids), np.uint32), self._how()
        return store.parts

    def _begun(self, view: View, ids: UInt32s) -> PartsFile | None:
        """What an earlier call or process has begun of these rows, if all that it has taken is still to be linked."""
        store = self._store
        if store.parts is not None:  # of this process: its rows wait, for nobody else takes rows from those that do
            fits = store.parts.sizes.max() <= room_of(store)
            return store.parts if fits and self._how() == self._begun_how else None
        assert store.folder is not None
        found = PartsFile.open(store.files, store.folder, store.edges.spec, NOWHERE)
        if found is None:
            return None
        file, what = found
        waiting = np.zeros(view.head.rows, np.bool_)
        waiting[ids] = True
        same = int(file.ids.max()) < view.head.rows and bool(waiting[file.ids].all())
        if not same or what != self._what(file.ids) or file.sizes.max() > room_of(store):
            log.info("%s is of other rows or settings; they are linked anew", file.path)
            file.close()
            return None
        store.parts, self._begun_how = file, self._how()
        self._ring, self._linked = np.zeros(len(file.ids), np.uint32), {}
        store.edges.note(slice(0, view.head.rows))
        self._builder.clear(file.ids)  # it may have been cut off while it merged
        self._take_up(file)
        return file

    def _take_up(self, file: PartsFile) -> None:
        """Count the parts that are linked, and keep their rings."""
        for number in range(len(file.sizes)):
            if self._builder.stopped():
                raise StoppedError
            taken = file.taken(number, LIFELINE, self._helpers.between)
            if taken is not None:
                self._note(file, number, *taken)
        self.kept = len(self._linked)
        log.info("%d of %d parts of %d rows are linked already", self.kept, len(file.sizes), len(file.ids))

    def _what(self, ids: UInt32s) -> bytes:
        """What parts follow from: the rows, and how they are dealt and linked."""
        births = np.ascontiguousarray(self._store.state.array[ids, BORN])
        return digest_of(self._how(), ids.tobytes(), births.tobytes())

    def _how(self) -> str:
        settings = self._store.settings
        shape = (settings.dim, settings.metric, settings.dtype, settings.max_edges, settings.distance_threshold)
        return repr((KIND, *shape, BORDER, LEADERS, OWN, bulk.OUTER, bulk.INNER, bulk.KEPT, bulk.CLUSTER, bulk.LEAF))

    def _deal(self, view: View, ids: UInt32s, room: int) -> AnyArray:
        """The parts of each row, uint16 (ids, 3), NOWHERE for none, the first that on whose ring it stands.

        No part has more than `room` rows, and none is empty.
        """
        everywhere = np.arange(len(ids))
        dealt = self._dealt_among(view, ids, everywhere, everywhere, room, "dealing")
        dealt = self._cut(view, ids, dealt, room)
        _fit(dealt, room)
        dealt = _with_sample(_numbered(dealt), room)
        sizes = _sizes(dealt)
        log.info("%d rows in %d parts of %d rows at most", len(ids), len(sizes), sizes.max())
        return dealt

    def _dealt_among(
        self, view: View, ids: UInt32s, members: AnyArray, places: AnyArray, room: int, step: str
    ) -> AnyArray:
        """The parts of the rows at `places` in `ids`, uint16 (places, 2): those in which `members`, places as well, are
        put, as many to each as leaves room for others.
        """
        own = max(int(OWN * room), 1)
        count = min(max(LEADERS * 2 * len(members) // room, FEWEST), MOST, len(members))
        random = np.random.default_rng(len(members))
        chosen = members[np.sort(random.choice(len(members), count, replace=False))]
        near = self._builder.assign_leaders(view, ids[places], ids[chosen], min(BORDER, count), step)
        weights = np.bincount(near[:, 0], minlength=count)
        return _deal_by(near, _packed(self._builder.places(view, ids[chosen]), weights, -(-len(members) // own)))

    def _cut(self, view: View, ids: UInt32s, dealt: AnyArray, room: int) -> AnyArray:
        """Deal parts that are too large out again, by leaders of their own, or else, where their rows are too much
        alike for that, in their order. All other parts stay what they are.
        """
        waiting = np.flatnonzero(np.bincount(dealt[:, 0]) > room).tolist()
        number = int(_sizes(dealt).size)
        while waiting:
            if number > MOST_PARTS:  # those that were cut up have left theirs free
                dealt = _numbered(dealt)
                number = int(_sizes(dealt).size)
                waiting = np.flatnonzero(np.bincount(dealt[:, 0]) > room).tolist()
            part = waiting.pop()
            own = np.flatnonzero(dealt[:, 0] == part)
            guests = np.flatnonzero(dealt[:, 1] == part)
            among = self._dealt_among(view, ids, own, np.concatenate((own, guests)), room, "")
            inside = among[: len(own)]
            if np.bincount(inside[:, 0]).max() > DIVIDED * len(own):
                pieces = -(-len(own) // room)
                dealt[own, 0] = number + np.arange(len(own)) * pieces // len(own)
                dealt[guests, 1] = NOWHERE
                number += pieces
                continue
            sizes = np.bincount(inside[:, 0])
            dealt[own, 0] = inside[:, 0] + np.uint16(number)
            other = inside[:, 1] != NOWHERE
            dealt[own[other], 1] = inside[other, 1] + np.uint16(number)
            dealt[guests, 1] = among[len(own) :, 0] + np.uint16(number)
            waiting += (number + np.flatnonzero(sizes > room)).tolist()
            number += len(_sizes(among))
        return dealt

    # --- linking ---------------------------------------------------------------------------------------------------

    def _link(self, view: View, file: PartsFile, number: int, stop: Callable[[], bool]) -> None:
        """Link the rows of a part among themselves, and keep their edges."""
        members = _members(file.dealt, number)
        ids = file.ids[members]
        held = len(file.ids) * HELD_BYTES
        self._store.working = held + len(ids) * _row_bytes(self._store)
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
            growth = 0.0
            if number < MEASURED and len(own) > LEAST_ROWS:
                growth = self._measure(part, builder)
            found = part.edges.array[: len(ids)]
            file.begin()
            for start in range(0, len(ids), MERGED):
                some = found[start : start + MERGED].copy()
                neighbours = some[:, FIRST_NEIGHBOUR:]
                there = np.arange(neighbours.shape[1]) < some[:, DEGREE : DEGREE + 1]
                some[:, FIRST_NEIGHBOUR:] = np.where(there, ids[np.where(there, neighbours, 0)], VACANT)
                file.add(number, some)
                self._helpers.between()
            file.finish(number, growth)
            self.kept += 1
            self._note(file, number, found[:, LIFELINE], growth)
        finally:
            part.close()
            del part
            give_back_heap()
            self._store.working = held

    @staticmethod
    def _measure(part: Store, builder: Builder) -> float:
        """How distances grow with rank within a part; 0 if that cannot be told."""
        set_entries(part, np.zeros(1, np.uint32))
        builder.measure_growth(take_view(part, part.metadata.head, NO_IDS))
        return growth_of(part)

    def _note(self, file: PartsFile, number: int, lifelines: UInt32s, growth: float) -> None:
        """A part is linked: keep its ring, without the rows that stand on another one's, and how distances grow.

        lifelines: of its rows, by their places in the part, and 1 more.
        """
        members = _members(file.dealt, number)
        ids, home = file.ids[members], file.dealt[members, 0] == number
        after, at, order = lifelines.tolist(), 0, []
        for _ in range(len(after)):
            order.append(at)
            at = after[at] - 1
        ring = np.array(order)[home[order]]
        if len(ring):
            self._ring[members[ring[:-1]]] = ids[ring[1:]] + np.uint32(1)
        self._linked[number] = Linked(members[ring[[0, -1]]].tolist() if len(ring) else [], growth)

    def _gathered(self, slab: Slab, ids: UInt32s) -> AnyArray:
        rows = slab.array
        out = np.empty((len(ids), rows.shape[1]), rows.dtype)
        for start in range(0, len(ids), GATHERED):
            if isinstance(slab, FileSlab):
                slab.will_need(ids[start : start + GATHERED])
            out[start : start + GATHERED] = rows[ids[start : start + GATHERED]]
            self._helpers.between()
        return out

    def _merge(self, view: View, file: PartsFile, stop: Callable[[], bool], tell: Progress) -> None:
        """Give each row the edges that it has in its parts, and let the last row of each ring lead to the first of the
        next. Stopped, it leaves nothing linked.
        """
        ids, dealt, edges = file.ids, file.dealt, view.graph.edges
        ends = [each.ends for _, each in sorted(self._linked.items()) if each.ends]
        for (_, last), (first, _) in zip(ends, ends[1:] + ends[:1], strict=True):
            self._ring[last] = ids[first] + np.uint32(1)
        width = edges.shape[1]
        slots = width - FIRST_NEIGHBOUR
        done = np.zeros(len(file.sizes), np.int64)
        for start in range(0, len(ids), MERGED):
            if stop():
                self._builder.clear(ids)
                raise StoppedError
            mine = dealt[start : start + MERGED]
            given = np.full((len(mine), slots, mine.shape[1]), VACANT, np.uint32)
            for part in np.unique(mine[mine != NOWHERE]):
                at, which = np.nonzero(mine == part)
                given[at, :, which] = file.rows(int(part), int(done[part]), len(at))[:, FIRST_NEIGHBOUR:]
                done[part] += len(at)
            chosen, degrees = in_turns(given.reshape(len(mine), -1), slots)
            rows = np.zeros((len(mine), width), np.uint32)
            rows[:, DEGREE], rows[:, LIFELINE] = degrees, self._ring[start : start + MERGED]
            rows[:, FIRST_NEIGHBOUR:] = np.where(chosen == VACANT, 0, chosen)
            edges[ids[start : start + MERGED]] = rows
            self._helpers.between()
            tell("merging", min(start + MERGED, len(ids)), len(ids))


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


def _members(dealt: AnyArray, part: int) -> AnyArray:
    """The places of the rows of a part, ascending."""
    return np.flatnonzero((dealt == part).any(axis=1))


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
    own = np.bincount(dealt[:, 0], minlength=len(_sizes(dealt)))  # a part may have guests alone
    for part, size in enumerate(own):
        guests = np.flatnonzero(dealt[:, 1] == part)
        free = room - int(size)
        if len(guests) > free:
            kept = np.linspace(0, len(guests) - 1, free).astype(np.int64)
            dealt[np.delete(guests, kept), 1] = NOWHERE


def _numbered(dealt: AnyArray) -> AnyArray:
    """The same parts, numbered without a gap."""
    there = _sizes(dealt) > 0
    numbers = np.full(NOWHERE + 1, NOWHERE, np.uint16)
    numbers[np.flatnonzero(there)] = np.arange(int(there.sum()), dtype=np.uint16)
    for start in range(0, len(dealt), 1 << 16):
        dealt[start : start + (1 << 16)] = numbers[dealt[start : start + (1 << 16)]]
    return dealt


def _with_sample(dealt: AnyArray, room: int) -> AnyArray:
    """One part more, of rows from everywhere: their edges lead from part to part, where no border does."""
    sample = np.linspace(0, len(dealt) - 1, min(room, len(dealt))).astype(np.int64)
    more = np.full((len(dealt), 1), NOWHERE, np.uint16)
    more[sample] = len(_sizes(dealt))
    return np.concatenate((dealt, more), axis=1)
