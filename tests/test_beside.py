"""Updates beside queries: what they leave to these, and what a reader keeps from one refresh to the next."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from corenn import CoreNN
from corenn.graph.threads import Helpers
from corenn.storage import readers
from corenn.storage.files import Files
from corenn.storage.readers import FOLDER, Snapshots

DIM = 8


@pytest.fixture
def helpers() -> Iterator[Helpers]:
    made = Helpers(3)
    yield made
    made.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "db"


def _threads(helpers: Helpers, together: int) -> int:
    """How many threads share six ranges, each of which waits until `together` are at work."""
    meeting, seen = threading.Barrier(together), set[int]()

    def work(start: int, stop: int) -> None:
        seen.add(threading.get_ident())
        meeting.wait(10)

    helpers.run(work, 6, 1)
    return len(seen)


def test_updates_leave_a_processor_while_queries_are_asked(helpers: Helpers) -> None:
    asked = False
    updates = helpers.beside(lambda: asked)
    assert _threads(updates, 3) == 3
    asked = True
    assert _threads(updates, 2) == 2
    assert _threads(helpers, 3) == 3, "queries take all that there are"


def test_one_processor_is_never_left() -> None:
    helpers = Helpers(1)
    assert _threads(helpers.beside(lambda: True), 1) == 1
    helpers.close()


def test_queries_count_while_the_writer_is_at_work_only(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(readers.time, "monotonic", lambda: now)
    snapshots = Snapshots(None, Files())
    snapshots.note_query()
    assert not snapshots.asked(), "who writes and asks by turns is not held up"
    snapshots.at_work = True
    snapshots.note_query()
    assert snapshots.asked()
    now += readers.ASKED_SECONDS / 2
    assert snapshots.asked(), "the next one is to be expected"
    now += readers.ASKED_SECONDS
    assert not snapshots.asked()


def test_a_reader_tells_of_its_queries(path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "TOLD_SECONDS", 0.0)
    with CoreNN.create(path, dim=DIM) as db:
        db.insert(range(20), rng.normal(size=(20, DIM)).astype(np.float32))
        with CoreNN.open(path, mode="r") as reader:
            (file,) = (path / FOLDER).iterdir()
            os.utime(file, (0, 0))
            snapshots = Snapshots(path, Files())
            assert not snapshots.asked(), "it has not asked anything for long"
            reader.query(np.ones(DIM, np.float32))
            assert abs(file.stat().st_mtime - time.time()) < readers.ASKED_SECONDS
            assert snapshots.asked()
        assert not Snapshots(path, Files()).asked(), "it has gone"


def test_without_readers_nobody_asks(tmp_path: Path) -> None:
    assert not Snapshots(tmp_path, Files()).asked()


@pytest.mark.compiled
def test_the_graph_is_the_same_with_fewer_threads(rng: np.random.Generator) -> None:
    rows = rng.normal(size=(3000, DIM)).astype(np.float32)
    made = []
    for asked in (False, True):
        with CoreNN.in_memory(dim=DIM) as db:
            db._beside_queries.threads = 2
            db._beside_queries._guests = lambda asked=asked: asked
            for first in range(0, len(rows), 500):
                db.insert(range(first, first + 500), rows[first : first + 500])
            made.append(db._store.edges.array[: len(rows)].copy())
    np.testing.assert_array_equal(made[0], made[1])


@pytest.mark.compiled
def test_a_refresh_keeps_what_is_mapped_if_no_file_has_grown(path: Path, rng: np.random.Generator) -> None:
    rows = rng.normal(size=(100, DIM)).astype(np.float32)
    with CoreNN.create(path, dim=DIM, metric="l2") as db:
        db.insert(range(100), rows)
        with CoreNN.open(path, mode="r") as reader:
            mapped = reader._store.vectors.array
            db.delete([7])
            reader.refresh()
            assert reader.query(rows[7], k=1)[0].key != 7
            assert reader._store.vectors.array is mapped
            db.upsert([3], rows[7:8])
            reader.refresh()
            assert reader.query(rows[7], k=1)[0].key == 3
            more = rng.normal(size=(9000, DIM)).astype(np.float32)
            db.insert(range(1000, 10_000), more)
            reader.refresh()
            assert len(reader._store.vectors.array) > len(mapped)
            assert reader.query(more[-1], k=1)[0].key == 9999


def test_what_a_reader_marks_for_itself_gives_way_to_the_file(path: Path, rng: np.random.Generator) -> None:
    rows = rng.normal(size=(50, DIM)).astype(np.float32)
    with CoreNN.create(path, dim=DIM, metric="l2") as db:
        db.insert(range(50), rows)
        with CoreNN.open(path, mode="r") as reader:
            state = reader._store.state
            word = state.array[4].copy()
            reader._store.put_state(np.array([4], np.uint32), word[None, :] * 0)
            assert state.array[4].tolist() == [0, 0]
            assert db._store.state.array[4].tolist() == word.tolist(), "it never reaches the file"
            reader.refresh()
            assert state.array[4].tolist() == word.tolist()
            assert reader.query(rows[4], k=1)[0].key == 4
