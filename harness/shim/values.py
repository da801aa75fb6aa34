"""The inputs and outputs of a function, and their values between Python and tensors.

The model's description gives each feature's kind, dtype and shapes (`FeatureTypes.proto`); an
array's dtype is the described one: the program casts.

Core ML's bindings take arrays of float32, float64, int32 and int8 and convert them to the described
dtype. They return FLOAT16 results as float32, and a scalar with shape (1,).

A program takes an image as floats from 0 to 255, [1, 3, height, width] in the described order of
colours, or [1, 1, height, width]. An image that it returns is rounded to integers; RGB and BGR
become RGBA, as in Core ML's buffers.

Sources: coremltools' `CoreMLPythonArray.mm` and `CoreMLPythonUtils.mm`, and its guide to image
inputs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from harness.artifact import Package
from harness.artifact.package import core_ml_shape
from harness.artifact.proto import feature_types
from harness.errors import ArtifactError, HarnessError, NotInstalledError
from harness.mil.types import AllowedShapes

_TAKEN = ("float32", "float64", "int32", "int8")
_GIVEN = {"float16": "float32"}  # numpy in the native module has no half precision
_PLAIN = ("int64Type", "stringType", "dictionaryType")  # a classifier's label and probabilities


@dataclass(frozen=True)
class ArrayFeature:
    """An array: numpy's name of its dtype, its default shape, and the value that fills it.

    The value is None if a caller must give the array.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    filler: float | None


@dataclass(frozen=True)
class ImageFeature:
    """A picture: its colour space and its sizes, (height, width)."""

    name: str
    colours: str
    sizes: AllowedShapes


@dataclass(frozen=True)
class PlainFeature:
    """A label or a dictionary, which the program returns as a value of Python."""

    name: str


Feature = ArrayFeature | ImageFeature | PlainFeature


@dataclass(frozen=True)
class Signature:
    """A function's inputs, outputs and states by name, in the order of their description."""

    inputs: dict[str, Feature]
    outputs: dict[str, Feature]
    states: dict[str, Feature]


def read_signature(package: Package, function: str) -> Signature:
    """Return a package's description of a function; raises ArtifactError if it is unsupported."""
    description = package.description(function)
    where = f"{package.what}, function '{function}'"
    return Signature(
        *(
            _features(part, where)
            for part in (description.input, description.output, description.state)
        )
    )


def _features(messages: Iterable[Any], where: str) -> dict[str, Feature]:
    return {message.name: _feature(message, where) for message in messages}


def _feature(message: Any, where: str) -> Feature:
    kind = message.type.WhichOneof("Type")
    match kind:
        case "multiArrayType":
            return _array(message.name, message.type.multiArrayType, message.type.isOptional, where)
        case "stateType":
            return _array(message.name, message.type.stateType.arrayType, False, where)
        case "imageType":
            return _image(message.name, message.type.imageType, where)
    if kind in _PLAIN:
        return PlainFeature(message.name)
    raise ArtifactError(
        f"{where}: '{message.name}' is of kind {kind or 'nothing'}; an ML Program takes and "
        "returns arrays, images and labels"
    )


def _array(name: str, message: Any, optional: bool, where: str) -> ArrayFeature:
    if message.dataType not in feature_types():
        raise ArtifactError(f"{where}: array '{name}' has no dtype")
    given = message.WhichOneof("defaultOptionalValue")
    filler = float(getattr(message, given)) if given else 0.0
    dtype = feature_types()[message.dataType]
    return ArrayFeature(name, dtype, tuple(message.shape), filler if optional else None)


def _image(name: str, message: Any, where: str) -> ImageFeature:
    colours = {number: name for name, number in message.ColorSpace.items() if number}
    if message.colorSpace not in colours:
        raise ArtifactError(f"{where}: image '{name}' has no colour space")
    sizes = AllowedShapes(listed=((message.height, message.width),))
    match message.WhichOneof("SizeFlexibility"):
        case "enumeratedSizes":
            listed = message.enumeratedSizes.sizes
            sizes = AllowedShapes(listed=tuple((size.height, size.width) for size in listed))
        case "imageSizeRange":
            limits = message.imageSizeRange.heightRange, message.imageSizeRange.widthRange
            sizes = AllowedShapes(
                ranges=tuple(
                    (limit.lowerBound, None if limit.upperBound < 0 else limit.upperBound)
                    for limit in limits
                )
            )
    return ImageFeature(name, colours[message.colorSpace], sizes)


def tensors_of_inputs(
    signature: Signature, values: Mapping[str, Any], where: str
) -> dict[str, torch.Tensor]:
    """Return every input of a function as a tensor; a missing optional input gets its default.

    Values that are not inputs are ignored, as in Core ML. The call of the function checks the
    shapes of arrays. Raises HarnessError that names the input and the allowed values.
    """
    return {
        name: _entered(feature, values[name], where) if name in values else _filled(feature, where)
        for name, feature in signature.inputs.items()
    }


def python_of_outputs(
    signature: Signature, results: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """Return a function's results by name, converted as Core ML's bindings do."""
    missing = signature.outputs.keys() - results.keys()
    if missing:
        raise HarnessError(f"{where}: describes output '{min(missing)}' but does not return it")
    return {
        name: _left(feature, results[name], where) for name, feature in signature.outputs.items()
    }


def report_not_finite(where: str, outputs: Mapping[str, Any], reported: set[str]) -> None:
    """Write a line to standard error for each output that holds NaN or an infinity.

    A runner goes on with such logits, and prints a text of them. `reported` has the names of the
    outputs that were reported before; those are not reported again.
    """
    for name, value in outputs.items():
        if not torch.is_tensor(value) or not value.is_floating_point() or name in reported:
            continue
        finite = value.isfinite()
        if finite.all():
            continue
        reported.add(name)
        wrong = (~finite).nonzero()
        print(
            f"harness shim: warning: {where}: {len(wrong):,} of {value.numel():,} numbers of "
            f"output '{name}' {list(value.shape)} are NaN or infinite, the first at "
            f"{wrong[0].tolist()}; look for a row of the mask without a visible position, or for "
            "numbers beyond fp16's range (--policy widen); later calls are not reported",
            file=sys.stderr,
            flush=True,
        )


def array_of_tensor(tensor: torch.Tensor, dtype: str) -> np.ndarray:
    """Return a copy of a tensor as the array of a described dtype."""
    array = tensor.numpy().astype(_GIVEN.get(dtype, dtype))
    return array.reshape(core_ml_shape(array.shape))


def tensor_of_array(value: Any, name: str, where: str) -> torch.Tensor:
    """Return a copy of an array as a tensor; a scalar's shape becomes (1,).

    Raises HarnessError for an array that Core ML's bindings do not take.
    """
    if not isinstance(value, np.ndarray):
        raise HarnessError(
            f"{where}: '{name}' is of type {type(value).__name__}; give a numpy array of "
            f"{', '.join(_TAKEN)}"
        )
    if value.dtype.name not in _TAKEN:
        raise HarnessError(
            f"{where}: '{name}' is an array of {value.dtype}; Core ML takes {', '.join(_TAKEN)}: "
            "cast it with .astype"
        )
    return torch.from_numpy(np.array(value.reshape(core_ml_shape(value.shape))))


def _entered(feature: Feature, value: Any, where: str) -> torch.Tensor:
    if isinstance(feature, ImageFeature):
        return tensor_of_image(feature, value, where)
    if isinstance(feature, PlainFeature):
        raise HarnessError(f"{where}: input '{feature.name}' is neither an array nor an image")
    tensor = tensor_of_array(value, feature.name, where)
    # The program itself may declare fp16: only the kind, float or integer, is set here.
    wanted: torch.dtype = getattr(torch, feature.dtype)
    return tensor if wanted.is_floating_point else tensor.to(wanted)


def _filled(feature: Feature, where: str) -> torch.Tensor:
    if isinstance(feature, ArrayFeature) and feature.filler is not None:
        return torch.full(feature.shape, feature.filler, dtype=getattr(torch, feature.dtype))
    what = (
        f"an array, by default of shape {list(feature.shape)}"
        if isinstance(feature, ArrayFeature)
        else "an image"
    )
    raise HarnessError(f"{where}: input '{feature.name}' is missing; it is {what}")


def _left(feature: Feature, result: Any, where: str) -> Any:
    if isinstance(feature, PlainFeature):
        return result
    if not isinstance(result, torch.Tensor):
        raise HarnessError(f"{where}: output '{feature.name}' is not a tensor")
    if isinstance(feature, ImageFeature):
        return image_of_tensor(feature, result, where)
    return array_of_tensor(result, feature.dtype)


@dataclass(frozen=True)
class _Colours:
    """A colour space: the modes of Pillow that fit it, its channels, and their order."""

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
    """Return whether a value is an image of Pillow; without Pillow, none is."""
    try:
        from PIL import Image
    except ImportError:
        return False
    return isinstance(value, Image.Image)


def tensor_of_image(feature: ImageFeature, image: Any, where: str) -> torch.Tensor:
    """Return an image as fp32, [1, channels, height, width].

    Raises HarnessError for a value that is not an image, or whose mode or size does not fit.
    """
    colours = _COLOURS[feature.colours]
    if not is_image(image) or image.mode not in colours.modes:
        have = f"picture of mode {image.mode}" if is_image(image) else type(image).__name__
        raise HarnessError(
            f"{where}: input '{feature.name}' is a {have}; the model takes {feature.colours}, "
            f"Pillow's mode {' or '.join(colours.modes)}"
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
    """Return a result as an image, RGBA, L or F; raises HarnessError for another shape."""
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
