"""Affine quantization of activations (iOS 17): `scale * (quantized - zero point)`."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.mil.operation import Operation, Run, operation

_RANGES = {"uint8": (0, 255), "int8": (-128, 127)}


@operation("quantize", inputs=("input", "scale", "zero_point"))
def quantize(op: Operation) -> Run:
    """Compute `round(input / scale) + zero_point`, clamped to the dtype; ties round to even."""
    dtype, axis = op.required("output_dtype"), op.constant("axis")
    if dtype not in _RANGES:
        raise op.error(f"output_dtype '{dtype}'; the dtypes: {', '.join(_RANGES)}")
    low, high = _RANGES[dtype]

    def run(x: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
        result = torch.round(x / along(op, scale, x, axis))
        if zero_point is not None:
            result = result + along(op, zero_point, x, axis)
        return result.clamp(low, high).to(op.carrier)

    return run


@operation("dequantize", inputs=("input", "scale", "zero_point"))
def dequantize(op: Operation) -> Run:
    """Compute `scale * (input - zero_point)`."""
    axis = op.constant("axis")

    def run(x: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
        if zero_point is not None:
            x = x - along(op, zero_point, x, axis)
        return x.to(op.carrier) * along(op, scale, x, axis)

    return run


def along(op: Operation, parameter: Tensor, x: Tensor, axis: int | None) -> Tensor:
    """Return a scalar, or a vector shaped to broadcast along `axis` of `x`."""
    if parameter.dim() == 0:
        return parameter
    if axis is None or parameter.shape != (x.shape[axis],):
        raise op.error(
            f"a parameter of shape {list(parameter.shape)} along axis {axis} of {list(x.shape)}"
        )
    shape = [1] * x.dim()
    shape[axis] = -1
    return parameter.reshape(shape)
