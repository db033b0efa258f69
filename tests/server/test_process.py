"""Rules out a server that, as a process, loses what it has acknowledged, or does not start or stop as it should."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from corenn import AccessError, AsyncClient, Client, InvalidArgumentError, Root, ServerError
from corenn.cli import app
from corenn.client import Collection
from tests.crash.harness import environment
from tests.server.served import READ, SCOPED, SECONDS, WRITE, free_port

pytestmark = pytest.mark.compiled


@contextmanager
def process(
    root: Path, port: int, *options: str, program: Sequence[str] = ("-m", "corenn"), trusted: Path | None = None,
    **variables: str,
) -> Iterator[subprocess.Popen[str]]:  # fmt: skip
    """`corenn serve`, until it takes requests; killed at the end if it is still there. program: in place of corenn.
    trusted: its certificate.
    """
    command = [sys.executable, *program, "serve", str(root), "--port", str(port), *options]
    command += ["--limit", f"deadline={SECONDS}"]
    started = subprocess.Popen(command, env={**environment(), **variables}, stderr=subprocess.PIPE, text=True)
    try:
        scheme, verify = ("http", True) if trusted is None else ("https", trusted)
        with Client(f"{scheme}://127.0.0.1:{port}", WRITE, retries=40, verify=verify) as client:
            client.list()
        yield started
    finally:
        started.kill()
        started.communicate()


def test_what_was_acknowledged_outlives_a_kill_and_an_end_is_clean(tmp_path: Path) -> None:
    root, port = tmp_path / "root", free_port()
    rows = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    acknowledged: list[int] = []
    enough, ended = threading.Event(), threading.Event()

    def write() -> None:
        """Upsert batches until it is ended, whatever happens to the server."""
        with Client(f"http://127.0.0.1:{port}", retries=40, timeout=SECONDS) as client:
            some = client.create("some", dim=8, metric="l2")
            batch = 0
            while not ended.is_set():
                some.upsert(range(batch * 20, batch * 20 + 20), rows + batch)
                acknowledged.append(batch)
                batch += 1
                if batch % 20 == 0:
                    enough.set()

    writer = threading.Thread(target=write)
    with process(root, port) as first:
        writer.start()
        assert enough.wait(SECONDS)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    enough.clear()
    with process(root, port) as second:
        assert enough.wait(SECONDS)
        ended.set()
        writer.join()
        second.send_signal(signal.SIGTERM)
        _, log = second.communicate(timeout=60)
        assert second.returncode == 0
        assert "all collections are closed" in log
    with Root(root, mode="r") as closed:
        some = closed["some"]
        assert len(some) == 20 * len(acknowledged)
        for batch in acknowledged:
            for record in some.get([batch * 20, batch * 20 + 19]):
                assert record is not None
                np.testing.assert_array_equal(record.vector, rows[record.key % 20] + batch)
        assert some.verify().ok


KILLED = """
import os, signal, sys
from pathlib import Path
from corenn.cli import main
from corenn.server import service

answered = service.Service.in_thread

async def killed(self, pool, call):
    done = await answered(self, pool, call)
    if pool is self.writers and Path(sys.argv[2]).with_name("kill").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return done

service.Service.in_thread = killed
main()
"""


def test_a_write_whose_answer_a_kill_has_swallowed_is_answered_after_the_restart(tmp_path: Path) -> None:
    """Each is committed, and its process killed before anybody is told; the client asks again by itself."""
    root, port = tmp_path / "root", free_port()
    rows = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    kill = tmp_path / "kill"
    with process(root, port), Client(f"http://127.0.0.1:{port}", timeout=SECONDS) as client:
        client.create("some", dim=4, metric="l2").insert(["a", "b"], rows[:2])
    results: list[Any] = []

    def write(call: Callable[[Collection], Any]) -> None:
        with Client(f"http://127.0.0.1:{port}", retries=60, timeout=SECONDS) as client:
            results.append(call(client["some"]))

    calls: list[tuple[Callable[[Collection], Any], list[str]]] = [
        (lambda some: some.insert(["c"], rows[2:]), ["a", "b", "c"]),
        (lambda some: some.delete(["a", "b", "x"]), ["c"]),
    ]
    for call, left in calls:
        with process(root, port, program=("-c", KILLED)) as first:
            kill.touch()
            writer = threading.Thread(target=write, args=(call,))
            writer.start()
            assert first.wait(SECONDS) == -signal.SIGKILL
        kill.unlink()
        with Root(root, mode="r") as beside:  # it holds
            assert list(beside["some"].keys()) == left
        with process(root, port):
            writer.join(SECONDS)
            assert not writer.is_alive()
        with Root(root, mode="r") as beside:  # once
            assert list(beside["some"].keys()) == left
    assert results == [None, 2]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_certificates_are_used_and_asked_for(tmp_path: Path) -> None:
    port, certificate, key = free_port(), tmp_path / "certificate.pem", tmp_path / "key.pem"
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    made = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*make.split(), *made], check=True, capture_output=True)
    options = ["--tls-cert", str(certificate), "--tls-key", str(key)]
    with process(tmp_path / "root", port, *options, trusted=certificate):
        url = f"https://localhost:{port}"
        with Client(url, verify=str(certificate), timeout=SECONDS) as client:
            client.create("some", dim=4, metric="l2").insert(["a"], np.eye(1, 4))
            assert client["some"].query(np.eye(1, 4)[0], k=1).keys == ["a"]

        async def listed() -> list[str]:
            async with AsyncClient(url, verify=certificate) as client:
                return await client.list()

        assert asyncio.run(listed()) == ["some"]
        with Client(url, retries=0) as stranger, pytest.raises(ServerError, match="certificate"):
            stranger.list()
        with Client(f"http://localhost:{port}", retries=0) as plain, pytest.raises(ServerError):
            plain.list()
    with pytest.raises(InvalidArgumentError, match="certificate"):
        Client(url, verify=key)


def test_keys_come_from_files_and_the_environment(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "keys").write_text(f"{SCOPED} mine\n")
    with process(tmp_path / "root", port, "--api-key-file", str(tmp_path / "keys"), CORENN_API_KEY=WRITE,
                 CORENN_READ_ONLY_KEY=READ):  # fmt: skip
        url = f"http://127.0.0.1:{port}"
        with Client(url, WRITE, timeout=SECONDS) as client, Client(url, READ) as reader, Client(url, SCOPED) as scoped:
            client.create("other", dim=4)
            scoped.create("mine", dim=4)
            assert (client.list(), reader.list(), scoped.list()) == (["mine", "other"], ["mine", "other"], ["mine"])
            with pytest.raises(AccessError, match="only read"):
                reader.drop("mine")
            with ExitStack() as idle:  # who says nothing keeps nobody else out
                for _ in range(300):
                    idle.enter_context(socket.create_connection(("127.0.0.1", port))).sendall(b"POST /")
                with Client(url, WRITE, retries=0) as another:
                    assert another.list() == ["mine", "other"]
            with pytest.raises(AccessError, match="not for collection 'other'"):
                scoped.drop("other")
        with Client(url) as nobody, pytest.raises(AccessError, match="Bearer"):
            nobody.list()


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A command sets up logging for its process."""
    log = logging.getLogger("corenn")
    handlers, level = log.handlers[:], log.level
    yield
    log.handlers[:] = handlers
    log.setLevel(level)


def refused(*options: str) -> str:
    """What `corenn serve` says on standard error before it gives up."""
    done = CliRunner().invoke(app, ["serve", *options])
    assert done.exit_code == 1
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0"], "--insecure"),
        (["--limit", "body"], "NAME=VALUE"),
        (["--limit", "nothing=1"], "no such limit"),
        (["--api-key-file", "none.txt"], "cannot read"),
        (["--tls-cert", "cert.pem"], "go together"),
        (["--log-level", "loud"], "choose one of"),
    ],
)
def test_what_cannot_be_served_is_one_line(tmp_path: Path, options: list[str], said: str) -> None:
    assert said in refused(str(tmp_path / "root"), *options)
    assert not (tmp_path / "root").exists()


def test_a_port_that_is_taken_and_a_root_that_is_none_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "in use" in refused(str(tmp_path / "root"), "--port", str(taken.getsockname()[1]))
    assert "is a file" in refused(str(tmp_path / "file"), "--port", str(free_port()), "--log-level", "error")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
