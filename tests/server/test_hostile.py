"""Rules out a server that can be broken, read or stopped by what somebody sends.

One class for each kind of incident, or unsafe default, that other systems had: paths, archives, rights, loading of
code, filters, fetching, exposure, and too much of anything.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corenn import InvalidArgumentError, LimitError
from corenn.server import Keys, Limits, Options
from corenn.server.keys import ANYBODY, read_keys
from corenn.server.routes import ROUTES, Reach
from corenn.server.run import Address, check
from tests.server.raw import request, send
from tests.server.served import READ, SCOPED, WRITE, Served, serving

ONE = {"keys": [1], "vectors": [[1.0, 2.0, 3.0]]}
LIMITS = {
    "body": 100_000, "k": 50, "hits": 199, "rows": 30, "search_list": 60, "batch_rows": 20, "batch_queries": 5,
    "dim": 16, "filter_depth": 4, "filter_bytes": 500, "text_bytes": 100, "payload_bytes": 300, "collections": 6,
    "samples": 20, "answer_vectors": 200,
}  # fmt: skip


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with keys and low limits, and collections `mine` and `other`."""
    with serving(tmp_path_factory.mktemp("guarded") / "root", keys=True, limits=LIMITS, collection="mine") as served:
        with served.client(WRITE) as client:
            for name in ("mine", "other"):
                made = client.create(name, dim=3, metric="l2", text_fields=["owner"])
                made.insert([1], [[1, 2, 3]], [{"owner": name}])
        yield served


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server without keys."""
    with serving(tmp_path_factory.mktemp("free") / "root") as served:
        with served.client() as client:
            client.create("mine", dim=3, metric="l2").insert([1], [[1, 2, 3]])
        yield served


def ask(served: Served, operation: str, body: Any, key: str = WRITE, name: str = "mine", **more: str) -> Any:
    return request(served.port, "POST", f"/v1/collections/{name}/{operation}", body, key=key, **more)


def code(answer: Any) -> tuple[int, str]:
    return answer.status, answer.body["error"]["code"]


class TestPaths:
    """Names written so that they lead out of a folder (CVE-2024-3584, CVE-2024-2221, CVE-2024-3078)."""

    NAMES = (
        "..",
        "../x",
        "..%2fx",
        "%2e%2e%2fx",
        "a/../b",
        "/etc/passwd",
        "a\\b",
        ".hidden",
        "a\0b",
        "con",
        "",
        "x" * 129,
    )

    @pytest.mark.parametrize("name", NAMES)
    def test_no_collection_is_made_or_read_outside(self, guarded: Served, name: str) -> None:
        root = guarded.application.service.path
        before = sorted(path.name for path in root.parent.iterdir())
        made = request(guarded.port, "POST", "/v1/collections", {"name": name, "dim": 3}, key=WRITE)
        assert made.status == 400
        quoted = name.replace("\0", "%00").replace("\\", "%5c")
        assert request(guarded.port, "GET", f"/v1/collections/{quoted or '%20'}", key=WRITE).status in (400, 404)
        assert request(guarded.port, "DELETE", f"/v1/collections/{quoted or '%20'}", key=WRITE).status in (400, 404)
        assert sorted(path.name for path in root.parent.iterdir()) == before

    @pytest.mark.parametrize("name", NAMES)
    def test_no_snapshot_is_written_outside(self, guarded: Served, name: str) -> None:
        root = guarded.application.service.path
        before = sorted(path.name for path in root.parent.iterdir())
        assert ask(guarded, "snapshot", {"name": name}).status == 400
        assert sorted(path.name for path in root.parent.iterdir()) == before

    def test_snapshots_lie_below_the_root(self, guarded: Served) -> None:
        root = guarded.application.service.path
        assert ask(guarded, "snapshot", {"name": "daily"}).body["path"] == "daily"
        assert (root / ".snapshots" / "mine" / "daily" / "vectors.slab").exists()
        listed = request(guarded.port, "GET", "/v1/collections", key=WRITE).body["collections"]
        assert listed == ["mine", "other"]

    def test_where_it_lies_is_not_told(self, guarded: Served) -> None:
        answer = request(guarded.port, "GET", "/v1/collections/mine", key=WRITE)
        assert str(guarded.application.service.path) not in json.dumps(answer.body)


class TestLinks:
    """Links that lead out of a folder (CVE-2024-3829, GO-2025-4237): there are no archives to be sent at all."""

    def test_links_are_not_followed(self, guarded: Served, tmp_path: Path) -> None:
        root = guarded.application.service.path
        (tmp_path / "elsewhere").mkdir()
        (root / "linked").symlink_to(root / "mine")
        (root / ".snapshots").mkdir(exist_ok=True)
        (root / ".snapshots" / "other").symlink_to(tmp_path / "elsewhere")
        assert code(request(guarded.port, "GET", "/v1/collections/linked", key=WRITE)) == (
            404,
            "CollectionNotFoundError",
        )
        assert ask(guarded, "snapshot", {"name": "daily"}, name="other").status == 400
        assert not list((tmp_path / "elsewhere").iterdir())
        (root / "linked").unlink()
        (root / ".snapshots" / "other").unlink()

    def test_nothing_takes_an_archive(self) -> None:
        assert not [route for route in ROUTES if {"restore", "upload", "recover"} & set(route.path.split("/"))]


BODIES = {"create": {"name": "new", "dim": 3}, "snapshot": {"name": "x"}, "facets": {"field": "x"}}


class TestRights:
    """Ways around a check (CVE-2025-64513 by a header, CVE-2026-26190 by a second port)."""

    @pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
    def test_every_route_but_two_asks_for_a_key(self, guarded: Served, route: Any) -> None:
        path = route.path.replace("{name}", "mine")
        for headers in (
            {}, {"Authorization": "Bearer wrong-key-0123456789"}, {"Authorization": f"Bearer {WRITE} "[:-3]},
            {"Authorization": f"Basic {WRITE}"}, {"Authorization": f"Token {WRITE}"}, {"X_Api_Key": WRITE},
            {"X_Forwarded_For": "127.0.0.1"}, {"X_Original_Url": "/healthz"}, {"Authorization": "Bearer "},
            {"Authorization": "x" * 5000},
        ):  # fmt: skip
            answer = request(guarded.port, route.method, path, {} if route.takes else None, **headers)
            if route.reach is Reach.OPEN:
                assert answer.status == 200
            else:
                assert code(answer) == (401, "AccessError"), headers
                assert "Basic" in answer.headers["www-authenticate"]

    @pytest.mark.parametrize("route", [each for each in ROUTES if each.writes], ids=lambda route: route.name)
    def test_a_key_for_reading_changes_nothing(self, guarded: Served, route: Any) -> None:
        path = route.path.replace("{name}", "mine")
        body = None if route.takes is None else BODIES.get(route.name, {})
        assert code(request(guarded.port, route.method, path, body, key=READ)) == (403, "AccessError")

    @pytest.mark.parametrize(
        "route",
        [each for each in ROUTES if "{name}" in each.path or each.reach is Reach.SERVER],
        ids=lambda each: each.name,
    )
    def test_a_key_of_one_collection_opens_no_other(self, guarded: Served, route: Any) -> None:
        path = route.path.replace("{name}", "other")
        body = None if route.takes is None else BODIES.get(route.name, {})
        assert code(request(guarded.port, route.method, path, body, key=SCOPED)) == (403, "AccessError")

    def test_a_key_of_one_collection_sees_no_other(self, guarded: Served) -> None:
        assert request(guarded.port, "GET", "/v1/collections", key=SCOPED).body == {"collections": ["mine"]}
        assert ask(guarded, "count", {}, SCOPED).body == {"count": 1}
        made = request(guarded.port, "POST", "/v1/collections", {"name": "third", "dim": 3}, key=SCOPED)
        assert code(made) == (403, "AccessError")

    def test_the_key_may_be_a_password(self, guarded: Served) -> None:
        import base64

        basic = base64.b64encode(f"anybody:{READ}".encode()).decode()
        assert request(guarded.port, "GET", "/v1/collections", Authorization=f"Basic {basic}").status == 200

    def test_an_answer_belongs_to_the_key_that_asked(self, guarded: Served) -> None:
        same = {"Idempotency_Key": "same-for-both"}
        assert ask(guarded, "delete", {"keys": ["none"]}, WRITE, **same).status == 200
        assert code(ask(guarded, "delete", {"keys": ["none"]}, READ, **same)) == (403, "AccessError")

    def test_nobody_is_told_what_there_is_before_the_check(self, guarded: Served) -> None:
        for path in ("/", "/v1", "/nothing", "/v1/collections/none", "/metrics/", "//metrics", "/docs", "/debug"):
            assert request(guarded.port, "GET", path).status == 401
            assert request(guarded.port, "GET", path, key=WRITE).status in (400, 404)


class TestCode:
    """Code that comes with data (CVE-2026-45829, PYSEC-2024-323): nothing is loaded, unpickled or evaluated."""

    @pytest.mark.parametrize("setting", ["trust_remote_code", "module", "embedding_function", "path", "__class__"])
    def test_settings_name_no_code(self, guarded: Served, setting: str) -> None:
        body = {"name": "code", "dim": 3, "settings": {setting: "os.system"}}
        assert code(request(guarded.port, "POST", "/v1/collections", body, key=WRITE)) == (400, "InvalidSettingError")

    def test_pickles_are_no_form(self, guarded: Served) -> None:
        answer = ask(guarded, "insert", b"\x80\x04cos\nsystem\n", form="application/octet-stream")
        assert code(answer) == (415, "InvalidArgumentError")
        rows = b"\x80\x04cos\nsystem\n."
        headers = {"Corenn_Dtype": "O", "Corenn_Shape": "1,3"}
        assert ask(guarded, "insert", rows, form="application/vnd.corenn.rows", **headers).status == 400


class TestFilters:
    """Filters put together of texts (CVE-2026-54019): there is no language to break out of, and no field is a key."""

    @pytest.mark.parametrize(
        "filter",
        [
            'owner == "x" or true',
            {"owner": {"$where": "1"}},
            {"$expr": "1"},
            {"owner": {"$regex": "(a+)+$"}},
            [1],
            {"a": {}},
        ],
    )
    def test_what_is_no_filter_is_refused(self, guarded: Served, filter: Any) -> None:
        assert ask(guarded, "count", {"filter": filter}).status == 400
        assert ask(guarded, "delete", {"filter": filter}).status == 400
        assert ask(guarded, "query", {"vector": [1, 2, 3], "filter": filter}).status == 400

    def test_values_are_values(self, guarded: Served) -> None:
        for value in ('" or 1=1 --', "mine' || 'a", "$ne", "%"):
            assert ask(guarded, "count", {"filter": {"owner": value}}).body == {"count": 0}

    @pytest.mark.parametrize(
        "text",
        ['"', '"""', "owner:mine", "+mine -mine", "mine OR *", "/.*/", "[a TO z]", "text0:mine", "mine~9^9", "\0"],
    )
    def test_texts_are_words(self, guarded: Served, text: str) -> None:
        found = ask(guarded, "query", {"text": text}).body["results"][0]["keys"]
        assert found == ([1] if "mine" in text else [])
        assert ask(guarded, "count", {"filter": {"$text": text}}).body == {"count": len(found)}

    @pytest.mark.parametrize(
        "body",
        [
            b'{"text": 1}', b'{"text": [1]}', b'{"text": [["x"]]}', b'{"text": null}', b'{"text": ["x", null]}',
            b'{"text": "\\ud800"}', b'{"text": {"$text": "x"}}', b'{"text": "x", "text": "y"}', b'{"fusion": "rrf"}',
            b'{"text": "x", "fusion": "sum"}', b'{"text": "x", "fusion": null}',
            b'{"text": ["x"], "vector": [1, 2, 3]}',            b'{"text": ["x", "y"], "vectors": [[1, 2, 3]]}',
            b'{"text": "x", "vector": [1, 2, 3], "key": 1}',
            b'{"text": "x", "max_distance": 1}', b'{"text": "x", "group_by": "owner"}', b'{"text": "x", "exact": true}',
        ],
    )  # fmt: skip
    def test_texts_are_read_strictly(self, guarded: Served, body: bytes) -> None:
        assert ask(guarded, "query", body).status == 400


class TestFetching:
    """Servers that fetch what a URL names: none does here."""

    def test_no_body_has_a_field_for_a_url_or_a_path(self) -> None:
        fields = {name for route in ROUTES if route.takes for name in route.takes.__struct_fields__}
        assert not {name for name in fields if "url" in name or "path" in name or "location" in name}

    def test_fields_that_are_not_known_are_refused(self, guarded: Served) -> None:
        assert ask(guarded, "snapshot", {"name": "x", "url": "http://169.254.169.254/"}).status == 400


class TestExposure:
    """Servers open to the network as they come."""

    def test_another_address_needs_keys(self) -> None:
        for host in ("0.0.0.0", "::", "192.168.0.1", "example.org"):
            with pytest.raises(InvalidArgumentError, match="--insecure"):
                check(Address(host=host), Options(), insecure=False)
            check(Address(host=host), Options(), insecure=True)
            check(Address(host=host), Options(keys=Keys([(WRITE, ANYBODY)])), insecure=False)
        for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
            check(Address(host=host), Options(), insecure=False)

    def test_a_page_from_elsewhere_reaches_nothing(self, free: Served) -> None:
        for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "", "[::2]"):
            assert code(request(free.port, "GET", "/v1/collections", Host=host)) == (403, "AccessError")
        for host in ("localhost", f"127.0.0.1:{free.port}", "[::1]:4224"):
            assert request(free.port, "GET", "/v1/collections", Host=host).status == 200

    def test_what_a_form_can_send_changes_nothing(self, free: Served) -> None:
        for form in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
            answer = ask(free, "delete", json.dumps({"filter": {}}).encode(), form=form)
            assert code(answer) == (415, "InvalidArgumentError")
        assert ask(free, "count", {}).body == {"count": 1}
        answer = request(free.port, "OPTIONS", "/v1/collections/mine/delete", Origin="http://evil.example")
        assert not [name for name in answer.headers if name.startswith("access-control")]

    def test_keys_that_are_weak_are_refused(self, tmp_path: Path) -> None:
        for key in ("short", "x" * 15, "with space in the middle", "ünïcödé-0123456789"):
            with pytest.raises(InvalidArgumentError):
                Keys([(key, ANYBODY)])
        with pytest.raises(InvalidArgumentError, match="twice"):
            Keys([(WRITE, ANYBODY), (WRITE, ANYBODY)])
        empty = tmp_path / "keys.txt"
        empty.write_text("# nothing\n\n")
        with pytest.raises(InvalidArgumentError, match="no key"):
            read_keys(empty, writes=True)
        empty.write_text(f"{WRITE} mine other # comment\n{READ}\n")
        (first, holder), (second, all_of_it) = read_keys(empty, writes=False)
        assert (first, holder.collections, second, all_of_it.collections) == (WRITE, {"mine", "other"}, READ, None)


class TestTooMuch:
    """Too much of anything: each limit is on, and names itself."""

    @pytest.mark.parametrize(
        ("operation", "body", "limit"),
        [
            ("query", {"vector": [1, 2, 3], "k": 51}, "k"),
            ("query", {"vector": [1, 2, 3], "search_list": 61}, "search_list"),
            ("query", {"vectors": [[1, 2, 3]] * 6}, "batch_queries"),
            ("query", {"vector": [1, 2, 3], "filter": {"a": {"$in": ["x" * 100] * 6}}}, "filter_bytes"),
            ("count", {"filter": {"$not": {"$not": {"$not": {"$not": {"a": 1}}}}}}, "filter_depth"),
            ("insert", {"keys": list(range(21)), "vectors": [[1, 2, 3]] * 21}, "batch_rows"),
            ("insert", {**ONE, "payloads": [{"x": "y" * 300}]}, "payload_bytes"),
            ("set_payload", {"keys": [1], "payloads": [{"x": "y" * 300}]}, "payload_bytes"),
            ("query", {"vectors": [[1, 2, 3]] * 4, "k": 50}, "hits"),
            ("query", {"vector": [1, 2, 3], "k": 31, "with_payloads": True}, "rows"),
            ("query", {"vector": [1, 2, 3], "text": "x" * 101}, "text_bytes"),
            ("query", {"text": "é" * 51}, "text_bytes"),
            ("query", {"text": ["x", "x" * 101]}, "text_bytes"),
            ("query", {"text": ["x"] * 6}, "batch_queries"),
            ("query", {"text": ["x"] * 4, "k": 50}, "hits"),
            ("query", {"text": ["x"] * 4, "k": 10, "with_payloads": True}, "rows"),
            ("query", {"vector": [1, 2, 3], "filter": {"$text": "x" * 101}}, "text_bytes"),
            ("query", {"text": ["x"], "filter": [{"$not": {"$text": "x" * 101}}]}, "text_bytes"),
            ("count", {"filter": {"$or": [{"$text": "x" * 60}, {"$text": "x" * 60}]}}, "text_bytes"),
            ("delete", {"filter": {"$text": "x" * 101}}, "text_bytes"),
            ("scroll", {"limit": 1, "filter": {"$text": "x" * 101}}, "text_bytes"),
            ("facets", {"field": "owner", "filter": {"$text": "x" * 101}}, "text_bytes"),
            ("get", {"keys": list(range(31))}, "rows"),
            ("get", {"keys": list(range(20))}, "answer_vectors"),
            ("delete", {"keys": list(range(21))}, "batch_rows"),
            ("scroll", {"limit": 31}, "rows"),
            ("scroll", {"limit": 30}, "answer_vectors"),
            ("sample", {"size": 31}, "rows"),
            ("map", {"size": 31}, "rows"),
            ("map", {"size": 30}, "answer_vectors"),
            ("recall", {"samples": 21}, "samples"),
            ("recall", {"k": 51}, "k"),
        ],
    )
    def test_limits_are_on(self, guarded: Served, operation: str, body: Any, limit: str) -> None:
        answer = ask(guarded, operation, body)
        assert code(answer) == (400, "LimitError")
        assert f"limit {limit}" in answer.body["error"]["message"]

    def test_collections_are_limited(self, guarded: Served) -> None:
        def make(name: str, dim: int = 3) -> Any:
            return request(guarded.port, "POST", "/v1/collections", {"name": name, "dim": dim}, key=WRITE)

        assert code(make("wide", 17)) == (400, "LimitError")
        made = [make(f"made-{n}").status for n in range(5)]
        assert made == [200] * 4 + [400]
        for n in range(4):
            request(guarded.port, "DELETE", f"/v1/collections/made-{n}", key=WRITE)

    def test_a_body_that_is_too_long_is_refused_and_the_answer_is_seen(self, guarded: Served) -> None:
        assert code(ask(guarded, "insert", b" " * 100_001)) == (413, "LimitError")
        head = (
            f"POST /v1/collections/mine/insert HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {WRITE}\r\n"
            "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        ).encode()
        chunk = b"2710\r\n" + b" " * 10_000 + b"\r\n"
        answer = send(guarded.port, head + chunk * 15 + b"0\r\n\r\n")
        assert answer is not None
        assert code(answer) == (413, "LimitError")

    def test_a_body_that_does_not_come_is_not_waited_for(self, tmp_path: Path) -> None:
        head = (
            b"POST /v1/collections/mine/insert HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        )
        with serving(tmp_path / "root", limits={"body_seconds": 0.2}) as impatient:
            answer = send(impatient.port, head)
        assert answer is not None
        assert code(answer) == (504, "DeadlineError")

    def test_limits_that_do_not_exist_are_refused(self) -> None:
        assert Limits.of({"body": "1MB", "k": "7", "deadline": "1.5"}) == Limits(body=10**6, k=7, deadline=1.5)
        for wrong in ({"nothing": "1"}, {"k": "many"}, {"k": "-1"}, {"body": "0"}, {"deadline": "nan"}):
            with pytest.raises(InvalidArgumentError):
                Limits.of(wrong)
        with pytest.raises(LimitError, match=r"k is 11; this server takes 10"):
            Limits(k=10).within("k", 11, "k")


class TestMalformed:
    """Bodies that are not what they are said to be."""

    @pytest.mark.parametrize(
        "body",
        [
            b"", b"null", b"[]", b"1", b'"x"', b"{", b'{"keys": [1], "vectors": [[1, 2, NaN]]}', b"\xff\xfe",
            b'{"keys": [1], "vectors": [[1, 2, Infinity]]}', b'{"keys": [1], "vectors": [[1, 2, 1e999]]}',
            b'{"keys": [9], "keys": [8], "vectors": [[1, 2, 3]]}', b"[" * 90_000, b'{"keys":' + b'{"a":' * 10_000,
            b'{"keys": [9], "vectors": [[1, 2, 3]], "payloads": [{"a": 1, "a": 2}]}',
            b'{"keys": [9], "vectors": [[1, 2, 3]], "payloads": [{"a": [{"b": 1, "b": 2}]}]}',
            b'{"keys": [9], "vectors": [[1, 2, 3]], "payloads": [{"\\u0061": 1, "a": 2}]}',
            b'{"keys": [true], "vectors": [[1, 2, 3]]}', b'{"keys": [1.5], "vectors": [[1, 2, 3]]}',
            b'{"keys": [9], "vectors": [["1", 2, 3]]}', b'{"keys": [9], "vectors": [[[1], 2, 3]]}',
            b'{"keys": [9], "vectors": [[1, 2], [3]]}', b'{"keys": [9], "vectors": [[1, 2, 3]], "extra": 1}',
            b'{"keys": [99999999999999999999], "vectors": [[1, 2, 3]]}', b'{"keys": 9, "vectors": [[1, 2, 3]]}',
        ],
    )  # fmt: skip
    def test_json_is_read_strictly(self, guarded: Served, body: bytes) -> None:
        assert ask(guarded, "insert", body).status == 400
        assert ask(guarded, "count", {}).body == {"count": 1}

    @pytest.mark.parametrize(
        ("headers", "size"),
        [
            ({}, 12),
            ({"Corenn_Dtype": "f32"}, 12),
            ({"Corenn_Dtype": "float32", "Corenn_Shape": "1,3"}, 12),
            *(({"Corenn_Dtype": "f32", "Corenn_Shape": shape}, 12) for shape in (
                "-1,-3", "4294967296,4294967296", "9999999999,65536", "1,1,3", "", "١,3", "1, 3", "2,3", "0", "1,1",
            )),
            *(({"Corenn_Dtype": "f32", "Corenn_Shape": "1,3", "Corenn_Head": head}, 12) for head in (
                "99", "-1", "1", "",
            )),
            ({"Corenn_Dtype": "f32", "Corenn_Shape": "1,3", "Corenn_Head": "12"}, 24),
        ],
    )  # fmt: skip
    def test_rows_are_as_long_as_they_are_said_to_be(self, guarded: Served, headers: dict[str, str], size: int) -> None:
        answer = ask(guarded, "query", b"\x01" * size, form="application/vnd.corenn.rows", **headers)
        assert code(answer) == (400, "InvalidArgumentError")

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("dtype", ["f64", "f32", "f16"])
    def test_rows_that_are_not_finite_are_refused(self, guarded: Served, value: float, dtype: str) -> None:
        rows = np.array([1, 2, value]).astype({"f64": "<f8", "f32": "<f4", "f16": "<f2"}[dtype])
        headers = {"Corenn_Dtype": dtype, "Corenn_Shape": "3"}
        answer = ask(guarded, "query", rows.tobytes(), form="application/vnd.corenn.rows", **headers)
        assert code(answer) == (400, "InvalidVectorError")

    @pytest.mark.parametrize(
        "data",
        [
            b"", b"\0" * 100, b"GET", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
            b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 5000 + b"\r\n",
            b"POST /query HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /x",
        ],
    )  # fmt: skip
    def test_what_is_no_request_harms_nothing(self, guarded: Served, data: bytes) -> None:
        with socket.create_connection(("127.0.0.1", guarded.port), timeout=60) as connection:
            connection.sendall(data)
        assert request(guarded.port, "GET", "/readyz").status == 200

    @pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon", "1e400", "9" * 500])
    def test_times_that_are_none_are_refused(self, guarded: Served, value: str) -> None:
        assert code(ask(guarded, "count", {}, Corenn_Timeout=value)) == (400, "InvalidArgumentError")

    def test_messages_do_not_grow_with_what_was_sent(self, guarded: Served) -> None:
        answer = ask(guarded, "query", {"vector": [1, 2, 3], "plan": "x" * 50_000})
        assert len(answer.body["error"]["message"]) <= 1000

    def test_request_ids_come_back_if_they_are_harmless(self, guarded: Served) -> None:
        assert ask(guarded, "count", {}, X_Request_Id="abc-1").headers["x-request-id"] == "abc-1"
        assert ask(guarded, "count", {}, X_Request_Id="a b; c").headers["x-request-id"] != "a b; c"


def test_many_malformed_requests_are_answered(guarded: Served) -> None:
    """None of them becomes a fault of ours."""
    rng = np.random.default_rng(5)
    good = json.dumps(
        {"vector": [1.0, 2.0, 3.0], "k": 2, "filter": {"owner": {"$in": ["mine", None]}}, "text": 'my "mine"'}
    ).encode()
    seen = set()
    for _ in range(300):
        body = bytearray(good)
        for _ in range(rng.integers(1, 4)):
            body[rng.integers(len(body))] = rng.integers(256)
        seen.add(ask(guarded, "query", bytes(body)).status)
    assert seen <= {200, 400}
    assert 400 in seen
