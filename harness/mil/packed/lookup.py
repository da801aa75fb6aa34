"""Sixteen table lookups in one instruction, as vector code for numba's compiler.

A row of 4-bit codes is read 16 bytes, 32 codes, at a time. Each code picks a 16-bit integer from
the row's table, 16 low bytes and 16 high bytes, by the byte shuffle that the processor has. Pairs
of those integers stand in 32-bit lanes: shifted up, or masked, each is an integer times 65536,
which becomes a float exactly. So the floats of 32 columns come in the order `ORDER`, not in the
columns' own; whoever multiplies puts the other side in that order.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import config as numba_config
from numba.extending import intrinsic

from harness.mil.packed import emit

_intrinsic: Any = intrinsic
_CONFIG: Any = numba_config  # whose names are made at import
COLUMNS = 32  # that one step reads
BYTES = 16  # in which they stand
LANE = 16  # bytes within which a shuffle works

_I8, _I32, _I64 = (ir.IntType(bits) for bits in (8, 32, 64))
_F32 = ir.FloatType()


@dataclass(frozen=True)
class _Shuffle:
    """A byte shuffle: the processor's feature ("": all have it), its name in LLVM, bytes."""

    feature: str
    name: str
    width: int


_OF_X86 = (
    _Shuffle("avx2", "llvm.x86.avx2.pshuf.b", 32),
    _Shuffle("ssse3", "llvm.x86.ssse3.pshuf.b.128", 16),
)
_OF_ARM = (_Shuffle("", "llvm.aarch64.neon.tbl1.v16i8", 16),)
_SHUFFLES = {"x86_64": _OF_X86, "AMD64": _OF_X86, "arm64": _OF_ARM, "aarch64": _OF_ARM}
"""By machine, the best one first."""


def _best() -> _Shuffle | None:
    try:
        features = dict(llvm.get_host_cpu_features())
    except RuntimeError:  # LLVM does not know
        features = {}
    of_machine = _SHUFFLES.get(platform.machine(), ())
    return next((s for s in of_machine if not s.feature or features.get(s.feature)), None)


_BEST = _best()
_SHUFFLE, _WIDTH = (_BEST.name, _BEST.width) if _BEST else ("", 16)
_FLOATS = ir.VectorType(_F32, _WIDTH // 4)
_N_VECTORS = COLUMNS * 4 // _WIDTH


def available() -> bool:
    """Whether this machine has the shuffle, and numba compiles for this machine."""
    compiles_for_another = _CONFIG.CPU_NAME or _CONFIG.CPU_FEATURES
    return _BEST is not None and not compiles_for_another


def _order(width: int) -> list[int]:
    """Return the columns of 32 in the order in which `_floats` gives them, `width` bytes wide."""
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


@_intrinsic
def dot(typing: Any, codes: Any, table: Any, x: Any, count: Any) -> Any:
    """Sum table[code] * x over `count` steps of 32 columns, times 65536.

    Addresses: of the codes, of the table (32 bytes), and of x, fp32 in the order `ORDER`.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
        return emit_dot(builder, *values)

    return types.float32(types.intp, types.intp, types.intp, types.intp), generate


@_intrinsic
def expand(typing: Any, codes: Any, table: Any, out: Any, count: Any) -> Any:
    """Write table[code] * 65536, `count` times 32 of them in the order `ORDER`, as fp32.

    Addresses: of the codes, of the table (32 bytes), and of what is written.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
        emit_expand(builder, *values)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp, types.intp), generate


def emit_dot(builder: ir.IRBuilder, codes: Any, table: Any, x: Any, count: Any) -> Any:
    """Emit what `dot` does; return the sum."""
    add = emit.function(builder, f"llvm.fmuladd.v{_WIDTH // 4}f32", _FLOATS, [_FLOATS] * 3)

    def step(number: Any, sums: list[Any]) -> list[Any]:
        floats = _floats(builder, emit.address(builder, codes, number, BYTES), tables)
        base = emit.address(builder, x, number, 4 * COLUMNS)
        parts = [emit.load(builder, base, _FLOATS, _WIDTH * i) for i in range(_N_VECTORS)]
        return [builder.call(add, each) for each in zip(floats, parts, sums, strict=True)]

    tables = _tables(builder, table)
    zeros = [ir.Constant(_FLOATS, [0.0] * (_WIDTH // 4))] * _N_VECTORS
    sums = emit.loop(builder, count, zeros, step)
    while len(sums) > 1:
        sums = [builder.fadd(a, b) for a, b in zip(sums[::2], sums[1::2], strict=True)]
    total = emit.function(
        builder, f"llvm.vector.reduce.fadd.v{_WIDTH // 4}f32", _F32, [_F32, _FLOATS]
    )
    return builder.call(total, [ir.Constant(_F32, 0.0), sums[0]], fastmath=("reassoc",))


def emit_expand(builder: ir.IRBuilder, codes: Any, table: Any, out: Any, count: Any) -> None:
    """Emit what `expand` does."""

    def step(number: Any, sums: list[Any]) -> list[Any]:
        floats = _floats(builder, emit.address(builder, codes, number, BYTES), tables)
        base = emit.address(builder, out, number, 4 * COLUMNS)
        for index, vector in enumerate(floats):
            emit.store(builder, vector, base, _WIDTH * index)
        return []

    tables = _tables(builder, table)
    emit.loop(builder, count, [], step)


def _tables(builder: ir.IRBuilder, table: Any) -> list[Any]:
    """Load the low and the high bytes, each repeated in every lane of a vector."""
    lane = ir.VectorType(_I8, LANE)
    places = [index % LANE for index in range(_WIDTH)]
    return [
        emit.shuffled(builder, emit.load(builder, table, lane, start), None, places)
        for start in (0, LANE)
    ]


def _floats(builder: ir.IRBuilder, address: Any, tables: list[Any]) -> list[Any]:
    """Return the floats of the 32 codes at an address."""
    lane, whole = ir.VectorType(_I8, LANE), ir.VectorType(_I8, _WIDTH)
    words = ir.VectorType(_I32, _WIDTH // 4)
    shuffle = emit.function(builder, _SHUFFLE, whole, [whole, whole])
    low = emit.load(builder, address, lane)
    high = builder.lshr(low, ir.Constant(lane, [4] * LANE))
    vectors = [low, high]
    if _WIDTH > LANE:
        vectors = [emit.shuffled(builder, low, high, list(range(_WIDTH)))]
    floats = []
    for vector in vectors:
        index = builder.and_(vector, ir.Constant(whole, [15] * _WIDTH))
        lows, highs = (builder.call(shuffle, [table, index]) for table in tables)
        for half in range(2):
            pairs = builder.bitcast(emit.shuffled(builder, lows, highs, _interleaved(half)), words)
            even = builder.shl(pairs, ir.Constant(words, [16] * (_WIDTH // 4)))
            odd = builder.and_(pairs, ir.Constant(words, [0xFFFF0000] * (_WIDTH // 4)))
            floats += [builder.sitofp(integers, _FLOATS) for integers in (even, odd)]
    return floats


def _interleaved(half: int) -> list[int]:
    """Return the places of bytes of two vectors in turn: one half of every lane."""
    return [
        place
        for lane in range(0, _WIDTH, LANE)
        for byte in range(lane + 8 * half, lane + 8 * half + 8)
        for place in (byte, _WIDTH + byte)
    ]
