"""`corenn dataset info|convert|sample|split|list|verify`, and `corenn import` of vector files.

Rules out tracebacks for what a user can cause, output that is replaced without being asked for, a command in a manifest
that does not make the same bytes again, parts that overlap or lose rows, and damage that verify does not report in its
exit code.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from corenn import CoreNN
from corenn.cli import app
from corenn.datasets import open_vectors, read_truth, write_truth
from corenn.datasets.manifest import read_manifest
from tests.crash.harness import environment

from .contract import Rows, read, same, some_rows, written


def corenn(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(argument) for argument in arguments])


def done(*arguments: object) -> str:
    """What `corenn dataset …` prints."""
    result = corenn("dataset", *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def figures(*arguments: object) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(done(*arguments, "--json"))
    return parsed


def refused(*arguments: object) -> str:
    """The one line on stderr of a command that fails."""
    result = corenn(*arguments)
    assert result.exit_code == 1, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in result.stderr
    return errors[0]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with `a.npy` in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CORENN_DATASETS", raising=False)
    np.save("a.npy", some_rows(50, 4, "f32"))
    return tmp_path


@pytest.fixture
def rows() -> Rows:
    return some_rows(50, 4, "f32")


def test_every_command_has_help_with_an_example() -> None:
    for name in ("list", "info", "convert", "sample", "split", "verify"):
        shown = corenn("dataset", name, "--help")
        assert shown.exit_code == 0 and f"Example: corenn dataset {name}" in shown.output


# --- info -------------------------------------------------------------------------------------------------------------


def test_info(here: Path) -> None:
    vectors = np.zeros((5, 4), np.float32)
    vectors[0], vectors[1, 0], vectors[2, 1] = [3, 4, 0, 0], np.nan, np.inf
    np.save("b.npy", vectors)
    told = figures("info", "b.npy")
    assert (told["rows"], told["dim"], told["dtype"], told["format"], told["metric"]) == (5, 4, "f32", "npy", None)
    assert told["bytes"] == Path("b.npy").stat().st_size and told["manifest"] is None
    assert told["norms"] == {
        "rows": 5, "min": 0.0, "mean": round(5 / 3, 6), "max": 5.0, "zero_rows": 2, "non_finite_rows": 2,
    }  # fmt: skip
    assert "5 rows of 4 f32" in done("info", "b.npy") and "2 with NaN" in done("info", "b.npy")


def test_info_of_long_rows_takes_no_more_memory(here: Path) -> None:
    """A thousand of them, which would be 800 MB in float64."""
    with Path("long.fbin").open("wb") as file:
        file.write(np.array([1_000, 100_000], "<u4").tobytes())
        file.truncate(8 + 4 * 1_000 * 100_000)
    tracemalloc.start()
    told = figures("info", "long.fbin")
    assert tracemalloc.get_traced_memory()[1] < 200 << 20
    tracemalloc.stop()
    assert told["norms"] == {
        "rows": 1_000, "min": 0.0, "mean": 0.0, "max": 0.0, "zero_rows": 1_000, "non_finite_rows": 0,
    }  # fmt: skip


def test_info_of_norms_beyond_float64_is_json(here: Path) -> None:
    np.save("b.npy", np.array([[1e200, 1e200], [3, 4]]))
    assert "Infinity" not in done("info", "b.npy", "--json")
    assert figures("info", "b.npy")["norms"]["min"] == 5.0
    assert "5 to beyond f64" in done("info", "b.npy")


def test_info_of_neighbours_and_of_all_parts(here: Path) -> None:
    pytest.importorskip("h5py")
    write_truth("gt.ibin", np.zeros((3, 2), int), np.zeros((3, 2)))
    told = figures("info", "gt.ibin")
    assert (told["kind"], told["rows"], told["dim"], told["distances"]) == ("neighbours", 3, 2, True)
    assert "3 queries with 2 neighbours each" in done("info", "gt.ibin")
    done("convert", "a.npy", "a.hdf5", "--metric", "cosine")
    write_truth("a.hdf5", np.zeros((3, 2), int))
    told = figures("info", "a.hdf5")
    assert told["metric"] == "cosine"
    assert told["parts"] == {
        "train": {"shape": [50, 4], "dtype": "float32"}, "neighbors": {"shape": [3, 2], "dtype": "int32"},
    }  # fmt: skip


# --- convert ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".fvecs", ".fbin", ".hdf5", ".parquet", ".arrow", ".raw", ".f16bin", ".i8bin"])
def test_convert_there_and_back(here: Path, rows: Rows, ending: str) -> None:
    pytest.importorskip("h5py")
    pytest.importorskip("pyarrow")
    whole = rows.round() + np.float32(0)  # an integer has no -0
    np.save("a.npy", whole)
    told = figures("convert", "a.npy", f"b{ending}")
    assert (told["rows"], told["dim"], told["source"]) == (50, 4, "a.npy")
    done("convert", f"b{ending}", "back.npy", "--dtype", "f32")
    assert same(read(here / "back.npy"), whole)


@pytest.mark.parametrize("ending", [".npy", ".hdf5", ".parquet", ".raw"])
def test_convert_to_f16(here: Path, rows: Rows, ending: str) -> None:
    pytest.importorskip("h5py")
    pytest.importorskip("pyarrow")
    assert figures("convert", "a.npy", f"b{ending}", "--dtype", "f16")["dtype"] == "f16"
    assert same(read(here / f"b{ending}"), rows.astype(np.float16))


def test_convert_some_rows(here: Path, rows: Rows) -> None:
    done("convert", "a.npy", "b.fbin", "--rows", "10:20")
    assert same(read(here / "b.fbin"), rows[10:20])
    done("convert", "a.npy", "b.fbin", "--rows", ":5", "--overwrite")
    assert same(read(here / "b.fbin"), rows[:5])
    for wrong in ("20:10", "0:51", "x:y", "5:5", "-3:2"):
        assert "--rows" in refused("dataset", "convert", "a.npy", "c.fbin", f"--rows={wrong}")
    assert not Path("c.fbin").exists()


def test_convert_onto_itself(here: Path, rows: Rows) -> None:
    done("convert", "a.npy", "a.npy", "--dtype", "f16", "--overwrite")
    assert same(read(here / "a.npy"), rows.astype(np.float16))


def test_convert_into_and_out_of_one_file_of_ann_benchmarks(here: Path, rows: Rows) -> None:
    pytest.importorskip("h5py")
    write_truth("gt.ibin", np.arange(6).reshape(3, 2), np.arange(6).reshape(3, 2) ** 2)
    done("convert", "a.npy", "all.hdf5", "--out-part", "train", "--metric", "l2")
    done("convert", "a.npy", "all.hdf5", "--out-part", "test", "--rows", "0:3")
    done("convert", "gt.ibin", "all.hdf5", "--overwrite")
    told = figures("info", "all.hdf5")
    assert set(told["parts"]) == {"train", "test", "neighbors", "distances"} and told["metric"] == "l2"
    done("convert", "all.hdf5", "test.fvecs", "--part", "test")
    done("convert", "all.hdf5", "back.ibin", "--part", "neighbors")
    assert same(read(here / "test.fvecs"), rows[:3])
    assert Path("back.ibin").read_bytes() == Path("gt.ibin").read_bytes()
    assert "'test' already" in refused("dataset", "convert", "a.npy", "all.hdf5", "--out-part", "test")
    assert "all.hdf5 exists" in refused("dataset", "convert", "a.npy", "all.hdf5")


def test_what_cannot_be_converted(here: Path) -> None:
    Path("torn.fbin").write_bytes(bytes(5))
    Path("there.fbin").write_bytes(b"mine")
    write_truth("gt.ibin", np.zeros((3, 2), int), np.zeros((3, 2)))
    said = {
        ("none.npy", "b.fbin"): "does not exist", ("torn.fbin", "b.npy"): "torn", ("a.npy", "b.csv"): "unknown format",
        ("a.npy", "there.fbin"): "--overwrite", ("a.npy", "b.u8bin"): "cannot be kept as u8",
        ("a.npy", "b.npy", "--dtype", "bf16"): "bf16 goes into", ("a.npy", "b.npy", "--dtype", "x"): "unknown type 'x'",
        ("a.npy", "b.npy", "--metric", "x"): "--metric x", ("gt.ibin", "b.ibin", "--dtype", "f32"): "for vectors",
        (".", "b.npy"): "not a file",
    }  # fmt: skip
    for arguments, message in said.items():
        assert message in refused("dataset", "convert", *arguments)
    assert Path("there.fbin").read_bytes() == b"mine"
    assert not [each for each in here.iterdir() if each.name.startswith(("b.", "."))]


def test_ranges_are_converted_only_into_ranges(here: Path) -> None:
    from corenn.datasets import RangeTruth, write_range_truth

    write_range_truth("gt.rangeres", RangeTruth(np.array([0, 2, 2]), np.arange(2), np.ones(2, np.float32)))
    done("convert", "gt.rangeres", "gt.ibin")
    assert Path("gt.ibin").read_bytes() == Path("gt.rangeres").read_bytes()
    assert "radius go into" in refused("dataset", "convert", "gt.rangeres", "gt.npy")


def test_a_missing_extra_is_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    assert "pip install 'corenn[datasets]'" in refused("dataset", "convert", "a.npy", "b.hdf5")


# --- sample and split -------------------------------------------------------------------------------------------------


def test_sample(here: Path, rows: Rows) -> None:
    done("sample", "a.npy", "s.fbin", "--rows", 10, "--seed", 3)
    done("convert", "a.npy", "a.fvecs")
    done("sample", "a.fvecs", "t.fbin", "--rows", 10, "--seed", 3)
    done("sample", "a.npy", "u.fbin", "--rows", 10, "--seed", 4)
    done("sample", "a.npy", "all.npy", "--rows", 50)
    one, other = read(here / "s.fbin"), read(here / "u.fbin")
    assert Path("s.fbin").read_bytes() == Path("t.fbin").read_bytes() != Path("u.fbin").read_bytes()
    assert same(read(here / "all.npy"), rows)
    for sample in (one, other):
        places = [int(np.flatnonzero((rows == row).all(axis=1))[0]) for row in sample]
        assert places == sorted(set(places)) and len(places) == 10
    assert "--rows 51" in refused("dataset", "sample", "a.npy", "x.npy", "--rows", 51)


def test_split_into_files(here: Path, rows: Rows) -> None:
    told = figures("split", "a.npy", "--test", 10)
    assert {name: each["rows"] for name, each in told["parts"].items()} == {"train": 40, "test": 10}
    both = np.concatenate([read(here / "a-train.npy"), read(here / "a-test.npy")])
    assert sorted(both.tolist()) == sorted(rows.tolist())
    figures("split", "a.npy", "--parts", "x=20%,y=0.5,z=rest", "--out", "{part}.fbin", "--dtype", "f32")
    assert [len(read(here / f"{name}.fbin")) for name in "xyz"] == [10, 25, 15]
    assert "exists" in refused("dataset", "split", "a.npy", "--test", 10)


def test_split_into_one_file(here: Path, rows: Rows) -> None:
    pytest.importorskip("h5py")
    done("split", "a.npy", "--test", "0.2", "--out", "a.hdf5", "--seed", 1)
    done("split", "a.npy", "--test", "0.2", "--out", "{part}.npy", "--seed", 1)
    for part in ("train", "test"):
        assert same(read(here / "a.hdf5", part=part), read(here / f"{part}.npy"))
    assert sorted(each.name for each in here.iterdir()) == ["a.hdf5", "a.npy", "test.npy", "train.npy"]


def test_what_cannot_be_split(here: Path) -> None:
    said = {
        (): "--test ROWS", ("--test", "5", "--parts", "a=1,b=rest"): "--test ROWS", ("--test", "50"): "none empty",
        ("--parts", "a=1"): "two or more", ("--parts", "a=1,a=rest"): "each name once",
        ("--parts", "../a=1,b=rest"): "--parts", ("--parts", "a=x,b=rest"): "part of 'x'",
        ("--test", "5", "--out", "b.npy"): "{part}",
    }  # fmt: skip
    for arguments, message in said.items():
        assert message in refused("dataset", "split", "a.npy", *arguments)
    assert [each.name for each in here.iterdir()] == ["a.npy"]


# --- layout: manifests, list, verify ----------------------------------------------------------------------------------


def test_output_in_a_layout_gets_a_manifest_whose_command_makes_it_again(here: Path) -> None:
    out = Path("datasets/mine/processed/s.fbin")
    told = figures("sample", "a.npy", out, "--rows", 7, "--seed", 9)
    assert told["manifest"] == "datasets/mine/manifests/processed/s.fbin.json"
    found = read_manifest(Path(told["manifest"]))
    assert (found.name, found.source, found.count, found.dim, found.dtype) == ("mine", "a.npy", 7, 4, "f32")
    before = out.read_bytes()
    out.unlink()
    again = corenn(*shlex.split(found.command)[1:])
    assert again.exit_code == 0 and out.read_bytes() == before


def test_manifests_outside_of_a_layout_are_asked_for(here: Path) -> None:
    assert figures("convert", "a.npy", "b.fbin")["manifest"] is None
    assert figures("convert", "a.npy", "c.fbin", "--manifest")["manifest"] == "c.fbin.json"
    assert figures("info", "c.fbin")["manifest"]["command"] == "corenn dataset convert a.npy c.fbin"
    done("sample", "a.npy", "c.fbin", "--rows", 5, "--overwrite")  # a manifest that is there stays true
    assert read_manifest(Path("c.fbin.json")).count == 5
    done("split", "a.npy", "--test", 10, "--manifest")
    assert read_manifest(Path("a-test.npy.json")).count == 10


def test_list_and_verify(here: Path) -> None:
    for part in ("raw", "processed"):
        done("convert", "a.npy", f"datasets/mine/{part}/a.fbin")
    listed = figures("list")
    assert [(each["file"], each["count"]) for each in listed["datasets"]["mine"]] == [
        ("raw/a.fbin", 50), ("processed/a.fbin", 50),
    ]  # fmt: skip
    assert listed["catalogue"]["sift1m"]["dim"] == 128
    assert "raw/a.fbin" in done("list") and "sift1m" in done("list")
    assert figures("verify")["ok"] and "all 2 files are whole" in done("verify", "mine")
    with Path("datasets/mine/raw/a.fbin").open("r+b") as file:
        file.seek(100)
        file.write(b"\xff")
    result = corenn("dataset", "verify", "--json")
    told = {each["file"]: each["problem"] for each in json.loads(result.stdout)["files"]}
    assert result.exit_code == 1 and not json.loads(result.stdout)["ok"]
    assert told["datasets/mine/processed/a.fbin"] is None
    assert "sha256 is" in told["datasets/mine/raw/a.fbin"]
    assert "1 of 2 files" in corenn("dataset", "verify").stdout


def test_verify_of_nothing(here: Path) -> None:
    assert "holds no data sets" in refused("dataset", "verify", "--root", "nowhere")
    done("convert", "a.npy", "datasets/mine/raw/a.fbin")
    assert "no data set 'other'; has mine" in refused("dataset", "verify", "other")


# --- import -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".npy", ".fvecs", ".fbin", ".raw", ".hdf5"])
def test_import_of_any_format(here: Path, rows: Rows, ending: str) -> None:
    pytest.importorskip("h5py")
    written(here / f"b{ending}", rows)
    result = corenn("import", "new", f"b{ending}", "--metric", "l2", "--batch", 20)
    assert result.exit_code == 0, result.output
    with CoreNN.open("new") as db:
        assert list(db.keys()) == list(range(50))
        found = db.get([0, 49])
        assert all(record is not None and np.array_equal(record.vector, rows[record.key]) for record in found)


def test_import_takes_part_and_metric_of_hdf5(here: Path, rows: Rows) -> None:
    pytest.importorskip("h5py")
    written(here / "b.hdf5", rows, metric="ip")
    written(here / "b.hdf5", rows[:5], part="test")
    assert corenn("import", "new", "b.hdf5", "--part", "test").exit_code == 0
    with CoreNN.open("new") as db:
        assert (len(db), db.stats().metric) == (5, "ip")
    assert corenn("import", "other", "b.hdf5", "--metric", "l2").exit_code == 0
    with CoreNN.open("other") as db:
        assert (len(db), db.stats().metric) == (50, "l2")
    assert corenn("import", "other", "b.hdf5", "--upsert").exit_code == 0  # the metric was not asked for
    assert "no data set 'x'" in refused("import", "new", "b.hdf5", "--part", "x")


def test_import_of_tables(here: Path, rows: Rows) -> None:
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"key": [f"k{row}" for row in range(50)], "vector": list(rows), "n": list(range(50))})
    with pa.ipc.new_file("b.arrow", table.schema) as out:
        out.write_table(table, max_chunksize=20)
    assert corenn("import", "new", "b.arrow", "--metric", "l2", "--batch", 7).exit_code == 0
    with CoreNN.open("new") as db:
        (record,) = db.get(["k33"])
        assert record is not None and record.payload == {"n": 33} and np.array_equal(record.vector, rows[33])
    assert corenn("import", "bare", "b.arrow", "--part", "vector").exit_code == 0
    with CoreNN.open("bare") as db:
        assert list(db.keys()) == list(range(50))
    written(here / "c.parquet", rows)
    assert "with --part vector the keys are row numbers" in refused("import", "more", "c.parquet")
    with Path("b.arrow").open("r+b") as file:
        file.truncate(1000)
    assert "b.arrow" in refused("import", "torn", "b.arrow")


def test_import_of_a_torn_file(here: Path) -> None:
    Path("b.fbin").write_bytes(bytes(11))
    assert "b.fbin" in refused("import", "new", "b.fbin")
    with open_vectors("a.npy") as vectors:
        written(here / "b.fvecs", vectors.rows(0, 50))
    with Path("b.fvecs").open("r+b") as file:
        file.seek(20 * 20)
        file.write(b"\x09")
    assert "row 20 says 9 dimensions" in refused("import", "new", "b.fvecs", "--batch", 10, "--metric", "l2")
    with CoreNN.open("new") as db:
        assert len(db) == 20


def test_truth_of_hdf5_comes_out_with_its_distances(here: Path) -> None:
    pytest.importorskip("h5py")
    write_truth("t.hdf5", np.arange(4).reshape(2, 2), np.arange(4.0).reshape(2, 2), metric="l2")
    done("convert", "t.hdf5", "t.ibin")
    found = read_truth("t.ibin")
    assert found.distances is not None and np.allclose(found.distances, [[0, 1], [2, 3]])


def test_distances_beside_ids_are_converted_with_them(here: Path) -> None:
    ids, distances = np.arange(6).reshape(3, 2), np.arange(6, dtype=np.float32).reshape(3, 2)
    write_truth("gt.ivecs", ids, distances)
    done("convert", "gt.ivecs", "gt.ibin")
    done("convert", "gt.ibin", "datasets/mine/gt/back.npy")
    found = read_truth("datasets/mine/gt/back.npy")
    assert found.ids.tolist() == ids.tolist() and found.distances is not None
    assert found.distances.tolist() == distances.tolist()
    assert figures("verify")["ok"]
    Path("x.distances.npy").write_bytes(b"mine")
    assert "x.distances.npy exists" in refused("dataset", "convert", "gt.ibin", "x.npy")
    assert Path("x.distances.npy").read_bytes() == b"mine" and not Path("x.npy").exists()


@pytest.mark.parametrize("name", [".", "train/x"])
def test_names_that_hdf5_does_not_take(here: Path, name: str) -> None:
    pytest.importorskip("h5py")
    done("convert", "a.npy", "a.hdf5")
    before = Path("a.hdf5").read_bytes()
    assert "a.hdf5: HDF5 cannot keep" in refused("dataset", "convert", "a.npy", "a.hdf5", "--out-part", name)
    assert Path("a.hdf5").read_bytes() == before
    assert sorted(each.name for each in here.iterdir()) == ["a.hdf5", "a.npy"]


FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
from corenn.cli import main
main()
"""


@pytest.mark.few(4)
@pytest.mark.parametrize(
    ("ending", "rows"),
    [(each, 80_000) for each in (".npy", ".fvecs", ".raw", ".hdf5", ".parquet", ".arrow")]
    + [(each, 74_980) for each in (".npy", ".hdf5", ".parquet", ".arrow")],
)
def test_a_disk_that_is_full_is_one_line_and_leaves_nothing(here: Path, ending: str, rows: int) -> None:
    """Be it found out by a write, or as late as by the close of a file."""
    pytest.importorskip("h5py")
    pytest.importorskip("pyarrow")
    np.save("a.npy", np.ones((rows, 1), np.float32))
    before = sorted(here.iterdir())
    ended = subprocess.run(
        [sys.executable, "-c", FULL, "dataset", "convert", "a.npy", f"b{ending}"], env=environment(),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 1, ended.stderr
    assert f"error: cannot write b{ending}: " in ended.stderr and "Traceback" not in ended.stderr
    assert "Exception ignored" not in ended.stderr
    assert sorted(here.iterdir()) == before


@pytest.mark.skipif(sys.platform == "darwin", reason="its file system takes UTF-8 only")
def test_names_of_files_that_are_no_text(here: Path) -> None:
    name = os.fsdecode(b"b\xff\xc3\xa9.fbin")
    for arguments in (("convert", "a.npy", name, "--manifest", "--json"), ("info", name), ("info", name, "--json")):
        ended = subprocess.run(
            [sys.executable, "-m", "corenn", "dataset", *arguments], env=environment(), capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["path"] == name
    assert read_manifest(here / f"{name}.json").file == name
    assert "é" in (here / f"{name}.json").read_text(encoding="utf-8")
