"""Values put, or added and the like, at places given by index.

All three operations are one: each update goes to one element of `data`, whose number is found
by gathering from the numbers of all elements.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from harness.mil.operation import Operation, Run, operation
from harness.mil.ops.gathering import in_range, place_columns


def _reduced(how: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda data, places, updates: data.scatter_reduce(0, places, updates, how)


def _divided(data: Tensor, places: Tensor, updates: Tensor) -> Tensor:
    divisors = torch.ones_like(data).scatter_reduce(0, places, updates, "prod")
    return torch.div(data, divisors, rounding_mode=None if data.is_floating_point() else "trunc")


_MODES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "update": lambda data, places, updates: data.scatter(0, places, updates),
    "add": lambda data, places, updates: data.scatter_add(0, places, updates),
    "sub": lambda data, places, updates: data.scatter_add(0, places, -updates),
    "mul": _reduced("prod"),
    "div": _divided,
    "max": _reduced("amax"),
    "min": _reduced("amin"),
}


@operation("scatter", inputs=("data", "indices", "updates"))
def scatter(op: Operation) -> Run:
    """Put slices along `axis`."""
    axis = op.constant("axis", 0)

    def places(numbers: Tensor, indices: Tensor) -> Tensor:
        dim = axis % numbers.dim()
        chosen = in_range(op, indices, numbers.shape[dim])
        taken = numbers.index_select(dim, chosen.reshape(-1))
        return taken.reshape(numbers.shape[:dim] + indices.shape + numbers.shape[dim + 1 :])

    return _scattering(op, places)


@operation("scatter_along_axis", inputs=("data", "indices", "updates"))
def scatter_along_axis(op: Operation) -> Run:
    """Put each update, along `axis`, where `indices` says at the same place."""
    axis = op.constant("axis", 0)

    def places(numbers: Tensor, indices: Tensor) -> Tensor:
        return numbers.gather(axis, in_range(op, indices, numbers.shape[axis]))

    return _scattering(op, places)


@operation("scatter_nd", inputs=("data", "indices", "updates"))
def scatter_nd(op: Operation) -> Run:
    """Put slices at the places that stand along the last axis of `indices`."""
    return _scattering(
        op, lambda numbers, indices: numbers[tuple(place_columns(op, indices, numbers.shape))]
    )


def _scattering(op: Operation, places: Callable[[Tensor, Tensor], Tensor]) -> Run:
    mode = op.constant("mode", "add")
    op.constant("validate_indices", False)
    if mode not in _MODES:
        raise op.error(f"unknown mode '{mode}'; the modes: {', '.join(_MODES)}")
    combine = _MODES[mode]

    def run(data: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
        where = places(torch.arange(data.numel()).reshape(data.shape), indices)
        if where.shape != updates.shape:
            raise op.error(f"updates {list(updates.shape)}; {list(where.shape)} are expected")
        flat = updates.reshape(-1).to(data.dtype)
        return combine(data.reshape(-1), where.reshape(-1), flat).reshape(data.shape)

    return run
