"""What plain Python cannot say: prefetch, the lowest bit, and reading a number's bits as another type.

Each is a plain function, which runs when the JIT is off, and the instruction that replaces it in compiled code.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as _intrinsic

from .jit import compiled_for

LINE_BYTES = 64
intrinsic: Any = _intrinsic  # its type does not tell what it makes of a function


def prefetch(array: Any, row: int, column: int) -> None:
    """Ask for the cache line that holds array[row, column] of a C-contiguous array. Never faults."""


def float_bits(value: np.float32) -> np.uint32:
    """The bits of a float32."""
    return np.float32(value).view(np.uint32)


def bits_float(bits: np.uint32) -> np.float32:
    """The float32 with these bits."""
    return np.uint32(bits).view(np.float32)


def half_float(bits: np.uint16) -> np.float32:
    """The float16 with these bits, as float32."""
    return np.float32(np.uint16(bits).view(np.float16))


def brain_float(bits: np.uint16) -> np.float32:
    """The bfloat16 with these bits, as float32."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


def lowest_bit(bits: np.uint32) -> int:
    """The place of the lowest bit that is set; there has to be one."""
    return (int(bits) & -int(bits)).bit_length() - 1


@intrinsic
def _lowest_bit(_typing: Any, bits: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = context.cast(builder, args[0], signature.args[0], types.uint32)
        return builder.zext(builder.cttz(word, ir.IntType(1)(1)), ir.IntType(64))

    return types.int64(bits), codegen


@intrinsic
def _prefetch(_typing: Any, array: Any, row: Any, column: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        view = context.make_array(signature.args[0])(context, builder, args[0])
        row_index = context.cast(builder, args[1], signature.args[1], types.intp)
        column_index = context.cast(builder, args[2], signature.args[2], types.intp)
        width = cgutils.unpack_tuple(builder, view.shape, 2)[1]
        # From the array's own pointer by element: an address rebuilt from an integer is miscompiled.
        offset = builder.add(builder.mul(row_index, width), column_index)
        address = builder.bitcast(builder.gep(view.data, [offset]), cgutils.voidptr_t)
        word = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, word, word, word])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [address, word(0), word(3), word(1)])
        return context.get_dummy_value()

    return types.void(array, row, column), codegen


def _reinterpret(source: Any, target: Any) -> Any:
    @intrinsic
    def reinterpret(_typing: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            bits = context.cast(builder, args[0], signature.args[0], source)
            return builder.bitcast(bits, context.get_value_type(target))

        return target(value), codegen

    return reinterpret


@intrinsic
def _half_float(_typing: Any, bits: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = context.cast(builder, args[0], signature.args[0], types.uint16)
        return builder.fpext(builder.bitcast(word, ir.HalfType()), ir.FloatType())

    return types.float32(bits), codegen


_float_bits = _reinterpret(types.float32, types.uint32)
_bits_float = _reinterpret(types.uint32, types.float32)


@compiled_for(prefetch)
def _(array: Any, row: Any, column: Any) -> Any:
    return lambda array, row, column: _prefetch(array, row, column)


@compiled_for(float_bits)
def _(value: Any) -> Any:
    return lambda value: _float_bits(value)


@compiled_for(bits_float)
def _(bits: Any) -> Any:
    return lambda bits: _bits_float(bits)


@compiled_for(half_float)
def _(bits: Any) -> Any:
    return lambda bits: _half_float(bits)


@compiled_for(brain_float)
def _(bits: Any) -> Any:
    return lambda bits: _bits_float(np.uint32(bits) << np.uint32(16))


@compiled_for(lowest_bit)
def _(bits: Any) -> Any:
    return lambda bits: _lowest_bit(bits)
