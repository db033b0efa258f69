"""Snapshots of the files: a copy of a database as of one commit, made while writes go on.

A *cut* is taken in the writer thread between two commits: all that is committed is linked and on the disk, RocksDB's
tables are linked under a second name, and the first pages of the slabs are kept. From then on rows are copied by
another thread, and what later commits do is undone in the copy:

    vectors, seals, keys   of the rows below the head never change
    state                  births and deaths by later commits are taken back
    edges                  those to later rows are replaced or dropped; lifelines are followed along later rows to the
                           next one of the cut, since rows are only ever put in between
    codes                  dropped if others have been chosen meanwhile

That holds while no row leaves the ring and no id is used again, for which the caller sees to. What changes fastest is
copied first, so that little has to be undone.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CorruptionError, NewerFormatError
from ..kernels.search import DEGREE, FIRST_NEIGHBOUR, LIFELINE
from ..types import AnyArray, UInt32s, UInt64s
from .changes import Stamp, changed_since
from .commit import Head
from .files import Files
from .format import BOOK, CENTRE, CHOSEN, CODED, HEAP_END, NEVER, PAGE
from .generation import FIRST
from .rocks import RocksMetadata
from .salvage import keep_settings
from .slab import BLOCK_BYTES, FileSlab, Slab
from .state import LOOKS, commit_of, state_words
from .store import Store
from .update import MARKER, META_COPY, Update

Progress = Callable[[str, int, int], None]

SLABS = ("edges.slab", "state.slab", "codes.slab", "keys.slab", "keys.heap", "seals.slab", "vectors.slab")
MARKER_VERSION = 1
SHARED = ("seals.slab", "vectors.slab")  # never stored to through a mapping: where blocks are shared a store may fault
SHARED_BYTES = 1 << 26
SUBSTITUTES = 4  # edges of a later row among which one is looked for to take its place


@dataclass(frozen=True, slots=True)
class Cut:
    """What a snapshot is to hold.

    stored: format version, number of the database, settings. headers: the first page of each slab. rows: how many rows
    of each slab are copied. stamp, numbers: see Changes. meta: a copy of the metadata, to be moved.
    """

    head: Head
    stored: dict[str, Any]
    headers: Mapping[str, bytes]
    rows: Mapping[str, int]
    stamp: Stamp
    numbers: UInt64s
    meta: Path
    generation: int

    def detach(self) -> Path:
        """The copy of the metadata, ready to be moved."""
        if self.generation != FIRST:
            RocksMetadata.as_first_generation(self.meta, Files())
        return self.meta

    @property
    def database(self) -> int:
        number: int = self.stored["database"]
        return number


def take_cut(store: Store) -> Cut:
    """The present state of a store. Called in the writer thread when everything is linked and on the disk."""
    assert isinstance(store.metadata, RocksMetadata)
    assert store.path is not None
    if store.changes is None:
        store.watch_changes()  # it could not be done when a compaction had ended
    assert store.changes is not None
    meta = store.path / META_COPY
    shutil.rmtree(meta, ignore_errors=True)
    store.metadata.link(meta)
    head = store.metadata.head
    rows = dict.fromkeys(store.slabs, head.rows)
    rows["keys.heap"] = min(int(store.heap.header[HEAP_END]), len(store.heap.array))
    if store.codes is not None:
        rows["codes.slab"] = _coded_rows(store, head)
    headers = {name: _first_header(slab) for name, slab in store.slabs.items()}
    stored = {**store.metadata.settings(), "generation": FIRST}
    return Cut(head, stored, headers, rows, *store.changes.tick(), meta, store.generation)


def _first_header(slab: Slab) -> bytes:
    """The first page of a slab, as that of a database that was never compacted: a snapshot is one folder."""
    fixed = replace(slab.spec, generation=FIRST).header.pack()
    return fixed + slab.header.tobytes()[len(fixed) :]


def _coded_rows(store: Store, head: Head) -> int:
    """Rows of codes.slab, which are those of the widest codes, that hold the codes of the rows."""
    assert store.codes is not None
    size = min(int(store.codes.header[CODED]), head.rows) * store.code_bytes
    return min(-(-size // store.codes.spec.columns), len(store.codes.array))


class Copier:
    """Copies the slabs of a store as of a cut. Used by one thread, beside the writer."""

    def __init__(self, store: Store, cut: Cut, files: Files, progress: Progress | None) -> None:
        self._store = store
        self._cut = cut
        self._files = files
        self._progress = progress or (lambda step, done, total: None)
        self._done = self._total = 0
        self.names = [name for name in SLABS if name in store.slabs]
        self.sizes = {name: PAGE + cut.rows[name] * self._row_bytes(name) for name in self.names}

    def _row_bytes(self, name: str) -> int:
        return self._store.slabs[name].spec.row_bytes

    def _tell(self, size: int) -> None:
        self._done += size
        self._progress("copying", self._done, self._total)

    def marker(self) -> bytes:
        """What tells a folder as a snapshot: see read_marker."""
        cut = self._cut
        return Marker(cut.database, cut.head, cut.stamp, self.sizes).pack()

    # --- a new snapshot -------------------------------------------------------------------------------------------

    def write(self, folder: Path) -> int:
        """Write all slabs to a new folder, with the metadata and the marker; returns how many bytes they have."""
        folder.mkdir()
        self._total = sum(self.sizes.values())
        for name in self.names:
            self._write_slab(name, folder / name)
        self._files.move_folder(self._cut.detach(), folder / "meta")
        keep_settings(folder, self._cut.stored, self._files)
        write_file(folder / MARKER, self.marker(), self._files)
        self._files.sync_folder(folder)
        return self._total

    def _write_slab(self, name: str, path: Path) -> None:
        descriptor = self._files.open(path, writable=True, create=True)
        try:
            if name in SHARED:
                self._share(name, descriptor, path)
            else:
                self._files.allocate(descriptor, self.sizes[name], path)
                for first, rows in self._rows(name, None):
                    offset = PAGE + first * self._row_bytes(name)
                    self._files.write(descriptor, rows.reshape(-1).view(np.uint8).data, offset, path)
                    self._tell(rows.nbytes)
            self._files.write(descriptor, memoryview(self._header(name)), 0, path)
            self._tell(PAGE)
            self._files.sync(descriptor, path)
        finally:
            self._files.close(descriptor)

    def _share(self, name: str, target: int, path: Path) -> None:
        """Copy rows that never change, by reference where the file system offers it."""
        slab = self._store.slabs[name]
        assert isinstance(slab, FileSlab)
        source = self._files.open(slab.path, writable=False)
        try:
            for start in range(PAGE, self.sizes[name], SHARED_BYTES):
                size = min(SHARED_BYTES, self.sizes[name] - start)
                self._files.copy(source, target, size, start, path)
                self._tell(size)
        finally:
            self._files.close(source)

    # --- an earlier snapshot --------------------------------------------------------------------------------------

    def write_changes(self, folder: Path, since: Stamp, update: Update) -> None:
        """Add to an update of the snapshot in `folder` what differs, looking only where something has changed."""
        assert self._store.changes is not None
        clock = since.clock if self._store.changes.knows(since) else None
        runs = {name: list(self._runs(name, clock)) for name in self.names}
        self._total = sum((stop - first) * self._row_bytes(name) for name in runs for first, stop in runs[name])
        for name in self.names:
            path = folder / name
            # There were no codes then, and the metadata of then say so: until it is renewed nobody opens the file.
            fresh = name == "codes.slab" and not path.exists()
            descriptor = self._files.open(path, writable=True, create=fresh)
            try:
                for first, rows in self._rows(name, runs[name]):
                    offset, data = PAGE + first * self._row_bytes(name), rows.reshape(-1).view(np.uint8).data
                    if self._files.read(descriptor, data.nbytes, offset, path) != data:
                        update.add(name, offset, data)
                    self._tell(data.nbytes)
                update.add(name, 0, memoryview(self._header(name)))
                # Room first: what has been decided must not fail for want of it.
                if self._files.size(descriptor) < self.sizes[name]:
                    self._files.allocate(descriptor, self.sizes[name], path)
            finally:
                self._files.close(descriptor)

    def _runs(self, name: str, clock: int | None) -> Iterator[tuple[int, int]]:
        """Ranges of rows, of about a MiB, that may have changed since a time; all if it is None."""
        rows, size = self._cut.rows[name], self._row_bytes(name)
        step = max(1, BLOCK_BYTES // size)
        if clock is None:
            yield from ((first, min(first + step, rows)) for first in range(0, rows, step))
            return
        for block in changed_since(self._cut.numbers, name, clock).tolist():
            first = max(0, (block * BLOCK_BYTES - PAGE) // size)
            stop = min(rows, -(-((block + 1) * BLOCK_BYTES - PAGE) // size))
            if first < stop:
                yield first, stop

    # --- rows as of the cut ---------------------------------------------------------------------------------------

    def _rows(self, name: str, runs: list[tuple[int, int]] | None) -> Iterator[tuple[int, AnyArray]]:
        """Copies of rows as of the cut, each with the first id."""
        for first, stop in self._runs(name, None) if runs is None else runs:
            rows = self._store.slabs[name].array[first:stop].copy()
            if name == "state.slab":
                rows = self._states_of_cut(first, rows)
            elif name == "edges.slab":
                self._as_of_cut(first, rows)
            yield first, rows

    def _states_of_cut(self, first: int, rows: UInt64s) -> UInt64s:
        """Take later births and deaths out of a copy of states. What is damaged stays so."""
        for _ in range(LOOKS):  # a row may have been copied while it was written
            again = self._store.state.array[first : first + len(rows)].copy()
            if np.array_equal(again, rows):
                break
            rows = again
        late = (commit_of(rows) > np.uint64(self._cut.head.commit)) & (rows != np.uint64(NEVER))
        at = np.flatnonzero(late.any(axis=1))
        ids, numbers = (first + at).astype(np.uint32), commit_of(rows[at])
        sound = (state_words(ids, numbers[:, 0], numbers[:, 1]) == rows[at]).all(axis=1)
        numbers[late[at]] = 0
        rows[at[sound]] = state_words(ids, numbers[:, 0], numbers[:, 1])[sound]
        return rows

    def _header(self, name: str) -> bytes:
        header = np.frombuffer(self._cut.headers[name], np.uint64).copy()
        if name == "codes.slab":
            now = self._store.slabs[name].header
            if any(now[word] != header[word] for word in (CHOSEN, CENTRE, BOOK)):
                header[CODED] = 0  # others have been written over them: they are made again from the vectors
        return header.tobytes()

    def _as_of_cut(self, first: int, rows: UInt32s) -> None:
        """Take later rows out of a copy of edges."""
        bound = self._cut.head.rows
        rows[:, LIFELINE] = self._followed(rows[:, LIFELINE].astype(np.int64), bound)
        neighbours = rows[:, FIRST_NEIGHBOUR:]
        degrees = np.minimum(rows[:, DEGREE], neighbours.shape[1])
        present = np.arange(neighbours.shape[1]) < degrees[:, None]
        late = present & (neighbours >= bound)
        at = np.flatnonzero(late.any(axis=1))
        if not len(at):
            return
        late, present, found = late[at], present[at], neighbours[at]
        found[late] = self._substitutes(found[late], bound)
        found[~present] = bound  # sorted to the end, as what has no substitute
        found[found == (first + at).astype(np.uint32)[:, None]] = bound
        found.sort(axis=1)
        found[:, 1:][found[:, 1:] == found[:, :-1]] = bound
        found.sort(axis=1)
        rows[at, DEGREE] = (found < bound).sum(axis=1)
        rows[at, FIRST_NEIGHBOUR:] = np.where(found < bound, found, 0)

    def _followed(self, lifelines: AnyArray, bound: int) -> AnyArray:
        """Lifelines along later rows, to the next row below `bound`. Whatever is inserted meanwhile, that stays so."""
        late = np.flatnonzero(lifelines > bound)
        for _ in range(len(self._store.edges.array) if len(late) else 0):
            edges = self._store.edges.array  # anew each time: it may have grown
            ids = lifelines[late] - 1
            lifelines[late] = np.where(ids < len(edges), edges[np.minimum(ids, len(edges) - 1), LIFELINE], 0)
            late = late[lifelines[late] > bound]
            if not len(late):
                break
        return lifelines

    def _substitutes(self, late: UInt32s, bound: int) -> UInt32s:
        """For each of some later rows, one of its own neighbours below `bound`; else `bound`."""
        edges = self._store.edges.array
        found: UInt32s = np.full(len(late), bound, np.uint32)
        ids = np.minimum(late, len(edges) - 1)
        for slot in reversed(range(SUBSTITUTES)):
            neighbour = edges[ids, FIRST_NEIGHBOUR + slot]
            known = (neighbour < bound) & (edges[ids, DEGREE] > slot)
            found[known] = neighbour[known]
        return found


@dataclass(frozen=True, slots=True)
class Marker:
    """What the file SNAPSHOT says: of which database this is a snapshot, as of when, and how long its slabs are."""

    database: int
    head: Head
    stamp: Stamp
    sizes: Mapping[str, int]

    def pack(self) -> bytes:
        """As JSON, with a checksum."""
        body = {
            "version": MARKER_VERSION, "database": self.database, "head": self.head._asdict(),
            "stamp": self.stamp._asdict(), "sizes": dict(self.sizes),
        }  # fmt: skip
        return json.dumps({**body, "crc": _crc(body)}, indent=1).encode() + b"\n"


def read_marker(path: Path, files: Files) -> Marker:
    """The marker of a snapshot.

    Raises:
        CorruptionError: if it cannot be read.
        NewerFormatError: if a newer CoreNN has written it.
    """
    descriptor = files.open(path, writable=False)
    try:
        raw = files.read(descriptor, files.size(descriptor), 0, path)
    finally:
        files.close(descriptor)
    try:
        body = json.loads(raw)
        crc = body.pop("crc")
        if crc != _crc(body) or type(body["version"]) is not int:
            raise ValueError
        if body["version"] > MARKER_VERSION:
            raise NewerFormatError(
                f"{path} has format version {body['version']}; this CoreNN reads up to {MARKER_VERSION}: upgrade it"
            )
        return Marker(body["database"], Head(**body["head"]), Stamp(**body["stamp"]), body["sizes"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptionError(f"{path} is damaged; remove the snapshot, or take one to another path") from error


def _crc(body: dict[str, object]) -> int:
    return zlib.crc32(json.dumps(body, sort_keys=True).encode())


def write_file(path: Path, content: bytes, files: Files) -> None:
    """Write a new file and bring it to the disk."""
    descriptor = files.open(path, writable=True, create=True)
    try:
        files.write(descriptor, memoryview(content), 0, path)
        files.sync(descriptor, path)
    finally:
        files.close(descriptor)
