"""CoreNN for the streaming track of big-ann-benchmarks."""

import numpy as np
from neurips23.streaming.base import BaseStreamingANN

import corenn
from corenn.bench.harness import list_for, metric_of, range_search, resident_kilobytes, row_numbers, stored_type, works

BATCH = 1_000


class CoreNN(BaseStreamingANN):
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
        self._options = {name: query_args[name] for name in ("search_list", "threads") if name in query_args}
        self._distances = 0
        self.name = f"corenn({self._described}, {query_args})"
        if self._db is not None and self._db.stats().commit:
            self.done()
            self._db = corenn.CoreNN.in_memory(metric=self._metric, **self._shape, **self._settings)

    def query(self, X, k):  # noqa: N803
        """Find the k nearest live rows of each row of X; see get_results."""
        options = {**self._options, "search_list": list_for(k, self._options.get("search_list"))}
        answers = self._db.query(np.asarray(X), k=k, explain=True, **options)
        self._distances += works(answers)
        self.res = row_numbers(answers, k)

    def range_query(self, X, radius):  # noqa: N803
        """Find all live rows within a radius of each row of X: squared under euclidean, the least product under ip."""
        bound = 1 - radius if self._metric == "ip" else radius
        lims, distances, ids, spent = range_search(self._db, np.asarray(X), bound, **self._options)
        self._distances += spent
        self.res = lims, (1 - distances if self._metric == "ip" else distances), ids

    def get_results(self):
        """Tags found by the last query, int32 of shape (queries, k); -1 where there are fewer than k rows."""
        return self.res

    def get_range_results(self):
        """lims, D, I of the last range query: I[lims[q]:lims[q + 1]] are the tags of query q, D their distances."""
        return self.res

    def get_additional(self):
        """`dist_comps`: distances computed by searches since the query arguments were set; `tombstones` left."""
        return {"dist_comps": self._distances, "tombstones": 0 if self._db is None else self._db.stats().tombstones}

    def get_memory_usage(self):
        """Resident memory of this process in kB."""
        return resident_kilobytes()

    def done(self):
        """Release the database."""
        db, self._db = self._db, None
        if db is not None:
            db.close()

    def __str__(self):
        return self.name

    def _write(self, write, rows, ids):
        for start in range(0, len(ids), BATCH):
            write(np.asarray(ids[start : start + BATCH]), np.asarray(rows[start : start + BATCH], self._dtype))
