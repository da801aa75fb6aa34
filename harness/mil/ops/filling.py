"""Operations that make values of nothing, or of indices."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from harness.mil.operation import Operation, Run, operation


@operation("fill", inputs=(), computed=("shape",))
def fill(op: Operation) -> Run:
    """A tensor of one value."""
    shape = op.checked_shape(op.required("shape"), "parameters 'shape'")
    value = op.constant("value", 0.0)
    return lambda: torch.full(shape, value, dtype=op.carrier)


@operation("fill_like", inputs=("ref_tensor",))
def fill_like(op: Operation) -> Run:
    """A tensor of one value, shaped like another."""
    value = op.constant("value", 0.0)
    return lambda reference: torch.full(reference.shape, value, dtype=op.carrier)


@operation("range_1d", inputs=(), computed=("start", "end", "step"))
def range_1d(op: Operation) -> Run:
    """The numbers from `start` on, `step` apart, up to `end`, which is not among them."""
    start, end, step = op.required("start"), op.required("end"), op.required("step")
    count = max(0, math.ceil((end - start) / step))
    op.check_count(count, f"{start} to {end} in steps of {step}")
    # multiplied, not added up: the error does not grow along the range
    return lambda: (start + step * torch.arange(count, dtype=_wide(op))).to(op.carrier)


@operation("shape", inputs=("x",), moves_data=True)
def shape(op: Operation) -> Run:
    """The sizes of `x`."""
    return lambda x: torch.tensor(x.shape, dtype=torch.int32)


@operation(
    "one_hot",
    inputs=("indices",),
    computed=("one_hot_vector_size", "on_value", "off_value"),
    moves_data=True,
)
def one_hot(op: Operation) -> Run:
    """A new axis in which `on_value` stands at the index, `off_value` elsewhere."""
    size, axis = op.required("one_hot_vector_size"), op.constant("axis", -1)
    on, off = op.constant("on_value", 1), op.constant("off_value", 0)

    def run(indices: Tensor) -> Tensor:
        op.check_count(indices.numel() * size, f"vectors of {size}")
        place = torch.arange(size, dtype=torch.int32)
        hot = torch.full((*indices.shape, size), off, dtype=op.carrier)
        return hot.masked_fill_(indices[..., None] == place, on).movedim(-1, axis)

    return run


@operation("non_zero", inputs=("x",), moves_data=True)
def non_zero(op: Operation) -> Run:
    """The places [N, rank] of all elements that are not zero, in the order they stand in."""
    return lambda x: torch.nonzero(x).to(torch.int32)


def _wide(op: Operation) -> torch.dtype:
    return torch.float64 if op.is_float else torch.int64
