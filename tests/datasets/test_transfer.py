"""One file over HTTP, from servers that do everything wrong.

Rules out a half, mixed or corrupt file under the final name, bytes fetched twice without need, a dead or lying mirror
that stops a fetch, an endless one, and two fetches that write into one file.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corenn.datasets import transfer
from corenn.datasets.remote import RemoteFile
from corenn.datasets.transfer import Patience, download, held
from corenn.datasets.transports import Known, UnavailableError
from corenn.errors import DatasetError, DiskFullError, StorageError
from tests.datasets.servers import Fault, Web, web

BODY = bytes(range(256)) * 400 + b"the end"  # 102,407 bytes
OTHER = bytes(reversed(range(256))) * 400 + b"the end"
LATER = 1_800_000_000
QUICK = Patience(attempts=3, timeout=10, pause=0.001, longest=0.002)
SOON = Patience(attempts=2, timeout=0.3, pause=0.001, longest=0.002)


@pytest.fixture(scope="module")
def running() -> Iterator[Web]:
    with web() as server:
        yield server


@pytest.fixture
def server(running: Web, monkeypatch: pytest.MonkeyPatch) -> Web:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    running.files.clear()
    running.requests.clear()
    return running


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "base.bin"


def sha256(body: bytes) -> str:
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


def get(target: Path, *urls: str, size: int | None = None, checksum: str = "", **options: Any) -> str:
    return download(RemoteFile(target.name, urls, size, checksum), target, **{"patience": QUICK, **options})


def fetched(target: Path, *urls: str, **more: Any) -> bytes:
    """What a download brings; nothing else is left behind."""
    get(target, *urls, **more)
    assert [each.name for each in target.parent.iterdir()] == [target.name]
    return target.read_bytes()


def failure(target: Path, *urls: str, **more: Any) -> str:
    """The message of a download that must not succeed; nothing has the final name."""
    with pytest.raises(DatasetError) as error:
        get(target, *urls, **more)
    assert not target.exists()
    assert "\n" not in str(error.value)
    return str(error.value)


def part_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.part")


def ranges(server: Web) -> list[str | None]:
    return [wanted for _, wanted in server.requests]


def dead_url() -> str:
    """An address at which nobody listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{one.getsockname()[1]}/f"


# --- faults that a fetch gets over ------------------------------------------------------------------------------------


def test_an_honest_server_is_asked_once(server: Web, target: Path) -> None:
    assert fetched(target, server.serve("f", BODY)) == BODY
    assert ranges(server) == [None]


def test_a_dropped_connection_is_continued_where_it_broke(server: Web, target: Path) -> None:
    url = server.serve("f", BODY, Fault(drop=30_000), Fault(drop=50_000))
    assert fetched(target, url) == BODY
    assert ranges(server) == [None, "bytes=30000-", "bytes=80000-"]


def test_more_drops_than_attempts_are_no_failure_while_bytes_come(server: Web, target: Path) -> None:
    url = server.serve("f", BODY, *(Fault(drop=9_000) for _ in range(11)))
    assert fetched(target, url) == BODY
    assert len(server.requests) == 12


@given(st.lists(st.integers(1, 60_000), max_size=5), st.sampled_from([None, 1, 70_000, len(BODY)]))
@settings(max_examples=25)
def test_any_drops_and_any_end_give_the_first_bytes(
    running: Web, tmp_path_factory: pytest.TempPathFactory, drops: list[int], stop: int | None
) -> None:
    url = running.serve("f", BODY, *(Fault(drop=each) for each in drops))
    assert fetched(tmp_path_factory.mktemp("any") / "base.bin", url, stop=stop) == BODY[:stop]


@pytest.mark.parametrize("again", [Fault(ignore_range=True), Fault(status=416)], ids=["ignores", "refuses"])
def test_a_server_without_ranges_begins_anew(server: Web, target: Path, again: Fault) -> None:
    assert fetched(target, server.serve("f", BODY, Fault(drop=30_000), again)) == BODY
    assert ranges(server)[1] == "bytes=30000-"


@pytest.mark.parametrize("careless", [False, True], ids=["If-Range", "no If-Range"])
def test_a_file_that_changes_between_attempts_is_not_mixed(server: Web, target: Path, careless: bool) -> None:
    change = Fault(body=OTHER, etag='"two"', careless=careless)
    assert fetched(target, server.serve("f", BODY, Fault(drop=30_000), change)) == OTHER
    assert ranges(server) == [None, "bytes=30000-", *([None] if careless else [])]  # the server tells it at once


def test_a_file_that_changes_its_length_is_not_mixed(server: Web, target: Path) -> None:
    url = server.serve("f", BODY, Fault(drop=30_000), Fault(body=OTHER + b"!", careless=True), etag="", modified=1)
    assert fetched(target, url) == OTHER + b"!"


def test_bytes_without_validators_are_continued_only_if_a_checksum_will_tell(server: Web, target: Path) -> None:
    url = server.serve("f", BODY, Fault(drop=30_000), Fault(body=OTHER), etag="", modified=None)
    assert fetched(target, url) == OTHER
    assert ranges(server) == [None, None]
    target.unlink()
    server.requests.clear()
    url = server.serve("g", BODY, Fault(drop=30_000), etag="", modified=None)
    assert fetched(target, url, checksum=sha256(BODY)) == BODY
    assert ranges(server) == [None, "bytes=30000-"]


def test_a_mixture_that_the_checksum_tells_is_fetched_afresh(server: Web, target: Path) -> None:
    url = server.serve("f", BODY, Fault(drop=30_000), Fault(body=OTHER), etag="", modified=None)
    assert fetched(target, url, checksum=sha256(OTHER)) == OTHER
    assert ranges(server) == [None, "bytes=30000-", None]


def test_weak_validators_do_not_count(server: Web, target: Path) -> None:
    url = server.serve("f", BODY, Fault(drop=30_000), Fault(body=OTHER), etag='W/"one"', modified=None)
    assert fetched(target, url) == OTHER


def test_a_stalled_connection_is_given_up_and_continued(server: Web, target: Path) -> None:
    assert fetched(target, server.serve("f", BODY, Fault(stall=30_000)), patience=SOON) == BODY
    assert ranges(server) == [None, "bytes=30000-"]


def test_servers_that_are_busy_are_asked_again(server: Web, target: Path) -> None:
    url = server.serve("f", BODY, Fault(status=503, headers={"Retry-After": "0"}), Fault(status=500))
    assert fetched(target, url) == BODY


def test_a_file_in_chunks_without_a_length(server: Web, target: Path) -> None:
    url = server.serve("f", BODY, Fault(chunked=True, drop=20_000), Fault(chunked=True))
    assert fetched(target, url) == BODY


def test_redirects_are_followed(server: Web, target: Path) -> None:
    url = server.serve("f", b"", Fault(to=server.serve("g", BODY)))
    assert fetched(target, url) == BODY


# --- faults that lead to the next mirror ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Fault(status=404), "HTTP 404"),
        (Fault(status=403), "HTTP 403"),
        (Fault(status=204), "HTTP 204"),
        (Fault(status=503), "HTTP 503 Service Unavailable, 3 times in a row"),
        (Fault(to="/f"), "redirects"),
        (Fault(to="gopher://127.0.0.1/"), "gopher"),
        (Fault(stall=0), "no answer within 0.3 s, 2 times"),
        (Fault(drop=0), "3 times in a row"),
        (Fault(drop=700, ignore_range=True), "3 times in a row"),
        (Fault(longer=10), "bytes; base.bin has 102,407"),
        (Fault(longer=-10), "serves a file of 102,397 bytes"),
        (Fault(corrupt=50_000), "its sha256 is"),
        (Fault(headers={"Content-Type": "text/html; charset=utf-8"}), "web page"),
        (Fault(headers={"Content-Encoding": "br"}), "encoded as br"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_next_mirror_is_asked(server: Web, target: Path, fault: Fault, reason: str) -> None:
    bad = server.serve("f", BODY, always=fault)
    good = server.serve("g", BODY, etag='"another"', modified=LATER)
    known: dict[str, Any] = {"size": len(BODY), "checksum": sha256(BODY), "patience": QUICK}
    if fault.stall is not None:
        known["patience"] = SOON
    message = failure(target, bad, **known)
    assert reason in message
    assert bad in message
    notes: list[str] = []
    assert fetched(target, bad, good, watch=Notes(notes), **known) == BODY
    assert len(notes) == 1 and reason in notes[0]


class Notes(transfer.Unwatched):
    def __init__(self, notes: list[str]) -> None:
        self.notes = notes
        self.total = 0

    def begin(self, title: str, total: int | None) -> None:
        self.total = 0

    def advance(self, count: int) -> None:
        self.total += count

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_a_dead_server(server: Web, target: Path) -> None:
    assert "3 times in a row" in failure(target, dead_url())
    assert fetched(target, dead_url(), server.serve("f", BODY)) == BODY


def test_all_reasons_are_named_in_one_line(server: Web, target: Path) -> None:
    missing, corrupt = server.url("nothing"), server.serve("f", BODY, always=Fault(corrupt=1))
    message = failure(target, missing, corrupt, checksum=sha256(BODY))
    assert f"{missing}: HTTP 404" in message and f"{corrupt}: its sha256 is" in message and "--url" in message


def test_a_server_that_lies_about_a_length_that_nobody_knows(server: Web, target: Path) -> None:
    assert "3 times in a row" in failure(target, server.serve("f", BODY, always=Fault(longer=10)))


def test_a_body_whose_end_cannot_be_told_from_a_drop_is_not_taken(server: Web, target: Path) -> None:
    url = server.serve("f", BODY, always=Fault(unframed=True))
    assert "does not say how long" in failure(target, url)
    assert fetched(target, url, size=len(BODY)) == BODY
    target.unlink()
    assert fetched(target, url, checksum=sha256(BODY)) == BODY
    target.unlink()
    cut = server.serve("g", BODY, always=Fault(unframed=True, drop=9))
    assert "its sha256" in failure(target, cut, checksum=sha256(BODY))


@pytest.mark.parametrize("more", [7, 50_000])
def test_a_server_that_sends_more_than_the_file_has(server: Web, target: Path, more: int) -> None:
    url = server.serve("f", BODY, always=Fault(chunked=True))
    assert "sends more than" in failure(target, url, size=len(BODY) - more)
    assert not part_of(target).exists()


@pytest.mark.parametrize("fault", [Fault(), Fault(chunked=True)], ids=["length 0", "no chunks"])
def test_an_empty_file_is_none(server: Web, target: Path, fault: Fault) -> None:
    assert "serves an empty file" in failure(target, server.serve("f", b"", always=fault))
    assert not part_of(target).exists()


def test_a_short_body_without_a_length_is_held_against_the_catalogue(server: Web, target: Path) -> None:
    url = server.serve("f", BODY, always=Fault(unframed=True, drop=9, ignore_range=True))
    assert "the connection was lost at 9 of 102,407 bytes, 3 times" in failure(target, url, size=len(BODY))


def test_a_range_that_begins_elsewhere_is_not_taken(server: Web, target: Path) -> None:
    url = server.serve("f", BODY, Fault(drop=30_000), always=Fault(shift=1))
    assert "another range" in failure(target, url)


def test_a_file_that_is_not_what_its_name_says(server: Web, tmp_path: Path) -> None:
    target = tmp_path / "base.hdf5"
    assert "not a .hdf5 file" in failure(target, server.serve("f", b"<html>login" * 100))
    body = b"\x89HDF\r\n\x1a\n and so on"
    assert fetched(target, server.url("f"), server.serve("g", body)) == body


def test_what_the_caller_finds_wrong(server: Web, target: Path) -> None:
    def never(part: Path) -> None:
        raise UnavailableError(f"has {part.stat().st_size} bytes")

    assert "has 102407 bytes" in failure(target, server.serve("f", BODY), finish=never)
    assert not part_of(target).exists()


# --- parts ------------------------------------------------------------------------------------------------------------


def broken_off(server: Web, target: Path, name: str = "f", at: int = 30_000, **served: Any) -> str:
    """Leave a part behind, as a run that was killed does, and return its address."""
    url = server.serve(name, BODY, Fault(drop=at), always=Fault(status=503), **served)
    failure(target, url)
    assert part_of(target).read_bytes() == BODY[:at]
    server.files[f"/{name}"].always = Fault()
    server.requests.clear()
    return url


def test_another_run_goes_on(server: Web, target: Path) -> None:
    url = broken_off(server, target)
    assert fetched(target, url) == BODY
    assert ranges(server) == ["bytes=30000-"]


def test_the_mirror_that_a_part_came_from_is_asked_first(server: Web, target: Path) -> None:
    url = broken_off(server, target)
    assert fetched(target, server.serve("g", OTHER, etag='"g"'), url) == BODY
    assert ranges(server) == ["bytes=30000-"]


@pytest.mark.parametrize(
    ("validators", "joined"),
    [
        ({"etag": '"one"'}, True),
        ({"etag": "", "modified": 1_700_000_000}, True),
        ({"etag": '"two"'}, False),
        ({"etag": "", "modified": LATER}, False),
        ({"etag": "", "modified": None}, False),
    ],
    ids=["same etag", "same time", "other etag", "other time", "no validator"],
)
def test_another_mirror_goes_on_only_with_the_same_file(
    server: Web, target: Path, validators: dict[str, Any], joined: bool
) -> None:
    old = broken_off(server, target)
    server.files.clear()
    body = BODY if joined else OTHER
    new = server.serve("g", body, always=Fault(careless=True), **validators)
    assert fetched(target, old, new) == body
    assert server.requests[-1] == (("/g", "bytes=30000-") if joined else ("/g", None))


@pytest.mark.parametrize("damage", ["no state", "torn state", "other state", "empty part"])
def test_a_part_of_which_nothing_is_known_is_not_used(server: Web, target: Path, damage: str) -> None:
    url = broken_off(server, target)
    state = target.with_name(f".{target.name}.part.json")
    part_of(target).write_bytes(b"" if damage == "empty part" else OTHER[:30_000])
    if damage == "no state":
        state.unlink()
    elif damage == "torn state":
        state.write_text(state.read_text()[:-5])
    elif damage == "other state":
        state.write_text('{"url": 1}')
    assert fetched(target, url) == BODY


def test_after_a_restart_of_the_machine_only_what_was_synced_counts(
    server: Web, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "SYNC_BYTES", 10_000)
    url = broken_off(server, target)
    state = target.with_name(f".{target.name}.part.json")
    synced = json.loads(state.read_text())["synced"]
    assert 0 < synced <= 30_000
    part_of(target).write_bytes(BODY[:synced] + bytes(30_000 - synced))
    monkeypatch.setattr(transfer, "boot_id", lambda: "another")
    assert fetched(target, url) == BODY
    assert ranges(server) == [f"bytes={synced}-"]


def test_a_part_that_was_complete_is_only_checked(server: Web, target: Path) -> None:
    url = server.serve("f", BODY)

    def killed(_: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(target, url, finish=killed)
    server.requests.clear()
    assert fetched(target, url) == BODY
    assert server.requests == []


def test_a_part_that_is_longer_than_the_file(server: Web, target: Path) -> None:
    url = broken_off(server, target)
    part_of(target).write_bytes(BODY + b"and more")
    assert fetched(target, url) == BODY


def test_progress_adds_up_whatever_happens(server: Web, target: Path) -> None:
    watch = Notes([])
    url = server.serve("f", BODY, Fault(drop=30_000), Fault(drop=9, ignore_range=True), Fault(body=OTHER, etag='"2"'))
    assert fetched(target, url, watch=watch) == OTHER
    assert watch.total == len(OTHER)


def test_progress_begins_anew_with_the_bytes(server: Web, target: Path) -> None:
    class Steps(transfer.Unwatched):
        """The sum of each step."""

        steps: ClassVar[list[list[Any]]] = []

        def begin(self, title: str, total: int | None) -> None:
            self.steps.append([title, 0])

        def advance(self, count: int) -> None:
            self.steps[-1][1] += count

    url = server.serve("f", BODY, Fault(drop=30_000), Fault(body=OTHER), etag="", modified=None)
    assert fetched(target, url, checksum=sha256(OTHER), watch=Steps()) == OTHER
    check = ["checking base.bin", len(OTHER)]
    assert Steps.steps[1:] == [check, ["base.bin", len(OTHER)], check]


# --- slices -----------------------------------------------------------------------------------------------------------


def test_a_slice_comes_without_the_rest(server: Web, target: Path) -> None:
    url = server.serve("f", BODY, Fault(drop=500))
    assert fetched(target, url, stop=1_000, size=len(BODY)) == BODY[:1_000]
    assert ranges(server) == ["bytes=0-999", "bytes=500-999"]


def test_a_slice_from_a_server_that_ignores_ranges(server: Web, target: Path) -> None:
    assert fetched(target, server.serve("f", BODY, always=Fault(ignore_range=True)), stop=1_000) == BODY[:1_000]


@pytest.mark.parametrize("fault", [Fault(), Fault(ignore_range=True)], ids=["ranges", "no ranges"])
def test_a_slice_that_the_file_does_not_have(server: Web, target: Path, fault: Fault) -> None:
    url = server.serve("f", BODY, always=fault)
    assert "102,408 of them are wanted" in failure(target, url, stop=len(BODY) + 1)
    assert fetched(target, url, stop=len(BODY) + 1, clip=True) == BODY


# --- the machine ------------------------------------------------------------------------------------------------------


def test_a_disk_without_room_is_found_out_before_a_byte_is_written(
    server: Web, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(target.parent)._replace(free=len(BODY) - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DiskFullError, match="102,407 more bytes"):
        get(target, server.serve("f", BODY))


def test_a_folder_that_cannot_be_written_to(server: Web, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError, match="Input/output error"):
        get(target, server.serve("f", BODY))
    assert not target.exists()


def _hold(path: Path, ready: Any, end: Any) -> None:
    with held(path, "x"):
        ready.set()
        end.wait(20)


def test_two_processes_do_not_fetch_into_one_file(server: Web, target: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    ready, end = spawn.Event(), spawn.Event()
    other = spawn.Process(target=_hold, args=(target.with_name(f".{target.name}.lock"), ready, end))
    other.start()
    try:
        assert ready.wait(20)
        assert "another process is fetching base.bin" in failure(target, server.serve("f", BODY))
        assert server.requests == []
    finally:
        other.kill()
        other.join()
    assert fetched(target, server.url("f")) == BODY  # the lock died with its holder


def test_a_lock_that_its_last_holder_has_just_removed_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, lock = tmp_path / "lock", transfer.fcntl.flock

    def late(file: Any, operation: int) -> None:
        path.unlink()
        lock(file, operation)

    monkeypatch.setattr(transfer.fcntl, "flock", late)
    with pytest.raises(DatasetError, match="was just fetching x"), held(path, "x"):
        pytest.fail("two processes could hold this lock")


def test_files_of_this_machine(target: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    (folder / "base.bin").write_bytes(BODY)
    url = (folder / "base.bin").as_uri()
    assert get(target, url, stop=1_000) == url
    assert target.read_bytes() == BODY[:1_000]
    target.unlink()
    assert "is not a file" in failure(target, folder.as_uri())
    assert "not this machine" in failure(target, "file://elsewhere/base.bin")


@given(
    st.builds(Known, st.sampled_from([None, 1, 2]), st.sampled_from(["", '"a"', '"b"']), st.sampled_from([None, 1, 2])),
    st.builds(Known, st.sampled_from([None, 1, 2]), st.sampled_from(["", '"a"', '"b"']), st.sampled_from([None, 1, 2])),
)
def test_joining_is_symmetric_and_never_against_a_validator(one: Known, two: Known) -> None:
    assert one.continues(two, False) == two.continues(one, False)
    if one.continues(two, False):
        assert one.continues(two, True)
        assert one.size == two.size is not None
        assert not (one.etag and two.etag and one.etag != two.etag)
        assert (one.etag and two.etag) or (one.modified is not None and one.modified == two.modified)
