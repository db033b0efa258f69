"""Rules out a dashboard, an alert or a unit that names what the server does not have."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
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


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
def test_systemd_has_nothing_to_say_about_the_unit(tmp_path: Path) -> None:
    """But that no CoreNN is installed where it would be."""
    unit = tmp_path / "corenn.service"
    unit.write_text((DEPLOY / "corenn.service").read_text().replace("/opt/corenn/bin/corenn", sys.executable))
    done = subprocess.run(["systemd-analyze", "--man=no", "verify", unit], capture_output=True, text=True, check=False)
    assert (done.stdout + done.stderr, done.returncode) == ("", 0)


def instructions() -> list[tuple[str, str]]:
    """The instructions of the container file, comments left out."""
    lines = [line for line in (DEPLOY / "Containerfile").read_text().splitlines() if line and line[0] != "#"]
    assert not any(line.endswith("\\") for line in lines)
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines)]


def test_the_image_is_made_of_what_there_is() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    steps = instructions()
    assert {name for name, _ in steps} <= {
        "FROM", "COPY", "RUN", "USER", "ENV", "VOLUME", "EXPOSE", "HEALTHCHECK", "STOPSIGNAL", "ENTRYPOINT",
    }  # fmt: skip
    copied = [rest.split()[:-1] for name, rest in steps if name == "COPY" and "--from" not in rest]
    for source in [each for sources in copied for each in sources]:
        assert (ROOT / source).exists()
    assert {project["readme"], "pyproject.toml", "src"} <= {each for sources in copied for each in sources}
    (extras,) = re.findall(r"\[([\w,]+)\]", "\n".join(rest for name, rest in steps if name == "RUN"))
    assert set(extras.split(",")) <= project["optional-dependencies"].keys()
    ((_, entry),) = [step for step in steps if step[0] == "ENTRYPOINT"]
    assert json.loads(entry)[1] == "serve"
    ((_, health),) = [step for step in steps if step[0] == "HEALTHCHECK"]
    program = json.loads(health.partition("CMD ")[2])
    compile(program[2], "HEALTHCHECK", "exec")
    port = str(next(each.default for each in COMMANDS["serve"].params if each.name == "port"))
    assert f":{port}/readyz" in program[2]
    assert ("EXPOSE", port) in steps
    assert steps.index(("USER", "corenn")) < steps.index(("ENTRYPOINT", entry))


def test_every_file_is_described() -> None:
    described = {
        name.removeprefix("deploy/") for name in table(text("docs/operations.md")) if name.startswith("deploy/")
    }
    assert described == {path.name for path in Path(DEPLOY).iterdir()}
