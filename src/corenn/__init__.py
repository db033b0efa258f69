"""CoreNN: an embedded database for nearest-neighbour search, in pure Python."""

import logging
from typing import TYPE_CHECKING

from .config import Settings
from .errors import (
    AccessError,
    CapacityError,
    ClosedError,
    CollectionNotFoundError,
    CoreNNError,
    CorruptionError,
    DatabaseExistsError,
    DatasetError,
    DeadlineError,
    DimensionError,
    DiskFullError,
    DuplicateKeyError,
    ForeignFileError,
    ForkedError,
    FormatError,
    IdempotencyKeyError,
    InvalidArgumentError,
    InvalidFilterError,
    InvalidKeyError,
    InvalidPayloadError,
    InvalidSettingError,
    InvalidVectorError,
    KeyNotFoundError,
    LimitError,
    LockedError,
    MissingExtraError,
    NewerFormatError,
    NotADatabaseError,
    OlderFormatError,
    OverloadedError,
    ReadOnlyError,
    ServerError,
    StorageError,
    UnsupportedDtypeError,
    UnsupportedPlatformError,
)
from .filters.expression import F, Filter
from .types import Copied, Explain, Facet, Hit, Hits, HitsList, Problem, Recall, Record, Report, Stats, Step, Upgraded

if TYPE_CHECKING:
    from .client import AsyncClient, Client
    from .database import CoreNN
    from .root import Root
    from .storage.upgrade import upgrade

__version__ = "0.1.0"
logging.getLogger("corenn").addHandler(logging.NullHandler())

__all__ = [
    "AccessError",
    "AsyncClient",
    "CapacityError",
    "Client",
    "ClosedError",
    "CollectionNotFoundError",
    "Copied",
    "CoreNN",
    "CoreNNError",
    "CorruptionError",
    "DatabaseExistsError",
    "DatasetError",
    "DeadlineError",
    "DimensionError",
    "DiskFullError",
    "DuplicateKeyError",
    "Explain",
    "F",
    "Facet",
    "Filter",
    "ForeignFileError",
    "ForkedError",
    "FormatError",
    "Hit",
    "Hits",
    "HitsList",
    "IdempotencyKeyError",
    "InvalidArgumentError",
    "InvalidFilterError",
    "InvalidKeyError",
    "InvalidPayloadError",
    "InvalidSettingError",
    "InvalidVectorError",
    "KeyNotFoundError",
    "LimitError",
    "LockedError",
    "MissingExtraError",
    "NewerFormatError",
    "NotADatabaseError",
    "OlderFormatError",
    "OverloadedError",
    "Problem",
    "ReadOnlyError",
    "Recall",
    "Record",
    "Report",
    "Root",
    "ServerError",
    "Settings",
    "Stats",
    "Step",
    "StorageError",
    "UnsupportedDtypeError",
    "UnsupportedPlatformError",
    "Upgraded",
    "upgrade",
]


def __getattr__(name: str) -> object:
    """The engine brings the compiler with it: it is loaded when it is first asked for."""
    if name == "CoreNN":
        from .storage.platform import require_supported

        require_supported()
        from .database import CoreNN

        return CoreNN
    if name == "Root":
        from .root import Root

        return Root
    if name in ("Client", "AsyncClient"):
        from . import client

        return getattr(client, name)
    if name == "upgrade":
        from .storage.upgrade import upgrade

        return upgrade
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
