"""Root: a directory of collections, each a database of its own with its own dtype and metric, on one memory budget."""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
import stat
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from numbers import Integral
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, NoReturn, TypeAlias

from .database import CoreNN, as_path
from .errors import (
    ClosedError,
    CollectionNotFoundError,
    CoreNNError,
    DatabaseExistsError,
    ForkedError,
    FormatError,
    InvalidArgumentError,
    InvalidSettingError,
    LockedError,
    NotADatabaseError,
    ReadOnlyError,
    StorageError,
)
from .names import check_name
from .sizes import parse_bytes
from .storage.files import Files, translated
from .storage.generation import FIRST, files_of, folder_of, read_generation
from .storage.platform import require_supported
from .storage.residence import LEAST

log = logging.getLogger("corenn.root")

Names: TypeAlias = list[str]  # within Root, `list` is a method
Entries: TypeAlias = list[os.DirEntry[str]]

DROPPED = re.compile(r"\..+\.dropped-[0-9a-f]{16}")
READ_ALONE = ("disk.slab", "fresh.slab", "parts.slab")  # read by calls, never mapped as a whole
LOOKED_UP = ("codes.slab", "state.slab", "slots.slab")  # at random, for every row: what a collection cannot do without


class Want(NamedTuple):
    """What a collection would do with memory, in bytes. need: to hold all of it. least: without which it does not open.
    most: its own limit, 0 for none.
    """

    need: int
    least: int = LEAST
    most: int = 0


def shares(limit: int, wants: Mapping[str, Want]) -> dict[str, int]:
    """Divide `limit` bytes among collections: in proportion to what they need, but at least and at most what they may.

    If all needs fit, what is left is divided in the same proportion, for all of them may grow. The shares never exceed
    `limit` together.

    Raises:
        InvalidSettingError: if `limit` does not even give each its least.
    """

    def grant(scale: int) -> dict[str, int]:
        floors = {name: max(want.need * scale >> 40, want.least) for name, want in wants.items()}
        return {name: min(floor, wants[name].most or floor) for name, floor in floors.items()}

    least = sum(grant(0).values())
    if least > limit:
        raise InvalidSettingError(
            f"memory_limit={limit:,} is too little for {len(wants):,} open collections, which take {least:,} bytes at "
            "least; raise the limit of the root, or close some"
        )
    # The sum grows with the scale: the largest that keeps within the limit. Beyond `high` nothing grows any more, or
    # one need alone is over the limit.
    low, high = 0, (limit + 1) << 40
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if sum(grant(middle).values()) <= limit else (low, middle)
    return grant(low)


class Root:
    """A directory of collections by name, each a `CoreNN` with its own dimension, dtype, metric and settings.

    `root[name]` opens a collection when it is first asked for and gives the same object from then on, until it is
    closed or dropped. Names are found by looking at the directory each time, so collections that other processes make
    or drop are seen.

    Safe for any number of threads: a collection is opened, made or dropped by one at a time, others go on. In a child
    after fork neither the root nor its collections may be used.
    """

    def __init__(
        self, path: str | os.PathLike[str], mode: Literal["rw", "r"] = "rw", memory_limit: int | str | None = None
    ) -> None:
        """Open a directory of collections.

        path: made if it is missing and mode is "rw". mode: "rw", or "r" to open all collections for reading.
        memory_limit: bytes, or such as "2GB", on which all collections that are open live together; see `shares`. None
        leaves each to its own setting.

        Raises:
            NotADatabaseError: if `path` is a file, or missing with mode="r".
            DatabaseExistsError: if `path` is a database itself.
            InvalidArgumentError, InvalidSettingError, StorageError
        """
        require_supported()
        if mode not in ("rw", "r"):
            raise InvalidArgumentError(f"mode={mode!r}: choose 'rw' or 'r'")
        self._path = as_path(path)
        self._mode: Literal["rw", "r"] = mode
        self._limit = _as_limit(memory_limit)
        self._files = Files()
        self._pid = os.getpid()
        self._slots: dict[str, _Slot] = {}
        self._coming: dict[str, Want] = {}  # collections that are being opened
        self._lock = threading.RLock()  # of both, and of the shares; never held while something is opened
        self._closed = False
        self._make_folder()
        if mode == "rw":
            self._remove_dropped()

    def _make_folder(self) -> None:
        with translated("look at", self._path):
            exists, folder = self._path.exists(), self._path.is_dir()
        if exists and not folder:
            raise NotADatabaseError(f"{self._path} is a file; a root is a folder of collections")
        if not exists:
            if self._mode == "r":
                raise NotADatabaseError(f"{self._path} does not exist; open it with mode='rw' to make it")
            with translated("create", self._path):
                self._path.mkdir(parents=True, exist_ok=True)
            self._files.sync_folder(self._path.parent)
        elif _is_database(self._path):
            raise DatabaseExistsError(
                f"{self._path} is a database itself; open it with CoreNN.open, or give the folder that it lies in"
            )

    # --- the collections ------------------------------------------------------------------------------------------

    def create(
        self, name: str, *, dim: int, metric: str = "cosine", dtype: str = "f32", durability: str = "os",
        **settings: Any,
    ) -> CoreNN:  # fmt: skip
        """Make a collection and open it for writing; arguments as for `CoreNN.create`.

        Raises:
            DatabaseExistsError: if the name is taken, or one that differs in upper and lower case only.
            InvalidArgumentError: for a name that a collection cannot have.
            InvalidSettingError, ReadOnlyError, ForkedError, StorageError
        """
        self._needs_writing()
        with self._holding(name) as slot:
            self._check_open()
            taken = next((each.name for each in self._entries() if each.name.lower() == name.lower()), None)
            if taken is not None:
                other = "" if taken == name else ", and some file systems do not tell them apart"
                raise DatabaseExistsError(f"{taken!r} exists in {self._path} already{other}; choose another name")
            self._give_up(name, slot)
            with self._admitted(name, Want(0)):
                made = CoreNN.create(
                    self._path / name, dim=dim, metric=metric, dtype=dtype, durability=durability, **settings
                )
                self._hold(slot, made, name)
            return made

    def __getitem__(self, name: str) -> CoreNN:
        """The collection of a name, open.

        Raises:
            CollectionNotFoundError: if there is none.
            InvalidArgumentError: for a name that a collection cannot have.
            InvalidSettingError: if the memory does not do for one more.
            LockedError: if another process has it open for writing and the mode is not "r".
            ForkedError, ClosedError, FormatError, CorruptionError, StorageError
        """
        self._check_open()
        with self._holding(name) as slot:
            self._check_open()
            if slot.database is not None and not slot.database.closed and slot.is_at(self._path / name):
                return slot.database
            self._give_up(name, slot)
            self._require(name)
            try:
                with self._admitted(name, _want(self._path / name)) as share:
                    overrides = {"memory_limit": share} if share else {}
                    opened = CoreNN.open(self._path / name, self._mode, **overrides)
                    self._hold(slot, opened, name)
            except CoreNNError:
                self._require(name)  # another process may have dropped it meanwhile
                raise
            return opened

    def _hold(self, slot: _Slot, database: CoreNN, name: str) -> None:
        slot.hold(database, self._path / name)
        if self._limit:
            database._live_on(self._share_again)

    def _require(self, name: str) -> None:
        if not self._holds(name):
            there = "; it is a symbolic link, which a root does not follow" if (self._path / name).is_symlink() else ""
            raise CollectionNotFoundError(f"no collection {name!r} in {self._path}{there}; make it with root.create")

    def __contains__(self, name: object) -> bool:
        self._check_open()
        return self._holds(check_name(name))

    def list(self) -> Names:
        """The names of all collections, sorted."""
        self._check_open()
        return sorted(each.name for each in self._entries() if self._is_collection(each))

    def __iter__(self) -> Iterator[str]:
        return iter(self.list())

    def __len__(self) -> int:
        return len(self.list())

    def drop(self, name: str) -> None:
        """Remove a collection with all that is in it, for good. It disappears whole or not at all.

        Our handle is closed. Processes that have it open for reading keep what they have mapped, and find it gone at
        their next `refresh`.

        Raises:
            CollectionNotFoundError: if there is none.
            LockedError: if it is open for writing elsewhere.
            InvalidArgumentError, ReadOnlyError, StorageError
        """
        self._needs_writing()
        with self._holding(name) as slot:
            self._check_open()
            self._require(name)
            database = slot.database
            slot.leave()
            lock = self._take_lock(name)
            try:
                self._remove(name)
            finally:
                os.close(lock)
            if database is not None:
                database._close_because(self._gone(name))
            self._share_again()

    def _take_lock(self, name: str) -> int:
        """The lock of a collection's writer, which nobody holds who could still write to it."""
        file = self._path / name / "LOCK"
        while True:
            try:
                lock = self._files.lock(file)
            except StorageError:
                self._require(name)
                raise
            if lock is None:
                raise LockedError(f"{file.parent} is open for writing elsewhere; close it there to drop it")
            with suppress(OSError):
                if os.path.samestat(os.fstat(lock), file.stat()):
                    return lock
            os.close(lock)  # of a collection that has been dropped since
            self._require(name)

    def _remove(self, name: str) -> None:
        """By its new name it is no collection any more: whoever dies from here on leaves it to the next writer."""
        path, gone = self._path / name, self._path / f".{name}.dropped-{secrets.token_hex(8)}"
        self._files.rename(path, gone)
        try:
            self._files.sync_folder(self._path)
        except StorageError:
            self._files.rename(gone, path)  # no loss of power is to decide whether it is there
            raise
        shutil.rmtree(gone, ignore_errors=True)
        if gone.exists():
            log.warning("%s was dropped, but %s could not be removed; the next writer tries again", path, gone)

    def _remove_dropped(self) -> None:
        """Remove what killed drops have left. One that is at it still meets files that are gone, and does not mind."""
        with translated("list", self._path), os.scandir(self._path) as entries:
            left = [each.path for each in entries if DROPPED.fullmatch(each.name)]
        for path in left:
            log.info("removing %s", path)
            shutil.rmtree(path, ignore_errors=True)  # not what a symbolic link leads to

    # --- the budget -----------------------------------------------------------------------------------------------

    def share_memory(self) -> dict[str, int]:
        """Divide `memory_limit` among the open collections anew, by what they need now. Returns the bytes of each.

        Happens by itself whenever one is opened, made or dropped; worth a call when one has grown. Empty without limit.
        """
        self._check_open()
        return self._share()

    @contextmanager
    def _admitted(self, name: str, want: Want) -> Iterator[int]:
        """Open a collection within this, in the share that it yields, 0 without a limit.

        The share is taken from the others before, so that together they never exceed the limit.
        """
        self._forget_closed()
        with self._lock:
            self._coming[name] = want
        try:
            yield self._share().get(name, 0)
        finally:
            with self._lock:
                del self._coming[name]
            self._share_again()

    def _share_again(self) -> None:
        """Share after what has been done, which does not fail any more if collections have outgrown the limit since."""
        with suppress(InvalidSettingError):
            self._share()

    def _share(self) -> dict[str, int]:
        """Give every open collection its share of the limit, if there is one."""
        if not self._limit:
            return {}
        with self._lock:
            there, wants = {}, dict(self._coming)
            for name, slot in self._slots.items():
                database = slot.database
                if name not in wants and database is not None and not database.closed:
                    there[name] = database
                    with suppress(CoreNNError):  # it may have been configured, or closed, since
                        slot.own_limit = database._stored_memory_limit()
                    wants[name] = _want(self._path / name, slot.own_limit)
            granted = shares(self._limit, wants)
            for name, database in there.items():
                with suppress(ClosedError):  # by another thread, since
                    database._limit_memory(granted[name])
            return granted

    # --- the handle -----------------------------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        """The directory."""
        return self._path

    @property
    def mode(self) -> str:
        """ "rw" or "r"."""
        return self._mode

    @property
    def memory_limit(self) -> int:
        """Bytes that the open collections share, 0 for no limit."""
        return self._limit

    def close(self) -> None:
        """Close all collections that were opened through this root. A second call does nothing."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            self._closed = True
            slots = list(self._slots.values())
            for slot in slots:
                slot.users += 1  # nobody else is to let go of them meanwhile
        failed: CoreNNError | None = None
        for slot in slots:
            with slot.lock:  # one that is being opened is closed as well
                try:
                    slot.leave()
                except CoreNNError as error:
                    failed = failed or error
        if failed is not None:
            raise failed

    def __enter__(self) -> Root:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise InvalidArgumentError("a root can be neither pickled nor copied: pass its path, and open it there")

    def __repr__(self) -> str:
        if self._closed or os.getpid() != self._pid:
            return f"<Root {str(self._path)!r}: closed>"
        limit = f", memory_limit {self._limit:,}" if self._limit else ""
        try:
            return f"<Root {str(self._path)!r}: {len(self):,} collections, {self._mode}{limit}>"
        except CoreNNError as error:
            return f"<Root {str(self._path)!r}: {error}>"

    def _check_open(self) -> None:
        if os.getpid() != self._pid:
            raise ForkedError(
                f"this root was opened by process {self._pid} before a fork; open it again here with mode='r'"
            )
        if self._closed:
            raise ClosedError("the root is closed; open it again")

    def _needs_writing(self) -> None:
        self._check_open()
        if self._mode == "r":
            raise ReadOnlyError(
                f"{self._path} is open with mode='r'; open it with mode='rw' to make or drop collections"
            )

    @contextmanager
    def _holding(self, name: str) -> Iterator[_Slot]:
        """The slot of a name, locked. Slots without a handle that is open are forgotten when nobody waits for them."""
        check_name(name)
        with self._lock:
            slot = self._slots.setdefault(name, _Slot())
            slot.users += 1
        try:
            with slot.lock:
                yield slot
        finally:
            with self._lock:
                slot.users -= 1
                if slot.is_left:
                    slot.leave()
                    del self._slots[name]

    def _forget_closed(self) -> None:
        """Let go of handles that their users have closed."""
        with self._lock:
            for name, slot in list(self._slots.items()):
                if slot.is_left:
                    slot.leave()
                    del self._slots[name]

    def _give_up(self, name: str, slot: _Slot) -> None:
        """Close a handle whose collection has been dropped, here or elsewhere, or that its user has closed."""
        if slot.database is not None and not slot.database.closed:
            slot.database._close_because(self._gone(name))
        slot.leave()

    def _gone(self, name: str) -> str:
        return f"collection {name!r} was dropped from {self._path}, or made anew; ask the root for it again"

    def _entries(self) -> Entries:
        """What is in the directory, but for what is hidden."""
        try:
            with translated("list", self._path), os.scandir(self._path) as entries:
                return [each for each in entries if not each.name.startswith(".")]
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise NotADatabaseError(f"{self._path} is gone: it was removed or moved") from error
            raise

    def _holds(self, name: str) -> bool:
        """Whether there is a collection of exactly this name; a file system may take another one for it."""
        return any(each.name == name and self._is_collection(each) for each in self._entries())

    @staticmethod
    def _is_collection(entry: os.DirEntry[str]) -> bool:
        with suppress(CoreNNError):
            check_name(entry.name)
            return entry.is_dir(follow_symlinks=False) and _is_database(Path(entry.path))
        return False


class _Slot:
    """Where the handle of one collection is kept. All but `database` is used by who holds `lock` alone, or the lock of
    the root while there are no `users`.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()  # a signal handler may close the root while this thread opens something
        self.users = 0  # who hold `lock` or wait for it; guarded by the lock of the root
        self.database: CoreNN | None = None
        self.own_limit = 0
        self._folder: int | None = None  # open as long as the handle, so that its number is not used again
        self._finalizer: weakref.finalize[..., _Slot] | None = None

    def hold(self, database: CoreNN, path: Path) -> None:
        """Keep a handle, and know its folder again."""
        try:
            own_limit = database._stored_memory_limit()
            with translated("open", path):
                self._folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except BaseException:
            database.close()
            raise
        self._finalizer = weakref.finalize(self, os.close, self._folder)
        self.database, self.own_limit = database, own_limit

    @property
    def is_left(self) -> bool:
        """Whether there is neither a handle in use nor anybody who wants one."""
        return not self.users and (self.database is None or self.database.closed)

    def is_at(self, path: Path) -> bool:
        """Whether the folder of the handle is still at its path, and not another one or none."""
        assert self._folder is not None
        try:
            there = path.lstat()
        except OSError:
            return False
        return stat.S_ISDIR(there.st_mode) and os.path.samestat(there, os.fstat(self._folder))

    def leave(self) -> None:
        """Close the handle and forget it."""
        database, self.database = self.database, None
        if self._finalizer is not None:
            self._finalizer()
            self._finalizer = self._folder = None
        if database is not None:
            database.close()


def _as_limit(value: int | str | None) -> int:
    if value is None or (isinstance(value, Integral) and not isinstance(value, bool) and value == 0):
        return 0
    try:
        return parse_bytes(value)
    except ValueError as error:
        raise InvalidSettingError(f"memory_limit={error}; None for no limit") from None


def _is_database(path: Path) -> bool:
    """Whether a folder holds a database, damaged or not."""
    try:
        read_generation(path)
    except NotADatabaseError:
        return False
    except FormatError:
        return True
    return True


def _want(path: Path, own_limit: int = 0) -> Want:
    """What a collection would do with memory, by the bytes of its slabs on disk: that can be told before it is open."""
    try:
        number = read_generation(path)
        files = files_of(path, number) if number == FIRST else folder_of(path, number).iterdir()
        sizes = {each.name: each.stat().st_blocks * 512 for each in files if each.suffix in (".slab", ".heap")}
    except (CoreNNError, OSError):  # it is being dropped or compacted, or damaged: opening it will tell
        return Want(0, LEAST, own_limit)
    need = sum(size for name, size in sizes.items() if name not in READ_ALONE)
    return Want(need, LEAST + sum(sizes.get(name, 0) for name in LOOKED_UP), own_limit)
