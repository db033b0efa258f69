"""The demo's embedder: latent semantic analysis, fitted on the texts themselves, offline, in seconds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Self

import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, HashingVectorizer, TfidfTransformer
from sklearn.preprocessing import normalize

from ..types import Float32s

FEATURES = 1 << 15
WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
SUFFIXES = ("ations", "ation", "ings", "ing", "ions", "ion", "ers", "er", "ed", "es", "s", "e")
SHORTEST_STEM = 4


class Lsa:
    """Texts to unit vectors by latent semantic analysis.

    Stemmed words are hashed into a sparse matrix, weighted by sublinear tf-idf, and projected onto the leading singular
    vectors of the fitted texts, in which words used alike lie close together.

    Deerwester, Dumais, Furnas, Landauer, Harshman: Indexing by Latent Semantic Analysis. JASIS 41(6), 1990. Axes are
    weighted by the root of their singular value, as in Caron: Experiments with LSA Scoring, 2001: the few broad topics
    of the first axes then drown less of the rest.
    """

    def __init__(self, dim: int = 256, seed: int = 0) -> None:
        self.dim = dim
        self._hash = HashingVectorizer(analyzer=terms, n_features=FEATURES, alternate_sign=False, norm=None)
        self._weigh = TfidfTransformer(sublinear_tf=True)
        self._project = TruncatedSVD(dim, algorithm="randomized", n_iter=3, random_state=seed)

    def fit(self, texts: Sequence[str]) -> Self:
        """Learn the weights of words and the axes from more than `dim` texts.

        Raises:
            ValueError: if there are too few texts.
        """
        if len(texts) <= self.dim:
            raise ValueError(f"{len(texts)} texts do not span {self.dim} dimensions: give more texts or a smaller dim")
        self._project.fit(self._weigh.fit_transform(self._hash.transform(texts)))
        return self

    def transform(self, texts: Sequence[str]) -> Float32s:
        """Vectors of unit length, shape (len(texts), dim); zero where a text has no known word."""
        weighed = self._weigh.transform(self._hash.transform(texts))
        scale = np.sqrt(np.maximum(self._project.singular_values_, np.finfo(np.float64).tiny))
        return np.ascontiguousarray(normalize(self._project.transform(weighed) / scale), np.float32)


def terms(text: str) -> list[str]:
    """Stems of the words of a text, in lower case, without stop words; parts of names count as words."""
    return [stem(word) for word in map(str.lower, WORD.findall(text)) if word not in ENGLISH_STOP_WORDS]


@lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """A word without the commonest English endings, so that compressed, compression and compress are one."""
    for suffix in SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= SHORTEST_STEM and not word.endswith("ss"):
            return word.removesuffix(suffix)
    return word
