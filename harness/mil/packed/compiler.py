"""Compiles functions of numbers and addresses to machine code, which the next process reuses."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from llvmlite import ir
from numba import njit, types

from harness.mil.packed import vector

if TYPE_CHECKING:
    from numba.core.base import BaseContext as Target
    from numba.core.typing.context import BaseContext as TypingContext
    from numba.core.typing.templates import Signature

Kernel = TypeVar("Kernel", bound=Callable[..., Any])
ANY_ORDER = {"reassoc", "contract", "nsz"}  # of a sum; NaN and infinities are kept
_SOURCES = sorted(Path(__file__).parent.glob("*.py"))
_CODE = sha256(b"".join(path.read_bytes() for path in _SOURCES)).hexdigest()[:16]


def compiler(*, parallel: bool = False, math: set[str] = ANY_ORDER) -> Callable[[Kernel], Kernel]:
    """Return a decorator that compiles, and caches the machine code for the next process.

    `math` are LLVM's permissions for arithmetic.

    numba compiles again when the file of a kernel has changed. The other files of this folder are
    part of the machine code too. Therefore a kernel's name, and with it the name of the cached
    file, ends with a hash of them all.
    """

    def compiled(function: Kernel) -> Kernel:
        options: dict[str, Any] = {"nogil": True, "fastmath": math, "parallel": parallel}
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
