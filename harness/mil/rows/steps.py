"""What the operations do to a row: the table of those that `harness.mil.fusion` can join."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from harness.mil.block import Step
from harness.mil.rows import FLOAT, Located, Operand, Program, RowStep, kernels, row_offsets

MAX_OFFSETS = 1 << 18
"""The most rows times arrays of a step, whose table has 8 bytes for each."""
_MAX_ROWS = 8  # of x for each matrix, above which BLAS is faster than one product for each row


def row_step(
    step: Step, values: Mapping[int, Located], joined: Mapping[int, tuple[Located, ...]]
) -> RowStep | None:
    """Return what an operation does to a row; None if it does nothing to rows of fp32.

    `values` are the values in known places; `joined` has the parts of those that a `concat` along
    the last axis but one makes.
    """
    kind = _KINDS.get(step.operation)
    operands = [values.get(slot) for slot in step.reads if slot >= 0]
    results = [values.get(slot) for slot in step.writes]
    if kind is None or len(results) != 1 or None in results or None in operands:
        return None
    found = [value for value in (*results, *operands) if value is not None]
    if any(v.view.dtype != torch.float32 or not v.view.numel() for v in found):
        return None
    row = kind(step, found[0].view, found[1:], joined)
    return row if row is not None and row.rows <= MAX_OFFSETS else None


Kind = Callable[[Step, Tensor, list[Located], Mapping[int, tuple[Located, ...]]], RowStep | None]


def _rows(shape: Sequence[int]) -> int:
    return math.prod(shape[:-1])


def _elementwise(
    emit: Callable[[Program, list[Operand], Operand, int, Step], None],
    step: Step,
    out: Tensor,
    operands: list[Located],
    joined: object,
) -> RowStep:
    shape = tuple(out.shape) or (1,)
    width = shape[-1]

    def emit_step(program: Program, reads: list[Operand], target: Operand) -> None:
        emit(program, [program.vector(read, width) for read in reads], target, width, step)

    reads = tuple(operand.expanded(shape) for operand in operands)
    return RowStep(step, _rows(shape), width, reads, emit_step)


def _plain(
    opcode: int, program: Program, reads: list[Operand], out: Operand, width: int, step: Step
) -> None:
    program.emit(opcode, width, out, *reads)


def _after_epsilon(
    opcode: int,
    default: float,
    program: Program,
    reads: list[Operand],
    out: Operand,
    width: int,
    step: Step,
) -> None:
    epsilon = program.vector(program.constant(step.parameter("epsilon", default)), width)
    program.emit(kernels.ADD, width, out, reads[0], epsilon)
    program.emit(opcode, width, out, out)


def _square(program: Program, reads: list[Operand], out: Operand, width: int, step: Step) -> None:
    program.emit(kernels.MUL, width, out, reads[0], reads[0])


def _relu(program: Program, reads: list[Operand], out: Operand, width: int, step: Step) -> None:
    zero = program.vector(program.constant(0.0), width)
    program.emit(kernels.MAXIMUM, width, out, reads[0], zero)


def _clip(program: Program, reads: list[Operand], out: Operand, width: int, step: Step) -> None:
    low, high = (
        program.vector(program.constant(step.parameter(name)), width) for name in ("alpha", "beta")
    )
    program.emit(kernels.MAXIMUM, width, out, reads[0], low)
    program.emit(kernels.MINIMUM, width, out, out, high)


def _reduction(
    opcode: int, step: Step, out: Tensor, operands: list[Located], joined: object
) -> RowStep | None:
    (x,) = operands
    shape = tuple(x.view.shape)
    axes = step.parameter("axes")
    last = axes is not None and [axis % len(shape) for axis in axes] == [len(shape) - 1]
    if not last or not step.parameter("keep_dims", False):
        return None

    def emit(program: Program, reads: list[Operand], target: Operand) -> None:
        read = program.vector(reads[0], shape[-1])
        program.emit(opcode, 1, target, read, count=shape[-1])
        if step.operation == "reduce_mean":
            program.emit(kernels.DIV, 1, target, target, program.constant(shape[-1]))

    return RowStep(step, _rows(shape), 1, (x,), emit)


def _softmax(step: Step, out: Tensor, operands: list[Located], joined: object) -> RowStep | None:
    (x,) = operands
    shape = tuple(x.view.shape)
    if not shape or step.parameter("axis", -1) % len(shape) != len(shape) - 1:
        return None

    def emit(program: Program, reads: list[Operand], target: Operand) -> None:
        read = program.vector(reads[0], shape[-1])
        program.emit(kernels.SOFTMAX, shape[-1], target, read)

    return RowStep(step, _rows(shape), shape[-1], (x,), emit)


def _stack(step: Step, out: Tensor, operands: list[Located], joined: object) -> RowStep | None:
    """Write the parts in turn, element by element, along a new last axis."""
    axis = step.parameter("axis")
    if out.dim() < 2 or axis % out.dim() != out.dim() - 1:
        return None
    count, width = len(operands), out.shape[-2]

    def emit(program: Program, reads: list[Operand], target: Operand) -> None:
        for number, read in enumerate(reads):
            program.emit(kernels.COPY, width, target.moved(number, count), read)

    return RowStep(step, _rows(out.shape[:-1]), width * count, tuple(operands), emit)


def _concat(step: Step, out: Tensor, operands: list[Located], joined: object) -> RowStep | None:
    """Write the parts one after the other along the last axis."""
    last = out.dim() and step.parameter("axis") % out.dim() == out.dim() - 1
    if not last or step.parameter("interleave", False) or len(operands) < 2:
        return None
    widths = [operand.view.shape[-1] if operand.view.dim() else 0 for operand in operands]
    if sum(widths) != out.shape[-1]:
        return None

    def emit(program: Program, reads: list[Operand], target: Operand) -> None:
        at = 0
        for read, width in zip(reads, widths, strict=True):
            program.emit(kernels.COPY, width, target.moved(at), read)
            at += width

    return RowStep(step, _rows(out.shape), out.shape[-1], tuple(operands), emit)


def _matmul(
    step: Step, out: Tensor, operands: list[Located], joined: Mapping[int, tuple[Located, ...]]
) -> RowStep | None:
    """Multiply a few rows by the parts of a matrix, such as a cache and the new rows for it."""
    x, y = operands
    if x.view.dim() < 2 or y.view.dim() < 2:
        return None
    if step.parameter("transpose_x", False):
        x = replace(x, view=x.view.mT)
    parts, axis = _parts_of(y, joined)
    if step.parameter("transpose_y", False):
        parts, axis = [replace(p, view=p.view.mT) for p in parts], -3 - axis
    batch, terms = out.shape[:-2], x.view.shape[-1]
    matrices = tuple(p.expanded((*batch, *p.view.shape[-2:])) for p in parts)
    rows = _rows(out.shape)
    if rows > _MAX_ROWS * math.prod(y.view.shape[:-2]) or not all(
        _has_vectors(m.view, axis, len(parts)) for m in matrices
    ):
        return None
    emit = partial(_emit_matmul, matrices, axis, out.shape[-2])
    reads = (x.expanded((*out.shape[:-1], terms)),)
    return RowStep(step, rows, out.shape[-1], reads, emit, matrices)


def _parts_of(y: Located, joined: Mapping[int, tuple[Located, ...]]) -> tuple[list[Located], int]:
    """Return the parts of a matrix, and the axis along which they are joined, -2 or -1.

    A matrix that no `concat` made, or that is cut in another way, is one part.
    """
    for turned in (False, True):
        view = y.view.mT if turned else y.view
        parts = joined.get(y.base, ())
        sizes = [part.view.shape[-2] for part in parts]
        if not parts or not replace(y, view=view).is_whole or view.shape[-2] != sum(sizes):
            continue
        try:
            cut = [p.view.view(*view.shape[:-2], *p.view.shape[-2:]) for p in parts]
        except RuntimeError:  # a part would have to be copied
            continue
        views = [part.mT if turned else part for part in cut]
        found = [replace(p, view=v) for p, v in zip(parts, views, strict=True)]
        return found, -1 if turned else -2
    return [y], -1


def _has_vectors(matrix: Tensor, axis: int, parts: int) -> bool:
    """Return whether the kernels can multiply by a part [terms, width] of a matrix."""
    down, across = matrix.stride()[-2:]
    return across == 1 or matrix.shape[-1] == 1 or (down == 1 and (axis == -1 or parts == 1))


def _emit_matmul(
    matrices: Sequence[Located],
    axis: int,
    rows: int,
    program: Program,
    reads: list[Operand],
    target: Operand,
) -> None:
    """Emit the products with each part; `rows` of the result have the same matrix."""
    total = sum(m.view.shape[-2] for m in matrices) if axis == -2 else matrices[0].view.shape[-2]
    x, term, column = program.vector(reads[0], total), 0, 0
    for matrix in matrices:
        terms, width = matrix.view.shape[-2:]
        down, across = matrix.view.stride()[-2:]
        # a row for each matrix, of one element: its address
        starts = np.repeat(row_offsets(matrix.view[..., 0, :1]), rows)
        source, out = program.array(matrix.base, starts), target.moved(column)
        if across == 1 or width == 1:
            opcode = kernels.COMBINE_MORE if term else kernels.COMBINE
            program.emit(
                opcode, width, out, x.moved(term), source, count=terms, distance=FLOAT * down
            )
        else:
            program.emit(kernels.DOTS, width, out, x, source, count=terms, distance=FLOAT * across)
        if axis == -2:
            term += terms
        else:
            column += width


def _each(emit: Callable[..., None], opcodes: Iterable[tuple[str, int]]) -> dict[str, Kind]:
    return {name: partial(_elementwise, partial(emit, opcode)) for name, opcode in opcodes}


_KINDS: dict[str, Kind] = {
    **_each(
        _plain,
        (
            ("add", kernels.ADD),
            ("sub", kernels.SUB),
            ("mul", kernels.MUL),
            ("real_div", kernels.DIV),
            ("maximum", kernels.MAXIMUM),
            ("minimum", kernels.MINIMUM),
            ("abs", kernels.ABS),
            ("sqrt", kernels.SQRT),
            ("exp", kernels.EXP),
            ("exp2", kernels.EXP2),
            ("floor", kernels.FLOOR),
            ("sigmoid", kernels.SIGMOID),
            ("silu", kernels.SILU),
        ),
    ),
    "rsqrt": partial(_elementwise, partial(_after_epsilon, kernels.RSQRT, 1e-12)),
    "log": partial(_elementwise, partial(_after_epsilon, kernels.LOG, 1e-45)),
    "clip": partial(_elementwise, _clip),
    "square": partial(_elementwise, _square),
    "relu": partial(_elementwise, _relu),
    "reduce_mean": partial(_reduction, kernels.SUM),
    "reduce_sum": partial(_reduction, kernels.SUM),
    "reduce_max": partial(_reduction, kernels.MAX),
    "reduce_min": partial(_reduction, kernels.MIN),
    "reduce_sum_square": partial(_reduction, kernels.SUM_SQUARE),
    "softmax": _softmax,
    "stack": _stack,
    "concat": _concat,
    "matmul": _matmul,
}
