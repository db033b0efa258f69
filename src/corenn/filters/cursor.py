"""Where a scroll has come to: rows go by the commit that bore them, and in it by id, which is the order of insertion.

A row that is there all the time is met exactly once, whatever is written meanwhile: its birth and the order within it
never change. Ids do, when a compaction renumbers them: so a cursor names the last key as well.
"""

from __future__ import annotations

import base64
import json
from typing import Any, NamedTuple

import numpy as np

from ..errors import InvalidArgumentError
from ..storage.state import commit_of
from ..types import AnyArray, Key, UInt32s

VERSION = 1
WHOLE_COMMIT = -1  # in the place of an id: all rows of that birth are still to come


class Cursor(NamedTuple):
    """The last row that was given: its birth, its id in a generation of files, and its key."""

    born: int
    row: int
    generation: int
    key: Key

    def pack(self) -> str:
        """As text that means nothing to whoever keeps it."""
        return base64.urlsafe_b64encode(json.dumps([VERSION, *self]).encode()).decode()

    @classmethod
    def unpack(cls, text: Any) -> Cursor:
        """Raises: InvalidArgumentError"""
        try:
            version, born, row, generation, key = json.loads(base64.urlsafe_b64decode(text))
            numbers = all(type(each) is int and each >= 0 for each in (born, row, generation))
            if version != VERSION or not numbers or type(key) not in (str, int):
                raise ValueError
        except (ValueError, TypeError):
            raise InvalidArgumentError(f"cursor={text!r}: pass what scroll has returned, or None to begin") from None
        return cls(born, row, generation, key)


def next_page(ids: UInt32s, state: AnyArray, after: tuple[int, int] | None, limit: int) -> tuple[UInt32s, bool]:
    """The next rows of `ids`, ascending, in the order of births, and whether there are more.

    after: birth and id of the last one before, None at the beginning.
    """
    born = commit_of(state[ids, 0])
    if after is not None:
        last, row = after
        left = (born > np.uint64(last)) | ((born == np.uint64(last)) & (ids.astype(np.int64) > row))
        ids, born = ids[left], born[left]
    if (born[1:] < born[:-1]).any():  # ids have been used again
        ids = ids[np.argsort(born, kind="stable")]
    return ids[:limit], len(ids) > limit
