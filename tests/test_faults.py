"""Damaged files, full disks, second writers.

Rules out a wrong vector served as right, a database that refuses to open although only soft data is damaged, one that
opens although hard data is missing, a fault that verify() overlooks or repair() does not name, and an error that
corrupts what was acknowledged.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rocksdict import AccessType, Options, Rdict

from corenn import CoreNN
from corenn.errors import (
    CoreNNError,
    CorruptionError,
    DiskFullError,
    ForeignFileError,
    FormatError,
    LockedError,
    NotADatabaseError,
    ReadOnlyError,
    StorageError,
)
from corenn.graph.insert import Linker
from corenn.kernels.search import LIFELINE
from corenn.storage.format import JOURNAL, RADIUS
from corenn.storage.store import Store
from corenn.writer import Writer
from tests.oracle import check_hits, recall

HARD = ("vectors.slab", "seals.slab", "state.slab")
SOFT = ("edges.slab", "keys.slab", "keys.heap")
PAGE = 4096
COUNT, DIM = 1500, 12
Rows = NDArray[np.float32]
pytestmark = pytest.mark.compiled


@pytest.fixture(scope="module")
def rows() -> Rows:
    return np.random.default_rng(11).normal(size=(COUNT, DIM)).astype(np.float32)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, rows: Rows) -> Path:
    """A closed database of 1,500 rows; every tenth is deleted, every seventh has a payload."""
    path = tmp_path_factory.mktemp("faults") / "original"
    with CoreNN.create(path, dim=DIM, metric="l2") as db:
        for start in range(0, COUNT, 500):
            numbers = range(start, start + 500)
            db.insert([key(n) for n in numbers], rows[start : start + 500], [payload(n) for n in numbers])
        db.delete([key(n) for n in range(0, COUNT, 10)])
    return path


@pytest.fixture
def path(original: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(original, tmp_path / "db")


def key(number: int) -> str | int:
    return number if number % 2 else f"key {number}"


def payload(number: int) -> dict[str, int] | None:
    return None if number % 7 else {"n": number}


def check_all(db: CoreNN, rows: Rows, lost: frozenset[int] = frozenset()) -> None:
    """Every row that was acknowledged is there, except `lost`, and is found."""
    alive = [n for n in range(COUNT) if n % 10 and n not in lost]
    assert list(db.keys()) == [key(n) for n in alive]
    assert len(db) == len(alive)
    for n, record in zip(alive, db.get([key(n) for n in alive]), strict=True):
        assert record is not None
        assert np.array_equal(record.vector, rows[n])
        assert record.payload == payload(n)
    assert all(record is None for record in db.get([key(n) for n in (*range(0, COUNT, 10), *lost)]))
    queries = rows[1:400:10] + 0.1
    keys = [key(n) for n in alive]
    for query, hits in zip(queries[:10], db.query(queries[:10], k=10, exact=True), strict=True):
        check_hits("l2", keys, rows[alive], query, hits, 10)
    number = {name: at for at, name in enumerate(keys)}
    found = [[number[name] for name in hits.keys] for hits in db.query(queries, k=10)]
    assert recall("l2", rows[alive], queries, found) >= 0.95


def row_bytes(slab: Path) -> int:
    """Bytes per row, as the header says."""
    return int(struct.unpack_from("<Q", slab.read_bytes(), 24)[0])


def patch(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def still_writes(db: CoreNN, rows: Rows) -> None:
    """The database takes new rows and finds them."""
    db.insert(["new", -1], rows[:2] + 50)
    assert db.query(rows[1] + 50, k=1).keys == [-1]
    db.delete(["new", -1])


def test_an_undamaged_copy_is_sound(path: Path, rows: Rows) -> None:
    with CoreNN.open(path) as db:
        assert db.verify().ok
        check_all(db, rows)
        still_writes(db, rows)


# --- opening ----------------------------------------------------------------------------------------------------------


def test_a_second_writer_is_refused_and_told_who_writes(path: Path, rows: Rows) -> None:
    with CoreNN.open(path) as db:
        with pytest.raises(LockedError, match=str(os.getpid())):
            CoreNN.open(path)
        with pytest.raises(BlockingIOError):
            CoreNN.open(path)
        with CoreNN.open(path, mode="r") as reader:
            assert len(reader) == len(db)
        still_writes(db, rows)
    with CoreNN.open(path) as db:
        check_all(db, rows)


def hold(path: Path, ready: Any) -> None:
    """Open for writing and wait to be killed."""
    with CoreNN.open(path):
        ready.set()
        multiprocessing.Event().wait()


def test_the_lock_dies_with_its_holder(path: Path, rows: Rows) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=hold, args=(path, ready))
    holder.start()
    assert ready.wait(120)
    with pytest.raises(LockedError, match=str(holder.pid)):
        CoreNN.open(path)
    holder.kill()
    holder.join()
    with CoreNN.open(path) as db:
        check_all(db, rows)


def test_a_failed_open_leaves_no_lock(path: Path, rows: Rows) -> None:
    whole = (path / "vectors.slab").read_bytes()
    (path / "vectors.slab").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FormatError):
        CoreNN.open(path)
    (path / "vectors.slab").write_bytes(whole)
    with CoreNN.open(path) as db:
        check_all(db, rows)


@pytest.mark.parametrize("mode", ["rw", "r"])
@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("left", ["nothing", "half a header", "the header", "half a row", "one row short"])
def test_a_truncated_hard_slab_is_refused(path: Path, name: str, left: str, mode: str) -> None:
    short = PAGE + COUNT * row_bytes(path / name) - 1
    cuts = {"nothing": 0, "half a header": 2000, "the header": PAGE, "half a row": PAGE + 3, "one row short": short}
    os.truncate(path / name, cuts[left])
    before = (path / name).read_bytes()
    with pytest.raises(FormatError, match=re.escape(name)):
        CoreNN.open(path, mode=mode)
    assert (path / name).read_bytes() == before, "a refused database was changed"


@pytest.mark.parametrize("name", HARD)
def test_a_missing_hard_slab_is_refused(path: Path, name: str) -> None:
    (path / name).unlink()
    for mode in ("rw", "r"):
        with pytest.raises((FormatError, CorruptionError), match=re.escape(name)):
            CoreNN.open(path, mode=mode)
    assert not (path / name).exists()


@pytest.mark.parametrize("name", HARD)
def test_bad_magic_is_refused(path: Path, name: str) -> None:
    patch(path / name, 0, b"SQLite format 3\0")
    for mode in ("rw", "r"):
        with pytest.raises(FormatError, match=re.escape(name)):
            CoreNN.open(path, mode=mode)


@pytest.mark.parametrize("name", HARD + SOFT)
def test_a_newer_format_is_refused(path: Path, name: str) -> None:
    before = (path / name).read_bytes()
    version = struct.unpack_from("<I", before, 8)[0]
    head = before[:8] + struct.pack("<I", version + 1) + before[12:60]
    patch(path / name, 0, head + struct.pack("<I", zlib.crc32(head)))
    for mode in ("rw", "r"):
        with pytest.raises(FormatError, match=str(version + 1)):
            CoreNN.open(path, mode=mode)
    patch(path / name, 0, before[:64])
    assert (path / name).read_bytes() == before, "a newer file was changed"


@pytest.mark.parametrize("name", HARD)
def test_a_damaged_header_is_refused(path: Path, name: str) -> None:
    for offset in (13, 20, 28, 36):
        byte = (path / name).read_bytes()[offset : offset + 1]
        patch(path / name, offset, bytes([byte[0] ^ 0x10]))
        with pytest.raises(FormatError, match=re.escape(name)):
            CoreNN.open(path)
        patch(path / name, offset, byte)
    CoreNN.open(path).close()


@pytest.mark.parametrize("name", HARD)
def test_the_slab_of_a_twin_is_refused_even_for_rescue(path: Path, tmp_path: Path, name: str) -> None:
    """Its geometry fits and its checksums hold: only the number of the database tells it apart."""
    with CoreNN.open(path) as db:
        settings, rows = db.settings.as_dict(), len(db) + 1000
    with CoreNN.create(tmp_path / "twin", **settings) as twin:
        twin.insert(range(rows), np.random.default_rng(9).normal(size=(rows, settings["dim"])))
    shutil.copy(path / name, tmp_path / "kept")
    shutil.copy(tmp_path / "twin" / name, path / name)
    for mode in ("rw", "r", "rescue"):
        with pytest.raises(ForeignFileError, match=re.escape(name)):
            CoreNN.open(path, mode=mode)
    shutil.copy(tmp_path / "kept", path / name)
    with CoreNN.open(path) as db:
        assert db.verify().ok


@pytest.mark.parametrize("name", ["edges.slab", "keys.slab"])
def test_a_soft_slab_of_a_twin_is_made_again(path: Path, tmp_path: Path, name: str) -> None:
    with CoreNN.open(path) as db:
        settings = db.settings.as_dict()
        before = list(db.keys())
    CoreNN.create(tmp_path / "twin", **settings).close()
    shutil.copy(tmp_path / "twin" / name, path / name)
    with CoreNN.open(path) as db:
        db.repair()
        assert list(db.keys()) == before
        assert db.verify().ok


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["vectors.slab", "seals.slab"])
def test_the_slab_of_another_database_is_refused(path: Path, tmp_path: Path, name: str) -> None:
    with CoreNN.create(tmp_path / "other", dim=DIM + 4, metric="cosine", dtype="f16") as other:
        other.insert([0], np.ones((1, DIM + 4)))
    shutil.copy(tmp_path / "other" / name, path / name)
    with pytest.raises(FormatError, match=re.escape(name)):
        CoreNN.open(path)


def test_a_folder_without_metadata_is_no_database(path: Path) -> None:
    shutil.rmtree(path / "meta")
    with pytest.raises(NotADatabaseError):
        CoreNN.open(path)


def test_damaged_metadata_is_reported(path: Path) -> None:
    for file in (path / "meta").glob("*.sst"):
        data = bytearray(file.read_bytes())
        data[: len(data) // 2] = bytes(len(data) // 2)
        file.write_bytes(bytes(data))
    with pytest.raises(CoreNNError), CoreNN.open(path) as db:
        db.get([key(n) for n in range(COUNT)])


# --- torn tails: garbage behind the last committed row ----------------------------------------------------------------


@pytest.mark.few(4)
@pytest.mark.parametrize("name", HARD + SOFT)
@pytest.mark.parametrize("tail", [b"\xff" * 37, b"\xa5" * 5000, b"\0" * 9999], ids=["ones", "noise", "zeros"])
def test_a_torn_tail_does_not_matter(path: Path, rows: Rows, name: str, tail: bytes) -> None:
    with (path / name).open("ab") as file:
        file.write(tail)
    for mode in ("r", "rw"):
        with CoreNN.open(path, mode=mode) as db:
            assert db.verify().ok
            check_all(db, rows)
    with CoreNN.open(path) as db:
        db.insert([f"more {n}" for n in range(300)], rows[:300] + 9)
        assert db.verify().ok
        assert db.query(rows[77] + 9, k=1).keys == ["more 77"]
        db.delete([f"more {n}" for n in range(300)])
    with CoreNN.open(path) as db:
        assert db.verify().ok
        check_all(db, rows)


# --- flipped bytes in vectors -----------------------------------------------------------------------------------------


def flip(path: Path, vector: Rows) -> None:
    """Flip one bit of a stored vector, found by its bytes."""
    offset = (path / "vectors.slab").read_bytes().index(vector.tobytes())
    old = (path / "vectors.slab").read_bytes()[offset + 5]
    patch(path / "vectors.slab", offset + 5, bytes([old ^ 0x04]))


def test_a_flipped_bit_is_never_served_as_right(path: Path, rows: Rows) -> None:
    flip(path, rows[21])
    for mode in ("r", "rw"):
        with CoreNN.open(path, mode=mode) as db:
            with pytest.raises(CorruptionError, match="21"):
                db.get([20, 21, 22])
            with pytest.raises(CorruptionError, match="21"):
                db.query(key=21)
            assert db.get([23])[0].key == 23
            report = db.verify()
            assert not report.ok
            assert [problem.lost for problem in report.problems if problem.lost] == [(21,)]


def test_repair_isolates_what_is_lost_and_names_it(path: Path, rows: Rows) -> None:
    flip(path, rows[21])
    flip(path, rows[1444])
    with CoreNN.open(path) as db:
        report = db.repair()
        assert report.ok
        assert sorted(str(name) for problem in report.repaired for name in problem.lost) == ["21", "key 1444"]
        check_all(db, rows, frozenset({21, 1444}))
        db.insert([21, "key 1444"], rows[[21, 1444]])
        assert db.query(rows[21], k=1).keys == [21]
    with CoreNN.open(path) as db:
        assert db.verify().ok
        assert len(db) == COUNT - COUNT // 10
        assert db.repair().repaired == ()


def test_a_flipped_bit_in_a_seal_is_found(path: Path, rows: Rows) -> None:
    data, width = (path / "seals.slab").read_bytes(), row_bytes(path / "seals.slab")
    patch(path / "seals.slab", PAGE + 33 * width, bytes([data[PAGE + 33 * width] ^ 1]))
    with CoreNN.open(path) as db:
        with pytest.raises(CorruptionError, match="33"):
            db.get([33])
        assert [problem.lost for problem in db.verify().problems if problem.lost] == [(33,)]
        assert db.repair().ok
        check_all(db, rows, frozenset({33}))


def test_a_zeroed_page_of_vectors_is_found_row_by_row(path: Path, rows: Rows) -> None:
    patch(path / "vectors.slab", 5 * PAGE, bytes(PAGE))
    with CoreNN.open(path) as db:
        report = db.verify()
        lost = {name for problem in report.problems for name in problem.lost}
        hurt = frozenset(n for n in range(COUNT) if key(n) in lost)
        assert PAGE // 64 - 1 <= sum(problem.count for problem in report.problems) <= PAGE // (4 * DIM) + 2
        for n in sorted(hurt):
            with pytest.raises(CorruptionError):
                db.get([key(n)])
        assert db.repair().ok
        check_all(db, rows, hurt)


def test_a_truncated_vector_file_is_saved_as_far_as_it_goes(path: Path, rows: Rows) -> None:
    kept = 900
    os.truncate(path / "vectors.slab", PAGE + kept * row_bytes(path / "vectors.slab") + 5)
    with CoreNN.open(path, mode="rescue") as db:
        report = db.repair()
        assert report.ok
        lost = {name for problem in report.repaired for name in problem.lost}
        assert lost == {key(n) for n in range(kept, COUNT) if n % 10}
        check_all(db, rows, frozenset(range(kept, COUNT)))
    with CoreNN.open(path) as db:
        assert db.verify().ok
        still_writes(db, rows)


# --- soft files: always opened, always mended -------------------------------------------------------------------------


def mended(path: Path, rows: Rows, *, reported: bool = True) -> None:
    """The database opens, serves, says what is wrong, mends it, and stays mended."""
    with CoreNN.open(path) as db:
        first = db.verify()
        assert not reported or first.problems or first.repaired, "the damage is not reported"
        assert [record.vector.tolist() for record in db.get([21, 1499]) if record] == rows[[21, 1499]].tolist()
        assert db.query(rows[21], k=3, exact=True).distances[0] == 0
        assert len(db.query(rows[21], k=10)) == 10
        report = db.repair()
        assert report.ok, report
        assert not reported or report.repaired or first.repaired
        assert all(problem.lost == () for problem in report.repaired)
        check_all(db, rows)
        still_writes(db, rows)
    with CoreNN.open(path) as db:
        report = db.verify()
        assert report.ok
        assert (report.unreachable, report.repaired) == (0, ())
        check_all(db, rows)


@pytest.mark.parametrize("name", SOFT)
def test_a_lost_soft_file_is_rebuilt(path: Path, rows: Rows, name: str) -> None:
    (path / name).unlink()
    mended(path, rows)


def test_all_soft_files_lost_at_once_are_rebuilt(path: Path, rows: Rows) -> None:
    for name in SOFT:
        (path / name).unlink()
    mended(path, rows)


@pytest.mark.few(4)
@pytest.mark.parametrize("name", SOFT)
@pytest.mark.parametrize("left", [0, 100, PAGE, PAGE + 500])
def test_a_truncated_soft_file_is_rebuilt(path: Path, rows: Rows, name: str, left: int) -> None:
    os.truncate(path / name, left)
    mended(path, rows)


@pytest.mark.parametrize("name", SOFT)
def test_a_soft_file_of_garbage_is_rebuilt(path: Path, rows: Rows, name: str) -> None:
    size = (path / name).stat().st_size
    (path / name).write_bytes(np.random.default_rng(1).bytes(size))
    mended(path, rows)


@pytest.mark.parametrize("content", ["zeros", "ones", "noise"])
@pytest.mark.parametrize("page", [1, 7])
def test_a_damaged_page_of_edges_is_mended(path: Path, rows: Rows, page: int, content: str) -> None:
    data = {"zeros": bytes(PAGE), "ones": b"\xff" * PAGE, "noise": np.random.default_rng(page).bytes(PAGE)}[content]
    patch(path / "edges.slab", page * PAGE, data)
    mended(path, rows)


@pytest.mark.parametrize("content", ["zeros", "ones", "noise"])
@pytest.mark.parametrize("name", ["keys.slab", "keys.heap"])
def test_a_damaged_page_of_keys_is_mended(path: Path, rows: Rows, name: str, content: str) -> None:
    data = {"zeros": bytes(PAGE), "ones": b"\xff" * PAGE, "noise": np.random.default_rng(3).bytes(PAGE)}[content]
    patch(path / name, PAGE, data)
    with CoreNN.open(path) as db:
        assert not db.verify().ok
        assert db.repair().ok
        check_all(db, rows)
    with CoreNN.open(path) as db:
        assert db.verify().ok


def test_all_edges_damaged_are_mended(path: Path, rows: Rows) -> None:
    size = (path / "edges.slab").stat().st_size
    patch(path / "edges.slab", PAGE, np.random.default_rng(5).bytes(size - PAGE))
    mended(path, rows)


@pytest.mark.parametrize("name", ["edges.slab", "state.slab"])
def test_lost_words_of_a_header_do_not_matter(path: Path, rows: Rows, name: str) -> None:
    patch(path / name, 256, bytes(PAGE - 256))
    mended(path, rows, reported=False)


def test_wild_words_in_the_header_of_the_edges_do_not_matter(path: Path, rows: Rows) -> None:
    patch(path / "edges.slab", 256, b"\xff" * (PAGE - 256))
    mended(path, rows, reported=False)


def test_readers_open_what_has_lost_its_edges(path: Path, rows: Rows) -> None:
    patch(path / "edges.slab", 3 * PAGE, bytes(PAGE))
    with CoreNN.open(path, mode="r") as db:
        assert not db.verify().ok
        assert db.query(rows[21], k=1, exact=True).keys == [21]
        assert len(db.query(rows[21], k=10)) == 10


# --- marks ------------------------------------------------------------------------------------------------------------


def edit_metadata(path: Path, change: Callable[[Rdict], None]) -> None:
    """Change the metadata behind the back of the database."""
    meta = Rdict(str(path / "meta"), Options(raw_mode=True), access_type=AccessType.read_write())
    change(meta)
    meta.flush_wal(True)
    meta.close()


@pytest.mark.parametrize("name", [b"mdurable", b"mboot"])
def test_a_lost_mark_is_found_again(path: Path, rows: Rows, name: bytes) -> None:
    edit_metadata(path, lambda meta: meta.delete(name))
    mended(path, rows)


def test_after_a_restart_of_the_machine_everything_is_there(path: Path, rows: Rows) -> None:
    edit_metadata(path, lambda meta: meta.put(b"mboot", b"another boot"))
    with CoreNN.open(path, mode="r") as db:
        check_all(db, rows)
    mended(path, rows, reported=False)


def test_a_newer_metadata_version_is_refused(path: Path) -> None:
    edit_metadata(
        path, lambda meta: meta.put(b"msettings", meta.get(b"msettings").replace(b'"version": 1', b'"version": 7'))
    )
    for mode in ("rw", "r"):
        with pytest.raises(FormatError, match="7"):
            CoreNN.open(path, mode=mode)


def test_a_lost_key_in_the_metadata_is_found_and_mended(path: Path, rows: Rows) -> None:
    victims: list[bytes] = []

    def lose(meta: Rdict) -> None:
        victims.extend([name for name, _ in meta.items() if name.startswith(b"k")][5:8])
        for name in victims:
            meta.delete(name)

    edit_metadata(path, lose)
    with CoreNN.open(path) as db:
        assert not db.verify().ok
        assert db.repair().ok
        check_all(db, rows)


# --- disks ------------------------------------------------------------------------------------------------------------


def fill(path: Path, durability: str, batch: int, results: Any) -> None:
    """Insert until the disk is full; then read everything, and be refused or served, but never killed."""
    rng = np.random.default_rng(7)
    db = CoreNN.create(path, dim=DIM, metric="l2", durability=durability)
    count, error = 0, None
    while error is None and count < 2_000_000:
        try:
            keys = [f"{count + at}" for at in range(batch)]
            db.insert(keys, rng.normal(size=(batch, DIM)), [{"padding": "x" * 200}] * batch)
            count += batch
        except CoreNNError as caught:
            error = caught
    results.put((count, type(error).__name__, str(error)))
    results.put((len(db), sum(record is not None for record in db.get([f"{at}" for at in range(count)]))))
    results.put(len(db.query(np.zeros(DIM), k=10)))
    try:
        db.insert(["more"], np.zeros((1, DIM)), [{"padding": "x" * 500_000}])
        results.put("served")
    except CoreNNError as caught:
        results.put(type(caught).__name__)
    try:
        db.close()
        results.put("closed")
    except CoreNNError as caught:
        results.put(type(caught).__name__)


@pytest.mark.few(1)
@pytest.mark.parametrize(("durability", "batch"), [("os", 500), ("sync", 37)])
def test_a_full_disk_is_an_error_and_loses_nothing(mount: Callable[..., Path], durability: str, batch: int) -> None:
    place = mount("size=6m")
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=fill, args=(place / "db", durability, batch, results))
    process.start()
    process.join(200)
    assert process.exitcode == 0, "a full disk killed the process"
    count, error, message = results.get(timeout=10)
    assert error in (DiskFullError.__name__, ReadOnlyError.__name__), message
    assert count > 0
    assert results.get(timeout=10) == (count, count)
    assert results.get(timeout=10) == 10
    after = results.get(timeout=10)
    assert after in ("served", DiskFullError.__name__, ReadOnlyError.__name__)
    assert results.get(timeout=10) in ("closed", DiskFullError.__name__, StorageError.__name__)
    subprocess.run(["mount", "-o", "remount,size=64m", str(place)], check=True)
    with CoreNN.open(place / "db") as db:
        assert db.verify().ok
        assert set(db.keys()) - {"more"} == {f"{at}" for at in range(count)}
        db.upsert(["more"], np.zeros((1, DIM)))
        assert db.query(np.zeros(DIM), k=1).keys == ["more"]


def fill_and_go_on(place: Path, durability: str, batch: int, padding: int, results: Any) -> None:
    """Insert until the disk is full, be refused, get space, and go on in the same handle."""
    rows = np.random.default_rng(7).normal(size=(batch, DIM))
    db = CoreNN.create(place / "db", dim=DIM, metric="l2", durability=durability)

    def insert(number: int) -> None:
        db.insert([f"{number}-{at}" for at in range(batch)], rows, [{"padding": "x" * padding}] * batch)

    count, errors = 0, 0
    while errors < 4:
        try:
            insert(count)
            count += 1
        except (DiskFullError, ReadOnlyError):
            errors += 1
            assert len(db) == count * batch
            assert sum(record is not None for record in db.get(list(db.keys()))) == count * batch
            assert len(db.query(rows[0], k=10)) == 10
    subprocess.run(["mount", "-o", "remount,size=256m", str(place)], check=True)
    for number in range(count, count + 10):
        insert(number)
    assert db.verify().ok
    assert len(db) == (count + 10) * batch
    db.close()
    results.put(count + 10)


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("durability", "batch", "padding"), [("os", 500, 200), ("sync", 37, 200), ("os", 20, 40_000), ("sync", 200, 30_000)]
)
def test_writing_goes_on_when_space_returns(
    mount: Callable[..., Path], durability: str, batch: int, padding: int
) -> None:
    place = mount("size=12m")
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=fill_and_go_on, args=(place, durability, batch, padding, results))
    process.start()
    process.join(200)
    assert process.exitcode == 0
    count = results.get(timeout=10)
    with CoreNN.open(place / "db") as db:
        assert db.verify().ok
        assert set(db.keys()) == {f"{number}-{at}" for number in range(count) for at in range(batch)}


def test_a_disk_too_small_to_create_on_is_an_error(mount: Callable[..., Path]) -> None:
    place = mount("size=100k")
    with pytest.raises((DiskFullError, StorageError)):
        CoreNN.create(place / "db", dim=DIM).insert(range(5000), np.ones((5000, DIM)))


def test_a_read_only_file_system_is_an_error_for_writers(
    mount: Callable[..., Path], original: Path, rows: Rows
) -> None:
    place = mount("size=64m")
    shutil.copytree(original, place / "db")
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    with pytest.raises((StorageError, ReadOnlyError), match=re.escape(str(place))):
        CoreNN.open(place / "db")
    with pytest.raises((StorageError, ReadOnlyError), match=re.escape(str(place))):
        CoreNN.create(place / "new", dim=DIM)
    with CoreNN.open(place / "db", mode="r") as db:
        check_all(db, rows)
        assert db.verify().ok


@pytest.mark.skipif(os.getuid() == 0, reason="permissions do not bind root")
def test_a_read_only_directory_is_an_error_for_writers(path: Path, rows: Rows) -> None:
    places = [path, *path.rglob("*")]
    modes = {place: place.stat().st_mode for place in places}
    for place in reversed(places):
        place.chmod(0o555 if place.is_dir() else 0o444)
    try:
        with pytest.raises((StorageError, ReadOnlyError)):
            CoreNN.open(path)
        with pytest.raises((StorageError, ReadOnlyError)):
            CoreNN.create(path / "new", dim=DIM)
        with CoreNN.open(path, mode="r") as db:
            check_all(db, rows)
    finally:
        for place in places:
            place.chmod(modes[place])


@pytest.mark.few(4)
@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
@pytest.mark.parametrize("word", [0.0, 5.0, -1.0, np.inf, np.nan, 1e30])
def test_a_damaged_radius_is_seen_and_mended(tmp_path: Path, metric: str, word: float) -> None:
    rows = np.random.default_rng(0).normal(size=(1200, 8)).astype(np.float32)
    rows[7] = 0
    with CoreNN.create(tmp_path / "db", dim=8, metric=metric) as db:
        db.insert(range(1200), rows)
        before = db.query(rows[:20], k=5, exact=True)
        right = db._store.edges.header[RADIUS : RADIUS + 1].view(np.float64)[0]
    with (tmp_path / "db" / "edges.slab").open("r+b") as slab:
        slab.seek(RADIUS * 8)
        slab.write(np.float64(word).tobytes())
    with CoreNN.open(tmp_path / "db") as db:
        seen = not db.verify().ok
        if metric != "ip" and not seen:
            assert db.query(rows[:20], k=5, exact=True) == before, "what is not reported does no harm"
        db.repair()
        assert db.verify().ok
        assert db.query(rows[:20], k=5, exact=True) == before
        if metric == "ip":
            assert db._store.edges.header[RADIUS : RADIUS + 1].view(np.float64)[0] == pytest.approx(right)


@pytest.mark.parametrize("metric", ["cosine", "ip"])
def test_a_kill_between_a_commit_and_its_norms(tmp_path: Path, metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    rows[50:] *= 0 if metric == "cosine" else 9
    with CoreNN.create(tmp_path / "db", dim=8, metric=metric) as db:
        db.insert(range(50), rows[:50])
        monkeypatch.setattr(Writer, "_raise_radius", lambda writer, ids: None)
        monkeypatch.setattr(Linker, "link", lambda linker, ids, head, stop: ids)
        db.insert(range(50, 60), rows[50:])
        shutil.copytree(tmp_path / "db", tmp_path / "left")  # what a process leaves that is killed before it links
        monkeypatch.undo()
    with CoreNN.open(tmp_path / "left", mode="r") as reader:  # before any writer has seen to it
        far = [hit.distance for hit in reader.query(rows[3], k=60) if int(hit.key) >= 50]
        assert metric == "ip" or far == [1.0] * 10
        assert reader.verify().ok
    with CoreNN.open(tmp_path / "left") as db:
        db.checkpoint()
        assert db.verify().ok
        assert len(db) == 60


def test_a_reader_after_a_kill_between_a_commit_and_its_births(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    with CoreNN.create(tmp_path / "db", dim=8, metric="l2") as db:
        db.insert(range(50), rows[:50])

        def killed(store: Store, record: object) -> None:
            shutil.copytree(tmp_path / "db", tmp_path / "left")
            raise OSError("the process ends here")

        monkeypatch.setattr(Store, "_apply", killed)
        with pytest.raises(OSError, match="ends here"):
            db.upsert(range(40, 60), rows[40:])
        monkeypatch.undo()
    with CoreNN.open(tmp_path / "left", mode="r") as reader:  # it marks the births in its own memory
        for _ in range(2):
            assert reader.verify().problems == ()
            assert len(reader) == 60
            assert reader.query(rows[55], k=60)[0].key == 55
            assert (reader.get(range(60))[59].vector == rows[59]).all()
            reader.refresh()
    with CoreNN.open(tmp_path / "left") as db:
        assert db.verify().problems == ()
        assert len(db) == 60


@pytest.mark.compiled
def test_verify_beside_a_writer_sees_no_fault_where_there_is_none(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(3000, 8)).astype(np.float32)
    with CoreNN.create(tmp_path / "db", dim=8, metric="l2") as db:
        db.insert(range(1500), rows[:1500])
        with CoreNN.open(tmp_path / "db", mode="r") as reader:
            db.insert(range(1500, 3000), rows[1500:])
            db.delete(range(0, 1500, 7))
            db.upsert(range(1, 1500, 7), rows[: len(range(1, 1500, 7))])
            assert reader.verify().problems == ()
            assert len(reader) == 1500, "the snapshot has not moved"
            reader.refresh()
            assert reader.verify().problems == ()
            db.repair()
            assert reader.verify().problems == ()


def test_a_killed_threading_is_no_fault_to_a_reader(tmp_path: Path) -> None:
    """The next writer mends it; a reader that comes before sees one row that is not on the ring yet."""
    rows = np.random.default_rng(0).normal(size=(300, 8))
    with CoreNN.create(tmp_path / "db", dim=8, metric="l2") as db:
        db.insert(range(300), rows)
        edges = db._store.edges.array
        behind = 17
        node = int(edges[behind, LIFELINE]) - 1
        edges[behind, LIFELINE] = edges[node, LIFELINE]  # as before the second of its two stores
    with (tmp_path / "db" / "edges.slab").open("r+b") as slab:
        slab.seek(JOURNAL * 8)
        slab.write(np.array([node + 1, behind + 1], np.uint64).tobytes())
    with CoreNN.open(tmp_path / "db", mode="r") as reader:
        assert reader.verify().ok
    with CoreNN.open(tmp_path / "db") as db:
        assert db.verify().ok
        assert db._store.edges.array[behind, LIFELINE] == node + 1
