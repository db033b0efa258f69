"""One file over FTP.

Rules out a half or mixed file under the final name, a transfer that does not go on by REST, and a server's refusals
that come out as anything but the next mirror.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from corenn.datasets.remote import RemoteFile
from corenn.datasets.transfer import Patience, download
from corenn.errors import DatasetError
from tests.datasets.servers import Ftp, ftp

BODY = bytes(range(256)) * 4_000  # 1,024,000 bytes, several packets
OTHER = bytes(reversed(range(256))) * 4_000
QUICK = Patience(attempts=3, timeout=10, pause=0.001, longest=0.002)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Ftp]:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "base.bin").write_bytes(BODY)
    with ftp(folder) as running:
        yield running


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "fetched").mkdir()
    return tmp_path / "fetched" / "base.bin"


def fetched(target: Path, *urls: str, size: int | None = None, **options: Any) -> bytes:
    """What a download brings; nothing else is left behind."""
    download(RemoteFile(target.name, urls, size), target, patience=QUICK, **options)
    assert [each.name for each in target.parent.iterdir()] == [target.name]
    return target.read_bytes()


def failure(target: Path, *urls: str, **options: Any) -> str:
    """The message of a download that must not succeed; nothing has the final name."""
    with pytest.raises(DatasetError) as error:
        fetched(target, *urls, **options)
    assert not target.exists()
    assert "\n" not in str(error.value)
    return str(error.value)


def restarts(server: Ftp) -> list[int]:
    """The positions at which clients asked to go on."""
    return [int(line.split()[1]) for line in server.commands if line.startswith("REST")]


def test_a_file_comes_whole(server: Ftp, target: Path) -> None:
    assert fetched(target, server.url("base.bin")) == BODY
    assert restarts(server) == []


def test_a_dropped_connection_is_continued_where_it_broke(server: Ftp, target: Path) -> None:
    server.drops = [300_000, 200_000]
    assert fetched(target, server.url("base.bin")) == BODY
    assert len(restarts(server)) == 2
    assert all(0 < at < len(BODY) for at in restarts(server))


def test_a_server_without_rest_begins_anew(server: Ftp, target: Path) -> None:
    server.drops = [300_000]
    server.refused = {"REST"}
    assert fetched(target, server.url("base.bin")) == BODY


def test_a_server_without_size_and_time(server: Ftp, target: Path) -> None:
    server.refused = {"SIZE", "MDTM"}
    assert fetched(target, server.url("base.bin")) == BODY
    target.unlink()
    server.drops = [300_000]
    assert fetched(target, server.url("base.bin")) == BODY
    assert restarts(server) == []  # nothing could show that it is the same file


def test_a_file_that_changes_between_attempts_is_not_mixed(server: Ftp, target: Path) -> None:
    server.drops = [300_000]
    file = server.folder / "base.bin"

    class Change:
        """Another version, of the same length, once the first connection is lost."""

        def begin(self, title: str, total: int | None) -> None: ...
        def note(self, text: str) -> None: ...
        def advance(self, count: int) -> None:
            if not server.drops and file.read_bytes() == BODY:
                file.write_bytes(OTHER)
                os.utime(file, (1, 1_600_000_000))

    assert fetched(target, server.url("base.bin"), watch=Change()) == OTHER


def test_a_slice_comes_without_the_rest(server: Ftp, target: Path) -> None:
    server.drops = [1_000]
    assert fetched(target, server.url("base.bin"), stop=5_000) == BODY[:5_000]


def test_paths_and_passwords_are_decoded(server: Ftp, target: Path) -> None:
    (server.folder / "a folder").mkdir()
    (server.folder / "a folder" / "base #1.bin").write_bytes(BODY[:100])
    assert fetched(target, server.url("a%20folder/base%20%231.bin", "reader:s3cret%3A%40@")) == BODY[:100]


@pytest.mark.parametrize(
    ("path", "user", "reason"),
    [
        ("nothing.bin", "", "FTP 550"),
        ("base.bin", "reader:wrong@", "FTP 530"),
        ("base.bin%0D%0ADELE%20base.bin", "", "illegal newline"),
    ],
    ids=["no such file", "wrong password", "command in the path"],
)
def test_what_a_server_refuses_leads_to_the_next_mirror(
    server: Ftp, target: Path, path: str, user: str, reason: str
) -> None:
    assert reason in failure(target, server.url(path, user))
    assert fetched(target, server.url(path, user), server.url("base.bin")) == BODY


def test_a_size_that_is_not_that_of_the_catalogue(server: Ftp, target: Path) -> None:
    assert "serves a file of 1,024,000 bytes" in failure(target, server.url("base.bin"), size=1_024_001)


@pytest.mark.parametrize("greeting", [b"", b"421 too many users\r\n", b"220 hello\r\n", b"\xff\xfe\r\n", b"HTTP/1.1"])
def test_something_else_at_the_port(target: Path, greeting: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with suppress(OSError):  # the listener is closed
                while True:
                    connection, _address = listener.accept()
                    with connection:
                        connection.sendall(greeting)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        message = failure(target, f"ftp://127.0.0.1:{listener.getsockname()[1]}/base.bin")
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert "cannot fetch base.bin" in message


def test_passwords_are_not_shown(server: Ftp, target: Path) -> None:
    message = failure(target, server.url("nothing.bin", "reader:s3cret%3A%40@"))
    assert "s3cret" not in message and "reader" not in message and server.url("nothing.bin") in message
