"""Operations that move values without changing them, exact under every policy."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from harness.mil.operation import Operation, Run, operation


@operation("reshape", inputs=("x",), computed=("shape",), moves_data=True)
def reshape(op: Operation) -> Run:
    """Give `x` another shape; -1 means all remaining elements.

    0 keeps the size of the same axis; from iOS 17 on axes count from the last.
    """
    shape = list(op.required("shape"))
    if 0 not in shape:
        return lambda x: x.reshape(shape)
    from_last = op.since("CoreML7")

    def size(x: Tensor, axis: int) -> int:
        if not from_last:
            return x.shape[axis]
        place = axis - len(shape)
        return x.shape[place] if -place <= x.dim() else 1

    return lambda x: x.reshape([s or size(x, axis) for axis, s in enumerate(shape)])


@operation("reshape_like", inputs=("x", "ref_tensors"), moves_data=True)
def reshape_like(op: Operation) -> Run:
    """Give `x` a shape that concatenates parts of the reference tensors' shapes."""
    begins, ends = op.all_of("begins"), op.all_of("ends")
    to_the_end = op.all_of("end_masks")
    parts = [
        slice(begin, None if masked else end)
        for begin, end, masked in zip(begins, ends, to_the_end, strict=True)
    ]

    def run(x: Tensor, *references: Tensor) -> Tensor:
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
    """Insert axes of size 1; `axes` number the axes of the result."""
    axes = op.required("axes")

    def run(x: Tensor) -> Tensor:
        rank = x.dim() + len(axes)
        for axis in sorted(axis % rank for axis in axes):
            x = x.unsqueeze(axis)
        return x

    return run


@operation("squeeze", inputs=("x",), moves_data=True)
def squeeze(op: Operation) -> Run:
    """Drop the axes of size 1 in `axes`, or all of them."""
    axes = op.constant("axes")
    return torch.squeeze if axes is None else lambda x: torch.squeeze(x, tuple(axes))


Cut = int | slice


@operation("slice_by_size", inputs=("x",), computed=("begin", "size"), moves_data=True)
def slice_by_size(op: Operation) -> Run:
    """Slice `size` elements of each axis from `begin`; -1 means all that follow."""
    begin, size = op.required("begin"), op.required("size")

    def run(x: Tensor) -> Tensor:
        for axis, (first, count) in enumerate(zip(begin, size, strict=True)):
            first += x.shape[axis] if first < 0 else 0
            x = x.narrow(axis, first, x.shape[axis] - first if count == -1 else count)
        return x

    return run


@operation("slice_by_index", inputs=("x",), computed=("begin", "end", "stride"), moves_data=True)
def slice_by_index(op: Operation) -> Run:
    """Slice like numpy; a masked begin or end is the axis's own, a squeezed axis is dropped."""
    cuts = _cuts(op)
    if all(isinstance(cut, int) or cut.step > 0 for cut in cuts):
        return lambda x: x[cuts]

    def run(x: Tensor) -> Tensor:
        # torch has no negative step: index one axis after another, the last one first, so that a
        # dropped axis does not shift the remaining ones.
        for axis in reversed(range(len(cuts))):
            cut = cuts[axis]
            if isinstance(cut, int):
                x = x.select(axis, cut)
            else:
                x = x.index_select(axis, _indices(cut, x.shape[axis]))
        return x

    return run


@operation("slice_update", inputs=("x", "update"), computed=("begin", "end"), moves_data=True)
def slice_update(op: Operation) -> Run:
    """Replace the slice of `x` that `slice_by_index` would return."""
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
        places = [_indices(cut, size) for cut, size in zip(kept, x.shape, strict=True)]
        shape = [len(p) for p in places]
        result[torch.meshgrid(*places, indexing="ij")] = update.reshape(shape)
        return result

    return run


@operation("sliding_windows", inputs=("x",), moves_data=True)
def sliding_windows(op: Operation) -> Run:
    """Return all windows of `size` along `axis`, `stride` apart, on a new axis that follows it."""
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


def _indices(cut: slice, size: int) -> Tensor:
    return torch.tensor(range(*cut.indices(size)), dtype=torch.long)


@operation("reverse", inputs=("x",), moves_data=True)
def reverse(op: Operation) -> Run:
    """Reverse along `axes`, or all of them."""
    axes = op.constant("axes")
    return lambda x: x.flip(tuple(range(x.dim())) if axes is None else tuple(axes))


@operation("reverse_sequence", inputs=("x", "lengths"), moves_data=True)
def reverse_sequence(op: Operation) -> Run:
    """Reverse the first elements along `seq_axis`; `lengths` has their number for each batch."""
    sequence, batch = op.constant("seq_axis", 0), op.constant("batch_axis", 0)

    def run(x: Tensor, lengths: Tensor) -> Tensor:
        moved = x.movedim((batch % x.dim(), sequence % x.dim()), (0, 1))
        if lengths.shape != moved.shape[:1]:
            raise op.error(f"lengths {list(lengths.shape)} for {moved.shape[0]} batches")
        place = torch.arange(moved.shape[1])
        length = lengths.long()[:, None]
        order = torch.where(place < length, length - 1 - place, place)
        taken = moved[torch.arange(moved.shape[0])[:, None], order]
        return taken.movedim((0, 1), (batch % x.dim(), sequence % x.dim()))

    return run


@operation("pixel_shuffle", inputs=("x",), moves_data=True)
def pixel_shuffle(op: Operation) -> Run:
    """Move blocks of channels into space; the channel is the slowest index of a block."""
    factor = op.required("upscale_factor")
    return lambda x: functional.pixel_shuffle(x, factor)


@operation("pixel_unshuffle", inputs=("x",), moves_data=True)
def pixel_unshuffle(op: Operation) -> Run:
    """Move space into blocks of channels, the inverse of `pixel_shuffle`."""
    factor = op.required("downscale_factor")
    return lambda x: functional.pixel_unshuffle(x, factor)


@operation("depth_to_space", inputs=("x",), moves_data=True)
def depth_to_space(op: Operation) -> Run:
    """Move blocks of channels into space; the channel is the fastest index of a block."""
    size = op.required("block_size")

    def run(x: Tensor) -> Tensor:
        n, channels, high, wide = x.shape
        parts = x.reshape(n, size, size, channels // size**2, high, wide)
        return parts.permute(0, 3, 4, 1, 5, 2).reshape(n, -1, high * size, wide * size)

    return run


@operation("space_to_depth", inputs=("x",), moves_data=True)
def space_to_depth(op: Operation) -> Run:
    """Move space into blocks of channels, the inverse of `depth_to_space`."""
    size = op.required("block_size")

    def run(x: Tensor) -> Tensor:
        n, channels, high, wide = x.shape
        parts = x.reshape(n, channels, high // size, size, wide // size, size)
        return parts.permute(0, 3, 5, 1, 2, 4).reshape(n, -1, high // size, wide // size)

    return run


@operation("space_to_batch", inputs=("x",), moves_data=True)
def space_to_batch(op: Operation) -> Run:
    """Pad space, then move its blocks into the batch as its slowest index."""
    (rows, columns), padding = op.required("block_shape"), op.required("paddings")

    def run(x: Tensor) -> Tensor:
        sums = [sum(pair) for pair in padding]
        count = x.shape[:2].numel() * (x.shape[2] + sums[0]) * (x.shape[3] + sums[1])
        op.check_count(count, f"paddings {padding}")
        padded = functional.pad(x, (*padding[1], *padding[0]))
        n, channels, high, wide = padded.shape
        parts = padded.reshape(n, channels, high // rows, rows, wide // columns, columns)
        moved = parts.permute(3, 5, 0, 1, 2, 4)
        return moved.reshape(-1, channels, high // rows, wide // columns)

    return run


@operation("batch_to_space", inputs=("x",), moves_data=True)
def batch_to_space(op: Operation) -> Run:
    """Move the batch into blocks of space, then crop, the inverse of `space_to_batch`."""
    (rows, columns), crops = op.required("block_shape"), op.required("crops")

    def run(x: Tensor) -> Tensor:
        n, channels, high, wide = x.shape
        parts = x.reshape(rows, columns, n // (rows * columns), channels, high, wide)
        moved = parts.permute(2, 3, 4, 0, 5, 1)
        return _cropped(moved.reshape(-1, channels, high * rows, wide * columns), *crops)

    return run


def _cropped(x: Tensor, high: list[int], wide: list[int]) -> Tensor:
    return x[..., high[0] : x.shape[-2] - high[1], wide[0] : x.shape[-1] - wide[1]]
