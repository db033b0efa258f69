"""Documentation strings with their vectors: the data of the demo, which can be had as a data set as well."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DatasetError
from ..types import Float32s
from .docstrings import Docstring, harvest, installed

if TYPE_CHECKING:
    from .lsa import Lsa

EMBEDDED_CHARACTERS = 500


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents and their vectors, the vectors of queries that were held back, and what made them.

    vectors (documents, dim), queries (held back, dim): float32, of unit length or zero.
    """

    documents: Sequence[Docstring]
    vectors: Float32s
    queries: Float32s
    embedder: Lsa


def read(limit: int, progress: Callable[[int], None] | None = None) -> list[Docstring]:
    """The first `limit` docstrings of this Python installation, or as many as there are; a few of each package in turn.

    progress: called with 1 for each.
    """
    found = []
    for document in islice(harvest(installed()), limit):
        found.append(document)
        if progress is not None:
            progress(1)
    return found


def embed(found: Sequence[Docstring], held_back: int, dim: int) -> Corpus:
    """Vectors of all documents, by latent semantic analysis fitted on those that are not held back.

    Args:
        found: the documents.
        held_back: how many of them are queries, chosen at random, always the same ones.
        dim: dimensions.

    Raises:
        DatasetError: unless more than `dim` documents remain.
        ModuleNotFoundError: without the extra `demo`.
    """
    from .lsa import Lsa

    documents, queries = _split(found, held_back)
    if len(documents) <= dim:
        raise DatasetError(f"only {len(documents)} texts: choose fewer dimensions than that, or more rows")
    texts = [_text(document) for document in documents]
    embedder = Lsa(dim).fit(texts)
    asked = embedder.transform([_text(query) for query in queries]) if queries else np.empty((0, dim), np.float32)
    return Corpus(documents, embedder.transform(texts), asked, embedder)


def _split(found: Sequence[Docstring], held_back: int) -> tuple[list[Docstring], list[Docstring]]:
    chosen = set(np.random.default_rng(0).permutation(len(found))[:held_back].tolist())
    rest = [document for at, document in enumerate(found) if at not in chosen]
    return rest, [found[at] for at in sorted(chosen)]


def _text(document: Docstring) -> str:
    """What is embedded: the name and the beginning, where a docstring says what the thing is for."""
    return f"{document.name}\n{document.name.rpartition('.')[2]}\n{document.text[:EMBEDDED_CHARACTERS]}"
