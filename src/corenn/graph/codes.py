"""Codes of the rows: which, and keeping them whole.

They are made in one pass once there are enough rows, then row by row. Codes are soft: made from the vectors, at
hundreds of thousands to millions of rows per second, whenever they are not there.

Where all of them are made anew, they are written over the old ones, and CHOSEN is 0 meanwhile. Whoever has walked over
codes looks at it afterwards, in this process and others: see `CodeMarks`.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..errors import CoreNNError, DiskFullError
from ..kernels.codes import (
    AUTO,
    TRAINED,
    Codes,
    Form,
    asked_of,
    codes_of,
    encode_rows,
    form_in,
    form_of,
    product_form,
    product_sizes,
    search_codes,
)
from ..kernels.rotation import rotation_signs
from ..kernels.rows import Rows, decode_rows
from ..kernels.search import INFO, LIFELINE, Plan, Results, search_batch
from ..storage.commit import NO_IDS, as_runs
from ..storage.format import BOOK, CENTRE, CHOSEN, CODED, CODINGS, SLACK, TRIED
from ..storage.store import Store
from ..types import Float32s, UInt32s, UInt64s
from . import codebook
from .threads import Helpers

if TYPE_CHECKING:
    from .scratch import ScratchPool
    from .view import View

log = logging.getLogger("corenn.codes")

SEED = 0xC0DE  # of the rotation; the same everywhere, so that it need not be kept
SLICE = 1 << 12  # rows per kernel call: some milliseconds
SAMPLE = 64  # rows that stand for queries when codes are chosen
K, LIST = 10, 48
WORTH_BYTES = 128  # a vector has to be larger for codes to be tried
SMALLEST = "opq"  # the codes that can be made as small as memory asks for
CODES_SHARE = 2  # of the memory limit: codes may take a part in so many
ROOMY = 1.25  # finer codes are taken back once so many times as many rows as there are would leave room for them
FAITHFUL = 0.97  # share of the walk's own answers that a walk over codes must find
LEAST_TRAINED = 1 << 10  # rows below which no codebook is trained: queries scan so few
RETRAINED = 4  # times as many rows as when a codebook was trained, from which on another one is
SAMPLE_BYTES = 1 << 28  # of the vectors by which it is trained, at most
SAMPLE_SHARE = 8  # and of the memory limit: a part in so many, for they are held twice while they are rotated
MEASURED = (*TRAINED, "trunc")  # codes of which it hangs on the data how far their estimates err
ASKED = 256  # rows by which that is measured
# Factors by which estimates may err, tried in this order; and what measuring fewer than all may lose of recall.
SLACKS = (1.02, 1.05, 1.1, 1.2, 1.3, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0)
ALL = 1e30
LOST = 0.001


class CodeMarks(NamedTuple):
    """What the header of codes.slab says of the codes of a view. `changed` is true from when they are made anew on."""

    header: UInt64s
    chosen: int
    centre: int
    book: int

    @classmethod
    def of(cls, header: UInt64s) -> CodeMarks:
        return cls(header, header.item(CHOSEN), header.item(CENTRE), header.item(BOOK))

    @property
    def changed(self) -> bool:
        item = self.header.item  # three times as quick as an index and a comparison of NumPy's own
        found: bool = item(CHOSEN) != self.chosen or item(CENTRE) != self.centre or item(BOOK) != self.book
        return found


def centre_of(store: Store) -> int:
    """The row whose vector must stay what it is, since codes are relative to it; -1 if there is none."""
    if store.codes is None or chosen_mode(store) != "rabitq":
        return -1
    return int(store.codes.header[CENTRE])


def chosen_mode(store: Store) -> str:
    """The codes in use; "none" also while there are none."""
    number = 0 if store.codes is None else int(store.codes.header[CHOSEN])
    return CODINGS[number] if 0 < number < len(CODINGS) else "none"


def codes_due(store: Store, live: int) -> bool:
    """Whether codes are to be chosen or dropped: there are enough rows, and none of the kind that is asked for, be it
    that the setting has changed or that making them was cut off.
    """
    if store.codes is None:
        return False
    asked, chosen = store.settings.compression_mode, chosen_mode(store)
    if asked == "none":
        return bool(store.codes.header[CHOSEN])
    if store.codes.header[CHOSEN] and _suits(store, chosen, live):
        return False
    return live >= _least_coded(store, live)


def _least_coded(store: Store, rows: int) -> int:
    """Rows below which there are no codes. Where vectors and edges have outgrown the memory limit it does not count how
    many they are.
    """
    threshold, asked = store.settings.compression_threshold, store.settings.compression_mode
    if not _fits(store, "none", rows):
        return min(threshold, LEAST_TRAINED) if asked == "auto" or asked not in TRAINED else LEAST_TRAINED
    return max(threshold, LEAST_TRAINED if asked in TRAINED else 1)


def _suits(store: Store, chosen: str, rows: int) -> bool:
    """Whether the codes that were chosen, or that there are to be none, are what is asked for, and as large as they are
    to be for so many rows.
    """
    asked = store.settings.compression_mode
    if asked not in ("auto", chosen):
        return False
    if chosen not in TRAINED:
        return asked != "auto" or _fits(store, chosen, rows)
    if asked == "auto" and any(_fits(store, mode, int(rows * ROOMY)) for mode in (*AUTO, "none")):
        return False
    book, roomy = codebook.codebook_of(store), _subspaces(store, chosen, int(rows * ROOMY))
    return book is None or roomy <= len(book.starts) - 1 <= max(roomy, _subspaces(store, chosen, rows))


def codes_for(store: Store, rows: Rows, count: int) -> Codes | None:
    """The codes of a store as kernels take them, if all of the first `count` rows have theirs."""
    mode = chosen_mode(store)
    if store.codes is None or "none" in (mode, store.settings.compression_mode):
        return None
    if int(store.codes.header[CODED]) < count:
        return None
    codes = _as_codes(store, rows, mode)
    return codes if codes is not None and len(codes.vectors) >= count else None


def _as_codes(store: Store, rows: Rows, mode: str, slack: float | None = None) -> Codes | None:
    """None if their codebook is not there. slack: another one than was measured."""
    assert store.codes is not None
    signs, centre, book = None, None, None
    form = _form(store, mode)
    if mode == "rabitq":
        signs, centre = _signs(store.settings.dim), _centre(store, rows)
    elif mode in TRAINED:
        book = codebook.codebook_of(store)
        if book is None or len(book.starts) != form.subspaces + 1:
            return None
    flat = store.codes.array.reshape(-1)
    vectors = flat[: len(flat) // form.row_bytes * form.row_bytes].reshape(-1, form.row_bytes)
    slack = _slack_of(store) if slack is None else slack
    return codes_of(vectors, rows, form, signs=signs, centre=centre, book=book, slack=slack)


def _slack_of(store: Store) -> float:
    assert store.codes is not None
    word = float(store.codes.header[SLACK : SLACK + 1].view(np.float64)[0])
    return word if 1 < word <= ALL else 0.0  # anything else is damage


def _form(store: Store, mode: str) -> Form:
    """The form of codes of a mode, as they are: product codes have as many subspaces as their codebook, if that is not
    a number that was asked for.
    """
    book = codebook.codebook_of(store) if mode in TRAINED and not store.settings.pq_subspaces else None
    return form_of(store.settings, mode) if book is None else product_form(store.settings.dim, len(book.starts) - 1)


def _candidates(store: Store, rows: int) -> tuple[str, ...]:
    """What auto tries. Vectors of one or two cache lines are as quickly measured as codes are scored; but where there
    is not memory for them there must be codes, of whatever kind there is memory for.
    """
    if not _fits(store, "none", rows):
        return tuple(mode for mode in AUTO if _fits(store, mode, rows)) or (SMALLEST,)
    return AUTO if store.vectors.spec.row_bytes > WORTH_BYTES else ()


def _fits(store: Store, mode: str, rows: int) -> bool:
    """Whether what walks go over, of so many rows, is within a share of the memory limit. mode: not one of TRAINED."""
    limit = store.settings.memory_limit if store.path is not None else 0
    if mode != "none":
        return _has_room(store, form_of(store.settings, mode), rows)
    row_bytes = store.vectors.spec.row_bytes + store.edges.spec.row_bytes
    return not limit or rows * row_bytes <= limit


def _has_room(store: Store, form: Form, rows: int) -> bool:
    limit = store.settings.memory_limit if store.path is not None else 0
    return not limit or rows * form.row_bytes <= limit // CODES_SHARE


def _subspaces(store: Store, mode: str, rows: int) -> int:
    """How many subspaces the codes of so many rows are to have: as many as the memory limit has room for.

    Steering by finer codes saves reads, so auto takes more than is usual where it can.
    """
    settings = store.settings
    usual = form_of(settings, mode).subspaces
    if settings.pq_subspaces:
        return usual
    if _fits(store, "none", rows):
        return usual
    sizes = [min(size, settings.dim) for size in product_sizes(settings.dim)]
    most = max(sizes) if settings.compression_mode == "auto" else usual
    fitting = [size for size in sizes if size <= most and _has_room(store, product_form(settings.dim, size), rows)]
    return fitting[0] if fitting else sizes[-1]


def least_code_bytes(store: Store) -> int:
    """Bytes of a row of codes without which the database cannot be used: of those in use for who does not write, else
    of the smallest that it may change to by itself.
    """
    settings, used = store.settings, store.code_bytes
    if not store.writable or not used or settings.compression_mode == "none":
        return used
    small = SMALLEST if settings.compression_mode == "auto" else settings.compression_mode
    if small in TRAINED and not settings.pq_subspaces:
        return min(used, product_form(settings.dim, product_sizes(settings.dim)[-1]).row_bytes)
    return min(used, form_of(settings, small).row_bytes)


@lru_cache(maxsize=16)
def _signs(dim: int) -> Float32s:
    return rotation_signs(dim, SEED)


def _centre(store: Store, rows: Rows) -> Float32s:
    """The vector of the row that was made the centre, which never changes."""
    assert store.codes is not None
    row = min(int(store.codes.header[CENTRE]), len(rows.vectors) - 1)
    if store.centre is None or store.centre[0] != row:
        vector = np.empty((1, store.settings.dim), np.float32)
        decode_rows(rows, np.array([row], np.uint32), vector)
        store.centre = (row, vector[0])
    return store.centre[1]


def wrong_codes(store: Store, view: View) -> UInt32s:
    """Ids of the linked rows whose codes are missing or not those of their vectors, if codes are in use.

    Others have none yet, or none any more: a commit that was cut off may have written a vector there. Neither is it a
    fault that the newest rows wait for theirs, on a full disk: walks measure vectors until all rows have them.
    """
    mode = chosen_mode(store)
    if store.codes is None or mode == "none":
        return NO_IDS
    codes, rows = _as_codes(store, view.rows, mode), min(int(store.codes.header[CODED]), view.head.rows)
    if codes is None and not store.writable:
        return NO_IDS  # a reader learns of a new codebook by its next refresh
    coded = 0 if codes is None else min(rows, len(codes.vectors))
    wrong = [np.arange(coded, rows, dtype=np.uint32)]
    vector = np.empty(view.settings.dim, np.float32)
    form = _form(store, mode)
    asked = asked_of(form)
    for start in range(0, coded, SLICE):
        assert codes is not None
        found = codes.vectors[start : min(start + SLICE, coded)]
        made = np.zeros_like(found)
        encode_rows(view.rows, codes, start, made, vector, asked)
        differ = (made[:, : form.used] != found[:, : form.used]).any(axis=1)
        wrong.append((start + np.flatnonzero(differ)).astype(np.uint32))
    ids = np.concatenate(wrong)
    linked: UInt32s = ids[view.graph.edges[ids, LIFELINE] != 0]
    return linked


class Coder:
    """Chooses and makes codes. Used by the one thread that writes."""

    def __init__(self, store: Store, scratches: ScratchPool, helpers: Helpers) -> None:
        self._store = store
        self._scratches = scratches
        self._helpers = helpers

    def extend(self, view: View, ids: UInt32s = NO_IDS) -> None:
        """Give rows that have no code yet theirs, if codes are in use. ids: rows that may have that of another one."""
        slab, mode = self._store.codes, chosen_mode(self._store)
        if slab is None or mode == "none":
            return
        if mode in TRAINED and codebook.codebook_of(self._store) is None:
            log.warning("the codebook is missing or damaged; training another one")
            slab.header[CODED] = 0  # first: the codes that are there are not those of the new one
            if self._train(view, mode, view.head.live):
                self._make_all(view, mode)
            return
        coded = int(slab.header[CODED])
        again = ids[ids < coded]
        if len(again):
            self._encode_again(view, mode, again)
        if coded < view.head.rows:
            self._encode(view, mode, coded)

    def _encode_again(self, view: View, mode: str, ids: UInt32s) -> None:
        """Make the codes of rows whose ids belonged to others before."""
        codes = _as_codes(self._store, view.rows, mode)
        assert codes is not None
        vector, asked = np.empty(view.settings.dim, np.float32), asked_of(form_in(codes))
        for first, count in as_runs(ids).tolist():
            self._note(codes, first, first + count)
            encode_rows(view.rows, codes, first, codes.vectors[first : first + count], vector, asked)

    def begin(self, view: View, linked: int) -> None:
        """Choose codes and make them, once enough rows are linked; try the choice again whenever these have doubled."""
        store = self._store
        if store.codes is None:
            return
        header, asked = store.codes.header, store.settings.compression_mode
        if asked == "none":
            header[[CHOSEN, CODED]] = 0  # rows that come from now on get no codes: none may count as there
            return
        if linked < min(store.settings.compression_threshold, _least_coded(store, linked)):
            return
        chosen = chosen_mode(store)
        if codes_due(store, linked):
            modes = _candidates(store, linked) if asked == "auto" else (asked,)
        elif chosen in TRAINED and linked >= RETRAINED * int(header[TRIED]):
            modes = (chosen,)
        elif asked == "auto" and chosen in AUTO and linked >= 2 * int(header[TRIED]):
            if view.codes is None or self._faithful(view, chosen):
                header[TRIED] = linked
                return
            modes = tuple(mode for mode in AUTO[AUTO.index(chosen) + 1 :] if _fits(store, mode, linked))
            if not modes and not _fits(store, "none", linked):
                return
        else:
            return
        header[TRIED] = linked
        for mode in modes:
            header[CENTRE] = int(view.graph.entries[0]) if len(view.graph.entries) else 0
            header[CHOSEN] = 0
            if (mode in TRAINED and not self._train(view, mode, linked)) or not self._make_all(view, mode):
                return
            forced = mode == modes[-1] and not _fits(store, "none", linked)
            if asked != "auto" or forced or self._faithful(view, mode):
                header[CHOSEN] = CODINGS.index(mode)
                log.info("walks go over codes of the kind %s from now on", mode)
                return
        header[CHOSEN] = CODINGS.index("none")
        log.info("no codes tell these vectors apart well enough; walks measure them")

    def _train(self, view: View, mode: str, rows: int) -> bool:
        """Train a codebook by some of the rows, for so many of them, and keep it; False if that cannot be."""
        store, settings = self._store, view.settings
        linked = _linked(view)
        room = SAMPLE_BYTES
        if settings.memory_limit and store.path is not None:
            room = min(room, settings.memory_limit // SAMPLE_SHARE)
        most = min(settings.pq_sample_size, max(LEAST_TRAINED, room // (4 * settings.dim)), len(linked))
        if not most:
            return False
        sample = _evenly(linked, most)
        try:
            points = np.empty((most, settings.dim), np.float32)
            self._helpers.run(lambda first, stop: decode_rows(view.rows, sample[first:stop], points[first:stop]),
                              most, SLICE)  # fmt: skip
            version, subspaces = codebook.next_version(store), _subspaces(store, mode, rows)
            made = codebook.train(points, subspaces, version, self._helpers, rotated=mode == "opq")
            codebook.keep(store, made)
        except (CoreNNError, OSError, MemoryError):
            log.warning("no codebook could be trained or kept; walks measure vectors", exc_info=True)
            return False
        log.info("codebook %d: %d subspaces, trained by %d rows", version, subspaces, most)
        return True

    def _make_all(self, view: View, mode: str) -> bool:
        """Make the codes of all rows, and measure by how much their estimates err where that is not known beforehand;
        False if the disk has no room.
        """
        assert self._store.codes is not None
        header = self._store.codes.header
        header[SLACK] = 0
        if not self._encode(view, mode, 0):
            return False
        if mode in MEASURED:
            header[SLACK : SLACK + 1].view(np.float64)[0] = self._measured_slack(view, mode)
        return True

    def make_again(self, view: View, centre: int | None = None) -> None:
        """Make the codes of all rows from their vectors. centre: another row whose vector is to be the centre."""
        if self._store.codes is not None:
            self._store.codes.header[CODED] = 0
            if centre is not None:
                self._store.codes.header[CENTRE] = centre
            self.extend(view)

    def _encode(self, view: View, mode: str, first: int) -> bool:
        """Make the codes of all rows from `first` on; False if the disk has no room for them."""
        store, dim, stop = self._store, view.settings.dim, view.head.rows
        assert store.codes is not None
        store.codes.header[CODED] = first
        try:
            store.codes.reserve(-(-stop * _form(store, mode).row_bytes // store.codes.spec.columns))
        except DiskFullError:
            log.warning("no room on the disk for codes; walks measure vectors until there is")
            return False
        codes = _as_codes(store, view.rows, mode)
        assert codes is not None
        form, vectors = form_in(codes), codes.vectors
        self._note(codes, first, stop)

        def part(start: int, end: int) -> None:
            vector, asked = np.empty(dim, np.float32), asked_of(form)
            encode_rows(view.rows, codes, first + start, vectors[first + start : first + end], vector, asked)

        self._helpers.run(part, stop - first, SLICE)
        store.codes.header[CODED] = stop
        return True

    def _note(self, codes: Codes, first: int, stop: int) -> None:
        """Say that the codes of some rows are about to change; the rows of the slab are those of the widest codes."""
        slab, width = self._store.codes, codes.vectors.shape[1]
        assert slab is not None
        slab.note(slice(first * width // slab.spec.columns, -(-stop * width // slab.spec.columns)))

    def _faithful(self, view: View, mode: str) -> bool:
        """Whether walks over the codes find what walks over the vectors find: tried with rows as queries."""
        ids, queries = self._sample(view, SAMPLE)
        return _agreement(self._walk(view, None, ids, queries), self._walk(view, mode, ids, queries)) >= FAITHFUL

    def _measured_slack(self, view: View, mode: str) -> float:
        """The least factor with which measuring finds as much as if all candidates were measured, or nearly.

        Rows stand for queries, each hidden from its own walk: at a row itself estimates err less than elsewhere.
        """
        ids, queries = self._sample(view, ASKED)
        wanted = self._walk(view, None, ids, queries, hide=True)
        best = _agreement(wanted, self._walk(view, mode, ids, queries, hide=True, slack=ALL))
        for slack in SLACKS:
            if _agreement(wanted, self._walk(view, mode, ids, queries, hide=True, slack=slack)) >= best - LOST:
                return slack
        return ALL

    def _sample(self, view: View, count: int) -> tuple[UInt32s, Float32s]:
        linked = np.flatnonzero(view.graph.edges[: view.head.rows, LIFELINE] != 0).astype(np.uint32)
        sample = _evenly(linked, count)
        queries = np.empty((len(sample), view.settings.dim), np.float32)
        decode_rows(view.rows, sample, queries)
        return sample, queries

    def _walk(
        self, view: View, mode: str | None, ids: UInt32s, queries: Float32s, *, hide: bool = False,
        slack: float | None = None,
    ) -> UInt32s:  # fmt: skip
        """What walks find: uint32 (queries, K). mode: None to measure vectors. hide: `ids` from their own walks."""
        plan = Plan(LIST, 1, view.metric, view.tombstones, LIST + 1, np.float32(1))
        size, scratch = self._scratches.take(view, plan)
        found = _results(len(ids))
        codes = None if mode is None else _as_codes(self._store, view.rows, mode, slack)
        asked = None if codes is None else asked_of(form_in(codes))
        step = 1 if hide else max(len(ids), 1)
        for at in range(0, len(ids), step):
            if hide:
                plan = plan._replace(hidden=int(ids[at]))
            some = queries[at : at + step]
            stop = at + step
            part = Results(found.ids[at:stop], found.distances[at:stop], found.info[at:stop])
            if codes is None:
                search_batch(view.rows, view.graph, view.live, plan, some, scratch, part)
            else:
                search_codes(view.rows, codes, view.graph, view.live, plan, some, scratch, asked, part)
        self._scratches.give(size, scratch)
        return found.ids


def _linked(view: View) -> UInt32s:
    """Ids of the live rows that are in the graph; where there are none, of all that are live."""
    alive = view.alive()
    linked = alive & (view.graph.edges[: view.head.rows, LIFELINE] != 0)
    return np.flatnonzero(linked if linked.any() else alive).astype(np.uint32)


def _evenly(ids: UInt32s, count: int) -> UInt32s:
    """So many of `ids`, or all, at even distances."""
    chosen: UInt32s = ids[np.linspace(0, len(ids) - 1, min(count, len(ids))).astype(np.int64)]
    return chosen


def _agreement(one: UInt32s, other: UInt32s) -> float:
    return float(np.mean([np.isin(some, others).mean() for some, others in zip(one, other, strict=True)]))


def _results(count: int) -> Results:
    return Results(np.zeros((count, K), np.uint32), np.zeros((count, K), np.float32), np.zeros((count, INFO), np.int64))
