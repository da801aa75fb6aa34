"""Products of a row's 4-bit codes with x as integers, on processors with VNNI.

A row of x becomes integers of 31 bits times one power of two. Each integer is four *limbs*, digits
of 8 bits from -128 to 127. The processor multiplies the codes of a vector by limbs, and adds up the
products of four neighbours in 32 bits, which never overflow: the sums of each limb are exact. They
become floats when the limbs are put together.

A weight is `unit * (factor * (code - zero) + residue[code])`, with integers of 11 bits for the
factor and of 8 bits for the residue, which is what rounding to fp16 adds to a weight. A residue is
so small that two limbs of x are enough for it.

x loses what is smaller than 2**-30 of its largest element. Rows in which this could be seen, and
those with NaN or infinities, have no limbs: the caller multiplies them as floats.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types

from harness.mil.packed import vector
from harness.mil.packed.compiler import ANY_ORDER, compiler

if TYPE_CHECKING:
    from numba.core.typing.context import BaseContext as TypingContext
    from numba.core.typing.templates import Signature

LIMBS = 4
AHEAD = 4096
"""Bytes of codes that are fetched before they are read: twice as fast, if the memory is slow."""
RESIDUE_LIMBS = 2  # the highest ones
_SUMS = LIMBS + RESIDUE_LIMBS  # of a row
MAX_RANGE = np.float32(512)
"""Times the usual size of x's elements, the square of their roots' mean, which outliers hardly
change: a larger element would take too many of the bits."""
MAX_COLUMNS = 8192
"""Columns up to which a float holds the sum of a limb's products in a lane exactly."""


def _width() -> int:
    """Return the bytes of the widest vectors with dot products of bytes, 0 if there are none."""
    features = vector.features()
    if not vector.available() or "avx2" not in features:
        return 0
    if features >= {"avx512vnni", "avx512bw"}:
        return 64
    return 32 if "avxvnni" in features else 0


WIDTH = _width()
AVAILABLE = WIDTH > 0
STEP_BYTES = 2 * LIMBS * WIDTH
"""Bytes of the limbs of one step: for WIDTH low halves of bytes, then for the high halves."""
_SHUFFLES = {64: "llvm.x86.avx512.pshuf.b.512", 32: "llvm.x86.avx2.pshuf.b"}
_I8, _I32, _F32 = ir.IntType(8), ir.IntType(32), ir.FloatType()
_BYTES, _LANE = ir.VectorType(_I8, WIDTH or 64), ir.VectorType(_I8, vector.LANE)
_WORDS = ir.VectorType(_I32, (WIDTH or 64) // 4)
_FLOATS = ir.VectorType(_F32, (WIDTH or 64) // 4)


BIASES = LIMBS * WIDTH // 4
_serial = compiler(fastmath=ANY_ORDER)
_finite = compiler(fastmath={"nnan", "ninf", "nsz"})  # else a maximum becomes no vector code


@_serial
def size(columns: int) -> int:
    """Return the bytes of the limbs of a row of x, 0 if such a row has none."""
    if not AVAILABLE or columns < 2 * WIDTH or columns > MAX_COLUMNS:
        return 0
    return -(-columns // (2 * WIDTH)) * STEP_BYTES


@_serial
def write_limbs(x: np.ndarray, limbs: np.ndarray, biases: np.ndarray) -> np.float32:
    """Write the limbs of a row of x, and their sums in each lane.

    Return what a product counts, 65536 over the power of two; 0 if x has no limbs. `limbs` are zero
    at the call.
    """
    columns, total, roots = len(x), np.float32(0), np.float32(0)
    for i in range(columns):
        total += abs(x[i])
        roots += np.sqrt(abs(x[i]))
    if len(limbs) == 0 or not total < np.float32(1e25):
        return np.float32(0)
    largest = _largest(x)
    if largest < np.float32(1e-25) or largest > MAX_RANGE * (roots / np.float32(columns)) ** 2:
        return np.float32(0)
    exponent = 30 - math.frexp(largest)[1]
    power = np.float32(math.ldexp(1.0, exponent))
    digits = np.empty(columns, np.int32)
    for i in range(columns):
        digits[i] = (np.int32(np.rint(x[i] * power)) + 0x808080) ^ 0x808080  # each byte is signed
    last = columns // 2 - WIDTH
    for step in range(len(limbs) // STEP_BYTES):
        start = min(step * WIDTH, last)
        done = step * WIDTH - start
        for part in range(2 * LIMBS):
            of_part = digits[2 * start + part // LIMBS :]
            to = limbs[step * STEP_BYTES + part * WIDTH : step * STEP_BYTES + (part + 1) * WIDTH]
            for i in range(done, WIDTH):
                to[i] = of_part[2 * i] >> (8 * (part % LIMBS)) & 255
    _write_biases(limbs.ctypes.data, biases.ctypes.data, len(limbs) // STEP_BYTES)
    return np.float32(math.ldexp(65536.0, -exponent))


@_finite
def _largest(x: np.ndarray) -> np.float32:
    largest = np.float32(0)
    for i in range(len(x)):
        largest = max(largest, abs(x[i]))
    return largest


@_serial
def dots(
    codes: int,
    sign_bit: int,
    residues: int,
    factors: int,
    limbs: int,
    biases: int,
    width: int,
    pair: bool,
    out: int,
) -> None:
    """Write the sum of `(factor * (code - zero) + residue) * x` of one row, or of a pair of rows.

    x has `limbs` and `biases` (`write_limbs`). The arguments are addresses of arrays of the first
    row: codes uint8 [rows, width]; residues uint8 [rows, 16], 128 more than the residue of each
    code; factors fp32 [rows, 2], the factor and the zero; out fp32 [1 or 2]. `sign_bit` is 8 if
    codes are signed, and is inverted in each. A pair takes less time than two rows: each limb is
    loaded once.
    """
    steps = -(-width // WIDTH) if AVAILABLE else 0
    if pair:
        _two_dots(codes, sign_bit, residues, factors, limbs, biases, steps, width, out)
    else:
        _one_dot(codes, sign_bit, residues, factors, limbs, biases, steps, width, out)


def _dots_of(rows: int) -> Callable[..., Any]:
    """Return `dots` of a number of rows.

    Step number i reads WIDTH bytes of codes from the byte `i * WIDTH` on, but the last step ends
    with the row: the limbs of the codes that it reads again are zero.
    """

    def typed(
        typing: TypingContext,
        codes: types.Type,
        sign_bit: types.Type,
        residues: types.Type,
        factors: types.Type,
        limbs: types.Type,
        biases: types.Type,
        steps: types.Type,
        width: types.Type,
        out: types.Type,
    ) -> vector.Intrinsic:
        def generate(
            context: Any, builder: ir.IRBuilder, signature: Signature, values: list[ir.Value]
        ) -> ir.Value:
            if AVAILABLE:
                _emit_dots(builder, rows, *values)
            nothing: ir.Value = context.get_dummy_value()
            return nothing

        return types.void(*[types.intp] * 9), generate

    return vector.intrinsic(typed)


_one_dot, _two_dots = _dots_of(1), _dots_of(2)


@vector.intrinsic
def _write_biases(
    typing: TypingContext, limbs: types.Type, biases: types.Type, steps: types.Type
) -> vector.Intrinsic:
    """Write the sums of each limb in each lane, int32 [LIMBS, WIDTH / 4]."""

    def generate(
        context: Any, builder: ir.IRBuilder, signature: Signature, values: list[ir.Value]
    ) -> ir.Value:
        if AVAILABLE:
            _emit_biases(builder, *values)
        nothing: ir.Value = context.get_dummy_value()
        return nothing

    return types.void(types.intp, types.intp, types.intp), generate


def _emit_dots(
    builder: ir.IRBuilder,
    rows: int,
    codes: ir.Value,
    sign_bit: ir.Value,
    residues: ir.Value,
    factors: ir.Value,
    limbs: ir.Value,
    biases: ir.Value,
    steps: ir.Value,
    width: ir.Value,
    out: ir.Value,
) -> None:
    """Emit the code of `dots`."""
    lanes = [vector.load(builder, residues, _LANE, vector.LANE * row) for row in range(rows)]
    repeated = [i % vector.LANE for i in range(WIDTH)]
    tables = [vector.shuffled(builder, lane, None, repeated) for lane in lanes]
    signs = _splat(builder, builder.trunc(builder.mul(sign_bit, sign_bit.type(17)), _I8), _BYTES)
    starts = [builder.add(codes, builder.mul(width, width.type(row))) for row in range(rows)]
    last = builder.sub(width, width.type(WIDTH))

    def step(number: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
        at = builder.mul(number, number.type(WIDTH))
        at = builder.select(builder.icmp_signed("<", at, last), at, last)
        places = [builder.add(start, at) for start in starts]
        for place in places:
            _fetch(builder, builder.add(place, place.type(AHEAD)))
        both = [builder.xor(vector.load(builder, place, _BYTES), signs) for place in places]
        base, sums = vector.address(builder, limbs, number, STEP_BYTES), list(sums)
        for half in range(2):
            values = [_half(builder, pair, half) for pair in both]
            looked_up = [_looked_up(builder, *pair) for pair in zip(tables, values, strict=True)]
            for limb in range(LIMBS):
                x = vector.load(builder, base, _BYTES, WIDTH * (LIMBS * half + limb))
                for row in range(rows):
                    to = _SUMS * row + limb
                    sums[to] = _add_products(builder, sums[to], values[row], x)
                    if limb >= LIMBS - RESIDUE_LIMBS:
                        to += RESIDUE_LIMBS
                        sums[to] = _add_products(builder, sums[to], looked_up[row], x)
        return sums

    sums = vector.loop(builder, steps, [_words(0)] * (_SUMS * rows), step)
    of_limbs = [vector.load(builder, biases, _WORDS, WIDTH * limb) for limb in range(LIMBS)]
    for row in range(rows):
        of_row = sums[_SUMS * row : _SUMS * (row + 1)]
        factor, zero = (vector.load(builder, factors, _F32, 8 * row + at) for at in (0, 4))
        total = _total(builder, of_row, of_limbs, factor, zero)
        vector.store(builder, total, out, 4 * row)


def _half(builder: ir.IRBuilder, pairs: ir.Value, half: int) -> ir.Value:
    """Return the low or the high codes of bytes."""
    if half:
        words = builder.bitcast(pairs, _WORDS)
        pairs = builder.bitcast(builder.lshr(words, _words(4)), _BYTES)
    return builder.and_(pairs, ir.Constant(_BYTES, [15] * WIDTH))


def _looked_up(builder: ir.IRBuilder, table: ir.Value, values: ir.Value) -> ir.Value:
    shuffle = vector.function(builder, _SHUFFLES[WIDTH], _BYTES, [_BYTES, _BYTES])
    return builder.call(shuffle, [table, values])


def _total(
    builder: ir.IRBuilder,
    sums: list[ir.Value],
    biases: list[ir.Value],
    factor: ir.Value,
    zero: ir.Value,
) -> ir.Value:
    """Return the result of a row: its sums by limb, those of the residues last."""
    zeros = _splat(builder, builder.fneg(zero), _FLOATS)
    of_codes = [
        _fma(builder, zeros, builder.sitofp(bias, _FLOATS), builder.sitofp(total, _FLOATS))
        for bias, total in zip(biases, sums[:LIMBS], strict=True)
    ]
    rest = [
        builder.sitofp(builder.sub(total, builder.shl(bias, _words(7))), _FLOATS)
        for bias, total in zip(biases[-RESIDUE_LIMBS:], sums[LIMBS:], strict=True)
    ]
    scale = ir.Constant(_FLOATS, [256.0 ** (LIMBS - RESIDUE_LIMBS)] * _FLOATS.count)
    scaled = builder.fmul(_joined(builder, rest), scale)
    total = _fma(builder, _splat(builder, factor, _FLOATS), _joined(builder, of_codes), scaled)
    name = f"llvm.vector.reduce.fadd.v{_FLOATS.count}f32"
    reduce = vector.function(builder, name, _F32, [_F32, _FLOATS])
    start = ir.Constant(_F32, 0.0)
    return builder.call(reduce, [start, total], fastmath=("reassoc",))


def _emit_biases(builder: ir.IRBuilder, limbs: ir.Value, biases: ir.Value, steps: ir.Value) -> None:
    """Emit the code of `_write_biases`."""
    ones = ir.Constant(_BYTES, [1] * WIDTH)

    def step(number: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
        base, sums = vector.address(builder, limbs, number, STEP_BYTES), list(sums)
        for part in range(2 * LIMBS):
            x, limb = vector.load(builder, base, _BYTES, WIDTH * part), part % LIMBS
            sums[limb] = _add_products(builder, sums[limb], ones, x)
        return sums

    for limb, total in enumerate(vector.loop(builder, steps, [_words(0)] * LIMBS, step)):
        vector.store(builder, total, biases, WIDTH * limb)


def _joined(builder: ir.IRBuilder, limbs: list[ir.Value]) -> ir.Value:
    """Put limbs together, the lowest one first: each counts 256 times the one before."""
    total = limbs[-1]
    for limb in reversed(limbs[:-1]):
        total = _fma(builder, total, ir.Constant(_FLOATS, [256.0] * _FLOATS.count), limb)
    return total


def _fetch(builder: ir.IRBuilder, address: ir.Value) -> None:
    """Emit a hint that the memory at an address is read soon; it may be no memory of ours."""
    pointer = ir.PointerType(_I8)
    arguments = [pointer, _I32, _I32, _I32]
    fetch = vector.function(builder, "llvm.prefetch.p0", ir.VoidType(), arguments)
    to_read, to_all_caches, data = _I32(0), _I32(3), _I32(1)
    builder.call(fetch, [builder.inttoptr(address, pointer), to_read, to_all_caches, data])


def _fma(builder: ir.IRBuilder, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
    name = f"llvm.fma.v{_FLOATS.count}f32"
    return builder.call(vector.function(builder, name, _FLOATS, [_FLOATS] * 3), [x, y, z])


def _words(value: int) -> ir.Constant:
    return ir.Constant(_WORDS, [value] * _WORDS.count)


def _splat(builder: ir.IRBuilder, value: ir.Value, kind: ir.VectorType) -> ir.Value:
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, _I32(0))
    return vector.shuffled(builder, first, None, [0] * kind.count)


def _add_products(
    builder: ir.IRBuilder, sums: ir.Value, unsigned: ir.Value, signed: ir.Value
) -> ir.Value:
    """Add to each 32-bit sum the products of four unsigned bytes with four signed ones."""
    name = f"llvm.x86.avx512.vpdpbusd.{8 * WIDTH}"
    if llvm.llvm_version_info[0] >= 22:
        multiply = vector.function(builder, name, _WORDS, [_WORDS, _BYTES, _BYTES])
        return builder.call(multiply, [sums, unsigned, signed])
    multiply = vector.function(builder, name, _WORDS, [_WORDS] * 3)
    given = (builder.bitcast(each, _WORDS) for each in (unsigned, signed))
    return builder.call(multiply, [sums, *given])
