"""How a query that a filter restricts is answered: by a scan of the matches, or by a walk, over two hops or one.

The number of matches is known before the search, so the cost of each plan is, about. Costs are in distances: the unit
is one neighbour of an expanded row, scored in a walk of all rows.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

SCAN, CELLS, WALK, LEAP = "scan", "cells", "graph", "two-hop"
PLANS = ("exact", SCAN, CELLS, WALK, LEAP)
FUSIONS = ("rrf", "weighted")  # how what a vector finds and what a text does become one list: see fused.py
FARTHER = 35  # times the share of the rows among which the nearest matches are: by so much more cells are looked at
SCORED_PER_HOP = 24  # neighbours that are new, for each row that a walk expands


class Costs(NamedTuple):
    """What things take, in distances of a walk without a filter; measured: docs/performance.md, "Filters".

    scanned: a match in a scan, by its code; measured: by its vector. walk: each that a walk goes over which returns
    only matches. leap: each of a walk over two hops, which is not taken where less than a share `sparse` of the rows
    matches: it loses its way. page: a row read from the disk.
    tested: a row that a function of the user is put to. cell: one of those that are put in order. looked: a row
    of a cell, asked whether it matches.
    """

    scanned: float = 0.24
    measured: float = 0.6
    walk: float = 0.5
    leap: float = 4.3
    sparse: float = 0.03
    page: float = 1_500.0
    tested: float = 0.4
    cell: float = 1.1
    looked: float = 0.026


COSTS = Costs()


class CellsShape(NamedTuple):
    """number: of cells. reach: how many of them hold the nearest rows of a query, about."""

    number: int
    reach: float


class Estimate(NamedTuple):
    """A plan, how many distances it is expected to compute, and what that costs."""

    plan: str
    distances: int
    cost: float


def estimates(
    matches: int, live: int, search_list: int, *, coded: bool = True, on_disk: bool = False, untested: int = 0,
    cells: CellsShape | None = None,
) -> tuple[Estimate, ...]:  # fmt: skip
    """All plans for a walk with such a list where `matches` of `live` rows match; the cheapest first.

    coded: whether distances are estimated by codes. on_disk: whether rows are read from there. untested: rows that
    a function is put to before a scan, for each query; others test what they meet. The matches are an estimate then.
    cells: what is known of those among which the rows are divided.
    """
    return _estimates(COSTS, matches, live, search_list, coded, on_disk, untested, cells)


@lru_cache(maxsize=4096)  # filters are asked again and again
def _estimates(
    costs: Costs, matches: int, live: int, search_list: int, coded: bool, on_disk: bool, untested: int,
    cells: CellsShape | None,
) -> tuple[Estimate, ...]:  # fmt: skip
    rate = min(1.0, matches / max(live, 1))
    full = search_list * SCORED_PER_HOP
    walked = min(full / max(rate, 1e-9), live)
    scan, walk = matches * (costs.scanned if coded else costs.measured), walked * costs.walk
    scan += untested * costs.tested
    if on_disk:
        scan, walk = scan + search_list * costs.page, walk + search_list / max(rate, 1e-9) * costs.page
    found = [Estimate(SCAN, matches, scan), Estimate(WALK, int(walked), walk)]
    if not on_disk and rate >= costs.sparse:
        found.append(Estimate(LEAP, full, full * costs.leap))
    if cells is not None:
        visited = cells.reach * (1 + FARTHER * search_list / max(rate * live, 1e-9))
        looked = min(visited / cells.number, 1.0) * live
        cost = cells.number * costs.cell + looked * costs.looked + looked * rate * costs.scanned
        found.append(Estimate(CELLS, int(looked * rate), cost))
    return tuple(sorted(found, key=lambda each: each.cost))


def estimate_of(
    plan: str, matches: int, live: int, search_list: int, cells: CellsShape | None = None
) -> Estimate:  # fmt: skip
    """What is expected of one plan, whichever is the cheapest."""
    for each in estimates(matches, live, search_list, cells=cells):
        if each.plan == plan:
            return each
    return Estimate(plan, search_list * SCORED_PER_HOP, search_list * SCORED_PER_HOP * COSTS.leap)
