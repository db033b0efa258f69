"""Threads and processes on one database.

Rules out a query that returns what was replaced before it began, a key that comes twice, half a batch, the error of
one caller reaching another, a lock that outlives its holder, and a forked child that harms its parent.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
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
    DuplicateKeyError,
    ForkedError,
    InvalidVectorError,
    LockedError,
)
from corenn.storage.files import Files
from tests.conftest import Create
from tests.crash.harness import ROOT, environment
from tests.crash.readers import soak

DIM = 8
pytestmark = pytest.mark.compiled


def together(*works: Callable[[], Any]) -> None:
    """Run each in a thread of its own, begun at the same moment; the first error of any is raised here."""
    gate, failures = threading.Barrier(len(works)), list[BaseException]()

    def run(work: Callable[[], Any]) -> None:
        try:
            gate.wait()
            work()
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def until(done: threading.Event) -> Iterator[None]:
    """Go on until `done`, with a pause in which other threads get their turn at the interpreter."""
    while not done.is_set():
        yield
        time.sleep(0.001)


class History:
    """What each key was, is and is about to be: a list of versions, None for absent.

    A writer appends before its call and moves `acknowledged` after it, so that what a reader may see of a key lies
    between the `acknowledged` of before its query and the length of after it.
    """

    VERSIONS = 400

    def __init__(self, keys: int) -> None:
        self.vectors = np.random.default_rng(3).integers(0, 1000, (keys, self.VERSIONS, DIM)).astype(np.float32)
        self.query = np.random.default_rng(4).integers(0, 1000, DIM).astype(np.float32)
        self.distances = ((self.vectors - self.query) ** 2).sum(axis=2)
        self.states: list[list[int | None]] = [[None] for _ in range(keys)]
        self.acknowledged = [0] * keys

    def put(self, db: CoreNN, keys: list[int], version: int) -> None:
        """Upsert a version of some keys."""
        self._begin(keys, version)
        db.upsert(keys, self.vectors[keys, version], [{"version": version}] * len(keys))
        self._end(keys)

    def remove(self, db: CoreNN, keys: list[int]) -> None:
        """Delete some keys."""
        present = sum(self.states[key][-1] is not None for key in keys)
        self._begin(keys, None)
        assert db.delete(keys) == present
        self._end(keys)

    def _begin(self, keys: list[int], version: int | None) -> None:
        for key in keys:
            self.states[key].append(version)

    def _end(self, keys: list[int]) -> None:
        for key in keys:
            self.acknowledged[key] = len(self.states[key]) - 1

    def check(self, key: int, since: int, found: set[int | None]) -> None:
        """The key was, at some time since `since`, at one of the versions `found`."""
        allowed = self.states[key][since:]
        assert found & set(allowed), f"key {key} was found at version {found}; it had {allowed}"

    def versions_at(self, key: int, distance: float) -> set[int | None]:
        """The versions of a key that lie at a distance from the query: one, but for rare coincidences."""
        versions = np.flatnonzero(self.distances[key] == np.float32(distance)).tolist()
        assert versions, f"key {key} never was at distance {distance}"
        return set(versions)


def write_some(db: CoreNN, history: History, keys: range, seed: int) -> None:
    """Put and remove batches of the keys that this thread owns."""
    rng = np.random.default_rng(seed)
    for version in range(history.VERSIONS):
        chosen = rng.choice(keys, rng.integers(1, 6), replace=False).tolist()
        if rng.random() < 0.25:
            history.remove(db, chosen)
        else:
            history.put(db, chosen, version)


def look_around(db: CoreNN, history: History, done: threading.Event, exact: bool) -> None:
    """Query and get all keys until the writers are done."""
    keys = range(len(history.states))
    for _ in until(done):
        since = list(history.acknowledged)
        hits = db.query(history.query, k=10 * len(keys), exact=exact, with_payloads=True)
        assert len(set(hits.keys)) == len(hits), "a key comes twice"
        found: dict[Any, Any] = {hit.key: history.versions_at(int(hit.key), hit.distance) for hit in hits}
        for key in keys:
            history.check(key, since[key], found.get(key, {None}))
        since = list(history.acknowledged)
        for key, record in zip(keys, db.get(list(keys)), strict=True):
            history.check(key, since[key], {record.payload["version"] if record else None})
            if record is not None:
                assert np.array_equal(record.vector, history.vectors[key, record.payload["version"]])


@pytest.mark.few(1)
def test_readers_among_writers_see_only_what_was_there(create: Create) -> None:
    history, done, writers = History(60), threading.Event(), 4
    db = create(dim=DIM, metric="l2")
    left = [object()] * writers

    def write(part: int) -> None:
        try:
            write_some(db, history, range(part * 15, part * 15 + 15), part)
        finally:
            left.pop()
            if not left:
                done.set()

    together(
        *[lambda part=part: write(part) for part in range(writers)],
        lambda: look_around(db, history, done, exact=True),
        lambda: look_around(db, history, done, exact=False),
    )
    final = {key: states[-1] for key, states in enumerate(history.states) if states[-1] is not None}
    assert sorted(db.keys()) == sorted(final)
    for hit in db.query(history.query, k=100):
        assert final.pop(int(hit.key)) in history.versions_at(int(hit.key), hit.distance)
    assert not final
    assert db.verify().ok


def test_the_walk_never_returns_what_was_replaced(memory: Create, rng: np.random.Generator) -> None:
    history, done = History(40), threading.Event()
    db = memory(dim=DIM, metric="l2")
    db.insert(range(1000, 4000), rng.integers(0, 1000, (3000, DIM)))

    def write() -> None:
        try:
            for version in range(150):
                history.put(db, list(range(version % 4, 40, 4)), version)
        finally:
            done.set()

    def watch() -> None:
        for _ in until(done):
            since = list(history.acknowledged)
            for hits in db.query(np.stack([history.query, history.vectors[3, 77]]), k=30)[:1]:
                assert len(set(hits.keys)) == 30
                for hit in hits:
                    if hit.key < 1000:
                        history.check(hit.key, since[hit.key], history.versions_at(hit.key, hit.distance))

    together(write, watch, watch)
    for key in range(40):
        version = history.states[key][-1]
        assert version is not None
        assert db.query(history.vectors[key, version], k=1).keys == [key]


def test_a_batch_is_seen_whole_or_not_at_all(create: Create) -> None:
    db, keys, done = create(dim=2, metric="l2"), list(range(50)), threading.Event()
    db.upsert(keys, np.full((50, 2), 0.0), [{"n": 0}] * 50)

    def write() -> None:
        try:
            for number in range(1, 150):
                db.upsert(keys, np.full((50, 2), float(number)), [{"n": number}] * 50)
        finally:
            done.set()

    def watch(exact: bool) -> None:
        last = 0
        for _ in until(done):
            hits = db.query([0.0, 0.0], k=200, exact=exact)
            assert sorted(hits.keys) == keys
            assert len(set(hits.distances.tolist())) == 1, "a query saw half a batch"
            records = db.get(keys)
            numbers = {record.payload["n"] for record in records if record}
            assert len(numbers) == 1, "get() saw half a batch"
            assert {record.vector[0] for record in records if record} == numbers
            assert numbers.pop() >= last
            last = round((float(hits.distances[0]) / 2) ** 0.5)
            assert len(db) == 50

    together(write, lambda: watch(True), lambda: watch(False))


def test_a_batch_delete_is_seen_whole_or_not_at_all(create: Create) -> None:
    db, keys, done = create(dim=2, metric="l2"), list(range(40)), threading.Event()

    def write() -> None:
        try:
            for number in range(100):
                db.insert(keys, np.full((40, 2), float(number)))
                assert db.delete(keys) == 40
        finally:
            done.set()

    def watch() -> None:
        for _ in until(done):
            assert len(db.query([0.0, 0.0], k=200)) in (0, 40)
            assert len(db) in (0, 40)
            assert sum(record is not None for record in db.get(keys)) in (0, 40)
            assert len(list(db.keys())) in (0, 40)

    together(write, watch)


def test_the_error_of_one_caller_is_that_of_no_other(create: Create) -> None:
    db = create(dim=2, metric="l2")
    db.insert(["taken"], [[0, 0]])
    errors: list[type[BaseException]] = []

    def good(thread: int) -> None:
        for number in range(40):
            db.insert([f"{thread}-{number}"], [[thread, number]])
            assert f"{thread}-{number}" in db

    def bad(keys: list[str], vectors: Any, error: type[CoreNNError]) -> None:
        for _ in range(40):
            with pytest.raises(error) as caught:
                db.insert(keys, vectors)
            errors.append(type(caught.value))

    together(
        *[lambda thread=thread: good(thread) for thread in range(6)],
        lambda: bad(["fresh", "taken"], [[1, 1], [2, 2]], DuplicateKeyError),
        lambda: bad(["fresh", "other"], [[1, 1], [2, np.nan]], InvalidVectorError),
        lambda: bad(["fresh", "fresh"], [[1, 1], [2, 2]], DuplicateKeyError),
    )
    assert len(errors) == 120
    assert sorted(db.keys()) == sorted(
        ["taken", *(f"{thread}-{number}" for thread in range(6) for number in range(40))]
    )
    assert db.verify().ok


@pytest.mark.parametrize("durability", ["os", "sync"])
def test_of_all_who_insert_a_key_one_succeeds(create: Create, durability: str) -> None:
    db = create(dim=1, metric="l2", durability=durability)
    won: list[tuple[int, int]] = []

    def insert(thread: int) -> None:
        for key in range(25):
            try:
                db.insert([key, -1 - key - 100 * thread], [[thread], [thread]])
                won.append((key, thread))
            except DuplicateKeyError as error:
                assert str(key) in str(error)

    together(*[lambda thread=thread: insert(thread) for thread in range(8)])
    assert sorted(key for key, _ in won) == list(range(25))
    assert len(db) == 50
    for key, thread in won:
        found = db.get([key, -1 - key - 100 * thread])
        assert [record.vector.tolist() for record in found if record] == [[thread]] * 2


def test_of_all_who_delete_a_key_one_counts_it(create: Create) -> None:
    db, counts = create(dim=1), list[int]()
    db.insert(range(200), np.ones((200, 1)))
    together(*[lambda: counts.append(sum(db.delete([key, key + 1]) for key in range(0, 200, 2))) for _ in range(6)])
    assert sum(counts) == 200
    assert len(db) == 0


def test_writers_of_payloads_do_not_mix(create: Create) -> None:
    db = create(dim=1)
    db.insert(range(20), np.ones((20, 1)), [{"by": -1, "n": -1}] * 20)

    def write(thread: int) -> None:
        for number in range(40):
            db.set_payload(list(range(20)), [{"by": thread, "n": number}] * 20)
            assert all(record is not None for record in db.get(range(20)))

    together(*[lambda thread=thread: write(thread) for thread in range(4)])
    final = [record.payload for record in db.get(range(20)) if record]
    assert final == [final[0]] * 20
    assert final[0]["n"] == 39


def test_maintenance_beside_writers_and_readers(create: Create, rng: np.random.Generator) -> None:
    db, rows = create(dim=4, metric="l2"), rng.normal(size=(600, 4)).astype(np.float32)
    done = threading.Event()

    def write() -> None:
        try:
            for start in range(0, 600, 20):
                db.insert(range(start, start + 20), rows[start : start + 20])
                db.delete([start])
        finally:
            done.set()

    def keep_house() -> None:
        for _ in until(done):
            db.checkpoint()
            assert db.verify().ok
            assert db.stats().rows <= 600
            db.configure(query_search_list_cap=64)

    def ask() -> None:
        for _ in until(done):
            hits = db.query(rows[:50], k=5, threads=2)
            assert all(len(set(each.keys)) == len(each) for each in hits)
            keys = list(db.keys())
            assert keys == sorted(keys)

    together(write, keep_house, ask)
    assert sorted(db.keys()) == [key for key in range(600) if key % 20]


def test_of_those_who_create_at_one_path_one_succeeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All have written their files before the first of them gives them the name."""
    rename, ready = Files.rename, threading.Barrier(4)
    made, refused = list[CoreNN](), list[DatabaseExistsError]()

    def late(self: Files, source: Path, target: Path) -> None:
        if target == tmp_path / "db":
            ready.wait(60)
        rename(self, source, target)

    def create() -> None:
        try:
            made.append(CoreNN.create(tmp_path / "db", dim=2, metric="l2"))
        except DatabaseExistsError as error:
            refused.append(error)

    monkeypatch.setattr(Files, "rename", late)
    together(*[create] * 4)
    assert (len(made), len(refused)) == (1, 3)
    made[0].insert(["a"], [[0, 0]])
    made[0].close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["db"]
    with CoreNN.open(tmp_path / "db") as db:
        assert db.verify().ok and list(db.keys()) == ["a"]


def test_close_of_a_reader_beside_callers_refuses_or_serves_them(tmp_path: Path) -> None:
    with CoreNN.create(tmp_path / "db", dim=4, metric="l2") as db:
        db.insert(range(500), np.eye(500, 4), [{"row": row} for row in range(500)])
        for _ in range(5):
            close_beside_callers(CoreNN.open(tmp_path / "db", mode="r"))


def close_beside_callers(reader: CoreNN) -> None:
    """Each caller is answered until the reader is closed, and then told so."""

    def repeat(use: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            with pytest.raises(ClosedError):
                while True:
                    use()

        return run

    def close() -> None:
        time.sleep(0.1)
        reader.close()

    together(
        repeat(lambda: reader.query([1, 2, 3, 4], k=50, with_payloads=True)), repeat(lambda: reader.get([1, 2])),
        repeat(reader.refresh), repeat(reader.stats), repeat(reader.verify), close,
    )  # fmt: skip


def test_close_beside_callers_refuses_or_serves_them(tmp_path: Path) -> None:
    for attempt in range(3):
        db, acknowledged = CoreNN.create(tmp_path / str(attempt), dim=4, metric="l2"), list[int]()

        def write(thread: int, db: CoreNN = db, acknowledged: list[int] = acknowledged) -> None:
            for number in range(thread * 10_000, thread * 10_000 + 10_000):
                try:
                    db.insert([number], [[number, 0, 0, 0]])
                except ClosedError:
                    return
                acknowledged.append(number)

        def ask(db: CoreNN = db) -> None:
            try:
                while True:
                    db.query([1, 2, 3, 4], k=5)
                    db.get([1, 2])
            except ClosedError:
                return

        def close(db: CoreNN = db) -> None:
            time.sleep(0.1)
            db.close()

        together(lambda: write(0), lambda: write(1), ask, close)
        with CoreNN.open(tmp_path / str(attempt)) as again:
            assert set(acknowledged) <= set(again.keys())
            assert len(again) <= len(acknowledged) + 2
            assert again.verify().ok


# --- processes --------------------------------------------------------------------------------------------------------


def test_reading_processes_beside_a_live_writer(tmp_path: Path) -> None:
    for report in soak(tmp_path / "soak", seconds=4.0, readers=2, seed=int(time.time())):
        assert report["refreshes"] >= 3
        assert report["rows"] > 0


def spawned(path: Path, results: Any) -> None:
    """In another process: read what the parent has open, and be refused to write."""
    with CoreNN.open(path, mode="r") as db:
        results.put(list(db.keys()))
        results.put(db.query([0, 1], k=1).keys)
    try:
        CoreNN.open(path)
    except LockedError as error:
        results.put(str(error))


def test_a_spawned_process_reads_and_does_not_write(tmp_path: Path) -> None:
    with CoreNN.create(tmp_path / "db", dim=2, metric="l2") as db:
        db.insert(["a", 2], [[0, 0], [0, 1]])
        context = multiprocessing.get_context("spawn")
        results = context.Queue()
        process = context.Process(target=spawned, args=(tmp_path / "db", results))
        process.start()
        found = [results.get(timeout=120) for _ in range(3)]
        process.join()
        assert found[:2] == [["a", 2], [2]]
        assert str(os.getpid()) in found[2]
        assert process.exitcode == 0
        db.insert(["b"], [[1, 1]])
        assert db.query([1, 1], k=1).keys == ["b"]


def script(function: Callable[[Path], None], path: Path) -> str:
    """Run a function of a test module in a fresh process, and return what it prints."""
    name, module = function.__name__, function.__module__
    code = f"import pathlib; from {module} import {name} as run; run(pathlib.Path({str(path)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def fork(child: Callable[[], None], *, exiting: bool = False) -> int:
    """Run `child` in a forked process that leaves without cleaning up, or as it wants if `exiting`; its process id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads: that is the case to survive
        pid = os.fork()
    if pid == 0:
        try:
            child()
        except BaseException as error:
            if exiting and isinstance(error, SystemExit):
                raise
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid


def fork_and_use(path: Path) -> None:
    """The child is refused every use and may open the database anew to read; the parent goes on."""
    db = CoreNN.create(path, dim=2, metric="l2")
    db.insert(["a", "b"], [[0, 0], [0, 1]])

    def child() -> None:
        uses: list[Callable[[], Any]] = [
            lambda: db.query([0, 0]), lambda: db.insert(["c"], [[1, 1]]), lambda: db.get(["a"]), lambda: len(db),
            lambda: db.keys(), lambda: db.delete(["a"]), db.stats, db.verify, db.checkpoint, db.refresh,
        ]  # fmt: skip
        for use in uses:
            with pytest.raises(ForkedError):
                use()
        with CoreNN.open(path, mode="r") as reader:
            assert list(reader.keys()) == ["a", "b"]
        with pytest.raises(ForkedError):  # RocksDB's threads were not forked: to write would hang
            CoreNN.open(path)
        db.close()

    pid = fork(child)
    assert os.waitpid(pid, 0)[1] == 0, "the child failed"
    db.insert(["c"], [[1, 1]])
    assert db.query([1, 1], k=3).keys == ["c", "b", "a"]
    db.close()
    with CoreNN.open(path) as again:
        assert list(again.keys()) == ["a", "b", "c"]
        assert again.verify().ok
    print("fine")


def test_a_forked_child_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    assert script(fork_and_use, tmp_path / "db") == "fine\n"


def fork_and_write(path: Path) -> None:
    """A child cannot write on disk, though its parent has closed everything; it can read, and write in memory."""
    with CoreNN.create(path / "closed", dim=2, metric="l2") as db:
        db.insert(["a"], [[0, 0]])

    def child() -> None:
        signal.alarm(30)  # kills it if it hangs
        makings: list[Callable[[], Any]] = [
            lambda: CoreNN.create(path / "new", dim=2), lambda: CoreNN.open(path / "closed"),
            lambda: CoreNN.open(path / "closed", mode="rescue"),
        ]  # fmt: skip
        for make in makings:
            with pytest.raises(ForkedError, match=r"spawn.*mode='r'"):
                make()
        assert [entry.name for entry in path.iterdir()] == ["closed"]
        with CoreNN.open(path / "closed", mode="r") as reader:
            reader.refresh()
            assert reader.query([0, 0], with_payloads=True).keys == ["a"]
            assert reader.verify().ok
        with CoreNN.in_memory(dim=2) as own:
            own.insert(["b"], [[1, 1]])
            assert own.query([1, 1]).keys == ["b"]

    assert os.waitpid(fork(child), 0)[1] == 0, "the child failed"
    with CoreNN.open(path / "closed") as db:
        db.insert(["c"], [[1, 1]])
    CoreNN.create(path / "new", dim=2).close()
    print("fine")


def test_a_forked_child_is_refused_to_write_on_disk(tmp_path: Path) -> None:
    assert script(fork_and_write, tmp_path) == "fine\n"


def fork_first(path: Path) -> None:
    """A child of a process that has used no database on disk writes as any process does."""
    CoreNN.in_memory(dim=2).close()

    def child() -> None:
        signal.alarm(60)
        with CoreNN.create(path, dim=2, metric="l2") as db:
            db.insert(["a"], [[0, 0]])

    assert os.waitpid(fork(child), 0)[1] == 0, "the child failed"
    with CoreNN.open(path) as db:
        assert list(db.keys()) == ["a"]
    print("fine")


def test_a_child_forked_before_any_database_writes(tmp_path: Path) -> None:
    assert script(fork_first, tmp_path / "db") == "fine\n"


def fork_and_exit(path: Path) -> None:
    """A child that ends as programs do, with all that runs at exit, leaves the reader of its parent its folder."""
    db = CoreNN.create(path, dim=2, metric="l2")
    db.insert(["a"], [[0, 0]])
    reader = CoreNN.open(path, mode="r")

    def child() -> None:
        with CoreNN.open(path, mode="r") as own:
            assert list(own.keys()) == ["a"]
        sys.exit(3)

    status = os.waitpid(fork(child, exiting=True), 0)[1]
    assert os.waitstatus_to_exitcode(status) == 3 or sys.platform == "darwin"
    folder = reader._store.metadata._private  # type: ignore[attr-defined]
    assert folder.is_dir()
    reader._store.metadata._reopen(None)  # type: ignore[attr-defined]
    reader.refresh()
    assert reader.get(["a"])[0] is not None
    reader.close()
    assert not folder.exists()
    db.close()
    print("fine")


def test_a_forked_child_that_exits_takes_nothing_along(tmp_path: Path) -> None:
    assert script(fork_and_exit, tmp_path / "db") == "fine\n"


def fork_in_memory(_: Path) -> None:
    """A database in memory cannot be used after a fork either."""
    db = CoreNN.in_memory(dim=2, metric="l2")
    db.insert(["a"], [[0, 0]])

    def child() -> None:
        for use in (lambda: db.query([0, 0]), lambda: db.insert(["b"], [[1, 1]])):
            with pytest.raises(ForkedError):
                use()
        with CoreNN.in_memory(dim=2, metric="l2") as own:
            own.insert(["mine"], [[1, 1]])
            assert own.query([1, 1]).keys == ["mine"]

    assert os.waitpid(fork(child), 0)[1] == 0, "the child failed"
    db.insert(["b"], [[1, 1]])
    assert db.query([1, 1], k=1).keys == ["b"]
    print("fine")


def test_a_forked_child_cannot_use_a_database_in_memory(tmp_path: Path) -> None:
    assert script(fork_in_memory, tmp_path) == "fine\n"


def fork_and_close(path: Path) -> None:
    """A child that lives on does not keep the lock of a parent that has closed."""
    db = CoreNN.create(path, dim=2, metric="l2")
    db.insert(["a"], [[0, 0]])
    pid = fork(lambda: time.sleep(600))
    db.close()
    try:
        with CoreNN.open(path) as again:
            again.insert(["b"], [[1, 1]])
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    print("fine")


def test_a_forked_child_holds_no_lock_after_close(tmp_path: Path) -> None:
    assert script(fork_and_close, tmp_path / "db") == "fine\n"


def fork_and_die(path: Path) -> None:
    """A child that lives on does not keep the lock of a parent that was killed."""
    db = CoreNN.create(path, dim=2, metric="l2")
    db.insert(["a"], [[0, 0]])

    def child() -> None:
        for descriptor in (0, 1, 2):
            os.close(descriptor)
        time.sleep(600)

    print(fork(child), flush=True)
    os._exit(0)


def test_a_forked_child_holds_no_lock_after_its_parent_died(tmp_path: Path) -> None:
    pid = int(script(fork_and_die, tmp_path / "db"))
    try:
        with CoreNN.open(tmp_path / "db") as db:
            assert list(db.keys()) == ["a"]
    finally:
        os.kill(pid, 9)


def leave_open(path: Path) -> None:
    """End without close(), as scripts do."""
    db = CoreNN.create(path, dim=2, metric="l2")
    db.insert(["a", "b"], [[0, 0], [0, 1]], [{"n": 1}, None])


def test_a_process_may_end_without_close(tmp_path: Path) -> None:
    assert script(leave_open, tmp_path / "db") == ""
    with CoreNN.open(tmp_path / "db") as db:
        assert list(db.keys()) == ["a", "b"]
        assert db.query([0, 1], k=1).keys == ["b"]
        assert db.verify().ok


WRITE_AND_DIE = """
import os, sys
import numpy as np
from corenn import CoreNN
path, version, *keys = sys.argv[1:]
db = CoreNN.open(path)
for key in keys:
    db.upsert([key], np.full((1, 2), float(version)), [{"version": version}])
os._exit(0)
"""


def test_a_reader_sees_what_was_written_before_and_after_the_writer_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "db"
    keys = [f"key {n}" for n in range(6)]
    with CoreNN.create(path, dim=2, metric="l2") as db:
        db.insert(keys, np.zeros((6, 2)))
    with CoreNN.open(path, mode="r") as reader:
        for version, some in (("1", keys), ("2", keys[:1])):
            subprocess.run([sys.executable, "-c", WRITE_AND_DIE, path, version, *some], check=True)
        reader.refresh()
        records = reader.get(keys)
    assert [record and record.payload for record in records] == [{"version": "2"}, *[{"version": "1"}] * 5]
    assert [record and record.vector[0] for record in records] == [2, 1, 1, 1, 1, 1]
