"""Every error that CoreNN raises. Each leaf is also the builtin that a careful caller would expect.

A message names the offending value and says what to do about it.
"""


class CoreNNError(Exception):
    """Base of all errors raised by CoreNN."""

    def __str__(self) -> str:
        # KeyError prints the repr of its argument, which would quote every message.
        return str(self.args[0]) if self.args else ""


# --- what the caller passed -------------------------------------------------------------------------------------------


class InvalidVectorError(CoreNNError, ValueError):
    """Vectors of the wrong rank, dimension, count or range, or with NaN or infinity."""


class DimensionError(InvalidVectorError):
    """Vectors whose last axis is not the dimension of the database, or whose rank is not 1 or 2."""


class UnsupportedDtypeError(CoreNNError, TypeError):
    """Input that does not convert to real numbers, or an unknown stored dtype."""


class InvalidKeyError(CoreNNError, ValueError):
    """A key that is empty, too long, out of range or of a wrong type."""


class DuplicateKeyError(CoreNNError, ValueError):
    """A key given twice in one call, or inserted although it exists."""


class KeyNotFoundError(CoreNNError, KeyError):
    """A key that had to exist and does not."""


class CollectionNotFoundError(CoreNNError, KeyError):
    """A name under which a root has no collection."""


class InvalidPayloadError(CoreNNError, ValueError):
    """A payload that is not a JSON object, is too large, or does not match its key by position."""


class InvalidArgumentError(CoreNNError, ValueError):
    """A query or call argument out of its bounds, such as k < 1."""


class InvalidFilterError(InvalidArgumentError):
    """A filter that is malformed; the message has the path to the fault."""


class LimitError(InvalidArgumentError):
    """More than a server takes at once: a body, a batch, k, a search list or a filter beyond its limits."""


class IdempotencyKeyError(InvalidArgumentError):
    """An idempotency key under which another write was asked for before."""


class InvalidSettingError(CoreNNError, ValueError):
    """A setting that is unknown, out of bounds, or fixed at creation."""


class DatasetError(CoreNNError, ValueError):
    """A file of vectors or neighbours that is torn, empty, inconsistent or of an unknown format, or cannot be had."""


class CapacityError(CoreNNError, OverflowError):
    """More rows than a collection can hold (2³¹ − 1)."""


# --- where the database lives -----------------------------------------------------------------------------------------


class DatabaseExistsError(CoreNNError, FileExistsError):
    """Creation at a path that is already taken."""


class NotADatabaseError(CoreNNError, FileNotFoundError):
    """Opening a path that holds no CoreNN database."""


class FormatError(CoreNNError, OSError):
    """Files of a newer format, or whose header or geometry does not fit the database."""


class NewerFormatError(FormatError):
    """Files that a newer CoreNN has written; this one leaves them alone."""


class OlderFormatError(FormatError):
    """Files that an earlier CoreNN has written, in a format that this one does not write; `upgrade` changes them."""


class ForeignFileError(FormatError):
    """A file of another database in the place of one of this; its rows would pass for rows of this one."""


class CorruptionError(CoreNNError, OSError):
    """Stored bytes that fail their checksum or contradict each other."""


class LockedError(CoreNNError, BlockingIOError):
    """Another process has the database open for writing."""


class ReadOnlyError(CoreNNError, PermissionError):
    """A write through a handle opened with mode="r", after a fault while the disk does not work, or into a backup."""


class DiskFullError(CoreNNError, OSError):
    """The file system has no room. Nothing has changed, and the next write is served if there is room by then."""


class StorageError(CoreNNError, OSError):
    """Any other failure of the file system or the metadata store."""


# --- between client and server ----------------------------------------------------------------------------------------


class AccessError(CoreNNError, PermissionError):
    """A request without a key, with one that is unknown, or with one that may not do this."""


class OverloadedError(CoreNNError, BlockingIOError):
    """A server has as much to do as it takes on; nothing has been done, and a later call may be served."""


class DeadlineError(CoreNNError, TimeoutError):
    """A call that was not done in time. A read has been given up; a write may have been committed, or may yet be."""


class ServerError(CoreNNError, ConnectionError):
    """A server that cannot be reached, breaks off, has failed, or answers what is no answer of a CoreNN server."""


# --- the state of the handle ------------------------------------------------------------------------------------------


class ClosedError(CoreNNError, RuntimeError):
    """Use of a database after close()."""


class ForkedError(CoreNNError, RuntimeError):
    """In a child process after fork: use of a database opened by the parent, or writing on disk if the parent has used
    a database there.
    """


class MissingExtraError(CoreNNError, ImportError):
    """A package of an optional extra that is asked for and not installed."""


class UnsupportedPlatformError(CoreNNError, OSError):
    """A platform on which CoreNN has not been tested."""
