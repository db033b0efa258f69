"""The earlier CoreNN, in Rust (PyPI: corenn-py)."""

from __future__ import annotations

from typing import Any, ClassVar

from ...types import Float32s
from .base import Options, Params, System, along, batches

METRICS = {"l2": "L2", "cosine": "Cosine"}
BATCH = 1_000


class CorennPy(System):
    """A database on disk; ids are row numbers as text.

    Its search list is fixed at creation, but never shorter than what is asked for: it is made short, and a longer one
    is had by asking for more neighbours, of which the first k count.
    """

    name = "corenn-py"
    module = "corenn_py"
    package = "corenn-py"
    options: ClassVar[Options] = {"max_edges": 64, "update_search_list_cap": 128, "query_search_list_cap": 10}
    on_disk = True
    notes = (
        "ids are text",
        "asked one query per call: its answers to several come back in another order than the queries",
        "its search list cannot be changed: longer ones are had by asking for more neighbours",
    )
    db: Any
    ask_for: int

    def build(self, base: Float32s, metric: str, threads: int) -> None:
        """Insert batch by batch."""
        from corenn_py import CoreNN

        if metric not in METRICS:
            raise ValueError(f"no metric {metric!r}; it has {', '.join(METRICS)}")
        settings = {"dim": base.shape[1], "metric": METRICS[metric], **self.option}
        self.db = CoreNN.create(str(self.folder / "database"), settings)
        batches(
            base, BATCH,
            lambda first, rows: self.db.insert_f32([str(first + at) for at in range(len(rows))], rows),
        )  # fmt: skip

    def open(self, dim: int, metric: str) -> None:
        """Open the database."""
        from corenn_py import CoreNN

        self.db = CoreNN.open(str(self.folder / "database"))

    def grid(self, k: int) -> list[Params]:
        """Neighbours asked for."""
        return along("ask_for", k)

    def query_one(self, query: Float32s, k: int) -> list[int]:
        """One call with one query."""
        return [int(key) for key, _ in self.db.query_f32(query[None], max(k, self.ask_for))[0][:k]]
