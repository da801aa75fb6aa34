"""Operations that resize the last axes of a tensor."""

from __future__ import annotations

import math

from torch import Tensor

from harness.mil.operation import Operation, Run, operation
from harness.mil.ops.sampling import axis_grid, linear_along, nearest_along


@operation("resize_bilinear", inputs=("x",))
def resize_bilinear(op: Operation) -> Run:
    """Resize the last two axes to given sizes, linearly."""
    high, wide = op.constant("target_size_height", 1), op.constant("target_size_width", 1)
    mode = op.constant("sampling_mode", "DEFAULT")
    return lambda x: _linear(op, x, (high, wide), mode)


@operation("resize_nearest_neighbor", inputs=("x",), moves_data=True)
def resize_nearest_neighbor(op: Operation) -> Run:
    """Resize the last two axes to given sizes: result i is pixel `floor(i * size / new size)`."""
    high, wide = op.required("target_size_height"), op.required("target_size_width")
    return lambda x: _floor(op, x, (high, wide))


@operation("upsample_nearest_neighbor", inputs=("x",), moves_data=True)
def upsample_nearest_neighbor(op: Operation) -> Run:
    """Resize the last two axes by factors, as `resize_nearest_neighbor` does."""
    factors = _factors(op)
    return lambda x: _floor(op, x, _scaled(x, factors))


@operation("upsample_bilinear", inputs=("x",))
def upsample_bilinear(op: Operation) -> Run:
    """Resize the last two axes by factors, linearly."""
    factors, align = _factors(op), op.constant("align_corners", True)
    half_pixel = op.constant("half_pixel_centers", not align)
    if align and half_pixel:
        raise op.error("align_corners and half_pixel_centers exclude each other")
    mode = "UNALIGN_CORNERS" if half_pixel else "STRICT_ALIGN_CORNERS" if align else "DEFAULT"
    return lambda x: _linear(op, x, _scaled(x, factors), mode)


@operation("resize", inputs=("x",), computed=("shape",))
def resize(op: Operation) -> Run:
    """Resize the last `resized_dims` axes to the last sizes of `shape`; 0 keeps a size."""
    shape, count = op.required("shape"), op.required("resized_dims")
    interpolation = op.constant("interpolation_mode", "LINEAR")
    mode = op.constant("sampling_mode", "DEFAULT")
    if interpolation not in ("LINEAR", "NEAREST_NEIGHBOR"):
        raise op.error(f"unknown interpolation_mode '{interpolation}'")
    if count > len(shape):
        raise op.error(f"resized_dims {count} of a shape of {len(shape)} sizes")
    sample = linear_along if interpolation == "LINEAR" else nearest_along
    wanted = shape[len(shape) - count :]

    def run(x: Tensor) -> Tensor:
        first = x.dim() - count
        sizes = [size or x.shape[first + i] for i, size in enumerate(wanted)]
        op.checked_shape((*x.shape[:first], *sizes), f"sizes {sizes}")
        whole = x if x.is_floating_point() else x.double()
        for axis, size in enumerate(sizes, start=first):
            whole = sample(whole, axis, axis_grid(op, mode, x.shape[axis], size))
        return whole.to(x.dtype)

    return run


def _factors(op: Operation) -> tuple[float, float]:
    return op.constant("scale_factor_height", 1), op.constant("scale_factor_width", 1)


def _scaled(x: Tensor, factors: tuple[float, float]) -> tuple[int, int]:
    high, wide = (
        math.floor(size * factor) for size, factor in zip(x.shape[-2:], factors, strict=True)
    )
    return high, wide


def _linear(op: Operation, x: Tensor, sizes: tuple[int, int], mode: str) -> Tensor:
    op.checked_shape((*x.shape[:-2], *sizes), f"sizes {list(sizes)}")
    for axis, size in zip((-2, -1), sizes, strict=True):
        x = linear_along(x, axis, axis_grid(op, mode, x.shape[axis], size))
    return x


def _floor(op: Operation, x: Tensor, sizes: tuple[int, int]) -> Tensor:
    op.checked_shape((*x.shape[:-2], *sizes), f"sizes {list(sizes)}")
    for axis, size in zip((-2, -1), sizes, strict=True):
        places = axis_grid(op, "DEFAULT", x.shape[axis], size)
        # a place that should be whole may be a hair below: 1 / 3 * 3
        x = x.index_select(axis, (places + 1e-9).floor().long())
    return x
