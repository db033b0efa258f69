"""Linking a batch where the graph lies on the disk: by reads and by codes, with nothing touched that is not needed.

What a mapping would bring in page by page, one fault after the other, and lose again before long, is asked for ahead
here, by as many threads as wait for a disk at once. What the kernels do, kernels/link_disk.py tells.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

from ..kernels.link import Shape
from ..kernels.link_disk import EdgeFile, ask_for_edges, choose_by_codes, link_back_by_codes
from ..kernels.search import GEOMETRY, INFO, LOST, Plan
from ..types import AnyArray, Float32s, UInt32s
from .scratch import ScratchPool
from .threads import WAITERS, Helpers
from .view import View

log = logging.getLogger("corenn.insert")

BATCH_ROWS = 96  # so few that pages which a batch has read are still cached when it writes them
EXPANDED_SHARE = 4  # of its search list, an insert expands one in so many
TRAIL = 1  # expanded candidates kept beside the list, in search lists
FIRST_WIDTH, MOST_WIDTH = 1, 2  # rows asked for at once: other walks go on meanwhile, and what is in vain costs them
SLICE = 4  # rows per kernel call: some milliseconds, most of them spent waiting
TARGETS = 256  # rows that get reverse edges, per kernel call
LEAST_BITS = 2  # signs alone do not tell how far rows are apart


def by_codes(view: View) -> bool:
    """Whether rows are linked by reads: where queries are answered by such, if codes stand for something."""
    return view.disk is not None and view.codes is not None and view.codes.bits >= LEAST_BITS


def file_of(view: View) -> EdgeFile:
    """The edges as they are on the disk."""
    assert view.disk is not None
    return EdgeFile(view.disk.disk.edges, view.graph.edges.shape[1], FIRST_WIDTH, MOST_WIDTH)


class DiskLinker:
    """Chooses edges and adds reverse ones. Used by the writer thread only.

    spent: int64 (INFO,), pages read, rows that could not be, and estimates made, since it was made.
    """

    def __init__(self, scratches: ScratchPool, helpers: Helpers) -> None:
        self._scratches = scratches
        self._helpers = helpers
        self.spent = np.zeros(INFO, np.int64)

    def choose(
        self, view: View, shape: Shape, batch: UInt32s, nearest: AnyArray, plan: Plan
    ) -> tuple[UInt32s, Float32s]:
        """The edges of each row of a batch, uint32 (batch, columns), and what its walk says of growth.

        nearest: candidates from the batch itself, as for choose_edges.
        """
        codes, file = view.codes, file_of(view)
        assert codes is not None
        plan = plan._replace(metric=GEOMETRY, nearest=max(plan.search_list // EXPANDED_SHARE, 1))
        room = (TRAIL + 2) * plan.search_list + nearest.shape[1]
        growth = np.zeros(len(batch), np.float32)
        chosen = np.zeros((len(batch), view.graph.edges.shape[1]), np.uint32)
        spent: list[AnyArray] = []

        def choose(start: int, stop: int) -> None:
            key, scratch = self._scratches.take(view, plan, TRAIL * plan.search_list)
            asked = self._scratches.take_asked(codes)
            bench = self._scratches.take_bench(codes, file, room)
            info = np.zeros(INFO, np.int64)
            choose_by_codes(
                view.rows, codes, view.graph, view.live, plan, shape, file, batch[start:stop], nearest[start:stop],
                growth[start:stop], chosen[start:stop], scratch, asked, bench, info,
            )  # fmt: skip
            self._scratches.give_bench(bench)
            self._scratches.give_asked(codes, asked)
            self._scratches.give(key, scratch)
            spent.append(info)

        self._run(choose, len(batch), SLICE, WAITERS)
        total = np.sum(spent, axis=0)
        self.spent += total
        if total[LOST] and file.descriptor >= 0:
            log.warning("%d rows could not be read from the disk, and were passed over by inserts", total[LOST])
        return chosen, growth

    def ask_for(self, view: View, ids: UInt32s) -> None:
        """Have the edges of rows, ascending, read ahead: they are about to be touched."""
        ask_for_edges(file_of(view), ids)

    def link_back(self, view: View, shape: Shape, targets: UInt32s, sources: UInt32s, starts: AnyArray) -> None:
        """Add to each of the targets, ascending, edges to its sources: see link_back_by_codes."""
        codes, file = view.codes, file_of(view)
        assert codes is not None
        room = file.words + BATCH_ROWS

        def back(start: int, stop: int) -> None:
            asked = self._scratches.take_asked(codes)
            bench = self._scratches.take_bench(codes, file, room)
            self.ask_for(view, targets[start:stop])
            link_back_by_codes(
                codes, view.graph, view.live, shape, targets[start:stop], sources, starts[start : stop + 1],
                np.empty(view.settings.dim, np.float32), asked, bench,
            )  # fmt: skip
            self._scratches.give_bench(bench)
            self._scratches.give_asked(codes, asked)

        self._run(back, len(targets), TARGETS, 1)

    def _run(self, work: Callable[[int, int], None], count: int, step: int, waiters: int) -> None:
        """As Helpers.run, whose grain is for work that touches what is mapped."""
        threads = max(self._helpers.threads - 1, 1) if self._helpers.visited() else self._helpers.threads
        self._helpers.run(work, count, step * self._helpers.grain(), waiters * threads)
