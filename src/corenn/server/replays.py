"""Writes that are sent again are not done again.

A client that does not know what became of a write sends it once more with the same Idempotency-Key, and gets the answer
that it has missed. While a server runs it keeps the answers themselves, and lets who asks again wait for a write that
is under way. After a restart it knows what is committed by the collection, which keeps the token of a write with it.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from functools import partial
from hashlib import blake2b
from typing import Any

from ..errors import InvalidArgumentError
from ..once import Token
from .visit import Reply, Visit

KEPT = 4096
_KEY = re.compile(r"[\x21-\x7e]{1,128}")


class Replays:
    """The answers to the last writes that had a key. Used by the event loop alone."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._known: OrderedDict[bytes, tuple[Token, asyncio.Task[Reply]]] = OrderedDict()

    async def once(
        self, visit: Visit, path: str, key: str, body: bytes, do: Callable[[], Coroutine[Any, Any, Reply]]
    ) -> Reply:
        """What `do` answers, or has answered when it was called for the same key. A failure is not kept.

        path: of the route. Who stops waiting, or goes, does not stop it.

        Raises:
            InvalidArgumentError: for a key that is none.
            IdempotencyKeyError: if the key came with another body before.
        """
        if not _KEY.fullmatch(key):
            raise InvalidArgumentError("Idempotency-Key: give 1 to 128 printable ASCII characters, such as a UUID")
        token = visit.token = Token(_identity(visit, path, key), blake2b(body, digest_size=16).digest())
        if (known := self._known.get(token.identity)) is None:
            known = self._known[token.identity] = token, asyncio.get_running_loop().create_task(do())
            known[1].add_done_callback(partial(self._forget_failure, token.identity))
            while len(self._known) > self._kept:
                self._known.popitem(last=False)
        else:
            known[0].check(token.digest)
        return await asyncio.shield(known[1])

    def _forget_failure(self, identity: bytes, done: asyncio.Task[Reply]) -> None:
        if done.cancelled() or done.exception() is not None:
            self._known.pop(identity, None)


def _identity(visit: Visit, path: str, key: str) -> bytes:
    """An answer belongs to whoever asked for it, by their key, and to what they asked."""
    name = blake2b(visit.holder.identity, digest_size=16)
    for part in (visit.collection, path, key):
        name.update(len(part).to_bytes(4, "little") + part.encode())
    return name.digest()
