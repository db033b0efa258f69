"""What codes are worth: tried on the graph, with some of its rows as queries.

Everything here goes on step by step, a walk or so at a time, so that others need not wait for its end.
"""

from __future__ import annotations

from collections.abc import Generator

import numpy as np

from ..kernels.codes import Codes, asked_of, encode_rows, form_in, search_codes
from ..kernels.rows import decode_rows
from ..kernels.search import BORN, DIED, INFO, Plan, Results, search_batch
from ..storage.platform import give_way
from ..storage.state import commit_of
from ..types import Float32s, UInt32s
from .codebook import rotate
from .scratch import ScratchPool
from .view import View

SAMPLE = 64  # rows that stand for queries when codes are chosen
ASKED = 256  # rows by which it is measured how far estimates err
K, LIST = 10, 48
FAITHFUL = 0.97  # share of the walk's own answers that a walk over codes must find
# Factors by which estimates may err, tried in this order; and what measuring fewer than all may lose of recall.
SLACKS = (1.02, 1.05, 1.1, 1.2, 1.3, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0)
ALL = 1e30
LOST = 0.001
AT_ONCE = 32  # rows encoded between two looks at who waits for the interpreter
LOOKED_AT = 16  # times as many rows are looked at as are wanted of a kind


class Trial:
    """Walks over the rows of one view and over its codes. Used by one thread."""

    def __init__(self, view: View, codes: Codes, scratches: ScratchPool) -> None:
        self.view, self._codes, self._scratches = view, codes, scratches

    def faithful(self) -> Generator[None, None, bool]:
        """Whether walks over the codes find what walks over the vectors find."""
        ids = sample_of(self.view, SAMPLE)
        queries = _vectors(self.view, ids)
        wanted = yield from self._walk(None, ids, queries)
        found = yield from self._walk(self._codes, ids, queries)
        return _agreement(wanted, found) >= FAITHFUL

    def slack(self, ids: UInt32s) -> Generator[None, None, tuple[float, float]]:
        """The least factor with which measuring finds as much as if all candidates were measured, or nearly; and how
        much of what walks over vectors find that is, both for some of a few rows.

        Rows stand for queries, each hidden from its own walk: at a row itself estimates err less than elsewhere.
        """
        ids = _evenly(ids, ASKED)
        queries = _vectors(self.view, ids)
        wanted = yield from self._walk(None, ids, queries, hide=True)
        best = 0.0
        for slack in (ALL, *SLACKS):
            codes = self._codes._replace(slack=np.float32(slack))
            agreed = _agreement(wanted, (yield from self._walk(codes, ids, queries, hide=True)))
            if slack == ALL:
                best = agreed
            elif agreed >= best - LOST:
                return slack, agreed
        return ALL, best

    def agreement(self, ids: UInt32s) -> Generator[None, None, float]:
        """How much of what walks over vectors find walks over the codes find, for some of a few rows, hidden from
        their own.
        """
        ids = _evenly(ids, ASKED)
        queries = _vectors(self.view, ids)
        wanted = yield from self._walk(None, ids, queries, hide=True)
        found = yield from self._walk(self._codes, ids, queries, hide=True)
        return _agreement(wanted, found)

    def missed(self, ids: UInt32s) -> float:
        """The part of the variance of some rows that their product codes do not say; 0 for rows that are all equal."""
        codes = self._codes
        made = np.empty((len(ids), form_in(codes).row_bytes), np.uint8)
        vector, asked = np.empty(self.view.settings.dim, np.float32), asked_of(form_in(codes))
        for place, row in enumerate(ids.tolist()):
            encode_rows(self.view.rows, codes, row, made[place : place + 1], vector, asked)
            if place % AT_ONCE == AT_ONCE - 1:
                give_way()
        points = _vectors(self.view, ids) - codes.centre
        if len(codes.turn):
            points = rotate(points, codes.turn)
        spread = float(np.square(points - points.mean(axis=0, dtype=np.float64), dtype=np.float64).sum())
        for number, (first, stop) in enumerate(zip(codes.starts[:-1], codes.starts[1:], strict=True)):
            points[:, first:stop] -= codes.books[first:stop, made[:, number]].T
        error = float(np.square(points, dtype=np.float64).sum())
        return error / spread if 0 < spread < np.inf and np.isfinite(error) else 0.0

    def _walk(
        self, codes: Codes | None, ids: UInt32s, queries: Float32s, *, hide: bool = False
    ) -> Generator[None, None, UInt32s]:
        """What walks find: uint32 (queries, K). codes: None to measure vectors. hide: `ids` from their own walks."""
        view = self.view
        plan = Plan(LIST, 1, view.metric, view.tombstones, LIST + 1, np.float32(1))
        found = Results(
            np.zeros((len(ids), K), np.uint32),
            np.zeros((len(ids), K), np.float32),
            np.zeros((len(ids), INFO), np.int64),
        )
        asked = None if codes is None else asked_of(form_in(codes))
        for at in range(len(ids)):
            if hide:
                plan = plan._replace(hidden=int(ids[at]))
            some = queries[at : at + 1]
            part = Results(found.ids[at : at + 1], found.distances[at : at + 1], found.info[at : at + 1])
            size, scratch = self._scratches.take(view, plan)
            if codes is None:
                search_batch(view.rows, view.graph, view.live, plan, some, scratch, part)
            else:
                search_codes(view.rows, codes, view.graph, view.live, plan, some, scratch, asked, part)
            self._scratches.give(size, scratch)
            yield
        return found.ids


def sample_of(view: View, count: int, since: int = 0) -> UInt32s:
    """So many of the live rows, or what there is of them, ascending and at even distances.

    since: only those that were born after a commit, as far as a look at some finds them.
    """
    rows = view.live.rows
    ids = np.linspace(0, max(rows - 1, 0), min(rows, LOOKED_AT * count)).astype(np.uint32)
    state = view.live.state[ids]
    alive = (state[:, BORN] - np.uint64(1) < view.live.snapshot) & (state[:, DIED] - np.uint64(1) >= view.live.snapshot)
    if since:
        alive &= commit_of(state[:, BORN]) > np.uint64(since)
    return _evenly(ids[alive], count)


def _evenly(ids: UInt32s, count: int) -> UInt32s:
    """So many of `ids`, or all, at even distances."""
    if len(ids) <= count:
        return ids
    chosen: UInt32s = ids[np.linspace(0, len(ids) - 1, count).astype(np.int64)]
    return chosen


def _vectors(view: View, ids: UInt32s) -> Float32s:
    points = np.empty((len(ids), view.settings.dim), np.float32)
    decode_rows(view.rows, ids, points)
    return points


def _agreement(one: UInt32s, other: UInt32s) -> float:
    """The mean share of what is in each row of one that is in that of the other; 1 for none."""
    if not len(one):
        return 1.0
    return float((one[:, :, None] == other[:, None, :]).any(axis=2).mean())
