"""The types of MIL values: tensors, lists, states, dictionaries; and the policies of numbers.

And the shapes that a model's description allows for inputs of flexible shape. Sources: `ValueType`
in coremltools' `MIL.proto`, `ArrayFeatureType` in its `FeatureTypes.proto`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from harness.artifact.package import Package
from harness.artifact.proto import MilType, declared_shape, mil_types
from harness.errors import ArtifactError, HarnessError

if TYPE_CHECKING:
    from coremltools.proto import MIL_pb2
    from coremltools.proto.FeatureTypes_pb2 import ArrayFeatureType


Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class TensorType:
    """A declared tensor: its dtype and its shape, with None for a flexible dimension.

    If the rank itself is flexible (`variadic`), the shape is empty.
    """

    dtype: MilType
    shape: Shape
    variadic: bool = False

    @property
    def count(self) -> int:
        """The number of elements; flexible dimensions count as one."""
        return math.prod(size or 0 if size is not None else 1 for size in self.shape)

    @cached_property
    def is_float(self) -> bool:
        """Whether its elements are floats."""
        return self.dtype.name.startswith("FLOAT")

    @property
    def is_fixed(self) -> bool:
        """Whether every dimension is declared."""
        return not self.variadic and None not in self.shape

    def fits(self, value: object) -> bool:
        """Return whether a value has the declared shape."""
        if isinstance(value, torch.Tensor) and value.shape == self.shape:
            return True
        if not isinstance(value, torch.Tensor):
            return self.dtype.name in ("STRING", "INT64") and not self.shape
        return self.variadic or (
            value.dim() == len(self.shape)
            and all(
                want is None or have == want
                for have, want in zip(value.shape, self.shape, strict=True)
            )
        )

    def __str__(self) -> str:
        return f"{self.dtype.name}{'[...]' if self.variadic else list(self.shape)}"


@dataclass(frozen=True)
class TensorList:
    """The value of a list: tensors, and None for unwritten elements; a write makes a new list."""

    items: tuple[torch.Tensor | None, ...]


@dataclass(frozen=True)
class ListType:
    """A list of tensors of one type; lists grow, so their length is not part of the type."""

    element: TensorType

    def fits(self, value: object) -> bool:
        """Return whether a value is a list."""
        return isinstance(value, TensorList)


@dataclass(frozen=True)
class StateType:
    """A tensor that persists from call to call."""

    wrapped: TensorType

    def fits(self, value: object) -> bool:
        """Return True, because a state is checked when it enters a function."""
        return True


@dataclass(frozen=True)
class DictionaryType:
    """A dictionary from class labels to probabilities."""

    key: TensorType

    def fits(self, value: object) -> bool:
        """Return whether a value is a dictionary."""
        return isinstance(value, dict)


ValueType = TensorType | ListType | StateType | DictionaryType


def value_type(message: MIL_pb2.ValueType, where: str) -> ValueType:
    """Return the type that a `ValueType` message declares.

    Raise ArtifactError that names `where` for a type that cannot be executed.
    """
    kind = message.WhichOneof("type")
    if kind not in _KINDS:
        raise ArtifactError(f"{where}: a value of kind {kind or 'nothing'} cannot be executed")
    return _KINDS[kind](getattr(message, kind), where)


def tensor_type(message: MIL_pb2.ValueType, where: str) -> TensorType:
    """Return the tensor type of a `ValueType`; raise ArtifactError for another type."""
    if message.WhichOneof("type") != "tensorType":
        kind = message.WhichOneof("type") or "nothing"
        raise ArtifactError(f"{where}: a value of kind {kind}, where a tensor is expected")
    return _tensor(message.tensorType, where)


def broadcast_type(declared: TensorType, operands: Sequence[ValueType]) -> TensorType:
    """Return a declared type with the shape to which its operands are broadcast.

    coremltools declares a `select` by the shapes of `a` and `b` only: a choice between two scalars
    has rank 0 there, whatever `cond` has. The operation's manual page broadcasts all three.
    """
    shapes = [operand.shape for operand in operands if isinstance(operand, TensorType)]
    rank = max((len(shape) for shape in shapes), default=0)
    if declared.variadic or rank < len(declared.shape):
        return declared
    padded = [(1,) * (rank - len(shape)) + shape for shape in (declared.shape, *shapes)]
    return replace(declared, shape=tuple(map(_broadcast, zip(*padded, strict=True))))


def _broadcast(sizes: Sequence[int | None]) -> int | None:
    """Return the size of one axis; None where it is flexible. The declared size comes first."""
    fixed = [size for size in sizes if size not in (1, None)]
    return fixed[0] if fixed else None if None in sizes else 1


def _tensor(declared: MIL_pb2.TensorType, where: str) -> TensorType:
    if declared.dataType not in mil_types():
        raise ArtifactError(f"{where}: unknown MIL dtype {declared.dataType}")
    shape = declared_shape(declared)
    variadic = any(
        d.WhichOneof("dimension") == "unknown" and d.unknown.variadic for d in declared.dimensions
    )
    return TensorType(mil_types()[declared.dataType], () if variadic else shape, variadic)


def _held(message: MIL_pb2.ValueType, kind: str, where: str) -> TensorType:
    if message.WhichOneof("type") != "tensorType":
        raise ArtifactError(f"{where}: a value of kind {kind}; only tensors can be in it")
    return _tensor(message.tensorType, where)


_KINDS: dict[str, Callable[[Any, str], ValueType]] = {
    "tensorType": _tensor,
    "listType": lambda message, where: ListType(_held(message.type, "listType", where)),
    "stateType": lambda message, where: StateType(_held(message.wrappedType, "stateType", where)),
    "dictionaryType": lambda message, where: DictionaryType(
        _held(message.keyType, "dictionaryType", where)
    ),
}


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

    def refusal(self, shape: Sequence[int]) -> str:
        """Return the sentence with which Core ML refuses a shape; scripts look for it."""
        if self.listed or len(shape) != len(self.ranges):
            sizes = " x ".join(map(str, shape))
            return f"MultiArray Shape ({sizes}) was not in enumerated set of allowed shapes"
        for axis, (size, (low, high)) in enumerate(zip(shape, self.ranges, strict=True)):
            if size < low or (high is not None and size > high):
                end = "" if high is None else high
                return f"Size ({size}) of dimension ({axis}) is not in allowed range ({low}..{end})"
        return ""

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
    for feature in package.described(function).input:
        if feature.type.WhichOneof("Type") != "multiArrayType":
            continue
        allowed = allowed_shape(feature.type.multiArrayType)
        if allowed is not None:
            found[feature.name] = allowed
    return found


def allowed_shape(array: ArrayFeatureType) -> AllowedShapes | None:
    """Return the shapes that a described array of flexible shape may have; None of a fixed one."""
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
                f"{where}: input '{name}' has shape {list(shapes[name])}; allowed is {one} "
                f"({one.refusal(shapes[name])})"
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


# --- policies: the dtypes of values while a program executes
#
# `strict` rounds every FLOAT16 result to fp16 and accumulates in fp32; it predicts fp16 hazards.
# `widen` keeps FLOAT16 values in fp32 without rounding; it shows errors that fp16 noise hides.
# `double` keeps every float in fp64; it is the reference. All three round a constexpr result to its
# declared dtype, because a device uses these weights too.

_INTEGERS = {"INT64": torch.int64, "UINT32": torch.int64, "UINT64": torch.int64}
_FLOATS = {"FLOAT16": torch.float16, "FLOAT32": torch.float32, "FLOAT64": torch.float64}


@dataclass(frozen=True)
class Policy:
    """The dtypes of floats, and whether FLOAT16 results are rounded after each operation."""

    name: str
    carriers: dict[str, torch.dtype]
    rounds_half: bool

    def carrier(self, dtype: MilType) -> torch.dtype:
        """Return the torch dtype that carries a MIL dtype's values; small integers take int32."""
        if dtype.name in self.carriers:
            return self.carriers[dtype.name]
        return torch.bool if dtype.name == "BOOL" else _INTEGERS.get(dtype.name, torch.int32)

    def enter(self, tensor: torch.Tensor, dtype: MilType) -> torch.Tensor:
        """Convert a caller's tensor to the torch dtype that carries values of this dtype."""
        tensor = tensor.to(self.carrier(dtype))
        return self.rounded(tensor) if self.rounds_half and dtype.name == "FLOAT16" else tensor

    def constant(self, tensor: torch.Tensor, dtype: MilType) -> torch.Tensor:
        """Round to the declared dtype under every policy, then convert to the carrying dtype."""
        declared = _FLOATS.get(dtype.name)
        return (tensor.to(declared) if declared else tensor).to(self.carrier(dtype))

    @staticmethod
    def rounded(tensor: torch.Tensor) -> torch.Tensor:
        """Round fp32 to the nearest fp16 value; values beyond 65504 become infinite."""
        return tensor.half().float()  # half of the time of `to`, for the small tensors of a step


_FP32 = {"FLOAT16": torch.float32, "FLOAT32": torch.float32, "FLOAT64": torch.float64}
POLICIES = {
    "strict": Policy("strict", _FP32, rounds_half=True),
    "widen": Policy("widen", _FP32, rounds_half=False),
    "double": Policy("double", dict.fromkeys(_FP32, torch.float64), rounds_half=False),
}


def get_policy(name: str) -> Policy:
    """Return a policy by name; raise HarnessError that lists the names for an unknown one."""
    if name not in POLICIES:
        raise HarnessError(f"no number policy '{name}'; choose from {', '.join(POLICIES)}")
    return POLICIES[name]
