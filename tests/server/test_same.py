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
from tests.server.served import serving, serving_asgi

ROWS = np.random.default_rng(7).normal(size=(300, 8)).astype(np.float32)
WORDS = ("red shoes", "Blue Shoes", "a red hat", "shoes, red", "blue hat", 7, ["red", "sea"])
PAYLOADS = [
    {"n": n, "tag": "abc"[n % 3], "deep": {"list": [n % 5, None]}, "words": WORDS[n % 7]} if n % 4 else None
    for n in range(300)
]
KEYS: list[Any] = [f"row {n}" if n % 2 else n for n in range(300)]
SETTINGS: dict[str, Any] = {"dim": 8, "metric": "l2", "text_fields": ["words"]}
RED, SHOES = {0, 2, 3, 6}, {0, 1, 3}


def with_words(*places: int) -> set[Any]:
    """The keys of rows whose words are at these places of WORDS."""
    return {KEYS[n] for n in range(300) if n % 4 and n % 7 in places}


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

    def test_queries_by_text(self, db: Any) -> None:
        hits = db.query(text="red shoes", k=300, with_payloads=True, explain=True)
        assert set(hits.keys) == with_words(*RED | SHOES)
        assert {payload["words"] for payload in hits.payloads[: len(with_words(0, 3))]} == {"red shoes", "shoes, red"}
        assert (hits.distances < 0).all()
        assert (np.diff(hits.distances) >= 0).all()
        assert (hits.explain.plan, hits.explain.chosen_by, hits.explain.fusion) == ("text", "text", "")
        assert (hits.explain.terms, hits.explain.text_matches) == (("red", "shoes"), len(hits))
        several = db.query(text=["sea", '"red shoes"', "nothing", "?!"], k=300, explain=True)
        assert [set(each.keys) for each in several] == [with_words(6), with_words(0), set(), set()]
        assert [each.explain.terms for each in several] == [("sea",), ("red shoes",), ("nothing",), ()]
        assert db.query(text=[]) == []
        only = db.query(text=["hat", "hat"], k=300, filter=[F("n") < 50, None])
        assert set(only[0].keys) == {KEYS[n] for n in range(50) if KEYS[n] in with_words(2, 4)}
        assert set(only[1].keys) == with_words(2, 4)

    def test_queries_by_vector_and_text(self, db: Any) -> None:
        near, told = db.query(ROWS[9], k=100).keys, db.query(text="sea", k=100).keys
        worth = {
            key: sum(1 / (61 + found.index(key)) for found in (near, told) if key in found) for key in {*near, *told}
        }
        hits = db.query(ROWS[9], text="sea", k=5, explain=True)
        np.testing.assert_allclose(-hits.distances, sorted(worth.values(), reverse=True)[:5], rtol=1e-6)
        np.testing.assert_allclose(-hits.distances, [worth[key] for key in hits.keys], rtol=1e-6)
        assert (hits.explain.plan, hits.explain.fusion, hits.explain.terms) == ("exact", "rrf", ("sea",))
        assert db.query(key=KEYS[9], text="sea", k=5) == hits
        weighted = db.query(ROWS[:2], text=["sea", "hat"], k=5, fusion="weighted", explain=True)
        assert [each.explain.fusion for each in weighted] == ["weighted"] * 2
        assert weighted == [db.query(ROWS[n], text=("sea", "hat")[n], k=5, fusion="weighted") for n in range(2)]
        assert db.query(ROWS[:2], text="sea", k=3) == [db.query(ROWS[n], text="sea", k=3) for n in range(2)]

    def test_filters_by_text(self, db: Any) -> None:
        assert db.count(F.text("red") & ~F.text("shoes")) == len(with_words(*RED - SHOES))
        assert db.count({"$text": '"red shoes"'}) == len(with_words(0))
        assert set(db.query(ROWS[0], k=300, filter={"$text": "sea"}).keys) == with_words(6)
        assert {record.key for record in db.scroll(F.text("hat"), limit=300)[0]} == with_words(2, 4)
        assert sum(each.count for each in db.facets("tag", F.text("hat"))) == len(with_words(2, 4))
        assert db.delete(filter={"$not": {"$text": "red"}}) == 300 - len(with_words(*RED))
        assert set(db.query(text="shoes", k=300).keys) == with_words(*RED & SHOES)

    def test_samples(self, db: Any) -> None:
        some = db.sample(40)
        assert len({record.key for record in some}) == 40
        assert [KEYS.index(record.key) for record in some] == sorted(KEYS.index(record.key) for record in some)
        assert [record.key for record in db.sample(40)] == [record.key for record in some]
        for record in some:
            assert record.payload == PAYLOADS[KEYS.index(record.key)]
            np.testing.assert_array_equal(record.vector, ROWS[KEYS.index(record.key)])
        assert [record.key for record in db.sample()] == KEYS
        within = db.sample(10, F("tag") == "a")
        assert (len(within), {record.payload["tag"] for record in within}) == (10, {"a"})
        assert db.sample(10, {"n": -1}) == []
        with pytest.raises(InvalidArgumentError):
            db.sample(0)

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
        assert (db.settings.dim, db.settings.metric, db.settings.text_fields) == (8, "l2", ("words",))
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
        (lambda db: db.query(text=7), InvalidArgumentError),
        (lambda db: db.query(text=["red", None]), InvalidArgumentError),
        (lambda db: db.query(text="\ud800"), InvalidArgumentError),
        (lambda db: db.query(text="x" * 65_537), InvalidArgumentError),
        (lambda db: db.query(ROWS[0], text=["red"]), InvalidArgumentError),
        (lambda db: db.query(ROWS[:2], text=["red"]), InvalidArgumentError),
        (lambda db: db.query(key=KEYS[0], text=["red"]), InvalidArgumentError),
        (lambda db: db.query(ROWS[0], key=1, text="red"), InvalidArgumentError),
        (lambda db: db.query(ROWS[0], text="red", max_distance=1), InvalidArgumentError),
        (lambda db: db.query(ROWS[0], text="red", group_by="tag"), InvalidArgumentError),
        (lambda db: db.query(text="red", min_recall=0.9), InvalidArgumentError),
        (lambda db: db.query(text="red", search_list=20), InvalidArgumentError),
        (lambda db: db.query(text="red", exact=True), InvalidArgumentError),
        (lambda db: db.query(text="red", plan="exact"), InvalidArgumentError),
        (lambda db: db.query(text="red", fusion="weighted"), InvalidArgumentError),
        (lambda db: db.query(ROWS[0], fusion="weighted"), InvalidArgumentError),
        (lambda db: db.query(ROWS[0], text="red", fusion="best"), InvalidArgumentError),
        (lambda db: db.query(ROWS[0], text="red", fusion=7), InvalidArgumentError),
        (lambda db: db.query(text=["red", "hat"], filter=[None]), InvalidArgumentError),
        (lambda db: db.count({"$text": 7}), InvalidFilterError),
        (lambda db: db.count({"$text": "x" * 65_537}), InvalidFilterError),
        (lambda db: db.count({"$text": "\ud800"}), InvalidFilterError),
        (lambda db: db.count({"n": {"$text": "red"}}), InvalidFilterError),
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
        with CoreNN.in_memory(**SETTINGS) as db:
            yield db


class TestOnDisk(Conformance):
    """On disk, in a root."""

    @pytest.fixture
    def made(self, tmp_path: Path) -> Iterator[CoreNN]:
        with Root(tmp_path / "root") as root:
            yield root.create("some", **SETTINGS)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of a server in this process."""
    with serving(tmp_path_factory.mktemp("served") / "root") as served, served.client() as connected:
        yield connected


@pytest.fixture(scope="module")
def asgi_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of one that speaks ASGI."""
    with serving_asgi(tmp_path_factory.mktemp("asgi") / "root") as served, served.client() as connected:
        yield connected


@pytest.fixture(scope="module")
def both(client: Client) -> Iterator[tuple[Collection, CoreNN]]:
    """The same rows, served and in memory."""
    made = client.create("both", **SETTINGS)
    made.insert(KEYS, ROWS, PAYLOADS)
    with CoreNN.in_memory(**SETTINGS) as db:
        db.insert(KEYS, ROWS, PAYLOADS)
        yield made, db
    client.drop("both")


texts = st.lists(st.sampled_from(["red", "shoes", "hat", '"red shoes"', "SEA", "?", '"']), max_size=4).map(" ".join)
filters = st.sampled_from([None, {"tag": "a"}, {"$text": "red"}, {"$not": {"$text": "shoes hat"}}, {"n": -1}])
queries: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"k": st.integers(1, 200), "with_payloads": st.booleans()},
    optional={
        "vectors": st.sampled_from([ROWS[3], ROWS[3:4], ROWS[3:6], ROWS[:0]]),
        "key": st.sampled_from([*KEYS[:3], "nobody"]),
        "text": texts | st.lists(texts, max_size=3),
        "fusion": st.sampled_from(["rrf", "weighted", "other"]),
        "filter": filters | st.lists(filters, max_size=3),
        "group_by": st.just("tag"),
        "exact": st.booleans(),
        "plan": st.sampled_from(["exact", "scan"]),
        "max_distance": st.floats(0, 20, width=32),
    },
)


class TestServedByAsgi(Conformance):
    """Over HTTP, by a server that speaks ASGI."""

    @pytest.fixture
    def made(self, asgi_client: Client) -> Iterator[Collection]:
        yield asgi_client.create("some", **SETTINGS)
        asgi_client.drop("some")


class TestServed(Conformance):
    """Over HTTP."""

    @pytest.fixture
    def made(self, client: Client) -> Iterator[Collection]:
        yield client.create("some", **SETTINGS)
        client.drop("some")

    @settings(max_examples=150)
    @given(asked=queries)
    def test_any_query_is_answered_as_in_memory(self, both: tuple[Collection, CoreNN], asked: dict[str, Any]) -> None:
        served, embedded = both
        try:
            expected = embedded.query(**asked, explain=True)
        except CoreNNError as error:
            with pytest.raises(CoreNNError) as refused:
                served.query(**asked, explain=True)
            assert type(refused.value) is type(error)
            return
        found = served.query(**asked, explain=True)
        assert (type(found), found) == (type(expected), expected)
        for one, other in zip(
            *((each if isinstance(each, list) else [each]) for each in (found, expected)), strict=True
        ):
            assert (one.explain, one.payloads) == (other.explain, other.payloads)
