"""CoreNN: the public interface of one collection. It checks arguments and ties the layers together."""

from __future__ import annotations

import ctypes
import json
import os
import threading
import weakref
from collections.abc import Callable, Iterator, KeysView, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import repeat
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, NoReturn, overload

import numpy as np

from . import copies, inputs, repair
from .build import Load, encode_vectors, kept_bytes
from .compact import Compaction
from .config import MAX_K, MAX_ROWS, Settings
from .errors import (
    ClosedError,
    CoreNNError,
    CorruptionError,
    ForkedError,
    InvalidArgumentError,
    InvalidKeyError,
    InvalidPayloadError,
    InvalidSettingError,
    KeyNotFoundError,
    ReadOnlyError,
    StorageError,
)
from .filters import F, Filter, as_filter, as_filters, bm25
from .filters.cursor import Cursor
from .filters.expression import checked_path
from .filters.facets import count_values
from .filters.index import PayloadIndex, follow_reads
from .filters.select import Selected
from .filters.sets import as_ids
from .filters.terms import sought_in
from .graph import codebook, navigation
from .graph.bulk import Progress
from .graph.calibrate import SAMPLES, Calibrator, Choice
from .graph.cells import Partition
from .graph.codes import chosen_mode
from .graph.disk import Spiller
from .graph.fused import Words, fuse, rank
from .graph.grouped import Grouping, all_of, search_grouped
from .graph.insert import Linker
from .graph.mend import Mender
from .graph.meter import Meter
from .graph.query import DISTANCES, FOUND, HOPS, PAGES, Answers, Searcher, scans, scattered
from .graph.scratch import ScratchPool
from .graph.selection import Page, keys_within, sample_page, scroll_page, select_rows
from .graph.threads import Helpers
from .graph.view import View, failing, take_view
from .kernels.rows import NORM, decode_rows
from .storage.commit import CURVES, NO_IDS
from .storage.disk import SLOT_BYTES
from .storage.draft import folder_draft
from .storage.files import Files
from .storage.keys import KeyColumn, KeyTable, unpack_key, unpack_keys
from .storage.platform import require_supported, resident_bytes
from .storage.readers import Snapshots
from .storage.residence import Residence
from .storage.rocks import RocksMetadata
from .storage.state import broken_states, commit_of
from .storage.store import Store
from .types import (
    AnyArray,
    Copied,
    Explain,
    Facet,
    Float32s,
    HitBlock,
    Hits,
    HitsList,
    Key,
    Payload,
    Recall,
    Record,
    Report,
    Stats,
    UInt32s,
    UInt64s,
)
from .warmup import load, warm
from .writer import Job, Task, Write, Writer


class CoreNN:
    """A collection of vectors with keys and payloads, in one directory or in memory.

    Made by `create`, `open` or `in_memory`. Safe for any number of threads: writes go one after the other through the
    writer, queries never wait and see a snapshot. One process at a time writes; any number read with mode="r".
    """

    def __init__(self, store: Store, mode: str, threads: int | None = None) -> None:
        self._store = store
        self._mode = mode
        self._residence = Residence(store)
        store.look = self._residence.look
        self._helpers = Helpers(threads, self._residence.look, self._residence.grain)
        scratches = ScratchPool()
        self._searcher = Searcher(scratches, self._helpers)
        navigation.load(store)
        codebook.load(store)
        self._residence.check(kept_bytes(store))
        self._calibrator = Calibrator(self._searcher, self._helpers, store.metadata.soft(CURVES))
        self._snapshots = Snapshots(store.path, Files())
        follow_reads(store, self._snapshots)
        self._beside_queries = self._helpers.beside(self._snapshots.asked)
        linker = Linker(store, scratches, self._beside_queries)
        self._writer: Writer | None = None
        self._meter: Meter | None = None  # of a load that comes in
        if store.writable:
            mender = Mender(store, linker, self._beside_queries)
            self._writer = Writer(store, linker, mender, Spiller(store), self._calibrator, self._snapshots)
        self._reader_view: View | None = None if self._writer else self._read_view()
        self._refreshing = threading.RLock()  # a signal handler may close in the middle of a read
        self._upkeep = threading.Lock()  # what is copied must not be mended meanwhile
        self._budget: weakref.WeakMethod[Callable[[], None]] | None = None  # of the root that it shares memory with
        self._state = _State(os.getpid())
        if self._reader_view is not None:
            self._tell()  # until now the registration has kept everything
        kept = (scratches, self._searcher.partition)
        closing = (self._state, self._writer, store, self._helpers, self._refreshing, self._residence, kept)
        self._finalizer = weakref.finalize(self, _close, *closing)
        _OPEN.add(self)
        if store.recovered.suspect and self._writer is not None:
            self._writer.schedule(Task(lambda: repair.mend_graph(self._needs_writer())))

    # --- making and opening ---------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], *, dim: int, metric: str = "cosine", dtype: str = "f32",
        durability: str = "os", **settings: Any,
    ) -> CoreNN:  # fmt: skip
        """Create a database on disk and open it for writing. See docs/tuning.md for the settings.

        Raises:
            DatabaseExistsError: if there is something at `path`.
            InvalidSettingError: for an unknown setting or a value out of bounds.
            ForkedError: in a forked child of a process that has used a database on disk.
        """
        require_supported()
        chosen = _settings(dim=dim, metric=metric, dtype=dtype, durability=durability, **settings)
        warm(chosen)
        folder, files = as_path(path), Files()
        Store.create(folder, chosen, files)
        try:
            return cls._over(Store.open(folder, "rw", files))
        except InvalidSettingError:  # a limit in which no database is to be held
            files.remove_tree(folder)
            raise

    @classmethod
    def open(cls, path: str | os.PathLike[str], mode: Literal["rw", "r", "rescue"] = "rw", **overrides: Any) -> CoreNN:
        """Open a database on disk.

        mode: "rw" for the one writer; "r" to read, beside a writer or not; "rescue" to write although files are
        truncated or damaged, for `repair()`. overrides: settings that may change, for this handle only.

        Raises:
            NotADatabaseError, FormatError, LockedError, CorruptionError, InvalidSettingError
            ForkedError: for writing, in a forked child of a process that has used a database on disk.
        """
        require_supported()
        if mode not in ("rw", "r", "rescue"):
            raise InvalidArgumentError(f"mode={mode!r}: choose 'rw', 'r' or 'rescue'")
        store = Store.open(as_path(path), mode, Files())
        try:
            store.change_settings(overrides)
            if store.writable:
                store.add_codes()
            warm(store.settings)
            return cls(store, mode)
        except BaseException:
            store.close()
            raise

    @classmethod
    def in_memory(
        cls, *, dim: int, metric: str = "cosine", dtype: str = "f32", durability: str = "os", **settings: Any
    ) -> CoreNN:
        """A database that lives in this process's memory and ends with it.

        Raises:
            InvalidSettingError: for an unknown setting or a value out of bounds.
        """
        require_supported()
        chosen = _settings(dim=dim, metric=metric, dtype=dtype, durability=durability, **settings)
        warm(chosen)
        load(chosen)
        return cls(Store.in_memory(chosen), "rw")

    @classmethod
    def build(
        cls, path: str | os.PathLike[str] | None, keys: Sequence[Key], vectors: Any,
        payloads: Sequence[Payload | None] | None = None, *, dim: int, metric: str = "cosine", dtype: str = "f32",
        durability: str = "os", progress: Progress | None = None, **settings: Any,
    ) -> CoreNN:  # fmt: skip
        """A new database that holds these rows, built several times as fast as by `insert`, and opened for writing.

        It appears at `path` whole or, after an error, Ctrl-C or the death of the process, not at all. What was linked
        in parts by then is kept in a hidden folder beside it, and the same call goes on there. It is the same with any
        number of threads, and cut off or not, and takes inserts and deletes from then on.

        path: where nothing is yet; None for a database in memory. keys: a list, a range or an array. vectors: real
        numbers of shape (n, dim), in anything that gives its rows by slices: a mapped file may be larger than the
        memory. payloads: n dicts or None. progress: called with a `Step`, which says what is taken of the disk and the
        time that is left, and how much of how much of it is done, by one thread at a time. Beside the database,
        building takes about 700 bytes per row (1,300 under `ip`), the larger part from a temporary file where that is
        more than a quarter of the memory; within `memory_limit`, rows are linked in parts that fit, which takes twice
        as long, and up to 400 bytes of temporary file per row with the default of `max_edges`.

        Raises:
            DatabaseExistsError: if there is something at `path`.
            DiskFullError: before anything is written, if the disk has not the room that this may take.
            DuplicateKeyError, InvalidKeyError, DimensionError, InvalidVectorError, UnsupportedDtypeError,
            InvalidPayloadError, InvalidSettingError: nothing is left behind.
        """
        require_supported()
        chosen = _settings(dim=dim, metric=metric, dtype=dtype, durability=durability, **settings)
        load = Load(keys, vectors, payloads, chosen.dim)
        warm(chosen)
        if path is None:
            store = Store.in_memory(chosen)
            load.run(store, progress)
            return cls(store, "rw")
        folder, files = as_path(path), Files()
        with folder_draft(folder, files, lambda: load.kept) as draft:
            try:
                load.make(draft, chosen, files, progress)
            except BaseException as error:
                if load.kept:
                    error.add_note(
                        f"what is linked so far is kept in {draft.parent}; the same call goes on there. Remove that "
                        "folder to give it up"
                    )
                raise
        return cls._over(Store.open(folder, "rw", files))

    @classmethod
    def _over(cls, store: Store) -> CoreNN:
        """A handle for writing, or else the store is closed."""
        try:
            return cls(store, "rw")
        except BaseException:
            store.close()
            raise

    def close(self) -> None:
        """Finish what is in work, bring everything to the disk and release the files. A second call does nothing."""
        self._finalizer()

    @property
    def closed(self) -> bool:
        """Whether the handle has been closed."""
        return self._state.closed

    def __enter__(self) -> CoreNN:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise InvalidArgumentError("a database can be neither pickled nor copied: pass its path, and open it there")

    # --- writing ---------------------------------------------------------------------------------------------------

    def insert(
        self, keys: Sequence[Key], vectors: Any, payloads: Sequence[Payload | None] | None = None, *,
        scales: Any = None, zero_points: Any = None,
    ) -> None:  # fmt: skip
        """Insert new rows, all or none. Returns when they are durable and found by queries.

        keys: n str or int. vectors: real numbers of shape (n, dim); for an i8 database also int8 codes with `scales`
        and `zero_points` of shape (n,), which stand for scale * (code - zero_point). payloads: n dicts or None.

        Raises:
            DuplicateKeyError: if a key exists or is given twice.
            InvalidKeyError, DimensionError, InvalidVectorError, UnsupportedDtypeError, InvalidPayloadError
            ReadOnlyError, ClosedError, DiskFullError, StorageError
        """
        self._write_rows("insert", keys, vectors, payloads, scales, zero_points)

    @contextmanager
    def loading(self, progress: Progress | None = None, *, rows: int | None = None) -> Iterator[None]:
        """While a first load comes in many inserts, let its rows wait, and link all of them in bulk at the end.

        Each insert is committed and found by queries, which scan what waits, when its call returns. With rows that are
        linked already there is nothing to gain, and they are linked as they come. Cut off at the end, by Ctrl-C,
        `close` or a kill, linking goes on in the background, here or when the database is next opened; within
        `memory_limit`, with the part at which it was. progress: see `build`. rows: how many are to come, if that is
        known: what they take is told from the first on.

        Raises:
            DiskFullError: before anything, if the disk has no room for `rows`; at the end, if it has none for what
            linking takes on the way: the rows are there, and wait for it.
        """
        writer = self._needs_writer()
        expected = None if rows is None else inputs.as_count(rows, "rows", MAX_ROWS)
        meter = self._meter = writer.submit(Task(lambda: writer.start_loading(progress, expected)))
        try:
            yield
        except BaseException:
            writer.schedule(Task(lambda: writer.finish_loading(None, lambda: True)))
            raise
        finally:
            self._meter = None
        finish = Task(lambda: writer.finish_loading(meter, lambda: finish.interrupted))
        writer.submit(finish)

    def upsert(
        self, keys: Sequence[Key], vectors: Any, payloads: Sequence[Payload | None] | None = None, *,
        scales: Any = None, zero_points: Any = None,
    ) -> None:  # fmt: skip
        """Insert rows or replace those whose keys exist, payload included, all or none. See `insert`."""
        self._write_rows("upsert", keys, vectors, payloads, scales, zero_points)

    def set_payload(self, keys: Sequence[Key], payloads: Sequence[Payload | None]) -> None:
        """Replace the payloads of existing rows, all or none; None removes one.

        Raises:
            KeyNotFoundError: if a key does not exist.
        """
        writer = self._needs_writer()
        checked = inputs.as_unique_keys(keys)
        if payloads is None:
            raise InvalidPayloadError("payloads=None: pass a list with one dict or None per key")
        texts = inputs.as_payloads(payloads, len(checked))
        if checked:
            writer.submit(Write("payload", checked, None, texts))

    def delete(self, keys: Sequence[Key] | None = None, *, filter: Any = None) -> int:
        """Delete rows by key, those that a filter selects, or those of the keys that it selects, all or none.

        Keys that do not exist are ignored. filter: see docs/filters.md. Returns how many rows were deleted.

        Raises:
            InvalidKeyError: also if neither is given.
            InvalidFilterError: with the path to the fault.
        """
        writer = self._needs_writer()
        if keys is None and filter is None:
            raise InvalidKeyError("delete takes a list of keys, a filter, or both; for all rows pass filter={}")
        checked = None if keys is None else list(dict.fromkeys(inputs.as_keys(keys)))
        if filter is None or checked == []:
            return int(writer.submit(Write("delete", checked))) if checked else 0
        tree = as_filter(filter)
        if checked is not None:
            tree = F.keys(checked) & tree
        return int(writer.submit(Write("delete", (), where=lambda view: keys_within(view, tree))))

    def _write_rows(
        self, kind: str, keys: Sequence[Key], vectors: Any, payloads: Any, scales: Any, zero_points: Any
    ) -> None:
        writer = self._needs_writer()
        checked = inputs.as_unique_keys(keys)
        encoded = encode_vectors(self._store.settings, vectors, len(checked), scales, zero_points)
        texts = inputs.as_payloads(payloads, len(checked))
        if checked:
            writer.submit(Write(kind, checked, encoded, texts))
            if (meter := self._meter) is not None:
                meter.note(len(checked))

    # --- reading ---------------------------------------------------------------------------------------------------

    def get(self, keys: Sequence[Key]) -> list[Record | None]:
        """The rows of keys, in their order; None for a key that does not exist.

        Raises:
            CorruptionError: if a stored vector fails its checksum: a wrong vector is never returned.
        """
        self._check_open()
        checked = inputs.as_keys(keys)
        while True:
            with self._view(with_metadata=True) as view:
                view, ids = self._find(view, checked)
                found = np.array([row for row in ids if row >= 0], np.uint32)
                vectors = self._vectors(view, found)
                payloads = view.metadata.payloads(found.tolist(), view.head.commit)
            if not self._overtaken(view):
                break
        rows = iter(zip(vectors, payloads, strict=True))
        records: list[Record | None] = []
        for key, row in zip(checked, ids, strict=True):
            records.append(None if row < 0 else _record(key, *next(rows)))
        return records

    def _find(self, view: View, keys: Sequence[Key]) -> tuple[View, list[int]]:
        """The ids of keys, -1 for none, and the view that they are of.

        The metadata knows the last two rows of a key: one replaced twice since the view was taken is looked up in a
        newer view.
        """
        while True:
            ids = view.metadata.lookup(keys, view.lookup_view._replace(wary=True))
            newest = self._current()
            if min(ids, default=0) >= 0 or newest.head.commit == view.head.commit:
                return view, ids
            view = newest

    @staticmethod
    def _vectors(view: View, ids: UInt32s) -> AnyArray:
        """Stored vectors as float32 as they were inserted, their checksums tested."""
        bad = failing(view, ids)
        if len(bad):
            key = unpack_key(view.keys[bad[0]], view.heap)
            raise CorruptionError(f"the vector of key {key!r} fails its checksum; run repair() and insert it again")
        bad = broken_states(view.live.state, ids)
        if len(bad):
            key = unpack_key(view.keys[bad[0]], view.heap)
            raise CorruptionError(f"births and deaths in state.slab are damaged for key {key!r}; run repair()")
        vectors = np.empty((len(ids), view.settings.dim), np.float32)
        decode_rows(view.rows, ids, vectors)
        if view.settings.metric == "cosine":
            vectors *= view.rows.seals[ids, NORM][:, None]
        return vectors

    def __len__(self) -> int:
        self._check_open()
        return self._current().head.live

    def __contains__(self, key: object) -> bool:
        self._check_open()
        with self._view(with_metadata=True) as view:
            return self._find(view, [inputs.check_key(key)])[1][0] >= 0

    def keys(self) -> KeysView[Key]:
        """The keys of all rows, in the order of insertion, as of this call. Iterating makes one object at a time.

        While what is returned lives, ids of rows deleted since are not used again.
        """
        self._check_open()
        return _Keys(self)

    def __iter__(self) -> Iterator[Key]:
        return iter(self.keys())

    def count(self, filter: Any = None) -> int:
        """How many rows there are, or how many a filter selects: see docs/filters.md.

        Raises:
            InvalidFilterError
        """
        self._check_open()
        if filter is None:
            return len(self)
        tree, again = as_filter(filter), iter(range(PAYLOAD_TRIES))
        while True:
            with self._view(with_metadata=True) as view:
                selected = self._selected(view, tree).settled
                if self._overwritten(view, selected.looked, again):
                    continue
            if not self._overtaken(view):
                return selected.count

    def facets(self, field: str, filter: Any = None) -> list[Facet]:
        """The values of a field, and how many rows have each: of all rows, or of those that a filter selects.

        The most frequent first, then null, false, true, numbers and texts, ascending. A row whose field is a list
        counts for each of its elements, once; null counts rows that hold it, not those without the field.

        Raises:
            InvalidFilterError: also for a field that no payload could have.
        """
        self._check_open()
        path, tree = checked_path(field, ""), None if filter is None else as_filter(filter)
        again = iter(range(PAYLOAD_TRIES))
        while True:
            with self._view(with_metadata=True) as view:
                selected = all_of(view) if tree is None else self._selected(view, tree).settled
                index, rows = self._index(view), view.live.rows
                found = count_values(index, path, selected.members, view.head.commit, rows, view.metadata)
                if self._overwritten(view, selected.ids, again):
                    continue
            if not self._overtaken(view):
                return found

    def scroll(
        self, filter: Any = None, limit: int = 100, cursor: str | None = None
    ) -> tuple[list[Record], str | None]:
        """The next rows in the order of insertion, of all or of those that a filter selects, and a cursor for the rest.

        limit: rows, at most. cursor: what the call before has returned, None to begin; None comes back at the end. Each
        page is as of its call. A row that is there, and selected, all the time is given exactly once, whatever is
        written meanwhile, also by compact(). One that is replaced is deleted and comes anew, behind all others.

        Raises:
            InvalidFilterError, InvalidArgumentError, CorruptionError: as `get`.
        """
        self._check_open()
        limit, after = inputs.as_count(limit, "limit", MAX_K), None if cursor is None else Cursor.unpack(cursor)
        return self._records(filter, lambda view, ids: scroll_page(view, self._store.generation, ids, limit, after))

    def sample(self, size: int = 1000, filter: Any = None) -> list[Record]:
        """Rows at random, of all or of those that a filter selects: `size` of them, or all if there are no more.

        In the order of insertion; each row is as likely as any other. The same rows as long as nothing is written.

        Raises:
            InvalidFilterError, InvalidArgumentError, CorruptionError: as `get`.
        """
        self._check_open()
        size = inputs.as_count(size, "size", MAX_K)
        return self._records(filter, lambda view, ids: sample_page(view, ids, size))[0]

    def _records(self, filter: Any, choose: Callable[[View, UInt32s], Page]) -> tuple[list[Record], str | None]:
        """Some rows of all, or of those that a filter selects, and where to go on. choose: those of ascending ids that
        are wanted; called again if they change meanwhile.
        """
        tree, again = None if filter is None else as_filter(filter), iter(range(PAYLOAD_TRIES))
        while True:
            with self._view(with_metadata=True) as view:
                within = None if tree is None else self._selected(view, tree).settled
                page = choose(view, np.flatnonzero(view.alive()).astype(np.uint32) if within is None else within.ids)
                vectors = self._vectors(view, page.ids)
                payloads = view.metadata.payloads(page.ids.tolist(), view.head.commit)
                looked = NO_IDS if within is None else within.looked
                if self._overwritten(view, np.concatenate((looked, page.ids)), again):
                    continue
            if not self._overtaken(view):
                break
        return [_record(*each) for each in zip(page.keys, vectors, payloads, strict=True)], page.cursor

    def _selected(self, view: View, tree: Filter) -> Selected:
        """The rows of a view that a filter selects; it may be left open whether some do."""
        self._index(view)
        return select_rows(view, tree)

    def _within(self, view: View, tree: Filter) -> View | None:
        """A view of what a filter selects. In a reader the metadata are held for no longer than that takes, and not
        while the search goes on; None if it has refreshed since the view was taken.
        """
        if self._writer is not None:
            return view.filtered(self._selected(view, tree))
        with self._refreshing:
            self._check_open()
            return view.filtered(self._selected(view, tree)) if view is self._current() else None

    def _index(self, view: View) -> PayloadIndex:
        """The index of the payloads. A reader brings it up to date first, as nobody else does: with its lock held."""
        assert view.payload_index is not None
        if self._writer is None:
            view.payload_index.follow()
        return view.payload_index

    @overload
    def query(
        self, vectors: Any = None, k: int = 10, *, key: Key, text: str | None = None, min_recall: float | None = None,
        search_list: int | None = None, exact: bool = False, max_distance: float | None = None, filter: Any = None,
        group_by: str | None = None, per_group: int | None = None, fusion: str = "rrf", plan: str | None = None,
        with_payloads: bool = False, explain: bool = False, threads: int | None = None,
    ) -> Hits: ...  # fmt: skip
    @overload
    def query(
        self, vectors: Any = None, k: int = 10, *, key: None = None, text: str | list[str] | None = None,
        min_recall: float | None = None, search_list: int | None = None, exact: bool = False,
        max_distance: float | None = None, filter: Any = None, group_by: str | None = None,
        per_group: int | None = None, fusion: str = "rrf", plan: str | None = None, with_payloads: bool = False,
        explain: bool = False, threads: int | None = None,
    ) -> Any: ...  # fmt: skip
    def query(
        self, vectors: Any = None, k: int = 10, *, key: Key | None = None, text: str | list[str] | None = None,
        min_recall: float | None = None, search_list: int | None = None, exact: bool = False,
        max_distance: float | None = None, filter: Any = None, group_by: str | None = None,
        per_group: int | None = None, fusion: str = "rrf", plan: str | None = None, with_payloads: bool = False,
        explain: bool = False, threads: int | None = None,
    ) -> Any:  # fmt: skip
        """The k nearest rows: one of shape (dim,) gives Hits, several of shape (n, dim) a HitsList in their order.

        key: search with the stored vector of this key instead; the row itself is among the hits. min_recall: the share
        of the true k nearest that queries like the stored rows are to find, above 0 and at most 1; the list follows
        from a measured curve, which the first such query makes if there is none, in less than two seconds.
        search_list: candidates kept by the walk, at least k; more is slower and finds more. exact: scan all rows.
        max_distance: leave out what is farther. filter: only rows whose payloads meet it, by `F`, a dict, or a function
        of numeric fields such as lambda year: year > 2020: see docs/filters.md; always
        min(k, matches) hits. A list of filters has one for each query, None for those that take every row. group_by: a
        field of which no more than per_group hits, 1 if that is not given, have the same value. plan: "exact", "scan",
        "cells", "graph" or "two-hop" instead of the cheapest. text: words to rank rows by, BM25 in `text_fields`; a
        list has one text for each query. Without a vector by these alone, and with one by both, joined as fusion says:
        "rrf" or "weighted". Then `distance` is minus the score. See docs/text.md.
        with_payloads, explain: fill `payload` and `explain` of the hits.
        threads: at most so many, all CPUs if None. Hits are min(k, rows) in number unless max_distance cuts them.

        Raises:
            DimensionError, UnsupportedDtypeError, InvalidVectorError, InvalidArgumentError
            InvalidFilterError: with the path to the fault.
            KeyNotFoundError: if `key` does not exist.
        """
        self._state.check()
        trees, by = None if filter is None else as_filters(filter), _grouping(group_by, per_group)
        texts = None if text is None else inputs.as_texts(text)
        aimed = vectors is not None or key is not None
        if texts is not None:
            inputs.refuse("does not go with text=, by which hits have scores", max_distance=max_distance, group_by=by)
            if not aimed:
                asked = {"search_list": search_list, "min_recall": min_recall, "exact": exact, "plan": plan}
                inputs.refuse("says how to search by a vector, and there is only text=", **asked)
        inputs.check_fusion(fusion, texts=texts is not None, vectors=aimed)
        if plan is not None:
            inputs.check_plan(plan, filtered=trees is not None, exact=exact)
        k = inputs.as_count(k, "k", MAX_K)
        choice: Choice | None = None
        if search_list is not None or min_recall is not None or exact:
            choice, min_recall = self._asked(k, search_list, min_recall, exact)
        bound = inputs.as_bound(max_distance)
        workers = self._helpers.threads if threads is None else inputs.as_count(threads, "threads")
        if (vectors is None) == (key is None) and (aimed or texts is None):
            raise InvalidArgumentError("query takes vectors, key= or text=: one of the first two, or none with a text")
        again = iter(range(PAYLOAD_TRIES))
        while True:
            self._snapshots.note_query()
            looking = with_payloads or key is not None or by is not None or isinstance(trees, list) or texts is not None
            with self._view(with_metadata=looking or (trees is not None and self._writer is not None)) as view:
                if aimed:
                    view, queries, single = self._aim(view, vectors, key)
                else:
                    queries, single = _no_vectors(texts)
                words = None
                if texts is not None:
                    words = self._words(view, texts, k, fusion if aimed else None, len(queries), single=single)
                    if words is None:
                        continue  # a query in a newer view has come first
                depth = k if words is None else words.depth
                chosen = choice or (self._chosen(view, depth, min_recall, workers) if aimed else BY_TEXT)
                ask = _Asked(depth, chosen, plan, workers, by, words)
                if trees is not None:
                    inputs.check_filters(trees, len(queries), single=single)
                looked = NO_IDS  # whose payloads were
                if isinstance(trees, list):
                    answers, told = self._answer_each(view, queries, trees, ask)
                else:
                    within = view if trees is None else self._within(view, trees)
                    if within is None:
                        continue
                    answers = self._answer(within, queries, ask)
                    told = self._explained(within, answers, ask) if explain else []
                    looked = looked if within.within is None else within.within.looked
                hits = self._hits(view, answers, bound, with_payloads, told if explain else None, single)
                if with_payloads:
                    looked = np.concatenate((looked, answers.ids.reshape(-1)))
                if self._overwritten(view, looked, again):
                    continue
            if not self._overtaken(view):
                return hits

    def _words(
        self, view: View, texts: str | list[str], k: int, fusion: str | None, queries: int, *, single: bool
    ) -> Words | None:
        """What each query asks for by its text, in the index as of the view; None if that has gone on since."""
        inputs.check_texts(texts, queries, single=single)
        searches = self._index(view).texts.as_of(*view.snapshot)
        if searches is None:
            return None
        each = [texts] * queries if isinstance(texts, str) else texts
        return Words(searches, tuple(map(sought_in, each)), fusion, k)

    def _answer(self, view: View, queries: Float32s, ask: _Asked) -> Answers:
        """The answers in one view, which may be of the rows that a filter selects."""
        if ask.by is not None:
            view = view if view.within is None else view.filtered(view.within.settled)
            return search_grouped(partial(self._search, ask), view, queries, ask.k, ask.by)
        if ask.words is None:
            return self._search(ask, view, queries, ask.k)
        told = rank(view if view.within is None else view.filtered(view.within.settled), ask.words)
        return told if ask.words.fusion is None else fuse(self._search(ask, view, queries, ask.k), told, ask.words)

    def _search(self, ask: _Asked, view: View, queries: Float32s, k: int) -> Answers:
        choice = ask.choice
        return self._searcher.query(
            view, queries, k, choice.search_list, exact=choice.exact, threads=ask.threads, way=ask.plan
        )  # fmt: skip

    def _answer_each(
        self, view: View, queries: Float32s, trees: list[Filter | None], ask: _Asked
    ) -> tuple[Answers, list[Explain]]:
        """The answers to queries with a filter each; those with the same one together."""
        groups: dict[str, list[int]] = {}
        for place, tree in enumerate(trees):
            groups.setdefault(repr(tree), []).append(place)
        parts, explains = list[tuple[AnyArray, Answers]](), list[Any]([None]) * len(trees)
        for places in groups.values():
            tree = trees[places[0]]
            within = view if tree is None else view.filtered(self._selected(view, tree))
            asked = ask.of(places)
            answers = self._answer(within, np.ascontiguousarray(queries[places]), asked)
            parts.append((np.array(places, np.int64), answers))
            for place, told in zip(places, self._explained(within, answers, asked), strict=True):
                explains[place] = told
        return scattered(parts, len(trees)), explains

    @staticmethod
    def _asked(
        k: int, search_list: int | None, min_recall: float | None, exact: bool = False
    ) -> tuple[Choice | None, float | None]:
        """The list that a call names, or the recall that it names; neither if it leaves both open."""
        inputs.check_one_of(search_list, min_recall, exact)
        if min_recall is not None:
            return None, inputs.as_recall(min_recall)
        wanted = k if search_list is None else inputs.as_search_list(search_list, k)
        if exact:
            return Choice(wanted, True, "exact"), None
        return (None if search_list is None else Choice(wanted, False, "search_list")), None

    def _chosen(self, view: View, k: int, min_recall: float | None, threads: int) -> Choice:
        """The list of a query that names none."""
        if min_recall is None:
            return self._calibrator.usual(view, k)
        before = self._calibrator.curves
        choice = self._calibrator.reaching(view, k, min_recall, threads)
        if self._calibrator.curves is not before and self._writer is not None:
            self._writer.schedule(Task(self._writer.keep_curves))
        return choice

    def _aim(self, view: View, vectors: Any, key: Key | None) -> tuple[View, AnyArray, bool]:
        if key is None:
            return (view, *inputs.as_queries(vectors, view.settings.dim))
        view, ids = self._find(view, [inputs.check_key(key)])
        if ids[0] < 0:
            raise KeyNotFoundError(f"key {key!r} does not exist; query with a vector, or insert it")
        return view, self._vectors(view, np.array(ids, np.uint32)), True

    def _hits(
        self,
        view: View,
        answers: Answers,
        bound: float | None,
        payloads: bool,
        explains: list[Explain] | None,
        single: bool,
    ) -> Hits | HitsList:
        words, block = self._found(view, answers, bound)
        if payloads:
            counts = [answers.ids.shape[1]] * len(answers.ids) if block.counts is None else block.counts
            block.payloads = [
                view.metadata.payloads(ids[:count].tolist(), view.head.commit)
                for ids, count in zip(answers.ids, counts, strict=True)
            ]
        block.explains = explains
        if single:
            return Hits(block, 0)
        each = map(Hits, repeat(block), range(len(words)))
        return HitsList(each, block.distances, partial(unpack_keys, words, view.heap))

    def _explained(self, view: View, answers: Answers, ask: _Asked) -> list[Explain]:
        expected: tuple[float | None, float | None] = (1.0, 1.0)
        if answers.plan in ("scan", "cells", "two-hop"):
            expected = (None, None)
        elif answers.plan == "graph":
            expected = self._calibrator.expected(view, ask.k, answers.search_list) or (None, None)
        told = [
            Explain(
                answers.plan,
                answers.search_list,
                spent[DISTANCES],
                spent[HOPS],
                view.expected,
                *expected,
                ask.choice.chosen_by,
                spent[PAGES],
                answers.estimated,
            )
            for spent in answers.info.tolist()
        ]
        return told if ask.words is None else [*map(ask.words.explained, told, ask.words.sought)]

    @staticmethod
    def _found(view: View, answers: Answers, bound: float | None) -> tuple[UInt64s, HitBlock]:
        """The words of the keys of all hits, and the hits."""
        width = answers.ids.shape[1]
        if bound is None and answers.fewest == width:
            words: UInt64s = view.keys.take(answers.ids, 0)
            return words, HitBlock(KeyTable(words, view.heap), answers.distances)
        there = np.arange(width) < answers.info[:, FOUND, None]  # what lies behind is not filled
        if bound is not None:
            there &= answers.distances <= np.float64(bound)
        words = np.zeros((*answers.ids.shape, 2), np.uint64)  # KIND_NONE
        words[there] = view.keys[answers.ids[there]]
        distances = np.where(there, answers.distances, np.float32(np.inf))
        counts = there.sum(axis=1).tolist()
        return words, HitBlock(KeyTable(words, view.heap, counts), distances, counts)

    # --- upkeep ----------------------------------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self._store.settings

    def configure(self, **changes: Any) -> None:
        """Change settings that may change after creation, and store them.

        A collection of a root with a memory_limit has no more than its share of that, whatever its own is: this is
        divided anew before the call returns.

        Raises:
            InvalidSettingError: for an unknown name, a value out of bounds, a setting fixed at creation, or a
            memory_limit within which it could not be opened again.
        """
        writer = self._needs_writer()
        changed = self._store.settings.changed(changes)
        _require_extras(changed)
        if "memory_limit" in changes:
            self._residence.check(kept_bytes(self._store), changed.memory_limit)
        share = None if self._budget is None or "memory_limit" not in changes else self._budget()
        writer.submit(Task(lambda: writer.configure(changes, shared=share is not None)))
        if share is not None:
            share()
        self._residence.renew()

    def stats(self) -> Stats:
        """Counts, settings and sizes as of now."""
        self._check_open()
        with self._view(with_metadata=True) as view:
            return self._stats(view)

    def _stats(self, view: View) -> Stats:
        rows = view.head.rows
        row_bytes = {name: slab.spec.row_bytes for name, slab in self._store.slabs.items()}
        memory = {name.split(".")[0]: rows * size for name, size in row_bytes.items() if name != "keys.heap"}
        if "codes" in memory:  # the file has room for the largest that may be chosen
            memory["codes"] = 0 if view.codes is None else rows * view.codes.vectors.shape[1]
        reclaimable = sum(memory.values()) * (rows - view.head.live) // max(rows, 1)
        memory["key_bytes"] = self._store.heap_bytes()
        memory["navigation"] = view.graph.navigation.ids.nbytes + view.graph.navigation.edges.nbytes
        memory["cells"] = self._searcher.partition.memory_bytes()
        memory["disk_rows"] = sum(part.nbytes for part in self._store.hot)
        memory["disk_slots"] = 0 if self._store.disk is None else SLOT_BYTES * rows
        memory["metadata"] = view.metadata.memory_bytes()
        memory["payload_index"] = 0 if view.payload_index is None else view.payload_index.size
        readers = self._snapshots.others(self._store.registration)
        return Stats(
            path=None if self._store.path is None else str(self._store.path),
            mode=self._mode,
            dim=self.settings.dim,
            metric=self.settings.metric,
            dtype=self.settings.dtype,
            durability=self.settings.durability,
            rows=view.head.live,
            tombstones=view.head.dead,
            free=rows - view.head.live - view.head.dead,
            pending=len(view.pending),
            commit=view.head.commit,
            generation=self._store.generation,
            readers=len(readers),
            oldest_reader=min(readers, key=lambda reader: reader.snapshot).pid if readers else None,
            reclaimable_bytes=reclaimable,
            repair_backlog=view.head.dead if self._writer is None else self._writer.mender.backlog,
            compression_mode="none" if view.codes is None else chosen_mode(self._store),
            disk_backlog=0 if self._writer is None else self._writer.spiller.backlog,
            codes_backlog=0 if self._writer is None else self._writer.recoder.backlog(view),
            memory=memory,
            memory_limit=self.settings.memory_limit,
            mapped_bytes=self._residence.told(),
            resident_bytes=resident_bytes(),
            disk_bytes=self._store.disk_bytes(),
            commits=self._store.commits.told(),
            syncs=self._store.syncs.told(),
            compactions=self._store.compactions.told(),
            compacted_rows=self._store.compacted_rows,
        )

    def recall(
        self, k: int = 10, samples: int = SAMPLES, *, min_recall: float | None = None, search_list: int | None = None,
        threads: int | None = None,
    ) -> Recall:  # fmt: skip
        """Measure the recall@k of queries at default settings, or with a list or recall of your own: see `query`.

        Stored rows, as many as `samples`, are asked for as if they were not stored, and the answers compared with exact
        search; never with those by which lists are chosen. Always the same rows for the same database. Takes the time
        of that many exact queries.

        Raises:
            InvalidArgumentError
        """
        self._check_open()
        k, samples = inputs.as_count(k, "k", MAX_K), inputs.as_count(samples, "samples", MAX_K)
        named, target = self._asked(k, search_list, min_recall)
        workers = self._helpers.threads if threads is None else inputs.as_count(threads, "threads")
        view = self._current()
        choice = named or self._chosen(view, k, target, workers)
        wanted = min(k, view.head.live)
        if choice.exact or scans(view.head.live, wanted, choice.search_list):
            return Recall(1.0, 1.0, 1.0, k, min(samples, view.head.live), 0)
        return self._calibrator.recall(view, k, choice.search_list, samples, workers)

    def recall_curve(self, k: int = 10, samples: int = SAMPLES, *, threads: int | None = None) -> list[Recall]:
        """Measure anew how recall@k grows with the search list, from k on, and choose lists by it from now on.

        As `recall` does it, but by the rows that lists are chosen by. Empty where queries scan all rows.

        Raises:
            InvalidArgumentError
        """
        self._check_open()
        k, samples = inputs.as_count(k, "k", MAX_K), inputs.as_count(samples, "samples", MAX_K)
        workers = self._helpers.threads if threads is None else inputs.as_count(threads, "threads")
        view = self._current()
        if scans(view.head.live, min(k, view.head.live), k) or 2 * len(view.pending) > view.head.live:
            return []
        points = self._calibrator.points(view, k, samples, workers)
        if self._writer is not None:
            self._writer.schedule(Task(self._writer.keep_curves))
        return points

    def checkpoint(self) -> None:
        """Bring everything to the disk, so that even after a loss of power the next open has nothing to do."""
        writer = self._needs_writer()
        writer.submit(Task(writer.checkpoint))

    def snapshot(self, path: str | os.PathLike[str], progress: Progress | None = None) -> Copied:
        """Copy the database as of this moment to another folder, as a database of its own. Writes go on meanwhile.

        path: where nothing is yet, or an earlier snapshot of this database, of which only what has changed is copied.
        It appears, or changes, whole or not at all. Opened for writing, it is no snapshot any more but a database like
        any other. progress: called with a step, and how much of how much of it is done.

        Raises:
            DatabaseExistsError: if something else is at `path`.
            InvalidArgumentError: if `path` lies within the database, or that is in memory.
            LockedError: if the snapshot at `path` is in use.
            ReadOnlyError, ClosedError, DiskFullError, StorageError
        """
        writer = self._needs_writer()
        with self._upkeep, self._residence.watched():
            return copies.take_snapshot(writer, as_path(path), Files(), self._check_open, progress)

    def backup(self, target: str | os.PathLike[str], progress: Progress | None = None) -> Copied:
        """Copy the database as of this moment, with a SHA-256 for every file. Writes go on meanwhile.

        target: where nothing is yet. A name that ends in .tar.gz, .tgz or .tar makes an archive, any other a folder. It
        appears whole or not at all. On the way an archive takes as much room again beside it. progress: see `snapshot`.

        Raises: as `snapshot`.
        """
        writer = self._needs_writer()
        with self._upkeep, self._residence.watched():
            return copies.back_up(writer, as_path(target), Files(), self._check_open, progress)

    @staticmethod
    def restore(
        source: str | os.PathLike[str], path: str | os.PathLike[str], progress: Progress | None = None
    ) -> Copied:
        """Make a database at `path`, where nothing is yet, of a backup. It appears whole or not at all.

        Nothing is taken on trust: what is not named by the manifest of the backup, with its size, is refused.

        Raises:
            DatabaseExistsError: if something is at `path`.
            CorruptionError: if a file fails its checksum, or the archive is torn.
            FormatError: if `source` is no backup, or holds anything but the files of a database.
            DiskFullError, StorageError
        """
        require_supported()
        return copies.restore(as_path(source), as_path(path), Files(), progress)

    def compact(self, progress: Progress | None = None) -> None:
        """Give the space of deleted and replaced rows back: copy what is live into new files, and remove the old ones.

        Takes beside what is there up to 1.1 times what the result takes, and is refused if the disk has not that much.
        Until the copy is whole and on the disk the old files are valid: after an error, Ctrl-C or the death of the
        process they are what there is. Queries go on, here and in reading processes; writes are served between the
        steps of the copy, and wait for the last one, which copies what they have changed.

        progress: called with a step, and how much of how much of it is done; it must not write to this database.

        Raises:
            DiskFullError: nothing has been written.
            CorruptionError: at a damaged row or key, for `repair()` to see to; nothing has changed.
            ReadOnlyError, ClosedError, StorageError
        """
        writer = self._needs_writer()
        compaction = Compaction(writer, self._beside_queries, progress)
        with self._upkeep, self._residence.watched():
            writer.submit(Job(compaction.steps, compaction.note))
        with suppress(CoreNNError):  # it was closed since
            self._residence.renew()  # the metadata are others

    def refresh(self) -> None:
        """In mode "r": see what the writer has committed since. For the writer itself there is nothing to do."""
        self._check_open()
        if self._writer is None:
            with self._refreshing:
                self._check_open()
                if not (self._store.path and self._store.path.exists()):
                    raise StorageError(f"{self._store.path} is gone: it was dropped, moved or removed; close it")
                self._store.refresh()
                navigation.load(self._store)
                codebook.load(self._store)
                follow_reads(self._store, self._snapshots)
                self._reader_view = self._read_view()
                self._calibrator.load(self._store.metadata.soft(CURVES))
                self._tell()

    def verify(self) -> Report:
        """Check every row, key and edge; changes nothing. See docs/crash-contract.md for what each problem means."""
        self._check_open()
        if self._writer is None:
            with self._view(with_metadata=True) as view, self._residence.watched():
                return repair.verify_beside_a_writer(self._store, view)
        writer = self._writer
        with self._residence.watched():
            report: Report = writer.submit(Task(lambda: repair.verify_settled(writer)))
        return report

    def repair(self) -> Report:
        """Mend what verify finds: soft data is rebuilt, rows whose vectors are damaged are deleted and named."""
        writer = self._needs_writer()
        with self._upkeep, self._residence.watched():
            report: Report = writer.submit(Task(lambda: repair.repair(writer)))
        return report

    def __repr__(self) -> str:
        where = "in memory" if self._store.path is None else repr(str(self._store.path))
        if self._state.closed:
            return f"<CoreNN {where}: closed>"
        settings = self._store.settings
        rows = self._current().head.live
        return f"<CoreNN {where}: {rows:,} rows, dim {settings.dim}, {settings.metric}, {settings.dtype}, {self._mode}>"

    # --- the handle ------------------------------------------------------------------------------------------------

    def _close_because(self, reason: str) -> None:
        """Close, and tell whoever uses the handle afterwards why."""
        self._state.reason = reason
        self.close()

    def _live_on(self, share: Callable[[], None]) -> None:
        """Share memory with others from now on. share: divides it anew, a method of who is not kept alive by this."""
        self._budget = weakref.WeakMethod(share)

    def _stored_memory_limit(self) -> int:
        """The `memory_limit` that is stored, whatever this handle was given; 0 for none."""
        assert isinstance(self._store.metadata, RocksMetadata)
        return Settings.from_dict(self._store.metadata.settings()["settings"]).memory_limit

    def _limit_memory(self, limit: int) -> None:
        """Live within so many bytes from now on, through this handle alone: nothing is stored."""
        if limit == self._store.settings.memory_limit:
            return
        self._store.change_settings({"memory_limit": limit})
        self._residence.renew()
        if self._writer is not None:
            self._writer.schedule(Task(self._writer.follow_limit))
            return
        with self._refreshing:  # whether searches go over the disk hangs on the limit
            if not self._state.closed:
                self._reader_view = self._read_view()

    def _current(self) -> View:
        view = self._reader_view if self._writer is None else self._writer.view
        assert view is not None
        return view

    def _view(self, *, with_metadata: bool = False) -> _Held:
        """A context that holds the current view: while it is open, no id of a row that the view sees goes to another.

        with_metadata: keys and payloads are looked up in it.
        """
        return _Held(self, with_metadata=with_metadata)

    def _overtaken(self, view: View) -> bool:
        """Whether a reader that the writer does not know of may have met rows in the place of some that its view sees.
        It sees what is there now, then.
        """
        store = self._store
        if store.registration is None or store.registration.registered or store.horizon <= view.head.commit:
            return False
        self.refresh()
        return True

    def _overwritten(self, view: View, ids: UInt32s, again: Iterator[int]) -> bool:
        """Whether to look again in a newer view: the payload that one of these rows has in this one may be gone, as
        others were set since, twice. again: the turns that are left.
        """
        if self._writer is None or not len(ids):
            return False
        gone = self._writer.payload_index.overwritten(view.head.commit)
        return bool(gone) and bool(np.isin(ids, as_ids(gone)).any()) and next(again, None) is not None

    def _tell(self) -> None:
        """Let the writer's process know what this reader still reads, and that it does."""
        if self._store.registration is not None:
            self._store.registration.tell(self._snapshots.oldest_here(self._current().head.commit))
            self._store.registration.note_use()

    def _read_view(self) -> View:
        """What a reader in its own process sees."""
        store = self._store
        backlog = [ids for _, ids in store.recovered.backlog]
        pending = np.concatenate(backlog) if backlog else NO_IDS
        # A writer that was killed before it linked them may not have counted them in either.
        return take_view(store, store.metadata.head, pending, uncounted=pending)

    def _check_open(self) -> None:
        self._state.check()

    def _needs_writer(self) -> Writer:
        self._check_open()
        if self._writer is None:
            raise ReadOnlyError(f"{self._store.path} is open with mode='r'; open it with mode='rw' to write")
        return self._writer


PAYLOAD_TRIES = 16  # of a call whose payloads are set faster than it ends; then some may be of a later commit
BY_TEXT = Choice(0, False, "text")


class _Asked(NamedTuple):
    """How queries are to be answered: k, or as many as are joined with texts, and what else `query` takes, checked."""

    k: int
    choice: Choice
    plan: str | None
    threads: int
    by: Grouping | None
    words: Words | None

    def of(self, places: list[int]) -> _Asked:
        """The same of some of the queries."""
        return self if self.words is None else self._replace(words=self.words.of(places))


def _no_vectors(texts: str | list[str] | None) -> tuple[Float32s, bool]:
    """The queries of a call that has texts alone, which have no dimensions, and whether it is a single one."""
    count = len(texts) if isinstance(texts, list) else 1
    return np.empty((count, 0), np.float32), not isinstance(texts, list)


def _grouping(group_by: str | None, per_group: int | None) -> Grouping | None:
    if group_by is None:
        if per_group is not None:
            raise InvalidArgumentError(f"per_group={per_group!r} needs group_by=, the field to group by")
        return None
    return Grouping(checked_path(group_by, ""), 1 if per_group is None else inputs.as_count(per_group, "per_group"))


class _State:
    """Whether a handle may be used. Shared with the finalizer, which must not hold the handle itself."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.closed = False
        self.forked = False
        self.reason: str | None = None  # for which it is closed

    def check(self) -> None:
        if self.forked:
            raise ForkedError(
                f"this database was opened by process {self.pid} before a fork; open it again here with mode='r'"
            )
        if self.closed:
            raise ClosedError(self.reason or "the database is closed; open it again")


class _Held:
    """The present view, held against the writer. with_metadata: keys and payloads are looked up in it. A reader then
    keeps other threads out, as a refresh would move the metadata on, and a close take it away.
    """

    __slots__ = ("_database", "_lock", "_looking", "_token")

    def __init__(self, database: CoreNN, *, with_metadata: bool) -> None:
        self._database = database
        self._lock = database._refreshing if with_metadata and database._writer is None else None
        self._looking = database._writer.looking if with_metadata and database._writer is not None else None

    def __enter__(self) -> View:
        database = self._database
        if self._lock is not None:
            self._lock.acquire()
            try:
                database._check_open()
            except BaseException:
                self._lock.release()
                raise
        self._token = database._snapshots.hold()
        if self._looking is not None:
            self._looking.add(self._token)
        view = database._current()
        database._snapshots.settle(self._token, view.head.commit)
        return view

    def __exit__(self, *_: object) -> None:
        self._database._snapshots.drop(self._token)
        if self._database._writer is None:
            self._database._tell()
        elif self._looking is not None:
            self._database._writer.looked(self._token)
        if self._lock is not None:
            self._lock.release()


class _Keys(KeysView[Key]):
    """The keys that a view sees, in the order in which they came."""

    BLOCK = 4096

    def __init__(self, database: CoreNN) -> None:
        self._database = database
        snapshots = database._snapshots
        token = snapshots.hold()
        self._view = database._current()
        snapshots.settle(token, self._view.head.commit)
        weakref.finalize(self, snapshots.drop, token)

    def __len__(self) -> int:
        return self._view.head.live

    def __contains__(self, key: object) -> bool:
        return key in self._database

    def __iter__(self) -> Iterator[Key]:
        view = self._view
        ids = np.flatnonzero(view.alive()).astype(np.uint32)
        born = commit_of(view.live.state[ids, 0])
        if (born[1:] < born[:-1]).any():  # ids have been used again
            ids = ids[np.argsort(born, kind="stable")]
        del born
        for start in range(0, len(ids), self.BLOCK):
            yield from KeyColumn(view.keys[ids[start : start + self.BLOCK]], view.heap)

    def __repr__(self) -> str:
        return f"<keys of {len(self):,} rows>"


def _record(key: Key, vector: AnyArray, payload: bytes | None) -> Record:
    return Record(key, vector, None if payload is None else json.loads(payload))


def _settings(**values: Any) -> Settings:
    if values.get("dim") is None:
        raise InvalidSettingError("dim is missing: give the number of dimensions of the vectors")
    settings = Settings.from_dict(values)
    _require_extras(settings)
    return settings


def _require_extras(settings: Settings) -> None:
    """Raises: MissingExtraError: for a setting that needs a package which is not installed."""
    if settings.text_fields:
        bm25.library()


def as_path(path: str | os.PathLike[str]) -> Path:
    """A path as the user gives it, absolute.

    Raises:
        InvalidArgumentError: if it cannot be one.
    """
    try:
        absolute = Path(path).absolute()
        if b"\0" in os.fsencode(absolute):
            raise ValueError
    except (TypeError, ValueError):
        raise InvalidArgumentError(f"path={path!r}: must be a path") from None
    return absolute


def _close(
    state: _State, writer: Writer | None, store: Store, helpers: Helpers, reading: threading.RLock,
    residence: Residence, kept: tuple[ScratchPool, Partition],
) -> None:  # fmt: skip
    """Close once; in a child after fork, where the parent owns everything, not at all."""
    if state.forked or state.closed:
        return
    state.closed = True
    try:
        if writer is not None:
            writer.close()
    finally:
        for each in kept:
            each.clear()
        helpers.close()
        with reading:
            residence.leave()
            store.close()


_OPEN: weakref.WeakSet[CoreNN] = weakref.WeakSet()


def _after_fork() -> None:
    """In the child: give up every handle without touching what the parent goes on using."""
    for database in list(_OPEN):
        database._state.forked = True
        store = database._store
        if store.lock is not None:
            os.close(store.lock)
            store.lock = None
        if store.registration is not None:
            store.registration.leave()
        if isinstance(store.metadata, RocksMetadata):
            # Its destructor would wait for threads that were not forked.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(store.metadata))
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(database._writer))  # which may hold former metadata


os.register_at_fork(after_in_child=_after_fork)
