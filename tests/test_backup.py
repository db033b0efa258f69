"""Backups, and what is restored of them.

Rules out a backup that does not bring everything back, one that is damaged and restored all the same, an archive that
writes outside of the folder that it is restored to, fills the disk or leaves anything behind when it is refused, and a
half of any of them under its name.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corenn import CoreNN
from corenn.copies import back_up_snapshot
from corenn.errors import (
    CoreNNError,
    CorruptionError,
    DatabaseExistsError,
    DiskFullError,
    FormatError,
    InvalidArgumentError,
    NewerFormatError,
    ReadOnlyError,
    StorageError,
)
from corenn.storage import archive
from corenn.storage.archive import MANIFEST
from corenn.storage.files import Files
from corenn.storage.update import MARKER
from tests.test_snapshot import Fault, content, key, left_of, looked_at, rows

pytestmark = pytest.mark.compiled
FORMS = ("folder", "archive.tar", "archive.tar.gz", "archive.tgz")


@pytest.fixture
def db(tmp_path: Path) -> Iterator[CoreNN]:
    """300 rows with payloads."""
    with CoreNN.create(tmp_path / "db", dim=12, metric="cosine", max_edges=16) as made:
        made.insert([key(n) for n in range(300)], rows(300), [{"n": n} for n in range(300)])
        made.delete([key(n) for n in range(0, 300, 7)])
        yield made


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a backup as a folder and in each kind of archive."""
    place = tmp_path_factory.mktemp("packed")
    with CoreNN.create(place / "db", dim=4, metric="l2", max_edges=16) as made:
        made.insert(range(40), rows(40, dim=4))
        for form in FORMS:
            made.backup(place / form)
    return place


# --- there and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_a_backup_brings_everything_back(db: CoreNN, tmp_path: Path, form: str) -> None:
    steps: list[str] = []
    made = db.backup(tmp_path / form, lambda step, done, total: steps.append(step) if done == total else None)
    before, answers = content(db), db.query(rows(20, 1), k=5, exact=True)
    assert steps == ["copying", "checksums", *(["packing"] if "tar" in form or "tgz" in form else [])]
    assert (made.rows, made.commit) == (len(db), db.stats().commit)
    db.upsert([key(1)], rows(1))
    back = CoreNN.restore(tmp_path / form, tmp_path / "back")
    assert (back.rows, back.commit, back.bytes) == (made.rows, made.commit, made.bytes)
    assert looked_at(tmp_path / "back") == before
    with CoreNN.open(tmp_path / "back") as again:
        assert again.query(rows(20, 1), k=5, exact=True) == answers
        again.insert(["new"], rows(1))
        assert again.verify().ok
        again.snapshot(tmp_path / "snapshot")
    assert left_of(tmp_path / form) == [form]


def test_a_backup_is_read_and_not_written_to(db: CoreNN, tmp_path: Path) -> None:
    before = content(db)
    db.backup(tmp_path / "backup")
    for mode in ("rw", "rescue"):
        with pytest.raises(ReadOnlyError, match="corenn restore"):
            CoreNN.open(tmp_path / "backup", mode=mode)  # type: ignore[arg-type]
    with CoreNN.open(tmp_path / "backup", mode="r") as reader:
        assert content(reader) == before
    CoreNN.restore(tmp_path / "backup", tmp_path / "back")  # to have been read does it no harm
    assert looked_at(tmp_path / "back") == before


def test_an_archive_is_one_that_others_can_read(db: CoreNN, tmp_path: Path) -> None:
    db.backup(tmp_path / "archive.tar.gz")
    with tarfile.open(tmp_path / "archive.tar.gz") as tar:
        manifest = json.loads(tar.extractfile(MANIFEST).read())  # type: ignore[union-attr]
        assert tar.getnames() == [MANIFEST, *(item["name"] for item in manifest["files"])]
        for item in manifest["files"]:
            raw = tar.extractfile(item["name"]).read()  # type: ignore[union-attr]
            assert (len(raw), hashlib.sha256(raw).hexdigest()) == (item["bytes"], item["sha256"])


@pytest.mark.parametrize("form", FORMS)
def test_a_snapshot_is_backed_up_and_stays_one(db: CoreNN, tmp_path: Path, form: str) -> None:
    db.snapshot(tmp_path / "snapshot")
    before = content(db)
    made = back_up_snapshot(tmp_path / "snapshot", tmp_path / form, Files())
    assert made.rows == len(db)
    db.upsert([key(1)], rows(1))
    db.snapshot(tmp_path / "snapshot")
    CoreNN.restore(tmp_path / form, tmp_path / "back")
    assert looked_at(tmp_path / "back") == before
    assert looked_at(tmp_path / "snapshot") == content(db)


def test_a_backup_that_is_a_folder_opens_as_it_is(db: CoreNN, tmp_path: Path) -> None:
    db.backup(tmp_path / "folder")
    assert looked_at(tmp_path / "folder") == content(db)
    CoreNN.restore(tmp_path / "folder", tmp_path / "back")
    assert looked_at(tmp_path / "back") == content(db)


def test_nothing_is_overwritten(db: CoreNN, tmp_path: Path) -> None:
    db.backup(tmp_path / "folder")
    db.snapshot(tmp_path / "snapshot")
    (tmp_path / "file.tar").write_text("mine")
    for name in ("folder", "snapshot", "file.tar"):
        with pytest.raises(DatabaseExistsError, match="choose another path"):
            db.backup(tmp_path / name)
        with pytest.raises(DatabaseExistsError, match="choose another path"):
            CoreNN.restore(tmp_path / "folder", tmp_path / name)
    for name in ("db", "db/backup", "db/backup.tar"):
        with pytest.raises(InvalidArgumentError, match="lies within"):
            db.backup(tmp_path / name)
    for name in ("backup.zip", "backup.tar.zst", "backup.tar.xz"):
        with pytest.raises(InvalidArgumentError, match=r"\.tar\.gz"):
            db.backup(tmp_path / name)
    assert (tmp_path / "file.tar").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    CoreNN.restore(tmp_path / "folder", tmp_path / "empty")
    assert looked_at(tmp_path / "empty") == content(db)


# --- damage -----------------------------------------------------------------------------------------------------------


def refused(source: Path, match: str | None = None) -> CoreNNError:
    """Restoring fails with an error of ours, and leaves nothing."""
    target = source.parent / "restored"
    before = sorted(path.name for path in source.parent.parent.iterdir())
    with pytest.raises((FormatError, CorruptionError, DiskFullError, StorageError), match=match) as caught:
        CoreNN.restore(source, target)
    assert not target.exists()
    assert left_of(target) == []
    assert sorted(path.name for path in source.parent.parent.iterdir()) == before
    return caught.value


@pytest.mark.parametrize("form", ["archive.tar", "archive.tar.gz"])
def test_a_flipped_bit_anywhere_is_found(packed: Path, tmp_path: Path, form: str) -> None:
    """But for what carries no content: times, owners and the like in the headers of members."""
    whole = (packed / form).read_bytes()
    rng, missed = np.random.default_rng(3), 0
    for at in [*range(10), *rng.integers(0, len(whole), 60).tolist(), len(whole) - 1]:
        (tmp_path / form).write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        try:
            CoreNN.restore(tmp_path / form, tmp_path / "restored")
        except CoreNNError:
            assert not (tmp_path / "restored").exists()
        else:
            missed += 1
            assert looked_at(tmp_path / "restored") == looked_at(packed / "folder")
            shutil.rmtree(tmp_path / "restored")
        assert left_of(tmp_path / "restored") == []
    assert missed < 20


@pytest.mark.parametrize("form", ["archive.tar", "archive.tar.gz"])
def test_a_torn_archive_is_refused(packed: Path, tmp_path: Path, form: str) -> None:
    whole = (packed / form).read_bytes()
    for size in (0, 1, 2, 100, 511, 512, 600, 5000, len(whole) // 2, len(whole) - 1025, len(whole) - 1):
        (tmp_path / form).write_bytes(whole[:size])
        refused(tmp_path / form)


def test_a_folder_that_is_damaged_is_refused(packed: Path, tmp_path: Path) -> None:
    def damaged(change: Callable[[Path], None], match: str) -> None:
        shutil.rmtree(tmp_path / "folder", ignore_errors=True)
        shutil.copytree(packed / "folder", tmp_path / "folder")
        change(tmp_path / "folder")
        refused(tmp_path / "folder", match)

    def flip(path: Path) -> None:
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(bytes(raw))

    def link(path: Path) -> None:
        path.rename(path.with_name("elsewhere"))
        path.symlink_to(path.with_name("elsewhere"))

    def fifo(path: Path) -> None:
        path.unlink()
        os.mkfifo(path)

    damaged(lambda path: flip(path / "vectors.slab"), r"vectors\.slab fails its checksum")
    damaged(lambda path: flip(next((path / "meta").glob("*.sst"))), "fails its checksum")
    damaged(lambda path: os.truncate(path / "keys.slab", 4096), "has not the")
    damaged(lambda path: (path / "state.slab").unlink(), r"state\.slab")
    damaged(lambda path: link(path / "vectors.slab"), r"vectors\.slab")
    damaged(lambda path: link(path / "meta"), "is a link")
    damaged(lambda path: fifo(path / "vectors.slab"), "device")
    damaged(lambda path: (path / MANIFEST).unlink(), "is no backup")
    damaged(lambda path: (path / MANIFEST).write_bytes(b"{"), "is wrong")


def test_what_is_no_backup_is_refused(db: CoreNN, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    db.snapshot(place / "snapshot")
    refused(place / "snapshot", "is no backup")
    for name, raw in {
        "text": b"hello" * 500,
        "gzip": gzip.compress(b"hello" * 500),
        "empty": b"",
        "nul": bytes(9000),
    }.items():
        (place / name).write_bytes(raw)
        refused(place / name)
    refused(place / "missing", "No such file")
    assert (place / "snapshot" / MARKER).exists()


# --- hostile archives -------------------------------------------------------------------------------------------------


class Forger:
    """Makes archives of its own out of the files of a sound one."""

    def __init__(self, packed: Path, place: Path) -> None:
        self.place = place
        folder = packed / "folder"
        self.manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
        self.files = {item["name"]: (folder / item["name"]).read_bytes() for item in self.manifest["files"]}

    def name(self, name: str, raw: bytes) -> None:
        """Name one more file in the manifest, rightly."""
        self.manifest["files"].append({"name": name, "bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()})

    def members(self) -> list[tuple[tarfile.TarInfo, bytes]]:
        """What a sound archive has."""
        found = []
        for name, raw in {MANIFEST: json.dumps(self.manifest).encode(), **self.files}.items():
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            found.append((member, raw))
        return found

    def write(self, members: list[tuple[tarfile.TarInfo, bytes]] | None = None, tail: bytes = b"") -> Path:
        """An archive of some members, one that tarfile itself has made."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
            for member, raw in self.members() if members is None else members:
                tar.addfile(member, io.BytesIO(raw))
        (self.place / "forged.tar.gz").write_bytes(gzip.compress(buffer.getvalue() + tail, 1))
        return self.place / "forged.tar.gz"


@pytest.fixture
def forger(packed: Path, tmp_path: Path) -> Forger:
    place = tmp_path / "place"
    place.mkdir()
    return Forger(packed, place)


def test_a_sound_forgery_is_taken(forger: Forger) -> None:
    """So that those below are refused for what is wrong with them."""
    CoreNN.restore(forger.write(), forger.place / "restored")
    assert len(looked_at(forger.place / "restored")) == 40


KINDS = {
    "symlink": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE, "character device": tarfile.CHRTYPE,
    "block device": tarfile.BLKTYPE, "pipe": tarfile.FIFOTYPE, "folder": tarfile.DIRTYPE,
    "contiguous": tarfile.CONTTYPE, "sparse": tarfile.GNUTYPE_SPARSE, "long name": tarfile.GNUTYPE_LONGNAME,
    "pax header": tarfile.XHDTYPE, "global header": tarfile.XGLTYPE,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", [0, 1, 5])
def test_what_is_no_plain_file_is_refused(forger: Forger, kind: str, place: int) -> None:
    members = forger.members()
    for name in (members[place][0].name, "meta", "../outside"):
        member = tarfile.TarInfo(name)
        member.type, member.linkname = KINDS[kind], "/etc/passwd"
        refused(forger.write([*members[:place], (member, b""), *members[place:]]), "refused")
        refused(forger.write([*members[:place], (member, b""), *members[place + 1 :]]), "refused")


OUTSIDE = (
    "/etc/passwd", "../outside", "meta/../../outside", "..", "./vectors.slab", "meta//CURRENT", "meta/x/CURRENT",
    "VECTORS.SLAB", "vectors.slab ", "vectors.slab\n", "LOCK", "SNAPSHOT", "UPDATE", "changes.slab", "readers/1-2",
    "meta/LOCK", "meta/000001.sst.py", "meta/０００００１.sst", "meta/rocksdict-config.json", "",
    "a\\..\\b", "C:vectors.slab",
)  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_is_none_of_a_database_is_refused(forger: Forger, name: str) -> None:
    plain = forger.members()
    member = tarfile.TarInfo(name)
    member.size = 4
    refused(forger.write([*plain, (member, b"evil")]), "refused")
    refused(forger.write([(member, b"evil"), *plain]), "refused")
    forger.name(name, b"evil")
    refused(forger.write([*forger.members(), (member, b"evil")]), "no file of a database")


def test_a_name_that_comes_twice_is_refused(forger: Forger) -> None:
    members = forger.members()
    for at in (0, 1, len(members) - 1):
        refused(forger.write([*members, members[at]]), "refused")
        refused(forger.write([*members[: at + 1], members[at], *members[at + 1 :]]), "refused")
    forger.manifest["files"].append(forger.manifest["files"][-1])
    refused(forger.write(), "twice")


def test_members_that_are_not_those_of_the_manifest_are_refused(forger: Forger) -> None:
    members = forger.members()
    refused(forger.write(members[1:]), "MANIFEST")
    refused(forger.write([*members[1:], members[0]]), "MANIFEST")
    refused(forger.write(members[:-1]), "refused")
    refused(forger.write([members[0], members[2], members[1], *members[3:]]), "refused")
    refused(forger.write([*members[:-1], (members[-1][0], members[-1][1][:-1] + b"!")]), "fails its checksum")
    refused(forger.write(tail=b"more"), "goes on")
    refused(forger.write(tail=bytes(1 << 20)), "goes on")


def wrong_manifests() -> dict[str, Callable[[dict[str, Any]], Any]]:
    def first(**changes: Any) -> Callable[[dict[str, Any]], Any]:
        return lambda body: body["files"][0].update(changes)

    def without(name: str) -> Callable[[dict[str, Any]], Any]:
        return lambda body: body.update(files=[item for item in body["files"] if item["name"] != name])

    return {
        "negative size": first(bytes=-1), "size of text": first(bytes="12"), "size of truth": first(bytes=True),
        "size beyond all": first(bytes=1 << 80), "no number": first(bytes=float("nan")),
        "short sum": first(sha256="ab"), "upper case": first(sha256="A" * 64), "wrong sum": first(sha256="0" * 64),
        "a number": first(name=7),
        "a list": first(name=["a"]), "no size": lambda body: body["files"][0].pop("bytes"),
        "no files": lambda body: body.update(files=[]), "files of text": lambda body: body.update(files="abc"),
        "files of null": lambda body: body.update(files=None), "no vectors": without("vectors.slab"),
        "no metadata": without("meta/CURRENT"), "another program": lambda body: body.update(corenn="x"),
        "no version": lambda body: body.pop("version"), "version of text": lambda body: body.update(version="1"),
        "no head": lambda body: body.pop("head"), "head of text": lambda body: body.update(head="x"),
        "database of text": lambda body: body.update(database="x"),
    }  # fmt: skip


@pytest.mark.parametrize("name", wrong_manifests())
def test_a_wrong_manifest_is_refused(forger: Forger, name: str) -> None:
    wrong_manifests()[name](forger.manifest)
    refused(forger.write())


@pytest.mark.parametrize("raw", [b"", b"[]", b"null", b"7", b"{", b"\xff\xfe", b"[" * 100_000, b'{"corenn": "backup"}'])
def test_a_manifest_that_is_none_is_refused(forger: Forger, raw: bytes) -> None:
    members = forger.members()
    member = tarfile.TarInfo(MANIFEST)
    member.size = len(raw)
    refused(forger.write([(member, raw), *members[1:]]), "is wrong")


def test_a_newer_backup_is_refused(forger: Forger) -> None:
    forger.manifest["version"] = 2
    assert isinstance(refused(forger.write(), "upgrade"), NewerFormatError)


def test_a_size_bomb_is_refused_before_it_unpacks(forger: Forger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gigabyte of zeros in a megabyte: in the manifest, in a member, behind the end, and within the manifest."""
    read = [0]
    real = gzip.GzipFile.read

    def counted(self: gzip.GzipFile, size: int | None = -1) -> bytes:
        piece = real(self, size)
        read[0] += len(piece)
        return piece

    monkeypatch.setattr(gzip.GzipFile, "read", counted)
    members, bomb = forger.members(), bytes(1 << 28)
    large = tarfile.TarInfo("vectors.slab")
    large.size = len(bomb)
    swollen = [(large, bomb) if member.name == "vectors.slab" else (member, raw) for member, raw in members]
    refused(forger.write(swollen), "by its manifest")
    first = tarfile.TarInfo(MANIFEST)
    first.size = len(bomb)
    refused(forger.write([(first, bomb)]), "refused")
    refused(forger.write([*members, (large, bomb)]), "refused")
    refused(forger.write(tail=bomb), "goes on")
    for item in forger.manifest["files"]:
        if item["name"] == "vectors.slab":
            item["bytes"] = 1 << 55
    assert isinstance(refused(forger.write(), "has room for"), DiskFullError)
    assert read[0] < 1 << 24


def test_a_database_that_does_not_open_is_refused(packed: Path, tmp_path: Path) -> None:
    """Its checksums hold, but its files do not belong together."""
    place = tmp_path / "place"
    place.mkdir()
    for name, raw in {
        "vectors.slab": b"CoreNN\r\n" + bytes(5000), "meta/CURRENT": b"MANIFEST-999999\n", "state.slab": b"",
    }.items():  # fmt: skip
        forger = Forger(packed, place)
        forger.files[name] = raw
        for item in forger.manifest["files"]:
            if item["name"] == name:
                item.update(bytes=len(raw), sha256=hashlib.sha256(raw).hexdigest())
        refused(forger.write())
    forger = Forger(packed, place)
    current = forger.files["meta/CURRENT"]
    for other in (b"../../../etc/passwd\n", b"/etc/passwd\n", b"", b"\xff\n", current[:-1] + b"/\n"):
        forger = Forger(packed, place)
        forger.files["meta/CURRENT"] = other
        for item in forger.manifest["files"]:
            if item["name"] == "meta/CURRENT":
                item.update(bytes=len(other), sha256=hashlib.sha256(other).hexdigest())
        refused(forger.write(), "CURRENT")


# --- cut off ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [StorageError("injected"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("form", ["folder", "archive.tar.gz"])
def test_a_backup_that_fails_at_any_step_leaves_nothing(
    db: CoreNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, error: BaseException
) -> None:
    def back_up() -> None:
        db.backup(tmp_path / form)

    at_any_step(back_up, tmp_path / form, monkeypatch, error)
    CoreNN.restore(tmp_path / form, tmp_path / "restored")
    assert looked_at(tmp_path / "restored") == content(db)
    assert not (tmp_path / "db" / "meta.copy").exists()


@pytest.mark.parametrize("error", [StorageError("injected"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("form", ["folder", "archive.tar.gz"])
def test_a_restore_that_fails_at_any_step_leaves_nothing(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, error: BaseException
) -> None:
    def bring_back() -> None:
        CoreNN.restore(packed / form, tmp_path / "restored")

    at_any_step(bring_back, tmp_path / "restored", monkeypatch, error)
    assert looked_at(tmp_path / "restored") == looked_at(packed / "folder")


def at_any_step(call: Callable[[], None], path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Fail at each step in turn, until there are no more: nothing is left but, at the last ones, what is whole."""
    step = 0
    while True:
        step += 1
        with monkeypatch.context() as patch:
            fault = Fault(patch, step, error, dead=False)
            with suppress(type(error)):
                call()
        if fault.calls < step:
            break
        if path.exists():  # it had its name, and the folder around it could not be synced
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        assert left_of(path) == []
    assert step > 20
    assert path.exists()


@pytest.mark.parametrize("form", ["folder", "archive.tar"])
def test_a_full_disk_leaves_nothing(mount: Callable[..., Path], tmp_path: Path, form: str) -> None:
    place = mount("size=5m")
    with CoreNN.create(tmp_path / "db", dim=256, metric="l2", max_edges=16, compression_mode="none") as db:
        db.insert(range(6000), rows(6000, 1, 256))
        with pytest.raises((DiskFullError, StorageError)):
            db.backup(place / form)
        assert left_of(place / form) == []
        db.backup(tmp_path / form)
    with pytest.raises(DiskFullError):
        CoreNN.restore(tmp_path / form, place / "restored")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda *_: shutil._ntuple_diskusage(1 << 60, 0, 1 << 60))  # type: ignore[attr-defined]
        with pytest.raises(DiskFullError):
            CoreNN.restore(tmp_path / form, place / "restored")
    assert left_of(place / "restored") == []


def test_only_what_a_database_consists_of_is_backed_up(db: CoreNN, tmp_path: Path) -> None:
    db.snapshot(tmp_path / "snapshot")
    for name in ("secret", "meta/secret.sst.txt", "vectors.slab.damaged"):
        (tmp_path / "snapshot" / name).write_text("mine")
    back_up_snapshot(tmp_path / "snapshot", tmp_path / "archive.tar", Files())
    with tarfile.open(tmp_path / "archive.tar") as tar:
        assert not [name for name in tar.getnames() if "secret" in name or "damaged" in name or name == MARKER]
        assert set(archive.NEEDED) <= set(tar.getnames())
