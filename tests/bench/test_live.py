"""The goal table of live data at its smallest, and the load behind it.

Rules out a table with rows missing, a load that leaves or brings other rows than it says, updates whose failure nobody
hears of, and a loss that goes unnoticed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corenn import CoreNN
from corenn.bench.live_child import ACKNOWLEDGED, BEGUN, counted, make_call, mapped_counts
from corenn.bench.live_rows import _found, _level
from corenn.bench.soak import Reading, rows_of
from corenn.bench.turnover import UPDATE, Ring, Turnover, clustered, delete, insert, settle, shuffled
from corenn.types import Float32s
from tests.conftest import Create

pytest.importorskip("h5py")


@pytest.fixture
def pool(rng: np.random.Generator) -> Float32s:
    """3,200 rows in twenty clusters."""
    centres = rng.normal(size=(20, 16)) * 5
    return (centres[rng.integers(0, 20, 3_200)] + rng.normal(size=(3_200, 16))).astype(np.float32)


@pytest.fixture
def data(tmp_path: Path, pool: Float32s) -> Path:
    """A file in the layout of ann-benchmarks."""
    import h5py

    path = tmp_path / "clusters-16-euclidean.hdf5"
    with h5py.File(path, "w") as file:
        file.attrs["distance"] = "euclidean"
        file["train"], file["test"] = pool, pool[::40] + 0.1
    return path


def run(module: str, *arguments: object) -> str:
    """Run a program of the benchmarks in a process of its own; what it printed."""
    command = [sys.executable, "-m", f"corenn.bench.{module}", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=280).stdout


# --- the tables -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.compiled
def test_the_goals_of_live_data(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("psutil")
    written = tmp_path / "made" / "live.json"
    printed = run("live", "--data", data, "--quick", "--json", written, "--dir", tmp_path)
    told = json.loads(written.read_text())
    rows = {row["name"]: row for row in told["results"]}
    assert [row["name"] for row in told["results"]] == [
        "recall@10, all replaced 2 times, clustered", "… QPS over fresh", "recall@10, all replaced 2 times, random",
        "… QPS over fresh", "p99 beside updates, in the writer's process", "… in a reader process",
        "updates, batches of 100, half deletes", "… backlog of the last third over the middle",
        "… tombstones of the last third over the middle", "files after deleting 90 % and compacting, over fresh",
        "reopen after SIGKILL amid updates, 2,800 rows",
    ]  # fmt: skip
    assert all(row["figure"] is not None and isinstance(row["ok"], bool) for row in told["results"])
    assert all(rows[f"recall@10, all replaced 2 times, {kind}"]["figure"] > 0.9 for kind in ("clustered", "random"))
    assert "all replaced 2 times" in printed and "hnswlib" not in printed
    compacted = rows["files after deleting 90 % and compacting, over fresh"]["note"]
    assert ("no compact()" in compacted) != hasattr(CoreNN, "compact")
    assert told["rows"] == 1_500 and told["pool"] == 3_000 and told["quick"] and told["versions"]["corenn"]
    updated = [moment["updated"] for moment in told["updates"]]
    assert updated == sorted(updated) and updated[-1] >= 3_000
    assert not list(tmp_path.glob("corenn-bench-*"))


@pytest.mark.compiled
def test_a_soak_tells_of_memory_on_the_way(data: Path, tmp_path: Path) -> None:
    written = tmp_path / "soak.json"
    printed = run("soak", "--data", data, "--rows", 500, "--operations", 4_000, "--json", written, "--dir", tmp_path)
    told = json.loads(written.read_text())
    operations = [reading["operations"] for reading in told["readings"]]
    assert operations[0] == 0 and operations == sorted(operations) and operations[-1] >= 4_000
    assert len(operations) > 30 and all(reading["resident"] > 0 for reading in told["readings"])
    assert len(told["results"]) == 3 and "MB at 10 %" in printed


def test_memory_is_compared_between_half_and_the_end() -> None:
    readings = [Reading(at, 1e8 + at, 1e8, 0, 10**6) for at in range(0, 1_100_000, 100_000)]
    grown, flat, files = rows_of(readings)
    assert grown.figure == pytest.approx(101 / 100.5) and "+1.0 MB per million" in grown.note and grown.ok
    assert flat.figure == files.figure == 1 and "100.1 MB at 10 %" in grown.note
    assert not rows_of([*readings, Reading(2_000_000, 2e8, 1e8, 0, 10**6)])[0].ok


def test_a_backlog_levels_off_or_does_not() -> None:
    assert not _level("", list(range(0, 9_000, 100))).ok
    assert _level("", [0, 500, 900, 1_000, 1_050, 990, 1_000, 1_020, 980]).ok
    assert _level("", [0, 0, 0, 0, 0, 0, 0, 100, 0]).ok  # one batch, no more
    assert _level("", [5_000] * 6 + [0] * 3).ok
    assert _level("", [0]).ok and "highest 7" in _level("", [7]).note


# --- the ring ---------------------------------------------------------------------------------------------------------


def rings(pool: Float32s, tmp_path: Path) -> Iterator[Ring]:
    yield shuffled(pool, 1_600)
    yield clustered(pool, 1_600, tmp_path, 20)


def test_all_rows_leave_before_one_comes_back(pool: Float32s, tmp_path: Path) -> None:
    for ring in rings(pool, tmp_path):
        assert set(ring.alive(0).tolist()) == set(range(1_600))
        assert set(ring.alive(1_600).tolist()) == set(range(1_600, 3_200))
        assert ring.alive(3_200).tolist() == ring.alive(0).tolist()
        for step in (0, 50, 1_700, 3_190):
            before, after = set(ring.alive(step).tolist()), set(ring.alive(step + 50).tolist())
            assert before - after == set(ring.rows(step, 50).tolist())
            assert after - before == set(ring.rows(step + ring.live, 50).tolist())
            assert len(after) == 1_600


def test_clusters_leave_and_come_one_by_one(pool: Float32s, tmp_path: Path) -> None:
    """Neighbours on the ring are near each other, but for the steps from cluster to cluster."""
    apart, together = (
        float(np.median(np.linalg.norm(np.diff(ring.vectors[ring.order], axis=0), axis=1)))
        for ring in rings(pool, tmp_path)
    )
    assert together < apart / 2


def test_what_is_live_follows_from_the_number_of_calls(memory: Create, pool: Float32s) -> None:
    ring = shuffled(pool[:400], 200)
    db = memory(dim=16, metric="l2")
    insert(db, ring, ring.alive(0))
    for number in range(15):
        assert sorted(map(int, db)) == sorted(ring.after(number).tolist())  # type: ignore[call-overload]
        assert _found(db, ring, [number + 1, number]) == number
        make_call(db, ring, number)
    delete(db, ring.after(15)[:1])
    for counts in ([0, 0], [0, 0]):
        counts[BEGUN], counts[ACKNOWLEDGED] = 16, 15
        with pytest.raises(RuntimeError, match="of no state from 15 calls acknowledged to 16 begun; 1 are missing"):
            _found(db, ring, counts)


def test_a_turnover_keeps_as_many_rows(memory: Create, pool: Float32s) -> None:
    ring = shuffled(pool[:400], 200)
    turnover = Turnover(memory(dim=16, metric="l2"), ring)
    turnover.fill()
    turnover.replace_all(530)
    assert turnover.step == 530 and sorted(map(int, turnover.db)) == sorted(ring.alive(530).tolist())  # type: ignore[call-overload]
    with turnover.running():
        while turnover.step < 530 + 3 * UPDATE:
            time.sleep(0.001)
    assert sorted(map(int, turnover.db)) == sorted(ring.alive(turnover.step).tolist())  # type: ignore[call-overload]
    assert settle(turnover.db, 0.1) < 5
    records: list[Any] = turnover.db.get([str(row) for row in ring.alive(turnover.step)[:20]])
    assert all(np.array_equal(record.vector, pool[int(record.key)]) for record in records)


def test_a_failed_update_is_raised_to_who_waits(memory: Create, pool: Float32s) -> None:
    ring = shuffled(pool[:400], 200)
    turnover = Turnover(memory(dim=16, metric="l2"), ring)
    turnover.fill()
    delete(turnover.db, ring.rows(UPDATE, 1))
    with pytest.raises(RuntimeError, match="49 of 50 rows were there"), turnover.running():
        time.sleep(0.5)


def test_a_child_that_ends_is_not_waited_for(tmp_path: Path) -> None:
    counts = mapped_counts(tmp_path / "counts")
    counts[ACKNOWLEDGED] = 3
    assert mapped_counts(tmp_path / "counts")[ACKNOWLEDGED] == 3
    counted(counts, 3, lambda: False)
    with pytest.raises(RuntimeError, match="acknowledged 3 calls"):
        counted(counts, 4, lambda: False)
