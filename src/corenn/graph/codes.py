"""Codes of the rows: which there are, and keeping them whole.

Codes are soft: made from the vectors, at hundreds of thousands to millions of rows per second, whenever they are not
there. Rows that come get theirs before they are linked. Other codes in the place of those that there are come by way of
recode.py.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import DiskFullError
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
)
from ..kernels.rotation import rotation_signs
from ..kernels.rows import Rows, decode_rows
from ..kernels.search import LIFELINE
from ..storage.commit import NO_IDS, as_runs
from ..storage.format import CENTRE, CHOSEN, CODED, CODINGS, SLACK
from ..storage.slab import Slab
from ..storage.store import Store
from ..types import Bytes, Float32s, UInt32s
from .codebook import codebook_of, rotate
from .threads import Helpers

if TYPE_CHECKING:
    from .view import View

log = logging.getLogger("corenn.codes")

SEED = 0xC0DE  # of the rotation; the same everywhere, so that it need not be kept
SLICE = 1 << 10  # rows per kernel call: some milliseconds
WORTH_BYTES = 128  # a vector has to be larger for codes to be tried
SMALLEST = "opq"  # the codes that can be made as small as memory asks for
CODES_SHARE = 2  # of the memory limit: codes may take a part in so many
ROOMY = 1.25  # finer codes are taken back once so many times as many rows as there are would leave room for them
LEAST_TRAINED = 1 << 10  # rows below which no codebook is trained: queries scan so few
ROUNDING = 1e-4  # by so much of itself a sum may differ that was added up in another order
BETWEEN = 64  # of so many components one may lie so near to the middle between two levels
MOST_BEHIND = 1 << 14  # rows without codes, beside new ones, beyond which inserts leave them to the background


def centres_of(store: Store) -> UInt32s:
    """The rows whose vectors must stay what they are, since codes are relative to them."""
    slabs = [slab for slab in (store.codes, store.draft) if slab is not None and mode_in(slab) == "rabitq"]
    return np.array([int(slab.header[CENTRE]) for slab in slabs], np.uint32)


def mode_in(slab: Slab | None) -> str:
    """The codes that a file holds; "none" also where none have been chosen."""
    number = 0 if slab is None else int(slab.header[CHOSEN])
    return CODINGS[number] if 0 < number < len(CODINGS) else "none"


def chosen_mode(store: Store) -> str:
    """The codes in use; "none" also while there are none."""
    return mode_in(store.codes)


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
    return live >= least_coded(store, live)


def least_coded(store: Store, rows: int) -> int:
    """Rows below which there are no codes. Where vectors and edges have outgrown the memory limit it does not count how
    many they are.
    """
    threshold, asked = store.settings.compression_threshold, store.settings.compression_mode
    if not fits(store, "none", rows):
        return min(threshold, LEAST_TRAINED) if asked == "auto" or asked not in TRAINED else LEAST_TRAINED
    return max(threshold, LEAST_TRAINED if asked in TRAINED else 1)


def _suits(store: Store, chosen: str, rows: int) -> bool:
    """Whether the codes that were chosen, or that there are to be none, are what is asked for, and as large as they are
    to be for so many rows.
    """
    asked = store.settings.compression_mode
    if asked not in ("auto", chosen):
        return False
    if asked == "auto" and chosen not in (*AUTO, SMALLEST, "none"):
        return False  # somebody has asked for it by name before
    if chosen not in TRAINED:
        # Where there is room for vectors that are as quickly measured, codes were made for want of it.
        spared = chosen != "none" and not candidates(store, int(rows * ROOMY))
        return asked != "auto" or (fits(store, chosen, rows) and not spared)
    if asked == "auto" and any(fits(store, mode, int(rows * ROOMY)) for mode in (*AUTO, "none")):
        return False
    book, roomy = codebook_of(store, store.codes), subspaces_for(store, chosen, int(rows * ROOMY))
    return book is None or roomy <= len(book.starts) - 1 <= max(roomy, subspaces_for(store, chosen, rows))


def codes_for(store: Store, rows: Rows, count: int) -> Codes | None:
    """The codes of a store as kernels take them, if all of the first `count` rows have theirs."""
    if store.codes is None or "none" in (chosen_mode(store), store.settings.compression_mode):
        return None
    if int(store.codes.header[CODED]) < count or not store.trusts_codes:
        return None
    codes = codes_in(store, store.codes, rows)
    return codes if codes is not None and len(codes.vectors) >= count else None


def codes_in(store: Store, slab: Slab, rows: Rows) -> Codes | None:
    """The codes of a file of them; None if their codebook is not there. Codes of any width follow each other."""
    mode, signs, centre, book = mode_in(slab), None, None, None
    form = form_used(store, slab)
    if mode == "rabitq":
        signs, centre = _signs(store.settings.dim), _centre(store, slab, rows)
    elif mode in TRAINED:
        book = codebook_of(store, slab)
        if book is None or len(book.starts) != form.subspaces + 1:
            return None
    flat = slab.array.reshape(-1)
    vectors = flat[: len(flat) // form.row_bytes * form.row_bytes].reshape(-1, form.row_bytes)
    return codes_of(vectors, rows, form, signs=signs, centre=centre, book=book, slack=_slack_in(slab))


def _slack_in(slab: Slab) -> float:
    word = float(slab.header[SLACK : SLACK + 1].view(np.float64)[0])
    return word if 1 < word < np.inf else 0.0  # anything else is damage


def form_used(store: Store, slab: Slab) -> Form:
    """The form of the codes in a file: product codes have as many subspaces as their codebook, if that is not a number
    that was asked for.
    """
    mode = mode_in(slab)
    book = codebook_of(store, slab) if mode in TRAINED and not store.settings.pq_subspaces else None
    return form_of(store.settings, mode) if book is None else product_form(store.settings.dim, len(book.starts) - 1)


def candidates(store: Store, rows: int) -> tuple[str, ...]:
    """What auto tries. Vectors of one or two cache lines are as quickly measured as codes are scored; but where there
    is not memory for them there must be codes, of whatever kind there is memory for.
    """
    if not fits(store, "none", rows):
        return tuple(mode for mode in AUTO if fits(store, mode, rows)) or (SMALLEST,)
    return AUTO if store.vectors.spec.row_bytes > WORTH_BYTES else ()


def fits(store: Store, mode: str, rows: int) -> bool:
    """Whether what walks go over, of so many rows, is within a share of the memory limit. mode: not one of TRAINED."""
    limit = store.settings.memory_limit if store.path is not None else 0
    if not limit:
        return True
    if mode != "none":
        return _has_room(store, form_of(store.settings, mode), rows)
    return rows * (int(store.vectors.spec.row_bytes) + int(store.edges.spec.row_bytes)) <= limit


def _has_room(store: Store, form: Form, rows: int) -> bool:
    limit = store.settings.memory_limit if store.path is not None else 0
    return not limit or rows * form.row_bytes <= limit // CODES_SHARE


def subspaces_for(store: Store, mode: str, rows: int) -> int:
    """How many subspaces the codes of so many rows are to have: as many as the memory limit has room for.

    Steering by finer codes saves reads, so auto takes more than is usual where it can.
    """
    settings = store.settings
    usual = form_of(settings, mode).subspaces
    if settings.pq_subspaces or fits(store, "none", rows):
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


def _centre(store: Store, slab: Slab, rows: Rows) -> Float32s:
    """The vector of the row that was made the centre, which never changes."""
    row = min(int(slab.header[CENTRE]), len(rows.vectors) - 1)
    if store.centre is None or store.centre[0] is not slab or store.centre[1] != row:
        vector = np.empty((1, store.settings.dim), np.float32)
        decode_rows(rows, np.array([row], np.uint32), vector)
        store.centre = (slab, row, vector[0])
    return store.centre[2]


def wrong_codes(store: Store, view: View) -> UInt32s:
    """Ids of the linked rows whose codes are missing or not those of their vectors, if codes are in use.

    Others have none yet, or none any more: a commit that was cut off may have written a vector there. Neither is it a
    fault that the newest rows wait for theirs, on a full disk, nor that all do, for want of a codebook: walks measure
    vectors until all rows have them.
    """
    slab, mode = store.codes, chosen_mode(store)
    codes = None if slab is None or mode == "none" else codes_in(store, slab, view.rows)
    if slab is None or codes is None or not store.trusts_codes:
        return NO_IDS
    rows = min(int(slab.header[CODED]), view.head.rows)
    coded = min(rows, len(codes.vectors))
    wrong = [np.arange(coded, rows, dtype=np.uint32)]
    vector = np.empty(view.settings.dim, np.float32)
    form = form_used(store, slab)
    asked = asked_of(form)
    for start in range(0, coded, SLICE):
        found = codes.vectors[start : min(start + SLICE, coded)]
        made = np.zeros_like(found)
        encode_rows(view.rows, codes, start, made, vector, asked)
        differ = np.flatnonzero((made[:, : form.used] != found[:, : form.used]).any(axis=1))
        ids = (start + differ).astype(np.uint32)
        wrong.append(ids[~_as_good(view, codes, form, ids, found[differ], made[differ])])
    ids = np.concatenate(wrong)
    linked: UInt32s = ids[view.graph.edges[ids, LIFELINE] != 0]
    return linked


def _as_good(view: View, codes: Codes, form: Form, ids: UInt32s, found: Bytes, made: Bytes) -> NDArray[np.bool_]:
    """Which rows have codes that another processor may have made of their vectors.

    It adds up in another order: so numbers may differ in their last digits, and a component that lies between two
    levels, or a piece between two centroids, may have got either.
    """
    if form.subspaces:
        error, least = (
            np.square(less_centroids(codes, turned(view, codes, ids), each), dtype=np.float64).sum(axis=1)
            for each in (found, made)
        )
        as_near: NDArray[np.bool_] = error <= least * (1 + ROUNDING) + np.finfo(np.float32).tiny
        return as_near
    tails = (np.ascontiguousarray(each[:, form.body : form.used]).view("<f4") for each in (found, made))
    one, other = (tail.astype(np.float64) for tail in tails)
    scale, offset, square = np.abs(other).T
    reach = offset + scale * (1 << form.bits)
    near = ROUNDING * np.stack([scale, reach, square + reach**2], axis=1)
    levels, wanted = (_levels(each[:, : form.body], form.bits) for each in (found, made))
    apart = np.abs(levels.astype(np.int16) - wanted)
    few = (apart.max(axis=1) <= 1) & (apart.sum(axis=1) <= 1 + form.length // BETWEEN)
    with np.errstate(invalid="ignore"):  # what is no number is near to nothing
        alike: NDArray[np.bool_] = few & (np.abs(one - other) <= near).all(axis=1)
        return alike


def _levels(body: Bytes, bits: int) -> Bytes:
    """The levels in the bytes of codes, one of a part after the other, uint8 (n, levels)."""
    return np.concatenate([(body >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)], axis=1)


def turned(view: View, codes: Codes, ids: UInt32s) -> Float32s:
    """Rows as product codes are made of them, float32 (n, dim): less the centre, in the directions of the rotation."""
    points = np.empty((len(ids), view.settings.dim), np.float32)
    decode_rows(view.rows, ids, points)
    points -= codes.centre
    return rotate(points, codes.turn) if len(codes.turn) else points


def less_centroids(codes: Codes, points: Float32s, stored: Bytes) -> Float32s:
    """What product codes, uint8 (n, bytes of a code), do not say of such points, which are changed."""
    for number, (first, stop) in enumerate(pairwise(codes.starts.tolist())):
        points[:, first:stop] -= codes.books[first:stop, stored[:, number]].T
    return points


def encode_range(
    view: View, codes: Codes, first: int, out: Bytes, helpers: Helpers, threads: int | None = None
) -> None:
    """Write the codes of rows from `first` on, uint8 (n, bytes of a code). threads: of the helpers, see there."""
    form = form_in(codes)

    def part(start: int, stop: int) -> None:
        vector, asked = np.empty(view.settings.dim, np.float32), asked_of(form)
        encode_rows(view.rows, codes, first + start, out[start:stop], vector, asked)

    helpers.run(part, len(out), SLICE, threads)
    if view.disk is not None:
        view.disk.release(first, first + len(out))


class Coder:
    """Keeps the codes in use up with the rows. Used by the one thread that writes."""

    def __init__(self, store: Store, helpers: Helpers) -> None:
        self._store = store
        self._helpers = helpers

    def extend(self, view: View, ids: UInt32s = NO_IDS) -> None:
        """Give rows that have no code yet theirs, if codes are in use. ids: rows that may have that of another one.

        Many that lack one beside these are not waited for: see `catch_up`.
        """
        slab = self._store.codes
        if slab is None or mode_in(slab) == "none" or codes_in(self._store, slab, view.rows) is None:
            return
        coded = int(slab.header[CODED])
        again = ids[ids < coded]
        if len(again):
            self._encode_again(view, slab, again)
        if coded < view.head.rows <= coded + len(ids) + MOST_BEHIND:
            self.catch_up(view, view.head.rows - coded)

    def _encode_again(self, view: View, slab: Slab, ids: UInt32s) -> None:
        """Make the codes of rows whose ids belonged to others before."""
        codes = codes_in(self._store, slab, view.rows)
        assert codes is not None
        for first, count in as_runs(ids).tolist():
            _note(slab, codes, first, first + count)
            encode_range(view, codes, first, codes.vectors[first : first + count], self._helpers)

    def catch_up(self, view: View, count: int, threads: int | None = None) -> bool:
        """Make the codes of so many rows that have none yet; False if the disk has no room for them."""
        store, slab = self._store, self._store.codes
        assert slab is not None
        first = int(slab.header[CODED])
        stop = min(first + count, view.head.rows)
        try:
            slab.reserve(-(-stop * form_used(store, slab).row_bytes // slab.spec.columns))
        except DiskFullError:
            log.warning("no room on the disk for codes; walks measure vectors until there is")
            return False
        codes = codes_in(store, slab, view.rows)
        assert codes is not None
        _note(slab, codes, first, stop)
        encode_range(view, codes, first, codes.vectors[first:stop], self._helpers, threads)
        slab.header[CODED] = stop
        return True

    def make_again(self, view: View, centre: int | None = None) -> None:
        """Make the codes of all rows from their vectors. centre: another row whose vector is to be the centre."""
        slab = self._store.codes
        if slab is None or mode_in(slab) == "none":
            return
        slab.header[CODED] = 0
        if centre is not None:
            slab.header[CENTRE] = centre
        if codes_in(self._store, slab, view.rows) is not None:
            self.catch_up(view, view.head.rows)


def _note(slab: Slab, codes: Codes, first: int, stop: int) -> None:
    """Say that the codes of some rows are about to change; the rows of the slab may be wider than they are."""
    width = codes.vectors.shape[1]
    slab.note(slice(first * width // slab.spec.columns, -(-stop * width // slab.spec.columns)))
