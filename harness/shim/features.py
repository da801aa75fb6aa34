"""The inputs and outputs of a function, from the model's description of it.

Source: `FeatureTypes.proto`. An array's dtype is the described one: the program casts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from harness.artifact import Package
from harness.artifact.proto import feature_types
from harness.errors import ArtifactError
from harness.mil.shapes import AllowedShapes

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
