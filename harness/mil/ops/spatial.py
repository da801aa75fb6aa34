"""Operations that move values between channels, batch and space, or crop space. All are exact."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from harness.mil.operation import Operation, Run, operation


@operation("pixel_shuffle", inputs=("x",), moves_data=True)
def pixel_shuffle(op: Operation) -> Run:
    """Move blocks of channels into space; the channel is the slowest index of a block."""
    factor = op.required("upscale_factor")
    return lambda x: functional.pixel_shuffle(x, factor)


@operation("pixel_unshuffle", inputs=("x",), moves_data=True)
def pixel_unshuffle(op: Operation) -> Run:
    """Move space into blocks of channels; undoes `pixel_shuffle`."""
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
    """Move space into blocks of channels; undoes `depth_to_space`."""
    size = op.required("block_size")

    def run(x: Tensor) -> Tensor:
        n, channels, high, wide = x.shape
        parts = x.reshape(n, channels, high // size, size, wide // size, size)
        return parts.permute(0, 3, 5, 1, 2, 4).reshape(n, -1, high // size, wide // size)

    return run


@operation("space_to_batch", inputs=("x",), moves_data=True)
def space_to_batch(op: Operation) -> Run:
    """Pad space, then move its blocks into the batch, which they are the slowest index of."""
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
    """Move the batch into blocks of space, then crop; undoes `space_to_batch`."""
    (rows, columns), crops = op.required("block_shape"), op.required("crops")

    def run(x: Tensor) -> Tensor:
        n, channels, high, wide = x.shape
        parts = x.reshape(rows, columns, n // (rows * columns), channels, high, wide)
        moved = parts.permute(2, 3, 4, 0, 5, 1)
        return _cropped(moved.reshape(-1, channels, high * rows, wide * columns), *crops)

    return run


@operation("crop", inputs=("x",), moves_data=True)
def crop(op: Operation) -> Run:
    """Leave out rows and columns at both ends of the last two axes."""
    high, wide = op.required("crop_height"), op.required("crop_width")
    return lambda x: _cropped(x, high, wide)


def _cropped(x: Tensor, high: list[int], wide: list[int]) -> Tensor:
    return x[..., high[0] : x.shape[-2] - high[1], wide[0] : x.shape[-1] - wide[1]]
