"""Writes that are sent again are not done again.

A client that does not know what became of a write sends it once more with the same Idempotency-Key, and gets the answer
that it has missed. Answers are kept in memory: after a restart nothing is known of what came before.
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
from .faults import RefusedError
from .visit import Reply

KEPT = 4096
_KEY = re.compile(r"[\x21-\x7e]{1,128}")


class Replays:
    """The answers to the last writes that had a key. Used by the event loop alone."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._known: OrderedDict[tuple[str, ...], tuple[bytes, asyncio.Task[Reply]]] = OrderedDict()

    async def once(self, key: tuple[str, ...], body: bytes, do: Callable[[], Coroutine[Any, Any, Reply]]) -> Reply:
        """What `do` answers, or has answered when it was called for the same key. A failure is not kept.

        key: what it belongs to, and last the key that was sent. Who stops waiting, or goes, does not stop it.

        Raises:
            InvalidArgumentError: for a key that is none.
            RefusedError: with 409 if the key came with another body before.
        """
        if not _KEY.fullmatch(key[-1]):
            raise InvalidArgumentError("Idempotency-Key: give 1 to 128 printable ASCII characters, such as a UUID")
        digest = blake2b(body, digest_size=16).digest()
        if (known := self._known.get(key)) is None:
            known = self._known[key] = digest, asyncio.get_running_loop().create_task(do())
            known[1].add_done_callback(partial(self._forget_failure, key))
            while len(self._known) > self._kept:
                self._known.popitem(last=False)
        elif known[0] != digest:
            message = f"Idempotency-Key {key[-1]} came with another body before; take a new key for each write"
            raise RefusedError(409, InvalidArgumentError(message))
        return await asyncio.shield(known[1])

    def _forget_failure(self, key: tuple[str, ...], done: asyncio.Task[Reply]) -> None:
        if done.cancelled() or done.exception() is not None:
            self._known.pop(key, None)
