"""True neighbours of files: streamed, resumed, and written by the command.

Rules out an answer that differs from that of one uninterrupted pass, whatever stopped it and wherever; a state of other
inputs, or a damaged one, that is gone on from; a state left behind or an output of half a search; and memory beyond the
limit.
"""

from __future__ import annotations

import json
import logging
import re
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner, Result

from corenn.cli import app
from corenn.datasets import create_vectors, exact, open_vectors, read_truth, work
from corenn.datasets.exact import nearest
from corenn.datasets.manifest import verify_manifests
from corenn.datasets.neighbours import beside
from corenn.datasets.truth import exact_truth
from corenn.datasets.truth_state import identity, restore
from corenn.datasets.work import MOST_QUERIES
from corenn.errors import DatasetError
from corenn.kernels.topk import Heaps
from tests.crash.harness import environment

Rows = NDArray[Any]
SMALL = 100_000  # bytes of memory: a few hundred rows at a time

CHILD = """
import sys, time
from corenn.datasets import exact, truth, work
plain = exact.Search.offer
def slow(self, block, first):
    plain(self, block, first)
    print(first, flush=True)
    time.sleep(0.1)
exact.Search.offer = slow
truth.exact_truth.__kwdefaults__["saved_every"] = 0.0
work.MOST_ROWS = 500
from corenn.cli import main
main()
"""


@pytest.fixture
def data(rng: np.random.Generator) -> tuple[Rows, Rows]:
    """Rows and queries of whole numbers, many of them equal."""
    return rng.integers(-4, 5, (6_000, 8)).astype(np.float32), rng.integers(-4, 5, (40, 8)).astype(np.float32)


@pytest.fixture
def files(tmp_path: Path, data: tuple[Rows, Rows]) -> tuple[Path, Path]:
    """The same as files."""
    return stored(tmp_path / "base.fbin", data[0]), stored(tmp_path / "queries.fvecs", data[1])


def stored(path: Path, rows: Rows, **options: Any) -> Path:
    with create_vectors(path, rows.shape[1], rows.dtype, **options) as out:
        out.append(rows)
    return path


def truth(base: Path, queries: Rows, k: int = 10, metric: str = "l2", **options: Any) -> tuple[Rows, Rows]:
    with open_vectors(base) as vectors:
        found = exact_truth(vectors, queries, k, metric, **options)
    assert found.distances is not None
    return found.ids, found.distances


def same(found: tuple[Rows, Rows], expected: tuple[Rows, Rows]) -> bool:
    return np.array_equal(found[0], expected[0]) and np.array_equal(found[1], expected[1].astype(np.float32))


def run(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["dataset", "ground-truth", *map(str, arguments)])


# --- streaming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["base.fbin", "base.npy", "base.fvecs", "base.hdf5", "base.parquet", "base.bvecs"])
@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
def test_every_format_in_pieces(name: str, metric: str, tmp_path: Path, data: tuple[Rows, Rows]) -> None:
    pytest.importorskip("h5py" if name.endswith("hdf5") else "pyarrow" if name.endswith("parquet") else "numpy")
    base, queries = data
    steps: list[int] = []
    if name.endswith("bvecs"):
        base = (base + 4).astype(np.uint8)
    path = stored(tmp_path / name, base[:2000])
    found = truth(path, queries, metric=metric, memory_bytes=SMALL, threads=2, progress=steps.append)
    assert same(found, nearest(base[:2000], queries, 10, metric))
    assert sum(steps) == 2000 and len(steps) > 1


def test_the_first_rows_only(files: tuple[Path, Path], data: tuple[Rows, Rows]) -> None:
    assert same(truth(files[0], data[1], rows=1234), nearest(data[0][:1234], data[1], 10, "l2"))
    assert same(truth(files[0], data[1], rows=10**9), nearest(*data, 10, "l2"))


def test_as_many_neighbours_as_there_are_rows(tmp_path: Path, data: tuple[Rows, Rows]) -> None:
    ids, distances = truth(stored(tmp_path / "one.fbin", data[0][:1]), data[1], k=5)
    assert ids.shape == distances.shape == (40, 1) and not ids.any()


@pytest.mark.compiled
def test_memory_stays_below_the_limit(tmp_path: Path, rng: np.random.Generator) -> None:
    rows = rng.normal(size=(40_000, 128)).astype(np.float32)
    path = stored(tmp_path / "base.fbin", rows)
    limit = 5_000_000
    tracemalloc.start()
    try:
        truth(path, rows[:MOST_QUERIES], k=50, memory_bytes=limit, threads=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit + 1_000_000, "what is not the work itself takes less than a megabyte"


# --- interruption -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [0, 1, 2, 7, 12])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_search_that_is_cut_off_anywhere_goes_on(
    after: int, threads: int, files: tuple[Path, Path], data: tuple[Rows, Rows], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Cut off between two products, where some queries have seen rows that others have not."""
    state, calls, offer = tmp_path / "state", iter(range(10**9)), exact.offer

    def failing(*arguments: Any) -> None:
        if next(calls) == after:
            raise KeyboardInterrupt
        offer(*arguments)

    monkeypatch.setattr(exact, "offer", failing)
    with pytest.raises(KeyboardInterrupt):
        truth(files[0], data[1], memory_bytes=SMALL, threads=threads, state=state)
    monkeypatch.undo()
    assert state.exists() or after < 2
    for again in range(2):  # the second call has nothing left to do
        steps: list[int] = []
        found = truth(files[0], data[1], state=state, progress=steps.append, threads=3 - threads)
        assert same(found, nearest(*data, 10, "l2")) and sum(steps) == 6_000 and (not again or len(steps) == 1)


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, "dataset", "ground-truth", *map(str, arguments)],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.compiled
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_command_that_is_killed_goes_on_where_it_was(
    number: signal.Signals, files: tuple[Path, Path], data: tuple[Rows, Rows], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out, state = tmp_path / "truth.ibin", tmp_path / ".truth.ibin.state"
    arguments = (*files, "-k", 10, "--out", out, "--memory", 1, "--threads", 1)
    with start(*arguments) as child:
        assert child.stdout is not None and child.stderr is not None
        lines = [child.stdout.readline() for _ in range(3)]
        child.send_signal(number)
        told = child.stderr.read()
    assert all(lines), told
    assert child.returncode == (-number if number == signal.SIGKILL else 130), told
    assert not out.exists() and state.exists()
    assert number == signal.SIGKILL or ("Interrupted at" in told and "the same command goes on" in told)
    offered: list[int] = []
    offer = exact.Search.offer

    def counting(self: exact.Search, block: Rows, first: int) -> None:
        offered.append(first)
        offer(self, block, first)

    monkeypatch.setattr(exact.Search, "offer", counting)
    monkeypatch.setattr(work, "MOST_ROWS", 500)
    result = run(*arguments)
    assert result.exit_code == 0 and "Going on from" in result.stderr
    assert min(offered) > 0
    found = read_truth(out)
    assert found.distances is not None and same((found.ids, found.distances), nearest(*data, 10, "l2"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.fbin", "queries.fvecs", "truth.ibin"]


def interrupted(files: tuple[Path, Path], queries: Rows, state: Path) -> None:
    """Leave a state of the first rows."""

    def stop(_rows: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        truth(files[0], queries, memory_bytes=SMALL, state=state, progress=stop)
    assert state.exists()


@pytest.mark.parametrize("change", ["base", "queries", "k", "metric", "rows"])
def test_a_state_of_another_task_is_not_used(
    change: str, files: tuple[Path, Path], data: tuple[Rows, Rows], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base, queries = data
    interrupted(files, queries, tmp_path / "state")
    task: dict[str, Any] = {"k": 10, "metric": "l2", "rows": 6_000}
    if change == "base":
        base = base[::-1].copy()
        stored(files[0], base)
    elif change == "queries":
        queries = queries + 1
    else:
        task[change] = {"k": 9, "metric": "ip", "rows": 5_000}[change]
    with caplog.at_level(logging.WARNING):
        found = truth(files[0], queries, state=tmp_path / "state", **task)
    assert "belongs to another task" in caplog.text
    assert same(found, nearest(base[: task["rows"]], queries, task["k"], task["metric"]))


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text", "part"])
def test_a_damaged_state_is_not_used(
    damage: str, files: tuple[Path, Path], data: tuple[Rows, Rows], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = tmp_path / "state"
    interrupted(files, data[1], state)
    whole = bytearray(state.read_bytes())
    if damage == "flip":
        whole[len(whole) // 2] ^= 0x10
    if damage == "part":
        with np.load(state) as saved:
            parts = dict(saved)
        with state.open("wb") as file:
            np.savez(file, **{**parts, "ids": parts["ids"][:3]})
    else:
        state.write_bytes({"cut": whole[:-100], "flip": whole, "empty": b"", "text": b"not a state"}[damage])
    with caplog.at_level(logging.WARNING):
        found = truth(files[0], data[1], state=state)
    assert "is damaged" in caplog.text
    assert same(found, nearest(*data, 10, "l2"))


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["truth.ibin", "truth.ivecs", "truth.npy", "truth.hdf5"])
def test_the_command_writes_every_format(name: str, files: tuple[Path, Path], data: Any, tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    result = run(*files, "-k", 7, "--metric", "ip", "--out", tmp_path / name, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["rows"], told["queries"], told["k"], told["metric"]) == (6000, 40, 7, "ip")
    found = read_truth(tmp_path / name)
    assert found.distances is not None and same((found.ids, found.distances), nearest(*data, 7, "ip"))


def test_a_file_of_ann_benchmarks_gets_its_own_truth(data: tuple[Rows, Rows], tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    path = tmp_path / "set.hdf5"
    stored(path, data[0], part="train", metric="cosine")
    stored(path, data[1], part="test")
    assert run(path, path, "-k", 3, "--out", path).exit_code == 0
    found = read_truth(path)
    assert found.distances is not None and same((found.ids, found.distances), nearest(*data, 3, "cosine"))
    refused = run(path, path, "-k", 3, "--out", path)
    assert refused.exit_code == 1 and "has a data set 'neighbors' already" in refused.stderr
    assert run(path, path, "-k", 3, "--out", path, "--overwrite").exit_code == 0


def test_the_command_says_how_to_go_on(files: tuple[Path, Path], data: tuple[Rows, Rows], tmp_path: Path) -> None:
    out = tmp_path / "truth.ibin"
    few = run(*files, "--rows", 5, "--out", out)
    assert few.exit_code == 0 and "5 neighbours per query instead of 100" in few.stderr
    assert read_truth(out).ids.shape == (40, 5)
    (tmp_path / ".truth.ibin.state").write_bytes(b"left by someone")
    assert run(*files, "--out", out, "--overwrite", "--restart").exit_code == 0
    assert not (tmp_path / ".truth.ibin.state").exists()


def test_the_command_refuses(files: tuple[Path, Path], data: tuple[Rows, Rows], tmp_path: Path) -> None:
    out = tmp_path / "truth.ibin"
    wide = stored(tmp_path / "wide.npy", np.ones((3, 9), np.float32))
    torn = tmp_path / "torn.fbin"
    torn.write_bytes(files[0].read_bytes()[:-1])
    wrong = stored(tmp_path / "wrong.npy", np.where(np.arange(48).reshape(6, 8) == 20, np.nan, 1))
    for arguments, expected in (
        ((files[0], wide, "--out", out), "do not fit"),
        ((torn, files[1], "--out", out), "torn.fbin is torn"),
        ((wrong, files[1], "-k", 2, "--out", out), f"{wrong}: row 2 holds NaN"),
        ((*files, "--metric", "l1", "--out", out), "--metric l1: choose one of"),
        ((tmp_path / "none.fbin", files[1], "--out", out), "does not exist"),
        ((*files, "--out", files[0]), "exists; replace it with --overwrite"),
        ((*files, "-k", 5000, "--memory", 1, "--out", out), "raise the limit"),
    ):
        result = run(*arguments)
        assert result.exit_code == 1 and expected in result.stderr, result.output
        assert result.stderr.count("\n") == 1 or "searching" in result.stderr
        assert not out.exists() and not (tmp_path / ".truth.ibin.state").exists()


def test_rows_beside_the_bad_one_are_named(tmp_path: Path) -> None:
    rows = np.ones((3_000, 4), np.float32)
    rows[2_500, 1] = np.inf
    with pytest.raises(DatasetError, match=r"base\.fbin: row 2,500 holds NaN, infinity"):
        truth(stored(tmp_path / "base.fbin", rows), rows[:1], memory_bytes=SMALL)


def test_the_example_of_the_page_runs(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "ground-truth.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.S | re.M)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("True True\n", "")


# --- what is found out before the work, and what lies beside the answer -----------------------------------------------


def unsearched(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        pytest.fail("searched, for an answer that nobody can write or nothing can hold")

    monkeypatch.setattr(exact.Search, "__init__", never)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("truth.fbin", "holds f32, not i32"), ("truth.txt", "unknown format"), ("truth.rangeres", "unknown format"),
        ("broken.hdf5", "not a whole HDF5 file"),
    ],
)  # fmt: skip
def test_an_answer_that_cannot_be_written_is_not_searched_for(
    name: str, reason: str, files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("h5py")
    unsearched(monkeypatch)
    (tmp_path / "broken.hdf5").write_bytes(b"not HDF5")
    before = sorted(tmp_path.iterdir())
    result = run(*files, "--out", tmp_path / name, "--overwrite")
    assert result.exit_code == 1 and reason in result.stderr, result.output
    assert sorted(tmp_path.iterdir()) == before


def test_rows_that_int32_cannot_number_are_not_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unsearched(monkeypatch)
    with (tmp_path / "base.u8bin").open("wb") as file:
        file.write(np.array([2**31 + 1, 1], "<u4").tobytes())
        file.truncate(8 + 2**31 + 1)
    queries = stored(tmp_path / "queries.u8bin", np.zeros((1, 1), np.uint8))
    result = run(tmp_path / "base.u8bin", queries, "--out", tmp_path / "truth.ibin")
    assert result.exit_code == 1 and "2,147,483,649 rows; their numbers are int32" in result.stderr


def test_queries_that_do_not_fit_are_not_even_read(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among them the base itself, named twice by mistake: a hundred gigabytes of queries."""
    with (tmp_path / "queries.fbin").open("wb") as file:
        file.write(np.array([10**9, 8], "<u4").tobytes())
        file.truncate(8 + 32 * 10**9)
    result = run(files[0], tmp_path / "queries.fbin", "--out", tmp_path / "truth.ibin")
    assert result.exit_code == 1 and "1,000,000,000 queries with 100 neighbours" in result.stderr
    assert "raise the limit" in result.stderr


@pytest.mark.parametrize("name", ["truth.npy", "truth.ivecs"])
def test_distances_in_a_file_of_their_own_have_a_manifest_too(
    name: str, files: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "sets" / "mine" / "gt" / name
    (tmp_path / "sets" / "mine" / "manifests").mkdir(parents=True)
    assert run(*files, "-k", 3, "--out", out).exit_code == 0
    verdicts = verify_manifests(tmp_path / "sets")
    assert [each.problem for each in verdicts] == [None, None]
    assert {each.file.name for each in verdicts} == {name, beside(out).name}


def test_distances_of_something_else_are_not_replaced(files: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "truth.distances.npy").write_bytes(b"mine")
    result = run(*files, "-k", 3, "--out", tmp_path / "truth.npy")
    assert result.exit_code == 1 and "truth.distances.npy exists; replace it with --overwrite" in result.stderr
    assert (tmp_path / "truth.distances.npy").read_bytes() == b"mine" and not (tmp_path / "truth.npy").exists()


def test_no_changed_byte_of_a_state_is_more_than_a_warning(
    files: tuple[Path, Path], data: tuple[Rows, Rows], tmp_path: Path
) -> None:
    """Those between the arrays, where zipfile reads flags, methods and lengths."""
    state = tmp_path / "state"
    interrupted(files, data[1][:2], state)
    whole = state.read_bytes()
    expected = nearest(data[0], data[1][:2], 10, "l2")
    starts = [match.start() for match in re.finditer(b"PK|NUMPY", whole)]
    places = {start + at for start in starts for at in range(60) if start + at < len(whole)}
    with open_vectors(files[0]) as base:
        label = identity(base, 6_000, data[1][:2], 10, "l2")
        for place in sorted(places):
            state.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
            heaps = Heaps(np.full((2, 10), np.inf), np.zeros((2, 10), np.int64), np.zeros(2, np.int64))
            restore(state, label, heaps)
    state.write_bytes(whole)
    assert same(truth(files[0], data[1][:2], state=state), expected)
