"""Payloads and filters that hypothesis makes: few fields and few values, so that they meet."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from corenn import CoreNN

FIELDS = ("a", "b", "c", "a.x", "a.y", "c.x", "nobody")
TEXTS = ("", "a", "b", "ab", "é", "💧", "2024-01-02", "a\0", "x" * 256, "x" * 257, "x" * 300)
NUMBERS = (0, 1, -1, 2, 0.0, -0.0, 1.0, 0.5, 1e300, -1e300, 2**53, 2**53 + 1, 2**63, -(2**70) - 1, 10**400)

texts = st.sampled_from(TEXTS)
numbers = st.sampled_from(NUMBERS)
scalars = st.one_of(st.none(), st.booleans(), texts, numbers)
leaves = st.one_of(scalars, st.lists(scalars, max_size=3), st.lists(st.lists(scalars, max_size=1), max_size=1))
inner = st.dictionaries(st.sampled_from(["x", "y", "x.y", "$x", ""]), leaves, max_size=3)
values = st.one_of(leaves, inner, st.lists(st.one_of(inner, scalars), max_size=3))
payloads = st.one_of(st.none(), st.dictionaries(st.sampled_from(["a", "b", "c"]), values, max_size=3))


def _conditions() -> st.SearchStrategy[dict[str, Any]]:
    ordered = st.one_of(texts, numbers)
    some = st.lists(scalars, max_size=3)
    return st.one_of(
        st.fixed_dictionaries({}, optional={"$eq": scalars, "$exists": st.booleans()}).filter(bool),
        st.fixed_dictionaries({"$ne": scalars}),
        st.fixed_dictionaries({}, optional={"$gt": ordered, "$lte": ordered}).filter(bool),
        st.fixed_dictionaries({}, optional={"$gte": ordered, "$lt": ordered}).filter(bool),
        st.fixed_dictionaries({"$in": some}),
        st.fixed_dictionaries({"$nin": some}),
        st.fixed_dictionaries({"$contains": st.one_of(scalars, some)}),
    )


conditions = _conditions()
fields = st.sampled_from(FIELDS)
leaf_filters = st.one_of(
    st.dictionaries(fields, scalars, min_size=1, max_size=2),
    st.dictionaries(fields, conditions, min_size=1, max_size=2),
    st.dictionaries(fields, st.fixed_dictionaries({"$not": conditions}), min_size=1, max_size=1),
    st.fixed_dictionaries({"$keys": st.lists(st.integers(0, 40), max_size=4)}),
    st.just({}),
)
filters: st.SearchStrategy[dict[str, Any]] = st.recursive(
    leaf_filters,
    lambda part: st.one_of(
        st.fixed_dictionaries({"$and": st.lists(part, max_size=3)}),
        st.fixed_dictionaries({"$or": st.lists(part, max_size=3)}),
        st.fixed_dictionaries({"$not": part}),
    ),
    max_leaves=5,
)


def change(db: CoreNN, model: dict[int, Any], data: st.DataObject) -> None:
    """Give some of the rows that a model tells of other payloads, and delete some."""
    changed = data.draw(st.dictionaries(st.integers(0, len(model) - 1), payloads, max_size=8))
    if changed:
        db.set_payload(list(changed), list(changed.values()))
        model |= changed
    for key in data.draw(st.sets(st.integers(0, len(model) - 1), max_size=4)):
        db.delete([key])
        del model[key]
