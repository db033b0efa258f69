"""The payload index: for each field of the payloads, which rows have which values.

Soft state, made from the committed payloads and nothing else. A commit is noted before queries see it; what is written
to disk, at checkpoints, counts up to the commit that it names, and is caught up with in the background. Until then, and
for whatever the index does not keep, it says that it does not know, and the payloads are looked at: slow, and right.

Concurrency: one thread changes the index, the writer's, or in a reader whoever holds the lock of its refreshes. Any
number ask, without a lock. That is safe because rows that may be out of step are *unsure* for a query: those that
commits after its snapshot have touched, noted before anything else is changed; those whose payloads were replaced and
whose entries are not; and those that the index has not come to. They are taken before a filter is evaluated and after.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from pyroaring import BitMap

from ..errors import CoreNNError
from ..storage.commit import Commit
from ..storage.platform import give_way
from ..storage.readers import Snapshots
from ..storage.rocks import RocksMetadata
from ..storage.state import commit_of, seen_up_to
from ..storage.store import Store
from ..types import Float64s, UInt32s
from . import kept
from .dense import NUMBERLESS, DenseColumns
from .expression import And, Condition, Filter, Keys, Not, Or, Text, name_of
from .fields import Answer, Batch, Field, Wanted, both, difference, either, negated, of_no_field
from .fulltext import FullText, Touched
from .predicate import Where
from .ranges import Range, bounds_of, joined
from .sets import RowSet, as_ids, as_words, below, common, of_list, of_sorted

log = logging.getLogger("corenn.filters")

ALL = 1 << 32  # beyond all ids
LAST = 1 << 62  # beyond all commits
STEP_ROWS = 256  # rows looked at in one step of catching up: a millisecond or two
CLEANED_AT = 64  # rows with new payloads whose entries are renewed at once; more where there are many rows
CLEANED_SHARE = 512  # one in so many
AGAIN_SECONDS = 60.0  # after a failure of the background
REMEMBERED = 8  # filters whose answers are kept until something is written
READ_ROWS = 256  # payloads read before other threads have their turn: a millisecond or two
MEASURED_ROWS = 1 << 12  # rows added after which the size is taken anew
MOST_AT_ONCE = 1 << 13  # changed rows that are taken in where the index is first used, rather than in the background
TRIES = 4  # of counting values while others write
KEPT_ROWS = 1 << 16  # changed rows after which a checkpoint writes the index again; more where there are many
KEPT_SHARE = 8

OPPOSITES = {"ne": "eq", "nin": "in"}  # what is left as bits takes a tenth of what a bitmap of all but these does

Known = dict[int, Answer]  # of each node Keys, Text or Where, by its id()


class Numbers(NamedTuple):
    """columns: float64, of each path, NaN for rows without a number; as `DenseColumns.of`. rows: those that may have
    one at each path, sure as far as the columns say whether they have.
    """

    columns: list[Float64s]
    rows: Answer


class PayloadIndex:
    """See above. covered: rows below are indexed as of the last commit; ALL once that is so for every one."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.texts = FullText(store)
        self._lock = threading.RLock()  # of the first use, which may be anybody's
        self._loaded = False
        self.generation = store.generation
        self._opened_at = store.metadata.head.commit
        self._forget()
        self._kept_at = -1  # the commit of what is on the disk
        self._changed = 0  # rows since
        self._peeked: bool | None = None  # whether what is on the disk is as of the last commit
        self.version = 0  # counts up before each change, and after it
        self._failed: float | None = None  # when a step of catching up did
        self._answers: dict[str, tuple[tuple[int, int, int], Any]] = {}
        self._last: tuple[Filter | None, tuple[int, int, int], Any] = (None, (0, 0, 0), None)
        self._unmeasured = 0  # rows added since the size was taken
        self.oldest: Callable[[], int] = lambda: 0  # the oldest snapshot that queries here read
        self._size = 0  # bytes of the fields, about

    def _forget(self) -> None:
        settings = self._store.settings
        self.covered = 0  # before anything is forgotten: who asks meanwhile is told that nothing is known
        self._wanted = Wanted(settings.index_fields, settings.no_index_fields)
        self.fields: dict[str, Field] = {}
        self.full = False  # whether there are fields that are not indexed, because there are too many
        self.commit = 0
        self._since = 0  # what is indexed of rows from `covered` on is as of this commit
        self._rows = 0  # ids from here on have no entries from then
        self._followed = 0  # rows when a reader last caught up
        self._recent: tuple[Touched, ...] = ()
        self._gone = BitMap()  # ids of no live row, at the last commit
        self._stale = BitMap()  # those of them that may have entries
        self._dirty = BitMap()  # live rows that have entries of an earlier payload
        self._dense = DenseColumns()

    # --- beginning ---------------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Take up what is on the disk, if that has not been done.

        What is indexed of it is as of the commit at which the store was opened: of each one since, `committed` tells. A
        reader follows by itself.
        """
        if not self._loaded:
            with self._lock:
                self._begin(self._opened_at if self._store.writable else self._store.metadata.head.commit)

    def _begin(self, commit: int) -> None:
        """Take up what is on the disk; commit: the last one of which it may know."""
        if self._loaded:
            return
        found = kept.read(self._store)
        self._forget()
        if found is not None and (found.commit > commit or found.wanted != kept.wanted_by(self._store)):
            found = None
        self.commit = commit
        self._gone = self._not_alive(commit)
        if found is not None:
            self.fields, self.full, self._since, self._rows = found.fields, found.full, found.commit, found.rows
            self._kept_at = found.commit
            self._stale = BitMap(self._gone)
            self._clean(self._born_after(found.commit))
        metadata = self._store.metadata
        if self._since == commit or not isinstance(metadata, RocksMetadata):
            self.covered = ALL
        elif (changed := metadata.changed_since(self._since)) is not None and len(changed) <= MOST_AT_ONCE:
            self._take_changes(changed, commit)
            self.renew(commit)
            self.covered = ALL
        else:
            log.info("indexing payloads from commit %d to %d", self._since, commit)
        self._measure()
        self._loaded = True

    def _take_changes(self, rows: UInt32s, commit: int) -> None:
        """Take in rows of which commits after `_since` have set the payloads, as these were at a commit. Rows that have
        entries of an earlier one wait for their turn.
        """
        has = np.array([self._has_entries(row) for row in rows.tolist()], np.bool_)
        waiting, fresh = of_sorted(rows[has]), rows[~has].tolist()
        for start in range(0, len(fresh), READ_ROWS):
            part = fresh[start : start + READ_ROWS]
            self._add(zip(part, self._store.metadata.payloads(part, commit), strict=True))
        self._stale |= of_list(fresh) & self._gone
        self._dirty |= waiting - self._gone

    def _not_alive(self, commit: int | None = None) -> BitMap:
        """The ids of no row that lives at a commit, the last one if None."""
        head = self._store.metadata.head
        commit = head.commit if commit is None else commit
        if commit == head.commit and head.live == head.rows:
            return BitMap()
        state, snapshot = self._store.state.array[: head.rows], np.uint64(seen_up_to(commit))
        alive = (state[:, 0] - np.uint64(1) < snapshot) & (state[:, 1] - np.uint64(1) >= snapshot)
        return of_sorted(np.flatnonzero(~alive).astype(np.uint32))

    def _born_after(self, commit: int) -> BitMap:
        """Ids that may have entries of an earlier row, whose place another one has taken since."""
        rows = min(self._rows, self._store.metadata.head.rows)
        born = commit_of(self._store.state.array[:rows, 0])
        return of_sorted(np.flatnonzero(born > commit).astype(np.uint32))

    @property
    def size(self) -> int:
        """Bytes of memory, about: of the fields, and of what is remembered of filters."""
        return (
            self._size + self._dense.size + sum(int(found.memory_bytes()) for _, found in list(self._answers.values()))
        )

    # --- the writer --------------------------------------------------------------------------------------------------

    def committed(self, commit: Commit) -> None:
        """Take a commit in that holds. Nothing that goes wrong here is of any consequence but for speed."""
        self.texts.committed(commit)
        try:
            if not self._loaded:
                with self._lock:
                    self._begin(self._opened_at)
            self.version += 1
            self._take(commit)
            self.version += 1
        except Exception:
            log.exception("the index of payloads is given up, and made anew in the background")
            self._give_up()

    def _take(self, commit: Commit) -> None:
        changed = of_sorted(np.array(sorted(row for row, _ in commit.changed), np.uint32))
        born, died = of_sorted(commit.ids), of_sorted(np.sort(commit.died))
        self._note(Touched(commit.number, born | died | changed))
        self._changed += len(commit.ids) + len(changed) + len(died)
        if self._stale & born or (len(commit.freed) and self._stale):
            self._clean(BitMap(self._stale))
        self._dirty |= below(changed, self.covered)
        self._gone -= born
        self._gone |= died
        self._stale |= died
        # A row that was borne and killed, or has died since the last look, is not to be looked for any more.
        self._dirty -= died
        payloads = ((row, text) for row, text in zip(commit.ids.tolist(), commit.payloads, strict=True))
        self._add((row, text) for row, text in payloads if row < self.covered)
        self.commit = commit.number
        if len(self._dirty) >= self._most_dirty():
            self.renew()

    def _note(self, touched: Touched) -> None:
        oldest = min(self.oldest(), self.commit)
        self._recent = (*(each for each in self._recent if each.commit > oldest), touched)

    def _most_dirty(self) -> int:
        return max(CLEANED_AT, self._store.metadata.head.rows // CLEANED_SHARE)

    def _add(self, rows: Iterable[tuple[int, bytes | None]]) -> None:
        batch = Batch(self._wanted, self.fields)
        for row, text in rows:
            if text is not None:
                batch.read(row, text)
                if batch.rows % READ_ROWS == 0:
                    give_way()
        self._unmeasured += batch.rows
        for path, entries in batch.fields.items():
            field = self.fields.get(path)
            if field is None:
                field = Field()
                field.add(entries)
                self.fields = {**self.fields, path: field}
            else:
                field.add(entries)
        self.full = self.full or batch.full
        if self._unmeasured >= MEASURED_ROWS:
            self._measure()

    def _clean(self, some: BitMap) -> None:
        """Drop all entries of some rows."""
        if some:
            ids = as_ids(some)
            words = as_words(ids, max(self._store.metadata.head.rows, self._rows, int(ids[-1]) + 1))
            self.fields = {path: field.without(ids, words) for path, field in self.fields.items()}
        self._stale = self._stale - some

    def renew(self, commit: int | None = None) -> None:
        """Bring the entries of rows that have got other payloads up to date with a commit, the last one if None."""
        if not self._dirty:
            return
        dirty, commit = self._dirty, self._store.metadata.head.commit if commit is None else commit
        self._clean(dirty | self._stale)
        ids = as_ids(dirty).tolist()
        self._add(zip(ids, self._store.metadata.payloads(ids, commit), strict=True))
        self._dirty = self._dirty - dirty

    def _measure(self) -> None:
        self._unmeasured = 0
        self._size = sum(field.memory_bytes() for field in self.fields.values())

    def _give_up(self) -> None:
        """Know nothing from now on."""
        self.version += 1
        recent = self._recent
        self._forget()
        self.commit, self._recent = self._store.metadata.head.commit, recent
        self._gone = self._not_alive()
        self._loaded = True

    def rebuild(self) -> None:
        """Make it anew, in the background; the settings may say otherwise now."""
        with self._lock:
            self._give_up()
            self._kept_at = -1
            if not isinstance(self._store.metadata, RocksMetadata):
                self.finish()

    # --- catching up -------------------------------------------------------------------------------------------------

    def due(self, *, calm: bool) -> bool:
        """Whether there is something to do in idle time. calm: also if it is little."""
        if self._failed is not None and time.monotonic() - self._failed < AGAIN_SECONDS:
            return False
        if not self._loaded:
            if self._peeked is None:
                self._peeked = kept.commit_in(self._store) == self._store.metadata.head.commit
            return not self._peeked
        return self.covered < ALL or (calm and bool(self._dirty))

    def step(self) -> None:
        """Go on with what is due. What fails is tried again later: until then payloads are looked at."""
        self._failed = None
        self.version += 1
        try:
            if not self._loaded:
                self.load()
            elif self.covered < ALL:
                self._catch_up()
            else:
                self.renew()
        except Exception:
            log.exception("payloads could not be indexed; it is tried again in %.0f seconds", AGAIN_SECONDS)
            self._failed = time.monotonic()
        self.version += 1

    def finish(self) -> None:
        """Do all that is due at once."""
        self.load()
        self.version += 1
        while self.covered < ALL:
            self._catch_up()
        self.renew()
        self.version += 1

    def _catch_up(self) -> None:
        """Look at the next rows whose payloads may have been set after what is indexed of them."""
        metadata = self._store.metadata
        looked, fresh, last = 0, [], self.covered - 1
        if isinstance(metadata, RocksMetadata):
            for row, changed, text in islice(metadata.payload_changes(self._since, self.covered), STEP_ROWS):
                looked, last = looked + 1, row
                if changed and self._has_entries(row):
                    self._dirty.add(row)
                elif changed:
                    fresh.append((row, text))
            done = looked < STEP_ROWS
        else:
            stop = min(self.covered + STEP_ROWS, metadata.head.rows)
            ids = list(range(self.covered, stop))
            fresh, last = list(zip(ids, metadata.payloads(ids, metadata.head.commit), strict=True)), stop - 1
            done = stop == metadata.head.rows
        self._add(fresh)
        self._stale |= of_sorted(np.array([row for row, _ in fresh], np.uint32)) & self._gone
        self.covered = ALL if done else last + 1
        if done:
            self._dirty -= self._gone
            self.renew()

    def _has_entries(self, row: int) -> bool:
        """Whether there may be some of an earlier payload, of the row that has the id now."""
        return row < self._rows and int(commit_of(self._store.state.array[row, 0])) <= self._since

    def follow(self) -> None:
        """In a reader: catch up with all that its store sees by now. One thread at a time."""
        self.load()
        if self.covered < ALL or self._dirty:
            self.finish()
        metadata = self._store.metadata
        head = metadata.head
        if head.commit != self.commit:
            self.version += 1
            assert isinstance(metadata, RocksMetadata)
            self.covered = 0  # whoever asks meanwhile, in an older view, has to look at payloads
            self._since, self._rows = self.commit, self._followed
            gone, born = self._not_alive(), self._born_after(self._since)
            changed = born | (gone ^ self._gone) | BitMap(range(self._rows, head.rows))
            self._clean(born)
            told = metadata.changed_since(self._since)
            if told is None:  # a checkpoint has dropped the records: look at every payload
                news = [row for row, new, _ in metadata.payload_changes(self._since, 0) if new]
                told = np.array(news, np.uint32)
            changed |= of_sorted(told)
            self._note(Touched(head.commit, changed))
            self._gone, self._stale, self.commit = gone, self._stale | gone, head.commit
            self._take_changes(told, head.commit)
            self.renew()
            self.covered = ALL
            self.version += 1
        self._followed = head.rows

    # --- the disk ----------------------------------------------------------------------------------------------------

    def keep(self, *, now: bool) -> None:
        """Write it to the disk, if it is whole and enough has changed; now: if anything has. For the writer."""
        rows = self._store.metadata.head.rows
        enough = 1 if now else max(KEPT_ROWS, rows // KEPT_SHARE)
        if self._store.folder is None or not self._loaded or self.covered < ALL or self._kept_at == self.commit:
            return
        if self._changed < enough and self._kept_at >= 0:
            return
        try:
            self.renew()
            self._clean(BitMap(self._stale))
            kept.write(self._store, self.fields, self.commit, rows, full=self.full)
            self._kept_at, self._changed = self.commit, 0
        except CoreNNError:
            log.warning("the index of payloads could not be written; it is made anew at the next open", exc_info=True)

    def disk_bytes(self) -> int:
        """Bytes that it takes on disk, with the full-text index."""
        return kept.disk_bytes(self._store) + self.texts.disk_bytes()

    def close(self) -> None:
        """Release files."""
        self.texts.close()

    def renumbered(self, store: Store, numbers: UInt32s, gone: int) -> PayloadIndex:
        """The same for the rows of another generation, which the store is about to adopt.

        numbers: the new id of each row, ascending; `gone` for none.
        """
        self.load()
        other = PayloadIndex(store)
        other.oldest = self.oldest
        if self.covered < ALL:
            other._give_up()
            other._store = other.texts.store = self._store
            return other
        self.renew()
        known = np.full(max(len(numbers), self._store.metadata.head.rows), gone, np.uint32)
        known[: len(numbers)] = numbers
        other.fields = {path: field.renumbered(known, gone) for path, field in self.fields.items()}
        other.full, other.covered, other.commit = self.full, ALL, self.commit
        other._gone = other._not_alive()
        other._stale, other._loaded = BitMap(other._gone), True
        other._measure()
        other._store = other.texts.store = self._store  # which is about to adopt what is in the other
        return other

    # --- asking ------------------------------------------------------------------------------------------------------

    def select(self, tree: Filter, snapshot: int, rows: int, known: Known, before: BitMap) -> Answer:
        """Which rows, of those below `rows`, meet a filter in the view of a snapshot: commit `snapshot`.

        sure: rows that do, and are live. unsure: rows that have to be looked at, be it whether they are there. known:
        the rows of each set of keys, text and function in the filter, as of this snapshot or, texts, of a later one.
        before: what was `unknown` before anything was taken from the index.
        """
        found = self._answer(tree, rows, known)
        sure, unsure = below(found.sure - self._gone, rows), below(found.unsure - self._gone, rows)
        unknown = before | self.unknown(snapshot, rows)  # behind all that is taken from the index
        if unknown:
            sure -= unknown
            unsure |= unknown
            for part in tree.parts if isinstance(tree, And) else (tree,):
                if isinstance(part, Keys):
                    unsure &= known[id(part)].sure
        return Answer(sure, unsure)

    def certain(self, tree: Filter, snapshot: int, rows: int) -> RowSet | None:
        """The same of a filter that is one condition, or several that hold together, if nothing is unsure; None for any
        other.

        Half of the rows as a slice of a column take a tenth of what it takes to make a bitmap of them.
        """
        self.load()
        parts = joined(tree.parts) if isinstance(tree, And) else [tree]
        if not parts or not all(isinstance(part, (Condition, Range)) for part in parts) or self.unknown(snapshot, rows):
            return None
        found = list[RowSet]()
        for part in parts:
            each = self._certain(part, rows)
            if each is None:
                return None
            found.append(each)
            if not each.count:
                break
        met = common(found) if len(found) > 1 else found[0]
        if self._gone:
            met = met.without(self._gone)
        # Behind all that is taken from the index, in which a commit may have come in between.
        return None if self.unknown(snapshot, rows) else met

    def _certain(self, part: Filter, rows: int) -> RowSet | None:
        """The rows below `rows` that meet a condition or lie within a range, as far as that is known of all of them."""
        bounds = bounds_of(part)
        if bounds is not None:
            path = next(each.path for each in bounds if each is not None)
            field = self.fields.get(path)
            return None if field is None else field.sliced(*bounds, rows)
        assert isinstance(part, Condition)
        opposite = OPPOSITES.get(part.operator)
        answer = self._condition(part if opposite is None else Condition(part.path, opposite, part.operand), rows)
        if answer.unsure:
            return None
        found = RowSet(rows, members=below(answer.sure, rows))
        return found if opposite is None else found.others()

    def numbers(self, paths: Sequence[str], rows: int) -> Numbers:
        """The numbers at some paths of the rows below `rows`, and which of these may have one at each."""
        self.load()
        columns, sure, unsure = list[Float64s](), BitMap(range(rows)), BitMap()
        for path in paths:
            field = self.fields.get(path)
            if field is not None:
                columns.append(self._dense.of(path, field, rows))
                sure &= field.present
                unsure |= field.odd
                continue
            columns.append(NUMBERLESS)
            if self.full or not self._wanted(path)[0]:
                unsure = BitMap(range(rows))
            else:
                sure = BitMap()
        return Numbers(columns, Answer(sure - unsure, unsure & sure))

    def tally(self, path: str, members: BitMap, snapshot: int, rows: int) -> tuple[dict[tuple[str, Any], int], BitMap]:
        """How many of some rows, which the view of a snapshot sees, have which values in a field, by their kinds; and
        the rows that are not counted, whose payloads have to be looked at.
        """
        self.load()
        for _ in range(TRIES):
            before = self.unknown(snapshot, rows)
            counts, unsure = self._tally(path, members - before, rows)
            if not self.unknown(snapshot, rows) - before:
                return counts, unsure | (members & before)
        return {}, members  # commits have come faster than they can be counted between

    def _tally(self, path: str, members: BitMap, rows: int) -> tuple[dict[tuple[str, Any], int], BitMap]:
        field = self.fields.get(path)
        if field is not None:
            return field.tally(members, rows)
        return {}, BitMap(members) if self.full or not self._wanted(path)[0] else BitMap()

    def recall(self, tree: Filter, commit: int, rows: int) -> tuple[str | None, Any]:
        """The name of a filter, and what was remembered last of it in the same view; None if nothing holds."""
        last, mark, found = self._last
        if last is tree and mark == (self.version, commit, rows):  # to name it takes as long as a small scan
            return None, found
        name = name_of(tree)
        kept = self._answers.get(name or "")
        if kept is None or kept[0] != (self.version, commit, rows):
            return name, None
        self._last = tree, *kept
        return name, kept[1]

    def remember(self, name: str, version: int, commit: int, rows: int, found: Any) -> None:
        """Remember an answer that was begun at a version; the oldest one is forgotten."""
        if version == self.version:
            if len(self._answers) >= REMEMBERED and name not in self._answers:
                self._answers.pop(next(iter(list(self._answers)), ""), None)
            self._answers[name] = (version, commit, rows), found

    def unknown(self, snapshot: int, rows: int) -> BitMap:
        """The rows, of those below `rows`, of which the index does not tell what they have in a snapshot.

        Both rows that wait for their new payloads to be taken in, and rows whose new payloads are those of a later
        commit: so who takes something from the index has to ask before and after.
        """
        self.load()
        if not self._dirty and self.covered >= rows and not any(each.commit > snapshot for each in self._recent):
            return BitMap()
        unknown = BitMap(self._dirty) if self._dirty else BitMap()
        for touched in self._recent:
            if touched.commit > snapshot:
                unknown |= touched.rows
        covered = self.covered
        if covered < rows:
            unknown |= BitMap(range(covered, rows)) - self._gone
        return below(unknown, rows)

    def overwritten(self, snapshot: int) -> BitMap:
        """The rows whose payloads in a snapshot may be gone: two commits since have touched them, and the metadata keep
        one value beside the last. For the process that writes.
        """
        once, twice = BitMap(), BitMap()
        for touched in self._recent:
            if touched.commit > snapshot:
                twice |= once & touched.rows
                once |= touched.rows
        return twice

    def _answer(self, tree: Filter, rows: int, known: Known) -> Answer:
        match tree:
            case Condition():
                return self._condition(tree, rows)
            case Range():
                return self._within(tree, rows)
            case And():
                return self._all(tree, rows, known)
            case Or():
                return either([self._answer(part, rows, known) for part in tree.parts])
            case Not():
                return negated(self._answer(tree.part, rows, known), rows)
            case Keys() | Text() | Where():
                return known[id(tree)]
        raise AssertionError(tree)

    def _condition(self, asked: Condition, rows: int) -> Answer:
        field = self.fields.get(asked.path)
        if field is not None:
            return field.answer(asked, rows)
        if self.full or not self._wanted(asked.path)[0]:
            return Answer(BitMap(), BitMap(range(rows)))
        return of_no_field(asked, rows)

    def _within(self, asked: Range, rows: int) -> Answer:
        field = self.fields.get(asked.lower.path)
        if field is not None:
            return field.within(asked, rows)
        return both(self._condition(asked.lower, rows), self._condition(asked.upper, rows))

    def _all(self, tree: And, rows: int, known: Known) -> Answer:
        parts = joined(tree.parts)
        if not parts:
            return Answer(BitMap(range(rows)), BitMap())
        found = self._answer(parts[0], rows, known)
        for part in parts[1:]:
            if not found.sure and not found.unsure:
                break
            found = both(found, self._answer(part, rows, known))
        return found

    # --- checking ----------------------------------------------------------------------------------------------------

    def faults(self) -> int:
        """Live rows of which the index says something else than their payloads. For the writer's thread."""
        self.finish()
        self._clean(BitMap(self._stale))
        fresh = PayloadIndex(self._store)
        fresh._give_up()
        fresh.finish()
        fresh._clean(BitMap(fresh._gone))
        wrong, none = BitMap(), Field()
        for path in {*self.fields, *fresh.fields}:
            wrong |= difference(self.fields.get(path, none), fresh.fields.get(path, none))
        return len(wrong - self._gone)


def follow_reads(store: Store, snapshots: Snapshots) -> None:
    """Have the index of a store know which snapshots queries read here. For readers, which publish a view at once with
    what it holds; a writer says so itself.
    """
    attach(store).oldest = lambda: snapshots.oldest_here(LAST)


def attach(store: Store) -> PayloadIndex:
    """The index of a store, which follows its commits from now on; another one for each generation of its files."""
    index = store.payload_index
    if not isinstance(index, PayloadIndex) or index.generation != store.generation:
        index = store.payload_index = PayloadIndex(store)
    return index
