"""`corenn migrate-hnsw` and `corenn export-vectors`.

Rules out figures that are wrong or mixed with progress, options that do nothing, and errors of more than a line.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from corenn import CoreNN
from corenn.cli import app
from corenn.datasets import open_vectors
from corenn.datasets.manifest import read_manifest
from tests.crash.harness import environment
from tests.migrate.indexes import gaussian, make, save


def corenn(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "300"}).invoke(app, [str(argument) for argument in arguments])


def figures(*arguments: object) -> dict[str, Any]:
    done = corenn(*arguments, "--json")
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def failure(*arguments: object) -> str:
    """The one line with which a command fails."""
    done = corenn(*arguments)
    assert done.exit_code == 1, done.output
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "Traceback" not in done.output
    return last


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """An index of 80 elements, two of them deleted and one label twice."""
    made = make("l2", gaussian(80, 4), m=4, replace=True)
    made.mark_deleted(5)
    made.add_items(gaussian(1, 4, seed=3), np.array([9]), replace_deleted=True)
    made.mark_deleted(6)
    made.mark_deleted(7)
    return save(made, tmp_path / "index")


def test_an_index_is_migrated(index: Path, tmp_path: Path) -> None:
    out = tmp_path / "db"
    asked = ("migrate-hnsw", index, "--out", out, "--dim", 4, "--metric", "l2")
    assert "duplicates" in failure(*asked)
    found = figures(*asked, "--duplicates", "last", "--max-edges", 9)
    assert found.pop("seconds") >= 0
    assert found == {
        "index": str(index), "path": str(out), "rows": 77, "deleted": 2, "superseded": 1, "dim": 4, "metric": "l2",
        "m": 4, "max_edges": 9,
    }  # fmt: skip
    with CoreNN.open(out) as db:
        assert (len(db), db.settings.max_edges) == (77, 9)
    assert "exists" in failure(*asked, "--duplicates", "last")


def test_a_migration_in_words(index: Path, tmp_path: Path) -> None:
    done = corenn("migrate-hnsw", index, "--out", tmp_path / "db", "--dim", 4, "--metric", "l2", "--duplicates", "last")
    assert done.exit_code == 0
    assert done.stdout.startswith("77 rows (2 deleted, 1 superseded by a later element of the same label) migrated in ")
    assert done.stdout.count("\n") == 1


def test_what_cannot_be_migrated_is_one_line(index: Path, tmp_path: Path) -> None:
    rest = ("--out", tmp_path / "db", "--metric")
    assert "its dim is 4" in failure("migrate-hnsw", index, *rest, "l2", "--dim", 8)
    assert "metric='hamming'" in failure("migrate-hnsw", index, *rest, "hamming", "--dim", 4)
    assert "length 1" in failure("migrate-hnsw", index, *rest, "cosine", "--dim", 4, "--duplicates", "last")
    assert "not a file" in failure("migrate-hnsw", tmp_path / "nothing", *rest, "l2", "--dim", 4)
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_a_database_is_exported(tmp_path: Path) -> None:
    path, out = tmp_path / "db", tmp_path / "out"
    with CoreNN.create(path, dim=3, metric="ip") as db:
        db.insert(["a", "b"], np.ones((2, 3)))
    found = figures("export-vectors", path, "--out", out, "--parquet", "--dtype", "f16")
    assert found.pop("seconds") >= 0
    files = ["vectors.raw", "ids.raw", "keys.jsonl", "payloads.jsonl", "rows.parquet"]
    assert found == {"path": str(path), "out": str(out), "rows": 2, "dim": 3, "dtype": "f16", "files": files}
    with open_vectors(out / "vectors.raw") as vectors:
        assert (vectors.shape, vectors.dtype, vectors.metric) == ((2, 3), np.float16, "ip")
    command = f"corenn export-vectors {path} --out {out} --dtype f16 --parquet"
    assert read_manifest(out / "vectors.raw.json").command == command
    assert "exists" in failure("export-vectors", path, "--out", out)
    done = corenn("export-vectors", path, "--out", tmp_path / "again")
    assert done.exit_code == 0
    assert done.stdout.startswith("2 rows of 3 f32 exported in ")
    assert "nothing" in failure("export-vectors", tmp_path / "nothing", "--out", tmp_path / "more")


def test_an_export_comes_back_by_import(tmp_path: Path) -> None:
    with CoreNN.create(tmp_path / "db", dim=3, metric="l2") as db:
        db.insert([5, 3, 8], gaussian(3, 3))
    figures("export-vectors", tmp_path / "db", "--out", tmp_path / "out", "--parquet")
    figures("import", tmp_path / "again", tmp_path / "out" / "rows.parquet", "--metric", "l2", "--payload", "id")
    with CoreNN.open(tmp_path / "again", mode="r") as db:
        assert list(db.keys()) == [5, 3, 8]
        assert (db.get([3])[0].vector == gaussian(3, 3)[1]).all()  # type: ignore[union-attr]


@pytest.mark.compiled
def test_ctrl_c_leaves_nothing_and_says_so_in_its_exit_code(tmp_path: Path) -> None:
    save(make("l2", gaussian(200, 4), m=4), tmp_path / "index")
    code = (
        "import os, signal\nfrom corenn.migrate import hnsw\nstored = hnsw._Migration._store_rows\n"
        "def store(*given):\n    stored(*given)\n    os.kill(os.getpid(), signal.SIGINT)\n"
        "hnsw._Migration._store_rows = store\nfrom corenn.cli import main\nmain()"
    )
    command = [sys.executable, "-c", code, "migrate-hnsw", "index", "--out", "db", "--dim", "4", "--metric", "l2"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
