"""A product of some rows of a weight with a panel of x, as vector code for numba's compiler.

Six rows times sixteen columns of sums stay in registers while the terms of one block are added:
each step loads two vectors of x and one float of each row. A BLAS does the same, but for weights
that it has to read from memory first. The terms of a block are added up before they meet those of
others: errors grow with the root of a block's length and that of their number, not of both.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from harness.mil.packed import emit

_intrinsic: Any = intrinsic
ROWS = 6
WIDTH = 16  # of a panel
BLOCK = 256  # terms of a block, which is how far the rows of a tile stand from each other

_LANES = 8
_FLOATS = ir.VectorType(ir.FloatType(), _LANES)
_BYTES = 4
_PLACES = [(row, start) for row in range(ROWS) for start in range(0, WIDTH, _LANES)]


@_intrinsic
def accumulate(typing: Any, tile: Any, panel: Any, sums: Any, count: Any) -> Any:
    """Add tile @ panel to `sums`: [ROWS, count] times [count, WIDTH], all fp32.

    Addresses: of the tile, whose rows are BLOCK floats apart, and of the others, contiguous.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
        emit_accumulate(builder, *values)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp, types.intp), generate


def emit_accumulate(builder: ir.IRBuilder, tile: Any, panel: Any, sums: Any, count: Any) -> None:
    """Emit what `accumulate` does."""
    add = emit.function(builder, f"llvm.fmuladd.v{_LANES}f32", _FLOATS, [_FLOATS] * 3)

    def step(number: Any, totals: list[Any]) -> list[Any]:
        term = emit.address(builder, tile, number, _BYTES)
        base = emit.address(builder, panel, number, _BYTES * WIDTH)
        vectors = {
            start: emit.load(builder, base, _FLOATS, _BYTES * start)
            for start in range(0, WIDTH, _LANES)
        }
        weights = []
        for row in range(ROWS):
            one = emit.load(builder, term, ir.FloatType(), _BYTES * BLOCK * row)
            first = builder.insert_element(
                ir.Constant(_FLOATS, ir.Undefined), one, ir.Constant(ir.IntType(32), 0)
            )
            weights.append(emit.shuffled(builder, first, None, [0] * _LANES))
        return [
            builder.call(add, [weights[row], vectors[start], total])
            for (row, start), total in zip(_PLACES, totals, strict=True)
        ]

    offsets = [_BYTES * (WIDTH * row + start) for row, start in _PLACES]
    zeros = [ir.Constant(_FLOATS, [0.0] * _LANES)] * len(offsets)
    for offset, total in zip(offsets, emit.loop(builder, count, zeros, step), strict=True):
        before = emit.load(builder, sums, _FLOATS, offset)
        emit.store(builder, builder.fadd(before, total), sums, offset)
