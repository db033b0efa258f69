"""Committed states, and whether an answer is that of one of them.

A *tape* is what one writer commits, one call after the other, as a function of a seed: state n is what its keys hold
after its first n calls. Any process can play it. An answer is right if all of it, hits, vectors and payloads, is that
of a single state between two moments: for each writer the last call acknowledged before, and the last call begun after.
Keys belong to one writer each, so each writer's share of an answer is judged by itself.

Vectors are whole numbers, so that distances under l2 are exact, and differ from version to version of a key: a torn
vector, or that of another row, has a distance at which its key never was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from corenn import CoreNN, Record
from tests.oracle import distances, rounding, tolerance

Key: TypeAlias = str | int
Numbers: TypeAlias = NDArray[np.int64]
Bools: TypeAlias = NDArray[np.bool_]
NEVER = np.iinfo(np.int64).max
NO_PAYLOAD = -1
KEYS = 1_000_000  # room for the keys of one writer among whole numbers
ROUND = 24  # calls, in each of which nine tenths of the rows are deleted once, and most inserted again


class WrongAnswerError(AssertionError):
    """An answer that no committed state gives."""


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything that decides what is written. keys: of each writer. batch: most rows of an ordinary call."""

    seed: int
    dim: int = 8
    metric: str = "l2"
    dtype: str = "f32"
    compression_mode: str = "none"
    writers: int = 2
    keys: int = 1_500
    batch: int = 40

    def settings(self) -> dict[str, Any]:
        """Of the database."""
        chosen = {name: getattr(self, name) for name in ("dim", "metric", "dtype", "compression_mode")}
        return {**chosen, "compression_threshold": 500}

    def save(self, folder: Path) -> None:
        (folder / "setup.json").write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, folder: Path) -> Setup:
        return cls(**json.loads((folder / "setup.json").read_text()))


class Operation(NamedTuple):
    """One call: insert, upsert, delete or set_payload, of some keys of a writer."""

    writer: int
    number: int
    kind: str
    keys: Numbers


def operation(setup: Setup, writer: int, number: int, alive: Bools) -> Operation:
    """The call that comes next, given which keys are there."""
    rng = np.random.default_rng([setup.seed, writer, number])
    there, gone = np.flatnonzero(alive), np.flatnonzero(~alive)
    size = int(rng.integers(1, setup.batch + 1))
    phase = (number + writer * ROUND // 2) % ROUND
    if phase == 0 and len(there):
        return Operation(writer, number, "delete", rng.permutation(there)[: -(-len(there) * 9 // 10)])
    if phase == 1 or number == 1:
        kind, size = "insert", setup.keys * 3 // 5
    else:
        weights = [0.4, 0.25, 0.25, 0.1] if len(there) < setup.keys * 4 // 5 else [0.1, 0.2, 0.6, 0.1]
        kind = str(rng.choice(["insert", "upsert", "delete", "set_payload"], p=weights))
    if kind == "upsert":
        chosen = rng.permutation(setup.keys)
    else:
        chosen = rng.permutation(gone if kind == "insert" else there)
    return Operation(writer, number, kind, chosen[:size])


def vectors(setup: Setup, writer: int, keys: Numbers, versions: Numbers) -> NDArray[np.float32]:
    """The vectors of versions of keys, shape (n, dim): whole numbers, which l2 adds up exactly in float32."""
    with np.errstate(over="ignore"):
        bits = keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + versions.astype(np.uint64)
        bits = bits * np.uint64(0xD1342543DE82EF95) + np.uint64(setup.seed * 1_000_003 + writer)
        bits = bits[:, None] * np.uint64(0x2545F4914F6CDD1D) + np.arange(setup.dim, dtype=np.uint64)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):  # splitmix64
            bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    if setup.dtype == "u8":
        return (bits % np.uint64(256)).astype(np.float32)
    return (bits % np.uint64(1000)).astype(np.float32) - 500


def name(writer: int, key: int) -> Key:
    """What a key is called in the database: a number, or text of many lengths."""
    return writer * KEYS + key if key % 2 else f"w{writer}-{key}-{'x' * (key % 40)}"


def number_of(called: Key) -> tuple[int, int]:
    """Writer and number of a key.

    Raises:
        WrongAnswerError: for one that nobody wrote.
    """
    writer, key = divmod(called, KEYS) if isinstance(called, int) else (-1, -1)
    if isinstance(called, str) and called.count("-") == 2 and called.startswith("w"):
        writer, key = (int(part) for part in called[1:].split("-")[:2])
    if writer < 0 or name(writer, key) != called:
        raise WrongAnswerError(f"nobody wrote the key {called!r}")
    return writer, key


def payload(writer: int, number: int) -> dict[str, int] | None:
    """The payload that a call gives its keys."""
    return None if number == NO_PAYLOAD else {"writer": writer, "call": number}


def payload_numbers(task: Operation) -> Numbers:
    """What each key's payload is known by: the call, or NO_PAYLOAD for every fourth key."""
    return np.where(task.keys % 4 == 3, NO_PAYLOAD, task.number)


def perform(db: CoreNN, setup: Setup, task: Operation) -> None:
    """Make the call."""
    names = [name(task.writer, key) for key in task.keys.tolist()]
    given = [payload(task.writer, number) for number in payload_numbers(task).tolist()]
    if task.kind == "delete":
        assert db.delete(names) == len(names)
    elif task.kind == "set_payload":
        db.set_payload(names, given)
    else:
        rows = vectors(setup, task.writer, task.keys, np.full(len(names), task.number))
        getattr(db, task.kind)(names, rows, given)


# --- the states of one writer -----------------------------------------------------------------------------------------


class Lives(NamedTuple):
    """What keys had, and in which states: from `born` on, until before `died`. value: of a payload."""

    keys: Numbers
    born: Numbers
    died: Numbers
    value: Numbers

    @classmethod
    def none(cls) -> Lives:
        return cls(*(np.empty(0, np.int64) for _ in range(4)))

    def chosen(self, which: Bools) -> Lives:
        return Lives(*(each[which] for each in self))

    def ended(self, gone: Bools, number: int) -> Lives:
        """The same after the keys marked in `gone` have lost what they had."""
        return self._replace(died=np.where((self.died == NEVER) & gone[self.keys], number, self.died))

    def begun(self, keys: Numbers, number: int, value: Numbers) -> Lives:
        fresh = (keys, np.full(len(keys), number), np.full(len(keys), NEVER), value)
        return Lives(*(np.concatenate(pair) for pair in zip(self, fresh, strict=True)))

    def at(self, states: Numbers) -> Bools:
        """Which of them hold in which state, shape (lives, states)."""
        return (self.born[:, None] <= states) & (states < self.died[:, None])


class Tape:
    """The states of one writer, from the oldest not forgotten to that after call `number`."""

    def __init__(self, setup: Setup, writer: int) -> None:
        self.setup, self.writer, self.number = setup, writer, 0
        self.alive = np.zeros(setup.keys, bool)
        self.rows, self.payloads = Lives.none(), Lives.none()

    def next(self) -> Operation:
        """The call that leads to the next state."""
        return operation(self.setup, self.writer, self.number + 1, self.alive)

    def advance(self, number: int) -> None:
        """Play up to a call."""
        while self.number < number:
            self._apply(self.next())

    def forget(self, before: int) -> None:
        """Drop what was over before a state, which is reached first; nobody will ask for it."""
        while self.number < before:
            self.advance(min(self.number + 100, before))
            self._drop(self.number)
        self._drop(before)

    def _drop(self, before: int) -> None:
        self.rows = self.rows.chosen(self.rows.died >= before)
        self.payloads = self.payloads.chosen(self.payloads.died >= before)

    def _apply(self, task: Operation) -> None:
        number = self.number = task.number
        touched = np.zeros(self.setup.keys, bool)
        touched[task.keys] = True
        self.payloads = self.payloads.ended(touched, number)
        if task.kind != "set_payload":
            self.rows = self.rows.ended(touched, number)
            self.alive[task.keys] = task.kind != "delete"
        if task.kind in ("insert", "upsert"):
            self.rows = self.rows.begun(task.keys, number, task.keys)
        if task.kind != "delete":
            self.payloads = self.payloads.begun(task.keys, number, payload_numbers(task))

    def vectors(self, rows: Lives) -> NDArray[np.float32]:
        return vectors(self.setup, self.writer, rows.keys, rows.born)


# --- judging ----------------------------------------------------------------------------------------------------------


class Window:
    """The states that what was seen may be of: those from `low` to `high` of each writer, fewer with all it has shown.

    Everything that is checked with one window must be of the same state of each writer.
    """

    def __init__(self, tapes: Sequence[Tape], low: Sequence[int], high: Sequence[int]) -> None:
        for tape, last in zip(tapes, high, strict=True):
            tape.advance(last)
        self.setup = tapes[0].setup
        self.tapes = tapes
        self.states = [np.arange(first, last + 1) for first, last in zip(low, high, strict=True)]
        self.last = list(high)

    def _keep(self, writer: int, which: Bools, wrong: str | Callable[[], str]) -> None:
        if not which.any():
            told = wrong if isinstance(wrong, str) else wrong()
            states = self.states[writer]
            raise WrongAnswerError(f"{told}: in none of the states {states[0]} to {states[-1]} of writer {writer}")
        self.states[writer] = self.states[writer][which]

    def _numbers(self, names: Sequence[Key]) -> list[Numbers]:
        """The keys by writer, as positions in `names` and numbers: shape (2, n) each."""
        found: list[list[tuple[int, int]]] = [[] for _ in self.tapes]
        for at, called in enumerate(names):
            writer, key = number_of(called)
            if writer >= len(self.tapes) or key >= self.setup.keys:
                raise WrongAnswerError(f"nobody wrote the key {called!r}")
            found[writer].append((at, key))
        return [np.array(each, np.int64).reshape(-1, 2).T for each in found]

    # --- queries ------------------------------------------------------------------------------------------------------

    def hits(self, query: NDArray[Any], k: int, names: Sequence[Key], found: NDArray[Any], *, exact: bool) -> None:
        """Check the keys and distances of one query, which has scanned all rows if `exact`.

        Raises:
            WrongAnswerError
        """
        if len(set(names)) != len(names):
            raise WrongAnswerError(f"a key comes twice: {names}")
        if len(names) > k or len(names) != len(found):
            raise WrongAnswerError(f"{len(names)} keys and {len(found)} distances for k = {k}")
        if (np.diff(found) < 0).any():
            raise WrongAnswerError(f"distances are not ascending: {found}")
        # What is nearer must be there: everything if there are fewer than k, and a scan leaves nothing out.
        bound = np.inf if len(names) < k else float(found[-1]) if exact else -np.inf
        for writer, (places, keys) in enumerate(self._numbers(names)):
            self._hits_of(writer, query, keys, found[places].astype(np.float64), bound)

    def _hits_of(self, writer: int, query: NDArray[Any], keys: Numbers, found: NDArray[Any], bound: float) -> None:
        rows = self.tapes[writer].rows
        rows = rows.chosen((rows.born <= self.states[writer][-1]) & (rows.died > self.states[writer][0]))
        meant = distances(self.setup.metric, self.tapes[writer].vectors(rows), query)[0]
        slack = tolerance("cosine", meant, meant) if self.setup.metric == "cosine" else 0.0
        own = rows.keys[:, None] == keys
        right = own & (np.abs(meant[:, None] - found) <= slack)
        for hit in range(len(keys)):
            there = rows.chosen(right[:, hit]).at(self.states[writer]).any(axis=0)
            self._keep(writer, there, lambda hit=hit: self._told(writer, rows, meant, int(keys[hit]), found[hit]))
        left_out = rows.chosen((meant < bound - 2 * slack) & ~own.any(axis=1))
        self._keep(
            writer, ~left_out.at(self.states[writer]).any(axis=0),
            lambda: f"rows nearer than {bound} are left out, such as {[name(writer, k) for k in left_out.keys[:3]]}",
        )  # fmt: skip

    def _told(self, writer: int, rows: Lives, meant: NDArray[Any], key: int, found: float) -> str:
        had = [(int(rows.born[at]), meant[at]) for at in np.flatnonzero(rows.keys == key)]
        return f"key {name(writer, key)!r} at distance {found}, which had (since, distance) {had}"

    # --- records, payloads, keys --------------------------------------------------------------------------------------

    def records(self, names: Sequence[Key], records: Sequence[Record | None]) -> None:
        """Check what `get` returned.

        Raises:
            WrongAnswerError
        """
        if [called if record is None else record.key for called, record in zip(names, records, strict=True)] != [
            *names
        ]:
            raise WrongAnswerError("records of other keys")
        for writer, numbers in enumerate(self._numbers(names)):
            for at, key in numbers.T.tolist():
                self._vector(writer, key, records[at])
        present = [(called, record.payload) for called, record in zip(names, records, strict=True) if record]
        self.payloads([called for called, _ in present], [given for _, given in present])

    def _vector(self, writer: int, key: int, record: Record | None) -> None:
        tape = self.tapes[writer]
        rows = tape.rows.chosen(tape.rows.keys == key)
        if record is None:
            there = rows.at(self.states[writer]).any(axis=0)
            self._keep(writer, ~there, f"key {name(writer, key)!r} is not there")
            return
        meant = tape.vectors(rows)
        right = (np.abs(record.vector - meant) <= rounding(self.setup.dtype, meant)).all(axis=1)
        there = rows.chosen(right).at(self.states[writer]).any(axis=0)
        self._keep(writer, there, f"key {name(writer, key)!r} with vector {record.vector}")

    def payloads(self, names: Sequence[Key], given: Sequence[Any]) -> None:
        """Check the payloads of rows that are there.

        Raises:
            WrongAnswerError
        """
        for writer, numbers in enumerate(self._numbers(names)):
            for at, key in numbers.T.tolist():
                lives = self.tapes[writer].payloads
                lives = lives.chosen(lives.keys == key)
                right = np.array([payload(writer, value) == given[at] for value in lives.value.tolist()], bool)
                there = lives.chosen(right).at(self.states[writer]).any(axis=0)
                there |= self._replaced_twice(writer, lives, right)
                self._keep(writer, there, f"key {name(writer, key)!r} with payload {given[at]}")

    def _replaced_twice(self, writer: int, lives: Lives, right: Bools) -> Bools:
        """The states in which a payload may be seen at a later replacement: docs/crash-contract.md has this exception.

        One that was replaced twice since, by set_payload.
        """
        rows = self.tapes[writer].rows
        given = ~np.isin(lives.born, rows.born[np.isin(rows.keys, lives.keys)])
        later = (lives.born[:, None] > self.states[writer]) & (lives.born <= self.last[writer])[:, None]
        replaced = later & given[:, None]
        return (replaced.sum(axis=0) >= 2) & (replaced & right[:, None]).any(axis=0)

    def keys(self, names: Sequence[Key]) -> None:
        """Check that these are the keys of all rows, those of each writer in the order in which they came.

        Raises:
            WrongAnswerError
        """
        if len(set(names)) != len(names):
            raise WrongAnswerError("a key comes twice")
        for writer, (_, keys) in enumerate(self._numbers(names)):
            rows = self.tapes[writer].rows
            live = rows.at(self.states[writer])
            same = np.array([np.array_equal(rows.keys[live[:, at]], keys) for at in range(live.shape[1])], bool)
            self._keep(writer, same, f"{len(keys)} keys")

    def count(self, rows: int) -> None:
        """Check len().

        Raises:
            WrongAnswerError
        """
        counts = [tape.rows.at(states).sum(axis=0) for tape, states in zip(self.tapes, self.states, strict=True)]
        least, most = (sum(int(bound(each)) for each in counts) for bound in (np.min, np.max))
        if not least <= rows <= most:
            raise WrongAnswerError(f"{rows} rows, not {least} to {most}")
