"""Values taken by index. All are exact; an index out of range is always an error.

Up to iOS 16 a negative index counts from the end; from iOS 17 on it is out of range.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.mil.operation import Operation, Run, operation
from harness.mil.packed import PackedWeight


@operation("gather", inputs=("x", "indices"), moves_data=True, packed=("x",))
def gather(op: Operation) -> Run:
    """Take slices of `x` along `axis`; the first `batch_dims` axes of both go together."""
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
    """Take, along `axis`, the element that `indices` names at each other place."""
    axis = op.constant("axis", 0)
    op.constant("validate_indices", False)
    return lambda x, indices: x.gather(axis, in_range(op, indices, x.shape[axis]))


@operation("gather_nd", inputs=("x", "indices"), moves_data=True)
def gather_nd(op: Operation) -> Run:
    """Take slices of `x` at the places that stand along the last axis of `indices`."""
    batch = op.constant("batch_dims", 0)
    op.constant("validate_indices", False)

    def run(x: Tensor, indices: Tensor) -> Tensor:
        columns = place_columns(op, indices, x.shape[batch:])
        return x[(*_grid(x.shape[:batch], indices.dim() - 1), *columns)]

    return run


def in_range(op: Operation, indices: Tensor, size: int) -> Tensor:
    """Return indices as int64, none negative; raises ArtifactError for one out of range."""
    indices = indices.long()
    lowest = 0 if op.since("CoreML7") else -size
    if indices.numel():
        smallest, largest = (int(extreme) for extreme in torch.aminmax(indices))
        if smallest < lowest or largest >= size:
            raise op.error(
                f"an index out of range: {smallest} to {largest}, "
                f"where {lowest} to {size - 1} are allowed"
            )
        if smallest < 0:
            return torch.where(indices < 0, indices + size, indices)
    return indices


def place_columns(op: Operation, indices: Tensor, shape: torch.Size) -> list[Tensor]:
    """Return the columns of places [..., depth] in a tensor of `shape`, one for each axis."""
    if indices.shape[-1] > len(shape):
        raise op.error(f"places of {indices.shape[-1]} indices in a shape of {len(shape)} axes")
    columns = zip(indices.unbind(-1), shape, strict=False)
    return [in_range(op, column, size) for column, size in columns]


def _grid(batch: torch.Size, rank: int) -> list[Tensor]:
    """Return an index of each batch axis, shaped to broadcast with indices of `rank` axes."""
    return [
        torch.arange(size).reshape([-1 if a == axis else 1 for a in range(rank)])
        for axis, size in enumerate(batch)
    ]
