"""The client: one database on disk, written by one process and read by any number of others."""

import logging
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from vectordb_bench.backend.clients.api import DBCaseConfig, VectorDB
from vectordb_bench.backend.filter import Filter, FilterOp
from vectordb_bench.backend.payload import PayloadProfile

import corenn
from corenn.bench.harness import list_for

log = logging.getLogger(__name__)
MARK = "vectors.slab"  # a file that every database has
REFRESH_SECONDS = 1.0  # a reader looks this often for what a writer beside it has committed


class CoreNN(VectorDB):
    """A CoreNN database whose keys are the ids of the benchmark.

    The benchmark copies this object into other processes, where it begins with init(). Each opens the database for
    reading there, and for writing at its first insert or optimize; so searching processes can work beside an inserting
    one. Safe for threads, as the database is. Filters, payloads and tenants are not supported.

    Some of those processes are forked from the one that made this object. RocksDB does not survive a fork, not even
    after it was closed: its background threads are gone and a flush waits for them for ever. So the constructor opens
    nothing, and the first process that writes creates the database.
    """

    name = "CoreNN"
    supported_filter_types = [FilterOp.NonFilter]  # noqa: RUF012 - as the base class has it
    thread_safe = True

    def __init__(
        self,
        dim: int,
        db_config: dict,
        db_case_config: DBCaseConfig,
        collection_name: str = "vectordbbench",
        drop_old: bool = False,
        **kwargs,
    ) -> None:
        self._path = Path(db_config["path"]) / f"{collection_name}.corenn"
        self._settings = {"dim": dim, **db_case_config.index_param()}
        self._options = db_case_config.search_param()
        self._clear_handle()
        if drop_old and self._path.exists():
            if not (self._path / MARK).exists():
                raise FileExistsError(f"{self._path} is no CoreNN database; choose another path")
            shutil.rmtree(self._path)

    # --- the handle ---------------------------------------------------------------------------------------------------

    @contextmanager
    def init(self) -> Iterator[None]:
        """Open the database for this process if there is one, and close it at the end."""
        if self._path.exists():
            self._db, self._refreshed = self._opened("r"), time.monotonic()
        try:
            yield
        finally:
            if self._db is not None:
                self._db.close()
            self._clear_handle()

    def _opened(self, mode: str) -> corenn.CoreNN:
        db = corenn.CoreNN.open(self._path, mode=mode)
        stored = db.settings.as_dict()
        for name, value in self._settings.items():
            if stored[name] != value:
                db.close()
                raise ValueError(f"{self._path} has {name}={stored[name]!r}, not {value!r}; drop it")
        return db

    def _clear_handle(self) -> None:
        self._db = None
        self._writes = False
        self._refreshed = 0.0
        self._changing = threading.Lock()

    def _writer(self) -> corenn.CoreNN:
        """The database open for writing; the first caller changes the handle."""
        with self._changing:
            if not self._writes:
                if self._db is not None:
                    self._db.close()
                    self._db = self._opened("rw")
                else:
                    self._path.parent.mkdir(parents=True, exist_ok=True)
                    self._db = corenn.CoreNN.create(self._path, **self._settings)
                    log.info(f"created {self._path}")
                self._writes = True
        return self._db

    def _reader(self) -> corenn.CoreNN:
        if self._db is None:
            raise corenn.NotADatabaseError(f"{self._path} does not exist; load it first")
        if not self._writes and time.monotonic() - self._refreshed > REFRESH_SECONDS:
            self._refreshed = time.monotonic()
            self._db.refresh()
        return self._db

    def __getstate__(self) -> dict:
        """Without the handle, which belongs to the process that opened it."""
        gone = ("_db", "_writes", "_refreshed", "_changing")
        return {name: value for name, value in self.__dict__.items() if name not in gone}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._clear_handle()

    # --- the work -----------------------------------------------------------------------------------------------------

    def need_normalize_cosine(self) -> bool:
        """CoreNN normalizes by itself under cosine."""
        return False

    def insert_embeddings(
        self,
        embeddings: list[list[float]],
        metadata: list[int],
        labels_data: list[str] | None = None,
        tenant_labels_data: list[str] | None = None,
        **kwargs,
    ) -> tuple[int, Exception | None]:
        """Insert rows under the ids in `metadata`, all or none: (rows inserted, None), or (0, the error)."""
        if tenant_labels_data is not None:
            return 0, NotImplementedError("CoreNN has no tenants")
        try:
            self._writer().insert(metadata, np.asarray(embeddings, np.float32))
        except corenn.CoreNNError as error:
            log.warning(f"insert of {len(metadata)} rows failed: {error}")
            return 0, error
        return len(metadata), None

    def optimize(self, data_size: int | None = None) -> None:
        """Wait until every row is linked into the graph, and bring everything to the disk."""
        db = self._writer()
        while db.stats().pending:
            time.sleep(0.01)
        db.checkpoint()

    def prepare_filter(self, filters: Filter) -> None:
        """Nothing to prepare without a filter.

        Raises:
            ValueError: for any other.
        """
        if filters.type != FilterOp.NonFilter:
            raise ValueError(f"CoreNN has no filters yet: {filters}")

    def search_embedding(
        self,
        query: list[float],
        k: int = 100,
        payload_profile: PayloadProfile = PayloadProfile.IDS_ONLY,
        tenant: str | None = None,
        **kwargs,
    ) -> list[int]:
        """Ids of the min(k, rows) nearest rows, nearest first; one thread."""
        if payload_profile != PayloadProfile.IDS_ONLY or tenant is not None:
            raise NotImplementedError("CoreNN gives ids, without payloads or tenants")
        options = {"search_list": list_for(k, self._options["search_list"])}
        return self._reader().query(np.asarray(query, np.float32), k=k, threads=1, **options).keys
