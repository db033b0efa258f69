"""Rules out a write that is done twice, or not at all, because it was asked for again under its token."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corenn import CoreNN, DuplicateKeyError, F, IdempotencyKeyError, StorageError
from corenn.once import Token, once
from corenn.storage import ledger
from corenn.storage.rocksdb import Rocks
from corenn.writer import Task
from tests.crash.harness import environment

ROWS = np.random.default_rng(5).normal(size=(10, 4)).astype(np.float32)
SECONDS = 120.0


def token(name: str, asked: str = "") -> Token:
    return Token(name.encode().ljust(16), asked.encode().ljust(16))


def insert(db: CoreNN, name: str, asked: str = "", *, key: str = "") -> None:
    """Insert the row `name`, or another one, under the token `name`."""
    with once(token(name, asked)):
        db.insert([key or name], ROWS[:1])


@pytest.fixture(params=["disk", "memory"])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    made = CoreNN.in_memory(dim=4) if request.param == "memory" else CoreNN.create(tmp_path / "db", dim=4)
    with made:
        yield made


def test_it_is_done_once_and_answered_as_the_first_time(db: CoreNN) -> None:
    db.insert(range(10), ROWS, [{"n": n % 2} for n in range(10)])
    for _ in range(3):
        insert(db, "a")
        with once(token("b")):
            assert db.delete([0, 1, 99]) == 2
        with once(token("c")):
            assert db.delete(filter=F("n") == 0) == 4
        with once(token("d")):
            db.set_payload([3], [{"n": 0}])
        with once(token("e")):
            db.upsert(["e"], ROWS[:1])
    assert (len(db), db.stats().commit) == (6, 6)
    with pytest.raises(DuplicateKeyError):
        insert(db, "other", key="a")
    with pytest.raises(DuplicateKeyError):
        db.insert(["a"], ROWS[:1])  # what has no token is as it was


def test_another_write_under_the_same_token_is_an_error(db: CoreNN) -> None:
    insert(db, "a")
    with pytest.raises(IdempotencyKeyError, match="take a new one"):
        insert(db, "a", "something else", key="b")
    assert "b" not in db


def test_what_fails_or_changes_nothing_leaves_no_token(db: CoreNN) -> None:
    db.insert(["a"], ROWS[:1])
    with pytest.raises(DuplicateKeyError):
        insert(db, "a")
    with once(token("b")):
        assert db.delete(["b"]) == 0
    db.delete(["a"])
    db.insert(["b"], ROWS[:1])
    insert(db, "a")
    with once(token("b")):
        assert db.delete(["b"]) == 1
    assert list(db.keys()) == ["a"]


def together(db: CoreNN, writes: list[tuple[str, str]]) -> list[Exception]:
    """Insert keys under tokens, all in line when the writer takes them; what is raised."""
    writer, begun, go = db._writer, threading.Event(), threading.Event()
    assert writer is not None
    writer.schedule(Task(lambda: begun.set() or go.wait(SECONDS)))
    assert begun.wait(SECONDS)
    faults: list[Exception] = []

    def write(name: str, key: str) -> None:
        try:
            insert(db, name, key=key)
        except Exception as error:  # noqa: BLE001 (handed to the test)
            faults.append(error)

    threads = [threading.Thread(target=write, args=each) for each in writes]
    for count, thread in enumerate(threads, 1):
        thread.start()
        while len(writer._queue) < count:
            thread.join(0.001)
    go.set()
    for thread in threads:
        thread.join()
    return faults


def test_those_that_come_together_are_one(db: CoreNN) -> None:
    """Two of them may even be in line for the same commit; if the first fails there, the second is tried."""
    faults = together(db, [("x", "x")] * 4 + [("y", "x"), ("y", "x"), ("z", "z")])
    assert [type(each) for each in faults] == [DuplicateKeyError] * 2
    assert sorted(db.keys()) == ["x", "z"]


# --- on disk ----------------------------------------------------------------------------------------------------------


def reopened(path: Path) -> CoreNN:
    return CoreNN.open(path)


def compacted(path: Path) -> CoreNN:
    db = CoreNN.open(path)
    db.compact()
    db.close()
    return CoreNN.open(path)


def copied(path: Path) -> CoreNN:
    with CoreNN.open(path) as db:
        db.snapshot(path.with_name("copy"))
    return CoreNN.open(path.with_name("copy"))


@pytest.mark.parametrize("way", [reopened, compacted, copied])
def test_it_is_known_to_whoever_opens_the_database(tmp_path: Path, way: Callable[[Path], CoreNN]) -> None:
    with CoreNN.create(tmp_path / "db", dim=4) as db:
        db.insert(range(10), ROWS)
        insert(db, "a")
        with once(token("b")):
            assert db.delete([0, 1]) == 2
    with way(tmp_path / "db") as db:
        insert(db, "a")
        with once(token("b")):
            assert db.delete([0, 1]) == 2
        assert len(db) == 9
        with pytest.raises(IdempotencyKeyError):
            insert(db, "a", "something else")
        assert db.verify().ok


def test_what_is_committed_during_a_compaction_is_known_behind_it(tmp_path: Path) -> None:
    with CoreNN.create(tmp_path / "db", dim=4) as db:
        db.insert(range(10), ROWS)
        insert(db, "before")
        written = threading.Thread(target=insert, args=(db, "meanwhile"))

        def beside(step: str, done: int, total: int) -> None:
            if written.ident is None and step == "metadata":
                written.start()
                while "meanwhile" not in {w.keys[0] for w in db._writer._queue if w.keys}:  # type: ignore[union-attr]
                    written.join(0.001)

        db.compact(beside)
        written.join()
    with CoreNN.open(tmp_path / "db") as db:
        assert db.stats().generation == 2
        insert(db, "before")
        insert(db, "meanwhile")
        assert len(db) == 12


def test_a_commit_that_is_taken_back_takes_its_token_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The change reached the disk, and its caller was told of an error."""
    with CoreNN.create(tmp_path / "db", dim=4) as db:
        insert(db, "a")
        with monkeypatch.context() as patch:

            def late(self: Rocks, batch: Any) -> None:
                self._change("write", lambda: self._rocks.write(batch))
                self.failed = True
                raise Exception("IO error: not today")

            patch.setattr(Rocks, "write", late)
            with pytest.raises(StorageError, match="not today"):
                insert(db, "b")
        assert "b" not in db
        insert(db, "b")
        insert(db, "a")
        assert sorted(db.keys()) == ["a", "b"]
    with CoreNN.open(tmp_path / "db") as db:
        insert(db, "b")
        assert sorted(db.keys()) == ["a", "b"]
        assert len(list(db._store.metadata.done())) == 2


def test_one_that_waits_and_fails_with_others_is_not_done_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with CoreNN.create(tmp_path / "db", dim=4) as db:
        once_only = [Exception("IO error: not today")]
        write = Rocks.write

        def failing(self: Rocks, batch: Any) -> None:
            if once_only:
                self.failed = True
                raise once_only.pop()
            write(self, batch)

        monkeypatch.setattr(Rocks, "write", failing)
        faults = together(db, [("a", "a"), ("a", "a")])
        assert [type(each) for each in faults] == [StorageError] * 2
        db.insert(["b"], ROWS[:1])
        assert list(db.keys()) == ["b"]


@pytest.mark.parametrize("bound", ["KEPT", "KEPT_SECONDS"])
def test_they_are_kept_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    with CoreNN.create(tmp_path / "db", dim=4) as db:
        for name in "abcdefgh":
            insert(db, name)
    monkeypatch.setattr(ledger, bound, 5 if bound == "KEPT" else -1)
    with CoreNN.open(tmp_path / "db") as db:
        insert(db, "h")  # known
        insert(db, "i")
        assert len(list(db._store.metadata.done())) == (5 if bound == "KEPT" else 1)
        insert(db, "i")
        with pytest.raises(DuplicateKeyError):
            insert(db, "a")  # forgotten
    with CoreNN.open(tmp_path / "db") as db:
        insert(db, "i")
        assert len(db) == 9


def test_a_kill_behind_the_commit_leaves_it_known(tmp_path: Path) -> None:
    CoreNN.create(tmp_path / "db", dim=4).close()
    script = (
        "import os, signal, sys, numpy as np\n"
        "from corenn import CoreNN\n"
        "from tests.test_once import ROWS, insert\n"
        "db = CoreNN.open(sys.argv[1])\n"
        "insert(db, 'a')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, os.fspath(tmp_path / "db")], env=environment(), check=False)
    assert done.returncode == -9
    with CoreNN.open(tmp_path / "db") as db:
        insert(db, "a")
        assert list(db.keys()) == ["a"]
