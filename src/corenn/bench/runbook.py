"""Runbooks of big-ann-benchmarks: which rows are inserted, replaced and deleted, and when is searched.

A runbook is YAML: by data set, `max_pts` (live rows at most), `gt_url` (ignored: truth is computed here) and the steps,
numbered from 1.

    sift-small:
      max_pts: 10000
      1: {operation: insert, start: 0, end: 10000}
      2: {operation: search}
      3: {operation: replace, tags_start: 0, tags_end: 500, ids_start: 5000, ids_end: 5500}
      4: {operation: delete, start: 500, end: 1000}

A row has a number in the data, its id, and is known in the database by its tag. An insert gives row i the tag i; a
replace puts other rows under tags that are there. Ranges are half open. Everything is checked before anything is done.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from ..errors import DatasetError
from ..types import Int64s

RANGES = {
    "insert": ("start", "end"),
    "delete": ("start", "end"),
    "replace": ("tags_start", "tags_end", "ids_start", "ids_end"),
    "search": (),
}
OTHERS = ("max_pts", "gt_url")
NOTHING = -1


@dataclass(frozen=True, slots=True)
class Step:
    """One step. tags: the range of tags that it is about; ids: the range of rows that come under them, if any do."""

    number: int
    operation: str
    tags: range = range(0)
    ids: range = range(0)

    @property
    def shown(self) -> str:
        """As a person reads it."""
        if self.operation == "search":
            return "search"
        tags = f"{self.operation} {self.tags.start:,}–{self.tags.stop - 1:,}"
        return f"{tags} by {self.ids.start:,}–{self.ids.stop - 1:,}" if self.operation == "replace" else tags


@dataclass(frozen=True, slots=True)
class Runbook:
    """The steps for one data set, checked. most: live rows at most; peak: as many as there really are at once."""

    path: Path
    name: str
    most: int
    steps: tuple[Step, ...]
    peak: int

    @property
    def searches(self) -> int:
        """How many steps search."""
        return sum(step.operation == "search" for step in self.steps)


class Live:
    """Which row is under which tag, step by step."""

    def __init__(self, rows: int) -> None:
        self._rows = np.full(rows, NOTHING, np.int64)
        self.count = 0

    def apply(self, step: Step) -> None:
        """Do what a step does; steps are known to fit."""
        if step.operation == "delete":
            self._rows[step.tags.start : step.tags.stop] = NOTHING
            self.count -= len(step.tags)
        elif step.operation in ("insert", "replace"):
            self._rows[step.tags.start : step.tags.stop] = np.arange(step.ids.start, step.ids.stop)
            self.count += len(step.tags) if step.operation == "insert" else 0

    def under(self, tags: range) -> Int64s:
        """The rows under a range of tags, NOTHING where there is none."""
        return self._rows[tags.start : tags.stop]

    def rows_of(self, tags: Int64s) -> Int64s:
        """The rows under some tags, NOTHING for tags that are not there."""
        inside = (tags >= 0) & (tags < len(self._rows))
        return np.where(inside, self._rows[np.where(inside, tags, 0)], NOTHING)

    def rows(self) -> Int64s:
        """All rows that are there, ascending; one under several tags as often."""
        return np.sort(self._rows[self._rows != NOTHING])


def read_runbook(path: Path, rows: int, name: str | None = None) -> Runbook:
    """The runbook for a data set of so many rows, every step checked.

    name: that of the data set in the file; not needed if there is one only.

    Raises:
        DatasetError: for a file that is no runbook, a step that is incomplete or has unknown fields, ranges beyond the
            data, an insert of what is there, a delete or replace of what is not, or more live rows than max_pts.
        ModuleNotFoundError: without PyYAML.
    """
    chosen, section = _section(path, name)
    most = section.get("max_pts")
    if not _is_count(most) or most == 0:
        raise DatasetError(f"{path}: {chosen}: max_pts is {most!r}; must be a whole number above 0")
    steps = tuple(_step(path, chosen, number, section[number], rows) for number in _numbers(path, chosen, section))
    return Runbook(path, chosen, most, steps, _checked(path, steps, most, rows))


def section_of(path: Path, name: str | None = None) -> str:
    """The data set that a runbook is for, as it is called in the file.

    Raises:
        DatasetError: for a file that is no runbook, or one for several data sets if none is named.
        ModuleNotFoundError: without PyYAML.
    """
    return _section(path, name)[0]


# --- the file ---------------------------------------------------------------------------------------------------------


def _section(path: Path, name: str | None) -> tuple[str, Mapping[Any, Any]]:
    """The steps of one data set, as they stand in the file."""
    import yaml  # type: ignore[import-untyped,unused-ignore]

    try:
        text = path.read_text("utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise DatasetError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not content:
        raise DatasetError(f"{path}: no runbook; must name data sets and their steps")
    for key in _twice(node):
        raise DatasetError(f"{path}: line {key.start_mark.line + 1}: {key.value} is there twice")
    if name is None and len(content) > 1:
        raise DatasetError(f"{path} is for several data sets: choose one of {', '.join(map(str, content))} by --name")
    chosen = next(iter(content)) if name is None else name
    if chosen not in content:
        raise DatasetError(f"{path}: nothing for {chosen}; has {', '.join(map(str, content))}")
    section = content[chosen]
    if not isinstance(section, dict):
        raise DatasetError(f"{path}: {chosen}: must have max_pts and numbered steps")
    return str(chosen), section


def _twice(node: Any) -> Iterator[Any]:
    """Keys that occur again in a mapping, which the loader would drop: of the file, its sections and their steps."""
    pending = [(node, 3)]
    while pending:
        mapping, depth = pending.pop()
        if depth and getattr(mapping, "id", "") == "mapping":
            seen: set[tuple[str, str]] = set()
            for key, value in mapping.value:
                mark = (key.tag, str(key.value))
                if mark in seen:
                    yield key
                seen.add(mark)
                pending.append((value, depth - 1))


def _numbers(path: Path, name: str, section: Mapping[Any, Any]) -> range:
    numbers = [key for key in section if _is_count(key)]
    for key in section:
        if not _is_count(key) and key not in OTHERS:
            raise DatasetError(f"{path}: {name}: unknown entry {key!r}; steps are numbered, beside {', '.join(OTHERS)}")
    missing = next((number for number in range(1, len(numbers) + 1) if number not in section), None)
    if missing is not None or not numbers:
        raise DatasetError(f"{path}: {name}: no step {missing or 1}; steps are numbered from 1 without gaps")
    return range(1, len(numbers) + 1)


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


# --- the steps --------------------------------------------------------------------------------------------------------


def _step(path: Path, name: str, number: int, entry: Any, rows: int) -> Step:
    """A step that makes sense by itself."""
    where = f"{path}: {name}: step {number}"
    operation = entry.get("operation") if isinstance(entry, dict) else None
    if not isinstance(operation, str) or operation not in RANGES:
        raise DatasetError(f"{where}: operation is {operation!r}; must be one of {', '.join(RANGES)}")
    fields = RANGES[operation]
    wrong = [*(field for field in fields if field not in entry), *(set(entry) - {"operation", *fields})]
    if wrong:
        raise DatasetError(
            f"{where}: {operation} has {', '.join(map(str, fields)) or 'no fields'}; {wrong[0]} is not right"
        )
    ranges = [_range(where, entry, fields[at], fields[at + 1], rows) for at in range(0, len(fields), 2)]
    tags = ranges[0] if ranges else range(0)
    ids = ranges[1] if operation == "replace" else tags if operation == "insert" else range(0)
    if operation == "replace" and len(tags) != len(ids):
        raise DatasetError(f"{where}: {len(tags):,} tags but {len(ids):,} ids; a replace needs as many")
    return Step(number, operation, tags, ids)


def _range(where: str, entry: Mapping[str, Any], first: str, last: str, rows: int) -> range:
    start, end = entry[first], entry[last]
    if not (_is_count(start) and _is_count(end) and start < end <= rows):
        raise DatasetError(
            f"{where}: {first} {start!r} to {last} {end!r}; must be whole numbers, start below end, "
            f"end at most {rows:,}, the rows of the data"
        )
    return range(start, end)


def _checked(path: Path, steps: tuple[Step, ...], most: int, rows: int) -> int:
    """Play the steps on tags alone; the most rows that are there at once."""
    live, peak = Live(rows), 0
    for step in steps:
        there = live.under(step.tags) != NOTHING
        wrong = there if step.operation == "insert" else ~there
        if wrong.any():
            tag = step.tags[int(wrong.argmax())]
            how = "there already" if step.operation == "insert" else "not there"
            raise DatasetError(f"{path}: step {step.number}: {step.operation} of tag {tag:,}, which is {how}")
        live.apply(step)
        peak = max(peak, live.count)
        if live.count > most:
            raise DatasetError(f"{path}: step {step.number}: {live.count:,} rows are live, above max_pts, {most:,}")
    return peak
