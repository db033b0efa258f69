"""Durations counted in log-linear buckets, after HdrHistogram: any number of them in 58 KB, percentiles within 1 %."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..types import AnyArray

BITS = 7  # 2⁷ buckets per doubling: a bucket is at most 1/128 of its values wide
PER_DOUBLING = 1 << BITS
NANOSECOND = 1e-9
LONGEST = 2.0**63  # nanoseconds
SIZE = (63 - BITS) * PER_DOUBLING + PER_DOUBLING


class Histogram:
    """Counts of durations of a nanosecond to three centuries. Not safe for several threads: one each, then `merge`.

    Below 256 ns every nanosecond has its bucket; above, each doubling has 128. A percentile is therefore off by at most
    1/128 of its value; the least, the greatest and the mean are exact up to float64.
    """

    __slots__ = ("counts", "greatest", "least", "total")

    def __init__(self) -> None:
        self.counts = np.zeros(SIZE, np.int64)
        self.total = 0.0
        self.least = np.inf
        self.greatest = 0.0

    def __len__(self) -> int:
        return int(self.counts.sum())

    def record(self, seconds: float | AnyArray) -> None:
        """Count one duration in seconds, or an array of them of any shape.

        Raises:
            ValueError: for a duration below 0, beyond three centuries, or NaN; nothing is counted then.
        """
        values = np.atleast_1d(np.asarray(seconds, np.float64)).ravel()
        if not len(values):
            return
        nanoseconds = np.rint(values / NANOSECOND)
        if not ((values >= 0) & (nanoseconds < LONGEST)).all():
            raise ValueError(f"durations from {values.min()} to {values.max()} s: need 0 to {LONGEST * NANOSECOND:.3g}")
        np.add.at(self.counts, _buckets(nanoseconds.astype(np.int64)), 1)
        self.total += float(values.sum())
        self.least = min(self.least, float(values.min()))
        self.greatest = max(self.greatest, float(values.max()))

    def merge(self, other: Histogram) -> None:
        """Count what `other` has counted as well."""
        self.counts += other.counts
        self.total += other.total
        self.least = min(self.least, other.least)
        self.greatest = max(self.greatest, other.greatest)

    @property
    def mean(self) -> float:
        """Mean in seconds; NaN if nothing was counted."""
        return self.total / len(self) if len(self) else np.nan

    def percentile(self, share: float) -> float:
        """The least duration, in seconds, that at least `share` per cent do not exceed; NaN if nothing was counted.

        Raises:
            ValueError: for a share outside 0 to 100.
        """
        if not 0 <= share <= 100:
            raise ValueError(f"percentile {share}: must be 0 to 100")
        count = len(self)
        if not count:
            return np.nan
        rank = max(int(np.ceil(share / 100 * count - 1e-9)), 1)
        if rank == count:
            return self.greatest
        bucket = int(np.searchsorted(np.cumsum(self.counts), rank))
        return float(np.clip(_middle(bucket) * NANOSECOND, self.least, self.greatest))

    def percentiles_ms(self, *shares: float) -> dict[str, float]:
        """Percentiles in milliseconds: {"p50_ms": …}; that of 99.9 is called p999_ms."""
        return {f"p{share:g}_ms".replace(".", ""): round(self.percentile(share) * 1e3, 4) for share in shares}

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON: seconds, and the buckets that are not empty. `from_dict` reads it."""
        filled = np.flatnonzero(self.counts)
        return {
            "bits": BITS, "count": len(self), "total": self.total,
            "least": self.least if len(self) else None, "greatest": self.greatest if len(self) else None,
            "buckets": filled.tolist(), "counts": self.counts[filled].tolist(),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Histogram:
        """The histogram that `as_dict` told of.

        Raises:
            ValueError: for one with other buckets, or whose parts contradict each other.
        """
        made = cls()
        buckets, counts = np.asarray(told["buckets"], np.int64), np.asarray(told["counts"], np.int64)
        fits = told["bits"] == BITS and len(buckets) == len(counts) and int(counts.sum()) == told["count"]
        if not fits or (len(buckets) and not (buckets.min() >= 0 and buckets.max() < SIZE and counts.min() >= 0)):
            raise ValueError(f"not a histogram of {PER_DOUBLING} buckets per doubling with {told['count']} durations")
        np.add.at(made.counts, buckets, counts)
        if len(made):
            made.total, made.least, made.greatest = (float(told[name]) for name in ("total", "least", "greatest"))
        return made


def _buckets(nanoseconds: AnyArray) -> AnyArray:
    """The bucket of each whole number: n itself below 2⁸, then 2⁷ of them for each further bit."""
    bits = np.frexp(nanoseconds.astype(np.float64))[1].astype(np.int64)
    # Where float64 rounds up to a power of two, the shift is one too many and the bucket the same.
    shift = np.maximum(bits - BITS - 1, 0)
    return (shift << BITS) + (nanoseconds >> shift)


def _middle(bucket: int) -> float:
    """The middle of a bucket in nanoseconds."""
    shift = max((bucket >> BITS) - 1, 0)
    low = (bucket - (shift << BITS)) << shift
    return low + ((1 << shift) - 1) / 2
