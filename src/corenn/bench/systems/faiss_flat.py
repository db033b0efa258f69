"""faiss: exact search over full vectors."""

from __future__ import annotations

from typing import Any, ClassVar

from ...types import Float32s
from .base import Options, Params
from .faiss_hnsw import FaissHnsw


class FaissFlat(FaissHnsw):
    """`Flat`."""

    name = "faiss-flat"
    options: ClassVar[Options] = {}
    notes = ("exact search, no index",)

    def factory(self, rows: Float32s) -> str:
        """What to make, in the language of faiss."""
        return "Flat"

    def prepare(self) -> None:
        """Nothing to set."""

    def grid(self, k: int) -> list[Params]:
        """Nothing to choose."""
        return [{}]

    def grid_within(self, k: int) -> list[Params]:
        """Nothing to choose."""
        return [{}]

    def configure(self, **params: Any) -> None:
        """Set the threads of a search."""
        import faiss

        faiss.omp_set_num_threads(self.threads)

    def parameters(self, selector: Any) -> Any:
        """Those of one search."""
        import faiss

        return faiss.SearchParameters(sel=selector)

    def work(self, queries: Float32s, k: int) -> dict[str, float]:
        """All rows."""
        return {"distances": float(self.index.ntotal)}
