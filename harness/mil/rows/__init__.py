"""Several operations as one step, which computes their results row by row.

A *row* is the last axis of a tensor. RMSNorm in any form, rotary embeddings, masks, softmax, gated
activations and products with a cache compute a row of the result from the same row of each operand.
`steps` finds what an operation does to a row, `Program` makes one list of instructions of several
operations, and `Rows` runs it (`kernels`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.mil.block import Step
from harness.mil.packed import parts_for, turn
from harness.mil.rows import kernels

FLOAT = 4  # bytes
_SLOWER = 4  # a function of an element than a multiplication in a product
_PARALLEL = 4  # times the work of a product that is worth another thread
NUMBERS = -1
"""The base of an array of a program's own numbers."""


@dataclass(frozen=True)
class Located:
    """Where a value is: a view of the contiguous tensor that the slot `base` holds.

    `view` is a tensor on torch's device `meta`: it has a shape and strides, and no memory.
    """

    base: int
    view: Tensor

    def expanded(self, shape: Sequence[int]) -> Located:
        """Return the value, broadcast to a shape."""
        return replace(self, view=self.view.expand(*shape))

    @property
    def is_whole(self) -> bool:
        """Whether the value has all elements of its base, in their order, whatever its shape."""
        size = self.view.untyped_storage().nbytes() // self.view.element_size()
        return self.view.is_contiguous() and self.view.numel() == size


def located(base: int, shape: Sequence[int], dtype: torch.dtype) -> Located:
    """Return the value that is all of a base."""
    return Located(base, torch.empty(tuple(shape), dtype=dtype, device="meta"))


@dataclass(frozen=True)
class Operand:
    """The elements of a row: bytes from the row's start in an array, and their distance.

    Array 0 has the registers; `register` is the number of one.
    """

    array: int
    at: int = 0
    step: int = 1
    register: int = -1

    def moved(self, elements: int, step: int = 1) -> Operand:
        """Return the operand that starts some elements later, with another distance."""
        return replace(self, at=self.at + FLOAT * elements, step=step)


Emit = Callable[["Program", list[Operand], Operand], None]


@dataclass(frozen=True)
class RowStep:
    """An operation on rows: `rows` results of `width` elements.

    `reads` are its operands, expanded so that their last axis is the part of a row that it reads;
    `matrices` are those that it multiplies rows by. `emit` adds its instructions to a program.
    """

    step: Step
    rows: int
    width: int
    reads: tuple[Located, ...]
    emit: Emit
    matrices: tuple[Located, ...] = ()

    def start(self, read: Located, width: int) -> int | None:
        """Return where a read starts in each row of a contiguous [rows, width], None elsewhere."""
        distance = read.view.stride(-1) if read.view.shape[-1] > 1 else 0
        offsets = row_offsets(read.view)
        if len(offsets) != self.rows:
            return None
        start = int(offsets[0])
        fits = start >= 0 and start + distance * (read.view.shape[-1] - 1) < width
        return start if fits and (offsets == start + width * np.arange(self.rows)).all() else None


def row_offsets(view: Tensor) -> np.ndarray:
    """Return the first element of each row of a view, int64 [rows]."""
    offsets = np.array([view.storage_offset()])
    for size, stride in zip(view.shape[:-1], view.stride()[:-1], strict=True):
        offsets = (offsets[:, None] + np.arange(size) * stride).reshape(-1)
    return offsets


class Program:
    """The instructions of a group of operations on rows.

    `kept` maps the slots of the results that other steps read to the width of their rows; their
    tensors are the first arrays after the registers. The arrays of `bases`, slots of tensors that
    the group reads, come next.
    """

    def __init__(self, rows: int, kept: Mapping[int, int]) -> None:
        self.rows = rows
        self.bases: list[int] = []
        self._columns = [np.zeros(rows, np.int64)]
        self._arrays: dict[tuple[int, bytes], int] = {}
        self._lines: list[tuple[int, int, Operand, Operand, Operand, int, int]] = []
        self._widths: list[int] = []
        self._homes: dict[int, tuple[Operand, int]] = {}
        self._numbers: list[float] = []
        for slot, width in kept.items():
            self._columns.append(FLOAT * width * np.arange(rows))
            self._homes[slot] = Operand(len(self._columns) - 1), width
        self._first = len(self._columns)

    def add(self, row: RowStep) -> None:
        """Add an operation, whose operands are known already."""
        (slot,) = row.step.writes
        if slot not in self._homes:
            self._homes[slot] = self.register(row.width), row.width
        row.emit(self, [self._source(row, read) for read in row.reads], self._homes[slot][0])

    def _source(self, row: RowStep, read: Located) -> Operand:
        step = read.view.stride(-1) if read.view.shape[-1] > 1 else 1
        home = self._homes.get(read.base)
        if home is None:
            return replace(self.array(read.base, row_offsets(read.view)), step=step)
        start = row.start(read, home[1])
        assert start is not None, "grouped operations read whole rows"
        return home[0].moved(start, step)

    def array(self, base: int, offsets: np.ndarray) -> Operand:
        """Return the operand that starts at an element of a base for each row."""
        apart = FLOAT * (offsets - offsets[0])
        key = base, apart.tobytes()
        if key not in self._arrays:
            self._arrays[key] = len(self._columns)
            self._columns.append(apart)
            self.bases.append(base)
        return Operand(self._arrays[key], FLOAT * int(offsets[0]))

    def constant(self, value: float) -> Operand:
        """Return the operand of a number, at a distance of 0."""
        if value not in self._numbers:
            self._numbers.append(value)
        start = self.array(NUMBERS, np.zeros(self.rows, np.int64))
        return start.moved(self._numbers.index(value), step=0)

    @property
    def numbers(self) -> Tensor:
        """The values of the array of the base `NUMBERS`."""
        return torch.tensor(self._numbers, dtype=torch.float32)

    def register(self, width: int) -> Operand:
        """Return a new register."""
        self._widths.append(width)
        return Operand(0, register=len(self._widths) - 1)

    def emit(
        self,
        opcode: int,
        width: int,
        out: Operand,
        a: Operand,
        b: Operand | None = None,
        *,
        count: int = 0,
        distance: int = 0,
    ) -> None:
        """Add an instruction."""
        self._lines.append((opcode, width, out, a, b or a, count, distance))

    def vector(self, operand: Operand, width: int) -> Operand:
        """Return an operand of adjacent elements; copy them to a register if they are not."""
        if operand.step == 1 or width == 1:
            return operand
        register = self.register(width)
        self.emit(kernels.COPY, width, register, operand)
        return register

    @property
    def work(self) -> int:
        """About how many multiplications take the time of the program."""
        return self.rows * sum(max(_SLOWER, line[5]) * line[1] for line in self._lines)

    def finished(self, order: Sequence[int]) -> tuple[np.ndarray, np.ndarray, int]:
        """Return the code, the offsets [rows, arrays], and the floats that the registers need.

        `order` is the order of `bases` in the offsets.
        """
        places, floats = self._placed()
        arrays = [*range(self._first), *(self._first + number for number in order)]
        number_of = {array: number for number, array in enumerate(arrays)}
        code = np.zeros((len(self._lines), kernels.FIELDS), np.int64)
        for row, (opcode, width, *operands, count, distance) in zip(code, self._lines, strict=True):
            out, a, b = (
                (number_of[o.array], o.at + (places[o.register] if o.array == 0 else 0), o.step)
                for o in operands
            )
            row[:] = (opcode, width, *out, *a, *b[:2], count, distance)
        return code, np.stack([self._columns[array] for array in arrays], 1), max(1, floats)

    def _placed(self) -> tuple[list[int], int]:
        """Return the place of each register in bytes, and the floats of all.

        A register takes the place of one of its width that is no longer read.
        """
        last = {
            o.register: number
            for number, line in enumerate(self._lines)
            for o in line[2:5]
            if o.array == 0
        }
        ends: dict[int, list[int]] = {}
        for register, number in last.items():
            ends.setdefault(number, []).append(register)
        places, free, floats = [-1] * len(self._widths), dict[int, list[int]](), 0
        for number, line in enumerate(self._lines):
            register = line[2].register
            if line[2].array == 0 and places[register] < 0:
                width = self._widths[register]
                if free.get(width):
                    places[register] = free[width].pop()
                else:
                    places[register], floats = FLOAT * floats, floats + width
            for ended in ends.get(number, ()):
                free.setdefault(self._widths[ended], []).append(places[ended])
        return places, floats


class Rows:
    """A finished program as the function of a step: takes the bases' tensors, returns the results.

    `shapes` are those of the results. The elements of constants never move, so their addresses
    are part of the program. `reads` are the bases of the other tensors.
    """

    def __init__(
        self,
        program: Program,
        shapes: Sequence[torch.Size],
        bases: Mapping[int, torch.Size | Tensor],
        tables: dict[bytes, np.ndarray],
    ) -> None:
        """Take the results' shapes, and of each base the shape, or the tensor of a constant."""
        known = {**bases, NUMBERS: program.numbers}
        self.reads = tuple(b for b in program.bases if not isinstance(known[b], Tensor))
        order = sorted(
            range(len(program.bases)), key=lambda n: isinstance(known[program.bases[n]], Tensor)
        )
        code, offsets, self._floats = program.finished(order)
        # layers have equal programs: they share their tables
        self._code, self._offsets = (
            tables.setdefault(repr(t.shape).encode() + t.tobytes(), t) for t in (code, offsets)
        )
        self._shapes, self._work = tuple(shapes), program.work
        self._expected = tuple(known[base] for base in self.reads)
        values = (known[base] for base in program.bases)
        self._constants = [value for value in values if isinstance(value, Tensor)]
        self._fixed = [constant.data_ptr() for constant in self._constants]

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Compute the results, fp32."""
        given = [
            _checked(tensor, shape) for tensor, shape in zip(tensors, self._expected, strict=True)
        ]
        results = [torch.empty(shape, dtype=torch.float32) for shape in self._shapes]
        addresses = np.array(
            [0, *[t.data_ptr() for t in results], *[t.data_ptr() for t in given], *self._fixed]
        )
        parts = parts_for(self._work // _PARALLEL)
        with turn(parts):
            kernels.run_rows(self._code, self._offsets, addresses, self._floats, parts)
        return tuple(results)

    def __deepcopy__(self, memo: dict[int, Any]) -> Rows:
        """Return the object itself: it holds addresses, and never changes."""
        return self


def _checked(tensor: Tensor, shape: torch.Size | Tensor) -> Tensor:
    """Return a tensor as the kernels read it; raise ValueError for another shape or dtype."""
    if tensor.shape != shape or tensor.dtype != torch.float32:
        raise ValueError(f"{tensor.dtype} {list(tensor.shape)} for fp32 {list(shape)}")
    return tensor if tensor.is_contiguous() else tensor.contiguous()
