"""Candidates: one uint64 each, so that a comparison, a move and a tie-break are one instruction.

bits 63..32  squared distance as the bits of a non-negative float32, which sort as the floats do
bits 31..1   id
bit  0       set once the candidate has been expanded
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .intrinsics import bits_float, float_bits
from .jit import inlined

NOTHING = np.uint64(0xFFFFFFFFFFFFFFFF)  # sorts after every candidate
EXPANDED = np.uint64(1)
VACANT = np.uint32(0xFFFFFFFF)  # a place in a table of seen ids that holds none

_HIGH = np.uint64(32)
_ONE = np.uint64(1)
_LOW = np.uint64(0xFFFFFFFF)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@inlined
def pack(distance: Any, row: Any) -> Any:
    """The candidate `row` at a squared distance; rounding may have made that slightly negative."""
    return (np.uint64(float_bits(max(np.float32(0), distance))) << _HIGH) | (np.uint64(row) << _ONE)


@inlined
def id_of(candidate: Any) -> Any:
    """The id of a candidate."""
    return np.int64((candidate & _LOW) >> _ONE)


@inlined
def distance_of(candidate: Any) -> Any:
    """The squared distance of a candidate."""
    return bits_float(np.uint32(candidate >> _HIGH))


@inlined
def place_of(pool: Any, count: Any, candidate: Any) -> Any:
    """How many of the `count` entries of an ascending pool are less than a candidate."""
    low, high = 0, count
    while low < high:
        middle = (low + high) >> 1
        if pool[middle] < candidate:
            low = middle + 1
        else:
            high = middle
    return low


@inlined
def insert_at(pool: Any, place: Any, count: Any, capacity: Any, candidate: Any) -> None:
    """Insert at a place, moving up what follows, and dropping the last of the `count` entries if the pool is full."""
    last = count if count < capacity else capacity - 1
    for at in range(last, place, -1):
        pool[at] = pool[at - 1]
    pool[place] = candidate


@inlined
def insert_sorted(pool: Any, count: Any, capacity: Any, candidate: Any) -> None:
    """Insert into an ascending pool of `count` entries, dropping the last one if it is full.

    The caller has checked that the candidate belongs in it and raises the count.
    """
    insert_at(pool, place_of(pool, count, candidate), count, capacity, candidate)


@inlined
def sort(values: Any, count: Any) -> None:
    """Sort the first `count` values ascending in place (Shell, with Ciura's gaps): a few hundred at most."""
    for gap in (301, 132, 57, 23, 10, 4, 1):
        for i in range(gap, count):
            value = values[i]
            at = i
            while at >= gap and values[at - gap] > value:
                values[at] = values[at - gap]
                at -= gap
            values[at] = value


@inlined
def sort_distinct(values: Any, count: Any) -> Any:
    """Sort the first `count` values ascending in place, each once; returns how many are left."""
    sort(values, count)
    kept = 0
    for t in range(count):
        if t == 0 or values[t] != values[t - 1]:
            values[kept] = values[t]
            kept += 1
    return kept


@inlined
def unseen(seen: Any, row: Any) -> Any:
    """Note an id in a table whose size is a power of two; False if it is sure to have been noted before.

    One place per id and no probing: a later id takes the place of an earlier one, which then passes for unseen again.
    That costs a distance now and then, and saves the branches that a processor cannot predict.
    """
    place = ((np.uint64(row) * _GOLDEN) >> _HIGH) & np.uint64(seen.shape[0] - 1)
    before = seen[place]
    seen[place] = np.uint32(row)
    return before != np.uint32(row)


@inlined
def push_heap(heap: Any, count: Any, value: Any) -> Any:
    """Keep the smallest values in a max-heap of fixed size; returns the new count."""
    capacity = heap.shape[0]
    if count < capacity:
        at = count
        while at > 0 and heap[(at - 1) >> 1] < value:
            heap[at] = heap[(at - 1) >> 1]
            at = (at - 1) >> 1
        heap[at] = value
        return count + 1
    if value >= heap[0]:
        return count
    at = 0
    while True:
        child = 2 * at + 1
        if child >= capacity:
            break
        if child + 1 < capacity and heap[child + 1] > heap[child]:
            child += 1
        if heap[child] <= value:
            break
        heap[at] = heap[child]
        at = child
    heap[at] = value
    return count
