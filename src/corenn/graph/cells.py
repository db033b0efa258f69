"""The cells of a database: its rows divided among centres, for filtered scans that leave most of them out.

They are made when a query would use them, beside the queries, which go other ways until then; they live in memory alone
and follow the rows that come: a new one is looked at by every scan until there are so many that they are given cells.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import NamedTuple, TypeGuard

import numpy as np
from numpy.typing import NDArray

from ..errors import ClosedError
from ..filters.sets import spread
from ..kernels.carve import assign, leaders_of, place_rows, table
from ..kernels.cells import FARS, STRAYS, Cells, count_strays, look_up_chances
from ..kernels.clusters import add_up
from ..kernels.search import BORN
from ..storage.commit import NO_IDS, Metadata
from ..storage.platform import memory_bytes
from ..types import Float32s, Float64s, Int64s, UInt32s
from .planner import CellsShape
from .threads import Helpers
from .view import View

log = logging.getLogger("corenn.cells")

FEWEST_ROWS = 8192  # below which a scan of all matches is as fast
PER_ROOT = 1.0  # cells for each unit of the square root of the rows: about as many as each has rows
MOST_CELLS = 1 << 10
SAMPLED, MOST_SAMPLED = 48, 1 << 24  # rows for each centre, from which these are found; numbers that they hold at most
ROUNDS = 8  # of k-means
ASKED = 256  # rows that stand for queries, where it is counted how rows stray from their cells
UNCOUNTED = 0.01  # rows that may stray so although none was counted
NEAREST, MISSED = 10, 0.08  # rows of the sample that are sought, and the share missed, to tell how many cells it takes
USUAL = 0.6  # of the cells that a row needs, a query does, as measured: docs/performance.md
SUPPOSED = 45.0  # cells, before that is known
LATE = 32  # a share of the rows that may be late, before they are given cells
GROWTH = 1.5  # of the rows, after which the centres are found anew
BLOCK, SLICE = 64, 1 << 11  # rows that are multiplied with centres at once; rows per call


class _Division(NamedTuple):
    """metadata: of the numbering of the rows. seen: the words of state up to this one are of rows that were there.
    radius: of the rows. centred: how many there were when the centres were found. labels: the cell of each.
    """

    metadata: Metadata
    seen: int
    radius: float
    centred: int
    shape: CellsShape
    labels: NDArray[np.uint16]
    cells: Cells


class Partition:
    """The cells of one database. Safe for any number of threads."""

    def __init__(self, helpers: Helpers, fewest: int = FEWEST_ROWS) -> None:
        """fewest: rows from which on there are cells."""
        self._helpers = helpers
        self.fewest = fewest
        self._division: _Division | None = None
        self._late: tuple[int, int, Cells] | None = None  # the snapshot, the rows and the cells with what is late there
        self._making = threading.Lock()
        self._closed = False

    def cells(self, view: View, *, wait: bool = False) -> Cells | None:
        """The cells for a view; None while there are none, or none yet. wait: until they are made."""
        cells = self._present(view)
        if _whole(cells):
            return cells
        if wait:
            with self._making:
                if not _whole(self._present(view)):  # nobody else has made them meanwhile
                    self._make(view)
            return self._present(view)
        # By a helper, not a thread of its own: the interpreter waits for these when it ends.
        free = not self._closed and self._making.acquire(blocking=False)
        if free and not self._helpers.later(lambda: self._make_beside(view)):
            self._making.release()
        return cells

    def shape(self, view: View) -> CellsShape | None:
        """What the planner has to know, or may suppose before they are made; None where there cannot be any."""
        if view.codes is None or view.disk is not None or view.live.rows < self.fewest:
            return None
        if view.live.rows * view.rows.vectors.strides[0] > memory_bytes() // 2:
            return None  # to make them would push what is in use out of memory
        division = self._division
        return CellsShape(_count(view.live.rows), SUPPOSED) if division is None else division.shape

    def memory_bytes(self) -> int:
        """What they take."""
        division = self._division
        if division is None:
            return 0
        return division.labels.nbytes + sum(part.nbytes for part in division.cells if isinstance(part, np.ndarray))

    def clear(self) -> None:
        """Keep none, and make none any more: a thread that does ends soon, and views stay valid until then."""
        self._closed = True
        self._division = self._late = None

    def _present(self, view: View) -> Cells | None:
        """Those that there are, with the rows that are late in a view; None if they do not fit."""
        division = self._division
        return None if division is None or not _fits(division, view) else self._with_late(division, view)

    def _with_late(self, division: _Division, view: View) -> Cells:
        known = self._late
        snapshot = (int(view.live.snapshot), view.live.rows)
        if known is not None and known[:2] == snapshot and known[2].order is division.cells.order:
            return known[2]
        late = NO_IDS
        if int(view.live.snapshot) > division.seen:
            first = 0 if view.reused else len(division.labels)
            born = view.live.state[first : view.live.rows, BORN]
            late = (first + np.flatnonzero(born > np.uint64(division.seen))).astype(np.uint32)
        cells = division.cells._replace(late=late)
        self._late = (*snapshot, cells)
        return cells

    def _make_beside(self, view: View) -> None:
        try:
            self._make(view)
        except Exception:  # nobody else would tell of it
            if not self._closed:
                log.warning("the cells of the rows could not be made; filtered queries go other ways", exc_info=True)
        finally:
            self._making.release()

    def _make(self, view: View) -> None:
        """Divide the rows of a view, or those that are late among the centres that there are."""
        before, rows = self._division, view.live.rows
        labels = np.zeros(rows, np.uint16)
        if before is not None and _fits(before, view) and rows < GROWTH * before.centred:
            (centres, spreads, chances, *_), shape, centred = before.cells, before.shape, before.centred
            labels[: len(before.labels)] = before.labels[:rows]
            ids = self._with_late(before, view).late
        else:
            (centres, spreads, chances, shape), centred = self._centres(view), rows
            ids = np.arange(rows, dtype=np.uint32)
        labels[ids] = self._assigned(view, ids, centres)
        starts = np.zeros(len(centres) + 1, np.int64)
        np.cumsum(np.bincount(labels, minlength=len(centres)), out=starts[1:])
        order = np.argsort(labels, kind="stable").astype(np.uint32)
        cells = Cells(centres, spreads, chances, order, starts, int(np.diff(starts).max()), NO_IDS)
        if self._closed:
            return
        self._division = _Division(
            view.metadata, int(view.live.snapshot), float(view.rows.radius), centred, shape, labels, cells
        )

    def _centres(self, view: View) -> tuple[Float32s, Float32s, Float32s, CellsShape]:
        """Centres by k-means (Lloyd 1982) over an even sample of the rows, and how the rows lie around them."""
        count = _count(view.live.rows)
        sample = spread(min(SAMPLED * count, max(MOST_SAMPLED // view.width, 4 * count)), view.live.rows)
        places = np.empty((len(sample), view.width), np.float32)
        place_rows(view.rows, sample, np.zeros(places.shape[1], np.float32), places)
        places[~np.isfinite(places)] = 0  # a damaged row may hold anything
        centres = places[spread(count, len(sample))]
        count = len(centres)
        for _ in range(ROUNDS):
            labels = self._assigned(view, sample, centres).astype(np.int64)
            sums, counts = np.zeros(centres.shape), np.zeros(count, np.int64)
            add_up(places, labels, 0, count, sums, counts)
            there = counts > 0
            centres[there] = sums[there] / counts[there, None]
        squares = np.einsum("ij,ij->i", apart := places - centres[labels], apart, dtype=np.float64)
        spreads = np.full(count, squares.mean(), np.float32)
        spreads[there] = np.bincount(labels, squares, count)[there] / counts[there]
        strays = np.zeros((FARS, STRAYS), np.int64)
        asked = spread(ASKED, len(sample)).astype(np.int64)
        self._run(
            lambda start, stop: count_strays(places, labels, centres, spreads, asked[start:stop], strays), len(asked), 4
        )
        above = strays[:, ::-1].cumsum(axis=1)[:, ::-1]
        # Where nothing was counted there may be something all the same.
        chances = ((above + UNCOUNTED) / (above[:, :1] + UNCOUNTED)).astype(np.float32)
        cells = Cells(centres, spreads, chances, NO_IDS, np.zeros(count + 1, np.int64), 0, NO_IDS)
        sizes = counts.astype(np.float64) * (view.live.rows / len(sample))
        shape = CellsShape(count, _reach(places, cells, sizes, asked[::4]))
        return centres, spreads, chances, shape

    def _assigned(self, view: View, ids: UInt32s, centres: Float32s) -> NDArray[np.uint16]:
        """The nearest centre of each of some rows."""
        around, labels = leaders_of(centres), np.empty(len(ids), np.uint16)

        def part(start: int, stop: int) -> None:
            found = np.empty((stop - start, 1), np.int32)
            assign(view.rows, ids[start:stop], around, False, table(BLOCK, len(centres), centres.shape[1]), found)
            labels[start:stop] = np.maximum(found[:, 0], 0)

        self._run(part, len(ids), SLICE)
        return labels

    def _run(self, work: Callable[[int, int], None], count: int, step: int) -> None:
        """On one thread, which leaves the others to queries."""

        def part(start: int, stop: int) -> None:
            if self._closed:
                raise ClosedError("the database is closed; open it again")
            work(start, stop)

        self._helpers.run(part, count, step, 1)


def _count(rows: int) -> int:
    """How many cells there are to be."""
    return min(int(PER_ROOT * rows**0.5), MOST_CELLS)


def _reach(places: Float32s, cells: Cells, sizes: Float64s, asked: Int64s) -> float:
    """How many cells a scan looks at, in the mean of some rows of a sample. sizes: of all rows, those of each cell."""
    centres, spreads = cells.centres, cells.spreads
    squares = (places[asked] ** 2).sum(axis=1)[:, None]
    ways = squares + (places**2).sum(axis=1) - 2 * places[asked] @ places.T
    found = np.partition(ways, NEAREST, axis=1)[:, NEAREST].copy()
    apart = np.maximum(squares + (centres**2).sum(axis=1) - 2 * places[asked] @ centres.T, 0)
    chances = np.empty(apart.shape, np.float32)
    look_up_chances(cells, apart + spreads, found, chances)
    left = chances * sizes
    order = np.argsort(apart + spreads, axis=1)
    beyond = np.take_along_axis(left, order, axis=1)[:, ::-1].cumsum(axis=1)
    return USUAL * float((beyond >= MISSED * NEAREST).sum(axis=1).mean())


def _whole(cells: Cells | None) -> TypeGuard[Cells]:
    """Whether there are cells, and few rows without."""
    return cells is not None and len(cells.late) * LATE <= len(cells.order)


def _fits(division: _Division, view: View) -> bool:
    """Whether the cells are of rows numbered and lifted as those of a view."""
    return division.metadata is view.metadata and division.radius == float(view.rows.radius)
