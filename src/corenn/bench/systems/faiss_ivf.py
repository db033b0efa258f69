"""faiss: inverted lists of full vectors."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from ...types import Float32s
from .base import Options, Params
from .faiss_hnsw import FaissHnsw
from .faiss_ivfpq import PROBES


class FaissIvf(FaissHnsw):
    """`IVF…,Flat`. lists: of the inverted file, 0 for about 4 √n."""

    name = "faiss-ivf"
    options: ClassVar[Options] = {"lists": 0}

    def factory(self, rows: Float32s) -> str:
        """What to make, in the language of faiss."""
        count = len(rows)
        lists = self.option["lists"] or min(2 ** round(math.log2(4 * math.sqrt(count))), max(count // 39, 1))
        return f"IVF{lists},Flat"

    def prepare(self) -> None:
        """Nothing to set."""

    def grid(self, k: int) -> list[Params]:
        """Lists visited."""
        return [{"nprobe": n} for n in (*PROBES, 384, 512, 768, 1_024) if n <= self.index.nlist]

    def grid_within(self, k: int) -> list[Params]:
        """The same, and all of them."""
        return [*(each for each in self.grid(k) if each["nprobe"] < self.index.nlist), {"nprobe": self.index.nlist}]

    def configure(self, **params: Any) -> None:
        """Set nprobe, and the threads of a search."""
        import faiss

        faiss.omp_set_num_threads(self.threads)
        self.index.nprobe = params["nprobe"]

    def parameters(self, selector: Any) -> Any:
        """Those of one search."""
        import faiss

        return faiss.SearchParametersIVF(sel=selector, nprobe=self.index.nprobe)

    def work(self, queries: Float32s, k: int) -> dict[str, float]:
        """Vectors compared, as faiss has counted."""
        import faiss

        faiss.cvar.indexIVF_stats.reset()
        self.query(queries, k)
        return {"distances": faiss.cvar.indexIVF_stats.ndis / len(queries)}
