"""Operations that resize, sample or crop images."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from harness.mil.operation import Operation, Run, operation
from harness.mil.ops.sampling import (
    axis_grid,
    bilinear,
    grid,
    in_bands,
    linear_along,
    nearest_along,
    pixels,
)
from harness.mil.ops.scatter_gather import in_range


@operation("resize_bilinear", inputs=("x",))
def resize_bilinear(op: Operation) -> Run:
    """Resize the last two axes to given sizes by linear interpolation."""
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
    """Resize the last two axes by factors, like `resize_nearest_neighbor`."""
    factors = _factors(op)
    return lambda x: _floor(op, x, _scaled(x, factors))


@operation("upsample_bilinear", inputs=("x",))
def upsample_bilinear(op: Operation) -> Run:
    """Resize the last two axes by factors with linear interpolation."""
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
        positions = axis_grid(op, "DEFAULT", x.shape[axis], size)
        # a position that should be an integer may be slightly smaller: 1 / 3 * 3
        x = x.index_select(axis, (positions + 1e-9).floor().long())
    return x


_CORNERS = {"CORNERS_HEIGHT_FIRST": (0, 1, 2, 3), "CORNERS_WIDTH_FIRST": (1, 0, 3, 2)}


_CENTERS = {"CENTER_SIZE_HEIGHT_FIRST": (0, 1, 2, 3), "CENTER_SIZE_WIDTH_FIRST": (1, 0, 3, 2)}


@operation("crop_resize", inputs=("x", "roi", "boxes", "box_indices"))
def crop_resize(op: Operation) -> Run:
    """Sample boxes of images [B, C, H, W] in a grid of given size, `pad_value` outside an image.

    Up to iOS 16 a box of `roi` [N, 1, 4 or 5, 1, 1] applies to all images or begins with the number
    of its image; the result is [N, B or 1, C, h, w]. From iOS 17 on `boxes` [N, 4] belong to the
    images `box_indices` [N]; the result is [N, C, h, w].
    """
    boxes_of = _Boxes(op)
    sizes = op.constant("target_height", 1), op.constant("target_width", 1)
    mode, pad = op.constant("sampling_mode", "DEFAULT"), op.constant("pad_value", 0.0)

    def crops(x: Tensor, boxes: Tensor, numbers: Tensor) -> Tensor:
        op.check_count(len(boxes) * x.shape[1] * sizes[0] * sizes[1], "boxes")
        top, left, bottom, right = boxes_of.corners(boxes, x).unbind(1)
        down = grid(op, mode, top, bottom, sizes[0])[:, :, None].expand(-1, -1, sizes[1])
        across = grid(op, mode, left, right, sizes[1])[:, None].expand(-1, sizes[0], -1)
        high, wide = x.shape[-2:]
        images = x.index_select(0, in_range(op, numbers, len(x)))

        def sample(rows: Tensor, columns: Tensor) -> Tensor:
            inside = (rows >= 0) & (rows <= high - 1) & (columns >= 0) & (columns <= wide - 1)
            taken = bilinear(images, rows.clamp(0, high - 1), columns.clamp(0, wide - 1))
            return torch.where(inside[:, None], taken, pad)

        return in_bands(sample, down, across)

    def run(x: Tensor, roi: Tensor | None, boxes: Tensor | None, numbers: Tensor | None) -> Tensor:
        if boxes is not None:
            return crops(x, boxes, torch.arange(len(boxes)) if numbers is None else numbers)
        if roi is None or roi.dim() != 5 or roi.shape[2] not in (4, 5):
            raise op.error("roi must have shape [N, 1, 4 or 5, 1, 1]")
        rows = roi.reshape(len(roi), -1)
        if rows.shape[1] == 5:
            return crops(x, rows[:, 1:], rows[:, 0])[:, None]
        op.check_count(len(rows) * len(x) * x.shape[1] * sizes[0] * sizes[1], "boxes")
        every = torch.arange(len(x)).repeat(len(rows))
        taken = crops(x, rows.repeat_interleave(len(x), 0), every)
        return taken.reshape(len(rows), len(x), *taken.shape[1:])

    return run


class _Boxes:
    """Reads the format of an operation's boxes."""

    def __init__(self, op: Operation) -> None:
        self._mode = op.constant("box_coordinate_mode", "CORNERS_HEIGHT_FIRST")
        self._normalized = op.constant("normalized_coordinates", False)
        self._scale = op.constant("spatial_scale", 1.0)
        if self._mode not in _CORNERS | _CENTERS:
            raise op.error(f"unknown box_coordinate_mode '{self._mode}'")

    def corners(self, boxes: Tensor, x: Tensor) -> Tensor:
        """Return top, left, bottom and right [N, 4] in pixels of `x`."""
        ordered = boxes.double()[:, list((_CORNERS | _CENTERS)[self._mode])]
        if self._mode in _CENTERS:
            center, size = ordered[:, :2], ordered[:, 2:]
            ordered = torch.cat([center - size / 2, center + size / 2], 1)
        if self._normalized:
            high, wide = x.shape[-2] - 1, x.shape[-1] - 1
            ordered = ordered * torch.tensor([high, wide, high, wide], dtype=torch.float64)
        return ordered * float(self._scale)


@operation("resample", inputs=("x", "coordinates"))
def resample(op: Operation) -> Run:
    """Sample images [B, C, H, W] at coordinates (x, y), [B, h, w, 2]; return [B, C, h, w]."""
    sampler = _Sampler(op)
    return lambda x, coordinates: sampler.sample(x, coordinates.double())


@operation("affine", inputs=("x", "transform_matrix"))
def affine(op: Operation) -> Run:
    """Sample images at a grid over [-1, 1] that a map [a0, a1, a2, b0, b1, b2] has transformed."""
    sampler = _Sampler(op)
    high, wide = op.required("output_height"), op.required("output_width")

    def run(x: Tensor, maps: Tensor) -> Tensor:
        op.checked_shape((*x.shape[:2], high, wide), "output_height and output_width")
        rows = torch.linspace(-1, 1, high, dtype=torch.float64)
        columns = torch.linspace(-1, 1, wide, dtype=torch.float64)
        down, across = torch.meshgrid(rows, columns, indexing="ij")
        points = torch.stack([across, down, torch.ones_like(down)], -1)
        moved = points @ maps.double().reshape(-1, 1, 2, 3).mT  # [D, h, w, 2]
        return sampler.sample(x, moved.expand(len(x), -1, -1, -1))

    return run


class _Sampler:
    """Reads how an operation samples: the meaning of coordinates, and the values outside."""

    def __init__(self, op: Operation) -> None:
        self._op = op
        self._mode = str(op.required("sampling_mode")).lower()
        self._padding = str(op.required("padding_mode")).lower()
        self._value = op.constant("padding_value", 0.0)
        self._coordinates = str(op.required("coordinates_mode")).lower()
        self._align = op.required("align_corners")
        for name, value, known in (
            ("sampling_mode", self._mode, ("bilinear", "nearest")),
            ("padding_mode", self._padding, ("constant", "border", "reflection", "symmetric")),
            ("coordinates_mode", self._coordinates, tuple(_TO_UNIT)),
        ):
            if value not in known:
                raise op.error(f"{name} '{value}'; known are {', '.join(known)}")

    def sample(self, x: Tensor, coordinates: Tensor) -> Tensor:
        """Return the samples [B, C, h, w] at coordinates [B, h, w, 2]."""
        if coordinates.shape[0] != len(x) or coordinates.shape[-1] != 2:
            raise self._op.error(f"coordinates {list(coordinates.shape)} of {len(x)} images")
        self._op.check_count(coordinates[..., 0].numel() * x.shape[1], "coordinates")
        return in_bands(
            lambda columns, rows: self._sampled(x, columns, rows), *coordinates.unbind(-1)
        )

    def _sampled(self, x: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
        columns, rows = self._pixel(columns, x.shape[-1]), self._pixel(rows, x.shape[-2])
        if self._mode == "nearest":
            return self._at(x, rows.round(), columns.round())
        top, left = rows.floor(), columns.floor()
        down, across = ((f)[:, None].to(x.dtype) for f in (rows - top, columns - left))
        upper = self._at(x, top, left) * (1 - across) + self._at(x, top, left + 1) * across
        lower = self._at(x, top + 1, left) * (1 - across) + self._at(x, top + 1, left + 1) * across
        return upper * (1 - down) + lower * down

    def _pixel(self, values: Tensor, size: int) -> Tensor:
        unit = _TO_UNIT[self._coordinates]
        if unit is None:
            positions = values
        elif self._align:
            positions = unit(values) * (size - 1)
        else:
            positions = unit(values) * size - 0.5
        return positions if self._padding == "constant" else self._inside(positions, size)

    def _inside(self, positions: Tensor, size: int) -> Tensor:
        if self._padding == "reflection" and size > 1:
            positions = _folded(positions, size - 1)
        elif self._padding == "symmetric":
            positions = _folded(positions + 0.5, size) - 0.5
        return positions.clamp(0, size - 1)

    def _at(self, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        high, wide = x.shape[-2:]
        inside = (rows >= 0) & (rows < high) & (columns >= 0) & (columns < wide)
        positions = (
            r.nan_to_num().clamp(0, n - 1).long() for r, n in ((rows, high), (columns, wide))
        )
        taken = pixels(x, *positions)
        if self._padding != "constant":
            return taken
        return torch.where(inside[:, None], taken, self._value)


_TO_UNIT = {
    "unnormalized": None,
    "normalized_minus_one_to_one": lambda values: (values + 1) / 2,
    "normalized_zero_to_one": lambda values: values,
}
"""The functions from coordinates to fractions of an image's extent."""


def _folded(positions: Tensor, period: int) -> Tensor:
    """Fold the real line into [0, period], back and forth."""
    return period - (positions.remainder(2 * period) - period).abs()


@operation("crop", inputs=("x",), moves_data=True)
def crop(op: Operation) -> Run:
    """Cut rows and columns off both ends of the last two axes."""
    high, wide = op.required("crop_height"), op.required("crop_width")
    return lambda x: x[..., high[0] : x.shape[-2] - high[1], wide[0] : x.shape[-1] - wide[1]]
