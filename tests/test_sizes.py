"""Sizes as people write them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from corenn.config import Settings
from corenn.errors import InvalidSettingError
from corenn.sizes import parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1), ("2GB", 2 * 10**9), ("2 gb", 2 * 10**9), ("512MiB", 512 << 20), ("1.5g", 1_500_000_000),
        ("1e9", 10**9), ("64KiB", 64 << 10), ((1 << 53) + 1, (1 << 53) + 1), (4096, 4096), (1e6, 10**6), ("10 B", 10),
    ],
)  # fmt: skip
def test_sizes(text: Any, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "GB", "-1", "1 apple", "1,5GB", "nan", 0, -5, float("nan"), True, None, [1], "1e40", 10**400]
)
def test_what_is_no_size_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match="give a size"):
        parse_bytes(text)


def test_the_memory_limit_is_a_size_or_none() -> None:
    assert Settings(dim=4, memory_limit="2GB").memory_limit == 2 * 10**9  # type: ignore[arg-type]
    assert Settings(dim=4, memory_limit=None).memory_limit == 0  # type: ignore[arg-type]
    assert Settings(dim=4).memory_limit == 0
    assert Settings(dim=4, memory_limit=np.int64(0)).memory_limit == 0  # type: ignore[arg-type]
    with pytest.raises(InvalidSettingError, match="memory_limit"):
        Settings(dim=4, memory_limit="much")  # type: ignore[arg-type]
