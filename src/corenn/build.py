"""A large first load: all rows are committed, slice by slice, before any is linked.

Nothing but the slice at hand is copied, so vectors may be mapped from a file larger than the memory. What a load that
was cut off has left is gone on with if every row of it is what would be written now, which is looked at row by row.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import inputs
from .config import Settings
from .errors import (
    CoreNNError,
    CorruptionError,
    DimensionError,
    DiskFullError,
    DuplicateKeyError,
    FormatError,
    InvalidPayloadError,
    InvalidVectorError,
    NotADatabaseError,
)
from .filters.index import attach
from .graph import meter
from .graph.bulk import Progress
from .graph.codes import least_code_bytes
from .graph.disk import walks_disk
from .graph.insert import Linker
from .graph.meter import Meter
from .graph.scratch import ScratchPool
from .graph.threads import Helpers
from .graph.view import failing, raise_radius, set_entries, take_view
from .kernels.rows import NORM
from .kernels.search import BORN
from .storage.commit import NO_IDS, Commit, LiveView
from .storage.disk import SLOT_BYTES
from .storage.encode import Encoded, encode
from .storage.files import Files
from .storage.format import CODED, LINKED, NO_ID
from .storage.keys import KeyColumn
from .storage.parts import NAME as PARTS
from .storage.residence import Residence
from .storage.slab import FileSlab
from .storage.state import commit_of, seen_up_to
from .storage.store import Store
from .types import AnyArray, Key, UInt32s

log = logging.getLogger("corenn.build")

ENCODE_ROWS = 8192  # rows converted at a time, which bounds the float64 copies
COMMIT_ROWS = 1 << 15  # rows of a commit, at most
LEAST_ROWS = 1 << 10
SAMPLED = 1000  # payloads by which it is told how long all are
COPIES = 64  # a commit takes one in so many bytes of the memory limit, for each of its three or four copies


def encode_vectors(
    settings: Settings, vectors: Any, count: int, scales: Any = None, zero_points: Any = None
) -> Encoded:
    """The stored form of `count` vectors as a user passes them.

    Raises:
        DimensionError, UnsupportedDtypeError, InvalidVectorError
    """
    array = inputs.as_vectors(vectors, settings.dim, count)
    codes = settings.dtype == "i8" and array.dtype == np.int8 and getattr(vectors, "dtype", None) == np.int8
    if not codes:
        if scales is not None or zero_points is not None:
            raise InvalidVectorError("scales and zero_points go with int8 vectors in a database of dtype i8")
        parts = [encode(settings, array[at : at + ENCODE_ROWS]) for at in range(0, max(count, 1), ENCODE_ROWS)]
    else:
        factors = np.ones(count, np.float32) if scales is None else inputs.as_parameters(scales, count, "scales")
        zeros = np.zeros(count, np.float32)
        if zero_points is not None:
            zeros = inputs.as_parameters(zero_points, count, "zero_points")
        parts = [
            encode(settings, array[at:end], factors[at:end], zeros[at:end])
            for at in range(0, max(count, 1), ENCODE_ROWS)
            for end in [at + ENCODE_ROWS]
        ]
    return parts[0] if len(parts) == 1 else Encoded(*(np.concatenate(part) for part in zip(*parts, strict=True)))


class OtherRowsError(Exception):
    """What was left of a load is not of this one."""


class Load:
    """What is to be loaded, looked at before anything is written.

    Raises:
        InvalidKeyError, DuplicateKeyError, DimensionError, InvalidVectorError, InvalidPayloadError
    """

    def __init__(self, keys: Any, vectors: Any, payloads: Any, dim: int) -> None:
        self._keys = _as_keys(keys)
        count = len(self._keys)
        if not (hasattr(vectors, "shape") and hasattr(vectors, "__getitem__")):
            vectors = inputs.as_vectors(vectors, dim, count)
        if len(vectors.shape) != 2 or vectors.shape[1] != dim:
            if not (count == 0 and 0 in vectors.shape):
                raise DimensionError(f"vectors have shape {tuple(vectors.shape)}; this database takes (n, {dim})")
        elif len(vectors) != count:
            raise InvalidVectorError(f"{count} keys but {len(vectors)} vectors; pass one vector per key")
        if payloads is not None:
            if isinstance(payloads, (str, bytes, dict)) or not isinstance(payloads, Sequence | np.ndarray):
                inputs.as_payloads(payloads, count)
            elif len(payloads) != count:
                raise InvalidPayloadError(f"{count} keys but {len(payloads)} payloads; pass one per key, None for none")
        self._vectors, self._payloads = vectors, payloads
        self._linker: Linker | None = None
        self._linked = self._limited = False  # whether rows are linked that need not be again; within a memory limit

    def __len__(self) -> int:
        return len(self._keys)

    def make(self, folder: Path, settings: Settings, files: Files, progress: Progress | None) -> None:
        """Make a collection of all rows in a folder, in which an earlier try may have left what it had.

        Raises:
            InvalidSettingError: for a memory_limit within which it cannot be held.
            DiskFullError, StorageError
        """
        if folder.exists():
            try:
                self._fill(folder, settings, files, progress)
                return
            except (OtherRowsError, FormatError, NotADatabaseError, CorruptionError) as error:
                log.info("what an earlier build has left in %s is of no use (%r)", folder, error)
                self._linker, self._linked = None, False
            files.remove_tree(folder)
        Store.create(folder, settings, files)
        self._fill(folder, settings, files, progress)

    def _fill(self, folder: Path, settings: Settings, files: Files, progress: Progress | None) -> None:
        self._linked = (folder / PARTS).exists()
        self._limited = settings.memory_limit > 0
        store = Store.open(folder, "rw", files)
        try:
            if store.settings != settings:
                raise OtherRowsError
            residence = Residence(store)
            residence.check(len(self) * store.state.spec.row_bytes)
            self.run(store, progress)
            residence.check(kept_bytes(store))
        finally:
            store.close()

    def run(self, store: Store, progress: Progress | None) -> None:
        """Commit all rows to a collection that is empty, or holds the first of them, link them, and bring everything to
        the disk.

        Raises:
            DiskFullError: if there is no room for that; nothing is written.
            OtherRowsError: if the collection holds anything else.
        """
        residence = Residence(store)
        helpers = Helpers(None, residence.look, residence.grain)
        index = attach(store)
        try:
            linker = self._linker = Linker(store, ScratchPool(), helpers)
            gauge = Meter(store, progress, linker.kind(len(self)), self._room(store, linker))
            self._write(store, residence, gauge)
            head = store.metadata.head
            waiting = self._unlinked(store, linker)

            def linked(left: UInt32s) -> None:
                if len(left):  # one by one, of which commits are counted
                    done = int(commit_of(store.state.array[left[0], BORN])) - 1
                else:
                    done = head.commit
                    gauge.look()
                self._linked = done > 0
                store.mark_linked(done)

            if len(waiting) or not head.rows:
                linker.link(waiting, head, lambda: False, gauge.tell, linked=linked)
                store.mark_linked(head.commit)
            else:
                linker.complete(np.arange(head.rows, dtype=np.uint32), head, lambda: False, gauge.tell)
            gauge.look()
            live = LiveView(store.state.array, seen_up_to(head.commit), head.rows)
            index.texts.keep(live, head.commit, store.metadata, whole=True)
            store.checkpoint(head.commit, head.commit)
            index.keep(now=True)
            gauge.finish(len(self))
        finally:
            helpers.close()

    @property
    def kept(self) -> bool:
        """Whether there are rows that are linked, and need not be again, after a failure: of a load beyond memory.

        Others are made anew in less time than it takes to look at what is left of them.
        """
        return self._limited and (self._linked or (self._linker is not None and self._linker.parts.kept > 0))

    @staticmethod
    def _unlinked(store: Store, linker: Linker) -> UInt32s:
        """The rows that are still to be linked: all, but for what an earlier try has left.

        Raises:
            OtherRowsError: if that is not to be relied on.
        """
        rows: UInt32s = np.arange(store.metadata.head.rows, dtype=np.uint32)
        if linker.empty:
            return rows
        done = 0 if store.recovered.suspect else int(store.edges.header[LINKED])
        if not done and linker.kind(len(rows)) is not meter.WALKS:
            set_entries(store, NO_IDS)  # they are linked at once, where nothing is
            return rows
        if store.recovered.suspect:
            raise OtherRowsError
        later: UInt32s = rows[commit_of(store.state.array[rows, BORN]) > done]
        return later

    def _room(self, store: Store, linker: Linker) -> int:
        """Bytes that the collection takes at most while all this is loaded.

        Raises:
            DiskFullError: if there are not as many.
        """
        if store.folder is None:
            return 0
        rows, letters = len(self), 0
        if not isinstance(self._keys, range | np.ndarray):
            letters = sum(len(key.encode()) for key in self._keys if isinstance(key, str))
        need = meter.room_for(
            store, rows, linker.beside_bytes(rows), letters=letters, payloads=self._payload_bytes()
        )  # fmt: skip
        more, free = need - store.disk_bytes(), store.files.free_bytes(store.folder)
        if free < more:
            raise DiskFullError(
                f"to build a database of {rows:,} rows takes up to {need:,} bytes of disk, of which {more:,} are still "
                f"to come, and {free:,} are free; make room for {more - free:,} more"
            )
        return need

    def _payload_bytes(self) -> int:
        """Bytes of all payloads, by a sample."""
        if self._payloads is None or not len(self):
            return 0
        places = np.unique(np.linspace(0, len(self) - 1, min(len(self), SAMPLED)).astype(np.int64)).tolist()
        try:
            texts = inputs.as_payloads([self._payloads[place] for place in places], len(places))
        except CoreNNError:
            return 0  # which one it is, the commit tells
        return len(self) * sum(len(text) for text in texts if text is not None) // len(places)

    def _write(self, store: Store, residence: Residence, gauge: Meter) -> None:
        """Commit what is not there yet."""
        step, there = _commit_rows(store.settings), store.metadata.head.rows
        self._require_beginning(store, step)
        for slab in (store.vectors, store.seals, store.state, store.edges, store.keys):
            if store.path is not None:
                slab.reserve(len(self))  # exactly, and a disk that is too full is told of now
        for start in range(0, len(self), step):
            stop = min(start + step, len(self))
            if stop <= there:
                self._require_same(store, start, stop)
            else:
                self._commit(store, start, stop)
            residence.look()
            gauge.tell("rows", stop, len(self))
        for slab in (store.vectors, store.seals, store.edges):
            if store.settings.memory_limit and isinstance(slab, FileSlab):
                slab.read_no_more_than_touched()
        if gauge.kind is meter.PARTS and there < len(self):  # parts are worth nothing without their rows
            store.checkpoint(0, 0)

    def _require_beginning(self, store: Store, step: int) -> None:
        """Refuse a collection that cannot hold the first of these rows, and nothing else."""
        head = store.metadata.head
        whole = head.rows % step == 0 or head.rows == len(self)
        if not (whole and head.live == head.rows == store.next_row() <= len(self)):
            raise OtherRowsError

    def _require_same(self, store: Store, start: int, stop: int) -> None:
        """Refuse a collection in which anything is at the place of some rows that is not what they are now."""
        keys, encoded, texts = self._slice(store.settings, start, stop)
        view, ids = take_view(store, store.metadata.head, NO_IDS), np.arange(start, stop, dtype=np.uint32)
        same = (
            KeyColumn(store.keys.array[start:stop], view.heap).tolist() == keys
            and np.array_equal(store.vectors.array[start:stop].view(np.uint8), encoded.rows.view(np.uint8))
            and np.array_equal(store.seals.array[start:stop, 1:], encoded.seals[:, 1:])
            and not len(failing(view, ids))
            and store.metadata.payloads(ids.tolist(), view.head.commit) == list(texts)
        )
        if not same:
            raise OtherRowsError

    def _slice(self, settings: Settings, start: int, stop: int) -> tuple[list[Key], Encoded, Sequence[bytes | None]]:
        """Some rows as they are stored."""
        count = stop - start
        keys: list[Key] = list(self._keys[start:stop])
        if isinstance(self._keys, np.ndarray):
            keys = self._keys[start:stop].tolist()
        try:
            encoded = encode_vectors(settings, self._vectors[start:stop], count)
            texts = inputs.as_payloads(None if self._payloads is None else self._payloads[start:stop], count)
        except CoreNNError as error:
            if start == 0:
                raise
            raise type(error)(f"in the rows from {start:,} on: {error}") from None
        return keys, encoded, texts

    def _commit(self, store: Store, start: int, stop: int) -> None:
        keys, encoded, texts = self._slice(store.settings, start, stop)
        ids = np.arange(start, stop, dtype=np.uint32)
        store.commit(Commit(store.next_commit(), ids, keys, [NO_ID] * len(ids), texts, encoded.rows, encoded.seals))
        if encoded.seals.shape[1] > NORM:
            raise_radius(store, encoded.seals.view(np.float32)[:, NORM])


def kept_bytes(store: Store) -> int:
    """What a walk looks up at random for every row: its code, its state, and where it lies on the disk."""
    codes = 0 if store.codes is None else int(store.codes.header[CODED]) * least_code_bytes(store)
    slots = SLOT_BYTES if store.disk is not None or walks_disk(store) else 0
    return codes + int(store.metadata.head.rows * (store.state.spec.row_bytes + slots))


def _commit_rows(settings: Settings) -> int:
    """Rows of a commit: fewer where memory is limited, since each is there several times on its way to the files."""
    if not settings.memory_limit:
        return COMMIT_ROWS
    return min(max(settings.memory_limit // COPIES // (4 * settings.dim), LEAST_ROWS), COMMIT_ROWS)


def _as_keys(keys: Any) -> range | AnyArray | list[Key]:
    """Valid keys, none twice. A range, or an array of integers, is not turned into a list."""
    if isinstance(keys, range):
        inputs.as_keys([keys[0], keys[-1]] if len(keys) else [])
        return keys
    if isinstance(keys, np.ndarray) and keys.ndim == 1 and keys.dtype.kind in "iu" and not np.ma.is_masked(keys):
        ordered = np.sort(keys)
        again = np.flatnonzero(ordered[1:] == ordered[:-1])
        if len(again):
            raise DuplicateKeyError(f"key {ordered[again[0]]} is given twice in one call; pass each key once")
        inputs.as_keys(ordered[-1:])
        return keys
    return inputs.as_unique_keys(keys)
