"""Activation functions: elementwise, some with parameters; and softmax."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from harness.mil.operation import Operation, Run, operation

_PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "relu6": functional.relu6,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    # torch's own softplus is linear above a threshold; this one is not
    "softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
    "softsign": functional.softsign,
}


@operation(*_PLAIN, inputs=("x",))
def plain(op: Operation) -> Run:
    """Apply a function without parameters."""
    return _PLAIN[op.type]


_WITH_ALPHA: dict[str, Callable[[Tensor, float], Tensor]] = {
    "elu": lambda x, alpha: torch.where(x > 0, x, alpha * torch.expm1(x)),
    "leaky_relu": lambda x, alpha: torch.where(x > 0, x, alpha * x),
    "thresholded_relu": lambda x, alpha: torch.where(x >= alpha, x, torch.zeros_like(x)),
}


@operation(*_WITH_ALPHA, inputs=("x",))
def with_alpha(op: Operation) -> Run:
    """Apply a function of one element and `alpha`."""
    function, alpha = _WITH_ALPHA[op.type], op.required("alpha")
    return lambda x: function(x, alpha)


_WITH_ALPHA_AND_BETA: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    "clamped_relu": lambda x, a, b: torch.clamp(torch.where(x > 0, x, a * x), max=b),
    "linear_activation": lambda x, a, b: a * x + b,
    "scaled_tanh": lambda x, a, b: a * torch.tanh(b * x),
    "sigmoid_hard": lambda x, a, b: torch.clamp(a * x + b, 0, 1),
}


@operation(*_WITH_ALPHA_AND_BETA, inputs=("x",))
def with_alpha_and_beta(op: Operation) -> Run:
    """Apply a function of one element, `alpha` and `beta`."""
    function = _WITH_ALPHA_AND_BETA[op.type]
    alpha, beta = op.required("alpha"), op.required("beta")
    return lambda x: function(x, alpha, beta)


@operation("prelu", inputs=("x", "alpha"))
def prelu(op: Operation) -> Run:
    """Apply a leaky ReLU with a slope `alpha` [C] for each channel, the second axis of `x`."""

    def run(x: Tensor, alpha: Tensor) -> Tensor:
        slope = alpha.reshape(1, -1, *[1] * (x.dim() - 2))
        return torch.where(x > 0, x, slope * x)

    return run


@operation("softplus_parametric", inputs=("x", "alpha", "beta"))
def softplus_parametric(op: Operation) -> Run:
    """Compute `alpha * log(1 + exp(beta * x))`, with both [C] for the channels, the second axis."""

    def run(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        shape = (1, -1, *[1] * (x.dim() - 2))
        scaled = beta.reshape(shape) * x
        return alpha.reshape(shape) * torch.logaddexp(scaled, torch.zeros_like(scaled))

    return run


@operation("gelu", inputs=("x",))
def gelu(op: Operation) -> Run:
    """Apply the Gaussian error linear unit, exact or by one of the two approximations."""
    mode = op.constant("mode", "EXACT")
    match mode:
        case "EXACT":
            return _exact_gelu
        case "TANH_APPROXIMATION":
            return lambda x: functional.gelu(x, approximate="tanh")
        case "SIGMOID_APPROXIMATION":
            return lambda x: x * torch.sigmoid(1.702 * x)
    raise op.error(f"unknown mode '{mode}'")


def _exact_gelu(x: Tensor) -> Tensor:
    """Return x (1 + erf(x / sqrt(2))) / 2.

    PyTorch's own function gives NaN for infinity, and infinity for fp32's largest numbers, where it
    computes vectors.
    """
    return torch.erf(x * 0.5**0.5).add_(1).mul_(0.5).mul_(x)


@operation("softmax", inputs=("x",))
def softmax(op: Operation) -> Run:
    """Normalise the exponentials along `axis`."""
    axis = op.constant("axis", -1)
    return lambda x: torch.softmax(x, axis)
