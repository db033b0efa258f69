"""What serving costs, what a server bears, and how fast others are: `python -m corenn.bench.served`.

The server, and whatever generates the load, run in processes of their own on the same cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]

from ..client import Client, Collection
from ..database import CoreNN
from .http_load import PLACE, Measured, generate, malformed_requests
from .machine import cores, version_of
from .process import Fault
from .recall import recall_by_distance, table
from .report import Row, circumstances, print_rows
from .sample import Sample, load, made
from .served_peers import PEERS, free_port
from .served_race import Entrant, entrant, print_race, race
from .served_race import generated as run_generator
from .systems.base import EFFORTS

K = 10
RECALL = 0.95  # that is enough
Head = dict[str, Any]  # what goes with each query, beside its vector
WARM_SECONDS = 1.0  # of load before any is measured: kernels are loaded, and files mapped
CONNECTIONS = 32
BATCH = 1_000
NAME = "bench"


@contextmanager
def serving(root: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """`corenn serve` in a process of its own: its port."""
    port = free_port()
    command = [sys.executable, "-m", "corenn", "serve", str(root), "--port", str(port), "--log-level", "error"]
    process = subprocess.Popen(command)
    try:
        with Client(f"http://127.0.0.1:{port}", retries=60) as client:
            client.list()
        yield port, process
    finally:
        process.terminate()
        process.wait(60)


def load_command(port: int, queries: Path, head: Head, seconds: float, connections: int) -> list[str]:
    """The generator's module and arguments for vectors in the binary form."""
    return [
        "corenn.bench.http_load", "--port", str(port), "--path", f"/v1/collections/{NAME}/query", "--vectors",
        str(queries), "--head", json.dumps(head), "--connections", str(connections), "--seconds", str(seconds),
    ]  # fmt: skip


def queries_served(
    port: int, queries: Path, sample: Sample, head: Head, seconds: float, alone: float
) -> list[Row]:  # fmt: skip
    """Single queries: as fast as they go, at half of that, and one at a time. alone: milliseconds of one, embedded."""

    def generated(seconds: float, connections: int, *rate: str) -> Measured:
        return run_generator([*load_command(port, queries, head, seconds, connections), *rate])

    with Client(f"http://127.0.0.1:{port}") as client:
        found = client[NAME].query(sample.queries, **head)
        recall = recall_by_distance(found.distances, sample.truth, K)
        generated(WARM_SECONDS, CONNECTIONS)
        full = generated(seconds, CONNECTIONS)
        half = generated(seconds, CONNECTIONS, "--rate", str(full.per_second / 2))
        one = generated(seconds, 1)
        through = _through_client(client[NAME], sample, head, seconds)
    reached = f"recall@{K} {recall:.4f} by a list of {head['search_list']}"
    note = f"{reached}; p50 {full.p50:.2f} ms, p99 {full.p99:.2f} ms; {full.refused} refused"
    offered = f"{full.per_second / 2:,.0f} per second; p50 {half.p50:.2f} ms"
    return [
        Row(name=f"queries, {CONNECTIONS} connections", figure=full.per_second, goal=5_000, unit="/s", note=note),
        Row(name="… by corenn.Client, one thread", figure=through, goal=700, unit="/s"),
        Row(name="p99 at half of that, open loop", figure=half.p99, goal=10, unit="ms", at_most=True, note=offered),
        Row(
            name="added to one query, p50", figure=one.p50 - alone, goal=0.5, unit="ms", at_most=True,
            note=f"{one.p50:.2f} ms served, {alone:.2f} ms embedded",
        ),
    ]  # fmt: skip


def _through_client(collection: Collection, sample: Sample, head: Head, seconds: float) -> float:
    """Queries per second of one thread."""
    done, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        collection.query(sample.queries[done % len(sample.queries)], **head)
        done += 1
    return done / seconds


def embedded(root: Path, sample: Sample, head: Head, seconds: float) -> float:
    """Milliseconds of one query in this process, the middle of them."""
    with CoreNN.open(root / NAME, mode="r") as db:
        taken: list[float] = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            began = time.perf_counter()
            db.query(sample.queries[len(taken) % len(sample.queries)], **head)
            taken.append(time.perf_counter() - began)
    return float(np.median(taken)) * 1e3


def inserts(port: int, root: Path, sample: Sample, rows: int) -> Row:
    """Inserts in batches: served over embedded."""

    def insert(db: Any) -> float:
        began = time.perf_counter()
        for start in range(0, rows, BATCH):
            part = sample.base[start : start + BATCH]
            db.insert(range(start, start + len(part)), part)
        return rows / (time.perf_counter() - began)

    dim = sample.base.shape[1]
    with CoreNN.create(root.parent / "embedded", dim=dim, metric=sample.metric) as db:
        alone = insert(db)
    with Client(f"http://127.0.0.1:{port}") as client:
        served = insert(client.create("inserted", dim=dim, metric=sample.metric))
        client.drop("inserted")
    return Row(
        name=f"inserts, batches of {BATCH:,}", figure=served / alone, goal=0.7, unit="× embedded",
        note=f"{served:,.0f} rows/s, {alone:,.0f} embedded; {rows:,} rows",
    )  # fmt: skip


def malformed(port: int, pid: int, sample: Sample, head: Head, count: int) -> list[Row]:
    """Requests with bytes changed at random: faults of the server, and what becomes of its memory."""
    requests = malformed_requests(f"/v1/collections/{NAME}/query", sample.queries, json.dumps(head).encode())
    sent = refused = faults = before = 0
    process = psutil.Process(pid)
    while sent < count:
        found = generate("127.0.0.1", port, requests, CONNECTIONS, 2.0)
        sent, refused, faults = sent + found.answers, refused + found.refused, faults + found.faults
        before = before or process.memory_info().rss
    after = process.memory_info().rss
    note = f"{sent:,} sent, {refused:,} refused"
    grown = f"{before / 1e6:,.0f} MB after the first, {after / 1e6:,.0f} MB after the last"
    return [
        Row(name="faults amid malformed requests", figure=faults, goal=0, at_most=True, note=note),
        Row(name="… memory after over before", figure=after / before, goal=1.05, unit="×", at_most=True, note=grown),
    ]  # fmt: skip


def killed(root: Path, sample: Sample, seconds: float, every: float) -> list[Row]:
    """Mixed load while the server is killed again and again: writes lost, and faults other than those of restarts."""
    acknowledged: list[int] = []
    faults: list[str] = []
    kills, end = 0, time.monotonic() + seconds
    stop = threading.Event()

    def load(port: int) -> None:
        with Client(f"http://127.0.0.1:{port}", retries=0) as client:
            collection = client[NAME]
            while not stop.is_set():
                batch = len(acknowledged)
                keys = [f"{batch}:{row}" for row in range(20)]
                try:
                    collection.upsert(keys, sample.base[batch % 1000 : batch % 1000 + 20])
                    acknowledged.append(batch)
                    collection.query(sample.queries[batch % len(sample.queries)], k=K)
                except Exception as error:  # noqa: BLE001 (of whatever kind: it is counted)
                    if not stop.is_set():
                        faults.append(f"{type(error).__name__}: {error}")

    while time.monotonic() < end:
        stop.clear()
        with serving(root) as (port, process):
            thread = threading.Thread(target=load, args=(port,))
            thread.start()
            time.sleep(min(every, max(end - time.monotonic(), 1)))
            stop.set()
            process.kill()
            process.wait()
            thread.join()
        kills += 1
    with CoreNN.open(root / NAME) as db:
        lost = sum(f"{batch}:{row}" not in db for batch in acknowledged for row in (0, 19))
        sound = db.verify().ok
    note = f"{len(acknowledged):,} writes of 20 rows acknowledged, {kills} kills; verify {'ok' if sound else 'FAILED'}"
    return [
        Row(name=f"writes lost in {seconds / 60:.0f} min of kills", figure=lost, goal=0, at_most=True, note=note),
        Row(name="… other faults", figure=len(faults), goal=0, at_most=True, note="; ".join(faults[:2])),
    ]


def least(root: Path, sample: Sample) -> Head:
    """The shortest search list that reaches the recall."""
    with CoreNN.open(root / NAME, mode="r") as db:
        for length in (each for each in EFFORTS if each >= K):
            head: Head = {"k": K, "search_list": length}
            if recall_by_distance(db.query(sample.queries, **head).distances, sample.truth, K) >= RECALL:
                break
    return head


def ours(root: Path, queries: Path, sample: Sample, head: Head) -> list[Entrant]:
    """Ourselves in a race, asked in two forms."""

    @contextmanager
    def served() -> Iterator[tuple[int, int]]:
        with serving(root) as (port, process):
            yield port, process.pid

    def recall(port: int) -> float:
        with Client(f"http://127.0.0.1:{port}") as client:
            found = [client[NAME].query(query, **head).distances for query in sample.queries]
        return recall_by_distance(table(found, K, np.inf), sample.truth, K)

    def as_rows(port: int, seconds: float) -> list[str]:
        return load_command(port, queries, head, seconds, CONNECTIONS)

    def as_json(port: int, seconds: float) -> list[str]:
        template = f'{json.dumps(head)[:-1]}, "vector": {PLACE}}}'
        return [*as_rows(port, seconds), "--template", template]

    about = {"version": version_of("corenn"), "effort": head["search_list"]}
    return [
        Entrant("CoreNN", "raw sockets, vectors as bytes", served, recall, as_rows, about),
        Entrant("CoreNN, JSON", "raw sockets, JSON", served, recall, as_json, about),
    ]


def beside(entrants: Sequence[Entrant]) -> list[Row]:
    """How far we are ahead of Chroma, each asked in its own cheapest way."""
    speed = {each.name: each.per_second for each in entrants}
    if not {"CoreNN", "Chroma"} <= speed.keys():
        return []
    us, them = speed["CoreNN"], speed["Chroma"]
    note = f"{us:,.0f} and {them:,.0f} per second"
    return [Row(name="queries, over Chroma's", figure=us / them, goal=3, unit="×", note=note)]


def prepare(sample: Sample, root: Path, queries: Path) -> None:
    """Build what is served, and the queries that it is asked."""
    np.save(queries, sample.queries)
    dim = sample.base.shape[1]
    with CoreNN.build(root / NAME, range(len(sample.base)), sample.base, dim=dim, metric=sample.metric) as db:
        db.recall_curve(K)  # which is kept: in idle time it would be measured beside what is timed


def measure(
    sample: Sample, root: Path, queries: Path, head: Head, seconds: float, minutes: float, attacks: int
) -> list[Row]:  # fmt: skip
    """What serving costs, and what the server bears."""
    alone = embedded(root, sample, head, seconds)
    with serving(root) as (port, process):
        rows = queries_served(port, queries, sample, head, seconds, alone)
        rows.append(inserts(port, root, sample, min(20 * BATCH, len(sample.base))))
        rows += malformed(port, process.pid, sample, head, attacks) if attacks else []
    return rows + (killed(root, sample, 60 * minutes, 30.0) if minutes else [])


def theirs(
    names: Sequence[str], pythons: dict[str, Path], kept: Path, queries: Path, sample: Sample, failed: dict[str, str]
) -> list[Entrant]:
    """Those of the servers of these names that can be had, built. failed: is told of the others."""
    found = []
    for kind in PEERS:
        name = kind.name.lower()
        if name in names:
            peer = kind(kept / name, sample, K, cores(), pythons.get(name))
            try:
                found.append(entrant(peer, queries, CONNECTIONS, RECALL))
            except Fault as fault:
                failed[kind.name] = f"{fault.reason}: {fault.message}"
    return found


def _python(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    return name, Path(path)


def main(given: Sequence[str] | None = None) -> None:
    """Measure, print the tables, and write them."""
    parser = argparse.ArgumentParser(prog="python -m corenn.bench.served", description="What serving costs and bears.")
    parser.add_argument("--data", type=Path, help="HDF5 file in the layout of ann-benchmarks (default: made vectors)")
    parser.add_argument("--rows", type=int, default=100_000, help="rows to use (default: %(default)s)")
    parser.add_argument("--dim", type=int, default=128, help="of made vectors (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=10.0, help="of kills, 0 for none (default: %(default)s)")
    parser.add_argument("--malformed", type=int, default=100_000, help="requests, 0 for none (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="of each server beside others (default: %(default)s)")
    known = ",".join(kind.name.lower() for kind in PEERS)
    parser.add_argument("--beside", default=known, metavar="NAMES", help="servers of others (default: %(default)s)")
    parser.add_argument("--only-beside", action="store_true", help="leave out all but the comparison with them")
    parser.add_argument(
        "--python", type=_python, action="append", default=[], metavar="NAME=PATH",
        help="interpreter that has the package of one of them, where not this one",
    )  # fmt: skip
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep what was built of theirs, and use it again")
    parser.add_argument("--json", type=Path, help="write figures, goals and circumstances to this file")
    asked = parser.parse_args(given)
    if asked.data:
        sample, data = load(asked.data, asked.rows, 1_000, 1, K), asked.data.stem
    else:
        sample, data = made(asked.rows, asked.dim, 1_000, 1, K), "made"
    about = {"data": data, "rows": len(sample.base), "dim": sample.base.shape[1]}
    with tempfile.TemporaryDirectory(prefix="corenn-bench-") as folder:
        Path(folder).chmod(0o711)  # for servers that run as somebody else
        root, queries = Path(folder) / "root", Path(folder) / "queries.npy"
        root.mkdir()
        prepare(sample, root, queries)
        kept = (asked.keep or Path(folder)).absolute() / "-".join(map(str, about.values()))
        failed: dict[str, str] = {}
        others = theirs(asked.beside.split(","), dict(asked.python), kept, queries, sample, failed)
        head = least(root, sample)
        entrants = race([*ours(root, queries, sample, head), *others], asked.turns, asked.seconds, failed)
        rows = beside(entrants)
        if not asked.only_beside:
            rows = measure(sample, root, queries, head, asked.seconds, asked.minutes, asked.malformed) + rows
    print_race(entrants, failed)
    print_rows(rows)
    if asked.json:
        raced = {"beside": [each.as_dict() for each in entrants], "failed": failed}
        written = {**circumstances(), **about, "results": [row.as_dict() for row in rows], **raced}
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(json.dumps(written, indent=2, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
