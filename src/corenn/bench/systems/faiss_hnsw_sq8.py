"""faiss: HNSW over vectors of one byte per component."""

from __future__ import annotations

from ...types import Float32s
from .faiss_hnsw import FaissHnsw


class FaissHnswSq8(FaissHnsw):
    """As faiss-hnsw, with scalar quantization; answers are not ranked again."""

    name = "faiss-hnsw-sq8"

    def factory(self, rows: Float32s) -> str:
        """What to make, in the language of faiss."""
        return f"HNSW{self.option['M']}_SQ8"
