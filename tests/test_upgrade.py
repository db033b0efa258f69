"""Files of other versions of the format.

Rules out that a newer file is misread or changed, that an older one is opened as if it were of today or changed without
being asked, and an upgrade that is cut off and leaves neither version.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import corenn
from corenn import CoreNN, Upgraded
from corenn.cli import app
from corenn.errors import (
    CoreNNError,
    DiskFullError,
    FormatError,
    LockedError,
    NewerFormatError,
    NotADatabaseError,
    OlderFormatError,
    StorageError,
)
from corenn.storage import format as fmt
from corenn.storage import platform, snapshot, update, upgrade
from corenn.storage.files import Files
from corenn.storage.generation import folder_of, read_generation
from corenn.storage.rocksdb import Rocks
from corenn.storage.upgrade import upgrade_folder
from tests.faults.faulty import Faults, FaultyFiles

SLABS = ("vectors.slab", "seals.slab", "state.slab", "edges.slab", "codes.slab", "keys.slab", "keys.heap")
MODES = ("rw", "r", "rescue")
ROWS = np.random.default_rng(5).normal(size=(60, 6)).astype(np.float32)
MOST_STEPS = 200
EACH = 15  # steps between two thorough looks


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database with all kinds of files, that was not closed since its last commits."""
    made = tmp_path / "made"
    with CoreNN.create(made, dim=6, metric="l2", compression_mode="sq8", compression_threshold=20) as db:
        db.insert([f"key {n}" for n in range(50)], ROWS[:50], [{"n": n} for n in range(50)])
        db.checkpoint()
        db.upsert(["key 3", "new"], ROWS[50:52], [None, {"new": True}])
        db.delete(["key 4"])
        shutil.copytree(made, tmp_path / "db")
    return tmp_path / "db"


@pytest.fixture
def future(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """This is CoreNN with version 3 of the format: what is there is of version 1. Returns the steps that were taken."""
    taken: list[str] = []

    def narrow(folder: Path, files: Files) -> None:
        taken.append("1 to 2")
        change_metadata(folder, lambda stored: stored["settings"].update(beam_width=2))

    def widen(folder: Path, files: Files) -> None:
        taken.append("2 to 3")
        change_metadata(folder, lambda stored: stored["settings"].update(query_search_list_cap=33))

    def change_metadata(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
        rocks = Rocks(folder / "meta")
        stored = json.loads(rocks.get(b"msettings"))
        change(stored)
        rocks.put(b"msettings", json.dumps(stored).encode())
        rocks.close()

    monkeypatch.setattr(fmt, "VERSION", 3)
    monkeypatch.setattr(upgrade, "STEPS", {1: narrow, 2: widen})
    return taken


def restamp(file: Path, version: int, flags: int = 0) -> None:
    """Give a slab another version."""
    raw = bytearray(file.read_bytes())
    struct.pack_into("<II", raw, 8, version, flags)
    struct.pack_into("<I", raw, 60, zlib.crc32(raw[:60]))
    file.write_bytes(raw)


def content(path: Path) -> dict[str, str]:
    """Hashes of all files, those in which processes register left out."""
    return {
        str(each.relative_to(path)): hashlib.sha256(each.read_bytes()).hexdigest()
        for each in sorted(path.rglob("*"))
        if each.is_file() and "readers" not in each.relative_to(path).parts
    }


def refused(path: Path, error: type[CoreNNError], words: str) -> None:
    """A database is refused in every mode, and not changed."""
    before = content(path)
    for mode in MODES:
        with pytest.raises(error, match=words) as caught:
            CoreNN.open(path, mode=mode)  # type: ignore[arg-type]
        assert type(caught.value) is error
        assert content(path) == before, mode


def check(path: Path) -> None:
    """The rows of `path` are there, and it may be written to."""
    with CoreNN.open(path) as db:
        assert len(db) == 50
        assert [record and record.payload for record in db.get(["key 3", "key 4", "new", "key 9"])] == [
            None, None, {"new": True}, {"n": 9},
        ]  # fmt: skip
        report = db.verify()
        assert report.ok, report
        assert db.query(ROWS[50], k=1)[0].key == "key 3"
        db.insert(["more"], ROWS[59:])
        assert db.delete(["more"]) == 1


# --- newer ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*SLABS, "changes.slab"])
@pytest.mark.parametrize(("version", "flags"), [(2, 0), (1, 4)], ids=["version", "flags"])
def test_a_newer_file_is_refused_in_every_mode_and_left_alone(path: Path, name: str, version: int, flags: int) -> None:
    restamp(path / name, version, flags)
    refused(path, NewerFormatError, name)
    with pytest.raises(NewerFormatError, match=name):
        corenn.upgrade(path)


def test_newer_metadata_are_refused_in_every_mode_and_left_alone(path: Path) -> None:
    """The settings beside it tell, before RocksDB changes its own files by being opened."""
    stored = json.loads((path / "settings.json").read_bytes())
    (path / "settings.json").write_text(json.dumps({**stored, "version": 2}))
    refused(path, NewerFormatError, "settings.json")
    (path / "meta" / "CURRENT").write_text("damaged")
    refused(path, NewerFormatError, "settings.json")


def test_newer_metadata_are_refused_without_the_settings_beside_it(path: Path) -> None:
    (path / "settings.json").unlink()
    rocks = Rocks(path / "meta")
    stored = json.loads(rocks.get(b"msettings"))
    rocks.put(b"msettings", json.dumps({**stored, "version": 2}).encode())
    rocks.close()
    before = {name: found for name, found in content(path).items() if not name.startswith("meta")}
    for mode in MODES:
        with pytest.raises(NewerFormatError, match="version 2"):
            CoreNN.open(path, mode=mode)  # type: ignore[arg-type]
    assert {name: found for name, found in content(path).items() if not name.startswith("meta")} == before


def test_a_newer_generation_is_refused_and_the_leftovers_of_the_old_one_do_not_matter(path: Path) -> None:
    with CoreNN.open(path) as db:
        db.compact()
    restamp(path / "generation-2" / "edges.slab", 2)
    refused(path, NewerFormatError, "edges")
    restamp(path / "generation-2" / "edges.slab", 1)
    shutil.copy(path / "generation-2" / "edges.slab", path)
    restamp(path / "edges.slab", 2)  # no longer there for anybody
    check(path)


def test_a_newer_snapshot_is_refused_and_stays_one(path: Path, tmp_path: Path) -> None:
    with CoreNN.open(path) as db:
        db.snapshot(tmp_path / "copy")
    restamp(tmp_path / "copy" / "state.slab", 2)
    refused(tmp_path / "copy", NewerFormatError, "state.slab")
    assert (tmp_path / "copy" / update.MARKER).exists()


def test_a_newer_marker_of_a_snapshot_is_refused(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "MARKER_VERSION", 2)
    with CoreNN.open(path) as db:
        db.snapshot(tmp_path / "copy")
        monkeypatch.undo()
        before = content(tmp_path / "copy")
        with pytest.raises(NewerFormatError, match="version 2"):
            db.snapshot(tmp_path / "copy")
    assert content(tmp_path / "copy") == before


def test_a_newer_update_of_a_snapshot_is_refused(path: Path) -> None:
    (path / update.UPDATE).write_bytes(update._FOOTER.pack(0, 0, 0, 2, update.MAGIC))
    refused(path, NewerFormatError, "UPDATE")


# --- older ------------------------------------------------------------------------------------------------------------


def test_an_older_database_is_refused_in_every_mode_with_the_remedy(path: Path, future: list[str]) -> None:
    refused(path, OlderFormatError, f"version 1, .* writes 3; run `corenn upgrade {path}`")
    assert future == []


@pytest.mark.parametrize("name", [*SLABS, "changes.slab"])
def test_an_older_file_among_others_is_refused_and_not_made_anew(path: Path, name: str) -> None:
    restamp(path / name, 0)
    refused(path, OlderFormatError, name)
    with pytest.raises(FormatError, match=r"versions \[0, 1\]"):
        corenn.upgrade(path)


def test_an_upgrade_takes_every_step_in_order(path: Path, future: list[str]) -> None:
    assert corenn.upgrade(path) == Upgraded(str(path), 1, 3)
    assert future == ["1 to 2", "2 to 3"]
    assert read_generation(path) == 3
    assert sorted(each.name for each in path.iterdir()) == ["GENERATION", "LOCK", "generation-3"]
    with CoreNN.open(path, mode="r") as db:
        assert (db.settings.beam_width, db.settings.query_search_list_cap) == (2, 33)
    check(path)
    with CoreNN.open(path) as db:
        db.compact()
    check(path)


def test_an_upgrade_of_the_present_version_changes_nothing(path: Path) -> None:
    before = content(path)
    assert corenn.upgrade(str(path)) == Upgraded(str(path), 1, 1)
    assert content(path) == before


def test_a_second_upgrade_changes_nothing(path: Path, future: list[str]) -> None:
    corenn.upgrade(path)
    before = content(path)
    assert corenn.upgrade(path) == Upgraded(str(path), 3, 3)
    assert content(path) == before


def test_a_snapshot_is_upgraded_to_a_database_of_its_own(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with CoreNN.open(path) as db:
        db.snapshot(tmp_path / "copy")
    monkeypatch.setattr(fmt, "VERSION", 2)
    monkeypatch.setattr(upgrade, "STEPS", {1: lambda folder, files: None})
    corenn.upgrade(tmp_path / "copy")
    assert not (tmp_path / "copy" / update.MARKER).exists()
    check(tmp_path / "copy")


def test_a_missing_step_is_told_before_anything_changes(path: Path, future: list[str]) -> None:
    del upgrade.STEPS[2]
    before = content(path)
    with pytest.raises(FormatError, match="version 2, from which this CoreNN cannot upgrade"):
        corenn.upgrade(path)
    assert content(path) == before


def test_an_upgrade_needs_the_database_for_itself(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with CoreNN.open(path):
        monkeypatch.setattr(fmt, "VERSION", 2)
        monkeypatch.setattr(upgrade, "STEPS", {1: lambda folder, files: None})
        with pytest.raises(LockedError):
            corenn.upgrade(path)


def test_an_upgrade_without_room_is_refused(path: Path, future: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "free_bytes", lambda path: 1000)
    before = content(path)
    with pytest.raises(DiskFullError, match="and 1,000 are free"):
        corenn.upgrade(path)
    assert content(path) == before


def test_what_is_no_database_is_not_upgraded(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "absent"):
        with pytest.raises(NotADatabaseError):
            corenn.upgrade(place)


# --- all or nothing ---------------------------------------------------------------------------------------------------


def whole(path: Path) -> int:
    """The version of a database that an upgrade has left; it can be upgraded again, and nothing else is there then."""
    version = upgrade.stored_version(path)
    assert upgrade_folder(path, Files()) == Upgraded(str(path), version, 3)
    with CoreNN.open(path, mode="r") as db:
        assert (db.settings.beam_width, db.settings.query_search_list_cap) == (2, 33)
    check(path)
    left = {each.name for each in path.iterdir()} - {"readers"}
    assert left == {"GENERATION", "LOCK", "generation-3"}
    return version


def sound(path: Path, rows: bytes) -> int:
    """The same by a quick look: the files agree on a version, and the vectors are there."""
    version = upgrade.stored_version(path)
    assert (folder_of(path, version) / "vectors.slab").read_bytes()[fmt.PAGE :] == rows
    return version


@pytest.mark.few(1)
@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
def test_an_error_at_any_step_of_an_upgrade_leaves_one_version(
    path: Path, tmp_path: Path, future: list[str], late: bool
) -> None:
    rows = (path / "vectors.slab").read_bytes()[fmt.PAGE :]
    left = [1]
    for at in range(2 + late, MOST_STEPS, 2):  # the first takes the lock
        copy = shutil.copytree(path, tmp_path / f"{at}")
        faults = Faults(at, (errno.EIO, errno.ENOSPC)[at // 2 % 2], late=late)
        try:
            upgrade_folder(copy, FaultyFiles(faults))
        except CoreNNError as error:
            assert isinstance(error, (DiskFullError, StorageError)), repr(error)
            assert faults.hit
        if not faults.hit:
            break
        left.append(sound(copy, rows))
        if at % EACH == 0 or left[-1] != left[-2]:
            whole(copy)
        shutil.rmtree(copy)
    assert not faults.hit, "it never ends"
    assert sorted(left) == left
    assert {1, 2} <= set(left) <= {1, 2, 3}


def test_a_death_at_any_step_of_an_upgrade_leaves_one_version(path: Path, tmp_path: Path, future: list[str]) -> None:
    rows = (path / "vectors.slab").read_bytes()[fmt.PAGE :]
    left = [1]

    def look(name: str) -> None:
        left.append(sound(path, rows))
        if len(left) % EACH == 0 or left[-1] != left[-2]:
            kept.append(shutil.copytree(path, tmp_path / f"seen-{len(left)}"))

    kept: list[Path] = []
    upgrade_folder(path, FaultyFiles(Faults(watch=look)))
    assert sorted(left) == left
    assert set(left) == {1, 2, 3}
    assert {whole(copy) for copy in kept} == {1, 2, 3}


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_step_that_fails_leaves_the_version_before(
    path: Path, future: list[str], error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path, files: Files) -> None:
        (folder / "vectors.slab").write_bytes(b"half")
        raise error

    with monkeypatch.context() as context:
        context.setitem(upgrade.STEPS, 2, fail)
        with pytest.raises(error):
            corenn.upgrade(path)
        assert upgrade.stored_version(path) == 2
        assert sorted(each.name for each in path.iterdir()) == ["GENERATION", "LOCK", "generation-2"]
    assert whole(path) == 2


def test_ctrl_c_after_the_switch_does_not_remove_what_is_valid(
    path: Path, future: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    adopt = upgrade.adopt_generation

    def interrupted(folder: Path, files: Files) -> None:
        adopt(folder, files)
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(upgrade, "adopt_generation", interrupted)
        with pytest.raises(KeyboardInterrupt):
            corenn.upgrade(path)
    assert whole(path) == 2


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_says_what_it_has_done(path: Path, future: list[str]) -> None:
    runner = CliRunner()
    refused_open = runner.invoke(app, ["stats", str(path)])
    assert refused_open.exit_code == 1
    assert f"run `corenn upgrade {path}`" in refused_open.stderr
    done = runner.invoke(app, ["upgrade", str(path)])
    assert done.exit_code == 0
    assert done.stdout == f"{path} was of format version 1, and is of 3 now\n"
    again = runner.invoke(app, ["upgrade", str(path), "--json"])
    assert json.loads(again.stdout) == {"path": str(path), "before": 3, "after": 3}
    assert "nothing was to be done" in runner.invoke(app, ["upgrade", str(path)]).stdout
