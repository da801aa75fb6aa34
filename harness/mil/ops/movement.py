"""Operations that move values without changing any: exact under every policy."""

from __future__ import annotations

import math

import torch

from harness.mil.operation import Operation, Run, operation


@operation("identity", inputs=("x",), moves_data=True)
def identity(op: Operation) -> Run:
    """Return `x`."""
    return lambda x: x


@operation("reshape", inputs=("x",), computed=("shape",), moves_data=True)
def reshape(op: Operation) -> Run:
    """Give `x` another shape; -1 stands for what is left.

    0 stands for the size before: of the same axis, from iOS 17 on counted from the last.
    """
    shape = list(op.required("shape"))
    if 0 not in shape:
        return lambda x: x.reshape(shape)
    from_last = op.since("CoreML7")

    def size(x: torch.Tensor, axis: int) -> int:
        if not from_last:
            return x.shape[axis]
        place = axis - len(shape)
        return x.shape[place] if -place <= x.dim() else 1

    return lambda x: x.reshape([s or size(x, axis) for axis, s in enumerate(shape)])


@operation("reshape_like", inputs=("x", "ref_tensors"), moves_data=True)
def reshape_like(op: Operation) -> Run:
    """Give `x` the shape that parts of the reference tensors' shapes make, one after another."""
    begins, ends = op.all_of("begins"), op.all_of("ends")
    to_the_end = op.all_of("end_masks")
    parts = [
        slice(begin, None if masked else end)
        for begin, end, masked in zip(begins, ends, to_the_end, strict=True)
    ]

    def run(x: torch.Tensor, *references: torch.Tensor) -> torch.Tensor:
        shapes = [r.shape[part] for r, part in zip(references, parts, strict=True)]
        return x.reshape([size for shape in shapes for size in shape])

    return run


@operation("transpose", inputs=("x",), moves_data=True)
def transpose(op: Operation) -> Run:
    """Permute the axes."""
    perm = tuple(op.required("perm"))
    return lambda x: x.permute(perm)


@operation("expand_dims", inputs=("x",), moves_data=True)
def expand_dims(op: Operation) -> Run:
    """Insert axes of size 1; `axes` count in the result."""
    axes = op.required("axes")

    def run(x: torch.Tensor) -> torch.Tensor:
        rank = x.dim() + len(axes)
        for axis in sorted(axis % rank for axis in axes):
            x = x.unsqueeze(axis)
        return x

    return run


@operation("squeeze", inputs=("x",), moves_data=True)
def squeeze(op: Operation) -> Run:
    """Drop axes of size 1: those named, or all."""
    axes = op.constant("axes")
    return torch.squeeze if axes is None else lambda x: torch.squeeze(x, tuple(axes))


@operation("concat", inputs=("values",), moves_data=True)
def concat(op: Operation) -> Run:
    """Join along an axis, one after another or, with `interleave`, element by element."""
    axis, interleave = op.required("axis"), op.constant("interleave", False)
    if not interleave:
        return lambda *values: torch.cat(values, axis) if len(values) > 1 else values[0]

    def run(*values: torch.Tensor) -> torch.Tensor:
        place = axis % values[0].dim()
        return torch.stack(values, place + 1).flatten(place, place + 1)

    return run


@operation("stack", inputs=("values",), moves_data=True)
def stack(op: Operation) -> Run:
    """Join along a new axis."""
    axis = op.required("axis")
    return lambda *values: torch.stack(values, axis)


@operation("split", inputs=("x",), moves_data=True)
def split(op: Operation) -> Run:
    """Cut along an axis into equal parts, or parts of given sizes."""
    axis, sizes = op.required("axis"), op.constant("split_sizes")
    count = op.constant("num_splits")
    if sizes is not None:
        return lambda x: torch.split(x, list(sizes), axis)
    return lambda x: torch.chunk(x, count or len(op.outputs), axis)


@operation("tile", inputs=("x",), computed=("reps",), moves_data=True)
def tile(op: Operation) -> Run:
    """Repeat along each axis; nothing is made that is larger than the program declares."""
    reps = tuple(op.required("reps"))

    def run(x: torch.Tensor) -> torch.Tensor:
        op.check_count(x.numel() * math.prod(reps), f"reps {list(reps)}")
        return x.repeat(reps)

    return run
