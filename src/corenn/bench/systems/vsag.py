"""VSAG: HGraph over quantized vectors, ranked again by full ones."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import numpy as np

from ...types import AnyArray, Float32s
from .base import Options, Params, System, along


class Vsag(System):
    """`pyvsag.Index` of kind hgraph.

    quantization: sq8_uniform, sq8, sq4_uniform, fp32, …; answers are ranked again by full vectors but for fp32.
    """

    name = "vsag"
    module = "pyvsag"
    package = "pyvsag"
    options: ClassVar[Options] = {"max_degree": 32, "ef_construction": 200, "quantization": "sq8_uniform"}
    notes = ("no call for several queries",)
    index: Any
    search: str

    def build(self, base: Float32s, metric: str, threads: int) -> None:
        """One call of `build`, which aborts the process for arrays that cannot be written to."""
        import pyvsag

        kind = self.option["quantization"]
        inside = {
            "base_quantization_type": kind, "max_degree": self.option["max_degree"],
            "ef_construction": self.option["ef_construction"], "build_thread_count": threads,
            **({} if kind == "fp32" else {"use_reorder": True, "precise_quantization_type": "fp32"}),
        }  # fmt: skip
        about = {"dtype": "float32", "metric_type": metric, "dim": base.shape[1], "index_param": inside}
        self.index = pyvsag.Index("hgraph", json.dumps(about))
        self.index.build(base.flatten(), np.arange(len(base), dtype=np.int64), *base.shape)

    def grid(self, k: int) -> list[Params]:
        """Values of ef_search."""
        return along("ef_search", k)

    def configure(self, **params: Any) -> None:
        """Set what goes with every search."""
        self.search = json.dumps({"hgraph": params})

    def query_one(self, query: Float32s, k: int) -> AnyArray:
        """One call; ids come first, against its documentation."""
        ids: AnyArray = self.index.knn_search(query, k, self.search)[0]
        return ids
