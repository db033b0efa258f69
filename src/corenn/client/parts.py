"""Large writes in parts, and arguments as they are sent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..errors import InvalidPayloadError, InvalidVectorError
from ..inputs import as_count
from ..types import Key, Payload


class Parts:
    """Rows, some at a time: what is sent is no longer needed."""

    def __init__(
        self, keys: Sequence[Key], vectors: Any, payloads: Sequence[Payload | None] | None, batch: int
    ) -> None:
        """
        Raises:
            InvalidVectorError, InvalidPayloadError: if they are not as many as the keys.
            InvalidArgumentError
        """
        if len(keys) != len(vectors):
            raise InvalidVectorError(f"{len(keys):,} keys but {len(vectors):,} vectors; pass one vector per key")
        if payloads is not None and len(payloads) != len(keys):
            raise InvalidPayloadError(f"{len(keys):,} keys but {len(payloads):,} payloads; pass one per key")
        self._keys, self._vectors, self._payloads = keys, vectors, payloads
        self._batch = as_count(batch, "batch")

    def __iter__(self) -> Iterator[tuple[Sequence[Key], Any, Sequence[Payload | None] | None]]:
        for start in range(0, len(self._keys), self._batch):
            part = slice(start, start + self._batch)
            yield self._keys[part], self._vectors[part], None if self._payloads is None else self._payloads[part]


def given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a method that say anything, from its `locals()`."""
    return {
        name: value for name, value in arguments.items() if name not in ("self", "vectors") and value is not None
    }  # fmt: skip
