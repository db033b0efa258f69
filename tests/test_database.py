"""What every public method does, in memory, on disk, and to a collection of a root.

Rules out a method that does less, more or something else than the interface says: rows that are lost or come back,
payloads that stick, counts that drift, input that is changed or kept by reference.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corenn import CoreNN
from corenn.errors import (
    DuplicateKeyError,
    InvalidArgumentError,
    InvalidKeyError,
    InvalidSettingError,
    KeyNotFoundError,
)
from corenn.types import Hit, Hits, Record
from tests.conftest import Create, making
from tests.oracle import DTYPES, rounding

DIM = 4
A, B, C, D = np.eye(DIM, dtype=np.float32) * 2


@pytest.fixture(params=["memory", "disk", "root"])
def create(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Create]:
    """Make a database with the given settings in each way in which there are any."""
    yield from making(request.param, tmp_path)


@pytest.fixture
def db(create: Create) -> CoreNN:
    """Three rows, two of them with payloads."""
    made = create(dim=DIM, metric="l2")
    made.insert(["a", "b", 3], [A, B, C], [{"n": 1}, None, {"n": [3, None, "ü"]}])
    return made


def payloads(db: CoreNN, keys: list[Any]) -> list[Any]:
    return [record.payload for record in db.get(keys)]


def vectors(db: CoreNN, keys: list[Any]) -> list[list[float]]:
    return [record.vector.tolist() for record in db.get(keys)]


# --- insert, get ------------------------------------------------------------------------------------------------------


def test_insert_then_get_returns_vector_and_payload(db: CoreNN) -> None:
    record = db.get([3])[0]
    assert isinstance(record, Record)
    assert (record.key, record.payload) == (3, {"n": [3, None, "ü"]})
    assert record.vector.dtype == np.float32
    assert record.vector.shape == (DIM,)
    assert np.array_equal(record.vector, C)


def test_get_keeps_order_and_repeats_and_says_none_for_missing(db: CoreNN) -> None:
    found = db.get(["b", "nobody", "a", "b", "3"])
    assert [record and record.key for record in found] == ["b", None, "a", "b", None]
    assert db.get([]) == []


def test_a_record_is_a_copy(db: CoreNN) -> None:
    record = db.get(["a"])[0]
    kept = record.vector.copy()
    db.upsert(["a"], [D])
    assert np.array_equal(record.vector, kept)
    if record.vector.flags.writeable:
        record.vector[:] = 99
    assert vectors(db, ["a"]) == [D.tolist()]


def test_the_input_is_copied(create: Create) -> None:
    made = create(dim=DIM, metric="l2")
    given = np.ones((2, DIM), np.float32)
    payload = {"tags": ["x"]}
    made.insert(["a", "b"], given, [payload, payload])
    given[:] = 7
    payload["tags"].append("y")
    assert vectors(made, ["a", "b"]) == [[1.0] * DIM] * 2
    assert payloads(made, ["a", "b"]) == [{"tags": ["x"]}] * 2
    assert made.query([1.0] * DIM, k=1).distances[0] == 0


def test_str_and_int_keys_differ(create: Create) -> None:
    made = create(dim=DIM, metric="l2")
    made.insert([1, "1"], [A, B])
    assert vectors(made, [1, "1"]) == [A.tolist(), B.tolist()]
    assert 1 in made
    assert "1" in made
    assert made.delete([1]) == 1
    assert made.get([1]) == [None]
    assert list(made.keys()) == ["1"]


def test_extreme_keys(create: Create) -> None:
    made = create(dim=1, metric="l2")
    keys: list[Any] = [-(2**63), 2**63 - 1, 0, -1, "x" * 1024, "é" * 512, "\x00", "a\x00", "a", " ", "💧", "0"]
    made.insert(keys, np.arange(len(keys))[:, None], [{"key": at} for at in range(len(keys))])
    assert list(made.keys()) == keys
    assert payloads(made, keys) == [{"key": at} for at in range(len(keys))]
    assert made.query([0.0], k=100, exact=True).keys == keys
    assert made.delete(keys) == len(keys)


def test_numpy_keys_are_taken_as_plain_ones(create: Create) -> None:
    made = create(dim=1, metric="l2")
    made.insert(np.arange(3), np.zeros((3, 1)))
    made.insert(np.array(["x", "y"]), np.ones((2, 1)))
    assert list(made.keys()) == [0, 1, 2, "x", "y"]
    assert {type(key) for key in made.keys()} == {int, str}  # noqa: SIM118
    assert np.int32(2) in made
    assert np.str_("y") in made
    assert made.get([np.int64(1)])[0].key == 1
    assert made.delete(np.array([1, 2])) == 2


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", "i1", "u1", "i2", "u2", "i4", "i8", "u8", "?"])
def test_any_real_dtype_is_taken(create: Create, kind: str) -> None:
    made = create(dim=3, metric="l2")
    given = np.array([[1, 0, 1], [0, 1, 1]], kind)
    made.insert(["a", "b"], given)
    assert vectors(made, ["a", "b"]) == [[1, 0, 1], [0, 1, 1]]
    assert made.query(given[1], k=1).keys == ["b"]


def test_lists_and_strided_views_are_taken(create: Create) -> None:
    made = create(dim=3, metric="l2")
    wide = np.arange(24.0).reshape(2, 12)
    made.insert(["a"], [[1, 2.5, 3]])
    made.insert(["b", "c"], wide[:, ::4])
    made.insert(["d", "e"], np.asfortranarray(wide[:, :3]))
    made.insert(["f", "g"], wide[::-1, :3].astype(">f4"))
    made.insert(("h",), ((7, 8, 9),))
    assert vectors(made, ["a", "b", "c", "d", "e", "f", "g", "h"]) == [
        [1, 2.5, 3], [0, 4, 8], [12, 16, 20], [0, 1, 2], [12, 13, 14], [12, 13, 14], [0, 1, 2], [7, 8, 9],
    ]  # fmt: skip
    assert made.query(wide[1, ::4], k=1).keys == ["c"]


def test_a_read_only_input_is_taken(create: Create) -> None:
    made = create(dim=DIM, metric="l2")
    given = np.ones((1, DIM), np.float32)
    given.setflags(write=False)
    made.insert(["a"], given)
    assert made.query(given, k=1)[0].keys == ["a"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
def test_get_returns_what_was_inserted_up_to_rounding(
    create: Create, rng: np.random.Generator, dtype: str, metric: str
) -> None:
    made = create(dim=33, metric=metric, dtype=dtype)
    scale = 1.0 if dtype == "u8" else 10.0 ** rng.uniform(-3, 3, (50, 1))
    given = (rng.uniform(0, 255, (50, 33)) if dtype == "u8" else rng.normal(size=(50, 33)) * scale).astype(np.float32)
    given[7] = 0
    made.insert(range(50), given)
    found = np.array([record.vector for record in made.get(range(50))])
    assert (np.abs(found.astype(np.float64) - given) <= rounding(dtype, given)).all()
    assert (found[7] == 0).all()


@pytest.mark.parametrize("metric", ["l2", "ip"])  # under cosine the unit vector and the norm are kept, each rounded
def test_f32_is_kept_to_the_bit(create: Create, rng: np.random.Generator, metric: str) -> None:
    made = create(dim=7, metric=metric, dtype="f32")
    given = (rng.normal(size=(40, 7)) * 10.0 ** rng.uniform(-6, 6, (40, 1))).astype(np.float32)
    made.insert(range(40), given)
    assert np.array_equal([record.vector for record in made.get(range(40))], given)


def test_int8_codes_with_scales_and_zero_points(create: Create, rng: np.random.Generator) -> None:
    made = create(dim=16, metric="l2", dtype="i8")
    codes = rng.integers(-128, 128, (20, 16)).astype(np.int8)
    scales, zeros = rng.uniform(0.1, 2, 20), rng.integers(-100, 100, 20)
    meant = (scales[:, None] * (codes - zeros[:, None])).astype(np.float32)
    made.insert(range(20), codes, scales=scales, zero_points=zeros)
    assert np.allclose([record.vector for record in made.get(range(20))], meant, rtol=1e-5, atol=1e-4)
    assert made.query(meant[3], k=1, exact=True).keys == [3]
    made.upsert([3], codes[:1], scales=scales[:1], zero_points=zeros[:1])
    assert np.allclose(made.get([3])[0].vector, meant[0], rtol=1e-5, atol=1e-4)


def test_int8_codes_with_scales_alone(create: Create) -> None:
    made = create(dim=4, metric="ip", dtype="i8")
    made.insert(["a"], np.array([[-128, 0, 1, 127]], np.int8), scales=np.array([0.5]))
    assert vectors(made, ["a"]) == [[-64.0, 0.0, 0.5, 63.5]]


def test_an_empty_call_changes_nothing(db: CoreNN) -> None:
    commit = db.stats().commit
    db.insert([], np.empty((0, DIM)))
    db.upsert([], np.empty((0, DIM)), [])
    db.set_payload([], [])
    assert db.delete([]) == 0
    assert db.delete(["nobody"]) == 0
    assert db.get([]) == []
    assert (len(db), db.stats().commit) == (3, commit)


# --- upsert, set_payload, delete --------------------------------------------------------------------------------------


def test_insert_of_an_existing_key_changes_nothing(db: CoreNN) -> None:
    commit = db.stats().commit
    with pytest.raises(DuplicateKeyError, match="'b'"):
        db.insert(["new", "b"], [D, D])
    assert (len(db), db.stats().commit, "new" in db) == (3, commit, False)
    assert vectors(db, ["b"]) == [B.tolist()]
    assert db.query(D, k=1).distances[0] > 0


def test_upsert_replaces_vector_and_payload(db: CoreNN) -> None:
    db.upsert(["a", "new"], [D, B * 3], [{"n": 9}, None])
    assert vectors(db, ["a", "new"]) == [D.tolist(), (B * 3).tolist()]
    assert payloads(db, ["a", "new", "b"]) == [{"n": 9}, None, None]
    assert len(db) == 4
    hits = db.query(A, k=10, exact=True)
    assert sorted(map(str, hits.keys)) == ["3", "a", "b", "new"]
    assert dict(zip(hits.keys, hits.distances, strict=True))["a"] == 8


def test_upsert_without_payloads_removes_the_old_one(db: CoreNN) -> None:
    db.upsert(["a", 3], [A, C])
    assert payloads(db, ["a", 3]) == [None, None]
    assert db.query(A, k=1, with_payloads=True)[0].payload is None


def test_upsert_moves_a_key_to_the_end(db: CoreNN) -> None:
    db.upsert(["a"], [A])
    assert list(db.keys()) == ["b", 3, "a"]


def test_set_payload_leaves_vector_and_order_alone(db: CoreNN) -> None:
    db.set_payload(["b", "a"], [{"late": True}, None])
    assert payloads(db, ["a", "b", 3]) == [None, {"late": True}, {"n": [3, None, "ü"]}]
    assert vectors(db, ["a", "b"]) == [A.tolist(), B.tolist()]
    assert list(db.keys()) == ["a", "b", 3]
    assert db.query(B, k=1, with_payloads=True)[0] == Hit("b", 0.0, {"late": True})


def test_set_payload_of_a_missing_key_changes_nothing(db: CoreNN) -> None:
    commit = db.stats().commit
    with pytest.raises(KeyNotFoundError, match="nobody"):
        db.set_payload(["a", "nobody"], [{"n": 2}, {"n": 2}])
    assert payloads(db, ["a"]) == [{"n": 1}]
    assert db.stats().commit == commit


def test_delete_counts_each_present_key_once(db: CoreNN) -> None:
    assert db.delete(["a", "nobody", "a", 3]) == 2
    assert db.delete(["a", 3]) == 0
    assert list(db.keys()) == ["b"]
    assert db.get(["a", 3]) == [None, None]
    assert db.query(A, k=10).keys == ["b"]
    assert db.stats().rows == 1


def test_a_deleted_key_can_be_inserted_again(db: CoreNN) -> None:
    db.delete(["a"])
    db.insert(["a"], [D])
    assert vectors(db, ["a"]) == [D.tolist()]
    assert payloads(db, ["a"]) == [None]
    assert db.query(A, k=10, exact=True).keys.count("a") == 1
    assert list(db.keys()) == ["b", 3, "a"]


def test_everything_deleted_is_an_empty_database(db: CoreNN) -> None:
    assert db.delete(["a", "b", 3]) == 3
    assert (len(db), list(db.keys()), db.query(A).keys) == (0, [], [])
    assert db.verify().ok
    db.insert(["z"], [A])
    assert db.query(A).keys == ["z"]


def test_payloads_survive_as_json_does(create: Create) -> None:
    made = create(dim=1)
    payload = {
        "": "", "ключ": "значение", "null": None, "yes": True, "big": 2**70, "small": -1.5e-300, "zero": -0.0,
        "deep": [[{"a": [1, 2, {}]}], []], "quote": '"\\\n\x00\u2028', "astral": "💧",
    }  # fmt: skip
    made.insert(["a"], [[1.0]], [payload])
    found = payloads(made, ["a"])[0]
    assert found == payload
    assert json.dumps(found) == json.dumps(payload)
    assert type(found["yes"]) is bool


def test_an_empty_payload_is_not_no_payload(create: Create) -> None:
    made = create(dim=1)
    made.insert(["a", "b"], [[1.0], [2.0]], [{}, None])
    assert payloads(made, ["a", "b"]) == [{}, None]


def test_the_largest_payloads_are_taken(create: Create) -> None:
    made = create(dim=1)
    wide = {"x": "y" * ((1 << 20) - 9)}
    nested: Any = 1
    for _ in range(63):
        nested = [nested]
    made.insert(["wide", "deep"], [[1.0], [2.0]], [wide, {"x": nested}])
    assert payloads(made, ["wide", "deep"]) == [wide, {"x": nested}]


# --- len, in, keys() --------------------------------------------------------------------------------------------------


def test_len_in_and_keys(db: CoreNN) -> None:
    keys = db.keys()
    assert len(db) == len(keys) == 3
    assert list(keys) == ["a", "b", 3]
    assert "a" in db
    assert "a" in keys
    assert 3 in db
    assert "3" not in db
    assert "3" not in keys


@pytest.mark.parametrize("key", [None, 1.5, b"a", "", "x" * 2000, 2**70, True, ("a",), "\ud800"])
def test_asking_for_what_cannot_be_a_key_is_refused(db: CoreNN, key: Any) -> None:
    with pytest.raises(InvalidKeyError):
        key in db  # noqa: B015
    with pytest.raises(InvalidKeyError):
        key in db.keys()  # noqa: B015, SIM118


def test_keys_are_those_of_the_moment(db: CoreNN) -> None:
    keys = db.keys()
    db.delete(["b"])
    db.upsert(["late", "a"], [D, D])
    assert list(keys) == ["a", "b", 3]
    assert len(keys) == 3
    assert list(db.keys()) == [3, "late", "a"]


def test_keys_iterate_while_rows_come_and_go(create: Create) -> None:
    made = create(dim=1)
    made.insert(range(200), np.arange(200)[:, None])
    seen = []
    for key in made.keys():  # noqa: SIM118
        seen.append(key)
        if key < 60:
            made.delete([key])
    assert [key for key in seen if key >= 60] == list(range(60, 200))
    assert len(set(seen)) == len(seen)
    assert list(made.keys()) == list(range(60, 200))


# --- settings, stats, repr --------------------------------------------------------------------------------------------


def test_settings_are_those_given(create: Create) -> None:
    made = create(dim=7, metric="ip", dtype="f16", max_edges=16, query_search_list_cap=50)
    assert (made.settings.dim, made.settings.metric, made.settings.dtype) == (7, "ip", "f16")
    assert (made.settings.max_edges, made.settings.query_search_list_cap) == (16, 50)
    with pytest.raises((AttributeError, TypeError)):
        made.settings.dim = 8


def test_configure_changes_what_may_change(create: Create) -> None:
    made = create(dim=DIM)
    made.configure(query_search_list_cap=33, beam_width=2)
    assert (made.settings.query_search_list_cap, made.settings.beam_width) == (33, 2)
    with pytest.raises(InvalidSettingError, match="dim"):
        made.configure(dim=5)
    with pytest.raises(InvalidSettingError, match="dim"):
        made.configure(dim=np.array([1, 2]))
    with pytest.raises(InvalidSettingError, match="nonsense"):
        made.configure(nonsense=1)
    with pytest.raises(InvalidSettingError, match="-5"):
        made.configure(beam_width=3, query_search_list_cap=-5)
    assert (made.settings.query_search_list_cap, made.settings.beam_width) == (33, 2)


def test_stats_count(db: CoreNN) -> None:
    before = db.stats()
    db.delete(["a"])
    after = db.stats()
    assert (before.rows, after.rows) == (3, 2)
    assert (before.tombstones, after.tombstones) == (0, 1)
    assert after.commit > before.commit
    assert (after.dim, after.metric, after.dtype, after.mode) == (DIM, "l2", "f32", "rw")
    assert all(size >= 0 for size in after.memory.values())
    with pytest.raises(dataclasses.FrozenInstanceError):
        after.rows = 9


def test_repr_names_what_it_is(db: CoreNN) -> None:
    assert "CoreNN" in repr(db)
    db.close()
    assert "CoreNN" in repr(db)


def test_verify_of_a_sound_database(db: CoreNN) -> None:
    db.delete(["b"])
    report = db.verify()
    assert report.ok
    assert (report.rows, report.tombstones, report.unreachable, report.problems) == (2, 1, 0, ())


def test_repair_of_a_sound_database_changes_nothing(db: CoreNN) -> None:
    before = db.query(A, k=3, exact=True)
    report = db.repair()
    assert report.ok
    assert (report.problems, report.repaired) == ((), ())
    assert db.query(A, k=3, exact=True) == before
    assert list(db.keys()) == ["a", "b", 3]


def test_checkpoint_and_refresh_change_no_answer(db: CoreNN) -> None:
    before = db.query(A, k=3)
    db.checkpoint()
    db.refresh()
    assert db.query(A, k=3) == before
    assert list(db.keys()) == ["a", "b", 3]


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda hits: pickle.loads(pickle.dumps(hits))])  # noqa: S301
def test_hits_are_copied_and_pickled_without_the_database(db: CoreNN, again: Callable[[Hits], Hits]) -> None:
    for hits in db.query([A, B], k=3, with_payloads=True, explain=True):
        other = again(hits)
        assert other == hits and list(other) == list(hits)
        assert (other.payloads, other.explain) == (hits.payloads, hits.explain)
        assert len(pickle.dumps(hits)) < 2_000  # the heap of keys takes 64 KiB and more
    assert again(db.query(A, k=2)).payloads == [None, None]


def test_answers_to_several_queries_are_a_list_and_arrays(db: CoreNN) -> None:
    many = db.query([A, B], k=3)
    assert isinstance(many, list) and len(many) == 2
    assert many.keys.tolist() == [hits.keys for hits in many]
    assert many.distances.dtype == np.float32 and many.distances.tolist() == [hits.distances.tolist() for hits in many]
    for again in (copy.copy(many), copy.deepcopy(many), pickle.loads(pickle.dumps(many))):  # noqa: S301
        assert type(again) is list and again == many
    near = db.query([A, B], k=3, max_distance=1.0)  # only the row itself
    assert near.keys.tolist() == [["a", None, None], ["b", None, None]]
    assert near.distances.tolist() == [[0.0, np.inf, np.inf]] * 2 and [hits.keys for hits in near] == [["a"], ["b"]]
    db.delete(["a", "b"])
    numbers = db.query([A, B, A], k=2)
    assert numbers.keys.dtype == np.int64 and numbers.keys.tolist() == [[3]] * 3
    db.insert([-5], [A])
    assert sorted(db.query([A], k=2).keys[0].tolist()) == [-5, 3]
    nobody = db.query(np.empty((0, len(A))), k=2)
    assert nobody == [] and len(nobody.keys) == len(nobody.distances) == 0


@pytest.mark.parametrize("use", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_database_is_neither_copied_nor_pickled(db: CoreNN, use: Callable[[CoreNN], Any]) -> None:
    with pytest.raises(InvalidArgumentError, match="pass its path"):
        use(db)
    assert db.query(A, k=1).keys == ["a"]


def test_hits_are_a_sequence(db: CoreNN) -> None:
    hits = db.query(A, k=3)
    assert isinstance(hits, Hits)
    assert hits.keys[0] == hits[0].key == "a"
    assert hits[-1].key == hits.keys[-1]
    assert [hit.key for hit in hits] == hits.keys
    assert hits.distances.dtype == np.float32
    assert hits.distances.tolist() == [0.0, 8.0, 8.0]
    assert hits.payloads == [None] * 3
    assert len(hits) == 3
    assert hits.explain is None
    with pytest.raises(IndexError):
        hits[3]
