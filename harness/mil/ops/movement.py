"""Operations that move values without changing any: exact under every policy."""

from __future__ import annotations

import math

import torch

from harness.mil.operation import Operation, Run, operation


@operation("identity", inputs=("x",), moves_data=True)
def identity(op: Operation) -> Run:
    """Return ``x``."""
    return lambda x: x


@operation("reshape", inputs=("x",), moves_data=True)
def reshape(op: Operation) -> Run:
    """Give ``x`` another shape; -1 stands for what is left, 0 for the same size as before."""
    shape = tuple(op.required("shape"))
    if 0 in shape:
        return lambda x: x.reshape([s or x.shape[axis] for axis, s in enumerate(shape)])
    return lambda x: x.reshape(shape)


@operation("transpose", inputs=("x",), moves_data=True)
def transpose(op: Operation) -> Run:
    """Permute the axes."""
    perm = tuple(op.required("perm"))
    return lambda x: x.permute(perm)


@operation("expand_dims", inputs=("x",), moves_data=True)
def expand_dims(op: Operation) -> Run:
    """Insert axes of size 1; ``axes`` count in the result."""
    rank = len(op.output.shape)
    axes = sorted(axis % rank for axis in op.required("axes"))

    def run(x: torch.Tensor) -> torch.Tensor:
        for axis in axes:
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
    """Join along an axis, one after another or, with ``interleave``, element by element."""
    axis, interleave = op.required("axis"), op.constant("interleave", False)
    if not interleave:
        return lambda *values: torch.cat(values, axis)
    axis %= len(op.output.shape)
    return lambda *values: torch.stack(values, axis + 1).flatten(axis, axis + 1)


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


@operation("tile", inputs=("x",), moves_data=True)
def tile(op: Operation) -> Run:
    """Repeat along each axis; nothing is made that is larger than the program declares."""
    reps = tuple(op.required("reps"))

    def run(x: torch.Tensor) -> torch.Tensor:
        if None not in op.output.shape and x.numel() * math.prod(reps) != op.output.count:
            raise op.error(f"reps {list(reps)} do not give {list(op.output.shape)}")
        return x.repeat(reps)

    return run


@operation("gather", inputs=("x", "indices"), moves_data=True)
def gather(op: Operation) -> Run:
    """Take slices of ``x`` along ``axis``. From iOS 17 on a negative index is out of range."""
    axis = op.constant("axis", 0)
    op.constant("validate_indices", False)  # an index out of range is an error in any case
    counts_from_end = op.opset in ("CoreML5", "CoreML6")
    if op.constant("batch_dims", 0) != 0:
        raise op.error("batch_dims other than 0 are not implemented")

    def run(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        dim = axis % x.dim()
        flat = indices.reshape(-1).long()
        if counts_from_end:
            flat = torch.where(flat < 0, flat + x.shape[dim], flat)
        taken = x.index_select(dim, flat)
        return taken.reshape(x.shape[:dim] + indices.shape + x.shape[dim + 1 :])

    return run


@operation("slice_by_index", inputs=("x",), moves_data=True)
def slice_by_index(op: Operation) -> Run:
    """Slice as numpy does; a masked begin or end is the axis's own, a squeezed axis is dropped."""
    begin, end = op.required("begin"), op.required("end")
    rank = len(begin)
    stride = op.constant("stride") or [1] * rank
    begin_mask = op.constant("begin_mask") or [False] * rank
    end_mask = op.constant("end_mask") or [False] * rank
    squeezed = op.constant("squeeze_mask") or [False] * rank
    cuts = tuple(
        begin[i]
        if squeezed[i]
        else slice(None if begin_mask[i] else begin[i], None if end_mask[i] else end[i], stride[i])
        for i in range(rank)
    )
    if all(isinstance(c, int) or c.step > 0 for c in cuts):
        return lambda x: x[cuts]

    def run(x: torch.Tensor) -> torch.Tensor:
        # torch has no negative step: index the axes one after another, last first, so that a
        # dropped axis does not shift those still to come.
        for axis in reversed(range(rank)):
            cut = cuts[axis]
            if isinstance(cut, int):
                x = x.select(axis, cut)
            else:
                places = range(*cut.indices(x.shape[axis]))
                x = x.index_select(axis, torch.tensor(places, dtype=torch.long))
        return x

    return run
