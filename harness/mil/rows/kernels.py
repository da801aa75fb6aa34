"""Executes row programs: a few instructions for each row of a fused step, compiled by numba.

A program is int64 [instructions, FIELDS]. Each instruction has an opcode, the number of elements
that it writes, and its operands: the result, `a` and `b`. An operand is the index of an array, a
number of bytes from the current row of this array, and for COPY a distance in elements. Array 0 is
the memory of the registers, which belongs to one row at a time. All elements are fp32.

Element-wise instructions compute what torch computes, and round as often. Sums and products are in
any order. NaN and infinities are kept.
"""

from __future__ import annotations

import numpy as np
from numba import prange
from numba.np.numpy_support import carray

from harness.mil.packed.compiler import (
    ANY_ORDER,
    IN_ORDER,
    compiler,
    divided,
    exp,
    of_rank,
    pointer,
    rank,
)

FIELDS = 12
(OPCODE, WIDTH, OUT, OUT_AT, OUT_STEP, A, A_AT, A_STEP, B, B_AT, COUNT, DISTANCE) = range(FIELDS)

(COPY, ADD, SUB, MUL, DIV, MAXIMUM, MINIMUM) = range(7)
"""COPY takes the steps of both operands into account; the others compute `a OP b`."""
(ABS, SQRT, RSQRT, EXP, LOG, EXP2, FLOOR, SIGMOID, SILU) = range(7, 16)
(SUM, MAX, MIN, SUM_SQUARE, SOFTMAX) = range(16, 21)
"""Over COUNT elements of `a`; all but SOFTMAX write one element."""
(DOTS, COMBINE, COMBINE_MORE) = range(21, 24)
"""Products of `a` with a matrix `b`, whose vectors are DISTANCE bytes apart.

DOTS writes the dot product with each of WIDTH vectors of COUNT elements. COMBINE writes the sum of
COUNT vectors of WIDTH elements, each times an element of `a`; COMBINE_MORE adds it to the result.
"""

_serial, _sums = compiler(fastmath=IN_ORDER), compiler(fastmath=ANY_ORDER)
_parallel = compiler(parallel=True, fastmath=IN_ORDER)

_ONE, _ZERO = np.float32(1), np.float32(0)


@_parallel
def run_rows(
    code: np.ndarray, offsets: np.ndarray, addresses: np.ndarray, floats: int, parts: int
) -> None:
    """Run a program for each row, in `parts` threads.

    `offsets` int64 [rows, arrays] are the bytes from the address of each array to its row;
    `addresses` int64 [arrays]; `floats` is the size of the registers' memory.
    """
    rows = len(offsets)
    if parts == 1:
        _run(0, rows, code, offsets, addresses, floats)
    else:
        for part in prange(parts):
            first, last = rows * part // parts, rows * (part + 1) // parts
            _run(first, last, code, offsets, addresses, floats)


@_serial
def _run(
    first: int, last: int, code: np.ndarray, offsets: np.ndarray, addresses: np.ndarray, floats: int
) -> None:
    registers = np.empty(floats, np.float32)
    bases = np.empty(len(addresses), np.int64)
    for row in range(first, last):
        for array in range(1, len(addresses)):
            bases[array] = addresses[array] + offsets[row, array]
        bases[0] = registers.ctypes.data
        for number in range(len(code)):
            line = code[number]
            opcode, width, count = line[OPCODE], line[WIDTH], line[COUNT]
            out, a = bases[line[OUT]] + line[OUT_AT], bases[line[A]] + line[A_AT]
            b = bases[line[B]] + line[B_AT]
            if opcode == COPY:
                _copy(width, out, line[OUT_STEP], a, line[A_STEP])
            elif opcode <= MINIMUM:
                _binary(opcode, width, out, a, b)
            elif opcode <= SILU:
                _unary(opcode, width, out, a)
            elif opcode == SOFTMAX:
                _softmax(width, out, a)
            elif opcode <= SUM_SQUARE:
                _reduce(opcode, count, out, a)
            elif opcode == DOTS:
                _dots(width, out, a, count, b, line[DISTANCE])
            else:
                _combine(opcode == COMBINE_MORE, width, out, a, count, b, line[DISTANCE])


@_serial
def _floats(address: int, count: int) -> np.ndarray:
    values: np.ndarray = carray(pointer(address), (count,), np.float32)
    return values


@_serial
def _copy(n: int, out: int, out_step: int, a: int, a_step: int) -> None:
    z, x = _floats(out, n * out_step), _floats(a, n * a_step + 1)
    if out_step == 1 and a_step == 0:
        value = x[0]
        for i in range(n):
            z[i] = value
    elif out_step == 1 and a_step == 1:
        for i in range(n):
            z[i] = x[i]
    else:
        for i in range(n):
            z[i * out_step] = x[i * a_step]


@_serial
def _binary(opcode: int, n: int, out: int, a: int, b: int) -> None:
    z, x, y = _floats(out, n), _floats(a, n), _floats(b, n)
    if opcode == ADD:
        for i in range(n):
            z[i] = x[i] + y[i]
    elif opcode == SUB:
        for i in range(n):
            z[i] = x[i] - y[i]
    elif opcode == MUL:
        for i in range(n):
            z[i] = x[i] * y[i]
    elif opcode == DIV:
        for i in range(n):
            z[i] = divided(x[i], y[i])
    elif opcode == MAXIMUM:
        for i in range(n):
            z[i] = x[i] if x[i] > y[i] or x[i] != x[i] else y[i]
    else:
        for i in range(n):
            z[i] = x[i] if x[i] < y[i] or x[i] != x[i] else y[i]


@_serial
def _unary(opcode: int, n: int, out: int, a: int) -> None:
    z, x = _floats(out, n), _floats(a, n)
    if opcode == ABS:
        for i in range(n):
            z[i] = abs(x[i])
    elif opcode == SQRT:
        for i in range(n):
            z[i] = np.sqrt(x[i])
    elif opcode == RSQRT:
        for i in range(n):
            z[i] = divided(_ONE, np.sqrt(x[i]))
    elif opcode == EXP:
        for i in range(n):
            z[i] = exp(x[i])
    elif opcode == LOG:
        for i in range(n):
            z[i] = np.log(x[i])
    elif opcode == EXP2:
        for i in range(n):
            z[i] = np.exp2(x[i])
    elif opcode == FLOOR:
        for i in range(n):
            z[i] = np.floor(x[i])
    elif opcode == SIGMOID:
        for i in range(n):
            z[i] = divided(_ONE, _ONE + exp(-x[i]))
    else:
        for i in range(n):
            z[i] = divided(x[i], _ONE + exp(-x[i]))


@_serial
def _reduce(opcode: int, n: int, out: int, a: int) -> None:
    z, x = _floats(out, 1), _floats(a, n)
    if opcode == SUM:
        z[0] = _sum(x)
    elif opcode == SUM_SQUARE:
        z[0] = _dot(x, x)
    elif _any_nan(x):
        z[0] = np.float32(np.nan)
    elif opcode == MAX:
        z[0] = _largest(x)
    else:
        z[0] = -_largest(-x)


@_serial
def _softmax(n: int, out: int, a: int) -> None:
    z, x = _floats(out, n), _floats(a, n)
    largest = _largest(x)
    for i in range(n):
        z[i] = exp(x[i] - largest)
    total = _sum(z)
    for i in range(n):
        z[i] = divided(z[i], total)


@_serial
def _largest(x: np.ndarray) -> np.float32:
    """Return the largest element; NaN counts as any value.

    The comparison is that of integers: that of floats has rules for NaN, and becomes no vector
    code.
    """
    largest = np.int32(-(1 << 31))
    for i in range(len(x)):
        ranked = rank(x[i])
        if ranked > largest:
            largest = ranked
    value: np.float32 = of_rank(largest)
    return value


@_serial
def _any_nan(x: np.ndarray) -> bool:
    found = 0
    for i in range(len(x)):
        found += x[i] != x[i]
    return found > 0


@_sums
def _sum(x: np.ndarray) -> np.float32:
    total = np.float32(0)
    for i in range(len(x)):
        total += x[i]
    return total


@_sums
def _dot(x: np.ndarray, y: np.ndarray) -> np.float32:
    total = np.float32(0)
    for i in range(len(x)):
        total += x[i] * y[i]
    return total


@_sums
def _dots(n: int, out: int, a: int, count: int, b: int, distance: int) -> None:
    """Write dot products, four at a time: one alone takes longer to begin than to add up."""
    z, x = _floats(out, n), _floats(a, count)
    four = n - n % 4
    for j in range(0, four, 4):
        first = b + j * distance
        y0, y1 = _floats(first, count), _floats(first + distance, count)
        y2, y3 = _floats(first + 2 * distance, count), _floats(first + 3 * distance, count)
        s0, s1, s2, s3 = _ZERO, _ZERO, _ZERO, _ZERO
        for k in range(count):
            s0 += x[k] * y0[k]
            s1 += x[k] * y1[k]
            s2 += x[k] * y2[k]
            s3 += x[k] * y3[k]
        z[j], z[j + 1], z[j + 2], z[j + 3] = s0, s1, s2, s3
    for j in range(four, n):
        z[j] = _dot(x, _floats(b + j * distance, count))


@_serial
def _combine(more: bool, n: int, out: int, a: int, count: int, b: int, distance: int) -> None:
    """Add the terms to the sum in groups of four: its error grows with the number of additions."""
    z, x = _floats(out, n), _floats(a, count)
    if not more:
        for i in range(n):
            z[i] = _ZERO
    four = count - count % 4
    for j in range(0, four, 4):
        first = b + j * distance
        y0, y1 = _floats(first, n), _floats(first + distance, n)
        y2, y3 = _floats(first + 2 * distance, n), _floats(first + 3 * distance, n)
        x0, x1, x2, x3 = x[j], x[j + 1], x[j + 2], x[j + 3]
        for i in range(n):
            z[i] += (x0 * y0[i] + x1 * y1[i]) + (x2 * y2[i] + x3 * y3[i])
    for j in range(four, count):
        y = _floats(b + j * distance, n)
        for i in range(n):
            z[i] += x[j] * y[i]
