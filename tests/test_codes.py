"""Walks over codes, through the public interface.

Rules out a mode that loses recall on real data, distances that are estimates, codes that fall behind inserts, upserts,
deletes or a reopening, codes that cannot be made again after damage or loss, and a choice that is not told.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from corenn import CoreNN
from corenn.errors import DiskFullError, InvalidSettingError
from corenn.storage.format import CODED, PAGE
from corenn.storage.slab import FileSlab
from tests.conftest import COMPILED, Create, Sample
from tests.oracle import DTYPES, METRICS, distances, recall

Rows = NDArray[np.float32]
MODES = ("sq8", "sq4", "rabitq")
FLOOR = {"sq8": 0.98, "sq4": 0.97, "rabitq": 0.96}
MANY = 2_000 if COMPILED else 1_100
BATCH = 500
pytestmark = pytest.mark.compiled


def fill(db: CoreNN, rows: Rows, first: int = 0) -> CoreNN:
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        db.insert(range(first + start, first + start + len(part)), part)
    return db


def found(db: CoreNN, rows: Rows, queries: Rows, **options: Any) -> float:
    return recall(db.settings.metric, rows, queries, [hits.keys for hits in db.query(queries, k=10, **options)], 10)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["sift", "embeddings"])
def test_recall_on_real_vectors(
    memory: Create, request: pytest.FixtureRequest, name: str, mode: str, metric: str
) -> None:
    rows, queries = request.getfixturevalue(name)
    db = fill(memory(dim=rows.shape[1], metric=metric, compression_mode=mode, compression_threshold=1_000), rows)
    assert db.stats().compression_mode == mode
    bytes_per_row = db.stats().memory["codes"] / len(rows)
    assert rows.shape[1] / 8 < bytes_per_row <= rows.shape[1] * (1 if mode == "sq8" else 0.5) + 28
    assert found(db, rows, queries) >= FLOOR[mode]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
def test_distances_are_those_of_the_vectors(memory: Create, sift: Sample, mode: str, dtype: str) -> None:
    rows, queries = sift[0][:MANY], sift[1][:20]
    coded = fill(memory(dim=128, metric="l2", dtype=dtype, compression_mode=mode, compression_threshold=0), rows)
    plain = fill(memory(dim=128, metric="l2", dtype=dtype, compression_mode="none"), rows)
    for one, other in zip(coded.query(queries, k=10), plain.query(queries, k=10, exact=True), strict=True):
        wanted = dict(zip(other.keys, other.distances.tolist(), strict=True))
        for key, distance in zip(one.keys, one.distances.tolist(), strict=True):
            assert key not in wanted or distance == pytest.approx(wanted[key], rel=1e-5)


def test_codes_begin_at_the_threshold(create: Create, rng: np.random.Generator) -> None:
    db = create(dim=48, compression_mode="sq4", compression_threshold=1_500)
    rows = rng.normal(size=(2_000, 48)).astype(np.float32)
    fill(db, rows[:1_000])
    assert db.stats().compression_mode == "none"
    fill(db, rows[1_000:], 1_000)
    assert db.stats().compression_mode == "sq4"


def test_auto_tells_what_it_picked(memory: Create, sift: Sample) -> None:
    db = fill(memory(dim=128, metric="l2", compression_threshold=1_000), sift[0][:MANY])
    assert db.settings.compression_mode == "auto"
    assert db.stats().compression_mode == "sq4"


def test_auto_declines_codes_that_tell_rows_apart_badly(memory: Create, rng: np.random.Generator) -> None:
    """Rows that differ from one another by far less than by what four bits can say."""
    rows = np.repeat(rng.normal(size=(1, 64)) * 100, MANY, axis=0) + rng.normal(size=(MANY, 64)) * 1e-3
    db = fill(memory(dim=64, metric="l2", compression_threshold=1_000), rows.astype(np.float32))
    queries = rows[:20].astype(np.float32)
    assert db.stats().compression_mode in ("none", "sq8")
    assert found(db, rows.astype(np.float32), queries) >= 0.95


@pytest.mark.parametrize("mode", MODES)
def test_codes_keep_up_with_live_changes(create: Create, sift: Sample, mode: str) -> None:
    rows, queries = sift[0][:3_000].copy(), sift[1][:60]
    db = fill(create(dim=128, metric="l2", compression_mode=mode, compression_threshold=500), rows[:1_500])
    fill(db, rows[1_500:], 1_500)
    rows[:400] = rows[:400][::-1]
    db.upsert(range(400), rows[:400])
    db.delete(range(2_500, 3_000))
    assert found(db, rows[:2_500], queries) >= FLOOR[mode]
    assert db.verify().ok
    nearest = np.argmin(distances("l2", rows[:2_500], rows[:50]), axis=1)
    assert [db.query(row, k=1)[0].key for row in rows[:50]] == nearest.tolist()


@pytest.mark.parametrize("mode", MODES)
def test_codes_are_there_after_reopening_and_for_readers(tmp_path: Path, sift: Sample, mode: str) -> None:
    rows, queries = sift[0][:MANY], sift[1][:60]
    path = tmp_path / "database"
    with CoreNN.create(path, dim=128, metric="l2", compression_mode=mode, compression_threshold=500) as db:
        before = [hits.keys for hits in fill(db, rows).query(queries, k=10)]
        with CoreNN.open(path, mode="r") as reader:
            assert reader.stats().compression_mode == mode
            assert [hits.keys for hits in reader.query(queries, k=10)] == before
    with CoreNN.open(path) as db:
        assert db.stats().compression_mode == mode
        assert [hits.keys for hits in db.query(queries, k=10)] == before
        fill(db, rows[:100], MANY)
        assert db.stats().compression_mode == mode


@pytest.mark.parametrize("damage", ["gone", "cut", "zeroed", "behind"])
def test_lost_codes_are_made_again(tmp_path: Path, sift: Sample, damage: str) -> None:
    rows, queries = sift[0][:MANY], sift[1][:40]
    path = tmp_path / "database"
    with CoreNN.create(path, dim=128, metric="l2", compression_mode="sq4", compression_threshold=500) as db:
        fill(db, rows)
    file = path / "codes.slab"
    raw = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(raw[: PAGE + 80 * 700])
    elif damage == "zeroed":
        file.write_bytes(raw[:PAGE] + bytes(len(raw) - PAGE))
    else:
        raw[8 * CODED : 8 * CODED + 8] = (700).to_bytes(8, "little")
        file.write_bytes(raw)
    with CoreNN.open(path, mode="rescue") as db:
        if damage != "zeroed":  # which only a comparison with the vectors tells
            assert found(db, rows, queries) >= 0.9
        report = db.repair()
        assert report.ok
        assert db.verify().ok
        fill(db, rows[:10], MANY)
        assert db.stats().compression_mode == "sq4"
        assert found(db, rows, queries) >= FLOOR["sq4"]


def test_verify_tells_codes_that_are_wrong(tmp_path: Path, sift: Sample) -> None:
    path = tmp_path / "database"
    with CoreNN.create(path, dim=128, metric="l2", compression_mode="sq8", compression_threshold=500) as db:
        fill(db, sift[0][:1_000])
    with (path / "codes.slab").open("r+b") as file:
        file.seek(PAGE + 144 * 123 + 5)
        file.write(b"\xaa\x55")
    with CoreNN.open(path) as db:
        problems = db.verify().problems
        assert [(problem.part, problem.count) for problem in problems] == [("codes", 1)]
        assert db.repair().ok


def test_rows_that_find_no_room_for_codes_get_them_later(
    tmp_path: Path, sift: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, queries = sift[0][:2_000], sift[1][:40]
    reserve = FileSlab.reserve

    def full(slab: FileSlab, count: int) -> None:
        if slab.spec.name == "codes.slab" and count > len(slab.array):
            raise DiskFullError("no space left on the device")
        reserve(slab, count)

    with CoreNN.create(tmp_path / "db", dim=128, compression_mode="sq8", compression_threshold=500) as db:
        fill(db, rows[:1_000])
        monkeypatch.setattr(FileSlab, "reserve", full)
        fill(db, rows[1_000:], 1_000)
        assert db.verify().problems == (), "walks measure vectors meanwhile, which is no fault"
        assert found(db, rows, queries) >= 0.97
        monkeypatch.undo()
        fill(db, rows[:10], 2_000)
        assert db.stats().compression_mode == "sq8"
        assert db.verify().problems == ()


def test_codes_do_not_depend_on_threads(sift: Sample) -> None:
    answers = []
    for threads in (1, 2):
        with CoreNN.in_memory(dim=128, metric="l2", compression_threshold=500) as db:
            db._helpers.threads = threads
            fill(db, sift[0][:MANY])
            answers.append([(hits.keys, hits.distances.tolist()) for hits in db.query(sift[1][:50], k=10)])
    assert answers[0] == answers[1]


@pytest.mark.parametrize("mode", ["pq", "", "SQ8", None, 4])
def test_an_unknown_mode_is_refused(mode: Any) -> None:
    with pytest.raises(InvalidSettingError, match="compression_mode"):
        CoreNN.in_memory(dim=4, compression_mode=mode)


def test_the_mode_is_fixed_at_creation(memory: Create) -> None:
    with pytest.raises(InvalidSettingError, match="fixed at creation"):
        memory(dim=4, compression_mode="sq8").configure(compression_mode="sq4")


def test_a_database_without_codes_has_none(create: Create, rng: np.random.Generator) -> None:
    db = create(dim=16, compression_mode="none", compression_threshold=0)
    fill(db, rng.normal(size=(1_500, 16)).astype(np.float32))
    assert db.stats().compression_mode == "none"
    assert "codes" not in db.stats().memory
