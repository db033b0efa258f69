"""Samples, splits and row ranges.

Rules out a row taken twice or lost, an order that differs from that of the file, choices that are not equally likely,
a seed that means other rows for another format, block size or version of NumPy, and memory that grows with the rows.
"""

from __future__ import annotations

import tracemalloc
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corenn.datasets import create_vectors, open_vectors, vectors
from corenn.datasets.transform import copy_rows, deal, deal_rows, part_sizes
from corenn.errors import DatasetError

from .contract import read, written


def owners(counts: list[int], seed: int, step: int = 1000) -> list[int]:
    return [int(each) for block in deal(sum(counts), counts, seed, step) for each in block]


@given(
    counts=st.lists(st.integers(1, 200), min_size=1, max_size=6), seed=st.integers(0, 2**64), step=st.integers(1, 300)
)
def test_every_part_gets_its_rows_whatever_the_blocks(counts: list[int], seed: int, step: int) -> None:
    dealt = owners(counts, seed)
    assert [dealt.count(part) for part in range(len(counts))] == counts
    assert owners(counts, seed, step) == dealt


def test_a_seed_means_these_rows_for_ever() -> None:
    assert [row for row, part in enumerate(owners([5, 95], 7)) if part == 0] == [6, 32, 37, 96, 98]
    assert owners([2, 3, 5], 1) == [2, 2, 0, 2, 1, 1, 2, 1, 2, 0]


def test_every_choice_is_equally_likely() -> None:
    """All 10 ways to take 2 of 5 rows, 1,000 draws: each within five standard deviations of 100."""
    seen = dict.fromkeys(combinations(range(5), 2), 0)
    for seed in range(1_000):
        first, second = (row for row, part in enumerate(owners([2, 3], seed)) if part == 0)
        seen[first, second] += 1
    assert all(abs(count - 100) < 5 * np.sqrt(100 * 0.9) for count in seen.values()), seen


def test_a_deal_of_many_rows_keeps_no_list_of_them() -> None:
    tracemalloc.start()
    try:
        counts = np.zeros(2, np.int64)
        for block in deal(3_000_000, [1_000_000, 2_000_000], 0):
            counts += np.bincount(block, minlength=2)
        assert counts.tolist() == [1_000_000, 2_000_000]
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("counts", [[3, 3], [10, 0], [0, 10], [-1, 11], [11]])
def test_counts_that_do_not_fit(counts: list[int]) -> None:
    with pytest.raises(DatasetError, match="needs 10 in all"):
        list(deal(10, counts, 0))


@pytest.mark.parametrize("ending", [".npy", ".fvecs", ".fbin", ".hdf5", ".parquet", ".raw"])
def test_the_same_rows_from_every_format(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("h5py")
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(vectors, "BLOCK_BYTES", 200)
    rows = np.arange(300, dtype=np.float32).reshape(100, 3)
    path = written(tmp_path / f"a{ending}", rows)
    done: list[int] = []
    with open_vectors(path) as opened, create_vectors(tmp_path / "s.npy", 3, "f64", 5) as out:
        deal_rows(opened, [out, None], [5, 95], 7, done.append)
    assert read(tmp_path / "s.npy").tolist() == rows[[6, 32, 37, 96, 98]].tolist()
    assert sum(done) == 100


def test_a_range_of_rows(tmp_path: Path) -> None:
    rows = np.arange(60, dtype=np.float32).reshape(20, 3)
    done: list[int] = []
    with (
        open_vectors(written(tmp_path / "a.npy", rows)) as opened,
        create_vectors(tmp_path / "b.i8bin", 3, "i8") as out,
    ):
        copy_rows(opened, out, 4, 9, done.append)
    assert read(tmp_path / "b.i8bin").tolist() == rows[4:9].tolist() and sum(done) == 5


@pytest.mark.parametrize(
    ("wanted", "sizes"),
    [
        (["rest", "10"], [90, 10]), (["0.1", "rest"], [10, 90]), (["25%", "75%"], [25, 75]), (["60", "40"], [60, 40]),
        (["0.333", "0.333", "0.334"], [33, 33, 34]), (["0.005", "0.995"], None), (["1", "1", "rest"], [1, 1, 98]),
    ],
)  # fmt: skip
def test_sizes_of_parts(wanted: list[str], sizes: list[int] | None) -> None:
    if sizes is None:
        with pytest.raises(DatasetError, match="none empty"):
            part_sizes(100, wanted)
    else:
        assert part_sizes(100, wanted) == sizes


@pytest.mark.parametrize(
    "wanted",
    [["rest", "rest"], ["101", "rest"], ["100", "rest"], ["10", "20"], ["x", "rest"], ["1e400%", "rest"],
     ["nan%", "rest"], ["-5", "rest"], ["0.5", "0.6"], ["", "rest"], ["..", "rest"]],
)  # fmt: skip
def test_parts_that_do_not_fit(wanted: list[str]) -> None:
    with pytest.raises(DatasetError, match="part"):
        part_sizes(100, wanted)


@given(total=st.integers(3, 10_000), shares=st.lists(st.integers(1, 98), min_size=2, max_size=5))
def test_shares_are_near_what_was_asked(total: int, shares: list[int]) -> None:
    wanted = [f"{100 * share / sum(shares)}%" for share in shares]
    try:
        sizes = part_sizes(total, wanted)
    except DatasetError:
        assert min(total * share / sum(shares) for share in shares) <= len(shares)
        return
    assert sum(sizes) == total
    assert all(
        abs(size - total * share / sum(shares)) <= len(shares) for size, share in zip(sizes, shares, strict=True)
    )
