"""Codes: vectors in 8, 4, 2 or 1 bits per component, which a walk scores in their stead.

A component is about offset + scale * code, with a scale and an offset for each vector. The distance to a query comes
from the product of the codes, which are small unsigned integers, with the query in signed bytes. Three kinds:

- *Scalar* codes of the vector itself. Its range is cut into even steps; nothing is trained. The kept square is that of
  what the codes stand for, less the square of what they miss, so that estimates near the vector are right on the whole.
- *RaBitQ* (Gao & Long 2024; more than a bit: Gao et al. 2025): the vector less a centre is rotated at random, so that
  its components are spread alike whatever the data, and each is a sign, or one of four or sixteen levels. The kept
  square is the vector's own, and the scale makes the estimate of its product with any query unbiased: with r the
  residual and v its code (odd numbers), <q, r> is about <q, v> |r|² / <v, r>.
- *Truncated* vectors, whose first components say most (Kusupati et al., Matryoshka, 2022): scalar codes of these. The
  cosine of the beginnings stands for that of the whole, lengths are those of the whole.

A fourth kind, *product* codes, has tables in the place of products: see product.py.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ..config import Settings
from ..types import AnyArray, Bytes, Float32s, Int64s
from .candidates import distance_of, id_of, pack, sort
from .intrinsics import LINE_BYTES, dot_bytes, float_at, float_bits
from .jit import inlined, kernel
from .product import CENTROIDS, Codebook, choose_centroids, fill_table, look_up
from .rotation import padded, rotate
from .rows import AIMERS, SCORERS, aim_at, decode, distance, prefetch_row
from .search import AHEAD, DISTANCES, FOUND, HOPS, aim, beam_search, emit, navigate

AUTO = ("sq4", "sq8")  # the codes that are tried, in this order, where none are asked for
TRAINED = ("pq", "opq")  # codes with a codebook
TAIL = 12  # bytes behind the codes of a row: scale, offset and square, float32 each
SCALE, OFFSET, SQUARE = 0, 4, 8  # where in the tail
ALIGNED = 16
SHRINKS = 4  # ranges that are tried for a scalar code, each narrower than the one before
SHRINK = np.float32(0.08)  # by so much of the whole: to cut off outliers may be nearer in all
# Of components spread as the normal distribution: the step of the best even quantizer by its bits, in standard
# deviations (Max 1960).
STEPS = {1: 0.0, 2: 0.9957, 4: 0.3352, 8: 0.0308}
SLACK = {1: np.float32(2.2), 2: np.float32(1.5), 4: np.float32(1.25), 8: np.float32(1.05)}
LENGTH, SUM, LEVEL = 0, 1, 2  # what is known of the query: its square, the sum of its components, one level
MOST_LEVEL = 127  # of a query's component


class Codes(NamedTuple):
    """vectors: uint8 (rows, code_bytes). seals, dim, radius: see kernels.rows, of the vectors behind the codes.

    bits: per component, or per subspace. body: bytes before the tail. signs: float32 (rounds, length), the random
    rotation, no rounds for others than RaBitQ; length: components that are coded. centre: float32 (dim,). step: of
    RaBitQ's levels, in standard deviations. slack: the factor by which estimates of squared distances may err before
    the best are measured. turn, starts, books: see product.Codebook; empty but for product codes.
    """

    vectors: Bytes
    seals: Float32s
    dim: int
    radius: np.float32
    bits: int
    body: int
    signs: Float32s
    centre: Float32s
    step: np.float32
    slack: np.float32
    turn: Float32s
    starts: Int64s
    books: Float32s


class Asked(NamedTuple):
    """A query as codes are scored against it; belongs to one thread.

    levels: int8, its 8 / bits parts a multiple of 16. terms: float32 (3,). turned: float32 (2, length), working memory.
    table: uint16 (subspaces, CENTROIDS), no rows but for product codes. sums: float32 (max(subspaces, 1), CENTROIDS),
    working memory.
    """

    levels: AnyArray
    terms: Float32s
    turned: Float32s
    table: AnyArray
    sums: Float32s


class Scorer(NamedTuple):
    """Codes with a query. Its first four fields are those that a walk expects of rows."""

    vectors: Bytes
    seals: Float32s
    dim: int
    radius: np.float32
    codes: Codes
    asked: Asked


class Form(NamedTuple):
    """Of codes of one mode: length, the components that are coded; bits for each, or for each of the subspaces."""

    length: int
    bits: int
    subspaces: int = 0

    @property
    def body(self) -> int:
        """Bytes of a row before its tail."""
        return self.subspaces or -(-self.length * self.bits // 8)

    @property
    def used(self) -> int:
        """Bytes of a row that mean something."""
        return self.body + (0 if self.subspaces else TAIL)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row, padding included."""
        return -(-self.used // ALIGNED) * ALIGNED


def form_of(settings: Settings, mode: str) -> Form:
    """The form of the codes of a mode."""
    dim = settings.dim
    if mode in TRAINED:
        return product_form(dim, settings.pq_subspaces or _subspaces(dim))
    if mode == "trunc":
        return Form(min(dim, settings.trunc_dims or _beginning(dim)), 8)
    return Form(padded(dim) if mode == "rabitq" else dim, bits_of(mode, dim))


def product_form(dim: int, subspaces: int) -> Form:
    """The form of product codes of so many subspaces."""
    return Form(dim, 8, min(dim, subspaces))


def product_sizes(dim: int) -> tuple[int, ...]:
    """Numbers of subspaces to choose from where memory is scarce, the largest first, as whole rows of codes.

    From one for two components, as far as that is less than `sq4` takes, by halves down to the least row that there is,
    and what lies in the middle of two of these.
    """
    usual = _subspaces(dim)
    halves = [2 * usual] if 2 * usual <= dim and 2 * usual < Form(dim, 4).row_bytes else []
    size = usual
    while size > ALIGNED:
        halves.append(size)
        size = size // 2 // ALIGNED * ALIGNED
    halves.append(ALIGNED)
    middles = [(large + small) // 2 // ALIGNED * ALIGNED for large, small in pairwise(halves)]
    return tuple(sorted({*halves, *middles}, reverse=True))


def _subspaces(dim: int) -> int:
    """About one for four components, so that a row is a multiple of half a cache line."""
    size = dim / 4
    return 16 if size <= 16 else 32 * max(1, round(size / 32))


def _beginning(dim: int) -> int:
    """About a quarter of the components, so that a row with its tail is some whole cache lines."""
    return -(-(dim // 4 + TAIL) // LINE_BYTES) * LINE_BYTES - TAIL


def code_width(settings: Settings, mode: str) -> int:
    """Bytes of a row of codes of a mode; under auto, of the largest that it may pick."""
    return max(form_of(settings, each).row_bytes for each in (AUTO if mode == "auto" else (mode,)))


def bits_of(mode: str, dim: int) -> int:
    """Bits per component. RaBitQ's estimates gain from every dimension, so that fewer bits do."""
    if mode == "rabitq":
        return 4 if dim < 256 else 2 if dim < 1024 else 1
    return {"sq8": 8, "sq4": 4}[mode]


@lru_cache(maxsize=16)
def _no_book(dim: int) -> Codebook:
    return Codebook(0, np.zeros(dim, np.float32), np.zeros((0, dim), np.float32), np.zeros(1, np.int64),
                    np.zeros((0, CENTROIDS), np.float32))  # fmt: skip


def codes_of(
    vectors: Bytes, rows: Any, form: Form, *, signs: Float32s | None = None, centre: Float32s | None = None,
    book: Codebook | None = None, slack: float = 0.0,
) -> Codes:  # fmt: skip
    """Codes as kernels take them.

    vectors: uint8 (rows, form.row_bytes or more). rows: the vectors behind them. signs, centre: of RaBitQ. book: of
    product codes. slack: as it was measured, 0 for that of codes of so many bits.
    """
    made = book or _no_book(rows.dim)
    if signs is None:
        signs = np.zeros((0, form.length), np.float32)
    return Codes(
        vectors, rows.seals, rows.dim, rows.radius, form.bits, form.body, signs,
        made.centre if centre is None else centre, np.float32(STEPS[form.bits]),
        np.float32(slack) if slack > 0 else SLACK[form.bits], made.turn, made.starts, made.books,
    )  # fmt: skip


def asked_of(form: Form) -> Asked:
    """Room for the query of one thread."""
    part = 0 if form.subspaces else -(-form.body // ALIGNED) * ALIGNED
    return Asked(
        np.zeros(part * 8 // form.bits, np.int8), np.zeros(3, np.float32), np.zeros((2, form.length), np.float32),
        np.zeros((form.subspaces, CENTROIDS), np.uint16), np.zeros((max(form.subspaces, 1), CENTROIDS), np.float32),
    )  # fmt: skip


def form_in(codes: Codes) -> Form:
    """The form of codes that are there."""
    return Form(codes.signs.shape[1], codes.bits, len(codes.starts) - 1)


@inlined
def _put_float(stored: Any, at: Any, value: Any) -> None:
    bits = float_bits(value)
    for byte in range(4):
        stored[at + byte] = np.uint8((bits >> np.uint32(8 * byte)) & np.uint32(0xFF))


@inlined
def _score(scorer: Any, query: Any, row: Any) -> Any:
    """Estimate of the squared distance of a row to the query that the scorer was aimed at."""
    body, terms = scorer.codes.body, scorer.asked.terms
    stored = scorer.vectors
    if scorer.asked.table.shape[0] > 0:
        known = terms[LEVEL] * np.float32(look_up(scorer.asked.table, stored, row))
        return known if known == known else np.float32(np.inf)
    product = np.float32(dot_bytes(stored, row, scorer.asked.levels, body, scorer.codes.bits))
    scale, offset = float_at(stored, row, body + SCALE), float_at(stored, row, body + OFFSET)
    inner = offset * terms[SUM] + scale * terms[LEVEL] * product
    estimate = terms[LENGTH] + float_at(stored, row, body + SQUARE) - np.float32(2) * inner
    return estimate if estimate == estimate else np.float32(np.inf)  # what overflows is far


SCORERS[Scorer] = _score


@inlined
def scorer_of(codes: Any, asked: Any) -> Any:
    """Codes with the query that was aimed at them."""
    return Scorer(codes.vectors, codes.seals, codes.dim, codes.radius, codes, asked)


@inlined
def _turn(codes: Any, vector: Any, turned: Any) -> None:
    """Leave a vector in turned[0] as it is coded: itself, its beginning, or its residual, rotated."""
    for i in range(min(codes.dim, turned.shape[1])):
        turned[0, i] = vector[i] - codes.centre[i]
    if codes.turn.shape[0] > 0:
        _multiply(codes.turn, turned[0], turned[1])
        for i in range(turned.shape[1]):
            turned[0, i] = turned[1, i]
    if codes.signs.shape[0] > 0:
        for i in range(codes.dim, turned.shape[1]):
            turned[0, i] = np.float32(0)
        rotate(codes.signs, turned)


@inlined
def _multiply(matrix: Any, values: Any, out: Any) -> None:
    """Multiply with squares along a diagonal, given side by side: see product.Codebook."""
    width = matrix.shape[1]
    for start in range(0, matrix.shape[0], width):
        part = values[start : min(start + width, matrix.shape[0])]
        for i in range(start, start + part.shape[0]):
            line, total = matrix[i], np.float32(0)
            for j in range(part.shape[0]):
                total += line[j] * part[j]
            out[i] = total


@inlined
def _square(values: Any, count: Any) -> Any:
    total = np.float32(0)
    for i in range(count):
        total += values[i] * values[i]
    return total


@inlined
def _stretch(whole: Any, part: Any) -> Any:
    """By what the beginning of a vector is to be multiplied to be as long as all of it; the squares of both given."""
    return np.float32(np.sqrt(whole / part)) if part > 0 else np.float32(0)


@inlined
def place_among(codes: Any, vector: Any, turned: Any) -> None:
    """Leave in turned[0] where a vector stands among what `rebuild` makes of codes. turned: float32 (2, length)."""
    _turn(codes, vector, turned)
    if turned.shape[1] < codes.dim:
        stretch = _stretch(_square(vector, codes.dim), _square(turned[0], turned.shape[1]))
        for i in range(turned.shape[1]):
            turned[0, i] *= stretch


@inlined
def rebuild(codes: Any, row: Any, out: Any) -> None:
    """Write what the codes of a row stand for, float32 (length,): rotated, and less the centre, if there are such.

    RaBitQ's are as near to the vector as numbers along them can be, not as long as makes products right.
    """
    stored = codes.vectors[row]
    if codes.books.shape[0] > 0:
        starts = codes.starts
        for m in range(starts.shape[0] - 1):
            for i in range(starts[m], starts[m + 1]):
                out[i] = codes.books[i, stored[m]]
        return
    scale, offset = float_at(codes.vectors, row, codes.body + SCALE), float_at(codes.vectors, row, codes.body + OFFSET)
    mask, shift = np.int32((1 << codes.bits) - 1), np.int32(0)
    for start in range(0, out.shape[0], codes.body):
        part = out[start : min(start + codes.body, out.shape[0])]
        for i in range(part.shape[0]):
            part[i] = offset + scale * np.float32((np.int32(stored[i]) >> shift) & mask)
        shift += np.int32(codes.bits)
    if codes.signs.shape[0] > 0:
        length = _square(out, out.shape[0])
        nearest = float_at(codes.vectors, row, codes.body + SQUARE) / length if length > 0 else np.float32(0)
        for i in range(out.shape[0]):
            out[i] *= nearest


@inlined
def aim_codes(codes: Any, query: Any, asked: Any) -> None:
    """Prepare the levels and terms of a query, float32 (dim,) in the graph's geometry."""
    _turn(codes, query, asked.turned)
    turned, terms = asked.turned[0], asked.terms
    if asked.table.shape[0] > 0:
        terms[LEVEL] = fill_table(codes, turned, asked)
        return
    top = length = total = np.float32(0)
    for i in range(turned.shape[0]):
        top = max(top, abs(turned[i]))
        length += turned[i] * turned[i]
        total += turned[i]
    scale = np.float32(MOST_LEVEL) / top if top > 0 else np.float32(0)
    part = asked.levels.shape[0] * codes.bits >> 3
    place = 0
    for start in range(0, turned.shape[0], codes.body):
        values = turned[start : min(start + codes.body, turned.shape[0])]
        levels = asked.levels[place : place + part]
        for i in range(values.shape[0]):
            levels[i] = np.int8(np.int32(np.floor(values[i] * scale + np.float32(0.5))))
        place += part
    terms[LENGTH], terms[SUM], terms[LEVEL] = length, total, top / np.float32(MOST_LEVEL)
    if turned.shape[0] < codes.dim:
        whole = _square(query, codes.dim)
        stretch = _stretch(whole, length)
        terms[LENGTH], terms[SUM], terms[LEVEL] = whole, total * stretch, terms[LEVEL] * stretch


@inlined
def _aim_scorer(scorer: Any, query: Any) -> None:
    aim_codes(scorer.codes, query, scorer.asked)


AIMERS[Scorer] = _aim_scorer


@kernel
def encode_rows(rows: Any, codes: Any, first: Any, out: Any, vector: Any, asked: Any) -> None:
    """Write the codes of the rows `first`, `first` + 1, … to out, uint8 (n, row_bytes).

    vector: float32 (dim,), and asked: working memory.
    """
    for i in range(out.shape[0]):
        decode(rows, first + i, vector)
        _turn(codes, vector, asked.turned)
        if codes.books.shape[0] > 0:
            choose_centroids(codes, asked.turned[0], out[i], asked.sums[0])
        elif codes.signs.shape[0] > 0:
            _encode_rabitq(codes, asked.turned[0], out[i])
        else:
            _encode_scalar(codes, vector, asked.turned[0], out[i])


@inlined
def _encode_scalar(codes: Any, vector: Any, values: Any, stored: Any) -> None:
    most = np.int32((1 << codes.bits) - 1)
    low = high = values[0]
    for i in range(values.shape[0]):
        low, high = min(low, values[i]), max(high, values[i])
    # Half the range, twice: the whole may overflow.
    middle, reach = low * np.float32(0.5) + high * np.float32(0.5), high * np.float32(0.5) - low * np.float32(0.5)
    best, offset, scale = np.float32(np.inf), low, np.float32(0)
    for tried in range(SHRINKS if codes.bits < 8 else 1):
        kept = reach * (np.float32(1) - SHRINK * np.float32(tried))
        step = kept * (np.float32(2) / np.float32(most))
        error = _rounding(values, middle - kept, step, most)
        if error < best or tried == 0:
            best, offset, scale = error, middle - kept, step
    square = np.float32(0)
    for i in range(values.shape[0]):
        value = offset + scale * np.float32(_code(values[i], offset, scale, most))
        square += value * value
    _write_codes(codes, values, offset, scale, most, stored)
    square -= best
    if values.shape[0] < codes.dim:
        whole, part = _square(vector, codes.dim), _square(values, values.shape[0])
        stretch = _stretch(whole, part)
        scale, offset = scale * stretch, offset * stretch
        square = square * stretch * stretch if part > 0 else whole
    _write_tail(stored, codes.body, scale, offset, square)


@inlined
def _encode_rabitq(codes: Any, values: Any, stored: Any) -> None:
    most = np.int32((1 << codes.bits) - 1)
    square = np.float32(0)
    for i in range(values.shape[0]):
        square += values[i] * values[i]
    # One bit: a step beyond all values leaves their signs.
    spread = np.float32(np.sqrt(square / np.float32(values.shape[0])))
    step = spread * codes.step if codes.bits > 1 else np.float32(2) * np.float32(np.sqrt(square))
    offset = np.float32(-0.5) * np.float32(most) * step
    along = np.float32(0)
    for i in range(values.shape[0]):
        level = _code(values[i], offset, step, most)
        along += np.float32(level + level - most) * values[i]
    scale = square / along if along > 0 else np.float32(0)  # of the odd numbers 2 * level - most
    _write_codes(codes, values, offset, step, most, stored)
    _write_tail(stored, codes.body, np.float32(2) * scale, -scale * np.float32(most), square)


@inlined
def _code(value: Any, offset: Any, scale: Any, most: Any) -> Any:
    inverse = np.float32(1) / scale if scale > 0 else np.float32(0)
    return min(max(np.int32(np.floor((value - offset) * inverse + np.float32(0.5))), np.int32(0)), most)


@inlined
def _rounding(values: Any, offset: Any, scale: Any, most: Any) -> Any:
    """The squared distance between a vector and what its codes would stand for."""
    total = np.float32(0)
    for i in range(values.shape[0]):
        apart = values[i] - (offset + scale * np.float32(_code(values[i], offset, scale, most)))
        total += apart * apart
    return total


@inlined
def _write_codes(codes: Any, values: Any, offset: Any, scale: Any, most: Any, stored: Any) -> None:
    body = codes.body
    for byte in range(body):
        stored[byte] = np.uint8(0)
    shift = np.int32(0)
    for start in range(0, values.shape[0], body):
        part = values[start : min(start + body, values.shape[0])]
        for i in range(part.shape[0]):
            stored[i] |= np.uint8(_code(part[i], offset, scale, most) << shift)
        shift += np.int32(codes.bits)


@inlined
def _write_tail(stored: Any, body: Any, scale: Any, offset: Any, square: Any) -> None:
    _put_float(stored, body + SCALE, scale)
    _put_float(stored, body + OFFSET, offset)
    _put_float(stored, body + SQUARE, square)


@inlined
def rank_again(rows: Any, query: Any, lift: Any, candidates: Any, count: Any, k: Any, slack: Any) -> Any:
    """Measure the best of `count` candidates, ascending by estimate, with their vectors, and sort them.

    They are all that may be among the k nearest if no estimate errs by more than the factor `slack`; returns how many.
    """
    kept = min(count, k)
    if kept > 0:
        last = slack * distance_of(candidates[kept - 1])
        while kept < count and distance_of(candidates[kept]) <= last:
            kept += 1
    for t in range(min(AHEAD, kept)):
        prefetch_row(rows, id_of(candidates[t]))
    for t in range(kept):
        if t + AHEAD < kept:
            prefetch_row(rows, id_of(candidates[t + AHEAD]))
        row = id_of(candidates[t])
        candidates[t] = pack(distance(rows, query, lift, row), row)
    sort(candidates, kept)
    return kept


@kernel
def search_codes(
    rows: Any, codes: Any, graph: Any, live: Any, plan: Any, queries: Any, scratch: Any, asked: Any, results: Any
) -> Any:
    """Answer queries, float32 of shape (n, dim): walk over codes, then rank the best again by their vectors.

    Returns the fewest hits that one has found.
    """
    fewest = results.ids.shape[1]
    scorer = scorer_of(codes, asked)
    for i in range(queries.shape[0]):
        lift = aim(rows, plan.metric, queries[i], scratch.query)
        aim_at(scorer, scratch.query)
        info = results.info[i]
        info[HOPS] = 0
        info[DISTANCES] = 0
        waiting = navigate(scorer, graph, live, plan, lift, scratch, info)
        count = beam_search(scorer, graph, live, plan, lift, scratch, waiting, info)
        info[FOUND] = 0  # a query without direction is as near to every row: the caller answers it by a scan
        if lift == 0:
            candidates = scratch.best if plan.tombstones else scratch.pool
            count = rank_again(rows, scratch.query, lift, candidates, count, results.ids.shape[1], codes.slack)
            info[FOUND] = emit(
                rows, live, plan, queries[i], lift, candidates, count, results.ids[i], results.distances[i]
            )  # fmt: skip
        fewest = min(fewest, info[FOUND])
    return fewest
