"""The process of a system.

Rules out a crash, hang, exit or error that ends the run or is taken for an answer, output of a library that is taken
for one, and processes that are left behind.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corenn.bench.process import Fault, Process

Begin = Callable[..., Process]
ROOT = Path(__file__).parents[2]
FAKE = "tests.bench.fake"


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Begin]:
    """Start a fake with the given options; all are killed at the end."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    np.save(tmp_path / "base.npy", np.eye(60, 4, dtype=np.float32))
    np.save(tmp_path / "queries.npy", np.eye(50, 4, dtype=np.float32))
    begun: list[Process] = []

    def start(system: str = FAKE, python: Path | None = None, **options: Any) -> Process:
        begun.append(Process(tmp_path / "log", 2, {"OF_THE_SYSTEM": "1"}, python))
        begun[-1].ask(
            "start", 60, system=system, options=options, folder=str(tmp_path), threads=1,
            base=str(tmp_path / "base.npy"), queries=str(tmp_path / "queries.npy"),
        )  # fmt: skip
        return begun[-1]

    yield start
    for process in begun:
        process.kill()


def build(process: Process, seconds: float = 60) -> Any:
    return process.ask("build", seconds, metric="l2", threads=1)


def query(process: Process, tmp_path: Path) -> Any:
    return process.ask(
        "query", 60, params={"share": 1.0}, k=10, count=50, least=0, out=str(tmp_path / "ids.npy")
    )  # fmt: skip


def alive(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not alive(pid)


def test_answers(begin: Begin, tmp_path: Path) -> None:
    process = begin()
    built = build(process)
    assert built["seconds"] > 0 and built["peak"] > 0
    took = query(process, tmp_path)
    ids = np.load(tmp_path / "ids.npy")
    assert took["seconds"] > 0 and ids.shape == (50, 10) and ids.dtype == np.int64 and ids[0, 0] == 0
    assert "talks below Python" in (tmp_path / "log").read_text()
    assert process.ask("sizes", 60)["memory_parts"] == {"rows": 60 * 4 * 4}
    process.close()


@pytest.mark.parametrize(
    ("fault", "reason", "message"),
    [
        ("raise", "failed", "RuntimeError: it is broken"),
        ("abort", "crashed", "killed by SIGABRT"),
        ("exit", "crashed", "exited with code 3: last words"),
    ],
)
def test_falling_over(begin: Begin, fault: str, reason: str, message: str) -> None:
    process = begin(fault=fault, stage="build")
    with pytest.raises(Fault) as raised:
        build(process)
    found = raised.value
    assert (found.stage, found.reason, found.message) == ("build", reason, message)
    if fault != "raise":
        with pytest.raises(Fault, match=message):  # a process that is gone says so again
            build(process)


def test_hanging_ends_at_the_limit_with_all_that_it_started(begin: Begin, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    process = begin(fault="hang", stage="build", trace=str(trace), child=1)
    with pytest.raises(Fault, match="no answer within 2 seconds") as raised:
        build(process, 2)
    assert raised.value.reason == "hung"
    own, _, child = trace.read_text().splitlines()[0].split()
    assert gone(int(own)) and gone(int(child))


@pytest.mark.parametrize(
    ("fault", "message"),
    [("shape", r"ids of shape \(3, 3\)"), ("range", "there are 60 rows"), ("type", "type float64; needs")],
)
def test_wrong_answers(begin: Begin, tmp_path: Path, fault: str, message: str) -> None:
    process = begin(fault=fault)
    build(process)
    with pytest.raises(Fault, match=message) as raised:
        query(process, tmp_path)
    assert raised.value.reason == "wrong"


def test_a_package_that_is_not_installed(begin: Begin) -> None:
    with pytest.raises(Fault, match="no_such_package_anywhere") as raised:
        begin("tests.bench.fake_absent")
    assert (raised.value.stage, raised.value.reason) == ("start", "not installed")


def test_another_interpreter_borrows_this_package(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    process = begin("sqlite-vec" if _has("sqlite_vec") else "corenn", Path(sys.executable))
    assert process.ask("grid", 60, k=10)
    lent = tmp_path / "lent"
    assert [each.name for each in lent.iterdir()] == ["corenn"]


def _has(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None


@pytest.mark.skipif(sys.platform != "linux", reason="cores are kept to on Linux only")
def test_searches_keep_to_their_cores(begin: Begin, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    process = begin(trace=str(trace))
    process.ask("build", 60, metric="l2", threads=len(os.sched_getaffinity(0)))
    process.ask("confine", 60, threads=1)
    query(process, tmp_path)
    built, asked = (line.split() for line in trace.read_text().splitlines())
    assert int(built[-1]) == len(os.sched_getaffinity(0)) and built[-2] == "2"
    assert int(asked[-1]) == 1
