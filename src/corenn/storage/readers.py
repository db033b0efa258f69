"""Which snapshots are read: by queries here, and by readers in other processes.

The writer asks before it frees ids and before it uses them again. A reader in another process has a file of its own in
the folder `readers` of the database, which holds the oldest snapshot that it reads and is locked while it lives; the
lock dies with it, and the next writer that looks removes the file. The time of the file tells when it was last in use:
while queries are asked beside updates, these leave a processor to them.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ..errors import StorageError
from .files import Files

FOLDER = "readers"
_EVERYTHING = 0  # the snapshot of a reader that has not chosen one yet: older than all
ASKED_SECONDS = 1.5  # after a query, in which the next one is to be expected
TOLD_SECONDS = 0.5  # between two notes of a reader about its queries, and between two looks of the writer at them


class Snapshots:
    """The snapshots in use, by token. Safe for any number of threads: each call is one step on a dict.

    folder: of the database, whose other readers count as well; None where there are none.
    """

    def __init__(self, folder: Path | None, files: Files) -> None:
        self._folder = None if folder is None else folder / FOLDER
        self._files = files
        self._held: dict[object, int] = {}
        self.at_work = False  # whether the writer thread is
        self._noted = False  # whether a query has come meanwhile since `asked` looked
        self._last_query = self._last_look = -ASKED_SECONDS

    def note_query(self) -> None:
        """A query is asked here. Called for each: it has to cost nothing."""
        if self.at_work:  # who writes and asks by turns on one thread has no use for a second processor
            self._noted = True

    def asked(self) -> bool:
        """Whether queries are being asked beside the writer, here or by readers. Called by its thread only."""
        now = time.monotonic()
        if self._noted:
            self._noted, self._last_query = False, now
        elif now - self._last_query >= TOLD_SECONDS <= now - self._last_look:
            self._last_look = now
            if self._asked_elsewhere():
                self._last_query = now
        return now - self._last_query < ASKED_SECONDS

    def _asked_elsewhere(self) -> bool:
        """Whether a reader has told of a query lately. A clock that jumps costs a processor, for a while."""
        if self._folder is None:
            return False
        try:
            with os.scandir(self._folder) as files:
                return any(abs(time.time() - file.stat().st_mtime) < ASKED_SECONDS for file in files)
        except OSError:
            return False  # the folder is made by the first reader, and files in it come and go

    def hold(self) -> object:
        """A token that keeps everything until `settle` says what it reads. Taken before the view is looked at."""
        token = object()
        self._held[token] = _EVERYTHING
        return token

    def settle(self, token: object, snapshot: int) -> None:
        """From now on the holder of a token reads this snapshot, and nothing older."""
        self._held[token] = snapshot

    def drop(self, token: object) -> None:
        """The holder of a token reads nothing any more."""
        del self._held[token]

    def oldest_here(self, present: int) -> int:
        """The oldest snapshot that this process reads, the present one if it reads none."""
        return min(self._held.copy().values(), default=present)

    def oldest(self, present: int) -> int:
        """The oldest snapshot that any process reads."""
        return min([self.oldest_here(present), *(reader.snapshot for reader in self.others())])

    def others(self, own: Registration | None = None) -> list[Reader]:
        """The readers that have registered, in other processes or by other handles; all but `own`. What dead ones have
        left behind is removed.
        """
        if self._folder is None or not self._folder.is_dir():
            return []
        found = []
        for path in self._folder.iterdir():
            pid = path.name.partition("-")[0]
            if own is not None and path == own.path:
                continue
            if pid.isdigit() and not self._files.remove_unlocked(path):
                snapshot = _read(path)
                if snapshot is not None:
                    found.append(Reader(int(pid), snapshot))
        return found


class Reader(NamedTuple):
    """A process that reads, and the oldest snapshot that it does."""

    pid: int
    snapshot: int


def _read(path: Path) -> int | None:
    """What a reader has written, everything if that cannot be told; None if it has gone."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError:
        return _EVERYTHING
    return int.from_bytes(raw, "little") if len(raw) == 8 else _EVERYTHING


class Registration:
    """What a reader tells the writer. Where the folder cannot be written there is none, and `registered` is False."""

    def __init__(self, folder: Path, files: Files) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._snapshot = _EVERYTHING
        self._told = -TOLD_SECONDS
        self.path = folder / FOLDER / f"{os.getpid()}-{secrets.token_hex(8)}"
        self.descriptor: int | None = None
        try:
            self.path.parent.mkdir(exist_ok=True)
            self.descriptor = files.create_locked(self.path, _EVERYTHING.to_bytes(8, "little"))
        except (OSError, StorageError):
            self.descriptor = None

    @property
    def registered(self) -> bool:
        return self.descriptor is not None

    def tell(self, oldest: int) -> None:
        """Everything older than this may go."""
        with self._lock:
            if self.descriptor is not None and oldest != self._snapshot:
                self._snapshot = oldest
                self._files.write(self.descriptor, memoryview(oldest.to_bytes(8, "little")), 0, self.path)

    def note_use(self) -> None:
        """Tell the writer that queries are asked here, every now and then."""
        now = time.monotonic()
        if now - self._told >= TOLD_SECONDS and self.descriptor is not None:
            self._told = now
            with suppress(OSError):  # it is a courtesy
                os.utime(self.path)

    def close(self) -> None:
        """The reader reads nothing any more."""
        with self._lock:
            if self.descriptor is not None:
                self.path.unlink(missing_ok=True)
                self.leave()

    def leave(self) -> None:
        """In a child after fork: let go of the lock, which belongs to the parent."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None
