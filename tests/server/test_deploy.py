"""Rules out a dashboard, an alert or a unit that names what the server does not have."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from tests.test_docs import COMMANDS, ROOT, table, text

DEPLOY = ROOT / "deploy"
FIGURES = {name for name in table(text("docs/server.md")) if name.startswith("corenn_")}


def figures(expressions: str) -> set[str]:
    """The figures of ours that expressions name."""
    named = re.findall(r"\bcorenn_\w+", expressions)
    return {name if name in FIGURES else re.sub(r"_(bucket|sum|count)$", "", name) for name in named}


def test_the_dashboard_shows_what_there_is() -> None:
    panels = json.loads((DEPLOY / "grafana.json").read_text())["panels"]
    shown = figures("\n".join(target["expr"] for panel in panels for target in panel["targets"]))
    assert shown <= FIGURES
    assert len(shown) > 15


def test_alerts_watch_what_there_is_and_are_explained() -> None:
    (group,) = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]
    assert figures("\n".join(rule["expr"] for rule in group["rules"])) <= FIGURES
    explained = table(text("docs/operations.md"))
    assert {rule["alert"] for rule in group["rules"]} == {name for name in explained if name.startswith("CoreNN")}


@pytest.mark.parametrize("name", ["Containerfile", "corenn.service"])
def test_commands_have_options_that_exist(name: str) -> None:
    known = {flag for each in COMMANDS["serve"].params for flag in each.opts}
    (command,) = [line for line in (DEPLOY / name).read_text().splitlines() if "serve" in line and line[0] == "E"]
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", command)) <= known


def test_every_file_is_described() -> None:
    described = {
        name.removeprefix("deploy/") for name in table(text("docs/operations.md")) if name.startswith("deploy/")
    }
    assert described == {path.name for path in Path(DEPLOY).iterdir()}
