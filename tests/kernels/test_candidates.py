"""Rules out candidates that sort, merge or hash wrongly."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from corenn.kernels.candidates import (
    VACANT,
    distance_of,
    id_of,
    insert_sorted,
    pack,
    push_heap,
    sort,
    sort_distinct,
    unseen,
)
from corenn.kernels.jit import kernel

WORDS = st.lists(st.integers(0, 2**64 - 2), max_size=80)


@kernel
def pack_all(distances: Any, ids: Any, out: Any, back: Any) -> None:
    for i in range(ids.shape[0]):
        out[i] = pack(distances[i], ids[i])
        back[i, 0] = distance_of(out[i])
        back[i, 1] = id_of(out[i])


@kernel
def insert_all(values: Any, pool: Any) -> Any:
    count = 0
    for i in range(values.shape[0]):
        if count < pool.shape[0] or values[i] < pool[count - 1]:
            insert_sorted(pool, count, pool.shape[0], values[i])
            count = min(count + 1, pool.shape[0])
    return count


@kernel
def sort_all_distinct(values: Any) -> Any:
    return sort_distinct(values, values.shape[0])


@kernel
def sort_all(values: Any) -> None:
    sort(values, values.shape[0])


@kernel
def heap_all(values: Any, heap: Any) -> Any:
    count = 0
    for i in range(values.shape[0]):
        count = push_heap(heap, count, values[i])
    return count


@kernel
def note_all(ids: Any, seen: Any, fresh: Any) -> None:
    for i in range(ids.shape[0]):
        fresh[i] = unseen(seen, ids[i])


@given(st.lists(st.tuples(st.floats(-1, 2.0**100, width=32), st.integers(0, 2**31 - 2)), min_size=1, max_size=30))
def test_candidates_sort_by_distance_then_id(pairs: list[tuple[float, int]]) -> None:
    distances = np.array([pair[0] for pair in pairs], np.float32)
    ids = np.array([pair[1] for pair in pairs], np.uint32)
    packed, back = np.zeros(len(pairs), np.uint64), np.zeros((len(pairs), 2), np.float64)
    pack_all(distances, ids, packed, back)
    clamped = np.maximum(distances, np.float32(0))
    assert np.array_equal(back[:, 0], clamped)
    assert np.array_equal(back[:, 1], ids)
    assert np.array_equal(np.argsort(packed, kind="stable"), np.lexsort((ids, clamped)))


@given(WORDS, st.integers(1, 40))
def test_a_pool_keeps_the_smallest_in_order(words: list[int], size: int) -> None:
    values, pool = np.array(words, np.uint64), np.zeros(size, np.uint64)
    count = insert_all(values, pool)
    assert pool[:count].tolist() == sorted(words)[:size]


@given(WORDS)
def test_sort_sorts(words: list[int]) -> None:
    values = np.array(words, np.uint64)
    sort_all(values)
    assert values.tolist() == sorted(words)


@given(WORDS)
def test_sort_distinct_keeps_each_once(words: list[int]) -> None:
    values = np.array(words * 2, np.uint64)
    count = sort_all_distinct(values)
    assert values[:count].tolist() == sorted(set(words))


@given(WORDS, st.integers(1, 40))
def test_a_heap_keeps_the_smallest(words: list[int], size: int) -> None:
    heap = np.zeros(size, np.uint64)
    count = heap_all(np.array(words, np.uint64), heap)
    assert sorted(heap[:count].tolist()) == sorted(words)[:size]


@given(st.lists(st.integers(0, 2**31 - 2), max_size=48))
def test_what_was_not_noted_never_passes_for_seen(ids: list[int]) -> None:
    fresh = np.zeros(len(ids), np.uint8)
    note_all(np.array(ids, np.uint32), np.full(8, VACANT), fresh)
    assert all(fresh[at] for at, row in enumerate(ids) if row not in ids[:at])
    assert not any(fresh[at] for at in range(1, len(ids)) if ids[at] == ids[at - 1])


def test_a_roomy_table_of_seen_ids_forgets_little() -> None:
    ids = np.random.default_rng(0).integers(0, 2**31 - 1, 1000).astype(np.uint32)
    fresh = np.zeros(2000, np.uint8)
    note_all(np.tile(ids, 2), np.full(4096, VACANT), fresh)
    assert fresh[:1000].all()
    assert fresh[1000:].mean() < 0.25
