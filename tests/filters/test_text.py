"""Queries and filters by text.

Rules out a ranking that is not tantivy's, a list that is not joined as the page says, a text that raises because of
what stands in it, a filter by text that says something else than the ranking, and arguments that are taken and ignored.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corenn import CoreNN, F, InvalidArgumentError, InvalidFilterError, InvalidSettingError
from corenn.filters import select
from tests.conftest import Create
from tests.filters.texts import DIM, FIELDS, by_tantivy, filled, made, payloads, queries, values_at, vectors
from tests.oracle import fused, has_text

ASKED = (
    "red",
    "red shoes",
    "w3 w17 hat",
    "sea sea w30",
    "nobody",
    "Red SHOES",
    'sun "red blue"',
    '"old new"',
    'red "red"',
)


@pytest.fixture(scope="module")
def shop() -> Any:
    with CoreNN.in_memory(dim=DIM, metric="l2", text_fields=FIELDS) as db:
        yield db, filled(db)


def texts_in(payload: Any) -> list[list[str]]:
    return [values_at(payload, field) for field in FIELDS]


# --- ranking ----------------------------------------------------------------------------------------------------------


def test_rows_are_ranked_as_tantivy_ranks_them(create: Create) -> None:
    """Also where they came in several commits, and so in several segments."""
    db = create(dim=DIM, metric="l2", text_fields=FIELDS)
    db.query(text="red")
    model = filled(db, ask="red")
    for text in ASKED:
        wanted = by_tantivy(model, FIELDS, text)
        hits = db.query(text=text, k=len(model))
        assert hits.keys == [key for key, _ in wanted]
        assert (-hits.distances).tolist() == [np.float32(score) for _, score in wanted]
        for k in (1, 3, 10):
            assert db.query(text=text, k=k).keys == hits.keys[:k]


def test_rows_with_equal_scores_come_in_order(memory: Create) -> None:
    db = memory(dim=DIM, metric="l2", text_fields=["t"])
    for start in range(80, -10, -10):
        keys = list(range(start, start + 10))
        db.insert(keys, vectors(10), [{"t": "same words" if key % 3 else "words"} for key in keys])
        db.query(text="same")  # each in a segment of its own
    order = list(db.keys())
    wanted = [key for key in order if key % 3 == 0] + [key for key in order if key % 3]
    for k in range(1, 91, 4):
        assert db.query(text="words", k=k).keys == wanted[:k]
        some = set(range(0, 90, 7)) | set(range(40, 70))
        assert db.query(text="words", k=k, filter=F.keys(some)).keys == [key for key in wanted if key in some][:k]


@settings(max_examples=30)
@given(data=st.data())
def test_a_filter_leaves_the_order_as_it_is(shop: Any, data: st.DataObject) -> None:
    """Whatever is left out, and however many are alike at the end."""
    db, _ = shop
    text = data.draw(st.sampled_from(["red", "hat", "w3 sea"]))
    kept, k = data.draw(st.sets(st.integers(0, 199))), data.draw(st.integers(1, 30))
    wanted = [key for key in db.query(text=text, k=200).keys if key in kept]
    assert db.query(text=text, k=k, filter=F.keys(kept)).keys == wanted[:k]
    assert db.query(text=text, k=k).keys == db.query(text=text, k=200).keys[:k]


def test_a_text_of_nothing_finds_nothing(shop: Any) -> None:
    db, _ = shop
    for text in ("", " ", "!?", '"', '""', "x" * 300):
        assert db.query(text=text).keys == []
        assert db.count(F.text(text)) == 0


def test_lists_give_all_of_their_texts_and_nothing_else(memory: Create) -> None:
    db = memory(dim=DIM, metric="l2", text_fields=["a.b", "c"])
    rows = [{"a": {"b": ["one", "two", 3]}}, {"a": [{"b": "two"}, {"b": "three"}]}, {"c": 4, "a": "two"}, None]
    db.insert(range(4), vectors(4), rows)
    assert db.query(text="two three").keys == [1, 0]
    assert db.query(text="3 4").keys == []
    assert db.query(text='"one two"').keys == []  # no phrase goes over two texts
    assert db.query(text="two", with_payloads=True)[0].payload in rows[:2]


@settings(max_examples=60)
@given(text=st.text(max_size=30), said=st.text(max_size=30))
def test_whatever_is_typed_is_a_query(shop: Any, text: str, said: str) -> None:
    db, _ = shop
    db.upsert(["typed"], vectors(1), [{"title": said}])
    hits = db.query(np.zeros(DIM), text=text, k=3)
    assert len(hits) == 3
    assert set(db.query(text=text, k=500).keys) == {record.key for record in db.scroll(F.text(text), limit=500)[0]}
    db.delete(["typed"])


def test_a_batch_is_as_its_queries_one_by_one(shop: Any) -> None:
    db, _ = shop
    several = db.query(text=list(ASKED), k=4)
    assert [hits.keys for hits in several] == [db.query(text=text, k=4).keys for text in ASKED]
    rows = vectors(len(ASKED), seed=3)
    wanted = [db.query(row, text=text, k=4) for row, text in zip(rows, ASKED, strict=True)]
    assert [*db.query(rows, text=list(ASKED), k=4)] == wanted
    assert [*db.query(rows, text="red", k=4)] == [db.query(row, text="red", k=4) for row in rows]
    trees = [F("n") == row % 5 if row % 3 else None for row in range(len(ASKED))]
    found = db.query(rows, text=list(ASKED), k=4, filter=trees, explain=True)
    for row, text, tree, hits in zip(rows, ASKED, trees, found, strict=True):
        assert hits == db.query(row, text=text, k=4, filter=tree)
        assert hits.explain.terms == db.query(text=text, explain=True).explain.terms


# --- both -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fusion", ["rrf", "weighted"])
@pytest.mark.parametrize("tree", [None, F("n") == 2, F.text("blue")])
@pytest.mark.parametrize("k", [3, 40])
def test_lists_are_joined_as_a_hand_computation_says(shop: Any, fusion: str, tree: Any, k: int) -> None:
    """k=3 joins lists of 100 rows, k=40 of 160."""
    db, _ = shop
    query = np.full(DIM, 0.3)
    for text in ASKED:
        depth = max(100, 4 * k)
        near, told = db.query(query, k=depth, filter=tree), db.query(text=text, k=depth, filter=tree)
        lists = [[(hit.key, hit.distance) for hit in near], [(hit.key, -hit.distance) for hit in told]]
        wanted = fused(fusion, *lists)[:k]
        hits = db.query(query, text=text, k=k, fusion=fusion, filter=tree)
        assert hits.keys == [key for key, _ in wanted]
        assert np.allclose(-hits.distances, [score for _, score in wanted], rtol=1e-6)


def test_lists_of_one_row_and_of_none_are_joined(memory: Create) -> None:
    db = memory(dim=DIM, metric="l2", text_fields=["t"])
    assert db.query(np.zeros(DIM), text="red").keys == []
    assert db.query(text="red").keys == []
    db.insert(["one"], vectors(1), [{"t": "red"}])
    for fusion, score in (("rrf", 2 / 61), ("weighted", 1.0)):
        hits = db.query(np.zeros(DIM), text="red", fusion=fusion)
        assert hits.keys == ["one"]
        assert -hits[0].distance == pytest.approx(score)
        assert -db.query(np.zeros(DIM), text="blue", fusion=fusion)[0].distance == pytest.approx(score / 2)


def test_a_stored_row_can_be_the_vector(shop: Any) -> None:
    db, _ = shop
    assert db.query(key=7, text="red", k=5) == db.query(vectors(200)[7], text="red", k=5)


def test_what_the_text_did_is_explained(shop: Any) -> None:
    db, model = shop
    matches = sum(has_text("red hat", texts_in(payload)) for payload in model.values())
    told = db.query(text='Red "old  NEW" hat', k=3, explain=True).explain
    assert (told.plan, told.chosen_by, told.terms, told.fusion) == ("text", "text", ("red", "old new", "hat"), "")
    told = db.query(np.zeros(DIM), text="red hat", k=3, filter=F("n") == 1, fusion="weighted", explain=True).explain
    assert (told.terms, told.text_matches, told.fusion, told.matches) == (("red", "hat"), matches, "weighted", 40)
    assert told.distances > 0
    assert db.query(np.zeros(DIM), explain=True).explain.terms == ()


# --- filters ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ASKED)
def test_a_filter_selects_what_a_query_ranks(shop: Any, text: str) -> None:
    db, model = shop
    wanted = [key for key, payload in model.items() if has_text(text, texts_in(payload))]
    assert db.count({"$text": text}) == len(wanted)
    assert [record.key for record in db.scroll(F.text(text), limit=500)[0]] == wanted
    assert sorted(db.query(text=text, k=500).keys) == wanted
    assert sorted(db.query(np.zeros(DIM), k=500, filter=F.text(text)).keys) == wanted
    few = [key for key in wanted if model[key]["n"] != 3]
    assert db.count({"$and": [{"$text": text}, {"$not": {"n": 3}}]}) == len(few)
    assert db.count(~F.text(text)) == 200 - len(wanted)
    assert db.count(F.text(text) | F.keys([1])) == len({*wanted, 1})
    assert sum(each.count for each in db.facets("n", F.text(text))) == len(wanted)


def test_what_a_filter_selects_can_be_deleted(create: Create) -> None:
    db = create(dim=DIM, metric="l2", text_fields=FIELDS)
    model = filled(db)
    doomed = [key for key, payload in model.items() if has_text("shoes", texts_in(payload)) and payload["n"] == 1]
    assert db.delete(filter=F.text("shoes") & (F("n") == 1)) == len(doomed) > 0
    assert len(db) == 200 - len(doomed)
    assert not {*db.query(text="shoes", k=500).keys} & {*doomed}


@pytest.mark.parametrize("settled", [0, 1 << 12])
def test_a_function_and_a_text(memory: Create, monkeypatch: pytest.MonkeyPatch, settled: int) -> None:
    """Also where it is left to walks to call the function."""
    monkeypatch.setattr(select, "SETTLED", settled)
    db = memory(dim=2, metric="l2", text_fields=["words"])
    db.insert(range(40), np.zeros((40, 2)), [{"words": "red" if n % 2 else "blue", "n": n} for n in range(40)])
    ranked = db.query(text="red", k=40, filter=lambda n: n < 9)
    assert sorted(ranked.keys) == [1, 3, 5, 7]
    joined = db.query(np.zeros(2), text="red", k=40, filter=lambda n: n < 9)
    assert sorted(joined.keys) == list(range(9)) and sorted(joined.keys[:4]) == [1, 3, 5, 7]
    assert db.count(F.where(lambda n: n < 9) & F.text("red")) == 4


def test_a_filter_has_two_forms() -> None:
    from corenn.filters import as_filter

    tree = F.text("red shoes") & (F("n") > 1)
    assert tree.to_dict() == {"$and": [{"$text": "red shoes"}, {"n": {"$gt": 1}}]}
    assert as_filter(tree.to_dict()) == tree
    assert repr(F.text("a")) == "F.text('a')"
    with pytest.raises(InvalidFilterError, match=r"filter\.\$or\[1\]\.\$text: 5 is no text"):
        as_filter({"$or": [{}, {"$text": 5}]})
    with pytest.raises(InvalidFilterError, match="surrogate"):
        F.text("\ud800")


@settings(max_examples=30)
@given(data=st.data())
def test_rows_that_come_and_go_are_found_as_in_a_fresh_index(data: st.DataObject) -> None:
    with CoreNN.in_memory(dim=DIM, metric="l2", text_fields=FIELDS) as db:
        model: dict[int, Any] = {}
        for _ in range(data.draw(st.integers(1, 3))):
            come_and_go(db, model, data)
            check(db, model, data.draw(queries))
        assert db.verify().ok
        db.repair()
        text = data.draw(queries)
        wanted = dict(by_tantivy(model, FIELDS, text))
        hits = db.query(text=text, k=100)
        assert {*hits.keys} == wanted.keys()
        assert np.allclose(-hits.distances, [wanted[key] for key in hits.keys], rtol=1e-5)


def come_and_go(db: CoreNN, model: dict[int, Any], data: st.DataObject) -> None:
    """Put rows in the place of others, give some other payloads, and delete some."""
    rows = data.draw(st.dictionaries(st.integers(0, 20), payloads, max_size=8))
    db.upsert(list(rows), vectors(len(rows)), list(rows.values()))
    for key in rows:
        model.pop(key, None)
    model |= rows
    changed = data.draw(st.dictionaries(st.integers(0, 20), payloads, max_size=4))
    changed = {key: payload for key, payload in changed.items() if key in model}
    db.set_payload(list(changed), list(changed.values()))
    model |= changed
    gone = data.draw(st.lists(st.integers(0, 20), max_size=4))
    db.delete(gone)
    for key in gone:
        model.pop(key, None)


def check(db: CoreNN, model: dict[int, Any], text: str) -> None:
    """A query and a filter find what a look at every payload finds."""
    wanted = {key for key, payload in model.items() if has_text(text, texts_in(payload))}
    hits = db.query(text=text, k=500)
    assert {*hits.keys} == wanted
    assert (np.diff(hits.distances) >= 0).all()
    assert {record.key for record in db.scroll(F.text(text), limit=500)[0]} == wanted
    assert db.count(~F.text(text)) == len(model) - len(wanted)


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_arguments_that_do_not_go_together_are_refused(shop: Any) -> None:
    db, _ = shop
    query = np.zeros(DIM)
    for asked, message in (
        ({"max_distance": 1.0}, "max_distance=1.0 does not go with text="),
        ({"group_by": "n"}, "group_by="),
        ({"exact": True}, "exact=True says how to search by a vector"),
        ({"plan": "scan"}, "plan='scan' says how"),
        ({"min_recall": 0.9}, "min_recall=0.9 says how"),
        ({"search_list": 50}, "search_list=50 says how"),
        ({"fusion": "weighted"}, "fusion='weighted' joins"),
        ({"fusion": "sum"}, "choose one of 'rrf', 'weighted'"),
        ({"fusion": 0.5}, "choose one of"),
        ({"text": 5}, "text=5: must be a str"),
        ({"text": ["a", None]}, "must be a str"),
        ({"text": "\udfff"}, "surrogate"),
        ({"text": "x" * 100_000}, "100,000 characters"),
        ({"vectors": query, "text": ["a"]}, "text= is a list of 1 for one query"),
        ({"vectors": [query, query], "text": ["a"]}, "list of 1 for 2 queries"),
        ({"vectors": query, "key": 1}, "one of the first two"),
        ({"filter": [None, None]}, "2 filters for one query"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            db.query(**{"text": "red", **asked})
    with pytest.raises(InvalidArgumentError, match="fusion='weighted' joins"):
        db.query(query, fusion="weighted")
    with pytest.raises(InvalidArgumentError, match="query takes"):
        db.query()


def test_without_an_index_one_is_told_how_to_have_it(create: Create) -> None:
    db = create(dim=DIM, metric="l2")
    db.insert(range(50), vectors(50), made(50))
    for ask in (
        lambda: db.query(text="red"),
        lambda: db.query(np.zeros(DIM), text="red"),
        lambda: db.query(np.zeros(DIM), filter=F.text("red")),
        lambda: db.count({"$or": [{"n": 1}, {"$text": "red"}]}),
        lambda: db.delete(filter=F.text("red")),
    ):
        with pytest.raises(InvalidArgumentError, match=r"db\.configure\(text_fields="):
            ask()
    with pytest.raises(InvalidSettingError, match="must be a list of names"):
        db.configure(text_fields="title")
    db.configure(text_fields=["title"])
    assert [*db.query(text="red", k=50).keys] == [
        key for key, _ in by_tantivy(dict(enumerate(made(50))), ["title"], "red")
    ]
    db.configure(text_fields=["body.text"])
    wanted = by_tantivy(dict(enumerate(made(50))), ["body.text"], "red")
    assert db.query(text="red", k=50).keys == [key for key, _ in wanted]
    db.configure(text_fields=[])
    with pytest.raises(InvalidArgumentError, match="text_fields"):
        db.query(text="red")
