"""The writer: one thread through which every change goes, in shared commits.

Callers hand in requests and wait. The thread takes all that have come, checks each against the database and against
those before it, lets the bad ones fail one by one, and makes the others one commit. It then links the new rows and
publishes a view in which all of it is seen. A caller that is interrupted leaves the commit whole.

Constant after construction: store, linker. Guarded by `_changed`: the queue and the flags. Written by the writer thread
only: `view`, which any thread may read, and the backlog.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .config import Settings
from .errors import (
    ClosedError,
    CoreNNError,
    DiskFullError,
    DuplicateKeyError,
    KeyNotFoundError,
    ReadOnlyError,
    StorageError,
)
from .filters.index import attach
from .graph.bulk import Progress
from .graph.calibrate import Calibrator
from .graph.disk import STEP_ROWS, Spiller
from .graph.insert import Linker
from .graph.mend import Mender
from .graph.meter import Meter, room_for
from .graph.recode import STEP_SECONDS
from .graph.view import View, norms_of, radius_of, raise_radius, take_view
from .once import Token, current
from .storage.commit import CURVES, NO_IDS, Commit, Head
from .storage.encode import Encoded
from .storage.format import NO_ID
from .storage.ledger import Done, Ledger
from .storage.platform import give_way
from .storage.readers import Snapshots
from .storage.resume import resume
from .storage.rocks import RocksMetadata
from .storage.snapshot import Cut, take_cut
from .storage.store import Former, Store
from .types import Key, UInt32s

log = logging.getLogger("corenn.writer")

GROUP_ROWS = 1 << 16
CHECKPOINT_ROWS = 1 << 16
CHECKPOINT_COMMITS = 1 << 14
CHECKPOINT_DEAD = 1 << 12  # rows, or an eighth of those that live, whose ids only wait for a checkpoint
GATHER_SECONDS = 0.002
NEW = 1 << 32  # beyond all ids
IDLE_ROWS = 512  # rows of the backlog linked before new requests are looked for
IDLE_SECONDS = 1.0  # without a request, after which dead rows are taken out and recall is measured
SPILLED_PER_CHANGE = 32  # rows of disk.slab written for each row that comes or goes, while many are behind; see `owed`
SPILLED_SHARE = 0.25  # of the time that a commit takes, after it, for these at most
SPILL_ROWS = 1 << 8  # of them, between two looks at the clock
RECODED_SHARE = 0.25  # of the time that a commit takes, after it, for making other codes
MOST_OWED = 0.05  # seconds of it that may have gathered while nothing could be done, which one commit then waits for
RETRY_SECONDS = 60.0  # after a failure to link many rows at once, such as a full disk
MENDED_PER_CHANGE = 32  # rows whose edges are looked at for each row that comes or goes, while a pass is worth it


@dataclass(slots=True)
class Request:
    """Something to be done by the writer thread. `result` is set, or `error`, when `done` is."""

    done: threading.Event = field(default_factory=threading.Event, init=False)
    interrupted: bool = field(default=False, init=False)
    error: BaseException | None = field(default=None, init=False)
    result: Any = field(default=None, init=False)

    def finish(self, result: Any = None, error: BaseException | None = None) -> None:
        self.result, self.error = result, error
        self.done.set()


@dataclass(slots=True)
class Write(Request):
    """Rows to insert or upsert, payloads to set, or keys to delete."""

    kind: str
    keys: Sequence[Key]
    encoded: Encoded | None = None
    payloads: Sequence[bytes | None] = ()
    where: Callable[[View], list[Key]] | None = None  # finds the keys when its turn has come
    token: Token | None = field(default_factory=current)


@dataclass(slots=True)
class Task(Request):
    """Anything else that must not run beside a write."""

    call: Callable[[], Any]


@dataclass(slots=True)
class Job(Request):
    """Something long that goes on step by step, between the writes of others. Tasks wait for its end.

    begin: takes a function that becomes true when nobody waits for the job any more, and yields between its steps.
    note: called with each commit that is made meanwhile.
    """

    begin: Callable[[Callable[[], bool]], Generator[None]]
    note: Callable[[Commit], None]


class _Group:
    """The writes of one commit: each sees those before it. A write that fails has left nothing in the group."""

    def __init__(self, writes: Sequence[Write], view: View, store: Store) -> None:
        keys = list(dict.fromkeys(key for write in writes for key in write.keys))
        self._committed = dict(zip(keys, store.metadata.lookup(keys, view.lookup_view), strict=True))
        self._current = dict(self._committed)  # new rows are counted from NEW on until they get their ids
        self.keys: list[Key] = []
        self.previous: list[int] = []
        self.payloads: list[bytes | None] = []
        self.died: list[int] = []
        self.changed: dict[int, bytes | None] = {}
        self.blocks: list[Encoded] = []

    def add(self, write: Write) -> Any:
        """Take a write in; returns what its call returns.

        Raises:
            DuplicateKeyError, KeyNotFoundError
        """
        return getattr(self, f"_{write.kind}")(write)

    def _insert(self, write: Write) -> None:
        for key in write.keys:
            if self._current[key] >= 0:
                raise DuplicateKeyError(f"key {key!r} exists already; use upsert to replace it")
        self._append(write)

    def _upsert(self, write: Write) -> None:
        self.died += [self._current[key] for key in write.keys if self._current[key] >= 0]
        self._append(write)

    def _append(self, write: Write) -> None:
        assert write.encoded is not None
        for row, key in enumerate(write.keys, NEW + len(self.keys)):
            before = self._committed[key]
            self.previous.append(NO_ID if before < 0 else before)
            self._current[key] = row
        self.keys += write.keys
        self.payloads += write.payloads
        self.blocks.append(write.encoded)

    def _delete(self, write: Write) -> int:
        count = 0
        for key in write.keys:
            if self._current[key] >= 0:
                self.died.append(self._current[key])
                self._current[key] = -1
                count += 1
        return count

    def _payload(self, write: Write) -> None:
        for key in write.keys:
            if self._current[key] < 0:
                raise KeyNotFoundError(f"key {key!r} does not exist; insert it with its vector first")
        for key, payload in zip(write.keys, write.payloads, strict=True):
            row = self._current[key]
            if row >= NEW:
                self.payloads[row - NEW] = payload
            else:
                self.changed[row] = payload

    def commit(self, number: int, ids: UInt32s, freed: UInt32s) -> Commit:
        """The commit of all that was taken in. ids: for the new rows. freed: see Commit."""
        whole = self.blocks[0] if len(self.blocks) == 1 else None
        if len(self.blocks) > 1:
            whole = Encoded(*(np.concatenate([block[i] for block in self.blocks]) for i in range(2)))
        return Commit(
            number=number,
            ids=ids,
            keys=self.keys,
            previous=self.previous,
            payloads=self.payloads,
            vectors=None if whole is None else whole.rows,
            seals=None if whole is None else whole.seals,
            died=np.array([row if row < NEW else ids[row - NEW] for row in self.died], np.uint32),
            changed=list(self.changed.items()),
            freed=freed,
        )

    @property
    def empty(self) -> bool:
        return not (self.keys or self.died or self.changed)


class Writer:
    """Owns the thread, the published view and the backlog of rows that wait to be linked."""

    def __init__(
        self, store: Store, linker: Linker, mender: Mender, spiller: Spiller, calibrator: Calibrator,
        snapshots: Snapshots,
    ) -> None:  # fmt: skip
        self.store = store
        self.linker = linker
        self.mender = mender
        self.spiller = spiller
        self.snapshots = snapshots
        self.calibrator = calibrator
        self.recoder = linker.recoder
        self._ledger: Ledger | None = None  # read when a write comes with a token
        self._owed = 0.0  # seconds for making other codes, by the commits that were made meanwhile
        self._spillable = 0.0  # seconds for disk.slab, likewise; below 0 if a step has taken longer
        self._calm = False  # no request has come for IDLE_SECONDS
        self._backlog: list[tuple[int, UInt32s]] = list(store.recovered.backlog)
        self._changed = threading.Condition()
        self._queue: list[Request] = []
        self._closing = False
        # Callers in the last commit. They come back together: to wait for them makes commits twice as large, and
        # leaves them the interpreter meanwhile.
        self._crowd = 0
        self._thread: threading.Thread | None = None
        self._since_checkpoint = [0, 0]  # rows, commits
        self._checkpointed = 0  # the commit at which the last one was made
        self._loading = False  # whether rows wait to be linked all at once
        self._link_later = 0.0  # the time before which that is not tried again
        self._job: tuple[Job, Generator[None]] | None = None
        self.looking: set[object] = set()  # tokens of queries that look up keys or payloads in a view
        self._former: list[tuple[set[object], Callable[[], None]]] = []  # see `release_former`
        if store.recovered.suspect or (store.settings.metric == "ip" and radius_of(store) == 0):
            self._raise_radius(np.flatnonzero(store.state.array[: store.metadata.head.rows, 0]).astype(np.uint32))
        for _, ids in self._backlog:
            self._raise_radius(ids)  # who committed them may have been killed before
        self.payload_index = attach(store)
        self.payload_index.oldest = lambda: snapshots.oldest_here(self.view.head.commit)
        self.view = self._take()
        if not linker.in_bulk(self._waiting):
            linker.parts.discard()  # of a load that is linked
        self.recoder.settle()
        recoding = self.recoder.rest(self.view) is not None
        indexing = self._may_index(calm=True)
        if self._backlog or recoding or indexing or calibrator.due(self.view) or spiller.due(calm=True):
            self._start()

    # --- callers ---------------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> Any:
        """Hand in a request and wait until it is done; returns its result or raises its error."""
        with self._changed:
            if self._closing:
                raise ClosedError("the database is closed; open it again")
            self._queue.append(request)
            self._start()
            if len(self._queue) == 1 or len(self._queue) >= self._crowd:
                self._changed.notify_all()
        try:
            request.done.wait()
        except BaseException:
            self._interrupt(request)
            raise
        if request.error is not None:
            raise request.error
        return request.result

    def schedule(self, task: Task) -> None:
        """Hand in a task without waiting for it; one that comes after close() is dropped."""
        with self._changed:
            if self._closing:
                return
            self._queue.append(task)
            self._start()
            self._changed.notify_all()

    def _interrupt(self, request: Request) -> None:
        """Ctrl-C: a request not yet begun is withdrawn; one in work is finished, but not waited for to link."""
        with self._changed:
            request.interrupted = True
            if request in self._queue:
                self._queue.remove(request)
                return
        request.done.wait()

    def looked(self, token: object) -> None:
        """A query has looked up what it needed."""
        self.looking.discard(token)
        if self._former:
            self.schedule(Task(self.release_former))

    def close(self) -> None:
        """Finish what was handed in, checkpoint, and stop. Rows not linked by then are linked after the next open."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self.calibrator.stop()
        self.release_former(wait=False)
        with suppress(ReadOnlyError):
            self._resume_after_fault()
        if self.store.writable and self.store.fault is None and self.view.head.commit:
            self._checkpoint(asked=True)

    # --- the thread ------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="corenn-writer", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._queue or self._closing or self._job or self._at_hand()):
                    patience, rest = self._patience(), self._recoding()
                    if rest is not None and (patience is None or rest < patience):
                        self._changed.wait(rest)
                    elif not self._changed.wait(patience):
                        self._calm = True
                        break
                self._calm = self._calm and not self._queue
                if self._crowd > 1:
                    self._changed.wait_for(lambda: len(self._queue) >= self._crowd or self._closing, GATHER_SECONDS)
                requests = self._next_requests()
                self._crowd = len(requests)
                if not requests and self._closing and self._job is None:
                    return
            self.snapshots.at_work = True
            try:
                if requests:
                    self._serve(requests)
                    self.recoder.pause()
                if self._job is not None:
                    self._advance(*self._job)
                elif not requests:
                    self._idle()
            except Exception as error:  # the thread outlives whatever a request meets
                log.debug("a write failed", exc_info=True)
                self._fail(requests, error)
            self.store.look()
            self.snapshots.at_work = False

    def _idle(self) -> None:
        """Go on with what nobody waits for."""
        if self._may_link():
            try:
                self._link_backlog(pause=lambda: bool(self._queue))
            except (DiskFullError, StorageError) as error:
                if not self.linker.in_bulk(self._waiting):
                    raise
                log.warning("%s; it is tried again, and until then %d rows are found by a scan", error, self._waiting)
                self._link_later = time.monotonic() + RETRY_SECONDS
        elif self._recoding() == 0:
            self._recode()
        elif self._may_index(calm=self._calm):
            self._index()
        elif self._may_mend(calm=True):
            self._mend(1)
        elif self._may_spill(calm=True):
            self._spill()
        elif self.calibrator.step(self.view):
            self.keep_curves()

    def _at_hand(self) -> bool:
        """Whether there is something to do at once, though nobody waits for it."""
        return self._may_link() or self._may_index(calm=False) or self._recoding() == 0

    def _may_index(self, *, calm: bool) -> bool:
        due = self.payload_index.due(calm=calm) or self.payload_index.texts.due(calm=calm)
        return self.store.fault is None and not self._loading and due

    def _index(self) -> None:
        """Go on with what the indexes of payloads have to catch up with."""
        if self.payload_index.due(calm=self._calm):
            self.payload_index.step()
        else:
            self.payload_index.texts.step(*self.view.snapshot)
        give_way()

    def _may_link(self) -> bool:
        waits = self._loading or self.store.recovered.suspect  # edges that may lead anywhere are mended first
        waits = waits or time.monotonic() < self._link_later
        return bool(self._backlog) and self.store.fault is None and not waits

    def _may_mend(self, *, calm: bool) -> bool:
        return self.store.fault is None and not self._backlog and not self._loading and self.mender.due(calm=calm)

    def _mend(self, rows: int) -> None:
        """Look at the edges of so many rows, at least: a part of the repair that deletes leave behind."""
        while rows > 0 and self._may_mend(calm=True):
            rows -= self.mender.step(self.view) or 1
        self.publish()

    def _may_spill(self, *, calm: bool) -> bool:
        return self.store.fault is None and not self._backlog and not self._loading and self.spiller.due(calm=calm)

    def _spill(self, rows: int = STEP_ROWS) -> None:
        """Write so many rows to disk.slab, about."""
        for left in range(rows, 0, -STEP_ROWS):
            self.spiller.step(self.view, min(left, STEP_ROWS))
            self.store.look()
        self.publish()

    def _spill_beside(self, rows: int, took: float) -> None:
        """The same for a commit that has taken so many seconds, within its share: the rest is left to idle time. While
        rows come faster than disk.slab can follow, walks read two files.
        """
        self._spillable = min(self._spillable + SPILLED_SHARE * took, max(SPILLED_SHARE * took, MOST_OWED))
        began = time.monotonic()
        while rows > 0 and self._spillable > time.monotonic() - began:
            self._spill(min(rows, SPILL_ROWS))
            rows -= SPILL_ROWS
        self._spillable -= time.monotonic() - began

    def _recoding(self, *, paid: bool = False) -> float | None:
        """Seconds until the next step of making other codes may be taken, None if there is none. paid: by a write."""
        if self.store.fault is not None or self._backlog or self._loading or self._job is not None:
            return None
        return self.recoder.rest(self.view, paid=paid)

    def _recode(self, seconds: float = STEP_SECONDS) -> None:
        """Go on making other codes."""
        if self.recoder.step(self.view, seconds):
            self.publish()

    def _patience(self) -> float | None:
        """How long to wait for requests before dead rows are taken out of the graph and recall is measured; for ever
        if there is nothing to do.
        """
        if not self._calm:
            return IDLE_SECONDS
        upkeep = self._may_mend(calm=True) or self._may_spill(calm=True) or self._may_index(calm=True)
        busy = self.store.fault is None and (upkeep or self.calibrator.due(self.view))
        failed = self.spiller.failed_for(), self._link_later - time.monotonic() if self._backlog else 0.0
        if not busy and self.store.fault is None and max(failed) > 0:
            return min(left for left in failed if left > 0)
        return 0.0 if busy else None

    def _next_requests(self) -> list[Request]:
        """One task or job, or the writes that share a commit."""
        taken: list[Request] = []
        rows = 0
        while self._queue and rows < GROUP_ROWS:
            request = self._queue[0]
            alone = not isinstance(request, Write)
            if (taken and (alone or not isinstance(taken[0], Write))) or (alone and self._job is not None):
                break
            taken.append(self._queue.pop(0))
            rows += len(request.keys) if isinstance(request, Write) else 0
        return taken

    def _fail(self, requests: Sequence[Request], error: Exception) -> None:
        if not requests and self.store.fault is None:
            self.store.fault = error
        for request in requests:
            if not request.done.is_set():
                request.finish(error=error)

    def _serve(self, requests: list[Request]) -> None:
        first = requests[0]
        if isinstance(first, Job):
            self._job = first, first.begin(lambda: first.interrupted or self._closing)
            return
        if isinstance(first, Task):
            try:
                first.finish(first.call())
            except Exception as error:  # noqa: BLE001 - handed to the caller
                first.finish(error=error)
            return
        self._write([request for request in requests if isinstance(request, Write)])

    def _advance(self, job: Job, steps: Generator[None]) -> None:
        """Go on with a job for one step."""
        try:
            self._resume_after_fault()
            next(steps)
            return
        except StopIteration:
            job.finish()
        except Exception as error:  # noqa: BLE001 - handed to the caller
            steps.close()
            job.finish(error=error)
        self._job = None

    def _write(self, writes: list[Write]) -> None:
        self._resume_after_fault()
        writes = self._with_keys(self._not_done(writes))
        group = _Group(writes, self.view, self.store)
        accepted: list[tuple[Write, Any]] = []
        for write in writes:
            try:
                accepted.append((write, group.add(write)))
            except CoreNNError as error:
                write.finish(error=error)
        if not accepted:
            return
        try:
            if not group.empty:
                self._commit(group, accepted)
        except DiskFullError:
            if len(accepted) == 1 or self.store.fault is not None:
                raise
            for write, _ in accepted:  # one of them may be too large: each on its own
                self._serve([write])
            return
        for write, result in accepted:
            write.finish(result)

    def _not_done(self, writes: list[Write]) -> list[Write]:
        """Those that were not done before; the others get what was returned then. A second one under a token waits
        until it is known what has become of the first.
        """
        if not any(write.token for write in writes):
            return writes
        if self._ledger is None:
            self._ledger = Ledger(self.store.metadata.done())
        left, later = dict[Any, Write](), list[Write]()
        for write in writes:
            if write.done.is_set():  # it waited, and has failed with those that it was taken with
                continue
            try:
                done = None if write.token is None else self._ledger.find(write.token)
            except CoreNNError as error:
                write.finish(error=error)
                continue
            if done is not None:
                write.finish(done.returned)
            elif (name := write.token.identity if write.token else id(write)) in left:
                later.append(write)
            else:
                left[name] = write
        with self._changed:
            self._queue[:0] = later
        return list(left.values())

    def _with_keys(self, writes: list[Write]) -> list[Write]:
        """Find the keys of those that say by a filter which they are, in what was committed before any of them: so they
        come first.
        """
        asking = [write for write in writes if write.where is not None]
        for write in asking:
            assert write.where is not None
            try:
                write.keys = write.where(self.view)
            except CoreNNError as error:
                write.finish(error=error)
        ready = [write for write in asking if not write.done.is_set()]
        return [*ready, *(write for write in writes if write.where is None)] if asking else writes

    def _resume_after_fault(self) -> None:
        """What a failed sync or commit has left on the disk is not known: find out before anything is written on top.

        Raises:
            ReadOnlyError: as long as the disk does not let it go on.
        """
        fault = self.store.fault
        if fault is None:
            return
        if self.store.stuck is not None:
            raise ReadOnlyError(
                f"the database is read-only: a compaction did not finish ({fault}); close it and open it again"
            ) from fault
        try:
            self.mender.spare(resume(self.store))
            if self.store.unsure:
                self._checkpoint()
        except CoreNNError as error:
            self.store.fault = self.store.fault or fault
            raise ReadOnlyError(
                f"the database is read-only since an earlier failure ({fault}), and cannot go on yet ({error}); see to "
                "the disk and write again, or close it and open it again"
            ) from error
        self._ledger = None
        log.warning("the database takes writes again after an earlier failure: %s", fault)
        self.publish()

    def _commit(self, group: _Group, accepted: Sequence[tuple[Write, Any]]) -> None:
        began = time.monotonic()
        oldest = self._oldest() if self.mender.holds_ids else 0
        freed = self.mender.freeable(oldest)
        ids = self.mender.take(len(group.keys))
        commit = group.commit(self.store.next_commit(), ids, freed)
        now = int(time.time())
        commit.done = [Done(write.token, now, -1 if it is None else it) for write, it in accepted if write.token]
        if commit.done and self._ledger is not None:
            commit.lapsed = self._ledger.lapsing(len(commit.done))
        self.store.commit(commit)
        if commit.done and self._ledger is not None:
            self._ledger.note(commit.number, commit.done, commit.lapsed)
        self.mender.committed(ids, freed)
        if self._job is not None:
            self._job[0].note(commit)
        head = self.store.metadata.head
        if commit.count:
            self._raise_radius(commit.ids)
            fresh = commit.ids[self.store.state.array[commit.ids, 1] == 0]
            left = fresh
            # Where nothing is linked yet, rows wait for those that are to be linked all at once.
            if not (self.linker.empty and (self._loading or self.linker.in_bulk(self._waiting))):
                left = self._link(fresh, head, lambda: self._closing or any(write.interrupted for write, _ in accepted))
            if len(left):
                self._backlog.append((commit.number, left))
        self.publish()
        self._since_checkpoint[0] += commit.count + len(commit.died)
        self._since_checkpoint[1] += 1
        if self._may_mend(calm=False):
            self._mend(MENDED_PER_CHANGE * (commit.count + len(commit.died)))
        if self._may_spill(calm=False):
            least = min(SPILLED_PER_CHANGE * (commit.count + len(commit.died)), STEP_ROWS)
            self._spill_beside(self.spiller.owed(least), time.monotonic() - began)
        if self._checkpoint_due():
            self._try_checkpoint()
        if self._recoding(paid=True) is None:
            self._owed = 0.0
        else:
            self._recode_beside(time.monotonic() - began)

    def _recode_beside(self, took: float) -> None:
        """Let a commit, which has taken so many seconds, pay its share: writes that follow each other closely leave
        no other time.
        """
        share = RECODED_SHARE * took
        self._owed = min(self._owed + share, max(share, MOST_OWED))
        if self._owed > 0 and self._recoding(paid=True) == 0:
            began = time.monotonic()
            self._recode(self._owed)
            self._owed -= time.monotonic() - began

    def _checkpoint_due(self) -> bool:
        """Whether there is much to recover from, or many rows wait for their deaths to be durable."""
        if self._since_checkpoint[0] >= CHECKPOINT_ROWS or self._since_checkpoint[1] >= CHECKPOINT_COMMITS:
            return True
        most = max(CHECKPOINT_DEAD, self.store.metadata.head.live // 8)
        return self.mender.holds_ids and self.mender.dead_since(self._checkpointed) >= most

    def _oldest(self) -> int:
        """The oldest snapshot that anybody reads: a query here, or a reader in another process."""
        return self.snapshots.oldest(self.store.metadata.head.commit)

    def _raise_radius(self, ids: UInt32s) -> None:
        """Take the norms of rows into account before they are linked, or where edges.slab may have lost them."""
        raise_radius(self.store, norms_of(self.store, ids))

    def _link(self, ids: UInt32s, head: Head, stop: Callable[[], bool]) -> UInt32s:
        """Link committed rows. Whatever goes wrong here, they stay committed: queries scan what is not linked."""
        try:
            return self.linker.link(ids, head, stop, linked=self._linked_at_once)
        except (DiskFullError, StorageError) as error:
            if not self.linker.in_bulk(len(ids)):
                self.store.fault = error
            log.warning("rows %d to %d wait to be linked: %s", ids[0], ids[-1], error)
            self._link_later = time.monotonic() + RETRY_SECONDS
            return ids
        except Exception as error:
            log.exception("rows %d to %d are committed but could not be linked", ids[0], ids[-1])
            self.store.fault = error
            return ids

    def _try_checkpoint(self) -> None:
        """A checkpoint that nobody asked for: the write before it holds even if this fails."""
        try:
            self._checkpoint()
        except CoreNNError:
            log.exception("a checkpoint failed; the next write tries to go on")

    def publish(self) -> None:
        """Show queries what is there now. Called in the writer thread."""
        self.store.mark_linked(self._linked_commit())
        self.view = self._take()

    def _take(self) -> View:
        pending = np.concatenate([ids for _, ids in self._backlog]) if self._backlog else NO_IDS
        return take_view(self.store, self.store.metadata.head, pending)

    def _linked_commit(self) -> int:
        """Every commit up to this one is linked."""
        return self._backlog[0][0] - 1 if self._backlog else self.store.metadata.head.commit

    @property
    def _waiting(self) -> int:
        """Rows in the backlog."""
        return sum(len(ids) for _, ids in self._backlog)

    def _linked_at_once(self, left: UInt32s) -> None:
        """Rows that were committed just now are in the graph: whoever opens after a kill need not link them again."""
        if not len(left):
            self.store.mark_linked(self._linked_commit())

    def _keep_waiting(self, left: UInt32s) -> None:
        """Of the backlog only these wait still."""
        there = np.zeros(self.store.metadata.head.rows, np.bool_)
        there[left] = True
        self._backlog = [(number, ids[there[ids]]) for number, ids in self._backlog if there[ids].any()]
        self.publish()

    def _link_backlog(
        self, progress: Progress | None = None, *, stop: Callable[[], bool] = lambda: False,
        pause: Callable[[], bool] = lambda: False, linked: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """Link a part of the oldest commit that waits, or everything where nothing is linked yet.

        stop: whether to end as soon as that goes. pause: whether to end between two parts, the next time to go on.
        linked: called when everything is, before what is there only on the way is removed.

        Raises:
            DiskFullError, StorageError: there is no room to link everything; the rows wait still.
        """
        if self.linker.in_bulk(self._waiting):
            waiting = np.concatenate([ids for _, ids in self._backlog])

            def note(left: UInt32s) -> None:
                self._keep_waiting(left)
                linked()

            left = self.linker.link(
                waiting, self.store.metadata.head, lambda: self._closing or stop(), progress, pause=pause, linked=note
            )
            self._keep_waiting(left)
            return
        number, ids = self._backlog[0]
        batch, rest = ids[:IDLE_ROWS], ids[IDLE_ROWS:]
        left = self.linker.link(batch, self.store.metadata.head, lambda: self._closing)
        rest = np.concatenate((left, rest))
        self._backlog[:1] = [(number, rest)] if len(rest) else []
        self.publish()

    def _checkpoint(self, *, asked: bool = False) -> None:
        self.payload_index.texts.keep(*self.view.snapshot)
        try:
            self.store.checkpoint(self._linked_commit(), self.snapshots.oldest_here(self.view.head.commit))
        except CoreNNError as error:
            self.store.fault = error  # a failed sync is never tried again
            raise
        self._since_checkpoint = [0, 0]
        self._checkpointed = self.view.head.commit
        self.payload_index.keep(now=asked)

    def keep_curves(self) -> None:
        """Store the calibration curves, which are soft. Called in the writer thread."""
        if self.store.fault is None:
            try:
                self.store.metadata.store_soft(CURVES, self.calibrator.pack())
            except CoreNNError:
                log.warning("the calibration curves could not be stored", exc_info=True)

    # --- tasks -----------------------------------------------------------------------------------------------------

    def take_back(self) -> None:
        """Take back a call that has failed half done, as the next write would. Called in the writer thread.

        Raises:
            ReadOnlyError: as long as the disk does not let it.
        """
        self._resume_after_fault()

    def checkpoint(self) -> None:
        """Link what waits and bring everything to the disk. Called in the writer thread."""
        self._resume_after_fault()
        try:
            self.link_waiting(lambda: self._closing)
        except (DiskFullError, StorageError):
            self._checkpoint()  # rows that cannot be linked now are on the disk all the same
            raise
        self._checkpoint(asked=True)

    def begin_copy(self) -> Cut:
        """Let nothing that is there be taken away until `end_copy`, and tell what is. Called in the writer thread."""
        self.checkpoint()
        if self._backlog:
            raise ClosedError("the database was closed before it could be copied; open it again")
        cut = take_cut(self.store)
        self.mender.paused += 1
        self.recoder.paused += 1
        return cut

    def end_copy(self) -> None:
        """What `begin_copy` has told is copied. Called in the writer thread."""
        self.mender.paused -= 1
        self.recoder.paused -= 1

    def settle(self, stop: Callable[[], bool]) -> Iterator[str]:
        """Link what waits, then take all that is dead now out of the graph, unless `stop` becomes true.

        Yields what it is at, every now and then. Called in the writer thread.
        """
        while self._backlog and not stop():
            self._link_backlog()
            yield "linking"
        for _ in range(2):  # the pass that is under way, and one that begins now
            while not stop() and self._may_mend(calm=True):
                self.mender.step(self.view)
                yield "mending"
                if not self.mender.under_way:
                    break
        self.publish()

    def link_waiting(self, stop: Callable[[], bool]) -> None:
        """Link the backlog, unless `stop` becomes true. Called in the writer thread."""
        while self._backlog and not stop():
            self._link_backlog()

    def adopt(self, other: Store, release: Callable[[Former], None]) -> None:
        """Go on with the same rows in another store. Called in the writer thread, with nothing left to link.

        release: called with what the store held until now, as soon as no query looks anything up there.
        """
        index = self.payload_index
        former = self.store.adopt(other)
        self.payload_index = attach(self.store)
        self.payload_index.oldest = index.oldest
        self.calibrator.stop()
        self.linker.restart()
        self.mender.restart()
        self.spiller.restart()
        self.recoder.restart()
        self.publish()
        self._since_checkpoint = [0, 0]
        self._checkpointed = self.view.head.commit
        # Who comes later sees the new view: a token is registered before its view is taken.
        self._former.append((set(self.looking), lambda: release(former)))
        self.release_former()

    def release_former(self, *, wait: bool = True) -> None:
        """Let go of what queries from before `adopt` have needed until now; of all of it at once unless told to wait.

        Called in the writer thread, or when it has ended.
        """
        waiting, self._former = self._former, []
        for tokens, release in waiting:
            tokens &= self.looking
            if tokens and wait:
                self._former.append((tokens, release))
            else:
                release()

    @property
    def closing(self) -> bool:
        """Whether the thread is about to end."""
        return self._closing

    def start_loading(self, progress: Progress | None, rows: int | None) -> Meter:
        """Let rows wait from now on, if none is linked yet. rows: how many are to come. Called in the writer thread.

        Raises:
            DiskFullError: if there is no room for them.
        """
        store, linker = self.store, self.linker
        if rows is None or store.folder is None:
            self._loading = True
            return Meter(store, progress, linker.kind(rows or 0), 0, rows)
        more = room_for(store, rows, linker.beside_bytes(rows + self._waiting), exact=False)
        free = store.files.free_bytes(store.folder)
        if free < more:
            raise DiskFullError(
                f"to load {rows:,} rows takes up to {more:,} bytes of disk, and {free:,} are free; make room for "
                f"{more - free:,} more"
            )
        self._loading = True
        return Meter(store, progress, linker.kind(rows), store.disk_bytes() + more, rows)

    def finish_loading(self, meter: Meter | None, stop: Callable[[], bool] = lambda: False) -> None:
        """Link the rows that have waited, unless `stop` becomes true: the rest is left to the background.

        Called in the writer thread.

        Raises:
            DiskFullError, StorageError: there is no room for that. It is tried again in the background.
        """
        self._loading = False
        if meter is not None and self._backlog:
            meter.link(self.linker.kind(self._waiting), self.linker.beside_bytes(self._waiting))
        try:
            whole = self._waiting
            while self._backlog and not self._closing and not stop() and self.store.fault is None:
                walks = not self.linker.in_bulk(self._waiting)
                if meter is None:
                    self._link_backlog(stop=stop)
                else:
                    self._link_backlog(meter.tell, stop=stop, linked=meter.look)
                    if walks:
                        meter.tell("inserting", whole - self._waiting, whole)
            if meter is not None and not self._backlog:
                meter.finish(meter.rows)
        except (DiskFullError, StorageError):
            self._link_later = time.monotonic() + RETRY_SECONDS
            raise

    def relink(self, ids: UInt32s) -> None:
        """Give rows new edges. Called in the writer thread."""
        self.linker.link(ids, self.store.metadata.head, lambda: self._closing)
        self.publish()

    def kill(self, ids: UInt32s) -> None:
        """Commit the deaths of rows by id, for repair. Called in the writer thread."""
        self._resume_after_fault()
        self.store.commit(Commit(self.store.next_commit(), died=np.sort(ids)))
        self.publish()

    def republish(self) -> None:
        """Publish after a repair has changed slabs in place. Called in the writer thread."""
        self.publish()

    def configure(self, changes: dict[str, Any], *, shared: bool = False) -> None:
        """Change settings here and as they are stored; what this handle alone overrides is not stored.

        shared: the memory is, and this handle is told by others what it has of it. Called in the writer thread.
        """
        self._resume_after_fault()
        here = {name: changes[name] for name in changes if not (shared and name == "memory_limit")}
        before = {name: getattr(self.store.settings, name) for name in here}
        self.store.change_settings(here)
        try:
            self.store.add_codes()  # first: a reader that finds the setting is to find the file as well
            if isinstance(self.store.metadata, RocksMetadata):
                stored = Settings.from_dict(self.store.metadata.settings()["settings"]).changed(changes)
                sync = self.store.settings.durability == "sync"
                self.store.metadata.store_settings(stored.as_dict(), sync=sync)
        except BaseException:
            self.store.change_settings(before)
            raise
        if {"index_fields", "no_index_fields"} & changes.keys():
            self.payload_index.rebuild()
        if "text_fields" in changes:
            self.payload_index.texts.rebuild()
        self.follow_limit()

    def follow_limit(self) -> None:
        """Have the codes that go with the settings as they are now. Called in the writer thread."""
        self.recoder.settle()
        self.publish()
