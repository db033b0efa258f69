"""The cost model, and the constants that it takes from a machine.

Rules out sizes that are not those of the files, figures that move the wrong way, a plan that says it fits where it does
not, constants of which a damaged file makes nonsense, and a measurement that leaves something behind.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corenn import CoreNN, measure
from corenn.errors import CapacityError, FormatError, InvalidArgumentError, InvalidSettingError, StorageError
from corenn.measure import DEFAULT, Line, Machine, keep, kept_file, known_machine, read_machine
from corenn.plan import Ask, Figure, Plan, Way, plan

GB = 10**9
MACHINE = replace(DEFAULT, cores=8, memory=64 * GB, reads_per_s=400_000.0, read_us=90.0)


def planned(**changes: Any) -> Plan:
    asked: dict[str, Any] = {"rows": 10**6, "dim": 96, "memory": 64 * GB, **changes}
    return plan(Ask(**asked), MACHINE)


def smallest(ask: Ask) -> int:
    """Bytes of memory with which some way fits."""
    return min(way.least_memory for way in plan(replace(ask, memory=1), MACHINE).ways)


def way(name: str, **changes: Any) -> Way:
    return next(each for each in planned(**changes).ways if each.name == name)


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "metric", "dim", "max_edges"),
    [("f32", "l2", 96, 32), ("u8", "l2", 100, 64), ("f16", "cosine", 33, 16), ("i8", "ip", 40, 32)],
)
def test_sizes_are_those_of_a_database(
    tmp_path: Path, rng: np.random.Generator, dtype: str, metric: str, dim: int, max_edges: int
) -> None:
    rows = 3_000
    vectors = rng.integers(0, 256, (rows, dim))
    asked = Ask(rows=rows, dim=dim, dtype=dtype, metric=metric, max_edges=max_edges, memory=GB)
    expected = next(each for each in plan(asked, MACHINE).ways if each.name == "in memory")
    with CoreNN.create(tmp_path / "db", dim=dim, dtype=dtype, metric=metric, max_edges=max_edges) as db:
        db.insert(range(rows), vectors)
        used, on_disk = (
            db.stats().memory,
            {each.name: each.stat().st_blocks * 512 for each in (tmp_path / "db").iterdir()},
        )
    for part in ("vectors", "seals", "state", "edges", "keys"):
        assert expected.memory[part] == used[part], part
        assert expected.memory[part] <= on_disk[f"{part}.slab"], part


def test_a_row_never_straddles_pages() -> None:
    assert way("on disk", dtype="u8", max_edges=32).disk["disk.slab"] == math.ceil(10**6 / 11) * 4096  # 360 bytes
    assert way("on disk", dim=3_000).disk["disk.slab"] == 10**6 * 3 * 4096  # 12,032 + 192 + 24 bytes
    assert way("on disk", dim=1_000, rows=5, k=1).disk["disk.slab"] == 5 * 2 * 4096


def test_parts_add_up() -> None:
    for each in planned(rows=10**9, key_bytes=20, dtype="u8").ways:
        assert each.memory_bytes == sum(each.memory.values()) and each.disk_bytes == sum(each.disk.values())
        assert each.disk["keys.heap"] > 20 * 10**9 and each.disk["meta"] > 20 * 10**9


# --- what fits --------------------------------------------------------------------------------------------------------


@given(
    st.integers(1_000, 2 * 10**9), st.integers(1, 4_000), st.sampled_from(["f32", "f16", "u8"]),
    st.integers(10**6, 10**13), st.floats(0.5, 0.999), st.integers(0, 100),
)  # fmt: skip
def test_every_plan_makes_sense(rows: int, dim: int, dtype: str, memory: int, recall: float, key_bytes: int) -> None:
    asked = Ask(rows=rows, dim=dim, dtype=dtype, memory=memory, recall=recall, key_bytes=key_bytes)
    found = plan(asked, MACHINE)
    for each in found.ways:
        assert each.fits == (each.least_memory <= memory)
        assert not each.fits or each.memory_bytes <= memory
        assert all(size >= 0 for size in (*each.memory.values(), *each.disk.values()))
        for figure in (each.build_s, each.distances, each.pages, each.latency_ms, each.qps):
            assert 0 <= figure.low <= figure.value <= figure.high < math.inf and figure.why
        assert each.latency_ms.value > 0 and each.qps.value > 0
    least = smallest(asked)
    assert any(each.fits for each in found.ways) == (memory >= least)
    assert any(each.fits for each in plan(replace(asked, memory=least), MACHINE).ways)
    assert not any(each.fits for each in plan(replace(asked, memory=least - 1), MACHINE).ways)
    json.dumps(found.as_dict(), allow_nan=False)


def test_what_does_not_fit_says_what_would() -> None:
    found = planned(rows=10**9, memory=GB)
    least = smallest(found.ask)
    assert "does not fit" in found.advice and f"{least:,}" in found.advice
    assert "on disk" in planned(rows=10**9, memory=least).advice


def test_what_fits_into_memory_is_had_in_memory() -> None:
    assert planned().advice.startswith("in memory")
    assert planned(rows=10**9).advice.startswith("on disk") and "max_edges=64" in planned(rows=10**9).advice


# --- which way figures move -------------------------------------------------------------------------------------------


def rising(values: list[float]) -> bool:
    return all(low < high for low, high in pairwise(values))


@pytest.mark.parametrize("name", ["in memory", "on disk"])
@pytest.mark.parametrize(
    "grown", [{"rows": [10**6, 10**7, 10**8, 10**9]}, {"recall": [0.8, 0.9, 0.95, 0.99]}, {"k": [10, 100, 1000]}]
)
def test_more_is_more_work(name: str, grown: dict[str, list[Any]]) -> None:
    (option, values), *_ = grown.items()
    given_ = {"rows": 10**7, "memory": 5 * GB, "max_edges": 32}
    ways = [way(name, **{**given_, option: value}) for value in values]
    assert rising([each.distances.value for each in ways])
    assert rising([each.latency_ms.value for each in ways])
    assert rising([-each.qps.value for each in ways])
    assert name == "in memory" or rising([each.pages.value for each in ways])
    assert option != "rows" or rising([each.build_s.value for each in ways])


def test_more_memory_reads_fewer_pages() -> None:
    ways = [way("on disk", rows=10**8, dtype="u8", memory=size * GB) for size in (4, 8, 16, 32, 64)]
    assert all(each.fits for each in ways)
    pages = [each.pages.value for each in ways]
    assert rising([-each for each in pages]) and pages[-1] < 5


def test_kept_rows_save_reads() -> None:
    ways = [way("on disk", rows=10**9, dtype="u8", memory=size * GB) for size in (37, 45, 64)]
    pages = [each.pages.value / each.hops.value for each in ways]
    assert all(0.3 < each < 0.9 for each in pages) and all(each.memory["kept rows"] > 0 for each in ways)
    assert "kept rows" in ways[0].pages.why
    for each in ways:
        assert each.memory["kept rows"] <= 64 * GB / 16
        assert each.pages.value <= each.hops.value - 5 + 10  # saved by kept rows; read for keys


def test_a_faster_disk_makes_it_faster() -> None:
    asked = Ask(rows=10**9, dim=96, dtype="u8", memory=64 * GB)
    slow, fast = (
        plan(asked, replace(MACHINE, read_us=us, reads_per_s=rate)).ways[1] for us, rate in ((500, 10_000), (50, 10**6))
    )
    assert slow.qps.value < 0.1 * fast.qps.value and slow.latency_ms.value > 4 * fast.latency_ms.value
    assert "reads per second" in slow.qps.why.partition("scarce: ")[2]
    assert slow.pages == fast.pages


def test_the_range_widens_beyond_what_was_measured() -> None:
    ranges = [figure.high / figure.low for figure in (way("on disk", rows=10**n).distances for n in (6, 7, 9))]
    assert rising(ranges)


def test_a_figure_grows_with_its_range() -> None:
    assert Figure(2, 1, 4, "a").times(3, "b") == Figure(6, 3, 12, "b")


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"rows": 2**31}, CapacityError, "2,147,483,647"), ({"rows": 0}, InvalidArgumentError, "rows=0"),
        ({"dim": 0}, InvalidSettingError, "dim=0"), ({"dtype": "f64"}, InvalidSettingError, "f64"),
        ({"metric": "l1"}, InvalidSettingError, "l1"), ({"recall": 1.0}, InvalidArgumentError, "recall=1"),
        ({"recall": math.nan}, InvalidArgumentError, "recall=nan"), ({"k": 0}, InvalidArgumentError, "k=0"),
        ({"max_edges": 2}, InvalidSettingError, "max_edges=2"), ({"key_bytes": -1}, InvalidArgumentError, "bytes=-1"),
    ],
)  # fmt: skip
def test_what_cannot_be_planned(changes: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        planned(**changes)


# --- constants --------------------------------------------------------------------------------------------------------


def test_constants_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORENN_CACHE_DIR", str(tmp_path))
    assert known_machine().origin == DEFAULT.origin  # nothing has been measured
    file = keep(replace(MACHINE, name="mine", read_us=12.5))
    assert file == kept_file() and file.is_relative_to(tmp_path)
    assert known_machine() == replace(MACHINE, name="mine", read_us=12.5)
    assert [each.name for each in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 99}, {"read_us": -1}, {"read_us": "fast"}, {"read_us": True}, {"cores": None}, {"code_ns": [1]},
        {"code_ns": [1, -1]}, {"vector_ns": {}}, {"vector_ns": {"f32": 3}}, {"name": 7}, {"stream": math.inf},
    ],
)  # fmt: skip
def test_damaged_constants_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    monkeypatch.setenv("CORENN_CACHE_DIR", str(tmp_path))
    file = keep(MACHINE)
    file.write_text(json.dumps({**MACHINE.as_dict(), **changes}))
    with pytest.raises(FormatError, match="corenn plan --measure"):
        read_machine(file)
    assert known_machine().origin == DEFAULT.origin
    file.write_text("[")
    with pytest.raises(FormatError):
        read_machine(file)
    with pytest.raises(StorageError):
        read_machine(tmp_path / "nowhere")


def test_a_line() -> None:
    assert Line(2, 3).at(4) == 14


@pytest.mark.compiled
def test_a_machine_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"FILE_BYTES": 1 << 23, "READ_SECONDS": 0.02, "DEPTHS": (1, 4), "ROWS": 2_000, "QUERIES": 50,
                        "TURNS": 1, "FAR_BYTES": 1 << 22, "NEAR_BYTES": 1 << 16}.items():  # fmt: skip
        monkeypatch.setattr(measure, name, value)
    steps: list[str] = []
    found = measure.measure(tmp_path, ("f32",), steps.append)
    assert Machine.from_dict(json.loads(json.dumps(found.as_dict()))) == found
    assert found.depth in (1, 4) and found.reads_per_s >= 1e6 / found.read_us * 0.99
    assert 0.1 < found.code_ns.at(64) < 1e4 and 0.1 < found.vector_ns["f32"].at(256) < 1e4
    assert found.memory > 1 << 28 and found.cores >= 1 and "measured" in found.origin
    assert len(steps) >= 5 and list(tmp_path.iterdir()) == []
