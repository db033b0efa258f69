"""`corenn bench run` as it is typed: real systems on real vectors, what it prints, and one line for what is wrong.

Rules out a recall that the systems do not have, JSON mixed with messages, a table that hides a failure, a traceback for
a mistake of the user, and an example in the documentation that does not run.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from corenn.bench.log import faults
from corenn.cli import app
from tests.conftest import Sample

ROOT = Path(__file__).parents[2]
FAKE = "tests.bench.fake"
Invoke = Callable[..., Result]


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch) -> Invoke:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr("corenn.bench.contestant.LEAST_SECONDS", 0.0)
    return lambda *words: CliRunner().invoke(app, ["bench", "run", *map(str, words)])


@pytest.fixture
def data(sift: Sample, tmp_path: Path) -> Path:
    """2,500 rows and 100 queries in the layout of ann-benchmarks, without neighbours."""
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "sift.hdf5"
    with h5py.File(path, "w") as file:
        file.attrs["distance"] = "euclidean"
        file["train"], file["test"] = sift[0][:2500], sift[1][:100]
    return path


@pytest.mark.compiled
def test_real_systems_on_real_vectors(invoke: Invoke, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("hnswlib")
    done = invoke(
        data, "--systems", "corenn,hnswlib:M=12,ef_construction=80,corenn-disk", "--quick", "--out", tmp_path / "out",
        "--recalls", "0.99,0.95", "--no-report", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    lines = json.loads(done.stdout)
    assert lines == [json.loads(line) for line in (tmp_path / "out" / "runs.jsonl").read_text().splitlines()]
    assert not [fault for line in lines for fault in faults(line)]
    assert {line["kind"] for line in lines} == {"point", "target"}
    assert [line["target"] for line in lines if line["kind"] == "target"] == [0.95, 0.99] * 3
    for label in ("corenn", "hnswlib:M=12,ef_construction=80", "corenn-disk"):
        own = [line for line in lines if line["label"] == label]
        assert own[0]["n"] == 2_000 and own[0]["config"]["quick"] and own[0]["config"]["repetitions"] == 2
        assert max(line["recall"] for line in own if line["kind"] == "point") >= 0.99
        assert all(line["reached"] and line["qps"] >= line["qps_low"] > 0 for line in own if line["kind"] == "target")
        assert own[0]["index_bytes"] > 2_000 * 128
    disk = next(line for line in lines if line["label"] == "corenn-disk")
    assert disk["disk_bytes"] > 2_000 * 128 * 4 and disk["open_seconds"] > 0
    assert all(line["distances"] > 0 for line in lines if line["system"] == "corenn" and line["kind"] == "point")


def test_the_table_has_a_row_for_each_and_the_report_is_made(invoke: Invoke, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    done = invoke(
        data, "--systems", f"tests.bench.fake_absent,{FAKE}", "--count", 300, "--queries", 50, "--repetitions", 1,
        "--recalls", "0.4", "--out", out,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert re.search(r"tests\.bench\.fake_absent .*not installed \(start\)", done.stdout)
    assert re.search(rf"{FAKE} +{re.escape(np.__version__)} +[≥\d]", done.stdout) and "QPS @0.4" in done.stdout
    assert (out / "report.md").exists() and list(out.glob("*.svg")) and list((out / "logs").iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--systems", "nobody"], "unknown system 'nobody'"),
        (["--systems", "corenn:speed=9"], "'speed=9' is no option"),
        (["--recalls", "high"], "--recalls high: must be numbers above 0, at most 1"),
        (["--recalls", "0.5,1.5"], "--recalls 0.5,1.5: must be numbers"),
        (["--recalls", ","], "--recalls ,: must be numbers"),
        (["--python", "corenn"], "--python corenn: must be a system, =, and the path of an interpreter"),
        (["--python", "corenn=/no/such/python"], "must be a system, =, and the path of an interpreter"),
        (["--python", f"hnswlib={sys.executable}"], "hnswlib is not among the systems of this run"),
        (["--metric", "manhattan"], "choose one of l2, cosine, ip"),
        (["-k", "3000"], "k=3000: must be at most the number of rows, 2,500"),
    ],
)
def test_mistakes_are_one_line(invoke: Invoke, data: Path, tmp_path: Path, words: list[str], message: str) -> None:
    given = words if "--systems" in words else ["--systems", "corenn", *words]
    done = invoke(data, *given, "--out", tmp_path / "out")
    assert done.exit_code == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert message in line and "Traceback" not in done.output


def test_another_interpreter(invoke: Invoke, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("hnswlib")
    done = invoke(
        data, "--systems", "hnswlib", "--python", f"hnswlib={sys.executable}", "--count", 300, "--queries", 20,
        "--repetitions", 1, "--recalls", "0.5", "--out", tmp_path / "out", "--no-report", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert {line["kind"] for line in json.loads(done.stdout)} == {"point", "target"}
    assert [each.name for each in (tmp_path / "out" / "logs").iterdir()] == ["hnswlib.log"]


def test_the_example_of_a_system_of_your_own(data: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "benchmarking.md").read_text()
    found = re.search(r"### A system of your own\n.*?```python\n(.*?)```", page, re.S)
    assert found
    (tmp_path / "mypackage").mkdir()
    (tmp_path / "mypackage" / "exact.py").write_text(found[1])
    command = [
        sys.executable, "-m", "corenn", "bench", "run", str(data), "--systems", "mypackage.exact", "--quick",
        "--count", "500", "--out", "out", "--no-report", "--json",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120)
    lines: list[dict[str, Any]] = json.loads(done.stdout)
    assert [line["recall"] for line in lines if line["kind"] == "point"] == [1.0]
