"""Rules out a server that does work twice or not at all, takes on too much, or tells other than what is so."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from corenn import (
    AsyncClient,
    Client,
    CollectionNotFoundError,
    DeadlineError,
    DuplicateKeyError,
    InvalidArgumentError,
    LimitError,
    MissingExtraError,
    OverloadedError,
    Root,
    ServerError,
)
from corenn.deadline import deadline
from corenn.server.log import JSONLines
from corenn.server.openapi import document, document_text
from corenn.wire import BINARY, MSGPACK
from tests.crash.harness import environment
from tests.server.raw import request
from tests.server.served import SECONDS, Served, serving
from tests.test_docs import ROOT, table, text

ROWS = np.random.default_rng(3).normal(size=(40, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with a collection `some`."""
    with serving(tmp_path_factory.mktemp("one") / "root", collection="legacy") as one:
        with one.client() as client:
            client.create("some", dim=4, metric="l2").insert(range(40), ROWS, [{"n": n} for n in range(40)])
            client.create("legacy", dim=4, metric="l2")
        yield one


@contextmanager
def held(served: Served, name: str = "some") -> Iterator[None]:
    """While the writer of a collection is kept busy."""
    from corenn.writer import Task

    database = served.application.service.shelf.open[name].database
    writer, begun, go = database._writer, threading.Event(), threading.Event()
    assert writer is not None
    writer.schedule(Task(lambda: begun.set() or go.wait(SECONDS)))
    assert begun.wait(SECONDS)
    try:
        yield
    finally:
        go.set()


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
def test_a_map_says_where_any_vector_lies(tmp_path: Path, metric: str) -> None:
    with serving(tmp_path / "root") as served, served.client() as client:
        made = client.create("some", dim=4, metric=metric)
        made.insert(range(40), ROWS, [{"n": n} for n in range(40)])
        found = ask(served, "map", {"size": 15, "filter": {"n": {"$lt": 30}}}).body
        assert (found["rows"], len(found["points"]), found["unit"]) == (30, 15, metric == "cosine")
        assert 0 < sum(found["shares"]) <= 1
        for point in found["points"]:
            vector = ROWS[point["key"]].astype(np.float64)
            vector /= np.linalg.norm(vector) if found["unit"] else 1
            place = np.array(found["axes"]) @ (vector - found["origin"])
            np.testing.assert_allclose(place, (point["x"], point["y"]), atol=1e-5)
            assert point["payload"] == {"n": point["key"]}
        nothing = ask(served, "map", {"filter": {"n": -1}}).body
        assert (nothing["points"], nothing["rows"]) == ([], 0)


def ask(served: Served, operation: str, body: Any, name: str = "some", **more: str) -> Any:
    return request(served.port, "POST", f"/v1/collections/{name}/{operation}", body, **more)


def test_without_the_extra_for_texts_a_server_says_so(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """And serves all else."""
    with served.client() as client:
        worded = client.create("worded", dim=4, metric="l2", text_fields=["title"])
        worded.insert(["a"], ROWS[:1], [{"title": "red shoes"}])
        monkeypatch.setitem(sys.modules, "tantivy", None)
        for body in (
            {"text": "red"},
            {"vector": [0, 0, 0, 0], "text": "red"},
            {"vector": [0, 0, 0, 0], "filter": {"$text": "red"}},
        ):
            answer = ask(served, "query", body, "worded")
            assert (answer.status, answer.body["error"]["code"]) == (501, "MissingExtraError")
        with pytest.raises(MissingExtraError, match=r"pip install 'corenn\[text\]'"):
            client.create("other", dim=4, text_fields=["title"])
        assert worded.query(ROWS[0], k=1).keys == ["a"]
        client.drop("worded")


# --- once, and in time ------------------------------------------------------------------------------------------------


def test_a_write_that_is_sent_again_is_not_done_again(served: Served) -> None:
    body = {"keys": ["once"], "vectors": [[1, 2, 3, 4]]}
    first = ask(served, "insert", body, Idempotency_Key="k1")
    again = ask(served, "insert", body, Idempotency_Key="k1")
    assert (first.status, again.status, again.body) == (200, 200, first.body)
    assert ask(served, "insert", body, Idempotency_Key="k2").body["error"]["code"] == "DuplicateKeyError"
    assert ask(served, "insert", body, Idempotency_Key="k2").status == 409  # a failure is not kept
    other = ask(served, "insert", {**body, "keys": ["other"]}, Idempotency_Key="k1")
    assert (other.status, other.body["error"]["code"]) == (409, "IdempotencyKeyError")
    assert ask(served, "delete", {"keys": ["once"]}, Idempotency_Key="k1").body == {"deleted": 1}  # another route


def test_a_write_that_is_sent_again_while_it_is_done_waits_for_it(served: Served) -> None:
    body = {"keys": ["twice"], "vectors": [[1, 2, 3, 4]]}
    answers: list[Any] = []
    with held(served):
        threads = [
            threading.Thread(target=lambda: answers.append(ask(served, "insert", body, Idempotency_Key="k3")))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        until(lambda: served.application._guard.inside == 3)
    for thread in threads:
        thread.join()
    assert [answer.status for answer in answers] == [200] * 3
    ask(served, "delete", {"keys": ["twice"]})


def until(condition: Any) -> None:
    """Wait for a condition."""
    while not condition():
        time.sleep(0.002)


def test_a_search_gives_up_after_its_deadline(served: Served) -> None:
    for body in ({"vector": [1, 2, 3, 4]}, {"vectors": [[1, 2, 3, 4]] * 3}, {"key": 3, "exact": True}):
        answer = ask(served, "query", body, Corenn_Timeout="0.0000001")
        assert (answer.status, answer.body["error"]["code"]) == (504, "DeadlineError")
    with Root(served.application.service.path.parent / "mine") as root:
        db = root.create("x", dim=4, metric="l2", text_fields=["words"])
        db.insert(range(40), ROWS)
        for late in ({"vectors": ROWS, "exact": True}, {"text": "red"}, {"text": ["red", "blue"]}):
            with deadline(time.monotonic() - 1), pytest.raises(DeadlineError):
                db.query(**late)
        assert len(db.query(ROWS, exact=True)) == 40


def test_a_write_is_not_waited_for_longer_than_asked(served: Served) -> None:
    with held(served):
        body = {"keys": ["late"], "vectors": [[1, 2, 3, 4]]}
        for key in ({"Idempotency_Key": "late"}, {"Idempotency_Key": "late"}, {}):
            answer = ask(served, "insert", body, Corenn_Timeout="0.05", **key)
            assert (answer.status, answer.body["error"]["code"]) == (504, "DeadlineError")
            assert "may yet be" in answer.body["error"]["message"]
    until(lambda: ask(served, "count", {"filter": {"$keys": ["late"]}}).body == {"count": 1})
    assert ask(served, "insert", body, Idempotency_Key="late").status == 200  # what was done meanwhile
    ask(served, "delete", {"keys": ["late"]})


# --- as much as it takes on -------------------------------------------------------------------------------------------


def test_too_many_writes_are_refused_until_there_is_room(tmp_path: Path) -> None:
    with serving(tmp_path / "root", limits={"writes": 2}) as served, served.client() as client:
        some = client.create("some", dim=4, metric="l2")
        entry = served.application.service.shelf.open["some"]
        with held(served):
            threads = [threading.Thread(target=some.insert, args=([n], ROWS[:1])) for n in range(2)]
            for thread in threads:
                thread.start()
            until(lambda: entry.writes == 2)
            answer = ask(served, "insert", {"keys": [9], "vectors": [[1, 2, 3, 4]]})
            assert (answer.status, answer.headers["retry-after"]) == (429, "1")
            with pytest.raises(OverloadedError, match="try again"):
                some.insert([9], ROWS[:1])
            assert len(some.query(ROWS[0])) == 0  # reads go on
        for thread in threads:
            thread.join()
        assert len(some) == 2


def test_too_many_requests_are_refused(tmp_path: Path) -> None:
    with serving(tmp_path / "root", limits={"requests": 1}) as served, served.client() as client:
        some = client.create("some", dim=4)
        with held(served):
            thread = threading.Thread(target=some.insert, args=([1], ROWS[:1]))
            thread.start()
            until(lambda: served.application._guard.inside == 1)
            answer = ask(served, "count", {})
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            assert request(served.port, "GET", "/healthz").status == 200  # who looks after it still sees it alive
        thread.join()


def test_too_many_bodies_are_refused(tmp_path: Path) -> None:
    with serving(tmp_path / "root", limits={"bodies": 1000}) as served, served.client() as client:
        some = client.create("some", dim=4)
        with held(served):
            thread = threading.Thread(target=some.insert, args=([1], ROWS[:1]))
            thread.start()
            until(lambda: served.application.service.shelf.open["some"].writes == 1)
            assert ask(served, "count", b" " * 990 + b"{}").status == 503
            assert ask(served, "count", {}).status == 200
        thread.join()


def test_the_collection_unused_for_longest_is_closed_for_another(tmp_path: Path) -> None:
    with serving(tmp_path / "root", limits={"open_collections": 2}) as served, served.client() as client:
        for name in ("a", "b", "c"):
            client.create(name, dim=4).insert([1], ROWS[:1])
        shelf = served.application.service.shelf
        assert sorted(shelf.open) == ["b", "c"]
        assert len(client["a"]) == 1
        assert sorted(shelf.open) == ["a", "c"]
        with held(served, "a"), held(served, "c"):
            threads = [threading.Thread(target=client[name].insert, args=([2], ROWS[:1])) for name in ("a", "c")]
            for thread in threads:
                thread.start()
            until(lambda: all(each.users for each in shelf.open.values()))
            with pytest.raises(OverloadedError, match="open and in use"):
                client["b"].count()
        for thread in threads:
            thread.join()
        assert [len(client[name]) for name in ("a", "b", "c")] == [2, 1, 2]


def test_what_is_under_way_is_finished_at_the_end(tmp_path: Path) -> None:
    answers: list[Any] = []
    with serving(tmp_path / "root") as served, served.client() as client:
        some = client.create("some", dim=4, metric="l2")
        with held(served):
            body = {"keys": ["last"], "vectors": [[1, 2, 3, 4]]}
            thread = threading.Thread(target=lambda: answers.append(ask(served, "insert", body)))
            thread.start()
            until(lambda: served.application._guard.inside == 1)
            served.application.service.closing = True
            with pytest.raises(OverloadedError, match="shutting down"):
                some.count()
            assert request(served.port, "GET", "/readyz").status == 503
        thread.join()
    assert answers[0].status == 200
    with Root(tmp_path / "root", mode="r") as root:
        assert "last" in root["some"]


@contextmanager
def searching(served: Served) -> Iterator[None]:
    """While all threads that search are kept busy."""
    service, go = served.application.service, threading.Event()
    for _ in range(service._threads):
        service._searchers.submit(go.wait, SECONDS)
    try:
        yield
    finally:
        go.set()


def test_queries_by_text_that_wait_together_are_not_mixed_up(tmp_path: Path) -> None:
    asked: list[tuple[Any, dict[str, Any]]] = [
        (vectors, {"k": 5, "text": text, "filter": filter, "fusion": "weighted" if text == "blue" else "rrf"})
        for n, text in enumerate((None, "red", "blue", ["red"], ["red", "blue"], "red"))
        for vectors in (ROWS[n], ROWS[n + 1], ROWS[n : n + 2], None)
        for filter in (None, {"$text": "blue"})
        if text is not None or vectors is not None
    ]
    with serving(tmp_path / "root") as served, served.client() as client:
        some = client.create("some", dim=4, metric="l2", text_fields=["words"])
        words = ("red", "blue", "red blue", "blue red", "green")
        some.insert(range(40), ROWS, [{"words": words[n % 5]} for n in range(40)])

        def told(collection: Any, vectors: Any, more: dict[str, Any]) -> Any:
            try:
                return collection.query(vectors, **more)
            except InvalidArgumentError as error:
                return str(error)

        def batches() -> float:
            return sample(served, "corenn_query_batch_size_count")

        alone = [told(some, *each) for each in asked]
        answered = batches()
        service = served.application.service
        with ThreadPoolExecutor(len(asked)) as pool:
            with searching(served):
                answers = [pool.submit(told, some, *each) for each in asked]
                # What came in one moment is searched together: how many wait by then hangs on that.
                until(lambda: len(service.shelf.open["some"].batches) >= len(asked) // 4)
            assert [answer.result() for answer in answers] == alone
        assert batches() - answered < answered  # some were answered together


# --- what it tells ----------------------------------------------------------------------------------------------------


def test_the_document_is_current_and_complete() -> None:
    assert text("docs/openapi.json") == document_text(), "run: python -m corenn.server.openapi docs/openapi.json"
    described = {
        f"{method.upper()} {path}" for path, methods in document()["paths"].items() for method in methods
    }  # fmt: skip
    assert described == set(table(text("docs/server.md"))) & described
    assert {row for row in table(text("docs/server.md")) if row.startswith(("GET ", "POST ", "DELETE "))} == described


def test_limits_and_figures_are_described(served: Served) -> None:
    from corenn.server import LIMITS

    page = table(text("docs/server.md"))
    for name, meta in LIMITS.items():
        assert page[name] == [str(meta["default"]), meta["meaning"].rstrip(".")]
    names = {family.name for family in figures(served) if family.name.startswith("corenn_")}
    counters = {"corenn_requests", "corenn_compaction_rows"}
    assert names - counters | {f"{name}_total" for name in counters} == {
        name for name in page if name.startswith("corenn_")
    }


def figures(served: Served) -> list[Any]:
    answer = request(served.port, "GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    return [
        each for each in text_string_to_metric_families(answer.body.decode()) if not each.name.endswith("_created")
    ]  # fmt: skip


def sample(served: Served, name: str, **labels: str) -> float:
    return sum(
        each.value for family in figures(served) for each in family.samples
        if each.name == name and labels.items() <= each.labels.items()
    )  # fmt: skip


def test_figures_follow_what_is_done(served: Served) -> None:
    def told() -> dict[str, float]:
        return {
            "asked": sample(served, "corenn_requests_total", endpoint="/v1/collections/{name}/query", status="200"),
            "refused": sample(served, "corenn_requests_total", endpoint="/v1/collections/{name}/query", status="400"),
            "queries": sample(served, "corenn_query_distance_computations_count"),
            "distances": sample(served, "corenn_query_distance_computations_sum"),
            "writes": sample(served, "corenn_write_duration_seconds_count", operation="upsert"),
            "rows": sample(served, "corenn_collection_rows", collection="some"),
        }

    before = told()
    found = ask(served, "query", {"vectors": [[1, 2, 3, 4]] * 3, "explain": True}).body["results"]
    ask(served, "query", {"vector": [1, 2, 3]})
    ask(served, "upsert", {"keys": ["a", "b"], "vectors": [[1, 2, 3, 4]] * 2})
    after = told()
    assert {name: after[name] - before[name] for name in after} == {
        "asked": 1, "refused": 1, "queries": 3, "writes": 1, "rows": 2,
        "distances": sum(each["explain"]["distances"] for each in found),
    }  # fmt: skip
    ask(served, "delete", {"keys": ["a", "b"]})
    ask(served, "recall", {"k": 5, "samples": 10})
    assert sample(served, "corenn_recall_estimate", collection="some") == 1.0


def test_commits_syncs_and_compactions_are_timed(tmp_path: Path) -> None:
    with serving(tmp_path / "root") as served, served.client() as client:

        def told(collection: str) -> dict[str, float]:
            names = [f"corenn_{work}_duration_seconds_count" for work in ("commit", "fsync", "compaction")]
            names += ["corenn_compaction_rows_total", "corenn_collections", "corenn_collection_rows"]
            return {name: sample(served, name, collection=collection) for name in names}

        for name, durability in (("fast", "os"), ("safe", "sync")):
            some = client.create(name, dim=4, metric="l2", durability=durability)
            before = told(name)
            some.insert(range(40), ROWS)
            some.delete(range(30))
            after = told(name)
            assert after["corenn_commit_duration_seconds_count"] == before["corenn_commit_duration_seconds_count"] + 2
            synced = after["corenn_fsync_duration_seconds_count"] - before["corenn_fsync_duration_seconds_count"]
            assert synced == (0 if name == "fast" else 4)  # vectors, seals and the log; the log again
            assert after["corenn_compaction_duration_seconds_count"] == 0
            some.compact()
            compacted = told(name)
            assert compacted["corenn_compaction_duration_seconds_count"] == 1
            assert (compacted["corenn_compaction_rows_total"], compacted["corenn_collection_rows"]) == (30, 10)
            stats = some.stats()
            assert (stats.commits.count, stats.compactions.count, stats.compacted_rows) == (2, 1, 30)
            assert 0 < stats.commits.seconds < SECONDS
        assert sample(served, "corenn_collections") == 2
        for name in ("commit", "fsync", "compaction"):  # buckets grow up to all there are
            (family,) = [each for each in figures(served) if each.name == f"corenn_{name}_duration_seconds"]
            buckets = [each.value for each in family.samples if each.labels == {**each.labels, "collection": "safe"}
                       and each.name.endswith("_bucket")]  # fmt: skip
            assert buckets == sorted(buckets)
            assert buckets[-1] == sample(served, f"corenn_{name}_duration_seconds_count", collection="safe") > 0


def test_recall_is_measured_in_the_background_where_that_is_asked_for(tmp_path: Path) -> None:
    with serving(tmp_path / "root", measure_recall=0.05) as served, served.client() as client:
        client.create("some", dim=4, metric="l2").insert(range(40), ROWS)
        until = time.monotonic() + SECONDS
        while not sample(served, "corenn_recall_estimate", collection="some"):
            assert time.monotonic() < until
            time.sleep(0.05)
        assert sample(served, "corenn_recall_estimate", collection="some") == 1.0


def test_dashboard_and_alerts_ask_for_what_a_server_tells(served: Served) -> None:
    told = {each.name for family in figures(served) for each in family.samples}
    told |= {family.name for family in figures(served)}  # such as have no series yet
    told |= {f"{name}_{end}" for name in told for end in ("total", "bucket", "sum", "count")}
    for name in ("grafana.json", "alerts.yml"):
        asked = set(re.findall(r"\b(?:corenn|process)_\w+", (ROOT / "deploy" / name).read_text()))
        assert len(asked) > 5
        assert asked <= told | {"process_resident_memory_bytes"}  # of Linux alone


def test_unknown_paths_make_no_series_of_their_own(served: Served) -> None:
    before = len(request(served.port, "GET", "/metrics").body.splitlines())
    for n in range(50):
        request(served.port, "GET", f"/nothing/{n}")
        request(served.port, f"METHOD{n}", "/healthz")
    assert len(request(served.port, "GET", "/metrics").body.splitlines()) < before + 60


def test_slow_queries_and_faults_are_logged_with_their_request(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from corenn import CoreNN

    with serving(tmp_path / "root", slow_query=0.0) as served, served.client() as client:
        some = client.create("some", dim=4, metric="l2")
        some.insert([1], ROWS[:1], [{"secret": "hidden"}])
        with caplog.at_level(logging.INFO, "corenn.server"):
            ask(served, "query", {"key": 1}, X_Request_Id="slow-1")
            monkeypatch.setattr(CoreNN, "count", lambda *_: 1 // 0)
            answer = ask(served, "count", {}, X_Request_Id="fault-1")
    assert (answer.status, answer.body["error"]["code"]) == (500, "ServerError")
    assert "division" not in answer.body["error"]["message"]
    lines = [json.loads(JSONLines().format(record)) for record in caplog.records if hasattr(record, "request")]
    slow = next(line for line in lines if line["request"] == "slow-1")
    assert (slow["message"], slow["plan"], slow["k"], slow["status"]) == ("slow query", "exact", 10, 200)
    fault = next(line for line in lines if line["request"] == "fault-1" and "ZeroDivisionError" in line["error"])
    assert fault["level"] == "error"
    assert "hidden" not in json.dumps(lines)


def test_requests_are_spans_where_that_is_set_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with serving(tmp_path / "root") as served:  # not set up
        request(served.port, "GET", "/v1/collections")
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    with serving(tmp_path / "root") as served, served.client() as client:
        client.create("some", dim=4).insert([1], ROWS[:1])
        exporter.clear()
        parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        ask(served, "query", {"key": 1}, traceparent=parent)
        ask(served, "query", {"vector": [1]})
    found, refused = exporter.get_finished_spans()
    assert (found.name, found.kind.name) == ("POST /v1/collections/{name}/query", "SERVER")
    assert f"{found.context.trace_id:x}" == "af7651916cd43dd8448eb211c80319c"
    told = {"http.response.status_code": 200, "db.collection.name": "some", "db.operation.name": "query"}
    assert told.items() <= dict(found.attributes or {}).items()
    assert (found.attributes or {})["corenn.query.plan"] == "exact"
    assert (refused.attributes or {})["error.type"] == "DimensionError"


# --- forms and clients ------------------------------------------------------------------------------------------------


def test_messagepack_is_the_same(served: Served) -> None:
    body = msgspec.msgpack.encode({"vector": ROWS[3].tolist(), "k": 2, "with_payloads": True})
    answer = ask(served, "query", body, form=MSGPACK, Accept=MSGPACK)
    found = msgspec.msgpack.decode(answer.body)
    plain = ask(served, "query", {"vector": ROWS[3].tolist(), "k": 2, "with_payloads": True})
    assert (answer.headers["content-type"], found) == (MSGPACK, plain.body)
    assert ask(served, "query", b"\xc1", form=MSGPACK).status == 400


@pytest.mark.parametrize("dtype", ["f64", "f32", "f16", "u8"])
def test_rows_of_any_type_are_read(served: Served, dtype: str) -> None:
    rows = np.array([[1, 2, 3, 4], [4, 3, 2, 1]]).astype({"f64": "<f8", "f32": "<f4", "f16": "<f2", "u8": "u1"}[dtype])
    head = b'{"k": 3}'
    headers = {"Corenn_Dtype": dtype, "Corenn_Shape": "2,4", "Corenn_Head": str(len(head))}
    answer = ask(served, "query", head + rows.tobytes(), form=BINARY, **headers)
    assert answer.body == ask(served, "query", {"vectors": rows.tolist(), "k": 3}).body


def test_the_earlier_system_is_answered(served: Served) -> None:
    body = {"vectors": [{"key": "a", "vector": [1, 0, 0, 0]}, {"key": "b", "vector": [0, 2, 0, 0]}]}
    assert request(served.port, "POST", "/insert", body).status == 200
    assert request(served.port, "POST", "/insert", body).status == 200
    found = request(served.port, "POST", "/query", {"vector": [1, 0, 0, 0], "k": 5})
    assert found.body == {"results": [["a", 0.0], ["b", 5.0]]}
    assert request(served.port, "GET", "/healthz").body["status"] == "alive"


def test_large_inserts_and_scrolls_go_in_parts(served: Served) -> None:
    with served.client() as client:
        many = client.create("many", dim=4, metric="l2")
        rows = np.random.default_rng(1).normal(size=(250, 4))
        many.insert_all(range(250), rows, [{"n": n} for n in range(250)], batch=100)
        assert [record.payload["n"] for record in many.scroll_all(page=60)] == list(range(250))
        assert list(many.keys()) == list(many) == list(range(250))
        with pytest.raises(DuplicateKeyError):
            many.insert_all(range(249, 400), rows[:151], batch=100)
        assert len(many) == 250
        client.drop("many")
        with pytest.raises(CollectionNotFoundError):
            many.count()
        assert "many" not in client
        assert list(client) == ["legacy", "some"]


def test_the_client_of_asyncio_does_the_same(served: Served) -> None:
    async def everything() -> None:
        async with AsyncClient(served.url, retries=0, timeout=SECONDS) as client:
            made = await client.create("async", dim=4, metric="l2", text_fields=["word"])
            await made.insert_all(range(40), ROWS, [{"word": f"w{n}"} for n in range(40)], batch=15)
            together = await asyncio.gather(*(made.query(ROWS[n], k=1) for n in range(40)))
            assert [hits.keys for hits in together] == [[n] for n in range(40)]
            assert (await made.query(text="w7 w3")).keys == [3, 7]  # as good as each other
            told = await made.query(ROWS[:2], 1, text=["w4", "w1"], fusion="weighted", explain=True)
            assert [hits.explain.terms for hits in told] == [("w4",), ("w1",)]
            assert [record.key async for record in made.scroll_all(page=7)] == list(range(40))
            assert (await made.contains(3), await made.count(), (await made.stats()).rows) == (True, 40, 40)
            assert (await made.settings()).metric == "l2"
            assert await client.has("async")
            await client.drop("async")
            assert not await client.has("async")
            assert await client.list() == ["legacy", "some"]

    asyncio.run(everything())


def test_a_client_repeats_what_a_busy_server_refuses(served: Served) -> None:
    service = served.application.service
    with Client(served.url, retries=5) as client:
        service.closing = True
        timer = threading.Timer(0.2, setattr, (service, "closing", False))
        timer.start()
        assert client["some"].count() == 40
        timer.join()


def test_a_client_loads_no_compiler_and_no_engine() -> None:
    code = (
        "import sys; from corenn import Client, F; from corenn.client import calls; Client('http://localhost'); "
        "calls.query('some', None, {'text': 'red', 'filter': [F('n') > 1, F.text('red')]}); "
        "print([name for name in ('numba', 'rocksdict', 'tantivy', 'granian') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    assert done.stdout.strip() == "[]"


def test_a_server_that_is_none_is_told_apart(tmp_path: Path) -> None:
    with Client("http://127.0.0.1:9", retries=1) as client, pytest.raises(ServerError, match="corenn serve"):
        client.list()
    for url in ("127.0.0.1:4224", "ftp://x", 7):
        with pytest.raises(InvalidArgumentError):
            Client(url)  # type: ignore[arg-type]
    for wrong in ({"retries": -1}, {"timeout": 0}, {"timeout": "soon"}):
        with pytest.raises(InvalidArgumentError):
            Client("http://localhost", **wrong)  # type: ignore[arg-type]


def test_snapshots_are_taken_and_opened(served: Served) -> None:
    with served.client() as client:
        copied = client["some"].snapshot("copy")
        assert (copied.path, copied.rows) == ("copy", 40)
        client["some"].compact()
    with Root(served.application.service.path / ".snapshots" / "some", mode="r") as snapshots:
        assert len(snapshots["copy"]) == 40


def test_limits_reach_the_client(tmp_path: Path) -> None:
    with serving(tmp_path / "root", limits={"k": 5}) as served, served.client() as client:
        some = client.create("some", dim=4)
        with pytest.raises(LimitError, match="limit k"):
            some.query(ROWS[0], k=6)
