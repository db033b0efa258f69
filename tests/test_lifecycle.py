"""Creating, opening, reading beside a writer, reopening and closing.

Rules out rows or settings that a reopen forgets, a handle that outlives close(), a reader that writes or sees what was
not committed, and a create() or open() that harms what it finds.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corenn import CoreNN
from corenn.errors import (
    ClosedError,
    CoreNNError,
    DatabaseExistsError,
    InvalidArgumentError,
    InvalidSettingError,
    NotADatabaseError,
    ReadOnlyError,
    StorageError,
)
from corenn.types import Hit
from tests.conftest import Create
from tests.oracle import DTYPES

DIM = 4
A, B, C, D = np.eye(DIM, dtype=np.float32) * 2


@pytest.fixture
def db(create: Create) -> CoreNN:
    """Three rows, two of them with payloads."""
    made = create(dim=DIM, metric="l2")
    made.insert(["a", "b", 3], [A, B, C], [{"n": 1}, None, {"n": [3, None, "ü"]}])
    return made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed database with the rows of `db`."""
    with CoreNN.create(tmp_path / "closed", dim=DIM, metric="l2") as made:
        made.insert(["a", "b", 3], [A, B, C], [{"n": 1}, None, {"n": [3, None, "ü"]}])
    return tmp_path / "closed"


def payloads(db: CoreNN, keys: list[Any]) -> list[Any]:
    return [record.payload for record in db.get(keys)]


def vectors(db: CoreNN, keys: list[Any]) -> list[list[float]]:
    return [record.vector.tolist() for record in db.get(keys)]


# --- close ------------------------------------------------------------------------------------------------------------


def uses(db: CoreNN) -> Iterator[Any]:
    """Every public use of a handle."""
    yield lambda: db.insert(["x"], [A])
    yield lambda: db.upsert(["x"], [A])
    yield lambda: db.set_payload(["a"], [{}])
    yield lambda: db.delete(["a"])
    yield lambda: db.get(["a"])
    yield lambda: len(db)
    yield lambda: "a" in db
    yield lambda: list(db.keys())
    yield lambda: db.query(A)
    yield lambda: db.query(key="a")
    yield db.stats
    yield db.checkpoint
    yield db.refresh
    yield db.verify
    yield db.repair
    yield lambda: db.configure(beam_width=2)
    yield db.__enter__


def test_every_use_after_close_is_refused(db: CoreNN) -> None:
    db.close()
    db.close()
    for use in uses(db):
        with pytest.raises(ClosedError):
            use()


def test_keys_taken_before_close_are_readable_or_refused(db: CoreNN) -> None:
    keys = db.keys()
    db.close()
    try:
        assert list(keys) == ["a", "b", 3]
    except ClosedError:
        return


def test_the_context_manager_closes(create: Create) -> None:
    made = create(dim=DIM)
    with made as entered:
        assert entered is made
        made.insert(["a"], [A])
    with pytest.raises(ClosedError):
        len(made)


def test_the_context_manager_closes_and_keeps_what_was_acknowledged_on_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="mine"), CoreNN.create(tmp_path / "db", dim=DIM) as made:
        made.insert(["a"], [A])
        raise RuntimeError("mine")
    with CoreNN.open(tmp_path / "db") as again:
        assert list(again.keys()) == ["a"]


# --- create, open, reopen ---------------------------------------------------------------------------------------------


def test_reopen_finds_everything(path: Path) -> None:
    with CoreNN.open(path) as db:
        assert list(db.keys()) == ["a", "b", 3]
        assert vectors(db, ["a", "b", 3]) == [A.tolist(), B.tolist(), C.tolist()]
        assert payloads(db, ["a", "b", 3]) == [{"n": 1}, None, {"n": [3, None, "ü"]}]
        assert db.query(C, k=1, with_payloads=True)[0] == Hit(3, 0.0, {"n": [3, None, "ü"]})
        assert db.verify().ok
        db.delete(["a"])
        db.upsert(["b"], [D])
        commit = db.stats().commit
    with CoreNN.open(path) as db:
        assert list(db.keys()) == [3, "b"]
        assert vectors(db, ["b"]) == [D.tolist()]
        assert db.query(A, k=9, exact=True).keys == [3, "b"]
        assert db.stats().commit >= commit
        assert db.stats().tombstones == 2
        db.insert(["a"], [A])
        assert db.stats().commit > commit


@pytest.mark.parametrize("dtype", DTYPES)
def test_settings_survive_a_reopen(tmp_path: Path, dtype: str) -> None:
    given: dict[str, Any] = {"dim": 5, "metric": "ip", "dtype": dtype, "durability": "sync", "max_edges": 12}
    with CoreNN.create(tmp_path / "db", distance_threshold=1.5, **given) as db:
        db.insert(["a"], [[1, 2, 3, 4, 5]])
        db.configure(beam_width=3)
        before = db.settings
    with CoreNN.open(tmp_path / "db") as db:
        assert db.settings == before
        assert db.settings.beam_width == 3
        assert np.allclose(db.get(["a"])[0].vector, [1, 2, 3, 4, 5], atol=4 / 255)


def test_open_overrides_mutable_settings_only(path: Path) -> None:
    with CoreNN.open(path, query_search_list_cap=17) as db:
        assert db.settings.query_search_list_cap == 17
    for wrong in ({"dim": 9}, {"metric": "ip"}, {"nonsense": 1}, {"beam_width": 0}):
        name, value = next(iter(wrong.items()))
        with pytest.raises(InvalidSettingError, match=f"{name}"):
            CoreNN.open(path, **wrong)
        assert value is not None
    with CoreNN.open(path, dim=DIM) as db:  # the value in force is no change
        assert len(db) == 3


def test_create_refuses_what_exists(path: Path, tmp_path: Path) -> None:
    with pytest.raises(DatabaseExistsError, match="closed"):
        CoreNN.create(path, dim=DIM)
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("keep me")
    file = tmp_path / "file"
    file.write_text("keep me too")
    for taken in (full, file):
        with pytest.raises(DatabaseExistsError, match=taken.name):
            CoreNN.create(taken, dim=DIM)
    assert (full / "mine.txt").read_text() == "keep me"
    assert [entry.name for entry in full.iterdir()] == ["mine.txt"]
    assert file.read_text() == "keep me too"
    with CoreNN.open(path) as db:
        assert len(db) == 3


def test_create_takes_an_empty_directory_and_a_str_path(tmp_path: Path) -> None:
    with CoreNN.create(str(tmp_path), dim=DIM, metric="l2") as db:
        db.insert(["a"], [A])
    with CoreNN.open(str(tmp_path)) as db:
        assert list(db.keys()) == ["a"]


def test_create_with_bad_settings_leaves_nothing(tmp_path: Path) -> None:
    for wrong in ({"dim": 0}, {"dim": DIM, "metric": "hamming"}, {"dim": DIM, "nonsense": 1}):
        with pytest.raises(InvalidSettingError):
            CoreNN.create(tmp_path / "db", **wrong)
        assert not (tmp_path / "db").exists()


def test_open_refuses_what_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "readme.txt").write_text("hello")
    (tmp_path / "file").write_text("hello")
    for name in ("missing", "empty", "other", "file"):
        for mode in ("rw", "r"):
            with pytest.raises(NotADatabaseError, match=name):
                CoreNN.open(tmp_path / name, mode=mode)
    assert not (tmp_path / "missing").exists()
    assert list((tmp_path / "empty").iterdir()) == []
    assert [entry.name for entry in (tmp_path / "other").iterdir()] == ["readme.txt"]


@pytest.mark.parametrize("name", ["a\0b", "lone \ud800 surrogate", 5, None, b"bytes"])
@pytest.mark.parametrize("make", [lambda path: CoreNN.create(path, dim=DIM), CoreNN.open])
def test_what_is_no_path_is_refused(name: Any, make: Callable[[Any], CoreNN]) -> None:
    with pytest.raises(InvalidArgumentError, match="must be a path"):
        make(name)


@pytest.mark.parametrize("make", [lambda path: CoreNN.create(path, dim=DIM), CoreNN.open])
def test_a_path_too_long_for_the_system_is_refused(tmp_path: Path, make: Callable[[Path], CoreNN]) -> None:
    for path in (tmp_path / ("x" * 300), tmp_path / "/".join(["x" * 200] * 50)):
        with pytest.raises(StorageError, match="too long"):
            make(path)
    assert list(tmp_path.iterdir()) == []


def test_open_in_an_unknown_mode_is_refused(path: Path) -> None:
    with pytest.raises(CoreNNError, match="'w'"):
        CoreNN.open(path, mode="w")


def test_an_empty_database_reopens(tmp_path: Path) -> None:
    CoreNN.create(tmp_path / "db", dim=DIM, metric="l2").close()
    with CoreNN.open(tmp_path / "db") as db:
        assert (len(db), list(db.keys()), db.query(A).keys) == (0, [], [])
        assert db.verify().ok
        db.insert(["a"], [A])
        assert db.query(A).keys == ["a"]


# --- mode="r" ---------------------------------------------------------------------------------------------------------


def test_a_reader_reads_and_does_not_write(path: Path) -> None:
    with CoreNN.open(path, mode="r") as db:
        assert list(db.keys()) == ["a", "b", 3]
        assert len(db) == 3
        assert payloads(db, ["a", "b", 3]) == [{"n": 1}, None, {"n": [3, None, "ü"]}]
        assert db.query(A, k=1, with_payloads=True)[0] == Hit("a", 0.0, {"n": 1})
        assert db.query(key=3, k=1).keys == [3]
        assert "a" in db
        assert db.stats().mode == "r"
        assert db.verify().ok
        writes = [
            lambda: db.insert(["x"], [A]), lambda: db.upsert(["a"], [A]), lambda: db.set_payload(["a"], [{}]),
            lambda: db.delete(["a"]), db.checkpoint, db.repair, lambda: db.configure(beam_width=2),
        ]  # fmt: skip
        for write in writes:
            with pytest.raises(ReadOnlyError):
                write()
    with CoreNN.open(path) as db:
        assert list(db.keys()) == ["a", "b", 3]


def test_a_reader_sees_new_commits_on_refresh_and_not_before(path: Path) -> None:
    with CoreNN.open(path) as writer, CoreNN.open(path, mode="r") as reader:
        writer.insert(["late"], [D], [{"late": 1}])
        writer.upsert(["a"], [B], [{"n": 2}])
        writer.delete(["b"])
        writer.set_payload([3], [{"set": 3}])
        assert sorted(map(str, reader.query(A, k=9, exact=True).keys)) == ["3", "a", "b"]
        reader.refresh()
        assert list(reader.keys()) == list(writer.keys()) == [3, "late", "a"]
        assert payloads(reader, [3, "late", "a"]) == [{"set": 3}, {"late": 1}, {"n": 2}]
        assert vectors(reader, ["a"]) == [B.tolist()]
        for vector in (A, B, C, D):
            assert reader.query(vector, k=9, exact=True) == writer.query(vector, k=9, exact=True)
            assert reader.query(vector, k=9) == writer.query(vector, k=9)
        assert reader.get(["b"]) == [None]


def test_a_reader_counts_the_other_readers_and_not_itself(path: Path) -> None:
    with CoreNN.open(path, mode="r") as reader:
        assert (reader.stats().readers, reader.stats().oldest_reader) == (0, None)
        with CoreNN.open(path, mode="r") as other:
            assert reader.stats().readers == other.stats().readers == 1
            assert reader.stats().oldest_reader == os.getpid()


def test_a_reader_sees_what_a_checkpoint_has_moved(path: Path) -> None:
    with CoreNN.open(path) as writer, CoreNN.open(path, mode="r") as reader:
        for number in range(5):
            writer.upsert(["x", number + 10], [D, A], [{"number": number}, None])
            if number % 2:
                reader.refresh()
            writer.set_payload(["x"], [{"late": number}])
            writer.checkpoint()
            reader.refresh()
            assert list(reader.keys()) == list(writer.keys())
            assert payloads(reader, ["x"]) == [{"late": number}]


def test_a_reader_keeps_what_it_saw_through_checkpoints(tmp_path: Path) -> None:
    keys, rows = list(range(100)), np.arange(200.0).reshape(100, 2)
    with CoreNN.create(tmp_path / "db", dim=2, metric="l2") as writer:
        writer.insert(keys, rows, [{"round": 0}] * 100)
        writer.checkpoint()
        with CoreNN.open(tmp_path / "db", mode="r") as reader:
            for number in range(1, 6):
                writer.upsert(keys[:60], rows[:60] + number, [{"round": number}] * 60)
                writer.set_payload(keys[60:80], [{"round": number}] * 20)
                writer.delete(keys[80:])
                writer.insert(keys[80:], rows[80:] - number)
                writer.checkpoint()
            assert list(reader.keys()) == keys
            assert payloads(reader, keys) == [{"round": 0}] * 100
            assert vectors(reader, keys) == rows.tolist()
            hits = reader.query(rows[7], k=100, exact=True, with_payloads=True)
            assert sorted(hits.keys) == keys
            assert hits.payloads == [{"round": 0}] * 100
            reader.refresh()
            assert list(reader.keys()) == list(writer.keys())
            assert payloads(reader, keys) == [{"round": 5}] * 80 + [None] * 20


@pytest.mark.compiled
def test_a_reader_follows_growth(tmp_path: Path, rng: np.random.Generator) -> None:
    rows = rng.normal(size=(6000, 8)).astype(np.float32)
    with CoreNN.create(tmp_path / "db", dim=8, metric="l2") as writer, CoreNN.open(tmp_path / "db", mode="r") as reader:
        assert reader.query(rows[0]).keys == []
        for start in range(0, 6000, 1500):
            keys = [f"{start + row}" * 20 for row in range(1500)]
            writer.insert(keys, rows[start : start + 1500])
            reader.refresh()
            assert len(reader) == start + 1500
            assert reader.query(rows[start + 1499], k=1).keys == [keys[-1]]
            assert reader.query(rows[0], k=1).keys == ["0" * 20]
            assert reader.get(keys[:1])[0].vector.tolist() == rows[start].tolist()


def test_the_library_logs_nothing_unasked(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with CoreNN.open(path) as db:
        db.query(A)
    assert capfd.readouterr() == ("", "")
    assert not logging.getLogger().handlers or logging.getLogger("corenn").level == logging.NOTSET
