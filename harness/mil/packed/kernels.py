"""Products with packed weights, and rows of them as fp32, compiled by numba for this machine.

A weight has one of two layouts (`harness.mil.packed.layouts`): *tables*, with two codes in a byte
and a table for each row, and *blocks*, for all other weights. Each layout has its own order of the
floats of a row. All sums are in fp32, in any order.

Unless a docstring says otherwise, arrays are: codes uint8 [rows, columns] or, with two in a byte,
[rows, columns / 2]; tables uint8 [rows, 32]; scale and offset fp32 [row blocks, column blocks]; x
fp32 [m, columns]; out fp32 [m, rows].
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from inspect import getsource
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.np.numpy_support import carray

from harness.mil.packed import vector

if TYPE_CHECKING:
    from numba.core.base import BaseContext as Target
    from numba.core.typing.context import BaseContext as TypingContext
    from numba.core.typing.templates import Signature

Kernel = TypeVar("Kernel", bound=Callable[..., Any])
_BATCH = 8 * vector.TILE_ROWS  # rows of a weight that are decoded at a time
ANY_ORDER = {"reassoc", "contract", "nsz"}  # of a sum; NaN and infinities are kept
_VECTOR_CODE = sha256(getsource(vector).encode()).hexdigest()[:16]


def compiler(*, parallel: bool = False, math: set[str] = ANY_ORDER) -> Callable[[Kernel], Kernel]:
    """Return a decorator that compiles, and caches the machine code for the next process.

    `math` are LLVM's permissions for arithmetic.

    numba compiles again when the file of a kernel has changed. The vector code is part of the
    machine code too, but it is in another file. Therefore a kernel's name, and with it the name of
    the cached file, ends with a hash of that code.
    """

    def compiled(function: Kernel) -> Kernel:
        options: dict[str, Any] = {"nogil": True, "fastmath": math, "parallel": parallel}
        function.__qualname__ += f"_{_VECTOR_CODE}"
        try:
            made: Kernel = njit(cache=True, **options)(function)
        except RuntimeError:  # numba cannot write to any of its folders
            made = njit(**options)(function)
        return made

    return compiled


_serial, _parallel = compiler(), compiler(parallel=True)


@_parallel
def table_products(
    weights: int, count: int, order: int, columns: int, x: int, m: int, out: int, parts: int
) -> None:
    """Multiply x [m, columns], its columns in their own order, by several weights.

    All arrays are contiguous and passed by address, because a language model calls this hundreds of
    times for each token. `weights` int64 [count, 5] has, for each weight, the addresses of its
    codes, its tables and its units, its rows, and the rows of all weights before it; `out` has
    [m, rows] for each. A unit fp32 [rows] is the value of a 1 in a row's table, divided by 65536;
    `order` int64 [columns] is the order of the columns in the tables' layout.
    """
    given = carray(pointer(x), (m, columns), np.float32)
    indices = carray(pointer(order), (columns,), np.int64)
    ordered = np.empty((m, columns), np.float32)
    for each in range(m):
        for column in range(columns):
            ordered[each, column] = given[each, indices[column]]
    listed = carray(pointer(weights), (count, 5), np.int64)
    rows = listed[count - 1, 3] + listed[count - 1, 4]
    if parts == 1:
        _table_products(0, rows, listed, ordered, out)
    else:
        for part in prange(parts):
            first, last = rows * part // parts, rows * (part + 1) // parts
            _table_products(first, last, listed, ordered, out)


@_parallel
def block_products(
    codes: np.ndarray,
    scale: np.ndarray,
    offset: np.ndarray,
    sign_bit: int,
    rounds: bool,
    x: np.ndarray,
    out: np.ndarray,
    parts: int,
) -> None:
    """Write the products of x [m, columns] to `out`; `expand_blocks` explains the codes."""
    rows = codes.shape[0]
    if parts == 1:
        _block_products(0, rows, codes, scale, offset, sign_bit, rounds, x, out)
    else:
        for part in prange(parts):
            first, last = rows * part // parts, rows * (part + 1) // parts
            _block_products(first, last, codes, scale, offset, sign_bit, rounds, x, out)


@_parallel
def table_tiles(
    weights: int, count: int, order: int, columns: int, x: int, m: int, out: int, parts: int
) -> None:
    """Multiply like `table_products`, for more rows of x: a weight is decoded once for all rows."""
    x_tiles = _x_tiles(x, order, m, columns)
    listed = carray(pointer(weights), (count, 5), np.int64)
    rows = listed[count - 1, 3] + listed[count - 1, 4]
    if parts == 1:
        _table_tiles(0, rows, listed, x_tiles, m, out)
    else:
        for part in prange(parts):
            first, last = rows * part // parts, rows * (part + 1) // parts
            _table_tiles(first, last, listed, x_tiles, m, out)


@_parallel
def expand_blocks(
    codes: np.ndarray,
    scale: np.ndarray,
    offset: np.ndarray,
    sign_bit: int,
    rounds: bool,
    start: int,
    tile: np.ndarray,
    parts: int,
) -> None:
    """Write the rows from `start` on to `tile` [n, columns]; round them to fp16 if `rounds`.

    The number of a code c is `(c ^ sign_bit) - sign_bit`; `sign_bit` is 0 for unsigned codes.
    """
    rows = tile.shape[0]
    if parts == 1:
        _expand_rows(0, rows, codes, scale, offset, sign_bit, rounds, start, tile)
    else:
        for part in prange(parts):
            first, last = rows * part // parts, rows * (part + 1) // parts
            _expand_rows(first, last, codes, scale, offset, sign_bit, rounds, start, tile)


@_serial
def _table_products(first: int, last: int, weights: np.ndarray, x: np.ndarray, out: int) -> None:
    """Write the products with the rows from `first` to `last`, counted over all weights."""
    m, columns = x.shape
    steps = columns // vector.COLUMNS
    for weight in range(len(weights)):
        codes, tables, unit = weights[weight, 0], weights[weight, 1], weights[weight, 2]
        rows, before = weights[weight, 3], weights[weight, 4]
        units = carray(pointer(unit), (rows,), np.float32)
        results = carray(pointer(out + 4 * m * before), (m, rows), np.float32)
        for row in range(max(first - before, 0), min(last - before, rows)):
            row_codes, table = codes + row * (columns // 2), tables + row * vector.COLUMNS
            for each in range(m):
                total = vector.dot(row_codes, table, _row_address(x, each), steps)
                results[each, row] = total * units[row]


@_serial
def _x_tiles(x: int, order: int, m: int, columns: int) -> np.ndarray:
    """Cut x [m, columns] into tiles of `vector.TILE_WIDTH` rows; zeros fill the last one."""
    given = carray(pointer(x), (m, columns), np.float32)
    indices = carray(pointer(order), (columns,), np.int64)
    x_tiles = np.zeros((-(-m // vector.TILE_WIDTH), columns, vector.TILE_WIDTH), np.float32)
    for each in range(m):
        tile, place = each // vector.TILE_WIDTH, each % vector.TILE_WIDTH
        for column in range(columns):
            x_tiles[tile, column, place] = given[each, indices[column]]
    return x_tiles


@_serial
def _table_tiles(
    first: int, last: int, weights: np.ndarray, x_tiles: np.ndarray, m: int, out: int
) -> None:
    """Write the products with the rows from `first` to `last`, counted over all weights."""
    n_tiles, columns, width = x_tiles.shape
    tile = np.zeros((_BATCH, vector.BLOCK), np.float32)
    sums = np.empty((n_tiles, _BATCH, width), np.float32)
    for weight in range(len(weights)):
        codes, tables, unit = weights[weight, 0], weights[weight, 1], weights[weight, 2]
        rows, before = weights[weight, 3], weights[weight, 4]
        units = carray(pointer(unit), (rows,), np.float32)
        results = carray(pointer(out + 4 * m * before), (m, rows), np.float32)
        end = min(last - before, rows)
        for start in range(max(first - before, 0), end, _BATCH):
            n = min(_BATCH, end - start)
            sums[:] = 0
            for block in range(0, columns, vector.BLOCK):
                terms = min(vector.BLOCK, columns - block)
                for row in range(n):
                    row_codes = codes + (start + row) * (columns // 2) + block // 2
                    row_table = tables + (start + row) * vector.COLUMNS
                    steps = terms // vector.COLUMNS
                    vector.expand(row_codes, row_table, _row_address(tile, row), steps)
                _accumulate(tile, n, x_tiles, block, terms, sums)
            for each in range(m):
                for row in range(n):
                    total = sums[each // width, row, each % width]
                    results[each, start + row] = total * units[start + row]


@_serial
def _accumulate(
    tile: np.ndarray, n: int, x_tiles: np.ndarray, block: int, terms: int, sums: np.ndarray
) -> None:
    """Add the products of n rows of a weight's tile with a block of x to `sums`."""
    for each in range(len(x_tiles)):
        for row in range(0, n, vector.TILE_ROWS):
            x = x_tiles.ctypes.data + each * x_tiles.strides[0] + block * x_tiles.strides[1]
            to = sums.ctypes.data + each * sums.strides[0] + row * sums.strides[1]
            vector.accumulate(_row_address(tile, row), x, to, terms)


@_serial
def _expand_rows(
    first: int,
    last: int,
    codes: np.ndarray,
    scale: np.ndarray,
    offset: np.ndarray,
    sign_bit: int,
    rounds: bool,
    start: int,
    tile: np.ndarray,
) -> None:
    for row in range(first, last):
        _expand_row(codes, start + row, scale, offset, sign_bit, rounds, tile[row])


@_serial
def _block_products(
    first: int,
    last: int,
    codes: np.ndarray,
    scale: np.ndarray,
    offset: np.ndarray,
    sign_bit: int,
    rounds: bool,
    x: np.ndarray,
    out: np.ndarray,
) -> None:
    per_scale, blocks = codes.shape[0] // scale.shape[0], scale.shape[1]
    width, columns = codes.shape[1], x.shape[1]
    size, sign = width // blocks, np.uint8(sign_bit)
    for row in range(first, last):
        for each in range(x.shape[0]):
            total = np.float32(0)
            for block in range(blocks):
                s = scale[row // per_scale, block]
                z = offset[row // per_scale, block] + np.float32(sign_bit)
                start, end = block * size, (block + 1) * size
                part, low, high = codes[row, start:end], x[each, start:end], x[each, -width:]
                # loops from 0, whose indices cannot be negative: they become vector code
                if width == columns:
                    for at in range(size):
                        total += _value(part[at], sign, z, s, rounds) * low[at]
                else:
                    high = high[start:end]
                    for at in range(size):
                        total += _value(part[at] & 15, sign, z, s, rounds) * low[at]
                        total += _value(part[at] >> 4, sign, z, s, rounds) * high[at]
            out[each, row] = total


@_serial
def _expand_row(
    codes: np.ndarray,
    row: int,
    scale: np.ndarray,
    offset: np.ndarray,
    sign_bit: int,
    rounds: bool,
    out: np.ndarray,
) -> None:
    """Write a row; if two codes share a byte, all low ones come first, then all high ones."""
    row_block = row // (codes.shape[0] // scale.shape[0])
    width, blocks = codes.shape[1], scale.shape[1]
    size, sign = width // blocks, np.uint8(sign_bit)
    for block in range(blocks):
        s, z = scale[row_block, block], offset[row_block, block] + np.float32(sign_bit)
        start, end = block * size, (block + 1) * size
        part, low, high = codes[row, start:end], out[start:end], out[-width:]
        if width == out.shape[0]:
            for at in range(size):
                low[at] = _value(part[at], sign, z, s, rounds)
        else:
            high = high[start:end]
            for at in range(size):
                low[at] = _value(part[at] & 15, sign, z, s, rounds)
                high[at] = _value(part[at] >> 4, sign, z, s, rounds)


@_serial
def _value(
    code: np.uint8, sign_bit: np.uint8, zero: np.float32, scale: np.float32, rounds: bool
) -> np.float32:
    """Return the value of a code; `zero` includes `sign_bit` already."""
    value = (np.float32(np.int32(code ^ sign_bit)) - zero) * scale
    rounded = _rounded(value)
    return rounded if rounds else value


@vector.intrinsic
def _rounded(typing: TypingContext, value: types.Type) -> vector.Intrinsic:
    """Round an fp32 to the nearest fp16."""

    def generate(
        context: Target, builder: ir.IRBuilder, signature: Signature, values: list[ir.Value]
    ) -> ir.Value:
        return builder.fpext(builder.fptrunc(values[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.float32), generate


@vector.intrinsic
def pointer(typing: TypingContext, address: types.Type) -> vector.Intrinsic:
    """Convert an address to the pointer that `numba.carray` takes."""

    def generate(
        context: Target, builder: ir.IRBuilder, signature: Signature, values: list[ir.Value]
    ) -> ir.Value:
        return builder.inttoptr(values[0], ir.PointerType(ir.IntType(8)))

    return types.voidptr(types.intp), generate


@_serial
def _row_address(array: np.ndarray, row: int) -> int:
    address: int = array.ctypes.data + row * array.strides[0]
    return address
