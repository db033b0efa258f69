"""faiss: inverted lists of product-quantized codes, scanned fast and ranked again by full vectors."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from ...types import Float32s
from .base import Options, Params
from .faiss_hnsw import FaissHnsw

PROBES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 192, 256)


class FaissIvfPq(FaissHnsw):
    """`IVF…,PQ…x4fs,RFlat`.

    lists: of the inverted file, 0 for about 4 √n. codes: of 4 bits per vector, 0 for half as many as dimensions.
    """

    name = "faiss-ivfpq"
    options: ClassVar[Options] = {"lists": 0, "codes": 0}

    def factory(self, rows: Float32s) -> str:
        """What to make, in the language of faiss."""
        count, dim = rows.shape
        lists = self.option["lists"] or min(2 ** round(math.log2(4 * math.sqrt(count))), max(count // 39, 1))
        codes = self.option["codes"] or (dim // 2 if dim % 2 == 0 else dim)
        return f"IVF{lists},PQ{codes}x4fs,RFlat"

    def prepare(self) -> None:
        """Nothing to set."""

    def grid(self, k: int) -> list[Params]:
        """Lists visited, for each of several numbers of candidates that are ranked again, in multiples of k."""
        lists = self.index_ivf().nlist
        return [{"k_factor": k_factor, "nprobe": n} for k_factor in (2, 5, 12, 30) for n in PROBES if n <= lists]

    def configure(self, **params: Any) -> None:
        """Set both, and the threads of a search."""
        import faiss

        faiss.omp_set_num_threads(self.threads)
        self.index.k_factor = params["k_factor"]
        self.index_ivf().nprobe = params["nprobe"]

    def work(self, queries: Float32s, k: int) -> dict[str, float]:
        """Codes compared, as faiss has counted."""
        import faiss

        faiss.cvar.indexIVF_stats.reset()
        self.query(queries, k)
        return {"distances": faiss.cvar.indexIVF_stats.ndis / len(queries)}

    def index_ivf(self) -> Any:
        """The inverted file inside."""
        import faiss

        return faiss.extract_index_ivf(self.index)
