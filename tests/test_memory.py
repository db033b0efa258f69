"""Living within a memory limit."""

from __future__ import annotations

import gc
import json
import mmap
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corenn import CoreNN
from corenn.errors import CapacityError, InvalidSettingError
from corenn.storage import platform, residence
from corenn.storage.platform import mapped_bytes, mapped_of
from corenn.storage.residence import Residence
from corenn.storage.rocks import RocksMetadata
from corenn.storage.rocksdb import Rocks
from corenn.storage.slab import FileSlab
from corenn.storage.store import Store

DIM = 256
LIMIT = 64 << 20

needs_proc = pytest.mark.skipif(not mapped_bytes(), reason="only Linux tells what is resident")


def rows_of(count: int, seed: int = 0) -> np.ndarray:
    """Rows of twelve dimensions in truth, as real ones are of fewer than they have."""
    plane = np.random.default_rng(1).normal(size=(12, DIM))
    return (np.random.default_rng(seed).normal(size=(count, 12)) @ plane).astype(np.float32)


LIVE = """
import gc, json, sys
import numpy as np
from corenn import CoreNN
from corenn.bench import memory
from corenn.storage import platform, residence
from tests.test_memory import DIM, rows_of

path, limit, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rows, asked = rows_of(count), rows_of(50, 7)


def life(path, count, limit):
    with CoreNN.create(path, dim=DIM, metric="l2", memory_limit=limit) as db:
        for first in range(0, count, 1000):
            db.insert(range(first, first + 1000), rows[first : first + 1000])
        db.delete(range(0, count, 10))
        db.checkpoint()
        exact, found = db.query(asked, k=10, exact=True), db.query(asked, k=10, search_list=64)
        hit = np.mean([len(set(a.keys) & set(b.keys)) / 10 for a, b in zip(found, exact)])
        return db.verify().ok, hit, len(db), db._residence.given_back, db.stats()


residence.LEAST, least = 0, residence.LEAST
life(path + "-small", 12_000, 8 << 20)  # loads what is loaded once
residence.LEAST = least
gc.collect()
platform.give_back_heap()
with CoreNN.create(path + "-empty", dim=DIM, metric="l2"):
    memory.reset_peak()
    before = memory.resident()
    ok, hit, left, given_back, stats = life(path, count, limit)
print(json.dumps({
    "grown": stats.resident_bytes - before, "peak": memory.peak() - before, "recall": hit, "ok": ok, "rows": left,
    "given_back": given_back,
    "files": sum(stats.memory.values()), "limit": stats.memory_limit,
}))
"""


def live(path: Path, limit: int, count: int) -> dict[str, Any]:
    """The whole life of a database in a process of its own, and how much it grew beyond an open empty one."""
    made = subprocess.run(
        [sys.executable, "-c", LIVE, path, str(limit), str(count)], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    told: dict[str, Any] = json.loads(made.stdout.splitlines()[-1])
    return told


@needs_proc
@pytest.mark.compiled
@pytest.mark.slow
def test_a_database_larger_than_its_limit_stays_within_it(tmp_path: Path) -> None:
    told = live(tmp_path / "db", LIMIT, 60_000)
    assert told["files"] > 1.2 * LIMIT, "else nothing is tested"
    assert told["given_back"] > 0 and told["limit"] == LIMIT
    assert told["grown"] <= 1.1 * LIMIT
    # Elsewhere what a row that is linked touches between two looks, for each thread.
    assert told["peak"] <= (1.45 if platform.touches_alone() else 2.5) * LIMIT
    assert told["recall"] >= 0.95 and told["ok"] and told["rows"] == 54_000


def test_too_small_a_limit_is_refused_with_the_least(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingError, match=r"memory_limit=1,000,000: .* needs [0-9,]+ bytes at least"):
        CoreNN.create(tmp_path / "db", dim=8, memory_limit="1MB")
    with pytest.raises(InvalidSettingError, match="at least"):
        CoreNN.build(tmp_path / "db", range(10), np.ones((10, 8)), dim=8, memory_limit="1MB")
    assert not list(tmp_path.iterdir())
    CoreNN.create(tmp_path / "other", dim=8).close()
    with pytest.raises(InvalidSettingError, match="at least"):
        CoreNN.open(tmp_path / "other", memory_limit=1 << 20)
    with CoreNN.open(tmp_path / "other", memory_limit="64MB") as db:
        assert db.stats().memory_limit == 64_000_000
        db.insert(["a"], np.ones((1, 8), np.float32))
    with CoreNN.open(tmp_path / "other") as db:
        assert db.stats().memory_limit == 0, "for that handle only"
        with pytest.raises(InvalidSettingError, match=r"memory_limit=1: .* at least"):
            db.configure(memory_limit=1)
        db.configure(memory_limit="1GiB")
    with CoreNN.open(tmp_path / "other") as db:
        assert db.stats().memory_limit == 1 << 30


def test_a_database_in_memory_says_when_it_is_full() -> None:
    with CoreNN.in_memory(dim=8, memory_limit="1MB") as db:
        db.insert(range(100), np.ones((100, 8), np.float32))
        with pytest.raises(CapacityError, match=r"memory_limit of 1,000,000; use a database on disk"):
            db.insert(range(1000, 51_000), np.ones((50_000, 8), np.float32))
        assert len(db) == 100 and db.query(np.ones(8, np.float32), k=1)[0].key == 0


@needs_proc
def test_a_touch_brings_in_its_own_page_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 24))
    found = []
    for alone in (False, True):
        with path.open("r+b") as file:
            memory = platform.map_shared(file.fileno(), 1 << 24)
        if alone and not platform.touch_alone(memory):
            pytest.skip("the system has no way to say so")
        for at in range(0, 1 << 24, 1 << 18):
            assert memory[at] == 0
        found.append(mapped_of(tmp_path))
        memory[5] = 7
        memory.close()
    assert found[1] == (1 << 6) * platform.PAGE_BYTES <= found[0]
    assert path.read_bytes()[:6] == bytes([0, 0, 0, 0, 0, 7]), "writing goes on as ever"


@needs_proc
def test_a_scan_leaves_no_more_than_the_limit_behind_on_its_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By count, not by chance: what is resident is looked at in the middle of it."""
    monkeypatch.setattr(residence, "LEAST", 0)
    monkeypatch.setattr(residence, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(Residence, "anonymous", lambda self: 0)
    limit, rows, seen = 6 << 20, rows_of(20_000), []
    with CoreNN.build(tmp_path / "db", range(20_000), rows, dim=DIM, metric="l2", compression_mode="none") as db:
        db.configure(memory_limit=limit)
        for count in (1, 8):  # what loads machine code has pages of the compiler come, too
            db.query(rows[:count], k=5, exact=True)
        gc.collect()  # what the build has mapped
        db._residence.count()
        look = db._residence.look

        def looked() -> None:
            seen.append(db._residence.mapped())
            look()

        db._helpers.between = looked
        for count in (1, 8):
            assert len(db.query(rows[:count], k=5, exact=True)) == count
        assert len(seen) > 10 and max(seen) <= 1.7 * limit


@needs_proc
def test_pages_are_given_back_and_come_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residence, "LEAST", 0)
    monkeypatch.setattr(Residence, "anonymous", lambda self: 0)  # of what others hold here nothing would be left
    rows = rows_of(600)
    with CoreNN.create(tmp_path / "db", dim=DIM, metric="l2", memory_limit=1 << 18) as db:
        db.insert(range(600), rows)
        before = db.query(rows[:50], k=5, exact=True)
        assert db._residence.given_back > 0
        with CoreNN.open(tmp_path / "db", mode="r", memory_limit=1 << 18) as reader:
            db.delete(range(0, 600, 2))
            assert reader.query(rows[:50], k=5, exact=True) == before, "a reader keeps what it sees"
            reader.refresh()
            after = db.query(rows[:50], k=5, exact=True)
            assert reader.query(rows[:50], k=5, exact=True) == after != before
        assert db.verify().ok
    with CoreNN.open(tmp_path / "db") as db:
        assert db.verify().ok and db.query(rows[:50], k=5, exact=True) == after


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="nothing is given back")
def test_what_a_refresh_marks_is_not_given_back_in_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "db"
    with CoreNN.create(path, dim=8, metric="l2") as db:
        db.insert(range(300), np.eye(300, 8, dtype=np.float32))
        with CoreNN.open(path, mode="r", memory_limit=1 << 30) as reader:
            state, apply, give = reader._store.state, Store._apply, platform.let_go
            monkeypatch.setattr(FileSlab, "write_header", lambda self, word, value: None)  # as if it were killed before
            monkeypatch.setattr(Store, "_apply", lambda self, record: None if self.writable else apply(self, record))
            db.delete(range(100))
            refreshing = threading.Thread(target=reader.refresh)

            def meanwhile(memory: mmap.mmap) -> None:
                if memory is state._memory and refreshing.ident is None:  # type: ignore[attr-defined]
                    refreshing.start()
                    refreshing.join(0.5)
                give(memory)

            monkeypatch.setattr(platform, "let_go", meanwhile)
            reader._residence._give_back(large=False)
            refreshing.join()
            assert len(reader) == 200
            assert not set(range(100)) & set(reader.keys())


def test_work_goes_on_where_nobody_can_tell_how_much_memory_is_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> int:
        raise OSError(24, "Too many open files")

    with CoreNN.create(tmp_path / "db", dim=8, metric="l2", memory_limit="64MB") as db:
        monkeypatch.setattr(residence, "mapped_bytes", fails)
        for key in range(3):  # the thread that writes has looked after each
            db.insert([key], np.ones((1, 8), np.float32))
        assert len(db.query(np.ones(8, np.float32), k=3, exact=True)) == 3
        monkeypatch.undo()


def test_the_metadata_keep_within_the_limit_whichever_instance_holds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[Rocks, int]] = []
    hold = Rocks.hold_at_most

    def holding(rocks: Rocks, size: int) -> None:
        hold(rocks, size)
        told.append((rocks, size))

    monkeypatch.setattr(Rocks, "hold_at_most", holding)
    with CoreNN.create(tmp_path / "db", dim=8, metric="l2", memory_limit="64MB") as db:
        db.insert(range(3), np.ones((3, 8), np.float32))
        metadata = db._store.metadata
        assert isinstance(metadata, RocksMetadata)
        assert told[-1] == (metadata._rocks, 2_000_000)
        metadata._stand_by()  # as when the disk is full
        db._limit_memory(80_000_000)  # a root opens and closes others meanwhile
        assert told[-1][1] == 2_000_000
        metadata.resume(metadata.head)
        assert told[-1] == (metadata._rocks, 2_500_000)
        db.compact()
        assert isinstance(db._store.metadata, RocksMetadata) and db._store.metadata is not metadata
        assert told[-1] == (db._store.metadata._rocks, 2_500_000)


# --- what is held -----------------------------------------------------------------------------------------------------


def held_bytes(path: Path) -> int:
    """Bytes of a file that the system is not to take out of memory."""
    held, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line[:1] in "0123456789abcdef":
            inside = line.endswith(str(path))
        elif inside and line.startswith("Locked:"):
            held += int(line.split()[1]) * 1024
    return held


def may_hold() -> bool:
    with mmap.mmap(-1, 64 << 20) as memory:  # more than all tests of a process need together
        return platform.hold(memory)


@pytest.mark.few(1)
@needs_proc
@pytest.mark.skipif(not may_hold(), reason="`ulimit -l` does not allow it")
@pytest.mark.parametrize("mode", ["rw", "r"])
def test_what_every_walk_touches_is_held_until_it_is_given_back(tmp_path: Path, mode: str) -> None:
    path, rows = tmp_path / "db", np.random.default_rng(0).normal(size=(1_500, 32)).astype(np.float32)
    with CoreNN.create(path, dim=32, metric="l2", compression_mode="sq8", compression_threshold=500) as db:
        db.insert(range(1_500), rows)
        assert not held_bytes(path / "codes.slab")
    with CoreNN.open(path, mode=mode, memory_limit="64MB") as db:  # type: ignore[arg-type]
        before = db.query(rows[:50], k=5)
        assert held_bytes(path / "codes.slab") and held_bytes(path / "state.slab")
        assert not held_bytes(path / "vectors.slab")
        db._residence._give_back(large=False)
        assert not held_bytes(path / "codes.slab")
        assert db.query(rows[:50], k=5) == before
        assert held_bytes(path / "codes.slab")
        if mode == "rw":
            db.insert(range(1_500, 13_500), np.repeat(rows, 8, axis=0))  # into files that have grown
            assert held_bytes(path / "codes.slab") > 13_000 * 32
            db.configure(memory_limit=None)
            assert not held_bytes(path / "codes.slab")
    assert not held_bytes(path / "codes.slab")


def test_where_nothing_may_be_held_all_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(platform, "hold", lambda memory: False)
    with (
        caplog.at_level("INFO", "corenn.memory"),
        CoreNN.create(tmp_path / "db", dim=8, metric="l2", memory_limit="64MB") as db,
    ):
        for key in range(3):
            db.insert([key], np.ones((1, 8), np.float32))
        assert len(db.query(np.ones(8, np.float32), k=3)) == 3
        assert [record.args for record in caplog.records] == [("state.slab",), ("codes.slab",)]
        assert "ulimit -l" in caplog.text


@needs_proc
def test_machine_code_that_is_loaded_is_no_memory_of_a_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An open empty database, which the limit comes on top of, has it too once it was used."""
    with CoreNN.create(tmp_path / "db", dim=8, metric="l2", memory_limit="64MB") as db:
        before = db._residence.anonymous()
        told = residence.private_bytes() + (20 << 20)
        monkeypatch.setattr(residence, "private_bytes", lambda: told)
        assert db._residence.anonymous() >= before + (15 << 20)
        monkeypatch.setattr(residence.Loading, "bytes", residence.Loading.bytes + (20 << 20))
        assert db._residence.anonymous() < before + (5 << 20)


@needs_proc
@pytest.mark.parametrize("way", ["link/db", "inner/../db", "."])
def test_pages_are_told_by_any_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    CoreNN.create(tmp_path / "db", dim=8).close()
    (tmp_path / "inner").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    if way == ".":
        monkeypatch.chdir(tmp_path / "db")
    with CoreNN.open(way if way == "." else tmp_path / way) as db:
        db.insert(range(50), np.ones((50, 8), np.float32))
        assert db.stats().mapped_bytes > 0
