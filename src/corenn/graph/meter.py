"""What a first load takes: the disk, how much of that so far, and the time that is left.

Time is told by what was measured: a step in work goes on as fast as it has gone, and those to come take the share of
the whole that they took where such loads were measured. So it is rough until the longest step has begun.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress

from ..errors import CoreNNError
from ..sizes import as_size
from ..storage.format import PAGE
from ..storage.slab import FileSlab
from ..storage.store import Store
from ..types import Step
from .bulk import Progress

log = logging.getLogger("corenn.build")

NAMED_BYTES = 48  # of a row in the metadata, beside its key and payload
METADATA_COPIES = 2  # its log, or what it makes of its tables, beside them
FIXED_BYTES = 1 << 23  # of files of which there are some however few rows
SAMPLE_SECONDS = 0.25  # between two looks at the disk, each of which takes some microseconds per file
# Shares of the time of a whole load, measured with 150,000 rows of 128 dimensions on disk.
WHOLE = {"rows": 22, "twins": 1, "clusters": 8, "leaves": 37, "edges": 13, "reverse": 9, "ring": 2, "codes": 8}
PARTS = {"rows": 8, "dealing": 6, "parts": 71, "merging": 5, "codes": 10}
WALKS = {"rows": 3, "inserting": 97}
KNOWN = 0.02  # of a step, after which its own pace is taken
MAIN = 30  # hundredths of the whole from which on a step's pace is taken for that of those to come


def room_for(store: Store, rows: int, beside: int, *, letters: int = 0, payloads: int = 0, exact: bool = True) -> int:
    """Bytes that a database takes on the disk at most while so many rows come into it and are linked.

    beside: of files that are there only while rows are linked. letters, payloads: bytes of keys that are text, and of
    payloads. exact: whether files get room for these rows alone; else they grow by an eighth.
    """
    slabs = (store.vectors, store.seals, store.state, store.edges, store.keys)
    fixed = sum(rows * int(slab.spec.row_bytes) + 2 * PAGE for slab in slabs)
    fixed += letters * (FileSlab.GROWTH + 1) // FileSlab.GROWTH
    if not exact:
        fixed += fixed // FileSlab.GROWTH
    codes = 0 if store.codes is None else rows * int(store.codes.spec.row_bytes)
    named = METADATA_COPIES * (rows * NAMED_BYTES + letters + payloads)
    return fixed + named + FIXED_BYTES + max(codes, beside)


class Meter:
    """Tells a load's progress. Safe for any number of threads: whom it tells is called by one at a time.

    kind: WHOLE, PARTS or WALKS. most: bytes that the database takes at most, with what is there only on the way; 0 if
    that is not known yet. expected: rows that are to come, None if nobody has said.
    """

    def __init__(
        self, store: Store, progress: Progress | None, kind: dict[str, int], most: int, expected: int | None = None
    ) -> None:
        self._store, self._progress, self.kind = store, progress, kind
        self.most, self._expected = most, expected
        self.rows = 0
        self._lock = threading.Lock()
        self._began = self._since = time.monotonic()
        self._step, self._first = "", 0.0
        self._skipped = 0.0  # shares that were there already
        self._looked = 0.0
        self._taken = self.peak = 0
        self.look()
        self._before = self._taken

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began

    def tell(self, step: str, done: int, total: int) -> None:
        """A step of the load has come so far."""
        with self._lock:
            self._look()
            share = min(done / total, 1.0) if total else 1.0
            if step != self._step:
                self._step, self._first, self._since = step, share, time.monotonic()
                if step == "parts":  # those of an earlier process took no time
                    self._skipped = self.kind.get(step, 0) * share
            if self._progress is not None:
                most = max(self.most, self.peak) if self.most else 0
                self._progress(Step(step, self._taken, self.peak, most, self.seconds, self._left(share)), done, total)

    def note(self, count: int) -> None:
        """So many rows more have come."""
        with self._lock:
            self.rows += count
            done, expected, before = self.rows, self._expected, self._before
            if expected is not None and done < expected and done >= KNOWN * expected:
                # Payloads, of which nothing is known beforehand, are in this.
                gained = (self.peak - before) * (FileSlab.GROWTH + 1) // FileSlab.GROWTH
                self.most = max(self.most, before + gained * expected // done)
        if expected is not None:
            self.tell("rows", min(done, expected), expected)

    def link(self, kind: dict[str, int], beside: int) -> None:
        """All rows have come, and are to be linked. beside: see `room_for`."""
        self.look()
        codes = 0 if self._store.codes is None else self.rows * int(self._store.codes.spec.row_bytes)
        self.kind, self.most = kind, self._taken + max(codes, beside) + FIXED_BYTES

    def look(self) -> None:
        """See how much of the disk is taken: called where something large is about to go."""
        with self._lock:
            self._look(now=True)

    def _look(self, *, now: bool = False) -> None:
        if not now and time.monotonic() - self._looked < SAMPLE_SECONDS:
            return
        with suppress(CoreNNError, OSError):  # what cannot be told now is the next time
            self._taken = self._store.disk_bytes()
            self.peak = max(self.peak, self._taken)
        self._looked = time.monotonic()

    def _left(self, share: float) -> float | None:
        """Seconds until the end, None if there is nothing to go by."""
        names = list(self.kind)
        if self._step not in names:
            return None
        at, own = names.index(self._step), self.kind[self._step]
        reached = sum(self.kind[name] for name in names[:at]) + own * share - self._skipped
        after = sum(self.kind[name] for name in names[at + 1 :])
        pace = self.seconds / reached if reached >= 1 else None  # seconds for each hundredth
        if share - self._first >= KNOWN:
            here = (time.monotonic() - self._since) / (own * (share - self._first))
            later = here if pace is None or own >= MAIN else pace
            return here * own * (1 - share) + later * after
        return None if pace is None else pace * (own * (1 - share) + after)

    def finish(self, rows: int) -> None:
        """The end: say what it was, here and in the log."""
        self.look()
        seconds = max(self.seconds, 1e-9)
        step = Step("done", self._taken, self.peak, max(self.most, self.peak), seconds, 0.0)
        log.info(
            "built %s rows in %.1f s, %s rows/s; %s on disk, %s at most on the way",
            f"{rows:,}", seconds, f"{rows / seconds:,.0f}", as_size(self._taken), as_size(self.peak),
        )  # fmt: skip
        if self._progress is not None:
            self._progress(step, rows, rows)
