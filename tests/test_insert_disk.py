"""Inserts into a graph that lies on the disk, through the public interface.

Rules out rows that are not found again, a graph that finds less than one made in memory, one that hangs on threads or
on what is cached, and reads that fail and take rows with them.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from corenn import CoreNN, writer
from corenn.graph import insert_disk
from corenn.graph.view import View
from corenn.kernels.link_disk import EdgeFile
from corenn.kernels.search import PAGES
from corenn.storage.residence import Residence
from tests.conftest import Sample
from tests.oracle import distances, recall
from tests.test_disk import created, settle

Rows = NDArray[np.float32]
BASE, MORE = 1_200, 400
MODES = ("sq8", "sq4", "rabitq", "pq", "opq", "trunc")
pytestmark = pytest.mark.compiled


@pytest.fixture(autouse=True)
def _any_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small a limit that everything outgrows it; what is done in idle time is done at once."""
    monkeypatch.setattr(writer, "IDLE_SECONDS", 0.001)
    monkeypatch.setattr(Residence, "check", lambda self, fixed, limit=None: None)


def add(db: CoreNN, rows: Rows, first: int, step: int = 250) -> None:
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        db.insert(range(first + start, first + start + len(some)), some)


def coded(db: CoreNN) -> CoreNN:
    """Wait for the codes, over which rows are linked."""
    until = time.monotonic() + 240
    while db._current().codes is None or db.stats().codes_backlog:
        assert time.monotonic() < until
        time.sleep(0.002)
    return db


def pages_read(db: CoreNN) -> int:
    """Pages that inserts have read."""
    assert db._writer is not None
    return int(db._writer.linker._by_codes.spent[PAGES])


def edges_of(db: CoreNN) -> Any:
    return db._store.edges.array[: db._store.metadata.head.rows].copy()


def found(db: CoreNN, rows: Rows, queries: Rows, search_list: int = 32) -> float:
    """Recall of the graph itself, by walks over vectors in memory."""
    db.configure(memory_limit=None, compression_mode="none")
    hits = db.query(queries, k=10, search_list=search_list)
    return recall(db.settings.metric, rows, queries, [list(each.keys) for each in hits], 10)


@pytest.mark.few(2)
@pytest.mark.parametrize(("metric", "mode"), [*(("l2", mode) for mode in MODES), ("ip", "opq"), ("cosine", "rabitq")])
def test_the_graph_finds_as_much_as_one_made_in_memory(tmp_path: Path, sift: Sample, metric: str, mode: str) -> None:
    rows, queries = sift[0][: BASE + MORE], sift[1][:100]
    shares = []
    for limit in (None, 1):
        options = {"metric": metric, "compression_mode": mode, "memory_limit": limit, "trunc_dims": 64}
        with created(tmp_path / f"{limit}", **options) as db:
            db.insert(range(BASE), rows[:BASE])
            add(coded(db), rows[BASE:], BASE)
            assert (pages_read(db) > 0) == (limit == 1)
            own = db.query(rows[BASE::10], k=1, search_list=48)
            if metric != "ip":
                assert np.mean([hits.keys[0] == BASE + 10 * at for at, hits in enumerate(own)]) >= 0.95
            assert db.verify().ok
            shares.append(found(db, rows, queries))
    assert shares[1] >= shares[0] - 0.01
    assert shares[1] >= 0.9


def test_it_hangs_neither_on_threads_nor_on_what_is_current(tmp_path: Path, sift: Sample) -> None:
    rows = sift[0][: BASE + MORE]
    made = []
    for threads in (1, 3):
        with created(tmp_path / f"{threads}", compression_mode="opq") as db:
            db.insert(range(BASE), rows[:BASE])
            assert db._writer is not None
            db._writer.linker._by_codes._helpers.threads = threads
            if threads == 3:
                settle(db)
            add(coded(db), rows[BASE:], BASE)
            assert pages_read(db) > 0
            made.append(edges_of(db))
    np.testing.assert_array_equal(made[0], made[1])


def test_rows_that_go_and_come(tmp_path: Path, sift: Sample) -> None:
    rows, queries = sift[0][: BASE + MORE], sift[1][:60]
    vectors = dict(enumerate(rows[:BASE]))
    with created(tmp_path / "db") as db:
        db.insert(range(BASE), rows[:BASE])
        coded(db)
        for turn in range(4):
            gone = range(turn * 100, turn * 100 + 100)
            db.delete(gone)
            fresh = rows[BASE + 100 * turn : BASE + 100 * turn + 100]
            db.insert(range(5_000 + 100 * turn, 5_100 + 100 * turn), fresh)
            db.upsert(range(1_000, 1_050), rows[turn : turn + 50])
            for key in gone:
                del vectors[key]
            vectors |= zip(range(5_000 + 100 * turn, 5_100 + 100 * turn), fresh, strict=True)
            vectors |= zip(range(1_000, 1_050), rows[turn : turn + 50], strict=True)
            db.checkpoint()
        assert pages_read(db) > 0
        keys, there = list(vectors), np.stack(list(vectors.values()))
        table = distances("l2", there, queries)
        wanted = np.sort(table, axis=1)[:, :10]
        hits = db.query(queries, k=10, search_list=64)
        assert all(set(each.keys) <= set(keys) for each in hits)
        assert np.mean([np.isin(np.round(each.distances), np.round(want)).mean()
                        for each, want in zip(hits, wanted, strict=True)]) >= 0.95  # fmt: skip
        settle(db)
        assert db.verify().ok


@pytest.mark.parametrize(("mode", "apart"), [("sq4", 0), ("opq", 1e-6)])
def test_equal_rows_stand_together(tmp_path: Path, rng: np.random.Generator, mode: str, apart: float) -> None:
    """As do those that codes do not tell apart: prunes leave one edge among them, and the ring leads along them."""
    some = rng.normal(size=(20, 32)).astype(np.float32)
    rows = np.concatenate((np.repeat(some, 60, axis=0), np.repeat(some + np.float32(apart), 20, axis=0)))
    with created(tmp_path / "db", dim=32, compression_mode=mode, memory_limit=None) as db:
        db.insert(range(1_200), rows[:1_200])  # by reads, a walk may not leave what is as far as all else
        db.configure(memory_limit=1)
        add(coded(db), rows[1_200:], 1_200, 50)
        for hits in db.query(some, k=60, search_list=90):
            assert len(hits) == 60
            assert hits.distances.max() <= 1e-8
        assert db.verify().ok


def test_rows_that_cannot_be_read_take_none_with_them(
    tmp_path: Path, sift: Sample, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows = sift[0][: BASE + MORE]
    file_of = insert_disk.file_of

    def broken(view: View) -> EdgeFile:
        return file_of(view)._replace(descriptor=1 << 20)

    with created(tmp_path / "db") as db:
        db.insert(range(BASE), rows[:BASE])
        coded(db)
        with monkeypatch.context() as patched, caplog.at_level(logging.WARNING, "corenn.insert"):
            patched.setattr(insert_disk, "file_of", broken)
            add(db, rows[BASE:], BASE)
        assert "could not be read" in caplog.text
        assert len(db) == BASE + MORE
        for at, record in enumerate(db.get(range(BASE + MORE))):
            assert record is not None and (record.vector == rows[at]).all()
        assert db.verify().ok
        assert all(hits.keys[0] == at for at, hits in enumerate(db.query(rows, k=1, exact=True)))
