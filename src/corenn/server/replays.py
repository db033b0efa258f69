"""Writes that are sent again are not done again.

A client that does not know what became of a write sends it once more with the same Idempotency-Key, and gets the answer
that it has missed. Answers are kept in memory: after a restart nothing is known of what came before.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from hashlib import blake2b

from ..errors import InvalidArgumentError
from .faults import RefusedError
from .visit import Reply

KEPT = 4096
_KEY = re.compile(r"[\x21-\x7e]{1,128}")


class Replays:
    """The answers to the last writes that had a key. Used by the event loop alone."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._known: OrderedDict[tuple[str, ...], tuple[bytes, asyncio.Future[Reply]]] = OrderedDict()

    async def once(self, key: tuple[str, ...], body: bytes, do: Callable[[], Awaitable[Reply]]) -> Reply:
        """What `do` answers, or has answered when it was called for the same key. A failure is not kept.

        key: what it belongs to, and last the key that was sent.

        Raises:
            InvalidArgumentError: for a key that is none.
            RefusedError: with 409 if the key came with another body before.
        """
        if not _KEY.fullmatch(key[-1]):
            raise InvalidArgumentError("Idempotency-Key: give 1 to 128 printable ASCII characters, such as a UUID")
        digest = blake2b(body, digest_size=16).digest()
        if (known := self._known.get(key)) is not None:
            if known[0] != digest:
                message = f"Idempotency-Key {key[-1]} came with another body before; take a new key for each write"
                raise RefusedError(409, InvalidArgumentError(message))
            return await asyncio.shield(known[1])
        done: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._known[key] = digest, done
        while len(self._known) > self._kept:
            self._known.popitem(last=False)
        try:
            answer = await do()
        except BaseException as error:
            self._known.pop(key, None)
            done.set_exception(error if isinstance(error, Exception) else asyncio.CancelledError())
            done.exception()  # nobody may wait for it
            raise
        done.set_result(answer)
        return answer
