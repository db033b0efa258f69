"""Writes that are done once, however often they are asked for.

Who does not know what became of a write asks for it again under the same token. The token comes to the disk with the
commit that does the write, in one batch: after the death of a process it is known if and only if the write holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from .errors import IdempotencyKeyError


class Token(NamedTuple):
    """identity: 16 bytes that name a write, such as a hash of who asks for it and of the key that they gave it. digest:
    16 bytes, a hash of what is asked for.
    """

    identity: bytes
    digest: bytes

    def check(self, digest: bytes) -> None:
        """
        Raises:
            IdempotencyKeyError: unless the write that came before under this name was the same.
        """
        if digest != self.digest:
            raise IdempotencyKeyError("this idempotency key came with another write before; take a new one for each")


_token: ContextVar[Token | None] = ContextVar("corenn_once", default=None)


@contextmanager
def once(token: Token | None) -> Iterator[None]:
    """Let the one write within this context be done only if none was done under the token before; else what that one
    returned is returned. A write that fails, or changes nothing, leaves no token behind.
    """
    before = _token.set(token)
    try:
        yield
    finally:
        _token.reset(before)


def current() -> Token | None:
    """The token of this context."""
    return _token.get()
