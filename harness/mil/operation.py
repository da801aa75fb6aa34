"""Defines the `Operation` that an implementation reads, and the registry of implementations.

To add an operation:
1. Find the module of its kind in `harness/mil/ops`.
2. Write a builder, decorated with `@operation(name, inputs=...)`. Loading calls it once with an
   `Operation`. The builder reads the constant parameters from it, and returns a function of the
   tensors named in `inputs` (None for an absent one). The program may compute the parameters
   named in `computed`; the builder is then called when their values are known.
3. Add its name and parameters to `operations.toml`, if they are missing.
4. Add a `Row` with the result of numpy or PyTorch to the tests of its family in `tests/mil`.

A parameter that no builder reads is an error at load: nothing in a program is ignored.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

import torch

from harness.artifact.files import MAX_ELEMENTS
from harness.errors import ArtifactError, IndexRangeError
from harness.mil.packed import PackedWeight, expanded
from harness.mil.types import Policy, TensorType, ValueType
from harness.mil.values import Constant

Run = Callable[..., Any]
"""Computes an operation: takes the values of its inputs, returns its result or a tuple of them."""
Builder = Callable[["Operation"], Run]
Kinds = type[object] | tuple[type[object], ...]
"""The types of value that an input may have, in the form that `isinstance` takes."""


@dataclass(frozen=True)
class Implementation:
    """A registered operation.

    It has a builder, the inputs that it reads at call time, the parameters that the program may
    compute, the number of its blocks, the types of inputs that are not tensors, and the inputs that
    may be a `PackedWeight`.
    """

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
    """Register a builder; an operation that `moves_data` makes no new values to round.

    The function of an operation with `blocks` takes them after its tensors, as functions that take
    the blocks' inputs and return a tuple. Inputs are tensors, except those in `types`; an input in
    `packed` receives a quantized weight as a `PackedWeight`.
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

    `constants` are the inputs and attributes that are known at load, one or several for each
    name; `weights` are the inputs that constexpr operations made, tensors or packed; `given` are
    the names of all inputs in the program; `read` are those that the builder has read.
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
        """Return a parameter as a Python value, `default` when it is not given.

        Raise ArtifactError when it is given but unknown at load.
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
        """Return a required parameter; raise ArtifactError when it is missing."""
        value = self.constant(name)
        if value is None:
            raise self.error(f"parameter '{name}' is missing")
        return value

    def weight(self, name: str) -> torch.Tensor | None:
        """Return a constant tensor, None when it is not given.

        It has its stored dtype, or the policy's if another constexpr operation made it.
        """
        self.read.add(name)
        if name in self.weights:
            return expanded(self.weights[name])
        return self.constants[name][0].tensor() if name in self.constants else None

    def is_zero(self, name: str) -> bool:
        """Return whether an input is a constant whose elements are all 0."""
        return name in self.constants and not any(c.array.any() for c in self.constants[name])

    def check_count(self, count: int, what: str) -> None:
        """Raise ArtifactError unless a result of `count` elements has the declared size.

        `what` names the parameters that determine the size. Builders call this before they allocate
        the result. If the declared shape is flexible, `max_elements` is the limit.
        """
        if self.output.is_fixed and count != self.output.count:
            raise self.error(f"{what} do not give {list(self.output.shape)}")
        if not 0 <= count <= self.max_elements:
            limit = f"at most {self.max_elements} are allowed"
            raise self.error(f"{what} ask for {count} elements; {limit}")

    def check_room(self, shape: Sequence[int], what: str) -> None:
        """Raise ArtifactError when an intermediate tensor `what` has over `max_elements` elements.

        Builders call this before they allocate it.
        """
        if math.prod(max(0, size) for size in shape) > self.max_elements:
            limit = f"at most {self.max_elements} elements are allowed"
            raise self.error(f"{what} would have shape {list(shape)}; {limit}")

    def checked_shape(self, shape: Sequence[int], what: str) -> tuple[int, ...]:
        """Return a shape; raise ArtifactError for a negative size, and like `check_count`."""
        if any(size < 0 for size in shape):
            raise self.error(f"{what} ask for shape {list(shape)}, which a tensor cannot have")
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
        """Whether the first output has a floating-point dtype."""
        return self.output.dtype.name.startswith("FLOAT")

    @property
    def carrier(self) -> torch.dtype:
        """The torch dtype of the first output under the policy."""
        return self.policy.carrier(self.output.dtype)

    def since(self, opset: str) -> bool:
        """Return whether the program's opset is `opset` or a later one."""
        return self.opset >= opset  # CoreML5 to CoreML9: their order is that of their names

    def error(self, problem: str) -> ArtifactError:
        """Return an error that names the function and the operation."""
        return ArtifactError(f"{self.where}: {problem}")

    def index_error(self, problem: str) -> IndexRangeError:
        """Return an error about the values of an index, not about the artifact's bytes."""
        return IndexRangeError(f"{self.where}: {problem}")


# --- the table of all operations

OPSETS = ("CoreML5", "CoreML6", "CoreML7", "CoreML8", "CoreML9")
"""iOS 15, 16, 17, 18 and 26; the last adds no operation."""


@dataclass(frozen=True)
class Entry:
    """An operation of the table.

    It has the page in coremltools' MIL reference, the tolerance class, and the names of its
    parameters for each opset in which they changed.
    """

    name: str
    source: str
    tolerance: str
    changes: Mapping[str, frozenset[str]]

    @property
    def since(self) -> str:
        """The opset that introduced the operation."""
        return min(self.changes)

    def parameters(self, opset: str) -> frozenset[str] | None:
        """Return the names of the parameters in an opset, None when it lacks the operation."""
        earlier = [known for known in self.changes if known <= opset]
        return self.changes[max(earlier)] if earlier else None


@cache
def operations() -> Mapping[str, Entry]:
    """Return all operations by name."""
    rows = tomllib.loads((files("harness.mil") / "operations.toml").read_text("utf-8"))
    return {
        name: Entry(
            name,
            row["source"],
            row["tolerance"],
            {opset: frozenset(row[opset].split()) for opset in OPSETS if opset in row},
        )
        for name, row in rows.items()
    }


def check_known(operation: Operation) -> None:
    """Raise ArtifactError for a parameter, an operation or an opset that does not exist."""
    if operation.opset not in OPSETS:
        raise operation.error(f"opset '{operation.opset}' is not one of {', '.join(OPSETS)}")
    entry = operations()[operation.type]
    known = entry.parameters(operation.opset)
    if known is None:
        raise ArtifactError(
            f"{operation.where}: operation '{entry.name}' came with opset {entry.since}; "
            f"the program's is {operation.opset}"
        )
    unknown = operation.given - known
    if unknown:
        raise operation.error(
            f"parameter '{min(unknown)}' is not understood (opset {operation.opset})"
        )
