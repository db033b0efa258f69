"""Archives that mean harm, or are damaged.

Rules out a file written anywhere but where the caller said, more bytes than the caller allows, a member of a damaged
archive taken for whole, and anything but one clear line.
"""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import corenn.datasets.archive
from corenn.datasets.archive import MAX_HEADER_BYTES, extract, gunzip
from corenn.errors import DatasetError

BODY = bytes(range(256)) * 300
LIMIT = 1 << 20
MODES = {"gz": ".tar.gz", "bz2": ".tar.bz2", "xz": ".tar.xz", "": ".tar"}


def member(name: str, body: bytes = BODY, **more: object) -> tuple[tarfile.TarInfo, bytes]:
    """A member of a tar archive."""
    info = tarfile.TarInfo(name)
    info.size = len(body)
    for field, value in more.items():
        setattr(info, field, value)
    return info, body


def tar(path: Path, *members: tuple[tarfile.TarInfo, bytes], compression: str = "gz") -> Path:
    """An archive with these members, whatever they are."""
    with tarfile.open(path, f"w:{compression}", format=tarfile.PAX_FORMAT) as out:
        for info, body in members:
            out.addfile(info, io.BytesIO(body))
    return path


def unpacked(archive: Path, folder: Path, limit: int = LIMIT) -> dict[str, bytes]:
    """The members base and query, below `folder`."""
    wanted = {name: folder / f"as-{name}" for name in ("base", "query")}
    extract(archive, wanted, limit)
    return {name: path.read_bytes() for name, path in wanted.items()}


def refused(archive: Path, tmp_path: Path, limit: int = LIMIT) -> str:
    """The one line about an archive; nothing has been written, anywhere near."""
    folder = tmp_path / "inner" / "out"
    before = {each: each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()}
    with pytest.raises(DatasetError) as error:
        unpacked(archive, folder, limit)
    assert {each: each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()} == before
    assert "\n" not in str(error.value) and str(archive) in str(error.value)
    return str(error.value)


# --- whole ones -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", MODES)
def test_wanted_members_of_a_tar_archive(tmp_path: Path, compression: str) -> None:
    folder = member("sift", b"", type=tarfile.DIRTYPE)
    members = (folder, member("sift/query", b"q"), member("sift/learn", b"l" * 9), member("./sift/base"))
    archive = tar(tmp_path / f"a{MODES[compression]}", *members, compression=compression)
    assert unpacked(archive, tmp_path / "out") == {"base": BODY, "query": b"q"}
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == ["as-base", "as-query"]


def test_wanted_members_of_a_zip_archive(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        out.mkdir("sift") if hasattr(out, "mkdir") else None
        for name, body in (("sift/base", BODY), ("sift/learn", b"l"), ("sift/query", b"q")):
            out.writestr(name, body)
    assert unpacked(archive, tmp_path / "out") == {"base": BODY, "query": b"q"}


def test_several_gzip_members_and_a_prefix(tmp_path: Path) -> None:
    packed = tmp_path / "a.gz"
    packed.write_bytes(gzip.compress(BODY) + gzip.compress(b"more"))
    gunzip(packed, tmp_path / "a", len(BODY) + 4)
    assert (tmp_path / "a").read_bytes() == BODY + b"more"
    gunzip(packed, tmp_path / "b", 1_000, prefix=True)
    assert (tmp_path / "b").read_bytes() == BODY[:1_000]
    with pytest.raises(DatasetError, match="unpacks to more than 9 bytes"):
        gunzip(packed, tmp_path / "c", 9)
    with pytest.raises(DatasetError, match="76,804 bytes; 76,805 are wanted"):
        gunzip(packed, tmp_path / "c", len(BODY) + 5, prefix=True)
    assert not (tmp_path / "c").exists()


# --- hostile ones -----------------------------------------------------------------------------------------------------

BAD_NAMES = ("/etc/base", "../base", "a/../../base", "..\\base", "C:\\base", "C:/base")
LINK = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_outside_of_a_tar_archive(tmp_path: Path, name: str) -> None:
    archive = tar(tmp_path / "a.tar.gz", member("base"), member("query"), member(name))
    assert "lies outside" in refused(archive, tmp_path)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_outside_of_a_zip_archive(tmp_path: Path, name: str) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as out:
        for each in ("base", "query", name):
            out.writestr(each, BODY)
    assert "lies outside" in refused(archive, tmp_path)


@pytest.mark.parametrize("kind", LINK)
@pytest.mark.parametrize("name", ["base", "other"])
def test_links_and_devices(tmp_path: Path, kind: bytes, name: str) -> None:
    link = member(name, b"", type=kind, linkname="../../secret")
    (tmp_path / "secret").write_bytes(b"secret")
    archive = tar(tmp_path / "a.tar.gz", link, member("query"), member("base"))
    assert "a link, a device" in refused(archive, tmp_path)


def test_links_in_a_zip_archive(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as out:
        info = zipfile.ZipInfo("base")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        out.writestr(info, "/etc/passwd")
        out.writestr("query", b"q")
    assert "a link, a device" in refused(archive, tmp_path)


def test_a_bomb(tmp_path: Path) -> None:
    zeros = bytes(4 * LIMIT)
    packed = tar(tmp_path / "a.tar.gz", member("base", zeros), member("query"))
    assert packed.stat().st_size < LIMIT // 10
    assert "unpacks to more than 1,048,576 bytes" in refused(packed, tmp_path)
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("base", zeros)
        out.writestr("query", b"q")
    assert "unpacks to more than" in refused(archive, tmp_path)


def test_a_bomb_in_a_member_that_is_not_wanted_or_behind_the_last(tmp_path: Path) -> None:
    archive = tar(tmp_path / "a.tar.gz", member("base"), member("query"), member("learn", bytes(4 * LIMIT)))
    assert "unpacks to more than" in refused(archive, tmp_path)
    plain = tar(tmp_path / "b.tar", member("base"), member("query"), compression="")
    archive = tmp_path / "b.tar.gz"
    archive.write_bytes(gzip.compress(plain.read_bytes() + bytes(4 * LIMIT)))
    assert "behind its last member" in refused(archive, tmp_path)


def test_a_header_that_would_fill_the_memory(tmp_path: Path) -> None:
    long = member("base", pax_headers={"comment": "x" * (MAX_HEADER_BYTES + 1)})
    archive = tar(tmp_path / "a.tar.gz", long, member("query"))
    assert "a header of" in refused(archive, tmp_path, 64 << 20)


def test_more_members_than_there_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corenn.datasets.archive, "MAX_MEMBERS", 50)
    archive = tar(tmp_path / "a.tar", *(member(f"m{number}", b"") for number in range(51)), compression="")
    assert "more than 50 members" in refused(archive, tmp_path)


def test_a_member_twice(tmp_path: Path) -> None:
    archive = tar(tmp_path / "a.tar.gz", member("base"), member("b/base", b"another"), member("query"))
    assert "holds base twice" in refused(archive, tmp_path)


def test_a_member_that_is_missing(tmp_path: Path) -> None:
    assert "holds no query" in refused(tar(tmp_path / "a.tar.gz", member("base")), tmp_path)


def test_an_encrypted_member(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("base", BODY)
        out.writestr("query", b"q")
    raw = bytearray(archive.read_bytes())
    raw[raw.rindex(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(raw)
    assert "encrypted" in refused(archive, tmp_path)


# --- damaged ones -----------------------------------------------------------------------------------------------------


def whole_tar(path: Path) -> Path:
    return tar(path, member("query", b"q" * 700), member("learn", b"l" * 3_000), member("base"))


def whole_zip(path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, body in (("query", b"q" * 700), ("base", BODY)):
            out.writestr(name, body)
    return path


@pytest.mark.parametrize(("name", "make"), [("a.tar.gz", whole_tar), ("a.zip", whole_zip)])
@settings(max_examples=60)
@given(data=st.data())
def test_a_cut_archive_gives_nothing(
    tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Path], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    archive = make(folder / name)
    raw = archive.read_bytes()
    archive.write_bytes(raw[: data.draw(st.integers(0, len(raw) - 1))])
    refused(archive, folder)


@pytest.mark.parametrize(("name", "make"), [("a.tar.gz", whole_tar), ("a.zip", whole_zip)])
@settings(max_examples=80)
@given(data=st.data())
def test_a_changed_byte_gives_nothing_or_the_same(
    tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Path], data: st.DataObject
) -> None:
    """Some bytes, such as times, mean nothing to us; no change may give other contents, or a traceback."""
    folder = tmp_path_factory.mktemp("bad")
    archive = make(folder / name)
    raw = bytearray(archive.read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    archive.write_bytes(raw)
    try:
        found = unpacked(archive, folder / "out")
    except DatasetError as error:
        assert "\n" not in str(error)
        assert not any((folder / "out").glob("*")) if (folder / "out").exists() else True
    else:
        assert found == {"base": BODY, "query": b"q" * 700}


def test_a_position_before_the_beginning(tmp_path: Path) -> None:
    archive = whole_zip(tmp_path / "a.zip")
    raw = bytearray(archive.read_bytes())
    raw[-4] ^= 2  # a high byte of where the list of members begins
    archive.write_bytes(raw)
    assert "torn or damaged" in refused(archive, tmp_path)


@given(st.binary(max_size=2_000))
def test_any_bytes_give_one_line(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    folder = tmp_path_factory.mktemp("any")
    for name in ("a.tar.gz", "a.zip"):
        (folder / name).write_bytes(raw)
        refused(folder / name, folder)
