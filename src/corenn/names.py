"""Names that collections may have: each is a folder of its own, on whatever file system the root is copied to."""

from __future__ import annotations

import re

from .errors import InvalidArgumentError

MAX_NAME = 128
NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_-])?")
# Names that Windows keeps for devices, whatever follows a dot: a root is to be one wherever it is copied.
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
OWN = re.compile(r"settings\.json|generation(?:-[0-9]+)?")  # by which a root would pass for a database


def check_name(name: object) -> str:
    """A name that a collection may have: 1 to 128 of the ASCII letters and digits, `_`, `.` and `-`, of which `.` and
    `-` do not begin it and `.` does not end it, and not one that Windows reserves for a device, or by which a
    database is known.

    Raises:
        InvalidArgumentError
    """
    if not isinstance(name, str) or not NAME.fullmatch(name) or len(name) > MAX_NAME:
        raise InvalidArgumentError(
            f"{name!r} cannot name a collection: take 1 to {MAX_NAME} of the letters A to Z and a to z, digits, '_', "
            "'.' and '-', not beginning with '.' or '-' nor ending with '.'"
        )
    if OWN.fullmatch(name.lower()):
        raise InvalidArgumentError(f"{name!r} cannot name a collection: by files of this name a database is known")
    if name.partition(".")[0].lower() in RESERVED:
        raise InvalidArgumentError(f"{name!r} cannot name a collection: Windows keeps it for a device; choose another")
    return name
