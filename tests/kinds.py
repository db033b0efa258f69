"""Stored types for tests of the largest kernels, each of which takes ten seconds to compile for a type."""

from __future__ import annotations

import pytest

from tests.conftest import COMPILED, USUAL
from tests.oracle import DTYPES

# What differs between types is in small kernels, which have tests of their own for all.
LARGE_KERNEL_DTYPES = [
    pytest.param(dtype, marks=pytest.mark.slow) if COMPILED and dtype not in USUAL else dtype for dtype in DTYPES
]
