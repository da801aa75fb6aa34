"""Slices: taken by index or by size, replaced, or sliding along an axis. All are exact."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.mil.operation import Operation, Run, operation

Cut = int | slice


@operation("slice_by_size", inputs=("x",), computed=("begin", "size"), moves_data=True)
def slice_by_size(op: Operation) -> Run:
    """Slice from `begin`, `size` elements of each axis; -1 stands for all that follow."""
    begin, size = op.required("begin"), op.required("size")

    def run(x: Tensor) -> Tensor:
        for axis, (first, count) in enumerate(zip(begin, size, strict=True)):
            first += x.shape[axis] if first < 0 else 0
            x = x.narrow(axis, first, x.shape[axis] - first if count == -1 else count)
        return x

    return run


@operation("slice_by_index", inputs=("x",), computed=("begin", "end", "stride"), moves_data=True)
def slice_by_index(op: Operation) -> Run:
    """Slice as numpy does; a masked begin or end is the axis's own, a squeezed axis is dropped."""
    cuts = _cuts(op)
    if all(isinstance(cut, int) or cut.step > 0 for cut in cuts):
        return lambda x: x[cuts]

    def run(x: Tensor) -> Tensor:
        # torch has no negative step: index the axes one after another, last first, so that a
        # dropped axis does not shift those still to come.
        for axis in reversed(range(len(cuts))):
            cut = cuts[axis]
            if isinstance(cut, int):
                x = x.select(axis, cut)
            else:
                x = x.index_select(axis, _places(cut, x.shape[axis]))
        return x

    return run


@operation("slice_update", inputs=("x", "update"), computed=("begin", "end"), moves_data=True)
def slice_update(op: Operation) -> Run:
    """Replace the slice of `x` that `slice_by_index` would take."""
    cuts = _cuts(op)

    def run(x: Tensor, update: Tensor) -> Tensor:
        result = x.clone()
        if all(isinstance(cut, int) or cut.step > 0 for cut in cuts):
            part = result[cuts]
            if part.shape != update.shape:
                raise op.error(f"update {list(update.shape)} for a slice of {list(part.shape)}")
            part.copy_(update)
            return result
        kept = [slice(cut, cut + 1 or None) if isinstance(cut, int) else cut for cut in cuts]
        places = [_places(cut, size) for cut, size in zip(kept, x.shape, strict=True)]
        shape = [len(p) for p in places]
        result[torch.meshgrid(*places, indexing="ij")] = update.reshape(shape)
        return result

    return run


@operation("sliding_windows", inputs=("x",), moves_data=True)
def sliding_windows(op: Operation) -> Run:
    """All windows of `size` along `axis`, `stride` apart, on a new axis that follows it."""
    axis, size, stride = op.required("axis"), op.required("size"), op.constant("stride", 1)

    def run(x: Tensor) -> Tensor:
        place = axis % x.dim()
        return x.unfold(place, size, stride).movedim(-1, place + 1)

    return run


def _cuts(op: Operation) -> tuple[Cut, ...]:
    begin, end = op.required("begin"), op.required("end")
    rank = len(begin)
    stride = op.constant("stride") or [1] * rank
    begin_mask = op.constant("begin_mask") or [False] * rank
    end_mask = op.constant("end_mask") or [False] * rank
    squeezed = op.constant("squeeze_mask") or [False] * rank
    rows = zip(begin, end, stride, begin_mask, end_mask, squeezed, strict=True)
    return tuple(
        first if drop else slice(None if from_start else first, None if to_end else last, step)
        for first, last, step, from_start, to_end, drop in rows
    )


def _places(cut: slice, size: int) -> Tensor:
    return torch.tensor(range(*cut.indices(size)), dtype=torch.long)
