"""Matrix products."""

from __future__ import annotations

import torch
from torch.nn import functional

from harness.mil.operation import Operation, Run, operation


@operation("linear", inputs=("x", "weight", "bias"))
def linear(op: Operation) -> Run:
    """``x @ weight.T + bias``, with weight [out, in] and bias [out]."""
    return functional.linear


@operation("matmul", inputs=("x", "y"))
def matmul(op: Operation) -> Run:
    """Multiply the last two axes, either transposed first; the others broadcast."""
    transpose_x = op.constant("transpose_x", False)
    transpose_y = op.constant("transpose_y", False)

    def run(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.matmul(x.mT if transpose_x else x, y.mT if transpose_y else y)

    return run
