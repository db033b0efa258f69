"""CoreNN for ann-benchmarks: copy this folder to `ann_benchmarks/algorithms/` of that repository."""

import numpy as np

import corenn
from corenn.bench.harness import fill, list_for, metric_of, resident_kilobytes, works

from ..base.module import BaseANN


class CoreNN(BaseANN):
    """A database in memory whose keys are row numbers.

    metric: "euclidean" or "angular". method_param: settings of the database, such as max_edges and
    update_search_list_cap (docs/tuning.md); `dtype` chooses the stored type.
    """

    def __init__(self, metric, method_param):
        self._settings = {"metric": metric_of(metric), **method_param}
        self._search_list = None
        self._distances = 0
        self._results = []
        self._described = ", ".join(f"{name}={value}" for name, value in sorted(method_param.items()))
        self.name = f"CoreNN({self._described})"
        # Kernels are compiled or loaded now, so that the build time is that of the build.
        corenn.CoreNN.in_memory(dim=2, **self._settings).close()
        self._db = None

    def fit(self, X):  # noqa: N803
        """Build a database of the rows of X, shape (rows, dim)."""
        self.done()
        rows = np.asarray(X)
        self._db = corenn.CoreNN.in_memory(dim=rows.shape[1], **self._settings)
        fill(self._db, [rows])

    def set_query_arguments(self, search_list):
        """Set the number of candidates that a walk keeps, and begin to count distances anew."""
        self._search_list = int(search_list)
        self._distances = 0
        self.name = f"CoreNN({self._described}, search_list={search_list})"

    def query(self, q, n):
        """Row numbers of the n nearest rows, nearest first; one thread."""
        hits = self._db.query(np.asarray(q), k=n, search_list=list_for(n, self._search_list), threads=1, explain=True)
        self._distances += hits.explain.distances
        return np.array(hits.keys, np.int64)

    def batch_query(self, X, n):  # noqa: N803
        """Answer all rows of X in one call on all cores; see get_batch_results."""
        answers = self._db.query(np.asarray(X), k=n, search_list=list_for(n, self._search_list), explain=True)
        self._distances += works(answers)
        self._results = np.array([hits.keys for hits in answers], np.int64).reshape(len(X), -1)

    def get_batch_results(self):
        """Row numbers of the last batch: shape (queries, min(n, rows))."""
        return self._results

    def get_additional(self):
        """`dist_comps`: distances computed since the query arguments were set."""
        return {"dist_comps": self._distances}

    def get_memory_usage(self):
        """Resident memory of this process in kB."""
        return resident_kilobytes()

    def done(self):
        """Release the database."""
        db, self._db = getattr(self, "_db", None), None
        if db is not None:
            db.close()

    def __str__(self):
        return self.name
