"""Operations that take or put values by index; an index out of range is always an error.

Up to iOS 16 a negative index counts from the end; from iOS 17 on it is out of range.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from harness.mil.operation import Operation, Run, operation
from harness.mil.packed import PackedWeight


@operation("gather", inputs=("x", "indices"), moves_data=True, packed=("x",))
def gather(op: Operation) -> Run:
    """Take slices of `x` along `axis`; the first `batch_dims` axes are shared with `indices`."""
    axis, batch = op.constant("axis", 0), op.constant("batch_dims", 0)
    op.constant("validate_indices", False)

    def run(x: Tensor | PackedWeight, indices: Tensor) -> Tensor:
        if isinstance(x, PackedWeight):
            if axis % 2 == 0 and batch == 0:
                rows = x.rows(in_range(op, indices, x.shape[0]).reshape(-1))
                return rows.reshape(indices.shape + x.shape[1:])
            x = x.tensor
        dim = axis % x.dim()
        indices = in_range(op, indices, x.shape[dim])
        if batch == 0:
            taken = x.index_select(dim, indices.reshape(-1))
            return taken.reshape(x.shape[:dim] + indices.shape + x.shape[dim + 1 :])
        taken = x.movedim(dim, batch)[(*_grid(x.shape[:batch], indices.dim()), indices)]
        middle = range(indices.dim(), indices.dim() + dim - batch)
        own = range(batch, indices.dim())
        tail = range(indices.dim() + dim - batch, taken.dim())
        return taken.permute(*range(batch), *middle, *own, *tail)

    return run


@operation("gather_along_axis", inputs=("x", "indices"), moves_data=True)
def gather_along_axis(op: Operation) -> Run:
    """Take one element along `axis` for each element of `indices`."""
    axis = op.constant("axis", 0)
    op.constant("validate_indices", False)
    return lambda x, indices: x.gather(axis, in_range(op, indices, x.shape[axis]))


@operation("gather_nd", inputs=("x", "indices"), moves_data=True)
def gather_nd(op: Operation) -> Run:
    """Take slices of `x`; the last axis of `indices` holds the index of a slice."""
    batch = op.constant("batch_dims", 0)
    op.constant("validate_indices", False)

    def run(x: Tensor, indices: Tensor) -> Tensor:
        columns = index_columns(op, indices, x.shape[batch:])
        return x[(*_grid(x.shape[:batch], indices.dim() - 1), *columns)]

    return run


def in_range(op: Operation, indices: Tensor, size: int) -> Tensor:
    """Return non-negative indices as int64; raises IndexRangeError for one out of range."""
    indices = indices.long()
    lowest = 0 if op.since("CoreML7") else -size
    if indices.numel():
        smallest, largest = (int(extreme) for extreme in torch.aminmax(indices))
        if smallest < lowest or largest >= size:
            raise op.index_error(
                f"an index out of range: {smallest} to {largest}, "
                f"where {lowest} to {size - 1} are allowed"
            )
        if smallest < 0:
            return torch.where(indices < 0, indices + size, indices)
    return indices


def index_columns(op: Operation, indices: Tensor, shape: torch.Size) -> list[Tensor]:
    """Split indices [..., depth] into a tensor for each of the first axes of `shape`."""
    if indices.shape[-1] > len(shape):
        raise op.error(f"{indices.shape[-1]} indices for a tensor of {len(shape)} axes")
    columns = zip(indices.unbind(-1), shape, strict=False)
    return [in_range(op, column, size) for column, size in columns]


def _grid(batch: torch.Size, rank: int) -> list[Tensor]:
    """Return an index of each batch axis, shaped to broadcast with indices of `rank` axes."""
    return [
        torch.arange(size).reshape([-1 if a == axis else 1 for a in range(rank)])
        for axis, size in enumerate(batch)
    ]


def _reduced(how: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda data, positions, updates: data.scatter_reduce(0, positions, updates, how)


def _divided(data: Tensor, positions: Tensor, updates: Tensor) -> Tensor:
    divisors = torch.ones_like(data).scatter_reduce(0, positions, updates, "prod")
    return torch.div(data, divisors, rounding_mode=None if data.is_floating_point() else "trunc")


_MODES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "update": lambda data, positions, updates: data.scatter(0, positions, updates),
    "add": lambda data, positions, updates: data.scatter_add(0, positions, updates),
    "sub": lambda data, positions, updates: data.scatter_add(0, positions, -updates),
    "mul": _reduced("prod"),
    "div": _divided,
    "max": _reduced("amax"),
    "min": _reduced("amin"),
}


@operation("scatter", inputs=("data", "indices", "updates"))
def scatter(op: Operation) -> Run:
    """Put slices along `axis`."""
    axis = op.constant("axis", 0)

    def positions(numbers: Tensor, indices: Tensor) -> Tensor:
        dim = axis % numbers.dim()
        chosen = in_range(op, indices, numbers.shape[dim])
        taken = numbers.index_select(dim, chosen.reshape(-1))
        return taken.reshape(numbers.shape[:dim] + indices.shape + numbers.shape[dim + 1 :])

    return _scattering(op, positions)


@operation("scatter_along_axis", inputs=("data", "indices", "updates"))
def scatter_along_axis(op: Operation) -> Run:
    """Put each update at the index along `axis` that has the same position in `indices`."""
    axis = op.constant("axis", 0)

    def positions(numbers: Tensor, indices: Tensor) -> Tensor:
        return numbers.gather(axis, in_range(op, indices, numbers.shape[axis]))

    return _scattering(op, positions)


@operation("scatter_nd", inputs=("data", "indices", "updates"))
def scatter_nd(op: Operation) -> Run:
    """Put slices; the last axis of `indices` holds the index of a slice."""
    return _scattering(
        op, lambda numbers, indices: numbers[tuple(index_columns(op, indices, numbers.shape))]
    )


def _scattering(op: Operation, positions: Callable[[Tensor, Tensor], Tensor]) -> Run:
    mode = op.constant("mode", "add")
    op.constant("validate_indices", False)
    if mode not in _MODES:
        raise op.error(f"unknown mode '{mode}'; the modes: {', '.join(_MODES)}")
    combine = _MODES[mode]

    def run(data: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
        where = positions(torch.arange(data.numel()).reshape(data.shape), indices)
        if where.shape != updates.shape:
            raise op.error(f"updates {list(updates.shape)}; {list(where.shape)} are expected")
        flat = updates.reshape(-1).to(data.dtype)
        return combine(data.reshape(-1), where.reshape(-1), flat).reshape(data.shape)

    return run
