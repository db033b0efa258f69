"""The writes that were done under a token of their sender: see `corenn.once`."""

from __future__ import annotations

import struct
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

from ..once import Token

KEPT = 10_000
KEPT_SECONDS = 24 * 3600
_ROW = struct.Struct("<16s16sQq")

Place: TypeAlias = tuple[int, int]  # the commit that did a write, and its number among those that it did


class Done(NamedTuple):
    """A write under a token: when it was done, in seconds since 1970, and how many rows it has deleted; -1 where no
    such number was returned.
    """

    token: Token
    time: int
    result: int

    def pack(self) -> bytes:
        """As it is stored."""
        return _ROW.pack(*self.token, self.time, self.result)

    @classmethod
    def unpack(cls, raw: bytes) -> Done:
        identity, digest, when, result = _ROW.unpack(raw)
        return cls(Token(identity, digest), when, result)

    @property
    def returned(self) -> int | None:
        """What its call has returned."""
        return None if self.result < 0 else self.result


class Ledger:
    """The last writes under tokens: KEPT of them, of the last KEPT_SECONDS. Used by the writer thread alone."""

    def __init__(self, stored: Iterable[tuple[Place, Done]]) -> None:
        """stored: what the metadata have, in the order of commits."""
        self._known: OrderedDict[bytes, tuple[Place, Done]] = OrderedDict()
        for place, done in stored:
            self._known[done.token.identity] = place, done

    def find(self, token: Token) -> Done | None:
        """The write that was done under a token.

        Raises:
            IdempotencyKeyError: if that was another one.
        """
        known = self._known.get(token.identity)
        if known is None:
            return None
        token.check(known[1].token.digest)
        return known[1]

    def lapsing(self, coming: int) -> list[Place]:
        """Those that are forgotten when so many others come, the oldest first."""
        oldest, over = int(time.time()) - KEPT_SECONDS, len(self._known) + coming - KEPT
        found = []
        for at, (place, done) in enumerate(self._known.values()):
            if at >= over and done.time >= oldest:
                break
            found.append(place)
        return found

    def note(self, number: int, done: Sequence[Done], lapsed: Sequence[Place]) -> None:
        """A commit holds, which has brought some and taken those that `lapsing` has told."""
        for _ in lapsed:
            self._known.popitem(last=False)
        for part, each in enumerate(done):
            self._known[each.token.identity] = (number, part), each
