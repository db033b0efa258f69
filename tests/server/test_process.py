"""Rules out a server that, as a process, loses what it has acknowledged, or does not start or stop as it should."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from corenn import AccessError, Client, Root
from corenn.cli import app
from tests.crash.harness import environment
from tests.server.served import READ, SCOPED, SECONDS, WRITE, free_port

pytestmark = pytest.mark.compiled


@contextmanager
def process(root: Path, port: int, *options: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """`corenn serve`, until it takes requests; killed at the end if it is still there."""
    command = [sys.executable, "-m", "corenn", "serve", str(root), "--port", str(port), *options]
    command += ["--limit", f"deadline={SECONDS}"]
    started = subprocess.Popen(command, env={**environment(), **variables}, stderr=subprocess.PIPE, text=True)
    try:
        with Client(f"http://127.0.0.1:{port}", WRITE, retries=40) as client:
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
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "in use" in refused(str(tmp_path / "root"), "--port", str(taken.getsockname()[1]))
    assert "is a file" in refused(str(tmp_path / "file"), "--port", str(free_port()), "--log-level", "error")
