"""The collection on disk or in memory: its slabs, its metadata, the order of a commit, and recovery.

Concurrency: everything that writes is called by one thread at a time, the engine's writer. Arrays are read by any
thread; a row is written before a commit names it and never changes afterwards, but for its state and edges.
"""

from __future__ import annotations

import logging
import mmap
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..config import MAX_ROWS, Settings
from ..durations import Durations
from ..errors import (
    CapacityError,
    CoreNNError,
    CorruptionError,
    DatabaseExistsError,
    ForeignFileError,
    FormatError,
    LockedError,
    NewerFormatError,
    OlderFormatError,
    ReadOnlyError,
    StorageError,
)
from ..kernels.candidates import VACANT
from ..kernels.codes import TRAINED, code_width, product_form
from ..kernels.keytable import KIND_STR
from ..kernels.link import mend_ring
from ..kernels.product import Codebook
from ..kernels.search import FIRST_NEIGHBOUR, Navigation
from ..types import AnyArray, Bytes, Float32s, Key, UInt32s, UInt64s
from . import format as fmt
from .archive import MANIFEST
from .changes import Changes, settled_in
from .commit import NO_IDS, Commit, Follower, Head, Metadata, Record, as_runs
from .disk import Descriptors, DiskRows, remove
from .encode import STORED, seal_columns, stored_columns
from .files import Files, translated
from .format import FREED, JOURNAL, LINKED, PUBLISHED
from .generation import (
    FIRST,
    METADATA,
    folder_of,
    read_generation,
    remove_leftovers,
    rescue_generation,
)
from .keys import pack_keys, unpack_key
from .memory import MemoryMetadata
from .parts import PartsFile
from .platform import boot_id, give_way
from .readers import Registration
from .recoded import as_created, discard_draft, follow_codes
from .resume import Failing, rewrite
from .rocks import RocksMetadata
from .rocksdb import require_threads
from .salvage import Salvaged, keep_settings, kept_settings, salvage
from .slab import FileSlab, MemorySlab, Slab, SlabSpec
from .state import broken_states, checksums_of, commit_of, salt_between, salted, state_words
from .update import UPDATE, finish_if_due, take_over
from .upgrade import require_present

log = logging.getLogger("corenn.storage")

HEAP_BYTES = 1 << 40
_NO_ROWS = np.full(1, VACANT)
NO_NAVIGATION = Navigation(NO_IDS, np.zeros((0, FIRST_NEIGHBOUR), np.uint32), 0, 0)


def _nothing() -> None:
    """Nobody wants to be called."""


class Drawn(NamedTuple):
    """When the sample of the navigation graph was drawn: at which commit, from how many rows; and their births."""

    commit: int
    linked: int
    births: UInt64s


class Hot(NamedTuple):
    """Rows of disk.slab that are kept in memory: see kernels.disk.Disk."""

    rows: UInt32s
    ids: UInt32s
    places: UInt32s


NO_HOT = Hot(np.zeros((0, 2), np.uint32), _NO_ROWS, _NO_ROWS)
NOT_DRAWN = Drawn(0, 0, np.empty(0, np.uint64))
LINE_WORDS = 16
NAMED_AT_ONCE = 512  # rows: about a millisecond


def write_rows(slab: Slab, ids: UInt32s, rows: AnyArray) -> None:
    """Write rows at ascending ids, those that follow each other at once."""
    at = 0
    for first, count in as_runs(ids).tolist():
        slab.write(first, rows[at : at + count])
        at += count


def slab_specs(settings: Settings, database: int = 0, generation: int = FIRST) -> dict[str, SlabSpec]:
    """The slabs of a database, by name. database: the number that tells its files from those of all others."""
    word = np.dtype(np.uint32)
    # Half as many edges again before a prune; whole cache lines where that leaves some slack.
    lines = settings.max_edges * 3 // 2 // LINE_WORDS * LINE_WORDS
    edges = lines if lines >= 2 + settings.max_edges * 9 // 8 else 2 + settings.max_edges * 3 // 2
    specs = [
        SlabSpec("vectors.slab", STORED[settings.dtype], stored_columns(settings), hard=True, dim=settings.dim),
        SlabSpec("seals.slab", word, seal_columns(settings), hard=True),
        SlabSpec("state.slab", np.dtype(np.uint64), 2, hard=True),
        SlabSpec("edges.slab", word, edges, hard=False),
        SlabSpec("keys.slab", np.dtype(np.uint64), 2, hard=False),
        SlabSpec("keys.heap", np.dtype(np.uint8), 1, hard=False),
    ]
    if settings.compression_mode != "none":
        codes = code_width(settings, settings.compression_mode)
        specs.append(SlabSpec("codes.slab", np.dtype(np.uint8), codes, hard=False, dim=settings.dim))
    return {spec.name: replace(spec, database=database, generation=generation) for spec in specs}


def _require_vacant(path: Path) -> None:
    """Refuse to create where something is, other than an empty folder."""
    with translated("look at", path):
        taken = path.exists() and (not path.is_dir() or any(path.iterdir()))
    if taken:
        raise DatabaseExistsError(f"{path} exists already; open it with CoreNN.open, or choose another path")


def _rows_kept(metadata: RocksMetadata) -> int:
    """Rows that a hard file holds for sure: after a restart of the machine those of the last checkpoint, else all.

    A length reaches the disk with a sync, as rows do. The ids above were born since, every one of them.
    """
    durable, boot = metadata.marks()
    rows = metadata.head.rows
    if durable is None or boot == boot_id():
        return rows
    born = np.unique(np.concatenate([NO_IDS, *(record.born for record in metadata.records(durable))]))
    known = np.flatnonzero(born != np.arange(rows - len(born), rows))
    return rows - len(born) + (int(known[-1]) + 1 if len(known) else 0)


@dataclass(slots=True)
class Recovered:
    """What opening found: commits to link again, and faults of files that it has mended or that wait for repair.

    suspect: edges are to be checked in full. lost: keys whose payloads were lost with damaged metadata.
    """

    backlog: list[tuple[int, UInt32s]] = field(default_factory=list)
    suspect: bool = False
    lost: tuple[Key, ...] = ()
    faults: list[str] = field(default_factory=list)

    def note(self, salvaged: Salvaged | None) -> None:
        """Tell repair of metadata that was made anew."""
        if salvaged is not None:
            self.faults.append(salvaged.fault)
            self.lost, self.suspect = salvaged.lost, True


class Former(NamedTuple):
    """What a store held before it adopted other files."""

    metadata: Metadata
    slabs: dict[str, Slab]
    disk: DiskRows | None = None

    def close(self) -> None:
        """Release the files; arrays stay valid."""
        self.metadata.close()
        if self.disk is not None:
            self.disk.close()
        for slab in self.slabs.values():
            slab.close()


class Store:
    """One collection. Made by `create` and `open` (on disk) or `in_memory`."""

    def __init__(
        self, settings: Settings, slabs: dict[str, Any], metadata: Metadata, *, path: Path | None, writable: bool
    ) -> None:
        self.settings = settings
        self._changing = threading.Lock()  # of the settings, which the writer changes, and a root beside it
        self.path = path
        self.writable = writable
        self.files = Files()
        self.generation = FIRST
        self.commits, self.syncs, self.compactions = Durations(), Durations(), Durations()
        self.compacted_rows = 0  # ids that compactions have given back
        self._hold(slabs, metadata)
        self.recovered = Recovered()
        self.lock: int | None = None
        self.registration: Registration | None = None  # of a reader beside a writer
        self.fault: Exception | None = None
        self.stuck: Exception | None = None  # what keeps this handle from ever writing again
        self.failing: Failing | None = None  # the commit that met it, if it may hold
        self.unsure: set[str] = set()  # slabs whose last sync failed: what it was to bring to the disk may be lost
        self._burnt: tuple[int, UInt32s] = (0, NO_IDS)  # number and ids of a commit that was cut off
        self.changes: Changes | None = None  # on disk, of the writer
        self.borrowed: list[mmap.mmap] = []  # temporary files that are mapped
        self.beside: list[Store] = []  # what is made to take its place, and lives within the same limit
        self.renamed = False  # whether codes.slab is another file since the last checkpoint
        self.trusts_codes = True  # whether the file of codes holds what its header says
        self.working = 0  # bytes of anonymous memory that a first load has taken for a while
        self.look: Callable[[], None] = _nothing  # called now and then by what goes over many rows: see Residence
        self.buried = 0  # dead rows to which no edge leads any more
        self.payload_index: Follower | None = None
        self.forgotten = 0  # commits up to this one left nothing in the metadata that a dead row is known by

    def _hold(self, slabs: dict[str, Any], metadata: Metadata) -> None:
        self.metadata = metadata
        if isinstance(metadata, RocksMetadata):
            metadata.syncs = self.syncs
        self.slabs: dict[str, Slab] = slabs
        self.vectors, self.seals, self.state = (slabs[f"{name}.slab"] for name in ("vectors", "seals", "state"))
        self.edges, self.keys, self.heap = slabs["edges.slab"], slabs["keys.slab"], slabs["keys.heap"]
        self.codes: Slab | None = slabs.get("codes.slab")
        self.draft: Slab | None = None  # codes that are being made: see storage/recoded.py
        self.centre: tuple[Slab, int, Float32s] | None = None  # of RaBitQ's codes: its row and its vector
        self.codebooks: dict[int, Codebook] = {}  # of product codes, by the word BOOK that goes with each
        self.navigation, self.drawn = NO_NAVIGATION, NOT_DRAWN
        self.parts: PartsFile | None = None  # of a first load that is linked in parts
        self.disk: DiskRows | None = None  # where there is a disk.slab
        self.source: Descriptors | None = None  # of what searches over the disk read: see graph/disk.py
        self.hot = NO_HOT

    # --- making and opening ---------------------------------------------------------------------------------------

    @classmethod
    def in_memory(cls, settings: Settings) -> Store:
        """An empty collection in anonymous memory."""
        slabs: dict[str, Any] = {}
        for name, spec in slab_specs(settings).items():
            slabs[name] = MemorySlab(spec, HEAP_BYTES if name == "keys.heap" else MAX_ROWS)
        metadata = MemoryMetadata(slabs["keys.slab"], slabs["keys.heap"], slabs["state.slab"], MAX_ROWS)
        store = cls(settings, slabs, metadata, path=None, writable=True)
        store.forgotten = fmt.NEVER  # a dead row is known by its id alone
        return store

    @staticmethod
    def create(path: Path, settings: Settings, files: Files) -> None:
        """Write an empty collection. It appears at `path` whole or not at all.

        Raises:
            DatabaseExistsError: if something is at `path` already.
            ForkedError: see `require_threads`.
        """
        require_threads()
        _require_vacant(path)
        draft = path.with_name(f".{path.name}.creating-{secrets.token_hex(8)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            files.make_folder(draft)
        except OSError as error:
            raise StorageError(
                f"cannot create {path}: {error.strerror}; choose a folder that can be written"
            ) from error
        try:
            database = secrets.randbits(63)
            for spec in slab_specs(settings, database).values():
                FileSlab.create(files, draft, spec)
            stored: dict[str, Any] = {"version": fmt.VERSION, "database": database, "generation": FIRST}
            stored["settings"] = settings.as_dict()
            RocksMetadata.create(draft / METADATA, stored, files)
            keep_settings(draft, stored, files)
            files.sync_folder(draft)
            try:
                files.rename(draft, path)
            except StorageError:
                if draft.exists():
                    _require_vacant(path)  # of those who create at one path at a time, one is first
                raise
            files.sync_folder(path.parent)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise

    @classmethod
    def open(cls, path: Path, mode: str, files: Files) -> Store:
        """Open for writing ("rw"), for reading beside a writer ("r"), or to save what can be saved ("rescue").

        Raises:
            NotADatabaseError, FormatError, LockedError, CorruptionError, StorageError
            ForkedError: for writing; see `require_threads`.
            ReadOnlyError: for writing, if it is a backup.
        """
        if mode != "r":
            require_threads()
            with translated("look at", path):
                backup = (path / MANIFEST).exists()
            if backup:
                raise ReadOnlyError(
                    f"{path} is a backup, whose checksums would not hold any more; `corenn restore` makes a database "
                    "of it, and mode='r' reads it"
                )
        require_present(path)
        finish_if_due(path, files)
        try:
            read_generation(path)
        except FormatError:
            if mode != "rescue":
                raise
        lock = None if mode == "r" else cls._take_lock(path, files)
        registration = Registration(path, files) if mode == "r" else None  # before anything is read
        if registration is not None and (path / UPDATE).exists():  # since we looked; it waits for us, or is gone soon
            registration.close()
            return cls.open(path, mode, files)
        try:
            if lock is not None:
                take_over(path, files)
            store = cls._open_valid(path, mode, files)
        except BaseException:
            if lock is not None:
                os.close(lock)
            if registration is not None:
                registration.close()
            raise
        store.lock, store.registration = lock, registration
        if mode == "r" and store.metadata.head.commit < int(store.state.header[PUBLISHED]):
            try:
                store.refresh()  # the metadata was read while the writer moved its log
            except BaseException:
                store.close()
                raise
        return store

    @classmethod
    def _open_valid(cls, path: Path, mode: str, files: Files) -> Store:
        """Open the valid generation. A reader tries again where another one has taken its place meanwhile."""
        while True:
            number = rescue_generation(path, files) if mode == "rescue" else read_generation(path)
            try:
                store = cls._open_generation(path, number, mode, files)
            except (CoreNNError, OSError):
                if mode != "r" or read_generation(path) == number:
                    raise
                continue
            if mode != "r":
                remove_leftovers(path, number, files)
            return store

    @classmethod
    def _open_generation(cls, path: Path, number: int, mode: str, files: Files) -> Store:
        folder, salvaged = folder_of(path, number), None
        if mode == "rescue":
            salvaged = salvage(folder, files, partial(slab_specs, generation=number))
        metadata = RocksMetadata(folder / METADATA, files, reader=mode == "r")
        try:
            store = cls._assemble(path, number, mode, files, metadata)
            store.recovered.note(salvaged)
            return store
        except BaseException:
            metadata.close()
            raise

    @staticmethod
    def _take_lock(path: Path, files: Files) -> int:
        lock = files.lock(path / "LOCK")
        if lock is None:
            holder = (path / "LOCK").read_text().strip() or "unknown"
            raise LockedError(
                f"{path} is open for writing in process {holder}; close it there, or open it here with mode='r'"
            )
        return lock

    @classmethod
    def _assemble(cls, path: Path, number: int, mode: str, files: Files, metadata: RocksMetadata) -> Store:
        stored, folder = metadata.settings(), folder_of(path, number)
        fmt.require_version(stored["version"], 0, folder / METADATA, path)
        if stored.get("generation", FIRST) != number:
            raise FormatError(
                f"the metadata in {folder} is of generation {stored['generation']}, not {number}; put back the files "
                "that were written together"
            )
        settings = Settings.from_dict(stored["settings"])
        if mode == "rw" and kept_settings(folder) != stored:
            keep_settings(folder, stored, files)
        recovered = Recovered()
        slabs: dict[str, Any] = {}
        store: Store | None = None
        try:
            for name, spec in slab_specs(settings, stored["database"], number).items():
                spec = as_created(folder / name, spec)
                slabs[name] = cls._open_slab(folder / name, spec, mode, files, metadata, recovered)
            store = cls(settings, slabs, metadata, path=path, writable=mode != "r")
            store.files, store.generation = files, number
            store.recovered = recovered
            if mode == "rw" and (torn := metadata.torn(int(store.state.header[PUBLISHED]))):
                raise CorruptionError(torn)
            if store.writable:
                store.watch_changes()
            store.open_disk()
            store._recover(metadata)
        except BaseException:
            with ExitStack() as stack:
                for slab in slabs.values():
                    stack.callback(slab.close)
                if store is not None:
                    store._close_beside(stack, settle=False)
            raise
        return store

    def _close_beside(self, stack: ExitStack, *, settle: bool) -> None:
        """Release what there is beside slabs and metadata. settle: all of these are on the disk."""
        for other in (self.changes, self.draft, self.parts):
            if other is not None:
                stack.callback(other.close)
        if self.disk is not None:
            stack.callback(self.disk.close, settle=settle)

    def open_disk(self, *, create: bool = False) -> None:
        """Take up disk.slab if it is there. create: make it anew.

        Raises:
            DiskFullError, StorageError
        """
        assert self.folder is not None
        make = DiskRows.create if create else partial(DiskRows.open, writable=self.writable)
        self.disk = make(self.files, self.folder, self.settings, self.edges.spec)
        if self.disk is None:
            return
        self.source = None
        if self.writable:
            assert isinstance(self.edges, FileSlab)
            self.edges.copied = self._note_stale

    def _note_stale(self, ids: UInt32s | slice) -> None:
        """Edges are about to change. No write fails for what searches can do without."""
        assert self.disk is not None
        try:
            self.disk.stale(ids)
        except CoreNNError:
            log.warning("disk.slab is given up, and made anew later", exc_info=True)
            self.drop_disk()

    def drop_disk(self) -> None:
        """Do without disk.slab from now on: what is there of it may be anything."""
        disk, self.disk, self.source, self.hot = self.disk, None, None, NO_HOT
        if isinstance(self.edges, FileSlab):
            self.edges.copied = None
        if disk is not None:
            disk.give_up()
        if self.folder is not None:
            with suppress(CoreNNError):
                remove(self.files, self.folder)

    def change_settings(self, changes: Mapping[str, Any]) -> None:
        """Go by other settings from now on, in this handle. Safe for any number of threads: none loses another's."""
        with self._changing:
            self.settings = self.settings.changed(changes)

    @property
    def folder(self) -> Path | None:
        """Where the slabs and the metadata are, None in memory."""
        return None if self.path is None else folder_of(self.path, self.generation)

    @property
    def code_bytes(self) -> int:
        """Bytes of a row of the codes in use, 0 while there are none. Product codes are as wide as their codebook."""
        chosen = 0 if self.codes is None else int(self.codes.header[fmt.CHOSEN])
        if self.codes is None or not fmt.CODINGS.index("none") < chosen < len(fmt.CODINGS):
            return 0
        book = self.codebooks.get(int(self.codes.header[fmt.BOOK]))
        if fmt.CODINGS[chosen] in TRAINED and book is not None:
            return product_form(self.settings.dim, len(book.starts) - 1).row_bytes
        return code_width(self.settings, fmt.CODINGS[chosen])

    def add_codes(self) -> None:
        """Make room for codes in a database that was created without. What an earlier handle has left there is old."""
        if self.codes is not None or self.settings.compression_mode == "none":
            return
        spec = slab_specs(self.settings, self.vectors.spec.database, self.generation)["codes.slab"]
        if self.folder is None:
            self.codes = MemorySlab(spec, MAX_ROWS)
        else:
            path = self.folder / spec.name
            if not path.exists():
                FileSlab.create(self.files, self.folder, spec)
                self.files.sync_folder(self.folder)
            assert isinstance(self.metadata, RocksMetadata)
            self.codes = self._open_slab(path, as_created(path, spec), "rw", self.files, self.metadata, self.recovered)
            if self.changes is not None:
                self.changes.watch(self.codes)
        self.codes.header[[fmt.CHOSEN, fmt.CODED]] = 0
        self.slabs[spec.name] = self.codes

    def watch_changes(self) -> None:
        """Begin to note what changes, in the files that are held now."""
        assert self.folder is not None
        self.changes = Changes(self.files, self.folder, self.vectors.spec.database)
        for slab in self.slabs.values():
            assert isinstance(slab, FileSlab)
            self.changes.watch(slab)

    @staticmethod
    def _open_slab(
        path: Path, spec: SlabSpec, mode: str, files: Files, metadata: RocksMetadata, recovered: Recovered
    ) -> FileSlab:
        mendable = mode == "rescue" or (mode == "rw" and not spec.hard)
        try:
            if not path.exists():
                raise FormatError(f"{path} is missing; run `corenn repair` to save what the other files hold")
            slab = FileSlab(files, path, spec, writable=mode != "r")
        except FormatError as error:
            if mode == "r" and (now := as_created(path, spec)) != spec:  # other codes have taken their place just now
                return Store._open_slab(path, now, mode, files, metadata, recovered)
            if not mendable or isinstance(error, NewerFormatError | OlderFormatError):
                raise
            if spec.hard and isinstance(error, ForeignFileError):
                raise  # its rows have checksums that hold, and would be served as rows of this database
            recovered.faults.append(f"{error}")
            log.warning("%s; mending it", error)
            FileSlab.recreate(files, path, spec)
            slab = FileSlab(files, path, spec, writable=True)
        rows = 0 if spec.name in ("keys.heap", "codes.slab") else metadata.head.rows
        if spec.hard and len(slab.array) < rows and len(slab.array) >= _rows_kept(metadata):
            log.warning("%s had not reached the disk in its full length when the machine restarted", path)
            if mode == "r":
                slab.close()
                raise FormatError(
                    f"{path} is to be lengthened after a restart of the machine; open it for writing once"
                )
            Store._lengthen(slab, rows)
        if len(slab.array) < rows:
            message = f"{path} is truncated: it holds {len(slab.array):,} of {rows:,} rows; run `corenn repair`"
            if not mendable:
                slab.close()
                raise FormatError(message)
            recovered.faults.append(message)
            recovered.suspect = recovered.suspect or spec.name == "edges.slab"
            log.warning("%s", message)
            if spec.hard:
                Store._lengthen(slab, rows)
        return slab

    @staticmethod
    def _lengthen(slab: FileSlab, rows: int) -> None:
        try:
            slab.reserve(rows)
        except BaseException:
            slab.close()
            raise

    # --- recovery -------------------------------------------------------------------------------------------------

    def _recover(self, metadata: RocksMetadata) -> None:
        """Bring the slabs up to the metadata.

        After the death of a process the work is bounded by what was in flight. After a restart of the machine the state
        is read once, and the keys are made again if anything was committed since the last checkpoint.
        """
        head = metadata.head
        durable, boot = metadata.marks()
        restarted = boot != boot_id() and head.commit > 0
        self.trusts_codes = self.writable or not restarted or self._settled()
        if self.writable and restarted:  # what was not brought to the disk is made again
            if self.codes is not None and not self._settled():
                self.codes.header[fmt.CODED] = 0
            discard_draft(self)
        if head.commit > 0 and (durable is None or boot is None) and self.writable:
            self.recovered.faults.append("the mark of the last checkpoint is lost; edges are checked in full")
            self.recovered.suspect = True
        self.recovered.suspect = self.recovered.suspect or (restarted and self.writable)
        known = (durable or 0) if restarted else min(int(self.state.header[PUBLISHED]), head.commit)
        linked = (durable or 0) if restarted else min(int(self.edges.header[LINKED]), head.commit)
        if self.writable:
            self.spare(metadata)
            if (durable or 0) < head.commit:  # a sync may have failed in the handle before
                self.unsure = {"vectors.slab", "seals.slab", "state.slab"}
            self._extend_soft(head, unsynced=restarted and bool(metadata.records(known)))
            if restarted:
                self._forget_future(head)
            if self.edges.header[JOURNAL]:  # a kernel takes a while to load, and seldom is one needed here
                self.edges.note(slice(0, head.rows), vague=True)
                mend_ring(self.edges.array, self.edges.header[JOURNAL : JOURNAL + 2], head.rows)
        for record in metadata.records(min(known, linked)):
            if record.number > known:
                self._apply(record)
            if record.number > linked and len(record.born):
                self.recovered.backlog.append((record.number, record.born))
        if self.recovered.backlog:
            self._drop_reborn()
        if self.writable:
            if self.recovered.backlog:
                self.edges.note(
                    slice(0, head.rows), vague=True
                )  # who was killed on the way may not have said what it changed
            self.state.write_header(PUBLISHED, head.commit)

    def _settled(self) -> bool:
        """Whether every slab is on the disk as it is here."""
        if self.changes is not None:
            return self.changes.settled
        return self.folder is not None and settled_in(self.files, self.folder, self.vectors.spec.database)

    def _drop_reborn(self) -> None:
        """Link each row once: an id that came in one commit, was freed and came again waits for the last one only."""
        later = NO_IDS
        kept = []
        for number, born in reversed(self.recovered.backlog):
            kept.append((number, born[~np.isin(born, later)]))
            later = np.concatenate((later, born))
        self.recovered.backlog = [(number, born) for number, born in reversed(kept) if len(born)]

    def _bury(self, ids: UInt32s) -> None:
        """Set aside the ids of a commit that was cut off: keys may point at them, which would then name other rows.

        On the disk at once, and again whatever stands there, since an earlier sync may have failed: when later commits
        have passed its number, nothing else tells of them.
        """
        if not len(ids):
            return
        self.state.reserve(int(ids[-1]) + 1)
        write_rows(self.state, ids, np.tile(np.array([0, fmt.NEVER], np.uint64), (len(ids), 1)))
        self.sync(self.state)
        self.edges.array[ids[ids < len(self.edges.array)]] = 0  # what a restart has left of them

    def _extend_soft(self, head: Head, *, unsynced: bool) -> None:
        """Fill what soft files have lost: keys from the metadata now, edges by linking again.

        unsynced: the machine has restarted, and rows written since the last checkpoint may not have reached the disk.
        """
        missing = len(self.edges.array)
        if missing < head.rows:
            self.edges.reserve(head.rows)
            lost = np.arange(missing, head.rows, dtype=np.uint32)
            self.recovered.backlog.append((1, lost[self.state.array[missing : head.rows, 0] != 0]))
        if unsynced or self._keys_lost(head):
            self.recovered.faults.append("keys.slab or keys.heap has lost rows; both are made again from the metadata")
            self.rebuild_keys()

    def _keys_lost(self, head: Head) -> bool:
        """Whether keys.slab or keys.heap holds less than the newest rows need."""
        end = int(self.heap.header[fmt.HEAP_END])
        if len(self.keys.array) < head.rows or len(self.heap.array) < end:
            return True
        newest = slice(max(0, head.rows - 1024), head.rows)
        state, words = self.state.array[newest], self.keys.array[newest]
        words = words[(state[:, 0] != 0) & (state[:, 1] == 0)]
        text = words[words[:, 0] & np.uint64(0xFF) == KIND_STR]
        ends = text[:, 1] + (text[:, 0] >> np.uint64(8))
        return bool((words[:, 0] == 0).any() or (ends > end).any())

    def rebuild_keys(self) -> int:
        """Write keys.slab and keys.heap again from the metadata; returns the number of keys."""
        head = self.metadata.head
        self.keys.reserve(head.rows)
        # Behind what is there: hits already returned read their keys from it.
        first = end = min(int(self.heap.header[fmt.HEAP_END]), len(self.heap.array))
        count = 0
        whole = np.zeros((head.rows, 2), np.uint64)
        batch: list[tuple[Key, int]] = []

        def flush() -> None:
            nonlocal end
            words, raw = pack_keys([key for key, _ in batch], end)
            self._append_heap(raw, end)
            end += len(raw)
            whole[[row for _, row in batch]] = words
            batch.clear()

        for key, row, before in self.metadata.names():
            for owner in (row, before):
                if owner < head.rows and self._has_key(owner, key, first):
                    whole[owner] = self.keys.array[owner]  # a reader may have mapped no more of the heap
                elif owner < head.rows:
                    batch.append((key, owner))
            count += 1
            if len(batch) > 10_000:
                flush()
        flush()
        self.keys.note(slice(0, head.rows))
        self.keys.array[: head.rows] = whole
        log.warning("rebuilt the keys of %d rows from the metadata", count)
        return count

    def _has_key(self, row: int, key: Key, end: int) -> bool:
        """Whether keys.slab says of a row what the metadata says, by bytes before `end` of the heap."""
        kind, word = (int(each) for each in self.keys.array[row])
        return (kind & 0xFF != KIND_STR or word + (kind >> 8) <= end) and self.key_of(row) == key

    def _append_heap(self, raw: Bytes, start: int) -> None:
        end = start + len(raw)
        self.heap.reserve(end)
        self.heap.note(slice(start, end))
        self.heap.array[start:end, 0] = raw
        self.heap.header[fmt.HEAP_END] = end

    def _forget_future(self, head: Head) -> None:
        """After a restart, undo births and deaths by commits that the disk has lost."""
        state = self.state.array[: head.rows]
        beyond = (commit_of(state) > head.commit) & (state != fmt.NEVER)
        ids = np.flatnonzero(beyond.any(axis=1)).astype(np.uint32)
        ids = np.setdiff1d(ids, broken_states(state, ids))  # flipped bits look like that, too, and are not to be sealed
        known = commit_of(state[ids])
        known[known > head.commit] = 0
        self._write_state(ids, known[:, 0], known[:, 1])

    # --- commits --------------------------------------------------------------------------------------------------

    def next_commit(self) -> int:
        """The number of the next commit. Numbers of commits that were cut off are not used again."""
        return max(self.metadata.head.commit, self._burnt[0]) + 1

    def next_row(self) -> int:
        """The first of the ids that no commit has used so far."""
        burnt = self._burnt[1]
        return max(self.metadata.head.rows, int(burnt[-1]) + 1 if len(burnt) else 0)

    def commit(self, commit: Commit) -> None:
        """Write rows, make the commit hold, and mark births and deaths.

        A failure to write rows leaves no trace. After a failure of a sync or of the metadata, what holds is not known:
        `fault` says so, and nothing more may be written until `resume` has found out.
        """
        sync = self.settings.durability == "sync" and self.path is not None
        began = time.perf_counter()
        if commit.count:
            self._write_rows(commit)
        record = commit.record
        try:
            if commit.count and sync:
                self.sync(self.vectors)
                self.sync(self.seals)
            ids = record.touched
            self.failing = Failing(record, self.metadata.head, ids, self.state.array[ids])
            self.metadata.commit(commit, sync=sync)
            if len(commit.freed):
                latest = int(commit_of(self.state.array[commit.freed, 1].max()))
                self.state.write_header(FREED, max(int(self.state.header[FREED]), latest))
            self._apply(record)
            self.state.write_header(PUBLISHED, commit.number)
        except Exception as error:
            self.fault = error
            raise
        self.failing = None
        self.commits.add(time.perf_counter() - began)
        if self.payload_index is not None:
            self.payload_index.committed(commit)

    def sync(self, slab: Slab) -> None:
        """Bring a slab to the disk. If that fails, what it was to bring may be lost, and no other sync would tell."""
        try:
            with self.syncs.timed():
                slab.sync()
        except BaseException:
            self.unsure.add(slab.spec.name)
            raise

    def put_state(self, ids: UInt32s, words: UInt64s) -> None:
        """Write rows of state. A reader does so in its own copy."""
        if self.writable:
            write_rows(self.state, ids, words)
        else:
            assert isinstance(self.state, FileSlab)
            self.state.store(ids, words)

    def spare(self, metadata: RocksMetadata) -> UInt32s:
        """Leave out the number and the ids of a commit that was cut off; returns the ids."""
        self._burnt = metadata.burnt()
        ids = self._burnt[1]
        state = self.state.array[ids[ids < len(self.state.array)]]
        dead = int(((state[:, 0] != 0) & (state[:, 1] != 0)).sum())  # it was to free them in the same commit
        if dead:
            metadata.rewrite_head(metadata.head._replace(dead=metadata.head.dead - dead))
        self._bury(ids)
        return ids

    def _write_rows(self, commit: Commit) -> None:
        stop = int(commit.ids[-1]) + 1
        if stop > MAX_ROWS:
            raise CapacityError(f"{stop:,} rows are more than the {MAX_ROWS:,} of a collection; split it into several")
        limit, size = self.settings.memory_limit, stop * sum(slab.spec.row_bytes for slab in self.slabs.values())
        if self.path is None and 0 < limit < size:
            raise CapacityError(
                f"{stop:,} rows take {size:,} bytes, beyond the memory_limit of {limit:,}; use a database on disk"
            )
        end = int(self.heap.header[fmt.HEAP_END])
        words, raw = pack_keys(commit.keys, end)
        for slab in (self.vectors, self.seals, self.state, self.edges, self.keys):
            slab.reserve(stop)
        self._append_heap(raw, end)
        assert commit.vectors is not None and commit.seals is not None
        write_rows(self.vectors, commit.ids, commit.vectors)
        write_rows(
            self.seals, commit.ids, self._checked(commit.vectors, commit.seals, salted(commit.ids, commit.number))
        )
        self.keys.note(commit.ids)
        self.edges.note(commit.ids)
        self.keys.array[commit.ids] = words
        self.edges.array[commit.ids] = 0

    def _checked(self, vectors: AnyArray, seals: UInt32s, salts: UInt64s) -> UInt32s:
        """The seals with their checksums."""
        sealed = seals.copy()
        sealed[:, 0] = checksums_of(vectors, seals, salts)
        return sealed

    def _apply(self, record: Record) -> None:
        """Mark births and deaths; twice is as good as once. A reader does so in its own copy.

        Of a freed row only the birth is taken back; when its id is given to a new row, the birth is written before the
        death is taken back. A query that reads the death first finds no row there, whichever it meets: graph/mend.py.
        """
        if len(record.freed):
            self._write_state(record.freed, 0, commit_of(self.state.array[record.freed, 1]))
        if len(record.born):
            died = commit_of(self.state.array[record.born, 1])
            if died.any():
                self._write_state(record.born, record.number, died)
            self._write_state(record.born, record.number, 0)
        if len(record.died):
            self._write_state(record.died, commit_of(self.state.array[record.died, 0]), record.number)

    def _write_state(self, ids: UInt32s, born: Any, died: Any) -> None:
        if self.writable and self.disk is not None:
            self._note_stale(ids)  # by the first word, whose check covers the death, its rows are known
        self.put_state(ids, state_words(ids, born, died))

    def mark_linked(self, commit: int) -> None:
        """Every commit up to this one has its edges in the mapping: enough if the process dies."""
        self.edges.header[LINKED] = commit

    def checkpoint(self, durable: int, oldest_snapshot: int) -> None:
        """Bring all slabs to the disk and set the durable mark; forget the records that nobody needs any more."""
        if not isinstance(self.metadata, RocksMetadata):
            return
        if self.unsure:
            rewrite(self, self.metadata)
        for slab in self.slabs.values():
            self.sync(slab)
        if self.renamed:
            assert self.folder is not None
            self.files.sync_folder(self.folder)
            self.renamed = False
        self.unsure.clear()
        self._settle_disk()
        if self.changes is not None:
            self.changes.settle()
        forgettable = min(durable, oldest_snapshot)
        records = [record for record in self.metadata.records(self.forgotten) if record.number <= forgettable]
        if records:
            died = np.concatenate([record.died for record in records] or [NO_IDS]).tolist()
            self.metadata.forget(forgettable, self._names_of(died))
        self.metadata.checkpoint(durable, boot_id())
        self.forgotten = forgettable

    def _settle_disk(self) -> None:
        """Bring disk.slab to the disk, too, if it is whole: it may be large, and writes wait meanwhile."""
        if self.disk is None or self.disk.current < self.metadata.head.rows:
            return
        try:
            self.disk.settle()
        except CoreNNError:
            # What the system says it has failed to write it may forget as well.
            log.warning("disk.slab is given up, and made anew later", exc_info=True)
            self.drop_disk()

    def _names_of(self, rows: list[int]) -> list[tuple[int, Key | None]]:
        """Rows with their keys: from the slab, or for those that lack one there by a look at every key.

        A key that were overlooked would name whatever row is given the id later.
        """
        keys: dict[int, Key | None] = {}
        for start in range(0, len(rows), NAMED_AT_ONCE):
            keys |= {row: self.key_of(row) for row in rows[start : start + NAMED_AT_ONCE]}
            give_way()
        if None in keys.values():
            for key, now, before in self.metadata.names():
                for row in (now, before):
                    if row in keys and keys[row] is None:
                        keys[row] = key
        return list(keys.items())

    # --- reads ----------------------------------------------------------------------------------------------------

    def key_of(self, row: int) -> Key | None:
        """The key of a row, from the slabs."""
        return unpack_key(self.keys.array[row], self.heap.array.reshape(-1))

    def blank_rows(self, ids: UInt32s) -> None:
        """Overwrite damaged rows, which nobody is to see again, with zeros and a checksum that holds."""
        for row in ids.tolist():
            vectors = np.zeros((1, self.vectors.spec.columns), self.vectors.spec.dtype)
            seals = np.zeros((1, self.seals.spec.columns), np.uint32)
            self.vectors.write(row, vectors)
            born = commit_of(self.state.array[row, 0])
            self.seals.write(row, self._checked(vectors, seals, salted(np.array([row], np.uint32), born)))

    def mend_state(self, alive: UInt32s, dead: UInt32s) -> None:
        """Give rows that have lost their births and deaths others, before all commits."""
        self._write_state(alive, self._births(alive), 0)
        self._write_state(dead, 1, 1)

    def _births(self, ids: UInt32s) -> UInt64s:
        """The births that the checksums of rows imply; 1 where none fits."""
        seals = self.seals.array[ids]
        sums = checksums_of(self.vectors.array[ids], seals, salted(ids, 0))
        found = [salt_between(one, other) for one, other in zip(sums.tolist(), seals[:, 0].tolist(), strict=True)]
        births = np.array(found, np.uint64)
        births[(births == 0) | (births > self.metadata.head.commit)] = 1
        return births

    def refresh(self) -> None:
        """A reader's view of what the writer has committed since, in another generation if there is one."""
        assert self.path is not None
        self._require_folder()
        number = read_generation(self.path)
        if number == self.generation:
            try:
                self._catch_up()
                return
            except (CoreNNError, OSError):  # the files may have gone just now
                if read_generation(self.path) == number:
                    raise
        newest = Store.open(self.path, "r", self.files)
        former = self.adopt(newest)
        if newest.registration is not None:
            newest.registration.close()  # that of this store goes on
        former.close()

    def _require_folder(self) -> None:
        """Open files outlive their names: whoever has removed the whole database is to be told."""
        if self.path is not None:
            with translated("find", self.path):
                self.path.stat()

    def _catch_up(self) -> None:
        assert isinstance(self.metadata, RocksMetadata)
        self.metadata.follow(int(self.state.header[PUBLISHED]))
        give_way()
        head = self.metadata.head
        follow_codes(self)
        for slab in self.slabs.values():
            assert isinstance(slab, FileSlab)
            slab.follow()
        give_way()
        self._follow_disk()
        for name, slab in self.slabs.items():
            if name not in ("keys.heap", "codes.slab") and len(slab.array) < head.rows:
                raise CorruptionError(f"{name} holds {len(slab.array):,} of {head.rows:,} rows; run `corenn repair`")
        self.recovered = Recovered()
        self._recover(self.metadata)

    def _follow_disk(self) -> None:
        if self.disk is not None and not self.disk.follow():
            self.disk.close()
            self.disk = self.source = None
        if self.disk is None:
            self.open_disk()

    @property
    def horizon(self) -> int:
        """Rows that died up to this commit may have given their ids to others."""
        return int(self.state.header[FREED])

    def adopt(self, other: Store) -> Former:
        """Go on with what another store holds, which must be the same rows; returns what was held until now.

        Arrays that were handed out stay valid; what looks up keys or payloads has to be done with the former metadata
        before that is closed.
        """
        if self.writable:
            discard_draft(self)
        former = Former(self.metadata, self.slabs, self.disk)
        self._hold(other.slabs, other.metadata)
        self.disk = other.disk
        self.generation, self.navigation, self.drawn = other.generation, other.navigation, other.drawn
        self.codebooks = other.codebooks
        self._burnt = (self._burnt[0], NO_IDS)
        self.failing, self.unsure = None, set()
        self.buried, self.forgotten = 0, max(other.forgotten, self.metadata.head.commit)
        if not self.writable:
            self.recovered = other.recovered
        elif self.changes is not None:
            self._watch_anew()
        return former

    def _watch_anew(self) -> None:
        """Nothing is known of files that were written just now: everything in them counts as changed."""
        assert self.changes is not None
        self.changes.close()
        self.changes = None
        try:
            self.watch_changes()
        except CoreNNError:
            log.warning("what changes from now on is not noted; the next snapshot tries again", exc_info=True)

    def newest(self, name: str) -> AnyArray:
        """The rows of a slab as the file is now; a reader goes on with what it sees."""
        slab = self.slabs[name]
        assert isinstance(slab, FileSlab)
        return slab.newest()

    def heap_bytes(self) -> int:
        """Bytes of string keys."""
        return int(self.heap.header[fmt.HEAP_END])

    def disk_bytes(self) -> int:
        """Bytes that the collection takes on disk."""
        self._require_folder()
        while True:
            held = self.generation, self.codes, self.draft
            try:
                beside = 0 if self.disk is None else self.disk.disk_bytes()
                beside += 0 if (draft := self.draft) is None else draft.disk_bytes()
                beside += sum(map(len, self.borrowed))
                beside += 0 if (parts := self.parts) is None else parts.disk_bytes()
                beside += 0 if self.payload_index is None else self.payload_index.disk_bytes()
                return sum(slab.disk_bytes() for slab in self.slabs.values()) + beside + self.metadata.disk_bytes()
            except CoreNNError:  # its files may have gone to a compaction, or its codes to others
                if held == (self.generation, self.codes, self.draft):
                    raise

    def close(self) -> None:
        """Release files and lock, whatever fails on the way."""
        with ExitStack() as stack:
            if self.lock is not None:
                stack.callback(os.close, self.lock)
                self.lock = None
            self._close_beside(stack, settle=self.fault is None)
            for slab in self.slabs.values():
                stack.callback(slab.close)
            if self.registration is not None:
                stack.callback(self.registration.close)
            if self.payload_index is not None:
                stack.callback(self.payload_index.close)
            self.metadata.close()
