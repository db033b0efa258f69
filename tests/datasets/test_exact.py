"""Exact neighbours of arrays against distances from the definition, in float64.

Rules out a neighbour lost or swapped by rounding, a tie that is broken by anything but the id, an answer that depends
on threads, blocks or memory, memory beyond the limit, and NaN, infinity or misfitting shapes taken for vectors.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from corenn.datasets.exact import measured, nearest
from corenn.datasets.work import LEAST_ROWS, MOST_ROWS, Gate, plan
from corenn.errors import DatasetError, InvalidArgumentError
from corenn.graph.threads import Helpers
from tests import oracle

Rows = NDArray[Any]
METRICS = ("l2", "cosine", "ip")


def check(metric: str, base: Rows, queries: Rows, k: int, ids: Rows, distances: Rows) -> None:
    """Assert that these are the k nearest, ascending, ties by id."""
    table = oracle.distances(metric, base.astype(np.float64), queries.astype(np.float64))
    k = min(k, len(base))
    assert ids.shape == distances.shape == (len(queries), k)
    slack = 1e-12 * max(1.0, float(np.abs(table[np.isfinite(table)]).max(initial=0)))
    assert np.allclose(distances, np.take_along_axis(table, ids, 1), rtol=1e-9, atol=slack)
    assert np.allclose(distances, np.sort(table, axis=1)[:, :k], rtol=1e-9, atol=slack)
    for line, far in zip(ids, distances, strict=True):
        assert len(set(line.tolist())) == k
        assert list(zip(far, line, strict=True)) == sorted(zip(far, line, strict=True))


# --- against the definition -------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    metric=st.sampled_from(METRICS),
    rows=st.integers(1, 90),
    queries=st.integers(1, 9),
    dim=st.integers(1, 9),
    k=st.integers(1, 100),
    seed=st.integers(0, 2**32),
    largest=st.sampled_from([1, 3, 100]),
)
def test_whole_numbers_with_ties(
    metric: str, rows: int, queries: int, dim: int, k: int, seed: int, largest: int
) -> None:
    random = np.random.default_rng(seed)
    base = random.integers(-largest, largest + 1, (rows, dim)).astype(np.float32)
    asked = random.integers(-largest, largest + 1, (queries, dim)).astype(np.float32)
    ids, distances = nearest(base, asked, k, metric, threads=2)
    check(metric, base, asked, k, ids, distances)
    if metric != "cosine":  # exact in float64: the oracle's ties are ours
        assert np.array_equal(ids, oracle.nearest(oracle.distances(metric, base, asked), k))


@pytest.mark.few(4)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "bf16", "i1", "u1", "i4", "u8", "<i2", ">f4"])
def test_every_type(metric: str, dtype: str, rng: np.random.Generator) -> None:
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bf16" else dtype)
    low = 0 if kind.kind == "u" else -100
    base, asked = (rng.integers(low, 100, (n, 12)).astype(kind) for n in (700, 20))
    check(metric, base, asked, 15, *nearest(base, asked, 15, metric))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("wide", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("scale", "offset"), [(1, 0), (1, 1e3), (1, 1e6), (1e-22, 0), (1e-35, 0), (1e18, 0), (1e20, 0)]
)
def test_where_float32_fails(metric: str, wide: Any, scale: float, offset: float, rng: np.random.Generator) -> None:
    """Rows far from the origin, whose products all look alike, and such as overflow or vanish when multiplied."""
    base = ((rng.normal(size=(900, 24)) + offset) * scale).astype(wide)
    base[7] = 0
    base[800:810] = base[5]
    asked = ((rng.normal(size=(20, 24)) + offset) * scale).astype(wide)
    asked[3], asked[4] = base[5], 0
    check(metric, base, asked, 7, *nearest(base, asked, 7, metric))


def test_neighbours_that_float32_swaps() -> None:
    """Each row is a hair farther than the one before, less than float32 tells apart at that length."""
    base = np.zeros((200, 3))
    base[:, 0], base[:, 1] = 1000.0, 1e-7 * np.arange(200)[::-1]
    ids, _ = nearest(base, np.array([[1000.0, 0, 0]]), 50, "l2")
    assert ids[0].tolist() == list(range(199, 149, -1))


@pytest.mark.parametrize("metric", METRICS)
def test_more_equal_rows_than_neighbours(metric: str) -> None:
    base = np.tile(np.array([1, 2, 3], np.float32), (5_000, 1))
    base[4_000] = (1.01, 2.02, 3.0)
    ids, _ = nearest(base, base[4_000:4_001], 6, metric, memory=300_000)
    assert ids[0].tolist() == [4_000, 0, 1, 2, 3, 4]


def test_vectors_without_direction_are_at_distance_one() -> None:
    base = np.array([[0, 0], [0, 0], [-1, 0], [1, 0]], np.float32)
    ids, distances = nearest(base, np.array([[1, 0], [0, 0]], np.float32), 4, "cosine")
    assert ids.tolist() == [[3, 0, 1, 2], [0, 1, 2, 3]]
    assert distances.tolist() == [[0, 1, 1, 2], [1, 1, 1, 1]]


# --- the same answer however it is cut up -----------------------------------------------------------------------------


@pytest.mark.compiled
@pytest.mark.parametrize("metric", METRICS)
def test_neither_threads_nor_memory_change_the_answer(metric: str, embeddings: Any, rng: np.random.Generator) -> None:
    base, asked = embeddings[0].astype(np.float16), embeddings[1]
    base[rng.integers(0, 2000, 200)] = base[3]
    answers = [
        nearest(base, asked, 20, metric, threads=threads, memory=memory)
        for threads, memory in ((1, 1 << 30), (2, 1 << 30), (3, 6_000_000), (1, 6_000_000))
    ]
    for ids, distances in answers[1:]:
        assert np.array_equal(ids, answers[0][0]) and np.array_equal(distances, answers[0][1])


@pytest.mark.compiled
def test_real_vectors(sift: Any) -> None:
    base, asked = sift
    check("l2", base, asked[:50], 100, *nearest(base, asked[:50], 100, "l2"))


# --- memory -----------------------------------------------------------------------------------------------------------


@given(
    rows=st.integers(1, 10**10),
    queries=st.integers(1, 10**5),
    dim=st.integers(1, 5000),
    k=st.integers(1, 1000),
    threads=st.integers(1, 64),
    wide=st.booleans(),
    memory=st.integers(10**5, 10**11),
)
def test_pieces_fit_into_memory(
    rows: int, queries: int, dim: int, k: int, threads: int, wide: bool, memory: int
) -> None:
    exact = 8 if wide else 4
    try:
        cut = plan(rows, queries, dim, k, threads, wide, memory)
    except DatasetError as error:
        assert "raise the limit" in str(error)
        needed = int(str(error).partition(" MB")[0].rpartition(" ")[2].replace(",", "")) * 1_000_000
        assert needed + 1_000_000 > memory
        assert plan(rows, queries, dim, k, threads, wide, needed).rows >= min(rows, LEAST_ROWS)
        return
    block = cut.rows * (dim * (2 * exact + 4) + 16)
    kept = queries * (dim * (4 + exact) + 16 * k + 24)
    assert block + kept + threads * cut.queries * cut.columns * 4 <= memory
    assert min(rows, LEAST_ROWS) <= cut.rows <= min(rows, MOST_ROWS) and cut.queries * threads >= min(queries, threads)


def test_a_gate_that_closes_waits_for_who_is_inside() -> None:
    gate, helpers, seen = Gate(), Helpers(2), []

    def work(start: int, _stop: int) -> None:
        with gate as entered:
            if entered:
                seen.append(start)

    helpers.run(work, 10, 1)
    gate.close()
    helpers.run(work, 10, 1)
    helpers.close()
    assert sorted(seen) == list(range(10))


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("metric", METRICS)
def test_what_is_no_number_is_refused(bad: float, metric: str) -> None:
    good, wrong = np.ones((300, 4), np.float32), np.ones((300, 4), np.float32)
    wrong[257, 2] = bad
    with pytest.raises(DatasetError, match="row 257 holds NaN, infinity"):
        nearest(wrong, good[:2], 3, metric)
    with pytest.raises(DatasetError, match="query 257 holds NaN, infinity"):
        nearest(good, wrong, 3, metric)


def test_misfits_are_refused() -> None:
    base = np.ones((5, 4), np.float32)
    for wrong in (np.ones((2, 3), np.float32), np.ones(4, np.float32)):
        with pytest.raises(DatasetError, match="do not fit"):
            nearest(base, wrong, 1, "l2")
    with pytest.raises(DatasetError, match="do not fit"):
        nearest(base[:0], base, 1, "l2")
    with pytest.raises(InvalidArgumentError, match="k is 0"):
        nearest(base, base, 0, "l2")
    with pytest.raises(InvalidArgumentError, match="unknown metric 'hamming'"):
        nearest(base, base, 1, "hamming")
    with pytest.raises(DatasetError, match="raise the limit"):
        nearest(base, base, 1, "l2", memory=100)


# --- distances to certain rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_distances_to_rows_by_id(metric: str, dtype: Any, rng: np.random.Generator) -> None:
    base, asked = rng.normal(size=(50, 6)).astype(dtype), rng.normal(size=(4, 6)).astype(dtype)
    ids = rng.integers(-1, 50, (4, 9))
    ids[0, 0] = -1
    table = np.pad(oracle.distances(metric, base, asked), ((0, 0), (0, 1)), constant_values=np.inf)
    assert np.allclose(measured(base, asked, ids, metric), np.take_along_axis(table, ids, 1))


def test_ids_beyond_the_rows_are_refused() -> None:
    base = np.ones((5, 4), np.float32)
    with pytest.raises(DatasetError, match="do not fit"):
        measured(base, base[:1], np.array([[5]]), "l2")
    with pytest.raises(DatasetError, match="do not fit"):
        measured(base, base[:2], np.array([[1]]), "l2")
    assert measured(base, base[:2], np.empty((2, 0), np.int64), "l2").shape == (2, 0)
    assert np.isinf(measured(base, base[:1], np.array([[-1, -1]]), "l2")).all()
