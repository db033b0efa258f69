"""What a text asks for, and where it is met: words and phrases, cut and lowered as the full-text index does it.

A text is taken as plain words, of which any may be met; what stands in double quotes is a phrase, whose words follow
each other. Nothing in it is an operator, so that whatever somebody types is a query.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import cache
from hashlib import blake2b
from typing import Any, NamedTuple, TypeAlias

from . import bm25
from .match import reached

Words: TypeAlias = tuple[tuple[int, str], ...]  # each with its place among those of one text
_QUOTED = re.compile(r'"([^"]*)"')


class Sought(NamedTuple):
    """A text as it is looked for: words that stand alone, and phrases, in their order."""

    parts: tuple[Words, ...]

    @property
    def shown(self) -> tuple[str, ...]:
        """Each part as text."""
        return tuple(" ".join(word for _, word in part) for part in self.parts)


def sought_in(text: str) -> Sought:
    """What a text asks for: nothing, if there is no word in it.

    Raises:
        MissingExtraError
    """
    parts: list[tuple[bool, Words]] = []  # each once, but a word in quotes beside the same without, as tantivy has it
    for number, piece in enumerate(_QUOTED.split(text)):
        words, quoted = words_of(piece), number % 2 == 1
        if quoted and len(words) > 1:
            parts.append((True, words))
        else:
            parts += [(quoted, ((0, word),)) for _, word in words]
    return Sought(tuple(words for _, words in dict.fromkeys(parts)))


def words_of(text: str) -> Words:
    """The words of a text with their places. Those of more than 39 bytes are left out, and keep their place."""
    return tuple((token.position, token.text) for token in _analyzer().pre_tokenize(text).tokens)


@cache
def _analyzer() -> Any:
    return bm25.analyzer()


def texts_of(payload: bytes | None, fields: Sequence[str]) -> list[list[str]]:
    """The texts that a payload, as JSON text, has in each field: those of a list are its elements."""
    if payload is None:
        return [[] for _ in fields]
    held = json.loads(payload)
    return [list(_texts_at(held, field)) for field in fields]


def _texts_at(payload: Any, path: str) -> Iterator[str]:
    for found in reached(payload, path.split(".")):
        for value in found if isinstance(found, list) else (found,):
            if isinstance(value, str):
                yield value


def is_met(sought: Sought, texts: list[list[str]]) -> bool:
    """Whether one of the parts is in one of the fields. texts: of each field."""
    return any(_stands(part, places) for places in map(_places, texts) for part in sought.parts)


def _places(texts: list[str]) -> set[tuple[int, str]]:
    """The words of a field with their places. Between two texts one is left out, so that no phrase goes over both."""
    places: set[tuple[int, str]] = set()
    start = 0
    for text in texts:
        words = words_of(text)
        places.update((start + place, word) for place, word in words)
        start += (words[-1][0] + 2) if words else 1
    return places


def _stands(part: Words, places: set[tuple[int, str]]) -> bool:
    first, word = part[0]
    starts = [place - first for place, each in places if each == word]
    return any(all((start + place, each) in places for place, each in part) for start in starts)


def digest_of(texts: list[list[str]]) -> int:
    """A number of 64 bits that other texts do not have."""
    return int.from_bytes(blake2b(json.dumps(texts).encode(), digest_size=8).digest(), "little")
