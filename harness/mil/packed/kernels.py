"""Products with packed weights, and rows of them as fp32, compiled by numba for this machine.

Two forms of a weight: by *tables* (`harness.mil.packed.lookup`), for two codes to a byte and a
table to a row, and by *blocks*, for all others. Each gives the floats of a row in an order of its
own. Everything is summed in fp32, in any order.

Arrays, where not said otherwise: codes uint8 [rows, columns] or, two to a byte,
[rows, columns / 2]; tables uint8 [rows, 32]; scale and offset fp32 [row blocks, column blocks]; x
fp32 [m, columns]; out fp32 [m, rows].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, prange, types
from numba.extending import intrinsic

from harness.mil.packed import lookup, panel

VECTOR_CODE = "8dda86bbe4f5de0c9a6af06048930ea14f988d4d498fc7e07a2f3e30dbddc649"
"""The SHA-256 of `emit.py`, `lookup.py` and `panel.py`, whose code is part of what is compiled:
numba takes a kernel that it keeps for a stale one only when this very file has changed."""
_TILED = 8 * panel.ROWS  # rows that are decoded at a time
_ANY_ORDER = {"reassoc", "contract", "nsz"}  # of a sum; NaN and infinities stay what they are


def _compiler(parallel: bool = False) -> Any:
    """Return a decorator; the machine code is kept for the next process where it can be."""

    def compiled(function: Callable[..., Any]) -> Any:
        options: dict[str, Any] = {"nogil": True, "fastmath": _ANY_ORDER, "parallel": parallel}
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:  # no folder of numba's can be written to
            return njit(**options)(function)

    return compiled


_serial, _parallel = _compiler(), _compiler(parallel=True)
_intrinsic: Any = intrinsic


@_parallel
def table_products(
    codes: int,
    tables: int,
    unit: int,
    order: int,
    rows: int,
    columns: int,
    x: int,
    m: int,
    out: int,
    parts: int,
) -> None:
    """Multiply x [m, columns], its columns in their own order, by the weight.

    All arrays are contiguous, and given by their addresses, because a language model calls this
    hundreds of times for each token: `unit` fp32 [rows] is what a 1 in a row's table stands for,
    over 65536; `order` int64 [columns] is the order of the tables' form.
    """
    given = carray(_pointer(x), (m, columns), np.float32)
    places = carray(_pointer(order), (columns,), np.int64)
    ordered = np.empty((m, columns), np.float32)
    for each in range(m):
        for place in range(columns):
            ordered[each, place] = given[each, places[place]]
    if parts == 1:
        _table_products(0, rows, codes, tables, unit, rows, ordered, out)
    else:
        for part in prange(parts):
            first, last = rows * part // parts, rows * (part + 1) // parts
            _table_products(first, last, codes, tables, unit, rows, ordered, out)


@_parallel
def block_products(
    codes: Any, scale: Any, offset: Any, flip: int, rounds: bool, x: Any, out: Any, parts: int
) -> None:
    """Multiply; the other arguments as those of `expand_blocks`."""
    rows = codes.shape[0]
    if parts == 1:
        _block_products(0, rows, codes, scale, offset, flip, rounds, x, out)
    else:
        for part in prange(parts):
            first, last = rows * part // parts, rows * (part + 1) // parts
            _block_products(first, last, codes, scale, offset, flip, rounds, x, out)


@_parallel
def table_panels(
    codes: int,
    tables: int,
    unit: int,
    order: int,
    rows: int,
    columns: int,
    x: int,
    m: int,
    out: int,
    parts: int,
) -> None:
    """Multiply as `table_products`, for more rows of x: a weight is decoded once for them all."""
    panels = _panels(x, order, m, columns)
    if parts == 1:
        _table_panels(0, rows, codes, tables, unit, rows, panels, m, out)
    else:
        for part in prange(parts):
            first, last = rows * part // parts, rows * (part + 1) // parts
            _table_panels(first, last, codes, tables, unit, rows, panels, m, out)


@_parallel
def expand_blocks(
    codes: Any,
    scale: Any,
    offset: Any,
    flip: int,
    rounds: bool,
    start: int,
    tile: Any,
    parts: int,
) -> None:
    """Write rows from `start` on into `tile` [n, columns]; `rounds` to fp16.

    A signed code c stands as `c ^ flip`, as unsigned ones do with a `flip` of 0, less `flip`.
    """
    rows = tile.shape[0]
    if parts == 1:
        _expand_rows(0, rows, codes, scale, offset, flip, rounds, start, tile)
    else:
        for part in prange(parts):
            first, last = rows * part // parts, rows * (part + 1) // parts
            _expand_rows(first, last, codes, scale, offset, flip, rounds, start, tile)


@_serial
def _table_products(
    first: int, last: int, codes: int, tables: int, unit: int, rows: int, x: Any, out: int
) -> None:
    m, columns = x.shape
    units = carray(_pointer(unit), (rows,), np.float32)
    results = carray(_pointer(out), (m, rows), np.float32)
    steps = columns // lookup.COLUMNS
    for row in range(first, last):
        row_codes, table = codes + row * (columns // 2), tables + row * lookup.COLUMNS
        for each in range(m):
            total = lookup.dot(row_codes, table, _row_address(x, each), steps)
            results[each, row] = total * units[row]


@_serial
def _panels(x: int, order: int, m: int, columns: int) -> Any:
    """Cut x [m, columns] into panels of `panel.WIDTH` rows, the last one filled up with zeros."""
    given = carray(_pointer(x), (m, columns), np.float32)
    places = carray(_pointer(order), (columns,), np.int64)
    panels = np.zeros((-(-m // panel.WIDTH), columns, panel.WIDTH), np.float32)
    for each in range(m):
        for place in range(columns):
            panels[each // panel.WIDTH, place, each % panel.WIDTH] = given[each, places[place]]
    return panels


@_serial
def _table_panels(
    first: int,
    last: int,
    codes: int,
    tables: int,
    unit: int,
    rows: int,
    panels: Any,
    m: int,
    out: int,
) -> None:
    n_panels, columns, width = panels.shape
    units = carray(_pointer(unit), (rows,), np.float32)
    results = carray(_pointer(out), (m, rows), np.float32)
    tile = np.zeros((_TILED, panel.BLOCK), np.float32)
    sums = np.empty((n_panels, _TILED, width), np.float32)
    for start in range(first, last, _TILED):
        count = min(_TILED, last - start)
        sums[:] = 0
        for block in range(0, columns, panel.BLOCK):
            terms = min(panel.BLOCK, columns - block)
            for row in range(count):
                row_codes = codes + (start + row) * (columns // 2) + block // 2
                row_table = tables + (start + row) * lookup.COLUMNS
                steps = terms // lookup.COLUMNS
                lookup.expand(row_codes, row_table, _row_address(tile, row), steps)
            for each in range(n_panels):
                for row in range(0, count, panel.ROWS):
                    x = panels.ctypes.data + each * panels.strides[0] + block * panels.strides[1]
                    to = sums.ctypes.data + each * sums.strides[0] + row * sums.strides[1]
                    panel.accumulate(_row_address(tile, row), x, to, terms)
        for each in range(m):
            for row in range(count):
                total = sums[each // width, row, each % width]
                results[each, start + row] = total * units[start + row]


@_serial
def _expand_rows(
    first: int,
    last: int,
    codes: Any,
    scale: Any,
    offset: Any,
    flip: int,
    rounds: bool,
    start: int,
    tile: Any,
) -> None:
    for row in range(first, last):
        _expand_row(codes, start + row, scale, offset, flip, rounds, tile[row])


@_serial
def _block_products(
    first: int,
    last: int,
    codes: Any,
    scale: Any,
    offset: Any,
    flip: int,
    rounds: bool,
    x: Any,
    out: Any,
) -> None:
    per_scale, blocks = codes.shape[0] // scale.shape[0], scale.shape[1]
    width, columns = codes.shape[1], x.shape[1]
    size, flipped = width // blocks, np.uint8(flip)
    for row in range(first, last):
        for each in range(x.shape[0]):
            total = np.float32(0)
            for block in range(blocks):
                s = scale[row // per_scale, block]
                z = offset[row // per_scale, block] + np.float32(flip)
                start, end = block * size, (block + 1) * size
                part, low, high = codes[row, start:end], x[each, start:end], x[each, -width:]
                # loops from 0 on, in which no index can be negative: they become vector code
                if width == columns:
                    for at in range(size):
                        total += _value(part[at], flipped, z, s, rounds) * low[at]
                else:
                    high = high[start:end]
                    for at in range(size):
                        total += _value(part[at] & 15, flipped, z, s, rounds) * low[at]
                        total += _value(part[at] >> 4, flipped, z, s, rounds) * high[at]
            out[each, row] = total


@_serial
def _expand_row(
    codes: Any, row: int, scale: Any, offset: Any, flip: int, rounds: bool, out: Any
) -> None:
    """Write a row; of two codes to a byte all the low ones come first, then all the high ones."""
    place = row // (codes.shape[0] // scale.shape[0])
    width, blocks = codes.shape[1], scale.shape[1]
    size, flipped = width // blocks, np.uint8(flip)
    for block in range(blocks):
        s, z = scale[place, block], offset[place, block] + np.float32(flip)
        start, end = block * size, (block + 1) * size
        part, low, high = codes[row, start:end], out[start:end], out[-width:]
        if width == out.shape[0]:
            for at in range(size):
                low[at] = _value(part[at], flipped, z, s, rounds)
        else:
            high = high[start:end]
            for at in range(size):
                low[at] = _value(part[at] & 15, flipped, z, s, rounds)
                high[at] = _value(part[at] >> 4, flipped, z, s, rounds)


@_serial
def _value(code: int, flip: int, zero: float, scale: float, rounds: bool) -> Any:
    """Return what a code, as it stands, is worth; `flip` is in `zero` already."""
    value = (np.float32(np.int32(code ^ flip)) - zero) * scale
    rounded = _rounded(value)
    return rounded if rounds else value


@_intrinsic
def _rounded(typing: Any, value: Any) -> Any:
    """Round an fp32 to the nearest fp16."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
        return builder.fpext(builder.fptrunc(values[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.float32), generate


@_intrinsic
def _pointer(typing: Any, address: Any) -> Any:
    """Return an address as what `numba.carray` takes."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], ir.PointerType(ir.IntType(8)))

    return types.voidptr(types.intp), generate


@_serial
def _row_address(array: Any, row: int) -> int:
    return array.ctypes.data + row * array.strides[0]
