"""A runbook played on CoreNN: speed of every step, and recall of every search against the rows live at that moment."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from ..datasets import Vectors
from ..datasets.truth import exact_truth
from ..errors import CorruptionError
from ..types import AnyArray, Float32s, Hits, Int64s
from . import memory
from .harness import list_for
from .machine import commit, machine, versions
from .recall import MISSING, distances_of, once, recall_by_distance, table
from .runbook import NOTHING, Live, Runbook, Step

if TYPE_CHECKING:
    from ..database import CoreNN

FILE = "runbook.jsonl"
SCHEMA = 1
Line = dict[str, Any]
STORED = {"float32": "f32", "float64": "f32", "float16": "f16", "bfloat16": "bf16", "uint8": "u8", "int8": "i8"}


def stored_type(dtype: np.dtype[Any]) -> str:
    """The stored type for vectors of a type; f32 for integers that have none of their own."""
    return STORED.get(dtype.name, "f32")


@dataclass(frozen=True, slots=True)
class Player:
    """A runbook, the data it speaks of, and the database it is played on, which must be empty.

    base: the rows. queries: float32 of shape (queries, dim), the same for every search. k: neighbours of a search.
    search_list, threads: of every search; None is the default of the database, and all cores. batch: rows per insert.
    about: what else the log says about every step, such as the data set.
    """

    runbook: Runbook
    base: Vectors
    queries: Float32s
    metric: str
    k: int
    db: CoreNN
    search_list: int | None = None
    threads: int | None = None
    batch: int = 1_000
    about: Line = field(default_factory=dict)

    def play(self, advance: Callable[[int], None] | None = None) -> Iterator[Line]:
        """Do one step after the other; what is logged of each, as soon as it is done.

        advance: called with each number of rows written.

        Raises:
            CorruptionError: if the database does not hold what the steps before have put there.
        """
        live = Live(len(self.base))
        common = self._common()
        for step in self.runbook.steps:
            began = time.perf_counter()
            answers = self._do(step, advance)
            seconds = time.perf_counter() - began
            live.apply(step)
            if len(self.db) != live.count:
                raise CorruptionError(f"step {step.number}: {len(self.db):,} rows are there, not {live.count:,}")
            figures = self._judge(answers, live) if step.operation == "search" else {}
            yield {**common, **self._told(step, seconds, live.count), **figures}

    # --- steps --------------------------------------------------------------------------------------------------------

    def _do(self, step: Step, advance: Callable[[int], None] | None) -> list[Hits]:
        """What is timed: the vectors are read meanwhile, as they would be in use."""
        if step.operation == "search":
            answers: list[Hits] = self.db.query(
                self.queries,
                k=self.k,
                search_list=list_for(self.k, self.search_list),
                threads=self.threads,
                explain=True,
            )
            return answers
        for start in range(0, len(step.tags), self.batch):
            tags, ids = step.tags[start : start + self.batch], step.ids[start : start + self.batch]
            if step.operation == "delete":
                self.db.delete(tags)
            else:
                write = self.db.insert if step.operation == "insert" else self.db.upsert
                write(tags, self.base.rows(ids.start, ids.stop))
            if advance is not None:
                advance(len(tags))
        return []

    # --- recall -------------------------------------------------------------------------------------------------------

    def _judge(self, answers: list[Hits], live: Live) -> Line:
        """Recall of a search, ties by distance, and how many hits were no live rows: 0, or something is wrong."""
        tags = table([[int(key) for key in hits.keys] for hits in answers], self.k, MISSING)
        works = [hits.explain for hits in answers if hits.explain is not None]
        rows = live.rows_of(tags)
        count = min(self.k, live.count)
        told: Line = {
            "recall": None, "recall_1": None, "stale": int(np.count_nonzero((rows == NOTHING) & (tags != MISSING))),
            "distances": float(np.mean([work.distances for work in works])),
            "hops": float(np.mean([work.hops for work in works])),
        }  # fmt: skip
        if count:
            truth = exact_truth(_Subset(self.base, live.rows()), self.queries, count, self.metric, threads=self.threads)
            assert truth.distances is not None
            found = self._distances(live.rows_of(once(tags)))  # a row may stand under several tags
            told["recall"] = recall_by_distance(found, truth.distances, count)
            told["recall_1"] = recall_by_distance(found, truth.distances, 1)
        return told

    def _distances(self, rows: Int64s) -> AnyArray:
        """Exact distances of the rows found."""
        known, places = np.unique(rows, return_inverse=True)
        vectors = np.array(_gather(self.base, known[known != NOTHING]), np.float32)
        shift = len(known) - len(vectors)  # NOTHING comes first if it is there, and becomes MISSING
        return distances_of(places.reshape(rows.shape) - shift, vectors, self.queries, self.metric)

    # --- the log ------------------------------------------------------------------------------------------------------

    def _common(self) -> Line:
        stats = self.db.stats()
        settings = self.db.settings.as_dict()
        return {
            "kind": "step", "schema": SCHEMA, "run": secrets.token_hex(6), "commit": commit(), "versions": versions(),
            "machine": machine(), "system": "corenn" if stats.path is None else "corenn-disk",
            "version": versions()["corenn"], "runbook": self.runbook.path.name, "section": self.runbook.name,
            "steps": len(self.runbook.steps), "max_pts": self.runbook.most, "dim": self.base.dim, "k": self.k,
            "threads": self.threads, "params": {**settings, "search_list": self.search_list, "batch": self.batch},
            **self.about,
        }  # fmt: skip

    def _told(self, step: Step, seconds: float, live: int) -> Line:
        """What is known of every step."""
        stats = self.db.stats()
        search = step.operation == "search"
        done = len(self.queries) if search else len(step.tags)
        return {
            "time": datetime.now(UTC).isoformat(timespec="seconds"), "step": step.number, "operation": step.operation,
            "tags": None if search else [step.tags.start, step.tags.stop],
            "ids": [step.ids.start, step.ids.stop] if step.ids else None,
            "count": done, "seconds": seconds, "rate": done / seconds if seconds else None, "n": live,
            "tombstones": stats.tombstones, "pending": stats.pending, "rss_bytes": memory.resident(),
            "memory_parts": stats.memory, "disk_bytes": stats.disk_bytes or None,
        }  # fmt: skip


class _Subset(Vectors):
    """Some rows of a file, by ascending number, as if they were a file of their own."""

    def __init__(self, base: Vectors, chosen: Int64s) -> None:
        self.path = base.path
        self.shape = (len(chosen), base.dim)
        self.dtype = base.dtype
        self._base = base
        self._chosen = chosen

    def _rows(self, start: int, stop: int) -> AnyArray:
        return _gather(self._base, self._chosen[start:stop])

    def close(self) -> None:
        """The file belongs to someone else."""


def _gather(base: Vectors, rows: Int64s) -> AnyArray:
    """Rows by number, ascending, read in runs of consecutive ones."""
    ends = np.flatnonzero(np.diff(rows) != 1) + 1
    runs = [(int(run[0]), int(run[-1]) + 1) for run in np.split(rows, ends) if len(run)]
    if not runs:
        return np.empty((0, base.dim), base.dtype)
    return np.concatenate([base.rows(start, stop) for start, stop in runs])
