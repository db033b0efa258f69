"""Going on in the same handle after a failure, once the disk works again.

What a failure leaves behind, and what is done about it:

- *Growing files or writing rows failed.* Nothing names what was written. The next call is served.
- *A change of the metadata failed.* RocksDB refuses every change until it is opened again, so that is done; a secondary
  instance serves reads meanwhile. A commit whose caller was told of the error is taken back if it turns out to hold.
- *Marking births and deaths failed.* The commit holds, but its caller was told otherwise: it is taken back.
- *A sync failed.* The kernel may have dropped the pages and called them clean, so that another sync would succeed and
  mean nothing. Whatever they may have held is written again before the next one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..types import AnyArray, UInt32s
from .commit import NO_IDS, Head, Record
from .format import PUBLISHED
from .rocks import RocksMetadata
from .slab import FileSlab

if TYPE_CHECKING:
    from .store import Store


class Failing(NamedTuple):
    """A commit from the first change that makes it hold to the last. before: the head without it. ids, words: the rows
    of state.slab that it changes, as they were.
    """

    record: Record
    before: Head
    ids: UInt32s
    words: AnyArray


def resume(store: Store) -> UInt32s:
    """Make a store whose fault is set fit for writing again. Called by the writer thread. Returns ids that are spent.

    Afterwards the store is as if the call that met the failure had never been made. If `store.unsure` is not empty, a
    checkpoint has to succeed before the next commit.

    Raises:
        CoreNNError: as long as the disk does not work. Nothing is lost; it may be tried again.
    """
    metadata, failing, spent = store.metadata, store.failing, NO_IDS
    if isinstance(metadata, RocksMetadata):
        if metadata.failed:
            metadata.resume(metadata.head if failing is None else failing.before)
        if failing is not None:
            _take_back(store, metadata, failing)
        spent = store.spare(metadata)
    store.failing = None
    store.fault = None
    return spent


def _take_back(store: Store, metadata: RocksMetadata, failing: Failing) -> None:
    """Undo a commit. Killed on the way, it holds whole, or not at all."""
    number = failing.record.number
    if int(store.state.header[PUBLISHED]) >= number:
        store.state.write_header(PUBLISHED, number - 1)
    store.put_state(failing.ids, failing.words)
    store.sync(store.state)  # its number is not used again: what bears it must not come back after a loss of power
    if metadata.head.commit == number:
        metadata.void(failing.record, failing.before)


def rewrite(store: Store, metadata: RocksMetadata) -> None:
    """Write again what a failed sync may have lost: hard rows since the last checkpoint, soft files whole."""
    records = metadata.records(metadata.marks()[0] or 0)
    ids = np.unique(np.concatenate([NO_IDS, *(record.touched for record in records)]))
    ids = ids[ids < metadata.head.rows]
    for name in sorted(store.unsure):
        slab = store.slabs[name]
        assert isinstance(slab, FileSlab)
        if slab.spec.hard:
            slab.rewrite(ids)
        else:
            slab.touch()
