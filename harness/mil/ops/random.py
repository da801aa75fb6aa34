"""Random values of a distribution.

With a seed every call draws the same values. Without one each call draws new values, and takes its
seed from PyTorch's generator: `torch.manual_seed` repeats a run. Core ML draws other values: its
method is not documented.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from harness.mil.operation import Operation, Run, operation

_Draw = Callable[[tuple[int, ...], torch.Generator], Tensor]


@operation("random_normal", inputs=(), computed=("shape",))
def random_normal(op: Operation) -> Run:
    """Draw normally distributed values."""
    mean, deviation = op.constant("mean", 0.0), op.constant("stddev", 1.0)
    return _drawing(op, lambda shape, g: torch.randn(shape, generator=g) * deviation + mean)


@operation("random_uniform", inputs=(), computed=("shape",))
def random_uniform(op: Operation) -> Run:
    """Draw uniformly distributed values from `low` up to, but not including, `high`."""
    low, high = op.constant("low", 0.0), op.constant("high", 1.0)
    return _drawing(op, lambda shape, g: torch.rand(shape, generator=g) * (high - low) + low)


@operation("random_bernoulli", inputs=(), computed=("shape",))
def random_bernoulli(op: Operation) -> Run:
    """Draw ones with probability `prob`, zeros otherwise."""
    probability = op.constant("prob", 0.5)
    return _drawing(op, lambda shape, g: torch.rand(shape, generator=g) < probability)


@operation("random_categorical", inputs=("x",))
def random_categorical(op: Operation) -> Run:
    """Draw `size` indices of the last axis, which holds probabilities or their logarithms."""
    mode, size = op.constant("mode", "logits"), op.constant("size", 1)
    generator = _generator(op)
    if mode not in ("logits", "probs"):
        raise op.error(f"unknown mode '{mode}'; the modes: logits, probs")

    def run(x: Tensor) -> Tensor:
        op.checked_shape((*x.shape[:-1], size), f"parameter 'size', {size},")
        chances = torch.softmax(x, -1) if mode == "logits" else x
        rows = chances.reshape(-1, x.shape[-1])
        drawn = torch.multinomial(rows, size, replacement=True, generator=generator())
        return drawn.reshape(*x.shape[:-1], size).to(op.carrier)

    return run


def _drawing(op: Operation, draw: _Draw) -> Run:
    shape = op.checked_shape(op.required("shape"), "parameters 'shape'")
    generator = _generator(op)
    return lambda: draw(shape, generator()).to(op.carrier)


def _generator(op: Operation) -> Callable[[], torch.Generator]:
    seed = op.constant("seed", -1)

    def make() -> torch.Generator:
        own = seed if seed != -1 else int(torch.randint(1 << 62, ()))
        return torch.Generator().manual_seed(own)

    return make
