"""The demo's texts and vectors as a data set.

Rules out queries that are rows, vectors that belong to other names, files without what their format can hold, and more
dimensions than the texts span.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from corenn.cli import app
from corenn.datasets import corpus, open_vectors, read_truth
from corenn.datasets.corpus import embed, read
from corenn.datasets.docstrings import Docstring
from corenn.datasets.exact import nearest
from corenn.datasets.manifest import verify_manifests
from corenn.errors import DatasetError

pytest.importorskip("sklearn")
FOUND = [
    Docstring(f"{topic}.part{n}", f"{words} number {n}, and what it is made of")
    for topic, words in (("car", "A vehicle with wheels and an engine"), ("cat", "An animal with fur and whiskers"))
    for n in range(20)
]


def run(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["dataset", "docstrings", *map(str, arguments)])


@pytest.fixture(autouse=True)
def texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two topics instead of what is installed."""
    monkeypatch.setattr(corpus, "harvest", lambda _: iter(FOUND))


def test_some_texts_are_held_back_as_queries() -> None:
    made = embed(FOUND, 6, 2)
    names = [document.name for document in made.documents]
    assert len(names) == len(set(names)) == 34 and made.vectors.shape == (34, 2) and made.queries.shape == (6, 2)
    assert names == [each.name for each in FOUND if each.name in names], "in their order"
    near = nearest(made.vectors, made.queries, 1, "cosine")[0][:, 0]
    missing = [each.name for each in FOUND if each.name not in names]
    assert [names[row].partition(".")[0] for row in near] == [name.partition(".")[0] for name in missing]
    again = embed(FOUND, 6, 2)
    assert np.array_equal(again.vectors, made.vectors) and np.array_equal(again.queries, made.queries)
    assert embed(FOUND, 0, 2).queries.shape == (0, 2)


def test_reading_stops_where_it_is_told() -> None:
    steps: list[int] = []
    assert read(7, steps.append) == FOUND[:7] and steps == [1] * 7
    assert read(1000) == FOUND


def test_too_many_dimensions_are_refused() -> None:
    with pytest.raises(DatasetError, match="only 34 texts"):
        embed(FOUND, 6, 34)


def test_a_whole_set_in_one_file(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "docs.hdf5"
    result = run(path, "--dim", 3, "--queries", 5, "--truth", 4, "--names", tmp_path / "names.txt", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["rows"], told["queries"], told["dim"], told["metric"]) == (35, 5, 3, "cosine")
    made = embed(FOUND, 5, 3)
    with h5py.File(path) as file:
        assert np.array_equal(file["train"][:], made.vectors) and np.array_equal(file["test"][:], made.queries)
        assert file.attrs["distance"] == "angular"
    assert np.array_equal(read_truth(path).ids, nearest(made.vectors, made.queries, 4, "cosine")[0])
    assert (tmp_path / "names.txt").read_text().splitlines() == [document.name for document in made.documents]


def test_a_file_for_each_part(tmp_path: Path) -> None:
    assert run(tmp_path / "docs.fbin", "--rows", 20, "--queries", 5, "--dim", 2).exit_code == 0
    with open_vectors(tmp_path / "docs.fbin") as rows, open_vectors(tmp_path / "docs-test.fbin") as queries:
        assert rows.shape == (20, 2) and queries.shape == (5, 2)


def test_names_in_a_layout_have_a_manifest(tmp_path: Path) -> None:
    (tmp_path / "sets" / "docs" / "manifests").mkdir(parents=True)
    folder = tmp_path / "sets" / "docs" / "processed"
    assert run(folder / "docs.fbin", "--queries", 5, "--dim", 2, "--names", folder / "names.txt").exit_code == 0
    verdicts = verify_manifests(tmp_path / "sets")
    assert {each.file.name: each.problem for each in verdicts} == dict.fromkeys(
        ("docs.fbin", "docs-test.fbin", "names.txt")
    )


def test_the_command_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "names").write_text("here")
    for arguments, expected in (
        ((tmp_path / "x.fbin", "--dim", 40), "only 40 texts found: choose --dim and --queries below that"),
        ((tmp_path / "x.u8bin", "--dtype", "u8"), "--dtype u8: choose one of f32, f16, bf16"),
        ((tmp_path / "x.fbin", "--names", tmp_path / "names"), "names exists"),
        ((tmp_path / "x.fbin", "--names", tmp_path / "x-test.fbin"), "vectors go there"),
        ((tmp_path / "x.fbin", "--queries", 0, "--truth", 3), "--truth 3 needs --queries"),
    ):
        result = run(*arguments)
        assert result.exit_code == 1 and expected in result.stderr, result.output
    monkeypatch.delitem(sys.modules, "corenn.datasets.lsa", raising=False)
    monkeypatch.delattr("corenn.datasets.lsa", raising=False)
    monkeypatch.setitem(sys.modules, "sklearn.decomposition", None)
    result = run(tmp_path / "x.fbin")
    assert result.exit_code == 1 and "pip install 'corenn[demo]'" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["names"]
