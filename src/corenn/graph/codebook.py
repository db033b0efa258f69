"""Codebooks of product codes: trained on a sample of the rows, and kept beside the metadata.

A codebook is soft: without it, or with one that codes.slab does not name, the codes mean nothing and both are made
again from the vectors. Its word in the header of codes.slab is written when codes are about to be made with it, so that
codes are never read by another one.
"""

from __future__ import annotations

import io
import logging
import zipfile
import zlib

import numpy as np

from ..kernels.codes import TRAINED
from ..kernels.product import CENTROIDS, Codebook, gather_clusters, subspaces_of
from ..storage.commit import CODEBOOK
from ..storage.format import BOOK, CHOSEN, CODINGS
from ..storage.store import Store
from ..types import AnyArray, Float32s, Int64s
from .threads import Helpers

log = logging.getLogger("corenn.codes")

_TRAINED = [CODINGS.index(mode) for mode in TRAINED]
SEED = 0xB00C
ROUNDS = 12  # of k-means, at most: docs/performance.md
SETTLED = 1e-3  # the part of the error that a round has to take off for another one to follow
FIRST = 1 << 12  # points among which the first centroids are drawn, no two of them equal
SLICE = 1 << 14  # points per kernel call: some milliseconds


def train(points: Float32s, subspaces: int, version: int, helpers: Helpers, *, rotated: bool) -> Codebook:
    """A codebook for vectors like `points`, float32 (n, dim), which are changed. The same with any number of threads.

    Fewer points than centroids, or fewer that differ, are no error: some centroids are equal then.
    """
    starts = subspaces_of(points.shape[1], subspaces)
    centre = points.mean(axis=0, dtype=np.float64).astype(np.float32)
    points -= centre
    turn = np.zeros((0, points.shape[1]), np.float32)
    if rotated:
        turn = rotation(points, starts)
        points = points @ turn.T
    books = np.empty((points.shape[1], CENTROIDS), np.float32)

    def part(first: int, stop: int) -> None:
        for number in range(first, stop):
            piece = slice(starts[number], starts[number + 1])
            books[piece] = _cluster(np.ascontiguousarray(points[:, piece]), number)

    helpers.run(part, subspaces, 1)
    return Codebook(version, centre, turn, starts, books)


def rotation(points: Float32s, starts: Int64s) -> Float32s:
    """The rotation under which the subspaces are alike and each says little about the others: float32 (dim, dim).

    The principal axes, dealt out so that the product of the variances is about the same in all subspaces: what is best
    for normal distributions (Ge, He, Ke & Sun, Optimized Product Quantization, 2013, section 4).
    """
    dim = points.shape[1]
    spread = (points.T @ points).astype(np.float64) / max(len(points), 1)
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


def _cluster(points: Float32s, number: int) -> Float32s:
    """The centroids of a subspace, float32 (width, CENTROIDS), by k-means (Lloyd 1982)."""
    random = np.random.default_rng((SEED, number))
    drawn = np.unique(points[random.permutation(len(points))[:FIRST]], axis=0)
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
        error = float(missed.sum(dtype=np.float64))
        if not error < before * (1 - SETTLED):
            break
        before = error
        centroids = np.where(counts[:, None] > 0, totals / np.maximum(counts, 1)[:, None], centroids)
        _seed_empty(centroids, np.flatnonzero(counts == 0), points, missed)
    return np.ascontiguousarray(centroids.T, np.float32)


def _seed_empty(centroids: AnyArray, empty: AnyArray, points: Float32s, missed: Float32s) -> None:
    """Put centroids to which nothing belongs where most is missed. Where nothing is, they stay."""
    if not len(empty):
        return
    farthest = np.argsort(-missed, kind="stable")[: len(empty)]
    farthest = farthest[missed[farthest] > 0]
    centroids[empty[: len(farthest)]] = points[farthest]


# --- keeping it -------------------------------------------------------------------------------------------------------


def keep(store: Store, codebook: Codebook) -> None:
    """Store a codebook, and have the codes that are made from now on be those of it."""
    raw = pack(codebook)
    store.metadata.store_soft(CODEBOOK, raw)
    _use(store, _word(codebook, raw), codebook)


def load(store: Store) -> None:
    """Take over what is kept, if it is another one than that in use."""
    if store.codes is None or int(store.codes.header[CHOSEN]) not in _TRAINED:
        return
    named = int(store.codes.header[BOOK])
    if store.codebook is not None and store.codebook[0] == named:
        return
    raw = store.metadata.soft(CODEBOOK)
    found = None if raw is None else unpack(raw, store.settings.dim)
    store.codebook = None if raw is None or found is None else (_word(found, raw), found)
    if named and store.writable and codebook_of(store) is None:
        message = "the codebook of the codes is missing or damaged; both are made again from the vectors"
        store.recovered.faults.append(message)
        log.warning(message)


def codebook_of(store: Store) -> Codebook | None:
    """The codebook of the codes of a store; None if it is not there, or the codes are those of another one."""
    if store.codes is None or store.codebook is None or store.codebook[0] != int(store.codes.header[BOOK]):
        return None
    return store.codebook[1]


def next_version(store: Store) -> int:
    """The version of the next codebook: above that which is kept, and that which codes.slab names."""
    assert store.codes is not None
    kept = 0 if store.codebook is None else store.codebook[1].version
    return max(kept, int(store.codes.header[BOOK]) >> 32) % ((1 << 32) - 1) + 1


def _use(store: Store, word: int, codebook: Codebook) -> None:
    assert store.codes is not None
    store.codes.header[BOOK] = word
    store.codebook = (word, codebook)


def _word(codebook: Codebook, raw: bytes) -> int:
    return codebook.version << 32 | zlib.crc32(raw)


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
        if centre.shape != (dim,) or books.shape != (dim, CENTROIDS) or turn.shape not in ((0, dim), (dim, dim)):
            raise ValueError(
                f"centre {centre.shape}, centroids {books.shape}, rotation {turn.shape} of {dim} dimensions"
            )
        if starts.ndim != 1 or len(starts) < 2 or starts[0] != 0 or starts[-1] != dim or (np.diff(starts) < 1).any():
            raise ValueError("subspaces out of order")
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        log.warning("the codebook that was kept cannot be read (%s); another one is to be trained", error)
        return None
    return Codebook(version, centre, turn, starts, books)
