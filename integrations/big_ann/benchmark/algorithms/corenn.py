"""CoreNN for the plain tracks of big-ann-benchmarks: k-NN and range search on an index on disk."""

import shutil
import tarfile
from pathlib import Path

from benchmark.algorithms.base import BaseANN
from benchmark.datasets import DATASETS

import corenn
from corenn.bench.harness import BigAnnSearches, fill, metric_of, stored_type

ARCHIVE = "corenn.tar"
BLOCK = 10_000


class CoreNN(BigAnnSearches, BaseANN):
    """A database under `data/indices`, whose keys are row numbers.

    metric: "euclidean", "ip" or "angular". index_params: settings of the database, such as max_edges and
    update_search_list_cap (docs/tuning.md). Vectors are stored in the type of the data set: float32, uint8 or int8.
    """

    def __init__(self, metric, index_params):
        self._metric = metric_of(metric)
        self._settings = dict(index_params)
        self._described = "_".join(f"{name}{value}" for name, value in sorted(index_params.items())) or "default"
        self.name = f"corenn({self._described})"
        self._options = {}
        self._distances = 0
        self._db = None
        self.res = None

    def track(self):
        """T1: the index is searched in memory; it is mapped, not copied there."""
        return "T1"

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
        self._db = corenn.CoreNN.open(path, mode="r")

    def load_index(self, dataset):
        """Open what an earlier fit has built, or unpack its archive; False if there is neither."""
        path = self._path(DATASETS[dataset]())
        archive = path.parent / ARCHIVE
        if not path.exists() and archive.exists():
            with tarfile.open(archive) as packed:
                _unpack(packed, path.parent)
        if not path.exists():
            return False
        self.done()
        self._db = corenn.CoreNN.open(path, mode="r")
        return True

    def index_files_to_store(self, dataset):
        """Folder, prefix and names to store: one archive, which load_index unpacks. Made if the index is there."""
        path = self._path(DATASETS[dataset]())
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            partial = path.parent / f"{ARCHIVE}.partial"
            with tarfile.open(partial, "w") as packed:
                packed.add(path, arcname=path.name)
            partial.replace(path.parent / ARCHIVE)
        return str(path.parent), "", [ARCHIVE]

    def _path(self, ds):
        folder = Path.cwd() / "data" / "indices" / self.track() / "corenn" / ds.short_name() / self._described
        return folder / "index.corenn"


def _unpack(packed, folder):
    """Files and folders only, and none outside of `folder`: what index_files_to_store has packed."""
    members = packed.getmembers()
    for member in members:
        parts = Path(member.name).parts
        if not (member.isreg() or member.isdir()) or ".." in parts or Path(member.name).is_absolute():
            raise ValueError(f"{packed.name}: {member.name} is not a file of the index")
    options = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python 3.11.4
    packed.extractall(folder, members, **options)
