"""Rows put to the test of functions, by machine code, in ranges short enough for Ctrl-C to be seen in between."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..kernels.predicate import test_rows
from ..types import AnyArray, Float64s, UInt32s, UInt64s
from .predicate import Where

RANGE_SECONDS = 0.005  # what a range is to take, by what the one before it took
LEAST_RANGE, MOST_RANGE = 1 << 10, 1 << 20


class Tests(NamedTuple):
    """words: uint64 (n, 2), what kernels take; see kernels.predicate.passes. held: the arrays that it points to."""

    words: UInt64s
    held: tuple[AnyArray, ...]

    def passed(self, ids: UInt32s) -> NDArray[np.bool_]:
        """Which of some rows, all of which the columns know, pass all of the tests."""
        out, start, size = np.empty(len(ids), np.bool_), 0, LEAST_RANGE
        while start < len(ids):
            began = time.perf_counter()
            test_rows(self.words, ids[start : start + size], out[start : start + size])
            start, took = start + size, time.perf_counter() - began
            size = int(min(max(size * RANGE_SECONDS / max(took, 1e-9), LEAST_RANGE), MOST_RANGE, 8 * size))
        return out


def tests_of(asked: Sequence[tuple[Where, Sequence[Float64s]]]) -> Tests:
    """The tests by some functions, each of the numbers in its columns."""
    tables = [node.table(columns) for node, columns in asked]
    words = [(node.compiled.code.address, table.ctypes.data) for (node, _), table in zip(asked, tables, strict=True)]
    held = [column for _, columns in asked for column in columns]
    return Tests(np.array(words, np.uint64).reshape(-1, 2), (*tables, *held))


def holds(node: Where, numbers: Sequence[float]) -> bool:
    """Whether a function holds of some numbers."""
    columns = [np.array([number]) for number in numbers]
    return bool(tests_of([(node, columns)]).passed(np.zeros(1, np.uint32))[0])
