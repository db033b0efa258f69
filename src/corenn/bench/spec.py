"""Systems as they are asked for: `hnswlib`, or `hnswlib:M=32,ef_construction=400`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import InvalidArgumentError
from .systems import System, load
from .systems.base import Option


@dataclass(frozen=True, slots=True)
class Spec:
    """A system and the build options given to it."""

    name: str
    options: dict[str, Option] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """As it is asked for."""
        given = ",".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.name}:{given}" if given else self.name

    @property
    def file_name(self) -> str:
        """The label as the name of a file."""
        return re.sub(r"[^\w.=-]+", "_", self.label)

    @property
    def system(self) -> type[System]:
        """The class behind the name."""
        return load(self.name)

    @property
    def build_params(self) -> dict[str, Any]:
        """All build options, defaults included."""
        return {**self.system.options, **self.options}


def parse_systems(texts: Sequence[str]) -> list[Spec]:
    """Systems separated by commas; what has a = and no : before it is one more option of the system before.

    Raises:
        InvalidArgumentError: for an unknown system or option, a value of the wrong type, or the same thing twice.
    """
    parts: list[str] = []
    for item in (each.strip() for text in texts for each in text.split(",")):
        if parts and "=" in item and ":" not in item.partition("=")[0]:
            parts[-1] += f",{item}"
        elif item:
            parts.append(item)
    specs = [_parse(part) for part in parts]
    labels = [spec.label for spec in specs]
    for label in labels:
        if labels.count(label) > 1:
            raise InvalidArgumentError(f"system {label!r} is given twice")
    if not specs:
        raise InvalidArgumentError("no system is given; name at least one")
    return specs


def _parse(text: str) -> Spec:
    name, _, rest = text.partition(":")
    known = load(name).options
    options: dict[str, Option] = {}
    for item in filter(None, rest.split(",")):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals or key not in known:
            defaults = ", ".join(f"{key}={value}" for key, value in known.items()) or "none"
            raise InvalidArgumentError(f"{name}: {item!r} is no option; the options and their defaults: {defaults}")
        if key in options:
            raise InvalidArgumentError(f"{name}: option {key!r} is given twice")
        options[key] = _value(f"{name}:{key}", value, known[key])
    return Spec(name, options)


def _value(where: str, text: str, default: Option) -> Option:
    try:
        return type(default)(text)
    except ValueError:
        raise InvalidArgumentError(
            f"{where}={text!r}: must be {'an integer' if isinstance(default, int) else 'a number'}"
        ) from None
