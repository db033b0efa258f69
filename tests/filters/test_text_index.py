"""The full-text index over reopens, crashes, damage, compactions, copies, and in processes that read.

Rules out an index that lags behind what is committed, keeps what was replaced or deleted, sees what a snapshot does
not, or takes the database down with it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corenn import CoreNN, F, MissingExtraError, Root, StorageError
from corenn.filters import as_filter, fulltext, text_files
from corenn.filters.bm25 import Engine
from corenn.filters.fulltext import FullText
from corenn.types import Key
from tests.conftest import Create
from tests.crash.harness import environment
from tests.filters.test_text import ASKED, check, come_and_go
from tests.filters.texts import DIM, FIELDS, SETTINGS, by_tantivy, change, filled, made, queries, values_at, vectors
from tests.oracle import has_text


def index_of(db: CoreNN) -> FullText:
    found = db._current().payload_index
    assert found is not None
    return found.texts


def check_all(db: CoreNN, model: Mapping[Key, Any]) -> None:
    for text in ASKED[::3]:
        check(db, dict(model), text)


def settle(db: CoreNN) -> None:
    """Wait for what is made in the background."""
    assert db._writer is not None
    while index_of(db).due(calm=False):
        db.checkpoint()


# --- reopening --------------------------------------------------------------------------------------------------------


def test_what_was_closed_is_not_made_again(tmp_path: Path) -> None:
    with CoreNN.create(tmp_path / "db", **SETTINGS) as db:
        model = filled(db)
        change(db, model)
    before = {path.name for path in (tmp_path / "db" / "text.index").iterdir()}
    with CoreNN.open(tmp_path / "db") as db:
        assert not index_of(db).due(calm=True)
        check_all(db, model)
        assert db.verify().ok
        assert db.stats().disk_bytes > 0
    assert {path.name for path in (tmp_path / "db" / "text.index").iterdir()} == before


@settings(max_examples=6)
@given(data=st.data())
def test_reopens_between_changes_do_not_show(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "db"
    shutil.rmtree(path, ignore_errors=True)
    CoreNN.create(path, **SETTINGS).close()
    model: dict[int, Any] = {}
    for _ in range(data.draw(st.integers(1, 3))):
        with CoreNN.open(path) as db:
            come_and_go(db, model, data)
            if data.draw(st.booleans()):
                check(db, model, data.draw(queries))
                come_and_go(db, model, data)
    with CoreNN.open(path) as db:
        check(db, model, data.draw(queries))
        assert db.verify().ok


def test_fields_of_a_handle_are_those_of_no_other(tmp_path: Path) -> None:
    with CoreNN.create(tmp_path / "db", **SETTINGS) as db:
        model = filled(db)
    with CoreNN.open(tmp_path / "db", text_fields=["title"]) as db:
        assert db.query(text="red", k=300).keys == [key for key, _ in by_tantivy(model, ["title"], "red")]
        change(db, model)
    with CoreNN.open(tmp_path / "db", text_fields=[]) as db:
        db.delete([1000])
        del model[1000]
    with CoreNN.open(tmp_path / "db") as db:
        check_all(db, model)
        assert db.verify().ok


def test_rows_from_before_are_taken_up_in_the_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fulltext, "STEP_ROWS", 16)
    with CoreNN.create(tmp_path / "db", dim=DIM, metric="l2") as db:
        model = filled(db, 60)
        db.configure(text_fields=FIELDS)
        settle(db)
        assert index_of(db)._state.covered == text_files.ALL
        check_all(db, model)
    shutil.rmtree(tmp_path / "db" / "text.index")
    with CoreNN.open(tmp_path / "db") as db:
        change(db, model)
        settle(db)
        check_all(db, model)
        assert db.verify().ok


def test_a_build_brings_its_index(tmp_path: Path) -> None:
    model = dict(enumerate(made(100)))
    for path in (tmp_path / "db", None):
        with CoreNN.build(path, list(model), vectors(100), list(model.values()), **SETTINGS) as db:
            assert not index_of(db).due(calm=True)
            assert db.query(text="red sea", k=100).keys == [key for key, _ in by_tantivy(model, FIELDS, "red sea")]
            assert db.verify().ok


# --- crashes ----------------------------------------------------------------------------------------------------------

CHILD = """
import os, signal, sys
from pathlib import Path
from corenn import CoreNN
from corenn.filters import bm25, fulltext, text_files
from tests.filters.texts import SETTINGS, change, filled, vectors

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

db = CoreNN.create(Path(sys.argv[1]), **SETTINGS)
model = filled(db)
db.query(text="red")
if sys.argv[3] == "changes":
    change(db, model)
else:
    db.insert(range(2000, 2010), vectors(10), [{"title": "red shoes"}] * 10)
if sys.argv[2] == "committed":
    die()
elif sys.argv[2] == "marked":
    mark = text_files.write_mark
    text_files.write_mark = lambda *given: (mark(*given), die())
elif sys.argv[2] == "written":
    bm25.Engine.snapshot = die
elif sys.argv[2] == "stepping":
    fulltext.STEP_ROWS = 16
    mark, left = text_files.write_mark, [3]
    def count(*given):
        mark(*given)
        left[0] -= 1
        if not left[0]:
            die()
    text_files.write_mark = count
    db._writer.submit(__import__("corenn.writer").writer.Task(db._writer.payload_index.texts.rebuild))
    while True:
        db.checkpoint()
db.query(text="red")
"""


@pytest.mark.parametrize(
    ("when", "how"),
    [
        ("committed", "changes"),
        ("marked", "inserts"),
        ("written", "changes"),
        ("stepping", "changes"),
    ],
)
def test_a_killed_writer_leaves_what_one_that_lives_has(tmp_path: Path, when: str, how: str) -> None:
    command = [sys.executable, "-c", CHILD, str(tmp_path / "db"), when, how]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == -9, done.stderr
    with CoreNN.in_memory(**SETTINGS) as alive, CoreNN.open(tmp_path / "db") as db:
        model = filled(alive)
        if how == "changes":
            change(alive, model)
        else:
            alive.insert(range(2000, 2010), vectors(10), [{"title": "red shoes"}] * 10)
            model |= {key: {"title": "red shoes"} for key in range(2000, 2010)}
        check_all(db, model)
        for text in ASKED:
            wanted, hits = alive.query(text=text, k=300), db.query(text=text, k=300)
            assert {*hits.keys} == {*wanted.keys}
            assert how == "changes" or hits == wanted  # else deleted rows count in one of them
        assert db.verify().ok
        settle(db)
        assert db.verify().ok


def test_an_index_of_commits_that_were_lost_is_made_anew(tmp_path: Path) -> None:
    """After a loss of power it may have reached the disk, and they not."""
    with CoreNN.create(tmp_path / "db", **SETTINGS) as db:
        model = filled(db, 100)
    shutil.copytree(tmp_path / "db", tmp_path / "before")
    with CoreNN.open(tmp_path / "db") as db:
        db.insert(range(500, 550), vectors(50), [{"title": "red of another time"}] * 50)
    shutil.rmtree(tmp_path / "before" / "text.index")
    shutil.copytree(tmp_path / "db" / "text.index", tmp_path / "before" / "text.index")
    with CoreNN.open(tmp_path / "before") as db:
        for key in range(600, 620):
            db.insert([key], vectors(1), [{"title": "blue"}])
            model[key] = {"title": "blue"}
        check_all(db, model)
        assert db.verify().ok


# --- damage -----------------------------------------------------------------------------------------------------------


def _flip(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 3] ^= 0xFF
        path.write_bytes(raw)


def _tear(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE: dict[str, Callable[[Path], object]] = {
    "folder missing": shutil.rmtree,
    "mark missing": lambda folder: (folder / "mark.json").unlink(),
    "mark torn": lambda folder: _tear(folder, "mark.json"),
    "meta missing": lambda folder: (folder / "meta.json").unlink(),
    "meta empty": lambda folder: (folder / "meta.json").write_bytes(b""),
    "segments missing": lambda folder: [path.unlink() for path in folder.glob("*.idx")],
    "segments torn": lambda folder: _tear(folder, "*.term"),
    "segments empty": lambda folder: [path.write_bytes(b"") for path in folder.glob("*.fast")],
    "postings flipped": lambda folder: _flip(folder, "*.idx"),
    "lengths flipped": lambda folder: _flip(folder, "*.fieldnorm"),
    "an older mark": lambda folder: (folder / "mark.json").write_bytes(
        (folder / "mark.json").read_bytes().replace(b'"counter": ', b'"counter": 9')
    ),
}


@pytest.mark.parametrize(
    ("how", "mode"),
    [
        *((how, "rw") for how in DAMAGE),
        *((how, "r") for how in ("folder missing", "segments missing", "postings flipped")),
    ],
)
def test_a_damaged_index_is_made_anew(tmp_path: Path, how: str, mode: Any) -> None:
    with CoreNN.create(tmp_path / "db", **SETTINGS) as db:
        model = filled(db, 60)
        db.query(text="red")
        change(db, model)
    DAMAGE[how](tmp_path / "db" / "text.index")
    with CoreNN.open(tmp_path / "db", mode) as db:
        check_all(db, model)
        assert db.verify().ok


def test_the_index_of_another_database_is_not_taken(tmp_path: Path) -> None:
    for name, count in (("one", 30), ("two", 60)):
        with CoreNN.create(tmp_path / name, **SETTINGS) as db:
            model = filled(db, count)
    shutil.rmtree(tmp_path / "two" / "text.index")
    shutil.copytree(tmp_path / "one" / "text.index", tmp_path / "two" / "text.index")
    with CoreNN.open(tmp_path / "two") as db:
        check_all(db, model)


def test_damage_of_an_open_index_is_found_and_mended(tmp_path: Path) -> None:
    with CoreNN.create(tmp_path / "db", **SETTINGS) as db:
        model = filled(db)
        check_all(db, model)
        _flip(tmp_path / "db" / "text.index", "*.pos")
        assert [problem.part for problem in db.verify().problems] == ["texts"]
        assert [problem.part for problem in db.repair().repaired] == ["texts"]
        assert db.verify().ok
        check_all(db, model)


def test_an_index_that_says_something_else_is_found_and_mended(create: Create) -> None:
    db = create(**SETTINGS)
    model = filled(db)
    db.query(text="red")
    index_of(db)._waiting.clear()
    change(db, model)
    index_of(db)._waiting.clear()  # as if these had not been noted
    (problem,) = db.verify().problems
    assert (problem.part, problem.count) == ("texts", 7)  # both rows of 9, but not 1001, which has no text
    assert db.repair().ok
    check_all(db, model)
    assert db.verify().ok


# --- what else changes files ------------------------------------------------------------------------------------------


def test_a_compaction_brings_an_index(create: Create) -> None:
    db = create(**SETTINGS)
    model = filled(db)
    change(db, model)
    db.query(text="red")
    doomed = list(model)[::3]
    db.delete(doomed)
    for key in doomed:
        del model[key]
    view = db._current()
    db.compact()
    check_all(db, model)
    for text in ASKED:  # nothing of the deleted rows counts any more
        wanted = by_tantivy(model, FIELDS, text)
        assert np.allclose(-db.query(text=text, k=300).distances, [score for _, score in wanted], rtol=1e-6)
    db.insert(["late"], vectors(1), [{"title": "red"}])
    model["late"] = {"title": "red"}
    check_all(db, model)
    assert db.verify().ok
    assert view.head.live == len(model) - 1


def test_a_view_from_before_a_compaction_is_answered(tmp_path: Path) -> None:
    with CoreNN.create(tmp_path / "db", **SETTINGS) as db:
        model = filled(db)
        wanted = [key for key, payload in model.items() if has_text("red", [values_at(payload, f) for f in FIELDS])]
        with db._view(with_metadata=True) as view:
            db.delete([wanted[0]])
            db.compact()
            ids = db._selected(view, F.text("red")).ids
            assert [int(key) for key in view.keys[ids][:, 1]] == wanted


def test_copies_have_an_index(tmp_path: Path) -> None:
    with CoreNN.create(tmp_path / "db", **SETTINGS) as db:
        model = filled(db)
        change(db, model)
        db.query(text="red")
        db.snapshot(tmp_path / "snapshot")
        db.backup(tmp_path / "backup.tar.gz")
        db.insert(["late"], vectors(1), [{"title": "red"}])
    CoreNN.restore(tmp_path / "backup.tar.gz", tmp_path / "restored")
    with CoreNN.open(tmp_path / "snapshot", "r") as db:
        check_all(db, model)
    for name in ("snapshot", "restored"):
        with CoreNN.open(tmp_path / name) as db:
            check_all(db, model)
            assert db.verify().ok


def test_collections_of_a_root_have_indexes_of_their_own(tmp_path: Path) -> None:
    with Root(tmp_path / "root") as root:
        for name, count in (("one", 40), ("two", 80)):
            filled(root.create(name, **SETTINGS), count)
    with Root(tmp_path / "root") as root:
        for name, count in (("one", 40), ("two", 80)):
            check_all(root[name], dict(enumerate(made(count))))
        root.drop("one")
        assert root["two"].query(text="red").keys


# --- readers ----------------------------------------------------------------------------------------------------------


def test_a_reader_sees_its_snapshot(tmp_path: Path) -> None:
    """Whatever the writer has written of the index since, and whether the reader has asked before."""
    with CoreNN.create(tmp_path / "db", **SETTINGS) as db:
        model = filled(db)
        db.checkpoint()
        with CoreNN.open(tmp_path / "db", "r") as reader, CoreNN.open(tmp_path / "db", "r") as late:
            check_all(reader, model)
            before = dict(model)
            change(db, model)
            check_all(db, model)  # which brings the index on the disk beyond what the readers see
            for each in (reader, late):
                check_all(each, before)
                each.refresh()
                check_all(each, model)
            db.delete([0, 1])
            del model[0], model[1]
            db.checkpoint()  # drops the records of these commits
            db.checkpoint()
            for each in (reader, late):
                each.refresh()
                check_all(each, model)


def test_a_reader_follows_a_compaction(tmp_path: Path) -> None:
    with CoreNN.create(tmp_path / "db", **SETTINGS) as db:
        model = filled(db)
        with CoreNN.open(tmp_path / "db", "r") as reader:
            check_all(reader, model)
            change(db, model)
            db.compact()
            reader.refresh()
            check_all(reader, model)


def test_a_reader_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "private").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "private"))
    with CoreNN.create(tmp_path / "db", **SETTINGS) as db:
        model = filled(db)
    before = {*(tmp_path / "db" / "text.index").iterdir()}
    with CoreNN.open(tmp_path / "db", "r") as reader:
        check_all(reader, model)
        assert list((tmp_path / "private").glob("corenn-text-*"))
    assert not list((tmp_path / "private").iterdir())
    assert {*(tmp_path / "db" / "text.index").iterdir()} == before


READER = """
import sys
from corenn import CoreNN
with CoreNN.open(sys.argv[1], "r") as db:
    last = 0
    print("ready", flush=True)
    for line in sys.stdin:
        db.refresh()
        keys = db.query(text="counted", k=1000).keys
        assert keys == sorted(keys) and db.count({"$text": "counted"}) == len(keys), keys
        print(len(keys), min(keys, default=-1), max(keys, default=-1), flush=True)
"""


def test_a_process_that_reads_beside_a_writer(tmp_path: Path) -> None:
    with CoreNN.create(tmp_path / "db", **SETTINGS) as db:
        command = [sys.executable, "-c", READER, str(tmp_path / "db")]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment()) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            for turn in range(8):
                rows = range(10 * turn, 10 * turn + 10)
                db.insert(list(rows), vectors(10), [{"title": "counted"}] * 10)
                if turn % 2:
                    db.delete(filter=F.text("counted") & F.keys(range(10 * turn - 10, 10 * turn)))
                if turn % 3 == 0:
                    db.checkpoint()
                wanted = db.query(text="counted", k=1000).keys
                child.stdin.write("look\n")
                child.stdin.flush()
                assert child.stdout.readline() == f"{len(wanted)} {min(wanted)} {max(wanted)}\n"
            child.stdin.close()
            assert child.wait() == 0


# --- beside writes ----------------------------------------------------------------------------------------------------


def test_a_view_that_the_index_is_ahead_of_is_answered(create: Create) -> None:
    db = create(**SETTINGS)
    model = filled(db)
    with db._view(with_metadata=True) as view:
        before = dict(model)
        change(db, model)
        check_all(db, model)
        assert index_of(db).as_of(*view.snapshot) is None
        for text in ASKED:
            ids = {*db._selected(view, as_filter({"$text": text})).ids.tolist()}
            assert ids == {
                key for key, payload in before.items() if has_text(text, [values_at(payload, f) for f in FIELDS])
            }


def test_queries_beside_writes_see_what_was_written_before(create: Create) -> None:
    """Each query sees all that returned before it began, and nothing that was deleted before."""
    db = create(**SETTINGS)
    there, gone, failed = [-1], [-1], list[str]()

    def write() -> None:
        for number in range(30):
            db.insert([number], vectors(1), [{"title": "red" if number % 3 else "blue"}])
            there[0] = number
            if number >= 10:
                db.delete([number - 10])
                gone[0] = number - 10

    def ask() -> None:
        while there[0] < 29:
            least, dead = there[0], gone[0]
            for keys in (db.query(text="red blue", k=100).keys, db.query(np.zeros(DIM), text="red", k=100).keys):
                if not {*range(max(0, gone[0] + 2), least + 1)} <= {*keys} or {*range(dead + 1)} & {*keys}:
                    failed.append(f"{keys} with {least} there and {dead} gone")

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    write()
    for thread in threads:
        thread.join()
    assert not failed
    assert sorted(db.query(text="red blue", k=100).keys) == [*range(20, 30)]


# --- the extra --------------------------------------------------------------------------------------------------------


def test_without_the_extra_all_else_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with CoreNN.create(tmp_path / "db", **SETTINGS) as db:
        model = filled(db, 40)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tantivy", None)
        for ask in (
            lambda: CoreNN.create(tmp_path / "other", **SETTINGS),
            lambda: CoreNN.in_memory(**SETTINGS),
        ):
            with pytest.raises(MissingExtraError, match=r"pip install 'corenn\[text\]'"):
                ask()
        assert not (tmp_path / "other").exists()
        with CoreNN.open(tmp_path / "db") as db:
            change(db, model)
            for ask in (lambda: db.query(text="red"), lambda: db.count(F.text("red"))):
                with pytest.raises(MissingExtraError, match="tantivy"):
                    ask()
            with pytest.raises(MissingExtraError):
                db.configure(text_fields=["title"])
            assert db.verify().ok
            assert len(db.query(np.zeros(DIM), k=100)) == len(model)
    with CoreNN.open(tmp_path / "db") as db:
        check_all(db, model)
        assert db.verify().ok


def test_a_failure_to_write_stops_nothing(create: Create, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a checkpoint or a query meets it first."""

    def fail(*_: Any, **__: Any) -> None:
        raise StorageError("of whatever kind")

    db = create(**SETTINGS)
    model = filled(db, 40)
    for checkpoints in (0, 2):
        db.query(text="red")
        with monkeypatch.context() as patch:
            patch.setattr(Engine, "write", fail)
            db.upsert([9, checkpoints], vectors(2), [{"title": "red"}, {"title": "hat"}])
            for key, title in ((9, "red"), (checkpoints, "hat")):
                model.pop(key, None)
                model[key] = {"title": title}
            for _ in range(checkpoints):
                db.checkpoint()
            with pytest.raises(StorageError, match="of whatever kind"):
                db.query(text="red")
        check_all(db, model)
        assert db.verify().ok


def test_ctrl_c_in_the_middle_of_a_write_leaves_what_was_there(create: Create, monkeypatch: pytest.MonkeyPatch) -> None:
    db = create(**SETTINGS)
    model = filled(db, 100, ask="red")
    change(db, model)

    def stop(_: Any) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fulltext, "digest_of", stop)
        with pytest.raises(KeyboardInterrupt) as caught:
            db.query(text="red")
    check_all(db, model)
    assert db.verify().ok
    assert caught.value is not None  # whoever keeps it keeps no lock


def test_an_index_that_is_given_up_takes_no_room(tmp_path: Path) -> None:
    with CoreNN.create(tmp_path / "db", **SETTINGS) as db:
        filled(db, 20)
        db.checkpoint()
        assert (tmp_path / "db" / "text.index").exists()
        db.configure(text_fields=[])
        assert not (tmp_path / "db" / "text.index").exists()
