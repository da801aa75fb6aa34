"""Operations that compute each element from two elements."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from harness.mil.operation import Operation, Run, operation

_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "pow": torch.pow,
    "floor_div": torch.floor_divide,
    "mod": torch.remainder,
    "equal": torch.eq,
    "not_equal": torch.ne,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
}


@operation(*_BINARY, inputs=("x", "y"))
def binary(op: Operation) -> Run:
    """Broadcast `x` and `y` as numpy does."""
    return _BINARY[op.type]


@operation("real_div", inputs=("x", "y"))
def real_div(op: Operation) -> Run:
    """Divide; the quotient of integers is truncated toward zero."""
    is_float = op.output.dtype.name.startswith("FLOAT")
    mode = None if is_float else "trunc"
    return lambda x, y: torch.div(x, y, rounding_mode=mode)
