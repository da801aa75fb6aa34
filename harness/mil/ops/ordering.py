"""Operations that order values, or choose among them by order."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.mil.operation import Operation, Run, operation


@operation("argsort", inputs=("x",), moves_data=True)
def argsort(op: Operation) -> Run:
    """The order along `axis`, largest first unless `ascending`; equals stay in order."""
    axis, ascending = op.constant("axis", -1), op.constant("ascending", False)
    return lambda x: _order(x, axis, ascending).to(torch.int32)


@operation("topk", inputs=("x",), computed=("k",), moves_data=True)
def topk(op: Operation) -> Run:
    """The `k` largest (or smallest) along `axis`, and where they stand; ordered.

    A `k` of -1 stands for all.
    """
    k, axis = op.constant("k", 1), op.constant("axis", -1)
    ascending = op.constant("ascending", False)
    with_indices = op.constant("return_indices", True)
    op.constant("sort", True)  # an order is allowed where none is asked for
    op.constant("output_indices_dtype")  # the declared output says the same

    def run(x: Tensor) -> tuple[Tensor, ...]:
        order = _order(x, axis, ascending).narrow(axis, 0, x.shape[axis] if k == -1 else k)
        values = x.gather(axis, order)
        return (values, order.to(torch.int32)) if with_indices else (values,)

    return run


def _order(x: Tensor, axis: int, ascending: bool) -> Tensor:
    return torch.argsort(x, dim=axis, descending=not ascending, stable=True)
