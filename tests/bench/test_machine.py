"""What a log says of the machine and of the sources.

Rules out the commit of somebody else's repository, and a processor without flags because it calls them otherwise.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from corenn.bench import machine

HERE = Path(machine.__file__)


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=Someone", "-c", "user.email=someone@example.org"]
    return subprocess.run(
        ["git", "-C", str(folder), *who, *arguments], capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
def test_the_commit_is_that_of_these_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package in the environment of another project is not of that project's commit."""
    file = tmp_path / ".venv" / "corenn" / "machine.py"
    file.parent.mkdir(parents=True)
    shutil.copyfile(HERE, file)
    monkeypatch.setattr(machine, "__file__", str(file))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert machine.commit() is None
    git(tmp_path, "init", "-q")
    (tmp_path / "theirs.py").write_text("")
    git(tmp_path, "add", "theirs.py")
    git(tmp_path, "commit", "-qm", "Theirs")
    assert machine.commit() is None
    git(tmp_path, "add", str(file))
    git(tmp_path, "commit", "-qm", "Ours")
    head = git(tmp_path, "rev-parse", "HEAD").strip()
    assert machine.commit() == head
    file.write_text("changed")
    assert machine.commit() == f"{head}+"


@pytest.mark.parametrize("name", ["flags", "Features"])
def test_flags_of_any_processor(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_cpuinfo", lambda: {"processor": "0", name: "fp asimd evtstrm"})
    assert machine.machine()["flags"] == ["fp", "asimd", "evtstrm"]
