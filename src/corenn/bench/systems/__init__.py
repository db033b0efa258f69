"""The systems that can be measured, each in a file of its own and found by its name."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from ...errors import InvalidArgumentError
from .base import System

__all__ = ["System", "load", "names"]


def names() -> list[str]:
    """Every system that has a file here, in alphabetical order."""
    return sorted(each.name.replace("_", "-") for each in pkgutil.iter_modules(__path__) if each.name != "base")


def load(name: str) -> type[System]:
    """The system of that name; its package is not imported. A name with dots is that of a module with one system.

    Raises:
        InvalidArgumentError: if there is no such system, or its module needs another one that is not there.
    """
    if "." not in name and name not in names():
        raise InvalidArgumentError(
            f"unknown system {name!r}; choose from {', '.join(names())}, or give the dotted name of a module"
        )
    path = name if "." in name else f"{__name__}.{name.replace('-', '_')}"
    try:
        module = import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise InvalidArgumentError(
                f"system {name!r} cannot be imported: {error}; import what may be missing where it is used"
            ) from error
        raise InvalidArgumentError(f"unknown system {name!r}: there is no module of that name") from None
    own = [each for each in vars(module).values() if isinstance(each, type) and each.__module__ == path]
    found = [each for each in own if issubclass(each, System)]
    if len(found) != 1:
        raise InvalidArgumentError(f"{path} must define one System; it defines {len(found)}")
    return found[0]
