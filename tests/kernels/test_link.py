"""Rules out a graph with rows out of reach, edges out of bounds, or a shape that depends on the threads."""

from __future__ import annotations

import numpy as np
import pytest

from corenn import Settings
from corenn.graph.check import check_graph
from corenn.graph.insert import Linker
from corenn.graph.scratch import ScratchPool
from corenn.graph.threads import Helpers
from corenn.graph.view import View, entries_of, growth_of, note_growth, raise_radius, take_view
from corenn.kernels.link import mend_ring, ring_length
from corenn.kernels.rows import NORM
from corenn.kernels.search import DEGREE, FIRST_NEIGHBOUR, LIFELINE
from corenn.storage.commit import NO_IDS, Commit
from corenn.storage.encode import encode
from corenn.storage.format import GROWTH
from corenn.storage.store import Store
from tests.kinds import diagonal


def linked(vectors: np.ndarray, threads: int = 1, batch: int = 100_000, **settings: object) -> View:
    """A graph over vectors, committed and linked in batches."""
    chosen = Settings.from_dict({"dim": vectors.shape[1], "metric": "l2", **settings})
    store, helpers = Store.in_memory(chosen), Helpers(threads)
    linker = Linker(store, ScratchPool(), helpers)
    for first in range(0, len(vectors), batch):
        encoded = encode(chosen, vectors[first : first + batch])
        count = len(encoded.rows)
        number = store.next_commit()
        store.commit(
            Commit(
                number,
                np.arange(first, first + count, dtype=np.uint32),
                list(range(first, first + count)),
                [0] * count,
                [None] * count,
                encoded.rows,
                encoded.seals,
            )
        )
        if encoded.seals.shape[1] > NORM:
            raise_radius(store, encoded.seals.view(np.float32)[:, NORM])
        left = linker.link(np.arange(first, first + count, dtype=np.uint32), store.metadata.head, lambda: False)
        assert not len(left)
    helpers.close()
    return take_view(store, store.metadata.head, NO_IDS)


def gaussian(rows: int, dim: int = 8) -> np.ndarray:
    return np.random.default_rng(rows).normal(size=(rows, dim)).astype(np.float32)


def check(view: View) -> None:
    faults = check_graph(view)
    assert not len(faults.damaged)
    assert not len(faults.unreachable)
    assert not faults.torn


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
@pytest.mark.parametrize("rows", [1, 2, 33, 90])
def test_small_graphs_are_whole(rows: int, metric: str) -> None:
    view = linked(gaussian(rows), metric=metric, max_edges=4, update_search_list_cap=8)
    check(view)
    assert view.graph.edges[:rows, DEGREE].max() <= view.graph.edges.shape[1] - FIRST_NEIGHBOUR


@pytest.mark.compiled
@pytest.mark.parametrize(("batch", "metric"), diagonal([1, 7, 1000, 100_000], ["l2", "cosine", "ip"]))
def test_graphs_are_whole_whatever_the_batches(batch: int, metric: str) -> None:
    check(linked(gaussian(2500 if batch > 1 else 700), metric=metric, batch=batch))


@pytest.mark.compiled
def test_equal_rows_are_all_on_the_ring() -> None:
    rows = np.concatenate([np.repeat(gaussian(5), 300, axis=0), gaussian(1000)])
    check(linked(rows[np.random.default_rng(0).permutation(len(rows))]))
    check(linked(rows, batch=64))
    check(linked(np.zeros((700, 4), np.float32)))


@pytest.mark.compiled
@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_the_graph_does_not_depend_on_the_threads(metric: str) -> None:
    rows = gaussian(3000, 12)
    one, four = (linked(rows, threads=threads, metric=metric) for threads in (1, 4))
    assert np.array_equal(one.graph.edges[:3000], four.graph.edges[:3000])
    assert np.array_equal(one.graph.entries, four.graph.entries)


@pytest.mark.compiled
def test_a_row_links_to_its_nearest() -> None:
    rows = gaussian(2000, 4)
    view = linked(rows)
    table = ((rows[:, None] - rows[None]) ** 2).sum(axis=2)
    np.fill_diagonal(table, np.inf)
    nearest = table.argmin(axis=1)
    edges = view.graph.edges
    kept = [nearest[row] in edges[row, FIRST_NEIGHBOUR : FIRST_NEIGHBOUR + edges[row, DEGREE]] for row in range(2000)]
    assert np.mean(kept) > 0.98


@pytest.mark.compiled
@pytest.mark.parametrize("count", [40, 200])
def test_every_cluster_gets_an_entry(count: int) -> None:
    random = np.random.default_rng(count)
    centres = random.normal(size=(count, 16))
    rows = np.repeat(centres, 3000 // count, axis=0)
    rows += 0.03 * random.normal(size=rows.shape)
    entries = linked(rows).graph.entries
    assert len(set((entries // (3000 // count)).tolist())) >= 0.9 * count


@pytest.mark.compiled
@pytest.mark.parametrize("dim", [1, 2, 8, 32])
def test_rows_that_fill_a_space_have_few_entries(dim: int) -> None:
    rows = np.zeros((3000, 32))
    rows[:, :dim] = np.random.default_rng(dim).uniform(size=(3000, dim))
    assert len(linked(rows).graph.entries) == 16


@pytest.mark.compiled
def test_growth_tells_the_dimension_of_the_rows() -> None:
    found = {}
    for dim in (2, 4, 8):
        rows = np.zeros((6000, 16))  # what counts is the space that they fill, not the one that they lie in
        rows[:, :dim] = np.random.default_rng(dim).uniform(size=(6000, dim))
        found[dim] = linked(rows).growth
    assert found[2] == pytest.approx(2 / 2, rel=0.2)
    assert found[4] == pytest.approx(2 / 4, rel=0.2)
    assert found[8] == pytest.approx(2 / 8, rel=0.35)  # most rows lie near the surface of the cube


@pytest.mark.compiled
def test_growth_is_unknown_without_distances() -> None:
    assert linked(np.ones((700, 4), np.float32)).growth == 0
    assert linked(gaussian(20)).growth == 0  # fewer than a search list holds


@pytest.mark.parametrize("damage", [np.nan, np.inf, -1.0, 1e9])
def test_damaged_growth_counts_as_unknown(damage: float) -> None:
    store = Store.in_memory(Settings(dim=4, metric="l2"))
    store.edges.header[GROWTH : GROWTH + 1].view(np.float64)[0] = damage
    assert growth_of(store) == 0
    note_growth(store, np.full(3, 0.5, np.float32))
    assert growth_of(store) == 0.5


def test_a_killed_threading_is_finished() -> None:
    view = linked(gaussian(40), max_edges=4, update_search_list_cap=8)
    edges, root = view.graph.edges, int(view.graph.entries[0])
    assert ring_length(edges, root, 40) == 40
    behind = 7
    node = int(edges[behind, LIFELINE]) - 1
    edges[behind, LIFELINE] = edges[node, LIFELINE]  # as before the second store
    assert ring_length(edges, root, 40) == 39 or node == root
    journal = np.array([node + 1, behind + 1], np.uint64)
    mend_ring(edges, journal, 40)
    assert ring_length(edges, root, 40) == 40
    assert journal[0] == 0
    mend_ring(edges, np.array([node + 1, behind + 1], np.uint64), 40)  # and after both
    assert ring_length(edges, root, 40) == 40


def test_entries_are_linked_rows() -> None:
    store_view = linked(gaussian(50), max_edges=4, update_search_list_cap=8)
    assert (store_view.graph.edges[store_view.graph.entries, LIFELINE] != 0).all()
    assert len(set(store_view.graph.entries.tolist())) == len(store_view.graph.entries)


def test_entries_survive_in_the_header() -> None:
    settings = Settings(dim=4, metric="l2", max_edges=4, update_search_list_cap=8)
    store = Store.in_memory(settings)
    assert not len(entries_of(store))
