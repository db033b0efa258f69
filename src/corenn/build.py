"""A large first load: all rows are committed, slice by slice, before any is linked.

Nothing but the slice at hand is copied, so vectors may be mapped from a file larger than the memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import inputs
from .config import Settings
from .errors import CoreNNError, DimensionError, DuplicateKeyError, InvalidPayloadError, InvalidVectorError
from .graph.bulk import Progress
from .graph.insert import Linker
from .graph.scratch import ScratchPool
from .graph.threads import Helpers
from .graph.view import raise_radius
from .kernels.rows import NORM
from .storage.commit import Commit
from .storage.encode import Encoded, encode
from .storage.format import NO_ID
from .storage.residence import Residence
from .storage.slab import FileSlab
from .storage.store import Store
from .types import AnyArray, Key

ENCODE_ROWS = 8192  # rows converted at a time, which bounds the float64 copies
COMMIT_ROWS = 1 << 15  # rows of a commit, at most
LEAST_ROWS = 1 << 10
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

    def __len__(self) -> int:
        return len(self._keys)

    def run(self, store: Store, progress: Progress | None) -> None:
        """Commit all rows to an empty collection, link them, and bring everything to the disk."""
        residence = Residence(store)
        helpers = Helpers(None, residence.look, residence.grain)
        tell = progress or (lambda step, done, total: None)
        try:
            step = _commit_rows(store.settings)
            for start in range(0, len(self), step):
                stop = min(start + step, len(self))
                self._commit(store, start, stop)
                residence.look()
                tell("rows", stop, len(self))
            for slab in (store.vectors, store.seals, store.edges):
                if store.settings.memory_limit and isinstance(slab, FileSlab):
                    slab.read_no_more_than_touched()
            head = store.metadata.head
            linker = Linker(store, ScratchPool(), helpers)
            linker.link(np.arange(head.rows, dtype=np.uint32), head, lambda: False, progress)
            store.mark_linked(head.commit)
            store.checkpoint(head.commit, head.commit)
        finally:
            helpers.close()

    def _commit(self, store: Store, start: int, stop: int) -> None:
        settings, count = store.settings, stop - start
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
        ids = np.arange(start, stop, dtype=np.uint32)
        store.commit(Commit(store.next_commit(), ids, keys, [NO_ID] * count, texts, encoded.rows, encoded.seals))
        if encoded.seals.shape[1] > NORM:
            raise_radius(store, encoded.seals.view(np.float32)[:, NORM])


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
