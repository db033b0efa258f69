"""Functions of a user on the numbers of a row, as machine code that kernels call by its address.

Whatever its parameters are, a function becomes one of two words: the address of its table, and the number of a row. Of
the table the first words are the addresses of columns, float64, one item for each row, and those behind them constants.
So a kernel is compiled once and not for each function: all that it knows of one is an address.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import compiler, types
from numba.core.compiler_lock import global_compiler_lock
from numba.core.dispatcher import _FunctionCompiler  # type: ignore[attr-defined]
from numba.core.registry import cpu_target

from ..types import UInt64s
from .bits import has_bit
from .intrinsics import PLAIN_TESTS, call_test
from .jit import JIT, USER_OPTIONS, inlined, kernel

NO_TESTS: UInt64s = np.empty((0, 2), np.uint64)
_WORD, _BYTE, _FLOAT = ir.IntType(64), ir.IntType(8), ir.DoubleType()


class RefusedError(Exception):
    """Why a function cannot be compiled, in a line."""


class MachineCode(NamedTuple):
    """address: of the code. held: what has to live as long as it is called."""

    address: int
    held: Any


def compile_test(function: Callable[..., Any], fields: int, constants: Sequence[type]) -> MachineCode:
    """The machine code of a function of so many columns, and of constants of these types, int or float, behind them.

    It is false for a row that has NaN in a column, or for which the function raises.

    Raises:
        RefusedError
    """
    if not JIT:
        call = _plain(function, fields, constants)
        PLAIN_TESTS[id(call)] = call
        return MachineCode(id(call), call)
    kinds = (types.float64,) * fields + tuple({int: types.int64, float: types.float64}[each] for each in constants)
    return _compiled(function, fields, kinds)


class _Compiler(_FunctionCompiler):  # type: ignore[misc]
    """Compiles what machine code calls, and nobody else: so no wrapper for the interpreter is made."""

    def _customize_flags(self, flags: Any) -> Any:
        flags.no_cpython_wrapper = flags.no_cfunc_wrapper = flags.no_compile = True
        flags.enable_pyobject = False
        return flags


@global_compiler_lock
def _compiled(function: Callable[..., Any], fields: int, kinds: tuple[Any, ...]) -> MachineCode:
    cpu_target.typing_context.refresh()
    cpu_target.target_context.refresh()
    try:
        made = _Compiler(function, cpu_target, USER_OPTIONS, {}, compiler.Compiler).compile(kinds, None)
    except Exception as error:  # noqa: BLE001 - the compiler raises whatever it has stumbled over
        raise RefusedError(_gist(error)) from None
    found = types.unliteral(made.signature.return_type)
    if found != types.boolean:
        raise RefusedError(f"it returns {found} and no bool: return a comparison, such as x > 0")
    library = made.library
    module = library.create_ir_module("test")
    name = _wrap(module, made, fields)
    library.add_ir_module(module)
    library.finalize()
    return MachineCode(library.get_pointer_to_function(name), made)


def _wrap(module: Any, made: Any, fields: int) -> str:
    """Write the function of two words that calls what was compiled; returns its name."""
    inner, convention = made.fndesc, made.target_context.call_conv
    called = ir.Function(module, convention.get_function_type(inner.restype, inner.argtypes), inner.llvm_func_name)
    outer = ir.Function(module, ir.FunctionType(_BYTE, [_WORD, _WORD]), f"test_of_{inner.llvm_func_name}")
    table, row = outer.args
    builder = ir.IRBuilder(outer.append_basic_block())
    columns = builder.inttoptr(table, _FLOAT.as_pointer().as_pointer())
    arguments, known = [], ir.Constant(ir.IntType(1), 1)
    for place, kind in enumerate(inner.argtypes):
        word = builder.gep(columns, [ir.Constant(_WORD, place)])
        if place < fields:
            value = builder.load(builder.gep(builder.load(word), [row]))
            known = builder.and_(known, builder.fcmp_ordered("ord", value, value))
        else:
            stored = _FLOAT if kind == types.float64 else _WORD
            value = builder.load(builder.bitcast(word, stored.as_pointer()))
        arguments.append(value)
    with builder.if_then(builder.not_(known)):
        builder.ret(ir.Constant(_BYTE, 0))
    status, met = convention.call_function(builder, called, inner.restype, inner.argtypes, arguments)
    builder.ret(builder.zext(builder.and_(status.is_ok, met), _BYTE))
    return str(outer.name)


def _gist(error: Exception) -> str:
    """What a message of the compiler begins with, for it goes on for a page."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith("Failed in nopython")]
    if not told:
        return type(error).__name__
    return " ".join(told[: 2 if told[0].endswith(":") else 1])[:200]


def _plain(function: Callable[..., Any], fields: int, constants: Sequence[type]) -> Callable[[int, int], bool]:
    """The same, interpreted."""

    def call(table: int, row: int) -> bool:
        words = (ctypes.c_uint64 * (fields + len(constants))).from_address(table)
        values = [np.float64(ctypes.c_double.from_address(word + 8 * row).value) for word in words[:fields]]
        last = np.array(words[fields:], np.uint64)
        stored = [np.int64 if each is int else np.float64 for each in constants]
        given = [each(last[i : i + 1].view(stored[i])[0]) for i, each in enumerate(constants)]
        if not any(map(np.isnan, values)):
            with np.errstate(all="ignore"), suppress(Exception):
                return bool(function(*values, *given))
        return False

    return call


@inlined
def let_through(live: Any, row: Any) -> Any:
    """Whether a filter, of which there is one, lets a row through."""
    if not has_bit(live.allowed, row):
        return False
    if live.tests.shape[0] == 0 or (live.proven.shape[0] > 0 and has_bit(live.proven, row)):
        return True
    return passes(live.tests, row)


@inlined
def passes(tests: Any, row: Any) -> Any:
    """Whether a row passes all tests: uint64 (n, 2), the addresses of the code and of the table of each."""
    for t in range(tests.shape[0]):
        if not call_test(tests[t, 0], tests[t, 1], row):
            return False
    return True


@kernel
def test_rows(tests: Any, ids: Any, out: Any) -> None:
    """Say of each of `ids`, uint32, whether it passes all tests. out: bool."""
    for at in range(ids.shape[0]):
        out[at] = passes(tests, np.int64(ids[at]))
