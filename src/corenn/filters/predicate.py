"""Functions of a user as filters: `lambda year, price: year > 2020 and price < 10`, over the numbers of named fields.

A function is compiled once for each code that it has and each thing that it finds around it, but for numbers in its
closure. What a row is to it is in docs/filters.md.
"""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import InvalidFilterError
from ..types import Float64s, UInt64s
from .expression import And, Filter, Or, checked_path, shown
from .lift import Lifted, lift

if TYPE_CHECKING:
    from ..kernels.predicate import MachineCode

MOST_FIELDS = 32
MOST_KEPT = 256  # functions whose machine code is kept at hand


class Compiled(NamedTuple):
    """A function as kernels call it. held: what tells it from others, which lives as long as it does."""

    number: int
    code: MachineCode
    held: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Where(Filter):
    """A function holds of the numbers at some paths. constants: the words of numbers that it was given beside them."""

    name: str
    compiled: Compiled
    constants: tuple[int, ...]
    paths: tuple[str, ...]

    def __repr__(self) -> str:
        """Two filters that are not the same look different."""
        words = "".join(f" {word:x}" for word in self.constants)
        return f"F.where({self.name} {self.compiled.number}{words} of {', '.join(map(repr, self.paths))})"

    def table(self, columns: Sequence[Float64s]) -> UInt64s:
        """What the function is called with, for rows whose numbers stand in these columns; they have to live on."""
        return np.array([*(column.ctypes.data for column in columns), *self.constants], np.uint64)


def where(function: Any, paths: Mapping[str, Any], at: str = "filter") -> Where:
    """A filter by a function, whose parameters are fields, or stand for those that `paths` names. at: for messages.

    Raises:
        InvalidFilterError
    """
    function = getattr(function, "py_func", function)  # of one that has been compiled
    if not inspect.isfunction(function):
        raise InvalidFilterError(
            f"{at}: {shown(function)} is no Python function: pass one over numeric fields, such as lambda year: "
            "year > 2020"
        )
    code = function.__code__
    name = f"{function.__name__} at {os.path.basename(code.co_filename)}:{code.co_firstlineno}"  # noqa: PTH119 - a query waits
    fields = _fields(function, name, at)
    unknown = [each for each in paths if each not in fields]
    if unknown:
        raise InvalidFilterError(f"{at}: {name} has no parameter {unknown[0]!r}; it has {', '.join(fields)}")
    compiled, constants = _compiled(function, fields, name, at)
    return Where(name, compiled, constants, tuple(checked_path(paths.get(each, each), at) for each in fields))


def _compiled(function: FunctionType, fields: tuple[str, ...], name: str, at: str) -> tuple[Compiled, tuple[int, ...]]:
    """A function, and the words of the constants that it is to be called with."""
    from ..kernels.predicate import RefusedError  # a client has filters, and loads no compiler

    lifted = lift(function)
    try:
        return _compiled_as(lifted, len(fields))
    except RefusedError as error:
        refused = error
    if lifted.constants:  # one of which, perhaps, has to be known when it is compiled
        with suppress(RefusedError):
            return _compiled_as(Lifted(function, {}), len(fields))
    raise InvalidFilterError(f"{at}: {name} cannot be compiled: {refused}")


def _compiled_as(lifted: Lifted, fields: int) -> tuple[Compiled, tuple[int, ...]]:
    constants = lifted.constants.values()
    return _KEPT.compiled(lifted.function, fields, tuple(map(type, constants))), tuple(map(_word, constants))


def _fields(function: FunctionType, name: str, at: str) -> tuple[str, ...]:
    """The parameters of a function, each of which is a field."""
    code = function.__code__
    if code.co_kwonlyargcount or code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS):
        raise InvalidFilterError(
            f"{at}: {name} has parameters behind or beyond a *: name each field as a parameter of its own"
        )
    if function.__defaults__:
        raise InvalidFilterError(
            f"{at}: {name} has a default for {code.co_varnames[code.co_argcount - 1]!r}, but parameters are fields, "
            "whose values rows have; other numbers it may take from around it"
        )
    if not 1 <= code.co_argcount <= MOST_FIELDS:
        raise InvalidFilterError(
            f"{at}: {name} has {code.co_argcount} parameters: name 1 to {MOST_FIELDS} numeric fields, such as lambda "
            "year: year > 2020"
        )
    return code.co_varnames[: code.co_argcount]


def _word(number: int | float) -> int:
    """The 64 bits of a number."""
    return int(np.array([number], np.int64 if type(number) is int else np.float64).view(np.uint64)[0])


def where_nodes(tree: Filter) -> Iterator[Where]:
    """All functions in a filter."""
    waiting = [tree]
    while waiting:
        each = waiting.pop()
        if isinstance(each, Where):
            yield each
        waiting += each.children


def stands_once(tree: Filter) -> bool:
    """Whether all functions in a filter are parts of one `&`, under no `~`: a row that would meet the filter if they
    all held, and would not if none did, meets it if it passes all of them.
    """
    if isinstance(tree, Where):
        return True
    holding = [part for part in tree.children if any(True for _ in where_nodes(part))]
    if isinstance(tree, And) and all(isinstance(part, Where) for part in holding):
        return True
    return isinstance(tree, (And, Or)) and len(holding) == 1 and stands_once(holding[0])


class _Kept:
    """The functions that were compiled last, by all that they hang on. Any number of threads ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = count()
        self._compiled: dict[Any, Compiled] = {}

    def compiled(self, function: Callable[..., Any], fields: int, constants: tuple[type, ...]) -> Compiled:
        assert isinstance(function, FunctionType)
        around = list(_around(function))
        key = (function.__code__, fields, constants, tuple(_told_apart(name, value) for name, value in around))
        with self._lock:
            found = self._compiled.pop(key, None)
            if found is not None:
                self._compiled[key] = found  # the last that was asked for
                return found
        from ..kernels.predicate import compile_test

        code = compile_test(function, fields, constants)  # nobody waits for that who asks for another one
        with self._lock:
            found = self._compiled.setdefault(key, Compiled(next(self._numbers), code, (function, *around)))
            if len(self._compiled) > MOST_KEPT:
                del self._compiled[next(iter(self._compiled))]
        return found


def _around(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """What the machine code of a function holds of the world around it: variables of closures and modules."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        yield name, cell.cell_contents if _filled(cell) else None
    for name in sorted(_names(function.__code__)):
        if name in function.__globals__:
            yield name, function.__globals__[name]


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _names(code: CodeType) -> set[str]:
    inner = (each for each in code.co_consts if isinstance(each, CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _told_apart(name: str, value: Any) -> tuple[Any, ...]:
    """By its value where that cannot change, else by which it is."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return name, type(value), repr(value)
    return name, id(value)


_KEPT = _Kept()
