"""Sizes as people write them."""

from __future__ import annotations

import re
from numbers import Integral, Real
from typing import Any

_UNITS = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12,
    "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40,
}  # fmt: skip
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?(?:e[0-9]+)?)\s*([a-z]*)\s*", re.IGNORECASE)


def as_size(size: int) -> str:
    """A number of bytes for a person to read."""
    if size < 10_000:
        return f"{size:,} bytes"
    return f"{size / 1e6:,.2f} MB" if size < 1e9 else f"{size / 1e9:,.2f} GB"


def parse_bytes(value: Any) -> int:
    """The bytes that a size names: a number, or text such as "2GB" (10⁹), "512 MiB" (2²⁰), "1.5g".

    Raises:
        ValueError: for anything else, or a size that is not positive.
    """
    number: float
    if isinstance(value, str):
        found = _SIZE.fullmatch(value)
        unit = None if found is None else _UNITS.get(found[2].lower())
        number = 0.0 if found is None or unit is None else float(found[1]) * unit
    elif isinstance(value, Integral) and not isinstance(value, bool):
        number = int(value)  # of any length
    elif isinstance(value, Real) and not isinstance(value, bool):
        number = float(value)
    else:
        number = 0.0
    if not 1 <= number <= 1 << 62:
        raise ValueError(f"{value!r}: give a size in bytes, or such as '2GB' or '512MiB'")
    return int(number)
