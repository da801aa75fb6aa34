"""Threads that help to multiply: between two products they spin for a moment, then they sleep.

The rows of a product are cut into chunks, which all threads take in turn until none is left. The
caller takes chunks too, so it never waits for a thread that sleeps, or that the system does not
run; it only waits for chunks that others have begun. A job lives in `state`, an int64 array that
all threads read and write by atomic operations. A thread counts itself as active before it looks
whether the job is still open, and the caller closes the job before it waits until none is active.
"""

from __future__ import annotations

import os
import platform
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.np.numpy_support import carray

from harness.mil.packed import integers, kernels, vector
from harness.mil.packed.compiler import ANY_ORDER, compiler, pointer

if TYPE_CHECKING:
    from numba.core.typing.context import BaseContext as TypingContext
    from numba.core.typing.templates import Signature

_LINE = 8  # integers of a cache line: what threads write often has a line of its own
(_OPEN, _NEXT, _ACTIVE, _JOB, _ASLEEP) = (_LINE * n for n in (0, 1, 2, 3, 5))
(
    _WEIGHTS,
    _COUNT,
    _X,
    _M,
    _COLUMNS,
    _LIMBS,
    _LIMB_BYTES,
    _BIASES,
    _SCALES,
    _OUT,
    _ROWS,
    _CHUNKS,
) = range(_JOB, _JOB + 12)
_SPINS = 0 if os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE" else 2000
"""Looks for a job before a thread sleeps, each after a pause: about 100 microseconds."""
_ROWS_OF_A_CHUNK = 64
_I64 = ir.IntType(64)
_serial = compiler(fastmath=ANY_ORDER)


class Pool:
    """Some threads beside the caller's; one product at a time."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._state = np.zeros(_ASLEEP + _LINE * threads, np.int64)
        self._events = [threading.Event() for _ in range(threads)]
        for number in range(threads):
            threading.Thread(target=self._help, args=(number,), daemon=True).start()

    def products(self, *given: Any) -> None:
        """Multiply as `kernels.table_products` does, with all threads."""
        for number, event in enumerate(self._events):
            if self._state[_ASLEEP + _LINE * number]:
                event.set()
        _products(self._state.ctypes.data, *given)

    def _help(self, number: int) -> None:
        place, event = _ASLEEP + _LINE * number, self._events[number]
        address = self._state.ctypes.data
        while True:
            _help(address, _SPINS)
            self._state[place] = 1
            event.wait()
            event.clear()
            self._state[place] = 0


_pool: Pool | None = None


def pool(threads: int) -> Pool:
    """Return the process's pool with this number of threads beside the caller's."""
    global _pool
    if _pool is None or _pool.threads != threads:
        _pool = Pool(threads)
    return _pool


def _forget() -> None:
    """Forget the threads after a fork: they do not exist in the new process."""
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@_serial
def _products(
    address: int,
    weights: int,
    count: int,
    order: int,
    columns: int,
    x: int,
    m: int,
    out: int,
    as_integers: bool,
) -> int:
    given = carray(pointer(x), (m, columns), np.float32)
    ordered, limbs, biases, scales = kernels.prepared(given, order, as_integers)
    listed = carray(pointer(weights), (count, kernels.FIELDS), np.int64)
    rows = listed[count - 1, kernels.ROWS] + listed[count - 1, kernels.BEFORE]
    state = carray(pointer(address), (_JOB + 12,), np.int64)
    state[_WEIGHTS], state[_COUNT], state[_X], state[_M] = weights, count, ordered.ctypes.data, m
    state[_COLUMNS], state[_LIMBS], state[_LIMB_BYTES] = columns, limbs.ctypes.data, limbs.shape[1]
    state[_BIASES], state[_SCALES], state[_OUT] = biases.ctypes.data, scales.ctypes.data, out
    state[_ROWS], state[_CHUNKS], state[_NEXT] = rows, -(-rows // _ROWS_OF_A_CHUNK), 0
    _swap(address + 8 * _OPEN, 1)
    _take_chunks(address)
    _swap(address + 8 * _OPEN, 0)
    while _load(address + 8 * _ACTIVE) > 0:
        _pause()
    return len(ordered) + len(limbs) + len(biases) + len(scales)  # they had to live until here


@_serial
def _help(address: int, spins: int) -> None:
    """Take chunks of each job; return when there was none for `spins` looks."""
    idle = 0
    while idle <= spins:
        if _load(address + 8 * _OPEN) == 1 and _load(address + 8 * _NEXT) < _load(
            address + 8 * _CHUNKS
        ):
            _add(address + 8 * _ACTIVE, 1)
            if _load(address + 8 * _OPEN) == 1:
                _take_chunks(address)
            _add(address + 8 * _ACTIVE, -1)
            idle = 0
        else:
            _pause()
            idle += 1


@_serial
def _take_chunks(address: int) -> None:
    state = carray(pointer(address), (_JOB + 12,), np.int64)
    m, columns, count, rows = state[_M], state[_COLUMNS], state[_COUNT], state[_ROWS]
    listed = carray(pointer(state[_WEIGHTS]), (count, kernels.FIELDS), np.int64)
    ordered = carray(pointer(state[_X]), (m, columns), np.float32)
    limbs = carray(pointer(state[_LIMBS]), (m, state[_LIMB_BYTES]), np.uint8)
    biases = carray(pointer(state[_BIASES]), (m, integers.BIASES), np.int32)
    scales = carray(pointer(state[_SCALES]), (m,), np.float32)
    while True:
        chunk = _add(address + 8 * _NEXT, 1)
        if chunk >= state[_CHUNKS]:
            return
        first = chunk * _ROWS_OF_A_CHUNK
        last = min(first + _ROWS_OF_A_CHUNK, rows)
        kernels.products_of_rows(first, last, listed, ordered, limbs, biases, scales, state[_OUT])


@vector.intrinsic
def _add(typing: TypingContext, address: types.Type, value: types.Type) -> vector.Intrinsic:
    """Add to an integer, and return what it was."""
    return types.int64(types.int64, types.int64), _atomic("add")


@vector.intrinsic
def _swap(typing: TypingContext, address: types.Type, value: types.Type) -> vector.Intrinsic:
    """Replace an integer, and return what it was."""
    return types.int64(types.int64, types.int64), _atomic("xchg")


def _atomic(operation: str) -> Any:
    def generate(
        context: Any, builder: ir.IRBuilder, signature: Signature, values: list[ir.Value]
    ) -> ir.Value:
        place = builder.inttoptr(values[0], ir.PointerType(_I64))
        return builder.atomic_rmw(operation, place, values[1], "seq_cst")

    return generate


@vector.intrinsic
def _load(typing: TypingContext, address: types.Type) -> vector.Intrinsic:
    """Read an integer that other threads write."""

    def generate(
        context: Any, builder: ir.IRBuilder, signature: Signature, values: list[ir.Value]
    ) -> ir.Value:
        place = builder.inttoptr(values[0], ir.PointerType(_I64))
        return builder.load_atomic(place, "seq_cst", 8)

    return types.int64(types.int64), generate


@vector.intrinsic
def _pause(typing: TypingContext) -> vector.Intrinsic:
    """Tell the processor that this thread waits."""

    def generate(
        context: Any, builder: ir.IRBuilder, signature: Signature, values: list[ir.Value]
    ) -> ir.Value:
        if platform.machine() in ("x86_64", "AMD64"):
            hint = vector.function(builder, "llvm.x86.sse2.pause", ir.VoidType(), [])
            builder.call(hint, [])
        nothing: ir.Value = context.get_dummy_value()
        return nothing

    return types.void(), generate
