"""Drafts of folders. Rules out a folder that appears before it is whole, leftovers that pile up or are taken for whole,
and a draft that is removed although its maker is alive.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from corenn.errors import DatabaseExistsError, StorageError
from corenn.storage.draft import folder_draft
from corenn.storage.files import Files
from tests.crash.harness import environment

KILLED = (
    "import os, sys; from pathlib import Path; from corenn.storage.draft import folder_draft\n"
    "from corenn.storage.files import Files\n"
    "with folder_draft(Path(sys.argv[1]), Files()) as draft:\n"
    "    draft.mkdir(); (draft / 'file').write_text('half'); os._exit(7)"
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def make(path: Path) -> None:
    with folder_draft(path, Files()) as draft:
        draft.mkdir()
        (draft / "file").write_text("whole")


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "some" / "where" / "out"
    with folder_draft(out, Files()) as draft:
        draft.mkdir()
        (draft / "file").write_text("whole")
        assert not out.exists()
    assert names(out.parent) == ["out"]
    assert names(out) == ["file"]


def test_what_killed_processes_have_left_goes_with_the_next_draft_of_that_name(tmp_path: Path) -> None:
    for name in ("out", "out", "other"):
        done = subprocess.run([sys.executable, "-c", KILLED, name], cwd=tmp_path, env=environment(), check=False)
        assert done.returncode == 7
    assert not (tmp_path / "out").exists()
    assert len(names(tmp_path)) == 2  # the second has removed what the first had left
    mine = tmp_path / ".out.making-of"  # of a name that no draft has
    mine.mkdir()
    make(tmp_path / "out")
    other, *rest = names(tmp_path)
    assert other.startswith(".other.making-")
    assert rest == [mine.name, "out"]
    assert (tmp_path / "out" / "file").read_text() == "whole"


def test_drafts_of_one_name_leave_each_other_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DatabaseExistsError), folder_draft(out, Files()) as slow:
        slow.mkdir()
        (slow / "file").write_text("slow")
        make(out)
        assert (slow / "file").exists()
    assert names(tmp_path) == ["out"]
    assert (out / "file").read_text() == "whole"


def test_a_folder_that_cannot_be_made_is_our_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="choose another folder"):
        make(tmp_path / "file" / "below" / "out")
    assert names(tmp_path) == ["file"]
