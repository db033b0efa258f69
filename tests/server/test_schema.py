"""Rules out a server that answers other than its own description says, whatever it is sent."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from corenn.server.openapi import document
from tests.server.served import WRITE, Served, serving

CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance,
    response_headers_conformance, negative_data_rejection,
]  # fmt: skip
schema = schemathesis.openapi.from_dict(document())


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with a collection for each route to find."""
    with serving(tmp_path_factory.mktemp("schema") / "root", keys=True, collection="mine") as one:
        with one.client(WRITE) as client:
            made = client.create("mine", dim=1, metric="l2", text_fields=["a"])  # dim that is hit
            made.insert([1, "a"], [[1], [3]], [{"a": "0"}, None])
        yield one


QUICK = settings(max_examples=4, phases=[Phase.generate], suppress_health_check=list(HealthCheck), deadline=None)
LONG = settings(QUICK, max_examples=200)


def check(case: schemathesis.Case, served: Served) -> None:
    """Send it, mostly to a collection that exists, and hold the answer to the description."""
    if "name" in (case.path_parameters or {}) and case.method != "DELETE":
        case.path_parameters["name"] = "mine"
    case.headers = {**(case.headers or {}), "Authorization": f"Bearer {WRITE}"}
    case.call_and_validate(base_url=served.url, checks=CHECKS)


@schema.parametrize()
@QUICK
def test_answers_are_as_they_are_described(case: schemathesis.Case, served: Served) -> None:
    check(case, served)


@pytest.mark.slow
@schema.parametrize()
@LONG
def test_many_answers_are_as_they_are_described(case: schemathesis.Case, served: Served) -> None:
    check(case, served)
