"""Vector code for numba's compiler: sixteen table lookups at once, and products of small tiles.

*Lookup.* A row of 4-bit codes is read 16 bytes, that is 32 codes, at a time. The processor's byte
shuffle takes a 16-bit integer for each code from the row's table of 16 low bytes and 16 high bytes.
Pairs of these integers fill 32-bit lanes: shifted up, or masked, each is an integer times 65536,
which a float holds exactly. The floats of 32 columns therefore have the order `ORDER`, not the
columns' own; the caller puts the other operand into that order.

*Tiles.* Six rows of a weight times sixteen rows of x are summed in registers over the terms of one
block: each step loads two vectors of x and one float of each row of the weight. AVX-512 has twice
as many registers, of twice the size: twelve rows times thirty-two. The terms of a block are summed
before they are added to other blocks. The error of a sum then grows with the root of a block's
length plus the root of the number of blocks, not with the root of their product.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import config as numba_config
from numba.extending import intrinsic as numba_intrinsic

if TYPE_CHECKING:
    from numba.core.typing.context import BaseContext as TypingContext
    from numba.core.typing.templates import Signature

Intrinsic = tuple[Any, Callable[..., ir.Value]]
"""The signature of an intrinsic, and a function that emits its code."""

intrinsic: Callable[[Callable[..., Intrinsic]], Callable[..., Any]] = numba_intrinsic

_CONFIG: Any = numba_config  # numba defines its names at import
COLUMNS = 32  # of a weight that one step of a lookup reads
BYTES = 16  # of their codes
LANE = 16  # bytes within which a shuffle works
BLOCK = 256  # terms of a block, and floats from one row of a weight's tile to the next

_I8, _I32, _I64 = (ir.IntType(bits) for bits in (8, 32, 64))
_F32 = ir.FloatType()


@dataclass(frozen=True)
class _Shuffle:
    """A byte shuffle: the processor's feature for it ("": none), its LLVM name, and its bytes."""

    feature: str
    name: str
    width: int


_AVX2 = _Shuffle("avx2", "llvm.x86.avx2.pshuf.b", 32)
_SSSE3 = _Shuffle("ssse3", "llvm.x86.ssse3.pshuf.b.128", 16)
_X86, _ARM = (_AVX2, _SSSE3), (_Shuffle("", "llvm.aarch64.neon.tbl1.v16i8", 16),)
_SHUFFLES = {"x86_64": _X86, "amd64": _X86, "arm64": _ARM, "aarch64": _ARM}
"""The shuffles of each architecture, as LLVM names it; the best one first."""
_WITHOUT = {"default": ("ssse3", "avx"), "avx2": ("avx512", "avxvnni")}
"""The beginnings of features' names that each value of ATEN_CPU_CAPABILITY keeps torch from."""


def features() -> frozenset[str]:
    """Return LLVM's names of the processor's features, without those that torch must not use."""
    try:
        found = dict(llvm.get_host_cpu_features())
    except RuntimeError:  # LLVM does not know this processor
        return frozenset()
    without = _WITHOUT.get(os.environ.get("ATEN_CPU_CAPABILITY", "").lower(), ())
    return frozenset(n for n, has in found.items() if has and not n.startswith(without))


_TILE_LANES, TILE_ROWS = (16, 12) if "avx512f" in features() else (8, 6)  # rows of a weight
TILE_WIDTH = 2 * _TILE_LANES  # rows of x
_OURS = _SHUFFLES.get(str(llvm.get_process_triple()).partition("-")[0], ())
_BEST = next((one for one in _OURS if not one.feature or one.feature in features()), None)
_SHUFFLE, _WIDTH = (_BEST.name, _BEST.width) if _BEST else ("", 16)
_FLOATS = ir.VectorType(_F32, _WIDTH // 4)
_N_VECTORS = COLUMNS * 4 // _WIDTH


def available() -> bool:
    """Return whether this machine has the shuffle, and numba compiles for this machine."""
    return _BEST is not None and not (_CONFIG.CPU_NAME or _CONFIG.CPU_FEATURES)


def _order(width: int) -> list[int]:
    """Return the order of 32 columns in the result of `_floats`, for vectors of `width` bytes."""
    lanes = width // LANE
    return [
        2 * (8 * half + 2 * pair + odd) + vector * lanes + lane
        for vector in range(2 // lanes)
        for half in range(2)
        for odd in range(2)
        for lane in range(lanes)
        for pair in range(4)
    ]


ORDER = _order(_WIDTH)


@intrinsic
def dot(
    typing: TypingContext, codes: types.Type, table: types.Type, x: types.Type, count: types.Type
) -> Intrinsic:
    """Sum table[code] * x over `count` steps of 32 columns, times 65536.

    The arguments are the addresses of the codes, of the table (32 bytes), and of x, fp32 in the
    order `ORDER`.
    """

    def generate(
        context: Any, builder: ir.IRBuilder, signature: Signature, values: list[ir.Value]
    ) -> ir.Value:
        return emit_dot(builder, *values)

    return types.float32(types.intp, types.intp, types.intp, types.intp), generate


@intrinsic
def expand(
    typing: TypingContext, codes: types.Type, table: types.Type, out: types.Type, count: types.Type
) -> Intrinsic:
    """Write table[code] * 65536 as fp32 for `count` times 32 codes, in the order `ORDER`.

    The arguments are the addresses of the codes, of the table (32 bytes), and of the result.
    """

    def generate(
        context: Any, builder: ir.IRBuilder, signature: Signature, values: list[ir.Value]
    ) -> ir.Value:
        emit_expand(builder, *values)
        nothing: ir.Value = context.get_dummy_value()
        return nothing

    return types.void(types.intp, types.intp, types.intp, types.intp), generate


def emit_dot(
    builder: ir.IRBuilder, codes: ir.Value, table: ir.Value, x: ir.Value, count: ir.Value
) -> ir.Value:
    """Emit the code of `dot`; return the sum."""
    add = function(builder, f"llvm.fmuladd.v{_WIDTH // 4}f32", _FLOATS, [_FLOATS] * 3)

    def step(number: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
        floats = _floats(builder, address(builder, codes, number, BYTES), tables)
        base = address(builder, x, number, 4 * COLUMNS)
        parts = [load(builder, base, _FLOATS, _WIDTH * i) for i in range(_N_VECTORS)]
        return [builder.call(add, each) for each in zip(floats, parts, sums, strict=True)]

    tables = _tables(builder, table)
    zeros = [ir.Constant(_FLOATS, [0.0] * (_WIDTH // 4))] * _N_VECTORS
    sums = loop(builder, count, zeros, step)
    while len(sums) > 1:
        sums = [builder.fadd(a, b) for a, b in zip(sums[::2], sums[1::2], strict=True)]
    total = function(builder, f"llvm.vector.reduce.fadd.v{_WIDTH // 4}f32", _F32, [_F32, _FLOATS])
    return builder.call(total, [ir.Constant(_F32, 0.0), sums[0]], fastmath=("reassoc",))


def emit_expand(
    builder: ir.IRBuilder, codes: ir.Value, table: ir.Value, out: ir.Value, count: ir.Value
) -> None:
    """Emit the code of `expand`."""

    def step(number: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
        floats = _floats(builder, address(builder, codes, number, BYTES), tables)
        base = address(builder, out, number, 4 * COLUMNS)
        for index, vector in enumerate(floats):
            store(builder, vector, base, _WIDTH * index)
        return []

    tables = _tables(builder, table)
    loop(builder, count, [], step)


def _tables(builder: ir.IRBuilder, table: ir.Value) -> list[ir.Value]:
    """Load the low and the high bytes, each repeated in every lane of a vector."""
    lane = ir.VectorType(_I8, LANE)
    indices = [index % LANE for index in range(_WIDTH)]
    return [
        shuffled(builder, load(builder, table, lane, start), None, indices) for start in (0, LANE)
    ]


def _floats(builder: ir.IRBuilder, address: ir.Value, tables: list[ir.Value]) -> list[ir.Value]:
    """Return the floats of the 32 codes at an address."""
    lane, whole = ir.VectorType(_I8, LANE), ir.VectorType(_I8, _WIDTH)
    words = ir.VectorType(_I32, _WIDTH // 4)
    shuffle = function(builder, _SHUFFLE, whole, [whole, whole])
    low = load(builder, address, lane)
    high = builder.lshr(low, ir.Constant(lane, [4] * LANE))
    vectors = [low, high]
    if _WIDTH > LANE:
        vectors = [shuffled(builder, low, high, list(range(_WIDTH)))]
    floats = []
    for vector in vectors:
        index = builder.and_(vector, ir.Constant(whole, [15] * _WIDTH))
        lows, highs = (builder.call(shuffle, [table, index]) for table in tables)
        for half in range(2):
            pairs = builder.bitcast(shuffled(builder, lows, highs, _interleaved(half)), words)
            even = builder.shl(pairs, ir.Constant(words, [16] * (_WIDTH // 4)))
            odd = builder.and_(pairs, ir.Constant(words, [0xFFFF0000] * (_WIDTH // 4)))
            floats += [builder.sitofp(integers, _FLOATS) for integers in (even, odd)]
    return floats


def _interleaved(half: int) -> list[int]:
    """Return the indices that interleave the bytes of two vectors, for one half of every lane."""
    return [
        index
        for lane in range(0, _WIDTH, LANE)
        for byte in range(lane + 8 * half, lane + 8 * half + 8)
        for index in (byte, _WIDTH + byte)
    ]


_TILE_FLOATS = ir.VectorType(ir.FloatType(), _TILE_LANES)
_FLOAT_BYTES = 4
_TILE_VECTORS = [
    (row, start) for row in range(TILE_ROWS) for start in range(0, TILE_WIDTH, _TILE_LANES)
]


@intrinsic
def accumulate(
    typing: TypingContext,
    weight_tile: types.Type,
    x_tile: types.Type,
    sums: types.Type,
    count: types.Type,
) -> Intrinsic:
    """Add `weight_tile @ x_tile` to `sums`: [TILE_ROWS, count] times [count, TILE_WIDTH], all fp32.

    The arguments are addresses. The rows of `weight_tile` are BLOCK floats apart, the other
    arrays are contiguous.
    """

    def generate(
        context: Any, builder: ir.IRBuilder, signature: Signature, values: list[ir.Value]
    ) -> ir.Value:
        emit_accumulate(builder, *values)
        nothing: ir.Value = context.get_dummy_value()
        return nothing

    return types.void(types.intp, types.intp, types.intp, types.intp), generate


def emit_accumulate(
    builder: ir.IRBuilder, weight_tile: ir.Value, x_tile: ir.Value, sums: ir.Value, count: ir.Value
) -> None:
    """Emit the code of `accumulate`."""
    add = function(builder, f"llvm.fmuladd.v{_TILE_LANES}f32", _TILE_FLOATS, [_TILE_FLOATS] * 3)

    def step(number: ir.Value, totals: list[ir.Value]) -> list[ir.Value]:
        term = address(builder, weight_tile, number, _FLOAT_BYTES)
        base = address(builder, x_tile, number, _FLOAT_BYTES * TILE_WIDTH)
        vectors = {
            start: load(builder, base, _TILE_FLOATS, _FLOAT_BYTES * start)
            for start in range(0, TILE_WIDTH, _TILE_LANES)
        }
        weights = []
        for row in range(TILE_ROWS):
            one = load(builder, term, ir.FloatType(), _FLOAT_BYTES * BLOCK * row)
            first = builder.insert_element(
                ir.Constant(_TILE_FLOATS, ir.Undefined), one, ir.Constant(ir.IntType(32), 0)
            )
            weights.append(shuffled(builder, first, None, [0] * _TILE_LANES))
        return [
            builder.call(add, [weights[row], vectors[start], total])
            for (row, start), total in zip(_TILE_VECTORS, totals, strict=True)
        ]

    offsets = [_FLOAT_BYTES * (TILE_WIDTH * row + start) for row, start in _TILE_VECTORS]
    zeros = [ir.Constant(_TILE_FLOATS, [0.0] * _TILE_LANES)] * len(offsets)
    for offset, total in zip(offsets, loop(builder, count, zeros, step), strict=True):
        before = load(builder, sums, _TILE_FLOATS, offset)
        store(builder, builder.fadd(before, total), sums, offset)


def loop(
    builder: ir.IRBuilder,
    count: ir.Value,
    first: list[ir.Value],
    step: Callable[[ir.Value, list[ir.Value]], list[ir.Value]],
) -> list[ir.Value]:
    """Emit a loop from 0 to `count`; each step takes the values of the step before it.

    Return the values of the last step.
    """
    before = builder.block
    body, after = builder.append_basic_block("step"), builder.append_basic_block("done")
    builder.cbranch(builder.icmp_signed(">", count, _I64(0)), body, after)
    builder.position_at_end(body)
    number = builder.phi(_I64)
    number.add_incoming(_I64(0), before)
    values = [builder.phi(value.type) for value in first]
    results = step(number, values)
    following = builder.add(number, _I64(1))
    number.add_incoming(following, body)
    for value, start, result in zip(values, first, results, strict=True):
        value.add_incoming(start, before)
        value.add_incoming(result, body)
    builder.cbranch(builder.icmp_signed("<", following, count), body, after)
    builder.position_at_end(after)
    last = [builder.phi(value.type) for value in first]
    for value, start, result in zip(last, first, results, strict=True):
        value.add_incoming(start, before)
        value.add_incoming(result, body)
    return last


def function(
    builder: ir.IRBuilder, name: str, result: ir.Type, arguments: list[ir.Type]
) -> ir.Function:
    """Return one of LLVM's own functions, declared once in a module."""
    module = builder.module
    return module.globals.get(name) or ir.Function(module, ir.FunctionType(result, arguments), name)


def address(builder: ir.IRBuilder, base: ir.Value, number: ir.Value, size: int) -> ir.Value:
    """Emit the address of an element of an array; each element has `size` bytes."""
    return builder.add(base, builder.mul(number, _I64(size)))


def load(builder: ir.IRBuilder, address: ir.Value, kind: ir.Type, offset: int = 0) -> ir.Value:
    """Emit a load from `offset` bytes after an address, aligned or not."""
    location = builder.add(address, _I64(offset))
    return builder.load(builder.inttoptr(location, ir.PointerType(kind)), align=1)


def store(builder: ir.IRBuilder, value: ir.Value, address: ir.Value, offset: int = 0) -> None:
    """Emit a store `offset` bytes after an address, aligned or not."""
    location = builder.add(address, _I64(offset))
    builder.store(value, builder.inttoptr(location, ir.PointerType(value.type)), align=1)


def shuffled(
    builder: ir.IRBuilder, first: ir.Value, second: ir.Value | None, indices: list[int]
) -> ir.Value:
    """Emit a vector of the elements of two vectors, or of one, at these indices."""
    other = ir.Constant(first.type, ir.Undefined) if second is None else second
    mask = ir.Constant(ir.VectorType(_I32, len(indices)), indices)
    return builder.shuffle_vector(first, other, mask)
