"""The page on data sets: rules out examples that do not run, and endings or fields that it leaves out."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from typer.testing import CliRunner

from corenn.cli import app
from corenn.datasets import ENDINGS
from corenn.datasets.manifest import Manifest

PAGE = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text()


def test_examples_run_in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("h5py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CORENN_DATASETS", raising=False)
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.S | re.M)
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    said = [comment.partition(":")[0] for comment in re.findall(r"print.*  # (.*)", code)]
    assert done.stdout.splitlines() == said
    lines = re.findall(r"^    \$ corenn (.*)$", PAGE, re.M)
    assert len(lines) > 5
    for line in lines:
        result = CliRunner().invoke(app, shlex.split(line))
        assert result.exit_code == 0, f"{line}: {result.output}"


def test_every_ending_and_every_field_is_described() -> None:
    for ending in ENDINGS:
        assert f"`{ending}`" in PAGE, ending
    for field in fields(Manifest):
        assert re.search(rf"^\| .*`{field.name}`.* \|", PAGE, re.M), field.name
