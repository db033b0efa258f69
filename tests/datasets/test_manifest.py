"""Manifests and the layout.

Rules out a changed, cut, swapped or missing file that verification passes, a file without a manifest that it overlooks,
a manifest in the wrong place, a manifest that is damaged and believed, and a path outside of the data set.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corenn.datasets import write_truth
from corenn.datasets.layout import FOLDERS, Layout, layout, layout_of, layouts, manifest_path, root
from corenn.datasets.manifest import (
    Manifest,
    describe,
    digest,
    read_manifest,
    verify_file,
    verify_manifests,
    write_manifest,
)
from corenn.errors import DatasetError

from .contract import some_rows, written


@pytest.fixture
def top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of a layout with two data sets, each file with its manifest."""
    monkeypatch.setenv("CORENN_DATASETS", str(tmp_path / "sets"))
    one, two = layout("one"), layout("two")
    for path in (one.raw / "base.fvecs", one.processed / "base.fbin", two.processed / "base.raw"):
        written(path, some_rows(9, 4, "f32"))
    write_truth(one.gt / "gt.ibin", np.zeros((3, 2), int), np.zeros((3, 2)))
    (two.raw / "archive.tar.gz").parent.mkdir()
    (two.raw / "archive.tar.gz").write_bytes(b"anything")
    for each in (one, two):
        for path in each.files():
            write_manifest(path, describe(path, source="test", command="none"))
    return tmp_path / "sets"


def problems() -> dict[str, str]:
    """What is wrong below the root, by file name."""
    return {verdict.file.name: verdict.problem for verdict in verify_manifests() if verdict.problem is not None}


# --- layout -----------------------------------------------------------------------------------------------------------


def test_root_is_given_or_of_the_environment_or_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORENN_DATASETS", "/elsewhere")
    assert (root(Path("x")), root()) == (Path("x"), Path("/elsewhere"))
    monkeypatch.setenv("CORENN_DATASETS", "")
    assert root() == Path("datasets")
    monkeypatch.delenv("CORENN_DATASETS")
    assert layout("sift").gt == Path("datasets/sift/gt")


def test_where_manifests_belong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORENN_DATASETS", str(tmp_path))
    for folder in FOLDERS:
        file = tmp_path / "a" / folder / "x.fbin"
        assert manifest_path(file) == tmp_path / "a" / "manifests" / folder / "x.fbin.json"
    for file in (tmp_path / "x.fbin", tmp_path / "a" / "other" / "x.fbin", tmp_path / "a" / "b" / "raw" / "x.fbin"):
        assert layout_of(file) is None
        assert manifest_path(file) == file.with_name("x.fbin.json")
    (tmp_path / "a" / "b" / "manifests").mkdir(parents=True)  # a data set that lies elsewhere
    assert layout_of(tmp_path / "a" / "b" / "raw" / "x.fbin") == Layout(tmp_path / "a" / "b")


def test_data_sets_are_found(top: Path) -> None:
    (top / "stray").mkdir()
    (top / "file").write_text("x")
    assert [each.name for each in layouts()] == ["one", "two"]
    assert layouts(top / "none") == []


# --- manifests --------------------------------------------------------------------------------------------------------


def test_fields(top: Path) -> None:
    file = top / "one" / "processed" / "base.fbin"
    found = read_manifest(manifest_path(file))
    assert asdict(found) == {
        "name": "one", "source": "test", "dim": 4, "dtype": "f32", "count": 9, "metric": None,
        "sha256": digest(file), "command": "none", "created": found.created, "file": "processed/base.fbin",
        "size": 8 + 9 * 4 * 4,
    }  # fmt: skip
    assert found.created.endswith("+00:00")
    truth = read_manifest(manifest_path(top / "one" / "gt" / "gt.ibin"))
    assert (truth.count, truth.dim, truth.dtype) == (3, 2, "i32")
    archive = read_manifest(manifest_path(top / "two" / "raw" / "archive.tar.gz"))
    assert (archive.count, archive.dim, archive.dtype, archive.size) == (None, None, None, 8)


def test_the_digest_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    steps: list[int] = []
    assert digest(tmp_path / "x", steps.append).startswith("ba7816bf8f01cfea414140de5dae2223")
    assert steps == [3]


def test_a_file_outside_of_a_layout(tmp_path: Path) -> None:
    file = written(tmp_path / "mine.npy", some_rows(3, 2, "u8"))
    assert write_manifest(file, describe(file, metric="ip")) == tmp_path / "mine.npy.json"
    found = read_manifest(tmp_path / "mine.npy.json")
    assert (found.name, found.file, found.metric, found.dtype) == ("mine", "mine.npy", "ip", "u8")
    assert verify_file(file).problem is None
    os.truncate(file, 100)
    assert "size" in str(verify_file(file).problem)


def test_torn_files_get_no_manifest(tmp_path: Path) -> None:
    file = written(tmp_path / "a.fbin", some_rows(3, 2, "f32"))
    os.truncate(file, 20)
    with pytest.raises(DatasetError, match="torn"):
        describe(file)


@pytest.mark.parametrize(
    ("field", "value"),
    [("dim", "4"), ("dim", 4.0), ("count", True), ("size", None), ("sha256", None), ("name", 3), ("metric", 1)],
)
def test_fields_of_a_wrong_type(top: Path, field: str, value: Any) -> None:
    path = manifest_path(top / "one" / "processed" / "base.fbin")
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(DatasetError, match=rf"{field} is {value!r}; needs"):
        read_manifest(path)
    assert "needs" in problems()["base.fbin"]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", "[" * 100_000, '"' + "x" * 100, "\xff"])
def test_manifests_that_are_none(top: Path, text: str) -> None:
    path = manifest_path(top / "one" / "processed" / "base.fbin")
    path.write_bytes(text.encode("latin1"))
    with pytest.raises(DatasetError, match=r"base\.fbin\.json"):
        read_manifest(path)
    assert set(problems()) == {"base.fbin"}


# --- verification -----------------------------------------------------------------------------------------------------


def test_whole_data_sets_pass(top: Path) -> None:
    done: list[int] = []
    verdicts = verify_manifests(progress=done.append)
    assert len(verdicts) == 5 and problems() == {}
    assert sum(done) == sum(path.stat().st_size for path in top.glob("*/*/*") if path.is_file())


def test_every_changed_byte_is_found(top: Path) -> None:
    file = top / "one" / "processed" / "base.fbin"
    content = file.read_bytes()
    for at in range(len(content)):
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert verify_file(file).problem is not None, at
    assert set(problems()) == {"base.fbin"}
    file.write_bytes(content)
    assert problems() == {}


def test_every_wrong_field_is_found(top: Path) -> None:
    file = top / "one" / "processed" / "base.fbin"
    path = manifest_path(file)
    right = read_manifest(path)
    wrong = {"dim": 5, "count": 8, "dtype": "f16", "sha256": "0" * 64, "size": 1}
    for name, value in wrong.items():
        changed: dict[str, Any] = {name: value}
        write_manifest(file, replace(right, **changed))
        assert name in problems()["base.fbin"]


def test_files_that_are_missing_or_unknown(top: Path) -> None:
    (top / "one" / "raw" / "base.fvecs").unlink()
    written(top / "two" / "raw" / "more.fvecs", some_rows(2, 2, "f32"))
    (top / "two" / "raw" / ".half.123.part.fvecs").write_bytes(b"x")
    (top / "two" / "raw" / "base.raw").write_bytes((top / "two" / "processed" / "base.raw").read_bytes())
    assert problems() == {
        "base.fvecs": "the file is missing",
        "more.fvecs": "no manifest manifests/raw/more.fvecs.json",
        "base.raw": "no manifest manifests/raw/base.raw.json",
    }


def test_manifest_of_another_file(top: Path) -> None:
    one = manifest_path(top / "one" / "processed" / "base.fbin")
    one.write_text(manifest_path(top / "one" / "raw" / "base.fvecs").read_text())
    assert "base.fbin" in problems()


def test_a_raw_matrix_needs_only_its_manifest(top: Path) -> None:
    assert not (top / "two" / "processed" / "base.raw.json").exists()
    found = read_manifest(manifest_path(top / "two" / "processed" / "base.raw"))
    assert isinstance(found, Manifest) and (found.dim, found.count) == (4, 9)
