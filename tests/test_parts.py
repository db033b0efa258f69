"""First loads for which there is not enough memory at once, through the public interface.

Rules out a graph in parts that finds less than a whole one, that hangs on the number of threads, leaves rows without a
way to them or falls apart on equal ones, a part that is larger than its room, and a build that takes rows one by one
after all or leaves something behind on a full disk.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corenn import CoreNN
from corenn.graph import bulk, parts, query, threads
from corenn.graph.insert import Linker
from corenn.kernels.candidates import VACANT
from corenn.kernels.carve import MOST
from corenn.storage import residence
from corenn.types import Float32s
from tests import oracle

DIM = 12
ROWS, LIMIT = 6_000, 3_500_000
SMALL, SMALL_LIMIT = 90, 40_000


@pytest.fixture
def scarce(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little memory is enough to open, and few rows are enough for parts."""
    monkeypatch.setattr(residence, "LEAST", 0)
    monkeypatch.setattr(parts, "LEAST_ROWS", 8)
    monkeypatch.setattr(bulk, "BULK_ROWS", 40)


@pytest.fixture
def dealt(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Parts, and the rows in the largest, of each build; an error if a row is linked by a walk."""
    seen: list[tuple[int, int]] = []
    plain = parts.Parts._deal

    def noted(self: parts.Parts, view: Any, ids: Any, room: int) -> Any:
        found = plain(self, view, ids, room)
        sizes = np.bincount(found[found != parts.NOWHERE])
        assert sizes.max() <= room and (found[:, 0] != parts.NOWHERE).all() and (found[:, 0] != found[:, 1]).all()
        seen.append((len(sizes), int(sizes.max())))
        return found

    def walked(*_: Any) -> None:
        pytest.fail("a row was linked by a walk")

    monkeypatch.setattr(parts.Parts, "_deal", noted)
    monkeypatch.setattr(Linker, "_link_batch", walked)
    return seen


def clustered(rng: np.random.Generator, count: int) -> Float32s:
    centres = rng.normal(size=(30, DIM)) * 3
    return (centres[rng.integers(0, 30, count)] + rng.normal(size=(count, DIM))).astype(np.float32)


def recall(db: CoreNN, rows: Float32s, queries: Float32s, search_list: int) -> float:
    """Recall@10 by distance. Keys are row numbers."""
    table = oracle.distances(db.settings.metric, rows, queries)
    bounds = np.sort(table, axis=1)[:, 9]
    slack = oracle.tolerance(db.settings.metric, rows, queries)
    found = db.query(queries, 10, search_list=search_list)
    near = [table[row, hits.keys] <= bounds[row] + slack for row, hits in enumerate(found)]
    return float(np.mean(near))


@pytest.mark.compiled
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_parts_find_what_the_whole_finds(
    scarce: None, dealt: list[tuple[int, int]], tmp_path: Path, rng: np.random.Generator, metric: str
) -> None:
    rows, queries = np.split(clustered(rng, ROWS + 200), [ROWS])
    steps = set()
    with CoreNN.build(None, range(ROWS), rows, dim=DIM, metric=metric) as whole:
        expected = recall(whole, rows, queries, 40)
    with CoreNN.build(
        tmp_path / "db", range(ROWS), rows, dim=DIM, metric=metric, memory_limit=LIMIT,
        progress=lambda step, done, total: steps.add(step),
    ) as db:  # fmt: skip
        assert len(dealt) == 1 and dealt[0][0] >= 4
        assert "parts" in steps
        assert recall(db, rows, queries, 40) >= expected - 0.02
        assert not db.verify().problems
        assert db.get([17])[0] is not None and len(db) == ROWS
    assert [each.name for each in tmp_path.iterdir()] == ["db"]


@pytest.mark.compiled
def test_many_parts_have_no_more_leaders_than_can_be_told_apart(
    scarce: None, dealt: list[tuple[int, int]], tmp_path: Path, rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    plain, own = bulk.Builder.assign_leaders, []

    def noted(self: bulk.Builder, view: Any, ids: Any, leaders: Any, fanout: int, step: str, **more: Any) -> Any:
        labels = plain(self, view, ids, leaders, fanout, step, **more)
        if step == "dealing":
            own.append(labels[np.searchsorted(ids, leaders), 0] == np.arange(len(leaders)))
        return labels

    monkeypatch.setattr(bulk.Builder, "assign_leaders", noted)
    rows = clustered(rng, 3_000)
    with CoreNN.build(tmp_path / "db", range(3_000), rows, dim=DIM, metric="l2", memory_limit=250_000) as db:
        assert dealt[0][0] > 2 * 32, "parts, for which there would be more leaders"
        assert len(own[0]) == MOST and own[0].all(), "each leader is nearest to itself"
        assert not db.verify().problems


@pytest.mark.parametrize("left", [0, 1])
def test_rows_that_have_died_before_they_are_linked(
    scarce: None, tmp_path: Path, rng: np.random.Generator, left: int
) -> None:
    with CoreNN.create(tmp_path / "db", dim=DIM, metric="l2", memory_limit=SMALL_LIMIT) as db:
        with db.loading():
            db.insert(range(SMALL), clustered(rng, SMALL))
            db.delete(range(left, SMALL))
        assert len(db) == left and len(db.query(np.zeros(DIM), k=3)) == left
        assert not db.verify().problems


def test_the_graph_does_not_depend_on_threads(
    scarce: None,
    dealt: list[tuple[int, int]],
    tmp_path: Path,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = clustered(rng, SMALL)
    found = []
    for count in (1, 3):
        monkeypatch.setattr(threads, "cpu_count", lambda count=count: count)
        with CoreNN.build(
            tmp_path / f"{count}", range(SMALL), rows, dim=DIM, metric="l2", memory_limit=SMALL_LIMIT
        ) as db:  # fmt: skip
            found.append(db._store.edges.array[:SMALL].copy())
            assert not db.verify().problems
    assert dealt[0] == dealt[1] and dealt[0][0] > 2
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("kinds", [1, 3])
def test_rows_that_are_all_alike(
    scarce: None, dealt: list[tuple[int, int]], tmp_path: Path, rng: np.random.Generator, kinds: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(query, "FEW_ROWS", 1)  # else they are found by a scan
    count = 4 * SMALL
    rows = clustered(rng, kinds)[rng.integers(0, kinds, count)]
    with CoreNN.build(tmp_path / "db", range(count), rows, dim=DIM, metric="l2", memory_limit=SMALL_LIMIT) as db:
        assert dealt and not db.verify().problems
        for row in range(0, count, 9):
            hits = db.query(rows[row], k=20, search_list=40, explain=True)
            assert hits.explain is not None and hits.explain.plan == "graph"
            assert len(set(hits.keys)) == 20 and (hits.distances == 0).all()
            assert all((rows[key] == rows[row]).all() for key in hits.keys)


def test_edges_of_both_parts_are_taken_in_turns() -> None:
    none = int(VACANT)
    given = np.array([[1, 5, 2, 1, 3, 6], [none, none, 4, none, 4, 7], [none] * 6], np.uint32)
    chosen, degrees = parts.in_turns(given, 4)
    assert chosen.tolist() == [[1, 5, 2, 3], [4, 7, none, none], [none] * 4]
    assert degrees.tolist() == [4, 2, 0]
