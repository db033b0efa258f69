"""Payloads with texts, and the same index made by tantivy itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tantivy
from hypothesis import strategies as st

from corenn import CoreNN
from corenn.types import Key

DIM = 4
FIELDS = ["title", "body.text"]
SETTINGS: dict[str, Any] = {"dim": DIM, "metric": "l2", "text_fields": FIELDS}
WORDS = ("red", "blue", "shoes", "hat", "sun", "sea", "old", "new", "Ünder", "don't")

sentences = st.lists(st.sampled_from(WORDS), max_size=5).map(" ".join)
phrases = st.lists(st.sampled_from(WORDS[:-1]), min_size=1, max_size=3).map(" ".join)  # as tantivy parses them, too
texts = st.one_of(sentences, st.lists(st.one_of(sentences, st.integers(0, 3)), max_size=2), st.none())
payloads = st.one_of(
    st.none(),
    st.fixed_dictionaries({}, optional={"title": texts, "n": st.integers(0, 3)}),
    st.fixed_dictionaries({"title": texts, "body": st.one_of(texts, st.fixed_dictionaries({"text": texts}))}),
    st.fixed_dictionaries({"body": st.lists(st.fixed_dictionaries({"text": texts}), max_size=2)}),
)
queries = st.one_of(phrases, phrases.map('"{}"'.format), st.tuples(phrases, phrases).map('{0[0]} "{0[1]}"'.format))


def made(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Payloads whose texts are words at random, some far more often than others."""
    rng = np.random.default_rng(seed)
    words = np.array([*WORDS, *(f"w{number}" for number in range(40))])
    shares = 1 / np.arange(1, len(words) + 1)

    def some(most: int) -> str:
        return " ".join(rng.choice(words, rng.integers(1, most), p=shares / shares.sum()))

    return [{"title": some(6), "body": {"text": [some(20), some(10)]}, "n": row % 5} for row in range(count)]


def vectors(count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)


def filled(db: CoreNN, count: int = 200, ask: str | None = None) -> dict[Key, Any]:
    """Insert rows in several commits, and ask in between; returns them as keys and payloads."""
    each = made(count)
    for start in range(0, count, 64):
        rows = range(start, min(start + 64, count))
        db.insert(list(rows), vectors(count)[start : start + 64], each[start : start + 64])
        if ask is not None:
            db.query(text=ask)
    return dict(enumerate(each))


def change(db: CoreNN, model: dict[Key, Any]) -> None:
    """Rows that come, go, and get other payloads."""
    db.set_payload([3, 39], [{"title": "red hat"}, None])
    db.delete([7, 8])
    db.upsert([9], vectors(1), [{"body": {"text": "old sea"}}])
    db.insert([1000, 1001], vectors(2), [{"title": "sun red blue"}, None])
    model |= {3: {"title": "red hat"}, 39: None}
    for key in (7, 8, 9):
        del model[key]
    model |= {9: {"body": {"text": "old sea"}}, 1000: {"title": "sun red blue"}, 1001: None}


def values_at(payload: Any, path: str) -> list[str]:
    """The texts at a path, by a walk of its own."""
    here = [payload or {}]
    for name in path.split("."):
        flat = [one for each in here for one in (each if isinstance(each, list) else [each])]
        here = [one[name] for one in flat if isinstance(one, dict) and name in one]
    return [one for each in here for one in (each if isinstance(each, list) else [each]) if isinstance(one, str)]


def by_tantivy(model: Mapping[Key, Any], fields: Sequence[str], text: str) -> list[tuple[Key, float]]:
    """All keys that tantivy finds for a text, best first, ties in order; and their scores."""
    schema = tantivy.SchemaBuilder().add_integer_field("at", fast=True)
    for field in fields:
        schema = schema.add_text_field(field.replace(".", "_"))
    index = tantivy.Index(schema.build())
    writer = index.writer(15_000_000, 1)
    keys = list(model)
    for at, key in enumerate(keys):
        document = tantivy.Document()
        document.add_integer("at", at)
        found = {field: values_at(model[key], field) for field in fields}
        for field, values in found.items():
            for value in values:
                document.add_text(field.replace(".", "_"), value)
        if any(found.values()):
            writer.add_document(document)
    writer.commit()
    writer.wait_merging_threads()
    index.reload()
    searcher = index.searcher()
    query = index.parse_query(text, [field.replace(".", "_") for field in fields])
    hits = searcher.search(query, max(len(keys), 1)).hits
    places = searcher.fast_field_values("at", [address for _, address in hits])
    ranked = sorted(zip(places, (score for score, _ in hits), strict=True), key=lambda one: (-one[1], one[0]))
    return [(keys[place], score) for place, score in ranked]
