"""Other codes in the place of those that there are: when, by which codebook, and a step at a time.

A new codebook is trained and all rows are encoded by it beside writes and queries, which go on over the old codes; see
storage/recoded.py for the file in which the new ones grow, and the moment at which they take the place of the old. The
same serves another `compression_mode`, and `auto`, which moves on to smaller codes when the rows outgrow their memory.

Whether the rows have drifted away from their codebook is measured on those that have come lately: by what it misses of
them, and by how much of what walks over vectors find for them walks over the codes find; each against when it was
trained.

What is done in one step takes some milliseconds. While queries are asked, the thread rests between two steps.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator
from typing import NamedTuple

import numpy as np

from ..kernels.codes import AUTO, TRAINED, form_of, product_form
from ..kernels.rows import decode_rows
from ..kernels.search import BORN
from ..storage.commit import NO_IDS, as_runs
from ..storage.format import AGREED, BOOK, CENTRE, CHOSEN, CODED, CODINGS, LOOKED, MISSED, SINCE, SLACK, TRIED
from ..storage.recoded import adopt_draft, create_draft, discard_draft, open_draft
from ..storage.slab import Slab
from ..storage.state import commit_of
from ..storage.store import Store
from ..types import Float32s, UInt32s
from . import codebook
from .codes import (
    LEAST_TRAINED,
    Coder,
    candidates,
    chosen_mode,
    codes_due,
    codes_in,
    encode_range,
    fits,
    form_used,
    least_coded,
    mode_in,
    subspaces_for,
)
from .scratch import ScratchPool
from .threads import Helpers
from .trial import Trial, sample_of
from .view import View

log = logging.getLogger("corenn.codes")

STEP_SECONDS = 0.003  # about, of one step
RESTS = 4.0  # times as long as a step, between two of them while queries are asked
PAUSE_SECONDS = 0.02  # without a request, before a step is taken that no write has paid for
RETRY_SECONDS = 60.0  # after a failure, such as a full disk
LEAST_ROWS, MOST_ROWS = 1 << 8, 1 << 16  # encoded between two looks at the clock
DECODED_AT_ONCE = 1 << 9  # rows of a sample, each of which may have to be read from the disk
GROWN = 4  # times as many rows as a codebook was trained by, from which on another one is, until the sample is full
SAMPLE_BYTES = 1 << 28  # of the vectors by which it is trained, at most
SAMPLE_SHARE = 8  # and of the memory limit: a part in so many, for they are held twice while they are rotated
MEASURED = (*TRAINED, "trunc")  # codes of which it hangs on the data how far their estimates err
SHARE = 8  # it is looked for drift when one row in so many has come since
COMPARED = 1 << 10  # rows by which it is measured what a codebook misses
HELD_BACK = 8  # a row in so many, at most COMPARED, by which a codebook is not trained but tried
FEWEST = 64  # rows that have come since, below which nothing is told by them
DRIFTED = 1.25  # times as much is missed of rows that have come as of those by which the codebook was tried
LEAST_MISSED = 1e-3  # of the variance, below which no walk notices
LOST = 0.02  # of recall, by walks over codes against walks over vectors


class _Work(NamedTuple):
    """steps: what there is to do. rows: whether rows have to be encoded for it."""

    steps: Generator[None]
    rows: bool


class Recoder:
    """Makes other codes. Used by the writer thread only; `paused` is held by snapshots of the files."""

    def __init__(self, store: Store, coder: Coder, scratches: ScratchPool, helpers: Helpers) -> None:
        self._store = store
        self._coder = coder
        self._scratches = scratches
        self._helpers = helpers
        self.paused = 0
        self.restart()

    # --- when ------------------------------------------------------------------------------------------------------

    def restart(self) -> None:
        """Begin anew, with other files."""
        self._work: _Work | None = None
        self._view: View | None = None
        self._nothing_for: View | None = None
        self._asked = ""  # the compression_mode for which the work was begun
        self._hurried = False  # on all threads, and without rests
        self._whole = False  # nothing is left to do but to put the new codes in their place
        self._wanted: tuple[str, ...] | None = None  # other codes, as was found when it was looked
        self._held = NO_IDS  # rows by which the codebook was not trained
        self._rows = LEAST_ROWS
        self._born = 0  # rows since it was last looked for drift
        self._rest_until = self._pause_until = self._later = 0.0

    def settle(self) -> None:
        """See to what follows at once from the settings. Called at the opening of a database, and when they change."""
        store, asked = self._store, self._store.settings.compression_mode
        self._nothing_for = None
        if self._work is not None and self._asked != asked:
            self._stop()
            self._wanted = None
        self._later = 0.0
        if store.codes is None or asked == "none":
            if store.codes is not None:
                store.codes.header[[CHOSEN, CODED]] = 0  # rows that come get no codes: none may count as there
            discard_draft(store)
            return
        if store.draft is None:
            open_draft(store)
        if store.draft is not None and not self._usable(store.draft):
            self.give_up()

    def give_up(self) -> None:
        """Throw away what was made so far; what is still wanted begins anew."""
        self._stop()  # it counts on what is thrown away
        discard_draft(self._store)

    def _stop(self) -> None:
        if self._work is not None:
            self._work.steps.close()
            self._work = None

    def _usable(self, draft: Slab) -> bool:
        """Whether to go on with what an earlier handle has left, or this one before it was told otherwise."""
        mode, asked, chosen = mode_in(draft), self._store.settings.compression_mode, chosen_mode(self._store)
        if codes_due(self._store, self._store.metadata.head.live):
            wanted = self._modes(self._store.metadata.head.live)
        else:
            wanted = AUTO[AUTO.index(chosen) :] if asked == "auto" and chosen in AUTO else (chosen,)
        if mode == "none" or mode not in wanted:
            return False
        held = 0 < int(draft.header[CODED]) <= min(len(draft.array), self._store.metadata.head.rows)
        if mode in TRAINED:
            book = codebook.codebook_of(self._store, draft)
            held = held and book is not None and len(book.starts) == form_used(self._store, draft).subspaces + 1
        return held and draft.spec.columns == form_used(self._store, draft).row_bytes

    def rest(self, view: View, *, paid: bool = False) -> float | None:
        """Seconds until the next step may be taken, 0 for now; None if there is none.

        paid: by a write, so that no other one is waited for.
        """
        if (
            self._store.codes is None
            or self._store.settings.compression_mode == "none"
            or (self._whole and self.paused)
        ):
            return None
        if self._work is None:
            if self._nothing_for is view:
                return None
            if self._next(view) is None:
                self._nothing_for = view  # asked several times for each commit
                return None
        until = max(self._rest_until, self._later, 0.0 if paid else self._pause_until)
        return max(until - time.monotonic(), 0.0)

    def backlog(self, view: View) -> int:
        """Rows that have yet to get the codes that are wanted; at least 1 until these are in use."""
        if self._store.codes is None or self._store.settings.compression_mode == "none":
            return 0
        work = self._work or self._next(view)
        if work is None or not work.rows:
            return 0
        draft = self._store.draft
        return max(view.head.rows - (0 if draft is None else int(draft.header[CODED])), 1)

    def pause(self) -> None:
        """Somebody writes: perhaps more will come at once."""
        self._pause_until = time.monotonic() + PAUSE_SECONDS

    def _next(self, view: View) -> _Work | None:
        """What there is to do."""
        store, asked = self._store, self._store.settings.compression_mode
        assert store.codes is not None
        header, linked, mode = store.codes.header, view.head.live - len(view.pending), chosen_mode(store)
        if codes_due(store, linked):
            return _Work(self._make(self._modes(linked)), rows=True)
        if store.draft is not None:
            return _Work(self._make((mode_in(store.draft),)), rows=True)
        if mode == "none":
            return None
        if self._wanted is not None:
            return _Work(self._make(self._wanted), rows=True)
        if mode in TRAINED:
            if linked and codebook.codebook_of(store, store.codes) is None:
                return _Work(self._make((mode,)), rows=True)
            trained = int(header[TRIED])
            if linked >= GROWN * trained and trained < view.settings.pq_sample_size:
                return _Work(self._make((mode,)), rows=True)
        if header[CODED] < view.head.rows:
            return _Work(self._catch_up(), rows=True)
        if mode in MEASURED and max(self._born, linked - int(header[LOOKED])) >= max(LEAST_TRAINED, linked // SHARE):
            return _Work(self._look(mode), rows=False)
        if asked == "auto" and mode in AUTO and linked >= 2 * int(header[TRIED]):
            return _Work(self._look(mode), rows=False)
        return None

    def _modes(self, linked: int) -> tuple[str, ...]:
        """The modes of which one is asked for."""
        asked = self._store.settings.compression_mode
        return candidates(self._store, linked) if asked == "auto" else (asked,)

    # --- a step ----------------------------------------------------------------------------------------------------

    def step(self, view: View, seconds: float = STEP_SECONDS) -> bool:
        """Go on for so long, about; true when the codes over which walks go have changed. What fails is tried again.

        view: the present one, in which nothing waits to be linked.
        """
        began = time.monotonic()
        self._view = view
        if self._work is None:
            self._work, self._asked = self._next(view), view.settings.compression_mode
        try:
            while self._work is not None and self.rest(view, paid=True) is not None:
                if next(self._work.steps, self) is self:
                    self._work = None
                if time.monotonic() - began >= seconds:
                    break
        except Exception:  # whatever it is: codes are soft, and the write that pays for them holds
            log.warning("no other codes could be made; it is tried again, and walks go on as before", exc_info=True)
            self._work = None
            self._later = time.monotonic() + RETRY_SECONDS
        now = time.monotonic()
        if self._helpers.visited():
            self._rest_until = now + RESTS * (now - began)
        return self._work is None

    def first(self, view: View, before: int, linked: int) -> None:
        """Make the first codes at once, as soon as there are enough rows: those that come later are linked over them.

        before: rows that were linked when it was last called.
        """
        store = self._store
        if store.codes is None or store.codes.header[[CHOSEN, TRIED]].any() or store.draft is not None or self.paused:
            return
        if not before < least_coded(store, linked) <= linked or not codes_due(store, linked):
            return
        self._view, self._hurried = view, True
        try:
            codebook.at_once(self._make(self._modes(linked)))
        except Exception:  # see `step`
            log.warning("no codes could be made; it is tried again, and walks measure vectors", exc_info=True)
            self._later = time.monotonic() + RETRY_SECONDS
        finally:
            self._hurried = False

    def again(self, view: View, ids: UInt32s) -> None:
        """Rows have come, of which some may have ids that belonged to others before."""
        self._born += len(ids)
        draft = self._store.draft
        if draft is None:
            return
        try:
            for first, count in as_runs(ids[ids < int(draft.header[CODED])]).tolist():
                self._write(view, draft, first, first + count)
        except Exception:  # see `step`
            log.warning("the codes that were being made are begun anew", exc_info=True)
            self.give_up()

    # --- making them -----------------------------------------------------------------------------------------------

    def _now(self) -> View:
        """The present view, which is another one after each step."""
        assert self._view is not None
        return self._view

    def _make(self, modes: tuple[str, ...]) -> Generator[None]:
        """Make codes of one of some modes, in this order, of which `auto` takes the first that serves."""
        store, view = self._store, self._now()
        linked, asked = view.head.live - len(view.pending), view.settings.compression_mode
        left = modes
        if store.draft is not None and mode_in(store.draft) in modes:  # go on with it: those before were tried
            left = modes[modes.index(mode_in(store.draft)) :]
        for mode in left:
            if store.draft is None or mode_in(store.draft) != mode:
                yield from self._begin(mode, linked)
            yield from self._fill()
            assert store.draft is not None
            trial = self._trial(store.draft)
            if mode in MEASURED:
                yield from self._measure(store.draft, trial, mode)
            forced = mode == modes[-1] and not fits(store, "none", linked)
            serves = asked != "auto" or forced or (yield from trial.faithful())
            if serves:
                yield from self._fill(last=True)
                adopt_draft(store)
                self._born, self._wanted = 0, None
                log.info("walks go over codes of the kind %s from now on", mode)
                return
        discard_draft(store)
        assert store.codes is not None
        store.codes.header[[CHOSEN, CODED, TRIED]] = CODINGS.index("none"), 0, linked
        self._wanted = None
        log.info("no codes tell these vectors apart well enough; walks measure them")

    def _begin(self, mode: str, linked: int) -> Generator[None]:
        """Begin a file of codes, with a codebook where one is needed. Room for them comes first: to train one takes
        seconds, again and again where there is none.
        """
        store, word = self._store, 0
        form = form_of(store.settings, mode)
        if mode in TRAINED:
            form = product_form(store.settings.dim, min(subspaces_for(store, mode, linked), store.settings.dim))
        try:
            create_draft(store, form.row_bytes)
            draft = store.draft
            assert draft is not None
            draft.reserve(self._now().head.rows)
            if mode in TRAINED:
                word, self._held = yield from self._train(mode, form.subspaces)
            view = self._now()
            draft.reserve(view.head.rows)
        except Exception:
            discard_draft(store)  # what there is no room for leaves that to others
            raise
        header = draft.header
        header[BOOK], header[TRIED], header[SINCE] = word, linked, view.head.commit
        header[CENTRE] = int(view.graph.entries[0]) if len(view.graph.entries) else 0
        header[CHOSEN] = CODINGS.index(mode)
        if mode in TRAINED:
            trial, recent = self._trial(draft), self._recent(self._held)
            missed = trial.missed(self._held)
            # Those that have come may be hard for any codebook, which must not count as drift again and again.
            _put(draft, MISSED, max(missed, trial.missed(recent)) if len(recent) >= FEWEST else missed)

    def _recent(self, ids: UInt32s) -> UInt32s:
        """Those of some rows that have come since the codes in use were made; none where there are no codes."""
        store = self._store
        assert store.codes is not None
        since = int(store.codes.header[SINCE])
        born = commit_of(store.state.array[ids, BORN])
        recent: UInt32s = ids[born > np.uint64(since)] if since else NO_IDS
        return recent

    def _train(self, mode: str, subspaces: int) -> Generator[None, None, tuple[int, UInt32s]]:
        """Train a codebook by some of the rows, and keep it; returns its word, and rows that were held back from it."""
        store, view = self._store, self._now()
        settings, began = view.settings, time.monotonic()
        room = SAMPLE_BYTES
        if settings.memory_limit and store.path is not None:
            room = min(room, settings.memory_limit // SAMPLE_SHARE)
        most = min(settings.pq_sample_size, max(LEAST_TRAINED, room // (4 * settings.dim)))
        ids = sample_of(view, most)
        held = ids[:: max(HELD_BACK, len(ids) // COMPARED)]
        ids = np.setdiff1d(ids, held) if len(held) >= FEWEST else ids
        points = yield from self._points(ids)
        version = codebook.next_version(store)
        if self._hurried:
            made = codebook.train(points, subspaces, version, self._helpers, rotated=mode == "opq")
        else:
            made = yield from codebook.training(points, subspaces, version, rotated=mode == "opq")
        word = codebook.keep(store, made)
        log.info("codebook %d: %d subspaces, trained by %d rows in %.1f seconds", version, len(made.starts) - 1,
                 len(ids), time.monotonic() - began)  # fmt: skip
        return word, held

    def _points(self, ids: UInt32s) -> Generator[None, None, Float32s]:
        """Vectors of ascending ids, float32 (ids, dim)."""
        points = np.empty((len(ids), self._store.settings.dim), np.float32)
        for start in range(0, len(ids), DECODED_AT_ONCE):
            view, some = self._now(), ids[start : start + DECODED_AT_ONCE]
            decode_rows(view.rows, some, points[start : start + len(some)])
            if view.disk is not None:
                view.disk.release(int(some[0]), int(some[-1]) + 1)
            yield
        return points

    def _fill(self, *, last: bool = False) -> Generator[None]:
        """Encode all rows, those that come meanwhile included. last: and return only when nothing may come between."""
        draft = self._store.draft
        assert draft is not None
        while True:
            view = self._now()
            first = int(draft.header[CODED])
            if first >= view.head.rows and not (last and self.paused):
                self._whole = False
                return
            self._whole = first >= view.head.rows
            if not self._whole:
                began = time.monotonic()
                stop = view.head.rows if self._hurried else min(first + self._rows, view.head.rows)
                self._write(view, draft, first, stop)
                draft.header[CODED] = stop
                self._pace(time.monotonic() - began)
            yield

    @property
    def _spare(self) -> int:
        """Threads for what is done in the background: a query that comes finds a processor."""
        return max(self._helpers.threads - 1, 1)

    def _pace(self, took: float) -> None:
        """Encode more or fewer rows at a time, by how long it has taken."""
        if took < STEP_SECONDS / 2:
            self._rows = min(2 * self._rows, MOST_ROWS)
        elif took > 2 * STEP_SECONDS:
            self._rows = max(self._rows // 2, LEAST_ROWS)

    def _write(self, view: View, draft: Slab, first: int, stop: int) -> None:
        """Write the codes of some rows: not through the mapping, in which they would stay resident."""
        codes = codes_in(self._store, draft, view.rows)
        assert codes is not None
        for start in range(first, stop, MOST_ROWS):
            out = np.zeros((min(MOST_ROWS, stop - start), draft.spec.columns), np.uint8)
            encode_range(view, codes, start, out, self._helpers, None if self._hurried else self._spare)
            draft.reserve(start + len(out))
            draft.write(start, out)

    def _catch_up(self) -> Generator[None]:
        """Make the codes that have been lost, or that there was no room for."""
        assert self._store.codes is not None
        while int(self._store.codes.header[CODED]) < self._now().head.rows:
            began = time.monotonic()
            if not self._coder.catch_up(self._now(), self._rows, self._spare):
                self._later = time.monotonic() + RETRY_SECONDS
                return
            self._pace(time.monotonic() - began)
            yield

    # --- what they are worth ---------------------------------------------------------------------------------------

    def _trial(self, slab: Slab) -> Trial:
        view = self._now()
        codes = codes_in(self._store, slab, view.rows)
        assert codes is not None
        return Trial(view, codes, self._scratches)

    def _measure(self, draft: Slab, trial: Trial, mode: str) -> Generator[None]:
        """Measure how far estimates err, and what there is to compare with when it is looked for drift."""
        held = self._held if len(self._held) >= FEWEST and mode in TRAINED else sample_of(trial.view, COMPARED)
        slack, agreed = yield from trial.slack(held)
        _put(draft, SLACK, slack)
        recent = self._recent(held)
        if mode in TRAINED and len(recent) >= FEWEST:
            agreed = min(agreed, (yield from self._trial(draft).agreement(recent)))
        _put(draft, AGREED, agreed)
        draft.header[LOOKED] = draft.header[TRIED]

    def _look(self, mode: str) -> Generator[None]:
        """Look whether the codes still serve the rows as they did; others are made next if not."""
        store, view = self._store, self._now()
        assert store.codes is not None
        header, linked = store.codes.header, view.head.live - len(view.pending)
        trial = self._trial(store.codes)
        if mode in MEASURED:
            if (yield from self._drifted(store.codes, trial, mode)):
                self._wanted = (mode,)
            else:
                header[LOOKED], header[SINCE] = linked, view.head.commit
        elif (yield from trial.faithful()):
            header[TRIED] = linked
        else:
            finer = tuple(each for each in AUTO[AUTO.index(mode) + 1 :] if fits(store, each, linked))
            if finer or fits(store, "none", linked):
                self._wanted = finer
            else:
                header[TRIED] = linked
        self._born, self._nothing_for = 0, None

    def _drifted(self, slab: Slab, trial: Trial, mode: str) -> Generator[None, None, bool]:
        """Whether the codebook misses more of the rows that have come lately than when it was trained. Where it does
        not, but walks find less, estimates err more than they did, and it is measured anew by how much.
        """
        recent = sample_of(trial.view, COMPARED, int(slab.header[SINCE]))
        if len(recent) < FEWEST:
            return False
        before, agreed = _get(slab, MISSED), _get(slab, AGREED)
        missed = trial.missed(recent) if mode in TRAINED else 0.0
        found = yield from trial.agreement(recent)
        log.info("the codebook misses %.4f of the rows that have come, and %.4f when it was trained; walks over codes "
                 "find %.4f of what walks over vectors do, and %.4f then", missed, before, found, agreed)  # fmt: skip
        if missed > max(DRIFTED * before, LEAST_MISSED):
            return True
        if found < agreed - LOST:
            slack, agreed = yield from trial.slack(sample_of(trial.view, COMPARED))
            _put(slab, SLACK, slack)
            _put(slab, AGREED, min(agreed, found))
        return False


def _put(slab: Slab, word: int, value: float) -> None:
    slab.header[word : word + 1].view(np.float64)[0] = value


def _get(slab: Slab, word: int) -> float:
    """A number from a header; 0 for what can be none."""
    value = float(slab.header[word : word + 1].view(np.float64)[0])
    return value if 0 < value < np.inf else 0.0
