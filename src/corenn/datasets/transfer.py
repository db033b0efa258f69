"""One file from the first of its mirrors that serves it: continued where it broke off, checked, published when whole.

While it comes, the bytes lie in `.NAME.part` beside the target and what they belong to in `.NAME.part.json`, so that
another run goes on. They are thrown away where they cannot be told to belong to the same file. The target's name is
given only to bytes that have the right number, the right beginning and, where one is known, the right checksum.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO, Protocol

from ..errors import DatasetError, DiskFullError
from ..storage.files import Files, translated
from ..storage.platform import boot_id
from .remote import RemoteFile
from .transports import BrokenOffError, Known, Offer, UnavailableError, open_remote, shown

SYNC_BYTES = 256 << 20
READ_BYTES = 1 << 20
SIGNATURES = {".hdf5": b"\x89HDF\r\n\x1a\n", ".gz": b"\x1f\x8b", ".tgz": b"\x1f\x8b", ".zip": b"PK\x03\x04"}


@dataclass(frozen=True, slots=True)
class Patience:
    """When to give up.

    attempts: tries in a row at one mirror that bring no new byte. timeout: seconds without a byte after which a
    connection counts as lost. pause: seconds before the second try, doubled with each further one. longest: of such a
    pause.
    """

    attempts: int = 5
    timeout: float = 30.0
    pause: float = 1.0
    longest: float = 30.0


class Watcher(Protocol):
    """What wants to know how a fetch goes."""

    def begin(self, title: str, total: int | None) -> None:
        """A step begins: of `total` bytes, None if unknown. The one before it has ended."""

    def advance(self, count: int) -> None:
        """So many bytes were done; negative where they turned out to be of no use."""

    def note(self, text: str) -> None:
        """Something that a person should know, such as a mirror that was given up."""


class Unwatched:
    """Nobody wants to know."""

    def begin(self, title: str, total: int | None) -> None: ...
    def advance(self, count: int) -> None: ...
    def note(self, text: str) -> None: ...


@contextmanager
def held(path: Path, what: str) -> Iterator[None]:
    """A lock on `path` among processes, which dies with its holder and leaves no file behind.

    Raises:
        DatasetError: if another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DatasetError(f"another process is fetching {what}; wait until it has ended ({path})") from None
        if not _still_there(file.fileno(), path):
            raise DatasetError(f"another process was just fetching {what}; try again")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _still_there(descriptor: int, path: Path) -> bool:
    """False if the file was removed by its last holder between opening and locking it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def download(
    file: RemoteFile,
    target: Path,
    *,
    stop: int | None = None,
    clip: bool = False,
    finish: Callable[[Path], None] | None = None,
    patience: Patience | None = None,
    watch: Watcher | None = None,
) -> str:
    """Fetch `file` to `target`, and return the address that it came from.

    Args:
        file: what to fetch; its mirrors are tried in order.
        target: a path where no file is yet.
        stop: fetch only the bytes before this position.
        clip: take the whole file if it ends before `stop`.
        finish: called with the whole part before it gets its name; raises UnavailableError or DatasetError if
            it is not what it should be.
        patience: when to give up.
        watch: told how it goes.

    Raises:
        DatasetError: if no mirror gives the file, with the reason of each; or if another process is fetching it.
        DiskFullError: if there is no room for it.
    """
    with held(target.with_name(f".{target.name}.lock"), target.name):
        return _Transfer(file, target, stop, clip, finish, patience or Patience(), watch or Unwatched()).run()


@dataclass(frozen=True, slots=True)
class _State:
    """What the bytes of a part belong to.

    url: where they came from. known: of the whole file. boot: names the time since the machine started; synced: bytes
    that were on the disk then, all that can be relied on after a restart.
    """

    url: str
    known: Known
    boot: str
    synced: int = 0


class _Transfer:
    """The work of `download`, for one file. Not shared between threads."""

    def __init__(
        self,
        file: RemoteFile,
        target: Path,
        stop: int | None,
        clip: bool,
        finish: Callable[[Path], None] | None,
        patience: Patience,
        watch: Watcher,
    ) -> None:
        self._file = file
        self._target = target
        self._stop = stop
        self._clip = clip
        self._finish = finish
        self._patience = patience
        self._watch = watch
        self._part = target.with_name(f".{target.name}.part")
        self._state_file = target.with_name(f".{target.name}.part.json")
        self._joined = False  # the part has bytes of more than one connection

    def run(self) -> str:
        """Try the mirrors, then give the whole part its name."""
        reasons = []
        self._begin()
        self._recover()
        for url in self._mirrors():
            try:
                self._from(url)
            except UnavailableError as error:
                reasons.append(f"{shown(url)}: {error}")
                self._watch.note(reasons[-1])
            else:
                self._publish()
                return url
        raise DatasetError(
            f"cannot fetch {self._file.name}: {'; '.join(reasons)}. Try again later, or name another address with --url"
        )

    def _begin(self) -> None:
        self._watch.begin(self._target.name, self._stop or self._file.size)
        self._watch.advance(self._size())

    def _mirrors(self) -> list[str]:
        """The mirrors in order, but first the one that a part came from: another may not be able to go on with it."""
        state = self._state()
        return sorted(self._file.urls, key=lambda url: state is None or shown(url) != state.url)

    def _from(self, url: str) -> None:
        """Complete the part from one mirror."""
        failures, best = 0, self._size()
        while True:
            try:
                self._attempt(url)
                self._check()
                return
            except BrokenOffError as error:
                failures = 0 if self._size() > best else failures + 1
                best = max(best, self._size())
                if failures >= self._patience.attempts:
                    raise UnavailableError(f"{error}, {failures} times in a row") from error
                self._wait(failures, error.wait)

    def _wait(self, failures: int, asked: float) -> None:
        """A pause that grows, and that others who failed at the same moment do not share."""
        pause = min(self._patience.pause * 2 ** max(0, failures - 1), self._patience.longest)
        time.sleep(max(asked, pause * random.uniform(0.5, 1.0)))

    # --- one connection -----------------------------------------------------------------------------------------------

    def _attempt(self, url: str) -> None:
        state = self._state()
        start = self._size() if state is not None and self._may_join(state, url) else 0
        if state is not None and start and start == self._goal(state.known):
            self._joined = True
            return
        if state is not None and start > (self._goal(state.known) or start):
            start = 0
        with open_remote(url, start, self._stop, state.known if state else None, self._patience.timeout) as offer:
            self._check_size(offer)
            if offer.start and not (state and state.known.continues(offer.known, state.url == shown(url))):
                self._discard()
                raise BrokenOffError("the file is not the one that was begun; starting afresh")
            self._check_end(offer)
            self._receive(url, offer)

    def _may_join(self, state: _State, url: str) -> bool:
        """False if nothing could show that bytes which follow belong to the same version of the file."""
        validators = bool(state.known.etag) or state.known.modified is not None
        return state.known.size is not None and (validators or (state.url == shown(url) and bool(self._file.checksum)))

    def _check_size(self, offer: Offer) -> None:
        size, expected = offer.known.size, self._file.size
        if size == 0:
            raise UnavailableError("serves an empty file")
        if size is not None and expected is not None and size != expected:
            raise UnavailableError(f"serves a file of {size:,} bytes; {self._file.name} has {expected:,}")
        if size is not None and self._stop is not None and size < self._stop and not self._clip:
            raise UnavailableError(f"serves a file of {size:,} bytes; {self._stop:,} of them are wanted")

    def _check_end(self, offer: Offer) -> None:
        if not offer.framed and self._goal(offer.known) is None and not self._file.checksum:
            raise UnavailableError("does not say how long the file is; a part of it could not be told from the whole")

    def _goal(self, known: Known) -> int | None:
        """How many bytes the part must have, None if nobody says."""
        size = self._file.size if known.size is None else known.size
        if self._stop is not None and not (self._clip and size is not None and size < self._stop):
            return self._stop
        return size

    def _receive(self, url: str, offer: Offer) -> None:
        self._joined = offer.start > 0
        goal = self._goal(offer.known)
        self._need_room(0 if goal is None else goal - self._size())  # what is cut off makes room
        size = self._file.size if offer.known.size is None else offer.known.size
        state = _State(shown(url), replace(offer.known, size=size), boot_id(), offer.start)
        with translated("write to", self._part), self._opened(offer.start) as part:
            self._remember(state)
            too_much = self._write(part, offer, goal, state)
        got = self._size()
        if too_much or got == 0:
            self._discard()
            raise UnavailableError("serves an empty file" if got == 0 else f"sends more than the {got:,} bytes it has")
        if goal is not None and got < goal:
            raise BrokenOffError(f"the connection was lost at {got:,} of {goal:,} bytes")

    @contextmanager
    def _opened(self, start: int) -> Iterator[BinaryIO]:
        """The part, cut to `start`; a part is cut before the new state is written, never after."""
        self._watch.advance(start - self._size())
        with self._part.open("r+b" if self._part.exists() else "w+b") as part:
            part.truncate(start)
            part.seek(start)
            os.fsync(part.fileno())
            yield part

    def _write(self, part: BinaryIO, offer: Offer, goal: int | None, state: _State) -> bool:
        """True if more came than the whole file has."""
        at = synced = offer.start
        for chunk in offer.chunks:
            wanted = chunk if goal is None else chunk[: goal - at]
            part.write(wanted)
            part.flush()  # a process that is killed loses nothing that has come
            at += len(wanted)
            self._watch.advance(len(wanted))
            if at - synced >= SYNC_BYTES:
                synced = at
                os.fsync(part.fileno())
                self._remember(replace(state, synced=synced))
            if at == goal:
                return self._stop is None and (len(wanted) < len(chunk) or any(offer.chunks))
        return False

    def _need_room(self, size: int) -> None:
        free = shutil.disk_usage(self._part.parent).free
        if size > free:
            raise DiskFullError(
                f"{self._target.name} needs {size:,} more bytes, {self._part.parent} has {free:,}; free some space"
            )

    # --- the part and what is known of it -----------------------------------------------------------------------------

    def _size(self) -> int:
        return self._part.stat().st_size if self._part.exists() else 0

    def _recover(self) -> None:
        """Drop a part of which nothing is known, and after a restart of the machine what may not be on the disk."""
        state = self._state()
        if state is None:
            self._discard()
        elif state.boot != boot_id() and self._size() > state.synced:
            self._watch.advance(state.synced - self._size())
            os.truncate(self._part, state.synced)

    def _state(self) -> _State | None:
        try:
            found = json.loads(self._state_file.read_text())
            return _State(**{**found, "known": Known(**found["known"])}) if self._part.exists() else None
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def _remember(self, state: _State) -> None:
        fresh = self._state_file.with_suffix(".new")
        fresh.write_text(json.dumps(asdict(state)))
        fresh.replace(self._state_file)

    def _discard(self) -> None:
        self._watch.advance(-self._size())
        self._part.unlink(missing_ok=True)
        self._state_file.unlink(missing_ok=True)

    # --- the whole file -----------------------------------------------------------------------------------------------

    def _check(self) -> None:
        """Throw away a part that is not what it should be: to begin once more if it was pieced together."""
        problem = self._problem()
        if problem is None:
            return
        joined, self._joined = self._joined, False
        self._begin()
        self._discard()
        if joined:
            raise BrokenOffError(f"{problem}; starting afresh")
        raise UnavailableError(problem)

    def _problem(self) -> str | None:
        expected = next((magic for end, magic in SIGNATURES.items() if self._file.name.endswith(end)), b"")
        with self._part.open("rb") as file:
            if file.read(len(expected)) != expected:
                return f"what it serves is not a {Path(self._file.name).suffix} file"
        if self._stop is None and self._file.checksum:
            self._watch.begin(f"checking {self._target.name}", self._size())
            if wrong := mismatch(self._part, self._file.checksum, self._watch.advance):
                return wrong
        try:
            if self._finish is not None:
                self._finish(self._part)
        except (UnavailableError, DatasetError) as error:
            return str(error)
        return None

    def _publish(self) -> None:
        files = Files()
        with translated("publish", self._target):
            with self._part.open("rb") as part:
                os.fsync(part.fileno())
            self._part.replace(self._target)
        files.sync_folder(self._target.parent)
        self._state_file.unlink(missing_ok=True)


def mismatch(path: Path, checksum: str, progress: Callable[[int], None]) -> str | None:
    """What is wrong with the bytes of `path`, or None if they have the checksum "kind:hex".

    `progress` is called with each number of bytes read.
    """
    kind, _, expected = checksum.partition(":")
    digest = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(READ_BYTES):
            digest.update(piece)
            progress(len(piece))
    found = digest.hexdigest()
    return None if found == expected else f"its {kind} is {found}, not {expected}"
