"""Where the database lies, and its settings."""

from pydantic import BaseModel
from vectordb_bench.backend.clients.api import DBCaseConfig, DBConfig, MetricType

METRICS = {MetricType.L2: "l2", MetricType.COSINE: "cosine", MetricType.IP: "ip", MetricType.DP: "ip"}


class CoreNNConfig(DBConfig):
    """path: folder in which the client keeps its database, one per collection name."""

    path: str

    def to_dict(self) -> dict:
        """What the client is made with."""
        return {"path": self.path}


class CoreNNIndexConfig(BaseModel, DBCaseConfig):
    """Settings at creation (dtype, max_edges, update_search_list_cap) and of queries (search_list).

    metric_type is set by the benchmark from its data set.
    """

    metric_type: MetricType | None = None
    dtype: str = "f32"
    max_edges: int = 32
    update_search_list_cap: int = 96
    search_list: int = 96

    def index_param(self) -> dict:
        """Settings of `CoreNN.create`, without dim.

        Raises:
            ValueError: for a metric that CoreNN has not.
        """
        if self.metric_type not in METRICS:
            names = ", ".join(METRICS)
            raise ValueError(f"metric_type {self.metric_type}: CoreNN has {names}")
        settings = self.model_dump(include={"dtype", "max_edges", "update_search_list_cap"})
        return {"metric": METRICS[self.metric_type], **settings}

    def search_param(self) -> dict:
        """Arguments of `CoreNN.query`."""
        return {"search_list": self.search_list}
