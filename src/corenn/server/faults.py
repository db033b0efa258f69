"""Errors as answers: which status each has, and the one form in which all are told."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import TypeAlias

from .. import errors
from ..errors import CoreNNError
from ..wire import WireError

HeaderLines: TypeAlias = Mapping[str, str | tuple[str, ...]]  # a tuple stands for several headers of one name
# The first class that fits counts, from the leaves up.
STATUSES: dict[type[Exception], int] = {
    errors.DuplicateKeyError: 409,
    errors.DatabaseExistsError: 409,
    errors.IdempotencyKeyError: 409,
    errors.KeyNotFoundError: 404,
    errors.CollectionNotFoundError: 404,
    errors.CapacityError: 507,
    errors.DiskFullError: 507,
    errors.AccessError: 403,
    errors.OverloadedError: 503,
    errors.DeadlineError: 504,
    errors.MissingExtraError: 501,
    errors.LockedError: 503,
    errors.ReadOnlyError: 503,
    errors.ClosedError: 503,
    errors.InvalidVectorError: 400,
    errors.UnsupportedDtypeError: 400,
    errors.InvalidKeyError: 400,
    errors.InvalidPayloadError: 400,
    errors.InvalidArgumentError: 400,
    errors.InvalidSettingError: 400,
}
RETRIED = {429, 503}  # answers that come with Retry-After
MAX_MESSAGE = 1_000


class RefusedError(Exception):
    """An error of ours with a status of its own, and headers."""

    def __init__(self, status: int, error: CoreNNError, headers: HeaderLines | None = None) -> None:
        super().__init__(str(error))
        self.status, self.error = status, error
        self.headers: HeaderLines = headers or {}


def busy(what: str) -> RefusedError:
    """What one collection, or one kind of work, has too much of."""
    return RefusedError(429, errors.OverloadedError(f"{what}; try again"), {"retry-after": "1"})


def refused(error: BaseException) -> RefusedError | None:
    """What to answer after an error; None for one that is a fault of ours."""
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, WireError):
        return RefusedError(400, errors.InvalidArgumentError(f"the body is malformed: {error}"))
    if isinstance(error, CoreNNError):
        status = next((status for kind, status in STATUSES.items() if isinstance(error, kind)), 500)
        return RefusedError(status, error, {"retry-after": "1"} if status in RETRIED else None)
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return RefusedError(503, errors.OverloadedError("too many files are open; try again"), {"retry-after": "1"})
    return None


def told(error: CoreNNError) -> str:
    """The message of an error, cut short."""
    message = str(error)
    return message if len(message) <= MAX_MESSAGE else message[: MAX_MESSAGE - 1] + "…"
