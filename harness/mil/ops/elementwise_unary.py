"""Operations that compute each element from one element."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from harness.mil.operation import Operation, Run, operation

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "acos": torch.acos,
    "asin": torch.asin,
    "atan": torch.atan,
    "atanh": torch.atanh,
    "ceil": torch.ceil,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "erf": torch.erf,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "floor": torch.floor,
    "logical_not": torch.logical_not,
    "round": torch.round,
    "sign": torch.sign,
    "sin": torch.sin,
    "sinh": torch.sinh,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tan": torch.tan,
    "tanh": torch.tanh,
}


@operation(*_UNARY, inputs=("x",))
def unary(op: Operation) -> Run:
    """Apply a function of one element."""
    return _UNARY[op.type]


_WITH_EPSILON: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "rsqrt": (torch.rsqrt, 1e-12),
    "inverse": (torch.reciprocal, 1e-4),
    "log": (torch.log, 1e-45),
}
"""Functions of `x + epsilon`, each with the default of its page."""


@operation(*_WITH_EPSILON, inputs=("x",))
def with_epsilon(op: Operation) -> Run:
    """Add `epsilon`, then apply a function of one element."""
    function, default = _WITH_EPSILON[op.type]
    # a tensor, because torch takes twice as long to add a number of Python
    epsilon = torch.tensor(op.constant("epsilon", default), dtype=op.carrier)
    return lambda x: function(x + epsilon)


@operation("threshold", inputs=("x",))
def threshold(op: Operation) -> Run:
    """Return the larger of each element and `alpha`."""
    alpha = op.required("alpha")
    return lambda x: torch.clamp(x, min=alpha)


@operation("clip", inputs=("x",))
def clip(op: Operation) -> Run:
    """Limit to the range from `alpha` to `beta`."""
    low, high = op.required("alpha"), op.required("beta")
    return lambda x: torch.clamp(x, low, high)


_WRAPPED = {name: getattr(torch, name) for name in ("int8", "uint8", "int16", "uint16")}


_CASTS = {"fp16", "fp32", "fp64", "int32", "bool", *_WRAPPED}


@operation("cast", inputs=("x",))
def cast(op: Operation) -> Run:
    """Convert to another dtype; floats truncate toward zero, small integers wrap around."""
    dtype = op.required("dtype")
    if dtype not in _CASTS:
        raise op.error(f"cast to '{dtype}' is unknown")
    carrier = op.policy.carrier(op.output.dtype)
    if dtype not in _WRAPPED:
        return lambda x: x.to(carrier)
    small = _WRAPPED[dtype]

    def run(x: Tensor) -> Tensor:
        # from floats through int64: a float that does not fit is undefined otherwise
        return (x.to(torch.int64) if x.is_floating_point() else x).to(small).to(carrier)

    return run
