"""Metadata of a database on disk, in RocksDB.

    m…        settings, head, durable mark, boot id, intent of a commit that comes in parts, what is soft
    k<name>   id of the key, id before it
    p<id>     payload: commit, lengths, the text, the text before it
    c<commit><part>   record of a commit, kept until the rows that it names are durable
    w<commit><n>      a write in it that was done under a token of its sender

A key and a payload keep what they had before, so that the batches of a large commit can be written one by one: nothing
that they say is seen until the head names their commit. RocksDB is only written under the engine's writer thread.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import struct
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from rocksdict import DbClosedError, WriteBatch

from ..durations import Durations
from ..errors import ClosedError, CorruptionError, NotADatabaseError, StorageError
from ..types import Key, UInt32s
from .commit import NO_IDS, SOFT, Commit, Head, LiveView, Record, as_runs, from_runs
from .files import Files
from .format import HEAD_ROW, INTENT_ROW, KEY_ROW, NO_ID, PAYLOAD_ROW
from .generation import FIRST
from .keys import key_name, name_key
from .ledger import Done, Place
from .platform import boot_id, give_way
from .rocksdb import WRITE_BUFFER_BYTES, Rocks, rocks_translated

log = logging.getLogger("corenn.storage")

BATCH_BYTES = 3 << 20  # below the 4 MB at which one write() holds the GIL for 10 ms
RECORD_WORDS = 100_000
LEAST_BUFFER_BYTES = 1 << 20
FORGOTTEN_AT_ONCE = 256  # rows: about a millisecond
MOST_FOLLOWED = 1 << 16  # commits of which the records are looked at to see what they have changed
PATIENCE_SECONDS = 5.0  # for which a reader looks for what it must see

SETTINGS = _SETTINGS = b"msettings"
_HEAD, _DURABLE, _BOOT, _INTENT = b"mhead", b"mdurable", b"mboot", b"mintent"
_SOFT = {name: b"m" + name.encode() for name in SOFT}
_CUT_OFF = b"mcutoff"  # numbers of commits that were cut off between their parts
Tables: TypeAlias = tuple[str, int]  # see `_tables`
_ROCKSDICT_FILE = "rocksdict-config.json"
_ID = struct.Struct(">I")
_COMMIT = struct.Struct(">QI")


class RocksMetadata:
    """See Metadata. With `reader`, a secondary instance that follows a writer in another process."""

    def __init__(self, folder: Path, files: Files, *, reader: bool = False) -> None:
        self._folder = folder
        self._files = files
        self._private: Path | None = None
        self._own: Path | None = None
        self._set_aside = NO_IDS  # see `burnt`
        self._list: str | None = None  # of the tables, as it was called when the reader opened it
        self._standby: Path | None = None  # the folder of a secondary instance that serves reads while none can write
        self._undo: tuple[bytes, bytes] | None = None  # what a change that failed was to replace
        self.syncs = Durations()  # of the store that it belongs to
        self._most = 0  # bytes of changes that an instance holds in memory, 0 for what it does by itself
        if not (folder / "CURRENT").exists():
            raise NotADatabaseError(f"{folder.parent} is not a CoreNN database: it has no metadata")
        if reader:
            with rocks_translated("follow", folder):
                self._private = Path(tempfile.mkdtemp(prefix="corenn-reader-"))
            self._remove_private = weakref.finalize(self, _remove_own, self._private, os.getpid())
        try:
            if reader:
                self._settle(self._reopen)
            else:
                self._rocks = self._open()
                self.head = self._read_head()
        except BaseException:
            if self._private is not None:
                self._remove_private()
            raise

    def _open(self) -> Rocks:
        with rocks_translated("open", self._folder):
            if self._private is None:
                return self._files.rocks(self._folder)
            own = Path(tempfile.mkdtemp(dir=self._private))  # an instance before this one may be in use still
            folder = self._folder if os.access(self._folder, os.W_OK) else self._linked_folder(own)
            opened = self._files.rocks(folder, own / "log")
            self._own = own
            return opened

    def _linked_folder(self, own: Path) -> Path:
        """Links to what is in the folder: rocksdict writes a file where it opens, which may not be possible there."""
        linked = own / "meta"
        linked.mkdir()
        for path in self._folder.iterdir():
            (linked / path.name).symlink_to(path)
        (linked / _ROCKSDICT_FILE).unlink(missing_ok=True)
        return linked

    @staticmethod
    def create(folder: Path, stored: dict[str, Any], files: Files) -> None:
        """A new, empty store. stored: format version and settings."""
        with rocks_translated("create", folder):
            rocks = files.rocks(folder)
            rocks.write(RocksMetadata.first_batch(stored, Head(), boot_id()))
            rocks.flush_wal(True)
            rocks.close()

    @staticmethod
    def first_batch(stored: dict[str, Any], head: Head, boot: str) -> WriteBatch:
        """What a store begins with, all slabs being on the disk."""
        batch = WriteBatch(raw_mode=True)
        batch.put(_SETTINGS, json.dumps(stored).encode())
        batch.put(_HEAD, HEAD_ROW.pack(*head))
        batch.put(_DURABLE, head.commit.to_bytes(8, "little"))
        batch.put(_BOOT, boot.encode())
        return batch

    @staticmethod
    def unpack_head(raw: bytes) -> Head:
        return Head(*HEAD_ROW.unpack(raw))

    def follow(self, published: int) -> None:
        """Catch up with the writer, at least to a commit that it has published. For readers."""
        self._settle(self._catch_up)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.head.commit < published:
            if time.monotonic() > deadline:
                log.warning(
                    "%s: state.slab says that commit %d is published, the metadata ends at %d; repair the database",
                    self._folder, published, self.head.commit,
                )  # fmt: skip
                return
            self._settle(self._reopen)

    def _catch_up(self, tables: Tables | None) -> None:
        """See what the writer has written since, by an instance of our own.

        Another writer has begun another list of tables, and has turned the log of the one before into tables of it. An
        instance that follows from one list to the other sees neither that log nor all of these: it is opened again.
        """
        same = tables is not None and tables[0] == self._list
        if same and os.access(self._folder, os.W_OK):
            self._rocks.try_catch_up_with_primary()
        else:
            self._reopen(tables)

    def _settle(self, catch_up: Callable[[Tables | None], None]) -> None:
        """Catch up, again and again until the writer's tables were the same before and after.

        A secondary instance reads first which tables there are and then the logs. If the writer turns a log into a
        table in between, it sees neither: what comes later is there, and commits in the middle are missing.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            tables = self._tables()
            try:
                with rocks_translated("follow", self._folder):
                    catch_up(tables)
                self.head = self._read_head()
            except StorageError:  # a file that it was about to read may be gone
                if tables == self._tables() or time.monotonic() > deadline:
                    raise
                continue
            if tables is not None and tables == self._tables():
                return
            if tables is None and not self._folder.exists():
                raise StorageError(f"the metadata in {self._folder} is gone; another generation has taken its place")
            if time.monotonic() > deadline:
                raise StorageError(f"the metadata in {self._folder} changes faster than it can be read; try again")

    def _tables(self) -> Tables | None:
        """What tells one set of tables from another: the list of them that is in force, and how far it is written."""
        try:
            current = (self._folder / "CURRENT").read_text().strip()
            return current, (self._folder / current).stat().st_size
        except FileNotFoundError:
            return None  # a new list is taking the place of an old one

    def _reopen(self, tables: Tables | None) -> None:
        """Open, or open again; the old instance stays in use until there is a new one."""
        former, folder = getattr(self, "_rocks", None), self._own
        self._rocks = self._open()
        self._list = None if tables is None else tables[0]
        if former is not None and folder is not None:
            former.close()
            shutil.rmtree(folder, ignore_errors=True)

    def _read_head(self) -> Head:
        raw, cut_off = self._get(_HEAD), self._get(_CUT_OFF) or b""
        self._cut_off = frozenset(int.from_bytes(cut_off[at : at + 8], "little") for at in range(0, len(cut_off), 8))
        if raw is None and self._get(_SETTINGS) is None:
            raise NotADatabaseError(f"{self._folder.parent} is an unfinished create that was cut off; remove it")
        if raw is None:
            raise CorruptionError(f"the metadata in {self._folder} has no head; restore the database from a snapshot")
        return Head(*HEAD_ROW.unpack(raw))

    # --- settings and marks --------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """The format version and the stored settings."""
        raw = self._get(_SETTINGS)
        if raw is None:
            raise CorruptionError(f"the metadata in {self._folder} has no settings; restore it from a snapshot")
        loaded: dict[str, Any] = json.loads(raw)
        return loaded

    def store_settings(self, settings: dict[str, Any], *, sync: bool) -> None:
        before = self.settings()
        stored = {**before, "settings": settings}
        self._undo = (_SETTINGS, json.dumps(before).encode())
        with rocks_translated("write", self._folder):
            self._rocks.put(_SETTINGS, json.dumps(stored).encode())
            if sync:
                self._rocks.flush_wal(True)
        self._undo = None

    def soft(self, name: str) -> bytes | None:
        return self._get(_SOFT[name])

    def store_soft(self, name: str, raw: bytes) -> None:
        with rocks_translated("write", self._folder):
            self._rocks.put(_SOFT[name], raw)

    def marks(self) -> tuple[int | None, str | None]:
        """The durable mark, every commit up to which is on disk in all slabs, and the boot under which it was last set.

        None for a mark that is missing.
        """
        durable, boot = self._get(_DURABLE), self._get(_BOOT)
        return None if durable is None else int.from_bytes(durable, "little"), None if boot is None else boot.decode()

    def burnt(self) -> tuple[int, UInt32s]:
        """The number and the ids of a commit that was cut off between its parts; 0 and none if there is no such.

        Ids that no row has had yet stay out of use until a later commit has passed them: keys may point at them.
        """
        raw = self._get(_INTENT)
        if raw is None:
            return 0, NO_IDS
        (commit,) = INTENT_ROW.unpack_from(raw)
        ids = from_runs(np.frombuffer(raw, np.uint32, offset=INTENT_ROW.size).reshape(-1, 2))
        if commit > self.head.commit and commit not in self._cut_off:
            # Later heads will be beyond its number: what it has left behind must stay unseen all the same.
            self._cut_off |= {commit}
            with rocks_translated("write", self._folder):
                self._rocks.put(_CUT_OFF, _numbers(self._cut_off))
        if commit <= self.head.commit:
            ids = ids[ids >= self.head.rows] if commit in self._cut_off else NO_IDS
        self._set_aside = ids
        return (commit, ids) if len(ids) or commit > self.head.commit else (0, NO_IDS)

    def _intent(self, number: int, ids: UInt32s, before: Head) -> bytes:
        """What says that a number and ids are spent, with those spent before that no commit has passed yet."""
        spent = np.union1d(ids, self._set_aside[self._set_aside >= before.rows])
        return INTENT_ROW.pack(number) + as_runs(spent).tobytes()

    # --- reads -----------------------------------------------------------------------------------------------------

    def _get(self, name: bytes) -> bytes | None:
        raw: bytes | None = self._read(name)
        return raw

    def _read(self, names: Any) -> Any:
        """What is stored under a name or a list of names."""
        while True:
            rocks = self._rocks
            try:
                with rocks_translated("read", self._folder):
                    return rocks.get(names)
            except ClosedError:
                if rocks is self._rocks:
                    raise  # and else another instance has taken its place

    def lookup(self, keys: Sequence[Key], live: LiveView) -> list[int]:
        rows = self._read([b"k" + key_name(key) for key in keys]) if keys else []
        return [-1 if raw is None else live.choose(*KEY_ROW.unpack(raw)) for raw in rows]

    def payloads(self, ids: Sequence[int], snapshot: int) -> list[bytes | None]:
        rows = self._read([b"p" + _ID.pack(row) for row in ids]) if ids else []
        return [None if raw is None else _as_of(raw, snapshot, self._cut_off) for raw in rows]

    def payload_rows(self) -> Iterator[tuple[int, int, bytes]]:
        """Every payload as of the head, by ascending id, with the commit that set it."""
        for name, raw in self._rows(b"p"):
            text = _as_of(raw, self.head.commit, self._cut_off)
            if text is not None:
                commit = PAYLOAD_ROW.unpack_from(raw)[0]
                seen = commit <= self.head.commit and commit not in self._cut_off
                yield _ID.unpack(name[1:])[0], commit if seen else 1, text

    def changed_since(self, after: int) -> UInt32s | None:
        """The rows that commits after a number have borne or given other payloads, ascending; None if not all of these
        commits have left records that tell.
        """
        if self.head.commit - after > MOST_FOLLOWED:
            return None
        told = {record.number: record for record in self.records(after)}
        if told.keys() != set(range(after + 1, self.head.commit + 1)) - self._cut_off:
            return None
        ids = [NO_IDS]
        for record in told.values():
            if record.changed is None:
                return None
            ids += [record.born, record.changed]
        return np.unique(np.concatenate(ids))

    def payload_changes(self, after: int, first: int) -> Iterator[tuple[int, bool, bytes | None]]:
        """The rows from an id on that have or had a payload, by ascending id: whether a commit later than `after` has
        set it, and if so the payload as of the head, None if it was removed.
        """
        for name, raw in self._rows(b"p", b"p" + _ID.pack(first)):
            changed = PAYLOAD_ROW.unpack_from(raw)[0] > after
            text = _as_of(raw, self.head.commit, self._cut_off) if changed else None
            yield _ID.unpack(name[1:])[0], changed, text

    def names(self) -> Iterator[tuple[Key, int, int]]:
        with rocks_translated("read", self._folder):  # a name may be no text
            for name, raw in self._rows(b"k"):
                yield (name_key(name[1:]), *KEY_ROW.unpack(raw))

    def records(self, after: int) -> list[Record]:
        found: dict[int, list[Record]] = {}
        for name, raw in self._rows(b"c", b"c" + _COMMIT.pack(after + 1, 0)):
            number, _part = _COMMIT.unpack(name[1:])
            if (
                number <= self.head.commit and number not in self._cut_off
            ):  # what is beyond belongs to a commit that was cut off
                found.setdefault(number, []).append(Record.unpack(number, raw))
        return [Record.joined(parts) for parts in found.values()]

    def done(self) -> Iterator[tuple[Place, Done]]:
        for name, raw in self.done_rows():
            number, part = _COMMIT.unpack(name[1:])
            if number <= self.head.commit and number not in self._cut_off:
                yield (number, part), Done.unpack(raw)

    def done_rows(self, after: int = 0) -> Iterator[tuple[bytes, bytes]]:
        """The same of commits after a number, as it is stored, of such as were cut off as well."""
        return self._rows(b"w", b"w" + _COMMIT.pack(after + 1, 0))

    def _rows(self, prefix: bytes, start: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        with rocks_translated("read", self._folder):
            for name, raw in self._rocks.items(start or prefix):
                assert isinstance(name, bytes)  # raw mode
                if not name.startswith(prefix):
                    return
                yield name, raw

    # --- writes ----------------------------------------------------------------------------------------------------

    def commit(self, commit: Commit, *, sync: bool) -> None:
        head = commit.head_after(self.head)
        with rocks_translated("write", self._folder):
            batch = WriteBatch(raw_mode=True)
            for name, value in self._puts(commit):
                batch.put(name, value)
                if batch.size_in_bytes() > BATCH_BYTES:
                    # The first part of several: from here on these ids and this number are spent.
                    batch.put(_INTENT, self._intent(commit.number, commit.ids, self.head))
                    self._rocks.write(batch)
                    batch = WriteBatch(raw_mode=True)
            for place in commit.lapsed:
                batch.delete(b"w" + _COMMIT.pack(*place))
            batch.put(_HEAD, HEAD_ROW.pack(*head))
            self._rocks.write(batch)
            if sync:
                with self.syncs.timed():
                    self._rocks.flush_wal(True)
        self.head = head

    def _puts(self, commit: Commit) -> Iterator[tuple[bytes, bytes]]:
        ids = commit.ids.tolist()
        for row, key, previous in zip(ids, commit.keys, commit.previous, strict=True):
            yield b"k" + key_name(key), KEY_ROW.pack(row, previous)
        for row, payload in zip(ids, commit.payloads, strict=True):
            if payload is not None:
                yield b"p" + _ID.pack(row), PAYLOAD_ROW.pack(commit.number, len(payload), -1) + payload
        before = self.payloads([row for row, _ in commit.changed], commit.number - 1)
        for (row, payload), old in zip(commit.changed, before, strict=True):
            lengths = (-1 if payload is None else len(payload), -1 if old is None else len(old))
            text = (payload or b"") + (old or b"")
            yield b"p" + _ID.pack(row), PAYLOAD_ROW.pack(commit.number, *lengths) + text
        for part, record in enumerate(commit.record.parts(RECORD_WORDS)):
            yield b"c" + _COMMIT.pack(commit.number, part), record
        for part, done in enumerate(commit.done):
            yield b"w" + _COMMIT.pack(commit.number, part), done.pack()

    def forget(self, up_to: int, dead: Sequence[tuple[int, Key | None]]) -> None:
        """Drop the records of commits up to a number, with the keys and payloads of the rows that they killed.

        A key that has got a new row since keeps it, and forgets the one before: its id may go to another key.
        """
        with rocks_translated("write", self._folder):
            for start in range(0, len(dead), FORGOTTEN_AT_ONCE):
                self._forget_rows(dead[start : start + FORGOTTEN_AT_ONCE])
                give_way()
            batch = WriteBatch(raw_mode=True)
            batch.delete_range(b"c" + _COMMIT.pack(0, 0), b"c" + _COMMIT.pack(up_to + 1, 0))
            self._rocks.write(batch)

    def _forget_rows(self, dead: Sequence[tuple[int, Key | None]]) -> None:
        batch = WriteBatch(raw_mode=True)
        names = list({b"k" + key_name(key): None for _, key in dead if key is not None})
        owners = {
            name: (NO_ID, NO_ID) if raw is None else KEY_ROW.unpack(raw)
            for name, raw in zip(names, self._read(names) if names else [], strict=True)
        }
        for row, key in dead:
            batch.delete(b"p" + _ID.pack(row))
            if key is not None:
                now, before = owners[b"k" + key_name(key)]
                owners[b"k" + key_name(key)] = (NO_ID if now == row else now, NO_ID if before == row else before)
        for name, (now, before) in owners.items():
            if now == NO_ID:
                batch.delete(name)
            else:
                batch.put(name, KEY_ROW.pack(now, before))
        self._rocks.write(batch)

    def rewrite_keys(self, keys: Iterable[tuple[Key, int]]) -> None:
        """Point keys at ids, for repair."""
        with rocks_translated("write", self._folder):
            for key, row in keys:
                self._rocks.put(b"k" + key_name(key), KEY_ROW.pack(row, NO_ID))

    def live_within(self, size: int) -> None:
        """Take no more memory than so many bytes, about, for what is not in tables yet. For the writer."""
        self._most = min(WRITE_BUFFER_BYTES, max(LEAST_BUFFER_BYTES, size // 2))
        if self._standby is None:  # else it is for the instance that takes its place
            with rocks_translated("set up", self._folder):
                self._rocks.hold_at_most(self._most)

    def write_rows(self, rows: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Write rows as they are, and remove those of None, into a store that nobody reads yet."""
        with rocks_translated("write", self._folder):
            batch = WriteBatch(raw_mode=True)
            for name, value in rows:
                if value is None:
                    batch.delete(name)
                else:
                    batch.put(name, value)
                if batch.size_in_bytes() > BATCH_BYTES:
                    self._rocks.write(batch)
                    batch = WriteBatch(raw_mode=True)
            self._rocks.write(batch)

    def rewrite_head(self, head: Head) -> None:
        """Correct the counts, for repair."""
        with rocks_translated("write", self._folder):
            self._rocks.put(_HEAD, HEAD_ROW.pack(*head))
        self.head = head

    def checkpoint(self, durable: int, boot: str) -> None:
        """Write everything to tables, then set the marks and sync.

        In this order: the marks begin the new log, which is what makes readers let go of the old one.
        """
        with rocks_translated("checkpoint", self._folder):
            self._rocks.flush()
            self._rocks.put(_DURABLE, durable.to_bytes(8, "little"))
            self._rocks.put(_BOOT, boot.encode())
            with self.syncs.timed():
                self._rocks.flush_wal(True)

    def link(self, folder: Path) -> None:
        """The metadata as of now in a new folder: tables by hard links, the rest copied. Both may be written to."""
        with rocks_translated("copy", self._folder):
            self._rocks.link(folder)

    @staticmethod
    def as_first_generation(folder: Path, files: Files) -> None:
        """Have a copy of the metadata stand by itself, which compactions have led to: see storage/generation.py."""
        with rocks_translated("write", folder):
            rocks = files.rocks(folder)
            try:
                stored = json.loads(rocks.get(_SETTINGS) or b"{}")
                if stored.get("generation", FIRST) != FIRST:
                    rocks.put(_SETTINGS, json.dumps({**stored, "generation": FIRST}).encode())
                    rocks.flush()
                    rocks.flush_wal(True)
            finally:
                rocks.close()

    # --- after a failure -------------------------------------------------------------------------------------------

    @property
    def failed(self) -> bool:
        """Whether a change has failed, after which RocksDB refuses all others."""
        return self._rocks.failed or self._standby is not None

    def resume(self, acknowledged: Head) -> None:
        """Open again after a failed change. Reads are served all the while. acknowledged: the head that must be there.

        Raises:
            CoreNNError: if that fails. A secondary instance goes on serving reads, and it may be tried again.
        """
        if self._standby is None:
            self._stand_by()
        with rocks_translated("open", self._folder):
            opened = self._reopened()
        try:
            with rocks_translated("read", self._folder):
                head = Head(*HEAD_ROW.unpack(opened.get(_HEAD) or bytes(HEAD_ROW.size)))
                if head.commit < acknowledged.commit:
                    raise CorruptionError(
                        f"the metadata in {self._folder} ends at commit {head.commit}, but {acknowledged.commit} was "
                        "acknowledged: the disk has lost a part of the log; restore the database from a snapshot"
                    )
            with rocks_translated("write", self._folder):
                if self._undo is not None:
                    opened.put(*self._undo)
                    opened.flush_wal(True)
                if self._most:
                    opened.hold_at_most(self._most)
        except BaseException:
            with suppress(Exception):  # what went wrong before it is told
                opened.close()
            raise
        self._undo = None
        standby, self._rocks = self._rocks, opened
        with suppress(Exception):  # it has written nothing, and is closed all the same
            standby.close()
        self._end_standby()
        self.head = self._read_head()

    def _stand_by(self) -> None:
        """Put a secondary instance in the place of the one that fails."""
        with rocks_translated("follow", self._folder):
            own = Path(tempfile.mkdtemp(prefix="corenn-standby-"))
            try:
                standby = self._files.rocks(self._linked_folder(own), own / "log")
            except BaseException:
                shutil.rmtree(own, ignore_errors=True)
                raise
        former, self._rocks, self._standby = self._rocks, standby, own
        with suppress(Exception):  # it has failed, and says so again
            former.close()

    def _reopened(self) -> Rocks:
        """Open for writing, once the last read in the former instance has ended."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return self._files.rocks(self._folder)
            except Exception as error:
                if "lock hold" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.005)

    def _end_standby(self) -> None:
        if self._standby is not None:
            shutil.rmtree(self._standby, ignore_errors=True)
            self._standby = None

    def void(self, record: Record, before: Head) -> None:
        """Make a commit that holds one that was cut off: nothing of it is seen, its number and ids are spent."""
        cut_off = self._cut_off | {record.number}
        with rocks_translated("write", self._folder):
            batch = WriteBatch(raw_mode=True)
            batch.put(_CUT_OFF, _numbers(cut_off))
            batch.put(_INTENT, self._intent(record.number, record.born, before))
            batch.put(_HEAD, HEAD_ROW.pack(*before))
            self._rocks.write(batch)
            self._rocks.flush_wal(True)
        self._cut_off, self.head = cut_off, before

    def scan(self) -> None:
        """Read all there is.

        Raises:
            CorruptionError: if anything is damaged.
        """
        with rocks_translated("read", self._folder):
            for _ in self._rocks.items(b""):
                pass

    def torn(self, published: int) -> str | None:
        """What is wrong if commits are missing that were published, unless a loss of power explains it."""
        durable = self.settings()["settings"]["durability"] == "sync" or self.marks()[1] == boot_id()
        if not durable or published <= self.head.commit:
            return None
        return (
            f"the log of the metadata in {self._folder} is damaged: it ends at commit {self.head.commit}, and state "
            f"says that {published} was published; run `corenn repair`"
        )

    def disk_bytes(self) -> int:
        with rocks_translated("measure", self._folder):
            # It may have gone to a compaction.
            return sum(map(_allocated, self._folder.iterdir())) if self._folder.exists() else 0

    def memory_bytes(self) -> int:
        names = ("rocksdb.cur-size-all-mem-tables", "rocksdb.block-cache-usage", "rocksdb.estimate-table-readers-mem")
        with rocks_translated("measure", self._folder):
            return sum(self._rocks.property_int_value(name) or 0 for name in names)

    def close(self) -> None:
        with rocks_translated("close", self._folder), suppress(DbClosedError):
            self._rocks.close()
        self._end_standby()
        if self._private is not None:
            self._remove_private()


def _numbers(commits: Iterable[int]) -> bytes:
    return b"".join(number.to_bytes(8, "little") for number in sorted(commits))


def key_row(key: Key, row: int, before: int) -> tuple[bytes, bytes]:
    """Name and value that point a key at an id."""
    return b"k" + key_name(key), KEY_ROW.pack(row, before)


def payload_name(row: int) -> bytes:
    """The name of the payload of an id."""
    return b"p" + _ID.pack(row)


def record_numbers(rocks: Rocks) -> list[int]:
    """The numbers of the commits of which records are kept, ascending."""
    found = []
    for name, _ in rocks.items(b"c"):
        if not name.startswith(b"c"):
            break
        found.append(_COMMIT.unpack(name[1:])[0])
    return sorted(set(found))


def _remove_own(folder: Path, owner: int) -> None:
    """Remove a reader's folder; a fork of its process leaves it alone."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def _allocated(path: Path) -> int:
    """Bytes that a file takes on disk; none if RocksDB has removed it meanwhile."""
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0


def _as_of(raw: bytes, snapshot: int, cut_off: frozenset[int]) -> bytes | None:
    """Of the two payloads in a row, the one that a snapshot sees."""
    commit, now, before = PAYLOAD_ROW.unpack_from(raw)
    start = PAYLOAD_ROW.size
    if commit <= snapshot and commit not in cut_off:
        return None if now < 0 else raw[start : start + now]
    start += max(now, 0)
    return None if before < 0 else raw[start : start + before]
