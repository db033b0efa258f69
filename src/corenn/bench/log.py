"""The log of runs: one JSON object per line, checked before it is written. docs/benchmarking.md has all fields."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

SCHEMA = 1
FILE = "runs.jsonl"

TEXT, NUMBER, WHOLE, TRUTH, OBJECT, LIST = str, (int, float), int, bool, dict, list
Types = type | tuple[type, ...]

# Name of each field and its type; a field whose name ends in ? may be null.
EVERY: dict[str, Types] = {
    "kind": TEXT, "schema": WHOLE, "run": TEXT, "time": TEXT, "commit?": TEXT, "versions": OBJECT, "machine": OBJECT,
    "dataset": OBJECT, "config": OBJECT, "system": TEXT, "label": TEXT, "version?": TEXT, "n": WHOLE, "dim": WHOLE,
    "k": WHOLE, "threads": WHOLE, "params": OBJECT, "build_params": OBJECT, "query_params": OBJECT,
    "build_seconds?": NUMBER, "build_rows_per_second?": NUMBER, "build_threads": WHOLE, "index_bytes?": WHOLE,
    "memory_parts?": OBJECT, "disk_bytes?": WHOLE, "disk_parts?": OBJECT, "rss?": OBJECT, "import_seconds?": NUMBER,
    "open_seconds?": NUMBER, "first_query_seconds?": NUMBER, "evaluation?": OBJECT, "notes": LIST, "errors": LIST,
}  # fmt: skip
POINT: dict[str, Types] = {
    "recall": NUMBER, "recall_1": NUMBER, "recall_1_at_k": NUMBER, "queries": WHOLE, "qps": NUMBER, "qps_runs": LIST,
    "qps_spread": NUMBER, "cores_used?": NUMBER, "latency_ms?": OBJECT, "distances?": NUMBER, "hops?": NUMBER,
}  # fmt: skip
TARGET: dict[str, Types] = {
    "target": NUMBER, "reached": TRUTH, "at_least": TRUTH, "recall": NUMBER, "qps?": NUMBER, "qps_low?": NUMBER,
    "latency_ms?": OBJECT, "between": LIST,
}  # fmt: skip
FAILURE: dict[str, Types] = {"stage": TEXT, "reason": TEXT, "message": TEXT}
KINDS: dict[str, dict[str, Types]] = {"point": POINT, "target": TARGET, "failure": FAILURE}


def faults(line: Mapping[str, Any]) -> list[str]:
    """What is wrong with a line: fields that are missing, unknown, null, or of another type."""
    kind = line.get("kind")
    if kind not in KINDS:
        return [f"kind is {kind!r}; must be one of {', '.join(KINDS)}"]
    fields = {name.rstrip("?"): (types, name.endswith("?")) for name, types in {**EVERY, **KINDS[kind]}.items()}
    found = [f"{name} is missing" for name in fields if name not in line]
    found += [f"{name} is unknown" for name in line if name not in fields]
    for name, (types, nullable) in fields.items():
        value = line.get(name)
        if name in line and not (nullable if value is None else _fits(value, types)):
            found.append(f"{name} is {value!r}")
    return found


def _fits(value: Any, types: Types) -> bool:
    if isinstance(value, bool):
        return types is TRUTH
    return isinstance(value, types) and not (isinstance(value, float) and not math.isfinite(value))


class Log:
    """A file of lines, appended to; what stands in it is never changed. A context manager.

    name: of the file. check: what is wrong with a line.
    """

    def __init__(
        self, folder: Path, name: str = FILE, check: Callable[[Mapping[str, Any]], list[str]] = faults
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / name
        self._check = check
        self._file = self.path.open("a+b")
        self._end_torn_line()

    def append(self, line: Mapping[str, Any]) -> None:
        """Write one line.

        Raises:
            ValueError: for a line that does not have its fields, which is a mistake of ours.
        """
        wrong = self._check(line)
        if wrong:
            raise ValueError(f"{line.get('label')}: {'; '.join(wrong)}")
        self._file.write(json.dumps(line, allow_nan=False, ensure_ascii=False).encode() + b"\n")
        self._file.flush()

    def _end_torn_line(self) -> None:
        """A line that a killed run has left half written stays one line, and ours begins on the next."""
        size = self._file.seek(0, os.SEEK_END)
        if size:
            self._file.seek(size - 1)
            if self._file.read(1) != b"\n":
                self._file.write(b"\n")

    def close(self) -> None:
        """Bring the lines to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()
