"""Bad input: the right error, naming the offending value, and nothing written.

Rules out a bad call that is half done, that is silently repaired into something else, that kills the process, or that
fails with an error which does not say what was wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from corenn import CoreNN
from corenn.errors import (
    CoreNNError,
    DimensionError,
    DuplicateKeyError,
    InvalidArgumentError,
    InvalidKeyError,
    InvalidPayloadError,
    InvalidSettingError,
    InvalidVectorError,
    KeyNotFoundError,
    UnsupportedDtypeError,
)
from tests.conftest import Create

DIM = 4
ROW = [1.0, 2.0, 3.0, 4.0]
NAN, INF = float("nan"), float("inf")
Call = Callable[[CoreNN], Any]


@dataclass(frozen=True)
class State:
    """All that a refused call must leave as it was."""

    size: int
    commit: int
    keys: list[Any]
    hits: Any
    records: list[Any]

    @classmethod
    def of(cls, db: CoreNN) -> State:
        keys = list(db.keys())
        hits = db.query(ROW, k=100, exact=True, with_payloads=True)
        records = [(record.key, record.vector.tolist(), record.payload) for record in db.get(keys)]
        return cls(len(db), db.stats().commit, keys, (hits, hits.payloads), records)


def three_rows(db: CoreNN) -> CoreNN:
    db.insert(["a", "b", 3], [ROW, [0, 0, 0, 1], [1, 0, 0, 0]], [{"n": 1}, None, {}])
    return db


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CoreNN]:
    """Three rows of four dimensions under l2, on disk. Shared: every call that these tests make is refused."""
    with CoreNN.create(tmp_path_factory.mktemp("inputs") / "db", dim=DIM, metric="l2") as made:
        yield three_rows(made)


@pytest.fixture(scope="module")
def shared() -> Iterator[CoreNN]:
    """The same rows in memory."""
    with CoreNN.in_memory(dim=DIM, metric="l2") as made:
        yield three_rows(made)


@pytest.fixture(params=["shared", "disk"])
def db(request: pytest.FixtureRequest) -> CoreNN:
    """Either of them."""
    found: CoreNN = request.getfixturevalue(request.param)
    return found


def refuse(db: CoreNN, call: Call, error: type[Exception], *named: str) -> None:
    """Assert that the call raises exactly `error`, that its message has all of `named`, and that nothing changed."""
    before = State.of(db)
    with pytest.raises(CoreNNError) as caught:
        call(db)
    assert type(caught.value) is error, repr(caught.value)
    for text in named:
        assert text in str(caught.value)
    assert State.of(db) == before


def nested(depth: int) -> dict[str, Any]:
    value: Any = 1
    for _ in range(depth):
        value = {"x": value}
    return value


# --- vectors ----------------------------------------------------------------------------------------------------------

BAD_VECTORS: dict[str, tuple[Any, type[Exception], str]] = {
    "dimension below": ([[1, 2, 3]] * 2, DimensionError, "3"),
    "dimension above": (np.zeros((2, 5)), DimensionError, "5"),
    "no dimensions": (np.zeros((2, 0)), DimensionError, "0"),
    "rank 0": (7.0, DimensionError, ""),
    "rank 3": (np.zeros((2, 1, 4)), DimensionError, "(2, 1, 4)"),
    "object": (np.array([[1, 2, 3, None]] * 2, object), UnsupportedDtypeError, "object"),
    "strings": ([["1", "2", "3", "4"]] * 2, UnsupportedDtypeError, "U1"),
    "bytes": (np.array([[b"1"] * 4] * 2), UnsupportedDtypeError, "S1"),
    "complex": (np.ones((2, 4), complex), UnsupportedDtypeError, "complex"),
    "dates": (np.zeros((2, 4), "M8[s]"), UnsupportedDtypeError, "datetime64"),
    "structure": (np.zeros((2, 4), [("x", "f4")]), UnsupportedDtypeError, "x"),
    "nothing": (None, CoreNNError, ""),
    "a dict": ({"a": ROW}, CoreNNError, ""),
    "a string": ("abcd", CoreNNError, ""),
    "nan": ([ROW, [1, NAN, 3, 4]], InvalidVectorError, "nan"),
    "inf": ([ROW, [1, INF, 3, 4]], InvalidVectorError, "inf"),
    "-inf": ([[1, 2, -INF, 4], ROW], InvalidVectorError, "-inf"),
    "beyond float32": ([ROW, [1e39, 0, 0, 0]], InvalidVectorError, ""),
    "integers beyond float32": ([ROW, [10**40, 0, 0, 0]], CoreNNError, ""),
    "norm beyond bound": ([ROW, [1e19, 0, 0, 0]], InvalidVectorError, "e+19"),
    "masked in part": (np.ma.masked_greater([ROW, ROW], 2), InvalidVectorError, "masked"),
    "ragged": ([ROW, [1, 2]], CoreNNError, ""),
    "one vector for two keys": ([ROW], InvalidVectorError, "1"),
    "three vectors for two keys": ([ROW] * 3, InvalidVectorError, "3"),
    "no vectors for two keys": (np.zeros((0, 4)), InvalidVectorError, "0"),
}


@pytest.mark.parametrize("name", BAD_VECTORS)
@pytest.mark.parametrize("method", ["insert", "upsert"])
def test_bad_vectors_are_refused(db: CoreNN, method: str, name: str) -> None:
    vectors, error, named = BAD_VECTORS[name]
    before = State.of(db)
    with pytest.raises(error) as caught:
        getattr(db, method)(["x", "a"], vectors)
    assert isinstance(caught.value, CoreNNError)
    assert named in str(caught.value)
    assert State.of(db) == before


QUERIES = {
    name: case
    for name, case in BAD_VECTORS.items()
    if "two keys" not in name and name not in ("nothing", "norm beyond bound")
}


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("name", QUERIES)
def test_bad_query_vectors_are_refused(db: CoreNN, name: str, exact: bool) -> None:
    vectors, error, named = QUERIES[name]
    with pytest.raises(error) as caught:
        db.query(vectors, exact=exact)
    assert isinstance(caught.value, CoreNNError)
    assert named in str(caught.value)


@given(norms=st.lists(st.sampled_from([1.0, 1e18, 1.8e19, 1.8446742e19, 1.8446743e19, 1.8446744e19, 1.9e19, 1e30])))
def test_a_query_is_as_long_as_allowed_alone_and_in_a_batch(shared: CoreNN, norms: list[float]) -> None:
    """Below 2^64, where its squared norm fits float32; around it, as it is rounded alone."""
    queries = np.array([[0.5, -0.5, 0.5, 0.5]] * len(norms), np.float32).reshape(-1, DIM)
    queries *= np.array(norms, np.float32)[:, None]
    alone = [answered(shared, query) for query in queries]
    assert answered(shared, queries) == all(alone)
    assert all(fine == (norm < 2**64) for norm, fine in zip(norms, alone, strict=True) if abs(norm - 2**64) > 1e15)


def answered(db: CoreNN, queries: Any) -> bool:
    """Whether a query is answered; warnings are errors here."""
    try:
        db.query(queries, k=1)
    except InvalidVectorError as error:
        assert "squared norms" in str(error)
        return False
    return True


def test_a_bad_vector_is_named_by_its_row(db: CoreNN) -> None:
    rows = np.ones((9, DIM))
    rows[6, 2] = NAN
    refuse(db, lambda db: db.insert(range(10, 19), rows), InvalidVectorError, "6", "nan")


def test_values_out_of_the_range_of_u8_are_refused(create: Create) -> None:
    db = create(dim=2, metric="l2", dtype="u8")
    db.insert(["a", "b", "c"], [[-0.4, 255.4], [0.6, 2.4], [0, 255]])
    assert [record.vector.tolist() for record in db.get(["a", "b", "c"])] == [[0, 255], [1, 2], [0, 255]]
    for wrong, named in ((-1.0, "-1"), (256.0, "256"), (-0.75, ""), (255.75, ""), (3e4, "30000")):
        commit = db.stats().commit
        with pytest.raises(InvalidVectorError) as caught:
            db.insert(["x", "y"], [[1, 2], [wrong, 2]])
        assert named in str(caught.value)
        assert (len(db), db.stats().commit) == (3, commit)


def test_values_out_of_the_range_of_f16_are_refused(create: Create) -> None:
    db = create(dim=2, metric="l2", dtype="f16")
    db.insert(["a"], [[65504, -65504]])
    for wrong in (65520.0, -1e6):
        with pytest.raises(InvalidVectorError):
            db.insert(["x"], [[wrong, 0]])
    assert len(db) == 1
    assert db.query([65504, -65504], k=1).distances.tolist() == [0]


BAD_CODES: dict[str, dict[str, Any]] = {
    "too few scales": {"scales": [1.0]},
    "too many zero points": {"scales": [1.0, 1.0], "zero_points": [0, 0, 0]},
    "scales of rank 2": {"scales": [[1.0, 1.0]]},
    "nan": {"scales": [1.0, NAN]},
    "inf": {"scales": [1.0, 1.0], "zero_points": [0, INF]},
    "strings": {"scales": ["1", "2"]},
    "overflow": {"scales": [1.0, 1e38]},
}


@pytest.mark.parametrize("name", BAD_CODES)
@pytest.mark.parametrize("method", ["insert", "upsert"])
def test_bad_scales_are_refused(create: Create, name: str, method: str) -> None:
    db = create(dim=DIM, metric="l2", dtype="i8")
    with pytest.raises(CoreNNError):
        getattr(db, method)(["x", "y"], np.full((2, DIM), 100, np.int8), **BAD_CODES[name])
    assert (len(db), "x" in db) == (0, False)


def test_scales_belong_to_int8_input_of_an_i8_database(create: Create) -> None:
    with pytest.raises(CoreNNError, match="scales"):
        create(dim=DIM).insert(["x"], np.ones((1, DIM), np.int8), scales=[1.0])
    with pytest.raises(CoreNNError, match=r"scales|int8"):
        create(dim=DIM, dtype="i8").insert(["x"], np.ones((1, DIM), np.float32), scales=[1.0])


# --- keys -------------------------------------------------------------------------------------------------------------

BAD_KEYS: dict[str, tuple[Any, str]] = {
    "empty": ("", "''"),
    "too long": ("k" * 1025, "1,024"),
    "too long in UTF-8": ("é" * 513, "1,024"),
    "lone surrogate": ("a\ud800", "ud800"),
    "too large": (2**63, str(2**63)),
    "too small": (-(2**63) - 1, str(-(2**63) - 1)),
    "bool": (True, "True"),
    "numpy bool": (np.True_, "True"),
    "float": (1.5, "1.5"),
    "whole float": (1.0, "1.0"),
    "nan": (NAN, "nan"),
    "None": (None, "None"),
    "bytes": (b"abc", "b'abc'"),
    "tuple": (("a", 1), "a"),
    "list": (["a"], "a"),
    "dict": ({}, "{}"),
    "array": (np.array([1, 2]), "1"),
    "duration": (np.timedelta64(5, "ns"), "timedelta64"),
}
KEY_CALLS: dict[str, Callable[[CoreNN, Any], Any]] = {
    "insert": lambda db, keys: db.insert(keys, [ROW] * len(keys)),
    "upsert": lambda db, keys: db.upsert(keys, [ROW] * len(keys)),
    "set_payload": lambda db, keys: db.set_payload(keys, [{}] * len(keys)),
    "delete": lambda db, keys: db.delete(keys),
    "get": lambda db, keys: db.get(keys),
}


@pytest.mark.parametrize("name", BAD_KEYS)
@pytest.mark.parametrize("method", KEY_CALLS)
def test_bad_keys_are_refused(shared: CoreNN, method: str, name: str) -> None:
    key, named = BAD_KEYS[name]
    refuse(shared, lambda db: KEY_CALLS[method](db, ["a", key]), InvalidKeyError, named)


@pytest.mark.parametrize("name", [name for name in BAD_KEYS if name != "None"])
def test_a_bad_key_to_query_by_is_refused(db: CoreNN, name: str) -> None:
    refuse(db, lambda db: db.query(key=BAD_KEYS[name][0]), InvalidKeyError, BAD_KEYS[name][1])


@pytest.mark.parametrize("keys", ["abc", "", b"abc", 5, None, True, 1.5])
@pytest.mark.parametrize("method", ["insert", "upsert", "set_payload", "delete", "get"])
def test_what_is_no_list_of_keys_is_refused(db: CoreNN, method: str, keys: Any) -> None:
    extra = {"insert": [[ROW] * 3], "upsert": [[ROW] * 3], "set_payload": [[{}] * 3]}.get(method, [])
    named = repr(keys) if keys else ""
    refuse(db, lambda db: getattr(db, method)(keys, *extra), InvalidKeyError, named)


KEYS_NOT_IN_LISTS: dict[str, tuple[Any, str]] = {
    "set": ({"x", "y", "z"}, "set"),
    "frozen set": (frozenset({"x", "y", "z"}), "set"),
    "bytearray": (bytearray(b"abc"), "bytearray"),
    "memoryview": (memoryview(b"abc"), "memory"),
    "times": (np.array(["2020", "2021", "2022"], "M8[ns]"), "datetime64[ns]"),
    "durations": (np.array([1, 2, 3], "m8[ns]"), "timedelta64[ns]"),
    "masked in part": (np.ma.masked_equal([1, 2, 4], 2), "masked"),
    "rank 2": (np.array([[1], [2], [4]]), "(3, 1)"),
}


@pytest.mark.parametrize("name", KEYS_NOT_IN_LISTS)
@pytest.mark.parametrize("method", KEY_CALLS)
def test_keys_without_order_or_meaning_are_refused(shared: CoreNN, method: str, name: str) -> None:
    keys, named = KEYS_NOT_IN_LISTS[name]
    refuse(shared, lambda db: KEY_CALLS[method](db, keys), InvalidKeyError, named)


class Shade(str, Enum):  # noqa: UP042 - StrEnum shows itself as its text
    """Shows itself as `Shade.DARK`, and equals "dark"."""

    DARK = "dark"


class Nameless(str):
    """Shows itself as nothing."""

    __slots__ = ()

    def __str__(self) -> str:
        return ""


def test_a_key_is_stored_as_the_text_that_it_equals(create: Create) -> None:
    db = create(dim=DIM)
    db.insert([Shade.DARK, Nameless("name")], [ROW, ROW])
    assert list(db.keys()) == ["dark", "name"]
    assert set(map(type, db)) == {str}
    assert "dark" in db and Shade.DARK in db and Nameless("name") in db
    refuse(db, lambda db: db.insert([Nameless("")], [ROW]), InvalidKeyError, "0 bytes")
    refuse(db, lambda db: db.insert(["dark"], [ROW]), DuplicateKeyError, "dark")


def test_a_key_twice_in_one_call_is_refused(db: CoreNN) -> None:
    refuse(db, lambda db: db.insert(["x", "y", "x"], [ROW] * 3), DuplicateKeyError, "'x'")
    refuse(db, lambda db: db.upsert(["a", "y", "a"], [ROW] * 3), DuplicateKeyError, "'a'")
    refuse(db, lambda db: db.insert([7, np.int64(7)], [ROW] * 2), DuplicateKeyError, "7")
    refuse(db, lambda db: db.set_payload(["a", "b", "a"], [{}] * 3), DuplicateKeyError, "'a'")


def test_an_existing_key_is_refused(db: CoreNN) -> None:
    refuse(db, lambda db: db.insert(["x", 3], [ROW] * 2), DuplicateKeyError, "3")


def test_a_missing_key_is_refused(db: CoreNN) -> None:
    refuse(db, lambda db: db.set_payload(["a", "missing"], [{}] * 2), KeyNotFoundError, "missing")
    refuse(db, lambda db: db.query(key="missing"), KeyNotFoundError, "missing")
    with pytest.raises(KeyError):
        db.query(key="missing")


# --- payloads ---------------------------------------------------------------------------------------------------------

CYCLE: dict[str, Any] = {}
CYCLE["self"] = CYCLE
BAD_PAYLOADS: dict[str, tuple[Any, str]] = {
    "string": ("text", "text"),
    "list": ([1, 2], ""),
    "number": (5, "5"),
    "false": (False, "False"),
    "int keys": ({1: 2}, "1"),
    "nested int keys": ({"a": [{"b": {2.5: 1}}]}, "2.5"),
    "None as key": ({None: 1}, "None"),
    "bool as key": ({True: 1}, "True"),
    "nan": ({"a": NAN}, "nan"),
    "nested inf": ({"a": [1, {"b": -INF}]}, "inf"),
    "bytes": ({"a": b"x"}, "bytes"),
    "set": ({"a": {1}}, "set"),
    "array": ({"a": np.ones(2)}, "ndarray"),
    "object": ({"a": object()}, "object"),
    "lone surrogate": ({"a": "\ud800"}, ""),
    "lone surrogate in a key": ({"\udfff": 1}, ""),
    "too large": ({"a": "x" * (1 << 20)}, "1,048,576"),
    "too deep": (nested(65), "64"),
    "far too deep": (nested(100_000), "64"),
    "cycle": (CYCLE, ""),
}
PAYLOAD_CALLS: dict[str, Callable[[CoreNN, list[Any]], Any]] = {
    "insert": lambda db, payloads: db.insert(["x", "y"], [ROW] * 2, payloads),
    "upsert": lambda db, payloads: db.upsert(["a", "y"], [ROW] * 2, payloads),
    "set_payload": lambda db, payloads: db.set_payload(["a", "b"], payloads),
}


@pytest.mark.parametrize("name", BAD_PAYLOADS)
@pytest.mark.parametrize("method", PAYLOAD_CALLS)
def test_bad_payloads_are_refused(shared: CoreNN, method: str, name: str) -> None:
    payload, named = BAD_PAYLOADS[name]
    refuse(shared, lambda db: PAYLOAD_CALLS[method](db, [{"fine": 1}, payload]), InvalidPayloadError, named)


@pytest.mark.parametrize("payloads", [[{}], [{}] * 3, [], {}, "ab", 5, {"a": 1, "b": 2}])
@pytest.mark.parametrize("method", PAYLOAD_CALLS)
def test_payloads_that_do_not_match_the_keys_are_refused(db: CoreNN, method: str, payloads: Any) -> None:
    named = [str(len(payloads))] if isinstance(payloads, list) else []
    refuse(db, lambda db: PAYLOAD_CALLS[method](db, payloads), InvalidPayloadError, *named)


# --- arguments --------------------------------------------------------------------------------------------------------

BAD_ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"k": 0}, "0"),
    ({"k": -3}, "-3"),
    ({"k": 1.5}, "1.5"),
    ({"k": 2.0}, "2.0"),
    ({"k": "3"}, "'3'"),
    ({"k": True}, "True"),
    ({"k": None}, "None"),
    ({"k": 2**40}, str(2**40)),
    ({"k": 10, "search_list": 9}, "9"),
    ({"k": 1, "search_list": 0}, "0"),
    ({"search_list": -1}, "-1"),
    ({"search_list": 20.5}, "20.5"),
    ({"search_list": "50"}, "'50'"),
    ({"search_list": True}, "True"),
    ({"search_list": 1 << 40}, str(1 << 40)),
    ({"threads": 0}, "0"),
    ({"threads": -2}, "-2"),
    ({"threads": 1.5}, "1.5"),
    ({"threads": "2"}, "'2'"),
    ({"threads": False}, "False"),
    ({"max_distance": NAN}, "nan"),
    ({"max_distance": "near"}, "'near'"),
    ({"max_distance": True}, "True"),
    ({"max_distance": "1.5"}, "'1.5'"),
    ({"max_distance": [1.0]}, "1.0"),
    ({"key": "a"}, ""),
]


@pytest.mark.parametrize(("arguments", "named"), BAD_ARGUMENTS, ids=lambda case: str(case))
def test_bad_query_arguments_are_refused(db: CoreNN, arguments: dict[str, Any], named: str) -> None:
    refuse(db, lambda db: db.query(ROW, **arguments), InvalidArgumentError, named)
    if "key" not in arguments:
        refuse(db, lambda db: db.query([ROW, ROW], **arguments), InvalidArgumentError, named)
        refuse(db, lambda db: db.query(key="a", **arguments), InvalidArgumentError, named)


def test_a_query_for_nothing_is_refused(db: CoreNN) -> None:
    refuse(db, lambda db: db.query(), InvalidArgumentError)
    with pytest.raises(TypeError, match="nonsense"):
        db.query(ROW, nonsense=1)


def test_numpy_arguments_are_taken(db: CoreNN) -> None:
    plain = db.query(ROW, k=2, search_list=50, threads=1, max_distance=100.0)
    taken = db.query(ROW, k=np.int64(2), search_list=np.int32(50), threads=np.uint8(1), max_distance=np.float32(100))
    assert plain == taken


# --- settings ---------------------------------------------------------------------------------------------------------

BAD_SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"dim": 0}, "0"),
    ({"dim": -1}, "-1"),
    ({"dim": 65_537}, "65537"),
    ({"dim": 4.0}, "4.0"),
    ({"dim": "4"}, "'4'"),
    ({"dim": True}, "True"),
    ({"dim": None}, ""),
    ({"metric": "hamming"}, "hamming"),
    ({"metric": None}, "None"),
    ({"metric": ["l2"]}, "l2"),
    ({"dtype": "f64"}, "f64"),
    ({"dtype": np.float32}, "float32"),
    ({"durability": "maybe"}, "maybe"),
    ({"max_edges": 3}, "3"),
    ({"max_edges": 100_000}, "100000"),
    ({"distance_threshold": 0.5}, "0.5"),
    ({"distance_threshold": NAN}, "nan"),
    ({"query_search_list_cap": 0}, "0"),
    ({"update_search_list_cap": 2}, "2"),
    ({"beam_width": 17}, "17"),
    ({"nonsense": 1}, "nonsense"),
]


@pytest.mark.parametrize(("wrong", "named"), BAD_SETTINGS, ids=lambda case: str(case))
def test_bad_settings_are_refused(create: Create, wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidSettingError) as caught:
        create(**{"dim": DIM, **wrong})
    assert named in str(caught.value)
    assert next(iter(wrong)) in str(caught.value)


@pytest.mark.parametrize("limit", [-1, "much", "1 apple", True, [1]])
def test_a_bad_memory_limit_is_refused(create: Create, limit: Any) -> None:
    with pytest.raises(InvalidSettingError, match="memory_limit"):
        create(dim=DIM, memory_limit=limit)


# --- fuzz -------------------------------------------------------------------------------------------------------------

odd = st.one_of(
    st.none(), st.booleans(), st.floats(), st.binary(max_size=3), st.integers(-(2**70), 2**70), st.complex_numbers(),
    st.sampled_from(["", "a", "b", 3, "\ud800", "x" * 1100, np.float32(1), np.int8(3), np.bool_(1), (), [], {}]),
    st.text(max_size=4),
)  # fmt: skip
keys = st.one_of(st.lists(odd, max_size=4), odd, st.dictionaries(st.text(max_size=2), odd, max_size=2))
numbers = st.one_of(st.floats(width=32), st.integers(-300, 300), st.sampled_from([0.0, 1e38, 1e300, NAN, INF]))
arrays = hnp.arrays(
    st.one_of(hnp.scalar_dtypes(), st.just(np.dtype(object)), hnp.byte_string_dtypes(max_len=2)),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
)
vectors = st.one_of(
    st.lists(st.lists(numbers, min_size=DIM, max_size=DIM), max_size=4),
    st.lists(st.lists(odd, max_size=5), max_size=3),
    arrays,
    odd,
)
odd_key = st.one_of(st.text(max_size=3), st.integers(), st.none(), st.booleans(), st.just("\udfff"))
json_like = st.recursive(odd, lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(odd_key, inner)))
payloads = st.one_of(st.none(), st.lists(st.one_of(st.none(), json_like), max_size=4), json_like)


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[dict[str, CoreNN]]:
    """One database of each dtype, with three rows."""
    made = {dtype: CoreNN.in_memory(dim=DIM, metric="cosine", dtype=dtype) for dtype in ("f32", "f16", "i8", "u8")}
    for db in made.values():
        db.insert(["a", "b", 3], [ROW, [0, 0, 0, 1], [1, 0, 0, 0]], [{"n": 1}, None, {}])
    yield made
    for db in made.values():
        db.close()


def attempt(db: CoreNN, call: Callable[[], Any]) -> None:
    """Run a call that may be refused; only errors of ours may come out, and a refusal writes nothing."""
    before = (len(db), db.stats().commit, list(db.keys()))
    try:
        call()
    except CoreNNError as error:
        assert str(error), "an error without a message"
        assert (len(db), db.stats().commit, list(db.keys())) == before
    assert len(db.query(ROW, k=1000)) == len(db) == len(list(db.keys()))


dtypes = st.sampled_from(["f32", "f16", "i8", "u8"])
writes = st.sampled_from(["insert", "upsert"])


@given(dtype=dtypes, method=writes, keys=keys, vectors=vectors, payloads=payloads)
@settings(max_examples=150)
def test_any_write_is_done_or_refused(
    fuzzed: dict[str, CoreNN], dtype: str, method: str, keys: Any, vectors: Any, payloads: Any
) -> None:
    db = fuzzed[dtype]
    attempt(db, lambda: getattr(db, method)(keys, vectors, payloads))


@given(dtype=dtypes, scales=st.one_of(st.lists(numbers, max_size=3), arrays, odd), zeros=st.one_of(st.none(), arrays))
@settings(max_examples=60)
def test_any_scales_are_taken_or_refused(fuzzed: dict[str, CoreNN], dtype: str, scales: Any, zeros: Any) -> None:
    db, codes = fuzzed[dtype], np.array([[-128, 0, 1, 127], [1, 2, 3, 4]], np.int8)
    attempt(db, lambda: db.upsert(["a", "b"], codes, scales=scales, zero_points=zeros))


@given(dtype=dtypes, keys=keys, payloads=payloads)
@settings(max_examples=100)
def test_any_other_call_is_done_or_refused(fuzzed: dict[str, CoreNN], dtype: str, keys: Any, payloads: Any) -> None:
    db = fuzzed[dtype]
    attempt(db, lambda: db.set_payload(keys, payloads))
    attempt(db, lambda: db.get(keys))
    attempt(db, lambda: db.query(key=keys))
    attempt(db, lambda: db.delete(keys))


arguments = st.fixed_dictionaries(
    {},
    optional={
        "k": st.one_of(odd, st.integers(-2, 20)),
        "key": odd,
        "search_list": st.one_of(odd, st.integers(-2, 200)),
        "min_recall": st.one_of(odd, st.floats(-1, 2)),
        "max_distance": odd,
        "threads": st.one_of(odd, st.integers(-1, 4)),
        "exact": st.booleans(),
        "with_payloads": st.booleans(),
        "explain": st.booleans(),
    },
)


@given(dtype=dtypes, vectors=st.one_of(st.just(ROW), vectors), arguments=arguments)
@settings(max_examples=150)
def test_any_query_is_answered_or_refused(
    fuzzed: dict[str, CoreNN], dtype: str, vectors: Any, arguments: dict[str, Any]
) -> None:
    db = fuzzed[dtype]
    attempt(db, lambda: db.query(vectors, **arguments))


@given(wanted=st.dictionaries(st.sampled_from(["dim", "metric", "dtype", "beam_width", "max_edges", "x"]), odd))
@settings(max_examples=60)
def test_any_settings_are_taken_or_refused(wanted: dict[str, Any]) -> None:
    try:
        CoreNN.in_memory(**{"dim": DIM, **wanted}).close()
    except CoreNNError as error:
        assert str(error)
