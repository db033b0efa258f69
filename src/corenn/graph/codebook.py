"""Codebooks of product codes: trained on a sample of the rows, and kept beside the metadata.

A codebook is soft: without it the codes mean nothing, and both are made again from the vectors. There is room for two:
that of the codes in use, and that of those which are being made. The header of each file of codes names its own by a
word, so that codes are never read by another one.
"""

from __future__ import annotations

import io
import logging
import zipfile
import zlib
from collections.abc import Generator
from typing import TypeVar

import numpy as np

from ..kernels.codes import TRAINED
from ..kernels.product import CENTROIDS, Codebook, gather_clusters, subspaces_of
from ..storage.commit import BOOKS
from ..storage.format import BOOK, CHOSEN, CODINGS
from ..storage.slab import Slab
from ..storage.store import Store
from ..types import AnyArray, Float32s, Float64s, Int64s
from .threads import Helpers

log = logging.getLogger("corenn.codes")
T = TypeVar("T")

_TRAINED = [CODINGS.index(mode) for mode in TRAINED]
SEED = 0xB00C
ROUNDS = 12  # of k-means, at most: docs/performance.md
SETTLED = 1e-3  # the part of the error that a round has to take off for another one to follow
MOST_TURNED = 1 << 20  # numbers of a rotation, at most
FIRST = 1 << 12  # points among which the first centroids are drawn, no two of them equal
SLICE = 1 << 13  # points per kernel call: some milliseconds
TURNED_AT_ONCE = 1 << 22  # products of two numbers


def train(points: Float32s, subspaces: int, version: int, helpers: Helpers, *, rotated: bool) -> Codebook:
    """A codebook for vectors like `points`, float32 (n, dim), which are changed. The same with any number of threads.

    Fewer points than centroids, or fewer that differ, are no error: some centroids are equal then.
    """
    blank = at_once(_prepared(points, subspaces, version, rotated=rotated))

    def part(first: int, stop: int) -> None:
        for number in range(first, stop):
            at_once(_cluster(points, blank, number))

    helpers.run(part, len(blank.starts) - 1, 1)
    return blank


def training(points: Float32s, subspaces: int, version: int, *, rotated: bool) -> Generator[None, None, Codebook]:
    """The same codebook on one thread, which yields every few milliseconds; but for the axes of a rotation, which take
    half a second of a thousand dimensions.
    """
    made = yield from _prepared(points, subspaces, version, rotated=rotated)
    for number in range(len(made.starts) - 1):
        yield from _cluster(points, made, number)
    return made


def at_once(steps: Generator[None, None, T]) -> T:
    """What comes of something that goes on step by step."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


def _prepared(points: Float32s, subspaces: int, version: int, *, rotated: bool) -> Generator[None, None, Codebook]:
    """A codebook without centroids, and the points brought to where these are to be."""
    starts = subspaces_of(points.shape[1], subspaces)
    centre = points.mean(axis=0, dtype=np.float64).astype(np.float32)
    yield
    points -= centre
    turn = np.zeros((0, points.shape[1]), np.float32)
    if rotated:
        turn = yield from rotation(points, starts)
        step = max(TURNED_AT_ONCE // turn.size, 1)
        for first in range(0, len(points), step):
            points[first : first + step] = rotate(points[first : first + step], turn)
            yield
    return Codebook(version, centre, turn, starts, np.empty((points.shape[1], CENTROIDS), np.float32))


def rotation(points: Float32s, starts: Int64s) -> Generator[None, None, Float32s]:
    """The rotation under which the subspaces are alike and each says little about the others: see product.Codebook.

    The principal axes, dealt out so that the product of the variances is about the same in all subspaces: what is best
    for normal distributions (Ge, He, Ke & Sun, Optimized Product Quantization, 2013, section 4). Where there are very
    many components, groups of them are rotated, each in itself: a query pays for every number of a rotation.
    """
    dim = points.shape[1]
    width = -(-dim // -(-dim // max(MOST_TURNED // dim, 1)))
    turn = np.zeros((dim, width), np.float32)
    for first in range(0, dim, width):
        stop = min(first + width, dim)
        spread = yield from _spread(points[:, first:stop])
        turn[first:stop, : stop - first] = _axes(spread, np.unique(np.clip(starts, first, stop)))
        yield
    return turn


def rotate(points: Float32s, turn: Float32s) -> Float32s:
    """Points, float32 (n, dim), in the directions of a rotation."""
    dim, width = turn.shape
    parts = [(first, min(first + width, dim)) for first in range(0, dim, width)]
    return np.concatenate([points[:, a:b] @ turn[a:b, : b - a].T for a, b in parts], axis=1)


def _spread(points: Float32s) -> Generator[None, None, Float64s]:
    """The covariance of points whose mean is zero."""
    dim = points.shape[1]
    total, step = np.zeros((dim, dim)), max(TURNED_AT_ONCE // dim**2, dim)
    for first in range(0, len(points), step):
        some = points[first : first + step]
        total += some.T @ some
        yield
    return total / max(len(points), 1)


def _axes(spread: Float64s, starts: Int64s) -> Float32s:
    """The principal axes, a row each, in the order in which subspaces have them."""
    dim = len(spread)
    if not np.isfinite(spread).all():
        return np.eye(dim, dtype=np.float32)
    variances, axes = np.linalg.eigh(spread)
    room = np.diff(starts)
    logs = np.zeros(len(room))
    filled: list[list[int]] = [[] for _ in room]
    least = max(float(variances[-1]), 1e-30) * 1e-6  # directions in which nothing lies weigh alike
    for axis in range(dim - 1, -1, -1):
        free = np.flatnonzero([len(axes_in) < size for axes_in, size in zip(filled, room, strict=True)])
        chosen = free[np.argmin(logs[free])]
        filled[chosen].append(axis)
        logs[chosen] += np.log(max(float(variances[axis]), least) / least)
    order = [axis for axes_in in filled for axis in axes_in]
    return np.ascontiguousarray(axes.T[order], np.float32)


def _distinct(points: Float32s) -> Float32s:
    """The points that differ, in ascending order: as `np.unique` by rows, which keeps the interpreter for nine
    milliseconds where this takes one and lets others have it.
    """
    ordered = points[np.lexsort(points.T[::-1])]
    fresh = np.ones(len(ordered), np.bool_)
    np.any(ordered[1:] != ordered[:-1], axis=1, out=fresh[1:])
    return ordered[fresh]


def _cluster(whole: Float32s, made: Codebook, number: int) -> Generator[None]:
    """Find the centroids of a subspace, by k-means (Lloyd 1982); yields every few milliseconds."""
    piece = slice(made.starts[number], made.starts[number + 1])
    points = np.ascontiguousarray(whole[:, piece])
    random = np.random.default_rng((SEED, number))
    drawn = _distinct(points[random.permutation(len(points))[:FIRST]])
    if len(drawn) > CENTROIDS:
        drawn = drawn[random.choice(len(drawn), CENTROIDS, replace=False)]
    centroids = drawn[np.arange(CENTROIDS) % len(drawn)].astype(np.float64)
    sums, labels = np.empty(CENTROIDS, np.float32), np.empty(len(points), np.uint8)
    missed = np.empty(len(points), np.float32)
    before = np.inf
    for _ in range(ROUNDS):
        book = np.ascontiguousarray(centroids.T, np.float32)
        totals, counts = np.zeros(centroids.shape), np.zeros(CENTROIDS, np.int64)
        for start in range(0, len(points), SLICE):
            some = slice(start, start + SLICE)
            gather_clusters(points[some], book, sums, totals, counts, missed[some], labels[some])
            yield
        error = float(missed.sum(dtype=np.float64))
        if not error < before * (1 - SETTLED):
            break
        before = error
        centroids = np.where(counts[:, None] > 0, totals / np.maximum(counts, 1)[:, None], centroids)
        _seed_empty(centroids, np.flatnonzero(counts == 0), points, missed)
    made.books[piece] = centroids.T


def _seed_empty(centroids: AnyArray, empty: AnyArray, points: Float32s, missed: Float32s) -> None:
    """Put centroids to which nothing belongs where most is missed. Where nothing is, they stay."""
    if not len(empty):
        return
    farthest = np.argsort(-missed, kind="stable")[: len(empty)]
    farthest = farthest[missed[farthest] > 0]
    centroids[empty[: len(farthest)]] = points[farthest]


# --- keeping it -------------------------------------------------------------------------------------------------------


def keep(store: Store, codebook: Codebook) -> int:
    """Store a codebook beside that of the codes in use; returns the word by which a file of codes names it.

    Raises:
        StorageError
    """
    raw = pack(codebook)
    used = _word_in(store)
    name = BOOKS[0]
    if used and (first := store.metadata.soft(name)) is not None and used & 0xFFFFFFFF == zlib.crc32(first):
        name = BOOKS[1]
    store.metadata.store_soft(name, raw)
    word = codebook.version << 32 | zlib.crc32(raw)
    store.codebooks = {each: book for each, book in store.codebooks.items() if each == used} | {word: codebook}
    return word


def load(store: Store) -> None:
    """Take over what is kept, if it is not known yet. Tells of one that is missing."""
    if store.codes is None:
        return
    named = _word_in(store)
    if store.writable or (named and named not in store.codebooks):
        found = (store.metadata.soft(name) for name in BOOKS)
        books = ((raw, unpack(raw, store.settings.dim)) for raw in found if raw is not None)
        store.codebooks = {book.version << 32 | zlib.crc32(raw): book for raw, book in books if book is not None}
    if named and store.writable and named not in store.codebooks:
        message = "the codebook of the codes is missing or damaged; both are made again from the vectors"
        store.recovered.faults.append(message)
        log.warning(message)


def codebook_of(store: Store, slab: Slab | None) -> Codebook | None:
    """The codebook of the codes in a file; None if it is not there."""
    return None if slab is None else store.codebooks.get(int(slab.header[BOOK]))


def next_version(store: Store) -> int:
    """The version of the next codebook: above those which are kept, and that which codes.slab names."""
    kept = max([0, *(book.version for book in store.codebooks.values())])
    assert store.codes is not None
    return max(kept, int(store.codes.header[BOOK]) >> 32) % ((1 << 32) - 1) + 1


def _word_in(store: Store) -> int:
    """By which the codes in use name their codebook, 0 if they have none."""
    assert store.codes is not None
    trained = int(store.codes.header[CHOSEN]) in _TRAINED
    return int(store.codes.header[BOOK]) if trained else 0


def pack(codebook: Codebook) -> bytes:
    """A codebook as it is kept."""
    file = io.BytesIO()
    np.savez(file, **{**codebook._asdict(), "version": np.int64(codebook.version)})
    return file.getvalue()


def unpack(raw: bytes, dim: int) -> Codebook | None:
    """What was kept, or none if a kernel would read beyond an array, or codes would mean nothing."""
    try:
        with np.load(io.BytesIO(raw), allow_pickle=False) as kept:
            version = int(kept["version"])
            centre, turn, books = (np.ascontiguousarray(kept[name], np.float32) for name in ("centre", "turn", "books"))
            starts = np.ascontiguousarray(kept["starts"], np.int64)
        if not 0 < version < 1 << 32:
            raise ValueError(f"version {version}")
        turned = turn.ndim == 2 and turn.shape[0] in (0, dim) and 0 < turn.shape[1] <= dim
        if centre.shape != (dim,) or books.shape != (dim, CENTROIDS) or not turned:
            raise ValueError(
                f"centre {centre.shape}, centroids {books.shape}, rotation {turn.shape} of {dim} dimensions"
            )
        if starts.ndim != 1 or len(starts) < 2 or starts[0] != 0 or starts[-1] != dim or (np.diff(starts) < 1).any():
            raise ValueError("subspaces out of order")
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        log.warning("a codebook that was kept cannot be read: %s", error)
        return None
    return Codebook(version, centre, turn, starts, books)
