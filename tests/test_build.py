"""Bulk builds, through the public interface.

Rules out a graph that finds less than one made by inserts, that hangs on the number of threads or falls apart on equal
rows, one that takes no inserts and deletes, a build that leaves something behind when it fails or is killed, and input
that is checked less than an insert checks it.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corenn import CoreNN, errors
from corenn.graph import bulk, threads
from corenn.graph.insert import Linker
from tests import oracle
from tests.crash.harness import environment
from tests.kinds import LARGE_KERNEL_DTYPES

from .conftest import Sample

SMALL = 80  # rows that are built in bulk without the JIT, too
FEW = 40


@pytest.fixture
def early(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows are enough for a bulk build."""
    monkeypatch.setattr(bulk, "BULK_ROWS", FEW)


@pytest.fixture
def walked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each batch has linked by walks."""
    seen: list[int] = []
    plain = Linker._link_batch

    def noted(self: Linker, batch: Any, head: Any) -> None:
        seen.append(len(batch))
        plain(self, batch, head)

    monkeypatch.setattr(Linker, "_link_batch", noted)
    return seen


def recall(db: CoreNN, rows: Any, queries: Any, **options: Any) -> float:
    """Recall@10, ties counted by distance. Keys are row numbers."""
    table = oracle.distances(db.settings.metric, oracle.rounded(db.settings.dtype, rows), queries)
    bounds = np.sort(table, axis=1)[:, 9]
    found = db.query(queries, 10, **options)
    slack = oracle.tolerance(db.settings.metric, rows, queries) + (0.02 if db.settings.dtype == "i8" else 0)
    return float(
        np.mean([(table[at, [*hits.keys]] <= bounds[at] + slack).mean() for at, hits in enumerate(found)])
    )  # fmt: skip


def distances(db: CoreNN, queries: Any, search_list: int) -> float:
    """Distances measured per query."""
    explained = [hits.explain for hits in db.query(queries, 10, search_list=search_list, explain=True)]
    return float(np.mean([each.distances for each in explained if each is not None]))


def edges(db: CoreNN) -> Any:
    return db._store.edges.array[: len(db)].copy()


# --- the graph --------------------------------------------------------------------------------------------------------


@pytest.mark.compiled
def test_finds_as_much_as_a_graph_made_by_inserts(early: None, walked: list[int], sift: Sample) -> None:
    rows, queries = sift
    with CoreNN.build(None, range(len(rows)), rows, dim=128, metric="l2") as built:
        assert not walked
        with CoreNN.in_memory(dim=128, metric="l2") as grown:
            for start in range(0, len(rows), FEW - 1):
                part = slice(start, min(start + FEW - 1, len(rows)))
                grown.insert(range(len(rows))[part], rows[part])
            assert sum(walked) == len(rows)
            sizes = (12, 16, 20, 24, 32, 48, 96, 128)
            ours, theirs = (
                np.array(
                    [(distances(db, queries, size), recall(db, rows, queries, search_list=size)) for size in sizes]
                )
                for db in (built, grown)
            )
            # For as many distances it finds as much.
            assert (np.interp(theirs[:-1, 0], *ours.T) >= theirs[:-1, 1] - 0.01).all()
        report = built.verify()
        assert not report.problems
        assert report.unreachable == 0


@pytest.mark.compiled
@pytest.mark.parametrize("metric", oracle.METRICS)
@pytest.mark.parametrize("dtype", LARGE_KERNEL_DTYPES)
def test_every_metric_and_dtype(early: None, metric: str, dtype: str, sift: Sample) -> None:
    rows, queries = sift[0][:1500], sift[1][:50]
    with CoreNN.build(None, range(len(rows)), rows, dim=128, metric=metric, dtype=dtype) as db:
        assert recall(db, rows, queries) >= 0.97
        assert not db.verify().problems


@pytest.mark.compiled
def test_norms_that_vary_under_ip(early: None, rng: np.random.Generator) -> None:
    rows = rng.normal(size=(4000, 24)).astype(np.float32)
    rows *= (10 ** rng.uniform(-1, 0, len(rows))).astype(np.float32)[:, None]
    queries = rng.normal(size=(100, 24)).astype(np.float32)
    with CoreNN.build(None, range(len(rows)), rows, dim=24, metric="ip") as db:
        assert recall(db, rows, queries) >= 0.97


@pytest.mark.parametrize("metric", oracle.METRICS)
def test_the_graph_is_whole(early: None, walked: list[int], metric: str, rng: np.random.Generator) -> None:
    rows = rng.normal(size=(SMALL, 6)).astype(np.float32)
    rows[7] = 0
    rows[30:40] = rows[3]
    with CoreNN.build(None, range(SMALL), rows, dim=6, metric=metric, max_edges=8) as db:
        assert not walked
        report = db.verify()
        assert not report.problems
        assert report.unreachable == 0
        assert db._store.edges.array[:SMALL, 0].max() <= 12
        for record, row in zip(db.get(range(SMALL)), rows, strict=True):
            assert record is not None
            np.testing.assert_allclose(record.vector, row, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("metric", oracle.METRICS)
def test_does_not_hang_on_threads(
    early: None, metric: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 3000 if os.environ.get("NUMBA_DISABLE_JIT", "0") == "0" else SMALL
    rows = rng.normal(size=(count, 8)).astype(np.float32)
    rows[::5] = rows[0]
    found = []
    for workers in (1, 2, 3):
        monkeypatch.setattr(threads, "cpu_count", lambda workers=workers: workers)
        with CoreNN.build(None, range(count), rows, dim=8, metric=metric) as db:
            found.append((edges(db), db._store.edges.header[4:].copy()))
    for other in found[1:]:
        np.testing.assert_array_equal(other[0], found[0][0])
        np.testing.assert_array_equal(other[1], found[0][1])


@pytest.mark.compiled
def test_thousands_of_equal_rows(early: None, rng: np.random.Generator) -> None:
    rows = rng.normal(size=(6000, 16)).astype(np.float32)
    rows[1000:4000] = rows[0]
    rows[4000:5000] = rows[1]
    began = time.perf_counter()
    with CoreNN.build(None, range(len(rows)), rows, dim=16, metric="l2") as db:
        assert time.perf_counter() - began < 20
        hits = db.query(rows[0], 200)
        assert {*hits.keys} <= {0, *range(1000, 4000)}
        assert not db.verify().problems
        assert recall(db, rows, rng.normal(size=(50, 16)).astype(np.float32)) >= 0.97


@pytest.mark.compiled
def test_rows_that_are_all_equal(early: None) -> None:
    rows = np.ones((3000, 4), np.float32)
    with CoreNN.build(None, range(3000), rows, dim=4, metric="l2") as db:
        assert len(db.query(rows[0], 100)) == 100
        assert not db.verify().problems


@pytest.mark.compiled
def test_rows_on_a_few_places_that_differ_little(early: None, rng: np.random.Generator) -> None:
    """Leaders at one place do not divide what lies around them: it is cut up."""
    rows = np.repeat(rng.normal(size=(2, 8)), 4000, axis=0) + rng.normal(size=(8000, 8)) * 1e-5
    with CoreNN.build(None, range(8000), rows.astype(np.float32), dim=8, metric="l2") as db:
        assert not db.verify().problems
        assert recall(db, rows.astype(np.float32), rows[:8000:80].astype(np.float32)) >= 0.9


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_hardly_any_rows(count: int, tmp_path: Path, rng: np.random.Generator) -> None:
    rows = rng.normal(size=(count, 4)).astype(np.float32)
    for path in (None, tmp_path / "few"):
        with CoreNN.build(path, range(count), rows, dim=4) as db:
            assert len(db) == count
            assert len(db.query(np.ones(4), 10)) == count
            db.insert(["more"], [[1, 2, 3, 4]])
            assert not db.verify().problems


@pytest.mark.parametrize("room", [True, False])
def test_more_candidates_than_memory(
    early: None, room: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rng: np.random.Generator
) -> None:
    """They go to a file, or stay in memory if the disk is full."""
    rows = rng.normal(size=(SMALL, 6)).astype(np.float32)
    asked: list[int] = []
    plain = bulk.allocate

    def allocate(descriptor: int, size: int) -> None:
        asked.append(size)
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(descriptor, size)

    monkeypatch.setattr(bulk, "allocate", allocate)
    monkeypatch.setattr(bulk, "memory_bytes", lambda: 0)
    with (
        CoreNN.build(tmp_path / "built", range(SMALL), rows, dim=6) as db,
        CoreNN.build(None, range(SMALL), rows, dim=6) as other,
    ):
        assert asked == [SMALL * bulk.OUTER * bulk.INNER * bulk.KEPT * 4]
        np.testing.assert_array_equal(edges(db), edges(other))


# --- what comes after -------------------------------------------------------------------------------------------------


@pytest.mark.compiled
def test_takes_inserts_and_deletes_and_opens_again(
    early: None, walked: list[int], sift: Sample, tmp_path: Path
) -> None:
    rows, queries = sift[0][:3000], sift[1][:50]
    payloads = [{"row": row} for row in range(2000)]
    with CoreNN.build(tmp_path / "built", range(2000), rows[:2000], payloads, dim=128, metric="l2") as db:
        db.insert(range(2000, 3000), rows[2000:])
        assert sum(walked) == 1000
        db.delete(range(0, 2000, 2))
        assert not db.verify().problems
    with CoreNN.open(tmp_path / "built") as db:
        kept = [*range(1, 2000, 2), *range(2000, 3000)]
        table = oracle.distances("l2", rows[kept], queries)
        bounds = np.sort(table, axis=1)[:, 9]
        position = {key: at for at, key in enumerate(kept)}
        found = db.query(queries, 10)
        shares = [
            (table[at, [position[key] for key in hits.keys]] <= bounds[at]).mean() for at, hits in enumerate(found)
        ]
        assert np.mean(shares) >= 0.97
        record = db.get([1])[0]
        assert record is not None
        assert record.payload == {"row": 1}
        assert not db.verify().problems


def test_a_large_first_insert_is_linked_in_bulk(
    early: None, walked: list[int], create: Any, rng: np.random.Generator
) -> None:
    rows = rng.normal(size=(SMALL, 6)).astype(np.float32)
    with CoreNN.build(None, range(SMALL), rows, dim=6) as built:
        db = create(dim=6)
        db.insert(range(SMALL), rows)
        assert not walked
        np.testing.assert_array_equal(edges(db), edges(built))
    db.insert(["one"], rows[:1])
    assert walked == [1]
    assert not db.verify().problems


def test_a_small_first_insert_is_not(early: None, walked: list[int], create: Any, rng: np.random.Generator) -> None:
    db = create(dim=6)
    db.insert(range(FEW - 1), rng.normal(size=(FEW - 1, 6)))
    assert sum(walked) == FEW - 1


def test_many_first_inserts_wait_for_each_other(
    early: None, walked: list[int], create: Any, rng: np.random.Generator
) -> None:
    rows = rng.normal(size=(SMALL, 6)).astype(np.float32)
    db = create(dim=6)
    steps = []
    with db.loading(lambda step, done, total: steps.append((step, done, total))):
        for start in range(0, SMALL, 20):
            db.insert(range(start, start + 20), rows[start : start + 20])
            assert len(db.query(rows[0], start + 20)) == start + 20
        db.delete([5])
    assert not walked
    assert db.stats().pending == 0
    assert {step for step, _, _ in steps} >= {"leaves", "edges"}
    assert all(0 <= done <= total for _, done, total in steps)
    assert not db.verify().problems
    assert db.query(rows[3], 1)[0].key == 3


def test_loading_that_fails_links_what_came(early: None, create: Any, rng: np.random.Generator) -> None:
    db = create(dim=6)

    def load() -> None:
        with db.loading():
            db.insert(range(FEW), rng.normal(size=(FEW, 6)))
            db.insert([1], np.ones((1, 6)))

    with pytest.raises(errors.DuplicateKeyError):
        load()
    db.checkpoint()
    assert db.stats().pending == 0
    assert not db.verify().problems


def test_stopped_on_the_way_leaves_rows_that_wait(
    early: None, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator, tmp_path: Path
) -> None:
    """What Ctrl-C does to an insert, at each of the steps."""
    rows = rng.normal(size=(SMALL, 6)).astype(np.float32)
    for after in (0, 3, 6):
        db = CoreNN.create(tmp_path / f"{after}", dim=6)
        plain, calls = bulk.Builder.build, iter(range(after))

        def stopping(
            self: Any, ids: Any, head: Any, stop: Any, progress: Any = None, *, plain: Any = plain, calls: Any = calls
        ) -> Any:
            return plain(self, ids, head, lambda: next(calls, None) is None, progress)

        monkeypatch.setattr(bulk.Builder, "build", stopping)
        monkeypatch.setattr(type(db._writer), "_may_link", lambda self: False)
        db.insert(range(SMALL), rows)
        assert db.stats().pending == SMALL
        assert len(db.query(rows[0], SMALL)) == SMALL
        monkeypatch.setattr(bulk.Builder, "build", plain)
        db.close()
        with CoreNN.open(tmp_path / f"{after}") as again:
            again.checkpoint()
            assert again.stats().pending == 0
            assert not again.verify().problems


# --- input ------------------------------------------------------------------------------------------------------------


@pytest.mark.compiled
def test_mapped_input_and_steps(early: None, tmp_path: Path, rng: np.random.Generator) -> None:
    rows = rng.normal(size=(40_000, 8)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    steps: list[tuple[str, int, int]] = []
    with CoreNN.build(
        tmp_path / "built", range(len(rows)), mapped, dim=8, metric="l2",
        progress=lambda step, done, total: steps.append((step, done, total)),
    ) as db:  # fmt: skip
        assert db.query(rows[39_999], 1)[0].key == 39_999
        with CoreNN.build(None, range(len(rows)), rows, dim=8, metric="l2") as other:
            np.testing.assert_array_equal(edges(db), edges(other))
    assert [done for step, done, _ in steps if step == "rows"] == [32_768, 40_000]
    for name in {step for step, _, _ in steps}:
        last = [(done, total) for step, done, total in steps if step == name][-1]
        assert last[0] == last[1], name


@pytest.mark.parametrize("keys", [["a", "b", 3], np.array([5, -6, 7]), (8, 9, 10), np.array(["x", "y", "z"])])
def test_keys_of_every_kind(keys: Any) -> None:
    with CoreNN.build(None, keys, np.eye(3), dim=3, metric="l2") as db:
        assert [*db.keys()] == [key.item() if isinstance(key, np.generic) else key for key in keys]


def test_lists_of_lists() -> None:
    with CoreNN.build(None, ["a", "b"], [[1, 2], [3, 4]], [{"n": 1}, None], dim=2) as db:
        assert [record.payload for record in db.get(["a", "b"]) if record] == [{"n": 1}, None]


ROWS = np.ones((3, 2), np.float32)


@pytest.mark.parametrize(
    ("keys", "vectors", "payloads", "error"),
    [
        ([1, 2, 1], ROWS, None, errors.DuplicateKeyError),
        (np.array([1, 2, 1]), ROWS, None, errors.DuplicateKeyError),
        ([1, 2, ""], ROWS, None, errors.InvalidKeyError),
        ("abc", ROWS, None, errors.InvalidKeyError),
        ([1, 2, 2.5], ROWS, None, errors.InvalidKeyError),
        (range(2**63, 2**63 + 3), ROWS, None, errors.InvalidKeyError),
        (np.array([1, 2, 2**63], np.uint64), ROWS, None, errors.InvalidKeyError),
        ([1, 2], ROWS, None, errors.InvalidVectorError),
        ([1, 2, 3], np.ones((3, 4)), None, errors.DimensionError),
        ([1, 2, 3], np.ones(3), None, errors.DimensionError),
        ([1, 2, 3], [[1, 2], [3], [4, 5]], None, errors.DimensionError),
        ([1, 2, 3], [[1, 2], [3, np.nan], [4, 5]], None, errors.InvalidVectorError),
        ([1, 2, 3], [[1, 2], [3, 1e39], [4, 5]], None, errors.InvalidVectorError),
        ([1, 2, 3], np.array([["a", "b"]] * 3), None, errors.UnsupportedDtypeError),
        ([1, 2, 3], ROWS, [None], errors.InvalidPayloadError),
        ([1, 2, 3], ROWS, {"a": 1}, errors.InvalidPayloadError),
        ([1, 2, 3], ROWS, [None, None, 7], errors.InvalidPayloadError),
    ],
)
def test_bad_input_leaves_nothing(
    keys: Any, vectors: Any, payloads: Any, error: type[Exception], tmp_path: Path
) -> None:
    with pytest.raises(error) as built:
        CoreNN.build(tmp_path / "new", keys, vectors, payloads, dim=2)
    assert list(tmp_path.iterdir()) == []
    with CoreNN.in_memory(dim=2) as db, pytest.raises(error) as inserted:
        db.insert(keys, vectors, payloads)
    assert str(built.value) == str(inserted.value)


@pytest.mark.compiled
def test_a_bad_row_far_behind_leaves_nothing(tmp_path: Path, rng: np.random.Generator) -> None:
    rows = rng.normal(size=(40_000, 4)).astype(np.float32)
    rows[39_000, 2] = np.inf
    with pytest.raises(errors.InvalidVectorError, match="rows from 32,768 on"):
        CoreNN.build(tmp_path / "new", range(len(rows)), rows, dim=4)
    assert list(tmp_path.iterdir()) == []


def test_bad_settings(tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidSettingError):
        CoreNN.build(tmp_path / "new", [1], [[1.0]], dim=1, colour="red")
    with pytest.raises(errors.InvalidSettingError):
        CoreNN.build(tmp_path / "new", [1], [[1.0]], dim=1, metric="hamming")
    assert list(tmp_path.iterdir()) == []


# --- the place --------------------------------------------------------------------------------------------------------


def test_something_there_already(tmp_path: Path) -> None:
    CoreNN.create(tmp_path / "taken", dim=2).close()
    (tmp_path / "file").write_text("mine")
    for name in ("taken", "file"):
        with pytest.raises(errors.DatabaseExistsError, match="choose another path"):
            CoreNN.build(tmp_path / name, [1, 2, 3], ROWS, dim=2)
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    with CoreNN.build(tmp_path / "empty", [1, 2, 3], ROWS, dim=2) as db:
        assert len(db) == 3


CHILD = """
import sys, time
import numpy as np
from corenn import CoreNN
def tell(step, done, total):
    if step == sys.argv[2]:
        print("there", flush=True)
        time.sleep(60)
rows = np.random.default_rng(0).normal(size=(12_000, 8)).astype(np.float32)
try:
    CoreNN.build(sys.argv[1], range(len(rows)), rows, dim=8, progress=tell)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.few(2)
@pytest.mark.compiled
@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("step", ["rows", "ring"])
def test_cut_off_is_absent(kill: signal.Signals, step: str, tmp_path: Path) -> None:
    path = tmp_path / "new"
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path), step], env=environment(), stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "there\n"
        child.send_signal(kill)
        said = child.stdout.read()
    assert not path.exists()
    if kill == signal.SIGINT:
        assert said == "interrupted\n"
        assert list(tmp_path.iterdir()) == []
    with CoreNN.build(path, range(3), ROWS, dim=2) as db:  # what the dead one has left goes
        assert len(db) == 3
    assert list(tmp_path.iterdir()) == [path]


DYING = """
import os, sys
import numpy as np
from corenn import CoreNN
from corenn.graph import bulk
bulk.BULK_ROWS = 1000
plain = bulk.Builder._run
def run(self, step, *others, **named):
    if step == sys.argv[2]:
        os._exit(7)
    return plain(self, step, *others, **named)
bulk.Builder._run = run
db = CoreNN.create(sys.argv[1], dim=8)
db.insert(range(2000), np.random.default_rng(0).normal(size=(2000, 8)))
"""


@pytest.mark.few(1)
@pytest.mark.compiled
@pytest.mark.parametrize("step", ["leaves", "reverse", "ring"])
def test_rows_of_a_killed_first_insert_are_linked_in_bulk(
    step: str, early: None, walked: list[int], tmp_path: Path
) -> None:
    done = subprocess.run([sys.executable, "-c", DYING, str(tmp_path / "db"), step], env=environment(), check=False)
    assert done.returncode == 7
    with CoreNN.open(tmp_path / "db") as db:
        db.checkpoint()
        assert len(db) == 2000
        assert db.stats().pending == 0
        assert not walked
        assert not db.verify().problems


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.compiled
def test_import_links_a_new_database_in_bulk(tmp_path: Path, rng: np.random.Generator) -> None:
    from typer.testing import CliRunner

    from corenn.cli import app

    np.save(tmp_path / "rows.npy", rng.normal(size=(12_000, 8)).astype(np.float32))
    run = CliRunner().invoke(
        app, ["import", str(tmp_path / "db"), str(tmp_path / "rows.npy"), "--metric", "l2", "--json"]
    )  # fmt: skip
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout)["rows"] == 12_000
    with (
        CoreNN.open(tmp_path / "db") as db,
        CoreNN.build(None, range(12_000), np.load(tmp_path / "rows.npy"), dim=8, metric="l2") as built,
    ):
        np.testing.assert_array_equal(edges(db), edges(built))
