"""compact() beside queries, writes and readers in other processes.

Rules out a query that meets the ids of another generation, a reader that loses its files, an acknowledged write that is
not in the copy, and old files that stay.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corenn import CoreNN
from corenn.errors import (
    CoreNNError,
    FormatError,
)
from corenn.storage import store
from corenn.storage.generation import FILE, read_generation
from tests.compaction import DIM, Rows, alive, check, files_in, filled, key, made_rows, payload
from tests.conftest import Create

pytestmark = pytest.mark.compiled


@pytest.fixture(scope="module")
def rows() -> Rows:
    return made_rows()


# --- beside it --------------------------------------------------------------------------------------------------------


@pytest.mark.few(1)
@pytest.mark.parametrize("on_disk", [False, True])
def test_queries_during_compactions_return_live_rows_with_their_own(tmp_path: Path, on_disk: bool) -> None:
    """Key n of round r has the vector and the payload that say so; a query sees of each key one that was live."""
    count, rounds = 2000, 5
    base = np.random.default_rng(5).integers(0, 50, (count, DIM)).astype(np.float32)
    db = CoreNN.create(tmp_path / "db", dim=DIM, metric="l2") if on_disk else CoreNN.in_memory(dim=DIM, metric="l2")
    failures: list[BaseException] = []
    asked, done, version = [0], threading.Event(), [0]

    def vectors(numbers: Any, at: int) -> Any:
        return base[numbers] + at

    def one(rng: np.random.Generator) -> None:
        first = version[0]
        query = vectors(int(rng.integers(0, count, 1)[0]), first)
        hits = db.query(query, k=10, with_payloads=True, exact=bool(rng.random() < 0.3))
        records = db.get([int(n) for n in rng.integers(0, count, 5)])
        last = version[0] + 1
        assert len(set(hits.keys)) == 10
        for hit in hits:
            n, at = hit.key, hit.payload["at"]
            assert hit.payload["n"] == n
            assert first <= at <= last or (n % 4 and at == 0) or n % 4 == 1, (hit, first, last)
            assert hit.distance == ((vectors(n, at) - query) ** 2).sum()
        for record in records:
            if record is not None:
                assert record.payload is not None
                assert record.payload["n"] == record.key
                assert np.array_equal(record.vector, vectors(record.key, record.payload["at"]))

    def ask(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            while not done.is_set():
                one(rng)
                asked[0] += 1
                time.sleep(0.0005)
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    with db:
        db.insert(range(count), base, [{"n": n, "at": 0} for n in range(count)])
        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        try:
            for at in range(1, rounds + 1):
                moved = list(range(0, count, 4))
                db.upsert(moved, vectors(moved, at), [{"n": n, "at": at} for n in moved])
                version[0] = at
                some = list(range(1, count, 4))[:: at + 1]
                db.delete(some)
                db.compact()
                before = asked[0]
                db.upsert(some, vectors(some, 0), [{"n": n, "at": 0} for n in some])
                while asked[0] < before + 30 and not failures:
                    time.sleep(0.001)
        finally:
            done.set()
            for thread in threads:
                thread.join()
        if failures:
            raise failures[0]
        assert db.verify().ok
        assert db.stats().generation == rounds + 1
        assert db._writer is not None
        assert db._writer._former == []
    assert not on_disk or files_in(tmp_path / "db") == {FILE, f"generation-{rounds + 1}"}


def test_the_old_metadata_is_kept_while_a_query_looks_things_up(tmp_path: Path, rows: Rows) -> None:
    with filled(CoreNN.create(tmp_path / "db", dim=DIM, metric="l2"), rows) as db:
        with db._view(with_metadata=True) as view:
            db.compact()
            assert (tmp_path / "db" / "meta").exists()
            ids = view.metadata.lookup([key(n) for n in alive(rows)], view.lookup_view)
            assert min(ids) >= 0
            assert view.metadata.payloads(ids[:1], view.head.commit) == [b'{"n":21}'] or alive(rows)[0] % 7
            check(db, rows)
        deadline = time.monotonic() + 10
        while len(files_in(tmp_path / "db")) > 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert files_in(tmp_path / "db") == {FILE, "generation-2"}
        check(db, rows)


def follow(path: Path, ready: Any, stop: Any, results: Any) -> None:
    """Read in a process of its own: what each key says of itself holds, whatever generation is valid."""
    looks, seen = 0, set()
    try:
        with CoreNN.open(path, mode="r") as reader:
            ready.set()
            while not stop.is_set() or looks < 3:
                keys = list(reader.keys())
                for record in reader.get(keys[::7]):
                    assert record is not None
                    assert record.payload is not None
                    assert (record.payload["n"], record.vector[0]) == (record.key, record.payload["first"])
                # Rows that died since this snapshot are seen, but no edges lead to them any more.
                assert reader.query(record.vector, k=1, exact=True).distances[0] == 0
                hits = reader.query(record.vector, k=10, with_payloads=True)
                assert [payload["n"] for payload in hits.payloads] == list(hits.keys)
                assert list(reader.keys()) == keys
                seen.add(reader.stats().generation)
                if looks % 2:
                    reader.refresh()
                looks += 1
                with CoreNN.open(path, mode="r") as other:  # in the middle of a switch
                    assert len(other) > 0
        results.put((looks, sorted(seen)))
    except BaseException as error:
        results.put(repr(error))
        raise


def test_readers_in_other_processes_go_on(tmp_path: Path) -> None:
    path, rounds = tmp_path / "db", 6
    base = np.random.default_rng(5).integers(0, 50, (1500, DIM)).astype(np.float32)
    context = multiprocessing.get_context("spawn")
    ready, stop, results = context.Event(), context.Event(), context.Queue()

    def put(numbers: range, shift: int) -> None:
        vectors = base[numbers.start : numbers.stop : numbers.step] + shift
        firsts = [{"n": n, "first": float(vector[0])} for n, vector in zip(numbers, vectors, strict=True)]
        db.upsert(numbers, vectors, firsts)

    with CoreNN.create(path, dim=DIM, metric="l2") as db:
        put(range(1500), 0)
        reader = context.Process(target=follow, args=(path, ready, stop, results))
        reader.start()
        assert ready.wait(120)
        for at in range(1, rounds + 1):
            put(range(0, 1500, at + 1), at)
            db.delete(range(1, 1500, at + 5))
            db.compact()
            time.sleep(0.1)
        stop.set()
        outcome = results.get(timeout=120)
        reader.join()
        assert not isinstance(outcome, str), outcome
        assert len(outcome[1]) > 1, outcome
        with CoreNN.open(path, mode="r") as late:
            assert sorted(late.keys()) == sorted(db.keys())


def test_a_reader_keeps_its_generation_until_it_is_told_to_refresh(tmp_path: Path, rows: Rows) -> None:
    path = tmp_path / "db"
    with filled(CoreNN.create(path, dim=DIM, metric="l2"), rows) as db, CoreNN.open(path, mode="r") as reader:
        db.compact()
        db.delete([key(3)])
        db.compact()
        assert files_in(path) == {FILE, "generation-3"}
        assert reader.stats().generation == 1
        check(reader, rows)
        assert reader.verify().ok
        reader.refresh()
        assert reader.stats().generation == 3
        assert reader.get([key(3)]) == [None]
        assert reader.verify().ok
        db.insert(["new"], rows[:1] + 3)
        reader.refresh()
        assert reader.query(rows[0] + 3, k=1).keys == ["new"]


def late_by(calls: int, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next few who look for the valid generation find the one that was before, as if they had come earlier."""
    answers, right = [number] * calls, read_generation
    monkeypatch.setattr(store, "read_generation", lambda path: answers.pop() if answers else right(path))


def test_a_reader_that_meets_the_switch_on_its_way_tries_again(
    tmp_path: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    with filled(CoreNN.create(tmp_path / "db", dim=DIM, metric="l2"), rows) as db:
        with CoreNN.open(tmp_path / "db", mode="r") as reader:
            db.compact()
            late_by(1, 1, monkeypatch)
            began = time.monotonic()
            reader.refresh()
            assert time.monotonic() - began < 4
            assert reader.stats().generation == 2
            check(reader, rows)
            late_by(2, 1, monkeypatch)
            with CoreNN.open(tmp_path / "db", mode="r") as late:
                assert late.stats().generation == 2
                check(late, rows)
        (tmp_path / "db" / "generation-2" / "vectors.slab").unlink()
        with pytest.raises(FormatError, match=r"vectors\.slab"):  # nothing has taken its place: no second try
            CoreNN.open(tmp_path / "db", mode="r")


class Scribbler:
    """Writes at random to a database and to a dict, in a thread of its own: (vector, payload) by key."""

    def __init__(self, db: CoreNN, held: dict[str | int, tuple[Any, Any]], seed: int) -> None:
        self.db, self.held = db, held
        self.rng = np.random.default_rng(seed)
        self.calls = 0
        self._done = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Scribbler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            while not self._done.is_set():
                self._write(int(self.rng.integers(4)))
                self.calls += 1
        except BaseException as error:  # noqa: BLE001
            self._failure = error

    def _write(self, kind: int) -> None:
        live = list(self.held)
        some = [live[at] for at in self.rng.choice(len(live), 9, replace=False)]
        vectors = self.rng.integers(0, 99, (9, DIM)).astype(np.float32)
        payloads = [None if at % 3 == 0 else {"call": self.calls, "at": at} for at in range(9)]
        if kind == 0:
            self.db.delete(some[:5])
            for each in some[:5]:
                del self.held[each]
        elif kind == 1:
            self.db.set_payload(some, payloads)
            self.held.update({each: (self.held[each][0], said) for each, said in zip(some, payloads, strict=True)})
        else:
            keys = some if kind == 2 else [f"new {self.calls} {at}" for at in range(9)]
            self.db.upsert(keys, vectors, payloads)
            self.held.update(zip(keys, zip(vectors, payloads, strict=True), strict=True))


def check_held(db: CoreNN, held: dict[str | int, tuple[Any, Any]]) -> None:
    """The database is what the dict is."""
    assert sorted(map(str, db.keys())) == sorted(map(str, held))
    for record, (vector, said) in zip(db.get(list(held)), held.values(), strict=True):
        assert record is not None
        assert np.array_equal(record.vector, vector)
        assert record.payload == said
    report = db.verify()
    assert report.ok, report
    assert report.unreachable == 0


@pytest.mark.parametrize("durability", [None, "os", "sync"])
def test_writes_are_served_on_the_way_and_nothing_of_them_is_lost(
    tmp_path: Path, rows: Rows, durability: str | None
) -> None:
    path = tmp_path / "db"
    db = CoreNN.create(path, dim=DIM, metric="l2", durability=durability) if durability else CoreNN.in_memory(
        dim=DIM, metric="l2"
    )  # fmt: skip
    with filled(db, rows):
        held: dict[str | int, tuple[Any, Any]] = {key(n): (rows[n], payload(n)) for n in alive(rows)}
        with Scribbler(db, held, 5) as scribbler:
            for generation in range(2, 6):
                calls: list[int] = []
                db.compact(lambda *step, calls=calls: calls.append(scribbler.calls))  # type: ignore[misc]
                assert db.stats().generation == generation
                assert calls[-1] > calls[0], "writes waited for the end"
        check_held(db, held)
    if durability:
        for mode in ("r", "rw"):
            with CoreNN.open(path, mode=mode) as db:
                check_held(db, held)
        with CoreNN.open(path) as db:  # keys of the dead are forgotten as others are
            gone = list(held)[:50]
            db.delete(gone)
            db.checkpoint()
            db.insert(gone, [held[each][0] for each in gone], [held[each][1] for each in gone])
            check_held(db, held)
            db.compact()
            check_held(db, held)


def test_what_happens_in_the_last_moment_goes_along(tmp_path: Path, rows: Rows) -> None:
    """Births, deaths and payloads that come between the last step but one and the last, on disk and in memory."""
    for db in (CoreNN.create(tmp_path / "db", dim=DIM, metric="ip"), CoreNN.in_memory(dim=DIM, metric="ip")):
        with filled(db, rows):
            held: dict[str | int, tuple[Any, Any]] = {key(n): (rows[n], payload(n)) for n in alive(rows)}
            live = list(held)
            late: list[threading.Thread] = []

            def write(db: CoreNN = db, live: list[str | int] = live) -> None:
                db.delete(live[:3])
                db.upsert(live[3:6], rows[:3] * 9, [{"late": 1}] * 3)  # longer than all: the radius grows
                db.upsert(live[3:4], rows[:1] * 8, [{"late": 2}])
                db.insert(["twice"], rows[:1])
                db.delete(["twice"])
                db.insert(["twice"], rows[1:2])
                db.set_payload(live[6:9], [{"late": 3}, None, {"late": 4}])
                db.delete(live[8:9])

            def begin(step: str, done: int, total: int, late: list[threading.Thread] = late) -> None:
                if step in ("disk", "payloads") and not late:
                    late.append(threading.Thread(target=write))
                    late[0].start()
                    time.sleep(0.3)
                elif late:
                    time.sleep(0.1)

            db.compact(begin)
            late[0].join()
            for each in (*live[:3], live[8]):
                del held[each]
            held.update({each: (rows[at] * 9, {"late": 1}) for at, each in enumerate(live[3:6])})
            held[live[3]] = (rows[0] * 8, {"late": 2})
            held["twice"] = (rows[1], None)
            held[live[6]], held[live[7]] = (held[live[6]][0], {"late": 3}), (held[live[7]][0], None)
            check_held(db, held)
            db.compact()
            assert db.stats().tombstones == 0
            check_held(db, held)


def test_a_first_load_may_be_compacted_while_it_comes(create: Create, rows: Rows) -> None:
    """The copy begins with nothing, and ends with rows that were never linked before."""
    db = create(dim=DIM, metric="l2")
    loaders: list[threading.Thread] = []

    def load() -> None:
        db.insert(range(200), rows[:200])

    def begin(step: str, done: int, total: int) -> None:
        if not loaders:
            loaders.append(threading.Thread(target=load))
            loaders[0].start()
            time.sleep(0.2)

    db.compact(begin)
    loaders[0].join()
    assert len(db) == 200
    assert db.verify().ok
    assert db.query(rows[7], k=1).keys == [7]


def test_tasks_wait_for_its_end(create: Create, rows: Rows) -> None:
    db = filled(create(dim=DIM, metric="l2"), rows)
    reports: list[Any] = []
    asker = threading.Thread(target=lambda: reports.append((db.repair(), db.stats().generation)))

    def begin(step: str, done: int, total: int) -> None:
        if not asker.ident:
            asker.start()
            time.sleep(0.2)

    db.compact(begin)
    asker.join()
    assert reports[0][0].ok
    assert reports[0][1] == 2
    check(db, rows)


def test_an_unfinished_compaction_of_another_process_is_cleared_away(tmp_path: Path, rows: Rows) -> None:
    path = tmp_path / "db"
    filled(CoreNN.create(path, dim=DIM, metric="l2"), rows).close()
    (path / "generation-2" / "meta.tables").mkdir(parents=True)
    (path / "generation-2" / "vectors.slab").write_bytes(bytes(100))
    (path / "GENERATION.new").write_bytes(b"generation")
    with CoreNN.open(path, mode="r") as reader:
        check(reader, rows)
    assert (path / "generation-2").exists()
    with CoreNN.open(path) as db:
        check(db, rows)
        assert not {"generation-2", "GENERATION.new"} & files_in(path)
        db.compact()
        check(db, rows)
        with pytest.raises(CoreNNError):
            CoreNN.open(path)
