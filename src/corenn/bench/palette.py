"""How each system looks in every plot, whichever others are in it: the colours of Okabe and Ito, markers, line styles.

Their yellow is left out: lines in it cannot be seen on white. Systems of one family share a colour.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

VERMILION, BLUE, GREEN, SKY = "#D55E00", "#0072B2", "#009E73", "#56B4E9"
PURPLE, ORANGE, BLACK, GREY = "#CC79A7", "#E69F00", "#000000", "#767676"
OWN = ("corenn", "corenn-disk")


@dataclass(frozen=True, slots=True)
class Look:
    """colour: of line and marker. marker, line: as matplotlib calls them. hollow: the marker is only an outline."""

    colour: str
    marker: str
    line: str | tuple[int, tuple[float, ...]] = "-"
    hollow: bool = False


DASHED, DOTTED, MIXED = "--", ":", "-."
FIXED: dict[str, Look] = {
    "corenn": Look(VERMILION, "o"),
    "corenn-disk": Look(VERMILION, "s"),
    "corenn-py": Look(VERMILION, "X", DOTTED),
    "hnswlib": Look(BLUE, "s"),
    "voyager": Look(BLUE, "v", DASHED),
    "faiss-hnsw": Look(GREEN, "D"),
    "faiss-hnsw-sq8": Look(GREEN, "d", MIXED),
    "faiss-ivfpq": Look(GREEN, "P", DASHED),
    "faiss-ivf": Look(GREEN, "v", DOTTED),
    "faiss-flat": Look(GREEN, "*", MIXED),
    "usearch": Look(SKY, "^"),
    "milvus-lite": Look(SKY, "h", DASHED),
    "svs": Look(PURPLE, "D"),
    "qdrant": Look(PURPLE, "<", DASHED),
    "qdrant-memory": Look(PURPLE, ">", MIXED),
    "vsag": Look(BLACK, "v"),
    "zvec": Look(BLACK, "p", DASHED),
    "ngt": Look(ORANGE, "^"),
    "chroma": Look(ORANGE, "X", DASHED),
    "pynndescent": Look(GREY, "s"),
    "lancedb": Look(GREY, ">", DASHED),
    "sqlite-vec": Look(GREY, "*", DOTTED),
    "diskann": Look(BLACK, "D", MIXED),
}
OTHERS = tuple(Look(colour, marker, MIXED) for marker in "d8H" for colour in (BLUE, GREEN, PURPLE, SKY, BLACK, ORANGE))
VARIANTS: tuple[tuple[bool, tuple[float, ...] | None], ...] = (
    (False, None), (True, (4, 1.5)), (True, (1, 1.2)), (False, (6, 1.5, 1, 1.5)),
    (False, (4, 1.5)), (True, (6, 1.5, 1, 1.5)), (False, (1, 1.2)), (True, (8, 3)),
)  # fmt: skip


def look(system: str) -> Look:
    """The look of a system; of one without a look of its own, by its name: the same in every plot."""
    if system in FIXED:
        return FIXED[system]
    family = next((name for name in FIXED if name not in OWN and system.startswith(f"{name}-")), None)
    return FIXED[family] if family else OTHERS[zlib.crc32(system.encode()) % len(OTHERS)]


def looks(systems: Sequence[str]) -> list[Look]:
    """One look for each of `systems`; one that occurs again keeps colour and marker, and gets other lines.

    So does a system whose look another one of them has already.
    """
    seen: dict[Look, int] = {}
    found = []
    for base in map(look, systems):
        again = seen[base] = seen.get(base, -1) + 1
        hollow, dashes = VARIANTS[again % len(VARIANTS)]
        found.append(base if dashes is None else replace(base, hollow=hollow, line=(0, dashes)))
    return found


def own(system: str) -> bool:
    """Whether a system is this one, in memory or on disk, which plots emphasise."""
    return system in OWN
