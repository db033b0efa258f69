"""Who may do what: keys, as they stand in a file or in the environment.

A key is never shown, nor compared in a time that depends on it.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path

from ..errors import AccessError, InvalidArgumentError
from ..names import check_name
from ..storage.files import translated

MIN_KEY = 16
MAX_HEADER = 8_192


@dataclass(frozen=True, slots=True)
class Holder:
    """What the holder of a key may do. collections: those that it may use, None for all."""

    writes: bool
    collections: frozenset[str] | None = None
    identity: bytes = field(default=b"", compare=False)  # tells one key from another, from one start to the next

    def sees(self, name: str) -> bool:
        """Whether a collection is among those that it may use."""
        return self.collections is None or name in self.collections

    def require(self, name: str | None, *, write: bool) -> None:
        """name: of a collection, None for the server as a whole.

        Raises:
            AccessError
        """
        if write:
            self.require_writing()
        if self.collections is not None and (name is None or name not in self.collections):
            what = "the server as a whole" if name is None else f"collection {name!r}"
            raise AccessError(f"this key is not for {what}; it is for {', '.join(sorted(self.collections))}")

    def require_writing(self) -> None:
        """Raises: AccessError"""
        if not self.writes:
            raise AccessError("this key may only read; ask with one that may write")


ANYBODY = Holder(True)  # on a server without keys


class Keys:
    """All keys of a server. Without any, everybody may do everything."""

    def __init__(self, keys: Iterable[tuple[str, Holder]] = ()) -> None:
        """
        Raises:
            InvalidArgumentError: for a key that is too short, or given twice.
        """
        self._known: list[tuple[bytes, Holder]] = []
        for key, holder in keys:
            if len(key) < MIN_KEY or not key.isascii() or not key.isprintable() or " " in key:
                raise InvalidArgumentError(
                    f"a key of {len(key)} characters: keys have at least {MIN_KEY} printable ASCII characters and no "
                    "space; make one with: openssl rand -hex 32"
                )
            if any(digest == _digest(key) for digest, _ in self._known):
                raise InvalidArgumentError("one key is given twice; each key stands in one place")
            self._known.append((_digest(key), replace(holder, identity=_digest(key))))

    def __bool__(self) -> bool:
        return bool(self._known)

    def holder(self, authorization: str | None) -> Holder:
        """Who sends this Authorization header.

        Raises:
            AccessError: if no key is there, or an unknown one.
        """
        if not self._known:
            return ANYBODY
        sent = None if authorization is None else _sent(authorization)
        if sent is None:
            raise AccessError("this server asks for a key: send it as Authorization: Bearer KEY")
        digest = _digest(sent)
        found = [holder for known, holder in self._known if hmac.compare_digest(known, digest)]
        if not found:
            raise AccessError("the key is unknown")
        return found[0]


def read_keys(path: Path, *, writes: bool) -> list[tuple[str, Holder]]:
    """The keys of a file: one a line, behind it the collections for which it is; none for all. # begins a comment.

    Raises:
        InvalidArgumentError, StorageError
    """
    with translated("read", path):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    found = []
    for line in lines:
        words = line.partition("#")[0].split()
        if words:
            found.append((words[0], Holder(writes, frozenset(map(check_name, words[1:])) or None)))
    if not found:
        raise InvalidArgumentError(f"{path} holds no key; write one a line, such as openssl rand -hex 32 makes")
    return found


def _digest(key: str) -> bytes:
    return blake2b(key.encode(errors="surrogateescape"), digest_size=32).digest()


def _sent(header: str) -> str | None:
    """The key of Bearer, or the password of Basic."""
    scheme, _, rest = header.partition(" ")
    rest = rest.strip()
    if len(header) > MAX_HEADER:
        return None
    if scheme.lower() == "bearer":
        return rest or None
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(rest, validate=True).decode().partition(":")[2] or None
        except ValueError:
            return None
    return None
