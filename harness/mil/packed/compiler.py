"""Compiles functions of numbers and addresses to machine code, which the next process reuses.

Here are also functions of one or two floats that become vector code in a loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from llvmlite import ir
from numba import njit, types

from harness.mil.packed import vector

if TYPE_CHECKING:
    from numba.core.base import BaseContext as Target
    from numba.core.typing.context import BaseContext as TypingContext
    from numba.core.typing.templates import Signature

Kernel = TypeVar("Kernel", bound=Callable[..., Any])
ANY_ORDER = {"reassoc", "contract", "nsz"}  # of a sum; NaN and infinities are kept
IN_ORDER = {"contract"}
_ROOM = Path(__file__).parents[1]
_SOURCES = sorted([*_ROOM.glob("packed/*.py"), *_ROOM.glob("rows/*.py")])
_FEATURES = " ".join(sorted(vector.features()))
_MADE_OF = [path.read_bytes() for path in _SOURCES] + [_FEATURES.encode()]
_CODE = sha256(b"".join(_MADE_OF)).hexdigest()[:16]


def compiler(
    *, parallel: bool = False, fastmath: set[str] = ANY_ORDER
) -> Callable[[Kernel], Kernel]:
    """Return a decorator that compiles, and caches the machine code for the next process.

    `fastmath` are LLVM's permissions for arithmetic.

    numba compiles again when the file of a kernel has changed. The other files of the kernels'
    folders are part of the machine code too, and so are the features of the processor that
    `vector.features` allows. Therefore a kernel's name, and with it the name of the cached file,
    ends with a hash of them all.
    """

    def compiled(function: Kernel) -> Kernel:
        options: dict[str, Any] = {"nogil": True, "fastmath": fastmath, "parallel": parallel}
        function.__qualname__ += f"_{_CODE}"
        try:
            made: Kernel = njit(cache=True, **options)(function)
        except RuntimeError:  # numba cannot write to any of its folders
            made = njit(**options)(function)
        return made

    return compiled


@vector.intrinsic
def pointer(typing: TypingContext, address: types.Type) -> vector.Intrinsic:
    """Convert an address to the pointer that `numba.carray` takes."""

    def generate(
        context: Target, builder: ir.IRBuilder, signature: Signature, values: list[ir.Value]
    ) -> ir.Value:
        return builder.inttoptr(values[0], ir.PointerType(ir.IntType(8)))

    return types.voidptr(types.intp), generate


_LOG2_E, _LN2_HIGH = np.float32(1 / math.log(2)), np.float32(355 / 512)
_LN2_LOW = np.float32(math.log(2) - 355 / 512)
_TO_INTEGER = np.float32(3 << 22)  # adding it rounds to an integer, which is in the low bits
_TO_INTEGER_BITS = int(_TO_INTEGER.view(np.int32))
_I32 = ir.IntType(32)
_LOWEST, _HIGHEST = np.float32(-104.0), np.float32(89.0)  # beyond, exp is 0 or infinite
_ONE, _HALF = np.float32(1), np.float32(0.5)
_C3, _C4, _C5, _C6, _C7 = (np.float32(1 / math.factorial(n)) for n in range(3, 8))
_exact = compiler(fastmath=IN_ORDER)


@_exact
def exp(x: np.float32) -> np.float32:
    """Return e to the power of x: a power of two times a series in the rest."""
    if x < _LOWEST:
        x = _LOWEST
    if x > _HIGHEST:
        x = _HIGHEST
    shifted = x * _LOG2_E + _TO_INTEGER
    whole = shifted - _TO_INTEGER
    r = (x - whole * _LN2_HIGH) - whole * _LN2_LOW
    series = ((((_C7 * r + _C6) * r + _C5) * r + _C4) * r + _C3) * r + _HALF
    series = (series * r + _ONE) * r + _ONE
    value: np.float32 = _scaled(series, shifted)
    return value


@vector.intrinsic
def _scaled(typing: TypingContext, value: types.Type, shifted: types.Type) -> vector.Intrinsic:
    """Multiply by 2 to the power of an integer, which is given with `_TO_INTEGER` added to it."""

    def generate(
        context: Any, builder: ir.IRBuilder, signature: Signature, values: list[ir.Value]
    ) -> ir.Value:
        power = builder.sub(builder.bitcast(values[1], _I32), _I32(_TO_INTEGER_BITS))
        half = builder.ashr(power, _I32(1))  # in two parts: the power itself may be no float
        result = values[0]
        for part in (half, builder.sub(power, half)):
            bits = builder.shl(builder.add(part, _I32(127)), _I32(23))
            result = builder.fmul(result, builder.bitcast(bits, ir.FloatType()))
        return result

    return types.float32(types.float32, types.float32), generate


@vector.intrinsic
def rank(typing: TypingContext, value: types.Type) -> vector.Intrinsic:
    """Return an integer for a float; the order of the integers is that of the floats."""

    def generate(
        context: Any, builder: ir.IRBuilder, signature: Signature, values: list[ir.Value]
    ) -> ir.Value:
        return _reflected(builder, builder.bitcast(values[0], _I32))

    return types.int32(types.float32), generate


@vector.intrinsic
def of_rank(typing: TypingContext, rank: types.Type) -> vector.Intrinsic:
    """Return the float of a rank."""

    def generate(
        context: Any, builder: ir.IRBuilder, signature: Signature, values: list[ir.Value]
    ) -> ir.Value:
        return builder.bitcast(_reflected(builder, values[0]), ir.FloatType())

    return types.float32(types.int32), generate


def _reflected(builder: ir.IRBuilder, bits: ir.Value) -> ir.Value:
    """Reverse the order of negative numbers: invert all bits but the sign."""
    negative = builder.ashr(bits, _I32(31))
    return builder.xor(bits, builder.and_(negative, _I32((1 << 31) - 1)))


@vector.intrinsic
def divided(typing: TypingContext, x: types.Type, y: types.Type) -> vector.Intrinsic:
    """Divide as IEEE 754 does; numba's own division tests for zero, and becomes no vector code."""

    def generate(
        context: Any, builder: ir.IRBuilder, signature: Signature, values: list[ir.Value]
    ) -> ir.Value:
        return builder.fdiv(*values)

    return types.float32(types.float32, types.float32), generate
