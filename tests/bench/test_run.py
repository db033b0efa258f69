"""A whole run, on systems that behave and on systems that do not.

Rules out a system that falls over and takes the run or its own earlier figures with it, turns in another order than
told, searches on more cores or with more queries than told, speeds at a recall that do not follow from the points, a
log that Ctrl-C empties, and processes that are left behind.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corenn.bench.contestant import Plan, Point, summary, worth_timing
from corenn.bench.log import faults
from corenn.bench.machine import commit, machine, versions
from corenn.bench.run import reach, run
from corenn.bench.spec import parse_systems
from corenn.bench.subject import locate
from tests.bench.test_process import gone

ROOT = Path(__file__).parents[2]
FAKE = "tests.bench.fake"
Line = dict[str, Any]
Race = Callable[..., list[Line]]


@pytest.fixture
def data(tmp_path: Path, rng: np.random.Generator) -> list[str]:
    """200 rows and 60 queries of 8 dimensions: the arguments that name them."""
    np.save(tmp_path / "rows.npy", rng.normal(size=(200, 8)).astype(np.float32))
    np.save(tmp_path / "asked.npy", rng.normal(size=(60, 8)))
    return [str(tmp_path / "rows.npy"), "--query-file", str(tmp_path / "asked.npy"), "--metric", "l2"]


@pytest.fixture
def race(data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Race:
    """Run systems in turns, without repeating a repetition until it has lasted long enough; the lines."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr("corenn.bench.contestant.LEAST_SECONDS", 0.0)

    def go(*systems: str, recalls: tuple[float, ...] = (0.55, 0.9), **changes: Any) -> list[Line]:
        plan: dict[str, Any] = {
            "k": 10, "threads": 1, "build_threads": 1, "recalls": recalls, "repetitions": 2, "build_timeout": 20.0,
            "query_timeout": 20.0, "point_seconds": 5.0,
        }  # fmt: skip
        source = locate(data[0], queries=Path(data[2]), metric="l2")
        return run(
            parse_systems(systems), Plan(**{**plan, **changes}), source, tmp_path / "out", count=None, queries=50,
            config={}, scratch=tmp_path, tell=lambda _: None,
        )  # fmt: skip

    return go


def of(lines: list[Line], kind: str, label: str | None = None) -> list[Line]:
    return [line for line in lines if line["kind"] == kind and label in (None, line["label"])]


def test_lines_of_a_system_that_behaves(race: Race, tmp_path: Path) -> None:
    lines = race(FAKE)
    assert lines == [json.loads(line) for line in (tmp_path / "out" / "runs.jsonl").read_text().splitlines()]
    assert not [fault for line in lines for fault in faults(line)]
    points, targets = of(lines, "point"), of(lines, "target")
    assert len(lines) == len(points) + len(targets) and len(targets) == 2
    for line in lines:
        assert (line["system"], line["label"], line["version"]) == (FAKE, FAKE, np.__version__)
        assert (line["n"], line["dim"], line["k"], line["threads"], line["build_threads"]) == (200, 8, 10, 1, 1)
        assert line["commit"] == commit() and line["versions"] == versions() and line["run"] == lines[0]["run"]
        assert line["machine"]["cpu"] == machine()["cpu"] and line["machine"]["cores"] >= 1
        assert line["dataset"] == {
            "name": "rows.npy", "rows": 200, "dim": 8, "metric": "l2", "sha256": None, "queries": 60,
            "bytes": (tmp_path / "rows.npy").stat().st_size, "truth": "computed",
        }  # fmt: skip
        assert line["index_bytes"] == 200 * 8 * 4 and line["memory_parts"] == {"rows": 6400}
        assert line["disk_bytes"] is None and line["open_seconds"] is None and line["notes"] == ["not real"]
        assert line["rss"]["peak"] >= line["rss"]["start"] > 0 and line["errors"] == []
        assert line["build_rows_per_second"] == pytest.approx(200 / line["build_seconds"])
        assert line["params"] == {**line["build_params"], **line["query_params"]}
    for line in points:
        assert abs(line["recall"] - line["params"]["share"]) < 0.12  # it finds what lies in its share of the rows
        assert line["recall"] <= line["recall_1_at_k"] + 0.2 and line["recall_1"] <= line["recall_1_at_k"]
        assert len(line["qps_runs"]) == 2 and line["qps"] == max(line["qps_runs"]) and line["queries"] == 50
        assert line["qps_spread"] == pytest.approx(1 - min(line["qps_runs"]) / line["qps"])
        assert line["distances"] == line["params"]["share"] * 200 and line["hops"] is None
        latency = line["latency_ms"]
        assert 0 < latency["p50"] <= latency["p90"] <= latency["p95"] <= latency["p99"] <= latency["max"]
        assert latency["count"] == 50
    assert [line["recall"] for line in points] == sorted(line["recall"] for line in points)


def test_turns(race: Race, tmp_path: Path) -> None:
    """The trace of all calls: builds one after the other, then for every repetition the systems in turn."""
    trace = tmp_path / "trace"
    labels = [f"{FAKE}:trace={trace}", f"tests.bench.fake_disk:trace={trace}", f"{FAKE}:trace={trace},child=0"]
    lines = race(*labels, repetitions=3)
    assert not of(lines, "failure")
    notes = [line.split() for line in trace.read_text().splitlines()]
    whole = [words for words in notes if words[1] == "build" or words[3] == "50"]  # no single queries
    assert [words[1] for words in whole[:3]] == ["build"] * 3
    if sys.platform == "linux":
        assert {words[-1] for words in whole[3:]} == {"1"}
    searchers = list(dict.fromkeys(words[0] for words in whole[3:]))
    points = [[str(line["query_params"]["share"]) for line in of(lines, "point", label)] for label in labels]
    expected = [
        (searcher, shares[step])
        for _ in range(3)
        for step in range(max(map(len, points)))
        for searcher, shares in zip(searchers, points, strict=True)
        if step < len(shares)
    ]

    assert [(words[0], words[2]) for words in whole][-len(expected) :] == expected
    disk = of(lines, "point", labels[1])[0]
    assert disk["open_seconds"] > 0 and disk["first_query_seconds"] > 0 and disk["import_seconds"] > 0
    assert disk["disk_bytes"] > 0 and list(disk["disk_parts"]) == ["rows.npy"]
    assert whole[1][0] not in searchers  # it was searched in another process than it was built in
    assert not list(tmp_path.glob("corenn-bench-*"))


def test_one_that_is_opened_again_is_told_the_threads_of_a_search(race: Race, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    race(f"tests.bench.fake_disk:trace={trace}", build_threads=2, repetitions=1, recalls=(0.3,))
    built, opened = (line.split() for line in trace.read_text().splitlines()[:2])
    assert built[1:4] == ["build", "2", "2"] and opened[1:] == ["open", "pool", "1"]


@pytest.mark.parametrize("fault", ["nan", "object", "bytes", "grid"])
def test_figures_that_are_none_are_the_fault_of_their_system(race: Race, fault: str) -> None:
    """They must not reach the log, whose refusal would take the lines of all others along."""
    told = f"{FAKE}:fault={fault}"
    lines = race(told, FAKE, repetitions=1, recalls=(0.3,))
    assert not [each for line in lines for each in faults(line)]
    assert of(lines, "point", FAKE) and of(lines, "target", FAKE)
    wrong = [line["message"] for line in of(lines, "failure", told)]
    wrong += [error for line in of(lines, "point", told) for error in line["errors"]]
    assert wrong and all(line["reason"] in ("wrong", "failed") for line in of(lines, "failure", told))


def test_an_interpreter_that_cannot_be_started_is_a_failure(race: Race, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("no program")
    other = f"{FAKE}:child=0"
    lines = race(FAKE, other, repetitions=1, recalls=(0.3,), pythons={other: python})
    (failure,) = of(lines, "failure")
    assert (failure["label"], failure["stage"], failure["reason"]) == (other, "start", "failed")
    assert of(lines, "point", FAKE)


def test_systems_that_fall_over_are_reported_and_the_others_go_on(race: Race) -> None:
    wanted = {
        "tests.bench.fake_absent": ("start", "not installed", "no_such_package_anywhere"),
        f"{FAKE}:fault=raise,stage=build": ("build", "failed", "RuntimeError: it is broken"),
        f"{FAKE}:fault=exit,stage=query": ("latency", "crashed", "exited with code 3: last words"),
        f"{FAKE}:fault=shape": ("latency", "failed", ""),
        f"{FAKE}:fault=range": ("query", "wrong", "there are 200 rows"),
        f"{FAKE}:fault=abort,stage=work": ("work", "crashed", "killed by SIGABRT"),
        "tests.bench.fake_disk:fault=raise,stage=open": ("open", "failed", "RuntimeError: it is broken"),
        f"{FAKE}:fault=raise,stage=work": None,
    }
    lines = race(FAKE, *wanted, repetitions=1)
    assert not [fault for line in lines for fault in faults(line)]
    for label, told in wanted.items():
        failures = of(lines, "failure", label)
        if told is None:
            assert not failures
            assert of(lines, "point", label)[0]["errors"][0] == "work: RuntimeError: it is broken"
            continue
        (failure,) = failures
        stage, reason, message = told
        assert failure["stage"] == stage or label.endswith("shape"), failure
        assert failure["reason"] in (reason, "wrong") and message in failure["message"] and failure["errors"]
    assert of(lines, "point", FAKE) and of(lines, "target", FAKE)
    measured = {line["label"] for line in of(lines, "point")}
    assert measured == {FAKE, f"{FAKE}:fault=abort,stage=work", f"{FAKE}:fault=raise,stage=work"}


def test_one_that_hangs_costs_its_time_and_nothing_else(race: Race, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    lines = race(
        f"{FAKE}:fault=hang,stage=build,child=1,trace={trace}", FAKE, build_timeout=2.0, repetitions=1, recalls=(0.5,)
    )  # fmt: skip
    (failure,) = of(lines, "failure")
    assert (failure["stage"], failure["reason"]) == ("build", "hung")
    assert of(lines, "point", FAKE)
    own, _, child = trace.read_text().splitlines()[0].split()
    assert gone(int(own)) and gone(int(child))


def test_a_slow_system_is_asked_fewer_queries(race: Race, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corenn.bench.contestant.FEWEST", 5)
    lines = race(f"{FAKE}:nap=0.02", FAKE, repetitions=1, recalls=(0.3,), point_seconds=0.2)
    slow, quick = (of(lines, "point", label)[0] for label in (f"{FAKE}:nap=0.02", FAKE))
    assert 5 <= slow["queries"] <= 10 and quick["queries"] == 50
    assert f"slow: asked the first {slow['queries']} of 50 queries" in slow["notes"]
    assert slow["latency_ms"]["count"] == slow["queries"]
    (point, *_) = of(race(f"{FAKE}:call=0.02", repetitions=1, recalls=(0.3,), point_seconds=0.2), "point")
    assert point["queries"] == 50  # one alone takes as long as all in a call
    assert 5 <= point["latency_ms"]["count"] <= 11


def test_ctrl_c_keeps_what_was_timed(data: list[str], tmp_path: Path) -> None:
    out, trace = tmp_path / "out", tmp_path / "trace"
    command = [
        sys.executable, "-m", "corenn", "bench", "run", *data, "--systems", f"{FAKE}:trace={trace},call=0.01",
        "--out", str(out), "--recalls", "0.5", "--repetitions", "100000", "--no-report",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as program:
        assert program.stderr is not None
        for line in program.stderr:
            if "timing in turns, 2 of" in line:
                break
        program.send_signal(signal.SIGINT)
        program.communicate(timeout=60)
    assert program.returncode == 130
    lines = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
    points = of(lines, "point")
    assert points and of(lines, "target")[0]["reached"] and not [fault for line in lines for fault in faults(line)]
    assert all(line["qps_runs"] and line["latency_ms"] is None for line in points)
    assert any(note.startswith("ended early") for note in points[0]["notes"])
    assert all(gone(int(line.split()[0])) for line in trace.read_text().splitlines())


# --- speed at a recall ------------------------------------------------------------------------------------------------


def point(recall: float, *qps: float, ms: float | None = None) -> Point:
    latency = None if ms is None else {"p50": ms, "p99": 2 * ms}
    return Point({"ef": round(recall * 100)}, recall, 0, 0, 1.0, list(qps), [1.0] * len(qps), latency)


def test_speed_at_a_recall_lies_between_two_points() -> None:
    line = [point(0.8, 500, 800, ms=1), point(0.9, 400, 100, ms=1), point(1.0, 100, 25, ms=4)]
    figures, params = reach([line], 0.95)
    assert figures == {
        "target": 0.95, "reached": True, "at_least": False, "recall": 0.95, "qps": pytest.approx(200),
        "qps_low": pytest.approx(50), "latency_ms": {"p50": pytest.approx(2), "p99": pytest.approx(4)},
        "between": [{"ef": 90}, {"ef": 100}],
    }  # fmt: skip
    assert params == {"ef": 100}


def test_speed_below_and_beyond_the_curve() -> None:
    line = [point(0.8, 500), point(0.9, 100)]
    figures, params = reach([line], 0.5)
    assert figures["at_least"] and figures["recall"] == 0.8 and figures["qps"] == 500 and params == {"ef": 80}
    assert figures["latency_ms"] is None
    figures, params = reach([line], 0.95)
    assert not figures["reached"] and figures["recall"] == 0.9 and figures["qps"] is None and params == {}
    assert not reach([line], 0.8)[0]["at_least"]


def test_the_best_of_several_curves_counts() -> None:
    slow, fast, short = [point(0.8, 50), point(0.99, 10)], [point(0.7, 900), point(0.99, 100)], [point(0.7, 9999)]
    assert reach([slow, fast, short], 0.99)[0]["qps"] == pytest.approx(100)
    assert reach([short, slow], 0.995)[0]["recall"] == 0.99


def test_hopeless_points_of_a_second_curve_are_not_timed() -> None:
    def first(recall: float, qps: float) -> Point:
        return Point({}, recall, 0, 0, qps)

    fast = [first(0.5, 900), first(0.9, 500), first(0.95, 400)]
    slow = [first(0.4, 449), first(0.9, 251), first(0.95, 199), first(0.99, 100)]
    assert worth_timing([fast, slow]) == [fast, slow]  # the first and third are needed beside the second and fourth
    assert worth_timing([fast, [first(0.1, 1), slow[0], slow[1]]]) == [fast, slow[:2]]
    assert worth_timing([fast, [first(0.2, 1)]]) == [fast]


def test_a_second_curve_keeps_what_its_speed_at_a_recall_follows_from() -> None:
    """Without the hopeless point the speed at .95 would be that at 1.0, and the curve be said to begin there."""
    fast = [Point({}, 0.9, 0, 0, 900, [900.0])]
    slow = [Point({}, 0.9, 0, 0, 400, [400.0]), Point({}, 1.0, 0, 0, 100, [100.0])]
    figures, _ = reach(worth_timing([fast, slow]), 0.95)
    assert not figures["at_least"] and figures["recall"] == 0.95 and figures["qps"] == pytest.approx(200)


def test_summary_of_latencies() -> None:
    found = summary(np.arange(1, 101) / 1e3)
    assert found == {
        "mean": 50.5, "p50": 50.5, "p90": 90.1, "p95": 95.05, "p99": 99.01, "p999": 99.901, "max": 100.0, "count": 100,
    }  # fmt: skip
