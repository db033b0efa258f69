"""Copies of vector files: converted, sampled or split, in one pass over the rows and bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ..errors import DatasetError
from ..types import AnyArray, UInt64s
from .vectors import Vectors, Writer, block_rows

DRAWN = 1 << 18
BUCKET_BITS = 16

Progress = Callable[[int], None]


def copy_rows(
    vectors: Vectors, out: Writer, start: int = 0, stop: int | None = None, progress: Progress | None = None
) -> None:
    """Append rows start to stop - 1 of `vectors` to `out`, converted to its type.

    Raises:
        DatasetError: for a value that the type of `out` cannot hold.
    """
    for _, block in vectors.blocks(_step(vectors, [out]), start, stop):
        out.append(block)
        if progress is not None:
            progress(len(block))


def deal_rows(
    vectors: Vectors, outs: Sequence[Writer | None], counts: Sequence[int], seed: int, progress: Progress | None = None
) -> None:
    """Deal all rows of `vectors` at random to `outs`, counts[i] of them to outs[i], each in the order of the file.

    Every way to deal is equally likely, and the seed alone chooses it. What goes to None is left out: a sample without
    replacement is a deal between a writer and None.

    Raises:
        DatasetError: if the counts do not add up to the rows, or one is below 1.
    """
    step = _step(vectors, [out for out in outs if out is not None])
    owners = deal(len(vectors), counts, seed, step)
    for (_, block), owner in zip(vectors.blocks(step), owners, strict=True):
        for part, out in enumerate(outs):
            if out is not None and (chosen := owner == part).any():
                out.append(block[chosen])
        if progress is not None:
            progress(len(block))


def _step(vectors: Vectors, outs: Sequence[Writer]) -> int:
    return min(block_rows(vectors.dim, dtype) for dtype in (vectors.dtype, *(out.dtype for out in outs)))


def deal(total: int, counts: Sequence[int], seed: int, step: int = DRAWN) -> Iterator[AnyArray]:
    """For each row in turn the number of the part it goes to, in arrays of `step` rows; the last may be shorter.

    Each row draws 64 bits; the rows with the counts[0] smallest draws make part 0, the next part 1, and so on. Which
    rows those are is told by a few order statistics, found in two passes over the draws, so that no list of rows is
    kept in memory. The draws are the raw output of PCG64: a seed means the same rows with every version of NumPy.

    Raises:
        DatasetError: if the counts do not add up to `total`, or one is below 1.
    """
    if sum(counts) != total or min(counts) < 1:
        parts = " + ".join(f"{count:,}" for count in counts)
        raise DatasetError(f"parts of {parts} rows; needs {total:,} in all, and none empty")
    edges = _order_statistics(total, np.cumsum(counts)[:-1], seed)
    for draws in _draws(total, seed, step):
        yield np.searchsorted(edges, draws, side="right")


def _draws(total: int, seed: int, step: int = DRAWN) -> Iterator[UInt64s]:
    source = np.random.PCG64(seed)
    for first in range(0, total, step):
        yield source.random_raw(min(step, total - first))


def _order_statistics(total: int, ranks: AnyArray, seed: int) -> UInt64s:
    """The draws of the given ranks, counted from 0, in ascending order."""
    shift = np.uint64(64 - BUCKET_BITS)
    counts = np.zeros(1 << BUCKET_BITS, np.int64)
    for draws in _draws(total, seed):
        counts += np.bincount((draws >> shift).astype(np.int64), minlength=len(counts))
    below = np.concatenate([[0], np.cumsum(counts)])
    buckets = np.searchsorted(below, ranks, side="right") - 1
    wanted = np.unique(buckets)
    drawn = [draws[np.isin(draws >> shift, wanted)] for draws in _draws(total, seed)]
    kept = np.sort(np.concatenate(drawn)) if len(wanted) else np.empty(0, np.uint64)
    starts = np.concatenate([[0], np.cumsum(counts[wanted])])
    edges: UInt64s = kept[starts[np.searchsorted(wanted, buckets)] + ranks - below[buckets]]
    # Two equal draws, one in 2⁶⁴ pairs, would put one row too few into a part; the writer counts its rows.
    return edges


def part_sizes(total: int, wanted: Sequence[str]) -> list[int]:
    """Rows of each part.

    Args:
        total: rows to divide.
        wanted: for each part a number of rows ("1000"), a share ("0.1" or "10%"), or "rest", at most once. If all are
            shares that add up to 1, rounding is made up for in the last.

    Raises:
        DatasetError: for anything else, or parts that do not fit `total` exactly, or are empty.
    """
    if wanted.count("rest") > 1:
        raise DatasetError(f"parts of {', '.join(wanted)}: only one can be the rest")
    shares = [_share(each) for each in wanted]
    given = [_rows(each, share, total) for each, share in zip(wanted, shares, strict=True)]
    if all(share is not None for share in shares) and abs(sum(share or 0 for share in shares) - 1) < 1e-9:
        given[-1] = total - sum(given[:-1])
    sizes = [total - sum(given) if each == "rest" else size for each, size in zip(wanted, given, strict=True)]
    if sum(sizes) != total or min(sizes) < 1:
        raise DatasetError(f"parts of {', '.join(wanted)} are {sum(sizes):,} rows; needs all {total:,}, and none empty")
    return sizes


def _share(wanted: str) -> float | None:
    """The share that `wanted` names; None if it names a number of rows, or the rest."""
    try:
        return float(wanted[:-1]) / 100 if wanted.endswith("%") else float(wanted) if "." in wanted else None
    except ValueError:
        return None


def _rows(wanted: str, share: float | None, total: int) -> int:
    if wanted == "rest":
        return 0
    try:
        return int(wanted) if share is None else round(share * total)
    except (ValueError, OverflowError) as error:
        raise DatasetError(f"part of {wanted!r}; give a number of rows, a share such as 0.1, or rest") from error
