"""CoreNN in memory, through its public interface: integer keys, one call of `query` for all queries."""

from __future__ import annotations

import operator
import time
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ...types import Float32s, Int64s
from ..conditions import Where, records
from ..harness import row_numbers
from .base import Options, Params, System, along, batches

if TYPE_CHECKING:
    from ...database import CoreNN

WARM_ROWS = 2_000


class InMemory(System):
    """A database made by `CoreNN.build`, or by inserts of so many rows with the option batch."""

    name = "corenn"
    module = "corenn.database"
    package = "corenn"
    options: ClassVar[Options] = {
        "max_edges": 32,
        "update_search_list_cap": 96,
        "distance_threshold": 1.2,
        "dtype": "f32",
        "batch": 0,
    }
    search_list: int | None
    db: CoreNN

    def version(self) -> str:
        """That of these sources."""
        from ... import __version__

        return __version__

    def warm(self, base: Float32s, metric: str, threads: int) -> None:
        """Compile the kernels, if this machine has not yet, and load them, by a database of few rows."""
        from ...database import CoreNN

        rows = base[:WARM_ROWS]
        with CoreNN.in_memory(dim=base.shape[1], metric=metric, **self.settings()) as db:
            db.insert(range(len(rows)), rows)
            db.query(rows[:10], k=min(10, len(rows)), threads=threads)

    def build(self, base: Float32s, metric: str, threads: int) -> None:
        """Build in one call; or insert batch by batch, and wait until all rows are linked, so that no work is left."""
        settings = {"dim": base.shape[1], "metric": metric, **self.settings()}
        if not self.option["batch"]:
            from ...database import CoreNN

            payloads = records(self.fields, 0, len(base)) if self.fields else None
            self.db = CoreNN.build(self.path, range(len(base)), base, payloads, **settings)
            return
        self.db = self.create(**settings)
        batches(base, self.option["batch"], lambda first, rows: self.db.insert(range(first, first + len(rows)), rows))
        while self.db.stats().pending:
            time.sleep(0.001)

    @property
    def path(self) -> Path | None:
        """Where the database lies; None in memory."""
        return None

    def create(self, **settings: Any) -> CoreNN:
        """An empty database."""
        from ...database import CoreNN

        return CoreNN.in_memory(**settings)

    def settings(self) -> Params:
        """The build options that are settings of a database.

        Recall is not measured in idle time: each search names its list.
        """
        return {"recall_target": 0.0, **{name: value for name, value in self.option.items() if name != "batch"}}

    def grid(self, k: int) -> list[Params]:
        """Lengths of the search list."""
        return along("search_list", k)

    def query(self, queries: Float32s, k: int) -> Int64s:
        """One call."""
        hits = self.db.query(queries, k=k, search_list=self.search_list, threads=self.threads)
        return row_numbers(hits, k)

    def query_one(self, query: Float32s, k: int) -> Any:
        """One call with a vector."""
        return self.db.query(query, k=k, search_list=self.search_list, threads=self.threads).keys

    def work(self, queries: Float32s, k: int) -> dict[str, float]:
        """As `explain` tells."""
        hits = self.db.query(queries, k=k, search_list=self.search_list, threads=self.threads, explain=True)
        return {name: float(np.mean([getattr(each.explain, name) for each in hits])) for name in ("distances", "hops")}

    def restriction(self, where: Where) -> Any:
        """A filter made by `F`."""
        from ...filters import F

        makers = {"==": operator.eq, ">=": operator.ge, "<": operator.lt}
        return reduce(operator.and_, [makers[each.operator](F(each.field), each.value) for each in where])

    def query_within(self, query: Float32s, k: int, within: Any) -> Any:
        """One call with a vector and its filter."""
        return self.db.query(query, k=k, filter=within, search_list=self.search_list, threads=self.threads).keys

    def plan_within(self, query: Float32s, k: int, within: Any) -> str:
        """The plan of `explain`."""
        asked = {"filter": within, "search_list": self.search_list, "threads": self.threads}
        told = self.db.query(query, k=k, explain=True, **asked).explain
        return "" if told is None else told.plan

    def memory_parts(self) -> dict[str, int]:
        """As `stats` tells."""
        return self.db.stats().memory

    def close(self) -> None:
        """Close the database."""
        self.db.close()
