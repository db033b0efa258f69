"""Rules out a collection that behaves otherwise when it is served: one class of tests for all three."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from corenn import (
    Client,
    CoreNN,
    CoreNNError,
    DimensionError,
    DuplicateKeyError,
    F,
    InvalidArgumentError,
    InvalidFilterError,
    InvalidKeyError,
    InvalidPayloadError,
    InvalidVectorError,
    KeyNotFoundError,
    Root,
    UnsupportedDtypeError,
)
from corenn.client import Collection
from tests.server.served import serving

ROWS = np.random.default_rng(7).normal(size=(300, 8)).astype(np.float32)
PAYLOADS = [{"n": n, "tag": "abc"[n % 3], "deep": {"list": [n % 5, None]}} if n % 4 else None for n in range(300)]
KEYS: list[Any] = [f"row {n}" if n % 2 else n for n in range(300)]


class Conformance:
    """What every collection does. A subclass has a fixture `made`, which makes an empty one."""

    @pytest.fixture
    def db(self, made: Any) -> Any:
        """A collection with rows."""
        made.insert(KEYS, ROWS, PAYLOADS)
        return made

    def test_rows_come_back_as_they_were_inserted(self, db: Any) -> None:
        found = db.get([KEYS[5], "nobody", KEYS[4]])
        assert found[1] is None
        for record, n in ((found[0], 5), (found[2], 4)):
            assert (record.key, record.payload) == (KEYS[n], PAYLOADS[n])
            assert record.vector.dtype == np.float32
            np.testing.assert_array_equal(record.vector, ROWS[n])

    def test_one_query_finds_the_nearest(self, db: Any) -> None:
        hits = db.query(ROWS[9], k=4, with_payloads=True, explain=True)
        nearest = np.argsort(((ROWS - ROWS[9]) ** 2).sum(axis=1), kind="stable")[:4]
        assert hits.keys == [KEYS[n] for n in nearest]
        assert hits.payloads == [PAYLOADS[n] for n in nearest]
        assert hits.distances.dtype == np.float32
        assert (np.diff(hits.distances) >= 0).all()
        assert hits.explain.plan == "exact"
        assert hits.explain.matches == 300
        assert (hits[0].key, hits[0].distance, hits[0].payload) == (KEYS[9], 0.0, PAYLOADS[9])
        assert db.query(ROWS[9], k=4).explain is None

    def test_several_queries_are_answered_in_their_order(self, db: Any) -> None:
        many = db.query(ROWS[:3], k=2)
        assert [hits.keys for hits in many] == [db.query(ROWS[n], k=2).keys for n in range(3)]
        assert many.keys.shape == many.distances.shape == (3, 2)
        assert many.keys[1].tolist() == many[1].keys
        assert db.query(np.empty((0, 8), np.float32)) == []

    def test_queries_by_key_bound_group_and_filter(self, db: Any) -> None:
        assert db.query(key=KEYS[7], k=1).keys == [KEYS[7]]
        assert db.query(ROWS[0], k=5, max_distance=0).keys == [KEYS[0]]
        assert len(db.query(ROWS[0], k=5, max_distance=np.inf)) == 5
        assert len(db.query(ROWS[0], k=50, group_by="tag")) == 4  # three values, and none
        only = db.query(ROWS[:2], k=300, filter=[F("tag") == "a", None], with_payloads=True)
        assert {payload["tag"] for payload in only[0].payloads} == {"a"}
        assert len(only[1]) == 300
        assert db.query(ROWS[0], k=3, exact=True).keys == db.query(ROWS[0], k=3, min_recall=0.9).keys

    def test_counts_facets_and_scrolls(self, db: Any) -> None:
        assert (len(db), db.count(), db.count(F("n") >= 200)) == (300, 300, sum(n % 4 > 0 for n in range(200, 300)))
        assert KEYS[0] in db
        assert "nobody" not in db
        assert [each.value for each in db.facets("tag")] == ["a", "b", "c"]
        found, cursor = db.scroll({"n": {"$lt": 20}}, limit=10)
        rest, end = db.scroll({"n": {"$lt": 20}}, limit=10, cursor=cursor)
        assert [record.key for record in found + rest] == [KEYS[n] for n in range(20) if n % 4]
        assert end is None
        np.testing.assert_array_equal(found[0].vector, ROWS[1])

    def test_writes_replace_and_delete(self, db: Any) -> None:
        db.upsert([KEYS[0], "new"], ROWS[1:3], [{"x": 1}, None])
        db.set_payload([KEYS[1]], [None])
        assert [record.payload for record in db.get([KEYS[0], "new", KEYS[1]])] == [{"x": 1}, None, None]
        assert db.delete([KEYS[2], "nobody"]) == 1
        assert db.delete(filter=F("n") < 10) == sum(n % 4 > 0 for n in range(2, 10) if n != 2)
        assert db.delete([KEYS[20], KEYS[21]], filter={"n": 21}) == 1
        assert len(db) == 300 + 1 - 1 - 5 - 1
        assert db.delete([]) == 0

    def test_it_tells_of_itself(self, db: Any) -> None:
        assert (db.settings.dim, db.settings.metric) == (8, "l2")
        assert (db.stats().rows, db.stats().dim) == (300, 8)
        assert float(db.recall(k=5, samples=10)) == 1.0
        assert db.recall_curve(k=5, samples=10) == []
        db.checkpoint()

    REFUSED: tuple[tuple[Any, type[CoreNNError]], ...] = (
        (lambda db: db.insert([1000], ROWS[:1, :3]), DimensionError),
        (lambda db: db.insert([1000], ROWS[0]), DimensionError),
        (lambda db: db.insert([1000], ROWS[None, :1]), DimensionError),
        (lambda db: db.insert([1000, 1001], ROWS[:1]), InvalidVectorError),
        (lambda db: db.insert([1000], [[np.nan] * 8]), InvalidVectorError),
        (lambda db: db.insert([1000], [[1e300] * 8]), InvalidVectorError),
        (lambda db: db.insert([1000], [["x"] * 8]), UnsupportedDtypeError),
        (lambda db: db.insert([KEYS[0]], ROWS[:1]), DuplicateKeyError),
        (lambda db: db.insert([1000, 1000], ROWS[:2]), DuplicateKeyError),
        (lambda db: db.insert([""], ROWS[:1]), InvalidKeyError),
        (lambda db: db.insert(["\ud800"], ROWS[:1]), InvalidKeyError),
        (lambda db: db.insert("bare", ROWS[:1]), InvalidKeyError),
        (lambda db: db.insert([2**63], ROWS[:1]), InvalidKeyError),
        (lambda db: db.insert([1000], ROWS[:1], [{"x": float("nan")}]), InvalidPayloadError),
        (lambda db: db.insert([1000], ROWS[:1], [[1]]), InvalidPayloadError),
        (lambda db: db.insert([1000], ROWS[:1], []), InvalidPayloadError),
        (lambda db: db.set_payload(["nobody"], [{}]), KeyNotFoundError),
        (lambda db: db.delete(), InvalidKeyError),
        (lambda db: db.query(ROWS[0, :3]), DimensionError),
        (lambda db: db.query(ROWS[None, :2]), DimensionError),
        (lambda db: db.query(ROWS[0] * np.inf), InvalidVectorError),
        (lambda db: db.query(), InvalidArgumentError),
        (lambda db: db.query(ROWS[0], key=1), InvalidArgumentError),
        (lambda db: db.query(key="nobody"), KeyNotFoundError),
        (lambda db: db.query(ROWS[0], k=0), InvalidArgumentError),
        (lambda db: db.query(ROWS[0], k=2.5), InvalidArgumentError),
        (lambda db: db.query(ROWS[0], min_recall=2), InvalidArgumentError),
        (lambda db: db.query(ROWS[0], search_list=3), InvalidArgumentError),
        (lambda db: db.query(ROWS[0], max_distance=np.nan), InvalidArgumentError),
        (lambda db: db.query(ROWS[0], plan="best"), InvalidArgumentError),
        (lambda db: db.query(ROWS[0], per_group=2), InvalidArgumentError),
        (lambda db: db.query(ROWS[0], filter={"n": {"$near": 1}}), InvalidFilterError),
        (lambda db: db.query(ROWS[:2], filter=[None]), InvalidArgumentError),
        (lambda db: db.count({"n": {"$gt": None}}), InvalidFilterError),
        (lambda db: db.facets("a..b"), InvalidFilterError),
        (lambda db: db.scroll(cursor="nonsense"), InvalidArgumentError),
        (lambda db: db.recall(k=0), InvalidArgumentError),
    )

    def test_what_is_wrong_is_refused_with_the_same_error(self, db: Any) -> None:
        for number, (call, error) in enumerate(self.REFUSED):
            with pytest.raises(error):
                call(db)
                pytest.fail(f"call {number} was not refused")
            assert len(db) == 300

    @settings(max_examples=50, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def test_any_row_comes_back(self, made: Any, data: st.DataObject) -> None:
        key = data.draw(st.text(min_size=1, max_size=20) | st.integers(-(2**63), 2**63 - 1))
        scalars = (
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
        )
        payload = data.draw(st.none() | st.dictionaries(st.text(), st.lists(scalars) | scalars, max_size=4))
        vector = data.draw(st.lists(st.floats(-1e9, 1e9, width=32), min_size=8, max_size=8))
        try:
            made.upsert([key], [vector], [payload])
        except CoreNNError as error:
            with pytest.raises(type(error)), CoreNN.in_memory(dim=8, metric="l2") as other:
                other.upsert([key], [vector], [payload])
            return
        record = made.get([key])[0]
        assert (record.key, type(record.key), record.payload) == (key, type(key), payload)
        np.testing.assert_array_equal(record.vector, np.array(vector, np.float32))
        assert (
            made.query(key=key, k=1, with_payloads=True)[0].payload == payload or made.query(vector, 1).distances == 0
        )


class TestInMemory(Conformance):
    """In memory."""

    @pytest.fixture
    def made(self) -> Iterator[CoreNN]:
        with CoreNN.in_memory(dim=8, metric="l2") as db:
            yield db


class TestOnDisk(Conformance):
    """On disk, in a root."""

    @pytest.fixture
    def made(self, tmp_path: Path) -> Iterator[CoreNN]:
        with Root(tmp_path / "root") as root:
            yield root.create("some", dim=8, metric="l2")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of a server in this process."""
    with serving(tmp_path_factory.mktemp("served") / "root") as served, served.client() as connected:
        yield connected


class TestServed(Conformance):
    """Over HTTP."""

    @pytest.fixture
    def made(self, client: Client) -> Iterator[Collection]:
        yield client.create("some", dim=8, metric="l2")
        client.drop("some")
