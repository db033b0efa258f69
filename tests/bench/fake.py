"""A system for tests: exact search over a share of the rows, so that recall is about that share; falls over as told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from corenn.bench.systems.base import Options, Params, System
from corenn.types import AnyArray, Float32s


class Fake(System):
    """fault: what happens, stage: where. trace: file that notes calls. nap, call: seconds of a query, a call."""

    name = "tests.bench.fake"
    module = "json"
    package = "numpy"
    options: ClassVar[Options] = {"fault": "", "stage": "query", "trace": "", "nap": 0.0, "call": 0.0, "child": 0}
    notes = ("not real",)
    base: Float32s
    share: float = 1.0

    def build(self, base: Float32s, metric: str, threads: int) -> None:
        assert metric == "l2"
        assert not base.flags.writeable
        print("a library that talks on standard output")
        os.write(1, b"and one that talks below Python\n")
        if self.option["child"]:
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            self._note(f"child {child.pid}")
        self._note(f"build {threads} {os.environ['OMP_NUM_THREADS']} {cores()}")
        self._misbehave("build")
        self.base = np.array(base)

    def grid(self, k: int) -> list[Params]:
        return [] if self.option["fault"] == "grid" else [{"share": tenths / 10} for tenths in range(1, 11)]

    def query(self, queries: Float32s, k: int) -> AnyArray:
        self._note(f"query {self.share} {len(queries)} {cores()}")
        time.sleep(self.option["nap"] * len(queries) + self.option["call"])
        wrong = self._misbehave("query")
        if wrong is not None:
            return wrong
        rows = self.base[: max(int(self.share * len(self.base)), k)]
        apart = ((queries[:, None, :] - rows[None]) ** 2).sum(axis=2)
        return np.argsort(apart, axis=1, kind="stable")[:, :k]

    def work(self, queries: Float32s, k: int) -> dict[str, float]:
        self._misbehave("work")
        odd: dict[str, Any] = {"nan": np.nan, "object": object()}
        return {"distances": odd.get(self.option["fault"], self.share * len(self.base))}

    def memory_parts(self) -> dict[str, int]:
        return {"rows": 0.5 if self.option["fault"] == "bytes" else np.int64(self.base.nbytes)}  # type: ignore[dict-item]

    def _note(self, what: str) -> None:
        if self.option["trace"]:
            with Path(self.option["trace"]).open("a") as file:
                file.write(f"{os.getpid()} {what}\n")

    def _misbehave(self, stage: str) -> Any:
        if self.option["stage"] != stage:
            return None
        match self.option["fault"]:
            case "raise":
                raise RuntimeError("it is\nbroken")
            case "abort":
                os.kill(os.getpid(), signal.SIGABRT)
            case "exit":
                print("last words", file=sys.stderr, flush=True)
                os._exit(3)
            case "hang":
                time.sleep(600)
            case "shape":
                return np.zeros((3, 3), np.int64)
            case "range":
                return np.full((50, 10), 10**6)
            case "type":
                return np.zeros((50, 10))
        return None


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
