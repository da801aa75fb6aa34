"""Products with packed weights, and rows of them as fp32, compiled by numba for this machine.

A weight has one of two layouts (`harness.mil.packed.layouts`): *tables*, with two codes in a byte
and a table for each row, and *blocks*, for all other weights. Each layout has its own order of the
floats of a row. All sums are in fp32, in any order.

Unless a docstring says otherwise, arrays are: codes uint8 [rows, columns] or, with two in a byte,
[rows, columns / 2]; tables uint8 [rows, 32]; scale and offset fp32 [row blocks, column blocks]; x
fp32 [m, columns]; out fp32 [m, rows].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.np.numpy_support import carray

from harness.mil.packed import integers, vector
from harness.mil.packed.compiler import compiler, pointer

if TYPE_CHECKING:
    from numba.core.base import BaseContext as Target
    from numba.core.typing.context import BaseContext as TypingContext
    from numba.core.typing.templates import Signature

_BATCH = 8 * vector.TILE_ROWS  # rows of a weight that are decoded at a time
FIELDS = 8
(CODES, TABLES, UNIT, RESIDUES, FACTORS, ROWS, BEFORE, SIGN_BIT) = range(FIELDS)
"""The fields of a weight in the argument `weights` of `table_products` and `table_tiles`."""

_serial, _parallel = compiler(), compiler(parallel=True)


@_serial
def table_products(
    weights: int, count: int, order: int, columns: int, x: int, m: int, out: int, as_integers: bool
) -> None:
    """Multiply x [m, columns], its columns in their own order, by several weights.

    All arrays are contiguous and passed by address, because a language model calls this hundreds of
    times for each token. `weights` int64 [count, FIELDS] has, for each weight, the addresses of its
    codes, tables, units, residues and factors, its rows, the rows of all weights before it, and its
    sign bit; `out` has [m, rows] for each. A unit fp32 [rows] is the value of a 1 in a row's table,
    divided by 65536; `order` int64 [columns] is the order of the columns in the tables' layout.
    Residues uint8 [rows, 16] and factors fp32 [rows, 2] are those of `integers.dot`, which is used
    where it can be if `as_integers`.
    """
    given = carray(pointer(x), (m, columns), np.float32)
    ordered, limbs, biases, scales = prepared(given, order, as_integers)
    listed = carray(pointer(weights), (count, FIELDS), np.int64)
    rows = listed[count - 1, ROWS] + listed[count - 1, BEFORE]
    products_of_rows(0, rows, listed, ordered, limbs, biases, scales, out)


@_serial
def prepared(given: np.ndarray, order: int, as_integers: bool) -> tuple[np.ndarray, ...]:
    """Return x in the tables' order; and its limbs, their biases and scales (`write_limbs`).

    A row of x that has limbs is undefined in the tables' order.
    """
    m, columns = given.shape
    indices = carray(pointer(order), (columns,), np.int64)
    ordered = np.empty((m, columns), np.float32)
    limbs = np.zeros((m, integers.size(columns) if as_integers else 0), np.uint8)
    biases = np.empty((m, integers.BIASES), np.int32)
    scales = np.empty(m, np.float32)
    for each in range(m):
        scales[each] = integers.write_limbs(given[each], limbs[each], biases[each])
        if scales[each] == 0:
            for column in range(columns):
                ordered[each, column] = given[each, indices[column]]
    return ordered, limbs, biases, scales


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
    listed = carray(pointer(weights), (count, FIELDS), np.int64)
    rows = listed[count - 1, ROWS] + listed[count - 1, BEFORE]
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
def products_of_rows(
    first: int,
    last: int,
    weights: np.ndarray,
    x: np.ndarray,
    limbs: np.ndarray,
    biases: np.ndarray,
    scales: np.ndarray,
    out: int,
) -> None:
    """Write the products with the rows from `first` to `last`, counted over all weights."""
    m, columns = x.shape
    steps, width = columns // vector.COLUMNS, columns // 2
    totals = np.empty(2, np.float32)
    for weight in weights:
        rows, before, sign_bit = weight[ROWS], weight[BEFORE], weight[SIGN_BIT]
        units = carray(pointer(weight[UNIT]), (rows,), np.float32)
        factors = carray(pointer(weight[FACTORS]), (rows, 2), np.float32)
        results = carray(pointer(out + 4 * m * before), (m, rows), np.float32)
        end = min(last - before, rows)
        for row in range(max(first - before, 0), end, 2):
            n = min(2, end - row)
            codes, table = weight[CODES] + row * width, weight[TABLES] + row * vector.COLUMNS
            residues = weight[RESIDUES] + row * (vector.COLUMNS // 2)
            for each in range(m):
                if scales[each] > 0:
                    integers.dots(
                        codes,
                        sign_bit,
                        residues,
                        _row_address(factors, row),
                        _row_address(limbs, each),
                        _row_address(biases, each),
                        width,
                        n == 2,
                        totals.ctypes.data,
                    )
                    for i in range(n):
                        results[each, row + i] = scales[each] * totals[i] * units[row + i]
                else:
                    for i in range(n):
                        total = vector.dot(
                            codes + i * width,
                            table + i * vector.COLUMNS,
                            _row_address(x, each),
                            steps,
                        )
                        results[each, row + i] = total * units[row + i]


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
    for weight in weights:
        codes, tables, rows, before = weight[CODES], weight[TABLES], weight[ROWS], weight[BEFORE]
        units = carray(pointer(weight[UNIT]), (rows,), np.float32)
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


@_serial
def _row_address(array: np.ndarray, row: int) -> int:
    address: int = array.ctypes.data + row * array.strides[0]
    return address
