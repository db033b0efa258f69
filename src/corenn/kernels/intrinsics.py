"""What plain Python cannot say: prefetch, products of bytes, the lowest bit, reading a number's bits as another type,
reading a file into an array without the interpreter.

Each is a plain function, which runs when the JIT is off, and the instruction that replaces it in compiled code.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic as _intrinsic

from ..types import AnyArray, Bytes, UInt64s
from .jit import compiled_for, inlined

LINE_BYTES = 64
PREFETCH_BYTES = 4096  # past one page the hardware prefetcher follows by itself
WIDTHS = (8, 4, 2, 1)  # bits of a code
Products = Literal["vnni512", "vnni256", "avx2", "none"]


def _byte_products() -> Products:
    """The instructions for products of bytes that the CPU has for which code is made, as far as that is known."""
    if getattr(config, "CPU_NAME") or getattr(config, "CPU_FEATURES"):  # noqa: B009
        return "none"
    has = binding.get_host_cpu_features()
    if has.get("avx512vnni", False):
        return "vnni512"
    if has.get("avxvnni", False):
        return "vnni256"
    return "avx2" if has.get("avx2", False) else "none"


BYTE_PRODUCTS: Products = _byte_products()
# Of a product of matrices: 16 sums, two loaded values and a broadcast one fill half of 32 registers, or 12 all of 16.
LANES = 16 if binding.get_host_cpu_features().get("avx512f", False) else 8
TILE_ROWS, TILE_COLUMNS = 8 if LANES == 16 else 6, 2 * LANES
intrinsic: Any = _intrinsic  # its type does not tell what it makes of a function


def prefetch(array: Any, row: int) -> None:
    """Ask for the cache lines of array[row], two-dimensional and C-contiguous: a page of them at most. Never faults."""


def read_at(descriptor: int, offset: int, size: int, out: AnyArray, row: int, byte: int) -> int:
    """Read `size` bytes of a file from an offset on into out[row], two-dimensional and C-contiguous, from a byte on.

    Returns how many have come: fewer at the end of the file, -1 after an error. Nothing of the file is mapped.
    """
    try:
        found = os.pread(descriptor, size, offset)
    except OSError:
        return -1
    out[row].view(np.uint8)[byte : byte + len(found)] = np.frombuffer(found, np.uint8)
    return len(found)


def ask_for(descriptor: int, offset: int, size: int) -> None:
    """Have the system begin to read a part of a file, and return at once; nothing happens where it takes no hints."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_WILLNEED)


def copy_bytes(source: AnyArray, row: int, byte: int, out: AnyArray, out_row: int, size: int) -> None:
    """Copy `size` bytes of source[row], from a byte on, to the beginning of out[out_row]. Both are C-contiguous."""
    out[out_row].view(np.uint8)[:size] = source[row].view(np.uint8)[byte : byte + size]


def float_at(stored: Bytes, row: int, byte: int) -> np.float32:
    """The float32 that begins at a byte of a row."""
    found: np.float32 = stored[row, byte : byte + 4].view(np.float32)[0]
    return found


def load_first(words: UInt64s, row: Any, column: int) -> np.uint64:
    """An item of uint64 (n, m), read before anything that is read after it in the program."""
    found: np.uint64 = words[row, column]
    return found


PLAIN_TESTS: dict[int, Callable[[int, int], bool]] = {}  # by what stands for their addresses when the JIT is off


def call_test(address: Any, table: Any, row: Any) -> bool:
    """Call the code at an address, of predicate.compile_test, with the address of a table and the number of a row."""
    return PLAIN_TESTS[int(address)](int(table), int(row))


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


def dot_bytes(codes: Bytes, row: int, levels: AnyArray, body: int, bits: int) -> int:
    """The product of a row of codes, small unsigned integers, with signed bytes.

    Each of the first `body` bytes of the row holds 8 / bits codes: those in its lowest bits meet the first part of
    `levels`, those in the next bits the second, and so on. levels: int8; its parts are alike, padded with zeros to a
    multiple of 16, up to which a row must reach as well.
    """
    return _dot_bytes_plainly(codes, row, levels, body, bits)


def multiply_tile(left: AnyArray, row: int, panels: AnyArray, panel: int, out: AnyArray) -> None:
    """Write the products of TILE_ROWS rows of `left`, from `row` on, with the TILE_COLUMNS columns of a panel.

    left: float32 (rows, width). panels: float32 (n, width * TILE_COLUMNS), each a matrix (width, TILE_COLUMNS) of
    columns side by side. out: float32 (rows, n * TILE_COLUMNS). The sums do not depend on the number of threads, as
    those of BLAS do.
    """
    columns = slice(panel * TILE_COLUMNS, (panel + 1) * TILE_COLUMNS)
    out[row : row + TILE_ROWS, columns] = left[row : row + TILE_ROWS] @ panels[panel].reshape(-1, TILE_COLUMNS)


@inlined
def _dot_bytes_plainly(codes: Any, row: Any, levels: Any, body: Any, bits: Any) -> Any:
    stored, total = codes[row], np.int32(0)
    part, mask = levels.shape[0] * bits >> 3, np.uint8((1 << bits) - 1)
    start = 0
    for shift in range(0, 8, bits):
        asked = levels[start : start + part]
        for i in range(body):
            total += np.int32((stored[i] >> np.uint8(shift)) & mask) * np.int32(asked[i])
        start += part
    return total


@intrinsic
def _dot_bytes(_typing: Any, codes: Any, row: Any, levels: Any, body: Any, bits: Any) -> Any:
    """The same with the instructions for products of bytes: as many at once as there are, then 16."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word, index = ir.IntType(32), ir.IntType(64)
        view, asked = (context.make_array(signature.args[at])(context, builder, args[at]) for at in (0, 2))
        row_index, length, width = (
            context.cast(builder, args[at], signature.args[at], types.int64) for at in (1, 3, 4)
        )
        row_bytes = cgutils.unpack_tuple(builder, view.shape, 2)[1]
        start = builder.gep(view.data, [builder.mul(row_index, row_bytes)])
        every = cgutils.unpack_tuple(builder, asked.shape, 1)[0]
        chunks = builder.lshr(builder.add(length, index(15)), index(4))
        total = cgutils.alloca_once_value(builder, word(0))

        def pass_over(lanes: int, first: Any, count: Any, bits: int) -> None:
            """Add the products of `count` pieces of 4 * lanes bytes, from the byte `first` on."""
            kind = ir.VectorType(word, lanes)
            add_products = _adder(builder, lanes, bits)
            sums = [cgutils.alloca_once_value(builder, ir.Constant(kind, [0] * lanes)) for _ in range(2)]
            with cgutils.for_range(builder, count) as loop:
                at = builder.add(first, builder.mul(loop.index, index(4 * lanes)))

                def load(base: Any) -> Any:
                    return builder.load(builder.bitcast(builder.gep(base, [at]), kind.as_pointer()), align=1)

                parts = [
                    builder.gep(asked.data, [builder.udiv(builder.mul(every, index(field)), index(8 // bits))])
                    for field in range(8 // bits)
                ]
                add_products(sums, load(start), [load(part) for part in parts])
            whole = builder.add(builder.load(sums[0]), builder.load(sums[1]))
            reduce = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(word, [kind]), f"llvm.vector.reduce.add.v{lanes}i32"
            )
            builder.store(builder.add(builder.load(total), builder.call(reduce, [whole])), total)

        def run(bits: int) -> None:
            lanes = 16 if BYTE_PRODUCTS == "vnni512" else 8
            at_once = lanes // 4
            large, small = builder.udiv(chunks, index(at_once)), builder.urem(chunks, index(at_once))
            pass_over(lanes, index(0), large, bits)
            with builder.if_then(builder.icmp_unsigned(">", small, index(0))):
                pass_over(4, builder.mul(large, index(4 * lanes)), small, bits)

        after = builder.append_basic_block("after")
        switch = builder.switch(builder.trunc(width, word), after)
        for bits in WIDTHS:
            block = builder.append_basic_block(f"bits{bits}")
            switch.add_case(word(bits), block)
            builder.position_at_end(block)
            run(bits)
            builder.branch(after)
        builder.position_at_end(after)
        return builder.load(total)

    return types.int32(codes, row, levels, body, bits), codegen


def _adder(builder: Any, lanes: int, bits: int) -> Callable[[Any, Any, list[Any]], None]:
    """What adds products to two vectors of int32 in memory: of the fields of packed codes, each with its levels."""
    kind = ir.VectorType(ir.IntType(32), lanes)

    def field(given: Any, number: int, bits: int) -> Any:
        mask = ir.Constant(kind, [((1 << bits) - 1) * 0x01010101] * lanes)
        return builder.and_(builder.lshr(given, ir.Constant(kind, [number * bits] * lanes)), mask)

    def fused(sums: Any, given: Any, levels: list[Any]) -> None:
        operand = ir.VectorType(ir.IntType(8), 4 * lanes) if binding.llvm_version_info[0] >= 22 else kind
        multiply = _called(builder, f"llvm.x86.avx512.vpdpbusd.{32 * lanes}", kind, (kind, operand, operand))
        for number, level in enumerate(levels):
            operands = [builder.bitcast(each, operand) for each in (field(given, number, bits), level)]
            into = sums[number % 2]
            builder.store(multiply(builder.load(into), *operands), into)

    # Two instructions: products of bytes, added in pairs to 16 bits, and those in pairs to 32. Codes of eight bits
    # would not fit the 16, so their halves are multiplied apart.
    def paired(sums: Any, given: Any, levels: list[Any]) -> None:
        bytes_, shorts = ir.VectorType(ir.IntType(8), 4 * lanes), ir.VectorType(ir.IntType(16), 2 * lanes)
        pairs = _called(
            builder, "llvm.x86.avx2.pmadd.ub.sw" if lanes == 8 else "llvm.x86.ssse3.pmadd.ub.sw.128",
            shorts, (bytes_, bytes_),
        )  # fmt: skip
        quads = _called(
            builder, "llvm.x86.avx2.pmadd.wd" if lanes == 8 else "llvm.x86.sse2.pmadd.wd", kind, (shorts, shorts)
        )

        def add(into: Any, products: Any, times: int) -> None:
            wide = quads(products, ir.Constant(shorts, [times] * (2 * lanes)))
            builder.store(builder.add(builder.load(into), wide), into)

        def product(unsigned: Any, signed: Any) -> Any:
            return pairs(builder.bitcast(unsigned, bytes_), builder.bitcast(signed, bytes_))

        if bits == 8:
            for number, times in enumerate((1, 16)):
                add(sums[number], product(field(given, number, 4), levels[0]), times)
            return
        products = [product(field(given, number, bits), level) for number, level in enumerate(levels)]
        while len(products) > 1:
            products = [builder.add(*products[at : at + 2]) for at in range(0, len(products), 2)]
        add(sums[0], products[0], 1)

    return paired if BYTE_PRODUCTS == "avx2" else fused


def _called(builder: Any, name: str, returned: Any, taken: tuple[Any, ...]) -> Callable[..., Any]:
    """An instruction of LLVM by its name, as a function of values."""
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(returned, taken), name)
    return lambda *values: builder.call(function, values)


@intrinsic
def _multiply_tile(_typing: Any, left: Any, row: Any, panels: Any, panel: Any, out: Any) -> Any:
    """Sums stay in registers: per column of `left`, two loads, a broadcast per row, and two multiply-adds for each."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        index, lanes = ir.IntType(64), ir.VectorType(ir.FloatType(), LANES)
        views = [context.make_array(signature.args[at])(context, builder, args[at]) for at in (0, 2, 4)]
        given, packed, result = views
        first, place = (context.cast(builder, args[at], signature.args[at], types.int64) for at in (1, 3))
        width, packed_width, result_width = (cgutils.unpack_tuple(builder, view.shape, 2)[1] for view in views)
        halves = range(TILE_COLUMNS // LANES)
        starts = [builder.gep(given.data, [builder.mul(builder.add(first, index(r)), width)]) for r in range(TILE_ROWS)]
        column = builder.gep(packed.data, [builder.mul(place, packed_width)])
        zero = ir.Constant(lanes, [0.0] * LANES)
        sums = [[cgutils.alloca_once_value(builder, zero) for _ in halves] for _ in starts]
        multiply_add = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(lanes, [lanes] * 3), f"llvm.fmuladd.v{LANES}f32"
        )
        everywhere = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        nothing = ir.Constant(lanes, ir.Undefined)

        def vector(base: Any, at: Any) -> Any:
            return builder.bitcast(builder.gep(base, [at]), lanes.as_pointer())

        with cgutils.for_range(builder, width) as loop:
            at = builder.mul(loop.index, index(TILE_COLUMNS))
            values = [builder.load(vector(column, builder.add(at, index(LANES * h))), align=4) for h in halves]
            for start, line in zip(starts, sums, strict=True):
                one = builder.load(builder.gep(start, [loop.index]))
                spread = builder.shuffle_vector(
                    builder.insert_element(nothing, one, ir.IntType(32)(0)), nothing, everywhere
                )
                for value, total in zip(values, line, strict=True):
                    builder.store(builder.call(multiply_add, [spread, value, builder.load(total)]), total)
        for r, line in enumerate(sums):
            start = builder.add(
                builder.mul(builder.add(first, index(r)), result_width), builder.mul(place, index(TILE_COLUMNS))
            )
            for h, total in enumerate(line):
                builder.store(builder.load(total), vector(result.data, builder.add(start, index(LANES * h))), align=4)
        return context.get_dummy_value()

    return types.void(left, row, panels, panel, out), codegen


@intrinsic
def _lowest_bit(_typing: Any, bits: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = context.cast(builder, args[0], signature.args[0], types.uint32)
        return builder.zext(builder.cttz(word, ir.IntType(1)(1)), ir.IntType(64))

    return types.int64(bits), codegen


@intrinsic
def _prefetch(_typing: Any, array: Any, row: Any) -> Any:
    # The size of an item is known here: as a field of the array it would be divided by, for every row.
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        view = context.make_array(signature.args[0])(context, builder, args[0])
        word, index = ir.IntType(32), ir.IntType(64)
        row_index = context.cast(builder, args[1], signature.args[1], types.int64)
        width = cgutils.unpack_tuple(builder, view.shape, 2)[1]
        item = context.get_abi_sizeof(context.get_data_type(signature.args[0].dtype))
        # From the array's own pointer by element: an address rebuilt from an integer is miscompiled.
        start = builder.bitcast(builder.gep(view.data, [builder.mul(row_index, width)]), cgutils.voidptr_t)
        lines = builder.lshr(
            builder.add(builder.mul(width, index(item)), index(LINE_BYTES - 1)), index(LINE_BYTES.bit_length() - 1)
        )
        most = index(PREFETCH_BYTES // LINE_BYTES)
        lines = builder.select(builder.icmp_unsigned("<", lines, most), lines, most)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, word, word, word])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        with cgutils.for_range(builder, lines) as loop:
            address = builder.gep(start, [builder.mul(loop.index, index(LINE_BYTES))])
            builder.call(function, [address, word(0), word(3), word(1)])
        return context.get_dummy_value()

    return types.void(array, row), codegen


@intrinsic
def _float_at(_typing: Any, stored: Any, row: Any, byte: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        view = context.make_array(signature.args[0])(context, builder, args[0])
        row_index, place = (context.cast(builder, args[at], signature.args[at], types.int64) for at in (1, 2))
        width = cgutils.unpack_tuple(builder, view.shape, 2)[1]
        address = builder.gep(view.data, [builder.add(builder.mul(row_index, width), place)])
        return builder.load(builder.bitcast(address, ir.FloatType().as_pointer()), align=1)

    return types.float32(stored, row, byte), codegen


@intrinsic
def _load_first(_typing: Any, words: Any, row: Any, column: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        view = context.make_array(signature.args[0])(context, builder, args[0])
        row_index, place = (context.cast(builder, args[at], signature.args[at], types.int64) for at in (1, 2))
        width = cgutils.unpack_tuple(builder, view.shape, 2)[1]
        address = builder.gep(view.data, [builder.add(builder.mul(row_index, width), place)])
        return builder.load_atomic(address, "acquire", 8)

    return types.uint64(words, row, column), codegen


@intrinsic
def _call_test(_typing: Any, address: Any, table: Any, row: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word, byte = ir.IntType(64), ir.IntType(8)
        code = builder.inttoptr(args[0], ir.FunctionType(byte, [word, word]).as_pointer())
        return builder.icmp_unsigned("!=", builder.call(code, [args[1], args[2]]), byte(0))

    return types.boolean(types.uint64, types.uint64, types.int64), codegen


def _row_start(context: Any, builder: Any, kind: Any, array: Any, row: Any, byte: Any) -> Any:
    """The address of a byte of a row of a two-dimensional array."""
    view = context.make_array(kind)(context, builder, array)
    width = cgutils.unpack_tuple(builder, view.shape, 2)[1]
    start = builder.bitcast(builder.gep(view.data, [builder.mul(row, width)]), cgutils.voidptr_t)
    return builder.gep(start, [byte])


@intrinsic
def _read_at(_typing: Any, descriptor: Any, offset: Any, size: Any, out: Any, row: Any, byte: Any) -> Any:
    # A symbol of libc by its name: unlike an address, it can be kept on disk.
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word, index = ir.IntType(32), ir.IntType(64)
        at, length, place, skipped = (
            context.cast(builder, args[i], signature.args[i], types.int64) for i in (1, 2, 4, 5)
        )
        number = context.cast(builder, args[0], signature.args[0], types.int32)
        target = _row_start(context, builder, signature.args[3], args[3], place, skipped)
        kind = ir.FunctionType(index, [word, cgutils.voidptr_t, index, index])
        function = cgutils.get_or_insert_function(builder.module, kind, "pread")
        return builder.call(function, [number, target, length, at])

    return types.int64(descriptor, offset, size, out, row, byte), codegen


@intrinsic
def _ask_for(_typing: Any, descriptor: Any, offset: Any, size: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word, index = ir.IntType(32), ir.IntType(64)
        at, length = (context.cast(builder, args[i], signature.args[i], types.int64) for i in (1, 2))
        number = context.cast(builder, args[0], signature.args[0], types.int32)
        kind = ir.FunctionType(word, [word, index, index, word])
        function = cgutils.get_or_insert_function(builder.module, kind, "posix_fadvise")
        builder.call(function, [number, at, length, word(os.POSIX_FADV_WILLNEED)])
        return context.get_dummy_value()

    return types.void(descriptor, offset, size), codegen


@intrinsic
def _copy_bytes(_typing: Any, source: Any, row: Any, byte: Any, out: Any, out_row: Any, size: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        index = ir.IntType(64)
        place, skipped, target_place, length = (
            context.cast(builder, args[i], signature.args[i], types.int64) for i in (1, 2, 4, 5)
        )
        start = _row_start(context, builder, signature.args[0], args[0], place, skipped)
        target = _row_start(context, builder, signature.args[3], args[3], target_place, index(0))
        cgutils.raw_memcpy(builder, target, start, length, 1)
        return context.get_dummy_value()

    return types.void(source, row, byte, out, out_row, size), codegen


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
def _(array: Any, row: Any) -> Any:
    return lambda array, row: _prefetch(array, row)


@compiled_for(read_at)
def _(descriptor: Any, offset: Any, size: Any, out: Any, row: Any, byte: Any) -> Any:
    return lambda descriptor, offset, size, out, row, byte: _read_at(descriptor, offset, size, out, row, byte)


@compiled_for(ask_for)
def _(descriptor: Any, offset: Any, size: Any) -> Any:
    if sys.platform == "linux":
        return lambda descriptor, offset, size: _ask_for(descriptor, offset, size)
    return lambda descriptor, offset, size: None


@compiled_for(copy_bytes)
def _(source: Any, row: Any, byte: Any, out: Any, out_row: Any, size: Any) -> Any:
    return lambda source, row, byte, out, out_row, size: _copy_bytes(source, row, byte, out, out_row, size)


@compiled_for(load_first)
def _(words: Any, row: Any, column: Any) -> Any:
    return lambda words, row, column: _load_first(words, row, column)


@compiled_for(call_test)
def _(address: Any, table: Any, row: Any) -> Any:
    return lambda address, table, row: _call_test(address, table, row)


@compiled_for(float_at)
def _(stored: Any, row: Any, byte: Any) -> Any:
    return lambda stored, row, byte: _float_at(stored, row, byte)


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


@compiled_for(dot_bytes)
def _(codes: Any, row: Any, levels: Any, body: Any, bits: Any) -> Any:
    if BYTE_PRODUCTS != "none":
        return lambda codes, row, levels, body, bits: _dot_bytes(codes, row, levels, body, bits)
    return lambda codes, row, levels, body, bits: _dot_bytes_plainly(codes, row, levels, body, bits)


@compiled_for(lowest_bit)
def _(bits: Any) -> Any:
    return lambda bits: _lowest_bit(bits)


@compiled_for(multiply_tile)
def _(left: Any, row: Any, panels: Any, panel: Any, out: Any) -> Any:
    return lambda left, row, panels, panel, out: _multiply_tile(left, row, panels, panel, out)
