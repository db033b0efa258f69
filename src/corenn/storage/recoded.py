"""Other codes in the place of those that there are.

They are made in a file of their own, `codes.slab.new`, while everybody goes on with the old ones. Its header says from
the beginning what they are, and how far they have come. When all is there the file is renamed to `codes.slab`: that is
the moment, for the process may be killed before it or after it, and what is in the header holds in either case. Whoever
has mapped the old file keeps it, whole and with all rows that it knows of; a reader sees by the name that there is
another one, when it looks for what is new.

Used by the writer thread, but for `follow_codes`.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import MAX_ROWS
from ..errors import CoreNNError, NewerFormatError, OlderFormatError
from .format import CHOSEN, CODED, PAGE, row_bytes_in
from .slab import FileSlab, MemorySlab, SlabSpec

if TYPE_CHECKING:
    from .store import Store

log = logging.getLogger("corenn.storage")

NAME, DRAFT = "codes.slab", "codes.slab.new"


def as_created(path: Path, spec: SlabSpec) -> SlabSpec:
    """The shape of a file of codes: that which it was created with. Other slabs are of the shape that settings say."""
    if spec.name != NAME:
        return spec
    try:
        with path.open("rb") as file:
            width = row_bytes_in(file.read(PAGE))
    except OSError:
        return spec
    return replace(spec, columns=width) if width else spec


def create_draft(store: Store, columns: int) -> None:
    """Begin anew, with nothing in it. columns: bytes of a code.

    Raises:
        DiskFullError, StorageError
    """
    assert store.codes is not None
    discard_draft(store)
    spec = replace(store.codes.spec, columns=columns)
    if store.folder is None:
        store.draft = MemorySlab(spec, MAX_ROWS)
        return
    store.files.remove(store.folder / DRAFT)
    FileSlab.create(store.files, store.folder, spec, DRAFT)
    store.draft = FileSlab(store.files, store.folder / DRAFT, spec, writable=True)


def open_draft(store: Store) -> None:
    """Take up what an earlier handle has left, if it can be read."""
    if store.folder is None or store.codes is None or not (store.folder / DRAFT).exists():
        return
    path = store.folder / DRAFT
    try:
        store.draft = FileSlab(store.files, path, as_created(path, store.codes.spec), writable=True)
    except (NewerFormatError, OlderFormatError):
        raise
    except (CoreNNError, OSError) as error:
        log.warning("%s; the codes that were being made are begun anew", error)
        discard_draft(store)


def discard_draft(store: Store) -> None:
    """Give up what was made so far. A file that cannot be removed is, when another one is begun."""
    draft, store.draft = store.draft, None
    with suppress(CoreNNError):
        if draft is not None:
            draft.header[CHOSEN] = 0  # should it stay, nobody is to go on with it: rows may come without codes there
            draft.close()
        if store.folder is not None:
            store.files.remove(store.folder / DRAFT)


def adopt_draft(store: Store) -> None:
    """Put what was made in the place of the old codes.

    Raises:
        StorageError: nothing has changed.
    """
    draft, former = store.draft, store.codes
    assert draft is not None and former is not None
    if isinstance(draft, FileSlab):
        assert store.folder is not None
        if store.changes is not None:  # before: nobody may find the new codes there who has not been told of them
            store.changes.watch(draft)
            draft.note(slice(0, len(draft.array)))
        draft.rename(store.folder / NAME)
        store.renamed = True  # a loss of power may leave the old file under the name
    store.codes = store.slabs[NAME] = draft
    store.draft = None
    former.header[CODED] = 0  # rows that come from now on have no codes there: no view taken later may count on it
    former.close()


def follow_codes(store: Store) -> None:
    """For a reader: see the file of codes that there is now. While it cannot be opened the old one serves."""
    former = store.codes
    if not isinstance(former, FileSlab) or not former.replaced or store.folder is None:
        return
    path = store.folder / NAME
    try:
        store.codes = store.slabs[NAME] = FileSlab(store.files, path, as_created(path, former.spec), writable=False)
    except (CoreNNError, OSError):
        log.warning("the codes could not be opened; walks go on without", exc_info=True)
        return
    former.close()
