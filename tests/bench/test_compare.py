"""`corenn bench compare` on made-up logs whose changes and noise are known.

Rules out noise told as a change, a change told as noise, a drift of the machine told as ours, better and worse mixed
up, and a verdict from figures that cannot carry it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corenn.bench.compare import Change, compare, interval, of_commit, speed_at
from corenn.bench.runs import entries
from tests.bench.made_up import Line, common, curve, failure, write
from tests.test_cli import corenn, figures, refused

SPEED = "QPS at recall 0.95"
OLD, NEW = "a" * 40, "b" * 40


def runs(
    system: str, speed: float, count: int, *, ease: float = 4.0, noise: float = 0.04, **changes: Any
) -> list[Line]:
    """Several runs of a system, each with noise of its own."""
    start = 100 * int(speed) % 1_000
    return [
        line
        for at in range(count)
        for line in curve(system, speed, ease, seed=start + at, noise=noise, run=f"{system}-{at}-{speed}", **changes)
    ]


def of(changes: list[Change], figure: str = SPEED, label: str = "corenn") -> Change:
    (found,) = [change for change in changes if change.figure == figure and change.label == label]
    return found


# --- verdicts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "verdict"), [(1.25, "better"), (0.8, "worse"), (1.0, "noise"), (1.01, "noise")])
def test_a_change_is_told_from_noise(factor: float, verdict: str) -> None:
    before = runs("corenn", 50_000, 3) + runs("hnswlib", 40_000, 3)
    after = runs("corenn", 50_000 * factor, 3, commit=NEW) + runs("hnswlib", 40_100, 3, commit=NEW)
    change = of(compare(before, after))
    assert change.verdict == verdict
    assert change.ratio == pytest.approx(factor, rel=0.04) and change.repetitions == 9
    assert (
        change.low is not None
        and change.high is not None
        and change.low <= factor * 1.02
        and change.high >= factor * 0.98
    )
    assert change.drift is not None and change.drift >= 1


def test_what_the_machine_did_is_not_ours() -> None:
    """Everybody is a fifth faster, CoreNN too: the interval is clear, the drift explains it."""
    before = runs("corenn", 50_000, 3) + runs("hnswlib", 40_000, 3)
    after = runs("corenn", 60_000, 3) + runs("hnswlib", 49_000, 3)
    change = of(compare(before, after))
    assert change.low is not None and change.low > 1.1 and change.drift is not None and change.drift > 1.15
    assert change.verdict == "noise"


def test_less_time_and_fewer_bytes_are_better() -> None:
    before = runs("corenn", 50_000, 3) + runs("hnswlib", 40_000, 3)
    after = runs("corenn", 50_000, 3, build_seconds=9.0, index_bytes=70_000_000) + runs("hnswlib", 40_000, 3)
    changes = compare(before, after)
    assert of(changes, "build seconds").verdict == "better" and of(changes, "index bytes").verdict == "worse"
    slower = compare(after, before)
    assert of(slower, "build seconds").verdict == "worse" and of(slower, "index bytes").verdict == "better"
    assert of(changes, "disk bytes").verdict == "missing"
    assert of(compare(before, before), "index bytes").verdict == "same"
    faster = compare(before, runs("corenn", 75_000, 3) + runs("hnswlib", 40_000, 3))
    assert of(faster, "p99 ms at recall 0.95").verdict == "better"


def test_too_few_repetitions_are_not_judged() -> None:
    one = [line | {"qps_runs": [line["qps"]]} for line in runs("corenn", 50_000, 1)]
    other = [line | {"qps_runs": [line["qps"]]} for line in runs("corenn", 90_000, 1)]
    change = of(compare(one, other))
    assert (change.verdict, change.repetitions, change.low) == ("too few", 1, None)
    # three repetitions of one run do not see a drift; beside an unchanged system, or in three runs, they do
    alone = compare(runs("corenn", 50_000, 1), runs("corenn", 90_000, 1))
    assert of(alone).verdict == "too few"
    peers = runs("hnswlib", 40_000, 1), runs("hnswlib", 40_100, 1)
    assert of(compare(runs("corenn", 50_000, 1) + peers[0], runs("corenn", 90_000, 1) + peers[1])).verdict == "better"
    assert of(compare(runs("corenn", 50_000, 3), runs("corenn", 90_000, 3))).verdict == "better"


def test_a_recall_that_one_side_does_not_reach_is_missing() -> None:
    low = [line for line in runs("corenn", 50_000, 3) if line["recall"] < 0.97]
    changes = compare(runs("corenn", 50_000, 3), low)
    assert of(changes, "QPS at recall 0.99").verdict == "missing" and of(changes, "QPS at recall 0.99").after is None
    assert of(changes).verdict != "missing"


def test_speeds_at_different_recalls_are_not_compared() -> None:
    """One side begins above the target: its speed there is that of another recall."""
    above = runs("corenn", 50_000, 3, ease=0.5)
    assert of(compare(runs("corenn", 50_000, 3), above)).verdict == "missing"
    assert of(compare(above, above)).verdict == "noise"


def test_which_systems_are_told_of() -> None:
    before = runs("corenn", 50_000, 3) + runs("hnswlib", 40_000, 3) + runs("usearch", 30_000, 3) + [failure("svs")]
    after = runs("corenn", 50_000, 3) + runs("hnswlib", 40_000, 3) + runs("usearch", 30_000, 3, version="2")
    told = {change.label for change in compare(before, after)}
    assert told == {"corenn", "usearch"}  # ours, and what has another version
    assert {change.label for change in compare(before, after, ours=["hnswlib"])} == {"hnswlib"}
    assert compare(before, [line | {"k": 5} for line in after]) == []


# --- parts ------------------------------------------------------------------------------------------------------------


def test_speed_at_a_recall_is_taken_turn_by_turn() -> None:
    points = [
        common("x", recall=0.9, qps=400.0, qps_runs=[400.0, 200.0, 300.0], query_params={"ef": 1}),
        common("x", recall=1.0, qps=100.0, qps_runs=[100.0, 50.0], query_params={"ef": 2}),
    ]
    (entry,) = entries(points)
    assert speed_at(entry, 0.95) == pytest.approx([200, 100])
    assert speed_at(entry, 0.9) == [400, 200, 300] and speed_at(entry, 1.01) == []
    # a second curve, of other first parameters, counts where it is faster
    more = [
        common("x", recall=recall, qps=150.0, query_params={"probe": 3, "ef": at})
        for at, recall in enumerate((0.9, 1.0))
    ]
    (entry,) = entries([*points, *more])
    assert speed_at(entry, 0.95) == pytest.approx([200])


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Two sides without a difference, 100 times: an interval without 1 is a false alarm."""
    rng = np.random.default_rng(3)
    alarms = 0
    for seed in range(100):
        sides = [[list(rng.normal(100, 5, 5) * rng.normal(1, 0.02)) for _ in range(5)] for _ in range(2)]
        low, high = interval(*sides, seed=seed)
        assert low <= high
        alarms += not low <= 1 <= high
    assert alarms <= 15


def test_an_interval_without_noise_is_a_point() -> None:
    assert interval([[2.0, 2.0]], [[3.0], [3.0]]) == (1.5, 1.5)


def test_lines_of_a_commit() -> None:
    lines = [common("x", commit=OLD), common("x", commit=OLD + "+"), common("x", commit=NEW), common("x", commit=None)]
    assert of_commit(lines, "aaaa") == lines[:1] and of_commit(lines, "aaaa+") == lines[1:2]
    assert of_commit(lines, "c") == []


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Two commits in one log."""
    lines = runs("corenn", 50_000, 2, commit=OLD) + runs("hnswlib", 40_000, 2, commit=OLD)
    lines += runs("corenn", 70_000, 2, commit=NEW) + runs("hnswlib", 40_100, 2, commit=NEW)
    return write(tmp_path / "runs.jsonl", lines)


def test_two_commits_of_a_log(log: Path) -> None:
    told = figures("bench", "compare", "aaaa", "bbbb", "--log", log)
    speed = next(change for change in told if change["figure"] == SPEED)
    assert speed["verdict"] == "better" and speed["ratio"] == pytest.approx(1.4, rel=0.05)
    shown = corenn("bench", "compare", "aaaa", "bbbb", "--log", log)
    assert shown.exit_code == 0 and "+4" in shown.stdout and "too few runs to tell" in shown.stdout
    assert "better" in shown.stdout and "hnswlib" not in shown.stdout
    assert "hnswlib" in corenn("bench", "compare", "aaaa", "bbbb", "--log", log, "--system", "hnswlib").stdout


def test_two_logs(log: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other" / "runs.jsonl", runs("corenn", 50_000, 3) + runs("hnswlib", 40_000, 3))
    told = figures("bench", "compare", other.parent, log)
    assert next(change for change in told if change["figure"] == SPEED)["repetitions"] == 9


def test_the_report_has_the_comparison(log: Path, tmp_path: Path) -> None:
    told = figures("bench", "report", log, "--compare", "aaaa", "bbbb", "--no-plots", "--out", tmp_path / "out")
    assert told["changes"] == figures("bench", "compare", "aaaa", "bbbb", "--log", log)
    page = (tmp_path / "out" / "report.md").read_text().partition("\n## From aaaa to bbbb\n")[2]
    (row,) = [line for line in page.splitlines() if f"| corenn | {SPEED} |" in line]
    assert row.endswith("| better |") and "| +4" in row and "hnswlib" not in page
    assert "no run of this commit" in refused("bench", "report", log, "--compare", "cccc", "bbbb", "--no-plots")


def test_a_beginning_of_several_commits_is_refused(tmp_path: Path) -> None:
    """Taken for one, the runs of both would be a side."""
    log = write(
        tmp_path / "runs.jsonl", runs("corenn", 50_000, 1, commit=OLD) + runs("corenn", 9_000, 1, commit="aaab" * 10)
    )
    assert "several commits begin so" in refused("bench", "compare", "aaa", "aaab", "--log", log)
    assert corenn("bench", "compare", "aaaa", "aaab", "--log", log).exit_code == 0


def test_what_cannot_be_compared_is_one_line(log: Path, tmp_path: Path) -> None:
    assert "name the log to look in with --log" in refused("bench", "compare", "aaaa", "bbbb")
    assert "there are aaaaaaaaa, bbbbbbbbb" in refused("bench", "compare", "cccc", "bbbb", "--log", log)
    alone = write(tmp_path / "alone.jsonl", runs("ngt", 1_000, 1))
    assert "no system in common" in refused("bench", "compare", alone, log)
