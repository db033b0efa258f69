"""Numbers that a function finds around it, made parameters of it: so another number makes no other function.

    def cheaper(limit): return lambda price: price < limit

is compiled once, whatever the limits are.
"""

from __future__ import annotations

import dis
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import numpy as np

_LOAD, _FREE, _NOTHING, _LOCAL = (dis.opmap[name] for name in ("LOAD_DEREF", "COPY_FREE_VARS", "NOP", "LOAD_FAST"))
_NESTED = 0x10  # a flag of code that has free variables
_LARGEST = 1 << 63


class Lifted(NamedTuple):
    """A function, and the numbers, by their names, that it is to be called with behind its own arguments."""

    function: Callable[..., Any]
    constants: dict[str, int | float]


def lift(function: FunctionType) -> Lifted:
    """The same function with the numbers of its closure as parameters; as it is, if it holds anything else.

    In the code of a function without variables of its own these stand where parameters would: only how they are
    loaded has to be changed.
    """
    code, numbers = function.__code__, _numbers(function)
    plain = not code.co_cellvars and code.co_nlocals == code.co_argcount
    if not numbers or not plain:
        return Lifted(function, {})
    replaced = _with_locals(code)
    if replaced is None:
        return Lifted(function, {})
    return Lifted(FunctionType(replaced, function.__globals__, function.__name__), numbers)


def _numbers(function: FunctionType) -> dict[str, int | float] | None:
    """The closure of a function, if it holds numbers alone."""
    found: dict[str, int | float] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            value = cell.cell_contents
        except ValueError:  # empty as yet
            return None
        if isinstance(value, (np.integer, np.floating)):
            value = value.item()
        if type(value) not in (int, float) or (type(value) is int and not -_LARGEST <= value < _LARGEST):
            return None
        found[name] = value
    return found


def _with_locals(code: CodeType) -> CodeType | None:
    """Code with parameters in the place of free variables; None if it does more with these than load them."""
    raw = bytearray(code.co_code)
    for at in range(0, len(raw), 2):
        if raw[at] == _LOAD:
            raw[at] = _LOCAL
        elif raw[at] == _FREE:
            raw[at], raw[at + 1] = _NOTHING, 0
        elif raw[at] in dis.hasfree:
            return None
    return code.replace(
        co_code=bytes(raw),
        co_varnames=(*code.co_varnames, *code.co_freevars),
        co_freevars=(),
        co_nlocals=code.co_nlocals + len(code.co_freevars),
        co_argcount=code.co_argcount + len(code.co_freevars),
        co_flags=code.co_flags & ~_NESTED,
    )
