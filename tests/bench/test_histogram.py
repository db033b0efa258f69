"""Percentiles of the histogram against NumPy's of the same durations.

Rules out a percentile off by more than 1 % or by a rank, counts lost or moved when histograms are merged or written,
and durations that no clock gives being counted.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corenn.bench.histogram import Histogram

EDGES = st.sampled_from([0.0, 1e-9, 255e-9, 256e-9, 257e-9])
DURATIONS = st.one_of(st.floats(0, 1e-6), st.floats(1e-6, 1e-2), st.floats(1e-2, 4e3), EDGES)
SOME = st.lists(DURATIONS, min_size=1, max_size=60)


def of(seconds: list[float]) -> Histogram:
    made = Histogram()
    made.record(np.array(seconds))
    return made


@given(SOME, st.one_of(st.integers(0, 100).map(float), st.sampled_from([99.9, 99.99])))
def test_percentiles_are_those_of_numpy(seconds: list[float], share: float) -> None:
    expected = float(np.percentile(np.array(seconds), share, method="inverted_cdf"))
    found = of(seconds).percentile(share)
    assert abs(found - expected) <= 0.01 * expected + 0.5e-9  # half a nanosecond: the unit that is counted
    assert min(seconds) <= found <= max(seconds)


@given(SOME)
def test_ends_count_and_mean_are_exact(seconds: list[float]) -> None:
    made = of(seconds)
    assert (len(made), made.least, made.greatest) == (len(seconds), min(seconds), max(seconds))
    assert made.percentile(100) == max(seconds)
    assert made.mean == pytest.approx(np.mean(seconds))


@given(SOME, SOME)
def test_merging_is_counting_together(first: list[float], second: list[float]) -> None:
    merged = of(first)
    merged.merge(of(second))
    together = of(first + second)
    assert np.array_equal(merged.counts, together.counts)
    assert (merged.least, merged.greatest) == (together.least, together.greatest)
    assert merged.mean == pytest.approx(together.mean)


@given(SOME)
def test_one_by_one_is_all_at_once_and_json_brings_it_back(seconds: list[float]) -> None:
    one_by_one = Histogram()
    for each in seconds:
        one_by_one.record(each)
    again = Histogram.from_dict(json.loads(json.dumps(one_by_one.as_dict())))
    assert np.array_equal(again.counts, of(seconds).counts)
    assert again.as_dict() == one_by_one.as_dict()


def test_three_centuries_have_a_bucket() -> None:
    longest = 9.2e9
    made = of([1e-9, longest])
    assert made.percentile(50) == 1e-9
    made.record(longest * 0.999)
    assert made.percentile(60) == pytest.approx(longest, rel=0.01)


def test_an_empty_one() -> None:
    empty = Histogram()
    empty.record(np.array([]))
    assert len(empty) == 0 and np.isnan(empty.percentile(50)) and np.isnan(empty.mean)
    assert len(Histogram.from_dict(json.loads(json.dumps(empty.as_dict(), allow_nan=False)))) == 0


def test_percentiles_in_milliseconds() -> None:
    assert of([0.001, 0.001]).percentiles_ms(50, 99.9) == {"p50_ms": 1.0, "p999_ms": 1.0}


@pytest.mark.parametrize("wrong", [-1e-9, np.nan, np.inf, 1e11])
def test_what_is_no_duration_is_refused_and_nothing_is_counted(wrong: float) -> None:
    made = of([1.0])
    with pytest.raises(ValueError, match="durations from"):
        made.record(np.array([2.0, wrong]))
    assert len(made) == 1 and made.greatest == 1.0


def test_other_shares_and_other_buckets_are_refused() -> None:
    for share in (-1, 101):
        with pytest.raises(ValueError, match="must be 0 to 100"):
            of([1.0]).percentile(share)
    told = of([1.0, 2.0]).as_dict()
    for change in ({"bits": 6}, {"count": 3}, {"buckets": [1]}, {"buckets": [-1, 5]}, {"buckets": [5, 10**6]}):
        with pytest.raises(ValueError, match="not a histogram"):
            Histogram.from_dict(told | change)
