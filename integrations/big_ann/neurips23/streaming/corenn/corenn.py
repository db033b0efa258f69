"""CoreNN for the streaming track of big-ann-benchmarks."""

import numpy as np
from neurips23.streaming.base import BaseStreamingANN

import corenn
from corenn.bench.harness import BigAnnSearches, metric_of, stored_type

BATCH = 1_000


class CoreNN(BigAnnSearches, BaseStreamingANN):
    """A database in memory whose keys are the tags of the runbook.

    metric: "euclidean", "ip" or "angular". index_params: settings of the database, such as max_edges and
    update_search_list_cap (docs/tuning.md). Vectors are stored in the type of the data set: float32, uint8 or int8.
    """

    def __init__(self, metric, index_params):
        self._metric = metric_of(metric)
        self._settings = dict(index_params)
        self._described = ", ".join(f"{name}={value}" for name, value in sorted(index_params.items()))
        self.name = f"corenn({self._described})"
        self._options = {}
        self._distances = 0
        self._dtype = None
        self._shape = None
        self._db = None
        self.res = None

    def setup(self, dtype, max_pts, ndims):
        """Make an empty database for vectors of `ndims` values of `dtype`. It grows, so `max_pts` is not needed."""
        self.done()
        self._dtype = np.dtype(dtype)
        self._shape = {"dim": int(ndims), "dtype": stored_type(dtype)}
        self._db = corenn.CoreNN.in_memory(metric=self._metric, **self._shape, **self._settings)

    def insert(self, X, ids):  # noqa: N803
        """Insert the rows of X under `ids`, uint32 of shape (len(X),)."""
        self._write(self._db.insert, X, ids)

    def delete(self, ids):
        """Delete the rows under `ids`."""
        self._db.delete(ids)

    def replace(self, X, ids):  # noqa: N803
        """Put the rows of X in place of those under `ids`."""
        self._write(self._db.upsert, X, ids)

    def set_query_arguments(self, query_args):
        """{"search_list": candidates that a walk keeps, "threads": at most so many}; begins to count anew.

        The harness plays the whole runbook once for each set of arguments, so it finds an empty database again.
        """
        super().set_query_arguments(query_args)
        if self._db is not None and self._db.stats().commit:
            self.done()
            self._db = corenn.CoreNN.in_memory(metric=self._metric, **self._shape, **self._settings)

    def get_additional(self):
        """`dist_comps`: distances computed by searches since the query arguments were set; `tombstones` left."""
        return {**super().get_additional(), "tombstones": 0 if self._db is None else self._db.stats().tombstones}

    def _write(self, write, rows, ids):
        for start in range(0, len(ids), BATCH):
            write(np.asarray(ids[start : start + BATCH]), np.asarray(rows[start : start + BATCH], self._dtype))
