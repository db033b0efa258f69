"""Codes of the rows: which, and keeping them whole.

They are made in one pass once there are enough rows, then row by row. Codes are soft: made from the vectors, at
millions of rows per second, whenever they are not there.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DiskFullError
from ..kernels.codes import AUTO, TAIL, Codes, asked_of, bits_of, code_width, codes_of, encode_rows, search_codes
from ..kernels.rotation import rotation_signs
from ..kernels.rows import Rows, decode_rows
from ..kernels.search import LIFELINE, Plan, Results, search_batch
from ..storage.commit import NO_IDS, as_runs
from ..storage.format import CENTRE, CHOSEN, CODED, CODINGS, TRIED
from ..storage.store import Store
from ..types import Float32s, UInt32s
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
FAITHFUL = 0.97  # share of the walk's own answers that a walk over codes must find


def centre_of(store: Store) -> int:
    """The row whose vector must stay what it is, since codes are relative to it; -1 if there is none."""
    if store.codes is None or chosen_mode(store) != "rabitq":
        return -1
    return int(store.codes.header[CENTRE])


def chosen_mode(store: Store) -> str:
    """The codes in use; "none" also while there are none."""
    number = 0 if store.codes is None else int(store.codes.header[CHOSEN])
    return CODINGS[number] if 0 < number < len(CODINGS) else "none"


def codes_for(store: Store, rows: Rows, count: int) -> Codes | None:
    """The codes of a store as kernels take them, if all of the first `count` rows have theirs."""
    mode = chosen_mode(store)
    if store.codes is None or mode == "none" or int(store.codes.header[CODED]) < count:
        return None
    codes = _as_codes(store, rows, mode)
    return codes if len(codes.vectors) >= count else None


def _as_codes(store: Store, rows: Rows, mode: str) -> Codes:
    assert store.codes is not None
    dim = store.settings.dim
    if mode != "rabitq":
        signs, centre = _unturned(dim)
    else:
        signs, centre = _signs(dim), _centre(store, rows)
    width = code_width(dim, mode)
    flat = store.codes.array.reshape(-1)
    vectors = flat[: len(flat) // width * width].reshape(-1, width)
    return codes_of(vectors, rows, bits_of(mode, dim), signs, centre)


def _candidates(store: Store) -> tuple[str, ...]:
    """What auto tries. Vectors of one or two cache lines are as quickly measured as codes are scored."""
    return AUTO if store.vectors.spec.row_bytes > WORTH_BYTES else ()


@lru_cache(maxsize=16)
def _unturned(dim: int) -> tuple[Float32s, Float32s]:
    return np.zeros((0, dim), np.float32), np.zeros(dim, np.float32)


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
    coded = min(rows, len(codes.vectors))
    wrong = [np.arange(coded, rows, dtype=np.uint32)]
    vector = np.empty(view.settings.dim, np.float32)
    turned = np.zeros((2, codes.signs.shape[1]), np.float32)
    for start in range(0, coded, SLICE):
        found = codes.vectors[start : min(start + SLICE, coded)]
        made = np.zeros_like(found)
        encode_rows(view.rows, codes, start, made, vector, turned)
        differ = (made[:, : codes.body + TAIL] != found[:, : codes.body + TAIL]).any(axis=1)
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
        coded = int(slab.header[CODED])
        again = ids[ids < coded]
        if len(again):
            self._encode_again(view, mode, again)
        if coded < view.head.rows:
            self._encode(view, mode, coded)

    def _encode_again(self, view: View, mode: str, ids: UInt32s) -> None:
        """Make the codes of rows whose ids belonged to others before."""
        codes = _as_codes(self._store, view.rows, mode)
        vector = np.empty(view.settings.dim, np.float32)
        turned = np.zeros((2, codes.signs.shape[1]), np.float32)
        for first, count in as_runs(ids).tolist():
            self._note(codes, first, first + count)
            encode_rows(view.rows, codes, first, codes.vectors[first : first + count], vector, turned)

    def begin(self, view: View, linked: int) -> None:
        """Choose codes and make them, once enough rows are linked; try the choice again whenever these have doubled."""
        store = self._store
        if store.codes is None or linked < store.settings.compression_threshold:
            return
        header, asked = store.codes.header, store.settings.compression_mode
        if not header[CHOSEN]:
            modes = _candidates(store) if asked == "auto" else (asked,)
        elif asked == "auto" and chosen_mode(store) != "none" and linked >= 2 * int(header[TRIED]):
            if view.codes is None or self._faithful(view, chosen_mode(store)):
                header[TRIED] = linked
                return
            modes = AUTO[AUTO.index(chosen_mode(store)) + 1 :]
        else:
            return
        header[TRIED] = linked
        for mode in modes:
            header[CENTRE] = int(view.graph.entries[0]) if len(view.graph.entries) else 0
            header[CHOSEN] = 0
            if not self._encode(view, mode, 0):
                return
            if asked != "auto" or self._faithful(view, mode):
                header[CHOSEN] = CODINGS.index(mode)
                log.info("walks go over codes of the kind %s from now on", mode)
                return
        header[CHOSEN] = CODINGS.index("none")
        log.info("no codes tell these vectors apart well enough; walks measure them")

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
            store.codes.reserve(-(-stop * code_width(dim, mode) // store.codes.spec.columns))
        except DiskFullError:
            log.warning("no room on the disk for codes; walks measure vectors until there is")
            return False
        codes = _as_codes(store, view.rows, mode)
        self._note(codes, first, stop)

        def part(start: int, end: int) -> None:
            vector, turned = np.empty(dim, np.float32), np.zeros((2, codes.signs.shape[1]), np.float32)
            encode_rows(view.rows, codes, first + start, codes.vectors[first + start : first + end], vector, turned)

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
        linked = np.flatnonzero(view.graph.edges[: view.head.rows, LIFELINE] != 0)
        sample = linked[np.linspace(0, len(linked) - 1, min(SAMPLE, len(linked))).astype(np.int64)].astype(np.uint32)
        queries = np.empty((len(sample), view.settings.dim), np.float32)
        decode_rows(view.rows, sample, queries)
        plan = Plan(LIST, 1, view.metric, view.tombstones, LIST + 1, np.float32(1))
        plain, coded = _results(len(sample)), _results(len(sample))
        size, scratch = self._scratches.take(view, plan)
        search_batch(view.rows, view.graph, view.live, plan, queries, scratch, plain)
        codes = _as_codes(self._store, view.rows, mode)
        asked = asked_of(codes.signs.shape[1], codes.bits)
        search_codes(view.rows, codes, view.graph, view.live, plan, queries, scratch, asked, coded)
        self._scratches.give(size, scratch)
        found = np.mean([np.isin(one, other).mean() for one, other in zip(plain.ids, coded.ids, strict=True)])
        return bool(found >= FAITHFUL)


def _results(count: int) -> Results:
    return Results(np.zeros((count, K), np.uint32), np.zeros((count, K), np.float32), np.zeros((count, 4), np.int64))
