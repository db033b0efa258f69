"""Rules out a profile whose shares are not those of the flame graph, or that fails where it cannot look."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from corenn import CoreNN
from corenn.bench import profile as profiling
from corenn.bench.profile import KERNELS, Frame, frames_of, read_counters
from corenn.cli import app

BOX = (
    "<g><title>{name} ({samples} samples, {share:.2f}%)</title>"
    '<rect x="0%" y="{y}" width="1%" height="15" fg:x="{x}" fg:w="{samples}"/></g>'
)


def flame(tmp_path: Path, boxes: list[tuple[str, int, int, int]]) -> Path:
    """A graph of (name, x, samples, level), as py-spy draws it."""
    drawn = "".join(
        BOX.format(name=name, x=x, samples=samples, share=samples / 10, y=36 + 16 * level)
        for name, x, samples, level in boxes
    )
    file = tmp_path / "flame.svg"
    file.write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:fg="http://github.com/jonhoo/inferno">'
        f'<rect x="0" y="0"/><g><title>no frame</title></g>{drawn}</svg>'
    )
    return file


def test_a_lines_own_samples_are_those_that_nothing_it_called_covers(tmp_path: Path) -> None:
    file = flame(
        tmp_path,
        [
            ("all", 0, 1000, 0),
            ("run (a.py:1)", 0, 900, 1),
            ("inner (a.py:5)", 100, 600, 2),
            ("inner (a.py:5)", 800, 50, 2),
            ("Clock.timed.&lt;locals&gt;.run (w.py:9)", 100, 400, 3),
            ("Condition.wait (threading.py:327)", 900, 100, 1),
        ],
    )
    found = {frame.name: frame for frame in frames_of(file)}
    assert found["run (a.py:1)"] == Frame("run (a.py:1)", 250, 900)
    assert found["inner (a.py:5)"] == Frame("inner (a.py:5)", 250, 650)
    assert found[KERNELS].own == 400
    assert "Condition.wait (threading.py:327)" not in found
    assert frames_of(file)[0].name == KERNELS


def test_counters_are_read_where_there_are_any() -> None:
    said = "123456;;cycles;100;;\n<not supported>;;cache-misses;0;100;;\nnonsense\n77;;dTLB-load-misses;1;;\n"
    assert read_counters(said) == {"cycles": 123456, "dTLB-load-misses": 77}
    assert read_counters("<not supported>;;cycles;0;100;;\n") is None
    assert read_counters("") is None


@pytest.fixture
def database(tmp_path: Path) -> Path:
    with CoreNN.create(tmp_path / "db", dim=16, metric="l2") as db:
        db.insert(range(1500), np.random.default_rng(0).normal(size=(1500, 16)))
    return tmp_path / "db"


def run(*arguments: Any) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert done.exit_code == 0, done.output
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


@pytest.mark.compiled
def test_a_profile_of_queries(database: Path, tmp_path: Path) -> None:
    found = run("profile", "query", database, "--seconds", 1, "--out", tmp_path / "out")
    assert found["operations"] > 100
    assert 0 < found["stages"]["search"] < found["seconds"]
    assert found["distances"] > found["hops"] > 0
    if shutil.which("py-spy", path=str(Path(sys.executable).parent)):
        assert Path(found["flame"]).read_text().startswith("<?xml")
        assert any("database.py" in line["line"] for line in found["lines"])
        assert sum(line["own"] for line in found["lines"]) <= found["samples"]


@pytest.mark.compiled
def test_a_profile_of_inserts_without_a_sampler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(3000, 8)).astype(np.float32))
    monkeypatch.setattr(profiling.shutil, "which", lambda name: str(tmp_path / "absent"))
    found = run("profile", "insert", tmp_path / "rows.npy", "--start", 1000, "--batch", 100, "--seconds", 1,
                "--out", tmp_path / "out")  # fmt: skip
    assert found["rows"] == 1000 + found["operations"] <= 3000
    assert {"commit", "search and prune", "reverse edges"} <= set(found["stages"])
    assert found["flame"] is None
    assert any("py-spy" in note for note in found["notes"])


@pytest.mark.compiled
@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
def test_a_sampler_that_does_not_end_is_told_of(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck = tmp_path / "py-spy"
    stuck.write_text("#!/bin/sh\nexec sleep 600\n")
    stuck.chmod(0o755)
    monkeypatch.setattr(profiling.shutil, "which", lambda name: str(stuck))
    monkeypatch.setattr(profiling, "SPIN_UP_SECONDS", 0.1)
    found = run("profile", "query", database, "--seconds", 1, "--out", tmp_path / "out")
    assert found["flame"] is None and found["operations"] > 0
    assert any("does not end" in note for note in found["notes"])


def test_what_cannot_be_profiled_is_one_line(database: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "few.npy", np.ones((5, 16), np.float32))
    for arguments in (
        ("query", tmp_path / "nowhere"),
        ("insert", tmp_path / "few.npy"),
        ("query", database, "--queries", tmp_path / "nothing.npy"),
    ):
        done = CliRunner().invoke(app, ["profile", *map(str, arguments)])
        assert done.exit_code == 1
        assert done.stderr.count("error:") == 1
