"""The log.

Rules out a line that lacks a field, has one too many or one of a wrong type, NaN in JSON, a torn line that swallows the
next one, and a field that the documentation does not describe.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from corenn.bench.log import EVERY, FILE, KINDS, Log, faults

PAGE = Path(__file__).parents[2] / "docs" / "benchmarking.md"
SAMPLES: dict[Any, Any] = {str: "text", int: 3, (int, float): 1.5, bool: True, dict: {}, list: []}


def line(kind: str) -> dict[str, Any]:
    fields = {**EVERY, **KINDS[kind]}
    return {**{name.rstrip("?"): SAMPLES[types] for name, types in fields.items()}, "kind": kind}


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_is_checked(kind: str) -> None:
    whole = line(kind)
    assert faults(whole) == []
    for name in {**EVERY, **KINDS[kind]}:
        field = name.rstrip("?")
        if field == "kind":
            continue
        assert faults({key: value for key, value in whole.items() if key != field}) == [f"{field} is missing"]
        assert (faults({**whole, field: None}) == []) == name.endswith("?")
        assert faults({**whole, field: object()}) != []
    assert faults({**whole, "surplus": 1}) == ["surplus is unknown"]


def test_other_kinds_and_numbers_that_are_none() -> None:
    assert faults({}) == ["kind is None; must be one of point, target, failure"]
    point = line("point")
    assert faults({**point, "qps": math.nan}) == ["qps is nan"] and faults({**point, "qps": math.inf}) == ["qps is inf"]
    assert faults({**point, "n": 1.5}) == ["n is 1.5"] and faults({**point, "qps": True}) == ["qps is True"]


def test_lines_are_appended_and_a_torn_one_stays_alone(tmp_path: Path) -> None:
    with Log(tmp_path / "out") as log:
        log.append(line("point"))
    (path := tmp_path / "out" / FILE).write_bytes(path.read_bytes() + b'{"kind": "poi')
    with Log(tmp_path / "out") as log:
        log.append({**line("failure"), "message": "ö"})
        with pytest.raises(ValueError, match="qps is missing"):
            log.append({key: value for key, value in line("point").items() if key != "qps"})
        with pytest.raises(ValueError, match="JSON"):
            log.append({**line("point"), "params": {"alpha": math.nan}})
    first, torn, last = path.read_text().splitlines()
    assert json.loads(first) == line("point") and torn == '{"kind": "poi'
    assert json.loads(last)["message"] == "ö"


def test_the_documentation_describes_every_field_and_no_other() -> None:
    page = PAGE.read_text()
    for heading, fields in (("every line", EVERY), *((f"{kind}s", KINDS[kind]) for kind in KINDS)):
        part = page.partition(f"### Fields of {heading}\n")[2].partition("\n##")[0]
        cells = [row.split("|")[1] for row in part.splitlines() if row.startswith("| `")]
        described = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
        assert described == {name.rstrip("?") for name in fields}, heading
