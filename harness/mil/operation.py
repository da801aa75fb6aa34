"""One operation as its implementation sees it, and the registry of implementations.

To add an operation:
1. Find the module of its kind in `harness/mil/ops`.
2. Write a builder, decorated with `@operation(name, inputs=...)`: it is called once at load with
   an `Operation`, reads the constant parameters from it, and returns a function of the tensors
   named in `inputs` (None for one that is absent). Parameters named in `computed` may be
   computed by the program; then the builder is called when their values are known.
3. Add its names and parameters to `operations.toml`, if they are not there.
4. Add its rule to the tests with expected values from numpy or PyTorch.

A parameter that no builder reads is an error at load: nothing in a program is ignored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from harness.artifact.errors import ArtifactError
from harness.artifact.limits import MAX_ELEMENTS
from harness.mil.packed.weight import PackedWeight, expanded
from harness.mil.policy import Policy
from harness.mil.types import TensorType, ValueType
from harness.mil.values import Constant

Run = Callable[..., Any]
"""Computes an operation: takes the values of its inputs, returns its result or a tuple of them."""
Builder = Callable[["Operation"], Run]
Kinds = type[object] | tuple[type[object], ...]
"""What `isinstance` takes: the types of value that an input may have."""


@dataclass(frozen=True)
class Implementation:
    """How an operation is built, which inputs it reads at call time, which of its parameters may
    be computed by the program, how many blocks it has, which inputs are not tensors, and which may
    be a `PackedWeight`."""

    build: Builder
    inputs: tuple[str, ...]
    moves_data: bool
    computed: tuple[str, ...]
    blocks: int
    types: Mapping[str, Kinds]
    packed: tuple[str, ...]


IMPLEMENTATIONS: dict[str, Implementation] = {}


def operation(
    *names: str,
    inputs: tuple[str, ...],
    moves_data: bool = False,
    computed: tuple[str, ...] = (),
    blocks: int = 0,
    types: Mapping[str, Kinds] | None = None,
    packed: tuple[str, ...] = (),
) -> Callable[[Builder], Builder]:
    """Register a builder. One that `moves_data` makes no new values: nothing is rounded.

    The function of an operation with `blocks` takes them after its tensors, as functions of the
    blocks' inputs that return a tuple. Inputs are tensors, but for those whose types are given;
    a quantized weight comes as a `PackedWeight` where an input is among `packed`.
    """

    def register(build: Builder) -> Builder:
        for name in names:
            IMPLEMENTATIONS[name] = Implementation(
                build, inputs, moves_data, computed, blocks, types or {}, packed
            )
        return build

    return register


@dataclass
class Operation:
    """An operation at load.

    `constants` holds the inputs and attributes that are known at load, one or several for each
    name; `weights` the inputs that constexpr operations made, tensors or packed; `given` the
    names of all inputs that the program gives.
    """

    type: str
    where: str
    outputs: tuple[ValueType, ...]
    constants: Mapping[str, tuple[Constant, ...]]
    weights: Mapping[str, torch.Tensor | PackedWeight]
    given: frozenset[str]
    opset: str
    policy: Policy
    max_elements: int = MAX_ELEMENTS
    read: set[str] = field(default_factory=set)

    def constant(self, name: str, default: Any = None) -> Any:
        """Return a parameter as Python's own value, `default` when it is not given.

        Raises ArtifactError when it is given but not known at load.
        """
        values = self.all_of(name)
        if len(values) > 1:
            raise self.error(f"parameter '{name}' has {len(values)} values, where one is expected")
        return values[0] if values else default

    def all_of(self, name: str) -> list[Any]:
        """Return the values of a parameter that may have several; an empty list when not given."""
        self.read.add(name)
        if name in self.constants:
            return [constant.python for constant in self.constants[name]]
        if name in self.given:
            raise self.error(f"parameter '{name}' is computed by the program; it must be constant")
        return []

    def required(self, name: str) -> Any:
        """Return a parameter that must be given; raises ArtifactError when it is not."""
        value = self.constant(name)
        if value is None:
            raise self.error(f"parameter '{name}' is missing")
        return value

    def weight(self, name: str) -> torch.Tensor | None:
        """Return a constant tensor, None when it is not given: in its stored dtype, or as the
        policy carries it when another constexpr operation made it."""
        self.read.add(name)
        if name in self.weights:
            return expanded(self.weights[name])
        return self.constants[name][0].tensor() if name in self.constants else None

    def is_zero(self, name: str) -> bool:
        """Whether an input is a constant, and all of its elements are 0."""
        return name in self.constants and not any(c.array.any() for c in self.constants[name])

    def check_count(self, count: int, what: str) -> None:
        """Raise ArtifactError when a result of `count` elements, which `what` asks for, is not
        as large as declared: asked before it is made, nothing larger is ever made.

        Where the declared shape is flexible, `max_elements` is the limit.
        """
        if self.output.is_fixed and count != self.output.count:
            raise self.error(f"{what} do not give {list(self.output.shape)}")
        if not 0 <= count <= self.max_elements:
            raise self.error(f"{what} ask for {count} elements; the most is {self.max_elements}")

    def check_room(self, shape: Sequence[int], what: str) -> None:
        """Raise ArtifactError when `what`, of this shape and made on the way to the result, has
        more elements than any value of the program may have: asked before it is made."""
        if math.prod(max(0, size) for size in shape) > self.max_elements:
            limit = f"the most is {self.max_elements}"
            raise self.error(f"{what} would be of shape {list(shape)}; {limit}")

    def checked_shape(self, shape: Sequence[int], what: str) -> tuple[int, ...]:
        """Return a shape to make; raises ArtifactError when it is negative, or as `check_count`."""
        if any(size < 0 for size in shape):
            raise self.error(f"{what} ask for shape {list(shape)}, which no tensor has")
        self.check_count(math.prod(shape), what)
        return tuple(shape)

    @property
    def output(self) -> TensorType:
        """The type of the first output, which must be a tensor."""
        first = self.outputs[0]
        if not isinstance(first, TensorType):
            raise self.error("its first result must be declared a tensor")
        return first

    @property
    def is_float(self) -> bool:
        """Whether the first output is of a floating point dtype."""
        return self.output.dtype.name.startswith("FLOAT")

    @property
    def carrier(self) -> torch.dtype:
        """The torch dtype that carries the first output."""
        return self.policy.carrier(self.output.dtype)

    def since(self, opset: str) -> bool:
        """Whether the program's opset is `opset` or a later one."""
        return self.opset >= opset  # CoreML5 to CoreML9: their order is that of their names

    def error(self, problem: str) -> ArtifactError:
        """Return an error that names the function and the operation."""
        return ArtifactError(f"{self.where}: {problem}")
