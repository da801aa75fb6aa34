"""Seeded inputs for the methods of any artifact: at the least, a middle and the largest shape.

Floats come from the standard normal distribution, rounded to fp16 where the artifact computes in
it. An integer that looks rows up is below the number of rows: a token id is below the vocabulary's
size. Other integers are 0 or 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from harness.artifact import Artifact, Package
from harness.artifact.files import max_elements
from harness.artifact.hazards import hazards_of
from harness.artifact.proto import mil_types
from harness.artifact.pte import KernelCall, TensorValue
from harness.errors import HarnessError
from harness.generate.interface import flexible_shapes, functions_of, keeps_state
from harness.golden import Steps
from harness.mil.types import AllowedShapes
from harness.pte import TensorSpec
from harness.runtimes import REFERENCE, get_runtime

STEPS = 3  # of a sequence where states go on from call to call
_UNBOUNDED = 64  # how far beyond its least an axis without a largest size is taken
# How far each sequence is from the least shape to the largest, where shapes are flexible.
_SEQUENCES = {"least": 0.0, "middle": 0.5, "largest": 1.0, "largest2": 1.0, "largest3": 1.0}
# The parameter of an operation that picks from `x` by index.
_LOOKUPS = {
    "gather": "indices",
    "gather_along_axis": "indices",
    "gather_nd": "indices",
    "slice_by_index": "begin",
    "slice_by_size": "begin",
    "slice_update": "begin",
}


def seeded_inputs(artifact: Artifact, method: str, seed: int) -> dict[str, Steps]:
    """Return the steps of sequences by name, for a method or a package's function.

    Raises HarnessError for an input that our executor cannot be given.
    """
    specs = get_runtime(REFERENCE).load(artifact, method).inputs
    allowed, limits = flexible_shapes(artifact, method), _index_limits(artifact, method)
    count = STEPS if keeps_state(artifact, method) else 1
    half = float_dtype(artifact) == "fp16"
    most = max_elements(sum(package.size for package in artifact.packages))
    makers = [
        _Maker(spec, limits.get(spec.name, 2), half, seed + number)
        for number, spec in enumerate(specs)
    ]
    found = {}
    for number, (name, fraction) in enumerate(_SEQUENCES.items()):
        shapes = [_shape(spec, allowed.get(spec.name), fraction) for spec in specs]
        for spec, shape in zip(specs, shapes, strict=True):
            if math.prod(shape) > most:
                raise HarnessError(f"input '{spec.name}' is declared with over {most} elements")
        found[name if allowed else f"sequence{number}"] = tuple(
            tuple(make(shape) for make, shape in zip(makers, shapes, strict=True))
            for _ in range(count)
        )
    return found


def probes(artifact: Artifact, method: str, sequences: Mapping[str, Steps]) -> dict[str, Steps]:
    """Return calls with the values at which a hazard of the method shows, by name.

    Each is the first of the sequences' calls with other floats or indices.
    """
    functions = list(functions_of(artifact, method))
    codes = {code for function in functions for code, _ in hazards_of(*function, _PROBES)}
    limits = _index_limits(artifact, method)
    names = [spec.name for spec in get_runtime(REFERENCE).load(artifact, method).inputs]
    (first, *_), *_ = sequences.values()
    found: dict[str, Steps] = {}
    for name in sorted({name for code in codes for name in _PROBES[code]}):
        floats, rows = _PROBED[name]
        given: list[torch.Tensor] = []
        for tensor, input_name in zip(first, names, strict=True):
            change = rows if input_name in limits else _unchanged
            given.append((floats if tensor.is_floating_point() else change)(tensor))
        found[name] = (tuple(given),)
    return found


Change = Callable[[torch.Tensor], torch.Tensor]


def _unchanged(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


# How a probe changes floats, and integers that look rows up.
_PROBED: dict[str, tuple[Change, Change]] = {
    "zeros": (torch.zeros_like, _unchanged),
    "small": (lambda tensor: tensor * 1e-3, _unchanged),
    "large": (lambda tensor: tensor * 16, _unchanged),
    "from the end": (_unchanged, lambda tensor: torch.full_like(tensor, -1)),
}
_PROBES = {
    "H03": ("large",),
    "H04": ("large",),
    "H06": ("small",),
    "H07": ("small", "zeros"),
    "H09": ("from the end",),
}


def _shape(spec: TensorSpec, allowed: AllowedShapes | None, fraction: float) -> tuple[int, ...]:
    """Return an allowed shape, a fraction of the way from the least to the largest.

    Axes of one range get one size, as a mask must fit its tokens.
    """
    if allowed is not None and allowed.listed:
        return allowed.listed[round(fraction * (len(allowed.listed) - 1))]
    shape = tuple(
        low + round(fraction * ((low + _UNBOUNDED if high is None else high) - low))
        for low, high in (allowed.ranges if allowed is not None else ())
    )
    shape = shape or spec.shape
    if -1 in shape:
        raise HarnessError(
            f"input '{spec.name}' has a flexible shape without bounds: give tensors for it"
        )
    return shape


class _Maker:
    """Makes the values of one input, call after call.

    Integers come in shuffled rounds of all rows, so that as many rows as possible are looked up.
    """

    def __init__(self, spec: TensorSpec, limit: int, half: bool, seed: int) -> None:
        self._dtype: torch.dtype = getattr(torch, spec.dtype)
        self._limit = 2 if self._dtype == torch.bool else max(1, limit)
        self._half = half
        self._generator = torch.Generator().manual_seed(seed)
        self._round = torch.empty(0, dtype=torch.int64)

    def __call__(self, shape: Sequence[int]) -> torch.Tensor:
        if self._dtype.is_floating_point:
            values = torch.randn(shape, generator=self._generator)
            return (values.half() if self._half else values).to(self._dtype)
        count = torch.Size(shape).numel()
        while self._round.numel() < count:
            more = torch.randperm(self._limit, generator=self._generator)
            self._round = torch.cat([self._round, more])
        values, self._round = self._round[:count], self._round[count:]
        return values.reshape(shape).to(self._dtype)


def float_dtype(artifact: Artifact) -> str:
    """Return `fp16` when a function computes in it, else `fp32`."""
    half = {number for number, kind in mil_types().items() if kind.name == "FLOAT16"}
    for package in artifact.packages:
        for name in package.functions:
            for operation in package.operations(name).operations:
                if any(o.type.tensorType.dataType in half for o in operation.outputs):
                    return "fp16"
    return "fp32"


def _index_limits(artifact: Artifact, method: str) -> dict[str, int]:
    """Return how many rows there are for each integer input that looks rows up, by name."""
    limits: dict[str, int] = {}
    for package, function in functions_of(artifact, method):
        for name, size in _limits_of(package, function):
            limits[name] = min(size, limits.get(name, size))
    if artifact.pte is None:
        return limits
    plan, names = artifact.pte.methods[method], artifact.value_names(method)
    for call in plan.instructions:
        if isinstance(call, KernelCall) and call.operator.startswith("aten::embedding"):
            weight = plan.values[call.args[0]]
            name = names.get(call.args[1], f"value_{call.args[1]}")
            if isinstance(weight, TensorValue):
                limits[name] = min(weight.shape[0], limits.get(name, weight.shape[0]))
    return limits


def _limits_of(package: Package, function: str) -> Iterator[tuple[str, int]]:
    """Follow integer inputs through integer operations to what they index.

    The smallest axis longer than 1 bounds an index of which the axis is not a constant's.
    """
    integers = {number for number, kind in mil_types().items() if "INT" in kind.name}
    types: dict[str, Any] = {i.name: i.type for i in package.functions[function].inputs}
    axes: dict[str, int] = {}
    sources = {name: {name} for name, kind in types.items() if _element(kind) in integers}
    for operation in package.operations(function).operations:
        names = {
            key: [argument.name for argument in value.arguments if argument.name]
            for key, value in operation.inputs.items()
        }
        came_from = {
            key: set().union(*(sources.get(name, set()) for name in given))
            for key, given in names.items()
        }
        indexes = came_from.get(_LOOKUPS.get(operation.type, ""), set())
        if indexes and names.get("x"):
            sizes = _sizes(types.get(names["x"][0]))
            axis = axes.get(next(iter(names.get("axis", ())), ""))
            if axis is not None and axis < len(sizes):
                sizes = sizes[axis : axis + 1]
            else:
                sizes = [size for size in sizes if size > 1]
            for name in indexes if sizes else ():
                yield name, min(sizes)
        value = operation.attributes["val"].immediateValue if operation.type == "const" else None
        if value is not None and len(value.tensor.ints.values) == 1:
            axes[operation.outputs[0].name] = value.tensor.ints.values[0]
        for output in operation.outputs:
            types[output.name] = output.type
            if _element(output.type) in integers and operation.type != "shape":
                sources[output.name] = set().union(*came_from.values())


def _element(kind: Any) -> int:
    number: int = kind.tensorType.dataType
    return number


def _sizes(kind: Any) -> list[int]:
    if kind is None:
        return []
    dimensions = kind.tensorType.dimensions
    return [d.constant.size for d in dimensions if d.WhichOneof("dimension") == "constant"]


def all_inputs(
    artifact: Artifact, seed: int = 0, given: Mapping[str, Mapping[str, Steps]] | None = None
) -> dict[str, dict[str, Steps]]:
    """Return seeded inputs of every method, unless others are given for it."""
    return {
        method: dict((given or {}).get(method) or seeded_inputs(artifact, method, seed))
        for method in artifact.methods
    }
