"""Scrolling and deleting by a filter while others write.

Rules out a row that is left out or given twice because of what happens between two pages, a cursor that leads astray,
and a delete that hits what no longer matches.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from corenn import CoreNN, F, InvalidArgumentError, InvalidKeyError
from corenn.filters.cursor import Cursor
from corenn.storage.memory import MemoryMetadata
from tests.conftest import COMPILED, Create

DIM = 2


@pytest.fixture
def db(create: Create) -> CoreNN:
    made = create(dim=DIM, metric="l2")
    for start in range(0, 60, 20):
        made.insert(range(start, start + 20), np.full((20, DIM), start), [{"n": n} for n in range(start, start + 20)])
    return made


def rest(db: CoreNN, cursor: str | None, limit: int = 7, filter: Any = None) -> list[Any]:
    """The keys of all pages from a cursor on."""
    found = []
    while cursor is not None:
        page, cursor = db.scroll(filter, limit, cursor)
        assert 0 < len(page) <= limit
        found += [record.key for record in page]
    return found


def test_all_rows_in_order(db: CoreNN) -> None:
    page, cursor = db.scroll()
    assert ([record.key for record in page], cursor) == (list(range(60)), None)
    assert page[3].payload == {"n": 3}
    assert page[25].vector.tolist() == [20, 20]
    first, cursor = db.scroll(limit=60)
    assert (len(first), cursor) == (60, None)
    first, cursor = db.scroll(limit=59)
    assert (len(first), rest(db, cursor)) == (59, [59])
    assert db.scroll(F("n") < 0) == ([], None)


def test_samples_are_of_the_rows_that_there_are(db: CoreNN) -> None:
    assert [record.key for record in db.sample(60)] == list(range(60))
    db.delete(range(0, 60, 2))
    db.upsert([1], np.zeros((1, DIM)), [{"n": 1}])
    assert [record.key for record in db.sample(60)] == [*range(3, 60, 2), 1]
    seen = {record.key for size in range(1, 30) for record in db.sample(size)}
    assert len(seen) > 25
    some = db.sample(7, F("n") < 20)
    assert len({record.key for record in some}) == 7
    assert all(record.payload == {"n": record.key} and record.key < 20 for record in some)


def test_a_row_that_stays_is_given_once(db: CoreNN) -> None:
    first, cursor = db.scroll(limit=25)
    db.delete([3, 24, 26, 40])
    db.upsert([5, 30], np.zeros((2, DIM)), [{"n": 5}, {"n": 30}])
    db.insert(["new"], np.zeros((1, DIM)))
    db.set_payload([50], [{"n": -1}])
    found = [record.key for record in first] + rest(db, cursor)
    kept = [key for key in range(60) if key not in (3, 24, 26, 40, 5, 30)]
    assert [key for key in found if key in kept] == kept
    assert found[-3:] == [5, 30, "new"]  # replaced ones come anew


def test_a_compaction_between_two_pages(db: CoreNN) -> None:
    db.delete(range(0, 60, 5))
    first, cursor = db.scroll(F("n") < 55, limit=23)
    db.compact()
    found = [record.key for record in first] + rest(db, cursor, filter=F("n") < 55)
    assert found == [key for key in range(55) if key % 5]


def test_a_compaction_that_takes_the_last_row_with_it(db: CoreNN) -> None:
    first, cursor = db.scroll(limit=23)
    db.delete([22])
    db.compact()
    found = [record.key for record in first] + rest(db, cursor)
    assert set(range(60)) == set(found)
    assert sorted(found[23:]) == [*range(20, 22), *range(23, 60)]  # its commit comes again


def test_ids_that_are_used_again_keep_their_order(db: CoreNN) -> None:
    db.delete(range(10))
    db.checkpoint()
    db.repair()
    db.checkpoint()
    db.insert(range(100, 110), np.zeros((10, DIM)))
    db.insert(range(200, 210), np.zeros((10, DIM)))
    page, cursor = db.scroll(limit=11)
    assert [record.key for record in page] + rest(db, cursor) == [*range(10, 60), *range(100, 110), *range(200, 210)]


@pytest.mark.parametrize("cursor", ["", "x", "AAAA", 3, b"x", "WzEsIDIsIDMsIDRd", "WzEsIC0xLCAwLCAxLCAiYSJd"])
def test_a_cursor_of_somebody_else_is_refused(db: CoreNN, cursor: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="cursor"):
        db.scroll(cursor=cursor)
    with pytest.raises(InvalidArgumentError, match="limit"):
        db.scroll(limit=0)


def test_a_cursor_says_where_it_is() -> None:
    for key in ("größer", 5, -(2**63)):
        cursor = Cursor(7, 3, 1, key)
        assert Cursor.unpack(cursor.pack()) == cursor


def test_deletes_by_filter_beside_other_writes(db: CoreNN) -> None:
    """Whatever the order, a row is deleted if it matches then."""

    def bump(start: int) -> None:
        for key in range(start, 60, 2):
            db.set_payload([key], [{"n": 1000 + key}])

    threads = [threading.Thread(target=bump, args=(start,)) for start in (0, 1)]
    for thread in threads:
        thread.start()
    deleted = 0
    for thread in threads:
        while thread.is_alive():
            deleted += db.delete(filter=F("n") >= 1000)
        thread.join()
    deleted += db.delete(filter=F("n") >= 1000)
    assert deleted + len(db) == 60
    assert db.count(F("n") >= 1000) == 0
    assert db.verify().ok


def test_a_delete_of_nothing_in_particular_is_refused(db: CoreNN) -> None:
    with pytest.raises(InvalidKeyError, match=r"filter=\{\}"):
        db.delete()
    assert len(db) == 60


def test_counts_beside_writes_are_of_one_commit(db: CoreNN) -> None:
    """Each commit moves ten rows from one value to another: never is one of them missing, or counted twice."""
    stop = threading.Event()
    db.set_payload(range(60), [{"v": "a"}] * 60)

    def write() -> None:
        for turn in range(30 if COMPILED else 8):
            keys = range(turn % 6 * 10, turn % 6 * 10 + 10)
            db.set_payload(keys, [{"v": "ab"[turn // 6 % 2]}] * 10)
            db.upsert(keys, np.zeros((10, DIM)), [{"v": "ab"[turn // 6 % 2]}] * 10)
        stop.set()

    writer = threading.Thread(target=write)
    writer.start()
    looked = 0
    while not stop.is_set() or looked < 20:
        looked += 1
        assert db.count(F("v").isin(["a", "b"])) == 60
        assert db.count(F("v") == "a") % 10 == 0
        hits = db.query([0, 0], k=60, filter=F("v").exists())
        assert sorted(hits.keys) == list(range(60))
    writer.join()
    assert db.verify().ok


@pytest.mark.parametrize("call", ["scroll", "query"])
def test_payloads_that_are_set_twice_meanwhile(memory: Create, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """The metadata keep one payload beside the last: then what is given is as of a later commit, filter and all."""
    db = memory(dim=2, metric="l2")
    db.insert(range(3), np.zeros((3, 2)), [{"n": 0}, {"n": 0}, {"n": 1}])
    read, turns = MemoryMetadata.payloads, iter(range(2))

    def late(self: MemoryMetadata, ids: Sequence[int], snapshot: int) -> list[bytes | None]:
        for turn in turns:
            db.set_payload([0], [{"n": 5 + turn}])
        return read(self, ids, snapshot)

    monkeypatch.setattr(MemoryMetadata, "payloads", late)
    if call == "query":
        hits = db.query(np.zeros(2), k=3, filter=F("n") == 0, with_payloads=True)
        found = list(zip(hits.keys, hits.payloads, strict=True))
    else:
        found = [(record.key, record.payload) for record in db.scroll(F("n") == 0)[0]]
    assert found == [(1, {"n": 0})]
