"""Rules out a server that answers other than its own description says, whatever it is sent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from corenn.server.openapi import document
from tests.server.served import WRITE, Served, serving

OPERATIONS = [(path, method) for path, methods in document()["paths"].items() for method in methods]
QUICK = settings(max_examples=4, phases=[Phase.generate], suppress_health_check=list(HealthCheck), deadline=None)
LONG = settings(QUICK, max_examples=200)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with a collection for each route to find."""
    with serving(tmp_path_factory.mktemp("schema") / "root", keys=True, collection="mine") as one:
        with one.client(WRITE) as client:
            made = client.create("mine", dim=1, metric="l2", text_fields=["a"])  # dim that is hit
            made.insert([1, "a"], [[1], [3]], [{"a": "0"}, None])
        yield one


@pytest.fixture(scope="module")
def schema() -> Any:
    """The description, as schemathesis reads it, whose import takes a second of every process."""
    import schemathesis

    return schemathesis.openapi.from_dict(document())


def check(operation: Any, served: Served, how: settings) -> None:
    """Send what fits and what does not, mostly to a collection that exists; hold answers to the description."""
    from schemathesis.checks import not_a_server_error
    from schemathesis.generation import GenerationMode
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        negative_data_rejection,
        response_headers_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = [
        not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance,
        response_headers_conformance, negative_data_rejection,
    ]  # fmt: skip

    @how
    @given(case=operation.as_strategy(GenerationMode.POSITIVE) | operation.as_strategy(GenerationMode.NEGATIVE))
    def answered(case: Any) -> None:
        if "name" in (case.path_parameters or {}) and case.method != "DELETE":
            case.path_parameters["name"] = "mine"
        case.headers = {**(case.headers or {}), "Authorization": f"Bearer {WRITE}"}
        case.call_and_validate(base_url=served.url, checks=checks)

    answered()


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_answers_are_as_they_are_described(schema: Any, served: Served, path: str, method: str) -> None:
    check(schema[path][method], served, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_many_answers_are_as_they_are_described(schema: Any, served: Served, path: str, method: str) -> None:
    check(schema[path][method], served, LONG)
