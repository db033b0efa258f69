"""The demo: where its texts come from, how they are embedded, and the whole run.

Rules out that a source file is executed, that names or texts come twice, that vectors differ between runs, and that the
demo prints figures of something other than the database it leaves behind.
"""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from corenn import CoreNN
from corenn.cli import app
from corenn.datasets.docstrings import Docstring, docstrings_of, harvest, installed, source_files

pytest.importorskip("sklearn")

from corenn.datasets.lsa import Lsa, stem, terms

SMALL = ("--rows", "400", "--dim", "24")
TEXTS = [
    *(f"The car has an engine and wheels, model {n}: a driver drives the vehicle" for n in range(8)),
    *(f"A vehicle on a road, number {n}, with wheels, a motor and an engine" for n in range(8)),
    *(f"The cat eats fish and sleeps, cat {n}: an animal with fur" for n in range(8)),
    *(f"An animal in a house, number {n}, with fur, a tail and whiskers" for n in range(8)),
]


def write(root: Path, name: str, source: str) -> Path:
    """A source file below `root`."""
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(textwrap.dedent(source))
    return file


def demo(*arguments: object) -> Result:
    """Run the demo in this process."""
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["demo", *map(str, arguments)])


# --- harvest ----------------------------------------------------------------------------------------------------------


def test_names_and_texts(tmp_path: Path) -> None:
    file = write(
        tmp_path, "tool.py", '''
        """About the module, in a line.

        And in another.
        """
        raise SystemExit("this file was imported")

        class Shape:
            """About the class, in a line."""

            def area(self):
                """About the method, in a line."""
                def inner():
                    """About something inside a method."""

            async def wait(self):
                """About the coroutine, in a line."""

            def _hidden(self):
                """About a private method, in a line."""

            class Inner:
                """About the inner class, in a line."""

        def short():
            """Too short."""

        def bare():
            pass
        ''')  # fmt: skip
    found = {item.name: item.line for item in docstrings_of(file, "tool")}
    assert found == {
        "tool": "About the module, in a line.",
        "tool.Shape": "About the class, in a line.",
        "tool.Shape.area": "About the method, in a line.",
        "tool.Shape.wait": "About the coroutine, in a line.",
        "tool.Shape.Inner": "About the inner class, in a line.",
    }


def test_each_name_and_each_text_once(tmp_path: Path) -> None:
    write(tmp_path, "a.py", '''
        def read():
            """The first text that is long enough."""
        def read():
            """Another text under the same name."""
        def write():
            """The first text that is long enough."""
        ''')  # fmt: skip
    assert [item.name for item in harvest([tmp_path, tmp_path])] == ["a.read"]


def test_broken_and_unwanted_files_are_passed_over(tmp_path: Path) -> None:
    text = '"""A text that is long enough to be taken."""\n'
    for name in ("tests/a.py", "pkg/test/b.py", "not-a-name/c.py", "site-packages/d.py"):
        write(tmp_path, name, text.replace("text", f"text of {name}"))
    write(tmp_path, "broken.py", f"{text}def (")
    (tmp_path / "nulls.py").write_bytes(text.encode() + b"\0")
    (tmp_path / "latin.py").write_bytes('"""Grüße, but not in UTF-8 as it should be."""'.encode("latin-1"))
    write(tmp_path, "escape.py", '"""A text with an escape \\d that the compiler warns about."""\n')
    write(tmp_path, "pkg/__init__.py", text)
    assert [item.name for item in harvest([tmp_path])] == ["escape", "pkg"]


def test_packages_take_turns(tmp_path: Path) -> None:
    for name in ("a/x.py", "a/y.py", "a/z.py", "b/x.py", "c.py"):
        write(tmp_path, name, "")
    assert [module for _, module in source_files(tmp_path)] == ["a.x", "b.x", "c", "a.y", "a.z"]


def test_this_installation_has_texts() -> None:
    names = {item.name for item, _ in zip(harvest(installed()), range(1_000), strict=False)}
    assert len(names) == 1_000 and "argparse.ArgumentParser" in names


# --- embedding --------------------------------------------------------------------------------------------------------


def test_vectors_are_unit_length_and_the_same_every_time() -> None:
    first, second = (Lsa(8).fit(TEXTS).transform(TEXTS) for _ in range(2))
    assert first.shape == (len(TEXTS), 8) and first.dtype == np.float32 and first.flags.c_contiguous
    assert np.allclose(np.linalg.norm(first, axis=1), 1, atol=1e-5)
    assert np.allclose(first, second, atol=1e-5)


def test_words_used_alike_are_close() -> None:
    """driver never stands beside motor: only what both share, the latent topic, brings them together."""
    lsa = Lsa(2).fit(TEXTS)
    driver, motor, whiskers = lsa.transform(["driver", "motor", "whiskers"])
    assert driver @ motor > 0.9 > 0.3 > abs(driver @ whiskers)


def test_unknown_words_give_zero() -> None:
    assert not Lsa(4).fit(TEXTS).transform(["", "the of and"]).any()


def test_too_few_texts() -> None:
    with pytest.raises(ValueError, match="5 texts do not span 8 dimensions"):
        Lsa(8).fit(TEXTS[:5])


def test_terms_split_names_and_join_forms() -> None:
    assert terms("csv.DictReader reads the XMLFile_2") == ["csv", "dict", "read", "read", "xml", "file", "2"]
    assert {stem(word) for word in ("compress", "compressed", "compression", "compressing")} == {"compress"}
    assert stem("class") == "class" and stem("this") == "this"


# --- the whole run ----------------------------------------------------------------------------------------------------


@pytest.mark.compiled
def test_demo_as_json(tmp_path: Path) -> None:
    result = demo(*SMALL, "--path", tmp_path / "docs", "--json")
    assert result.exit_code == 0, result.output
    told: dict[str, Any] = json.loads(result.stdout)
    assert told["rows"] == told["rows_after_reopening"] == 400 and told["queries"] == 41
    assert told["recall_at_10"] >= 0.95 and 0 < told["p50_ms"] <= told["p99_ms"]
    assert len(told["answers"]) >= 4
    with CoreNN.open(tmp_path / "docs", mode="r") as db:
        assert len(db) == told["rows"] and db.settings.dim == 24
        hits = [hit for answer in told["answers"].values() for hit in answer]
        for hit, record in zip(hits, db.get([hit["name"] for hit in hits]), strict=True):
            assert record is not None and record.payload == {"name": hit["name"], "line": hit["line"]}


@pytest.mark.compiled
def test_demo_as_text() -> None:
    result = demo(*SMALL)
    assert result.exit_code == 0, result.output
    for part in ("rows/s", "recall@10", "p50", "p99", "reopened", "parse an XML document"):
        assert part in result.stdout
    assert "Ask something" not in result.output  # stdin is no terminal


@pytest.mark.compiled
def test_demo_converses_at_a_terminal() -> None:
    ours, theirs = pty.openpty()
    os.write(ours, b"parse json text\nzzzzqqq\n\n")
    command = [sys.executable, "-m", "corenn", "demo", *SMALL]
    run = subprocess.run(command, stdin=theirs, capture_output=True, text=True, check=True, timeout=120)
    os.close(ours)
    os.close(theirs)
    asked = run.stdout.partition("> ")[2]
    assert "parse json text" in asked and "no word of this occurs" in asked


def test_demo_refuses(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here already")
    assert "already exists" in demo(*SMALL, "--path", tmp_path / "file").stderr
    few = demo("--rows", "50", "--dim", "1000")
    assert few.exit_code == 1 and "choose --dim below" in few.stderr


def test_demo_without_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "corenn.datasets.lsa", raising=False)
    monkeypatch.delattr("corenn.datasets.lsa", raising=False)
    monkeypatch.setitem(sys.modules, "sklearn.decomposition", None)
    result = demo(*SMALL)
    assert result.exit_code == 1 and "pip install 'corenn[demo]'" in result.stderr


def test_first_line_of_a_docstring() -> None:
    assert Docstring("a", "First line. \nSecond line.").line == "First line."
