"""Operations that reduce axes."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from harness.mil.operation import Operation, Run, operation


def _mean(x: Tensor, dim: list[int], keepdim: bool) -> Tensor:
    """Return the mean over some axes, in a third of the time of `torch.mean`."""
    shape = x.shape
    total = torch.sum(x, dim, keepdim)
    return total.div_(_divisor(math.prod([shape[axis] for axis in dim]), total.dtype))


@lru_cache(256)
def _divisor(count: int, dtype: torch.dtype) -> Tensor:
    """Return a count as a tensor: torch takes twice as long to divide by a number of Python."""
    return torch.tensor(count, dtype=dtype)


_REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "reduce_l1_norm": lambda x, dim, keepdim: torch.sum(torch.abs(x), dim, keepdim),
    "reduce_log_sum": lambda x, dim, keepdim: torch.log(torch.sum(x, dim, keepdim)),
    "reduce_log_sum_exp": torch.logsumexp,
    "reduce_max": torch.amax,
    "reduce_mean": _mean,
    "reduce_min": torch.amin,
    "reduce_sum": torch.sum,
    "reduce_sum_square": lambda x, dim, keepdim: torch.sum(x * x, dim, keepdim),
    "reduce_l2_norm": lambda x, dim, keepdim: torch.linalg.vector_norm(x, 2, dim, keepdim),
}


_NOT_INTEGRAL = {"reduce_l2_norm", "reduce_log_sum", "reduce_log_sum_exp", "reduce_mean"}
"""For integers, these are computed in fp64 and truncated, as in coremltools' constant folding."""


@operation(*_REDUCTIONS, inputs=("x",))
def reduction(op: Operation) -> Run:
    """Reduce `axes`, or all of them when the parameter is not given."""
    function, axes, keep = (
        _REDUCTIONS[op.type],
        op.constant("axes"),
        op.constant("keep_dims", False),
    )

    def run(x: Tensor) -> Any:
        if axes == []:  # each element alone; torch would reduce all axes
            return run_over(x.unsqueeze(-1), [-1], False)
        return run_over(x, list(range(x.dim())) if axes is None else axes, keep)

    def run_over(x: Tensor, dims: list[int], keep: bool) -> Any:
        exact = x if x.is_floating_point() or op.type not in _NOT_INTEGRAL else x.double()
        result = function(exact, dim=dims, keepdim=keep)
        # torch sums integers to int64
        return result if result.dtype == x.dtype else result.to(x.dtype)

    return run


@operation("reduce_argmax", "reduce_argmin", inputs=("x",))
def argument(op: Operation) -> Run:
    """Return the first index of the largest or smallest element along one axis."""
    axis, keep = op.constant("axis", -1), op.constant("keep_dims", False)
    op.constant("output_dtype")  # from iOS 17 on; the declared output has it too
    function = torch.argmax if op.type == "reduce_argmax" else torch.argmin
    return lambda x: function(x, dim=axis, keepdim=keep).to(torch.int32)


@operation("reduce_prod", inputs=("x",))
def product(op: Operation) -> Run:
    """Multiply along `axes`, or all of them when none are given."""
    axes, keep = op.constant("axes"), op.constant("keep_dims", False)

    def run(x: Tensor) -> Tensor:
        chosen = range(x.dim()) if axes is None else [axis % x.dim() for axis in axes]
        for axis in sorted(chosen, reverse=True):
            x = torch.prod(x, axis, keepdim=keep).to(x.dtype)
        return x

    return run
