"""Other codes in the place of those that there are, while the database is used.

Rules out queries that wait or lose recall while a codebook is trained and rows are encoded, codes of two kinds in one
file, work that begins anew after a kill, a full disk or a lost file that ends it, drift that is not noticed, and
training that never ends because rows are hard to tell apart.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from corenn import CoreNN
from corenn import writer as writer_module
from corenn.errors import DiskFullError
from corenn.graph import codebook, codes, recode
from corenn.graph.threads import Helpers
from corenn.storage import changes, store
from corenn.storage.files import Files
from corenn.storage.format import AGREED, CODED, LOOKED, MISSED, PAGE, TRIED
from corenn.storage.memory import MemoryMetadata
from corenn.storage.recoded import DRAFT
from corenn.storage.rocks import RocksMetadata
from corenn.storage.slab import FileSlab, Slab
from corenn.storage.store import Recovered, Store
from corenn.writer import Task, Writer
from tests.conftest import Create, Sample
from tests.crash.harness import ROOT, environment, pretend_restart
from tests.oracle import recall

Rows = NDArray[np.float32]
PATIENCE = 240.0
pytestmark = pytest.mark.compiled


def fill(db: CoreNN, rows: Rows, first: int = 0) -> CoreNN:
    for start in range(0, len(rows), 500):
        db.insert(range(first + start, first + min(start + 500, len(rows))), rows[start : start + 500])
    return db


def found(db: CoreNN, rows: Rows, queries: Rows) -> float:
    return recall("l2", rows, queries, [hits.keys for hits in db.query(queries, k=10)], 10)


def writer_of(db: CoreNN) -> Writer:
    assert db._writer is not None
    return db._writer


def draft_of(db: CoreNN) -> Slab:
    assert db._store.draft is not None
    return db._store.draft


def version(db: CoreNN) -> int:
    kept = codebook.codebook_of(db._store, db._store.codes)
    return 0 if kept is None else kept.version


def settled(db: CoreNN) -> str:
    """The codes in use once nothing is left to do for them."""
    until = time.monotonic() + PATIENCE
    writer = writer_of(db)
    while writer.recoder.rest(writer.view) is not None:
        assert time.monotonic() < until, "it does not come to an end"
        time.sleep(0.002)
    return db.stats().compression_mode


@contextmanager
def by_hand() -> Iterator[None]:
    """Nothing goes on by itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Writer, "_recoding", lambda self, paid=False: None)
        patch.setattr(recode, "MOST_ROWS", 256)
        yield


def step(db: CoreNN) -> None:
    """Encode 256 rows, or go on for a while with what comes before and after."""
    writer, draft = writer_of(db), db._store.draft
    encoding = draft is not None and int(draft.header[CODED]) < db._store.metadata.head.rows
    writer.submit(Task(lambda: writer._recode(0.0 if encoding else 0.02)))


def stepped(db: CoreNN, until: Callable[[], bool]) -> None:
    """Go on step by step."""
    for _ in range(10_000):
        if until():
            return
        step(db)
    raise AssertionError("it does not come to that")


def encoded(db: CoreNN, rows: int) -> Callable[[], bool]:
    """Whether so many rows have their new codes."""
    return lambda: db._store.draft is not None and int(db._store.draft.header[CODED]) >= rows


def due(create: Create, rows: Rows, **settings: Any) -> CoreNN:
    """A database whose codebook was trained by less than a quarter of the rows."""
    few = 1_100
    settings = {"compression_mode": "pq", "compression_threshold": few - 100, "dim": rows.shape[1]} | settings
    db = fill(create(metric="l2", **settings), rows[:few])
    assert version(db) == 1
    return fill(db, rows[few:], few)


@pytest.mark.few(1)
def test_queries_and_writes_go_on_over_the_old_codes(create: Create, sift: Sample) -> None:
    rows, queries = sift[0].copy(), sift[1][:60]
    with by_hand():
        db = due(create, rows[:5_500])
        old = db._store.codes
        for count in (1, 2_000, 4_000):
            stepped(db, encoded(db, count))
            assert db._store.codes is old and version(db) == 1
            assert db._current().codes is not None
            assert 5_500 - count >= db.stats().codes_backlog > 0
            assert found(db, rows[:5_500], queries) >= 0.96
        rows[:300] = rows[:300][::-1]
        db.upsert(range(300), rows[:300])
        fill(db, rows[5_500:], 5_500)
        assert db._current().codes is not None
        assert found(db, rows, queries) >= 0.96
        before = db._current()
        stepped(db, lambda: version(db) == 2)
        assert db.stats().codes_backlog == 0 and db._store.draft is None
    assert before.codes is not None and db._store.codes is not old
    for _ in range(2):
        assert found(db, rows, queries) >= 0.96
        answers = db._searcher.query(before, queries, 10, 48, exact=False, threads=1)  # taken before, and still right
        keys = [db._store.key_of(row) for row in answers.ids.ravel()]
        assert recall("l2", rows, queries, np.reshape(keys, answers.ids.shape).tolist(), 10) >= 0.96  # type: ignore[arg-type]
        fill(db, rows[:100], 10_000 if version(db) == 2 else 0)
        db.delete(range(10_000, 10_100))
        settled(db)
        assert db.verify().ok


def test_a_row_that_takes_the_id_of_another_one_has_its_own_new_code(create: Create, sift: Sample) -> None:
    rows = sift[0]
    with by_hand():
        db = due(create, rows[:4_600])
        stepped(db, encoded(db, 3_000))
        db.delete(range(1_000))
        writer = writer_of(db)
        writer.submit(Task(lambda: (writer.mender.finish(writer.view), writer.republish())))
        if db.stats().path is not None:
            db.checkpoint()
        fill(db, rows[5_000:5_100], 5_000)  # a commit that frees ids
        fill(db, rows[5_100:5_900], 5_100)  # and one that takes them
        assert db._store.metadata.head.rows < 5_000
        stepped(db, lambda: version(db) == 2)
        assert db.verify().problems == ()


@pytest.mark.few(2)
@pytest.mark.parametrize(("before", "after"), [("sq8", "opq"), ("pq", "sq4"), ("none", "pq"), ("rabitq", "sq8")])
def test_another_mode_takes_the_place_of_the_old_at_once(create: Create, sift: Sample, before: str, after: str) -> None:
    rows, queries = sift[0][:3_000], sift[1][:40]
    with by_hand():
        db = fill(create(dim=128, metric="l2", compression_mode=before, compression_threshold=1_024), rows)
        db.configure(compression_mode=after)
        seen, steps = set(), 0
        while (mode := db.stats().compression_mode) != after:
            seen.add(mode)
            step(db)
            steps += 1
            assert steps % 8 or found(db, rows, queries) >= 0.96
        assert found(db, rows, queries) >= 0.96
        assert seen == {before}
        db.configure(compression_mode=before)
        stepped(db, lambda: db.stats().codes_backlog == 0)
        assert db.stats().compression_mode == before
        assert db.verify().ok


def test_a_change_of_mind_leaves_nothing_behind(tmp_path: Path, sift: Sample) -> None:
    with (
        by_hand(),
        CoreNN.create(tmp_path / "db", dim=128, metric="l2", compression_mode="sq8", compression_threshold=1_024) as db,
    ):
        fill(db, sift[0][:3_000])
        db.configure(compression_mode="opq")
        stepped(db, encoded(db, 1_000))
        assert (tmp_path / "db" / DRAFT).exists()
        db.configure(compression_mode="sq8")
        assert not (tmp_path / "db" / DRAFT).exists()
        assert db.stats().codes_backlog == 0
        db.configure(compression_mode="pq")
        stepped(db, encoded(db, 1_000))
        db.configure(compression_mode="none")
        assert not (tmp_path / "db" / DRAFT).exists()
        assert db.stats().compression_mode == "none"


@pytest.mark.few(1)
def test_auto_moves_on_to_smaller_codes_when_rows_outgrow_the_memory(
    create: Create, sift: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, queries = sift[0], sift[1][:60]
    fits: Callable[..., bool] = lambda store, mode, live: live <= {"none": 1_000, "sq8": 2_000, "sq4": 4_000}[mode]  # noqa: E731
    for module in (codes, recode):
        monkeypatch.setattr(module, "fits", fits)
    with by_hand():
        db = fill(create(dim=128, metric="l2", compression_threshold=1_000), rows[:3_000])
        stepped(db, lambda: db.stats().codes_backlog == 0)
        assert db.stats().compression_mode == "sq4"
        fill(db, rows[3_000:], 3_000)
        while db.stats().codes_backlog:
            assert db.stats().compression_mode == "sq4"
            step(db)
        assert db.stats().compression_mode == "opq"
        assert found(db, rows, queries) >= 0.96
        assert db.verify().ok


def test_a_reader_goes_on_over_the_old_codes_until_it_looks(tmp_path: Path, sift: Sample) -> None:
    rows, queries = sift[0], sift[1][:60]
    with by_hand():
        db = due(lambda **settings: CoreNN.create(tmp_path / "db", **settings), rows[:5_000])
        with CoreNN.open(tmp_path / "db", mode="r") as reader:
            stepped(db, encoded(db, 2_000))
            with CoreNN.open(tmp_path / "db", mode="r") as other:
                assert version(other) == 1
            stepped(db, lambda: version(db) == 2)
            fill(db, rows[5_000:], 5_000)
            for _ in range(2):
                assert version(reader) == 1 and reader._current().codes is not None
                assert found(reader, rows[:5_000], queries) >= 0.96
            assert reader.verify().ok
            reader.refresh()
            assert version(reader) == 2 and reader._current().codes is not None
            assert found(reader, rows, queries) >= 0.96
            assert reader.verify().ok
            db.configure(compression_mode="sq8")
            stepped(db, lambda: not db.stats().codes_backlog)
            reader.refresh()
            assert reader.stats().compression_mode == "sq8"
            assert found(reader, rows, queries) >= 0.98
        db.close()


# --- what goes wrong --------------------------------------------------------------------------------------------------

CHILD = """
import os, signal, sys, time
import numpy as np
from pathlib import Path
from corenn import CoreNN
from corenn.graph import codebook, recode
from corenn.writer import Task, Writer

path, where = Path(sys.argv[1]), sys.argv[2]
recode.MOST_ROWS = 256
Writer._recoding = lambda self, paid=False: None
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
rows = np.load(path / "rows.npy")
db = CoreNN.open(path / "db")
writer = db._writer
if where == "training":
    cluster, count = codebook._cluster, iter(range(6))
    def dying(*given):
        if next(count, None) is None:
            die()
        yield from cluster(*given)
    codebook._cluster = dying
if where == "renaming":
    recode.adopt_draft = lambda store: die()
if where == "renamed":
    adopt = recode.adopt_draft
    recode.adopt_draft = lambda store: (adopt(store), die())
for step in range(100_000):
    writer.submit(Task(lambda: writer._recode(0.0)))
    coded = 0 if db._store.draft is None else int(db._store.draft.header[32])
    if where == "encoding" and coded >= 2_000:
        db.upsert(range(50), rows[50:100])
        print(coded, flush=True)
        die()
    print(coded, flush=True)
"""


@pytest.mark.few(2)
@pytest.mark.parametrize("where", ["training", "encoding", "renaming", "renamed"])
@pytest.mark.parametrize("restarted", [False, True])
def test_a_killed_process_is_gone_on_with(tmp_path: Path, sift: Sample, where: str, *, restarted: bool) -> None:
    rows, queries = sift[0][:5_000].copy(), sift[1][:60]
    np.save(tmp_path / "rows.npy", rows)
    with by_hand():
        due(lambda **settings: CoreNN.create(tmp_path / "db", **settings), rows).close()
        child = subprocess.run(
            [sys.executable, "-c", CHILD, str(tmp_path), where], cwd=ROOT, env=environment(), capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert child.returncode == -signal.SIGKILL, child.stderr
        coded = int(child.stdout.split()[-1])
        if where == "encoding":
            rows[:50] = rows[50:100]
        if restarted:
            pretend_restart(tmp_path)
        with CoreNN.open(tmp_path / "db", mode="r") as reader:
            assert found(reader, rows, queries) >= 0.96
        with CoreNN.open(tmp_path / "db") as db:
            writer = writer_of(db)
            writer.submit(Task(lambda: writer.link_waiting(lambda: False)))
            if where in ("encoding", "renaming") and not restarted:
                assert int(draft_of(db).header[CODED]) >= coded >= (2_000 if where == "encoding" else 5_000)
                kept = draft_of(db).array[:2_000].copy()
                stepped(db, lambda: version(db) == 2)  # the codebook that was trained before
                same = (db._store.codes.array[:2_000] == kept).all(axis=1)  # type: ignore[union-attr]
                assert same.all()
            else:
                stepped(db, lambda: not db.stats().codes_backlog)
                assert version(db) == (3 if where in ("encoding", "renaming") else 2)
            assert found(db, rows, queries) >= 0.96
            assert db.verify().ok
        assert not (tmp_path / "db" / DRAFT).exists()


@pytest.mark.few(2)
@pytest.mark.parametrize("way", ["closed", "checkpoint", "written since"])
@pytest.mark.parametrize("mode", ["sq8", "opq"])
def test_codes_outlive_the_machine_if_all_of_them_are_on_the_disk(
    tmp_path: Path, sift: Sample, monkeypatch: pytest.MonkeyPatch, mode: str, way: str
) -> None:
    rows, path, copy = sift[0][:1_600], tmp_path / "db", tmp_path / "copy"
    monkeypatch.setattr(codes, "MOST_BEHIND", 0)  # else a row that waits to be linked brings codes for all
    with by_hand(), CoreNN.create(path, dim=128, metric="l2", compression_mode=mode, compression_threshold=500) as db:
        fill(db, rows)
        db.checkpoint()
        if way == "written since":
            db.upsert([3], rows[:1])
        shutil.copytree(path, copy, ignore=shutil.ignore_patterns("LOCK", "readers"))
        before = version(db)
    path = path if way == "closed" else copy
    for module in (store, changes):
        monkeypatch.setattr(module, "boot_id", lambda: "another boot")
    with by_hand(), CoreNN.open(path, mode="r") as reader:
        assert (reader.stats().compression_mode == mode) == (way != "written since")
        assert reader.verify().ok
    with by_hand(), CoreNN.open(path) as db:
        assert (db.stats().codes_backlog == 0) == (way != "written since")
        assert version(db) == before and not db.verify().problems
        stepped(db, lambda: not db.stats().codes_backlog)
        db.upsert([4], rows[:1])
        assert db.stats().compression_mode == mode and not db.verify().problems
        shutil.copytree(path, tmp_path / "again", ignore=shutil.ignore_patterns("LOCK", "readers"))
    for module in (store, changes):
        monkeypatch.setattr(module, "boot_id", lambda: "a third")
    with by_hand(), CoreNN.open(tmp_path / "again") as db:  # what has changed since is not taken for settled
        assert db.stats().codes_backlog > 0


def test_the_disk_is_told_the_new_name_of_codes_before_they_count(
    tmp_path: Path, sift: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a loss of power may leave the old file under it, with notes that say that all is there."""
    told: list[str] = []
    sync, settle = Files.sync_folder, changes.Changes.settle
    with by_hand(), CoreNN.create(tmp_path / "db", dim=128, compression_mode="sq8", compression_threshold=500) as db:
        fill(db, sift[0][:1_100])
        db.configure(compression_mode="sq4")
        stepped(db, lambda: not db.stats().codes_backlog)
        monkeypatch.setattr(Files, "sync_folder", lambda self, path: (told.append(path.name), sync(self, path)))
        monkeypatch.setattr(changes.Changes, "settle", lambda self: (told.append("settled"), settle(self)))
        db.checkpoint()
        db.checkpoint()
    assert told[:3] == ["db", "settled", "settled"]


def test_kills_at_any_instant(tmp_path: Path, sift: Sample, rng: np.random.Generator) -> None:
    """Nothing is by hand here, and the process writes."""
    code = """
import sys, numpy as np
from pathlib import Path
from corenn import CoreNN
from corenn.graph import codebook, recode
recode.GROWN, recode.PAUSE_SECONDS = 1, 0.0
recode.SAMPLE_BYTES, codebook.ROUNDS = 0, 1  # so that little time goes by before there is something to be killed
path = Path(sys.argv[1])
rows = np.load(path / "rows.npy")
db = CoreNN.open(path / "db")
print("open", flush=True)
while True:
    for start in range(0, 2000, 40):
        db.upsert(range(start, start + 40), rows[start : start + 40])
"""
    rows, queries = sift[0][:2_000], sift[1][:40]
    np.save(tmp_path / "rows.npy", rows)
    path = tmp_path / "db"
    fill(CoreNN.create(path, dim=128, metric="l2", compression_mode="pq", compression_threshold=0), rows).close()
    versions = []
    for delay in rng.uniform(0.1, 1.5, 30):
        if len(versions) >= 5 and versions[-1] > 1:
            break
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, env=environment(), stdout=subprocess.PIPE
        )
        assert child.stdout is not None and child.stdout.readline() == b"open\n"
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        with by_hand(), CoreNN.open(path) as db:
            writer = writer_of(db)
            writer.submit(Task(lambda at=writer: at.link_waiting(lambda: False)))
            assert db.verify().ok
            assert found(db, rows, queries) >= 0.96
            stepped(db, lambda at=db: not at.stats().codes_backlog)
            assert db.verify().ok
            versions.append(version(db))
    assert versions == sorted(versions) and versions[-1] > 1


def test_a_full_disk_leaves_the_old_codes(
    tmp_path: Path, sift: Sample, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows, queries = sift[0][:5_000], sift[1][:40]
    reserve = FileSlab.reserve

    def full(slab: FileSlab, count: int) -> None:
        if slab.path.name == DRAFT:
            raise DiskFullError("no space left on the device")
        reserve(slab, count)

    def in_vain(*_: Any, **__: Any) -> None:
        raise AssertionError("codes that there is no room for")

    with by_hand():
        db = due(lambda **settings: CoreNN.create(tmp_path / "db", **settings), rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileSlab, "reserve", full)
        patch.setattr(codebook, "training", in_vain)
        until = time.monotonic() + PATIENCE
        while "no space left" not in caplog.text:
            assert time.monotonic() < until
            db.upsert([0], rows[:1])
            time.sleep(0.01)
        assert version(db) == 1 and db._current().codes is not None
        assert db.stats().codes_backlog and "codes that there is no room for" not in caplog.text
        assert not (tmp_path / "db" / DRAFT).exists()  # what there is no room for takes none
        assert found(db, rows, queries) >= 0.96
    monkeypatch.setattr(recode, "RETRY_SECONDS", 0.05)
    writer_of(db).recoder._later = 0.0  # as when the minute is over
    db.upsert([0], rows[:1])
    assert settled(db) == "pq"
    assert version(db) > 1
    assert db.verify().ok
    db.close()


def test_what_fails_on_the_way_goes_on_where_it_was(create: Create, sift: Sample) -> None:
    rows = sift[0][:5_000]
    with by_hand():
        db = due(create, rows)
        stepped(db, encoded(db, 1_000))
        recoder, write = writer_of(db).recoder, recode.Recoder._write
        coded, kept = int(draft_of(db).header[CODED]), draft_of(db)

        def broken(*given: Any) -> None:
            raise DiskFullError("no space left on the device")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(recode.Recoder, "_write", broken)
            writer_of(db).submit(Task(lambda: writer_of(db)._recode(0.0)))
            assert recoder._later > time.monotonic()
        assert recode.Recoder._write is write
        recoder._later = 0.0
        stepped(db, lambda: version(db) == 2)
        assert db._store.codes is kept and coded >= 1_000
        assert db.verify().ok


@pytest.mark.few(2)
@pytest.mark.parametrize("beside", [False, True])
def test_no_write_fails_for_whatever_ends_it(create: Create, sift: Sample, *, beside: bool) -> None:
    def broken(*given: Any) -> None:
        raise AssertionError("a fault of ours")

    with by_hand():
        db = due(create, sift[0][:5_000])
        stepped(db, encoded(db, 1_000))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recode.Recoder, "_write", broken)
        if beside:
            patch.setattr(recode, "PAUSE_SECONDS", 3_600.0)
        db.upsert([0], sift[0][:1])  # whose row has its new code, too
        db.delete([1])
        assert db._store.fault is None
    assert db.verify().ok


def test_a_reader_that_meets_the_moment_reads_the_new_file(tmp_path: Path, sift: Sample) -> None:
    with CoreNN.create(tmp_path / "db", dim=128, metric="l2") as db:
        codes_slab, metadata = db._store.codes, db._store.metadata
        assert isinstance(codes_slab, FileSlab) and isinstance(metadata, RocksMetadata)
        before = replace(codes_slab.spec, columns=16)  # as it was read from the file that had the name
        slab = Store._open_slab(codes_slab.path, before, "r", Files(), metadata, Recovered())
        assert slab.spec == codes_slab.spec
        slab.close()


@pytest.mark.few(1)
def test_no_room_for_a_codebook(create: Create, sift: Sample) -> None:
    with by_hand():
        db = due(create, sift[0][:5_000])

        def fail(self: Any, name: str, raw: bytes) -> None:
            raise DiskFullError("no room for it")

        with pytest.MonkeyPatch.context() as patch:
            for metadata in (RocksMetadata, MemoryMetadata):
                patch.setattr(metadata, "store_soft", fail)
            stepped(db, lambda: writer_of(db).recoder._later > 0)
        assert version(db) == 1 and db._current().codes is not None
        writer_of(db).recoder._later = 0.0
        stepped(db, lambda: version(db) > 1)
        assert db.verify().ok


@pytest.mark.few(2)
@pytest.mark.parametrize("damage", ["cut", "header", "words", "far", "codebook", "empty"])
def test_a_damaged_file_is_begun_anew(tmp_path: Path, sift: Sample, damage: str) -> None:
    rows, queries = sift[0][:5_000], sift[1][:40]
    path = tmp_path / "db"
    with by_hand():
        db = due(lambda **settings: CoreNN.create(path, **settings), rows)
        stepped(db, encoded(db, 2_000))
        db.close()
        raw = bytearray((path / DRAFT).read_bytes())
        if damage == "cut":
            raw = raw[: PAGE + 1_000]
        elif damage == "header":
            raw[20:40] = b"\x55" * 20
        elif damage == "words":
            raw[256:512] = b"\x55" * 256
        elif damage == "far":
            raw[8 * CODED : 8 * CODED + 8] = (1 << 40).to_bytes(8, "little")
        elif damage == "empty":
            raw = raw[:100]
        else:
            metadata = RocksMetadata(path / "meta", Files())
            metadata.store_soft("codebook2", b"")
            metadata.close()
        (path / DRAFT).write_bytes(raw)
        with CoreNN.open(path) as db:
            assert version(db) == 1 and db._store.draft is None
            assert found(db, rows, queries) >= 0.96
            stepped(db, lambda: version(db) > 1)
            assert found(db, rows, queries) >= 0.96
            report = db.verify()
            assert report.ok and not report.repaired


@pytest.mark.parametrize("at", ["training", "encoding"])
def test_closing_does_not_wait_for_it(tmp_path: Path, sift: Sample, at: str) -> None:
    rows = sift[0][:5_000]
    path = tmp_path / "db"
    with by_hand():
        db = due(lambda **settings: CoreNN.create(path, **settings), rows)
        stepped(db, encoded(db, 500) if at == "encoding" else lambda: writer_of(db).recoder._work is not None)
    steps = 0
    step = recode.Recoder.step

    def counted(*given: Any) -> bool:
        nonlocal steps
        steps += writer_of(db).closing
        return step(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recode.Recoder, "step", counted)
        patch.setattr(recode, "MOST_ROWS", 256)
        db.close()
    assert steps <= 1
    with CoreNN.open(path) as db:
        assert settled(db) == "pq"
        assert version(db) == 2
        assert db.verify().ok


def test_a_snapshot_holds_the_old_codes_or_the_new(tmp_path: Path, sift: Sample) -> None:
    rows, queries = sift[0][:5_000], sift[1][:40]
    with by_hand():
        db = due(lambda **settings: CoreNN.create(tmp_path / "db", **settings), rows)
        stepped(db, encoded(db, 1_000))
        writer = writer_of(db)
        writer.submit(Task(writer.begin_copy))
        stepped(db, lambda: writer.recoder._whole)
        assert writer.recoder.rest(writer.view) is None and version(db) == 1  # it waits for the copy
        writer.submit(Task(writer.end_copy))
        db.snapshot(tmp_path / "copy")
        with CoreNN.open(tmp_path / "copy", mode="r") as copy:
            assert version(copy) == 1 and copy._current().codes is not None
        assert not (tmp_path / "copy" / DRAFT).exists()
        stepped(db, lambda: version(db) == 2)
        db.snapshot(tmp_path / "copy")
        with CoreNN.open(tmp_path / "copy", mode="r") as copy:
            assert version(copy) == 2 and copy._current().codes is not None
            assert found(copy, rows, queries) >= 0.96
            assert copy.verify().ok
        db.close()


def test_a_snapshot_is_told_of_codes_by_a_process_that_was_killed_when_they_had_their_name(
    tmp_path: Path, sift: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, killed, copy = tmp_path / "db", tmp_path / "killed", tmp_path / "copy"
    rename = FileSlab.rename

    def dying(slab: FileSlab, to: Path) -> None:
        rename(slab, to)
        shutil.copytree(path, killed)  # what a kill leaves at this moment

    with by_hand():
        db = fill(CoreNN.create(path, dim=128, metric="l2", compression_mode="sq8", compression_threshold=500),
                  sift[0][:1_200])  # fmt: skip
        db.snapshot(copy)
        db.configure(compression_mode="sq4")
        monkeypatch.setattr(FileSlab, "rename", dying)
        stepped(db, lambda: not db.stats().codes_backlog)
        db.close()
        with CoreNN.open(killed) as db:
            assert db.stats().compression_mode == "sq4" and db.verify().ok
            db.snapshot(copy)
    with CoreNN.open(copy, mode="r") as reader:
        assert reader.stats().compression_mode == "sq4" and reader.verify().ok


def test_a_limit_that_changes_on_the_way_ends_what_does_not_fit_it(
    tmp_path: Path, sift: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = {"none": 0, "sq8": 500, "sq4": 5_000}
    with by_hand():
        db = fill(CoreNN.create(tmp_path / "db", dim=128, metric="l2", compression_mode="sq8",
                                compression_threshold=500), sift[0][:1_200])  # fmt: skip
        for module in (codes, recode):
            monkeypatch.setattr(module, "fits", lambda store, mode, live: live <= most[mode])
        for whole in (False, True):  # while rows are encoded, and while it is tried what that is worth
            most["sq4"] = 5_000
            db.configure(compression_mode="auto")
            writer, enough = writer_of(db), encoded(db, 1_200 if whole else 512)
            while not enough():
                writer.submit(Task(lambda at=writer: at._recode(0.0)))
            assert codes.mode_in(draft_of(db)) == "sq4"
            most["sq4"] = 100
            db.configure(memory_limit=1 << 40)
            assert db._store.draft is None and writer_of(db).recoder._work is None
            step(db)
            assert not writer_of(db).recoder._later and db._store.fault is None
            db.configure(compression_mode="sq8")
        db.close()


def test_a_write_does_not_pay_for_the_time_in_which_nothing_could_be_done(memory: Create, sift: Sample) -> None:
    db = fill(memory(dim=128, metric="l2", compression_mode="sq8", compression_threshold=500), sift[0][:1_200])
    with by_hand():
        db.configure(compression_mode="sq4")
        writer = writer_of(db)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Writer, "_recoding", lambda self, paid=False: 60.0)  # as after a failure
            for _ in range(100):
                writer._recode_beside(1.0)
            assert writer._owed <= max(writer_module.MOST_OWED, writer_module.RECODED_SHARE)


def test_a_compaction_takes_the_place_of_it(create: Create, sift: Sample) -> None:
    rows, queries = sift[0][:5_000], sift[1][:40]
    with by_hand():
        db = due(create, rows)
        stepped(db, encoded(db, 2_000))
        db.delete(range(4_000, 5_000))
        db.compact()
        assert db._store.draft is None and version(db) == 1
        assert found(db, rows[:4_000], queries) >= 0.96
        stepped(db, lambda: not db.stats().codes_backlog)
        assert db.verify().ok


# --- drift ------------------------------------------------------------------------------------------------------------


def turned(rows: Rows) -> Rows:
    """Rows of another kind: what belongs together does not stand together."""
    return np.ascontiguousarray(rows[:, np.random.default_rng(7).permutation(rows.shape[1])])


@pytest.mark.few(2)
@pytest.mark.parametrize("mode", ["pq", "opq"])
def test_drift_is_noticed(create: Create, sift: Sample, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recode, "GROWN", 100)  # it is not by growth
    rows, other = sift[0], turned(sift[0])
    with by_hand():
        db = fill(create(dim=128, metric="l2", compression_mode=mode, compression_threshold=2_000), rows[:2_500])
        assert version(db) == 1
        fill(db, rows[2_500:4_000], 2_500)
        stepped(db, lambda: writer_of(db).recoder.rest(writer_of(db).view) is None)
        assert db._store.codes is not None
        looked = int(db._store.codes.header[LOOKED])
        assert version(db) == 1 and looked >= 3_500  # it was looked, and rows of the same kind are no drift
        fill(db, other[:1_500], 4_000)
        stepped(db, lambda: writer_of(db).recoder.rest(writer_of(db).view) is None)
        assert version(db) == 2
        both = np.concatenate((rows[:4_000], other[:1_500]))
        assert found(db, both, np.concatenate((sift[1][:40], turned(sift[1][40:80])))) >= 0.96
        # The same kind once more is known by now.
        fill(db, other[1_500:3_500], 5_500)
        stepped(db, lambda: writer_of(db).recoder.rest(writer_of(db).view) is None)
        assert version(db) == 2


def test_rows_that_no_codebook_tells_apart_are_no_drift_for_ever(
    memory: Create, sift: Sample, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recode, "GROWN", 100)
    noise = rng.normal(100, 60, (4_500, 128)).astype(np.float32)
    with by_hand():
        db = fill(memory(dim=128, metric="l2", compression_mode="pq", compression_threshold=1_024), sift[0][:1_500])
        seen = []
        for start in range(0, 4_500, 1_500):
            fill(db, noise[start : start + 1_500], 10_000 + start)
            stepped(db, lambda: writer_of(db).recoder.rest(writer_of(db).view) is None)
            seen.append(version(db))
        assert seen[0] == 2 and seen[-1] <= 3, seen


def test_it_is_looked_when_rows_are_replaced_without_growth(create: Create, sift: Sample) -> None:
    with by_hand():
        db = fill(create(dim=128, metric="l2", compression_mode="pq", compression_threshold=2_000), sift[0][:2_500])
        db.upsert(range(2_500), turned(sift[0][:2_500]))
        stepped(db, lambda: writer_of(db).recoder.rest(writer_of(db).view) is None)
        assert version(db) == 2
        assert found(db, turned(sift[0][:2_500]), turned(sift[1][:40])) >= 0.96


def test_what_there_is_to_compare_with_is_kept(create: Create, sift: Sample) -> None:
    with by_hand():
        db = fill(create(dim=128, metric="l2", compression_mode="opq", compression_threshold=2_000), sift[0][:2_500])
        assert db._store.codes is not None
        header = db._store.codes.header
        missed, agreed = (float(header[word : word + 1].view(np.float64)[0]) for word in (MISSED, AGREED))
        assert 0.01 < missed < 0.2 and 0.95 < agreed <= 1
        assert header[TRIED] == header[LOOKED] > 0
        db.compact()
        again = db._store.codes.header
        assert (again[[MISSED, AGREED, TRIED, LOOKED]] == header[[MISSED, AGREED, TRIED, LOOKED]]).all()


@pytest.mark.parametrize("rotated", [False, True])
def test_training_in_steps_gives_the_same_codebook(sift: Sample, *, rotated: bool) -> None:
    helpers = Helpers(2)
    one = codebook.train(sift[0].copy(), 32, 1, helpers, rotated=rotated)
    other = codebook.at_once(codebook.training(sift[0].copy(), 32, 1, rotated=rotated))
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    helpers.close()
