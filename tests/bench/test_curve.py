"""The search for operating points.

Rules out a target whose neighbouring settings were not measured although the grid has them, a setting measured twice,
and grids of several parameters treated as one curve.
"""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from corenn.bench.curve import curves, explore

recalls = st.floats(0, 1).map(lambda value: round(value, 3))


@given(grid=st.lists(recalls, min_size=1, max_size=40).map(sorted), targets=st.lists(recalls, min_size=1, max_size=4))
def test_every_target_within_the_grid_is_bracketed_by_neighbours(grid: list[float], targets: list[float]) -> None:
    asked: list[int] = []

    def recall_at(at: int) -> float:
        asked.append(at)
        return grid[at]

    seen = explore(len(grid), targets, recall_at)
    assert sorted(asked) == seen and len(set(asked)) == len(asked)
    for target in targets:
        above = next((at for at, recall in enumerate(grid) if recall >= target), None)
        if above is None:
            assert len(grid) - 1 in seen  # the best there is
        else:
            assert {above, max(above - 1, 0)} <= set(seen)


@given(grid=st.lists(recalls, min_size=1, max_size=40), targets=st.lists(recalls, max_size=4))
def test_any_grid_comes_to_an_end(grid: list[float], targets: list[float]) -> None:
    seen = explore(len(grid), targets, grid.__getitem__)
    assert seen and set(seen) <= set(range(len(grid)))


def test_long_grids_are_not_walked_whole() -> None:
    asked: list[int] = []
    explore(1000, [0.9], lambda at: asked.append(at) or at / 1000)
    assert len(asked) < 20


def test_curves() -> None:
    grid: list[dict[str, Any]] = [{"k_factor": k, "nprobe": n} for k in (2, 5) for n in (1, 2, 4)]
    assert curves(grid) == [[0, 1, 2], [3, 4, 5]]
    assert curves([{"ef": 10}, {"ef": 20}]) == [[0, 1]]
    assert curves([{}]) == [[0]]
