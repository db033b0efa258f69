"""RocksDB as the metadata uses it: how it is opened, and every call that is made, in one small class.

`Files.rocks` hands it out, so that who replaces `Files` replaces this as well: that is how tests inject faults.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rocksdict import (
    AccessType,
    BlockBasedOptions,
    Cache,
    Checkpoint,
    DbClosedError,
    DBCompressionType,
    DBRecoveryMode,
    IngestExternalFileOptions,
    Options,
    Rdict,
    WriteBatch,
)

from ..errors import ClosedError, CoreNNError, CorruptionError, DiskFullError, ForkedError, StorageError

CACHE_BYTES = 8 << 20
WRITE_BUFFER_BYTES = 16 << 20

_threads_in: int | None = None  # the process in which RocksDB's background threads run


def require_threads() -> None:
    """Refuse to write where a write would wait for ever: RocksDB's threads are started once, and are not forked.

    Raises:
        ForkedError: in a child after fork of a process that has used RocksDB.
    """
    if _threads_in not in (None, os.getpid()):
        raise ForkedError(
            f"process {_threads_in} used a database on disk before it forked this one, which therefore can write none: "
            "start it with spawn, or open with mode='r'"
        )


def _end_early() -> None:
    """In a child after fork: have exit() end before RocksDB joins its threads, which are not there, and crashes."""
    libc = ctypes.CDLL(None)
    if _threads_in is not None and hasattr(libc, "on_exit"):  # as in glibc
        libc.on_exit(libc._exit, None)


os.register_at_fork(after_in_child=_end_early)


def table_options() -> Options:
    """As which tables are written."""
    return _options()


def _options() -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_write_buffer_size(WRITE_BUFFER_BYTES)
    options.set_max_write_buffer_number(2)
    options.set_max_background_jobs(2)
    options.set_max_open_files(-1)  # a reader in another process keeps the files that it has seen
    options.set_max_file_opening_threads(1)  # else 15 threads are started whenever a reader catches up
    options.set_keep_log_file_num(2)
    options.set_stats_dump_period_sec(0)
    options.set_compression_type(DBCompressionType.lz4())
    table = BlockBasedOptions()
    table.set_bloom_filter(10, False)
    table.set_block_cache(Cache(CACHE_BYTES))
    options.set_block_based_table_factory(table)
    return options


def _lenient_options() -> Options:
    options = _options()
    options.set_paranoid_checks(False)
    options.set_max_open_files(64)  # tables are opened when they are needed
    options.set_wal_recovery_mode(DBRecoveryMode.skip_any_corrupted_record())
    return options


def repair_tables(folder: Path) -> None:
    """Make a new list of the tables that are there, in place of one that is damaged."""
    Rdict.repair(str(folder), _lenient_options())


@contextmanager
def rocks_translated(action: str, folder: Path) -> Iterator[None]:
    """Turn what RocksDB raises, which has no types of its own, into our errors."""
    try:
        yield
    except (MemoryError, CoreNNError):
        raise
    except DbClosedError:
        raise ClosedError("the database is closed; open it again") from None
    except Exception as error:
        message = f"cannot {action} the metadata in {folder}: {error}"
        if "No space left" in message or "NoSpace" in message:
            raise DiskFullError(f"{message}; free some space and write again") from error
        if "Corruption" in message:
            raise CorruptionError(f"{message}; run `corenn repair`, or restore a snapshot") from error
        if "No such file" in message:
            message += "; run `corenn repair`, or restore a snapshot"
        raise StorageError(message) from error


class Rocks:
    """One open instance. With `log`, a secondary one, which follows the writer in another process and writes to `log`.
    Lenient: what is damaged is noticed when it is read, and left out of the log.

    failed: whether a change has failed. RocksDB refuses all others from then on, until it is opened again; reads go on.
    """

    def __init__(self, path: Path, log: Path | None = None, *, lenient: bool = False) -> None:
        global _threads_in
        if _threads_in is None:
            _threads_in = os.getpid()
        access = AccessType.read_write() if log is None else AccessType.secondary(str(log))
        self.failed = False
        options = _lenient_options() if lenient else _options()
        if log is None and not lenient:
            # The last record may be cut off. By default whatever follows a damaged one is dropped without a word.
            options.set_wal_recovery_mode(DBRecoveryMode.tolerate_corrupted_tail_records())
        self._rocks: Rdict = self._change("open", lambda: Rdict(str(path), options, access_type=access))

    def _change(self, name: str, call: Callable[[], Any]) -> Any:
        """Every call that may change the disk goes through here."""
        try:
            return call()
        except BaseException:
            self.failed = True
            raise

    def get(self, names: Any) -> Any:
        """The value of a name or None, or a list of them for a list."""
        return self._rocks.get(names)

    def items(self, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Names and values in order, from a name on."""
        return self._rocks.items(from_key=start)  # type: ignore[return-value]  # raw mode

    def put(self, name: bytes, value: bytes) -> None:
        self._change("put", lambda: self._rocks.put(name, value))

    def write(self, batch: WriteBatch) -> None:
        """Make all changes of a batch, or none."""
        self._change("write", lambda: self._rocks.write(batch))

    def ingest(self, tables: list[str]) -> None:
        """Take sorted tables in whole, which are moved."""
        options = IngestExternalFileOptions()
        options.set_move_files(True)
        self._change("ingest", lambda: self._rocks.ingest_external_file(tables, options))

    def hold_at_most(self, size: int) -> None:
        """Collect no more than so many bytes of changes in memory before they become a table."""
        self._rocks.set_options({"write_buffer_size": str(size)})

    def flush_wal(self, sync: bool) -> None:
        """Bring the log to the disk."""
        self._change("flush_wal", lambda: self._rocks.flush_wal(sync))

    def flush(self) -> None:
        """Write everything to tables."""
        self._change("flush", self._rocks.flush)

    def try_catch_up_with_primary(self) -> None:
        """For a secondary instance: see what the writer has written since."""
        self._rocks.try_catch_up_with_primary()

    def link(self, folder: Path) -> None:
        """A copy in a new folder, of which the tables are shared. What is here does not change, even if it fails."""
        Checkpoint(self._rocks).create_checkpoint(str(folder))

    def path(self) -> str:
        return self._rocks.path()

    def property_int_value(self, name: str) -> int | None:
        return self._rocks.property_int_value(name)

    def close(self) -> None:
        self._change("close", self._rocks.close)
