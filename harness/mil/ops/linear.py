"""Matrix products."""

from __future__ import annotations

import re

import torch
from torch import Tensor
from torch.nn import functional

from harness.mil.operation import Operation, Run, operation
from harness.mil.packed import PackedWeight


@operation("linear", inputs=("x", "weight", "bias"), packed=("weight",))
def linear(op: Operation) -> Run:
    """Compute `x @ weight.T + bias`, with weight [out, in] and bias [out]."""

    adds_nothing = op.is_zero("bias")  # the exporter's bias of a layer without one

    def run(x: Tensor, weight: Tensor | PackedWeight, bias: Tensor | None) -> Tensor:
        if adds_nothing:
            bias = None
        if isinstance(weight, PackedWeight):
            product = weight.linear(x)
            return product if bias is None else product + bias
        if weight.dtype != x.dtype:  # from iOS 17 on
            weight = weight.to(x.dtype)
        if bias is not None and bias.dtype != x.dtype:
            bias = bias.to(x.dtype)
        if x.is_floating_point():
            return functional.linear(x, weight, bias)
        product = x @ weight.T
        return product if bias is None else product + bias

    return run


@operation("matmul", inputs=("x", "y"))
def matmul(op: Operation) -> Run:
    """Multiply matrices of the last two axes, transposed on request; other axes broadcast."""
    transpose_x = op.constant("transpose_x", False)
    transpose_y = op.constant("transpose_y", False)

    def run(x: Tensor, y: Tensor) -> Tensor:
        left = x.mT if transpose_x and x.dim() > 1 else x
        right = y.mT if transpose_y and y.dim() > 1 else y
        if left.dtype != right.dtype:  # from iOS 17 on, one that is constant may differ
            left, right = left.to(op.carrier), right.to(op.carrier)
        shape, other = left.shape, right.shape
        if len(shape) == len(other) > 2 and other[-3] == 1 and shape[:-3] == other[:-3]:
            # torch would copy the right matrix for each of the left ones: stack these instead
            multiply = torch.bmm if len(shape) == 4 else torch.matmul
            return multiply(left.flatten(-3, -2), right.squeeze(-3)).view(*shape[:-1], other[-1])
        return torch.matmul(left, right)

    return run


_EQUATION = re.compile(
    r"(?P<n>[a-z]?)(?P<c>[a-z])(?P<h>[a-z])(?P<w>[a-z]),"
    r"(?P=n)(?P=w)(?P=h)(?P<u>[a-z])->(?P=n)(?P=c)(?P=h)(?P=u)"
)


@operation("einsum", inputs=("values",))
def einsum(op: Operation) -> Run:
    """Multiply [*, C, H, W] by [*, W, H, U] to [*, C, H, U], the only supported product."""
    equation = op.required("equation").replace(" ", "")
    match = _EQUATION.fullmatch(equation)
    if match is None or len(set("".join(match.groups()))) != len("".join(match.groups())):
        raise op.error(f"equation '{equation}'; only nchw,nwhu->nchu and chw,whu->chu are known")

    def run(x: Tensor, y: Tensor) -> Tensor:
        # as matrices for each h: [*, H, C, W] times [*, H, W, U]
        left, right = x.transpose(-3, -2), y.transpose(-3, -2)
        return torch.matmul(left, right).transpose(-3, -2)

    return run
