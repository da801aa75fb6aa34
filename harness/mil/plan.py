"""A function of an ML Program, compiled to a list of steps over numbered slots.

Everything that can be known at load is: constants are decoded, parameters bound, implementations
looked up, constexpr weights computed. What remains for a call is one loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from harness.artifact.errors import ArtifactError
from harness.artifact.package import Package
from harness.mil import ops as _registers_them  # noqa: F401
from harness.mil.operation import IMPLEMENTATIONS, Operation
from harness.mil.policy import Policy
from harness.mil.values import Constant, TensorType, read_constant, tensor_type

_MOST_ELEMENTS = 1 << 31  # 8 GB as fp32: no layer of a language model comes near

Weights = dict[Any, torch.Tensor]
"""What functions of one package share: a weight's place and type -> its tensor."""


@dataclass(frozen=True)
class Step:
    """One operation: what to call, the slots it reads (-1: absent), writes, and may free."""

    run: Callable[..., Any]
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    frees: tuple[int, ...]
    where: str
    types: tuple[TensorType, ...]


@dataclass(frozen=True)
class Plan:
    """A compiled function. ``slots`` is the state before a call, with all constants in place;
    ``names`` gives the slot of every named value.
    """

    inputs: dict[str, tuple[int, TensorType]]
    outputs: dict[str, tuple[int, TensorType]]
    steps: tuple[Step, ...]
    slots: tuple[torch.Tensor | None, ...]
    names: dict[str, int]


def compile_function(package: Package, function: str, policy: Policy, weights: Weights) -> Plan:
    """Compile a function; ``weights`` holds what functions of the package share, and is filled.

    Raises ArtifactError, naming function, operation and opset, for an operation that is not
    implemented, a value that is not defined before its use, or a constant that contradicts itself.
    """
    return _Compiler(package, function, policy, weights).compile()


class _Compiler:
    def __init__(self, package: Package, function: str, policy: Policy, weights: Weights) -> None:
        self._package = package
        self._policy = policy
        self._weights = weights
        self._where = f"{package.what}, function '{function}'"
        self._block = package.operations(function)
        self._message = package.functions[function]
        self._slots: list[torch.Tensor | None] = []
        self._names: dict[str, tuple[int, TensorType]] = {}
        self._constants: dict[int, Constant] = {}

    def compile(self) -> Plan:
        inputs = {
            value.name: self._define(value.name, tensor_type(value.type, self._where))
            for value in self._message.inputs
        }
        steps = [
            step
            for index, message in enumerate(self._block.operations)
            if (step := self._compile(message, index)) is not None
        ]
        outputs = {
            name: self._lookup(name, f"{self._where}, its outputs") for name in self._block.outputs
        }
        kept = {slot for slot, _ in outputs.values()}
        for slot in kept:
            self._materialise(slot)
        constants = {slot for slot, value in enumerate(self._slots) if value is not None}
        return Plan(
            inputs,
            outputs,
            _with_frees(steps, kept | constants),
            tuple(self._slots),
            {name: slot for name, (slot, _) in self._names.items()},
        )

    def _define(self, name: str, declared: TensorType) -> tuple[int, TensorType]:
        if name in self._names:
            raise ArtifactError(f"{self._where}: value '{name}' is defined twice")
        self._slots.append(None)
        self._names[name] = (len(self._slots) - 1, declared)
        return self._names[name]

    def _lookup(self, name: str, where: str) -> tuple[int, TensorType]:
        if name not in self._names:
            raise ArtifactError(f"{where}: uses '{name}', which nothing before it defines")
        return self._names[name]

    def _compile(self, message: Any, index: int) -> Step | None:
        """Return the step for an operation; None for one that is done at load."""
        if not message.outputs:
            raise ArtifactError(f"{self._where}: operation {index}, {message.type}, has no output")
        where = f"{self._where}, {message.type} '{message.outputs[0].name}'"
        outputs = tuple(tensor_type(output.type, where) for output in message.outputs)
        if max(output.count for output in outputs) > _MOST_ELEMENTS:
            raise ArtifactError(f"{where}: declares a result of over {_MOST_ELEMENTS} elements")
        if message.type == "const":
            if "val" not in message.attributes:
                raise ArtifactError(f"{where}: a const without 'val'")
            value = read_constant(message.attributes["val"], self._package, where)
            self._constants[self._define(message.outputs[0].name, value.type)[0]] = value
            return None
        operation, bound = self._bind(message, outputs, where)
        if message.type.startswith("constexpr_"):
            result = self._constexpr(operation)
            self._slots[self._define(message.outputs[0].name, outputs[0])[0]] = result
            return None
        run = self._build(operation)
        inputs = IMPLEMENTATIONS[message.type].inputs
        reads = tuple(slot for name in inputs for slot in bound.get(name, (-1,)))
        for slot in reads:
            self._materialise(slot)
        writes = tuple(
            self._define(output.name, declared)[0]
            for output, declared in zip(message.outputs, outputs, strict=True)
        )
        return Step(run, reads, writes, (), where, outputs)

    def _bind(
        self, message: Any, outputs: tuple[TensorType, ...], where: str
    ) -> tuple[Operation, dict[str, tuple[int, ...]]]:
        """Return the operation as its builder sees it, and the slots of each of its inputs."""
        if message.type not in IMPLEMENTATIONS or message.blocks:
            raise ArtifactError(
                f"{where}: operation '{message.type}' of opset {self._message.opset} "
                "is not implemented"
            )
        bound = {
            name: tuple(self._argument(a, f"{where}, '{name}'") for a in argument.arguments)
            for name, argument in message.inputs.items()
        }
        constants = {
            name: self._constants[slots[0]]
            for name, slots in bound.items()
            if len(slots) == 1 and slots[0] in self._constants
        }
        for name, value in message.attributes.items():
            if name != "name":
                constants[name] = read_constant(value, self._package, f"{where}, '{name}'")
        given = frozenset({*bound, *constants})
        opset = self._message.opset
        return (
            Operation(message.type, where, outputs, constants, given, opset, self._policy),
            bound,
        )

    def _argument(self, binding: Any, where: str) -> int:
        if binding.WhichOneof("binding") == "name":
            return self._lookup(binding.name, where)[0]
        self._slots.append(None)
        slot = len(self._slots) - 1
        self._constants[slot] = read_constant(binding.value, self._package, where)
        return slot

    def _build(self, operation: Operation) -> Callable[..., Any]:
        implementation = IMPLEMENTATIONS[operation.type]
        run = implementation.build(operation)
        unknown = operation.given - operation.read - set(implementation.inputs)
        if unknown:
            raise operation.error(f"parameter '{min(unknown)}' is not understood")
        if self._policy.rounds_half and not implementation.moves_data:
            return _rounding(run, operation.outputs, self._policy)
        return run

    def _constexpr(self, operation: Operation) -> torch.Tensor:
        """Compute a weight, once for all functions that make it from the same data."""
        sources = tuple(sorted((name, c.weight) for name, c in operation.constants.items()))
        key = (operation.type, sources, operation.output)
        if any(weight is None for _, weight in sources):
            result: torch.Tensor = self._build(operation)()
            return result
        if key not in self._weights:
            self._weights[key] = self._build(operation)()
        return self._weights[key]

    def _materialise(self, slot: int) -> None:
        """Make the tensor of a constant that an operation reads as a tensor."""
        if slot not in self._constants or self._slots[slot] is not None:
            return
        constant = self._constants[slot]
        if constant.type.dtype.name == "STRING":
            raise ArtifactError(f"{self._where}: a STRING is used as a tensor")
        key = (constant.weight, constant.type)
        if constant.weight is None or key not in self._weights:
            tensor = self._policy.constant(constant.tensor(), constant.type.dtype)
            if constant.weight is not None:
                self._weights[key] = tensor
            self._slots[slot] = tensor
        else:
            self._slots[slot] = self._weights[key]


def _rounding(
    run: Callable[..., Any], outputs: tuple[TensorType, ...], policy: Policy
) -> Callable[..., Any]:
    """Return ``run`` with its FLOAT16 results rounded."""
    if any(output.dtype.name != "FLOAT16" for output in outputs):
        return run
    if len(outputs) == 1:
        return lambda *tensors: policy.rounded(run(*tensors))
    return lambda *tensors: tuple(policy.rounded(result) for result in run(*tensors))


def _with_frees(steps: list[Step], kept: set[int]) -> tuple[Step, ...]:
    """Let each step free the slots that nothing after it reads."""
    seen = set(kept)
    result = []
    for step in reversed(steps):
        last = {slot for slot in (*step.reads, *step.writes) if slot >= 0} - seen
        seen |= last
        result.append(replace(step, frees=tuple(last)))
    return tuple(reversed(result))
