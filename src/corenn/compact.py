"""compact(): the live rows, and nothing else, in files of their own.

They are copied under ids without gaps into a new generation, which is brought to the disk and then put into the place
of the old one by one rename. Until then the old files stay valid: whatever ends the copy before leaves them in use, and
what it has written of the new ones is removed.

The copy is a generator that yields every few milliseconds of work. Between two steps the writer serves other writes; a
last step, which does not yield, copies what these have changed: rows that have come are behind the others, rows that
have died are dead in the copy as well, and all edges are compared.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .errors import ClosedError, CoreNNError, DiskFullError
from .graph.bulk import Progress
from .graph.renumber import catch_up_graph, copy_edges, finish_graph
from .graph.threads import Helpers
from .storage.commit import CURVES, SOFT, Commit
from .storage.files import Files
from .storage.format import HEAP_END, NO_ID, PAGE, PUBLISHED
from .storage.generation import (
    METADATA,
    adopt_generation,
    discard_draft,
    draft_generation,
    folder_of,
    remove_generation,
)
from .storage.memory import MemoryMetadata
from .storage.renumber import Renumbering, copy_deaths, copy_keys, copy_rows, key_bytes
from .storage.rocks import RocksMetadata
from .storage.rocks_copy import copy_changes, copy_metadata, metadata_bytes
from .storage.slab import FileSlab, SlabSpec
from .storage.store import Former, Store
from .types import UInt32s
from .writer import Writer

log = logging.getLogger("corenn.compact")

SLACK = 1.1  # of the result: what is asked of the disk before anything is written

Stop = Callable[[], bool]
Step = tuple[str, int, int]  # its name, and how much of how much of it is done


class StoppedError(CoreNNError):
    """The copy was given up; nothing has changed."""


class Compaction:
    """One compaction of a database, in the thread of its writer."""

    def __init__(self, writer: Writer, helpers: Helpers, progress: Progress | None) -> None:
        """progress: called with each Step."""
        self._writer = writer
        self._helpers = helpers
        self._tell = progress or (lambda step, done, total: None)
        self._changed: set[int] = set()

    def note(self, commit: Commit) -> None:
        """Something else was committed meanwhile."""
        self._changed.update(row for row, _ in commit.changed)

    def steps(self, stop: Stop) -> Generator[None]:
        """Copy what is live, switch to the copy, and give back the space of the rest.

        stop: becomes true when nobody waits for it any more.

        Raises:
            DiskFullError: before anything is written, if the copy might not fit beside what is there.
            CorruptionError: at a row or key that is damaged, which repair() has to see to first.
            ClosedError, StorageError; nothing has changed then.
        """
        copy = self._copy(stop)
        try:
            for step in copy:
                self._tell(*step)
                if stop():
                    raise StoppedError("the caller does not wait any longer")
                yield
        except StoppedError:
            if self._writer.closing:
                raise ClosedError("the database was closed while it was compacted; compact it again") from None
            raise
        finally:
            copy.close()

    def _copy(self, stop: Stop) -> Generator[Step]:
        """Everything, up to the new view that queries see. Closed before its end, it leaves no trace."""
        writer, store = self._writer, self._writer.store
        began = time.perf_counter()
        yield from ((name, 0, 1) for name in writer.settle(stop))
        yield "mending", 1, 1
        writer.mender.paused += 1  # no id may go to another row meanwhile
        try:
            chosen = Renumbering.of(store.state.array, store.metadata.head)
            kind = _MemoryCopy if store.path is None else _DiskCopy
            copy = kind(writer, chosen, self._helpers, stop)
            try:
                yield from copy.fill()
                self._catch_up(copy, chosen, stop)
            except BaseException:
                copy.discard()
                raise
            before = store.metadata.head.rows
            copy.adopt()
            store.compacted_rows += before - store.metadata.head.rows
            store.compactions.add(time.perf_counter() - began)
        finally:
            writer.mender.paused -= 1
        log.info("compacted to %d rows, generation %d", store.metadata.head.live, store.generation)

    def _catch_up(self, copy: _Copy, chosen: Renumbering, stop: Stop) -> None:
        """Bring the copy up to what has been committed since the rows were chosen."""
        writer, store = self._writer, self._writer.store
        writer.link_waiting(stop)
        if stop():  # rows may wait that the copy would not link
            raise StoppedError("the caller does not wait any longer")
        now = chosen.extended(store.state.array, store.metadata.head)
        changed = np.array(sorted(row for row in self._changed if row < len(chosen.numbers)), np.uint32)
        alive = changed[(now.numbers[changed] != NO_ID) & (store.state.array[changed, 1] == 0)]
        copy.catch_up(now, len(chosen.kept), alive, unchanged=now.head == chosen.head)


class _Copy(ABC):
    """The new generation of a database, from its first row to the switch."""

    def __init__(self, writer: Writer, chosen: Renumbering, helpers: Helpers, stop: Stop) -> None:
        self._writer = writer
        self._source = writer.store
        self._chosen = chosen
        self._numbers = chosen.numbers
        self._helpers = helpers
        self._stop = stop

    def _adopt(self, target: Store, release: Callable[[Former], None]) -> None:
        """Have the writer go on with the copy, the index of payloads under the new ids included."""
        source, index = self._source, self._writer.payload_index
        source.payload_index = index.renumbered(target, self._numbers, NO_ID)
        self._writer.adopt(target, release)

    def _fill_slabs(self, target: Store) -> Iterator[Step]:
        """Copy all that is in slabs."""
        source, chosen = self._source, self._chosen
        for name, copied in (("rows", copy_rows), ("keys", copy_keys), ("edges", copy_edges)):
            yield from ((name, done, len(chosen.kept)) for done in copied(source, target, chosen))
        target.metadata.head = chosen.head
        finish_graph(source, target, chosen, self._helpers, self._stop)

    def _catch_up_slabs(self, target: Store, now: Renumbering, first: int) -> None:
        source = self._source
        for copied in (copy_rows, copy_keys):
            for _ in copied(source, target, now, first):
                pass
        copy_deaths(source, target, now)
        for _ in copy_edges(source, target, now):
            pass

    @abstractmethod
    def fill(self) -> Iterator[Step]:
        """Write what there was when the rows were chosen. The source may change meanwhile."""

    @abstractmethod
    def catch_up(self, now: Renumbering, first: int, changed: UInt32s, *, unchanged: bool) -> None:
        """Write what has changed since, and make it valid.

        first: the new id of the first row that has come since. changed: old ids of live rows with other payloads.
        """

    @abstractmethod
    def adopt(self) -> None:
        """Have the writer go on with it."""

    @abstractmethod
    def discard(self) -> None:
        """Remove what there is of it."""


class _MemoryCopy(_Copy):
    def __init__(self, writer: Writer, chosen: Renumbering, helpers: Helpers, stop: Stop) -> None:
        super().__init__(writer, chosen, helpers, stop)
        self._target = Store.in_memory(writer.store.settings)
        self._target.generation = writer.store.generation + 1

    def fill(self) -> Iterator[Step]:
        yield from self._fill_slabs(self._target)
        kept = self._chosen.kept
        for start, ids in self._chosen.blocks():
            self._take_over(ids, start)
            yield "payloads", start + len(ids), len(kept)

    def _take_over(self, ids: UInt32s, first: int) -> None:
        metadata, former = self._target.metadata, self._source.metadata
        assert isinstance(metadata, MemoryMetadata)
        assert isinstance(former, MemoryMetadata)
        metadata.copy_payloads(former, ids, np.arange(first, first + len(ids), dtype=np.uint32))
        metadata.index_keys(first, first + len(ids))

    def catch_up(self, now: Renumbering, first: int, changed: UInt32s, *, unchanged: bool) -> None:
        target, metadata, former = self._target, self._target.metadata, self._source.metadata
        assert isinstance(metadata, MemoryMetadata)
        assert isinstance(former, MemoryMetadata)
        self._numbers = now.numbers
        if not unchanged:
            self._catch_up_slabs(target, now, first)
            self._take_over(now.kept[first:], first)
            metadata.copy_payloads(former, changed, now.numbers[changed])
        metadata.head = now.head
        curves = former.soft(CURVES)
        if curves is not None:
            metadata.store_soft(CURVES, curves)
        catch_up_graph(self._source, target, now, self._helpers)

    def adopt(self) -> None:
        self._adopt(self._target, lambda former: former.close())

    def discard(self) -> None:
        self._target.close()


class _DiskCopy(_Copy):
    def __init__(self, writer: Writer, chosen: Renumbering, helpers: Helpers, stop: Stop) -> None:
        super().__init__(writer, chosen, helpers, stop)
        store = writer.store
        assert store.path is not None
        self._path, self._files = store.path, store.files
        self._number = store.generation + 1
        self._folder = folder_of(store.path, self._number)
        self._target: Store | None = None

    def fill(self) -> Iterator[Step]:
        store, chosen, kept = self._source, self._chosen, len(self._chosen.kept)
        heap, names = key_bytes(store, chosen)
        rows = _rows_of(store, chosen, heap)
        size = 0
        assert isinstance(store.metadata, RocksMetadata)
        for size in metadata_bytes(store.metadata, chosen, names):
            yield "measuring", size, size
        _require_room(self._path, size + sum(map(_file_bytes, rows.items())), self._files)
        self._files.remove_tree(self._folder)  # of an earlier try, which could not remove it
        self._files.make_folder(self._folder)
        target = self._target = _draft(store, self._folder, self._number, rows)
        store.beside.append(target)
        yield from self._fill_slabs(target)
        soft = {name: raw for name in SOFT if (raw := (store if name == CURVES else target).metadata.soft(name))}
        for done in copy_metadata(store, self._folder / METADATA, self._number, chosen, soft):
            yield "metadata", done, max(done, kept)
        target.metadata = RocksMetadata(self._folder / METADATA, self._files)
        yield from self._sync(target)

    def _sync(self, target: Store) -> Iterator[Step]:
        for done, slab in enumerate(target.slabs.values(), 1):
            slab.sync()
            yield "disk", done, len(target.slabs)

    def catch_up(self, now: Renumbering, first: int, changed: UInt32s, *, unchanged: bool) -> None:
        target = self._target
        assert target is not None
        self._numbers = now.numbers
        if not unchanged:
            target.heap.reserve(int(target.heap.header[HEAP_END]) + key_bytes(self._source, now, first)[0])
            for name, slab in target.slabs.items():
                if name not in ("keys.heap", "codes.slab"):
                    slab.reserve(len(now.kept))
            self._catch_up_slabs(target, now, first)
            assert isinstance(target.metadata, RocksMetadata)
            copy_changes(self._source, target.metadata, now, first, changed)
        catch_up_graph(self._source, target, now, self._helpers)
        target.state.write_header(PUBLISHED, now.head.commit)
        for slab in target.slabs.values():
            slab.sync()
        self._files.sync_folder(self._folder)
        draft_generation(self._path, self._number, self._files)
        self._files.sync_folder(self._path)  # the folder is to be there before its name
        adopt_generation(self._path, self._files)

    def adopt(self) -> None:
        target, number = self._target, self._source.generation
        assert target is not None
        try:
            self._files.sync_folder(self._path)
        except CoreNNError as error:
            self._take_back(target, number, error)
            raise
        self._source.beside.clear()
        self._adopt(target, partial(_give_back, self._path, number, self._files))

    def _take_back(self, target: Store, number: int, error: CoreNNError) -> None:
        """Name the old generation again: it is not known which of the two a loss of power would leave.

        If that fails as well, both stay as they are, and hold the same: nothing may be written, lest they part.
        """
        try:
            draft_generation(self._path, number, self._files)
            adopt_generation(self._path, self._files)
            self._files.sync_folder(self._path)
        except CoreNNError:
            self._source.fault = self._source.stuck = error
            Former(target.metadata, target.slabs).close()
        else:
            self.discard()

    def discard(self) -> None:
        """What cannot be removed now is when it is tried again."""
        self._source.beside.clear()
        if self._target is not None:
            with suppress(CoreNNError):
                Former(self._target.metadata, self._target.slabs).close()
        discard_draft(self._path, self._files)
        with suppress(CoreNNError):
            self._files.remove_tree(self._folder)


# --- files ------------------------------------------------------------------------------------------------------------


def _rows_of(store: Store, renumbering: Renumbering, heap: int) -> dict[SlabSpec, int]:
    """How many rows each slab of the new generation has."""
    rows = {}
    for name, slab in store.slabs.items():
        rows[slab.spec] = heap if name == "keys.heap" else len(renumbering.kept)
        if name == "codes.slab":
            rows[slab.spec] = -(-len(renumbering.kept) * store.code_bytes // slab.spec.columns)
    return rows


def _file_bytes(slab: tuple[SlabSpec, int]) -> int:
    spec, rows = slab
    return -(-rows * spec.row_bytes // PAGE) * PAGE + PAGE


def _require_room(path: Path, size: int, files: Files) -> None:
    """Refuse to begin what might not come to its end.

    Raises:
        DiskFullError: with what is needed and what there is.
    """
    needed, free = int(size * SLACK), files.free_bytes(path)
    if free < needed:
        raise DiskFullError(
            f"compacting {path} takes up to {needed:,} bytes beside what is there, and {free:,} are free; make room "
            f"for {needed - free:,} more, or delete rows, and compact again"
        )


def _draft(store: Store, folder: Path, number: int, rows: dict[SlabSpec, int]) -> Store:
    """A store over new files in a folder, with room for exactly what is to come. Its metadata is but a stand-in."""
    slabs: dict[str, Any] = {}
    try:
        for spec, count in rows.items():
            FileSlab.create(store.files, folder, replace(spec, generation=number))
            slab = slabs[spec.name] = FileSlab(
                store.files, folder / spec.name, replace(spec, generation=number), writable=True
            )
            slab.allocate(count)
    except BaseException:
        for slab in slabs.values():
            slab.close()
        raise
    metadata = MemoryMetadata(slabs["keys.slab"], slabs["keys.heap"], slabs["state.slab"], 1)
    target = Store(store.settings, slabs, metadata, path=store.path, writable=True)
    target.files, target.generation = store.files, number
    return target


def _give_back(path: Path, number: int, files: Files, former: Former) -> None:
    """Close the former files, and remove them: who has them mapped, here or in another process, keeps them so long."""
    try:
        former.close()
    except CoreNNError:
        log.warning("the files of generation %d could not be closed", number, exc_info=True)
    remove_generation(path, number, files)
