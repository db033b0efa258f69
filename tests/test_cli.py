"""The command line, in this process and in its own.

Rules out tracebacks for what a user can cause, figures mixed with progress, wrong recall, rows that are imported under
wrong keys or lost after Ctrl-C, and faults that verify does not report in its exit code.
"""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner, Result

from corenn import CoreNN, measure
from corenn.cli import app
from corenn.cli.sources import Fields, open_source
from corenn.errors import CoreNNError, FormatError
from tests.conftest import Sample

COMMANDS = (
    "demo", "eval", "import", "query", "count", "facets", "stats", "tune",
    "verify", "repair", "warmup", "snapshot", "backup", "restore", "plan",
)  # fmt: skip
ROWS, QUERIES = 1_200, 40


def corenn(*arguments: object) -> Result:
    """Run a command in this process."""
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(argument) for argument in arguments])


def figures(*arguments: object) -> dict[str, Any]:
    """What a command prints with --json."""
    result = corenn(*arguments, "--json")
    assert result.exit_code == 0, result.output
    parsed: dict[str, Any] = json.loads(result.stdout)
    return parsed


def refused(*arguments: object) -> str:
    """The one line on stderr of a command that fails."""
    result = corenn(*arguments)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in result.stderr, result.stderr
    return errors[0]


@pytest.fixture
def vectors(rng: np.random.Generator) -> NDArray[np.float32]:
    """A few vectors of 8 dimensions."""
    return rng.normal(size=(250, 8)).astype(np.float32)


@pytest.fixture
def database(tmp_path: Path, vectors: NDArray[np.float32]) -> Path:
    """A database with the vectors under their row numbers."""
    path = tmp_path / "some.corenn"
    with CoreNN.create(path, dim=8, metric="l2") as db:
        db.insert(list(range(len(vectors))), vectors, [{"row": row} for row in range(len(vectors))])
    return path


# --- help and errors --------------------------------------------------------------------------------------------------


def test_every_command_has_help_with_an_example() -> None:
    assert corenn("--help").exit_code == 0
    for name in COMMANDS:
        shown = corenn(name, "--help")
        assert shown.exit_code == 0 and f"Example: corenn {name}" in shown.output


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom corenn.cli import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'numba', 'rocksdict', 'sklearn', 'pyarrow'} & set(sys.modules)), file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stderr.strip() == "[]" and "import" in run.stdout


def test_version() -> None:
    shown = corenn("--version")
    assert shown.exit_code == 0 and shown.stdout.startswith("corenn ")


def test_module_runs_as_a_program(database: Path) -> None:
    command = [sys.executable, "-m", "corenn", "stats", str(database), "--json"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(run.stdout)["rows"] == 250


@pytest.mark.parametrize("command", ["stats", "tune", "verify", "repair"])
def test_missing_database(command: str, tmp_path: Path) -> None:
    assert "nowhere does not exist" in refused(command, tmp_path / "nowhere")
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "file").write_text("not ours")
    assert str(tmp_path / "else") in refused(command, tmp_path / "else")


def test_missing_extra_names_the_install_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "rows.parquet").write_bytes(b"")
    assert "pip install 'corenn[arrow]'" in refused("import", tmp_path / "new", tmp_path / "rows.parquet")


def test_a_bug_keeps_its_traceback(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(CoreNN, "stats", broken)
    assert isinstance(corenn("stats", database).exception, ZeroDivisionError)


def test_a_message_with_brackets_is_printed_as_it_is(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise CoreNNError("the key '[bold]'\nis bad")

    monkeypatch.setattr(CoreNN, "stats", broken)
    assert refused("stats", database) == "error: the key '[bold]' is bad"


# --- stats, verify, repair, warmup ------------------------------------------------------------------------------------


def test_stats(database: Path) -> None:
    told = figures("stats", database)
    assert (told["rows"], told["dim"], told["metric"], told["mode"]) == (250, 8, "l2", "r")
    assert told["disk_bytes"] > 250 * 8 * 4 and told["memory"]["vectors"] >= 250 * 8 * 4
    assert "memory: vectors" in corenn("stats", database).stdout


def test_stats_beside_a_writer(database: Path) -> None:
    with CoreNN.open(database) as db:
        db.delete([0, 1])
        assert figures("stats", database)["rows"] == 248


def test_query(database: Path, vectors: NDArray[np.float32]) -> None:
    found = figures("query", database, "--number", 7, "-k", 3, "--filter", '{"row": {"$lt": 100}}')
    keys = [hit["key"] for hit in found["hits"]]
    assert keys[0] == 7 and len(keys) == 3 and max(keys) < 100
    assert found["hits"][0] == {"key": 7, "distance": 0.0, "payload": {"row": 7}}
    assert found["explain"]["matches"] == 100
    vector = json.dumps(vectors[9].tolist())
    assert figures("query", database, "--vector", vector, "-k", 1, "--no-payloads")["hits"][0]["payload"] is None
    given = CliRunner().invoke(app, ["query", str(database), "--vector", "-", "--json"], input=vector)
    assert json.loads(given.stdout)["hits"][0]["key"] == 9
    grouped = figures("query", database, "--number", 7, "--group-by", "nobody", "--per-group", 2)
    assert len(grouped["hits"]) == 2
    assert '"row": 7' in corenn("query", database, "--number", 7).stdout


def test_query_by_words(tmp_path: Path, vectors: NDArray[np.float32]) -> None:
    path = tmp_path / "texts.corenn"
    with CoreNN.create(path, dim=8, metric="l2", text_fields=["title"]) as db:
        db.insert(range(250), vectors, [{"title": f"{'red' if row % 50 == 3 else 'blue'} hat"} for row in range(250)])
        wanted = db.query(vectors[3], text="red", k=4, fusion="weighted")
    found = figures("query", path, "--text", "red -shoes AND(", "-k", 9)
    assert [hit["key"] for hit in found["hits"]] == [3, 53, 103, 153, 203]
    assert (found["explain"]["plan"], found["explain"]["text_matches"]) == ("text", 5)
    found = figures("query", path, "--text", "red", "--number", 3, "-k", 4, "--fusion", "weighted")
    assert [hit["key"] for hit in found["hits"]] == wanted.keys
    assert found["explain"]["fusion"] == "weighted"
    assert figures("count", path, "--filter", '{"$text": "red"}') == {"count": 5}
    assert "fusion='weighted'" in refused("query", path, "--text", "red", "--fusion", "weighted")


def test_queries_that_are_refused(database: Path) -> None:
    assert "text_fields" in refused("query", database, "--text", "red")
    assert "one of" in refused("query", database)
    assert "--key and --number" in refused("query", database, "--key", "a", "--number", 7)
    assert "'a'" in refused("query", database, "--key", "a")
    assert "no JSON" in refused("query", database, "--vector", "[1, 2")
    assert "no JSON" in refused("query", database, "--number", 7, "--filter", "{'row': 1}")
    assert "filter.row.$over" in refused("count", database, "--filter", '{"row": {"$over": 1}}')


def test_count_and_facets(database: Path) -> None:
    assert corenn("count", database).stdout == "250\n"
    assert figures("count", database, "--filter", '{"row": {"$gte": 240}}') == {"count": 10}
    told = figures("facets", database, "row", "--filter", '{"row": {"$gte": 248}}', "--limit", 1)
    assert told == {"field": "row", "values": 2, "facets": [{"value": 248, "count": 1}]}
    assert "250 values" in corenn("facets", database, "row").stdout


@pytest.fixture
def photos(tmp_path: Path, sift: Sample) -> Path:
    """A database of 2,500 real vectors, whose queries walk."""
    path = tmp_path / "photos.corenn"
    with CoreNN.create(path, dim=128, metric="l2") as db:
        db.insert(range(2_500), sift[0][:2_500])
    return path


@pytest.mark.compiled
def test_tune_tells_the_list_of_each_recall(photos: Path, tmp_path: Path) -> None:
    told = figures("tune", photos, "--samples", 300, "--targets", "0.5,0.98,1", "--plot", tmp_path / "curve.png")
    assert (told["k"], told["rows"], told["plot"]) == (10, 2_500, str(tmp_path / "curve.png"))
    assert [point["search_list"] for point in told["points"]][:3] == [10, 14, 20]
    assert all(point["low"] <= point["recall"] <= point["high"] for point in told["points"])
    assert {point["samples"] for point in told["points"]} == {300}
    half, most, whole = told["targets"]
    assert (half["search_list"], half["min_recall"], half["plan"]) == (10, 0.5, "graph")
    assert most["search_list"] > 10 and most["expected_recall"] >= 0.98
    assert (whole["plan"], whole["expected_recall"]) == ("exact", 1.0)
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    shown = corenn("tune", photos, "-k", 5, "--plot", tmp_path / "curve.svg")
    assert shown.exit_code == 0 and "recall@5" in shown.stdout and "min_recall" in shown.stdout
    assert "<svg" in (tmp_path / "curve.svg").read_text()
    with CoreNN.open(photos) as db:
        assert db.query(key=0, explain=True).explain.chosen_by == "query_search_list_cap"  # nothing was changed


def test_tune_of_few_rows(database: Path, tmp_path: Path) -> None:
    assert figures("tune", database)["points"] == []
    assert "scan" in corenn("tune", database).stdout
    CoreNN.create(tmp_path / "empty", dim=2).close()
    assert figures("tune", tmp_path / "empty")["targets"] == []


def test_tune_refuses(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--targets=1.5" in refused("tune", database, "--targets", "0.9,1.5")
    assert "'x' is not a number" in refused("tune", database, "--targets", "0.9,x")
    assert "must end in .svg or .png" in refused("tune", database, "--plot", "curve.pdf")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install 'corenn[bench]'" in refused("tune", database, "--plot", "curve.svg")


def test_verify_and_repair_of_a_sound_database(database: Path) -> None:
    assert figures("verify", database)["ok"] is True
    assert "no fault" in corenn("verify", database).stdout
    assert figures("repair", database)["rows"] == 250


def test_compact_gives_the_space_of_deleted_rows_back(database: Path) -> None:
    with CoreNN.open(database) as db:
        keys = list(db.keys())
        db.delete(keys[:200])
    told = figures("compact", database)
    assert (told["path"], told["rows"], told["generation"]) == (str(database), 50, 2)
    assert told["after_bytes"] < told["before_bytes"]
    shown = corenn("compact", database)
    assert shown.exit_code == 0 and "disk after" in shown.stdout
    with CoreNN.open(database) as db:
        assert list(db.keys()) == keys[200:]
        assert db.verify().ok


def test_compact_that_is_interrupted_says_so(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: CoreNN, progress: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(CoreNN, "compact", interrupt)
    done = corenn("compact", database)
    assert (done.exit_code, "as it was" in done.stderr) == (130, True)


def test_verify_reports_damage_and_repair_mends_it(database: Path, vectors: NDArray[np.float32]) -> None:
    slab = database / "vectors.slab"
    stored = bytearray(slab.read_bytes())
    at = stored.index(vectors[7].tobytes())
    stored[at] ^= 1
    slab.write_bytes(stored)

    found = corenn("verify", database, "--json")
    assert found.exit_code == 1
    report = json.loads(found.stdout)
    assert not report["ok"] and [7] in [problem["lost"] for problem in report["problems"]]
    shown = corenn("verify", database)
    assert shown.exit_code == 1 and "lost: 7" in shown.stdout

    assert figures("repair", database)["rows"] == 249
    assert figures("verify", database)["ok"] is True


def test_warmup_compiles_once() -> None:
    figures("warmup", "--dtype", "f32")
    again = figures("warmup", "--dtype", "f32")
    assert again["compiled"] == [] and Path(again["folder"]).is_dir()
    assert "Already compiled" in corenn("warmup", "--dtype", "f32").stdout
    assert "f33" in refused("warmup", "--dtype", "f33")


# --- import -----------------------------------------------------------------------------------------------------------


def write_jsonl(file: Path, rows: list[Any]) -> Path:
    """One JSON value per line; text is written as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    text = "".join(f"{line}\n" for line in lines).encode()
    file.write_bytes(gzip.compress(text) if file.suffix == ".gz" else text)
    return file


def test_import_npy(tmp_path: Path, vectors: NDArray[np.float32]) -> None:
    np.save(tmp_path / "rows.npy", vectors.astype(np.float64))
    told = figures("import", tmp_path / "new", tmp_path / "rows.npy", "--metric", "ip", "--batch", 100)
    assert (told["imported"], told["rows"]) == (250, 250)
    with CoreNN.open(tmp_path / "new", mode="r") as db:
        assert db.settings.metric == "ip"
        record = db.get([249])[0]
        assert record is not None and np.array_equal(record.vector, vectors[249])


def test_what_was_imported_is_one_line_however_long_the_path(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.eye(3))
    done = corenn("import", tmp_path / ("d" * 200), tmp_path / "rows.npy")
    assert done.exit_code == 0 and done.stdout.count("\n") == 1


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_import_jsonl(name: str, tmp_path: Path) -> None:
    rows = [{"key": f"k{row}", "vector": [row, 1, 0.5], "year": row, "title": "t"} for row in range(25)]
    write_jsonl(tmp_path / name, [*rows[:10], "", *rows[10:]])
    assert figures("import", tmp_path / "all", tmp_path / name, "--batch", 10)["imported"] == 25
    corenn("import", tmp_path / "some", tmp_path / name, "--payload", "year")
    with CoreNN.open(tmp_path / "all", mode="r") as everything, CoreNN.open(tmp_path / "some", mode="r") as some:
        first, second = everything.get(["k24"])[0], some.get(["k24"])[0]
    assert first is not None and first.payload == {"year": 24, "title": "t"} and first.vector.tolist() == [24, 1, 0.5]
    assert second is not None and second.payload == {"year": 24}


def test_import_names_fields(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [{"id": 5, "embedding": [1, 2], "key": "a field like any other"}])
    assert figures("import", tmp_path / "new", file, "--key", "id", "--vector", "embedding")["imported"] == 1
    with CoreNN.open(tmp_path / "new", mode="r") as db:
        record = db.get([5])[0]
    assert record is not None and record.payload == {"key": "a field like any other"}


def test_import_parquet(tmp_path: Path, vectors: NDArray[np.float32]) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {
        "key": [f"k{row}" for row in range(250)],
        "vector": list(vectors),
        "n": list(range(250)),
        "m": ["x"] * 250,
    }
    parquet.write_table(arrow.table(columns), tmp_path / "rows.parquet", row_group_size=70)
    told = figures("import", tmp_path / "new", tmp_path / "rows.parquet", "--payload", "n", "--metric", "l2")
    assert told["rows"] == 250
    with CoreNN.open(tmp_path / "new", mode="r") as db:
        record = db.get(["k249"])[0]
    assert record is not None and record.payload == {"n": 249} and np.array_equal(record.vector, vectors[249])
    assert "no column 'id'" in refused("import", tmp_path / "new", tmp_path / "rows.parquet", "--key", "id")


def test_a_large_row_group_is_not_read_whole(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = np.random.default_rng(0).normal(size=(10_000, 512)).astype(np.float32)
    lists = arrow.FixedSizeListArray.from_arrays(arrow.array(rows.reshape(-1)), 512)
    parquet.write_table(arrow.table({"key": np.arange(10_000), "vector": lists}), tmp_path / "rows.parquet")
    del lists
    before, held = arrow.total_allocated_bytes(), []
    for batch in open_source(tmp_path / "rows.parquet", Fields(), 100).batches:
        held.append(arrow.total_allocated_bytes() - before)
        assert len(batch.keys) == 100
    assert len(held) == 100 and max(held) < rows.nbytes / 2


def test_a_field_cannot_be_key_and_vector(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"v": [[1.0, 2.0]]}), tmp_path / "rows.parquet")
    write_jsonl(tmp_path / "rows.jsonl", [{"v": [1, 2]}])
    for name in ("rows.jsonl", "rows.parquet"):
        told = refused("import", tmp_path / "new", tmp_path / name, "--key", "v", "--vector", "v")
        assert "field 'v' cannot be both" in told


@pytest.mark.parametrize("names", [("key", "key", "vector"), ("vector", "vector", "key"), ("key", "vector", "n", "n")])
def test_columns_of_one_name_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    values = {"key": [1, 2], "n": [1, 2], "vector": [[1.0, 2.0], [3.0, 4.0]]}
    table = arrow.Table.from_arrays([arrow.array(values[name]) for name in names], names=names)
    parquet.write_table(table, tmp_path / "rows.parquet")
    assert "2 columns are called" in refused("import", tmp_path / "new", tmp_path / "rows.parquet")
    if names[-1] == "n":
        told = figures("import", tmp_path / "new", tmp_path / "rows.parquet", "--part", "vector")
        assert told["rows"] == 2


def test_import_parquet_of_ragged_vectors(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for vector in ([[1.0, 2.0], [1.0]], [[1.0, 2.0], [1.0, None]], ["a", "b"]):
        parquet.write_table(arrow.table({"key": [1, 2], "vector": vector}), tmp_path / "rows.parquet")
        assert "rows 0–1: the vectors" in refused("import", tmp_path / "new", tmp_path / "rows.parquet")


def test_import_into_an_existing_database(tmp_path: Path, database: Path, vectors: NDArray[np.float32]) -> None:
    np.save(tmp_path / "rows.npy", vectors + 1)
    told = refused("import", database, tmp_path / "rows.npy")
    assert "rows.npy, rows 0–249" in told and "imported before it: 0" in told
    assert figures("import", database, tmp_path / "rows.npy", "--upsert")["rows"] == 250
    with CoreNN.open(database, mode="r") as db:
        record = db.get([3])[0]
    assert record is not None and np.array_equal(record.vector, vectors[3] + 1)
    assert "was created with l2" in refused("import", database, tmp_path / "rows.npy", "--metric", "cosine")


def test_a_bad_row_leaves_the_batches_before_it(tmp_path: Path) -> None:
    rows: list[Any] = [{"key": row, "vector": [row, 1]} for row in range(25)]
    rows[23] = {"key": 23, "vector": [1, 2, 3]}
    told = refused("import", tmp_path / "new", write_jsonl(tmp_path / "rows.jsonl", rows), "--batch", 10)
    assert "rows.jsonl:24: the vector has 3 dimensions" in told and "imported before it: 20" in told
    with CoreNN.open(tmp_path / "new", mode="r") as db:
        assert sorted(map(int, db.keys())) == list(range(20))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ({"vector": [1, 2]}, "no field 'key'; has 'vector'"),
        ({"key": 1}, "no field 'vector'"),
        ({"key": True, "vector": [1, 2]}, "the key is True"),
        ({"key": None, "vector": [1, 2]}, "the key is None"),
        ({"key": 1, "vector": []}, "not a flat list of numbers"),
        ({"key": 1, "vector": [[1, 2]]}, "not a flat list of numbers"),
        ({"key": 1, "vector": ["1", "2"]}, "not a flat list of numbers"),
        ({"key": 1, "vector": [1, None]}, "not a flat list of numbers"),
        ({"key": 1, "vector": [1, [2]]}, "not a flat list of numbers"),
        ('{"key": 1, "vector": [1, NaN]}', "NaN, infinity"),
        ('{"key": 1, "vector": [1, 1e39]}', "beyond float32"),
    ],
)
def test_a_bad_line_is_named(row: Any, message: str, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [{"key": 0, "vector": [1, 2]}, row])
    told = refused("import", tmp_path / "new", file)
    assert "rows.jsonl:2: " in told and message in told
    assert not (tmp_path / "new").exists()


def test_files_that_cannot_be_imported(tmp_path: Path) -> None:
    new = tmp_path / "new"
    for name, content, message in (
        ("rows.csv", b"", "unknown format"),
        ("rows.jsonl", b"", "holds no rows"),
        ("rows.npy", b"not numpy", "not an array"),
        ("rows.parquet", b"not parquet", "not a Parquet file"),
    ):
        (tmp_path / name).write_bytes(content)
        assert message in refused("import", new, tmp_path / name)
    assert "does not exist" in refused("import", new, tmp_path / "none.npy")
    np.save(tmp_path / "flat.npy", np.arange(3.0))
    assert "shape (3,)" in refused("import", new, tmp_path / "flat.npy")
    np.save(tmp_path / "objects.npy", np.array([["a", 1]], object), allow_pickle=True)
    assert "objects.npy" in refused("import", new, tmp_path / "objects.npy")
    assert not new.exists()


def test_a_torn_gzip_is_named_with_what_was_imported(tmp_path: Path) -> None:
    file, rows = tmp_path / "rows.jsonl.gz", [{"key": row, "vector": [row, 0.1 * row]} for row in range(2_000)]
    whole = write_jsonl(file, rows).read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0xFF
    for name, content in (("cut", whole[: len(whole) // 2]), ("damaged", bytes(damaged))):
        file.write_bytes(content)
        told = refused("import", tmp_path / name, file, "--batch", 10)
        assert "rows.jsonl.gz" in told
        imported = int(told.rsplit("imported before it: ", 1)[1].rstrip(")").replace(",", ""))
        with CoreNN.open(tmp_path / name, mode="r") as db:
            assert 0 < len(db) == imported < 2_000
    file.write_bytes(b'{"key": 1, "vector": [1, 2]}')
    assert "not gzip" in refused("import", tmp_path / "plain", file)
    assert not (tmp_path / "plain").exists()


@pytest.mark.parametrize("before", ["nothing", "an empty folder", "an empty database"])
def test_an_import_of_nothing_leaves_nothing_behind(tmp_path: Path, before: str) -> None:
    path, rows = tmp_path / "new", np.ones((3, 4))
    rows[1, 2] = 1e300
    np.save(tmp_path / "rows.npy", rows)
    if before == "an empty folder":
        path.mkdir()
    elif before == "an empty database":
        CoreNN.create(path, dim=4).close()
    told = refused("import", path, tmp_path / "rows.npy")
    assert "rows.npy, rows 0–2: vectors[1, 2] is 1e+300" in told and "imported before it: 0" in told
    if before == "an empty database":
        assert figures("stats", path)["rows"] == 0
    else:
        assert path.exists() == (before == "an empty folder") and not any(path.glob("*"))
    assert [entry.name for entry in tmp_path.glob(".*")] == []


def test_int8_vectors_are_taken_as_codes(tmp_path: Path) -> None:
    """Quantized once more, they would come back off by parts of a unit."""
    codes = np.random.default_rng(0).integers(-100, 37, (50, 8)).astype(np.int8)
    np.save(tmp_path / "codes.npy", codes)
    assert figures("import", tmp_path / "new", tmp_path / "codes.npy", "--dtype", "i8", "--metric", "l2")["rows"] == 50
    with CoreNN.open(tmp_path / "new", mode="r") as db:
        assert [record.vector.tolist() for record in db.get(range(50)) if record] == codes.tolist()
        assert np.array_equal(db._store.vectors.array[:50, :8], codes)


def test_a_payload_field_that_no_row_has_is_refused(tmp_path: Path) -> None:
    rows = [{"key": row, "vector": [row, 1], "year" if row % 2 else "title": row} for row in range(25)]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    told = refused("import", tmp_path / "new", file, "--payload", "year,nosuch")
    assert "no row has a field 'nosuch'; they have 'key', 'title', 'vector', 'year'" in told
    assert not (tmp_path / "new").exists()
    assert figures("import", tmp_path / "new", file, "--payload", "year,title", "--batch", 2)["rows"] == 25


@pytest.mark.compiled
def test_ctrl_c_keeps_what_was_counted(tmp_path: Path) -> None:
    pipe, path = tmp_path / "rows.jsonl", tmp_path / "new"
    os.mkfifo(pipe)
    command = [sys.executable, "-m", "corenn", "import", str(path), str(pipe), "--batch", "100"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        with pipe.open("w") as writer:
            writer.writelines(json.dumps({"key": row, "vector": [row, 1.0]}) + "\n" for row in range(250))
            writer.flush()
            wait_for_rows(path, 200)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
        assert process.stderr is not None
        told = process.stderr.read()
    assert "Interrupted: 200 rows" in told and "Traceback" not in told
    with CoreNN.open(path, mode="r") as db:
        assert sorted(map(int, db.keys())) == list(range(200))


def wait_for_rows(path: Path, rows: int) -> None:
    """Return once a reader sees `rows` rows."""
    for _ in range(600):
        try:
            with CoreNN.open(path, mode="r") as db:
                if len(db) == rows:
                    return
        except CoreNNError:
            pass  # not created yet
        time.sleep(0.1)
    pytest.fail(f"{path} never held {rows} rows")


# --- eval -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def matrices(tmp_path: Path, sift: Sample) -> Iterator[dict[str, Path]]:
    """Vectors, queries and 20 true neighbours of each, packed."""
    rows, queries = sift[0][:ROWS], sift[1][:QUERIES]
    squares = ((queries[:, None, :] - rows[None, :, :]) ** 2).sum(axis=2)
    truth = np.argsort(squares, axis=1, kind="stable")[:, :20].astype(np.uint32)
    paths = {name: tmp_path / f"{name}.bin" for name in ("vectors", "queries", "results")}
    for name, matrix in zip(paths, (rows, queries, truth), strict=True):
        matrix.tofile(paths[name])
    yield paths


def options(matrices: dict[str, Path], *names: str) -> list[object]:
    """Matrices as options."""
    return [part for name in names for part in (f"--{name}", matrices[name])]


@pytest.mark.compiled
def test_eval_inserts_then_measures(tmp_path: Path, matrices: dict[str, Path]) -> None:
    path = tmp_path / "sift"
    told = figures("eval", path, *options(matrices, "vectors", "queries", "results"), "-k", 10, "--dim", 128)
    assert (told["inserted"], told["rows"], told["queries"], told["k"]) == (ROWS, ROWS, QUERIES, 10)
    assert told["recall"] >= 0.95
    assert 0 < told["p50_ms"] <= told["p95_ms"] <= told["p99_ms"] and told["qps"] > 0
    assert told["distances_per_query"] > 10 and told["hops_per_query"] > 0

    asked = ["eval", path, *options(matrices, "queries", "results"), "-k", 20, "--search-list", 150, "--threads", 1]
    again = figures(*asked)
    assert again["recall"] >= 0.95 and (again["search_list"], again["threads"]) == (150, 1)
    assert f"recall@20 {again['recall']:.4f}" in " ".join(corenn(*asked).stdout.split())
    assert "leave out --vectors" in refused(
        "eval", path, *options(matrices, "vectors", "queries", "results"), "-k", 10, "--dim", 128
    )


@pytest.mark.compiled
def test_eval_counts_what_is_missing(tmp_path: Path, matrices: dict[str, Path], sift: Sample) -> None:
    """Half of the truth is replaced by rows that are not near: half of the recall goes."""
    truth = np.fromfile(matrices["results"], np.uint32).reshape(QUERIES, 20)[:, :10].copy()
    truth[:, 5:] = ROWS + 1
    truth.tofile(matrices["results"])
    path = tmp_path / "text-keys"
    with CoreNN.create(path, dim=128, metric="l2") as db:
        db.insert([str(row) for row in range(ROWS)], sift[0][:ROWS])
    told = figures("eval", path, *options(matrices, "queries", "results"), "-k", 10, "--search-list", 200)
    assert 0.475 <= told["recall"] <= 0.5


@pytest.mark.compiled
@pytest.mark.slow  # all kernels of f16 are compiled for it
def test_eval_of_half_floats(tmp_path: Path, matrices: dict[str, Path]) -> None:
    for name in ("vectors", "queries"):
        np.fromfile(matrices[name], np.float32).astype(np.float16).tofile(matrices[name])
    chosen = options(matrices, "vectors", "queries", "results")
    told = figures("eval", tmp_path / "half", *chosen, "-k", 10, "--dim", 128, "--dtype", "f16")
    assert told["recall"] >= 0.95 and figures("stats", tmp_path / "half")["dtype"] == "f16"


def test_eval_refuses_what_does_not_fit(tmp_path: Path, database: Path, matrices: dict[str, Path]) -> None:
    both, new = options(matrices, "queries", "results"), tmp_path / "new"
    everything = options(matrices, "vectors", "queries", "results")
    assert "needs --dim" in refused("eval", new, *everything, "-k", 10)
    assert "whole number of rows of 127" in refused("eval", new, *everything, "-k", 10, "--dim", 127)
    assert "--dtype f99" in refused("eval", new, *everything, "-k", 10, "--dim", 128, "--dtype", "f99")
    assert "21 or more uint32" in refused("eval", new, *everything, "-k", 21, "--dim", 128)
    assert "metric='l3'" in refused("eval", new, *everything, "-k", 10, "--dim", 128, "--metric", "l3")
    assert "does not exist" in refused("eval", new, *both, "-k", 10)
    assert "vectors of 8 dimensions" in refused("eval", database, *both, "-k", 10, "--dim", 128)
    assert "was created with l2" in refused("eval", database, *both, "-k", 10, "--metric", "cosine")
    CoreNN.create(tmp_path / "empty", dim=128, metric="l2").close()
    told = refused("eval", tmp_path / "empty", *everything, "-k", 10, "--dim", 128, "--metric", "cosine")
    assert "--metric cosine" in told and "was created with l2" in told
    assert figures("stats", tmp_path / "empty")["rows"] == 0
    np.save(tmp_path / "queries.npy", np.zeros((5, 128), np.float32))
    (tmp_path / "queries.npy").rename(tmp_path / "queries.rows")
    told = refused(
        "eval", new, "--queries", tmp_path / "queries.rows", *everything[:2], *everything[4:], "-k", 10, "--dim", 128
    )
    assert "NumPy file" in told
    assert not new.exists()


def test_eval_refuses_keys_that_are_not_row_numbers(tmp_path: Path, matrices: dict[str, Path], sift: Sample) -> None:
    with CoreNN.create(tmp_path / "named", dim=128, metric="l2") as db:
        db.insert([f"photo {row}" for row in range(50)], sift[0][:50])
    told = refused("eval", tmp_path / "named", *options(matrices, "queries", "results"), "-k", 10)
    assert "not row numbers" in told


# --- copies -----------------------------------------------------------------------------------------------------------


def test_a_snapshot_is_made_and_brought_up_to_date(database: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    made = figures("snapshot", database, copy)
    assert (made["source"], made["path"], made["rows"]) == (str(database), str(copy), 250)
    assert made["copied"] == made["bytes"]
    with CoreNN.open(database) as db:
        db.delete([3])
    again = corenn("snapshot", database, copy)
    assert again.exit_code == 0 and again.stdout.startswith("snapshot of 249 rows as of commit 2 in ")
    assert figures("stats", copy)["rows"] == 249
    assert corenn("verify", copy).exit_code == 0
    with CoreNN.open(database):
        assert "open for writing" in refused("snapshot", database, copy)
    assert "lies within" in refused("snapshot", database, database / "copy")
    assert "exists already" in refused("snapshot", database, tmp_path)


@pytest.mark.parametrize("name", ["folder", "archive.tar.gz"])
def test_a_backup_is_made_and_restored(database: Path, tmp_path: Path, name: str) -> None:
    made = figures("backup", database, tmp_path / name)
    back = figures("restore", tmp_path / name, tmp_path / "back")
    assert made["rows"] == back["rows"] == 250
    assert figures("stats", tmp_path / "back")["rows"] == 250
    assert corenn("verify", tmp_path / "back").exit_code == 0
    assert "exists already" in refused("backup", database, tmp_path / name)
    assert "exists already" in refused("restore", tmp_path / name, tmp_path / "back")
    assert ".tar.gz" in refused("backup", database, tmp_path / "archive.zip")
    assert "is no backup" in refused("restore", database, tmp_path / "other")
    assert "No such file" in refused("restore", tmp_path / "nowhere", tmp_path / "other")


def test_a_snapshot_that_is_backed_up_stays_one(database: Path, tmp_path: Path) -> None:
    assert corenn("snapshot", database, tmp_path / "copy").exit_code == 0
    assert figures("backup", tmp_path / "copy", tmp_path / "backup.tar")["rows"] == 250
    assert figures("snapshot", database, tmp_path / "copy")["copied"] < 100_000


@pytest.mark.parametrize("command", ["snapshot", "backup", "restore"])
def test_ctrl_c_leaves_no_half_of_a_copy(database: Path, tmp_path: Path, command: str) -> None:
    source, target = database, tmp_path / "target.tar.gz"
    if command == "restore":
        source = tmp_path / "source.tar.gz"
        assert corenn("backup", database, source).exit_code == 0
    program = (
        "import os, signal, sys\nfrom corenn.cli import main\nfrom corenn.storage.files import Files\n"
        "write = Files.write\n"
        "def interrupted(self, *given):\n    write(self, *given)\n"
        "    if 'target' in str(given[-1]):\n        os.kill(os.getpid(), signal.SIGINT)\n"
        "Files.write = interrupted\nsys.argv[1:] = " + repr([command, str(source), str(target)]) + "\nmain()\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 130, run.stderr
    assert "Traceback" not in run.stderr
    assert [each.name for each in tmp_path.iterdir() if "target" in each.name] == []
    with CoreNN.open(database) as db:
        assert db.verify().ok


# --- plan -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def unmeasured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder in which no machine has been measured."""
    monkeypatch.setenv("CORENN_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_plan(unmeasured: Path) -> None:
    told = figures("plan", "--rows", "1e9", "--dim", 96, "--dtype", "u8", "--memory", "64GB")
    assert (told["ask"]["rows"], told["ask"]["memory"], told["ask"]["max_edges"]) == (10**9, 64 * 10**9, 64)
    memory, disk = told["ways"]
    assert (memory["name"], memory["fits"], disk["name"], disk["fits"]) == ("in memory", False, "on disk", True)
    assert told["advice"].startswith("on disk") and memory["least_memory"] > 500 * 10**9
    assert 15 < disk["pages"]["low"] < disk["pages"]["value"] < disk["pages"]["high"]
    assert "expansions" in disk["pages"]["why"]
    shown = corenn("plan", "--rows", "1e9", "--dim", 96, "--dtype", "u8", "--memory", "64GB")
    assert shown.exit_code == 0 and "corenn plan --measure" in shown.stderr
    for said in ("1,000,000,000 rows", "does not fit", "disk.slab", "pages", "queries per second", "expansions"):
        assert said in shown.stdout


def test_plan_of_what_does_not_fit_names_the_memory_that_would(unmeasured: Path) -> None:
    told = figures("plan", "--rows", "1e9", "--dim", 96, "--memory", "8GB")
    least = min(way["least_memory"] for way in told["ways"])
    assert f"{least:,}" in told["advice"]
    assert figures("plan", "--rows", "1e9", "--dim", 96, "--memory", least)["ways"][1]["fits"]


def test_plan_by_the_constants_of_another_machine(tmp_path: Path, unmeasured: Path) -> None:
    constants = figures("plan")
    file = tmp_path / "other.json"
    file.write_text(json.dumps({**constants, "name": "other", "cores": 32, "reads_per_s": 1e6}))
    asked = ("--rows", "1e9", "--dim", "96", "--dtype", "u8", "--memory", "64GB")
    assert figures("plan", "--machine", file)["name"] == "other"
    ours, others = figures("plan", *asked), figures("plan", *asked, "--machine", file)
    assert others["ways"][1]["qps"]["value"] > 5 * ours["ways"][1]["qps"]["value"]
    assert "code" in corenn("plan", "--machine", file).stdout
    file.write_text("{}")
    assert "holds no constants" in refused("plan", "--machine", file)


def test_plan_by_constants_of_which_some_are_missing(tmp_path: Path, unmeasured: Path) -> None:
    constants, file = figures("plan"), tmp_path / "other.json"
    for name in constants.keys() - {"version"}:
        file.write_text(json.dumps({key: constants[key] for key in constants.keys() - {name}}))
        with pytest.raises(FormatError, match=f"{name} is missing"):
            measure.read_machine(file)
    for name in ("vector_ns", "link_us"):  # by stored type, of which f32 alone has to be there
        constants[name] = {"f32": constants[name]["f32"]}
        file.write_text(json.dumps(constants))
        assert "f32 link" in corenn("plan", "--machine", file).stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--rows", "1e9"), "go together"), (("--dim", "9"), "go together"),
        (("--rows", "many", "--dim", "9"), "'many'"),
        (("--rows", "1e6", "--dim", "9", "--memory", "lots"), "'lots'"),
        (("--rows", "1e12", "--dim", "9"), "2,147,483,647"),
        (("--rows", "1e6", "--dim", "9", "--dtype", "f64"), "f64"),
        (("--rows", "1e6", "--dim", "9", "--recall", "1"), "recall=1"),
        (("--measure", "--machine", "x.json"), "exclude"), (("--machine", "nowhere.json"), "nowhere.json"),
    ],
)  # fmt: skip
def test_plan_refuses(unmeasured: Path, arguments: tuple[str, ...], said: str) -> None:
    assert said in refused("plan", *arguments)


@pytest.mark.compiled
def test_plan_measures_and_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "kept_file", lambda: tmp_path / "cache" / "kept.json")
    for name, value in {"FILE_BYTES": 1 << 23, "READ_SECONDS": 0.02, "DEPTHS": (1, 4), "ROWS": 2_000, "QUERIES": 50,
                        "TURNS": 1, "FAR_BYTES": 1 << 22, "NEAR_BYTES": 1 << 16}.items():  # fmt: skip
        monkeypatch.setattr(measure, name, value)
    measured = figures("plan", "--measure", "--path", tmp_path)
    assert measured["origin"].startswith("measured") and measured == figures("plan")
    assert [each.name for each in tmp_path.iterdir()] == ["cache"]
