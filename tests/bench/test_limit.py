"""The goal table of data larger than memory at its smallest, and the cage behind it.

Rules out a limit that holds nobody, a process that is killed without anybody being told, a figure missing from the
table, an insert or build that does not happen, and groups or processes that are left behind.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from corenn import CoreNN
from corenn.bench import limit_child, memory
from corenn.bench.cage import Cage, Watch, new_group
from corenn.bench.limit import OURS, Amount, keeping, markdown, options_of
from corenn.bench.limit_rows import Bench, beyond, bytes_per_row, searches, space_of
from corenn.bench.limit_search import Phase, Searched
from corenn.bench.sample import Sample
from corenn.bench.spec import Spec
from corenn.bench.systems.lancedb import divisor
from corenn.types import Float32s

pytest.importorskip("h5py")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc and control groups")

MB = 1_000_000
TAKE = "import sys; taken = bytearray(int(sys.argv[1])); print(len(taken), flush=True); sys.stdin.read()"


def take(cage: Cage, size: int) -> tuple[int, str, int]:
    """A process in the cage that takes so many bytes: its exit code, what it said, and the most seen resident."""
    with subprocess.Popen(
        [*cage.prefix, sys.executable, "-c", TAKE, str(size)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        with Watch(process.pid, every=0.001) as watch:
            said = process.stdout.readline()
        process.stdin.close()
        return process.wait(), said, watch.resident


# --- the cage ---------------------------------------------------------------------------------------------------------


def test_a_group_holds_a_process_and_tells_of_its_death() -> None:
    with new_group() as group:
        if group is None:
            pytest.skip("no control group can be made here")
        folder = group.folder
    with Cage(60 * MB) as cage:
        assert cage.kind == "cgroup"
        code, said, resident = take(cage, 20 * MB)
        assert code == 0 and said == f"{20 * MB}\n" and resident > 20 * MB and cage.kills() == 0
        code, said, _ = take(cage, 200 * MB)
        assert code == -9 and not said and cage.kills() == 1
    assert not folder.exists() and not list(folder.parent.glob(f"{folder.name.rpartition('-')[0]}-*"))


def test_without_groups_a_process_is_refused_memory() -> None:
    with Cage(60 * MB, groups=False) as cage:
        assert cage.kind == "rlimit"
        assert take(cage, 20 * MB)[:2] == (0, f"{20 * MB}\n")
        code, said, _ = take(cage, 2_000 * MB)
        assert code == 1 and not said, "MemoryError"
    with Cage(None, groups=False) as cage:
        assert cage.kind == "" and not cage.prefix and take(cage, 200 * MB)[0] == 0


def test_what_a_process_holds_grows_with_it() -> None:
    held = []
    for size in (10 * MB, 90 * MB):
        with Cage(None) as cage:
            process = subprocess.Popen(
                [*cage.prefix, sys.executable, "-c", TAKE, str(size)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            assert process.stdin is not None and process.stdout is not None
            process.stdout.readline()
            held.append(cage.held(process.pid))
            process.stdin.close()
            process.wait()
            process.stdout.close()
    assert held[1] - held[0] == pytest.approx(80 * MB, rel=0.05)


def test_files_without_a_name_take_space_as_well(tmp_path: Path) -> None:
    script = (
        "import sys, tempfile; file = tempfile.TemporaryFile(dir=sys.argv[1]);"
        "file.write(bytes(1 << 20)); file.flush(); print('there', flush=True); sys.stdin.read()"
    )
    (tmp_path / "named").write_bytes(bytes(1 << 20))
    with subprocess.Popen(
        [sys.executable, "-c", script, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()
        assert 2 << 20 <= space_of(tmp_path, process.pid) < 3 << 20
        process.stdin.close()


def test_a_process_tells_what_it_has_read(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(np.random.default_rng(0).bytes(4 << 20))
    assert memory.field_of(1, "VmRSS") > 0
    memory.forget(tmp_path)
    before = memory.read_bytes()
    file.read_bytes()
    after = memory.read_bytes()
    if before is None or after is None:
        pytest.skip("the system does not tell")
    if after == before:
        pytest.skip("this file system has no disk behind it")
    assert after - before >= 4 << 20 and memory.major_faults() >= 0


# --- the children -----------------------------------------------------------------------------------------------------


def test_rows_are_read_as_they_are_asked_for(tmp_path: Path, rng: np.random.Generator) -> None:
    rows = rng.normal(size=(100, 7)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    source = limit_child.Rows(tmp_path / "rows.npy")
    assert source.shape == (100, 7) and len(source) == 100
    for some in (slice(0, 10), slice(90, 200), slice(33, 34), slice(5, 5)):
        assert np.array_equal(source[some], rows[some])


@pytest.mark.compiled
def test_a_child_builds_and_inserts(tmp_path: Path, rng: np.random.Generator) -> None:
    rows = rng.normal(size=(3_000, 16)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    np.save(tmp_path / "more.npy", rows + 1)
    path, limit = str(tmp_path / "db"), str(64 << 20)
    built = limit_child.build(path, str(tmp_path / "rows.npy"), "l2", limit)
    assert built["rows"] == 3_000 and built["disk_bytes"] > rows.nbytes and "rows" in built["steps"]
    grown = limit_child.insert(path, str(tmp_path / "more.npy"), "3000", limit, "1e9")
    assert grown["rows"] == 3_000 and len(grown["batches"]) == 3
    with CoreNN.open(path) as db:
        assert len(db) == 6_000
        assert db.query(rows[7] + 1, k=1)[0].key == 3_007


# --- the table --------------------------------------------------------------------------------------------------------


def searched(
    label: str, one: float, everything: float, resident: int = 80 * MB, pages: float | None = None
) -> Searched:
    phases = [
        Phase(1, one, 3, 80_000, 0.5, resident, "cgroup"),
        Phase(2, everything / 2, 3, 90_000, 0.5, resident - 1, "cgroup"),
        Phase(16, everything, 3, 81_920, 0.5, resident - 2, "cgroup"),
    ]  # fmt: skip
    work = {} if pages is None else {"pages": pages, "hops": 3.0}
    return Searched(label, "1.0", 9.0, 10 * MB, 70 * MB, {"search_list": 13}, 0.957, 20.0, [], work, phases)


def _bench() -> Bench:
    """Nothing but what rows are judged by."""
    nothing = np.zeros((10, 4), np.float32)
    sample = Sample("l2", nothing, nothing, nothing, np.zeros((10, 10)))
    return Bench(sample, Path(), Path(), Path(), 100 * MB, 2, True)


def test_the_better_peer_is_what_counts() -> None:
    ours = searched(OURS, 900, 3_000, pages=19.7)
    peers = [searched("diskann:memory=5", 700, 1_900), searched("lancedb", 50, 90)]
    rows = {row.name: row for row in searches(_bench(), ours, peers)}
    everything, one = (rows[f"QPS within the limit, {name}"] for name in ("all threads", "one thread"))
    assert everything.goal == 1.5 * 1_900 and everything.ok and one.goal == 1.5 * 700 and not one.ok
    assert rows["pages read per query"].figure == 19.7 and rows["pages read per query"].ok
    assert rows["resident beyond the limit, searching"].figure == 0 and rows["recall@10 within the limit"].ok
    assert "diskann 1,900, lancedb 90" in everything.note


def test_without_figures_no_goal_is_reached() -> None:
    rows = searches(_bench(), None, [], ["diskann"])
    assert not any(row.ok for row in rows)
    alone = {row.name: row for row in searches(_bench(), searched(OURS, 900, 3_000), [], ["diskann"])}
    speed = alone["QPS within the limit, all threads"]
    assert not speed.ok and "no figures of diskann" in speed.note
    assert alone["pages read per query"].figure == 20, "4 KiB each, where a system does not count them"


def test_too_much_is_too_much() -> None:
    row = beyond("", 101 * MB, 100 * MB)
    assert row.figure == 1 and not row.ok
    assert beyond("", 100 * MB, 100 * MB).ok and not beyond("", None, 100 * MB).ok


def test_systems_side_by_side() -> None:
    lines = markdown([searched(OURS, 900, 3_000, pages=19.7)], {"diskann": "start: not installed"}).splitlines()
    assert lines[2] == (
        "| corenn-disk 1.0 | search_list 13 | 0.9570 | 900 | 3,000 | 16 | 81.9 | 19.7 | 0.50 | 80 | 9 | 10 |"
    )
    assert lines[3] == "diskann failed: start: not installed"


def test_an_index_is_kept_for_the_same_rows_and_options(tmp_path: Path) -> None:
    rows = tmp_path / "rows.npy"
    np.save(rows, np.arange(8, dtype=np.float32).reshape(2, 4))
    bench, spec = replace(_bench(), base_file=rows), Spec("diskann", {"memory": 5})
    kept = keeping(tmp_path, spec, bench)
    assert keeping(tmp_path, Spec("diskann", {"memory": 6}), bench) != kept
    kept.mkdir()
    assert keeping(tmp_path, spec, bench) == kept and not kept.exists(), "a build that was never through"
    kept.mkdir()
    (kept / "built.json").write_text("[null, 1.0]")
    assert keeping(tmp_path, spec, bench) == kept and kept.exists()
    np.save(rows, np.ones((2, 4), np.float32))
    assert keeping(tmp_path, spec, bench) != kept


def test_systems_are_told_of_the_limit() -> None:
    assert options_of(OURS, 5, 10, 4) == {"limit": 5}
    told = options_of("diskann", 100 * MB, 1_000_000, 128)
    assert told["memory"] == 50 * MB and told["cached"] == 100 * MB // 16 // (128 * 4 + 65 * 4)
    assert options_of("lancedb", 100 * MB, 1, 1)["index"] == "IVF_PQ"
    assert [divisor(dim, dim // 4) for dim in (128, 100, 30, 7, 3)] == [32, 25, 6, 1, 1]
    assert Amount.of(10**6, True).rows == 2_000 and Amount.of(10**6, False).rows == 10**6
    assert bytes_per_row(128) == 128 * 4 + 192


@pytest.mark.compiled
@pytest.mark.slow
def test_the_goals_of_data_larger_than_memory(tmp_path: Path, rng: np.random.Generator) -> None:
    data, written = tmp_path / "clusters-16-euclidean.hdf5", tmp_path / "made" / "limit.json"
    write(data, rng)
    command = [
        sys.executable, "-m", "corenn.bench.limit", "--data", data, "--quick", "--share", "350", "--peers", "--dir",
        tmp_path, "--json", written,
    ]  # fmt: skip
    made = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True, timeout=280)
    told = json.loads(written.read_text())
    names = [row["name"] for row in told["results"]]
    assert names == [
        "recall lost by sq8", "recall lost by sq4", "recall lost by rabitq", "recall lost by pq", "recall lost by opq",
        "training of product codes", "encoding by product codes", "p99 of queries beside retraining, over idle",
        "recall@10 within the limit", "pages read per query",
        "QPS within the limit, all threads", "QPS within the limit, one thread", "resident beyond the limit, searching",
        "build within the limit", "… resident beyond the limit", "… disk space at its highest, over the end",
        "inserts of 1,000 rows within the limit", "… resident beyond the limit",
    ]  # fmt: skip
    assert all(row["figure"] is not None for row in told["results"]), made.stderr
    rows = {row["name"]: row for row in told["results"]}
    assert rows["recall@10 within the limit"]["ok"] and rows["recall lost by sq8"]["ok"]
    assert told["rows"] == 2_000 and told["limit"] > 48 << 20 and told["insert"]["rows"] == 2_000
    assert "| corenn-disk" in made.stdout and not told["failed"]
    assert not list(tmp_path.glob("corenn-bench-*"))


def write(path: Path, rng: np.random.Generator) -> None:
    """A file in the layout of ann-benchmarks, of rows in twenty clusters."""
    import h5py

    centres = rng.normal(size=(20, 16)) * 5
    pool: Float32s = (centres[rng.integers(0, 20, 4_200)] + rng.normal(size=(4_200, 16))).astype(np.float32)
    with h5py.File(path, "w") as file:
        file.attrs["distance"] = "euclidean"
        file["train"], file["test"] = pool, pool[::80] + 0.1
