"""What a filter selects in a view: its rows, their keys, a sample, and one page of them after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..filters.cursor import WHOLE_COMMIT, Cursor, next_page
from ..filters.expression import Filter
from ..filters.index import PayloadIndex
from ..filters.select import Selected, select
from ..storage.keys import KeyColumn
from ..storage.state import commit_of
from ..types import Key, UInt32s
from .view import View

SAMPLE_SEED = 0x5A3B1E


class Page(NamedTuple):
    """ids and keys of some rows, and where to go on; None at the end."""

    ids: UInt32s
    keys: Sequence[Key]
    cursor: str | None


def select_rows(view: View, tree: Filter) -> Selected:
    """The rows that a view sees and that meet a filter; it may be left open whether some do."""
    index = view.payload_index
    assert isinstance(index, PayloadIndex)
    return select(index, tree, view.lookup_view, view.head.commit, view.metadata)


def keys_within(view: View, tree: Filter) -> list[Key]:
    """The keys of these rows; those that cannot be read are left out."""
    ids = select_rows(view, tree).settled.ids
    return [key for key in KeyColumn(view.keys[ids], view.heap) if key is not None]


def scroll_page(view: View, generation: int, ids: UInt32s, limit: int, cursor: Cursor | None) -> Page:
    """The next rows of `ids`, ascending, behind a cursor, in the order of insertion."""
    found, more = next_page(ids, view.live.state, _after(view, generation, cursor), limit)
    keys = list(KeyColumn(view.keys[found], view.heap))
    if not more:
        return Page(found, keys, None)
    last = int(found[-1])
    born = int(commit_of(view.live.state[last, 0]))
    return Page(found, keys, Cursor(born, last, generation, keys[-1]).pack())


def sample_page(view: View, ids: UInt32s, size: int) -> Page:
    """`size` of `ids`, ascending, at random, in the order of insertion; all if there are no more."""
    chosen = ids
    if size < len(ids):
        rng = np.random.default_rng(SAMPLE_SEED)
        chosen = ids[np.sort(rng.choice(len(ids), size, replace=False, shuffle=False))]
    found, _ = next_page(chosen, view.live.state, None, size)
    return Page(found, list(KeyColumn(view.keys[found], view.heap)), None)


def _after(view: View, generation: int, cursor: Cursor | None) -> tuple[int, int] | None:
    """Birth and id of the last row that was given. After a compaction the id is that which its key has now; where the
    row has gone, all of its commit comes again.
    """
    if cursor is None or cursor.generation == generation:
        return None if cursor is None else (cursor.born, cursor.row)
    (row,) = view.metadata.lookup([cursor.key], view.lookup_view)
    there = row >= 0 and int(commit_of(np.uint64(view.live.state[row, 0]))) == cursor.born
    return cursor.born, row if there else WHOLE_COMMIT
