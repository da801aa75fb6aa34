"""Operations that rearrange or pad values: exact under every policy."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from harness.mil.operation import Operation, Run, operation


@operation("reverse", inputs=("x",), moves_data=True)
def reverse(op: Operation) -> Run:
    """Reverse along `axes`, or all of them."""
    axes = op.constant("axes")
    return lambda x: x.flip(tuple(range(x.dim())) if axes is None else tuple(axes))


@operation("reverse_sequence", inputs=("x", "lengths"), moves_data=True)
def reverse_sequence(op: Operation) -> Run:
    """Reverse the first elements along `seq_axis`, as many as each batch's length says."""
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


@operation("band_part", inputs=("x",), moves_data=True)
def band_part(op: Operation) -> Run:
    """Zero what lies outside a band around the diagonal of the last two axes; -1 keeps a side."""
    lower, upper = op.constant("lower", -1), op.constant("upper", -1)

    def run(x: Tensor) -> Tensor:
        if lower >= 0:
            x = torch.triu(x, -lower)
        return torch.tril(x, upper) if upper >= 0 else x

    return run


@operation("pad", inputs=("x",), computed=("pad",), moves_data=True)
def pad(op: Operation) -> Run:
    """Pad the last axes: `pad` holds two sizes for each of them, first axis first."""
    sizes, mode = op.required("pad"), op.constant("mode", "constant")
    value = op.constant("constant_val", 0.0)
    if mode not in ("constant", "reflect", "replicate"):
        raise op.error(f"unknown mode '{mode}'")
    pairs = [sizes[i : i + 2] for i in range(0, len(sizes), 2)]

    def run(x: Tensor) -> Tensor:
        first = x.dim() - len(pairs)
        sums = [0] * first + [sum(pair) for pair in pairs]
        shape = [size + more for size, more in zip(x.shape, sums, strict=True)]
        op.check_count(math.prod(shape), f"sizes {sizes}")
        if mode == "constant":
            flat = [size for pair in reversed(pairs) for size in pair]
            return functional.pad(x, flat, value=value)
        for axis, pair in enumerate(pairs, start=first):
            if pair != [0, 0]:
                x = x.index_select(axis, _beyond(op, x.shape[axis], pair, mode))
        return x

    return run


def _beyond(op: Operation, size: int, pair: list[int], mode: str) -> Tensor:
    """Return the places that an axis shows when it is padded with its own values."""
    if size == 0 or (mode == "reflect" and max(pair) >= size):
        raise op.error(f"an axis of {size} cannot be padded by {pair} with mode {mode}")
    places = torch.arange(-pair[0], size + pair[1])
    if mode == "replicate":
        return places.clamp(0, size - 1)
    return size - 1 - (size - 1 - places.abs()).abs()


@operation("flatten2d", inputs=("x",), moves_data=True)
def flatten2d(op: Operation) -> Run:
    """Two axes: the product of those before `axis`, and of the rest."""
    axis = op.constant("axis", 1)

    def run(x: Tensor) -> Tensor:
        first = x.shape[: axis if axis >= 0 else x.dim() + axis].numel()
        return x.reshape(first, -1)

    return run
