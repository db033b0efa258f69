"""CoreNN for the filter track of big-ann-benchmarks."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from benchmark.datasets import DATASETS
from neurips23.filter.base import BaseFilterANN

import corenn
from corenn.bench.harness import BigAnnSearches, fill, list_for, metric_of, stored_type
from corenn.config import MAX_SEARCH_LIST

BLOCK = 10_000
SLACK = 1.5  # hits asked for over those that an even spread of the matching rows would need
WIDER = 4  # times as many hits after a walk that found too few matching rows
WALK = 20  # distances that a walk computes per candidate that it keeps, about


class CoreNN(BigAnnSearches, BaseFilterANN):
    """A database under `data/indices`, whose keys are row numbers, and the words of each row in memory.

    CoreNN cannot restrict a query by a filter yet, so this module does. The rows that have all words of a query are
    known exactly, from sorted lists of rows per word. If they are few, the distances to all of them are computed; if
    they are many, the graph is asked for more hits than k and those that match are kept; if too few do, for more, and
    in the end all distances are computed. So every hit matches, and there are always min(k, matching rows) of them.
    Nothing of this is faster than it looks: it is to be measured, not to win.

    metric: "euclidean", "ip" or "angular". index_params: settings of the database (docs/tuning.md).
    """

    def __init__(self, metric, index_params):
        self._metric = metric_of(metric)
        self._settings = dict(index_params)
        self._described = "_".join(f"{name}{value}" for name, value in sorted(index_params.items())) or "default"
        self.name = f"corenn({self._described})"
        self._options = {}
        self._distances = 0
        self._db = None
        self._rows = None
        self._postings = None
        self.res = None

    def track(self):
        """The name of the track."""
        return "filter"

    def fit(self, dataset):
        """Build the database of a data set by name, in place of what an earlier build left."""
        ds = DATASETS[dataset]()
        self.done()
        path = self._path(ds)
        partial = path.with_suffix(".partial")
        for old in (path, partial):
            shutil.rmtree(old, ignore_errors=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        with corenn.CoreNN.create(
            partial, dim=ds.d, metric=self._metric, dtype=stored_type(ds.dtype), **self._settings
        ) as db:
            fill(db, ds.get_dataset_iterator(bs=BLOCK), ds.dtype)
        partial.rename(path)
        self._open(ds)

    def load_index(self, dataset):
        """Open what an earlier fit has built; False if there is nothing."""
        ds = DATASETS[dataset]()
        if not self._path(ds).exists():
            return False
        self.done()
        self._open(ds)
        return True

    def filtered_query(self, X, filter, k):  # noqa: N803
        """Find, for each row of X, the k nearest rows that have all words of the same row of `filter`.

        filter: scipy.sparse.csr_matrix of shape (queries, words). See get_results.
        """
        queries = np.asarray(X)
        words = [filter.indices[filter.indptr[at] : filter.indptr[at + 1]] for at in range(len(queries))]
        self.res = np.full((len(queries), k), -1, np.int32)

        def answer(at):
            found, spent = self._nearest(queries[at], self._matching(words[at]), k)
            self.res[at, : len(found)] = found
            return spent

        with ThreadPoolExecutor(self._options.get("threads") or os.cpu_count()) as pool:
            self._distances += sum(pool.map(answer, range(len(queries))))

    # --- which rows match ---------------------------------------------------------------------------------------------

    def _open(self, ds):
        self._db = corenn.CoreNN.open(self._path(ds), mode="r")
        self._rows = ds.get_data_in_range(0, ds.nb)  # mapped, in the type of the file
        if ds.search_type() == "knn_filtered":
            self._postings = ds.get_dataset_metadata().tocsc()
            self._postings.sort_indices()

    def _path(self, ds):
        folder = Path.cwd() / "data" / "indices" / self.track() / "corenn" / ds.short_name()
        return folder / f"{self._described}.corenn"

    def _matching(self, words):
        """The rows that have all words, ascending; None for all rows."""
        if not len(words):
            return None
        columns = self._postings
        if words.max() >= columns.shape[1]:
            return np.empty(0, np.int64)
        lists = sorted((columns.indices[columns.indptr[word] : columns.indptr[word + 1]] for word in words), key=len)
        rows = lists[0]
        for other in lists[1:]:
            rows = rows[_among(rows, other)]
        return rows

    # --- the nearest of them ------------------------------------------------------------------------------------------

    def _nearest(self, query, matching, k):
        """Row numbers of the min(k, matching) nearest matching rows, and the distances computed for them."""
        spent, rows = 0, len(self._rows)
        if matching is None:
            return self._walk(query, min(k, rows))
        wanted = min(k, len(matching))
        if not wanted:
            return np.empty(0, np.int32), 0
        size = int(np.ceil(SLACK * wanted * rows / len(matching)))
        while size <= MAX_SEARCH_LIST and WALK * max(size, self._options.get("search_list") or 0) < len(matching):
            hits, distances = self._walk(query, size)
            spent += distances
            hits = hits[_among(hits, matching)]
            if len(hits) >= wanted:
                return hits[:wanted], spent
            size *= WIDER
        return self._scan(query, matching)[:wanted], spent + len(matching)

    def _walk(self, query, size):
        hits = self._db.query(
            query, k=size, search_list=list_for(size, self._options.get("search_list")), threads=1, explain=True
        )
        return np.array(hits.keys, np.int32), hits.explain.distances

    def _scan(self, query, matching):
        """The matching rows by distance; equal ones by row number."""
        rows, point = self._rows[matching].astype(np.float32), query.astype(np.float32)
        if self._metric == "l2":
            apart = rows - point
            distances = np.einsum("ij,ij->i", apart, apart)
        else:
            distances = -(rows @ point)
            if self._metric == "cosine":
                distances /= np.maximum(np.linalg.norm(rows, axis=1), np.finfo(np.float32).tiny)
        return matching[np.argsort(distances, kind="stable")]


def _among(values, ascending):
    """Which of `values` are in `ascending`, as booleans."""
    if not len(ascending):
        return np.zeros(len(values), bool)
    at = np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)
    return ascending[at] == values
