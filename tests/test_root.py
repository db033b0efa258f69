"""A directory of collections. What a collection does is in test_database.py, which runs on them as well.

Rules out a name that leads out of the directory or that another file system cannot hold, two handles for one
collection, a drop that leaves half of it or takes it from who writes, a handle that serves what is gone, and shares
that exceed the memory that they are of.
"""

from __future__ import annotations

import gc
import os
import pickle
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corenn import CoreNN, Root
from corenn import root as module
from corenn.config import Settings
from corenn.errors import (
    ClosedError,
    CollectionNotFoundError,
    CoreNNError,
    DatabaseExistsError,
    ForkedError,
    InvalidArgumentError,
    InvalidSettingError,
    LockedError,
    NotADatabaseError,
    ReadOnlyError,
    StorageError,
)
from corenn.root import LEAST, Want, shares
from corenn.storage.files import Files
from tests.test_concurrency import fork, script

ROW = [[1.0, 2.0]]


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Root]:
    """An empty root in a folder that was not there."""
    with Root(tmp_path / "some" / "root") as made:
        yield made


def filled(root: Root, *names: str) -> list[CoreNN]:
    """Collections with a row each, whose key is their name."""
    made = [root.create(name, dim=2, metric="l2") for name in names]
    for name, db in zip(names, made, strict=True):
        db.insert([name], ROW)
    return made


# --- the collections --------------------------------------------------------------------------------------------------


def test_collections_are_found_by_name(root: Root) -> None:
    assert (root.list(), len(root), list(root), "b" in root) == ([], 0, [], False)
    b, a = filled(root, "b", "a")
    assert (root.list(), len(root), list(root), "b" in root) == (["a", "b"], 2, ["a", "b"], True)
    assert root["a"] is a and root["b"] is b
    assert list(root["a"].keys()) == ["a"]


def test_each_has_its_own_settings(root: Root) -> None:
    root.create("texts", dim=3, metric="cosine", dtype="f16")
    root.create("pictures", dim=5, metric="l2", dtype="u8", max_edges=16)
    kept = {name: root[name].settings for name in root}
    assert [(each.dim, each.metric, each.dtype, each.max_edges) for each in kept.values()] == [
        (5, "l2", "u8", 16), (3, "cosine", "f16", 32),
    ]  # fmt: skip
    with pytest.raises(InvalidSettingError, match="dim"):
        root.create("other", dim=0)
    with pytest.raises(InvalidSettingError, match="nonsense"):
        root.create("other", dim=2, nonsense=1)
    assert "other" not in root


def test_a_missing_one_is_a_key_error(root: Root) -> None:
    with pytest.raises(CollectionNotFoundError, match=r"no collection 'x'.*root\.create") as caught:
        root["x"]
    assert isinstance(caught.value, KeyError)
    with pytest.raises(CollectionNotFoundError):
        root.drop("x")
    assert root.list() == []


def test_a_taken_name_is_refused(root: Root) -> None:
    filled(root, "photos")
    with pytest.raises(DatabaseExistsError, match="'photos' exists"):
        root.create("photos", dim=4)
    with pytest.raises(DatabaseExistsError, match=r"'photos' exists.*file systems"):
        root.create("Photos", dim=4)
    assert (root.list(), len(root["photos"]), root["photos"].settings.dim) == (["photos"], 1, 2)
    assert "Photos" not in root


@pytest.mark.parametrize("name", ["a", "_", "A-b.c_9", "0", "x" * 128, "a..b", "con1", "console", "com"])
def test_names_that_can_be(root: Root, name: str) -> None:
    root.create(name, dim=2).close()
    assert root.list() == [name] and root[name].settings.dim == 2
    root.drop(name)
    assert name not in root


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", ".hidden", "../up", "a/b", "/etc", "a\\b", "-flag", "a.", "x" * 129, "a b", "a\n", "a\0", "é",
        "nul", "CON", "con.txt", "Lpt1.x.y", "settings.json", "GENERATION", "generation-2", 1, None, b"a", ("a",), True,
    ],
)  # fmt: skip
def test_names_that_cannot_be(root: Root, name: Any) -> None:
    uses: list[Callable[[], Any]] = [
        lambda: root.create(name, dim=2), lambda: root[name], lambda: root.drop(name), lambda: name in root,
    ]  # fmt: skip
    for use in uses:
        with pytest.raises(InvalidArgumentError, match="cannot name a collection"):
            use()
    assert list(root.path.iterdir()) == []


def test_what_is_no_collection_is_not_listed(root: Root, tmp_path: Path) -> None:
    CoreNN.create(tmp_path / "outside", dim=2).close()
    filled(root, "a")
    (root.path / "folder").mkdir()
    (root.path / "file").write_text("not ours")
    (root.path / "out").symlink_to(tmp_path / "outside")
    (root.path / "alias").symlink_to(root.path / "a")
    CoreNN.create(root.path / "a b", dim=2).close()
    assert root.list() == ["a"]
    for name in ("folder", "file", "out", "alias"):
        assert name not in root
        with pytest.raises(CollectionNotFoundError, match=name):
            root[name]
        with pytest.raises(CollectionNotFoundError, match=name):
            root.drop(name)
        with pytest.raises(DatabaseExistsError, match=name):
            root.create(name, dim=2)
    with pytest.raises(CollectionNotFoundError, match="symbolic link"):
        root["out"]
    assert len(list((tmp_path / "outside").iterdir())) > 1


def test_it_opens_when_it_is_asked_for(root: Root) -> None:
    filled(root, "a")[0].close()
    assert "a" in root and len(root) == 1
    with CoreNN.open(root.path / "a") as other:  # so it was not open
        other.insert(["late"], ROW)
        with pytest.raises(LockedError):
            root["a"]
    assert list(root["a"].keys()) == ["a", "late"]


def test_a_handle_that_was_closed_is_opened_anew(root: Root) -> None:
    (first,) = filled(root, "a")
    first.close()
    again = root["a"]
    assert again is not first and again is root["a"]
    with pytest.raises(ClosedError, match="open it again"):
        len(first)


def test_collections_made_elsewhere_are_seen(root: Root) -> None:
    CoreNN.build(root.path / "built", range(3), np.eye(3), dim=3).close()
    assert root.list() == ["built"] and len(root["built"]) == 3


def test_a_damaged_one_is_there_and_can_be_dropped(root: Root) -> None:
    filled(root, "a")[0].close()
    (root.path / "a" / "vectors.slab").unlink()
    assert root.list() == ["a"]
    with pytest.raises(CoreNNError, match=r"vectors\.slab is missing"):
        root["a"]
    root.drop("a")
    assert root.list() == []


# --- the folder -------------------------------------------------------------------------------------------------------


def test_what_cannot_be_a_root(tmp_path: Path) -> None:
    with pytest.raises(NotADatabaseError, match="does not exist"):
        Root(tmp_path / "nowhere", mode="r")
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADatabaseError, match="is a file"):
        Root(tmp_path / "file")
    CoreNN.create(tmp_path / "db", dim=2).close()
    with pytest.raises(DatabaseExistsError, match=r"CoreNN\.open"):
        Root(tmp_path / "db")
    with pytest.raises(InvalidArgumentError, match="'w'"):
        Root(tmp_path, mode="w")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="path"):
        Root(None)  # type: ignore[arg-type]
    for limit in ("much", -1, True, [1]):
        with pytest.raises(InvalidSettingError, match="memory_limit"):
            Root(tmp_path, memory_limit=limit)  # type: ignore[arg-type]


def test_a_root_that_is_gone_says_so(root: Root) -> None:
    root.path.rmdir()
    with pytest.raises(NotADatabaseError, match="is gone"):
        root.list()
    assert "is gone" in repr(root)


def test_reading(root: Root) -> None:
    (db,) = filled(root, "a")
    with Root(root.path, mode="r") as reader:
        assert reader.mode == "r" and reader.list() == ["a"]
        assert list(reader["a"].keys()) == ["a"] and reader["a"].stats().mode == "r"
        db.insert(["b"], ROW)
        reader["a"].refresh()
        assert len(reader["a"]) == 2
        with pytest.raises(ReadOnlyError):
            reader["a"].insert(["c"], ROW)
        with pytest.raises(ReadOnlyError, match="mode='rw'"):
            reader.create("b", dim=2)
        with pytest.raises(ReadOnlyError, match="mode='rw'"):
            reader.drop("a")
    assert root.list() == ["a"] and len(db) == 2


def test_closing_closes_all(tmp_path: Path) -> None:
    with Root(tmp_path) as root:
        a, b = filled(root, "a", "b")
    assert a.closed and b.closed
    root.close()
    uses: list[Callable[[], Any]] = [
        lambda: root["a"], lambda: root.list(), lambda: len(root), lambda: "a" in root, lambda: iter(root),
        lambda: root.create("c", dim=2), lambda: root.drop("a"), root.share_memory, root.__enter__,
    ]  # fmt: skip
    for use in uses:
        with pytest.raises(ClosedError, match="root is closed"):
            use()
    assert "closed" in repr(root)
    with Root(tmp_path) as again:
        assert [len(again[name]) for name in again] == [1, 1]


def test_a_collection_outlives_a_root_that_nobody_holds(tmp_path: Path) -> None:
    db = Root(tmp_path).create("a", dim=2)
    db.insert(["a"], ROW)
    assert list(db.keys()) == ["a"]
    db.close()


def test_repr_and_pickling(root: Root) -> None:
    filled(root, "a")
    assert repr(root) == f"<Root {str(root.path)!r}: 1 collections, rw>"
    with pytest.raises(InvalidArgumentError, match="pass its path"):
        pickle.dumps(root)


# --- dropping ---------------------------------------------------------------------------------------------------------


def test_drop_removes_all_of_one_alone(root: Root) -> None:
    a, b = filled(root, "a", "b")
    root.drop("a")
    assert root.list() == ["b"] and [each.name for each in root.path.iterdir()] == ["b"]
    with pytest.raises(ClosedError, match="'a' was dropped"):
        a.query(ROW[0])
    with pytest.raises(ClosedError, match="'a' was dropped"):
        a.insert(["x"], ROW)
    assert list(b.keys()) == ["b"]
    again = root.create("a", dim=7)
    assert root["a"] is again and len(again) == 0 and again.settings.dim == 7


def test_names_that_are_gone_leave_nothing_behind(root: Root) -> None:
    for number in range(4):
        name = f"one-{number}"
        filled(root, name)[0].close()
        assert root[name] is root[name]
        with pytest.raises(CollectionNotFoundError):
            root[f"none-{number}"]
        if number % 2:
            root.drop(name)
        else:
            root[name].close()
    assert len(root._slots) <= 1, "that which nobody has looked for since it was closed"
    filled(root, "last")
    assert set(root._slots) == {"last"}


def test_drop_refuses_what_another_one_writes(root: Root) -> None:
    filled(root, "a")[0].close()
    with CoreNN.open(root.path / "a") as writer:
        with pytest.raises(LockedError, match="open for writing"):
            root.drop("a")
        writer.insert(["b"], ROW)
    assert list(root["a"].keys()) == ["a", "b"] and root["a"].verify().ok


def test_a_reader_of_a_dropped_one_is_told(root: Root) -> None:
    filled(root, "a")
    with Root(root.path, mode="r") as readers:
        reader = readers["a"]
        root.drop("a")
        assert reader.query(ROW[0], k=1).keys == ["a"]  # what it has mapped is still there
        with pytest.raises(StorageError, match="is gone"):
            reader.refresh()
        with pytest.raises(CollectionNotFoundError):
            readers["a"]
        with pytest.raises(ClosedError, match="was dropped"):
            reader.query(ROW[0])


def test_one_that_was_dropped_and_made_anew_elsewhere_is_another(root: Root) -> None:
    filled(root, "a")
    with Root(root.path, mode="r") as readers:
        old = readers["a"]
        root.drop("a")
        root.create("a", dim=3)
        new = readers["a"]
        assert new is not old and new.settings.dim == 3 and len(new) == 0
        with pytest.raises(ClosedError, match="made anew"):
            len(old)


def test_what_a_killed_drop_has_left_goes_at_the_next_open(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(root, "a", "b")
    monkeypatch.setattr(module.shutil, "rmtree", lambda *_, **__: None)  # it dies before it removes anything
    root.drop("a")
    monkeypatch.undo()
    assert root.list() == ["b"] and len(list(root.path.iterdir())) == 2
    (root.path / ".other").mkdir()
    Root(root.path, mode="r").close()
    assert len(list(root.path.iterdir())) == 3
    Root(root.path).close()
    assert sorted(each.name for each in root.path.iterdir()) == [".other", "b"]


def test_a_drop_that_fails_leaves_all_of_it(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(root, "a")

    def fail(*_: object) -> None:
        raise StorageError("cannot sync")

    for step in ("sync_folder", "rename"):
        monkeypatch.setattr(Files, step, fail)
        if step == "sync_folder":
            monkeypatch.setattr(Files, "sync", lambda *_: None)
        with pytest.raises(StorageError):
            root.drop("a")
        monkeypatch.undo()
        assert root.list() == ["a"] and list(root["a"].keys()) == ["a"] and root["a"].verify().ok
        assert [each.name for each in root.path.iterdir()] == ["a"]


# --- threads and processes --------------------------------------------------------------------------------------------


def at_once(count: int, work: Callable[[], Any]) -> list[Any]:
    """What `work` returns or raises in each of several threads."""
    barrier, found = threading.Barrier(count), []

    def run() -> None:
        barrier.wait()
        try:
            found.append(work())
        except CoreNNError as error:
            found.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_all_threads_get_one_handle(root: Root) -> None:
    filled(root, "a")[0].close()
    handles = at_once(8, lambda: root["a"])
    assert len(handles) == 8 and {id(each) for each in handles} == {id(root["a"])}


def test_of_all_who_make_or_drop_one_succeeds(root: Root) -> None:
    made = at_once(6, lambda: root.create("a", dim=2))
    assert [isinstance(each, CoreNN) for each in made].count(True) == 1
    assert [isinstance(each, DatabaseExistsError) for each in made].count(True) == 5
    dropped = at_once(6, lambda: root.drop("a"))
    assert dropped.count(None) == 1
    assert [isinstance(each, CollectionNotFoundError) for each in dropped].count(True) == 5
    assert list(root.path.iterdir()) == []


def test_of_two_roots_that_make_one_name_one_succeeds(root: Root) -> None:
    with Root(root.path) as other:
        both = [root, other]
        made = at_once(2, lambda: both.pop().create("a", dim=2))
        assert sorted(isinstance(each, CoreNN) for each in made) == [False, True]


def test_names_come_and_go_while_others_look(root: Root) -> None:
    filled(root, "kept")
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            assert "kept" in root.list() and len(root["kept"]) == 1
            try:
                root["gone"].query([0.0, 0.0])
            except (CollectionNotFoundError, ClosedError):
                continue

    failed: list[BaseException] = []

    def watch() -> None:
        try:
            look()
        except BaseException as error:  # noqa: BLE001 - it is raised below
            failed.append(error)

    threads = [threading.Thread(target=watch) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(8):
        filled(root, "gone")
        root.drop("gone")
    done.set()
    for thread in threads:
        thread.join()
    assert not failed, failed
    assert root.list() == ["kept"]


def fork_and_use(path: Path) -> None:
    """The child is refused every use, and may open the root anew to read."""
    root = Root(path)
    filled(root, "a")

    def child() -> None:
        uses: list[Callable[[], Any]] = [
            lambda: root["a"], lambda: root.list(), lambda: len(root), lambda: "a" in root,
            lambda: root.create("b", dim=2), lambda: root.drop("a"),
        ]  # fmt: skip
        for use in uses:
            with pytest.raises(ForkedError, match="mode='r'"):
                use()
        root.close()
        with Root(path, mode="r") as own:
            assert list(own["a"].keys()) == ["a"]

    assert os.waitpid(fork(child), 0)[1] == 0, "the child failed"
    root["a"].insert(["b"], ROW)
    root.drop("a")
    root.close()
    print("fine")


def test_a_forked_child_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    assert script(fork_and_use, tmp_path / "root") == "fine\n"


# --- the memory -------------------------------------------------------------------------------------------------------


wants = st.dictionaries(
    st.text("abc", min_size=1, max_size=3),
    st.builds(Want, st.integers(0, 1 << 40), st.sampled_from([256, 1024]), st.just(0) | st.integers(1, 1 << 40)),
    min_size=1, max_size=8,
)  # fmt: skip


@given(wants, st.integers(8 << 10, 1 << 44))
def test_shares_keep_within_the_limit_and_their_bounds(asked: dict[str, Want], limit: int) -> None:
    granted = shares(limit, asked)
    assert granted.keys() == asked.keys()
    assert sum(granted.values()) <= limit
    for name, want in asked.items():
        assert granted[name] >= min(want.least, want.most or want.least)
        assert not want.most or granted[name] <= want.most
    free = [name for name, want in asked.items() if not want.most and granted[name] > want.least]
    for one in free:
        for other in free:  # in proportion, but for what is lost to whole bytes and to the scale's last bit
            ours, theirs = granted[one] * asked[other].need, granted[other] * asked[one].need
            assert abs(ours - theirs) <= 2 * max(asked[one].need, asked[other].need)
    if any(want.need and not want.most for want in asked.values()):
        assert sum(granted.values()) >= limit * 0.99  # nothing is left lying


@pytest.mark.parametrize(
    ("limit", "asked", "expected"),
    [
        (1000, {"a": Want(300, 100), "b": Want(100, 100)}, {"a": 750, "b": 250}),  # it fits: the rest goes the same way
        (1000, {"a": Want(3000, 100), "b": Want(1000, 100)}, {"a": 750, "b": 250}),
        (1000, {"a": Want(99_990, 100), "b": Want(10, 100)}, {"a": 900, "b": 100}),  # at least 100
        (1000, {"a": Want(0, 100), "b": Want(0, 100)}, {"a": 100, "b": 100}),
        (1000, {"a": Want(500, 100, 200), "b": Want(500, 100)}, {"a": 200, "b": 800}),  # no more than its own limit
        (200, {"a": Want(5, 100), "b": Want(500, 100, 50)}, {"a": 150, "b": 50}),
    ],
)
def test_shares(limit: int, asked: dict[str, Want], expected: dict[str, int]) -> None:
    found = shares(limit, asked)
    assert all(abs(found[name] - size) <= 1 for name, size in expected.items()), found


def test_a_limit_that_does_not_do_says_what_would() -> None:
    with pytest.raises(InvalidSettingError, match=r"memory_limit=250 .* 3 open .* 300 bytes at least"):
        shares(250, {name: Want(1, 100) for name in "abc"})


def test_collections_share_the_memory_of_their_root(tmp_path: Path, rng: np.random.Generator) -> None:
    with Root(tmp_path, memory_limit="1GB") as root:
        assert root.memory_limit == 10**9 and "1,000,000,000" in repr(root)
        small = root.create("small", dim=4)
        assert small.settings.memory_limit > 0.99 * 10**9
        large = root.create("large", dim=64)
        large.insert(range(5_000), rng.normal(size=(5_000, 64)))
        granted = root.share_memory()
        assert granted == {"large": large.settings.memory_limit, "small": small.settings.memory_limit}
        assert sum(granted.values()) <= 10**9 and granted["large"] > 2 * granted["small"] >= 2 * LEAST
        small.close()
        assert root.share_memory()["large"] > granted["large"]
        own = root.create("own", dim=2, memory_limit="100MB")
        assert own.settings.memory_limit <= 10**8
        root.drop("own")
        assert root.share_memory().keys() == {"large"}
    with CoreNN.open(tmp_path / "large") as alone:
        assert alone.settings.memory_limit == 0  # what it had of the root was never stored
    with Root(tmp_path) as root:
        assert root["large"].settings.memory_limit == 0 and root.share_memory() == {}


def test_own_limits_hold_after_reopening(tmp_path: Path) -> None:
    with Root(tmp_path) as root:
        root.create("own", dim=2, memory_limit="100MB")
        root.create("other", dim=2)
        root["other"].configure(memory_limit="80MB")
    for mode in ("rw", "r"):
        with Root(tmp_path, mode=mode, memory_limit="10GB") as root:  # type: ignore[arg-type]
            assert root["own"].settings.memory_limit == 10**8
            assert root["other"].settings.memory_limit == 8 * 10**7


def test_a_limit_of_its_own_holds_at_once_and_never_beyond_the_share(tmp_path: Path) -> None:
    with Root(tmp_path, memory_limit="1GB") as root:
        db, other = filled(root, "db", "other")
        before = db.settings.memory_limit
        db.configure(memory_limit="100MB")
        assert db.settings.memory_limit == 10**8
        assert other.settings.memory_limit > before, "it has what is left"
        for limit in ("8GB", None):
            db.configure(memory_limit=limit, beam_width=2)
            assert db.settings.memory_limit + other.settings.memory_limit <= 10**9
            assert db.settings.beam_width == 2
        db.configure(memory_limit="100MB")
        root.close()
    with Root(tmp_path) as root:
        assert root["db"].settings.memory_limit == 10**8, "nothing is shared"
        root["db"].configure(memory_limit="8GB")
        assert root["db"].settings.memory_limit == 8 * 10**9


def test_a_limit_holds_at_once_where_the_root_is_gone(tmp_path: Path) -> None:
    db = Root(tmp_path, memory_limit="1GB").create("db", dim=2)
    gc.collect()
    db.configure(memory_limit="8GB")
    assert db.settings.memory_limit == 8 * 10**9
    db.close()


def test_sharing_and_configuring_at_once_lose_nothing_of_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Root(tmp_path, memory_limit="1GB") as root:
        db = root.create("db", dim=2)
        changed, given = Settings.changed, db.settings.memory_limit // 2
        sharers: list[threading.Thread] = []

        def slowly(self: Settings, changes: Any) -> Settings:
            made = changed(self, changes)
            if threading.current_thread().name == "corenn-writer":  # a root shares in the middle of it
                sharers.append(threading.Thread(target=db._limit_memory, args=(given + len(sharers),)))
                sharers[-1].start()
                sharers[-1].join(0.1)
            return made

        monkeypatch.setattr(Settings, "changed", slowly)
        db.configure(beam_width=2)
        for sharer in sharers:
            sharer.join()
        assert sharers and db.settings.beam_width == 2
        assert db.settings.memory_limit in range(given, given + len(sharers))  # of whichever came last


def test_no_collection_is_opened_for_which_there_is_no_memory(tmp_path: Path) -> None:
    with Root(tmp_path, memory_limit=2 * LEAST + (4 << 20)) as root:  # and for states and codes
        filled(root, "a", "b")
        with pytest.raises(InvalidSettingError, match="3 open collections"):
            root.create("c", dim=2)
        assert root.list() == ["a", "b"]
        root["a"].close()
        filled(root, "c")
        with pytest.raises(InvalidSettingError, match="too little"):
            root["a"]
        granted = root.share_memory()
        assert granted.keys() == {"b", "c"} and all(size >= LEAST for size in granted.values())
    assert not list(tmp_path.glob(".*"))
    shutil.rmtree(tmp_path)


def test_collections_that_have_outgrown_the_limit_can_be_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Root(tmp_path, memory_limit=4 * LEAST) as root:
        for name in ("a", "b", "c"):
            root.create(name, dim=2)
        monkeypatch.setattr("corenn.root._want", lambda *_: Want(0, 3 * LEAST))
        root.drop("c")
        assert root.list() == ["a", "b"]
        with pytest.raises(InvalidSettingError, match="2 open collections"):
            root.share_memory()
