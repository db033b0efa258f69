"""The payload index against a look at every payload.

Rules out an index that lags behind the payloads, keeps what was replaced or deleted, sees what a snapshot does not, or
loses its way over a reopen, a crash, a compaction, damage or another process.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroaring import BitMap

from corenn import CoreNN, F
from corenn.filters import columns, fields, index
from corenn.filters.columns import NUMBERS, TEXTS, Column
from corenn.filters.index import ALL, PayloadIndex
from corenn.filters.sets import RowSet, as_ids, as_words, common, of_any, of_list, of_sorted, of_words, words_of
from corenn.storage.rocks import RocksMetadata
from tests.conftest import COMPILED, Create
from tests.filters.made import TEXTS as SOME_TEXTS
from tests.filters.made import change, filters, payloads
from tests.oracle import meets

DIM = 2
FORMS = ("members", "ids", "words")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows are to be many: values with bitmaps, steps, and rows that wait to be cleaned."""
    monkeypatch.setattr(columns, "FREQUENT", 4)
    monkeypatch.setattr(columns, "LEAST_STEPPED", 5)
    monkeypatch.setattr(index, "STEP_ROWS", 7)
    monkeypatch.setattr(index, "CLEANED_AT", 5)


def index_of(db: CoreNN) -> PayloadIndex:
    found = db._current().payload_index
    assert found is not None
    return found


def rows(count: int) -> np.ndarray[Any, Any]:
    return np.arange(count * DIM, dtype=np.float32).reshape(count, DIM)


def expected(model: dict[Any, Any], wire: dict[str, Any]) -> list[Any]:
    return [key for key, payload in model.items() if meets(wire, payload, key)]


def check(db: CoreNN, model: dict[Any, Any], wire: dict[str, Any]) -> None:
    """Whatever asks by a filter gives the rows that a look at each gives."""
    wanted = expected(model, wire)
    assert db.count(wire) == len(wanted)
    hits = db.query(np.zeros(DIM), k=len(model) + 1, filter=wire)
    assert sorted(hits.keys, key=str) == sorted(wanted, key=str)
    found, cursor = db.scroll(wire, limit=5)
    while cursor is not None:
        more, cursor = db.scroll(wire, limit=5, cursor=cursor)
        assert more
        found += more
    assert [record.key for record in found] == wanted
    assert [record.payload for record in found] == [model[key] for key in wanted]


# --- what a column says -----------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.integers(0, 300), max_size=50), max_size=3))
def test_sets_of_ids(parts: list[list[int]]) -> None:
    arrays = [np.array(part, np.uint32) for part in parts]
    wanted = sorted({row for part in parts for row in part if row < 290})
    assert as_ids(of_any(arrays, 290)).tolist() == wanted
    ids = np.array(wanted, np.uint32)
    assert list(of_sorted(ids)) == wanted == list(of_list(wanted[::-1]))
    words = as_words(ids, 290)
    assert np.array_equal(words_of(of_sorted(ids), 290), words)
    assert np.array_equal(words_of(BitMap(range(7, 200)), 290), as_words(np.arange(7, 200, dtype=np.uint32), 290))
    assert [row for row in range(290) if words[row >> 6] >> np.uint64(row & 63) & np.uint64(1)] == wanted


@pytest.mark.parametrize("members", [0, 1, 4096, 4097, 65536])
def test_containers_of_any_size(rng: np.random.Generator, members: int) -> None:
    """A list of members, bits, and none, side by side."""
    mask = np.zeros(4 << 16, np.bool_)
    mask[(1 << 16) + rng.permutation(1 << 16)[:members]] = True
    mask[(3 << 16) + np.arange(0, 1 << 16, 7)] = True
    mask[[0, len(mask) - 1]] = True
    words = np.packbits(mask, bitorder="little").view(np.uint64)
    assert np.array_equal(as_ids(of_words(words)), np.flatnonzero(mask))
    assert np.array_equal(words_of(of_words(words), len(mask)), words)


def formed(some: set[int], form: str) -> Any:
    """Rows as one of the forms of a RowSet."""
    ids = np.array(sorted(some), np.uint32)
    return {"members": of_list(sorted(some)), "ids": ids, "words": as_words(ids, 300)}[form]


@given(st.sets(st.integers(0, 299)), st.sets(st.integers(0, 299)), st.sampled_from(FORMS))
def test_rows_are_the_same_in_every_form(some: set[int], others: set[int], form: str) -> None:
    given_as = formed(some, form)
    for left, made in (
        (some, RowSet(300, **{form: given_as})),
        (some - others, RowSet(300, **{form: given_as}).without(of_list(sorted(others)))),
        (set(range(300)) - some, RowSet(300, **{form: given_as}).others()),
    ):
        assert made.count == len(left) and set(made.members) == left and made.ids.tolist() == sorted(left)
        assert np.array_equal(made.words, as_words(np.array(sorted(left), np.uint32), 300))


@given(
    st.lists(st.tuples(st.sets(st.integers(0, 299)), st.sampled_from(FORMS)), min_size=1, max_size=4),
    st.sampled_from([0, 300]),
)
def test_what_sets_have_in_common_is_the_same_in_every_form(sets: list[tuple[set[int], str]], few: int) -> None:
    given_as = [RowSet(300, **{form: formed(some, form)}) for some, form in sets]
    before = [each.ids.tolist() for each in given_as]
    left = set.intersection(*(some for some, _ in sets))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("corenn.filters.sets.FEW_IDS", few)
        found = common(given_as)
    assert found.count == len(left) and found.ids.tolist() == sorted(left) and set(found.members) == left
    assert [each.ids.tolist() for each in given_as] == before


@given(
    st.lists(st.floats(-9, 9), min_size=20, max_size=200, unique=True), st.integers(1, 250), st.floats(-9, 9),
    st.floats(-9, 9), st.sampled_from([1, 1 << 20]),
)  # fmt: skip
def test_a_slice_is_the_same_by_ids_and_by_bits(
    values: list[float], rows: int, low: float, high: float, sparse: int
) -> None:
    """Also where the view is older than the column, and does not know all of its rows."""
    column = Column(NUMBERS)
    column.add({value: [row] for row, value in enumerate(values)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "LEAST_STEPPED", 8 if sparse == 1 else 1 << 20)
        patch.setattr(columns, "SPARSE", sparse)
        found = column.sliced(low, high, above=False, below=True, rows=rows)
    assert found.ids.tolist() == [row for row, value in enumerate(values[:rows]) if low <= value < high]


@pytest.mark.parametrize("kind", [NUMBERS, TEXTS])
@settings(max_examples=60)
@given(data=st.data())
def test_a_column_knows_its_values(kind: Any, data: st.DataObject) -> None:
    values = st.sampled_from(SOME_TEXTS) if kind is TEXTS else st.sampled_from([-1e9, -1.0, 0.0, 0.5, 1.0, 7.0])
    column, held = Column(kind), list[tuple[Any, int]]()
    for batch in data.draw(st.lists(st.lists(values, min_size=1, max_size=9), max_size=9)):
        groups: dict[Any, list[int]] = {}
        for value in batch:
            groups.setdefault(value, []).append(len(held))
            held.append((value, len(held)))
        column.add(groups)
    gone = data.draw(st.sets(st.integers(0, max(len(held) - 1, 0))))
    if gone:
        ids = np.array(sorted(gone), np.uint32)
        column = column.without(as_words(ids, len(held) + 1))
        held = [(value, row) for value, row in held if row not in gone]
    low, high = data.draw(values), data.draw(values)
    above, below = data.draw(st.booleans()), data.draw(st.booleans())
    assert set(column.equal(low)) == {row for value, row in held if value == low}
    from_low = {row for value, row in held if value > low or (value == low and not above)}
    to_high = {row for value, row in held if value < high or (value == high and not below)}
    wanted = from_low & to_high
    assert set(column.between(low, high, above=above, below=below, rows=1000)) == wanted
    assert set(column.between(low, high, above=above, below=below, rows=1000, single=True)) == wanted
    assert set(column.between(None, None, above=False, below=False, rows=1000)) == {row for _, row in held}
    assert not column.contradictions()
    assert len(column.runs) <= 5


# --- against every payload --------------------------------------------------------------------------------------------


@settings(max_examples=25 if COMPILED else 15)
@given(st.lists(payloads, min_size=1, max_size=25), st.lists(filters, min_size=1, max_size=6), st.data())
def test_filters_select_what_a_look_at_every_payload_selects(
    given_payloads: list[Any], wires: list[dict[str, Any]], data: st.DataObject
) -> None:
    with CoreNN.in_memory(dim=DIM, metric="l2") as db:
        model = dict(enumerate(given_payloads))
        half = data.draw(st.integers(1, len(model)))
        for start, stop in ((0, half), (half, len(model))):
            db.insert(range(start, stop), rows(len(model))[start:stop], given_payloads[start:stop])
        change(db, model, data)
        for wire in wires:
            check(db, model, wire)
        assert db.verify().ok
        deleted = expected(model, wires[0])
        assert db.delete(filter=wires[0]) == len(deleted)
        model = {key: payload for key, payload in model.items() if key not in deleted}
        check(db, model, {})


def filled(db: CoreNN, count: int = 40) -> dict[Any, Any]:
    model: dict[Any, Any] = {
        row: {"n": row, "t": f"text {row % 3}", "even": row % 2 == 0, "l": [row % 5, row % 7]} for row in range(count)
    }
    db.insert(list(model), rows(count), list(model.values()))
    return model


WIRES: list[dict[str, Any]] = [
    {"n": {"$gte": 10, "$lt": 30}}, {"t": "text 1", "even": True}, {"l": 4}, {"$not": {"n": {"$lt": 20}}},
    {"nobody": None}, {"new": {"$exists": True}}, {"$or": [{"n": 3}, {"$keys": [5, "x"]}]},
]  # fmt: skip


def check_all(db: CoreNN, model: dict[Any, Any]) -> None:
    for wire in WIRES:
        check(db, model, wire)


def test_upserts_deletes_and_ids_that_are_used_again(create: Create) -> None:
    db = create(dim=DIM, metric="l2")
    model = filled(db)
    for turn in range(6):
        keys = list(range(turn, 40, 4))
        fresh = {key: {"n": key + turn, "new": turn} for key in keys}
        db.upsert(keys, rows(len(keys)) + turn, list(fresh.values()))
        for key in keys:
            model.pop(key)
        model |= fresh
        if turn % 2:
            db.checkpoint()
            db.repair()  # a whole pass: dead rows become free
        check_all(db, model)
    assert db.stats().free or db.stats().tombstones
    assert db.verify().ok


def test_many_new_payloads_and_none(create: Create) -> None:
    db = create(dim=DIM, metric="l2")
    model = filled(db)
    for keys in ([1], [2, 3], list(range(30))):
        given = [{"n": -key, "new": "x" * 300} if key % 2 else None for key in keys]
        db.set_payload(keys, given)
        model |= dict(zip(keys, given, strict=True))
        check_all(db, model)
        check(db, model, {"new": "x" * 300})
        check(db, model, {"new": {"$gt": "x" * 299}})
    assert db.verify().ok


def test_a_compaction_keeps_the_index(create: Create) -> None:
    db = create(dim=DIM, metric="l2")
    model = filled(db)
    db.set_payload([4], [{"new": 1}])
    model[4] = {"new": 1}
    db.delete(range(0, 40, 3))
    model = {key: payload for key, payload in model.items() if key % 3}
    db.compact()
    check_all(db, model)
    assert index_of(db).covered == ALL
    db.insert(["x"], rows(1), [{"n": 11}])
    model["x"] = {"n": 11}
    check_all(db, model)
    assert db.verify().ok


# --- reopening --------------------------------------------------------------------------------------------------------


def settle(db: CoreNN) -> None:
    """Wait for what is made in the background."""
    assert db._writer is not None
    while db._writer.payload_index.due(calm=True):
        db.checkpoint()


def test_what_was_closed_is_not_made_again(tmp_path: Path) -> None:
    with CoreNN.create(tmp_path / "db", dim=DIM, metric="l2") as db:
        model = filled(db)
    assert (tmp_path / "db" / "fields.index").exists()
    with CoreNN.open(tmp_path / "db") as db:
        assert not index_of(db).due(calm=True)
        check_all(db, model)
        assert index_of(db).covered == ALL
        assert db.stats().memory["payload_index"] > 0
        assert db.verify().ok


def copied(source: Path, target: Path) -> Path:
    """What a process that is killed now would leave."""
    import shutil

    shutil.copytree(source, target)
    (target / "LOCK").unlink()
    return target


def test_after_a_crash_it_is_caught_up_with(tmp_path: Path) -> None:
    with CoreNN.create(tmp_path / "db", dim=DIM, metric="l2") as db:
        model = filled(db)
        db.checkpoint()
        db.set_payload([3, 39], [{"new": 3}, None])
        db.delete([7])
        db.upsert([8], rows(1), [{"n": 12}])
        db.insert([100, 101], rows(2), [{"n": 13}, None])
        left = copied(tmp_path / "db", tmp_path / "left")
    model |= {3: {"new": 3}, 39: None}
    del model[7], model[8]
    model |= {8: {"n": 12}, 100: {"n": 13}, 101: None}
    with CoreNN.open(left) as db:
        check_all(db, model)  # while it is not caught up with, or is
        settle(db)
        assert index_of(db).covered == ALL
        check_all(db, model)
        assert db.verify().ok


@pytest.mark.parametrize("how", ["missing", "torn", "empty", "other", "zeros"])
def test_a_damaged_index_is_made_anew(tmp_path: Path, how: str) -> None:
    with CoreNN.create(tmp_path / "other", dim=DIM, metric="l2") as db:
        filled(db, 3)
    with CoreNN.create(tmp_path / "db", dim=DIM, metric="l2") as db:
        model = filled(db)
    path = tmp_path / "db" / "fields.index"
    raw = path.read_bytes()
    damaged = {
        "torn": raw[: len(raw) // 2], "empty": b"", "other": (tmp_path / "other" / "fields.index").read_bytes(),
        "zeros": raw[:400] + bytes(200) + raw[600:],
    }  # fmt: skip
    path.unlink()
    if how != "missing":
        path.write_bytes(damaged[how])
    with CoreNN.open(tmp_path / "db") as db:
        check_all(db, model)
        settle(db)
        check_all(db, model)
        assert index_of(db).covered == ALL
        assert db.verify().ok
    assert path.stat().st_size > 1000


def test_a_build_brings_its_index(tmp_path: Path) -> None:
    model = {f"k{row}": {"n": row % 20} for row in range(50)}
    with CoreNN.build(tmp_path / "db", list(model), rows(50), list(model.values()), dim=DIM, metric="l2") as db:
        assert not index_of(db).due(calm=True)
        check_all(db, model)
    with CoreNN.build(None, list(model), rows(50), list(model.values()), dim=DIM, metric="l2") as db:
        check_all(db, model)


def test_a_wrong_index_is_found_and_mended(create: Create) -> None:
    db = create(dim=DIM, metric="l2")
    model = filled(db)
    assert db.verify().ok
    found = index_of(db).fields["n"]
    found.numbers.add({99.0: [3]})
    found.nulls.add(5)
    report = db.verify()
    assert [(problem.part, problem.count) for problem in report.problems] == [("fields", 2)]
    assert db.repair().ok
    check_all(db, model)


# --- readers ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[CoreNN, CoreNN]]:
    with CoreNN.create(tmp_path / "db", dim=DIM, metric="l2") as writer:
        filled(writer)
        with CoreNN.open(tmp_path / "db", mode="r") as reader:
            yield writer, reader


def test_a_reader_follows(pair: tuple[CoreNN, CoreNN]) -> None:
    writer, reader = pair
    writer.delete(list(range(40)))
    reader.refresh()
    check_all(reader, {})
    model = filled(writer)
    reader.refresh()
    check_all(reader, model)
    writer.set_payload([3, 4], [None, {"new": 1}])
    writer.upsert([5], rows(1), [{"n": 14}])
    check_all(reader, model)  # until it refreshes
    model |= {3: None, 4: {"new": 1}}
    del model[5]
    model[5] = {"n": 14}
    writer.checkpoint()
    reader.refresh()
    check_all(reader, model)
    writer.compact()
    check_all(reader, model)
    reader.refresh()
    check_all(reader, model)
    assert reader.verify().ok


def test_a_reader_looks_at_what_is_new_alone(pair: tuple[CoreNN, CoreNN], monkeypatch: pytest.MonkeyPatch) -> None:
    writer, reader = pair
    model = {row: {"n": row} for row in range(100, 140)}
    reader.count({})
    read: list[int] = []
    whole = RocksMetadata.payloads

    def payloads(self: RocksMetadata, ids: Any, snapshot: int) -> Any:
        read.extend(ids)
        return whole(self, ids, snapshot)

    writer.upsert(list(model), rows(40), list(model.values()))
    writer.set_payload([7], [{"n": 107}])
    writer.delete([8])
    reader.refresh()
    with monkeypatch.context() as patch:
        patch.setattr(RocksMetadata, "payload_changes", None)  # every payload
        patch.setattr(RocksMetadata, "payloads", payloads)
        assert reader.count({"n": {"$gte": 100}}) == 41
    assert sorted(read) == [7, *range(40, 80)]
    assert reader.count({}) == 79
    assert not index_of(reader)._recent or index_of(reader)._recent[0].commit == reader.stats().commit


def test_a_reader_whose_records_are_gone(pair: tuple[CoreNN, CoreNN]) -> None:
    """A checkpoint drops the records of what it has brought to the disk."""
    writer, reader = pair
    reader.count({})
    writer.set_payload([7], [{"n": 107}])
    writer.upsert(["x"], rows(1), [{"n": 107}])
    writer.checkpoint()
    reader.refresh()
    assert reader.count({"n": 107}) == 2
    assert reader.count({"n": 7}) == 0
    assert reader.verify().ok


@pytest.mark.compiled
def test_queries_of_a_reader_beside_its_refreshes(pair: tuple[CoreNN, CoreNN]) -> None:
    """Each sees one commit, whether it has selected its rows before a refresh, behind it, or in the middle."""
    writer, reader = pair
    seen: list[int] = []
    wrong: list[Any] = []
    stop = threading.Event()

    def ask() -> None:
        try:
            while not stop.is_set():
                hits = reader.query(np.zeros(DIM), k=500, filter=F("n") >= 1000, explain=True)
                assert hits.explain is not None
                assert len(hits) == hits.explain.matches
                seen.append(len(hits))
        except BaseException as error:  # noqa: BLE001 - it is told below
            wrong.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for turn in range(12):
        writer.upsert(range(100, 110 + 10 * turn), rows(10 + 10 * turn), [{"n": 1000}] * (10 + 10 * turn))
        reader.refresh()
        before = len(seen)
        while len(seen) < before + 2 and not wrong:
            time.sleep(0.001)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert {0, 120} <= {0, *seen} <= set(range(0, 121, 10))


@pytest.mark.parametrize("state", ["before", "between", "after"])
def test_an_index_that_is_taken_up_while_a_commit_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    """By a query in another thread, while the metadata know of a commit of which births do not, or the index."""
    with CoreNN.create(tmp_path / "db", dim=DIM, metric="l2") as db:
        model = filled(db)
    with CoreNN.open(tmp_path / "db") as db:
        store, found = db._store, index_of(db)
        at = {"before": ("metadata", "commit"), "between": (None, "_apply"), "after": (None, "put_state")}[state]
        owner = store if at[0] is None else store.metadata
        whole = getattr(owner, at[1])

        def then(*arguments: Any, **named: Any) -> Any:
            if state == "before":
                assert db.count({"n": 3}) == 1
                return whole(*arguments, **named)
            given = whole(*arguments, **named) if state == "after" else None
            assert db.count({"n": 3}) == 1  # of the view before
            assert db.count({"n": 103}) == 0
            return given if state == "after" else whole(*arguments, **named)

        monkeypatch.setattr(owner, at[1], then)
        db.upsert([3, 50], rows(2), [{"n": 103}, {"n": 104}])
        monkeypatch.undo()
        assert found._loaded
        del model[3]
        model |= {3: {"n": 103}, 50: {"n": 104}}
        check_all(db, model)
        check(db, model, {"n": {"$gte": 100}})
        assert index_of(db).covered == ALL
        assert db.verify().ok


# --- settings ---------------------------------------------------------------------------------------------------------


def test_fields_that_are_not_indexed_are_looked_up(create: Create) -> None:
    db = create(dim=DIM, metric="l2", index_fields=["a", "b.x"], no_index_fields=["a.secret"])
    model = {
        row: {"a": {"n": row % 4, "secret": row % 3}, "b": {"x": row % 5, "y": row % 2}, "c": row} for row in range(20)
    }
    db.insert(list(model), rows(20), list(model.values()))
    for path in ("a.n", "a.secret", "b.x", "b.y", "c"):
        check(db, model, {path: {"$gte": 1}})
        check(db, model, {"$not": {path: 0}})
    assert set(index_of(db).fields) == {"a", "a.n", "b.x"}
    db.configure(no_index_fields=["*"], index_fields=[])
    settle(db)
    assert not index_of(db).fields
    check(db, model, {"a.n": 1, "c": {"$gt": 3}})
    db.configure(no_index_fields=[])
    settle(db)
    assert set(index_of(db).fields) == {"a", "a.n", "a.secret", "b", "b.x", "b.y", "c"}
    check(db, model, {"a.n": 1, "c": {"$gt": 3}})


def test_more_fields_than_are_indexed(create: Create, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fields, "MOST_FIELDS", 5)
    db = create(dim=DIM, metric="l2")
    model: dict[Any, Any] = {row: {f"f{row}": row, "g": row} for row in range(10)}
    db.insert(list(model), rows(10), list(model.values()))
    assert len(index_of(db).fields) == 5
    for wire in ({"f9": 9}, {"f9": {"$exists": False}}, {"f1": {"$lt": 5}}, {"f7": None, "g": {"$gt": 2}}, {"x": None}):
        check(db, model, wire)


# --- snapshots --------------------------------------------------------------------------------------------------------


def test_a_query_sees_its_own_snapshot(create: Create) -> None:
    """A view that was taken before writes is asked after them."""
    db = create(dim=DIM, metric="l2")
    model = filled(db)
    with db._view(with_metadata=True) as view:
        db.set_payload([3, 4, 5], [{"n": 100}] * 3)
        db.delete([10, 11])
        db.upsert([12], rows(1), [{"n": 200}])
        db.insert(["late"], rows(1), [{"n": 15}])
        for wire in WIRES:
            from corenn.filters import as_filter

            ids = db._selected(view, as_filter(wire)).ids
            assert [key for key in model if key in ids] == expected(model, wire), json.dumps(wire)
            assert len(ids) == len(expected(model, wire))


def test_a_row_that_gives_way_is_looked_for_by_its_payload_alone(create: Create) -> None:
    db = create(dim=DIM, metric="l2")
    filled(db)
    assert db.delete([1, 2, "nobody"], filter=F("n") > 1) == 1
    assert db.delete(filter=F.keys([1, 3]) & (F("even") == True)) == 0  # noqa: E712
    assert 2 not in db
    assert 1 in db
    assert db.delete([], filter={}) == 0
    assert db.delete(filter={}) == 39
    assert len(db) == 0


def test_a_failure_in_the_background_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with CoreNN.create(tmp_path / "db", dim=DIM, metric="l2") as db:
        model = filled(db)
    (tmp_path / "db" / "fields.index").unlink()

    def fail(*_: Any) -> None:
        raise RuntimeError("of whatever kind")

    with monkeypatch.context() as patch:
        patch.setattr(PayloadIndex, "_add", fail)
        with CoreNN.open(tmp_path / "db") as db:
            while index_of(db)._failed is None:
                db.checkpoint()
            db.insert(["x"], rows(1), [{"n": 12}])
            model["x"] = {"n": 12}
            check_all(db, model)
            assert index_of(db).covered < ALL
    with CoreNN.open(tmp_path / "db") as db:
        settle(db)
        assert index_of(db).covered == ALL
        check_all(db, model)
        assert db.verify().ok
