"""`max_distance`, `group_by`, filters and batches in one query, against a look at every row.

Rules out a bound that is applied before groups are formed or to another query's hits, a batch whose rows are mixed up
or not filled up alike, and hits that a bound takes away although others were to take their places.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corenn import CoreNN, F
from tests.conftest import COMPILED, Create, Sample
from tests.filters.made import filters, payloads
from tests.filters.test_groups import grouped
from tests.oracle import distances, meets, tolerance

DIM = 2
VECTORS = st.lists(st.integers(-3, 3), min_size=DIM, max_size=DIM)  # few places: many rows are equally far
BOUNDS = st.one_of(st.none(), st.sampled_from([0, 1, 2, 4.5, 8, -1, float("inf")]))


def expected(
    model: dict[int, Any],
    line: Any,
    wire: dict[str, Any] | None,
    by: tuple[str, int] | None,
    k: int,
    bound: float | None,
) -> list[int]:
    """The keys of the nearest rows that meet a filter, as many of a group as may be, none beyond the bound."""
    place = dict(zip(model, line.tolist(), strict=True))
    if by is not None:
        found = grouped(model, place, *by, k, wire or {})
    else:
        matching = [key for key in model if wire is None or meets(wire, model[key], key)]
        found = sorted(matching, key=lambda key: (place[key], key))[:k]
    return found if bound is None else [key for key in found if place[key] <= bound]


@settings(max_examples=60 if COMPILED else 15)
@given(
    given_payloads=st.lists(payloads, min_size=1, max_size=25), data=st.data(), k=st.integers(1, 7), bound=BOUNDS,
    by=st.one_of(st.none(), st.tuples(st.sampled_from(["a", "b", "a.x"]), st.integers(1, 3))),
    trees=st.lists(st.one_of(st.none(), filters), min_size=1, max_size=4),
)  # fmt: skip
def test_each_query_of_a_batch_gets_its_hits(
    given_payloads: list[Any],
    data: st.DataObject,
    k: int,
    bound: float | None,
    by: tuple[str, int] | None,
    trees: list[Any],
) -> None:
    rows = np.array(
        data.draw(st.lists(VECTORS, min_size=len(given_payloads), max_size=len(given_payloads))), np.float32
    )
    queries = np.array(data.draw(st.lists(VECTORS, min_size=len(trees), max_size=len(trees))), np.float32)
    model, lines = dict(enumerate(given_payloads)), distances("l2", rows, queries)
    asked: dict[str, Any] = {} if by is None else {"group_by": by[0], "per_group": by[1]}
    asked |= {"k": k, "max_distance": bound, "with_payloads": True, "explain": data.draw(st.booleans())}
    with CoreNN.in_memory(dim=DIM, metric="l2") as db:
        db.insert(list(model), rows, given_payloads)
        for given_filter, each in ((trees, trees), (trees[0], trees[:1] * len(trees))):
            wanted = [expected(model, line, wire, by, k, bound) for line, wire in zip(lines, each, strict=True)]
            found = db.query(queries, filter=given_filter, **asked)
            assert [hits.keys for hits in found] == wanted
            assert [hits.payloads for hits in found] == [[model[key] for key in keys] for keys in wanted]
            for hits, keys, line, place in zip(found, wanted, lines, range(len(wanted)), strict=True):
                assert hits.distances.tolist() == line[keys].tolist()
                width = found.distances.shape[1]
                assert found.distances[place].tolist() == [*line[keys], *[np.inf] * (width - len(keys))]
                assert found.keys[place].tolist() == [*keys, *[None] * (width - len(keys))]
            alone = db.query(queries[0], filter=each[0], **asked)
            assert (alone.keys, alone.payloads) == (found[0].keys, found[0].payloads)


@pytest.mark.compiled
@pytest.mark.parametrize(("metric", "mode"), [("l2", "none"), ("cosine", "sq8"), ("ip", "none")])
def test_bounds_groups_and_filters_of_walks(memory: Create, sift: Sample, metric: str, mode: str) -> None:
    """Where thousands of rows are walked, over codes or not: the hits within the bound, of groups with room."""
    rows, queries = sift[0][:2000] - 40, sift[1][:8] - 40
    made = [{"g": row % 40, "n": row % 10} for row in range(len(rows))]
    db = memory(dim=128, metric=metric, compression_mode=mode, compression_threshold=0)
    db.insert(range(len(rows)), rows, made)
    lines, slack = distances(metric, rows, queries), tolerance(metric, rows, queries)
    bound = float(np.median(np.sort(lines, axis=1)[:, 20]))
    trees = [F("n") < 7, None, F("n") == 3, F("n") < 7, {"n": {"$gt": 8}}, F("n") > 20, None, F("g") == 5]
    for by in (None, ("g", 2)):
        asked: dict[str, Any] = {} if by is None else {"group_by": by[0], "per_group": by[1]}
        found = db.query(queries, k=30, filter=trees, max_distance=bound, search_list=200, with_payloads=True, **asked)
        hit = wanted_hits = 0
        for hits, line, tree in zip(found, lines, trees, strict=True):
            wire = tree if tree is None or isinstance(tree, dict) else tree.to_dict()
            wanted = expected(dict(enumerate(made)), line, wire, by, 30, bound)
            assert (hits.distances <= bound).all()
            assert all(wire is None or meets(wire, payload, 0) for payload in hits.payloads)
            assert (np.abs(hits.distances - line[hits.keys]) <= slack).all()
            assert abs(len(hits) - len(wanted)) <= 2
            hit, wanted_hits = hit + len({*hits.keys} & {*wanted}), wanted_hits + len(wanted)
        assert hit >= 0.95 * wanted_hits > 0
