"""Kernels of unusual stored types are compiled as they are needed, in a process that imports this.

A minute of compiling for each type is too much for the few kernels that most tests need of them.
"""

from __future__ import annotations

from typing import Any

from corenn import database, warmup
from corenn.config import Settings
from corenn.migrate import hnsw, snapshot
from corenn.warmup import warm

USUAL = ("f32", "u8")  # stored types of which all kernels are compiled before they are used


def warm_what_is_usual(settings: Settings, **more: Any) -> None:
    """In the place of `warm`."""
    if settings.dtype in USUAL:
        warm(settings, **more)


for module in (warmup, database, hnsw, snapshot):
    vars(module)["warm"] = warm_what_is_usual
