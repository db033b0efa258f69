"""Exports. Rules out a row that is lost, doubled, out of step between the files or of another moment than the others,
and a folder that appears although the export failed.
"""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corenn import CoreNN
from corenn.datasets import open_vectors
from corenn.datasets.manifest import read_manifest, verify_file
from corenn.errors import CorruptionError, DatabaseExistsError, DatasetError, NotADatabaseError
from corenn.migrate import Exported, Snapshot, export_vectors
from corenn.migrate import snapshot as snapshot_module
from tests.migrate.indexes import gaussian

FILES = ("vectors.raw", "ids.raw", "keys.jsonl", "payloads.jsonl")


def exported(path: Path, out: Path, **options: Any) -> Exported:
    with Snapshot(path) as snapshot:
        return export_vectors(snapshot, out, **options)


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_bytes().removesuffix(b"\n").split(b"\n")]


def matrix(path: Path) -> Any:
    with open_vectors(path) as vectors:
        return vectors.rows(0, len(vectors)).copy()


def filled(path: Path, rows: int = 120, dim: int = 5, **given_settings: Any) -> Path:
    """A closed database in which some rows were replaced and some deleted."""
    vectors = np.abs(gaussian(rows, dim)) * 20
    with CoreNN.create(path, dim=dim, **given_settings) as db:
        db.insert(range(rows), vectors, [{"row": row, "name": "é\n"} if row % 3 else None for row in range(rows)])
        db.upsert([7, 8], vectors[:2], [{"new": True}, None])
        db.delete(range(50, 60))
        db.insert(["text", "ключ"], vectors[2:4])
    return path


# --- the rows ---------------------------------------------------------------------------------------------------------


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("metric", "dtype"),
    [
        ("l2", "f32"),
        ("cosine", "f32"),
        ("ip", "f32"),
        ("cosine", "f16"),
        ("ip", "bf16"),
        ("cosine", "i8"),
        ("l2", "u8"),
    ],
)
def test_rows_are_those_that_get_returns(tmp_path: Path, metric: str, dtype: str) -> None:
    path, out = filled(tmp_path / "db", metric=metric, dtype=dtype), tmp_path / "out"
    made = exported(path, out)
    assert made == Exported(112, 5, "f32", FILES)
    assert sorted(file.name for file in out.iterdir()) == sorted([*FILES, *(f"{name}.json" for name in FILES)])
    with CoreNN.open(path, mode="r") as db:
        keys = lines(out / "keys.jsonl")
        assert keys == list(db.keys())
        records = [record for record in db.get(keys) if record is not None]
    assert lines(out / "payloads.jsonl") == [record.payload for record in records]
    assert (matrix(out / "vectors.raw") == np.stack([record.vector for record in records])).all()
    ids = matrix(out / "ids.raw")[:, 0]
    assert ids.dtype == np.uint32
    # 120 rows, of which 7, 8 and 50 to 59 are gone; then two that replace, and two with text for keys.
    assert ids.tolist() == [row for row in range(124) if row not in (7, 8) and not 50 <= row < 60]


Keys = st.lists(st.integers(-(2**63), 2**63 - 1) | st.text(st.characters(codec="utf-8"), min_size=1, max_size=9),
                min_size=1, max_size=30, unique_by=lambda key: (type(key), key))  # fmt: skip


@given(Keys, st.sets(st.integers(0, 29)), st.integers(1, 7))
@settings(max_examples=8)
def test_any_keys_come_back_in_step(
    tmp_path_factory: pytest.TempPathFactory, keys: list[Any], gone: set[int], block: int
) -> None:
    folder = tmp_path_factory.mktemp("any")
    vectors = gaussian(len(keys), 3)
    left = [row for row in range(len(keys)) if row not in gone]
    with CoreNN.create(folder / "db", dim=3, metric="l2") as db:
        db.insert(keys, vectors, [{"key": key} for key in keys])
        db.delete([keys[row] for row in gone if row < len(keys)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshot_module, "MOST_ROWS", block)
        if not left:
            with pytest.raises(DatasetError, match="no rows"):
                exported(folder / "db", folder / "out")
            return
        exported(folder / "db", folder / "out", parquet=True)
    assert lines(folder / "out" / "keys.jsonl") == [keys[row] for row in left]
    assert lines(folder / "out" / "payloads.jsonl") == [{"key": keys[row]} for row in left]
    assert (matrix(folder / "out" / "vectors.raw") == vectors[left]).all()
    assert (matrix(folder / "out" / "rows.parquet") == vectors[left]).all()


def test_an_export_is_of_one_moment_beside_a_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_module, "MOST_ROWS", 40)
    vectors = gaussian(400, 4)
    with CoreNN.create(tmp_path / "db", dim=4, metric="l2") as db:
        db.insert([f"{row}" for row in range(400)], vectors, [{"row": row} for row in range(400)])

        def write(_: int) -> None:
            """Change rows that were exported already, and such that were not."""
            at = len(list(db.keys())) % 400
            db.upsert(["1", "399"], vectors[at : at + 2] * 2, [{"row": -1}, None])
            db.delete([f"{row}" for row in range(at % 90, 400, 90)])
            db.set_payload(["398"], [{"row": -2}])
            db.insert([f"new {at} {np.random.default_rng().integers(1 << 60)}"], vectors[:1])
            db.checkpoint()

        exported(tmp_path / "db", tmp_path / "out", progress=write)
        assert len(db) != 400
    assert lines(tmp_path / "out" / "keys.jsonl") == [f"{row}" for row in range(400)]
    assert lines(tmp_path / "out" / "payloads.jsonl") == [{"row": row} for row in range(400)]
    assert (matrix(tmp_path / "out" / "vectors.raw") == vectors).all()


@pytest.mark.compiled
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_module, "MOST_ROWS", 100)
    with CoreNN.create(tmp_path / "db", dim=512, metric="l2", max_edges=4, update_search_list_cap=8) as db:
        db.insert(range(3_000), gaussian(3_000, 512), [{"text": "x" * 2_000}] * 3_000)
    exported(tmp_path / "db", tmp_path / "before")  # loads what is loaded once
    tracemalloc.start()
    exported(tmp_path / "db", tmp_path / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000  # the vectors alone take 6 MB, and so do the payloads


def test_blocks_are_cut_where_payloads_are_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_module, "BLOCK_BYTES", 100_000)
    payloads = [{"text": "x" * 5_000 if row < 200 else "x"} for row in range(300)]
    with CoreNN.create(tmp_path / "db", dim=4, metric="l2") as db:
        db.insert(range(300), gaussian(300, 4), payloads)
    with Snapshot(tmp_path / "db") as snapshot:
        blocks = list(snapshot.blocks())
    sizes = [sum(len(payload or b"") for payload in rows.payloads) for rows in blocks]
    assert max(sizes) < 100_000 + 5_100 * snapshot_module.READ_ROWS
    assert len(blocks) < 12
    assert [key for rows in blocks for key in rows.keys] == list(range(300))
    assert [json.loads(payload or b"") for rows in blocks for payload in rows.payloads] == payloads
    assert (np.concatenate([rows.vectors for rows in blocks]) == gaussian(300, 4)).all()


# --- types and formats ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "slack"), [("f16", 1e-3), ("bf16", 1e-2), ("f64", 0.0)])
def test_vectors_in_another_type(tmp_path: Path, dtype: str, slack: float) -> None:
    path = filled(tmp_path / "db", metric="l2")
    exported(path, tmp_path / "plain")
    assert exported(path, tmp_path / "out", dtype=dtype).dtype == dtype
    plain, other = matrix(tmp_path / "plain" / "vectors.raw"), matrix(tmp_path / "out" / "vectors.raw")
    assert np.allclose(other.astype(np.float64), plain, rtol=slack, atol=0)
    manifest = read_manifest(tmp_path / "out" / "vectors.raw.json")
    assert (manifest.dtype, manifest.dim, manifest.count, manifest.metric) == (dtype, 5, 112, "l2")


def test_whole_numbers_go_into_bytes_and_fractions_do_not(tmp_path: Path) -> None:
    whole = np.random.default_rng(0).integers(0, 256, (50, 8))
    with CoreNN.create(tmp_path / "db", dim=8, metric="l2", dtype="u8") as db:
        db.insert(range(50), whole)
    exported(tmp_path / "db", tmp_path / "out", dtype="u8", parquet=True)
    assert (matrix(tmp_path / "out" / "vectors.raw") == whole).all()
    assert matrix(tmp_path / "out" / "rows.parquet").dtype == np.uint8
    with pytest.raises(DatasetError, match=r"fractions, row 0: .* cannot be kept as u8"):
        exported(filled(tmp_path / "fractions", metric="l2"), tmp_path / "bytes", dtype="u8")
    assert not (tmp_path / "bytes").exists()


@pytest.mark.parametrize("mixed", [False, True])
def test_parquet_holds_the_same_rows(tmp_path: Path, mixed: bool) -> None:
    import pyarrow.parquet

    path = filled(tmp_path / "db", metric="ip")
    if not mixed:
        with CoreNN.open(path) as db:
            db.delete(["text", "ключ"])
    made = exported(path, tmp_path / "out", parquet=True)
    assert made.files == (*FILES, "rows.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "out" / "rows.parquet")
    keys = lines(tmp_path / "out" / "keys.jsonl")
    assert table["key"].to_pylist() == ([str(key) for key in keys] if mixed else keys)
    assert table["id"].to_pylist() == matrix(tmp_path / "out" / "ids.raw")[:, 0].tolist()
    payloads = [None if text is None else json.loads(text) for text in table["payload"].to_pylist()]
    assert payloads == lines(tmp_path / "out" / "payloads.jsonl")
    assert table["vector"].to_pylist() == matrix(tmp_path / "out" / "vectors.raw").tolist()


def test_parquet_has_no_bf16(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="bfloat16"):
        exported(filled(tmp_path / "db"), tmp_path / "out", dtype="bf16", parquet=True)
    assert not (tmp_path / "out").exists()


def test_every_file_has_a_manifest_that_holds(tmp_path: Path) -> None:
    made = exported(filled(tmp_path / "db"), tmp_path / "out", parquet=True, command="corenn export-vectors db")
    for name in made.files:
        assert verify_file(tmp_path / "out" / name).problem is None
        manifest = read_manifest(tmp_path / "out" / f"{name}.json")
        assert (manifest.name, manifest.file, manifest.command) == ("out", name, "corenn export-vectors db")
        assert manifest.source == str(tmp_path / "db")


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_what_cannot_be_exported_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(NotADatabaseError):
        exported(tmp_path / "nothing", tmp_path / "out")
    CoreNN.create(tmp_path / "db", dim=3).close()
    with pytest.raises(DatasetError, match="no rows"):
        exported(tmp_path / "db", tmp_path / "out")
    with pytest.raises(DatasetError, match="unknown type"):
        exported(filled(tmp_path / "full"), tmp_path / "out", dtype="f8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["db", "full"]
    with pytest.raises(DatabaseExistsError):
        exported(tmp_path / "full", tmp_path / "db")
    (tmp_path / "out").mkdir()  # an empty folder is as good as none
    exported(tmp_path / "full", tmp_path / "out")


def test_a_damaged_vector_is_never_exported(tmp_path: Path) -> None:
    path = filled(tmp_path / "db", metric="l2")
    with (path / "vectors.slab").open("r+b") as slab:
        slab.seek(4096 + 33 * 32 + 3)
        slab.write(b"\x99")
    with pytest.raises(CorruptionError, match="33"):
        exported(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("after", [0, 2])
def test_an_interrupted_export_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], after: int
) -> None:
    monkeypatch.setattr(snapshot_module, "MOST_ROWS", 30)
    path = filled(tmp_path / "db")
    calls = iter(range(after))

    def interrupt(_: int) -> None:
        if next(calls, None) is None:
            raise error

    with pytest.raises(error):
        exported(path, tmp_path / "out", parquet=True, progress=interrupt)
    assert [each.name for each in tmp_path.iterdir()] == ["db"]
    exported(path, tmp_path / "out", parquet=True)
