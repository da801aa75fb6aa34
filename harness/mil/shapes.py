"""The shapes that a model's description allows for inputs of flexible shape.

Source: `ArrayFeatureType` in coremltools' `FeatureTypes.proto`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.artifact.package import Package, described
from harness.errors import HarnessError

if TYPE_CHECKING:
    from coremltools.proto.FeatureTypes_pb2 import ArrayFeatureType


@dataclass(frozen=True)
class AllowedShapes:
    """The shapes that an input may have: a list of shapes, or a range for each axis.

    The end of an unbounded range is None.
    """

    listed: tuple[tuple[int, ...], ...] = ()
    ranges: tuple[tuple[int, int | None], ...] = ()

    def allow(self, shape: Sequence[int]) -> bool:
        """Return whether a shape is allowed."""
        if self.listed:
            return tuple(shape) in self.listed
        return len(shape) == len(self.ranges) and all(
            low <= size and (high is None or size <= high)
            for size, (low, high) in zip(shape, self.ranges, strict=True)
        )

    def __str__(self) -> str:
        if self.listed:
            return ", ".join(str(list(shape)) for shape in self.listed)
        sizes = [
            f"{low}" if low == high else f"{low} to {'any' if high is None else high}"
            for low, high in self.ranges
        ]
        return f"[{', '.join(sizes)}]"


def allowed_shapes(package: Package, function: str) -> dict[str, AllowedShapes]:
    """Return the allowed shapes of a function's flexible inputs, by name."""
    found = {}
    for feature in described(package.model.description, function).input:
        if feature.type.WhichOneof("Type") != "multiArrayType":
            continue
        allowed = _allowed(feature.type.multiArrayType)
        if allowed is not None:
            found[feature.name] = allowed
    return found


def _allowed(array: ArrayFeatureType) -> AllowedShapes | None:
    match array.WhichOneof("ShapeFlexibility"):
        case "enumeratedShapes":
            shapes = tuple(tuple(s.shape) for s in array.enumeratedShapes.shapes)
            return AllowedShapes(listed=shapes) if shapes else None
        case "shapeRange":
            ranges = array.shapeRange.sizeRanges
            return AllowedShapes(
                ranges=tuple(
                    (r.lowerBound, None if r.upperBound < 0 else r.upperBound) for r in ranges
                )
            )
    return None


def check_shapes(
    allowed: Mapping[str, AllowedShapes], shapes: Mapping[str, Sequence[int]], where: str
) -> None:
    """Raise HarnessError that lists the allowed shapes unless all shapes are allowed together.

    If several inputs list their shapes, entries with the same index belong together.
    """
    for name, one in allowed.items():
        if name in shapes and not one.allow(shapes[name]):
            raise HarnessError(
                f"{where}: input '{name}' has shape {list(shapes[name])}; allowed is {one}"
            )
    listed = {name: one.listed for name, one in allowed.items() if one.listed and name in shapes}
    if len({len(every) for every in listed.values()}) != 1:
        return
    given = tuple(tuple(shapes[name]) for name in listed)
    rows = list(zip(*listed.values(), strict=True))
    if given not in rows:
        names = ", ".join(f"'{name}'" for name in listed)
        raise HarnessError(
            f"{where}: shapes {_row(given)} of inputs {names} do not belong together; "
            f"allowed are {', or '.join(map(_row, rows))}"
        )


def _row(shapes: Sequence[Sequence[int]]) -> str:
    return " with ".join(str(list(shape)) for shape in shapes)
