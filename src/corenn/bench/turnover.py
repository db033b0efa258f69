"""Rows that leave and come for as long as one likes: the load of a database that lives for years.

A pool of vectors is laid out as a ring, of which a stretch is live. The oldest rows leave, those behind the stretch
come, and what has left comes back when the ring is round. So what is live follows from one number, and another process
can tell it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..types import Float32s, Int64s

if TYPE_CHECKING:
    from ..database import CoreNN

BATCH = 1_000  # rows per call where speed of updates is not the question
PATIENCE = 3.0  # seconds without progress; repair begins a second after the last write
UPDATE = 50  # rows deleted, and rows inserted, by a batch of a hundred updates


@dataclass(frozen=True, slots=True)
class Ring:
    """vectors: float32 (n, dim), the pool; the key of row i is str(i). order: int64 (n,), the rows as they come.
    live: how many are live at a time.
    """

    vectors: Float32s
    order: Int64s
    live: int

    def rows(self, at: int, count: int) -> Int64s:
        """So many rows from a place of the ring on."""
        return self.order[(at + np.arange(count)) % len(self.order)]

    def alive(self, step: int) -> Int64s:
        """The rows that are live when `step` have been replaced."""
        return self.rows(step, self.live)

    def after(self, calls: int, batch: int = UPDATE) -> Int64s:
        """The rows that are live after so many calls, by turns a delete and an insert of `batch` rows."""
        step = calls // 2 * batch
        return self.alive(step) if calls % 2 == 0 else self.rows(step + batch, self.live - batch)


def shuffled(vectors: Float32s, live: int, seed: int = 0) -> Ring:
    """The first `live` rows are live at first and all leave before one of them comes back; in random order."""
    random = np.random.default_rng(seed)
    return Ring(vectors, np.concatenate(_halves(len(vectors), live, random)), live)


def clustered(vectors: Float32s, live: int, folder: Path, clusters: int, seed: int = 0) -> Ring:
    """The same, cluster by cluster (k-means); in one order those that are live at first, in another the others.

    So regions are emptied while others fill.
    """
    from ..datasets import open_vectors
    from ..datasets.kmeans import assignments, kmeans

    file = folder / "pool.npy"
    np.save(file, vectors)
    with open_vectors(file) as opened:
        centroids = kmeans(opened, clusters, seed=seed).centroids
        labels = np.concatenate([each for each, _ in assignments(opened, centroids)])
    random = np.random.default_rng(seed)
    parts = [part[np.argsort(random.permutation(clusters)[labels[part]], kind="stable")]
             for part in _halves(len(vectors), live, random)]  # fmt: skip
    return Ring(vectors, np.concatenate(parts), live)


def _halves(count: int, live: int, random: np.random.Generator) -> tuple[Int64s, Int64s]:
    return random.permutation(live), live + random.permutation(count - live)


@dataclass(slots=True)
class Turnover:
    """A database whose rows are replaced. step: rows replaced so far. Used by one thread at a time."""

    db: CoreNN
    ring: Ring
    step: int = 0

    def fill(self) -> None:
        """Insert the rows that are live at first, and wait until all are linked."""
        insert(self.db, self.ring, self.ring.alive(0))

    def replace(self, count: int) -> None:
        """Delete so many rows and insert as many."""
        delete(self.db, self.ring.rows(self.step, count))
        self._insert(self.ring.rows(self.step + self.ring.live, count))
        self.step += count

    def replace_all(self, count: int) -> None:
        """Replace so many rows, in batches of 1,000 or a tenth of what is live, and wait until all are linked."""
        batch = max(min(BATCH, self.ring.live // 10), 1)
        for first in range(0, count, batch):
            self.replace(min(batch, count - first))
        wait(self.db)

    def _insert(self, rows: Int64s) -> None:
        self.db.insert(keys_of(rows), self.ring.vectors[rows])

    @contextmanager
    def running(self) -> Iterator[None]:
        """While the block lasts, replace rows in another thread as fast as it goes.

        Raises:
            Exception: that the updates met.
        """
        stop, failures = threading.Event(), list[BaseException]()

        def work() -> None:
            try:
                while not stop.is_set():
                    self.replace(UPDATE)
            except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
                failures.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
        if failures:
            raise failures[0]


def keys_of(rows: Int64s) -> list[str]:
    """Row numbers as text."""
    return list(map(str, rows.tolist()))


def delete(db: CoreNN, rows: Int64s) -> None:
    """Delete rows, all of which must be there."""
    deleted = db.delete(keys_of(rows))
    if deleted != len(rows):
        raise RuntimeError(f"{deleted} of {len(rows)} rows were there to delete")


def insert(db: CoreNN, ring: Ring, rows: Int64s) -> None:
    """Insert rows, 1,000 at a time, and wait until all are linked."""
    for first in range(0, len(rows), BATCH):
        part = rows[first : first + BATCH]
        db.insert(keys_of(part), ring.vectors[part])
    wait(db)


def wait(db: CoreNN) -> None:
    """Until no row waits to be linked."""
    while db.stats().pending:
        time.sleep(0.001)


def settle(db: CoreNN, at_most: float) -> float:
    """Wait until the backlog of repair is worked off, or shrinks no more, or for so many seconds; how long it took."""
    began, least = time.perf_counter(), db.stats().repair_backlog
    shrunk = began
    while least and time.perf_counter() - shrunk < PATIENCE and time.perf_counter() - began < at_most:
        time.sleep(0.05)
        if (now := db.stats().repair_backlog) < least:
            least, shrunk = now, time.perf_counter()
    return time.perf_counter() - began
