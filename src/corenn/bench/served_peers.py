"""Database servers beside ours: how each is built, started, asked and loaded. One class per server.

A server runs in a process of its own, on a folder of its own, and is built once: what lies in the folder is used again.
"""

from __future__ import annotations

import http.client
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import psutil  # type: ignore[import-untyped]

from ..types import Float32s, Int64s
from .postgres import USER, PostgresConnection, copied, searches
from .process import Fault, Process, last_words
from .recall import MISSING, distances_of, recall_by_distance, table
from .sample import Sample
from .systems.base import EFFORTS

START_SECONDS = 60.0
BUILD_SECONDS = 3_600.0
BUILT = "built.json"
COPIED_ROWS = 5_000
SERVANT = "nobody"  # whom PostgreSQL runs as where we are root
QUIET = {"ANONYMIZED_TELEMETRY": "False"}
CHROMA = "/api/v2/tenants/default_tenant/databases/default_database/collections"


class Peer(ABC):
    """One server. name: as it is called in tables. generator: what loads it."""

    name: ClassVar[str]
    generator: ClassVar[str]

    def __init__(self, folder: Path, sample: Sample, k: int, threads: int, python: Path | None) -> None:
        """folder: for what it keeps. python: the interpreter that has its package, where not our own."""
        self.folder, self.sample, self.k, self.threads = folder, sample, k, threads
        self.python = python or Path(sys.executable)
        self.effort = 0

    def prepare(self, recall: float) -> dict[str, Any]:
        """Build it, and find the least effort with a recall, unless that is done; what is to be told of it.

        Raises:
            Fault: if it is not installed, or fails.
        """
        version = self.version()
        file = self.folder / BUILT
        if file.exists():
            about: dict[str, Any] = json.loads(file.read_text())
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            began = time.perf_counter()
            self.build()
            about = {"version": version, "build_seconds": time.perf_counter() - began}
        if about.get("tuned_for") != recall:
            self.tune(recall)
            about |= {"tuned_for": recall, "effort": self.effort}
        file.write_text(json.dumps(about))
        return about

    @abstractmethod
    def version(self) -> str:
        """What is installed.

        Raises:
            Fault: if it is not.
        """

    @abstractmethod
    def build(self) -> None:
        """Index all rows in the folder."""

    @abstractmethod
    def tune(self, recall: float) -> None:
        """Set the least effort with a recall, or the greatest that there is, so that the server keeps it."""

    @abstractmethod
    def serving(self) -> AbstractContextManager[tuple[int, int]]:
        """Serve the folder meanwhile: the port and the number of the process."""

    @abstractmethod
    def ask(self, port: int, queries: Float32s) -> Int64s:
        """The ids that the server finds for each query, asked one by one: (queries, k)."""

    @abstractmethod
    def load(self, port: int, queries: Path, connections: int, seconds: float) -> list[str]:
        """The command line of the generator."""

    def recall(self, ids: Int64s) -> float:
        """By the distances of what was found."""
        sample = self.sample
        found = np.sort(distances_of(ids, sample.base, sample.queries[: len(ids)], sample.metric), axis=1)
        return recall_by_distance(found, sample.truth[: len(ids)], self.k)


class Chroma(Peer):
    """`chroma run`. The graph is made by its embedded client, whose folder the server takes as it is."""

    name, generator = "Chroma", "the same: raw sockets, JSON"

    def version(self) -> str:
        return _package(self.python, "chromadb")

    def build(self) -> None:
        np.save(self.folder / "base.npy", self.sample.base)
        np.save(self.folder / "queries.npy", self.sample.queries)
        (self.folder / "files").mkdir()
        with self._worker() as worker:
            worker.ask("build", BUILD_SECONDS, metric=self.sample.metric, threads=self.threads)
            worker.ask("close", BUILD_SECONDS)

    def tune(self, recall: float) -> None:
        out = self.folder / "ids.npy"
        with self._worker() as worker:
            first = {"ef_search": EFFORTS[0]}
            worker.ask("open", BUILD_SECONDS, dim=0, metric="", params=first, k=self.k)
            for self.effort in (each for each in EFFORTS if each >= self.k):
                worker.ask(
                    "query", BUILD_SECONDS, params={"ef_search": self.effort}, k=self.k,
                    count=len(self.sample.queries), least=0, out=str(out),
                )  # fmt: skip
                if self.recall(np.load(out)) >= recall:
                    break
            worker.ask("close", BUILD_SECONDS)

    def _worker(self) -> Process:
        worker = Process(self.folder / "log", self.threads, QUIET, self.python, self.folder)
        worker.ask(
            "start", START_SECONDS, system="chroma", options={}, folder=str(self.folder / "files"),
            threads=self.threads, base=str(self.folder / "base.npy"), queries=str(self.folder / "queries.npy"),
        )  # fmt: skip
        return worker

    @contextmanager
    def serving(self) -> Iterator[tuple[int, int]]:
        port = free_port()
        command = [str(self.python), "-c", "import sys; from chromadb.cli.cli import app; sys.exit(app())", "run"]
        command += ["--path", str(self.folder / "files"), "--port", str(port)]
        with _running(command, self.folder / "log", env={**os.environ, **QUIET}) as process:
            _wait_for(port, process, self.folder / "log")
            yield port, process.pid

    def ask(self, port: int, queries: Float32s) -> Int64s:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        path, found = self._path(port), []
        for query in queries:
            body = self._template().replace("VECTOR", json.dumps(query.tolist()))
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            (ids,) = json.loads(connection.getresponse().read())["ids"]
            found.append([int(each) for each in ids])
        connection.close()
        return table(found, self.k, MISSING)

    def load(self, port: int, queries: Path, connections: int, seconds: float) -> list[str]:
        return [
            "corenn.bench.http_load", "--port", str(port), "--path", self._path(port), "--template", self._template(),
            "--vectors", str(queries), "--connections", str(connections), "--seconds", str(seconds),
        ]  # fmt: skip

    def _template(self) -> str:
        return f'{{"query_embeddings": [VECTOR], "n_results": {self.k}, "include": []}}'

    def _path(self, port: int) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", f"{CHROMA}/rows")
        identity = json.loads(connection.getresponse().read())["id"]
        connection.close()
        return f"{CHROMA}/{identity}/query"


class Pgvector(Peer):
    """PostgreSQL with pgvector: that of the package pgserver, or one whose `pg_config` is on the path."""

    name, generator = "pgvector", "the same loop: raw sockets, prepared statements in the binary form"
    SETTINGS: ClassVar[dict[str, str]] = {
        "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "shared_buffers": "512MB",
        "maintenance_work_mem": "1GB", "max_connections": "100",
    }  # fmt: skip
    OPERATORS: ClassVar[dict[str, str]] = {"l2": "vector_l2_ops"}

    def version(self) -> str:
        found = self._programs() / "postgres"
        if not found.exists() or not list(self._programs().parent.rglob("vector.control")):
            raise Fault("start", "not installed", "no PostgreSQL with pgvector: pip install pgserver")
        control = next(self._programs().parent.rglob("vector.control")).read_text()
        number = control.partition("default_version = '")[2].partition("'")[0]
        told = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout.split()
        return f"{number}, PostgreSQL {told[2]}"

    def build(self) -> None:
        if self.sample.metric not in self.OPERATORS:
            raise Fault("build", "failed", f"the statements are for l2, not for {self.sample.metric}")
        files = self.folder / "files"
        files.mkdir()
        if os.geteuid() == 0:
            shutil.chown(files, SERVANT)
        command = [
            str(self._programs() / "initdb"),
            "-D",
            str(files),
            "-U",
            USER,
            "-A",
            "trust",
            "--no-sync",
            "-E",
            "UTF8",
        ]
        subprocess.run(command, check=True, capture_output=True, cwd="/", **_as_servant())
        base = self.sample.base
        with self.serving() as (port, _):
            connection = PostgresConnection("127.0.0.1", port)
            connection.run("CREATE EXTENSION vector")
            connection.run(f"CREATE TABLE rows (id integer PRIMARY KEY, vector vector({base.shape[1]}))")
            starts = range(0, len(base), COPIED_ROWS)
            connection.copy("rows", (copied(base[at : at + COPIED_ROWS], at) for at in starts))
            connection.run(f"CREATE INDEX ON rows USING hnsw (vector {self.OPERATORS[self.sample.metric]})")
            connection.run("VACUUM ANALYZE rows")
            connection.socket.close()

    def tune(self, recall: float) -> None:
        with self.serving() as (port, _):
            for self.effort in (each for each in EFFORTS if each >= self.k):
                connection = PostgresConnection("127.0.0.1", port)
                connection.run(f"ALTER ROLE {USER} SET hnsw.ef_search = {self.effort}")  # for connections to come
                connection.socket.close()
                if self.recall(self.ask(port, self.sample.queries)) >= recall:
                    break

    @contextmanager
    def serving(self) -> Iterator[tuple[int, int]]:
        port = free_port()
        command = [str(self._programs() / "postgres"), "-D", str(self.folder / "files"), "-p", str(port)]
        for name, value in self.SETTINGS.items():
            command += ["-c", f"{name}={value}"]
        with _running(command, self.folder / "log", **_as_servant()) as process:
            _wait_for(port, process, self.folder / "log")
            until = time.monotonic() + START_SECONDS
            while True:
                try:  # it listens before it takes anybody in
                    PostgresConnection("127.0.0.1", port).socket.close()
                    break
                except (OSError, RuntimeError):
                    if time.monotonic() > until:
                        raise
                    time.sleep(0.1)
            yield port, process.pid

    def ask(self, port: int, queries: Float32s) -> Int64s:
        connection = PostgresConnection("127.0.0.1", port, self.k)
        found = [connection.search(request) for request in searches(queries)]
        connection.socket.close()
        return table(found, self.k, MISSING)

    def load(self, port: int, queries: Path, connections: int, seconds: float) -> list[str]:
        return [
            "corenn.bench.postgres", "--port", str(port), "--vectors", str(queries), "--k", str(self.k),
            "--connections", str(connections), "--seconds", str(seconds),
        ]  # fmt: skip

    def _programs(self) -> Path:
        """Where `postgres` lies."""
        asked = "import importlib.util as u; print(u.find_spec('pgserver').submodule_search_locations[0])"
        found = subprocess.run([self.python, "-c", asked], capture_output=True, text=True, check=False)
        if found.returncode == 0:
            return Path(found.stdout.strip()) / "pginstall" / "bin"
        config = shutil.which("pg_config")
        if config is None:
            raise Fault("start", "not installed", "no PostgreSQL with pgvector: pip install pgserver")
        told = subprocess.run([config, "--bindir"], capture_output=True, text=True, check=True)
        return Path(told.stdout.strip())


PEERS: Sequence[type[Peer]] = (Chroma, Pgvector)


def processor_seconds(pid: int) -> float:
    """What a process and all that it has started have taken, those that have ended included."""
    total = 0.0
    for each in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            total += sum(each.cpu_times()[:4])
    return total


def free_port() -> int:
    """A port that nobody listens at just now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def _running(command: Sequence[str], log: Path, **how: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A server in a process of its own, ended with all that it has started."""
    with log.open("ab") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, cwd="/", **how)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when a server listens.

    Raises:
        Fault: if it does not.
    """
    until = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < until:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise Fault("start", "failed", f"the server does not listen: {last_words(log)}")


def _package(python: Path, name: str) -> str:
    """Version of a package in an interpreter.

    Raises:
        Fault: if it is not installed.
    """
    asked = [str(python), "-c", f"from importlib.metadata import version; print(version({name!r}))"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Fault("start", "not installed", f"{python} has no {name}: pip install {name}")
    return done.stdout.strip()


def _as_servant() -> dict[str, Any]:
    """How a process is started that refuses to be root's."""
    return {"user": SERVANT, "group": pwd.getpwnam(SERVANT).pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
