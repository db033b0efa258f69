"""Cases for tests of many: the stored types of large kernels, and part of a product for the quick suite."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest

from tests.conftest import COMPILED
from tests.oracle import DTYPES
from tests.usual import USUAL

# Each of these kernels takes ten seconds to compile for a type. What differs between types is in small ones, which have
# tests of their own for all.
LARGE_KERNEL_DTYPES = [
    pytest.param(dtype, marks=pytest.mark.slow) if COMPILED and dtype not in USUAL else dtype for dtype in DTYPES
]
Param = type(pytest.param())
STORED = ("memory", "disk")  # for the fixture `create`


def diagonal(*axes: Sequence[Any], rounds: int = 1) -> list[Any]:
    """The product of lists, in which each value is met in the quick suite, and every combination in the slow one.

    Quick are the first values of all lists, the second ones, and so on, shorter ones again and again, until the longest
    has come so many rounds. A value that is marked slow is only in slow combinations.
    """
    quick_axes = [[value for value in axis if not isinstance(value, Param)] for axis in axes]
    turns = range(rounds * max(map(len, quick_axes)))
    quick = {tuple(axis[turn % len(axis)] for axis in quick_axes) for turn in turns}
    every = product(*([each.values[0] if isinstance(each, Param) else each for each in axis] for axis in axes))
    return [case if case in quick else pytest.param(*case, marks=pytest.mark.slow) for case in every]
