"""Computes the positions at which images are sampled, and the values between pixels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from harness.mil.operation import Operation

_BAND = 1 << 20  # positions that are sampled together


def grid(op: Operation, mode: str, first: Tensor, last: Tensor, count: int) -> Tensor:
    """Return the positions, as fp64, of `count` samples of an interval.

    The interval extends from pixel `first` to pixel `last`, both [N]; the result is [N, count].
    Source: the notes on `resize_bilinear` in the MIL reference, which define the modes for the
    interval from 0 to size - 1.
    """
    step = torch.arange(count, dtype=torch.float64)
    begin, reach = first.double()[:, None], (last - first).double()[:, None]
    match mode:
        case "STRICT_ALIGN_CORNERS":
            return begin + step * reach / max(count - 1, 1)
        case "ALIGN_CORNERS":
            return begin + (step * reach / (count - 1) if count > 1 else reach / 2)
        case "DEFAULT":
            return begin + step * (reach + 1) / count
        case "OFFSET_CORNERS":
            return begin + (step + 0.5) * reach.clamp(min=1) / count
        case "UNALIGN_CORNERS":
            return begin + (step + 0.5) * (reach + 1) / count - 0.5
    raise op.error(f"unknown sampling_mode '{mode}'")


def axis_grid(op: Operation, mode: str, size: int, count: int) -> Tensor:
    """Return the positions [count] of samples of a whole axis, all within it."""
    ends = torch.zeros(1), torch.full((1,), float(size - 1))
    return grid(op, mode, *ends, count)[0].clamp(0, max(size - 1, 0))


def linear_along(x: Tensor, axis: int, positions: Tensor) -> Tensor:
    """Interpolate between the two neighbours of each position along an axis of `x`."""
    low = positions.floor().long().clamp(0, x.shape[axis] - 1)
    high = (low + 1).clamp(max=x.shape[axis] - 1)
    shape = [1] * x.dim()
    shape[axis] = -1
    share = (positions - low).to(x.dtype).reshape(shape)
    below, above = x.index_select(axis, low), x.index_select(axis, high)
    return _mixed(below, above, share)


def nearest_along(x: Tensor, axis: int, positions: Tensor) -> Tensor:
    """Take the pixel nearest to each position along an axis of `x`; halves take the higher one."""
    return x.index_select(axis, (positions + 0.5).floor().long().clamp(0, x.shape[axis] - 1))


def bilinear(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Interpolate images [N, C, H, W] at rows and columns [N, h, w]; return [N, C, h, w]."""
    high, wide = images.shape[-2:]
    top, left = rows.floor().long().clamp(0, high - 1), columns.floor().long().clamp(0, wide - 1)
    bottom, right = (top + 1).clamp(max=high - 1), (left + 1).clamp(max=wide - 1)
    down = (rows - top).to(images.dtype)[:, None]
    across = (columns - left).to(images.dtype)[:, None]
    upper = _mixed(pixels(images, top, left), pixels(images, top, right), across)
    lower = _mixed(pixels(images, bottom, left), pixels(images, bottom, right), across)
    return _mixed(upper, lower, down)


def pixels(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Take pixels [N, C, h, w] of images [N, C, H, W] at rows and columns [N, h, w]."""
    flat = (rows * images.shape[-1] + columns).flatten(1)[:, None]
    taken = images.flatten(2).gather(2, flat.expand(-1, images.shape[1], -1))
    return taken.reshape(*images.shape[:2], *rows.shape[1:])


def in_bands(sample: Callable[..., Tensor], *positions: Tensor) -> Tensor:
    """Sample [N, C, h, w] at positions [N, h, w], a band of rows at a time.

    Each result needs a dozen tensors of its size, in fp64 and int64; the bands keep these small.
    """
    count, _, wide = positions[0].shape
    rows = max(1, _BAND // max(1, count * wide))
    bands = zip(*(torch.split(tensor, rows, 1) for tensor in positions), strict=True)
    return torch.cat([sample(*band) for band in bands], 2)


def _mixed(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """Return the value at a `share` of the way from `first` to `second`.

    Equal values stay as they are. Where the difference is not finite, the result is the sum of two
    products, as in PyTorch's operation, which MIL's page names.
    """
    mixed = first + (second - first) * share
    finite = mixed.isfinite()
    if bool(finite.all()):
        return mixed
    mixed = torch.where(finite, mixed, first * (1 - share) + second * share)
    return torch.where(first == second, first, mixed)
