"""faiss: HNSW over full vectors."""

from __future__ import annotations

from typing import Any, ClassVar

from ...types import AnyArray, Float32s, Int64s
from ..conditions import Where, bits
from .base import Options, Params, System, along, further, normalised


class FaissHnsw(System):
    """An index that `index_factory` makes. Cosine is the inner product of normalised vectors."""

    name = "faiss-hnsw"
    module = "faiss"
    package = "faiss-cpu"
    options: ClassVar[Options] = {"M": 32, "ef_construction": 200}
    ready_made = True
    index: Any
    unit: bool

    def build(self, base: Float32s, metric: str, threads: int) -> None:
        """Train, if there is anything to train, and add all rows."""
        import faiss

        faiss.omp_set_num_threads(threads)
        self.unit = metric == "cosine"
        rows = normalised(base) if self.unit else base
        kind = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
        self.index = faiss.index_factory(rows.shape[1], self.factory(rows), kind)
        self.prepare()
        self.index.train(rows)
        self.index.add(rows)

    def factory(self, rows: Float32s) -> str:
        """What to make, in the language of faiss."""
        return f"HNSW{self.option['M']}"

    def prepare(self) -> None:
        """Settings of the empty index."""
        self.index.hnsw.efConstruction = self.option["ef_construction"]

    def grid(self, k: int) -> list[Params]:
        """Values of efSearch."""
        return along("ef_search", k)

    def configure(self, **params: Any) -> None:
        """Set efSearch, and the threads of a search."""
        import faiss

        faiss.omp_set_num_threads(self.threads)
        self.index.hnsw.efSearch = params["ef_search"]

    def query(self, queries: Float32s, k: int) -> Int64s:
        """One call."""
        ids: Int64s = self.index.search(normalised(queries) if self.unit else queries, k)[1]
        return ids

    def grid_within(self, k: int) -> list[Params]:
        """Further values of efSearch."""
        return further("ef_search", k)

    def restriction(self, where: Where) -> Any:
        """Parameters of a search with a selector over a bitmap, whose memory it does not keep by itself."""
        import faiss

        chosen = bits(self.fields, where)
        selector = faiss.IDSelectorBitmap(chosen)
        return self.parameters(selector), selector, chosen

    def parameters(self, selector: Any) -> Any:
        """Those of one search."""
        import faiss

        return faiss.SearchParametersHNSW(sel=selector, efSearch=self.index.hnsw.efSearch)

    def query_within(self, query: Float32s, k: int, within: Any) -> AnyArray:
        """One call."""
        asked = query[None]
        ids: AnyArray = self.index.search(normalised(asked) if self.unit else asked, k, params=within[0])[1][0]
        return ids

    def work(self, queries: Float32s, k: int) -> dict[str, float]:
        """What faiss has counted."""
        import faiss

        faiss.cvar.hnsw_stats.reset()
        self.query(queries, k)
        stats = faiss.cvar.hnsw_stats
        return {"distances": stats.ndis / len(queries), "hops": stats.nhops / len(queries)}

    def memory_bytes(self) -> int:
        """Length of the index if it were written."""
        import faiss

        written = 0

        def count(data: bytes) -> int:
            nonlocal written
            written += len(data)
            return len(data)

        faiss.write_index(self.index, faiss.PyCallbackIOWriter(count))
        return written
