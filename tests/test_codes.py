"""Walks over codes, through the public interface.

Rules out a mode that loses recall on real data, distances that are estimates, codes that fall behind inserts, upserts,
deletes or a reopening, codes that cannot be made again after damage or loss, and a choice that is not told.
"""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from corenn import CoreNN
from corenn.errors import DiskFullError, InvalidSettingError
from corenn.graph import codebook
from corenn.graph.codes import form_used
from corenn.graph.trial import sample_of
from corenn.kernels.product import Codebook
from corenn.kernels.search import Live
from corenn.storage.commit import BOOKS
from corenn.storage.files import Files
from corenn.storage.format import CHOSEN, CODED, PAGE
from corenn.storage.memory import MemoryMetadata
from corenn.storage.rocks import RocksMetadata
from corenn.storage.slab import FileSlab
from corenn.storage.state import seen_up_to
from tests.conftest import Create, Sample
from tests.kinds import LARGE_KERNEL_DTYPES, STORED, diagonal
from tests.oracle import METRICS, distances, recall
from tests.test_retraining import settled

Rows = NDArray[np.float32]
MODES = ("sq8", "sq4", "rabitq", "pq", "opq", "trunc")
FAITHFUL = MODES[:-1]  # whatever the vectors are
FLOOR = {"sq8": 0.98, "sq4": 0.97, "rabitq": 0.96, "pq": 0.96, "opq": 0.96, "trunc": 0.9}
TRAINED = ("pq", "opq")
MANY = 1_300  # more than a scan is quicker for
BATCH = 500
pytestmark = pytest.mark.compiled


def fill(db: CoreNN, rows: Rows, first: int = 0) -> CoreNN:
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        db.insert(range(first + start, first + start + len(part)), part)
    return db


def book(db: CoreNN) -> Codebook:
    kept = codebook.codebook_of(db._store, db._store.codes)
    assert kept is not None
    return kept


def found(db: CoreNN, rows: Rows, queries: Rows, **options: Any) -> float:
    return recall(db.settings.metric, rows, queries, [hits.keys for hits in db.query(queries, k=10, **options)], 10)


@pytest.fixture
def matryoshka(sift: Sample) -> Sample:
    """Vectors whose first components say most."""
    return tuple(each * 0.96 ** np.arange(128, dtype=np.float32) for each in sift)  # type: ignore[return-value]


@pytest.mark.few(4)
@pytest.mark.parametrize(("name", "mode", "metric"), diagonal(["sift", "embeddings"], FAITHFUL, METRICS, rounds=2))
def test_recall_on_real_vectors(
    memory: Create, request: pytest.FixtureRequest, name: str, mode: str, metric: str
) -> None:
    rows, queries = request.getfixturevalue(name)
    rows = rows[:2_500]
    db = fill(memory(dim=rows.shape[1], metric=metric, compression_mode=mode, compression_threshold=1_000), rows)
    assert db.stats().compression_mode == mode
    bytes_per_row = db.stats().memory["codes"] / len(rows)
    most = rows.shape[1] / 4 if mode in TRAINED else rows.shape[1] * (1 if mode == "sq8" else 0.5) + 28
    assert rows.shape[1] / 8 < bytes_per_row <= most
    assert found(db, rows, queries) >= FLOOR[mode]


@pytest.mark.few(1)
@pytest.mark.parametrize("metric", METRICS)
def test_recall_of_truncated_vectors(memory: Create, matryoshka: Sample, metric: str) -> None:
    rows, queries = matryoshka[0][:2_500], matryoshka[1]
    db = fill(memory(dim=128, metric=metric, compression_mode="trunc", compression_threshold=1_000), rows)
    assert db.stats().memory["codes"] == 64 * len(rows)
    assert found(db, rows, queries) >= 0.97
    db = fill(memory(dim=128, metric=metric, compression_mode="trunc", compression_threshold=0, trunc_dims=100), rows)
    assert db.stats().memory["codes"] == 112 * len(rows)
    assert found(db, rows, queries) >= 0.98


@pytest.mark.few(2)
@pytest.mark.parametrize("mode", TRAINED)
@pytest.mark.parametrize(("dim", "pieces", "width"), [(128, 30, 32), (100, 33, 48), (128, 1, 16), (7, 500, 16)])
def test_any_number_of_subspaces_will_do(
    memory: Create, sift: Sample, mode: str, dim: int, pieces: int, width: int
) -> None:
    rows, queries = (np.ascontiguousarray(each[:, :dim]) for each in (sift[0][:MANY], sift[1][:40]))
    db = fill(memory(dim=dim, metric="l2", compression_mode=mode, compression_threshold=0, pq_subspaces=pieces), rows)
    assert db.stats().compression_mode == mode
    assert db.stats().memory["codes"] == width * len(rows)
    assert found(db, rows, queries, search_list=200) >= (0.5 if pieces == 1 else 0.95)


def test_many_dimensions_are_rotated_in_groups(create: Create, sift: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codebook, "MOST_TURNED", 128 * 50)
    rows, queries = sift[0][:MANY], sift[1][:40]
    db = fill(create(dim=128, metric="l2", compression_mode="opq", compression_threshold=500), rows)
    assert book(db).turn.shape == (128, 43)
    assert found(db, rows, queries) >= FLOOR["opq"]
    assert db.verify().ok


@pytest.mark.parametrize("mode", TRAINED)
@pytest.mark.parametrize("kind", ["constant", "zero", "few", "two", "far", "huge"])
def test_a_codebook_of_rows_that_are_hardly_apart(
    memory: Create, rng: np.random.Generator, mode: str, kind: str
) -> None:
    rows = rng.normal(size=(MANY, 24))
    if kind in ("constant", "zero"):
        rows[:] = 3 if kind == "constant" else 0
    elif kind in ("few", "two"):
        rows = rows[rng.integers(0, 20 if kind == "few" else 2, MANY)]
    else:
        rows = rows * (1e-3 if kind == "far" else 1e17) + (1e3 if kind == "far" else 0)
    rows = rows.astype(np.float32)
    db = fill(memory(dim=24, metric="l2", compression_mode=mode, compression_threshold=0), rows)
    assert db.stats().compression_mode == mode
    assert found(db, rows, rows[:30]) >= 0.95
    assert db.verify().ok


@pytest.mark.parametrize(("mode", "metric"), diagonal(MODES, ["cosine", "ip"]))
def test_rows_without_a_direction_are_found(memory: Create, matryoshka: Sample, mode: str, metric: str) -> None:
    rows = matryoshka[0][:MANY].copy()
    rows[::50] = 0
    db = fill(memory(dim=128, metric=metric, compression_mode=mode, compression_threshold=0), rows)
    assert db.stats().compression_mode == mode
    assert found(db, rows, matryoshka[1][:40]) >= FLOOR[mode] - 0.02
    assert db.verify().ok


@pytest.mark.few(2)
@pytest.mark.parametrize(("mode", "dtype", "metric"), diagonal(["pq", "trunc"], LARGE_KERNEL_DTYPES, METRICS, rounds=2))
def test_every_stored_type_has_codes(memory: Create, matryoshka: Sample, mode: str, dtype: str, metric: str) -> None:
    rows, queries = matryoshka[0][:MANY], matryoshka[1][:40]
    if dtype == "u8":
        rows, queries = np.rint(rows), np.rint(queries)
    settings = {"dim": 128, "metric": metric, "dtype": dtype}
    plain = fill(memory(**settings, compression_mode="none"), rows)
    coded = fill(memory(**settings, compression_mode=mode, compression_threshold=0), rows)
    assert coded.stats().compression_mode == mode
    wanted = plain.query(queries, k=10, exact=True)
    share = [
        np.isin(one.keys, other.keys).mean() for one, other in zip(coded.query(queries, k=10), wanted, strict=True)
    ]
    assert np.mean(share) >= FLOOR[mode]


@pytest.mark.few(2)
@pytest.mark.parametrize(("mode", "dtype"), diagonal(MODES, LARGE_KERNEL_DTYPES))
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


@pytest.mark.few(2)
@pytest.mark.parametrize(("create", "mode"), diagonal(STORED, MODES), indirect=["create"])
def test_codes_keep_up_with_live_changes(create: Create, matryoshka: Sample, mode: str) -> None:
    rows, queries = matryoshka[0][:3_000].copy(), matryoshka[1][:60]
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


@pytest.mark.few(1)
@pytest.mark.parametrize(("create", "mode"), diagonal(STORED, TRAINED), indirect=["create"])
def test_another_codebook_is_trained_when_rows_have_become_many(create: Create, sift: Sample, mode: str) -> None:
    rows, queries = sift
    db = fill(create(dim=128, metric="l2", compression_mode=mode, compression_threshold=0), rows[:1_000])
    assert db.stats().compression_mode == "none"  # too few to be trained by, and scanned by queries
    fill(db, rows[1_000:2_000], 1_000)
    before = db._current()
    assert book(db).version == 1
    fill(db, rows[2_000:], 2_000)
    assert settled(db) == mode
    assert book(db).version == 2
    assert found(db, rows, queries) >= FLOOR[mode]
    assert db.verify().ok
    # Whoever has taken the view before goes on over the old codes.
    answers = db._searcher.query(before, queries, 10, 48, exact=False, threads=1)
    assert recall("l2", rows[:2_000], queries, answers.ids.tolist(), 10) >= 0.97


def test_a_reader_takes_over_another_codebook(tmp_path: Path, sift: Sample) -> None:
    rows, queries = sift
    path = tmp_path / "database"
    with CoreNN.create(path, dim=128, metric="l2", compression_mode="opq", compression_threshold=0) as db:
        fill(db, rows[:2_000])
        with CoreNN.open(path, mode="r") as reader:
            assert book(reader).version == 1
            fill(db, rows[2_000:], 2_000)
            assert settled(db) == "opq"
            assert book(db).version == 2
            assert found(reader, rows[:2_000], queries) >= 0.97
            assert reader.verify().ok
            reader.refresh()
            assert book(reader).version == 2
            assert reader.stats().compression_mode == "opq"
            assert found(reader, rows, queries) >= FLOOR["opq"]
            assert reader.verify().ok


@pytest.mark.parametrize(("mode", "damage"), diagonal(TRAINED, ["gone", "cut", "bytes", "another", "shape"]))
def test_a_lost_codebook_is_trained_again(tmp_path: Path, sift: Sample, mode: str, damage: str) -> None:
    rows, queries = sift[0][:MANY], sift[1][:40]
    path = tmp_path / "database"
    with CoreNN.create(path, dim=128, metric="l2", compression_mode=mode, compression_threshold=500) as db:
        fill(db, rows)
        raw = db._store.metadata.soft(BOOKS[0])
        assert raw is not None
        kept = codebook.unpack(raw, 128)
        assert kept is not None
    metadata = RocksMetadata(path / "meta", Files())
    spoilt = {
        "gone": b"", "cut": raw[:-100], "bytes": raw[:5000] + b"\x55" * 64 + raw[5064:],
        "another": codebook.pack(kept._replace(version=7)), "shape": codebook.pack(kept._replace(books=kept.books[:9])),
    }  # fmt: skip
    metadata.store_soft(BOOKS[0], spoilt[damage])
    metadata.close()
    with CoreNN.open(path, mode="r") as reader:
        assert reader.stats().compression_mode == "none"
        assert found(reader, rows, queries) >= 0.97
    with CoreNN.open(path) as db:
        report = db.verify()
        assert report.ok
        assert any("codebook" in problem.description for problem in report.repaired)
        assert settled(db) == mode
        assert book(db).version > kept.version
        assert found(db, rows, queries) >= FLOOR[mode]
    with CoreNN.open(path) as db:
        assert not db.verify().repaired
        assert db.stats().compression_mode == mode


def test_a_codebook_that_cannot_be_kept_is_no_reason_to_fail(
    create: Create, sift: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, queries = sift[0][:MANY], sift[1][:40]

    def fail(self: Any, name: str, raw: bytes) -> None:
        raise DiskFullError("no room for it")

    with monkeypatch.context() as patch:
        for metadata in (RocksMetadata, MemoryMetadata):
            patch.setattr(metadata, "store_soft", fail)
        db = fill(create(dim=128, metric="l2", compression_mode="pq", compression_threshold=500), rows)
        assert db.stats().compression_mode == "none"
        assert found(db, rows, queries) >= 0.97
    db.configure(compression_mode="pq")  # which tries at once what else waits a minute
    assert settled(db) == "pq"
    assert found(db, rows, queries) >= FLOOR["pq"]


def test_codes_that_were_cut_off_are_made_at_the_next_opening(tmp_path: Path, sift: Sample) -> None:
    """The header says that others are being made: a process was killed in the middle of it."""
    path = tmp_path / "database"
    with CoreNN.create(path, dim=128, metric="l2", compression_mode="pq", compression_threshold=500) as db:
        fill(db, sift[0][:MANY])
    with (path / "codes.slab").open("r+b") as file:
        file.seek(8 * CHOSEN)
        file.write(bytes(8))
    with CoreNN.open(path) as db:
        assert settled(db) == "pq"
        assert db.verify().ok
        assert book(db).version == 2


@pytest.mark.few(2)
@pytest.mark.parametrize(("create", "mode"), diagonal(STORED, MODES), indirect=["create"])
def test_codes_survive_a_compaction_and_a_snapshot(
    create: Create, tmp_path: Path, matryoshka: Sample, mode: str
) -> None:
    rows, queries = matryoshka[0][:3_000], matryoshka[1][:40]
    db = fill(create(dim=128, metric="l2", compression_mode=mode, compression_threshold=500), rows)
    slack = db._current().codes.slack  # type: ignore[union-attr]
    db.delete(range(0, 3_000, 2))
    db.compact()
    assert db.stats().compression_mode == mode
    assert db._current().codes.slack == slack  # type: ignore[union-attr]
    answers = [[key // 2 for key in hits.keys] for hits in db.query(queries, k=10)]  # type: ignore[operator]
    assert recall("l2", rows[1::2], queries, answers, 10) >= FLOOR[mode]
    assert db.verify().ok
    fill(db, rows[:100], 3_000)
    if db.stats().path is None:
        return
    db.snapshot(tmp_path / "copy")
    before = [hits.keys for hits in db.query(queries, k=10)]
    with CoreNN.open(tmp_path / "copy", mode="r") as copy:
        assert copy.stats().compression_mode == mode
        assert [hits.keys for hits in copy.query(queries, k=10)] == before
    db.close()
    with CoreNN.open(db._store.path or "") as again:
        assert again.stats().compression_mode == mode
        assert [hits.keys for hits in again.query(queries, k=10)] == before


@pytest.mark.parametrize("before", ["none", "sq8"])
def test_a_snapshot_follows_a_change_of_mode(tmp_path: Path, sift: Sample, before: str) -> None:
    rows, queries = sift[0][:MANY], sift[1][:40]
    copy, settings = tmp_path / "copy", {"dim": 128, "metric": "l2", "compression_threshold": 500}
    with CoreNN.create(tmp_path / "database", **settings, compression_mode=before) as db:
        fill(db, rows)
        db.snapshot(copy)
        for mode in ("opq", "none", "sq4"):
            db.configure(compression_mode=mode)
            assert settled(db) == mode
            db.snapshot(copy)
            with CoreNN.open(copy, mode="r") as reader:
                assert reader.stats().compression_mode == mode
                assert reader.settings.compression_mode == mode
                assert found(reader, rows, queries) >= FLOOR["opq"]
                assert reader.verify().ok
        db.backup(tmp_path / "backup.tar.gz")
    CoreNN.restore(tmp_path / "backup.tar.gz", tmp_path / "restored")
    with CoreNN.open(tmp_path / "restored") as again:
        assert again.stats().compression_mode == "sq4"
        assert again.verify().ok


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
        assert settled(db) == "sq4"
        assert found(db, np.concatenate((rows, rows[:10])), queries) >= FLOOR["sq4"]


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


@pytest.mark.parametrize("mode", ["sq8", "sq4", "rabitq", "trunc", "pq"])
def test_verify_takes_codes_that_another_processor_may_have_made(tmp_path: Path, mode: str) -> None:
    """It adds up in another order. Else a database that is carried to one is found damaged there."""
    path, distinct = tmp_path / "database", 100 if mode == "pq" else 1_200
    options = {"compression_threshold": 500, "metric": "cosine"} | ({"trunc_dims": 96} if mode == "trunc" else {})
    with CoreNN.create(path, dim=128, compression_mode=mode, **options) as db:
        rows = np.random.default_rng(0).normal(size=(distinct, 128)).astype(np.float32)
        fill(db, np.tile(rows, (1_200 // distinct, 1)))
        assert settled(db) == mode
        assert db._store.codes is not None
        form = form_used(db._store, db._store.codes)
    raw = bytearray((path / "codes.slab").read_bytes())
    places = range(PAGE, PAGE + form.row_bytes * 1_200, 7 * form.row_bytes)
    for place in places:
        if mode == "pq":
            raw[place] += distinct if raw[place] < distinct else -distinct  # centroids of few points come again
            continue
        tail = slice(place + form.body, place + form.used)
        raw[tail] = (np.frombuffer(raw[tail], "<f4") * np.float32(1 + 1e-6)).tobytes()
        raw[place] += 1 if raw[place] % (1 << form.bits) == 0 else -1
    (path / "codes.slab").write_bytes(raw)
    with CoreNN.open(path, mode="r") as db:
        assert db.verify().ok
    for place in places[:5]:
        raw[place + 1 : place + 3] = bytes(each ^ 0xFF for each in raw[place + 1 : place + 3])
    (path / "codes.slab").write_bytes(raw)
    with CoreNN.open(path, mode="r") as db:
        assert [(problem.part, problem.count) for problem in db.verify().problems] == [("codes", 5)]


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


@pytest.mark.parametrize("mode", ["auto", "pq", "opq"])
def test_codes_do_not_depend_on_threads(sift: Sample, mode: str) -> None:
    answers = []
    for threads in (1, 2):
        with CoreNN.in_memory(dim=128, metric="l2", compression_mode=mode, compression_threshold=500) as db:
            db._helpers.threads = threads
            fill(db, sift[0][:MANY])
            answers.append([(hits.keys, hits.distances.tolist()) for hits in db.query(sift[1][:50], k=10)])
    assert answers[0] == answers[1]


@pytest.mark.parametrize("mode", ["pq8", "", "SQ8", None, 4])
def test_an_unknown_mode_is_refused(mode: Any) -> None:
    with pytest.raises(InvalidSettingError, match="compression_mode"):
        CoreNN.in_memory(dim=4, compression_mode=mode)


def test_the_number_of_pieces_is_fixed_at_creation(memory: Create) -> None:
    for name in ("pq_subspaces", "trunc_dims"):
        with pytest.raises(InvalidSettingError, match="fixed at creation"):
            memory(dim=4, compression_mode="sq8").configure(**{name: 2})


@pytest.mark.few(2)
@pytest.mark.parametrize(("create", "before"), diagonal(STORED, ["none", "sq4", "pq", "auto"]), indirect=["create"])
def test_the_mode_can_be_changed(create: Create, sift: Sample, before: str) -> None:
    rows, queries = sift[0][:3_000], sift[1][:60]
    db = fill(create(dim=128, metric="l2", compression_mode=before, compression_threshold=500), rows[:2_500])
    view = db._current()
    for mode in ("opq", "sq8", "none", "trunc", "pq", "auto"):
        db.configure(compression_mode=mode)
        assert settled(db) == {"auto": "sq4"}.get(mode, mode)
        assert found(db, rows[:2_500], queries) >= (FLOOR["pq"] if mode != "trunc" else 0)
        assert db.verify().ok
    if view.codes is not None:  # a query that began before goes on with vectors
        answers = db._searcher.query(view, queries, 10, 48, exact=False, threads=1)
        assert recall("l2", rows[:2_500], queries, answers.ids.tolist(), 10) >= 0.97
    fill(db, rows[2_500:], 2_500)
    db.delete(range(500))
    db.compact()
    assert settled(db) == "sq4"
    assert db.verify().ok
    if db._store.path is not None:
        db.close()
        with CoreNN.open(db._store.path) as again:
            assert again.settings.compression_mode == "auto"
            assert again.stats().compression_mode == "sq4"
            assert not again.verify().repaired


@pytest.mark.parametrize("before", ["rabitq", "trunc", "pq"])
def test_auto_does_not_keep_what_it_would_not_choose(memory: Create, sift: Sample, before: str) -> None:
    db = fill(memory(dim=128, metric="l2", compression_mode=before, compression_threshold=500), sift[0][:1_500])
    assert settled(db) == before
    db.configure(compression_mode="auto")
    assert settled(db) == "sq4"


@pytest.mark.parametrize("before", ["none", "sq4"])
def test_one_handle_may_have_other_codes(tmp_path: Path, sift: Sample, before: str) -> None:
    rows, queries = sift[0][:3_000].copy(), sift[1][:60]
    path = tmp_path / "database"
    with CoreNN.create(path, dim=128, metric="l2", compression_mode=before, compression_threshold=500) as db:
        fill(db, rows[:2_000])
    with CoreNN.open(path, compression_mode="opq") as db:
        assert settled(db) == "opq"
        fill(db, rows[2_000:2_500], 2_000)
        assert found(db, rows[:2_500], queries) >= FLOOR["opq"]
        with CoreNN.open(path, mode="r", compression_mode="none") as reader:
            assert reader.stats().compression_mode == "none"
            assert found(reader, rows[:2_500], queries) >= 0.97
    with CoreNN.open(path, compression_mode="none") as db:  # which changes rows, and no codes
        assert settled(db) == "none"
        rows[:300] = rows[:300][::-1]
        db.upsert(range(300), rows[:300])
        fill(db, rows[2_500:], 2_500)
    for mode in ("opq", before):
        with CoreNN.open(path, compression_mode=mode) as db:
            assert settled(db) == mode
            assert found(db, rows, queries) >= FLOOR["opq"]
            report = db.verify()
            assert report.ok and not report.repaired
    with CoreNN.open(path) as db:
        assert db.settings.compression_mode == before


def test_a_database_without_codes_has_none(create: Create, rng: np.random.Generator) -> None:
    db = create(dim=16, compression_mode="none", compression_threshold=0)
    fill(db, rng.normal(size=(1_500, 16)).astype(np.float32))
    assert db.stats().compression_mode == "none"
    assert "codes" not in db.stats().memory


def test_a_sample_of_many_rows_takes_no_memory_for_each() -> None:
    rows, alive = 100_000_000, np.array([[5 << 16 | 0xFFFF, 0]], np.uint64)
    for total in (0, 1, 7, 1_600, rows):
        live = Live(np.broadcast_to(alive, (total, 2)), np.uint64(seen_up_to(9)), total)
        tracemalloc.start()
        try:
            ids = sample_of(SimpleNamespace(live=live), 100)  # type: ignore[arg-type]
            assert tracemalloc.get_traced_memory()[1] < 10_000_000
        finally:
            tracemalloc.stop()
        assert len(ids) == min(total, 100) and (np.diff(ids.astype(np.int64)) >= 1).all()
        assert not total or (ids[0] == 0 and ids[-1] == total - 1)
