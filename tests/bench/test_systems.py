"""Every system that is installed here, for real: built, searched, opened again.

Rules out a peer that is called wrongly, whose rows and ids do not match, whose settings do nothing, which ignores the
metric or its threads, or whose answers depend on how many queries come in one call. Those that are not installed are
skipped: `pip install 'corenn[peers]'`.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corenn.bench.process import Fault, Process
from corenn.bench.recall import distances_of, exact_neighbours, recall_by_distance
from corenn.bench.systems import load, names
from tests.conftest import Sample

K = 10
QUERIES = 50

# Half a minute for what others do in a second.
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name == "qdrant" else name for name in names()]


class Peer:
    """One system in its process, on a sample."""

    def __init__(self, name: str, sample: Sample, metric: str, folder: Path) -> None:
        self.system = load(name)
        self.name, self.metric, self.folder = name, metric, folder
        self.base, self.queries = sample[0][:2000], sample[1][:QUERIES]
        np.save(folder / "base.npy", self.base)
        np.save(folder / "queries.npy", self.queries)
        (folder / "files").mkdir()
        self.process = self.start()

    def start(self) -> Process:
        process = Process(self.folder / "log", 2, dict(self.system.environment))
        process.ask(
            "start", 120, system=self.name, options={}, folder=str(self.folder / "files"), threads=1,
            base=str(self.folder / "base.npy"), queries=str(self.folder / "queries.npy"),
        )  # fmt: skip
        return process

    def build(self) -> Any:
        return self.process.ask("build", 250, metric=self.metric, threads=2)

    def reopen(self, params: dict[str, Any]) -> None:
        self.process.ask("close", 60)
        self.process.close()
        self.process = self.start()
        opened = self.process.ask("open", 60, dim=self.base.shape[1], metric=self.metric, params=params, k=K)
        assert opened["open_seconds"] > 0 and opened["first_query_seconds"] > 0

    def ids(self, params: dict[str, Any], count: int = QUERIES) -> Any:
        out = self.folder / "ids.npy"
        self.process.ask("query", 60, params=params, k=K, count=count, least=0, out=str(out))
        return np.load(out)

    def recall(self, ids: Any) -> float:
        truth = exact_neighbours(self.base, self.queries[: len(ids)], K, self.metric)[1]
        return recall_by_distance(distances_of(ids, self.base, self.queries[: len(ids)], self.metric), truth, K)

    def check(self) -> None:
        try:
            built = self.build()
        except Fault as fault:
            if "no metric" not in fault.message:
                raise
            pytest.skip(fault.message)
        assert built["seconds"] > 0
        grid = self.process.ask("grid", 60, k=K)
        hasty, thorough = grid[0], grid[-1]
        if self.system.on_disk:
            self.reopen(thorough)
        ids = self.ids(thorough)
        assert ids.shape == (QUERIES, K) and all(len(set(row)) == K for row in ids.tolist())
        best = self.recall(ids)
        assert best >= 0.95
        assert len(grid) == 1 or self.recall(self.ids(hasty)) <= best
        assert self.recall(self.ids(thorough, 1)) >= 0.8  # one query alone is answered like one of many
        self.measure(thorough)
        self.process.ask("close", 60)
        self.process.close()

    def measure(self, params: dict[str, Any]) -> None:
        out = self.folder / "latency.npy"
        self.process.ask("latency", 60, params=params, k=K, count=5, out=str(out), least=5, most=60.0)
        taken = np.load(out)
        assert taken.shape == (5,) and (taken > 0).all()
        work = self.process.ask("work", 60, params=params, k=K, count=5)
        assert work.get("distances", 1) > 0 and work.get("hops", 0) >= 0
        sizes = self.process.ask("sizes", 60)
        told = sizes["memory_bytes"] or sizes["disk_bytes"] or sizes["growth"]
        assert told is None or told > self.base.nbytes // 8  # no system keeps less than half a byte per component


def check(name: str, sample: Sample, metric: str, folder: Path) -> None:
    system = load(name)
    try:
        installed = find_spec(system.module) is not None
    except ModuleNotFoundError:
        installed = False
    if not installed:
        pytest.skip(f"{system.package} is not installed")
    peer = Peer(name, sample, metric, folder)
    try:
        peer.check()
    finally:
        peer.process.kill()


@pytest.mark.compiled
@pytest.mark.parametrize("name", NAMES)
def test_euclidean(name: str, sift: Sample, tmp_path: Path) -> None:
    check(name, sift, "l2", tmp_path)


@pytest.mark.slow
@pytest.mark.compiled
@pytest.mark.parametrize("name", NAMES)
def test_cosine(name: str, embeddings: Sample, tmp_path: Path) -> None:
    rows, queries = embeddings
    lengths = np.random.default_rng(3).uniform(0.2, 5, (len(rows), 1)).astype(np.float32)
    check(name, (rows * lengths, queries), "cosine", tmp_path)  # without the metric, recall would be far lower


@pytest.mark.slow
@pytest.mark.compiled
@pytest.mark.parametrize("name", NAMES)
def test_inner_product(name: str, embeddings: Sample, tmp_path: Path) -> None:
    check(name, embeddings, "ip", tmp_path)
