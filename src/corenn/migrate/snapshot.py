"""All rows of one commit, block by block: what was live when the database was opened, whatever is written meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np

from ..config import Settings
from ..errors import CorruptionError
from ..graph.view import failing, take_view
from ..kernels.keytable import KIND_INT
from ..kernels.rows import NORM, decode_rows
from ..storage.commit import NO_IDS
from ..storage.files import Files
from ..storage.keys import KeyColumn, unpack_key
from ..storage.platform import require_supported
from ..storage.store import Store
from ..types import Float32s, Key, UInt32s
from ..warmup import warm

BLOCK_BYTES = 8 << 20
MOST_ROWS = 8192  # rows of a block, which bounds the Python objects made for it
READ_ROWS = 16  # payloads read at a time: one may take a megabyte, and the one before it another


class Rows(NamedTuple):
    """Live rows in the order of insertion.

    ids: uint32 (n,). keys: n str or int. vectors: float32 (n, dim), as they were inserted up to the rounding of the
    stored type. payloads: JSON text, or None.
    """

    ids: UInt32s
    keys: list[Key]
    vectors: Float32s
    payloads: list[bytes | None]


class Snapshot:
    """A database open for reading, beside a writer or not. A context manager; for one thread."""

    def __init__(self, path: Path) -> None:
        """Open a database at its last commit.

        Raises:
            NotADatabaseError, FormatError, CorruptionError, StorageError
        """
        require_supported()
        self.path = path
        self._store = Store.open(path.absolute(), "r", Files())
        self._view = take_view(self._store, self._store.metadata.head, NO_IDS)

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files."""
        self._store.close()

    @property
    def settings(self) -> Settings:
        """The settings that the database is stored with."""
        return self._store.settings

    def __len__(self) -> int:
        return self._view.head.live

    def key_types(self) -> set[type]:
        """The types of its keys: int, str, both or none."""
        kinds: set[type] = set()
        for ids in self._ids(1 << 16):
            integers = self._view.keys[ids, 0] & np.uint64(0xFF) == KIND_INT
            kinds |= {int if each else str for each in np.unique(integers)}
        return kinds

    def blocks(self) -> Iterator[Rows]:
        """All rows, in blocks of some megabytes.

        Raises:
            CorruptionError: for a vector that fails its checksum, or a key that cannot be read.
        """
        warm(self.settings)
        for block in self._ids(max(1, min(MOST_ROWS, BLOCK_BYTES // (4 * self.settings.dim)))):
            for ids, payloads in self._with_payloads(block):
                keys = list(KeyColumn(self._view.keys[ids], self._view.heap))
                yield Rows(ids, keys, self._vectors(ids), payloads)

    def _with_payloads(self, ids: UInt32s) -> Iterator[tuple[UInt32s, list[bytes | None]]]:
        """`ids` with their payloads, in parts whose payloads take some megabytes."""
        first, size = 0, 0
        payloads: list[bytes | None] = []
        for start in range(0, len(ids), READ_ROWS):
            read = self._store.metadata.payloads(ids[start : start + READ_ROWS].tolist(), self._view.head.commit)
            payloads += read
            size += sum(len(payload) for payload in read if payload is not None)
            if size >= BLOCK_BYTES or start + READ_ROWS >= len(ids):
                yield ids[first : first + len(payloads)], payloads
                first, size, payloads = first + len(payloads), 0, []

    def _ids(self, size: int) -> Iterator[UInt32s]:
        """The ids of live rows, ascending; some that follow each other, at most `size`."""
        head, state = self._view.head, self._view.live.state
        snapshot = self._view.live.snapshot
        for start in range(0, head.rows, size):
            born, died = state[start : min(start + size, head.rows)].T
            # The subtraction sends 0, never, to the largest number.
            alive = (born - np.uint64(1) < snapshot) & (died - np.uint64(1) >= snapshot)
            ids = (start + np.flatnonzero(alive)).astype(np.uint32)
            if len(ids):
                yield ids

    def _vectors(self, ids: UInt32s) -> Float32s:
        bad = failing(self._view, ids)
        if len(bad):
            key = unpack_key(self._view.keys[bad[0]], self._view.heap)
            raise CorruptionError(
                f"{self.path}: the vector of key {key!r} fails its checksum; run `corenn repair`, which deletes it"
            )
        vectors = np.empty((len(ids), self.settings.dim), np.float32)
        decode_rows(self._view.rows, ids, vectors)
        if self.settings.metric == "cosine":
            vectors *= self._view.rows.seals[ids, NORM][:, None]
        return vectors
