"""Answers while everything changes, and a checker that can fail.

Rules out answers that no committed state gives (see tests/crash/stress.py), and a checker that lets such answers pass:
each kind of wrong answer is made here and must be caught.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corenn import CoreNN, Record
from tests.crash.stress import KEPT, Counts, Observer, check_snapshot, in_threads, stress, together
from tests.crash.tape import (
    Key,
    Setup,
    Tape,
    Window,
    WrongAnswerError,
    name,
    number_of,
    payload,
    perform,
    vectors,
)
from tests.oracle import distances

SECONDS = 3.0


@pytest.mark.few(1)
@pytest.mark.compiled
@pytest.mark.parametrize(
    "settings",
    [{}, {"metric": "cosine"}, {"compression_mode": "sq8", "dim": 16}],
    ids=["l2", "cosine", "codes"],
)
def test_every_answer_beside_a_writer_is_that_of_a_committed_state(tmp_path: Path, settings: dict[str, Any]) -> None:
    seen = stress(tmp_path / "stress", Setup(seed=secrets.randbits(31), **settings), SECONDS)
    kinds = ("graph", "exact", "get", "keys", "refresh", "checkpoint", "verify", "repair", "id used again")
    assert all(seen[kind] for kind in kinds), seen
    for kind in ("compact", "snapshot"):
        assert seen[kind] or not hasattr(CoreNN, kind)


@pytest.mark.compiled
def test_every_answer_of_a_database_in_memory_is_that_of_a_committed_state(tmp_path: Path) -> None:
    setup = Setup(seed=secrets.randbits(31))
    with CoreNN.in_memory(**setup.settings()) as db:
        seen = in_threads(db, setup, tmp_path, SECONDS)
    assert all(seen[kind] for kind in ("graph", "exact", "get", "keys", "verify", "repair", "id used again")), seen


# --- those who ask ----------------------------------------------------------------------------------------------------


class Written:
    """A database on disk into which the calls of one writer go, and a folder in which they are counted."""

    def __init__(self, db: CoreNN, setup: Setup, folder: Path) -> None:
        self.db, self.setup, self.counts = db, setup, Counts(folder, setup.writers)
        self.tape = Tape(setup, 0)

    def write(self, calls: int) -> None:
        for _ in range(calls):
            task = self.tape.next()
            self.counts.numbers[0, :2] = task.number
            perform(self.db, self.setup, task)
            self.tape.advance(task.number)

    def observer(self, db: CoreNN) -> Observer:
        return Observer(db, self.setup, self.counts, 1)


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Written]:
    """After twenty calls."""
    setup = Setup(seed=3, writers=1, keys=60, batch=10)
    with CoreNN.create(tmp_path / "db", **setup.settings()) as db:
        made = Written(db, setup, tmp_path)
        made.write(20)
        yield made


def test_a_reader_that_has_not_refreshed_is_caught(written: Written, tmp_path: Path) -> None:
    with CoreNN.open(tmp_path / "db", mode="r") as reader:
        observer = written.observer(reader)
        observer.everything(observer.window(written.counts.acknowledged()))
        written.write(3)
        with pytest.raises(WrongAnswerError):
            observer.everything(observer.window(written.counts.acknowledged()))
        reader.refresh()
        observer.everything(observer.window(written.counts.acknowledged()))
        for _ in range(30):
            observer.look()
        window = observer.window(written.counts.acknowledged())
        written.write(3)
        observer.everything(window)
        reader.refresh()  # not what the window was opened for
        with pytest.raises(WrongAnswerError):
            observer.everything(window)


def test_a_snapshot_of_another_state_is_caught(written: Written, tmp_path: Path) -> None:
    """As a folder that was copied at rest: now, or some calls ago."""

    class Copied:
        def snapshot(self, path: Path) -> None:
            shutil.copytree(tmp_path / "copy", path)

    written.db.checkpoint()
    shutil.copytree(tmp_path / "db", tmp_path / "copy")
    check_snapshot(Copied(), written.observer(written.db), tmp_path / "snapshot")
    written.write(3)
    with pytest.raises(WrongAnswerError):
        check_snapshot(Copied(), written.observer(written.db), tmp_path / "snapshot")


def test_hits_that_change_after_their_query_are_caught(written: Written) -> None:
    observer = written.observer(written.db)
    while len(observer.kept) < KEPT:
        observer.look()
    for hits, *_ in observer.kept:
        hits.distances[:1] += 1
    with pytest.raises(WrongAnswerError, match="changed after"):
        for _ in range(KEPT):
            observer.look()


def test_an_error_in_one_thread_ends_all(tmp_path: Path) -> None:
    def fail(_: Any) -> None:
        raise WrongAnswerError("here")

    with pytest.raises(WrongAnswerError, match="here"):
        together([fail, lambda stop: stop.wait()], 60)


# --- the checker ------------------------------------------------------------------------------------------------------

Answer = tuple[list[Key], np.ndarray[Any, Any]]
CALLS = 150
QUERY = np.arange(8, dtype=np.float32)


class Truth:
    """Right answers at one state, by brute force over a dictionary that calls are applied to."""

    def __init__(self, setup: Setup, numbers: list[int]) -> None:
        self.setup = setup
        self.rows: dict[Key, tuple[int, int, int, dict[str, int] | None]] = {}
        for writer, number in enumerate(numbers):
            tape = Tape(setup, writer)
            while tape.number < number:
                task = tape.next()
                perform(self, setup, task)  # type: ignore[arg-type]
                tape.advance(task.number)

    def delete(self, names: list[Key]) -> int:
        return sum(self.rows.pop(called, None) is not None for called in names)

    def set_payload(self, names: list[Key], given: list[Any]) -> None:
        for called, each in zip(names, given, strict=True):
            self.rows[called] = (*self.rows[called][:3], each)

    def insert(self, names: list[Key], rows: Any, given: list[Any]) -> None:
        assert not any(called in self.rows for called in names)
        self.upsert(names, rows, given)

    def upsert(self, names: list[Key], rows: Any, given: list[Any]) -> None:
        for called, row, each in zip(names, rows, given, strict=True):
            self.rows.pop(called, None)  # it comes anew
            self.rows[called] = (*number_of(called), row, each)

    def nearest(self, k: int, query: Any = QUERY) -> Answer:
        names = list(self.rows)
        line = distances(self.setup.metric, [self.rows[called][2] for called in names], query)[0]
        best = np.argsort(line, kind="stable")[:k]
        return [names[at] for at in best], line[best].astype(np.float32)

    def get(self, names: list[Key]) -> list[Record | None]:
        return [
            Record(called, self.rows[called][2], self.rows[called][3]) if called in self.rows else None  # type: ignore[arg-type]
            for called in names
        ]


@pytest.fixture(scope="module", params=["l2", "cosine"])
def setup(request: pytest.FixtureRequest) -> Setup:
    return Setup(seed=7, metric=request.param, keys=200, batch=20)


@pytest.fixture(scope="module")
def truth(setup: Setup) -> Truth:
    return Truth(setup, [CALLS, CALLS])


def window(setup: Setup, low: int = CALLS, high: int = CALLS) -> Window:
    return Window([Tape(setup, writer) for writer in range(setup.writers)], [low] * 2, [high] * 2)


def test_right_answers_pass(setup: Setup, truth: Truth) -> None:
    everything = [name(writer, key) for writer in range(2) for key in range(setup.keys)]
    for low, high in ((CALLS, CALLS), (CALLS - 9, CALLS + 9)):
        for k in (1, 10, 1000):
            window(setup, low, high).hits(QUERY, k, *truth.nearest(k), exact=True)
        seen = window(setup, low, high)
        seen.hits(QUERY, 10, *walked(*truth.nearest(40)), exact=False)
        seen.records(everything, truth.get(everything))
        seen.keys(list(truth.rows))
        seen.count(len(truth.rows))


def walked(names: list[Key], found: Any) -> Answer:
    """What a walk may answer: it has missed every other row."""
    return names[:20:2], found[:20:2]


def test_a_key_that_is_not_live_is_caught(setup: Setup, truth: Truth) -> None:
    names, found = truth.nearest(10)
    dead = next(called for key in range(setup.keys) if (called := name(0, key)) not in truth.rows)
    with pytest.raises(WrongAnswerError, match="at distance"):
        window(setup, CALLS - 1).hits(QUERY, 10, [dead, *names[1:]], found, exact=False)


def test_a_key_that_nobody_wrote_is_caught(setup: Setup, truth: Truth) -> None:
    names, found = truth.nearest(10)
    for alien in ("", "w0-1", "w0-2-", name(7, 1), name(0, setup.keys + 1), -5):
        with pytest.raises(WrongAnswerError, match="nobody wrote"):
            window(setup).hits(QUERY, 10, [alien, *names[1:]], found, exact=False)


def test_the_key_of_a_reused_id_is_caught(setup: Setup, truth: Truth) -> None:
    """The distance is that of the row that had the id before, the key that of the row that has it now."""
    names, found = truth.nearest(11)
    with pytest.raises(WrongAnswerError, match="at distance"):
        window(setup, CALLS - 9, CALLS + 9).hits(QUERY, 10, [*names[:9], names[10]], found[:10], exact=False)


def test_a_torn_vector_is_caught(setup: Setup, truth: Truth) -> None:
    """Half of the old version of a vector, half of the new."""
    called = next(called for called, row in truth.rows.items() if row[0] == 0)
    row = np.array(truth.rows[called][2])
    torn = np.concatenate((row[:4], vectors(setup, 0, np.array([number_of(called)[1]]), np.array([3]))[0, 4:]))
    with pytest.raises(WrongAnswerError, match="with vector"):
        window(setup, CALLS - 9, CALLS + 9).records([called], [Record(called, torn, truth.rows[called][3])])
    at = distances(setup.metric, torn[None], QUERY)[0]
    with pytest.raises(WrongAnswerError, match="at distance"):
        window(setup, CALLS - 9, CALLS + 9).hits(QUERY, 1, [called], at, exact=False)


def test_an_older_or_newer_state_is_caught(setup: Setup) -> None:
    """Of the states around, none has the same keys."""
    for low, high, seen in ((CALLS, CALLS + 3, CALLS - 1), (CALLS - 3, CALLS, CALLS + 1)):
        names, found = Truth(setup, [seen, seen]).nearest(1000)
        with pytest.raises(WrongAnswerError):
            window(setup, low, high).hits(QUERY, 1000, names, found, exact=False)
        with pytest.raises(WrongAnswerError):
            window(setup, low, high).keys(names)


def test_an_answer_of_two_states_is_caught(setup: Setup, truth: Truth) -> None:
    """Each key was live with its vector at some time in the window; never all of them together."""
    before = Truth(setup, [CALLS - 9, CALLS - 9])
    old = next(called for called in before.rows if called not in truth.rows and number_of(called)[0] == 0)
    new = next(called for called in truth.rows if called not in before.rows and number_of(called)[0] == 0)
    both = sorted(
        (float(distances(setup.metric, state.rows[called][2][None], QUERY)[0, 0]), str(called), called)  # type: ignore[index]
        for state, called in ((before, old), (truth, new))
    )
    names, found = [each[2] for each in both], np.array([each[0] for each in both])
    for called, at in zip(names, found, strict=True):
        window(setup, CALLS - 9).hits(QUERY, 1, [called], np.array([at]), exact=False)
    with pytest.raises(WrongAnswerError):
        window(setup, CALLS - 9).hits(QUERY, 2, names, found, exact=False)
    with pytest.raises(WrongAnswerError):
        window(setup, CALLS - 9).records([old, new], [before.get([old])[0], truth.get([new])[0]])
    shared = window(setup, CALLS - 9)  # two answers between which a reader has not refreshed
    shared.records([old], before.get([old]))
    with pytest.raises(WrongAnswerError):
        shared.records([new], truth.get([new]))


def test_fewer_hits_than_there_are_rows_are_caught(setup: Setup, truth: Truth) -> None:
    names, found = truth.nearest(10)
    with pytest.raises(WrongAnswerError, match="left out"):
        window(setup, CALLS - 3, CALLS + 3).hits(QUERY, 10, names[:9], found[:9], exact=False)


def test_a_row_that_a_scan_leaves_out_is_caught(setup: Setup, truth: Truth) -> None:
    names, found = truth.nearest(11)
    window(setup).hits(QUERY, 10, names[1:], found[1:], exact=False)
    with pytest.raises(WrongAnswerError, match="left out"):
        window(setup).hits(QUERY, 10, names[1:], found[1:], exact=True)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda names, found: ([*names[:9], names[0]], found), "twice"),
        (lambda names, found: (names[::-1], found[::-1]), "ascending"),
        (lambda names, found: (names + names[:1], np.append(found, found[-1])), "twice"),
        (lambda names, found: (names, found[:-1]), "distances for"),
        (lambda names, found: (names, np.nextafter(found, np.inf, dtype=np.float32) * 1.001), "at distance"),
    ],
    ids=["twice", "order", "more", "lengths", "distance"],
)
def test_malformed_answers_are_caught(
    setup: Setup, truth: Truth, spoil: Callable[[list[Key], Any], Answer], says: str
) -> None:
    with pytest.raises(WrongAnswerError, match=says):
        window(setup).hits(QUERY, 10, *spoil(*truth.nearest(10)), exact=False)


def test_wrong_records_are_caught(setup: Setup, truth: Truth) -> None:
    called = next(called for called, row in truth.rows.items() if row[3] is not None)
    record = truth.get([called])[0]
    assert record is not None
    other = payload(0, CALLS - 40)
    for wrong in (None, replace(record, payload=None), replace(record, payload=other), replace(record, key="w0-2-xx")):
        with pytest.raises(WrongAnswerError):
            window(setup, CALLS - 1, CALLS).records([called], [wrong])
    gone = next(called for key in range(setup.keys) if (called := name(0, key)) not in truth.rows)
    with pytest.raises(WrongAnswerError):
        window(setup, CALLS, CALLS).records([gone], [replace(record, key=gone)])
    with pytest.raises(WrongAnswerError, match="payload"):
        window(setup).payloads([called], [other])


def test_wrong_keys_and_counts_are_caught(setup: Setup, truth: Truth) -> None:
    names = list(truth.rows)
    gone = next(called for key in range(setup.keys) if (called := name(0, key)) not in truth.rows)
    for wrong in (names[1:], [*names, gone], [*names, names[0]], [*names[1:], gone], names[::-1]):
        with pytest.raises(WrongAnswerError):
            window(setup).keys(wrong)
    for count in (len(names) - 1, len(names) + 1):
        with pytest.raises(WrongAnswerError, match="rows"):
            window(setup).count(count)


def test_the_calls_of_a_tape_do_not_depend_on_who_plays_it(setup: Setup) -> None:
    one, other = Tape(setup, 1), Tape(setup, 1)
    one.advance(CALLS)
    for number in range(CALLS + 1):
        other.advance(number)
        other.forget(number)
    assert np.array_equal(one.alive, other.alive)
    last = np.array([CALLS])
    assert np.array_equal(*(tape.rows.chosen(tape.rows.at(last)[:, 0]).keys for tape in (one, other)))
    kinds = {Tape(setup, 0).next().kind}
    while one.number < 3 * CALLS:
        kinds.add(one.next().kind)
        one.advance(one.number + 1)
    assert kinds == {"insert", "upsert", "delete", "set_payload"}
