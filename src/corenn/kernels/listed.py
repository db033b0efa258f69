"""Scans by codes: which of some rows are nearest is told by their codes, as far as these tell, and by their vectors.

How far codes err is not taken from what they are, but from some of the very rows that are scanned. An estimate of a
squared distance s errs by a component of the error of the code, along the line to the query, times 2 √s: so the error
of that component says what is to be expected at any distance. Of far rows, whose distances are alike, thousands may
have to be measured, of near ones hardly any.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .candidates import NOTHING, distance_of, id_of, insert_at, insert_sorted, pack, place_of, sort
from .codes import scorer_of
from .jit import inlined, kernel
from .rows import aim_at, distance, prefetch_row
from .search import AHEAD, DISTANCES, FOUND, HOPS, aim, choose, emit, keep_below, score

ERRORS_OF = 64  # rows by which it is told how far codes err
SURE = np.float32(2.5)  # times the usual error that an estimate may be too large by


@kernel
def scan_codes(
    rows: Any, codes: Any, live: Any, plan: Any, queries: Any, ids: Any, candidates: Any, scratch: Any, asked: Any,
    results: Any,
) -> Any:  # fmt: skip
    """Answer queries, float32 of shape (n, dim), by the rows `ids`, uint32, all of them below live.rows; returns the
    fewest hits that one has found.

    candidates: uint64 (ids,), working memory. plan.search_list: how many are measured at least; k or more.
    """
    fewest = results.ids.shape[1]
    scorer, pool, capacity = scorer_of(codes, asked), scratch.pool, plan.search_list
    for i in range(queries.shape[0]):
        lift = aim(rows, plan.metric, queries[i], scratch.query)
        info = results.info[i]
        info[HOPS] = 0
        info[DISTANCES] = ids.shape[0]
        info[FOUND] = 0  # a query without direction is as near to every row: the caller answers it by a scan
        if lift == 0:
            aim_at(scorer, scratch.query)
            for t in range(ids.shape[0]):
                candidates[t] = np.uint64(ids[t])
            score(scorer, scratch.query, lift, candidates, ids.shape[0])
            count = _nearest(candidates, pool, capacity)
            info[FOUND] = finish(
                rows, live, plan, queries[i], lift, candidates, ids.shape[0], pool, count, scratch.query,
                results.ids[i], results.distances[i],
            )  # fmt: skip
        fewest = min(fewest, info[FOUND])
    return fewest


@inlined
def finish(
    rows: Any, live: Any, plan: Any, raw: Any, lift: Any, candidates: Any, scored: Any, pool: Any, count: Any,
    query: Any, ids: Any, out: Any,
) -> Any:  # fmt: skip
    """Measure the pool, the nearest of the first `scored` candidates by their estimates, and as many more as may belong
    among the k nearest; write these, and return how many they are.
    """
    capacity, k = plan.search_list, ids.shape[0]
    last = pool[count - 1] if count == capacity else NOTHING
    _measure(rows, query, lift, pool, count)
    sort(pool, count)
    if count == capacity:
        reach = _reach(rows, query, lift, candidates, scored, distance_of(pool[k - 1]))
        _measure_more(rows, query, lift, candidates, scored, last, reach, pool, capacity)
    return emit(rows, live, plan, raw, lift, pool, count, ids, out)


@kernel
def look_around(
    rows: Any, codes: Any, live: Any, plan: Any, queries: Any, ids: Any, scratch: Any, asked: Any, results: Any
) -> Any:
    """As search.search_listed, but by codes alone: about where the nearest of `ids` are."""
    fewest = results.ids.shape[1]
    scorer = scorer_of(codes, asked)
    for i in range(queries.shape[0]):
        lift = aim(rows, plan.metric, queries[i], scratch.query)
        info = results.info[i]
        info[HOPS] = 0
        info[DISTANCES] = 0
        info[FOUND] = 0
        if lift == 0:
            aim_at(scorer, scratch.query)
            count = choose(scorer, ids, plan, lift, scratch, info)
            info[FOUND] = emit(
                rows, live, plan, queries[i], lift, scratch.pool, count, results.ids[i], results.distances[i]
            )  # fmt: skip
        fewest = min(fewest, info[FOUND])
    return fewest


@inlined
def _nearest(candidates: Any, pool: Any, capacity: Any) -> Any:
    """Fill the pool with the nearest candidates, ascending; returns how many they are."""
    bound, count = NOTHING, 0
    for t in range(candidates.shape[0]):
        if candidates[t] < bound:
            insert_sorted(pool, count, capacity, candidates[t])
            count = min(count + 1, capacity)
            if count == capacity:
                bound = pool[count - 1]
    return count


@inlined
def _measure(rows: Any, query: Any, lift: Any, candidates: Any, count: Any) -> None:
    """Put measured distances in the place of estimates."""
    for t in range(count):
        candidates[t] = np.uint64(id_of(candidates[t]))
    score(rows, query, lift, candidates, count)


@inlined
def _reach(rows: Any, query: Any, lift: Any, candidates: Any, scored: Any, last: Any) -> Any:
    """The first candidate, by its estimate, that is sure to be farther than the squared distance `last`."""
    error = bias = np.float32(0)
    for at in range(ERRORS_OF):
        prefetch_row(rows, id_of(candidates[at * scored // ERRORS_OF]))
    for at in range(ERRORS_OF):
        candidate = candidates[at * scored // ERRORS_OF]
        estimate, found = distance_of(candidate), distance(rows, query, lift, id_of(candidate))
        if 0 < estimate < np.inf:
            bias += (found - estimate) * np.float32(1 / ERRORS_OF)
            error += (found - estimate) * (found - estimate) / estimate * np.float32(0.25 / ERRORS_OF)
    margin = SURE * np.float32(np.sqrt(error))
    # Where s - 2 √s margin = last, s being more than is measured by `bias` if that is negative.
    root = margin + np.float32(np.sqrt(margin * margin + last - min(bias, np.float32(0))))
    return pack(root * root, 0) if root * root < np.inf else NOTHING


@inlined
def _measure_more(
    rows: Any, query: Any, lift: Any, candidates: Any, scored: Any, last: Any, reach: Any, pool: Any, capacity: Any
) -> None:
    """Measure the candidates beyond `last` and below `reach`, and put them into the pool where they are nearer."""
    kept = keep_below(candidates, scored, reach)
    for t in range(min(AHEAD, kept)):
        prefetch_row(rows, id_of(candidates[t]))
    for t in range(kept):
        if t + AHEAD < kept:
            prefetch_row(rows, id_of(candidates[t + AHEAD]))
        if candidates[t] > last:
            row = id_of(candidates[t])
            found = pack(distance(rows, query, lift, row), row)
            place = place_of(pool, capacity, found)
            if place < capacity and pool[place] != found:  # a candidate may stand there twice
                insert_at(pool, place, capacity, capacity, found)
