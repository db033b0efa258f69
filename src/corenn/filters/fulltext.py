"""The full-text index of some fields of the payloads, `text_fields`: which rows have which words, ranked by BM25.

Soft state, made from the committed payloads and nothing else. Commits are noted as they come, and written to the engine
when somebody asks, at checkpoints and in idle time: of each row that they have touched the document is removed, and
made anew of what the row holds then. So it is of no consequence if one is written twice, or noted without need.

Who asks in a view gets the index exactly as of its commit. Where another one, in a newer view, was there before, it is
too late for that: a filter can do with a later index, as rows touched since its snapshot are looked at by themselves;
a query takes the newer view.

Concurrency: `committed` is called by the writer's thread, and only appends. All else holds the lock. A process that
reads has an index of its own, in a folder of its own that begins as a copy of the writer's, and follows each refresh.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pyroaring import BitMap

from ..errors import CoreNNError, CorruptionError, InvalidArgumentError, MissingExtraError, StorageError
from ..storage.commit import Commit, LiveView, Metadata
from ..storage.rocks import RocksMetadata
from ..storage.store import Store
from ..types import UInt32s
from . import bm25, text_files
from .bm25 import READ_ROWS, Document, Engine, Searches
from .sets import as_ids, below, of_any, of_sorted
from .terms import digest_of, is_met, sought_in, texts_of
from .text_files import ALL, EMPTY, State

log = logging.getLogger("corenn.filters")

STEP_ROWS = 1 << 10  # rows indexed in one step of catching up: some 20 milliseconds
AGAIN_SECONDS = 60.0  # after a failure of the background
DIGESTS = np.dtype([("row", np.uint32), ("digest", np.uint64)])


class Touched(NamedTuple):
    """The rows that a commit has borne, killed, or given other payloads."""

    commit: int
    rows: BitMap


class FullText:
    """See above. fields: paths whose texts are indexed; none if there is no index."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._lock = threading.RLock()
        self._floor = store.metadata.head.commit  # commits up to here are not among those that wait
        self._source = None if store.folder is None else store.folder / text_files.NAME
        self._folder = self._source if store.writable else None
        self._waiting: deque[Touched] = deque()
        self._failed: float | None = None  # when a step of catching up did
        self._remove_own: Callable[[], object] | None = None  # of a reader: removes its folder
        self._begin()

    def _begin(self) -> None:
        self.fields = tuple(dict.fromkeys(self.store.settings.text_fields))
        self._about = text_files.identity(self.store, self.fields)
        self._engine: Engine | None = None
        self._searches: Searches | None = None
        self._state = EMPTY
        self._behind: bool | None = None  # whether what is on the disk is of another commit than the last
        self._lost = False  # whether commits were not noted, and all is to be made anew

    # --- the writer --------------------------------------------------------------------------------------------------

    def committed(self, commit: Commit) -> None:
        """Note a commit that holds."""
        if self.fields:
            if self._engine is None and self._behind is None:
                self._look()
            changed = np.array([row for row, _ in commit.changed], np.uint32)
            self._waiting.append(Touched(commit.number, of_any([commit.ids, commit.died, changed])))

    def _look(self) -> None:
        """See whether there is something to catch up with; an index of commits that were lost since is of no use."""
        state = None if self._folder is None else text_files.read_state(self._folder, self._about)
        self._lost = self._lost or (state is not None and state.commit > self._floor)
        self._behind = state != State(self._floor, ALL) and self._floor > 0

    def due(self, *, calm: bool) -> bool:
        """Whether there is something to do in idle time. calm: also if it is little."""
        if not self.fields or (self._failed is not None and time.monotonic() - self._failed < AGAIN_SECONDS):
            return False
        if self._engine is None and self._behind is None:
            self._look()
        behind = self._behind or self._lost if self._engine is None else self._state.covered < ALL
        return bool(behind) or (calm and bool(self._waiting))

    def step(self, live: LiveView, commit: int, metadata: Metadata) -> None:
        """Go on with what is due. What fails is tried again later."""
        self._try(live, commit, metadata, STEP_ROWS)

    def keep(self, live: LiveView, commit: int, metadata: Metadata, *, whole: bool = False) -> None:
        """Write what was committed: before a checkpoint drops the records of it. whole: and all that is due."""
        if self.fields and commit > 0:
            self._try(live, commit, metadata, None if whole else 0)

    def _try(self, live: LiveView, commit: int, metadata: Metadata, rows: int | None) -> None:
        self._failed = None
        with self._lock:
            try:
                self._load(commit, metadata)
                if self._state.commit <= commit:
                    self._bring(live, commit, metadata, rows)
            except CoreNNError as error:
                known = isinstance(error, MissingExtraError)
                log.warning("the full-text index is given up, and made anew later: %s", error, exc_info=not known)
                self._failed = float("inf") if known else time.monotonic()
                self._give_up(commit)

    def _give_up(self, commit: int) -> None:
        """Know nothing of what was committed, of which a commit is the last. Called in the writer's thread."""
        self._engine, self._searches, self._lost, self._floor = None, None, True, commit
        self._waiting.clear()

    def rebuild(self) -> None:
        """Make it anew, when it is asked for or in the background; the settings may say otherwise now."""
        with self._lock:
            self._begin()
            self._failed = None
            self._give_up(self.store.metadata.head.commit)
            if not self.fields and self._folder is not None:
                self.store.files.remove_tree(self._folder)

    # --- taking up ---------------------------------------------------------------------------------------------------

    def _load(self, commit: int, metadata: Metadata) -> None:
        """Have an engine, of what is on the disk if that is of use. commit: the last one of which a reader's may be."""
        if self._engine is not None:
            return
        folder, state = self._folder, None
        if not self.store.writable:
            folder = self._folder = self._own_copy()
        if folder is not None and not self._lost:
            state = text_files.read_state(folder, self._about)
        missed = None
        latest = self._floor if self.store.writable else commit
        if folder is not None and state is not None and state.commit <= latest:
            missed = touched_since(metadata, state.commit)
            try:
                text_files.check(folder)
                engine = Engine.open(folder, len(self.fields))
            except (CorruptionError, StorageError):
                log.warning("%s is damaged; the full-text index is made anew", folder, exc_info=True)
                missed = None
        if missed is None or state is None:
            self._engine, self._state = self._fresh(), State(self._floor, 0 if self._floor else ALL)
        else:
            self._engine, self._state = engine, state
            self._waiting.appendleft(Touched(state.commit + 1, missed))
        self._lost = False
        self._searches = self._engine.snapshot()

    def _fresh(self) -> Engine:
        """An empty index, in the place of what is there."""
        if self._folder is not None:
            self.store.files.remove_tree(self._folder)
            self.store.files.make_folder(self._folder)
        return Engine.create(self._folder, len(self.fields))

    def _own_copy(self) -> Path:
        """In a reader: a folder of its own, with what the writer has written so far if that goes."""
        assert self._source is not None
        self.close()  # one that did not follow
        own = Path(tempfile.mkdtemp(prefix="corenn-text-"))
        self._remove_own = weakref.finalize(self, _remove_folder, own, os.getpid())
        folder = own / text_files.NAME
        try:
            text_files.copy_to(self._source, folder)
        except (OSError, ValueError) as error:
            log.info("the full-text index of the writer is not taken up: %s", error)
            shutil.rmtree(folder, ignore_errors=True)
        return folder

    def _bring(self, live: LiveView, commit: int, metadata: Metadata, most: int | None = None) -> None:
        """Bring the index up to a commit. most: rows that it has not come to yet and takes up on the way; None for all.

        Raises:
            StorageError
        """
        assert self._engine is not None
        now, due = self._state, [each for each in tuple(self._waiting) if each.commit <= commit]
        touched = below(BitMap.union(BitMap(), *(each.rows for each in due)), min(now.covered, live.rows))
        stop = live.rows if most is None else min(now.covered + most, live.rows)
        fresh = BitMap(range(now.covered, stop)) if now.covered < stop else BitMap()
        then = State(commit, ALL if stop >= live.rows or now.covered == ALL else stop)
        if touched or fresh:
            documents = self._documents(touched | fresh, live, commit, metadata)
            try:
                self._engine.write(as_ids(touched).tolist(), documents, lambda: self._mark(then))
                self._searches = self._engine.snapshot()
            except BaseException:
                self._engine = None  # what it holds is read again from the disk
                self._lost = self._folder is None
                raise
        self._state, self._floor = then, max(self._floor, commit)
        for _ in due:
            self._waiting.popleft()

    def _mark(self, then: State) -> None:
        if self._folder is not None:
            text_files.write_mark(self.store.files, self._folder, self._about, self._state, then)

    def _documents(self, rows: BitMap, live: LiveView, commit: int, metadata: Metadata) -> Iterator[Document]:
        """Those of rows that live and have texts."""
        ids = as_ids(rows)
        ids = ids[live.seen(ids)]
        for start in range(0, len(ids), READ_ROWS):
            part = ids[start : start + READ_ROWS].tolist()
            for row, payload in zip(part, metadata.payloads(part, commit), strict=True):
                texts = texts_of(payload, self.fields)
                if any(texts):
                    yield Document(row, digest_of(texts), texts)

    # --- asking ------------------------------------------------------------------------------------------------------

    def as_of(self, live: LiveView, commit: int, metadata: Metadata, *, later: bool = False) -> Searches | None:
        """The index as of a commit; None if it has gone on already. later: then it does as well, if it is whole.

        live, commit: the snapshot of a view, and metadata: where its payloads are.

        Raises:
            InvalidArgumentError: if there is no index.
            MissingExtraError, StorageError
        """
        with self._lock:
            self.require()
            self._load(commit, metadata)
            if not self.store.writable and self._state.commit < commit:
                self._follow(commit, metadata)
            if self._state.commit > commit:
                return self._searches if later and self._state.covered == ALL else None
            if self._state != State(commit, ALL):
                self._bring(live, commit, metadata)
            return self._searches

    def _follow(self, commit: int, metadata: Metadata) -> None:
        """In a reader: note what was committed since the last refresh; begin anew where nothing tells of that."""
        missed = touched_since(metadata, self._state.commit)
        if missed is None:
            self._begin()
            self._load(commit, metadata)
        else:
            self._waiting.append(Touched(commit, missed))

    def require(self) -> None:
        """Raises: InvalidArgumentError, MissingExtraError"""
        if not self.fields:
            raise InvalidArgumentError(
                "text= and $text need a full-text index, and this database has none: name the fields of its payloads "
                "that hold texts by db.configure(text_fields=['title'])"
            )
        bm25.library()

    def matching(self, text: str, live: LiveView, commit: int, metadata: Metadata) -> BitMap | None:
        """The rows that have a word of a text, as of a commit or a later one; None if that is not to be had now.

        Raises: as `as_of`.
        """
        searches = self.as_of(live, commit, metadata, later=True)
        return None if searches is None else of_any([searches.matching(sought_in(text))])

    def meets(self, text: str, payload: bytes | None) -> bool:
        """The same of one payload."""
        return is_met(sought_in(text), texts_of(payload, self.fields))

    # --- checking ----------------------------------------------------------------------------------------------------

    def faults(self, live: LiveView, commit: int, metadata: Metadata) -> int:
        """Live rows of which the index holds something else than their texts, and at least one if a file is damaged."""
        if not self.fields or commit == 0:
            return 0
        try:
            searches = self.as_of(live, commit, metadata)
            if searches is None:
                return 0
            if self._folder is not None and self._engine is not None and self._folder.exists():
                text_files.check(self._folder)
            rows, digests = searches.digests()
        except MissingExtraError as error:
            log.warning("the full-text index is not checked: %s", error)
            return 0
        except (CorruptionError, StorageError):
            log.warning("the full-text index is damaged", exc_info=True)
            return 1
        there = self._documents(BitMap(range(live.rows)), live, commit, metadata)
        told = np.fromiter(((each.row, each.digest) for each in there), DIGESTS)
        held = np.empty(len(rows), DIGESTS)
        held["row"], held["digest"] = rows, digests
        pairs, counts = np.unique(np.concatenate((told, held)), return_counts=True)
        twice = len(held) - len(np.unique(held["row"]))
        return len(np.unique(pairs["row"][counts != 2])) + twice

    def close(self) -> None:
        """Remove what is there for this handle alone."""
        if self._remove_own is not None:
            self._remove_own()

    def disk_bytes(self) -> int:
        """Bytes that it takes on disk."""
        return text_files.disk_bytes(self._folder) if self.store.writable else 0


def touched_since(metadata: Metadata, after: int) -> BitMap | None:
    """The rows that commits after a number have touched; None if not all of these commits have left records."""
    if after == metadata.head.commit:
        return BitMap()
    changed: UInt32s | None = metadata.changed_since(after) if isinstance(metadata, RocksMetadata) else None
    if changed is None:
        return None
    return of_sorted(changed) | of_any([record.died for record in metadata.records(after)])


def _remove_folder(folder: Path, pid: int) -> None:
    if os.getpid() == pid:  # and not a child of it
        shutil.rmtree(folder, ignore_errors=True)
