"""Rules out the return of faults that were once found; each test is named by the cause."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rocksdict import Options, Rdict

from corenn import ClosedError, CoreNN, ReadOnlyError, StorageError
from corenn.kernels.search import COSINE, aim
from corenn.storage.commit import Commit, Head
from corenn.storage.encode import encode
from corenn.storage.files import Files
from corenn.storage.format import NO_ID, PUBLISHED
from corenn.storage.rocks import RocksMetadata

from .conftest import Create
from .faults.faulty import Faults, FaultyFiles, injected

PAGE = 4096


def restarted(path: Path) -> None:
    """Make a database look as if the machine had restarted since."""
    rocks = Rdict(str(path / "meta"), Options(raw_mode=True))
    rocks.put(b"mboot", b"another boot")
    rocks.put(b"mdurable", bytes(8))
    rocks.flush_wal(True)
    rocks.close()


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


FILL_AND_DIE = """
import os, sys
import numpy as np
from corenn import CoreNN
db = CoreNN.create(sys.argv[1], dim=4, metric="l2", durability="sync")
db.insert([f"key {row}" for row in range(400)], np.arange(1600, dtype=np.float32).reshape(400, 4))
os._exit(0)
"""


@pytest.mark.timeout(60)
def test_a_single_caller_after_a_crowd_is_served(memory: Create) -> None:
    db = memory(dim=4, metric="l2")
    for round_ in range(5):
        callers = [
            threading.Thread(target=db.insert, args=([round_ * 100 + row], np.ones((1, 4), np.float32)))
            for row in range(8)
        ]  # fmt: skip
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        db.insert([f"alone {round_}"], np.ones((1, 4), np.float32))
    assert len(db) == 45


@pytest.mark.parametrize("name", ["keys.heap", "keys.slab"])
def test_keys_lost_by_a_restart_are_made_again(tmp_path: Path, name: str) -> None:
    path = tmp_path / "db"
    keys = [f"key {row}" for row in range(400)]

    subprocess.run([sys.executable, "-c", FILL_AND_DIE, str(path)], check=True, timeout=100)
    restarted(path)
    overwrite(path / name, PAGE, bytes(2000))
    with CoreNN.open(path) as db:
        assert list(db.keys()) == keys
        assert db.query(np.zeros(4), k=1).keys == ["key 0"]
        assert db.verify().ok


@pytest.mark.compiled
@pytest.mark.parametrize("metric", ["ip", "cosine"])
def test_lifts_are_found_again_when_edges_are_lost(tmp_path: Path, rng: np.random.Generator, metric: str) -> None:
    path = tmp_path / "db"
    rows = rng.normal(size=(2000, 8)).astype(np.float32) * rng.uniform(1, 10, (2000, 1)).astype(np.float32)
    rows[3] = 0
    queries = rng.normal(size=(50, 8)).astype(np.float32)
    with CoreNN.create(path, dim=8, metric=metric) as db:
        db.insert(range(2000), rows)
    (path / "edges.slab").unlink()
    with CoreNN.open(path) as db:
        db.checkpoint()  # links all rows
        exact = db.query(queries, k=10, exact=True)
        found = db.query(queries, k=10)
        recall = np.mean([len(set(a.keys) & set(b.keys)) / 10 for a, b in zip(exact, found, strict=True)])
        assert recall > 0.95
        assert db.query(queries[0], k=2000)[-1].distance >= 0
        assert next(hit.distance for hit in db.query(queries[0], k=2000) if hit.key == 3) == 1


def test_a_lost_end_of_the_heap_does_not_overwrite_keys(tmp_path: Path) -> None:
    path = tmp_path / "db"
    with CoreNN.create(path, dim=2, metric="l2") as db:
        db.insert(["aaaa", "bbbb"], [[0, 0], [1, 1]])
    overwrite(path / "keys.heap", 256, bytes(8))
    with CoreNN.open(path) as db:
        db.insert(["cccccccc"], [[2, 2]])
        assert list(db.keys()) == ["aaaa", "bbbb", "cccccccc"]


def test_a_failed_sync_is_not_tried_again_on_the_same_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may call pages clean that it could not write: another sync would succeed and mean nothing."""

    def fail(*_: object) -> None:
        raise StorageError("injected")

    db = CoreNN.create(tmp_path / "db", dim=2, metric="l2")
    db.insert(["a"], [[0, 0]])
    with monkeypatch.context() as patch:
        patch.setattr(Files, "sync", fail)
        with pytest.raises(StorageError, match="injected"):
            db.checkpoint()
        for use in (db.checkpoint, lambda: db.configure(beam_width=2), lambda: db.insert(["b"], [[1, 1]])):
            with pytest.raises(ReadOnlyError, match="injected"):
                use()
        assert db.query([0, 0], k=5).keys == ["a"]
    calls: list[str] = []
    with monkeypatch.context() as patch:
        for name in ("write", "sync"):
            whole = getattr(Files, name)

            def seen(*given: Any, name: str = name, whole: Any = whole) -> None:
                calls.append(f"{name} {given[-1].name}")
                whole(*given)

            patch.setattr(Files, name, seen)
        db.insert(["b"], [[1, 1]])
    assert calls.index("write vectors.slab") < calls.index("sync vectors.slab")
    assert len(db) == 2
    db.close()
    with CoreNN.open(tmp_path / "db") as db:
        assert db.verify().ok
        assert sorted(db.keys()) == ["a", "b"]


@pytest.mark.parametrize("name", ["vectors.slab", "seals.slab", "state.slab"])
def test_rescue_keeps_the_rows_behind_a_damaged_header(tmp_path: Path, name: str) -> None:
    path = tmp_path / "db"
    with CoreNN.create(path, dim=4, metric="cosine") as db:
        db.insert(range(50), np.eye(50, 4, dtype=np.float32) + 1)
    overwrite(path / name, 0, struct.pack("<4I", 1, 2, 3, 4))
    with CoreNN.open(path, mode="rescue") as db:
        report = db.repair()
        assert report.ok
        assert len(db) == 50


def test_configure_does_not_store_what_open_overrides(tmp_path: Path) -> None:
    path = tmp_path / "db"
    CoreNN.create(path, dim=2, query_search_list_cap=50).close()
    with CoreNN.open(path, query_search_list_cap=200) as db:
        db.configure(beam_width=2)
        assert db.settings.query_search_list_cap == 200
    with CoreNN.open(path) as db:
        assert db.settings.query_search_list_cap == 50
        assert db.settings.beam_width == 2


def test_a_reader_sees_what_was_written_before_a_flush(tmp_path: Path) -> None:
    path = tmp_path / "db"
    with CoreNN.create(path, dim=1, metric="l2") as writer, CoreNN.open(path, mode="r") as reader:
        writer.insert([0], [[1]], [{"version": 0}])
        reader.refresh()
        writer.insert([1], [[1]])
        writer.set_payload([0], [{"version": 1}])
        writer.checkpoint()
        reader.refresh()
        assert len(reader) == 2
        record = reader.get([0])[0]
        assert record is not None
        assert record.payload == {"version": 1}


@pytest.mark.parametrize("max_edges", [4, 5, 16, 24, 30, 32, 64])
def test_rows_of_edges_leave_slack_before_a_prune(max_edges: int) -> None:
    with CoreNN.in_memory(dim=2, max_edges=max_edges) as db:
        slots = db._store.edges.spec.columns - 2
        assert max_edges * 9 // 8 <= slots <= max_edges * 3 // 2


@pytest.mark.parametrize("stale", [1, 2, 3])
def test_a_reader_looks_again_until_it_sees_what_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stale: int
) -> None:
    """RocksDB's secondary instance may open the tables from before a flush and find the log gone."""
    with CoreNN.create(tmp_path / "db", dim=2) as writer:
        writer.insert([0], [[1, 0]])
        reader = CoreNN.open(tmp_path / "db", mode="r")
        early = reader._store.metadata.head
        writer.insert([1], [[0, 1]])
        read, left = RocksMetadata._read_head, stale

        def late(self: RocksMetadata) -> Head:
            nonlocal left
            left -= 1
            return early if left >= 0 else read(self)

        monkeypatch.setattr(RocksMetadata, "_read_head", late)
        reader.refresh()
        assert list(reader.keys()) == [0, 1]
        left = stale
        with CoreNN.open(tmp_path / "db", mode="r") as other:
            assert list(other.keys()) == [0, 1]
        assert left < 0
        reader.close()


def test_a_published_mark_beyond_the_metadata_stops_no_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("corenn.storage.rocks.PATIENCE_SECONDS", 0.0)
    with CoreNN.create(tmp_path / "db", dim=2) as writer:
        writer.insert([0], [[1, 0]])
    with (tmp_path / "db" / "state.slab").open("r+b") as slab:
        slab.seek(PUBLISHED * 8)
        slab.write((99).to_bytes(8, "little"))
    with CoreNN.open(tmp_path / "db", mode="r") as reader:
        reader.refresh()
        assert list(reader.keys()) == [0]
    assert "commit 99 is published" in caplog.text


USES: list[Callable[[CoreNN], object]] = [
    CoreNN.stats, CoreNN.refresh, CoreNN.verify, lambda db: db.get([0]), lambda db: 0 in db,
    lambda db: db.query([1, 0], with_payloads=True), lambda db: db.query(key=0),
]  # fmt: skip


@pytest.mark.parametrize("use", USES)
def test_a_closed_rocksdb_is_a_closed_database(tmp_path: Path, use: Callable[[CoreNN], object]) -> None:
    """Whatever finds RocksDB closed by another thread raises no error of RocksDB."""
    with CoreNN.create(tmp_path / "db", dim=2) as writer:
        writer.insert([0], [[1, 0]])
    with CoreNN.open(tmp_path / "db", mode="r") as reader:
        reader._store.metadata._rocks.close()
        with pytest.raises(ClosedError):
            use(reader)


def test_a_reader_of_a_removed_database_raises_errors_of_ours(tmp_path: Path) -> None:
    with CoreNN.create(tmp_path / "db", dim=2) as writer:
        writer.insert([0], [[1, 0]], [{"a": 1}])
    with CoreNN.open(tmp_path / "db", mode="r") as reader:
        shutil.rmtree(tmp_path / "db")
        for use in (reader.refresh, reader.stats):
            with pytest.raises(StorageError, match="db"):
                use()
        assert reader.query([1, 0], with_payloads=True).payloads == [{"a": 1}]


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e-42, 1e18])
def test_a_query_of_any_length_is_aimed_alike_without_the_jit(scale: float) -> None:
    """A float32 times a Python float stays float32 there, and overflowed."""
    raw, aimed = np.array([3, 0, 4], np.float32) * np.float32(scale), np.empty(3, np.float32)
    aim(SimpleNamespace(dim=3, radius=np.float32(0)), COSINE, raw, aimed)
    assert aimed == pytest.approx([0.6, 0, 0.8], rel=1e-3)


def test_a_record_in_parts_is_applied_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corenn.storage.rocks.RECORD_WORDS", 5)  # one id in each
    with CoreNN.create(tmp_path / "db", dim=4, metric="l2") as db:
        store = db._store
        ids = np.arange(8, dtype=np.uint32)[::2].copy()  # runs of one
        encoded = encode(db.settings, np.ones((4, 4), np.float32))
        keys = ["a", "b", "c", "d"]
        store.commit(Commit(1, ids, keys, [NO_ID] * 4, [None] * 4, encoded.rows, encoded.seals, ids[::-1].copy()))
        (record,) = store.metadata.records(0)
        assert record.born.tolist() == ids.tolist()
        assert sorted(record.died.tolist()) == ids.tolist()
        shutil.copytree(tmp_path / "db", tmp_path / "killed")
    for name, word in (("state.slab", PUBLISHED),):  # killed before births and deaths were marked
        overwrite(tmp_path / "killed" / name, 8 * word, bytes(8))
    overwrite(tmp_path / "killed" / "state.slab", PAGE, bytes(8 * 16))
    with CoreNN.open(tmp_path / "killed") as db:
        assert len(db) == 0
        assert list(db.keys()) == []
        assert db.get(keys) == [None] * 4
        assert db.verify().ok


@pytest.mark.parametrize("step", ["write seals.slab", "rocks write", "write state.slab"])
def test_what_a_failed_write_leaves_half_done_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    monkeypatch.setattr("corenn.graph.mend.LEAST", 1)
    faults = Faults()
    settings = {"compression_mode": "sq8", "compression_threshold": 20}
    vectors = np.random.default_rng(1).normal(size=(40, 4)).astype(np.float32)
    with injected(FaultyFiles(faults)), CoreNN.create(tmp_path / "db", dim=4, metric="l2", **settings) as db:
        db.insert(range(40), vectors)
        db.delete(range(20))
        db.repair()
        for first in (100, 110):  # where ids are freed, and where they are taken
            faults.watch = lambda name: failing(faults, name, step)
            with pytest.raises(StorageError):
                db.upsert([first, 30], vectors[:2])
            faults.watch = None
            faults.heal()
            report = db.verify()
            assert report.ok, report
            assert db.repair().ok
            db.upsert([first, 30], vectors[:2])
            assert db.verify().ok
    with CoreNN.open(tmp_path / "db") as db:
        assert db.verify().ok
        assert len(db) == 22


def test_ids_of_a_commit_that_was_taken_back_stay_out_of_use(tmp_path: Path) -> None:
    faults = Faults()
    path = tmp_path / "db"
    vectors = np.random.default_rng(1).normal(size=(10, 4)).astype(np.float32)
    with injected(FaultyFiles(faults)):
        db = CoreNN.create(path, dim=4, metric="l2")
        db.insert([0, 1], vectors[:2])
        faults.watch = lambda name: failing(faults, name, "write state.slab")  # the metadata holds it by then
        with pytest.raises(StorageError):
            db.insert(["a", "b", "c"], vectors[2:5])
        faults.watch = None
        faults.heal()
        db.delete([0])  # passes its number, and none of its ids
        db.close()
    with CoreNN.open(path) as db:
        db.insert([2, 3, 4], vectors[5:8])
        assert db.get(["a", "b", "c"]) == [None] * 3
        db.insert(["a", "b", "c"], vectors[2:5])
        assert db.verify().ok
    with CoreNN.open(path) as db:
        assert [record and record.vector.tolist() for record in db.get(["a", "b", "c"])] == vectors[2:5].tolist()


def failing(faults: Faults, name: str, step: str) -> None:
    """Let the next call of this name fail."""
    if name == f"before {step}" and not faults.at:
        faults.at = faults.steps
