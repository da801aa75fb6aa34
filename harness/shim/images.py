"""Pictures as tensors and back.

A program sees the values 0 to 255 as floats, [1, 3, height, width] in the order of the described
colour space, or [1, 1, height, width]. Results are rounded to the nearest value, and come back as
Core ML's buffers do: RGB and BGR as RGBA. Source: coremltools' guide to image inputs, and its
`CoreMLPythonUtils.mm`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from harness.errors import HarnessError, NotInstalledError
from harness.shim.features import ImageFeature


@dataclass(frozen=True)
class _Colours:
    """A colour space: the modes of Pillow that fit it, its channels, and which of RGB is which."""

    modes: tuple[str, ...]
    channels: int
    order: tuple[int, ...] = ()


_COLOURS = {
    "RGB": _Colours(("RGB", "RGBA"), 3, (0, 1, 2)),
    "BGR": _Colours(("RGB", "RGBA"), 3, (2, 1, 0)),
    "GRAYSCALE": _Colours(("L",), 1),
    "GRAYSCALE_FLOAT16": _Colours(("F",), 1),
}


def is_image(value: Any) -> bool:
    """Whether a value is a picture of Pillow's; no Pillow, no picture."""
    try:
        from PIL import Image
    except ImportError:
        return False
    return isinstance(value, Image.Image)


def tensor_of_image(feature: ImageFeature, image: Any, where: str) -> torch.Tensor:
    """Return a picture as fp32, [1, channels, height, width]; raises HarnessError for no picture,
    or one of a mode or a size that does not fit."""
    colours = _COLOURS[feature.colours]
    if not is_image(image) or image.mode not in colours.modes:
        have = f"picture of mode {image.mode}" if is_image(image) else type(image).__name__
        raise HarnessError(
            f"{where}: input '{feature.name}' is a {have}; a {feature.colours} image is wanted, "
            f"which Pillow has as mode {' or '.join(colours.modes)}"
        )
    pixels = np.array(image)
    if not feature.sizes.allow(pixels.shape[:2]):
        raise HarnessError(
            f"{where}: input '{feature.name}' is {image.height} high and {image.width} wide; "
            f"allowed, as [height, width], is {feature.sizes}"
        )
    if feature.colours == "GRAYSCALE_FLOAT16":
        pixels = pixels.astype(np.float16)
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)[list(colours.order)]
    return torch.from_numpy(np.ascontiguousarray(planes, np.float32))[None]


def image_of_tensor(feature: ImageFeature, tensor: torch.Tensor, where: str) -> Any:
    """Return a result as a picture: RGBA, L or F; raises HarnessError when it is not shaped so."""
    colours = _COLOURS[feature.colours]
    if tensor.dim() not in (3, 4) or tensor.shape[-3] != colours.channels or tensor.numel() == 0:
        raise HarnessError(
            f"{where}: output '{feature.name}' has shape {list(tensor.shape)}; as a "
            f"{feature.colours} image it must be [1, {colours.channels}, height, width]"
        )
    planes = tensor.reshape(tensor.shape[-3:]).float().numpy()
    if feature.colours == "GRAYSCALE_FLOAT16":
        return _pillow().fromarray(planes[0].astype(np.float16).astype(np.float32))
    bytes_ = np.clip(np.rint(np.nan_to_num(planes)), 0, 255).astype(np.uint8)
    if colours.channels == 1:
        return _pillow().fromarray(bytes_[0])
    opaque = np.full_like(bytes_[:1], 255)
    rgba = np.concatenate((bytes_[list(colours.order)], opaque)).transpose(1, 2, 0)
    return _pillow().fromarray(np.ascontiguousarray(rgba))


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise NotInstalledError(
            "an output is an image, and Pillow is not installed: pip install pillow"
        ) from None
    return Image
