"""Weights that are computed once at load: the operations that iOS 18 added.

Their operands may be results of each other. The results are rounded to the declared dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.mil.operation import Operation, Run, operation
from harness.mil.ops.constexpr_ops import dense, divides, looked_up, packed, weight_of


@operation("constexpr_blockwise_shift_scale", inputs=())
def blockwise_shift_scale(op: Operation) -> Run:
    """Compute `scale * (data - offset)`, with a scale and an offset for each block (iOS 18).

    The result stays packed if possible.
    """
    weight = packed(op)
    if weight is not None:
        return lambda: weight
    data = weight_of(op, "data")
    result = _shift_scale(op, data, weight_of(op, "scale"), op.weight("offset"), op.carrier)
    return lambda: op.policy.constant(result, op.output.dtype)


@operation("constexpr_lut_to_sparse", inputs=())
def lut_to_sparse(op: Operation) -> Run:
    """Apply `lut_to_dense` to the elements under a mask; return the new mask and elements."""
    mask, lut = weight_of(op, "indices_mask") != 0, weight_of(op, "lut")
    axis = op.constant("vector_axis")
    indices = dense(op, weight_of(op, "indices_nonzero_data"), mask)
    values = looked_up(op, indices, lut, axis)
    if lut.shape[-1] > 1:
        mask = mask.repeat_interleave(lut.shape[-1], axis)
    return _sparse(op, mask, values)


@operation("constexpr_sparse_blockwise_shift_scale", inputs=())
def sparse_blockwise_shift_scale(op: Operation) -> Run:
    """Apply `blockwise_shift_scale` to the elements under a mask; return mask and elements."""
    mask = weight_of(op, "data_mask") != 0
    data = dense(op, weight_of(op, "nonzero_data"), mask)
    carrier = torch.float64 if op.policy.name == "double" else torch.float32
    values = _shift_scale(op, data, weight_of(op, "scale"), op.weight("offset"), carrier)
    return _sparse(op, mask, values)


def _shift_scale(
    op: Operation, data: Tensor, scale: Tensor, offset: Tensor | None, carrier: torch.dtype
) -> Tensor:
    if data.dim() != scale.dim() or not divides(scale.shape, data.shape):
        raise op.error(f"scale {list(scale.shape)} does not divide data {list(data.shape)}")
    if offset is not None and offset.shape != scale.shape:
        raise op.error(f"offset {list(offset.shape)} and scale {list(scale.shape)} differ in shape")
    blocks = [n for d, s in zip(data.shape, scale.shape, strict=True) for n in (s, d // s)]
    per_block = [n for s in scale.shape for n in (s, 1)]
    values = data.reshape(blocks).to(carrier)
    if offset is not None:
        values = values - offset.reshape(per_block).to(carrier)
    return (values * scale.reshape(per_block).to(carrier)).reshape(data.shape)


def _sparse(op: Operation, mask: Tensor, values: Tensor) -> Run:
    """Return a mask and the elements under it, in the dtypes that the operation declares."""
    types = [getattr(output, "dtype", None) for output in op.outputs]
    if len(types) != 2 or None in types:
        raise op.error("two results, a mask and its elements, must be declared")
    return lambda: tuple(
        op.policy.constant(result, dtype)
        for result, dtype in zip((mask, values[mask]), types, strict=True)
        if dtype is not None
    )
