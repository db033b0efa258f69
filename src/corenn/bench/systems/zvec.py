"""zvec, Alibaba's embedded database: HNSW."""

from __future__ import annotations

from typing import Any, ClassVar

from ...types import Float32s
from ..conditions import Where, is_text, records, spoken
from .base import Options, Params, System, along, batches, further

METRICS = {"l2": "L2", "cosine": "COSINE", "ip": "IP"}
BATCH = 1_000


class Zvec(System):
    """A collection with an HNSW index; ids are row numbers as text. quantize: UNDEFINED, FP16, INT8, INT4, …"""

    name = "zvec"
    module = "zvec"
    package = "zvec"
    options: ClassVar[Options] = {"m": 16, "ef_construction": 200, "quantize": "UNDEFINED"}
    on_disk = True
    notes = ("a database; ids are text; no call for several queries",)
    collection: Any
    param: Any

    def start(self, threads: int) -> None:
        """Once in a process: threads, and no talk."""
        import zvec

        zvec.init(query_threads=threads, optimize_threads=threads, log_level=zvec.LogLevel.ERROR)

    def build(self, base: Float32s, metric: str, threads: int) -> None:
        """Insert all rows, then optimize and flush: rows are searched exactly until then."""
        import zvec

        self.start(threads)
        index = zvec.HnswIndexParam(
            metric_type=getattr(zvec.MetricType, METRICS[metric]), m=self.option["m"],
            ef_construction=self.option["ef_construction"],
            quantize_type=getattr(zvec.QuantizeType, self.option["quantize"]),
        )  # fmt: skip
        vector = zvec.VectorSchema("vector", zvec.DataType.VECTOR_FP32, base.shape[1], index)
        inverted = zvec.InvertIndexParam(enable_range_optimization=True)
        fields = [
            zvec.FieldSchema(name, zvec.DataType.STRING if is_text(column) else zvec.DataType.INT64, False, inverted)
            for name, column in self.fields.items()
        ]
        schema = zvec.CollectionSchema("rows", fields=fields or None, vectors=[vector])
        self.collection = zvec.create_and_open(str(self.folder / "rows"), schema)

        def insert(first: int, rows: Float32s) -> None:
            told = records(self.fields, first, len(rows)) if self.fields else [{}] * len(rows)
            self.collection.insert(
                [
                    zvec.Doc(id=str(first + at), vectors={"vector": row}, fields=each)
                    for at, (row, each) in enumerate(zip(rows, told, strict=True))
                ]
            )

        batches(base, BATCH, insert)
        self.collection.optimize(zvec.OptimizeOption(concurrency=threads))
        self.collection.flush()

    def open(self, dim: int, metric: str) -> None:
        """Open the collection."""
        import zvec

        self.start(self.threads)
        self.collection = zvec.open(str(self.folder / "rows"), zvec.CollectionOption(read_only=True, enable_mmap=True))

    def grid(self, k: int) -> list[Params]:
        """Values of ef."""
        return along("ef", k)

    def configure(self, **params: Any) -> None:
        """What goes with every query."""
        import zvec

        self.param = zvec.HnswQueryParam(ef=params["ef"])

    def query_one(self, query: Float32s, k: int) -> list[int]:
        """One call."""
        return self.query_within(query, k, None)

    def grid_within(self, k: int) -> list[Params]:
        """Further values of ef."""
        return further("ef", k, 2_048)

    def restriction(self, where: Where) -> str:
        """A filter of zvec's."""
        return spoken(where, "=", "and")

    def query_within(self, query: Float32s, k: int, within: Any) -> list[int]:
        """One call, without the fields of what is found."""
        import zvec

        asked = zvec.Query(field_name="vector", vector=query, param=self.param)
        return [int(doc.id) for doc in self.collection.query(asked, topk=k, filter=within, output_fields=[])]
