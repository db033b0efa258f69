"""A stateful machine against a dict: any sequence of calls leaves the database as it leaves the model.

Rules out state that depends on the order of calls: a key that comes back after a reopen, a payload that survives an
upsert, a row that an exact query misses after a delete, a count that drifts, a database that does not verify.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from corenn import CoreNN, errors
from corenn.writer import Task
from tests.conftest import COMPILED
from tests.oracle import DTYPES, METRICS, Model, RefusedError, check_hits, rounding

DIM = 5
EXAMPLES, STEPS, MANY = (15, 40, 300) if COMPILED else (3, 15, 30)

names = st.sampled_from([*"abcdefgh", *range(8), "0", "1", "ключ", 2**63 - 1])
some_keys = st.lists(names, max_size=12, unique=True)
any_keys = st.lists(names, max_size=8)
seeds = st.integers(0, 2**32 - 1)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=5,
)
some_payloads = st.one_of(st.none(), st.dictionaries(st.text(max_size=4), json_values, max_size=3))


def sized(values: list[Any], count: int) -> list[Any]:
    """The values, repeated or cut to `count`."""
    return [values[at % len(values)] if values else None for at in range(count)]


class Machine(RuleBasedStateMachine):
    """Writes to both, compares both; whole-number vectors so that ties are frequent and distances exact."""

    db: CoreNN
    model: Model

    @initialize(
        metric=st.sampled_from(METRICS), dtype=st.sampled_from(DTYPES), durability=st.sampled_from(["os", "sync"])
    )
    def begin(self, metric: str, dtype: str, durability: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="corenn-model-"))
        self.dtype = dtype
        self.model = Model(DIM, metric)
        self.db = self.make(dim=DIM, metric=metric, dtype=dtype, durability=durability)

    def make(self, **given: Any) -> CoreNN:
        return CoreNN.in_memory(**given)

    def rows(self, seed: int, count: int) -> Any:
        return np.random.default_rng(seed).integers(0, 6, (count, DIM))

    def both(self, name: str, *arguments: Any) -> None:
        """Call the method on model and database: both do it and agree, or both refuse it for the same reason."""
        before = self.db.stats().commit
        try:
            expected = getattr(self.model, name)(*arguments)
        except RefusedError as refused:
            with pytest.raises(getattr(errors, refused.error)):
                getattr(self.db, name)(*arguments)
            assert self.db.stats().commit == before
            return
        assert getattr(self.db, name)(*arguments) == expected

    @rule(keys=some_keys, seed=seeds, payloads=st.one_of(st.none(), st.lists(some_payloads, min_size=1, max_size=4)))
    def insert_new(self, keys: list[Any], seed: int, payloads: list[Any] | None) -> None:
        new = [key for key in keys if key not in self.model]
        self.both("insert", new, self.rows(seed, len(new)), payloads and sized(payloads, len(new)))

    @rule(keys=any_keys, seed=seeds)
    def insert_any(self, keys: list[Any], seed: int) -> None:
        self.both("insert", keys, self.rows(seed, len(keys)))

    @rule(keys=some_keys, seed=seeds, payloads=st.one_of(st.none(), st.lists(some_payloads, min_size=1, max_size=4)))
    def upsert(self, keys: list[Any], seed: int, payloads: list[Any] | None) -> None:
        self.both("upsert", keys, self.rows(seed, len(keys)), payloads and sized(payloads, len(keys)))

    @rule(keys=any_keys, seed=seeds)
    def upsert_any(self, keys: list[Any], seed: int) -> None:
        self.both("upsert", keys, self.rows(seed, len(keys)))

    @rule(seed=seeds, count=st.integers(1, MANY))
    def upsert_many(self, seed: int, count: int) -> None:
        keys = [f"many {at}" for at in range(count)]
        self.both("upsert", keys, self.rows(seed, count), [{"at": at, "seed": seed} for at in range(count)])

    @rule(keys=some_keys, payloads=st.lists(some_payloads, min_size=1, max_size=4))
    def set_payload(self, keys: list[Any], payloads: list[Any]) -> None:
        present = [key for key in keys if key in self.model]
        self.both("set_payload", present, sized(payloads, len(present)))

    @rule(keys=any_keys)
    def set_payload_of_any(self, keys: list[Any]) -> None:
        self.both("set_payload", keys, [{"any": 1}] * len(keys))

    @rule(keys=any_keys)
    def delete(self, keys: list[Any]) -> None:
        self.both("delete", keys)

    @rule(step=st.integers(1, 4))
    def delete_many(self, step: int) -> None:
        self.both("delete", list(self.model)[::step])

    @rule(keys=any_keys)
    def get(self, keys: list[Any]) -> None:
        for key, found, expected in zip(keys, self.db.get(keys), self.model.get(keys), strict=True):
            assert (found is None) == (expected is None)
            if found is not None and expected is not None:
                assert (found.key, type(found.key), found.payload) == (key, type(key), expected.payload)
                assert (np.abs(found.vector - expected.vector) <= rounding(self.dtype, expected.vector)).all()

    @rule(seed=seeds, k=st.integers(1, 40), exact=st.booleans(), limit=st.sampled_from([np.inf, 0.0, 0.5, 1.0, 30.0]))
    def query(self, seed: int, k: int, exact: bool, limit: float) -> None:
        keys, vector = list(self.model), self.rows(seed, 1)[0].astype(np.float32)
        hits = self.db.query(vector, k=k, exact=exact, max_distance=limit, with_payloads=True)
        rows = self.stored(keys)
        check_hits(self.model.metric, keys, rows, vector, hits, k, limit, reused=True)
        assert hits.payloads == [self.model.rows[key].payload for key in hits.keys]

    @rule(key=names)
    def query_by_key(self, key: Any) -> None:
        if key not in self.model:
            with pytest.raises(errors.KeyNotFoundError):
                self.db.query(key=key)
            return
        keys = list(self.model)
        rows = self.stored(keys)
        hits = self.db.query(key=key, k=5, exact=True)
        check_hits(self.model.metric, keys, rows, rows[keys.index(key)], hits, 5, reused=True)

    def stored(self, keys: list[Any]) -> Any:
        """Vectors as the database keeps them, each within the rounding of what the model holds."""
        rows = np.array([record.vector for record in self.db.get(keys)], np.float32).reshape(-1, DIM)
        assert (np.abs(rows - self.model.matrix()) <= rounding(self.dtype, self.model.matrix())).all()
        return rows

    @rule()
    def checkpoint(self) -> None:
        self.db.checkpoint()

    @rule()
    def mend(self) -> None:
        """What idle time would do: everything that is dead is taken out of the graph."""
        writer = self.db._writer
        assert writer is not None
        writer.submit(Task(lambda: (writer.mender.finish(writer.view), writer.republish())))
        assert self.db.stats().repair_backlog == 0

    @rule()
    def compact(self) -> None:
        before = self.db.stats()
        self.db.compact()
        after = self.db.stats()
        assert (after.commit, after.generation, after.tombstones) == (before.commit, before.generation + 1, 0)
        report = self.db.verify()
        assert report.ok, report

    @rule()
    def verify(self) -> None:
        report = self.db.verify()
        assert report.ok, report
        assert (report.rows, report.unreachable) == (len(self.model), 0)

    @invariant()
    def same_keys(self) -> None:
        assert len(self.db) == len(self.model) == self.db.stats().rows
        assert list(self.db.keys()) == list(self.model)
        assert all((name in self.db) == (name in self.model) for name in ("a", 1, "1", "many 7"))

    def teardown(self) -> None:
        if hasattr(self, "db"):
            self.db.close()
            shutil.rmtree(self.folder)


class DiskMachine(Machine):
    """The same on disk, where it can be reopened and read by a second handle."""

    def make(self, **given: Any) -> CoreNN:
        return CoreNN.create(self.folder / "db", **given)

    @rule()
    def reopen(self) -> None:
        before = self.db.stats()
        self.db.close()
        self.db = CoreNN.open(self.folder / "db")
        assert self.db.stats().commit == before.commit

    @precondition(lambda self: len(self.model) < 50)
    @rule()
    def read_through_a_second_handle(self) -> None:
        keys = list(self.model)
        with CoreNN.open(self.folder / "db", mode="r") as reader:
            assert list(reader.keys()) == keys
            assert [record.payload for record in reader.get(keys)] == [self.model.rows[key].payload for key in keys]


@pytest.mark.timeout(900)  # a failure takes minutes to be made small
class TestMemory(Machine.TestCase):
    settings = settings(max_examples=EXAMPLES, stateful_step_count=STEPS)


@pytest.mark.timeout(900)
class TestDisk(DiskMachine.TestCase):
    settings = settings(max_examples=EXAMPLES // 2 + 1, stateful_step_count=STEPS)
