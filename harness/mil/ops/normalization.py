"""Normalisation by mean and variance, or by a norm, over some axes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from harness.mil.operation import Operation, Run, operation


@operation("layer_norm", inputs=("x", "gamma", "beta"))
def layer_norm(op: Operation) -> Run:
    """Normalise over `axes` (all by default); gamma and beta are shaped like those axes."""
    axes, epsilon = op.constant("axes"), op.constant("epsilon", 1e-5)

    def run(x: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
        chosen = sorted(range(x.dim()) if axes is None else [axis % x.dim() for axis in axes])
        shape = [size if axis in chosen else 1 for axis, size in enumerate(x.shape)]
        variance, mean = torch.var_mean(x, chosen, correction=0, keepdim=True)
        return _affine((x - mean) * torch.rsqrt(variance + epsilon), gamma, beta, shape)

    return run


@operation("instance_norm", inputs=("x", "gamma", "beta"))
def instance_norm(op: Operation) -> Run:
    """Normalise each channel [N, C, *D] over its spatial axes; gamma and beta are [C]."""
    epsilon = op.constant("epsilon", 1e-5)

    def run(x: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
        variance, mean = torch.var_mean(x, list(range(2, x.dim())), correction=0, keepdim=True)
        normal = (x - mean) * torch.rsqrt(variance + epsilon)
        return _affine(normal, gamma, beta, [1, -1, *[1] * (x.dim() - 2)])

    return run


@operation("batch_norm", inputs=("x", "mean", "variance", "gamma", "beta"))
def batch_norm(op: Operation) -> Run:
    """Normalise each channel [N, C, *D] by a given mean and variance, all [C]."""
    epsilon = op.constant("epsilon", 1e-5)

    def run(
        x: Tensor, mean: Tensor, variance: Tensor, gamma: Tensor | None, beta: Tensor | None
    ) -> Tensor:
        shape = [1, -1, *[1] * (x.dim() - 2)]
        normal = (x - mean.reshape(shape)) * torch.rsqrt(variance.reshape(shape) + epsilon)
        return _affine(normal, gamma, beta, shape)

    return run


@operation("l2_norm", inputs=("x",))
def l2_norm(op: Operation) -> Run:
    """Compute `x / sqrt(sum(x * x) + epsilon)` over the last three axes."""
    epsilon = op.constant("epsilon", 1e-6)
    return lambda x: x * torch.rsqrt((x * x).sum((-3, -2, -1), keepdim=True) + epsilon)


@operation("local_response_norm", inputs=("x",))
def local_response_norm(op: Operation) -> Run:
    """Divide by `(k + alpha * mean of x * x over size neighbouring channels) ** beta`."""
    size, alpha = op.required("size"), op.constant("alpha", 1e-4)
    beta, k = op.constant("beta", 0.75), op.constant("k", 1.0)
    return lambda x: functional.local_response_norm(x, size, alpha, beta, k)


def _affine(x: Tensor, gamma: Tensor | None, beta: Tensor | None, shape: list[int]) -> Tensor:
    if gamma is not None:
        x = x * gamma.reshape(shape)
    return x if beta is None else x + beta.reshape(shape)
