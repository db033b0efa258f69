"""A system for tests of filtered searches: exact among a share of the rows that match; falls over as told."""

from __future__ import annotations

import os
import signal
from typing import Any, ClassVar

import numpy as np

from corenn.bench.conditions import Where, matching
from corenn.bench.systems.base import Options, Params, System
from corenn.types import AnyArray, Float32s


class FakeFiltered(System):
    """fault: what happens in filtered queries: few, strangers, raise, abort."""

    name = "tests.bench.fake_filtered"
    module = "json"
    package = "numpy"
    options: ClassVar[Options] = {"fault": ""}
    ready_made = True
    base: Float32s
    share: float = 1.0

    def build(self, base: Float32s, metric: str, threads: int) -> None:
        self.base = np.array(base)

    def grid(self, k: int) -> list[Params]:
        return [{"share": tenths / 10} for tenths in range(1, 11)]

    def query_one(self, query: Float32s, k: int) -> AnyArray:
        return self._nearest(query, k, np.arange(len(self.base)))

    def restriction(self, where: Where) -> AnyArray:
        return matching(self.fields, where)

    def query_within(self, query: Float32s, k: int, within: Any) -> AnyArray:
        match self.option["fault"]:
            case "few":
                return self._nearest(query, k, np.flatnonzero(within))[:3]
            case "strangers":
                return self._nearest(query, k, np.flatnonzero(~within))
            case "raise":
                raise RuntimeError("it is broken")
            case "abort":
                os.kill(os.getpid(), signal.SIGABRT)
        return self._nearest(query, k, np.flatnonzero(within))

    def plan_within(self, query: Float32s, k: int, within: Any) -> str:
        return "by heart"

    def _nearest(self, query: Float32s, k: int, ids: AnyArray) -> AnyArray:
        ids = ids[: round(self.share * len(ids))]
        apart = ((self.base[ids] - query) ** 2).sum(axis=1)
        return ids[np.argsort(apart, kind="stable")[:k]]
